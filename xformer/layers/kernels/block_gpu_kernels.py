"""Block-sparse attention for GPUs: what programs compute, and the blocks that each goes through.

S counts the tokens of one listed block.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

from xformer.layers.kernels.block_dropout import Draw, factors, of_end, of_row, turned
from xformer.layers.kernels.block_shape import NEAR, Shape
from xformer.layers.kernels.tiles import (
    LOWEST,
    Tile,
    Tokens,
    product,
    readable,
    score,
    score_gradients,
)

PER_PROGRAM = 16  # blocks that a program takes a global block through


@dataclass(frozen=True)
class List:
    """What a program takes its own block through.

    Attributes:
        own: Number of the own block.
        count: Length of the list.
        number: From a place in the list to the number of the block there; -1 for none.
        share: From a place in the list to the logarithm of how often a key there is read.
        draw: From a place in the list and the number of the block there to how its factors of the
            dropout are drawn.
    """

    own: Array
    count: Array | int
    number: Callable[[Array], Array]
    share: Callable[[Array], Array]
    draw: Callable[[Array, Array], Draw]

    def tile(self, shape: Shape, given: Any, place: Array, number: Array, allowed: Array) -> Tile:
        """What happens to the scores with the block at a place."""
        kept_WS = None
        if shape.dropout:
            draw = self.draw(place, jnp.maximum(number, 0))
            kept_WS = factors(shape, given["draws"], [draw], shape.width)
        return Tile(allowed, self.share(place), kept_WS)


def read_blocks(shape: Shape, rows: List, given: Any, out: Any, sums: Any) -> None:
    """Contexts of a block."""
    q_WH = given["q"][_tokens(shape, rows.own), :]
    queries = _own(shape, rows.own, given.get("query_segments"))

    def visit(place: Array, state: Any) -> Any:
        top_W1, total_W1, context_WH = state
        number = rows.number(place)
        here = _tokens(shape, jnp.maximum(number, 0))
        keys = _listed(shape, number, given.get("key_segments"))
        allowed = readable(queries, keys, shape.causal, keys.places >= 0)
        tile = rows.tile(shape, given, place, number, allowed)
        scores_WS = score(q_WH, given["k"][here, :], tile)
        higher_W1 = jnp.maximum(top_W1, scores_WS.max(1)[:, None])
        weights_WS, kept_W1 = jnp.exp(scores_WS - higher_W1), jnp.exp(top_W1 - higher_W1)
        total_W1 = total_W1 * kept_W1 + weights_WS.sum(1)[:, None]
        if tile.kept_WS is not None:
            weights_WS = weights_WS * tile.kept_WS
        v_SH = given["v"][here, :]
        context_WH = context_WH * kept_W1 + product(weights_WS.astype(v_SH.dtype), v_SH, 0)
        return higher_W1, total_W1, context_WH

    state = jnp.full((shape.width, 1), LOWEST), jnp.zeros((shape.width, 1)), jnp.zeros(q_WH.shape)
    top_W1, total_W1, context_WH = lax.fori_loop(jnp.int32(0), jnp.int32(rows.count), visit, state)
    total_W1 = jnp.where(total_W1 > 0, total_W1, 1.0)  # a global block has programs of its own
    out[...] = (context_WH / total_W1).astype(out.dtype)
    sums[...] = (top_W1 + jnp.log(total_W1)).reshape(shape.width)


def query_gradients(shape: Shape, rows: List, given: Any, dq: Any) -> None:
    """Gradients of a block of queries."""
    own = _tokens(shape, rows.own)
    sides = given["q"][own, :], given["dout"][own, :]
    stats = given["sums"][own][:, None], given["means"][own][:, None]
    queries = _own(shape, rows.own, given.get("query_segments"))

    def visit(place: Array, dq_WH: Array) -> Array:
        number = rows.number(place)
        here = _tokens(shape, jnp.maximum(number, 0))
        keys = _listed(shape, number, given.get("key_segments"))
        allowed = readable(queries, keys, shape.causal, keys.places >= 0)
        k_SH, v_SH = given["k"][here, :], given["v"][here, :]
        tile = rows.tile(shape, given, place, number, allowed)
        _, dscores_WS = score_gradients(sides, (k_SH, v_SH), stats, tile)
        return dq_WH + product(dscores_WS.astype(k_SH.dtype), k_SH, 0)

    dq[...] = lax.fori_loop(
        jnp.int32(0), jnp.int32(rows.count), visit, jnp.zeros(sides[0].shape)
    ).astype(dq.dtype)


def key_gradients(shape: Shape, columns: List, given: Any, dk: Any, dv: Any) -> None:
    """Gradients of a block of keys and their values."""
    own = _tokens(shape, columns.own)
    sides = given["k"][own, :], given["v"][own, :]
    keys = _own(shape, columns.own, given.get("key_segments"))

    def visit(place: Array, gradients: Any) -> Any:
        dk_WH, dv_WH = gradients
        number = columns.number(place)
        here = _tokens(shape, jnp.maximum(number, 0))
        queries = _listed(shape, number, given.get("query_segments"))
        allowed = readable(queries, keys, shape.causal, queries.places >= 0)
        q_SH, dout_SH = given["q"][here, :], given["dout"][here, :]
        stats = given["sums"][here][None], given["means"][here][None]
        tile = columns.tile(shape, given, place, number, allowed)
        weights_WS, dscores_WS = score_gradients(sides, (q_SH, dout_SH), stats, tile)
        dk_WH += product(dscores_WS.astype(q_SH.dtype), q_SH, 0)
        return dk_WH, dv_WH + product(weights_WS.astype(dout_SH.dtype), dout_SH, 0)

    zeros = tuple(jnp.zeros(side.shape) for side in sides)
    found = lax.fori_loop(jnp.int32(0), jnp.int32(columns.count), visit, zeros)
    for d, d_WH, more in zip((dk, dv), found, ("dk_ends", "dv_ends"), strict=True):
        if more in given:
            last = shape.blocks - 1
            is_end = ((columns.own == 0) | (columns.own == last)).astype(jnp.float32)
            end = (columns.own == last).astype(jnp.int32)
            d_WH += is_end * given[more][_tokens(shape, end), :]
        d[...] = d_WH.astype(d.dtype)


def rows_of(shape: Shape, given: Any) -> List:
    """What a block of queries reads; nothing if it is global."""
    row, among = pl.program_id(0), _among(given)
    random = shape.random

    def number(place: Array) -> Array:
        found = _near(shape, row, place)
        if random:
            chosen = given["random"][row * random + jnp.maximum(place - NEAR, 0)]
            found = _select(place < NEAR, found, chosen)
        return found

    is_inner = (row > 0) & (row < shape.blocks - 1)
    count = _select(is_inner, shape.listed, 0)

    def draw(place: Array, number: Array) -> Draw:
        return of_row(shape, among, row, place)

    return List(row, count, number, lambda place: _share(shape, place == 0), draw)


def columns_of(shape: Shape, given: Any) -> List:
    """The global queries, the window and the random readers that read a block of keys."""
    column, among = pl.program_id(0), _among(given)
    count: Any = NEAR
    if shape.random:
        start = given["bounds"][column]
        count = NEAR + given["bounds"][column + 1] - start

    def reader(place: Array) -> Array:
        last = given["readers"].shape[0] - 1
        return given["readers"][jnp.minimum(start + jnp.maximum(place - NEAR, 0), last)]

    def number(place: Array) -> Array:
        found = _near(shape, column, place)
        if shape.random:
            found = _select(place < NEAR, found, lax.div(reader(place), shape.random))
        return found

    def draw(place: Array, row: Array) -> Draw:
        entry = 3 + column - row
        if shape.random:
            chosen = NEAR + reader(place) - row * shape.random
            entry = _select(place < NEAR, entry, chosen)
        of_all = of_end(shape, among, place, column)
        of_one = of_row(shape, among, row, entry)
        start, step, own_step, seed = (
            _select(place < 2, *one) for one in zip(of_all, of_one, strict=True)
        )
        return turned(Draw(start, step, own_step, seed))

    return List(column, count, number, lambda place: jnp.float32(0), draw)


def share_of_all(shape: Shape, given: Any, of_keys: bool) -> List:
    """A program's share of what a global block reads, or of the other blocks that read it."""
    programs, last = programs_of(shape), shape.blocks - 1
    end, program = pl.program_id(0) // programs, pl.program_id(0) % programs
    among = _among(given)

    def number(place: Array) -> Array:
        found = program * PER_PROGRAM + place
        is_listed = (found > 0) & (found < last) if of_keys else found <= last
        return _select(is_listed, found, -1)

    def share(place: Array) -> Array:
        return _share(shape, (end == 0) & of_keys)

    def draw(place: Array, number: Array) -> Draw:
        if of_keys:
            return turned(of_row(shape, among, number, end))
        return of_end(shape, among, end, number)

    return List(end * last, PER_PROGRAM, number, share, draw)


