"""Kernels of block-sparse attention, interpreted: equal to the definition, on many devices too."""

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
from xformer.layers.attention import AttentionCore
from xformer.layers.block_sparse import BlockSparse
from xformer.layers.kernels import block_gpu, block_sparse, block_tpu, block_tpu_fetch
from xformer.layers.kernels.block_readers import readers
from xformer.layers.kernels.block_sparse import attend_by_kernels
from xformer.layers.mask import Mask
from xformer.partitioning import MeshConfig, Rules, constraints, make_mesh
from xformer.plan.compilation import QUICK
from xformer.plan.flops import matrix_flops
from xformer.plan.topology import Topology

B, N, H, W = 2, 2, 8, 16
DROPOUT = {"dropout_rate": 0.3, "key": jax.random.key(3)}


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def plan(heads, blocks, random, reach=None):
    """Random blocks without any rule: also global ones, neighbours and repetitions."""
    drawn = np.random.default_rng(0).integers(0, reach or blocks, (heads, blocks, random))
    return jnp.asarray(drawn, jnp.int32)


def documents(blocks):
    """Documents that end within blocks, and padding behind them."""
    drawn = np.random.default_rng(1).integers(1, 4, (B, blocks * W))
    drawn = np.sort(drawn, axis=1)
    drawn[:, -W - 1 :] = 0
    return jnp.asarray(drawn, jnp.int32)


def gradients(core, *arrays, **options):
    """Gradients of queries, keys and values, and the context."""
    *qkv, weights = arrays

    def loss(*qkv):
        context = core(*qkv, **options).context_BTNH
        return (context * weights).sum(dtype=jnp.float32), context

    return jax.grad(loss, (0, 1, 2), has_aux=True)(*qkv)


def defined(core, *arrays, **options):
    """The same by way of all T x S probabilities."""
    return gradients(functools.partial(core, return_probabilities=True), *arrays, **options)


def by_kernels(core):
    return dataclasses.replace(core, attend=attend_by_kernels)


def assert_equal(found, expected, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        x, y = (jnp.asarray(one, jnp.float32) for one in (x, y))
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1.0, abs(y).max()))


def situation(name):
    """A core and a mask, of some blocks."""
    blocks = {"three blocks": 3, "a prime number of blocks": 7}.get(name, 8)
    core, mask = BlockSparse(W, 2), Mask(random_blocks_NMR=plan(N, blocks, 2))
    segments = documents(blocks)
    packed = {"query_segments_BT": segments, "key_segments_BS": segments}
    if name in ("three blocks", "the first block again and again"):
        mask = Mask()
    elif name == "no random blocks":
        core, mask = BlockSparse(W, 0), Mask()
    elif name == "random blocks within reach":
        core = BlockSparse(W, 2, 3)
        mask = Mask(random_blocks_NMR=plan(N, blocks, 2, 3), **packed)
    elif name == "padding":
        mask = dataclasses.replace(mask, key_valid_BS=segments > 0)
    elif name == "documents of a decoder":
        mask = dataclasses.replace(mask, causal=True, **packed)
    return core, blocks * W, mask


SITUATIONS = (
    "three blocks",
    "a prime number of blocks",
    "the first block again and again",
    "no random blocks",
    "random blocks within reach",
    "padding",
    "documents of a decoder",
)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("kernels", [block_tpu, block_gpu], ids=["tpu", "gpu"])
@pytest.mark.parametrize("name", SITUATIONS)
def test_kernels_are_the_definition(name, kernels, monkeypatch):
    monkeypatch.setattr(block_sparse, "_INTERPRETED", kernels)
    core, length, mask = situation(name)
    arrays = [normal(seed, B, length, N, H) for seed in range(4)]
    found = jax.jit(functools.partial(gradients, by_kernels(core)))(*arrays, mask=mask)
    expected = jax.jit(functools.partial(defined, core))(*arrays, mask=mask)
    assert_equal(found, expected)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("kernels", [block_tpu, block_gpu], ids=["tpu", "gpu"])
def test_low_precision_is_weighed_in_float32(kernels, monkeypatch):
    monkeypatch.setattr(block_sparse, "_INTERPRETED", kernels)
    core, length, mask = situation("documents of a decoder")
    low = [normal(seed, B, length, N, H).astype(jnp.bfloat16) for seed in range(4)]
    found = jax.jit(functools.partial(gradients, by_kernels(core)))(*low, mask=mask)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
    exact = [x.astype(jnp.float32) for x in low]
    expected = jax.jit(functools.partial(defined, core))(*exact, mask=mask)
    assert_equal(found, expected, tolerance=2 * float(jnp.finfo(jnp.bfloat16).eps))


