"""Block-sparse attention for GPUs: the kernels and what they fetch.

A program takes one block, its "own", through the list of blocks that it reads or that read it: the
two global ones, the window of three, and the random ones, which it finds in tables. What a global
block reads, or is read by, is shared out among several programs, whose results are joined after.
Three kernels, each for both: contexts, gradients of queries, gradients of keys and values.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from xformer.layers.block_reading import Given, Reading
from xformer.layers.kernels.block_gpu_kernels import (
    columns_of,
    key_gradients,
    programs_of,
    query_gradients,
    read_blocks,
    rows_of,
    share_of_all,
)
from xformer.layers.kernels.block_readers import sorted_readers
from xformer.layers.kernels.block_shape import Shape

_LEAST_FEATURES = 16  # of a head in a matrix product
_PRODUCTS = {read_blocks: 2, query_gradients: 3, key_gradients: 4}


def contexts(
    reading: Reading,
    given: Given,
    q_BTNH: Float[Array, "B T N H"],
    k_BTNH: Float[Array, "B T N H"],
    v_BTNH: Float[Array, "B T N H"],
    *,
    interpret: bool,
    draws: Int[Array, " K"] | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """The contexts, and logarithms of the softmax's denominators in float32.

    Args:
        reading: Who reads whom, the static part.
        given: Who reads whom, the arrays.
        q_BTNH: Queries, already scaled.
        k_BTNH: Keys.
        v_BTNH: Values.
        interpret: Whether to interpret the kernels, for devices that are no GPUs.
        draws: For dropout: see `xformer.layers.kernels.block_dropout.draws`.

    Returns:
        The contexts in the values' dtype, and the logarithms.
    """
    features = q_BTNH.shape[3]
    q_BTNH, k_BTNH, v_BTNH = map(_widened, (q_BTNH, k_BTNH, v_BTNH))
    shape = Shape.of(reading, given, q_BTNH, interpret)
    inputs = {**_masks(given, draws), "q": q_BTNH, "k": k_BTNH, "v": v_BTNH}
    tables = _row_tables(given)
    run = functools.partial(_call, shape, read_blocks, inputs)
    out_BTNH, sums_BNT = run(tables, (v_BTNH.dtype, None))
    parts_BTNH, logarithms_BNT = run({}, (jnp.float32, None), shared=True)
    logarithms_BN2CW = _by_program(shape, logarithms_BNT, 2)
    ends_BN2W = jax.nn.logsumexp(logarithms_BN2CW, axis=3)
    weights_BN2CW = jnp.exp(logarithms_BN2CW - ends_BN2W[:, :, :, None])
    ends_BRWNH = jnp.einsum("BNRXW,BRXWNH->BRWNH", weights_BN2CW, _by_program(shape, parts_BTNH, 1))
    sums_BNT = _with_ends(shape, sums_BNT, ends_BN2W, 2)
    return _with_ends(shape, out_BTNH, ends_BRWNH, 1)[..., :features], sums_BNT


def gradients(
    reading: Reading,
    given: Given,
    q_BTNH: Float[Array, "B T N H"],
    k_BTNH: Float[Array, "B T N H"],
    v_BTNH: Float[Array, "B T N H"],
    dout_BTNH: Float[Array, "B T N H"],
    sums_BNT: Float[Array, "B N T"],
    means_BNT: Float[Array, "B N T"],
    *,
    interpret: bool,
    draws: Int[Array, " K"] | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N H"], Float[Array, "B T N H"]]:
    """The gradients of queries, keys and values.

    Args:
        reading: Who reads whom, the static part.
        given: Who reads whom, the arrays.
        q_BTNH: Queries, already scaled.
        k_BTNH: Keys.
        v_BTNH: Values.
        dout_BTNH: Gradients of the contexts.
        sums_BNT: Logarithms of the softmax's denominators.
        means_BNT: Products of the contexts with their gradients.
        interpret: Whether to interpret the kernels, for devices that are no GPUs.
        draws: For dropout: see `xformer.layers.kernels.block_dropout.draws`.

    Returns:
        The gradients in the inputs' dtype.
    """
    features = q_BTNH.shape[3]
    q_BTNH, k_BTNH, v_BTNH, dout_BTNH = map(_widened, (q_BTNH, k_BTNH, v_BTNH, dout_BTNH))
    shape = Shape.of(reading, given, q_BTNH, interpret)
    inputs = {
        **_masks(given, draws),
        "q": q_BTNH,
        "k": k_BTNH,
        "v": v_BTNH,
        "dout": dout_BTNH.astype(q_BTNH.dtype),
        "sums": sums_BNT,
        "means": means_BNT,
    }
    run = functools.partial(_call, shape, query_gradients, inputs)
    (dq_BTNH,) = run(_row_tables(given), (q_BTNH.dtype,))
    (parts_BTNH,) = run({}, (jnp.float32,), shared=True)
    dq_BTNH = _with_ends(shape, dq_BTNH, _by_program(shape, parts_BTNH, 1).sum(2), 1)
    run = functools.partial(_call, shape, key_gradients, inputs)
    parts = run({}, (jnp.float32,) * 2, shared=True)
    dk_ends, dv_ends = (_by_program(shape, part_BTNH, 1).sum(2) for part_BTNH in parts)
    inputs |= {"dk_ends": _side_by_side(dk_ends), "dv_ends": _side_by_side(dv_ends)}
    run = functools.partial(_call, shape, key_gradients, inputs)
    dk_BTNH, dv_BTNH = run(_column_tables(shape, given), (k_BTNH.dtype, v_BTNH.dtype))
    dq_BTNH, dk_BTNH, dv_BTNH = (x[..., :features] for x in (dq_BTNH, dk_BTNH, dv_BTNH))
    return dq_BTNH, dk_BTNH, dv_BTNH


def _masks(given: Given, draws: Array | None) -> dict[str, Array]:
    found = {
        "query_segments": given.query_segments_BT,
        "key_segments": given.key_segments_BT,
        "draws": draws,
    }
    return {name: x.astype(jnp.int32) for name, x in found.items() if x is not None}


def _row_tables(given: Given) -> dict[str, Array]:
    table = given.random_blocks_NMR
    return {} if table is None else {"random": table.reshape(table.shape[0], -1)}


def _column_tables(shape: Shape, given: Given) -> dict[str, Array]:
    if given.random_blocks_NMR is None:
        return {}
    bounds, rows = sorted_readers(given.random_blocks_NMR, shape.blocks)
    return {"bounds": bounds, "readers": rows}


def _by_program(shape: Shape, x: Array, axis: int) -> Array:
    """Splits tokens of parts into the two global blocks, their programs and the tokens of each."""
    sizes = 2, programs_of(shape), shape.width
    return x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])


def _widened(x_BTNH: Array) -> Array:
    """Heads with zeros up to a width that programs can hold, a power of two."""
    features = x_BTNH.shape[3]
    width = max(_LEAST_FEATURES, 1 << (features - 1).bit_length())
    return jnp.pad(x_BTNH, ((0, 0), (0, 0), (0, 0), (0, width - features)))


def _side_by_side(ends_BRWNH: Array) -> Array:
    """The tokens of both global blocks in a row."""
    batch, ends, width, *rest = ends_BRWNH.shape
    return ends_BRWNH.reshape(batch, ends * width, *rest)


def _with_ends(shape: Shape, x: Array, ends: Array, axis: int) -> Array:
    """Sets the tokens of the global blocks."""
    for end, start in enumerate((0, x.shape[axis] - shape.width)):
        place = *(slice(None),) * axis, slice(start, start + shape.width)
        part = lax.index_in_dim(ends, end, axis, keepdims=False).astype(x.dtype)
        x = x.at[place].set(part)
    return x


def _call(
    shape: Shape,
    kernel: Callable[..., None],
    inputs: dict[str, Array],
    tables: dict[str, Array],
    dtypes: Sequence[Any],
    shared: bool = False,
) -> tuple[Array, ...]:
    """Runs a kernel for every block, or for the parts of what concerns the global ones.

    Args:
        shape: The sizes.
        kernel: The kernel.
        inputs: Arrays of tokens.
        tables: Where random blocks are, by head.
        dtypes: For each result its dtype, or None for float32 numbers of tokens by head.
        shared: Whether programs share what concerns the global blocks.

    Returns:
        The results; of shared work two blocks for each program that takes part.
    """
    count = 2 * programs_of(shape) if shared else shape.blocks
    length = count * shape.width

    def body(given: Any, *results: Any) -> None:
        if shared:
            blocks = share_of_all(shape, given, of_keys=kernel is key_gradients)
        else:
            blocks = (columns_of if kernel is key_gradients else rows_of)(shape, given)
        kernel(shape, blocks, given, *results)

    def whole(x: Array) -> pl.BlockSpec:
        match x.ndim:
            case 4:
                sizes = None, x.shape[1], None, x.shape[3]
                return pl.BlockSpec(sizes, lambda i, head, row: (row, 0, head, 0))
            case 3:
                return pl.BlockSpec((None, None, x.shape[2]), lambda i, head, row: (row, head, 0))
            case 1:
                return pl.BlockSpec(x.shape, lambda i, head, row: (0,))
        return pl.BlockSpec((None, x.shape[1]), lambda i, head, row: (row, 0))

    def of_head(x: Array) -> pl.BlockSpec:
        return pl.BlockSpec((None, x.shape[1]), lambda i, head, row: (head, 0))

    width, features = shape.width, shape.features
    tokens = pl.BlockSpec((None, width, None, features), lambda i, head, row: (row, i, head, 0))
    numbers = pl.BlockSpec((None, None, width), lambda i, head, row: (row, head, i))
    listed = shape.blocks * shape.listed
    work = 2 * shape.blocks if shared else listed
    shapes = tuple(
        jax.ShapeDtypeStruct((shape.batch, shape.heads, length), jnp.float32)
        if dtype is None
        else jax.ShapeDtypeStruct((shape.batch, length, shape.heads, features), dtype)
        for dtype in dtypes
    )
    return pl.pallas_call(
        body,
        out_shape=shapes,
        grid=(count, shape.heads, shape.batch),
        in_specs=[jax.tree.map(whole, inputs) | jax.tree.map(of_head, tables)],
        out_specs=tuple(numbers if dtype is None else tokens for dtype in dtypes),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        cost_estimate=shape.cost(_PRODUCTS[kernel] * work, (inputs, shapes)),
        interpret=shape.interpret,
        name=f"block_sparse_{kernel.__name__}",
    )(inputs | tables)
