"""What must hold for BigBird whatever its weights are, in dense and in block-sparse attention."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from xformer import partitioning
from xformer.layers import heads
from xformer.layers.block_plan import random_blocks
from xformer.layers.block_sparse import block_counts
from xformer.layers.execution import Execution
from xformer.layers.position import resize_positions
from xformer.layers.stack import restack
from xformer.models import build
from xformer.models.bigbird_config import BigBirdConfig
from xformer.outputs import FlaxBaseModelOutputWithPoolingAndCrossAttentions

B, T, V, D, N, L = 2, 17, 31, 12, 3, 1  # 17 tokens are 9 blocks of 2, one of them half padding
RNG = np.random.default_rng(1)
IDS = jnp.asarray(RNG.integers(6, V, (B, T)), jnp.int32)
STATES = jnp.asarray(np.random.default_rng(2).normal(size=(B, 5, D)), jnp.float32)
LEFT, RIGHT = np.ones((B, T), np.int32), np.ones((B, T), np.int32)
LEFT[0, :3], RIGHT[0, -3:] = 0, 0
DENSE = {"attention_type": "original_full"}
SPARSE = {"attention_type": "block_sparse"}
FIXED = {**SPARSE, "random_blocks": "fixed"}
KINDS = {"dense": DENSE, "hf_eval": SPARSE, "fixed": FIXED}
of_all_kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
TOKEN_HEADS = {
    "Base": (heads.Base(), "last_hidden_state"),
    "CausalLM": (heads.CausalLM(), "logits"),
    "MaskedLM": (heads.MaskedLM(), "logits"),
    "PreTraining": (heads.PreTraining(), "prediction_logits"),
    "TokenClassification": (heads.TokenClassification(), "logits"),
    "QuestionAnswering": (heads.QuestionAnswering(), "start_logits"),
}
ROW_HEADS = {
    "NextSentence": (heads.NextSentence(), "logits"),
    "SequenceClassification": (heads.SequenceClassification(), "logits"),
    "MultipleChoice": (heads.MultipleChoice(), "logits"),
}
HEADS = {**TOKEN_HEADS, **ROW_HEADS}
# What other families have too is tested for all of them at once, in `test_encoders.py`.
OWN_HEADS = ("CausalLM", "QuestionAnswering", "SequenceClassification")

assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
assert_equal = np.testing.assert_array_equal


def for_head(name, *arrays):
    """Rows for a head: those of multiple choice are two choices of one example."""
    choices = name == "MultipleChoice"
    return [jnp.asarray(array)[None] if choices else jnp.asarray(array) for array in arrays]


def embed(model, ids):
    params = model.params["bert"] if "bert" in model.params else model.params
    return params["embeddings"]["word_embeddings"]["embedding"][ids]


# Who reads whom


@of_all_kinds
def test_the_decoder_reads_no_later_token(bigbird, kind):
    model = bigbird(heads.CausalLM(), **kind)

    @jax.jit
    @jax.jacrev
    def jacobian(embeds_BTD):
        return jnp.square(model(inputs_embeds=embeds_BTD).logits).sum((0, 2))

    dependence = abs(np.asarray(jacobian(embed(model, IDS)))).sum((1, 3))
    assert (dependence[np.triu_indices(T, 1)] == 0.0).all()
    assert (np.diag(dependence) > 0.0).all() and (dependence[2:, :2] > 0.0).all()


@of_all_kinds
def test_the_encoder_reads_what_its_blocks_say(bigbird, kind):
    model = bigbird(**kind)

    @jax.jit
    @jax.jacrev
    def jacobian(embeds_BTD):
        return jnp.square(model(inputs_embeds=embeds_BTD).last_hidden_state).sum((0, 2))

    dependence = abs(np.asarray(jacobian(embed(model, IDS)))).sum((1, 3)) > 0.0
    expected = np.ones((T, T), bool)
    if kind is not DENSE:
        plan = None
        if kind is FIXED:
            sizes = {"block_size": 2, "num_random_blocks": 1, "max_position_embeddings": 64}
            plan = jnp.asarray(random_blocks(18, num_heads=N, layer=0, **sizes))
        counts = np.asarray(block_counts(9, 1, plan)).sum(0)
        expected = np.repeat(np.repeat(counts > 0, 2, 0), 2, 1)[:T, :T]
    assert_equal(dependence, expected)


# Heads of rows read the first token, which must not be padding.
@pytest.mark.parametrize(
    ("name", "mask"),
    [pytest.param(name, RIGHT, id=f"{name}-right") for name in OWN_HEADS]
    + [pytest.param(name, LEFT, id=f"{name}-left") for name in OWN_HEADS if name not in ROW_HEADS],
)
@pytest.mark.parametrize("kind", [DENSE, FIXED], ids=["dense", "fixed"])
def test_padding_content_never_reaches_real_tokens(bigbird, name, kind, mask):
    head, field = HEADS[name]
    model, real = bigbird(head, **kind), mask.astype(bool)
    other = np.where(real, IDS, np.asarray(IDS) % 20 + 7)
    # a question's end would be looked for among the padding too: types are given
    ids, other, attention, types = for_head(name, IDS, other, mask, np.zeros_like(mask))
    run = functools.partial(model, attention_mask=attention, token_type_ids=types)
    expected, actual = run(ids)[field], run(other)[field]
    if name in TOKEN_HEADS:
        expected, actual = expected[real], actual[real]
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert not np.allclose(model(other, token_type_ids=types)[field], run(ids)[field])


def test_packed_documents_are_as_if_alone(bigbird):
    segments = jnp.array([[1] * 4 + [2] * 5 + [0] * 8, [1] * 9 + [3] * 6 + [0] * 2])
    positions = jnp.array([[*range(4), *range(5), *[0] * 8], [*range(9), *range(6), 0, 0]])
    for head in (heads.CausalLM(), heads.MaskedLM()):
        model = bigbird(head, **DENSE)
        packed = model(IDS, segment_ids=segments, position_ids=positions).logits
        for row, start, end in [(0, 0, 4), (0, 4, 9), (1, 0, 9), (1, 9, 15)]:
            alone = np.zeros((B, T), np.int32)
            alone[0, : end - start] = IDS[row, start:end]
            valid = jnp.asarray((np.arange(T) < end - start).astype(np.int32)[None].repeat(B, 0))
            logits = model(jnp.asarray(alone), attention_mask=valid).logits
            assert_close(packed[row, start:end], logits[0, : end - start])


def test_packed_documents_do_not_read_each_other_in_blocks(bigbird):
    segments = np.array([[1] * 7 + [2] * 10, [1] * 11 + [2] * 4 + [0] * 2])
    model = bigbird(heads.CausalLM(), **FIXED)
    run = functools.partial(model, segment_ids=jnp.asarray(segments))
    other = jnp.asarray(np.where(segments == 2, IDS, np.asarray(IDS) % 20 + 7))
    second = segments == 2
    np.testing.assert_allclose(run(other).logits[second], run(IDS).logits[second], atol=1e-6)


# Blocks


def test_every_output_is_cut_back_to_the_tokens_given(bigbird):
    model = bigbird(add_cross_attention=True, is_decoder=True)
    inputs = {"output_attentions": True, "output_hidden_states": True}
    out = model(IDS, encoder_hidden_states=STATES, **inputs)
    assert out.last_hidden_state.shape == (B, T, D) and out.pooler_output.shape == (B, D)
    assert [state.shape for state in out.hidden_states] == [(B, T, D)] * (L + 1)
    assert [one.shape for one in out.attentions] == [(B, N, T, T)] * L
    assert [one.shape for one in out.cross_attentions] == [(B, N, T, 5)] * L
    padded = jnp.pad(IDS, ((0, 0), (0, 1)), constant_values=9)
    mask = jnp.pad(jnp.ones_like(IDS), ((0, 0), (0, 1)))
    whole = model(padded, attention_mask=mask, encoder_hidden_states=STATES, **inputs)
    assert_close(out.last_hidden_state, whole.last_hidden_state[:, :T])
    for one, two in zip(out.attentions, whole.attentions, strict=True):
        assert_close(one, two[:, :, :T, :T])


@of_all_kinds
def test_attentions_are_probabilities_that_the_states_come_from(bigbird, kind):
    model = bigbird(**kind)
    out = model(IDS, output_attentions=True, output_hidden_states=True)
    assert_close(np.stack(out.attentions).sum(-1), np.ones((1, B, N, T)))
    layer = jax.tree.map(np.asarray, model.params["encoder"]["layer"]["0"])

    def dense(at, x):
        return x @ at["dense"]["kernel"] + at["dense"]["bias"]

    def norm(at, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * at["LayerNorm"]["scale"] + at["LayerNorm"]["bias"]

    x = np.asarray(out.hidden_states[0])
    value = layer["attention"]["self"]["value"]
    value = (x @ value["kernel"] + value["bias"]).reshape(B, T, N, D // N)
    context = np.einsum("bnts,bsnh->btnh", out.attentions[0], value).reshape(B, T, D)
    at = layer["attention"]["output"]
    x = norm(at, x + dense(at, context))
    hidden = np.asarray(jax.nn.gelu(dense(layer["intermediate"], x), approximate=True))
    assert_close(norm(layer["output"], x + dense(layer["output"], hidden)), out.last_hidden_state)


def test_attentions_change_nothing_else(bigbird):
    model = bigbird(**FIXED)
    assert_close(model(IDS, output_attentions=True).last_hidden_state, model(IDS).last_hidden_state)


@pytest.mark.parametrize("length, sparse", [(13, False), (14, False), (15, True), (16, True)])
def test_short_inputs_are_read_densely_and_later_ones_are_not(bigbird, length, sparse):
    run, dense = bigbird(**FIXED), bigbird(**DENSE)
    ids = IDS[:, :length]
    expected = dense(ids).last_hidden_state
    assert np.array_equal(run(ids).last_hidden_state, expected) != sparse
    assert not np.allclose(run(IDS).last_hidden_state, dense(IDS).last_hidden_state)


def test_no_random_blocks_leave_the_window_and_the_global_blocks(bigbird):
    ids = IDS[:, :16]
    none, fixed = (bigbird(num_random_blocks=0, **kind) for kind in (SPARSE, FIXED))
    assert_equal(fixed(ids).last_hidden_state, none(ids).last_hidden_state)
    out = none(ids, output_attentions=True)
    read = np.asarray(out.attentions[0]).sum((0, 1)) > 0.0
    counts = np.asarray(block_counts(8, 0))[0]
    assert_equal(read, np.repeat(np.repeat(counts > 0, 2, 0), 2, 1))
    assert 0 < (counts == 0).sum()


def test_random_blocks_are_the_same_in_training_and_in_evaluation(bigbird):
    train = {"deterministic": False, "rngs": {"dropout": jax.random.key(0)}}
    for kind in (SPARSE, FIXED):
        model = bigbird(**kind)
        assert_equal(model(IDS, **train).last_hidden_state, model(IDS).last_hidden_state)
    hf_eval, fixed = (bigbird(**kind)(IDS).last_hidden_state for kind in (SPARSE, FIXED))
    assert not np.allclose(hf_eval, fixed)


def test_more_positions_leave_the_random_blocks_of_published_lengths_as_they_are(bigbird):
    fields = FIXED | {"block_size": 64, "num_random_blocks": 3, "vocab_size": V}
    model = bigbird(max_position_embeddings=4096, **fields)
    longer = bigbird(max_position_embeddings=8192, **fields)
    ids = jnp.asarray(RNG.integers(6, V, (1, 1024)), jnp.int32)
    table = model.params["embeddings"]["position_embeddings"]["embedding"]
    tiled = {"position_embeddings": {"embedding": resize_positions(table, 8192, "tile")}}
    params = model.params | {"embeddings": model.params["embeddings"] | tiled}
    assert_close(longer(ids, params=params).last_hidden_state, model(ids).last_hidden_state)


def arrays_of(jaxpr):
    """Every array of a program, those of the programs within it included."""
    for equation in jaxpr.eqns:
        yield from (out.aval for out in equation.outvars)
        inner = jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns"))
        for one in inner:
            if hasattr(one, "jaxpr") or hasattr(one, "eqns"):
                yield from arrays_of(getattr(one, "jaxpr", one))


@pytest.mark.parametrize("kind", [SPARSE, FIXED], ids=["hf_eval", "fixed"])
def test_long_inputs_make_no_array_of_quadratic_size(bigbird, kind):
    length = 2**16
    config = {"block_size": 64, "num_random_blocks": 3, "max_position_embeddings": length}
    module = bigbird(**config, **kind).module
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
    params = jax.eval_shape(module.init, jax.random.key(0), ids)

    def loss(params, ids):
        return module.apply(params, ids).last_hidden_state.sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(params, ids).jaxpr
    assert max(aval.size for aval in arrays_of(jaxpr)) < 200 * length


# The cache


@pytest.mark.parametrize(
    "execution, mask",
    [(Execution(), LEFT), (Execution(layers="scan"), RIGHT)],
    ids=["loop-left", "scan-right"],
)
@of_all_kinds
def test_cached_decoding_is_the_full_forward(bigbird, kind, execution, mask):
    model = bigbird(heads.CausalLM(), execution, num_hidden_layers=2, **kind)
    positions = jnp.asarray(np.maximum(np.cumsum(mask, axis=1) - 1, 0))
    valid = jnp.asarray(mask)
    cache, logits = model.module.config.empty_cache(B, T, execution), []
    for start, end in [(0, 5), (5, 6), (6, 7), (7, 15), (15, 16), (16, 17)]:
        part = slice(start, end)
        out = model(
            IDS[:, part], position_ids=positions[:, part], attention_mask=valid, cache=cache
        )
        cache = out.past_key_values
        logits.append(out.logits)
    full = model(IDS, position_ids=positions, attention_mask=valid)
    real = mask.astype(bool)
    assert_close(np.concatenate(logits, 1)[real], full.logits[real])
    assert int(cache.length) == T and full.past_key_values is None


@of_all_kinds
def test_a_prompt_may_fill_the_cache(bigbird, kind):
    model = bigbird(heads.CausalLM(), **kind)
    cache = model.module.config.empty_cache(B, T, Execution())
    assert_close(model(IDS, cache=cache).logits, model(IDS).logits)


def test_decoding_with_cross_attention_reads_the_encoder(bigbird):
    model = bigbird(heads.CausalLM(), add_cross_attention=True, **FIXED)
    valid = jnp.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    run = functools.partial(model, encoder_attention_mask=valid)
    full = run(IDS, encoder_hidden_states=STATES).logits
    hidden = jnp.asarray(np.where(np.asarray(valid)[..., None] > 0, STATES, np.float32(9.0)))
    assert_close(run(IDS, encoder_hidden_states=hidden).logits, full)
    assert not np.allclose(run(IDS, encoder_hidden_states=STATES + 1.0).logits, full)
    assert not np.allclose(model(IDS).logits, full)
    cache = model.module.config.empty_cache(B, T, Execution())
    first = run(IDS[:, :9], encoder_hidden_states=STATES, cache=cache)
    rest = run(IDS[:, 9:], encoder_hidden_states=STATES, cache=first.past_key_values)
    assert_close(np.concatenate([first.logits, rest.logits], 1), full)


# Forms that are one function


def everything(model, inputs):
    """All outputs with randomness on, and the gradient, in looped form."""

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        out = model(
            **inputs,
            params=params,
            deterministic=False,
            rngs={"dropout": jax.random.key(3)},
            output_hidden_states=True,
        )
        return sum(jnp.square(leaf).mean() for leaf in jax.tree.leaves(out)), out

    (_, out), gradient = loss(model.params)
    return out, restack(gradient, "loop")


def test_scanned_and_recomputed_layers_give_what_looped_ones_do(bigbird):
    config = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2, **FIXED}
    config |= {"add_cross_attention": True, "projection_groups": 2, "num_hidden_layers": 2}
    inputs = {"input_ids": IDS, "encoder_hidden_states": STATES}
    scanned = Execution(layers="scan", remat="full")
    expected = everything(bigbird(heads.CausalLM(), **config), inputs)
    actual = everything(bigbird(heads.CausalLM(), scanned, **config), inputs)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(assert_close, actual, expected)


def test_jit_and_vmap_agree_and_give_the_documented_struct(bigbird):
    model = bigbird(**FIXED)
    out = model(IDS, output_hidden_states=True)
    mapped = jax.vmap(lambda ids: model(ids, output_hidden_states=True))(IDS[:, None])
    assert type(out) is type(mapped) is FlaxBaseModelOutputWithPoolingAndCrossAttentions
    jax.tree.map(lambda one, two: assert_close(one[:, 0], two), mapped, out)


def test_grouped_projections_are_dense_ones_with_blocks_on_the_diagonal(bigbird):
    grouped, dense = bigbird(projection_groups=2, **DENSE), bigbird(**DENSE)

    def widen(path, leaf):
        if leaf.ndim < 3:
            return leaf
        return jax.scipy.linalg.block_diag(*leaf)

    params = jax.tree_util.tree_map_with_path(widen, grouped.params)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, dense.params)
    count = sum(leaf.ndim == 3 for leaf in jax.tree.leaves(grouped.params))
    assert count == 5 * L  # query, key, value and the two of the feed-forward
    expected = dense(IDS, params=params).last_hidden_state
    assert_close(grouped(IDS).last_hidden_state, expected)


# Heads and arguments


def test_the_question_is_ruled_out_as_an_answer(bigbird):
    model = bigbird(heads.QuestionAnswering(), **DENSE)
    ids = IDS.at[0, 4].set(5).at[0, 9].set(5)  # the first separator ends the question
    out = model(ids)
    for scores in (out.start_logits, out.end_logits):
        ruled_out = np.asarray(scores) < -1e5
        assert_equal(ruled_out[0], [False] + [True] * 4 + [False] * 12)
        assert not ruled_out[1].any()  # no separator: the first token is the question
    given = model(ids, question_lengths=jnp.array([[5], [1]]))
    assert_equal(given.start_logits, out.start_logits)
    types = (jnp.arange(T)[None] >= jnp.array([[5], [1]])).astype(jnp.int32)
    assert_equal(model(ids, token_type_ids=types).end_logits, out.end_logits)
    assert not np.allclose(model(ids, token_type_ids=1 - types).end_logits, out.end_logits)
    other = model(ids, question_lengths=jnp.array([[2], [3]]))
    assert not np.allclose(other.start_logits[0, 6:], out.start_logits[0, 6:])
    vectors = model(inputs_embeds=embed(model, ids), token_type_ids=types)
    assert (np.asarray(vectors.start_logits) > -1e5).all()


@of_all_kinds
def test_head_masks_act_on_every_head_and_ones_are_neutral(bigbird, kind):
    model = bigbird(add_cross_attention=True, **kind)
    run = functools.partial(model, IDS, encoder_hidden_states=STATES)
    ones = jnp.ones((L, N))
    expected = run().last_hidden_state
    assert_close(run(head_mask=ones).last_hidden_state, expected)
    for head in range(N):
        factors = ones.at[0, head].set(0.5)
        out = run(head_mask=factors, output_attentions=True)
        sums = np.broadcast_to(np.asarray(factors)[0][None, :, None], (B, N, T))
        assert_close(np.asarray(out.attentions[0]).sum(-1), sums)
        assert_close(np.asarray(out.cross_attentions[0]).sum(-1), sums)
        assert_close(run(head_mask=factors).last_hidden_state, out.last_hidden_state)
        assert not np.allclose(out.last_hidden_state, expected, atol=1e-3)


def test_token_types_positions_and_vectors_are_read(bigbird):
    model = bigbird(**DENSE)
    expected = model(IDS).last_hidden_state
    assert_equal(model(IDS, token_type_ids=jnp.zeros_like(IDS)).last_hidden_state, expected)
    assert_equal(model(IDS, position_ids=jnp.arange(T)[None]).last_hidden_state, expected)
    assert_close(model(inputs_embeds=embed(model, IDS)).last_hidden_state, expected)
    assert not np.allclose(model(IDS, token_type_ids=jnp.ones_like(IDS))[0], expected)
    assert not np.allclose(model(IDS, position_ids=jnp.arange(T)[None] + 1)[0], expected)
    assert np.isnan(model(IDS, position_ids=jnp.arange(T)[None] + 50)[0][:, 14:]).all()


def test_rescaled_vectors_are_scaled_once(bigbird):
    plain, rescaled = bigbird(**DENSE), bigbird(rescale_embeddings=True, **DENSE)
    vectors = embed(plain, IDS)
    expected = plain(inputs_embeds=vectors * D**0.5).last_hidden_state
    assert_close(rescaled(IDS).last_hidden_state, expected)
    assert_close(rescaled(inputs_embeds=vectors).last_hidden_state, expected)


def test_only_self_attention_lacks_biases_without_use_bias(bigbird):
    model = bigbird(use_bias=False, **FIXED)
    layer = model.params["encoder"]["layer"]["0"]
    assert all(set(leaf) == {"kernel"} for leaf in layer["attention"]["self"].values())
    assert set(layer["attention"]["output"]["dense"]) == {"kernel", "bias"}
    assert np.isfinite(model(IDS).last_hidden_state).all()


def count_draws(jaxpr):
    """How often a program draws random bits, the programs within it included."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name == "random_bits"
        inner = jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns"))
        total += sum(count_draws(getattr(one, "jaxpr", one)) for one in inner if is_program(one))
    return total


