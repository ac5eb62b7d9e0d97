"""Sums over a vocabulary in chunks against those over all scores."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xformer import partitioning
from xformer.layers import vocabulary_chunks
from xformer.layers.sharding import mesh_axes
from xformer.layers.vocabulary import VocabularyScores, computed, sums_of
from xformer.outputs import FlaxMaskedLMOutput
from xformer.partitioning import MeshConfig, Rules, make_mesh

pytestmark = pytest.mark.usefixtures("quick_compilation")

B, T, D, V = 8, 4, 16, 40
RNG = np.random.default_rng(0)
STATES, TABLE = RNG.normal(size=(B, T, D)), 0.5 * RNG.normal(size=(V, D))
BIAS, IDS = RNG.normal(size=V), RNG.integers(0, V, (B, T))
WEIGHTS = RNG.normal(size=(3, B, T))


@pytest.fixture(autouse=True)
def no_scores_are_few(monkeypatch):
    """So that the backward pass computes them again; see `test_few_scores_are_kept`."""
    monkeypatch.setattr(vocabulary_chunks, "_FEW_SCORES", 0)


def assert_close(actual, expected, rtol=1e-6):
    """Equal up to roundings, which are as large as those of the largest number."""
    largest = abs(np.asarray(expected, np.float32)).max()
    np.testing.assert_allclose(actual, expected, rtol=0.0, atol=rtol * largest)


def arrays(letters, dtype="float32", has_bias=True):
    table = TABLE if letters == "VD" else TABLE.T
    bias = jnp.asarray(BIAS, jnp.float32) if has_bias else None
    return jnp.asarray(STATES, dtype), jnp.asarray(table, jnp.float32), bias


def scores_of(given, letters, chunk=None):
    return VocabularyScores(*given, letters=letters, chunk=chunk)


def weighed(given, letters, chunk):
    """A number that depends on every sum at every place."""
    scores = scores_of(given, letters, chunk)
    sums = scores.sums(jnp.asarray(IDS % scores.vocab_size))
    return sum((weights * x).sum() for weights, x in zip(WEIGHTS, sums, strict=True)), sums


@functools.partial(jax.jit, static_argnums=(1, 2))
def both_passes(given, letters, chunk):
    (_, sums), gradients = jax.value_and_grad(weighed, has_aux=True)(given, letters, chunk)
    return sums, gradients


@pytest.mark.parametrize("letters", ["VD", "DV"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 8, 39])
def test_chunks_sum_to_the_whole(letters, has_bias, chunk):
    given = arrays(letters, has_bias=has_bias)
    jax.tree.map(
        assert_close, both_passes(given, letters, chunk), both_passes(given, letters, None)
    )


@pytest.mark.parametrize("letters", ["VD", "DV"])
def test_a_cpu_scores_no_more_at_once_than_its_cache_holds(letters, monkeypatch):
    given = arrays(letters)
    expected = both_passes(given, letters, None)
    monkeypatch.setattr(vocabulary_chunks, "_CPU_CHUNK", 3)
    monkeypatch.setattr(vocabulary_chunks, "_CPU_SCORES", 5 * B * T)
    both = jax.jit(lambda given: both_passes.__wrapped__(given, letters, 39))
    compiled = both.lower(given).compile()
    jax.tree.map(assert_close, compiled(given), expected)
    sizes = {
        math.prod(map(int, one.split(",")))
        for one in re.findall(r"f32\[([\d,]+)\]", compiled.as_text())
    }
    assert 5 * B * T in sizes and 39 * B * T not in sizes
    for_a_tpu = both.trace(given).lower(lowering_platforms=("tpu",)).as_text()
    assert re.search(r"39x32xf32|32x39xf32", for_a_tpu)


@pytest.mark.parametrize("letters", ["VD", "DV"])
@pytest.mark.parametrize("dtype, rtol", [("bfloat16", 1e-2), ("float16", 2e-3)])
def test_low_dtypes_are_summed_in_float32(letters, dtype, rtol):
    given = arrays(letters, dtype)
    sums, gradients = both_passes(given, letters, 7)
    expected, expected_gradients = both_passes(given, letters, None)
    assert {x.dtype for x in sums} == {jnp.dtype("float32")}
    jax.tree.map(assert_close, sums, expected)  # the same scores, however they are summed
    assert gradients[0].dtype == dtype and gradients[1].dtype == jnp.float32
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert_close(one.astype(jnp.float32), other.astype(jnp.float32), rtol)


def test_gradients_of_float16_keep_small_numbers():
    """A token that is hardly likely is pushed down all the same."""
    states = jnp.ones((1, 1, 1), jnp.float16)
    table = jnp.zeros((V, 1)).at[0].set(-20.0)  # a probability below float16's range
    gradient = jax.grad(
        lambda table: (
            VocabularyScores(states, table, chunk=8).sums(jnp.ones((1, 1), int)).log_z_BT[0, 0]
        )
    )(table)
    assert_close(gradient[0, 0], math.exp(-20.0) / (V - 1), rtol=1e-3)


@pytest.mark.parametrize("letters", ["VD", "DV"])
def test_few_scores_are_never_transposed(letters, monkeypatch):
    """XLA would, where products of scores have rows and tokens in axes of their own."""
    monkeypatch.setattr(vocabulary_chunks, "_FEW_SCORES", B * T * V)
    both = jax.jit(lambda given: both_passes.__wrapped__(given, letters, 7))
    program = both.lower(arrays(letters)).compile().as_text()
    scores, transposed = (V, B * T), (B * T, V)
    if letters == "DV":
        scores, transposed = transposed, scores
    assert "f32[{},{}]".format(*scores) in program
    assert "f32[{},{}]".format(*transposed) not in program


@pytest.mark.parametrize("letters", ["VD", "DV"])
def test_gradients_of_chunks_are_added_up_in_the_dtype_that_is_wanted(letters):
    given = arrays(letters, "bfloat16")
    _, exact = both_passes(given, letters, None)
    for wanted in (None, "float32"):
        with partitioning.constraints(Rules(), wanted):
            _, found = jax.jit(lambda given: both_passes.__wrapped__(given, letters, 7))(given)
        is_bfloat16 = (found[1] == found[1].astype(jnp.bfloat16)).all()
        assert bool(is_bfloat16) is (wanted is None)
        assert_close(found[1], exact[1], 1e-2)


@pytest.mark.parametrize("wrong", [V, 1000, -1, -V])
@pytest.mark.parametrize("chunk", [None, 7])
def test_score_of_no_token_is_nan(wrong, chunk):
    given = arrays("VD", has_bias=False)
    sums = scores_of(given, "VD", chunk).sums(jnp.asarray(IDS).at[0, 1].set(wrong))
    assert np.isnan(sums.chosen_BT[0, 1]) and np.isnan(sums.chosen_BT).sum() == 1
    assert np.isfinite(sums.log_z_BT).all()


@pytest.mark.parametrize("factor", [1e4, -1e4])
def test_sums_are_finite_for_large_scores(factor):
    given = arrays("VD", has_bias=False)
    sums, gradients = both_passes((given[0], given[1] * factor, None), "VD", 7)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((sums, gradients)))


def test_chunk_of_the_whole_vocabulary_computes_all_scores():
    """Which costs less than to compute those of one chunk twice."""
    given = arrays("VD", has_bias=False)

    def products(chunk):
        gradient = jax.jit(jax.grad(lambda given: weighed(given, "VD", chunk)[0]))
        return gradient.lower(given).as_text().count("dot_general")

    assert products(V) == products(None) == 3 and products(V - 1) > 3


def test_computed_outputs_hold_logits():
    given = arrays("DV")
    outputs = FlaxMaskedLMOutput(logits=scores_of(given, "DV"), hidden_states=(given[0],))
    expected = STATES @ TABLE.T + BIAS
    assert_close(computed(outputs).logits, expected)
    assert computed(outputs).hidden_states[0] is given[0]
    assert_close(
        sums_of(jnp.asarray(expected, jnp.float32), jnp.asarray(IDS)).mean_BT, expected.mean(-1)
    )


# On a mesh


# Ways of (data, fsdp, tensor, sequence).
MESHES = [(4, 1, 2, 1), (1, 4, 2, 1), (1, 1, 8, 1), (2, 2, 2, 1), (1, 2, 4, 1), (2, 1, 2, 2)]


def on_mesh(sizes, letters, chunk, given, rules=None, gradient_dtype=None):
    """The computation of both passes, with its arrays where a run has them."""
    mesh, rules = make_mesh(MeshConfig(*sizes)), rules or Rules()
    table = ("vocab", "embed") if letters == "VD" else ("embed", "vocab")
    axes = ("act_batch", "act_length"), table, ("vocab",)
    names = tuple(jax.sharding.PartitionSpec(*one) for one in axes)
    shardings = partitioning.shardings(given, names, mesh, rules)

    def compute(*given):
        with partitioning.constraints(rules, gradient_dtype):
            return both_passes.__wrapped__(given, letters, chunk)

    whole = partitioning.replicated(mesh)
    results = whole, shardings
    return partitioning.jit(mesh, compute, in_shardings=shardings, out_shardings=results)


@pytest.mark.parametrize("letters", ["VD", "DV"])
@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("few", [0, B * T * V], ids=["many", "few"])
def test_sums_do_not_depend_on_the_mesh(sizes, letters, few, monkeypatch):
    monkeypatch.setattr(vocabulary_chunks, "_FEW_SCORES", few)
    given = arrays(letters)
    actual = on_mesh(sizes, letters, 3, given)(*given)
    jax.tree.map(assert_close, actual, both_passes(given, letters, None))


@pytest.mark.parametrize("letters", ["VD", "DV"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("wanted", ["bfloat16", "float32"])
def test_devices_add_up_gradients_in_the_dtype_that_is_wanted(wanted, dtype, letters):
    given = arrays(letters, dtype)
    _, (dstates, *found) = on_mesh((1, 4, 2, 1), letters, 3, given, None, wanted)(*given)
    _, exact = both_passes(given, letters, None)
    assert dstates.dtype == dtype
    jax.tree.map(functools.partial(assert_close, rtol=1e-2), found, list(exact[1:]))


@pytest.mark.parametrize("letters", ["VD", "DV"])
@pytest.mark.parametrize(
    "rules",
    [
        Rules(vocab=("fsdp",), act_vocab=("fsdp",), embed=("sequence",)),
        Rules(act_vocab=("sequence", "tensor")),
        Rules(act_batch=("data", "fsdp", "tensor")),
    ],
    ids=["batch", "length", "batch over tensor"],
)
def test_vocabulary_may_share_axes_with_places(rules, letters):
    given = arrays(letters)
    actual = on_mesh((1, 2, 2, 2), letters, 3, given, rules)(*given)
    jax.tree.map(assert_close, actual, both_passes(given, letters, None))


@pytest.mark.parametrize("letters", ["VD", "DV"])
@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_no_device_holds_the_scores_or_the_table(tensor, letters):
    """No array is larger than a chunk's, or than a device's share of states and table."""
    fsdp, vocab_size, width, chunk = 8 // tensor, 320, 4, 5
    table = (vocab_size, width) if letters == "VD" else (width, vocab_size)
    given = tuple(jnp.zeros(shape) for shape in ((B, T, width), table, (vocab_size,)))
    tokens, share = B * T // fsdp, vocab_size // tensor
    allowed = max(tokens * chunk, width * chunk, tokens * width, share * width // fsdp, share)
    assert tokens * share > 2 * allowed and vocab_size * width > 2 * allowed

    def sizes(chunk):
        sizes = (1, fsdp, tensor, 1)
        program = on_mesh(sizes, letters, chunk, given).lower(*given).compile().as_text()
        shapes = re.findall(r"f32\[([\d,]+)\]", program)
        return {math.prod(map(int, shape.split(","))) for shape in shapes}

    assert tokens * share in sizes(None)
    assert tokens * chunk in sizes(chunk) and max(sizes(chunk)) <= allowed


@pytest.mark.parametrize("letters", ["VD", "DV"])
def test_axes_of_places_leave_a_device_the_whole_vocabulary(letters):
    """A chunk that is a share over such axes is no share of what a device has to score."""
    vocab_size, width, chunk = 320, 8, 40
    table = (vocab_size, width) if letters == "VD" else (width, vocab_size)
    given = tuple(jnp.zeros(shape) for shape in ((B, T, width), table, (vocab_size,)))
    function = on_mesh((1, 8, 1, 1), letters, chunk, given, Rules(act_vocab=("fsdp",)))
    shapes = re.findall(r"f32\[([\d,]+)\]", function.lower(*given).compile().as_text())
    assert max(math.prod(map(int, shape.split(","))) for shape in shapes) <= chunk * width


@pytest.mark.parametrize("letters", ["VD", "DV"])
@pytest.mark.parametrize("tensor, vocab_size", [(4, 37), (8, 33), (8, 17)])
def test_a_vocabulary_need_not_be_divided(tensor, vocab_size, letters):
    """Tokens that pad the last shares have no part in anything."""
    states, table, bias = arrays(letters)
    table = table[:vocab_size] if letters == "VD" else table[:, :vocab_size]
    given = states, table, bias[:vocab_size] - 3.0  # padding would score more
    mesh, rules = make_mesh(MeshConfig(1, 8 // tensor, tensor)), Rules()

    @jax.jit
    def compute(*given):
        with partitioning.constraints(rules):
            return both_passes.__wrapped__(given, letters, 2)

    with jax.set_mesh(mesh):
        actual = compute(*given)
    jax.tree.map(assert_close, actual, both_passes(given, letters, None))


@pytest.mark.parametrize("letters", ["VD", "DV"])
@pytest.mark.parametrize("sizes", [(8, 1, 1, 1), (1, 4, 2, 1), (1, 1, 8, 1), (2, 1, 2, 2)], ids=str)
def test_few_scores_are_kept(sizes, letters, monkeypatch):
    """Computed at once, unless devices hold other columns, of which they gather a chunk's."""
    given, (_, fsdp, tensor, sequence) = arrays(letters), sizes
    share = B * T * V // 8  # of a device: the table is split by tensor alone, places by the rest
    monkeypatch.setattr(vocabulary_chunks, "_FEW_SCORES", share - 1)
    again = on_mesh(sizes, letters, 3, given).trace(*given)
    monkeypatch.setattr(vocabulary_chunks, "_FEW_SCORES", share)
    kept = on_mesh(sizes, letters, 3, given)
    # Each product is there for a chunk and for what is left of the share beside full chunks.
    rest = 1 + bool(V // tensor % 3)
    counts = [str(one.jaxpr).count("dot_general") for one in (again, kept.trace(*given))]
    assert counts == [4 * rest, 3 * rest if fsdp * sequence > 1 else 3]
    jax.tree.map(assert_close, kept(*given), both_passes(given, letters, None))


def test_mesh_axes_are_those_in_force():
    assert mesh_axes("act_vocab") == ()
    mesh = make_mesh(MeshConfig(2, 2, 2))
    with jax.set_mesh(mesh):
        assert mesh_axes("act_vocab") == ()
        with partitioning.constraints(Rules()):
            assert mesh_axes("act_vocab") == ("tensor",)
            assert mesh_axes("act_batch") == ("data", "fsdp")
            assert mesh_axes("act_length") == mesh_axes("act_embed") == ()
