"""Dense attention for GPUs: every query against every key, nothing of the size T x S in memory.

A program takes a tile of its own tokens past the tiles of the others. Four kernels:

- `read`: contexts of queries, with a running softmax;
- `queries_back`: gradients of queries;
- `keys_back`: gradients of keys and values;
- `biases_back`: gradients of biases by distance. All tiles as far from each other have the same
  biases, one along each diagonal, so a program adds up the score gradients of such tiles, and what
  is left to sum along diagonals is one tile for each distance in tiles.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from xformer.layers.kernels.dense_gpu_kernels import biases_back, keys_back, queries_back, read
from xformer.layers.kernels.dense_tiles import (
    Inputs,
    Shape,
    Side,
    lengthened,
    lengthened_bias,
    table_of,
)
from xformer.layers.kernels.tiles import LOWEST
from xformer.layers.relative_bias import diagonals

LEAST, MOST = 16, 64  # tokens of a tile
PROGRAMS = 1024  # which the gradients of biases are shared out among, if rows of the batch suffice
_LEAST_FEATURES = 16  # of a head in a matrix product
_TILE_NUMBERS = 2**13  # of the tokens of a tile: shared memory holds several tiles


def contexts(
    inputs: Inputs, *, causal: bool, dropout: float, interpret: bool
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """The contexts, and logarithms of the softmax's denominators in float32.

    Args:
        inputs: What is read.
        causal: Whether a query reads only keys at its own place or before it.
        dropout: Probability of dropping a probability, where there are seeds.
        interpret: Whether to interpret the kernels, for devices that are no GPUs.

    Returns:
        The contexts in the values' dtype, and the logarithms.
    """
    shape, given = _prepared(inputs, causal, dropout, interpret)
    out_BTNH, sums_BNT = _call(shape, read, given, 2, (inputs.v_BSNH.dtype, None))
    length, features = inputs.q_BTNH.shape[1], inputs.q_BTNH.shape[3]
    return out_BTNH[:, :length, :, :features], sums_BNT[:, :, :length]


def gradients(
    inputs: Inputs, *, causal: bool, dropout: float, interpret: bool
) -> tuple[
    Float[Array, "B T N H"],
    Float[Array, "B S N H"],
    Float[Array, "B S N H"],
    Float[Array, "N C"] | None,
]:
    """The gradients of queries, keys, values and biases.

    Args:
        inputs: What is read.
        causal: As for `contexts`, as the following.
        dropout: See there.
        interpret: See there.

    Returns:
        The first three in the inputs' dtype, the last in float32, None without biases.
    """
    shape, given = _prepared(inputs, causal, dropout, interpret)
    (dq_BTNH,) = _call(shape, queries_back, given, 3, (inputs.q_BTNH.dtype,))
    dtypes = inputs.k_BSNH.dtype, inputs.v_BSNH.dtype
    dk_BSNH, dv_BSNH = _call(shape, keys_back, given, 4, dtypes, of_keys=True)
    dbias_NC = None if inputs.bias_NC is None else _bias_gradient(shape, given)
    (_, length, _, features), key_length = inputs.q_BTNH.shape, inputs.k_BSNH.shape[1]
    dk_BSNH, dv_BSNH = (x[:, :key_length, :, :features] for x in (dk_BSNH, dv_BSNH))
    return dq_BTNH[:, :length, :, :features], dk_BSNH, dv_BSNH, dbias_NC


def _prepared(
    inputs: Inputs, causal: bool, dropout: float, interpret: bool
) -> tuple[Shape, dict[str, Array]]:
    """The sizes, and arrays in whole tiles; padding reads nothing in the backward pass."""
    batch, length, heads, features = inputs.q_BTNH.shape
    width = max(_LEAST_FEATURES, 1 << (features - 1).bit_length())
    most = max(LEAST, min(MOST, _TILE_NUMBERS // width))
    queries = Side.of(length, LEAST, most)
    keys = Side.of(inputs.k_BSNH.shape[1], LEAST, most)
    shape = Shape(batch, heads, width, queries, keys, causal, dropout, interpret)

    def tokens(x_BTNH: Array | None, side: Side) -> Array | None:
        if x_BTNH is None:
            return None
        x_BTNH = jnp.pad(x_BTNH, ((0, 0), (0, 0), (0, 0), (0, width - features)))
        return lengthened(x_BTNH, 1, side)

    def numbers(x: Array | None, side: Side, value: float = 0.0) -> Array | None:
        return None if x is None else lengthened(x, x.ndim - 1, side, value)

    given = {
        "q": tokens(inputs.q_BTNH, queries),
        "k": tokens(inputs.k_BSNH, keys),
        "v": tokens(inputs.v_BSNH, keys),
        "dout": tokens(inputs.dout_BTNH, queries),
        "query_segments": numbers(inputs.query_segments_BT, queries),
        "key_segments": numbers(inputs.key_segments_BS, keys),
        "sums": numbers(inputs.sums_BNT, queries, -LOWEST),
        "means": numbers(inputs.means_BNT, queries),
        "biases": None if inputs.bias_NC is None else lengthened_bias(inputs.bias_NC, queries),
        "seeds": None if inputs.seeds_BN2 is None else table_of(inputs.seeds_BN2),
    }
    return shape, {name: x for name, x in given.items() if x is not None}


def _bias_gradient(shape: Shape, given: dict[str, Array]) -> Float[Array, "N C"]:
    """Gradients of biases by distance."""
    side, heads = shape.queries, shape.heads
    distances = 2 * side.tiles - 1
    parts = math.gcd(shape.batch, 1 << (-(-PROGRAMS // (heads * distances)) - 1).bit_length())

    def spec(x: Array) -> pl.BlockSpec:
        match x.ndim:
            case 4:
                rows, length, _, width = x.shape
                return pl.BlockSpec(
                    (rows, length, None, width), lambda part, head, away: (0, 0, head, 0)
                )
            case 3:
                rows, _, length = x.shape
                return pl.BlockSpec((rows, None, length), lambda part, head, away: (0, head, 0))
        return pl.BlockSpec(x.shape, lambda part, head, away: (0,) * x.ndim)

    specs = jax.tree.map(spec, given)
    specs["biases"] = _of_head(given["biases"], 1)
    shape_PNKWW = jax.ShapeDtypeStruct(
        (parts, heads, distances, side.width, side.width), jnp.float32
    )
    sums_PNKWW = pl.pallas_call(
        functools.partial(biases_back, shape, shape.batch // parts),
        out_shape=shape_PNKWW,
        grid=(parts, heads, distances),
        in_specs=[specs],
        out_specs=pl.BlockSpec(
            (None, None, None, side.width, side.width),
            lambda part, head, away: (part, head, away, 0, 0),
        ),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        cost_estimate=shape.cost(2, (given, shape_PNKWW)),
        interpret=shape.interpret,
        name="dense_biases_back",
    )(given)
    by_distance = jax.ShapeDtypeStruct((heads, 2 * side.padded), jnp.float32)
    tiles = functools.partial(_tiles_of, side)
    (dbias_NC,) = jax.linear_transpose(tiles, by_distance)(sums_PNKWW.sum(0))
    first = side.padded - side.length
    return dbias_NC[:, first : first + 2 * side.length - 1]


def _tiles_of(side: Side, bias_NC: Float[Array, "N C"]) -> Float[Array, "N K W W"]:
    """The biases of a tile, by how far its keys are from its queries in tiles."""
    heads, width = bias_NC.shape[0], side.width
    parts_NKW = bias_NC.reshape(heads, -1, width)
    both_NKC = jnp.concatenate([parts_NKW[:, :-1], parts_NKW[:, 1:]], axis=2)[:, :, :-1]
    return jax.vmap(functools.partial(diagonals, rows=width), 1, 1)(both_NKC)


def _of_head(x_NC: Array, axis: int) -> pl.BlockSpec:
    """All numbers of a program's head, which this axis of the grid counts."""
    return pl.BlockSpec((None, x_NC.shape[1]), lambda *place: (place[axis], 0))


