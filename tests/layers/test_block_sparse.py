"""Block-sparse attention: its definition, and the linear computation against the definition."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from xformer import partitioning
from xformer.layers import block_rows, block_steps
from xformer.layers.attention import AttentionCore, dense_attention
from xformer.layers.block_sparse import BlockSparse, block_counts, pad_blocks
from xformer.layers.mask import Mask
from xformer.layers.relative_bias import DistanceBias
from xformer.partitioning import MeshConfig, Rules, constraints, make_mesh

B, N, H, W = 2, 3, 5, 4
FACTORS = np.array([1.0, 0.5, 2.0], np.float32)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def qkv(length, seed=0, heads=N):
    return tuple(normal(seed, 3, B, length, heads, H))


def plan(blocks, random, seed=0):
    """Random blocks without any rule: also global ones, neighbours and repetitions."""
    drawn = np.random.default_rng(seed).integers(0, blocks, (N, blocks, random))
    return jnp.asarray(drawn, jnp.int32)


def linear(core, q, k, v, **options):
    return core(q, k, v, **options).context_BTNH


def defined(core, q, k, v, **options):
    """The context by way of all T x S probabilities."""
    return core(q, k, v, return_probabilities=True, **options).context_BTNH


@functools.partial(jax.jit, static_argnums=(0, 1))
def values_and_gradients(attend, core, q, k, v, weights, **options):
    def loss(q, k, v):
        context = attend(core, q, k, v, **options)
        return (context * weights).sum(), context

    return jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)


def assert_equal(found, expected, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1.0, abs(y).max()))


MATRICES = {
    "all random blocks are the first": (
        block_counts(7, 2),
        """
        1 1 1 1 1 1 1
        3 1 1 0 0 0 1
        3 1 1 1 0 0 1
        3 0 1 1 1 0 1
        3 0 0 1 1 1 1
        3 0 0 0 1 1 1
        1 1 1 1 1 1 1
        """,
    ),
    "a plan, with repetitions": (
        block_counts(7, 2, jnp.array([[[5, 5], [3, 4], [0, 5], [5, 1], [1, 1], [5, 6], [2, 2]]])),
        """
        1 1 1 1 1 1 1
        1 1 1 1 1 0 1
        2 1 1 1 0 1 1
        1 1 1 1 1 1 1
        1 2 0 1 1 1 1
        1 0 0 0 1 2 2
        1 1 1 1 1 1 1
        """,
    ),
    "window and global blocks alone": (
        block_counts(5, 0),
        """
        1 1 1 1 1
        1 1 1 0 1
        1 1 1 1 1
        1 0 1 1 1
        1 1 1 1 1
        """,
    ),
}


@pytest.mark.parametrize("counts, matrix", MATRICES.values(), ids=MATRICES)
def test_blocks_are_read_this_often(counts, matrix):
    expected = [line.split() for line in matrix.split("\n") if line.strip()]
    np.testing.assert_array_equal(counts[0], np.array(expected, int))


def test_probabilities_are_those_of_keys_repeated_as_often_as_they_are_read():
    blocks, random = 6, 2
    q, k, v = qkv(blocks * W)
    table = plan(blocks, random)
    out = BlockSparse(W, random)(
        q, k, v, mask=Mask(random_blocks_NMR=table), return_probabilities=True
    )
    counts = np.asarray(block_counts(blocks, random, table))
    for head in range(N):
        for row in range(blocks):
            scores = np.asarray(q[0, row * W, head], np.float64) @ np.asarray(k[0, :, head]).T
            weights = np.exp(scores) * np.repeat(counts[head, row], W)
            expected = weights / weights.sum()
            np.testing.assert_allclose(
                out.probabilities_BNTS[0, head, row * W], expected, rtol=1e-5, atol=1e-7
            )
    np.testing.assert_allclose(out.probabilities_BNTS.sum(-1), 1.0, rtol=1e-6)


@st.composite
def situations(draw):
    blocks = draw(st.integers(3, 12))
    random = draw(st.integers(0, 3))
    width = draw(st.integers(1, 5))
    length, seed = blocks * width, draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    mask = Mask(causal=draw(st.booleans()))
    if random and draw(st.booleans()):
        mask = dataclasses.replace(mask, random_blocks_NMR=plan(blocks, random, seed))
    if draw(st.booleans()):
        ends = draw(st.tuples(st.integers(1, length), st.integers(0, length)))
        mask = dataclasses.replace(
            mask, key_valid_BS=jnp.arange(length)[None] < jnp.array(ends)[:, None]
        )
    if draw(st.booleans()):
        segments = jnp.asarray(np.sort(rng.integers(0, 4, (B, length)), axis=1), jnp.int32)
        mask = dataclasses.replace(mask, query_segments_BT=segments, key_segments_BS=segments)
    head_mask = jnp.asarray(FACTORS) if draw(st.booleans()) else None
    per_step = draw(st.sampled_from([1, 200, 1000, 2**19]))
    return BlockSparse(width, random), length, seed, mask, head_mask, per_step


@settings(max_examples=15, deadline=None, derandomize=True)
@given(situations())
def test_linear_computation_is_the_definition(situation):
    core, length, seed, mask, head_mask, per_step = situation
    arrays = *qkv(length, seed), normal(seed + 1, B, length, N, H)
    options = {"mask": mask, "head_mask_N": head_mask}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_steps, "_SCORES_PER_STEP", per_step)
        block_rows.attend_in_blocks.clear_cache()  # traced with another number
        found = values_and_gradients(linear, core, *arrays, **options)
        in_parts = by_one_device(values_and_gradients, linear, core, *arrays, **options)
        evaluated = by_one_device(linear, core, *arrays[:3], **options)
    for function in (values_and_gradients, block_rows.attend_in_blocks):
        function.clear_cache()
    expected = values_and_gradients(defined, core, *arrays, **options)
    assert_equal(found, expected)
    assert_equal(in_parts, expected)
    assert_equal(evaluated, expected[1])


def by_one_device(function, *arguments, together=1, **options):
    """What a CPU that is alone computes, which takes so many heads together."""
    with pytest.MonkeyPatch.context() as patch, jax.set_mesh(jax.make_mesh((1,), ("one",))):
        for shared in ("_EVALUATION", "_FORWARD", "_BACKWARD"):
            steps = getattr(block_rows, shared).steps
            patch.setattr(block_rows, shared, block_rows._Shared(together, steps))
        return function(*arguments, **options)


def test_a_cpu_that_is_alone_takes_heads_in_parts_and_drops_the_same(monkeypatch):
    taken = []
    by_heads = block_steps.Steps.by_heads
    monkeypatch.setattr(
        block_steps.Steps,
        "by_heads",
        lambda *arguments: taken.append(parts := by_heads(*arguments)) or parts,
    )
    dropping = functools.partial(linear, dropout_rate=0.3, key=jax.random.key(2))
    arrays = *qkv(BLOCKS * W, heads=4), normal(1, B, BLOCKS * W, 4, H)
    table = plan(BLOCKS, 2)
    mask = Mask(random_blocks_NMR=jnp.concatenate([table, table[:1]]))
    found = by_one_device(values_and_gradients, dropping, CORE, *arrays, together=2, mask=mask)
    assert 2 in map(len, taken)
    taken.clear()
    expected = values_and_gradients(dropping, CORE, *arrays, mask=mask)
    assert set(map(len, taken)) == {1}
    assert_equal(found, expected)
    assert not np.allclose(found[1], values_and_gradients(linear, CORE, *arrays, mask=mask)[1])


def test_gradients_of_random_blocks_are_added_alike_on_every_device():
    before, part = normal(0, N, 5, B, H, W), normal(1, B, N, 7, H, 3, W)
    blocks = jnp.asarray(np.random.default_rng(2).integers(0, 5, (N, 7, 3)), jnp.int32)
    expected = np.array(before)
    for place in np.ndindex(blocks.shape):
        head, row, which = place
        expected[head, blocks[place]] += part[:, head, row, :, which]
    for add in (block_steps._add_to_source, block_steps._add_by_product):
        assert_equal(jax.jit(add)(before, blocks, part), expected)
    found = jax.jit(block_steps._add_blocks)(before.transpose(2, 0, 3, 1, 4), blocks, part)
    assert_equal(found, expected.transpose(2, 0, 3, 1, 4))


def test_linear_computation_of_every_block_is_dense_attention():
    q, k, v = qkv(4 * W)
    for mask in (Mask(), Mask(causal=True)):
        context = jax.jit(functools.partial(linear, BlockSparse(W, 0)))(q, k, v, mask=mask)
        assert_equal(context, dense_attention(q, k, v, mask=mask).context_BTNH)


CORE = BlockSparse(W, 2)
BLOCKS = 9
MASKS = {"first block": Mask(causal=True), "plan": Mask(True, random_blocks_NMR=plan(BLOCKS, 2))}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_causal_attention_has_no_gradient_from_the_future(mask):
    length = BLOCKS * W

    def contexts(x_BTNH):
        return linear(CORE, x_BTNH, x_BTNH, x_BTNH, mask=mask)[0].sum((1, 2))

    reach_TS = abs(jax.jit(jax.jacrev(contexts))(qkv(length)[0])[:, 0]).sum((2, 3))
    assert not np.triu(reach_TS, 1).any()
    assert np.diag(reach_TS).all() and reach_TS[:, 0].all() and reach_TS[-1].all()


def test_a_bias_by_distance_is_added_beside_how_often_keys_are_read():
    arrays, length = qkv(BLOCKS * W), BLOCKS * W
    attend = functools.partial(linear, CORE, *arrays, mask=MASKS["plan"])
    bias = DistanceBias(normal(5, N, 2 * length - 1))
    alike = DistanceBias(jnp.ones((N, 2 * length - 1)))
    assert_equal(attend(bias=alike), attend())
    assert abs(attend(bias=bias) - attend()).max() > 0.1


@pytest.mark.parametrize("attend", [linear, defined])
def test_padding_is_not_read_and_gets_a_context_of_zeros(attend):
    length, kept = BLOCKS * W, BLOCKS * W - 6
    valid = jnp.broadcast_to(jnp.arange(length) < kept, (B, length))
    mask = Mask(key_valid_BS=valid, random_blocks_NMR=plan(BLOCKS, 2))
    run = jax.jit(functools.partial(attend, CORE))
    context = run(*qkv(length), mask=mask)
    noise = jnp.where(valid[:, :, None, None], 0.0, 100.0)
    np.testing.assert_array_equal(run(*(x + noise for x in qkv(length)), mask=mask), context)
    assert not context[:, kept:].any() and context[:, :kept].all()


def test_decoding_with_a_cache_takes_rows_of_the_plan():
    length = BLOCKS * W - 2  # the last block is not full
    q, k, v = (x[:, :length] for x in qkv(BLOCKS * W))
    mask = Mask(causal=True, random_blocks_NMR=plan(BLOCKS, 2))
    x, padded = pad_blocks(q.reshape(B, length, N * H), Mask(causal=True), W)
    assert x.shape[1] == BLOCKS * W and padded.key_valid_BS.sum() == B * length
    whole = dataclasses.replace(padded, random_blocks_NMR=mask.random_blocks_NMR)
    full = linear(CORE, *qkv(BLOCKS * W), mask=whole)[:, :length]
    step = jax.jit(functools.partial(linear, CORE))
    for start, count in ((0, 3), (3, 1), (17, 5), (length - 1, 1)):
        rows = slice(start, start + count)
        cached = dataclasses.replace(mask, query_start=jnp.int32(start))
        assert_equal(step(q[:, rows], k, v, mask=cached), full[:, rows])


def test_padding_to_whole_blocks_marks_every_condition():
    segments = jnp.ones((B, 6), jnp.int32)
    mask = Mask(query_segments_BT=segments, key_segments_BS=segments)
    x, longer = pad_blocks(jnp.ones((B, 6, 2)), mask, 4)
    assert x.shape == (B, 8, 2) and not x[:, 6:].any()
    for row in (longer.key_valid_BS, longer.query_segments_BT, longer.key_segments_BS):
        np.testing.assert_array_equal(row[0], [1, 1, 1, 1, 1, 1, 0, 0])
    x, same = pad_blocks(jnp.ones((B, 8, 2)), Mask(), 4)
    assert x.shape == (B, 8, 2) and same.key_valid_BS is None


def test_dropout_drops_probabilities_alike_forward_and_backward():
    length, rate = BLOCKS * W, 0.5
    q, k = (normal(seed, B, length, N, length) * 0.3 for seed in (0, 1))
    identity = jnp.broadcast_to(jnp.eye(length)[None, :, None], (B, length, N, length))
    mask = Mask(random_blocks_NMR=plan(BLOCKS, 2))
    kept = CORE(q, k, identity, mask=mask, return_probabilities=True).probabilities_BNTS
    drop = {"mask": mask, "dropout_rate": rate, "key": jax.random.key(0)}
    summed = np.asarray(linear(CORE, q, k, identity, **drop)).transpose(0, 2, 1, 3)
    counts = np.asarray(block_counts(BLOCKS, 2, mask.random_blocks_NMR))
    once = np.repeat(np.repeat(counts == 1, W, 1), W, 2)[None] & (kept > 0)
    assert 0.45 < (summed > 0)[once].mean() < 0.55
    expected = np.where(summed > 0, kept / rate, 0.0)
    np.testing.assert_allclose(summed[once], expected[once], rtol=1e-4, atol=1e-7)

    arrays = qkv(length)
    run = jax.jit(functools.partial(linear, CORE, **drop))
    check_grads(run, arrays, 1, ["rev"], atol=2e-2, rtol=2e-2)
    np.testing.assert_array_equal(
        linear(CORE, *arrays, **drop | {"dropout_rate": 0.0}), linear(CORE, *arrays, mask=mask)
    )


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_low_precision_inputs_are_weighed_in_float32(mask):
    low = tuple(x.astype(jnp.bfloat16) for x in qkv(BLOCKS * W))
    weights = normal(1, B, BLOCKS * W, N, H).astype(jnp.bfloat16)
    exact = tuple(x.astype(jnp.float32) for x in low)
    found = values_and_gradients(linear, CORE, *low, weights, mask=mask)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
    expected = values_and_gradients(defined, CORE, *exact, weights.astype(jnp.float32), mask=mask)
    found = jax.tree.map(lambda x: x.astype(jnp.float32), found)
    assert_equal(found, expected, tolerance=float(jnp.finfo(jnp.bfloat16).eps))


def test_layers_may_be_scanned_and_recomputed_with_plans_of_their_own():
    plans = jnp.stack([plan(BLOCKS, 2, seed) for seed in range(3)])

    def layer(x, table):
        return x + linear(CORE, x, x, x, mask=Mask(random_blocks_NMR=table)), None

    def scanned(x):
        return jax.lax.scan(jax.checkpoint(layer), x, plans)[0].std()

    def looped(x):
        for table in plans:
            x, _ = layer(x, table)
        return x.std()

    x = qkv(BLOCKS * W)[0]
    found, expected = (jax.jit(jax.value_and_grad(f))(x) for f in (scanned, looped))
    assert_equal(found, expected)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_sharding_over_batch_and_heads_changes_nothing_and_moves_nothing(mask):
    heads = 4
    mask = dataclasses.replace(mask, causal=False)
    if mask.random_blocks_NMR is not None:
        table = jnp.concatenate([mask.random_blocks_NMR, mask.random_blocks_NMR[:1]])
        mask = dataclasses.replace(mask, random_blocks_NMR=table)
    arrays = *qkv(BLOCKS * W, heads=heads), normal(1, B, BLOCKS * W, heads, H)
    expected = values_and_gradients(linear, CORE, *arrays, mask=mask)
    mesh = make_mesh(MeshConfig(data=2, tensor=4))
    place = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
    placed = tuple(jax.device_put(x, place) for x in arrays)
    run = jax.jit(functools.partial(values_and_gradients, linear, CORE), out_shardings=place)
    compiled = run.lower(*placed, mask=mask).compile()
    assert_equal(compiled(*placed, mask=mask), expected)
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in compiled.as_text()


def in_shards(core, config, *arrays, rate=0.0, **options):
    """What computes context and gradients with the tokens of each row split, and its arguments."""
    sizes = config.data * config.tensor * config.sequence
    mesh = make_mesh(config, jax.devices()[:sizes])
    place = NamedSharding(mesh, PartitionSpec("data", "sequence", "tensor"))

    def run(arrays, options):
        with constraints(Rules()):
            drop = {"dropout_rate": rate, "key": jax.random.key(3)}
            return values_and_gradients.__wrapped__(linear, core, *arrays, **options, **drop)

    run = partitioning.jit(
        mesh, run, in_shardings=(place, partitioning.replicated(mesh)), out_shardings=place
    )
    return run, (arrays, options)


SPLIT = 8  # blocks


@pytest.mark.parametrize(
    "ways, rate, causal, reach",
    [(2, 0.0, False, None), (4, 0.3, True, 5), (4, 0.3, False, None), (2, 0.0, True, 0)],
)
def test_tokens_may_be_split_over_devices(ways, rate, causal, reach):
    length, heads = SPLIT * W, 4
    segments = np.repeat(np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 2, 2, 2, 3, 3, 3, 3]]), W, 1)
    segments = jnp.asarray(segments, jnp.int32)
    mask = Mask(causal=causal, query_segments_BT=segments, key_segments_BS=segments)
    if reach != 0:
        drawn = np.random.default_rng(0).integers(0, reach or SPLIT, (heads, SPLIT, 2))
        mask = dataclasses.replace(mask, random_blocks_NMR=jnp.asarray(drawn, jnp.int32))
    core = BlockSparse(W, 2, reach or None)
    arrays = *qkv(length, heads=heads), normal(1, B, length, heads, H)
    drop = {"dropout_rate": rate, "key": jax.random.key(3)}
    expected = jax.jit(
        lambda *arrays: values_and_gradients.__wrapped__(linear, core, *arrays, mask=mask, **drop)
    )(*arrays)
    config = MeshConfig(data=2, tensor=4 // ways, sequence=ways)
    run, arguments = in_shards(core, config, *arrays, mask=mask, rate=rate)
    assert_equal(run(*arguments), expected)


@pytest.mark.parametrize("reach", [None, 5])
def test_split_tokens_may_be_bfloat16(reach):
    arrays = *qkv(SPLIT * W), normal(1, B, SPLIT * W, N, H)
    low = tuple(x.astype(jnp.bfloat16) for x in arrays)
    drawn = np.random.default_rng(0).integers(0, reach or SPLIT, (N, SPLIT, 2))
    mask, core = Mask(random_blocks_NMR=jnp.asarray(drawn, jnp.int32)), BlockSparse(W, 2, reach)
    run, arguments = in_shards(core, MeshConfig(1, sequence=4), *low, mask=mask)
    found, expected = run(*arguments), values_and_gradients(linear, core, *low, mask=mask)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        one, other = one.astype(jnp.float32), other.astype(jnp.float32)
        np.testing.assert_allclose(one, other, rtol=0.0, atol=0.01 * float(abs(other).max()))


def test_split_tokens_take_less_memory_and_send_blocks_alone(monkeypatch):
    monkeypatch.setattr(block_steps, "_SCORES_PER_STEP", 5000)  # so that steps are not what counts
    block_rows.attend_in_blocks.clear_cache()
    core, length, temporary = BlockSparse(8, 2, 5), 1024 * 8, {}
    drawn = np.random.default_rng(0).integers(0, 5, (N, 1024, 2))
    mask = Mask(random_blocks_NMR=jnp.asarray(drawn, jnp.int32))
    arrays = *qkv(length), normal(1, B, length, N, H)
    for ways in (1, 8):
        run, arguments = in_shards(core, MeshConfig(1, sequence=ways), *arrays, mask=mask)
        compiled = run.lower(*arguments).compile()
        temporary[ways] = compiled.memory_analysis().temp_size_in_bytes
    block_rows.attend_in_blocks.clear_cache()
    assert temporary[8] < 0.3 * temporary[1]
    assert "collective-permute" in compiled.as_text() and "all-gather" not in compiled.as_text()


def test_split_tokens_need_whole_blocks_on_every_device():
    arrays = *qkv(9 * W), normal(1, B, 9 * W, N, H)
    run, arguments = in_shards(BlockSparse(W, 0), MeshConfig(1, sequence=2), *arrays, mask=Mask())
    message = r"2 ways of the mesh axes \('sequence',\) must divide the 9 blocks of a row; set Mesh"
    with pytest.raises(ValueError, match=message):
        run(*arguments)


def test_memory_grows_with_the_length_and_not_with_its_square():
    core, sizes = BlockSparse(8, 1), []
    for length in (512, 1024, 2048):
        x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
        table = jax.ShapeDtypeStruct((2, length // 8, 1), jnp.int32)
        mask = Mask(random_blocks_NMR=table)
        lowered = values_and_gradients.lower(linear, core, x, x, x, x, mask=mask)
        sizes.append(lowered.compile().memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 2.1 * sizes[0] and sizes[2] < 2.1 * sizes[1]


def traced(core, *shape, mask):
    """How context and gradients are computed, by a CPU that is alone and by anything else."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    with jax.set_mesh(jax.make_mesh((1,), ("one",))):
        return values_and_gradients.trace(linear, core, x, x, x, x, mask=mask)


