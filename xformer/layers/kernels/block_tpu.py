"""Block-sparse attention for TPUs: the kernels and what they fetch.

A step of a kernel takes a few neighbouring blocks, its "own", each with a list of other blocks:
the two global ones, the window of three, and the random ones, which are found by tables that are
there before the step, so that the next step's blocks arrive during this one. Five kernels:

- `_read_all`: the two global query blocks against all keys, with a running softmax;
- `_read_rows`: the other query blocks against what they list;
- `_rows_back`: gradients of those queries, and of the global keys from them;
- `_columns_back`: gradients of keys from the global queries and the window, and of those queries;
- `_readers_back`: gradients of keys from the random blocks' readers, by the plan turned round.

The two lists are alike, for a window reads both ways and so do global blocks. A token's keys lie
beside its values, and its query beside its context's gradient, C = 2 * H numbers: 128, the width of
a TPU's registers, for heads of 64, and the matrix unit takes no longer for both than for one.

Within a kernel M counts the blocks of a step and S the tokens of a list.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from xformer.layers.block_rows import Given, Reading
from xformer.layers.kernels.block_dropout import factors, of_end, of_row, turned
from xformer.layers.kernels.block_readers import readers
from xformer.layers.kernels.block_shape import NEAR, Shape
from xformer.layers.kernels.block_tiles import (
    LOWEST,
    Tokens,
    crossed,
    product,
    readable,
    score,
)

_TOKENS = 256  # of a step's own blocks
_KEYS = 512  # of a step of the global query blocks
_READERS = 8  # of a step of a random key block
_TABLE_BYTES = 15 * 2**16  # of the 2**20 of scalar memory


class Blocks(NamedTuple):
    """An array of tokens in blocks, with what goes with them.

    Attributes:
        x: Keys beside values, or queries beside the gradients of their contexts; (B, N, M, W, C).
        segments: Document of each token, 0 for padding, (B, 1, M, 1, W); None without documents.
        stats: Of queries in the backward pass: logarithms of the softmax's denominators, and means
            of the gradients of scores, (B, N, M, 2, W).
    """

    x: Any
    segments: Any = None
    stats: Any = None


@dataclass(frozen=True)
class _Part:
    """What a kernel holds of an array, or of several alike, in a step.

    Attributes:
        arrays: Arrays, or shapes of results, whose third axis counts blocks.
        count: How many blocks.
        place: From head, step and tables to where they are, counted in `count` blocks.
    """

    arrays: Any
    count: int
    place: Callable[..., Any]


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
        interpret: Whether to interpret the kernels, for devices that are no TPUs.
        draws: For dropout: see `xformer.layers.kernels.block_dropout.draws`.

    Returns:
        The contexts in the values' dtype, and the logarithms.
    """
    shape = Shape.of(reading, given, q_BTNH, interpret)
    queries = _packed(shape, q_BTNH, jnp.zeros_like(q_BTNH), given.query_segments_BT)
    keys = _packed(shape, k_BTNH, v_BTNH, given.key_segments_BT)
    out_BNMWH, sums_BNM1W = _by_groups(
        _forward, shape, queries, keys, given.random_blocks_NMR, draws
    )
    return _by_token(out_BNMWH), sums_BNM1W.reshape(*sums_BNM1W.shape[:2], -1)


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
        interpret: Whether to interpret the kernels, for devices that are no TPUs.
        draws: For dropout: see `xformer.layers.kernels.block_dropout.draws`.

    Returns:
        The gradients in the inputs' dtype.
    """
    shape = Shape.of(reading, given, q_BTNH, interpret)
    by_block = (*sums_BNT.shape[:2], shape.blocks, 1, shape.width)
    stats = jnp.concatenate([x.reshape(by_block) for x in (sums_BNT, means_BNT)], axis=3)
    queries = _packed(shape, q_BTNH, dout_BTNH, given.query_segments_BT)._replace(stats=stats)
    keys = _packed(shape, k_BTNH, v_BTNH, given.key_segments_BT)
    dq_BNMWH, d_BNMWC = _by_groups(_backward, shape, queries, keys, given.random_blocks_NMR, draws)
    dk_BTNH, dv_BTNH = jnp.split(_by_token(d_BNMWC), 2, axis=-1)
    return _by_token(dq_BNMWH), dk_BTNH, dv_BTNH


def _packed(shape: Shape, one_BTNH: Array, other_BTNH: Array, segments_BT: Array | None) -> Blocks:
    """Tokens in blocks by head, two arrays side by side."""
    both_BNTC = jnp.concatenate([one_BTNH, other_BTNH], axis=-1).swapaxes(1, 2)
    sizes = shape.batch, shape.heads, shape.blocks, shape.width
    if segments_BT is not None:
        segments_BT = segments_BT.astype(jnp.int32).reshape(sizes[0], 1, sizes[2], 1, sizes[3])
    return Blocks(both_BNTC.reshape(*sizes, -1), segments_BT)


def _by_token(x_BNMWH: Array) -> Array:
    batch, heads, _, _, features = x_BNMWH.shape
    return x_BNMWH.reshape(batch, heads, -1, features).swapaxes(1, 2)


def _by_groups(
    compute: Callable[..., Any],
    shape: Shape,
    queries: Blocks,
    keys: Blocks,
    random_blocks_NMR: Array | None,
    draws: Array | None,
) -> Any:
    """Computes for some heads after others, where the tables of all do not fit."""
    groups = _groups(shape)
    if groups == 1:
        return compute(shape, queries, keys, random_blocks_NMR, draws)
    part = dataclasses.replace(shape, heads=shape.heads // groups)

    def split(x: Array) -> Array:
        """(B, N, ...) as (groups, B, N / groups, ...)."""
        return x.reshape(x.shape[0], groups, -1, *x.shape[2:]).swapaxes(0, 1)

    def of_group(group: Any) -> Any:
        number, own, listed, random_NMR = group
        own_draws = None if draws is None else draws.at[1].add(number * part.heads)
        return compute(
            part,
            own._replace(segments=queries.segments),
            listed._replace(segments=keys.segments),
            random_NMR,
            own_draws,
        )

    tables = None if random_blocks_NMR is None else split(random_blocks_NMR[None])[:, 0]
    arrays = *(jax.tree.map(split, one._replace(segments=None)) for one in (queries, keys)), tables
    results = lax.map(of_group, (jnp.arange(groups), *arrays))
    return tuple(x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:]) for x in results)


def _forward(
    shape: Shape,
    queries: Blocks,
    keys: Blocks,
    random_blocks_NMR: Int[Array, "N M R"] | None,
    draws: Array | None,
) -> tuple[Float[Array, "B N M W H"], Float[Array, "B N M 1 W"]]:
    """The contexts, and logarithms of the denominators, of packed queries beside zeros."""
    sizes, dtype = (shape.width, shape.features), keys.x.dtype
    drawn = {} if draws is None else {"draws": draws}
    listed = shape.blocks * shape.listed
    ends = _call(
        shape,
        _read_all,
        shape.blocks // _per_all(shape),
        4 * shape.blocks,
        {
            "own": _Part(_ends(queries), 2, _start),
            "keys": _Part(keys, _per_all(shape), _step),
            **drawn,
        },
        (_result(shape, 2, sizes, dtype, 2, _start), _result(shape, 2, (1, sizes[0]))),
        scratch=[(2 * shape.width, size) for size in (1, 1, shape.features)],
    )
    return _call(
        shape,
        _read_rows,
        shape.blocks // _per_step(shape),
        2 * listed,
        {
            "own": _Part(queries, _per_step(shape), _step),
            "ends_out": _Part(ends, 2, _start),
            **_listed(shape, keys),
            **drawn,
        },
        (_result(shape, shape.blocks, sizes, dtype), _result(shape, shape.blocks, (1, sizes[0]))),
        tables=(_table(random_blocks_NMR),),
    )


def _backward(
    shape: Shape,
    queries: Blocks,
    keys: Blocks,
    random_blocks_NMR: Int[Array, "N M R"] | None,
    draws: Array | None,
) -> tuple[Float[Array, "B N M W H"], Float[Array, "B N M W C"]]:
    """The gradients of queries, and those of keys beside those of values."""
    sizes, packed = (shape.width, shape.features), (shape.width, 2 * shape.features)
    drawn = {} if draws is None else {"draws": draws}
    listed = shape.blocks * shape.listed
    dtype, steps = keys.x.dtype, shape.blocks // _per_step(shape)
    added: dict[str, _Part] = {}
    if random_blocks_NMR is not None:
        found = readers(random_blocks_NMR, _source(shape), _READERS)
        chunks = found.keys_NK.shape[1]
        (d_source,) = _call(
            shape,
            _readers_back,
            chunks,
            4 * shape.blocks * shape.random,
            {
                "own": _Part(keys, 1, functools.partial(_key_of_chunk, chunks)),
                "listed": [
                    _Part(queries, 1, functools.partial(_row_of_chunk, chunks, shape.random, i))
                    for i in range(_READERS)
                ],
                **drawn,
            },
            (
                _result(
                    shape,
                    _source(shape),
                    packed,
                    count=1,
                    place=functools.partial(_key_of_chunk, chunks),
                ),
            ),
            tables=(found.keys_NK.reshape(-1), found.entries_NKR.reshape(-1)),
        )
        last = _source(shape) // _per_step(shape) - 1
        added["source"] = _Part(
            d_source, _per_step(shape), lambda head, step, *tables: jnp.minimum(step, last)
        )
    dq_BNMWH, d_ends = _call(
        shape,
        _rows_back,
        steps,
        3 * listed + 4 * shape.blocks,
        {"own": _Part(queries, _per_step(shape), _step), **_listed(shape, keys), **drawn},
        (_result(shape, shape.blocks, sizes, dtype), _result(shape, 2, packed)),
        tables=(_table(random_blocks_NMR),),
    )
    d_BNMWC, dq_ends = _call(
        shape,
        _columns_back,
        steps,
        22 * shape.blocks,
        {
            "own": _Part(keys, _per_step(shape), _step),
            "d_ends": _Part(d_ends, 2, _start),
            **added,
            **_listed(shape, queries, random=False),
            **drawn,
        },
        (_result(shape, shape.blocks, packed, dtype), _result(shape, 2, sizes)),
    )
    dq_ends = dq_ends.astype(dtype)
    dq_BNMWH = dq_BNMWH.at[:, :, :1].set(dq_ends[:, :, :1]).at[:, :, -1:].set(dq_ends[:, :, 1:])
    return dq_BNMWH, d_BNMWC


def _read_all(shape: Shape, given: Any, out: Any, sums: Any, top: Any, total: Any, x: Any) -> None:
    """A step of the global queries' softmax over all keys."""
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _() -> None:
        top[...] = jnp.full(top.shape, LOWEST)
        total[...] = jnp.zeros(total.shape)
        x[...] = jnp.zeros(x.shape)

    own, keys = given["own"], given["keys"]
    numbers = [step * _per_all(shape) + i for i in range(_per_all(shape))]
    listed = [(keys, i) for i in range(_per_all(shape))]
    ends = [(own, 0, 0), (own, 1, shape.blocks - 1)]
    queries = _own_tokens(shape, ends)
    tokens = _listed_tokens(shape, listed, numbers)
    allowed = readable(queries, tokens, shape.causal, tokens.places >= 0)
    q_WC, kv_SC = own.x[...].reshape(2 * shape.width, -1), _listed_x(listed)
    scores_WS = score(q_WC, kv_SC, allowed)
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
            sums[i] = _row(sums_W1[i * shape.width : (i + 1) * shape.width])