def is_program(one):
    return hasattr(one, "eqns") or hasattr(one, "jaxpr")


@pytest.mark.parametrize(
    "name, fields, places",
    [
        ("Base", {"hidden_dropout_prob": 0.4}, 1 + 3 * L),  # embeddings; three sublayers a layer
        ("Base", {"attention_probs_dropout_prob": 0.4}, 2 * L),
        ("SequenceClassification", {"classifier_dropout": 0.4}, 2),
        ("SequenceClassification", {"hidden_dropout_prob": 0.4}, 1 + 2 * L + 2),
        ("TokenClassification", {"classifier_dropout": 0.4}, 1),
        ("MultipleChoice", {"hidden_dropout_prob": 0.4, "classifier_dropout": 0.0}, 1 + 2 * L + 1),
        ("QuestionAnswering", {"hidden_dropout_prob": 0.4}, 1 + 2 * L + 2),
    ],
)
def test_dropout_is_drawn_in_every_place_in_training_only(bigbird, name, fields, places):
    head, field = HEADS[name]
    inputs = {"encoder_hidden_states": STATES} if name == "Base" else {}
    config = DENSE | ({"add_cross_attention": True} if inputs else {}) | fields
    model, plain = (
        bigbird(head, **config),
        bigbird(head, **{**config, **dict.fromkeys(fields, 0.0)}),
    )
    (ids,) = for_head(name, IDS)
    run = functools.partial(model, ids, **inputs)
    assert_equal(run()[field], plain(ids, **inputs)[field])
    train = functools.partial(run, deterministic=False)
    outs = [train(rngs={"dropout": jax.random.key(seed)})[field] for seed in (0, 0, 1)]
    assert_equal(outs[0], outs[1])
    assert not np.allclose(outs[0], outs[2], atol=1e-3)
    jaxpr = jax.make_jaxpr(lambda: train(rngs={"dropout": jax.random.key(0)})[field])()
    assert count_draws(jaxpr.jaxpr) == places


