"""Block-sparse attention for TPUs: what the kernels compute from what they hold.

Within a kernel M counts the blocks of a step and S the tokens of a list.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

from xformer.layers.kernels.block_dropout import factors, of_end, of_row, turned
from xformer.layers.kernels.block_shape import NEAR, Shape
from xformer.layers.kernels.block_tpu_fetch import Blocks, per_all, per_step, source
from xformer.layers.kernels.tiles import (
    LOWEST,
    Tile,
    Tokens,
    as_column,
    as_row,
    crossed,
    product,
    readable,
    score,
    score_gradients,
)


def read_all(shape: Shape, given: Any, out: Any, sums: Any, top: Any, total: Any, x: Any) -> None:
    """A step of the global queries' softmax over all keys."""
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _() -> None:
        top[...] = jnp.full(top.shape, LOWEST)
        total[...] = jnp.zeros(total.shape)
        x[...] = jnp.zeros(x.shape)

    own, keys = given["own"], given["keys"]
    numbers = [step * per_all(shape) + i for i in range(per_all(shape))]
    listed = [(keys, i) for i in range(per_all(shape))]
    ends = [(own, 0, 0), (own, 1, shape.blocks - 1)]
    queries = _own_tokens(shape, ends)
    tokens = _listed_tokens(shape, listed, numbers)
    allowed = readable(queries, tokens, shape.causal, tokens.places >= 0)
    q_WC, kv_SC = own.x[...].reshape(2 * shape.width, -1), _listed_x(listed)
    scores_WS = score(q_WC, kv_SC, Tile(allowed))
    top_W1 = jnp.maximum(top[...], scores_WS.max(1, keepdims=True))
    kept_W1 = jnp.exp(top[...] - top_W1)
    weights_WS = jnp.exp(scores_WS - top_W1)
    top[...] = top_W1
    total[...] = total[...] * kept_W1 + weights_WS.sum(1, keepdims=True)
    if shape.dropout:
        # One end after the other, whose places follow one another.
        drawn = [of_end(shape, _among(given), 0, number) for number in numbers]
        weights_WS = weights_WS * factors(shape, given["draws"], drawn, 2 * shape.width)
    read_WC = product(weights_WS.astype(kv_SC.dtype), kv_SC, 0)
    x[...] = x[...] * kept_W1 + read_WC[:, shape.features :]

    @pl.when(step == pl.num_programs(2) - 1)
    def _() -> None:
        context = (x[...] / total[...]).reshape(out.shape)
        out[...] = context.astype(out.dtype)
        sums_W1 = top[...] + jnp.log(total[...])
        for i in range(2):
            sums[i] = as_row(sums_W1[i * shape.width : (i + 1) * shape.width])


def read_rows(shape: Shape, table: Any, given: Any, out: Any, sums: Any) -> None:
    """Contexts of some query blocks."""
    for i in range(per_step(shape)):
        row = pl.program_id(2) * per_step(shape) + i
        kv_SC, tile = _row_tile(shape, given, table, row, i)
        scores_WS = score(given["own"].x[i], kv_SC, tile)
        top_W1 = scores_WS.max(1, keepdims=True)
        weights_WS = jnp.exp(scores_WS - top_W1)
        total_W1 = weights_WS.sum(1, keepdims=True)
        if tile.kept_WS is not None:
            weights_WS = weights_WS * tile.kept_WS
        read_WC = product(weights_WS.astype(kv_SC.dtype), kv_SC, 0)
        out[i] = (read_WC[:, shape.features :] / total_W1).astype(out.dtype)
        sums[i] = as_row(top_W1 + jnp.log(total_W1))
        for end, number in enumerate((0, shape.blocks - 1)):

            @pl.when(row == number)
            def _(i: int = i, end: int = end) -> None:
                context, logarithms = given["ends_out"]
                out[i] = context[end]
                sums[i] = logarithms[end]


def rows_back(shape: Shape, table: Any, given: Any, dq: Any, d_ends: Any) -> None:
    """Gradients of some query blocks, and of the global keys that they read."""

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        d_ends[...] = jnp.zeros(d_ends.shape)

    own = given["own"]
    for i in range(per_step(shape)):
        row = pl.program_id(2) * per_step(shape) + i
        kv_SC, tile = _row_tile(shape, given, table, row, i)
        sums, means = (as_column(own.stats[i][k : k + 1]) for k in range(2))
        q_WC = own.x[i]
        weights_WS, dscores_WS = _gradients(shape, q_WC, kv_SC, (sums, means), tile)
        dq[i] = product(dscores_WS, kv_SC, 0)[:, : shape.features].astype(dq.dtype)
        ends = slice(0, 2 * shape.width)
        dk_SC = crossed(dscores_WS[:, ends], q_WC)
        dv_SC = crossed(weights_WS[:, ends], q_WC)
        d_ends[...] += _beside(shape, dk_SC, dv_SC).reshape(d_ends.shape)