def _read_rows(shape: Shape, table: Any, given: Any, out: Any, sums: Any) -> None:
    """Contexts of some query blocks."""
    for i in range(_per_step(shape)):
        row = pl.program_id(2) * _per_step(shape) + i
        tile = _row_tile(shape, given, table, row, i)
        kv_SC = tile.listed_SC
        scores_WS = score(given["own"].x[i], kv_SC, tile.allowed, tile.share_1S)
        top_W1 = scores_WS.max(1, keepdims=True)
        weights_WS = jnp.exp(scores_WS - top_W1)
        total_W1 = weights_WS.sum(1, keepdims=True)
        if tile.kept_WS is not None:
            weights_WS = weights_WS * tile.kept_WS
        read_WC = product(weights_WS.astype(kv_SC.dtype), kv_SC, 0)
        out[i] = (read_WC[:, shape.features :] / total_W1).astype(out.dtype)
        sums[i] = _row(top_W1 + jnp.log(total_W1))
        for end, number in enumerate((0, shape.blocks - 1)):

            @pl.when(row == number)
            def _(i: int = i, end: int = end) -> None:
                context, logarithms = given["ends_out"]
                out[i] = context[end]
                sums[i] = logarithms[end]


def _rows_back(shape: Shape, table: Any, given: Any, dq: Any, d_ends: Any) -> None:
    """Gradients of some query blocks, and of the global keys that they read."""

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        d_ends[...] = jnp.zeros(d_ends.shape)

    own = given["own"]
    for i in range(_per_step(shape)):
        row = pl.program_id(2) * _per_step(shape) + i
        tile = _row_tile(shape, given, table, row, i)
        stats = [_column(own.stats[i][k : k + 1]) for k in range(2)]
        q_WC, kv_SC = own.x[i], tile.listed_SC
        weights_WS, dscores_WS = _gradients(shape, q_WC, kv_SC, stats, tile)
        dq[i] = product(dscores_WS, kv_SC, 0)[:, : shape.features].astype(dq.dtype)
        ends = slice(0, 2 * shape.width)
        dk_SC = crossed(dscores_WS[:, ends], q_WC)
        dv_SC = crossed(weights_WS[:, ends], q_WC)
        d_ends[...] += _beside(shape, dk_SC, dv_SC).reshape(d_ends.shape)