@pytest.mark.parametrize("table, is_gathered", [(None, False), (plan(BLOCKS, 2), True)])
def test_keys_and_values_are_gathered_for_drawn_blocks_alone(table, is_gathered):
    mask = Mask(key_valid_BS=jnp.ones((B, BLOCKS * W), bool), random_blocks_NMR=table)
    text = str(traced(CORE, B, BLOCKS * W, N, H, mask=mask).jaxpr)
    assert bool(re.search(r":f32\[[\d,]+\] = gather\[", text)) is is_gathered


def test_the_program_of_more_tokens_has_more_steps_and_no_more_lines():
    steps, lines = [], []
    for length in (2048, 8192):
        table = jax.ShapeDtypeStruct((2, length // 64, 3), jnp.int32)
        mask = Mask(random_blocks_NMR=table)
        found = traced(BlockSparse(64, 3), 1, length, 2, 64, mask=mask)
        steps.append([int(count) for count in re.findall(r"\blength=(\d+)", str(found.jaxpr))])
        program = found.lower(lowering_platforms=("cpu", "cuda"))
        lines.append(program.as_text().count("\n"))
    assert all(many > few for few, many in zip(*steps, strict=True))
    assert lines[0] == lines[1]


def test_core_is_an_attention_core():
    assert isinstance(CORE, AttentionCore)


@pytest.mark.parametrize(
    "length, table, message",
    [
        (BLOCKS * W - 1, None, "multiple of block_size=4 and at least 3 blocks, got 35 tokens"),
        (2 * W, None, "at least 3 blocks, got 8 tokens; pad it, or use dense attention"),
        (BLOCKS * W, plan(BLOCKS + 1, 2), r"\(M, R\)=\(9, 2\) for 36 keys .*, got \(10, 2\)"),
        (BLOCKS * W, plan(BLOCKS, 1), r"\(9, 2\) .* num_random_blocks=2, got \(9, 1\)"),
    ],
)
def test_core_refuses_what_does_not_fit(length, table, message):
    with pytest.raises(ValueError, match=message):
        CORE(*qkv(length), mask=Mask(random_blocks_NMR=table))