@pytest.mark.parametrize("kind", [DENSE, FIXED], ids=["dense", "fixed"])
@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 4e-2), ("float16", 5e-3)])
def test_low_precision_is_near_float32(bigbird, kind, dtype, tolerance):
    low = bigbird(heads.MaskedLM(), Execution(dtype=dtype), **kind)
    out = low(IDS, output_hidden_states=True)
    expected = bigbird(heads.MaskedLM(), **kind)(IDS).logits
    assert out.logits.dtype == jnp.float32
    assert {state.dtype for state in out.hidden_states} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(low.params)} == {jnp.dtype("float32")}
    error = abs(np.asarray(out.logits) - expected).max()
    assert 0.0 < error < tolerance * abs(np.asarray(expected)).max()


# Refusals


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({}, "give exactly one of input_ids and inputs_embeds"),
        (
            {"input_ids": IDS, "inputs_embeds": jnp.zeros((B, T, D))},
            "give exactly one of input_ids and inputs_embeds",
        ),
        (
            {"input_ids": IDS, "encoder_hidden_states": STATES},
            "encoder_hidden_states need BigBirdConfig.add_cross_attention=True",
        ),
        (
            {"input_ids": IDS, "encoder_attention_mask": jnp.ones((B, 5), int)},
            "encoder_attention_mask needs encoder_hidden_states",
        ),
        (
            {"input_ids": IDS, "head_mask": jnp.ones((N, L))},
            r"head_mask must have shape \(1, 3\), got \(3, 1\)",
        ),
        (
            {"input_ids": IDS, "attention_mask": jnp.ones((1, T), int)},
            r"attention_mask must have shape \(2, 17\), got \(1, 17\)",
        ),
        (
            {"input_ids": IDS, "segment_ids": jnp.ones((1, T), int)},
            r"segment_ids must have shape \(2, 17\), got \(1, 17\)",
        ),
        (
            {"input_ids": IDS, "encoder_hidden_states": STATES[:1]},
            r"encoder_hidden_states must have shape \(2, 5, 12\), got \(1, 5, 12\)",
        ),
        (
            {"input_ids": IDS, "encoder_hidden_states": STATES[..., :8]},
            r"encoder_hidden_states must have shape \(2, 5, 12\), got \(2, 5, 8\)",
        ),
        (
            {"input_ids": IDS, "encoder_hidden_states": STATES[:, 0]},
            r"encoder_hidden_states must have shape \(2, 12, 12\), got \(2, 12\)",
        ),
        (
            {"input_ids": jnp.zeros((1, 65), int)},
            "65 tokens are more than BigBirdConfig.max_position_embeddings=64",
        ),
    ],
)
def test_contradictory_inputs_are_refused(untyped, bigbird, inputs, message):
    crosses = "need BigBirdConfig.add_cross" not in message
    with pytest.raises(ValueError, match=message):
        bigbird(add_cross_attention=crosses)(**inputs)