def _columns_back(shape: Shape, given: Any, d: Any, dq_ends: Any) -> None:
    """Gradients of some key blocks, but for random readers, and of global queries from them."""
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _() -> None:
        dq_ends[...] = jnp.zeros(dq_ends.shape)

    for i in range(_per_step(shape)):
        column = step * _per_step(shape) + i
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
            in_source = step < _source(shape) // _per_step(shape)
            part_WC += jnp.where(in_source, given["source"][i], 0.0)
        d[i] = part_WC.astype(d.dtype)
        dq_WC = crossed(dscores_WS[:, : 2 * shape.width], given["own"].x[i])
        dq_ends[...] += dq_WC[:, : shape.features].reshape(dq_ends.shape)


def _readers_back(shape: Shape, keys: Any, entries: Any, given: Any, d: Any) -> None:
    """Gradients of a key block from some query blocks that it is a random block of."""
    chunk = pl.program_id(1) * pl.num_programs(2) + pl.program_id(2)
    column = keys[chunk]
    is_first = (pl.program_id(2) == 0) | (keys[jnp.maximum(chunk - 1, 0)] != column)

    @pl.when(is_first)
    def _() -> None:
        d[...] = jnp.zeros(d.shape)

    found = [entries[chunk * _READERS + i] for i in range(_READERS)]
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


