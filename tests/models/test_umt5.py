"""UMT5: what reads what, caches of both attentions, packed rows, forms of one computation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xformer.layers import heads
from xformer.layers.execution import Execution
from xformer.layers.stack import restack
from xformer.models.build import dummy_inputs
from xformer.models.umt5 import shift_tokens_right
from xformer.models.umt5_config import UMT5Config
from xformer.partitioning import (
    MeshConfig,
    Rules,
    axis_names,
    batch_sharding,
    constraints,
    make_mesh,
    shardings,
)

B, S, T = 2, 9, 7
RNG = np.random.default_rng(0)
IDS = jnp.asarray(RNG.integers(2, 29, (B, S)), jnp.int32).at[:, -1].set(1)
DECODER_IDS = jnp.asarray(RNG.integers(2, 29, (B, T)), jnp.int32)
MASK = jnp.ones((B, S), jnp.int32).at[1, 6:].set(0)
LABELS = ("a", "b", "c")
HEADS = (
    heads.Base(),
    heads.Encoder(),
    heads.ConditionalGeneration(),
    heads.SequenceClassification(LABELS),
    heads.TokenClassification(LABELS),
    heads.QuestionAnswering(),
)


def assert_close(one, other, atol=2e-5):
    np.testing.assert_allclose(one, other, atol=atol)


def test_scores_depend_on_no_later_token_of_the_decoder(umt5):
    model, at = umt5(), 4

    def score(vectors):
        out = model(IDS, attention_mask=MASK, decoder_inputs_embeds=vectors)
        return jnp.square(out.logits[:, at]).sum()

    vectors = jnp.asarray(RNG.normal(size=(B, T, 10)), jnp.float32)
    grad = np.abs(jax.grad(score)(vectors)).sum((0, 2))
    assert (grad[at + 1 :] == 0.0).all() and (grad[: at + 1] > 0.0).all()


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_padding_content_never_reaches_real_tokens(umt5, head):
    model = umt5(head)
    decoder = {"decoder_input_ids": DECODER_IDS} if "decoder" in model.params else {}
    if isinstance(head, heads.SequenceClassification | heads.QuestionAnswering):
        decoder = {"decoder_input_ids": jnp.pad(DECODER_IDS, ((0, 0), (0, S - T)))}
    ids = IDS.at[1, 5].set(1)
    outs = []
    for filling in (2, 17):
        filled = jnp.where(MASK > 0, ids, filling).at[1, -1].set(1)
        filled = filled if head != HEADS[3] else ids.at[1, 6:8].set(filling).at[1, -1].set(1)
        outs.append(model(filled, attention_mask=MASK, **decoder))
    names = {"logits", "last_hidden_state", "start_logits", "end_logits"} & set(outs[0].keys())
    assert names
    for name in names:
        one, other = (np.asarray(out[name]) for out in outs)
        if one.shape[1:2] == (S,) and not decoder:
            one, other = one[MASK > 0], other[MASK > 0]
        assert_close(one, other, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(umt5, side):
    """Distances, not positions, are learned."""
    model = umt5()
    alone = model(IDS[:1], decoder_input_ids=DECODER_IDS[:1]).logits
    before, behind = ((3, 0) if side == "left" else (0, 3)), ((2, 0) if side == "left" else (0, 2))
    pad = lambda x, widths: jnp.pad(x[:1], ((0, 0), widths))  # noqa: E731
    padded = model(
        pad(IDS, before),
        attention_mask=pad(jnp.ones_like(IDS), before),
        decoder_input_ids=pad(DECODER_IDS, behind),
        decoder_attention_mask=pad(jnp.ones_like(DECODER_IDS), behind),
    ).logits
    assert_close(padded[:, behind[0] : behind[0] + T], alone)


def test_packed_documents_are_as_if_alone(umt5):
    model = umt5()
    segments = jnp.asarray([[1, 1, 1, 1, 2, 2, 2, 0, 0]])
    decoder_segments = jnp.asarray([[1, 1, 2, 2, 2, 2, 0]])
    packed = model(
        IDS[:1],
        segment_ids=segments,
        decoder_input_ids=DECODER_IDS[:1],
        decoder_segment_ids=decoder_segments,
    ).logits
    for read, written in (((0, 4), (0, 2)), ((4, 7), (2, 6))):
        alone = model(
            IDS[:1, slice(*read)], decoder_input_ids=DECODER_IDS[:1, slice(*written)]
        ).logits
        assert_close(packed[:, slice(*written)], alone)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_cached_decoding_equals_the_full_forward(umt5, tied, side):
    model = umt5(tie_word_embeddings=tied)
    mask = MASK if side == "right" else MASK[:, ::-1]
    written = jnp.ones((B, T), jnp.int32)
    if side == "left":
        written = written.at[1, :2].set(0)  # a prompt of the decoder, padded in front
    full = model(
        IDS,
        attention_mask=mask,
        decoder_input_ids=DECODER_IDS,
        decoder_attention_mask=written,
    ).logits
    states = model(IDS, attention_mask=mask, method="encode").last_hidden_state
    room = jnp.pad(written, ((0, 0), (0, 2)), constant_values=1)
    arguments = {"encoder_attention_mask": mask, "decoder_attention_mask": room, "method": "decode"}
    cache = model.module.config.empty_cache(B, T + 2, Execution())
    out = model(DECODER_IDS[:, :3], states, cache=cache, **arguments)
    logits = [out.logits]
    assert out.past_key_values.cross[0].key_BSNH.shape == (B, S, 3, 6)
    for i in range(3, T):  # the encoder's states are not needed again
        out = model(DECODER_IDS[:, i : i + 1], cache=out.past_key_values, **arguments)
        logits.append(out.logits)
    assert int(out.past_key_values.length) == T
    real = np.asarray(written) > 0
    assert_close(np.concatenate(logits, axis=1)[real], np.asarray(full)[real])


def everything(model, params):
    labels = DECODER_IDS[:, ::-1]

    def loss(params):
        out = model(
            IDS,
            params=params,
            attention_mask=MASK,
            decoder_input_ids=DECODER_IDS,
            output_hidden_states=True,
            output_attentions=True,
        )
        chosen = jnp.take_along_axis(jax.nn.log_softmax(out.logits), labels[..., None], -1)
        return -chosen.mean(), out

    (value, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, dict(out.items()), grads


@pytest.mark.parametrize("execution", [Execution(layers="scan"), Execution(remat="full")])
def test_scanned_and_recomputed_layers_give_what_looped_ones_do(umt5, execution):
    plain, other = umt5(), umt5(execution=execution)
    expected = everything(plain, plain.params)
    value, out, grads = everything(other, other.params)
    jax.tree.map(assert_close, (value, out, restack(grads, "loop")), expected)


def test_sharded_computation_gives_what_one_device_does(umt5):
    model, rules = umt5(num_heads=4, d_ff=16, vocab_size=32, d_model=8), Rules()
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    inputs = dummy_inputs(model.module, HEADS[2])
    boxed = jax.eval_shape(lambda: model.module.init(jax.random.key(0), **inputs))["params"]
    shards = shardings(model.params, axis_names(boxed), mesh, rules)
    batch = batch_sharding(mesh, rules)
    given = {
        "input_ids": jnp.tile(IDS, (2, 1)),
        "attention_mask": jnp.tile(MASK, (2, 1)),
        "decoder_input_ids": jnp.tile(DECODER_IDS, (2, 1)),
    }
    expected = model(**given).logits

    def run(params, given):
        with constraints(rules):
            return model.module.apply({"params": params}, **given).logits

    with jax.set_mesh(mesh):
        params = jax.device_put(model.params, shards)
        given = jax.device_put(given, batch)
        actual = jax.jit(run, in_shardings=(shards, batch))(params, given)
    assert_close(actual, expected)
    kernel = params["decoder"]["block"]["0"]["layer"]["1"]["EncDecAttention"]["q"]["kernel"]
    assert len(kernel.addressable_shards[0].data) == 4  # of 8 rows
    assert len(actual.addressable_shards[0].data) == 1


def test_attentions_are_probabilities(umt5):
    out = umt5()(IDS, attention_mask=MASK, decoder_input_ids=DECODER_IDS, output_attentions=True)
    for name, count in (("encoder_", 2), ("decoder_", 3), ("cross_", 3)):
        attentions = out[f"{name}attentions"]
        assert len(attentions) == count
        for attention in attentions:
            assert_close(attention.sum(-1), np.ones(attention.shape[:-1]), atol=1e-6)


def test_head_masks_are_factors_of_their_own_attention(umt5):
    model = umt5()
    inputs = {"decoder_input_ids": DECODER_IDS}
    plain = model(IDS, **inputs).logits
    for name, layers in (("head_mask", 2), ("decoder_head_mask", 3), ("cross_attn_head_mask", 3)):
        ones = jnp.ones((layers, 3))
        assert_close(model(IDS, **inputs, **{name: ones}).logits, plain, atol=0)
        assert np.abs(model(IDS, **inputs, **{name: ones.at[1, 2].set(0.0)}).logits - plain).max()


@pytest.mark.parametrize("dtype, atol", [("bfloat16", 0.35), ("float16", 0.06)])
def test_half_precision_is_near_and_scores_are_float32(umt5, dtype, atol):
    inputs = {"attention_mask": MASK, "decoder_input_ids": DECODER_IDS}
    exact = umt5()(IDS, **inputs).logits
    half = umt5(execution=Execution(dtype=dtype))(IDS, **inputs).logits
    assert half.dtype == jnp.float32
    assert_close(half / exact.std(), exact / exact.std(), atol=atol)


def test_float16_does_not_overflow(umt5):
    """The published weights grow beyond what float16 holds in the sum of sublayers."""
    model = umt5(execution=Execution(dtype="float16"))
    grown = jax.tree_util.tree_map_with_path(
        lambda path, x: x * (3e4 if path[-2].key in ("wo", "o") else 1.0), model.params
    )
    out = model(IDS, params=grown, decoder_input_ids=DECODER_IDS)
    assert np.isfinite(out.logits).all() and np.isfinite(out.encoder_last_hidden_state).all()


def test_sequences_are_classified_by_decoders_that_read_as_much(umt5, untyped):
    model = umt5(HEADS[3])
    vectors = jnp.asarray(RNG.normal(size=(B, S, 10)), jnp.float32)
    assert np.isfinite(model(IDS, decoder_inputs_embeds=vectors).logits).all()
    for given in ({"decoder_input_ids": DECODER_IDS}, {"decoder_inputs_embeds": vectors[:, 1:]}):
        with pytest.raises(ValueError, match=r"decoder_input\w+ must have shape \(2, 9"):
            model(IDS, **given)


def test_tokens_shift_right_behind_the_start_token():
    labels = jnp.asarray([[5, 6, 1, -100], [7, -100, 8, 1]])
    shifted = shift_tokens_right(labels, 0, 3)
    np.testing.assert_array_equal(shifted, [[3, 5, 6, 1], [3, 7, 0, 8]])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "exactly one of decoder_input_ids and decoder_inputs_embeds"),
        ({"decoder_input_ids": DECODER_IDS, "segment_ids": MASK}, "segment_ids and decoder_seg"),
        ({"decoder_input_ids": DECODER_IDS, "attention_mask": MASK[:, 1:]}, "attention_mask must"),
        (
            {"decoder_input_ids": DECODER_IDS, "decoder_attention_mask": MASK},
            r"decoder_attention_mask must have shape \(2, 7\)",
        ),
        ({"decoder_input_ids": DECODER_IDS, "head_mask": jnp.ones((3, 3))}, "head_mask must"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(umt5, untyped, arguments, message):
    with pytest.raises(ValueError, match=message):
        umt5()(IDS, **arguments)


def test_encoder_states_and_masks_of_another_shape_are_refused(umt5, untyped):
    model = umt5()
    states = model(IDS, method="encode").last_hidden_state
    for wrong in (states[:1], states[..., :8], states[:, 0]):
        with pytest.raises(ValueError, match=r"encoder_hidden_states must have shape \(2, \d+, 10"):
            model(DECODER_IDS, wrong, method="decode")
    cache = model.module.config.empty_cache(B, T + 1, Execution())
    stored = model(DECODER_IDS, states, cache=cache, method="decode").past_key_values
    for mask in (MASK[:1], MASK[:, :1]):
        for given in ({"encoder_hidden_states": states}, {"cache": stored}):
            with pytest.raises(ValueError, match=r"encoder_attention_mask must have shape \(2, 9"):
                model(DECODER_IDS[:, :1], encoder_attention_mask=mask, method="decode", **given)


@pytest.mark.parametrize("field, found", [("num_layers", 2), ("num_decoder_layers", 3)])
def test_parameters_of_another_depth_are_refused(umt5, field, found):
    other = umt5(**{field: 1})
    with pytest.raises(ValueError, match=f"have {found} layers .* change UMT5Config.{field}"):
        other(IDS, params=umt5().params, decoder_input_ids=DECODER_IDS)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"relative_attention_num_buckets": 7}, "num_buckets must be even"),
        ({"relative_attention_max_distance": 16}, "max_distance must be at least 17"),
        ({"feed_forward_proj": "gated-swoosh"}, "UMT5Config.feed_forward_proj must be one of"),
        (
            {"eos_token_id": 250112},
            "eos_token_id=250112 must be a token id below .*vocab_size=250112",
        ),
        ({"num_decoder_layers": 0}, "UMT5Config.num_decoder_layers must be at least 1"),
    ],
)
def test_impossible_architectures_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        UMT5Config(**fields)


def test_fields_that_follow_from_others_must_agree():
    derived = {"dense_act_fn": "gelu_new", "is_gated_act": True, "scalable_attention": True}
    assert UMT5Config.from_dict(derived) == UMT5Config()
    with pytest.raises(ValueError, match="dense_act_fn='relu' contradicts feed_forward_proj"):
        UMT5Config.from_dict({**derived, "dense_act_fn": "relu"})


def test_copies_keep_the_number_of_decoder_layers():
    config = UMT5Config(num_layers=4)
    assert config.num_decoder_layers == 4
    assert dataclasses.replace(config, num_layers=6).num_decoder_layers == 4


def test_ungated_layers_have_two_projections(umt5):
    params = umt5(feed_forward_proj="relu").params
    network = params["encoder"]["block"]["0"]["layer"]["1"]["DenseReluDense"]
    assert set(network) == {"wi", "wo"}