@pytest.mark.usefixtures("small_steps")
def test_layers_are_scanned_and_recomputed_with_plans_of_their_own():
    core, length, _ = situation("padding")
    plans = jnp.stack([plan(N, 8, 2), plan(N, 8, 2, 5)])

    def scanned(core, x):
        def layer(x, table):
            return x + core(x, x, x, mask=Mask(random_blocks_NMR=table)).context_BTNH, None

        return jax.lax.scan(jax.checkpoint(layer), x, plans)[0].std()

    run = jax.jit(jax.value_and_grad(scanned, 1), static_argnums=0)
    x = normal(0, B, length, N, H)
    assert_equal(run(by_kernels(core), x), run(core, x))


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("rows, heads", [(4, 4), (3, 3)], ids=["divided", "whole"])
def test_devices_take_their_rows_and_heads(rows, heads):
    core, length = BlockSparse(W, 2), 5 * W
    mask = Mask(random_blocks_NMR=plan(heads, 5, 2), key_valid_BS=jnp.arange(rows * length) > 0)
    mask = dataclasses.replace(mask, key_valid_BS=mask.key_valid_BS.reshape(rows, length))
    arrays = [normal(seed, rows, length, heads, H) for seed in range(4)]
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    divided = PartitionSpec(("data", "fsdp"), None, "tensor")
    place = NamedSharding(mesh, divided if rows == 4 else PartitionSpec())

    def run(arrays, mask):
        with constraints(Rules()):
            return gradients(by_kernels(core), *arrays, mask=mask, **DROPOUT)

    run = partitioning.jit(
        mesh, run, in_shardings=(place, partitioning.replicated(mesh)), out_shardings=place
    )
    compiled = run.lower(arrays, mask).compile()
    expected = jax.jit(functools.partial(gradients, core, **DROPOUT))(*arrays, mask=mask)
    assert_equal(compiled(arrays, mask), expected)
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in compiled.as_text()


