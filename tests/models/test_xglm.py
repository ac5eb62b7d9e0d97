"""What must hold for XGLM whatever its weights are."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xformer.layers.execution import Execution
from xformer.layers.heads import Base
from xformer.layers.stack import restack
from xformer.outputs import (
    FlaxBaseModelOutputWithPastAndCrossAttentions,
    FlaxCausalLMOutputWithCrossAttentions,
)

B, T = 2, 7
IDS = jnp.asarray(np.random.default_rng(1).integers(3, 19, (B, T)), jnp.int32)
POSITIONS = jnp.asarray(np.arange(T)[None])
STATES = jnp.asarray(np.random.default_rng(2).normal(size=(B, 5, 12)), jnp.float32)
SCAN = Execution(layers="scan")
# Valid tokens of each row, padded on the left and on the right.
LEFT = np.array([[0, 0, 1, 1, 1, 1, 1], [1] * T])
RIGHT = np.array([[1, 1, 1, 1, 0, 0, 0], [1] * T])

assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
assert_equal = np.testing.assert_array_equal


def positions_of(mask):
    return jnp.asarray(np.maximum(np.cumsum(mask, axis=1) - 1, 0))


def embed(xglm, ids):
    return xglm.params["model"]["embed_tokens"]["embedding"][ids] * 12**0.5


# Who reads whom


def test_no_token_reads_a_later_one(model):
    xglm = model()

    @jax.jit
    @jax.jacrev
    def jacobian(embeds_BTD):
        logits_BTV = xglm(inputs_embeds=embeds_BTD).logits
        return jnp.square(logits_BTV).sum((0, 2))

    # dependence[t, s]: how much the scores at t change with the token at s
    dependence = abs(np.asarray(jacobian(embed(xglm, IDS)))).sum((1, 3))
    assert (dependence[np.triu_indices(T, 1)] == 0.0).all()
    assert (dependence[np.tril_indices(T)] > 0.0).all()


@pytest.mark.parametrize("mask", [LEFT, RIGHT], ids=["left", "right"])
def test_padding_content_never_reaches_real_tokens(model, mask):
    xglm, real = model(), mask.astype(bool)
    run = functools.partial(xglm, attention_mask=jnp.asarray(mask), position_ids=positions_of(mask))
    other = jnp.asarray(np.where(real, IDS, (np.asarray(IDS) + 5) % 19))
    np.testing.assert_allclose(run(other).logits[real], run(IDS).logits[real], atol=1e-6)
    assert not np.allclose(xglm(other).logits, xglm(IDS).logits)

    @jax.jit
    @jax.grad
    def gradient_of_real_scores(embeds_BTD):
        return jnp.where(real[..., None], run(inputs_embeds=embeds_BTD).logits, 0.0).sum()

    gradient = np.asarray(gradient_of_real_scores(embed(xglm, IDS)))
    assert not gradient[~real].any() and gradient[real].any()


def test_packed_documents_are_as_if_alone(model):
    xglm = model()
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 2, 3, 3, 0, 0]])
    positions = jnp.array([[0, 1, 2, 0, 1, 2, 3], [0, 1, 0, 0, 1, 0, 0]])
    packed = xglm(IDS, segment_ids=segments, position_ids=positions).logits
    for row, start, end in [(0, 0, 3), (0, 3, 7), (1, 0, 2), (1, 2, 3), (1, 3, 5)]:
        alone = np.zeros((B, T), np.int32)  # what follows a document does not reach it
        alone[0, : end - start] = IDS[row, start:end]
        assert_close(packed[row, start:end], xglm(jnp.asarray(alone)).logits[0, : end - start])


def test_position_ids_default_to_the_place(model):
    xglm = model()
    assert_equal(xglm(IDS).logits, xglm(IDS, position_ids=POSITIONS).logits)
    assert_equal(xglm(IDS).logits, xglm(IDS, position_ids=jnp.tile(POSITIONS, (B, 1))).logits)
    assert not np.allclose(xglm(IDS).logits, xglm(IDS, position_ids=POSITIONS + 1).logits)


def test_positions_beyond_the_table_give_nan(model):
    assert np.isfinite(model()(IDS, position_ids=POSITIONS + 9).logits).all()
    assert np.isnan(model()(IDS, position_ids=POSITIONS + 10).logits[:, 6]).all()


def test_sequences_may_be_longer_than_max_position_embeddings(model):
    ids = jnp.tile(IDS, (1, 3))
    longer = model()(ids).logits
    assert np.isfinite(longer).all()
    assert_equal(longer, model(max_position_embeddings=32)(ids).logits)


def test_inputs_embeds_are_scaled_token_vectors(model):
    xglm = model()
    assert_close(xglm(inputs_embeds=embed(xglm, IDS)).logits, xglm(IDS).logits)


# The cache


@pytest.mark.parametrize("execution", [Execution(), SCAN], ids=["loop", "scan"])
@pytest.mark.parametrize("mask", [LEFT, RIGHT], ids=["left", "right"])
def test_cached_decoding_is_the_full_forward(model, execution, mask):
    xglm, real = model(execution=execution), mask.astype(bool)
    positions, room = positions_of(mask), 2
    whole = jnp.asarray(np.pad(mask, ((0, 0), (0, room)), constant_values=1))
    cache = xglm.module.config.empty_cache(B, T + room, execution)
    logits = []
    for start, end in [(0, 3), (3, 4), (4, 5), (5, 6), (6, 7)]:
        part = slice(start, end)
        out = xglm(IDS[:, part], position_ids=positions[:, part], attention_mask=whole, cache=cache)
        cache = out.past_key_values
        logits.append(out.logits)
    full = xglm(IDS, position_ids=positions, attention_mask=jnp.asarray(mask))
    assert_close(np.concatenate(logits, 1)[real], full.logits[real])
    assert int(cache.length) == T and full.past_key_values is None


def test_position_ids_default_to_the_place_behind_the_cache(model):
    xglm = model()
    cache = xglm(IDS[:, :3], cache=xglm.module.config.empty_cache(B, T, Execution()))
    cache = cache.past_key_values
    expected = xglm(IDS[:, 3:4], position_ids=jnp.full((B, 1), 3), cache=cache).logits
    assert_equal(xglm(IDS[:, 3:4], cache=cache).logits, expected)


# Forms that are one function


def everything(xglm):
    """All outputs with randomness on, and the gradient, in looped form."""

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        out = xglm(
            IDS,
            params=params,
            encoder_hidden_states=STATES,
            deterministic=False,
            rngs={"dropout": jax.random.key(3)},
            output_attentions=True,
            output_hidden_states=True,
        )
        return jnp.square(out.logits).mean(), out

    (_, out), gradient = loss(xglm.params)
    return out, restack(gradient, "loop")


RANDOM = {"dropout": 0.2, "attention_dropout": 0.2, "activation_dropout": 0.2, "layerdrop": 0.4}


def test_scanned_and_recomputed_layers_give_what_looped_ones_do(model):
    config = RANDOM | {"add_cross_attention": True}
    expected = everything(model(**config))
    actual = everything(model(execution=Execution(layers="scan", remat="full"), **config))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(assert_close, actual, expected)


def test_eager_jit_and_vmap_agree_and_give_the_documented_struct(model):
    xglm = model()
    out = xglm(IDS, output_hidden_states=True)
    eager = xglm.module.apply({"params": xglm.params}, IDS, output_hidden_states=True)
    assert type(out) is type(eager) is FlaxCausalLMOutputWithCrossAttentions
    mapped = jax.vmap(lambda ids: xglm(ids, output_hidden_states=True))(IDS[:, None])
    assert type(mapped) is FlaxCausalLMOutputWithCrossAttentions
    jax.tree.map(assert_close, eager, out)
    jax.tree.map(lambda one, two: assert_close(one[:, 0], two), mapped, out)


def test_gradient_passes_through_the_output_struct(model):
    xglm = model(Base())
    out, pull = jax.vjp(lambda params: xglm(IDS, params=params), xglm.params)
    assert type(out) is FlaxBaseModelOutputWithPastAndCrossAttentions
    (gradient,) = pull(jax.tree.map(jnp.ones_like, out))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


# Outputs


def test_optional_outputs_come_on_request(model):
    xglm = model(add_cross_attention=True)
    assert set(xglm(IDS)) == {"logits"}
    assert set(xglm(IDS, output_attentions=True)) == {"logits", "attentions"}
    out = xglm(IDS, encoder_hidden_states=STATES, output_attentions=True, output_hidden_states=True)
    assert list(out) == ["logits", "hidden_states", "attentions", "cross_attentions"]
    assert [state.shape for state in out.hidden_states] == [(B, T, 12)] * 3
    for weights, keys in ((out.attentions, T), (out.cross_attentions, 5)):
        assert [one.shape for one in weights] == [(B, 3, T, keys)] * 2
        assert_close(np.stack(weights).sum(-1), np.ones((2, B, 3, T)))
    assert not np.triu(out.attentions[0], 1).any()
    base = model(Base(), add_cross_attention=True)
    states = base(IDS, params=xglm.params["model"], encoder_hidden_states=STATES)
    assert_close(states.last_hidden_state, out.hidden_states[-1])


def test_logits_are_products_with_the_token_table_or_the_untied_head(model):
    for tied in (True, False):
        xglm = model(tie_word_embeddings=tied)
        out = xglm(IDS, output_hidden_states=True)
        table = np.asarray(xglm.params["model"]["embed_tokens"]["embedding"]).T
        assert ("lm_head" in xglm.params) != tied
        kernel = table if tied else np.asarray(xglm.params["lm_head"]["kernel"])
        assert_close(out.logits, np.asarray(out.hidden_states[-1]) @ kernel)


def test_cross_attention_reads_the_encoder_states_that_are_valid(model):
    xglm = model(add_cross_attention=True)
    mask = jnp.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    run = functools.partial(xglm, IDS, encoder_attention_mask=mask)
    expected = run(encoder_hidden_states=STATES).logits
    hidden = jnp.asarray(np.where(np.asarray(mask)[..., None] > 0, STATES, np.float32(9.0)))
    assert_close(run(encoder_hidden_states=hidden).logits, expected)
    assert not np.allclose(run(encoder_hidden_states=STATES + 1.0).logits, expected)
    assert not np.allclose(xglm(IDS).logits, expected)
    every = xglm(IDS, encoder_hidden_states=STATES)
    ones = xglm(IDS, encoder_hidden_states=STATES, encoder_attention_mask=jnp.ones_like(mask))
    assert_close(ones.logits, every.logits)


def test_head_masks_act_on_every_head_and_ones_are_neutral(model):
    run = functools.partial(
        model(add_cross_attention=True), IDS, encoder_hidden_states=STATES, output_attentions=True
    )
    ones = {"head_mask": jnp.ones((2, 3)), "cross_attn_head_mask": jnp.ones((2, 3))}
    assert_equal(run(**ones).logits, run().logits)
    gradient = jax.jit(jax.grad(lambda masks: jnp.square(run(**masks).logits).sum()))(ones)
    assert all((abs(np.asarray(leaf)) > 1e-4).all() for leaf in gradient.values())
    for name in ones:
        out = run(**ones | {name: ones[name].at[1, 2].set(0.0)})
        masked, other = out.attentions, out.cross_attentions
        masked, other = (masked, other) if name == "head_mask" else (other, masked)
        muted = {(i, n) for i in range(2) for n in range(3) if not masked[i][:, n].any()}
        assert muted == {(1, 2)} and all(one[:, n].any() for one in other for n in range(3))


# Randomness and precision


@pytest.mark.parametrize("field", RANDOM)
def test_each_kind_of_dropout_acts_in_training_only(model, field):
    xglm = model(**{field: 0.4})
    plain = model()(IDS).logits
    assert_equal(xglm(IDS).logits, plain)

    def train(seed):
        return xglm(IDS, deterministic=False, rngs={"dropout": jax.random.key(seed)}).logits

    assert_equal(train(0), train(0))
    # A LayerDrop of 0.4 on two layers gives one of four outcomes: eight keys give two of them.
    outcomes = {np.asarray(train(seed)).tobytes() for seed in range(8)}
    assert len(outcomes) >= (2 if field == "layerdrop" else 8)
    assert any(not np.allclose(train(seed), plain, atol=1e-3) for seed in range(8))


def count_draws(jaxpr):
    """How often a program draws random bits, the programs within it included."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name == "random_bits"
        inner = jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns"))
        total += sum(count_draws(one) for one in inner if hasattr(one, "eqns"))
    return total