def test_masks_of_others_than_the_cached_states_are_refused(bigbird, untyped):
    model = bigbird(heads.CausalLM(), add_cross_attention=True)
    cache = model.module.config.empty_cache(B, T + 1, Execution())
    stored = model(IDS, encoder_hidden_states=STATES, cache=cache).past_key_values
    for shape in [(1, 5), (B, 1)]:
        with pytest.raises(ValueError, match=r"encoder_attention_mask must have shape \(2, 5\)"):
            model(IDS[:, :1], cache=stored, encoder_attention_mask=jnp.ones(shape, int))


def test_caches_are_refused_where_they_cannot_be(bigbird):
    model = bigbird(heads.CausalLM())
    config = model.module.config
    cache = config.empty_cache(B, T, Execution())
    with pytest.raises(ValueError, match="segment_ids describe packed rows and cannot be used"):
        model(IDS, segment_ids=jnp.ones_like(IDS), cache=cache)
    with pytest.raises(ValueError, match="max_length=5 holds 0 tokens and cannot take 17 more"):
        model(IDS, cache=config.empty_cache(B, 5, Execution()))
    with pytest.raises(ValueError, match="a cache needs BigBirdConfig.is_decoder=True"):
        bigbird()(IDS, cache=cache)
    with pytest.raises(ValueError, match="65 tokens are more than BigBirdConfig.max_position"):
        config.empty_cache(B, 65, Execution())
    full = dataclasses.replace(cache, length=jnp.int32(T))
    with pytest.raises(ValueError, match="max_length=17 holds 17 tokens and cannot take 1 more"):
        model.module.apply({"params": model.params}, IDS[:, :1], cache=full)


