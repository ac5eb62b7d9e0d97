"""The dense core against NumPy, and the projections around any core."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xformer.layers.attention import (
    AttentionCore,
    CoreOutput,
    MultiHeadAttention,
    ProjectionNames,
    dense_attention,
)
from xformer.layers.cache import LayerCache
from xformer.layers.mask import Mask
from xformer.layers.relative_bias import DistanceBias

B, T, S, N, H = 2, 3, 5, 4, 6
RNG = np.random.default_rng(0)
VALID = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]], bool)
MASK = Mask(key_valid_BS=jnp.asarray(VALID))
NAMES = ProjectionNames("query", "key", "value", "out")


attend = jax.jit(
    functools.partial(dense_attention, return_probabilities=True), static_argnames="dropout_rate"
)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def qkv():
    return normal(B, T, N, H), normal(B, S, N, H), normal(B, S, N, H)


def expected(q, k, v, bias=0.0, head_mask=(1.0,) * N):
    """Probabilities and context in double precision."""
    q, k, v, bias = (np.asarray(x, np.float64) for x in (q, k, v, bias))
    scores = np.einsum("BTNH,BSNH->BNTS", q, k) + bias
    weights = np.exp(scores) * VALID[:, None, None]
    weights /= weights.sum(-1, keepdims=True)
    weights *= np.asarray(head_mask)[:, None, None]
    return weights, np.einsum("BNTS,BSNH->BTNH", weights, v)


@pytest.mark.parametrize(
    "extra",
    [{}, {"bias": normal(1, N, T, S)}, {"head_mask_N": jnp.array([1.0, 0.0, 0.5, 2.0])}],
    ids=["plain", "bias", "head_mask"],
)
def test_dense_attention_is_the_formula(qkv, extra):
    out = attend(*qkv, mask=MASK, **extra)
    weights, context = expected(*qkv, **{k.removesuffix("_N"): v for k, v in extra.items()})
    np.testing.assert_allclose(out.probabilities_BNTS, weights, atol=1e-6)
    np.testing.assert_allclose(out.context_BTNH, context, atol=1e-5)
    without = jax.eval_shape(functools.partial(dense_attention, mask=MASK, **extra), *qkv)
    assert without.probabilities_BNTS is None


def test_dense_attention_adds_a_bias_by_distance(qkv):
    values = normal(N, T + S - 1)
    behind = np.arange(S)[None] - np.arange(T)[:, None]
    out = attend(*qkv, mask=MASK, bias=DistanceBias(values))
    weights, _ = expected(*qkv, bias=values[:, behind + T - 1][None])
    np.testing.assert_allclose(out.probabilities_BNTS, weights, atol=1e-6)


def test_dense_attention_that_may_read_nothing_reads_all_alike(qkv):
    nothing = Mask(key_valid_BS=jnp.asarray(VALID).at[0].set(False))
    out = attend(*qkv, mask=nothing)
    np.testing.assert_allclose(out.probabilities_BNTS[0], np.full((N, T, S), 1 / S), rtol=1e-6)
    mean = np.asarray(qkv[2])[0].mean(0)
    np.testing.assert_allclose(out.context_BTNH[0], np.stack([mean] * T), atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dense_attention_computes_softmax_in_float32(qkv, dtype):
    low = tuple(x.astype(dtype) for x in qkv)
    out = attend(*low, mask=MASK)
    assert out.context_BTNH.dtype == out.probabilities_BNTS.dtype == dtype
    weights, _ = expected(*low)
    # One rounding of the exact value: half a unit in its last place.
    error = np.abs(np.asarray(out.probabilities_BNTS, np.float64) - weights)
    assert (error <= weights * float(jnp.finfo(dtype).eps) * 0.51 + 1e-7).all()


def test_dense_attention_drops_probabilities_but_returns_all_of_them():
    q, k = normal(B, T, N, S), normal(B, S, N, S)
    identity = jnp.broadcast_to(jnp.eye(S)[None, :, None], (B, S, N, S))  # shows what was summed
    out = attend(q, k, identity, mask=MASK, dropout_rate=0.5, key=jax.random.key(0))
    weights, _ = expected(q, k, identity)
    np.testing.assert_allclose(out.probabilities_BNTS, weights, atol=1e-6)
    summed = np.asarray(out.context_BTNH).transpose(0, 2, 1, 3)
    kept = summed > 0
    np.testing.assert_allclose(summed, np.where(kept, 2.0 * weights, 0.0), atol=1e-6)
    assert 0.3 < kept.sum() / (weights > 0).sum() < 0.7


def uniform_core(q, k, v, *, mask, bias, head_mask_N, dropout_rate, key, return_probabilities):
    """The simplest other core: the mean of the values."""
    mean = jnp.broadcast_to(v.mean(1, keepdims=True), q.shape)
    return CoreOutput(mean)


class Projection(nn.Module):
    """The simplest other projection: it repeats one number."""

    features: int
    axes: tuple[str, str]
    use_bias: bool
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, ())
        return jnp.broadcast_to(x.mean(-1, keepdims=True) * scale, (*x.shape[:-1], self.features))


@functools.cache
def attention(**changes):
    fields = {"num_heads": 2, "head_dim": 3, "names": NAMES, "query_scale": 0.5} | changes
    module = MultiHeadAttention(**fields)
    x = normal(1, T, 4)
    params = jax.jit(module.init)(jax.random.key(0), x, mask=Mask())["params"]
    return jax.jit(module.apply), nn.meta.unbox(params), x


def test_multi_head_attention_projects_splits_and_merges():
    apply, params, x = attention()
    shapes = {name: tuple(p["kernel"].shape) for name, p in params.items()}
    assert shapes == {"query": (4, 6), "key": (4, 6), "value": (4, 6), "out": (6, 4)}
    params = jax.tree.map(lambda p: normal(*p.shape), params)
    memory, mask = normal(1, S, 4), Mask(causal=True)
    out = apply({"params": params}, x, memory, mask=mask)

    weights = jax.tree.map(np.asarray, params)

    def project(name, x):
        return np.asarray(x) @ weights[name]["kernel"] + weights[name]["bias"]

    sources = {"query": x, "key": memory, "value": memory}
    q, k, v = (jnp.asarray(project(*s).reshape(1, -1, 2, 3)) for s in sources.items())
    context = dense_attention(q * 0.5, k, v, mask=mask).context_BTNH
    expected = project("out", context.reshape(1, T, 6))
    np.testing.assert_allclose(out.x_BTD, expected, rtol=1e-5, atol=1e-5)
    assert out.probabilities_BNTS is None


def test_multi_head_attention_appends_to_its_cache():
    apply, params, x = attention()
    zeros = jnp.zeros((1, T, 2, 3))
    cache, steps = LayerCache.of(zeros, zeros), []
    for i in range(T):
        mask = Mask(causal=True, query_start=jnp.int32(i))
        out = apply(
            {"params": params}, x[:, i : i + 1], mask=mask, cache=cache, cache_start=jnp.int32(i)
        )
        cache = out.read
        steps.append(out.x_BTD)
    full = apply({"params": params}, x, mask=Mask(causal=True))
    np.testing.assert_allclose(jnp.concatenate(steps, 1), full.x_BTD, rtol=1e-5, atol=1e-6)


def test_multi_head_attention_refuses_a_cache_without_its_length():
    apply, params, x = attention()
    zeros = jnp.zeros((1, T, 2, 3))
    with pytest.raises(ValueError, match="a cache needs cache_start, the number of tokens in it"):
        apply({"params": params}, x, mask=Mask(causal=True), cache=LayerCache.of(zeros, zeros))


def test_multi_head_attention_takes_another_core():
    assert isinstance(uniform_core, AttentionCore) and isinstance(dense_attention, AttentionCore)
    apply, params, x = attention(core=uniform_core)
    out = apply({"params": params}, x, mask=Mask(causal=True))
    np.testing.assert_allclose(out.x_BTD, np.broadcast_to(out.x_BTD[:, :1], out.x_BTD.shape))


def test_multi_head_attention_takes_another_projection():
    _, params, _ = attention(projection=Projection)
    assert {name: set(p) for name, p in params.items()} == {name: {"scale"} for name in NAMES}


@pytest.mark.parametrize("use_bias", [True, False])
def test_multi_head_attention_has_biases_on_request(use_bias):
    _, params, _ = attention(use_bias=use_bias)
    assert all(("bias" in p) == use_bias for p in params.values())


def test_multi_head_attention_drops_with_a_key_only():
    apply, params, x = attention(dropout_rate=0.5)

    plain, dropped = (
        apply({"params": params}, x, mask=Mask(), key=key).x_BTD
        for key in (None, jax.random.key(0))
    )
    without = attention()[0]({"params": params}, x, mask=Mask()).x_BTD
    np.testing.assert_array_equal(plain, without)
    assert not np.allclose(plain, dropped)