@pytest.mark.parametrize("reach, per_chunk", [(6, 1), (6, 2), (9, 4)])
def test_readers_are_the_plan_turned_round(reach, per_chunk):
    random, blocks = 3, 9
    table = plan(N, blocks, random, reach)
    found = readers(table, reach, per_chunk)
    assert found.entries_NKR.shape == (N, 7 * 3 // per_chunk + reach, per_chunk)
    for head in range(N):
        keys, rows = np.asarray(found.keys_NK[head]), np.asarray(found.entries_NKR[head])
        assert (np.diff(keys) >= 0).all() and set(keys) == set(range(reach))
        read = [(key, row) for key, chunk in zip(keys, rows, strict=True) for row in chunk]
        wanted = [
            (int(table[head, row, k]), row * random + k)
            for row in range(1, blocks - 1)
            for k in range(random)
        ]
        assert sorted(pair for pair in read if pair[1] >= 0) == sorted(wanted)
        assert (rows[:, 0] >= 0).sum() == sum(
            -(-n // per_chunk) for n in np.bincount([key for key, _ in wanted])
        )


def test_plans_count_what_kernels_multiply():
    core, blocks, random = BlockSparse(W, 2), 8, 2
    mask = Mask(random_blocks_NMR=plan(N, blocks, random))
    features = 16  # which no kernel widens
    arrays = [normal(seed, B, blocks * W, N, features) for seed in range(4)]
    program = jax.make_jaxpr(functools.partial(gradients, by_kernels(core)))(*arrays, mask=mask)
    product = 2 * B * N * W * W * features
    lists = blocks * (5 + random) + 2 * blocks  # of the global blocks as well
    forward, least, most = 2 * lists, 5 * lists, 8 * lists
    assert (forward + least) * product < matrix_flops(program) < (forward + most) * product


def test_kernels_are_an_attention_core():
    assert isinstance(by_kernels(BlockSparse(W, 2)), AttentionCore)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("kernels", [block_tpu, block_gpu], ids=["tpu", "gpu"])
@pytest.mark.parametrize("name", ["the first block again and again", "documents of a decoder"])
def test_dropout_is_that_of_other_programs(name, kernels, monkeypatch):
    monkeypatch.setattr(block_sparse, "_INTERPRETED", kernels)
    core, length, mask = situation(name)
    arrays = [normal(seed, B, length, N, H) for seed in range(4)]
    run = functools.partial(gradients, mask=mask, **DROPOUT)
    expected = jax.jit(functools.partial(run, core))(*arrays)
    assert_equal(jax.jit(functools.partial(run, by_kernels(core)))(*arrays), expected)
    whole = by_kernels(core)(*arrays[:3], mask=mask).context_BTNH
    assert abs(whole - expected[1]).max() > 0.1


@pytest.mark.usefixtures("small_steps")
def test_heads_take_turns_where_their_tables_do_not_fit(monkeypatch):
    monkeypatch.setattr(block_tpu_fetch, "TABLE_BYTES", 4 * 8 * 2)
    core, length, mask = situation("documents of a decoder")
    arrays = [normal(seed, B, length, N, H) for seed in range(4)]
    run = functools.partial(gradients, mask=mask, **DROPOUT)
    expected = jax.jit(functools.partial(run, core))(*arrays)
    assert_equal(jax.jit(functools.partial(run, by_kernels(core)))(*arrays), expected)


@pytest.mark.usefixtures("small_steps")
def test_kernels_for_tpus_read_nothing_that_was_not_written(monkeypatch):
    params = pltpu.InterpretParams(uninitialized_memory="nan", out_of_bounds_reads="raise")
    call = pl.pallas_call
    monkeypatch.setattr(pl, "pallas_call", lambda *a, **k: call(*a, **k | {"interpret": params}))
    core, length, mask = situation("three blocks")
    mask = Mask(random_blocks_NMR=plan(N, 3, 2))
    arrays = [normal(seed, 1, length, N, H) for seed in range(4)]
    found = jax.jit(functools.partial(gradients, by_kernels(core)))(*arrays, mask=mask)
    assert_equal(found, jax.jit(functools.partial(defined, core))(*arrays, mask=mask))


def test_split_tokens_and_narrow_blocks_are_refused():
    core, length, mask = situation("padding")
    arrays = [normal(seed, B, length, N, H) for seed in range(3)]
    with pytest.raises(ValueError, match="block_size to be a power of two from 16 on, got 8; set"):
        by_kernels(BlockSparse(8, 2))(*arrays, mask=Mask())
    mesh = make_mesh(MeshConfig(1, sequence=2), jax.devices()[:2])
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), constraints(Rules()):
        message = r"over the mesh axes \('sequence',\); set MeshConfig.sequence to 1, or Execution"
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(functools.partial(by_kernels(core), mask=mask), *arrays)


def compiled(topology, core, dtype, batch=2, length=4096, width=64):
    """Values and gradients of a decoder, ahead of time, split over data and heads."""
    mesh = make_mesh(MeshConfig(data=2, tensor=2), Topology.parse(topology).devices())
    place = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
    x = jax.ShapeDtypeStruct((batch, length, 2, 64), dtype)
    segments = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    table = jax.ShapeDtypeStruct((2, length // width, 3), jnp.int32)

    def run(arrays, mask):
        with constraints(Rules()):
            return gradients(core, *arrays, mask=mask, **DROPOUT)

    run = partitioning.jit(
        mesh, run, in_shardings=(place, partitioning.replicated(mesh)), out_shardings=place
    )
    return run.lower([x] * 4, Mask(True, None, None, segments, segments, table))


NO_LIBTPU = importlib.util.find_spec("libtpu") is None
NO_PLUGIN = importlib.util.find_spec("jax_cuda12_plugin") is None


@pytest.mark.skipif(NO_LIBTPU, reason="needs libtpu: requirements/plan.txt")
def test_kernels_compile_for_tpus_and_take_less_memory_than_other_programs():
    peaks = []
    for core in (BlockSparse(64, 3), by_kernels(BlockSparse(64, 3))):
        program = compiled("v5e:2x2", core, "bfloat16").compile(QUICK)
        assert ("tpu_custom_call" in program.as_text()) == (core.attend is attend_by_kernels)
        peaks.append(program.memory_analysis().peak_memory_in_bytes)
    assert peaks[1] < 0.8 * peaks[0]


@pytest.mark.skipif(NO_LIBTPU, reason="needs libtpu: requirements/plan.txt")
@pytest.mark.parametrize("length, width, dtype", [(65536, 64, "bfloat16"), (1040, 16, "float32")])
def test_kernels_compile_for_tpus(length, width, dtype):
    lowered = compiled("v5e:2x2", by_kernels(BlockSparse(width, 3)), dtype, 2, length, width)
    assert "tpu_custom_call" in lowered.compile(QUICK).as_text()


@pytest.mark.skipif(NO_PLUGIN, reason="needs JAX's CUDA plugin: pip install 'xformer-jax[cuda]'")
@pytest.mark.parametrize("length, width, dtype", [(65536, 64, "bfloat16"), (1040, 16, "float32")])
def test_kernels_compile_for_gpus(length, width, dtype):
    lowered = compiled("h100:1x4", by_kernels(BlockSparse(width, 3)), dtype, 2, length, width)
    assert "triton" in lowered.compile().as_text()


def gpu():
    """A GPU that JAX computes on, or None."""
    return jax.devices()[0] if jax.default_backend() == "gpu" else None


@pytest.mark.skipif(gpu() is None, reason="needs a GPU, and JAX_PLATFORMS=cuda,cpu")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.03)])
def test_kernels_are_the_definition_on_a_gpu(causal, dtype, tolerance):
    core, length = BlockSparse(64, 3), 16 * 64
    segments = jnp.asarray(np.sort(np.random.default_rng(1).integers(1, 4, (B, length))), jnp.int32)
    mask = Mask(causal, None, None, segments, segments, plan(N, 16, 3))
    arrays = [normal(seed, B, length, N, 64).astype(dtype) for seed in range(4)]
    exact = [one.astype(jnp.float32) for one in arrays]
    with jax.default_matmul_precision("highest"):
        found = jax.jit(functools.partial(gradients, by_kernels(core)))(*arrays, mask=mask)
        expected = jax.jit(functools.partial(defined, core))(*exact, mask=mask)
    assert_equal(found, expected, tolerance)
