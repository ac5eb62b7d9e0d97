"""Dense attention for GPUs: what programs compute."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

from xformer.layers.kernels.dense_tiles import Shape, Side, Softmax, tile_of, words_of
from xformer.layers.kernels.tiles import Tile, Tokens, product, score_gradients


def read(shape: Shape, given: Any, out: Any, sums: Any) -> None:
    """Contexts of a tile of queries."""
    side, own = shape.queries, pl.program_id(0)
    q_WH = given["q"][_of_tile(side, own), :]
    meet = _meeting(shape, False, given, own, _place(shape))

    def visit(number: Array, softmax: Softmax) -> Softmax:
        here = _of_tile(shape.keys, number)
        return softmax.over(q_WH, given["k"][here, :], given["v"][here, :], meet(number))

    softmax = Softmax.empty(side.width, shape.features)
    softmax = lax.fori_loop(*_listed(shape, False, own), visit, softmax)
    context_WH, sums_W1 = softmax.results()
    out[...] = context_WH.astype(out.dtype)
    sums[...] = sums_W1.reshape(side.width)


def queries_back(shape: Shape, given: Any, dq: Any) -> None:
    """Gradients of a tile of queries."""
    side, own = shape.queries, pl.program_id(0)
    here = _of_tile(side, own)
    queries = given["q"][here, :], given["dout"][here, :]
    stats = given["sums"][here][:, None], given["means"][here][:, None]
    meet = _meeting(shape, False, given, own, _place(shape))

    def visit(number: Array, dq_WH: Array) -> Array:
        there = _of_tile(shape.keys, number)
        keys = given["k"][there, :], given["v"][there, :]
        _, dscores_WS = score_gradients(queries, keys, stats, meet(number))
        return dq_WH + product(dscores_WS.astype(keys[0].dtype), keys[0], 0)

    zeros = jnp.zeros((side.width, shape.features))
    dq[...] = lax.fori_loop(*_listed(shape, False, own), visit, zeros).astype(dq.dtype)


def keys_back(shape: Shape, given: Any, dk: Any, dv: Any) -> None:
    """Gradients of a tile of keys and their values."""
    side, own = shape.keys, pl.program_id(0)
    here = _of_tile(side, own)
    keys = given["k"][here, :], given["v"][here, :]
    meet = _meeting(shape, True, given, own, _place(shape))

    def visit(number: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        dk_WH, dv_WH = found
        there = _of_tile(shape.queries, number)
        queries = given["q"][there, :], given["dout"][there, :]
        stats = given["sums"][there][None], given["means"][there][None]
        dropped_WS, dscores_WS = score_gradients(keys, queries, stats, meet(number))
        dk_WH += product(dscores_WS.astype(queries[0].dtype), queries[0], 0)
        return dk_WH, dv_WH + product(dropped_WS.astype(queries[1].dtype), queries[1], 0)

    zeros = jnp.zeros((side.width, shape.features)), jnp.zeros((side.width, shape.features))
    dk_WH, dv_WH = lax.fori_loop(*_listed(shape, True, own), visit, zeros)
    dk[...] = dk_WH.astype(dk.dtype)
    dv[...] = dv_WH.astype(dv.dtype)


def biases_back(shape: Shape, rows: int, given: Any, sums: Any) -> None:
    """Score gradients of all tiles as far from each other, of some rows of the batch."""
    side = shape.queries
    part, head = pl.program_id(0), pl.program_id(1)
    away = pl.program_id(2) - (side.tiles - 1)  # keys from queries, in tiles
    first, count = jnp.maximum(-away, 0), side.tiles - jnp.abs(away)

    def visit(turn: Array, sums_WW: Array) -> Array:
        row, own = part * rows + lax.div(turn, count), first + lax.rem(turn, count)
        here, there = (row, _of_tile(side, own)), (row, _of_tile(side, own + away))
        queries = given["q"][*here, :], given["dout"][*here, :]
        keys = given["k"][*there, :], given["v"][*there, :]
        stats = given["sums"][here][:, None], given["means"][here][:, None]
        meet = _meeting(shape, False, given, own, row * shape.heads + head, (row,))
        return sums_WW + score_gradients(queries, keys, stats, meet(own + away))[1]

    is_read = (away <= 0).astype(jnp.int32) if shape.causal else 1
    zeros = jnp.zeros((side.width, side.width))
    sums[...] = lax.fori_loop(jnp.int32(0), rows * count * is_read, visit, zeros)


def _meeting(
    shape: Shape,
    of_keys: bool,
    given: Any,
    number: Array,
    place: Array,
    row: tuple[Array, ...] = (),
) -> Callable[[Array], Tile]:
    """What happens to the scores of an own tile with any listed one.

    Args:
        shape: The sizes.
        of_keys: Whether keys are the own tokens.
        given: What is read.
        number: The own tile.
        place: Number of the row of the batch and head.
        row: The row where several are given.

    Returns:
        A function from the number of a listed tile.
    """
    own, listed = shape.sides(of_keys)
    names = ("key_segments", "query_segments") if of_keys else ("query_segments", "key_segments")
    own_segments, listed_segments = (given.get(name) for name in names)
    places_W1 = (number * own.width + jnp.arange(own.width))[:, None]
    segments_W1 = None
    if own_segments is not None:
        segments_W1 = own_segments[*row, _of_tile(own, number)][:, None]
    words = words_of(given["seeds"], place) if "seeds" in given else None

    def meet(other: Array) -> Tile:
        places_1S = (other * listed.width + jnp.arange(listed.width))[None]
        segments_1S = None
        if listed_segments is not None:
            segments_1S = listed_segments[*row, _of_tile(listed, other)][None]
        bias_WS = None
        if "biases" in given:
            behind_WS = places_W1 - places_1S if of_keys else places_1S - places_W1
            bias_WS = given["biases"][behind_WS + (own.padded - 1)]
        tokens = Tokens(places_W1, segments_W1), Tokens(places_1S, segments_1S)
        return tile_of(shape, of_keys, *tokens, bias_WS, words)

    return meet


def _place(shape: Shape) -> Array:
    """Number of the row and head of a program."""
    return pl.program_id(2) * shape.heads + pl.program_id(1)


def _listed(shape: Shape, of_keys: bool, own: Array) -> tuple[Array, Array]:
    first, end = shape.listed(of_keys, own)
    return jnp.int32(first), jnp.int32(end)


def _of_tile(side: Side, number: Array) -> Any:
    return pl.ds(number * side.width, side.width)