@pytest.mark.parametrize(
    "field, places",
    [
        ("dropout", 1 + 3 * 2),  # embeddings; in each layer two attentions and the feed-forward
        ("attention_dropout", 2 * 2),
        ("activation_dropout", 2),
        ("layerdrop", 2),
    ],
)
def test_dropout_is_drawn_in_every_place(model, field, places):
    xglm = model(add_cross_attention=True, **{field: 0.4})
    inputs = {"encoder_hidden_states": STATES, "deterministic": False}
    run = functools.partial(xglm, IDS, **inputs, rngs={"dropout": jax.random.key(0)})
    assert count_draws(jax.make_jaxpr(lambda: run().logits)()) == places


@pytest.mark.parametrize(
    "dtype, tolerance, tied",
    [("bfloat16", 3e-2, True), ("bfloat16", 3e-2, False), ("float16", 4e-3, True)],
)
def test_low_precision_is_near_float32(model, dtype, tolerance, tied):
    low = model(execution=Execution(dtype=dtype), tie_word_embeddings=tied)
    out = low(IDS, output_hidden_states=True)
    expected = model(tie_word_embeddings=tied)(IDS).logits
    assert out.logits.dtype == jnp.float32
    assert {state.dtype for state in out.hidden_states} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(low.params)} == {jnp.dtype("float32")}
    # Relative to the largest score; 8 bits of mantissa give 4e-3 for one operation, 11 give 5e-4.
    error = abs(np.asarray(out.logits) - expected).max()
    assert 0.0 < error < tolerance * abs(np.asarray(expected)).max()


