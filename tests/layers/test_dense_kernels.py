"""Kernels of dense attention, interpreted: equal to the reference, on many devices too."""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec

from xformer import partitioning
from xformer.layers.attention import AttentionCore, CoreOutput, dense_attention
from xformer.layers.dropout import hashed_factors, numbered_seeds
from xformer.layers.kernels import dense, dense_gpu, dense_tpu
from xformer.layers.kernels.dense import attend_densely
from xformer.layers.kernels.dense_tiles import Side
from xformer.layers.mask import Mask
from xformer.layers.relative_bias import DistanceBias
from xformer.partitioning import MeshConfig, Rules, constraints, make_mesh
from xformer.plan.compilation import QUICK
from xformer.plan.flops import matrix_flops
from xformer.plan.topology import Topology

B, N, H = 2, 2, 8
DROPOUT = {"dropout_rate": 0.3, "key": jax.random.key(3)}
SMALL = pytest.mark.usefixtures("small_steps")
KERNELS = pytest.mark.parametrize("kernels", [dense_tpu, dense_gpu], ids=["tpu", "gpu"])


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def documents(length, padding=5):
    """Documents of any length, and padding behind them."""
    drawn = np.sort(np.random.default_rng(1).integers(1, 4, (B, length)), axis=1)
    drawn[:, length - padding :] = 0
    return jnp.asarray(drawn, jnp.int32)


def gradients(core, *arrays, bias=None, **options):
    """Gradients of queries, keys, values and biases, and the context."""
    *qkv, weights = arrays

    def loss(qkv, bias):
        context = core(*qkv, bias=bias, **options).context_BTNH
        return (context * weights).sum(dtype=jnp.float32), context

    return jax.grad(loss, (0, 1), has_aux=True)(tuple(qkv), bias)


def test_gradients_of_biases_have_their_dtype():
    q, k, v, weights = (normal(seed, B, 16, N, H) for seed in range(4))
    bias = DistanceBias(normal(4, N, 31).astype(jnp.bfloat16))
    _, dbias = gradients(attend_densely, q, k, v, weights, bias=bias, mask=Mask())[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(dbias)} == {jnp.dtype("bfloat16")}


def assert_equal(found, expected, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        x, y = (jnp.asarray(one, jnp.float32) for one in (x, y))
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1.0, abs(y).max()))


def situation(name):
    """Numbers of queries and keys, and a mask."""
    segments = documents(41)
    packed = {"query_segments_BT": segments, "key_segments_BS": segments}
    match name:
        case "whole tiles":
            return 64, 64, Mask()
        case "causal":
            return 41, 41, Mask(causal=True)
        case "padding":
            return 41, 41, Mask(key_valid_BS=segments > 0)
        case "documents of a decoder":
            return 41, 41, Mask(causal=True, **packed)
        case "more keys than queries":
            return 20, 64, Mask(key_valid_BS=documents(64) > 0)
        case "more queries than keys":
            return 64, 33, Mask(causal=True)


SITUATIONS = (
    "whole tiles",
    "padding",
    "documents of a decoder",
    "more keys than queries",
    "more queries than keys",
)


def given(name, seed=0):
    """Queries, keys, values and what the contexts are weighed with, a bias, and the mask.

    What no key is read for weighs nothing: kernels give zeros there.
    """
    length, keys, mask = situation(name)
    q, k, v, weights = (
        normal(seed + i, B, size, N, H) for i, size in enumerate((length, keys, keys, length))
    )
    allowed = mask.materialize(length, keys)
    if allowed is not None:
        read = jnp.broadcast_to(allowed, (B, 1, length, keys)).any(3)[:, 0, :, None, None]
        weights = jnp.where(read, weights, 0)
    bias = DistanceBias(normal(seed + 4, N, 2 * length - 1)) if length == keys else None
    return (q, k, v, weights), bias, mask