class _Tile(NamedTuple):
    """What an own block meets.

    Attributes:
        listed_SC: The listed tokens.
        allowed: Who reads whom.
        share_1S: Logarithms of how often a listed key is read, or None.
        kept_WS: Factors of the dropout, or None.
    """

    listed_SC: Array
    allowed: Array
    share_1S: Array | None = None
    kept_WS: Array | None = None


def _row_tile(shape: Shape, given: Any, table: Any, row: Array, i: int) -> _Tile:
    """What the query block `row`, number `i` of a step, meets; nothing if it is global."""
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
    return _Tile(_listed_x(listed), allowed, share_1S, kept_WS)


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
    tile = _Tile(_listed_x(listed), allowed, None, kept_WS)
    stats = [jnp.concatenate([x.stats[j][k : k + 1] for x, j in listed], axis=1) for k in range(2)]
    weights_WS, dscores_WS = _gradients(shape, ref.x[i], tile.listed_SC, stats, tile)
    dk_WC, dv_WC = (product(x, tile.listed_SC, 0) for x in (dscores_WS, weights_WS))
    return _beside(shape, dk_WC, dv_WC), dscores_WS


def _gradients(
    shape: Shape, own_WC: Array, listed_SC: Array, stats: list[Array], tile: _Tile
) -> tuple[Array, Array]:
    """What is left of the probabilities of a tile, and the gradients of its scores."""
    is_first = lax.broadcasted_iota(jnp.int32, own_WC.shape, 1) < shape.features
    nothing = jnp.zeros(own_WC.shape, own_WC.dtype)
    scores_WS = score(jnp.where(is_first, own_WC, nothing), listed_SC, tile.allowed, tile.share_1S)
    sums, means = stats
    weights_WS = jnp.where(tile.allowed, jnp.exp(scores_WS - sums), 0.0)
    dweights_WS = product(jnp.where(is_first, nothing, own_WC), listed_SC, 1)
    dropped_WS = weights_WS
    if tile.kept_WS is not None:
        dropped_WS, dweights_WS = (x * tile.kept_WS for x in (weights_WS, dweights_WS))
    dscores_WS = weights_WS * (dweights_WS - means)
    return dropped_WS.astype(own_WC.dtype), dscores_WS.astype(own_WC.dtype)