def test_a_question_cannot_be_found_without_its_separator(bigbird):
    model = bigbird(heads.QuestionAnswering(), sep_token_id=66)
    with pytest.raises(ValueError, match="BigBirdConfig.sep_token_id=66 must be a token id below"):
        model(IDS)
    out = model(IDS, question_lengths=jnp.full((B, 1), 3))
    assert np.isfinite(out.start_logits).all()


def test_a_question_cannot_be_told_from_its_context_with_one_type(bigbird):
    model = bigbird(heads.QuestionAnswering(), type_vocab_size=1)
    with pytest.raises(ValueError, match="BigBirdConfig.type_vocab_size=1 must be at least 2"):
        model(IDS)
    assert np.isfinite(model(IDS, token_type_ids=jnp.zeros_like(IDS)).start_logits).all()


@pytest.mark.parametrize(
    "name", ["PreTraining", "NextSentence", "SequenceClassification", "MultipleChoice"]
)
def test_heads_of_the_first_state_refuse_a_decoder(bigbird, name):
    message = r"reads the state of the first token.*; set BigBirdConfig\.is_decoder = False$"
    with pytest.raises(ValueError, match=message):
        bigbird(HEADS[name][0], is_decoder=True)


def test_a_decoder_that_predicts_hidden_tokens_is_warned_about(caplog):
    with caplog.at_level(logging.WARNING):
        for name in ("Base", "CausalLM", "TokenClassification", "QuestionAnswering"):
            build(BigBirdConfig(is_decoder=True), HEADS[name][0])
        build(BigBirdConfig(), heads.MaskedLM())
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        build(BigBirdConfig(is_decoder=True), heads.MaskedLM())
    assert caplog.messages == [
        "BigBirdForMaskedLM predicts tokens from those before them alone with "
        "BigBirdConfig.is_decoder=True"
    ]


@pytest.mark.parametrize("kind", [SPARSE, FIXED], ids=["hf_eval", "fixed"])
def test_sharded_over_rows_and_heads_is_as_on_one_device(bigbird, kind):
    model = bigbird(heads.MaskedLM(), hidden_size=16, num_attention_heads=4, **kind)
    ids = jnp.tile(IDS, (2, 1))
    mesh = partitioning.make_mesh(partitioning.MeshConfig(data=2, fsdp=2, tensor=2))
    rules = partitioning.Rules(vocab=())  # 31 tokens cannot be halved
    boxed = jax.eval_shape(model.module.init, jax.random.key(0), ids)["params"]
    names = partitioning.axis_names(boxed)
    places = partitioning.shardings(meta.unbox(boxed), names, mesh, rules)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))

    @jax.jit
    @jax.value_and_grad
    def loss(params, ids):
        return jnp.square(model(ids, params=params).logits).mean()

    expected = loss(model.params, ids)
    actual = loss(jax.device_put(model.params, places), jax.device_put(ids, rows))
    query = actual[1]["bert"]["encoder"]["layer"]["0"]["attention"]["self"]["query"]["kernel"]
    assert len(query.sharding.device_set) == 8
    jax.tree.map(assert_close, actual, expected)