def _among(given: Any) -> Array | int:
    """Number of the row of the batch and the head, among those of all devices; for dropout."""
    if "draws" not in given:
        return 0
    first_row, first_head, heads = (given["draws"][i] for i in range(3))
    return (first_row + pl.program_id(2)) * heads + first_head + pl.program_id(1)


def _near(shape: Shape, own: Array, place: Array) -> Array:
    """The global blocks, then the window but for global blocks and for that of a global block."""
    last = shape.blocks - 1
    window = own + place - 3
    is_listed = (own > 0) & (own < last) & (window > 0) & (window < last)
    window = _select(is_listed, window, -1)
    return _select(place == 0, 0, _select(place == 1, last, window))


def _share(shape: Shape, is_first: Array) -> Array:
    """Logarithm of how often keys are read, by whether they are the first block's."""
    return math.log1p(shape.repeats) * is_first.astype(jnp.float32)


def _select(condition: Array, one: Any, other: Any) -> Array:
    """One of two integers; Triton's part of JAX 0.10 takes literals of `jnp.where` for booleans."""
    return other + (one - other) * condition.astype(jnp.int32)


def _tokens(shape: Shape, number: Array) -> Any:
    return pl.ds(number * shape.width, shape.width)


def _own(shape: Shape, number: Array, segments: Any) -> Tokens:
    places_W1 = (number * shape.width + jnp.arange(shape.width))[:, None]
    return Tokens(
        places_W1, None if segments is None else segments[_tokens(shape, number)][:, None]
    )


def _listed(shape: Shape, number: Array, segments: Any) -> Tokens:
    """Tokens of a listed block, at negative places if there is none."""
    places_1S = (number * shape.width + jnp.arange(shape.width))[None]
    here = _tokens(shape, jnp.maximum(number, 0))
    return Tokens(places_1S, None if segments is None else segments[here][None])


def programs_of(shape: Shape) -> int:
    """Programs that share a global block."""
    return -(-shape.blocks // PER_PROGRAM)