def _beside(shape: Shape, first_WC: Array, second_WC: Array) -> Array:
    """The first half of one beside the second half of the other."""
    is_first = lax.broadcasted_iota(jnp.int32, first_WC.shape, 1) < shape.features
    return jnp.where(is_first, first_WC, second_WC)


def _near(given: Any, shape: Shape, i: int) -> list[Any]:
    """The global and the neighbouring blocks of a step's block `i`."""
    tile = [(given["tile"], k) for k in range(_per_step(shape))]
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
        segments = jnp.concatenate([_column(x.segments[i]) for x, i, _ in blocks], axis=0)
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


def _column(x_1W: Array) -> Array:
    """A row as a column."""
    width = x_1W.shape[1]
    rows, columns = (lax.broadcasted_iota(jnp.int32, (width, width), k) for k in range(2))
    return jnp.where(rows == columns, x_1W, jnp.zeros_like(x_1W)).sum(1, keepdims=True)


def _row(x_W1: Array) -> Array:
    """A column as a row."""
    width = x_W1.shape[0]
    rows, columns = (lax.broadcasted_iota(jnp.int32, (width, width), k) for k in range(2))
    return jnp.where(rows == columns, x_W1, jnp.zeros_like(x_W1)).sum(0, keepdims=True)


def _listed(shape: Shape, blocks: Blocks, random: bool = True) -> dict[str, Any]:
    """What the lists of a step's blocks are made of."""
    count, last = _per_step(shape), shape.blocks - 1

    def chosen(i: int, k: int, head: Any, step: Any, table: Any) -> Any:
        return table[((head * shape.blocks) + step * count + i) * shape.random + k]

    return {
        "ends": _Part(_ends(blocks), 2, _start),
        "before": _Part(blocks, 1, lambda head, step, *_: jnp.maximum(step * count - 1, 0)),
        "tile": _Part(blocks, count, _step),
        "after": _Part(blocks, 1, lambda head, step, *_: jnp.minimum((step + 1) * count, last)),
        "random": [
            _Part(blocks, 1, functools.partial(chosen, i, k))
            for i in range(count)
            for k in range(shape.random * random)
        ],
    }


def _table(random_blocks_NMR: Array | None) -> Array:
    """The random blocks where kernels read tables."""
    return jnp.zeros(1, jnp.int32) if random_blocks_NMR is None else random_blocks_NMR.reshape(-1)


def _ends(blocks: Blocks) -> Blocks:
    """The first and the last block."""
    return jax.tree.map(lambda x: jnp.concatenate([x[:, :, :1], x[:, :, -1:]], axis=2), blocks)


def _start(head: Any, step: Any, *tables: Any) -> Any:
    return 0


def _step(head: Any, step: Any, *tables: Any) -> Any:
    return step


