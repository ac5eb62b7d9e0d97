"""Dense attention for TPUs: every query against every key, nothing of the size T x S in memory.

Three kernels, each with a tile of its own tokens that stays while the tiles of the others pass by:

- `read`: contexts of queries, with a running softmax;
- `queries_back`: gradients of queries, and of biases by distance;
- `keys_back`: gradients of keys and values.

Tiles as far from each other have the same biases, one along each diagonal. Two neighbouring parts
of the biases by distance, repeated in every row and moved on by one place a row, are those of a
tile. Their gradients go the way back: eight rows are moved at once, so that sums over every eighth
row remain, which are 8 numbers for each distance; the last move is made when all are added up.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xformer.layers.kernels.dense_tiles import Inputs, Shape, Side
from xformer.layers.kernels.dense_tpu_fetch import call
from xformer.layers.kernels.dense_tpu_kernels import ROWS, keys_back, queries_back, read
from xformer.layers.relative_bias import diagonals

LEAST, MOST = 128, 512  # tokens of a tile


def contexts(
    inputs: Inputs, *, causal: bool, dropout: float, interpret: bool
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """The contexts, and logarithms of the softmax's denominators in float32.

    Args:
        inputs: What is read.
        causal: Whether a query reads only keys at its own place or before it.
        dropout: Probability of dropping a probability, where there are seeds.
        interpret: Whether to interpret the kernels, for devices that are no TPUs.

    Returns:
        The contexts in the values' dtype, and the logarithms.
    """
    shape = _shape(inputs, causal, dropout, interpret)
    out_BNTH, sums_BNM1W = call(
        shape,
        read,
        inputs,
        products=2,
        results=(inputs.v_BSNH.dtype, None),
        scratch={"top": 1, "total": 1, "context": shape.features},
    )
    sums_BNT = sums_BNM1W.reshape(shape.batch, shape.heads, -1)
    return _by_token(out_BNTH, shape.queries), sums_BNT[:, :, : shape.queries.length]


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
    shape = _shape(inputs, causal, dropout, interpret)
    width = shape.features
    dq_BNTH, *of_biases = call(
        shape,
        queries_back,
        inputs,
        products=3,
        results=(inputs.q_BTNH.dtype,),
        scratch={"dx": width, "sums": 1, "means": 1},
        of_biases=inputs.bias_NC is not None,
    )
    dk_BNSH, dv_BNSH = call(
        shape,
        keys_back,
        inputs,
        of_keys=True,
        products=4,
        results=(inputs.k_BSNH.dtype, inputs.v_BSNH.dtype),
        scratch={"dx": width, "dy": width},
    )
    dbias_NC = _bias_gradient(shape, *of_biases) if of_biases else None
    dk_BSNH, dv_BSNH = (_by_token(x, shape.keys) for x in (dk_BNSH, dv_BNSH))
    return _by_token(dq_BNTH, shape.queries), dk_BSNH, dv_BSNH, dbias_NC


def _shape(inputs: Inputs, causal: bool, dropout: float, interpret: bool) -> Shape:
    batch, length, heads, features = inputs.q_BTNH.shape
    return Shape(
        batch=batch,
        heads=heads,
        features=features,
        queries=Side.of(length, LEAST, MOST),
        keys=Side.of(inputs.k_BSNH.shape[1], LEAST, MOST),
        causal=causal,
        dropout=dropout,
        interpret=interpret,
    )


def _by_token(x_BNTH: Array, side: Side) -> Array:
    return x_BNTH[:, :, : side.length].swapaxes(1, 2)


def _bias_gradient(shape: Shape, sums_NK8W: Array) -> Float[Array, "N C"]:
    """Gradients of biases by distance, from sums over every eighth row."""
    side, heads = shape.queries, shape.heads
    sums_N8C = sums_NK8W.swapaxes(1, 2).reshape(heads, ROWS, -1)
    moved = functools.partial(diagonals, rows=ROWS)
    given = jax.ShapeDtypeStruct((heads, sums_N8C.shape[2] + ROWS - 1), jnp.float32)
    (dbias_NC,) = jax.linear_transpose(moved, given)(sums_N8C)
    first = side.padded - side.length
    return dbias_NC[:, first : first + 2 * side.length - 1]