def columns_back(shape: Shape, given: Any, d: Any, dq_ends: Any) -> None:
    """Gradients of some key blocks, but for random readers, and of global queries from them."""
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _() -> None:
        dq_ends[...] = jnp.zeros(dq_ends.shape)

    for i in range(per_step(shape)):
        column = step * per_step(shape) + i
        listed = _near(given, shape, i)
        numbers = [0, shape.blocks - 1, *_window(shape, column)]
        kept_WS = None
        if shape.dropout:
            kept_WS = _kept_of_column(shape, given, column)
        own = given["own"], i, column
        part_WC, dscores_WS = _column_part(shape, own, listed, numbers, kept_WS)
        d_ends_WC = given["d_ends"]
        part_WC += jnp.where(column == 0, d_ends_WC[0], 0.0)
        part_WC += jnp.where(column == shape.blocks - 1, d_ends_WC[1], 0.0)
        if "source" in given:
            in_source = step < source(shape) // per_step(shape)
            part_WC += jnp.where(in_source, given["source"][i], 0.0)
        d[i] = part_WC.astype(d.dtype)
        dq_WC = crossed(dscores_WS[:, : 2 * shape.width], given["own"].x[i])
        dq_ends[...] += dq_WC[:, : shape.features].reshape(dq_ends.shape)


def readers_back(shape: Shape, keys: Any, entries: Any, given: Any, d: Any) -> None:
    """Gradients of a key block from some query blocks that it is a random block of."""
    chunk = pl.program_id(1) * pl.num_programs(2) + pl.program_id(2)
    column = keys[chunk]
    is_first = (pl.program_id(2) == 0) | (keys[jnp.maximum(chunk - 1, 0)] != column)

    @pl.when(is_first)
    def _() -> None:
        d[...] = jnp.zeros(d.shape)

    readers = len(given["listed"])
    found = [entries[chunk * readers + i] for i in range(readers)]
    among = _among(given)

    @pl.when(found[0] >= 0)
    def _() -> None:
        rows = [lax.div(jnp.maximum(entry, 0), shape.random) for entry in found]
        kept_WS = None
        if shape.dropout:
            drawn = [
                turned(of_row(shape, among, row, NEAR + entry - row * shape.random))
                for row, entry in zip(rows, found, strict=True)
            ]
            kept_WS = factors(shape, given["draws"], drawn, shape.width)
        numbers = [jnp.where(entry >= 0, row, -1) for row, entry in zip(rows, found, strict=True)]
        listed = [(ref, 0) for ref in given["listed"]]
        part_WC, _ = _column_part(shape, (given["own"], 0, column), listed, numbers, kept_WS)
        d[0] += part_WC


def _row_tile(shape: Shape, given: Any, table: Any, row: Array, i: int) -> tuple[Array, Tile]:
    """The tokens that the query block `row`, number `i` of a step, meets; none if it is global."""
    listed = _near(given, shape, i)
    listed += [(ref, 0) for ref in given["random"][i * shape.random : (i + 1) * shape.random]]
    is_inner = (row > 0) & (row < shape.blocks - 1)
    ends = [jnp.where(is_inner, number, -1) for number in (0, shape.blocks - 1)]
    start = (pl.program_id(1) * shape.blocks + row) * shape.random
    chosen = [jnp.where(is_inner, table[start + k], -1) for k in range(shape.random)]
    keys = _listed_tokens(shape, listed, [*ends, *_window(shape, row), *chosen])
    queries = _own_tokens(shape, [(given["own"], i, row)])
    allowed = readable(queries, keys, shape.causal, keys.places >= 0)
    share_1S = None
    if shape.repeats:
        is_first = lax.broadcasted_iota(jnp.int32, keys.places.shape, 1) < shape.width
        share_1S = jnp.where(is_first, math.log1p(shape.repeats), 0.0)
    kept_WS = None
    if shape.dropout:
        drawn = [of_row(shape, _among(given), row, entry) for entry in range(shape.listed)]
        kept_WS = factors(shape, given["draws"], drawn, shape.width)
    return _listed_x(listed), Tile(allowed, share_1S, kept_WS)