def _key_of_chunk(chunks: int, head: Any, step: Any, keys: Any, entries: Any) -> Any:
    return keys[head * chunks + step]


def _row_of_chunk(
    chunks: int, random: int, i: int, head: Any, step: Any, keys: Any, entries: Any
) -> Any:
    return lax.div(jnp.maximum(entries[(head * chunks + step) * _READERS + i], 0), random)


def _result(
    shape: Shape,
    blocks: int,
    sizes: tuple[int, int],
    dtype: Any = jnp.float32,
    count: int | None = None,
    place: Callable[..., Any] | None = None,
) -> _Part:
    """A result: of both ends at once, or some blocks a step."""
    whole = jax.ShapeDtypeStruct((shape.batch, shape.heads, blocks, *sizes), dtype)
    if blocks == 2:
        return _Part(whole, 2, _start)
    return _Part(whole, count or _per_step(shape), place or _step)


def _call(
    shape: Shape,
    kernel: Callable[..., None],
    steps: int,
    products: int,
    inputs: dict[str, Any],
    results: Sequence[_Part],
    *,
    tables: tuple[Array, ...] = (),
    scratch: Sequence[tuple[int, ...]] = (),
) -> Any:
    """Runs a kernel over all rows of the batch, heads and steps, the last in order."""

    def is_part(x: Any) -> bool:
        return isinstance(x, _Part)

    def spec(part: _Part, x: Any) -> pl.BlockSpec:
        def place(row: Any, head: Any, step: Any, *tables: Any) -> tuple[Any, ...]:
            own = head if x.shape[1] == shape.heads else 0
            return row, own, part.place(head, step, *tables), 0, 0

        return pl.BlockSpec((None, None, part.count, *x.shape[3:]), place)

    def specs(parts: Any) -> Any:
        """Blocks of each part; what is no part is whole, where scalars are."""
        return jax.tree.map(
            lambda part: (
                jax.tree.map(functools.partial(spec, part), part.arrays)
                if is_part(part)
                else pl.BlockSpec(memory_space=pltpu.SMEM)
            ),
            parts,
            is_leaf=is_part,
        )

    arrays = jax.tree.map(lambda x: x.arrays if is_part(x) else x, inputs, is_leaf=is_part)
    shapes = [part.arrays for part in results]
    return pl.pallas_call(
        functools.partial(kernel, shape),
        out_shape=shapes,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(tables),
            grid=(shape.batch, shape.heads, steps),
            in_specs=[specs(inputs)],
            out_specs=specs(list(results)),
            scratch_shapes=[pltpu.VMEM(size, jnp.float32) for size in scratch],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=shape.cost(products, (arrays, shapes)),
        interpret=shape.interpret,
        name=f"block_sparse{kernel.__name__}",
    )(*tables, arrays)


def _per_step(shape: Shape) -> int:
    """Own blocks of a step."""
    return _divisor(shape.blocks, min(8, _TOKENS // shape.width))


def _per_all(shape: Shape) -> int:
    """Key blocks of a step of the global query blocks."""
    return _divisor(shape.blocks, _KEYS // shape.width)


def _source(shape: Shape) -> int:
    """The blocks that random ones are among, in whole steps."""
    count = _per_step(shape)
    return min(shape.blocks, -(-shape.reach // count) * count)


def _groups(shape: Shape) -> int:
    """Parts of the heads whose tables fit, beside the seeds of dropout."""
    chunks = shape.blocks * shape.random // _READERS + _source(shape)
    entries = shape.random and max(shape.blocks * shape.random, chunks * (1 + _READERS))
    room = _TABLE_BYTES - (16 * shape.blocks if shape.dropout else 0)
    fitting = (
        count
        for count in range(1, shape.heads)
        if shape.heads % count == 0 and 4 * entries * shape.heads // count <= room
    )
    return next(fitting, shape.heads)


def _divisor(total: int, limit: int) -> int:
    """The greatest divisor of `total` up to `limit`, and at least 1."""
    return max(size for size in range(1, max(1, min(total, limit)) + 1) if total % size == 0)