def dropped(q, k, v, *, bias, mask, key, dropout_rate, head_mask_N=None):
    """The reference with the factors of kernels, each made from its place."""
    out = dense_attention(
        q, k, v, bias=bias, mask=mask, head_mask_N=head_mask_N, return_probabilities=True
    )
    weights_BNTS = out.probabilities_BNTS
    batch, heads = weights_BNTS.shape[:2]
    seeds = numbered_seeds(jax.random.key_data(key)[:2], jnp.arange(batch * heads))
    seeds = seeds.reshape(batch, heads, 1, 1, 2)
    weights_BNTS = weights_BNTS * hashed_factors(seeds, dropout_rate, weights_BNTS.shape)
    return CoreOutput(jnp.einsum("BNTS,BSNH->BTNH", weights_BNTS, v))


@SMALL
@KERNELS
@pytest.mark.parametrize("name", SITUATIONS)
def test_kernels_are_the_reference(name, kernels, monkeypatch):
    monkeypatch.setattr(dense, "_INTERPRETED", kernels)
    arrays, bias, mask = given(name)
    options = {"bias": bias, "mask": mask, "head_mask_N": jnp.array([1.0, 0.5])}
    found = jax.jit(functools.partial(gradients, attend_densely))(*arrays, **options)
    expected = jax.jit(functools.partial(gradients, dense_attention))(*arrays, **options)
    read = arrays[3].any((2, 3), keepdims=True)
    assert_equal(found, (expected[0], jnp.where(read, expected[1], 0)))


@SMALL
@KERNELS
def test_low_precision_is_weighed_in_float32(kernels, monkeypatch):
    monkeypatch.setattr(dense, "_INTERPRETED", kernels)
    arrays, bias, mask = given("causal")
    low = [x.astype(jnp.bfloat16) for x in arrays]
    found = jax.jit(functools.partial(gradients, attend_densely))(*low, bias=bias, mask=mask)
    (dqkv, dbias), context = found
    assert {x.dtype for x in (*dqkv, context)} == {jnp.dtype(jnp.bfloat16)}
    assert dbias.by_distance_NC.dtype == jnp.float32
    exact = [x.astype(jnp.float32) for x in low]
    expected = jax.jit(functools.partial(gradients, dense_attention))(*exact, bias=bias, mask=mask)
    assert_equal(found, expected, tolerance=2 * float(jnp.finfo(jnp.bfloat16).eps))


@SMALL
@KERNELS
def test_dropout_draws_by_place(kernels, monkeypatch):
    monkeypatch.setattr(dense, "_INTERPRETED", kernels)
    arrays, bias, mask = given("causal")
    run = functools.partial(gradients, bias=bias, mask=mask, **DROPOUT)
    found = jax.jit(functools.partial(run, attend_densely))(*arrays)
    assert_equal(found, jax.jit(functools.partial(run, dropped))(*arrays))
    whole = attend_densely(*arrays[:3], bias=bias, mask=mask).context_BTNH
    assert abs(whole - found[1]).max() > 0.1


@SMALL
@KERNELS
def test_padding_reads_nothing_however_great_biases_are(kernels, monkeypatch):
    monkeypatch.setattr(dense, "_INTERPRETED", kernels)
    arrays, bias, mask = given("padding")
    great = jax.tree.map(lambda x: x + 200, bias)  # whose exponential is no float32
    run = jax.jit(functools.partial(gradients, attend_densely))
    found = run(*arrays, bias=great, mask=mask)
    assert_equal(found, run(*arrays, bias=bias, mask=mask), tolerance=1e-4)


@SMALL
def test_gradients_of_biases_are_shared_out_among_programs(monkeypatch):
    monkeypatch.setattr(dense, "_INTERPRETED", dense_gpu)
    arrays, bias, mask = given("documents of a decoder")
    found = []
    for programs in (1, 1024):
        monkeypatch.setattr(dense_gpu, "PROGRAMS", programs)
        dense._traced_once.clear_cache()
        run = jax.jit(functools.partial(gradients, attend_densely))
        run = run.trace(*arrays, bias=bias, mask=mask)
        assert f"f32[{min(B, programs)},{N},5,16,16]" in str(run.jaxpr)
        found.append(run.lower().compile()(*arrays, bias=bias, mask=mask))
    assert_equal(*found)