# Refusals


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({}, "give exactly one of input_ids and inputs_embeds"),
        (
            {"input_ids": IDS, "inputs_embeds": jnp.zeros((B, T, 12))},
            "give exactly one of input_ids and inputs_embeds",
        ),
        (
            {"input_ids": IDS, "encoder_hidden_states": STATES},
            "encoder_hidden_states need XGLMConfig.add_cross_attention=True",
        ),
        (
            {"input_ids": IDS, "head_mask": jnp.ones((3, 2))},
            r"head_mask must have shape \(2, 3\), got \(3, 2\)",
        ),
        (
            {"input_ids": IDS, "attention_mask": jnp.ones((1, T), int)},
            r"attention_mask must have shape \(2, 7\), got \(1, 7\)",
        ),
        (
            {"input_ids": IDS, "attention_mask": jnp.ones((B, 1), int)},
            r"attention_mask must have shape \(2, 7\), got \(2, 1\)",
        ),
        (
            {"input_ids": IDS, "position_ids": jnp.zeros((B, 1), int)},
            r"position_ids must have shape \(2, 7\) or \(1, 7\), got \(2, 1\)",
        ),
        (
            {"input_ids": IDS, "segment_ids": jnp.ones((1, T), int)},
            r"segment_ids must have shape \(2, 7\), got \(1, 7\)",
        ),
        (
            {"input_ids": IDS, "cross_attn_head_mask": jnp.ones((2, 3))},
            "encoder_attention_mask and cross_attn_head_mask need encoder_hidden_states",
        ),
        (
            {"input_ids": IDS, "encoder_attention_mask": jnp.ones((B, 5), int)},
            "encoder_attention_mask and cross_attn_head_mask need encoder_hidden_states",
        ),
        (
            {"input_ids": IDS, "cross_attn_head_mask": jnp.ones((1, 3))},
            r"cross_attn_head_mask must have shape \(2, 3\), got \(1, 3\)",
        ),
    ],
)
def test_contradictory_inputs_are_refused(untyped, model, inputs, message):
    with pytest.raises(ValueError, match=message):
        model()(**inputs)