def _kept_of_column(shape: Shape, given: Any, column: Array) -> Array:
    """Factors of the dropout of a key block with the global query blocks and its window."""
    among = _among(given)
    drawn = [turned(of_end(shape, among, end, column)) for end in range(2)]
    for beside in (-1, 0, 1):
        row = jnp.clip(column + beside, 0, shape.blocks - 1)
        drawn.append(turned(of_row(shape, among, row, 3 - beside)))
    return factors(shape, given["draws"], drawn, shape.width)


def _among(given: Any) -> Array | int:
    """Number of the row of the batch and the head, among those of all devices; for dropout."""
    if "draws" not in given:
        return 0
    first_row, first_head, heads = (given["draws"][i] for i in range(3))
    return (first_row + pl.program_id(0)) * heads + first_head + pl.program_id(1)


def _column_part(
    shape: Shape, own: Any, listed: list[Any], numbers: list[Any], kept_WS: Array | None
) -> tuple[Array, Array]:
    """Gradients of a key block, and of the scores."""
    ref, i, column = own
    queries = _listed_tokens(shape, listed, numbers)
    keys = _own_tokens(shape, [own])
    allowed = readable(queries, keys, shape.causal, queries.places >= 0)
    listed_SC = _listed_x(listed)
    sums, means = (
        jnp.concatenate([x.stats[j][k : k + 1] for x, j in listed], axis=1) for k in range(2)
    )
    weights_WS, dscores_WS = _gradients(
        shape, ref.x[i], listed_SC, (sums, means), Tile(allowed, kept_WS=kept_WS)
    )
    dk_WC, dv_WC = (product(x, listed_SC, 0) for x in (dscores_WS, weights_WS))
    return _beside(shape, dk_WC, dv_WC), dscores_WS


def _gradients(
    shape: Shape, own_WC: Array, listed_SC: Array, stats: tuple[Array, Array], tile: Tile
) -> tuple[Array, Array]:
    """What is left of the probabilities of a tile, and the gradients of its scores."""
    is_first = lax.broadcasted_iota(jnp.int32, own_WC.shape, 1) < shape.features
    nothing = jnp.zeros(own_WC.shape, own_WC.dtype)
    own = jnp.where(is_first, own_WC, nothing), jnp.where(is_first, nothing, own_WC)
    found = score_gradients(own, (listed_SC, listed_SC), stats, tile)
    return found[0].astype(own_WC.dtype), found[1].astype(own_WC.dtype)


def _beside(shape: Shape, first_WC: Array, second_WC: Array) -> Array:
    """The first half of one beside the second half of the other."""
    is_first = lax.broadcasted_iota(jnp.int32, first_WC.shape, 1) < shape.features
    return jnp.where(is_first, first_WC, second_WC)


def _near(given: Any, shape: Shape, i: int) -> list[Any]:
    """The global and the neighbouring blocks of a step's block `i`."""
    tile = [(given["tile"], k) for k in range(per_step(shape))]
    near = [(given["before"], 0), *tile, (given["after"], 0)]
    return [(given["ends"], 0), (given["ends"], 1), *near[i : i + 3]]


def _window(shape: Shape, own: Array) -> list[Array]:
    """Numbers of a block's window, -1 for global ones and for all of a global block's."""
    last = shape.blocks - 1
    is_inner = (own > 0) & (own < last)
    numbers = [own - 1, own, own + 1]
    return [jnp.where(is_inner & (k > 0) & (k < last), k, -1) for k in numbers]


def _own_tokens(shape: Shape, blocks: list[tuple[Blocks, int, Any]]) -> Tokens:
    """A column of tokens; of each block where it is, and its number."""
    inside_W1 = lax.broadcasted_iota(jnp.int32, (shape.width, 1), 0)
    places = [inside_W1 + number * shape.width for _, _, number in blocks]
    segments = None
    if blocks[0][0].segments is not None:
        segments = jnp.concatenate([as_column(x.segments[i]) for x, i, _ in blocks], axis=0)
    return Tokens(jnp.concatenate(places, axis=0), segments)


def _listed_tokens(shape: Shape, listed: list[Any], numbers: list[Any]) -> Tokens:
    """A row of tokens; their places are negative where a block's number is."""
    inside_1S = lax.broadcasted_iota(jnp.int32, (1, len(listed) * shape.width), 1)
    starts_1S = jnp.zeros_like(inside_1S)
    for k, number in enumerate(numbers):
        start = (number - k) * shape.width
        starts_1S = jnp.where(inside_1S >= k * shape.width, start, starts_1S)
    segments = None
    if listed[0][0].segments is not None:
        segments = jnp.concatenate([x.segments[i] for x, i in listed], axis=1)
    return Tokens(inside_1S + starts_1S, segments)


def _listed_x(listed: list[Any]) -> Array:
    return jnp.concatenate([x.x[i] for x, i in listed], axis=0)
