"""Rows of a table that is split over the mesh, against those of a whole one."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xformer import partitioning
from xformer.layers.lookup import look_up
from xformer.partitioning import MeshConfig, Rules, make_mesh

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
D = 16
LARGE, SMALL = 120, 5  # more rows than places on a device, and fewer
# Ways of (data, fsdp, tensor, sequence).
MESHES = [(8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 2, 1), (1, 2, 1, 4), (1, 2, 2, 2), (1, 1, 8, 1)]


def places(rows, batch=8, length=8):
    return RNG.integers(0, rows, (batch, length)).astype(np.int32)


def table(rows):
    return RNG.normal(size=(rows, D)).astype(np.float32)


def on_mesh(sizes, table_VD, ids_BT, weights_BTD, dtype="float32", axis="vocab", rules=None):
    """What is found, and the gradient of the table, computed as a run's step is."""
    mesh, rules = make_mesh(MeshConfig(*sizes)), rules or Rules()
    names = jax.sharding.PartitionSpec(axis, "embed"), jax.sharding.PartitionSpec("act_batch")
    given = table_VD, ids_BT
    if ids_BT.shape[0] % (sizes[0] * sizes[1]):
        names = names[0], jax.sharding.PartitionSpec()
    shardings = partitioning.shardings(given, names, mesh, rules)

    def compute(table_VD, ids_BT):
        with partitioning.constraints(rules):

            def weighed(table_VD):
                found_BTD = look_up(table_VD, ids_BT, jnp.dtype(dtype), axis)
                return (found_BTD.astype(jnp.float32) * weights_BTD).sum(), found_BTD

            gradient_VD, found_BTD = jax.grad(weighed, has_aux=True)(table_VD)
            return found_BTD, gradient_VD

    whole = partitioning.replicated(mesh)
    return partitioning.jit(
        mesh, compute, in_shardings=shardings, out_shardings=(whole, shardings[0])
    )


def expected(table_VD, ids_BT, weights_BTD):
    gradient_VD = np.zeros_like(table_VD)
    np.add.at(gradient_VD, ids_BT, weights_BTD)
    return table_VD[ids_BT], gradient_VD


@pytest.mark.parametrize("rows", [LARGE, SMALL])
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_rows_and_gradients_do_not_depend_on_the_mesh(sizes, rows):
    axis = "vocab" if rows == LARGE else "positions"
    given = table(rows), places(rows), RNG.normal(size=(8, 8, D)).astype(np.float32)
    found, gradient = on_mesh(sizes, *given, axis=axis)(*given[:2])
    expected_found, expected_gradient = expected(*given)
    np.testing.assert_array_equal(found, expected_found)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


@pytest.mark.parametrize(
    "rules",
    [
        Rules(vocab=("fsdp",), embed=("sequence",)),
        Rules(vocab=("fsdp", "tensor"), embed=()),
        Rules(vocab=("sequence",), embed=("fsdp",)),
        Rules(act_batch=("data", "fsdp", "tensor")),
        Rules(embed=("sequence", "fsdp"), act_batch=("fsdp", "data")),
    ],
    ids=["batch", "both", "length", "batch over tensor", "order"],
)
@pytest.mark.parametrize("rows", [LARGE, SMALL + 3])
def test_rows_may_share_axes_with_places(rules, rows):
    given = table(rows), places(rows), RNG.normal(size=(8, 8, D)).astype(np.float32)
    found, gradient = on_mesh((1, 2, 2, 2), *given, rules=rules)(*given[:2])
    expected_found, expected_gradient = expected(*given)
    np.testing.assert_array_equal(found, expected_found)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8), (8, 1), (3, 5)])
def test_places_need_not_be_divided(shape):
    given = table(LARGE), places(LARGE, *shape), RNG.normal(size=(*shape, D)).astype(np.float32)
    found, gradient = on_mesh((1, 2, 2, 2), *given)(*given[:2])
    expected_found, expected_gradient = expected(*given)
    np.testing.assert_array_equal(found, expected_found)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


@pytest.mark.parametrize("rows", [LARGE + 1, SMALL])
def test_a_vocabulary_need_not_be_divided(rows):
    given = table(rows), places(rows), RNG.normal(size=(8, 8, D)).astype(np.float32)
    found, gradient = on_mesh((1, 2, 4, 1), *given)(*given[:2])
    expected_found, expected_gradient = expected(*given)
    np.testing.assert_array_equal(found, expected_found)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


@pytest.mark.parametrize("sizes", [(8, 1, 1, 1), (1, 4, 2, 1)], ids=str)
def test_a_number_that_is_no_row_gives_nan(sizes):
    rows = LARGE - 1
    ids_BT = places(rows)
    ids_BT[0, 0], ids_BT[7, 7] = -1, rows
    given = table(rows), ids_BT, np.ones((8, 8, D), np.float32)
    found, gradient = on_mesh(sizes, *given)(*given[:2])
    wrong = np.isnan(found).all(-1)
    assert wrong[0, 0] and wrong[7, 7] and np.isnan(found).sum() == 2 * D
    assert float(gradient.sum()) == 62 * D


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_of_low_dtypes_are_added_up_in_float32(dtype):
    """A thousand ones in one row; bfloat16 cannot count beyond 256."""
    ids_BT = np.full((8, 128), 3, np.int32)
    given = table(LARGE * 32), ids_BT, np.ones((8, 128, D), np.float32)
    found, gradient = on_mesh((2, 2, 2, 1), *given, dtype=dtype)(*given[:2])
    assert found.dtype == dtype
    np.testing.assert_array_equal(gradient[3], 1024.0)


def test_large_tables_stay_where_they_are():
    """Devices exchange what they have found, and each adds up the gradient of what it holds."""
    given = table(LARGE), places(LARGE), np.ones((8, 8, D), np.float32)
    program = on_mesh((1, 4, 2, 1), *given).lower(*given[:2]).compile().as_text()
    sizes = {
        math.prod(map(int, shape.split(",")))
        for shape in re.findall(r"f32\[([\d,]+)\]", program.split("ENTRY")[1])
    }
    share = LARGE * D // 8
    assert "all-to-all" in program and share in sizes
    assert not {LARGE * D, LARGE * D // 2, LARGE * D // 4} & sizes