def test_encoder_states_and_masks_of_another_shape_are_refused(untyped, model):
    xglm = model(add_cross_attention=True)
    for states in (STATES[:1], STATES[..., :8]):
        with pytest.raises(ValueError, match=r"encoder_hidden_states must have shape \(2, 5, 12\)"):
            xglm(IDS, encoder_hidden_states=states)
    cache = xglm.module.config.empty_cache(B, T + 1, Execution())
    stored = xglm(IDS, encoder_hidden_states=STATES, cache=cache).past_key_values
    for shape in [(1, 5), (B, 1)]:
        given = {"encoder_attention_mask": jnp.ones(shape, int)}
        with pytest.raises(ValueError, match=r"encoder_attention_mask must have shape \(2, 5\)"):
            xglm(IDS, encoder_hidden_states=STATES, **given)
        with pytest.raises(ValueError, match=r"encoder_attention_mask must have shape \(2, 5\)"):
            xglm(IDS[:, :1], cache=stored, **given)


def test_cache_refuses_packed_rows_and_too_many_tokens(model):
    xglm = model()
    cache = xglm.module.config.empty_cache(B, T, Execution())
    with pytest.raises(ValueError, match="segment_ids describe packed rows and cannot be used"):
        xglm(IDS, segment_ids=jnp.ones_like(IDS), cache=cache)
    short = xglm.module.config.empty_cache(B, 5, Execution())
    with pytest.raises(ValueError, match="max_length=5 holds 0 tokens and cannot take 7 more"):
        xglm(IDS, cache=short)
    with pytest.raises(ValueError, match=r"attention_mask must have shape \(2, 7\), got \(2, 3\)"):
        xglm(IDS[:, :3], attention_mask=jnp.ones((B, 3), int), cache=cache)
    full = dataclasses.replace(cache, length=jnp.int32(T))
    with pytest.raises(ValueError, match="max_length=7 holds 7 tokens and cannot take 1 more"):
        xglm.module.apply({"params": xglm.params}, IDS[:, :1], cache=full)


def test_parameters_of_the_other_layer_mode_are_refused(model):
    with pytest.raises(ValueError, match="parameters at model/layers have no 'stacked'"):
        model(execution=SCAN)(IDS, params=model().params)