@SMALL
@pytest.mark.parametrize("rows, heads", [(4, 4), (3, 3)], ids=["divided", "whole"])
def test_devices_take_their_rows_and_heads(rows, heads):
    length = 20
    arrays = [normal(seed, rows, length, heads, H) for seed in range(4)]
    bias = DistanceBias(normal(4, heads, 2 * length - 1))
    mask = Mask(True, key_valid_BS=jnp.arange(rows * length).reshape(rows, length) != 7)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    divided = PartitionSpec(("data", "fsdp"), None, "tensor"), PartitionSpec("tensor")
    places = [NamedSharding(mesh, spec if rows == 4 else PartitionSpec()) for spec in divided]
    whole = partitioning.replicated(mesh)

    def run(arrays, bias, mask):
        with constraints(Rules()):
            return gradients(attend_densely, *arrays, bias=bias, mask=mask, **DROPOUT)

    run = partitioning.jit(
        mesh,
        run,
        in_shardings=(places[0], places[1], whole),
        out_shardings=((places[0], places[1]), places[0]),
    )
    compiled = run.lower(arrays, bias, mask).compile()
    expected = jax.jit(functools.partial(gradients, dropped, **DROPOUT))(
        *arrays, bias=bias, mask=mask
    )
    assert_equal(compiled(arrays, bias, mask), expected)
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in compiled.as_text()


@SMALL
def test_kernels_for_tpus_read_nothing_that_was_not_written(monkeypatch):
    params = pltpu.InterpretParams(uninitialized_memory="nan", out_of_bounds_reads="raise")
    call = pl.pallas_call
    monkeypatch.setattr(pl, "pallas_call", lambda *a, **k: call(*a, **k | {"interpret": params}))
    arrays, bias, mask = given("documents of a decoder")
    arrays = [x[:1] for x in arrays]
    mask = jax.tree.map(lambda x: x[:1], mask)
    found = jax.jit(functools.partial(gradients, attend_densely))(*arrays, bias=bias, mask=mask)
    expected = jax.jit(functools.partial(gradients, dense_attention))(*arrays, bias=bias, mask=mask)
    assert_equal(found[0], expected[0])


def test_kernels_are_an_attention_core():
    assert isinstance(attend_densely, AttentionCore)


def test_what_kernels_do_not_compute_is_the_reference():
    (q, k, v, _), bias, mask = given("causal")
    start = dataclasses.replace(mask, query_start=jnp.int32(20))
    last = DistanceBias(bias.by_distance_NC[:, :61])
    for queries, options in (
        (q, {"mask": mask, "bias": bias, "return_probabilities": True}),
        (q[:, 20:], {"mask": start, "bias": last}),
        (q[:, :15], {"mask": mask}),
    ):
        run = functools.partial(attend_densely, **options)
        assert "pallas_call" not in str(jax.make_jaxpr(run)(queries, k, v))
        found, expected = run(queries, k, v), dense_attention(queries, k, v, **options)
        np.testing.assert_array_equal(found.context_BTNH, expected.context_BTNH)


def test_split_tokens_are_refused():
    (q, k, v, _), _, mask = given("causal")
    mesh = make_mesh(MeshConfig(1, sequence=2), jax.devices()[:2])
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), constraints(Rules()):
        message = r"over the mesh axes \('sequence',\); set MeshConfig.sequence to 1, or Execution"
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(functools.partial(attend_densely, mask=mask), q, k, v)


@pytest.mark.parametrize(
    "length, width", [(1, 128), (128, 128), (130, 128), (700, 256), (950, 512), (4100, 512)]
)
def test_tiles_are_wide_and_pad_little(length, width):
    side = Side.of(length, 128, 512)
    assert side.width == width and side.padded - width < length <= side.padded


