"""What must hold for every encoder with every head, whatever its weights are.

Where a family's own tests hold it to more than a test here does, it is left out here.

Inputs have 17 tokens: block-sparse attention reads them in 9 blocks, the last of them half padding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xformer import partitioning
from xformer.layers import heads
from xformer.layers.execution import Execution
from xformer.layers.stack import restack
from xformer.partitioning import MeshConfig, Rules

B, C, T = 2, 3, 17
SEP = 5  # of the tiny BigBird: questions end with it
RNG = np.random.default_rng(1)
IDS = RNG.integers(6, 31, (B, T)).astype(np.int32)
IDS[:, 3] = SEP
MASK = np.ones((B, T), np.int32)
MASK[0, 12:] = MASK[1, 15:] = 0
TYPES = RNG.integers(0, 3, (B, T)).astype(np.int32)
REAL = MASK.astype(bool)

SPARSE = {"attention_type": "block_sparse"}
FIXED = SPARSE | {"random_blocks": "fixed"}
DENSE = {"attention_type": "original_full"}
RANDOM = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
ENCODERS = {
    "squeezebert": ("squeezebert", DENSE),
    "squeezebert-sparse": ("squeezebert", FIXED),
    "bigbird": ("bigbird", SPARSE),
    "bigbird-dense": ("bigbird", DENSE),
}
HEADS = [
    heads.Base(),
    heads.MaskedLM(),
    heads.PreTraining(),
    heads.NextSentence(),
    heads.SequenceClassification(labels=("a", "b", "c")),
    heads.MultipleChoice(),
    heads.TokenClassification(labels=("a", "b", "c", "d")),
    heads.QuestionAnswering(),
]

assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
assert_equal = np.testing.assert_array_equal


@pytest.fixture(params=ENCODERS)
def encoder(request):
    """Makes one of the encoders; keywords change fields of its config."""
    family, fields = ENCODERS[request.param]
    make = request.getfixturevalue(family)
    return lambda head=None, execution=None, **changes: make(head, execution, **fields | changes)


@pytest.fixture(params=["squeezebert", "bigbird"])
def dense(request):
    """Makes one of the families with dense attention."""
    make = request.getfixturevalue(request.param)
    return lambda head=None, execution=None, **changes: make(head, execution, **DENSE | changes)


def for_head(head, array):
    """An argument of tokens, with an axis of choices where the head has one."""
    array = jnp.asarray(array)
    if not isinstance(head, heads.MultipleChoice):
        return array
    return jnp.stack([array, array[::-1], array], axis=1)[:, :C]


def scores(out):
    """What a head computes, without what the body hands through."""
    return {k: v for k, v in out.items() if k not in ("hidden_states", "attentions")}


def token_vectors(model):
    tree = model.params.get("transformer", model.params.get("bert", model.params))
    return tree["embeddings"]["word_embeddings"]["embedding"]


# Who reads whom


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
@pytest.mark.parametrize("encoder", ["squeezebert", "bigbird"], indirect=True)
def test_padding_content_never_reaches_real_tokens(encoder, head):
    model = encoder(head)
    mask, types = for_head(head, MASK), for_head(head, TYPES)
    run = functools.partial(model, attention_mask=mask, token_type_ids=types)
    other = np.where(REAL, IDS, 36 - IDS)
    one, two = (scores(run(for_head(head, ids))) for ids in (IDS, other))
    assert one.keys() == two.keys() != set()
    for name in one:
        kept = np.s_[:] if one[name].shape[1:2] != (T,) else REAL
        assert_close(two[name][kept], one[name][kept], atol=1e-6)


def test_scores_do_not_depend_on_padding_at_all(encoder):
    model = encoder()

    @jax.jit
    @jax.grad
    def gradient_of_real_states(embeds_BTD):
        out = model(inputs_embeds=embeds_BTD, attention_mask=MASK)
        states_BTD = jnp.where(REAL[..., None], out.last_hidden_state, 0.0)
        return jnp.sin(states_BTD).sum() + out.pooler_output.sum()

    gradient = np.asarray(gradient_of_real_states(token_vectors(model)[IDS]))
    assert not gradient[~REAL].any() and gradient[REAL].any(axis=1).all()


def test_padding_matters_without_its_mask(encoder):
    model = encoder(heads.PreTraining())
    with_mask = model(IDS, attention_mask=MASK).prediction_logits
    assert abs(with_mask - model(IDS).prediction_logits).max() > 1e-2


def test_packed_documents_are_as_if_alone(dense):
    model = dense(heads.MaskedLM())
    segments = np.repeat([[1, 2, 3, 0], [1, 2, 2, 2]], [4, 5, 6, 2], axis=1).astype(np.int32)
    starts = {(0, 0): 4, (0, 4): 9, (0, 9): 15, (1, 0): 4, (1, 4): 17}
    positions = np.zeros((B, T), np.int32)
    for (row, start), end in starts.items():
        positions[row, start:end] = np.arange(end - start)
    packed = model(IDS, segment_ids=segments, position_ids=positions).logits
    for (row, start), end in starts.items():
        size = end - start
        alone = np.zeros((B, T), np.int32)
        alone[0, :size] = IDS[row, start:end]
        mask = (np.arange(T)[None] < size) * np.ones((B, 1), np.int32)
        assert_close(packed[row, start:end], model(alone, attention_mask=mask).logits[0, :size])


def test_attention_probabilities_sum_to_one_within_the_input(encoder):
    model = encoder()
    out = model(IDS, attention_mask=MASK, output_attentions=True, output_hidden_states=True)
    layers = model.module.config.num_hidden_layers
    assert [one.shape for one in out.attentions] == [(B, 3, T, T)] * layers
    assert [one.shape for one in out.hidden_states] == [(B, T, 12)] * (layers + 1)
    rows = np.stack(out.attentions).sum(-1).transpose(1, 3, 0, 2)
    assert_close(rows[REAL], np.ones_like(rows[REAL]))
    assert not np.stack(out.attentions).transpose(1, 4, 0, 2, 3)[~REAL].any()
    assert_equal(out.hidden_states[-1], out.last_hidden_state)
    assert_close(
        model(IDS, attention_mask=MASK).last_hidden_state[REAL], out.last_hidden_state[REAL]
    )


@pytest.mark.parametrize("encoder", ["squeezebert", "squeezebert-sparse"], indirect=True)
def test_head_mask_is_a_factor_on_each_head(encoder):
    model = encoder()
    half = jnp.asarray([[1.0, 0.5, 0.0], [1.0, 1.0, 1.0]])
    plain = model(IDS, output_attentions=True)
    masked = model(IDS, head_mask=half, output_attentions=True)
    assert_close(masked.attentions[0], plain.attentions[0] * half[0][None, :, None, None])
    without_attentions = model(IDS, head_mask=half)
    assert_close(without_attentions.last_hidden_state, masked.last_hidden_state)
    assert abs(masked.last_hidden_state - plain.last_hidden_state).max() > 1e-2


# Heads


@pytest.mark.parametrize("head", [heads.MaskedLM(), heads.PreTraining()])
def test_scores_at_masked_positions_are_those_of_all_positions(dense, head):
    model = dense(head)
    places = np.array([[0, 16, 3], [5, 5, 0]], np.int32)
    name = "prediction_logits" if isinstance(head, heads.PreTraining) else "logits"
    full, some = model(IDS), model(IDS, masked_positions=places)
    expected = np.take_along_axis(np.asarray(full[name]), places[:, :, None], 1)
    assert_close(some[name], expected)
    assert some[name].shape == (B, 3, 31)


def test_choices_are_scored_one_by_one(dense):
    model = dense(heads.MultipleChoice())
    ids = RNG.integers(6, 31, (B, C, T)).astype(np.int32)
    mask = RNG.integers(0, 2, (B, C, T)).astype(np.int32)
    mask[..., 0] = 1
    together = model(ids, attention_mask=mask).logits
    assert together.shape == (B, C)
    for choice in range(C):
        part = slice(choice, choice + 1)
        one = model(ids[:, part], attention_mask=mask[:, part])
        assert_close(one.logits, together[:, part])
    with pytest.raises(ValueError, match="needs input_ids of shape .batch, choices, length"):
        model.module.apply({"params": model.params})


def test_heads_agree_where_they_share_weights(dense):
    both = dense(heads.PreTraining())
    out = both(IDS)
    body = {k: v for k, v in both.params.items() if k != "cls"}
    tokens = dense(heads.MaskedLM())
    prefix = next(iter(body))
    own = {k: v for k, v in body[prefix].items() if k != "pooler"}
    cls = {"predictions": both.params["cls"]["predictions"]}
    assert_close(tokens(IDS, params={prefix: own, "cls": cls}).logits, out.prediction_logits)
    sentence = dense(heads.NextSentence())
    cls = {"seq_relationship": both.params["cls"]["seq_relationship"]}
    pair = sentence(IDS, params=body | {"cls": cls}).logits
    assert_close(pair, out.seq_relationship_logits)


def test_untied_scores_have_a_projection_of_their_own(dense):
    model = dense(heads.MaskedLM(), tie_word_embeddings=False)
    assert model.params["cls"]["predictions"]["decoder"]["kernel"].shape == (12, 31)
    assert set(model.params["cls"]["predictions"]) == {"bias", "decoder", "transform"}
    assert abs(model(IDS).logits - dense(heads.MaskedLM())(IDS).logits).max() > 1e-2


def test_ids_and_vectors_are_alternatives(dense):
    model = dense()
    vectors = token_vectors(model)[IDS]
    assert_close(model(inputs_embeds=vectors).last_hidden_state, model(IDS).last_hidden_state)
    for given in ({}, {"input_ids": IDS, "inputs_embeds": vectors}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**given)


@pytest.mark.parametrize(
    "argument, shape",
    [
        ("attention_mask", (B, T + 1)),
        ("segment_ids", (B, T + 1)),
        ("token_type_ids", (B, T - 1)),
        ("token_type_ids", (1, T)),
        ("token_type_ids", (T,)),
        ("position_ids", (B, T - 1)),
        ("position_ids", (T,)),
        ("head_mask", (2, 2)),
    ],
)
def test_arguments_of_another_shape_are_refused(dense, untyped, argument, shape):
    with pytest.raises(ValueError, match=f"{argument} must have shape"):
        dense()(IDS, **{argument: np.ones(shape, np.int32)})


def test_parameters_of_another_depth_are_refused(dense):
    other = dense(num_hidden_layers=3)
    name = type(other.module.config).__name__
    with pytest.raises(ValueError, match=f"asks for 3; change {name}.num_hidden_layers"):
        other(IDS, params=dense().params)


@pytest.mark.parametrize(
    "argument, shape, legal",
    [
        ("input_ids", (T,), "batch, length"),
        ("inputs_embeds", (B, T), "batch, length, 12"),
        ("inputs_embeds", (B, T, 8), "batch, length, 12"),
    ],
)
def test_tokens_of_another_shape_are_refused(dense, untyped, argument, shape, legal):
    for head in (heads.Base(), heads.QuestionAnswering()):
        with pytest.raises(ValueError, match=rf"{argument} must have shape \({legal}\), got"):
            dense(head)(**{argument: np.ones(shape, np.int32)})


@pytest.mark.parametrize(
    "argument", ["attention_mask", "token_type_ids", "position_ids", "segment_ids"]
)
def test_arguments_without_the_axis_of_choices_are_refused(squeezebert, untyped, argument):
    ids = for_head(heads.MultipleChoice(), IDS)
    with pytest.raises(ValueError, match=rf"{argument} must have shape \(2, 3, 17\), got \(2, 17"):
        squeezebert(heads.MultipleChoice())(ids, **{argument: MASK})


def test_places_to_score_are_refused_where_nothing_reads_them(dense, untyped):
    places = np.zeros((B, 1), np.int32)
    with pytest.raises(ValueError, match="masked_positions are for heads that score the vocabul"):
        dense(heads.TokenClassification())(IDS, masked_positions=places)
    for wrong in (places[0], places[:1]):
        with pytest.raises(ValueError, match=r"masked_positions must have shape \(2, 1\), got"):
            dense(heads.MaskedLM())(IDS, masked_positions=wrong)


# Forms that are one function


def everything(model, place=lambda tree: tree):
    """All outputs with dropout on, and the gradient, in looped form."""

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params, ids, mask):
        out = model(
            ids,
            params=params,
            attention_mask=mask,
            deterministic=False,
            rngs={"dropout": jax.random.key(3)},
            output_attentions=True,
            output_hidden_states=True,
        )
        losses = jnp.square(out.prediction_logits).mean() + out.seq_relationship_logits.sum()
        return losses, out

    (_, out), gradient = loss(place(model.params), IDS, MASK)
    return out, restack(gradient, "loop")


def test_scanned_and_recomputed_layers_give_what_looped_ones_do(squeezebert):
    head = heads.PreTraining()
    expected = everything(squeezebert(head, **RANDOM))
    actual = everything(squeezebert(head, Execution(layers="scan", remat="full"), **RANDOM))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(functools.partial(assert_close, atol=1e-4), actual, expected)
    assert (
        abs(expected[0].prediction_logits - squeezebert(head)(IDS).prediction_logits).max() > 1e-2
    )


def test_sharded_computation_gives_what_one_device_does(squeezebert):
    model, rules = squeezebert(heads.PreTraining(), Execution(layers="scan")), Rules()
    mesh = partitioning.make_mesh(MeshConfig(data=4, fsdp=2))
    boxed = jax.eval_shape(model.module.init, jax.random.key(0), IDS)["params"]
    names = partitioning.axis_names(boxed)
    shards = partitioning.shardings(model.params, names, mesh, rules)
    batch = partitioning.batch_sharding(mesh, rules)
    ids, mask = np.tile(IDS, (4, 1)), np.tile(MASK, (4, 1))
    expected = model(ids, attention_mask=mask)

    def run(params, ids, mask):
        with partitioning.constraints(rules):
            return model.module.apply({"params": params}, ids, attention_mask=mask)

    with jax.set_mesh(mesh):
        params = jax.device_put(model.params, shards)
        given = jax.device_put((ids, mask), batch)
        actual = jax.jit(run, in_shardings=(shards, batch, batch))(params, *given)
    jax.tree.map(assert_close, dict(actual), dict(expected))
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim >= 3]
    assert any(not leaf.sharding.is_fully_replicated for leaf in kernels)
    assert len(actual.prediction_logits.addressable_shards[0].data) == 1


def test_eager_and_jit_agree(dense):
    model = dense(heads.SequenceClassification())
    ids, mask = jnp.asarray(IDS), jnp.asarray(MASK)
    eager = model.module.apply({"params": model.params}, ids, attention_mask=mask)
    assert_close(eager.logits, model(IDS, attention_mask=MASK).logits)


@pytest.mark.parametrize("head", HEADS[1:], ids=lambda head: type(head).__name__)
def test_bfloat16_is_near_and_scores_are_float32(squeezebert, head):
    ids = for_head(head, IDS)
    fields = FIXED if isinstance(head, heads.MaskedLM) else DENSE
    exact, rounded = (
        squeezebert(head, Execution(dtype=dtype), **fields)(ids, output_hidden_states=True)
        for dtype in ("float32", "bfloat16")
    )
    assert {str(state.dtype) for state in rounded.hidden_states} == {"bfloat16"}
    for name, value in scores(rounded).items():
        assert value.dtype == jnp.float32
        scale = abs(np.asarray(exact[name])).max()
        np.testing.assert_allclose(value, exact[name], atol=0.1 * scale, rtol=0)