def _call(
    shape: Shape,
    kernel: Callable[..., None],
    given: dict[str, Array],
    products: int,
    dtypes: tuple[Any, ...],
    of_keys: bool = False,
) -> Any:
    """Runs a kernel for all tiles, heads and rows of the batch.

    Args:
        shape: The sizes.
        kernel: The kernel.
        given: What it reads.
        products: Products for each tile.
        dtypes: For each result its dtype, or None for float32 numbers of tokens by head.
        of_keys: Whether keys are the own tokens.

    Returns:
        The results.
    """
    own, features = shape.sides(of_keys)[0], shape.features

    def whole(x: Array) -> pl.BlockSpec:
        match x.ndim:
            case 4:
                sizes = None, x.shape[1], None, features
                return pl.BlockSpec(sizes, lambda i, head, row: (row, 0, head, 0))
            case 3:
                return pl.BlockSpec((None, None, x.shape[2]), lambda i, head, row: (row, head, 0))
            case 1:
                return pl.BlockSpec(x.shape, lambda i, head, row: (0,))
        return pl.BlockSpec((None, x.shape[1]), lambda i, head, row: (row, 0))

    specs = jax.tree.map(whole, given)
    if "biases" in given:
        specs["biases"] = _of_head(given["biases"], 1)
    tokens = pl.BlockSpec((None, own.width, None, features), lambda i, head, row: (row, i, head, 0))
    numbers = pl.BlockSpec((None, None, own.width), lambda i, head, row: (row, head, i))
    shapes = tuple(
        jax.ShapeDtypeStruct((shape.batch, shape.heads, own.padded), jnp.float32)
        if dtype is None
        else jax.ShapeDtypeStruct((shape.batch, own.padded, shape.heads, features), dtype)
        for dtype in dtypes
    )
    return pl.pallas_call(
        functools.partial(kernel, shape),
        out_shape=shapes,
        grid=(own.tiles, shape.heads, shape.batch),
        in_specs=[specs],
        out_specs=tuple(numbers if dtype is None else tokens for dtype in dtypes),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        cost_estimate=shape.cost(products, (given, shapes)),
        interpret=shape.interpret,
        name=f"dense_{kernel.__name__}",
    )(given)