def test_plans_count_what_kernels_multiply():
    arrays = [normal(seed, B, 128, N, 16) for seed in range(4)]
    program = jax.make_jaxpr(functools.partial(gradients, attend_densely))(*arrays, mask=Mask())
    product = 2 * B * N * 128 * 128 * 16
    assert matrix_flops(program) == (2 + 3 + 4) * product


def compiled(topology, dtype, length, width=64):
    """Values and gradients of a decoder with biases, ahead of time, split over data and heads."""
    mesh = make_mesh(MeshConfig(data=2, tensor=2), Topology.parse(topology).devices())
    place = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
    of_heads, whole = NamedSharding(mesh, PartitionSpec("tensor")), partitioning.replicated(mesh)
    x = jax.ShapeDtypeStruct((2, length, 4, width), dtype)
    bias = DistanceBias(jax.ShapeDtypeStruct((4, 2 * length - 1), jnp.float32))
    segments = jax.ShapeDtypeStruct((2, length), jnp.int32)

    def run(arrays, bias, mask):
        with constraints(Rules()):
            return gradients(attend_densely, *arrays, bias=bias, mask=mask, **DROPOUT)

    run = partitioning.jit(
        mesh, run, in_shardings=(place, of_heads, whole), out_shardings=((place, of_heads), place)
    )
    return run.lower([x] * 4, bias, Mask(True, None, None, segments, segments))


NO_LIBTPU = importlib.util.find_spec("libtpu") is None
NO_PLUGIN = importlib.util.find_spec("jax_cuda12_plugin") is None


def peak(length):
    """The most memory that a TPU has in use at once."""
    program = compiled("v5e:2x2", "bfloat16", length).compile(QUICK)
    return program.memory_analysis().peak_memory_in_bytes


@pytest.mark.skipif(NO_LIBTPU, reason="needs libtpu: requirements/plan.txt")
def test_kernels_for_tpus_take_memory_by_the_token():
    short, long = peak(2048), peak(8192)
    assert long < 4.2 * short and long < 8192 * 8192


@pytest.mark.skipif(NO_LIBTPU, reason="needs libtpu: requirements/plan.txt")
def test_kernels_compile_for_tpus_in_any_length():
    lowered = compiled("v5e:2x2", "float32", 700)
    assert "tpu_custom_call" in lowered.compile(QUICK).as_text()


@pytest.mark.skipif(NO_PLUGIN, reason="needs JAX's CUDA plugin: pip install 'xformer-jax[cuda]'")
@pytest.mark.parametrize(
    "length, dtype, width", [(65536, "bfloat16", 64), (700, "float32", 64), (200, "bfloat16", 256)]
)
def test_kernels_compile_for_gpus(length, dtype, width):
    program = compiled("h100:1x4", dtype, length, width).compile()
    assert "triton" in program.as_text()
    assert program.memory_analysis().peak_memory_in_bytes < max(2**25, 8 * 1024 * length)


@pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="needs a GPU, and JAX_PLATFORMS=cuda,cpu"
)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.03)])
def test_kernels_are_the_reference_on_a_gpu(causal, dtype, tolerance):
    length = 700
    segments = documents(length, padding=0)
    mask = Mask(causal, None, None, segments, segments)
    arrays = [normal(seed, B, length, N, 64) for seed in range(4)]
    arrays = [one.astype(dtype) for one in (arrays[0] / 8, *arrays[1:])]
    exact = [one.astype(jnp.float32) for one in arrays]
    bias = DistanceBias(normal(4, N, 2 * length - 1))
    with jax.default_matmul_precision("highest"):
        run = functools.partial(gradients, bias=bias, mask=mask)
        found = jax.jit(functools.partial(run, attend_densely))(*arrays)
        expected = jax.jit(functools.partial(run, dense_attention))(*exact)
    assert_equal(found, expected, tolerance)
