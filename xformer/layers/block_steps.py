"""What each step of the linear computation reads, by itself, and where its results are added.

Within a step M counts its query blocks, R the blocks that each of them reads and S their tokens.
"""

import copy
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from xformer.layers.block_reading import Given, Reading
from xformer.layers.block_shards import Shards
from xformer.layers.block_softmax import LOWEST, Keys, Queries
from xformer.layers.dropout import hashed_factors, numbered_seeds

# Scores of one step, over batch and heads. On CPU cores steps that stay in the cache are fastest:
# at 12 heads of width 64 and blocks of 64, one query block a step beat two, seven and all at once.
_SCORES_PER_STEP = 2**18

_GLOBAL, _WINDOW = 2, 3  # blocks that every query block reads; the others are random

_slice = functools.partial(lax.dynamic_slice_in_dim, allow_negative_indices=False)
_set_slice = functools.partial(lax.dynamic_update_slice_in_dim, allow_negative_indices=False)


class Blocks(NamedTuple):
    """Keys or values where the steps read them, or their gradients where they are added.

    The global blocks are apart: every row step adds to their gradients, and XLA would copy the
    whole array to update it in several places.

    Attributes:
        near: The blocks of this device, between two of its neighbours if it has any:
            (B, M, W, N, H), or gradients as the products have them (B, N, H, M, W).
        ends: The two global blocks: (B, N, M, W, H) or (B, N, H, M, W).
        source: Those that the random blocks are among: (B, N, M, W, H) or (N, M, B, H, W). None
            without random blocks, and on a CPU that has the row, which takes them from `near`: it
            needs no copy by head to read some, and saves memory.
    """

    near: Array
    ends: Array
    source: Array | None


class _Read(NamedTuple):
    """Who reads what, of some query blocks.

    Attributes:
        blocks_NMR: The blocks that each of them reads.
        shares_NMR: Logarithms of how often, `LOWEST` for not at all; None: once each.
        segments_BNMS: Documents of their tokens, 0 for padding; None reads every key.
    """

    blocks_NMR: Int[Array, "_ M R"]
    shares_NMR: Float[Array, "_ M R"] | None
    segments_BNMS: Int[Array, "B _ M S"] | None


class Steps:
    """What each step reads, and where its results go.

    "All" steps take the two global query blocks, as one row of 2 * W queries, through all keys of
    this device; "row" steps take the query blocks of this device in order, each with the keys that
    it reads. (A device with a whole row leaves the global blocks out of those; one with a part of
    it goes through all that it has, and lets nothing come of the global ones.)

    A block has a place in `Blocks.near` and a number in the row, which is `offset` more.
    """

    def __init__(
        self, reading: Reading, given: Given, k_BTNH: Array, v_BTNH: Array, on_cpu: bool
    ) -> None:
        """Puts keys and values where the steps find them.

        Args:
            reading: Who reads whom, the static part.
            given: Who reads whom, the arrays.
            k_BTNH: Keys.
            v_BTNH: Values.
            on_cpu: Whether one CPU computes all of it. Its runtime gives a product of many small
                matrices to one thread, and has others for products that do not wait for it: the
                heads are taken in parts.
        """
        self.reading, self.given, self.width = reading, given, reading.block_size
        self.shards = Shards(reading.axes)
        self.held = held = k_BTNH.shape[1] // self.width
        self.blocks, self.halo = held * self.shards.count, self.shards.halo
        self.offset = self.shards.index * held - self.halo
        self.on_cpu, self.first_head, self.heads = on_cpu, 0, k_BTNH.shape[2]
        self.k, self.v = (self._blocks(self._in_blocks(x)) for x in (k_BTNH, v_BTNH))
        # Once for all steps: within one XLA works everything out again for every score.
        self.read = self._rows_read(rows := held + 2 * self.halo - 2)
        row_scores = len(k_BTNH) * self.heads * self.width**2
        self.per_all = greatest_divisor(held, _SCORES_PER_STEP // row_scores)
        self.per_row = greatest_divisor(
            rows, _SCORES_PER_STEP // (row_scores * self.read.blocks_NMR.shape[2])
        )
        self.all_steps = jnp.arange(held // self.per_all)
        self.row_steps = jnp.arange(rows // self.per_row)

    def by_heads(self, most: int) -> list["Steps"]:
        """The same steps with some of the heads each, no more than so many on a CPU."""
        heads = greatest_divisor(self.heads, most) if self.on_cpu else self.heads
        parts = [copy.copy(self) for _ in range(self.heads // heads)]
        for i, part in enumerate(parts):
            part.first_head, part.heads = i * heads, heads
        return parts

    def _blocks(self, x_BMWNH: Array) -> Blocks:
        source = None
        if self.given.random_blocks_NMR is not None and not self.on_cpu:
            reach = min(self.reading.reach or self.blocks, self.blocks)
            source = _heads_first(self.shards.prefix(x_BMWNH, reach, 1))
        ends = _heads_first(self.shards.ends(x_BMWNH, 1))
        return Blocks(self.shards.beside(x_BMWNH, 1), ends, source)

    def no_gradient(self) -> Blocks:
        """Gradients of keys or values before the first step."""
        batch, blocks, width, _, features = self.k.near.shape
        shape = batch, self.heads, features
        near, ends = (jnp.zeros((*shape, count, width)) for count in (blocks, _GLOBAL))
        source = None
        if self.k.source is not None:
            count = self.k.source.shape[2]
            source = jnp.zeros((self.heads, count, batch, features, width))
        return Blocks(near, ends, source)

    def by_token(self, d: Blocks) -> Array:
        """The sums of the gradients, in the layout of tokens."""
        d_BNHMW = self.shards.from_ends(self.shards.from_beside(d.near, 3), d.ends, 3)
        if d.source is not None:
            source_BNHMW = d.source.transpose(2, 0, 3, 1, 4)
            d_BNHMW = self.shards.from_prefix(d_BNHMW, source_BNHMW, 3)
        d_BNHT = d_BNHMW.reshape(*d_BNHMW.shape[:3], -1)
        return d_BNHT.transpose(0, 3, 1, 2)

    def ends(self, x_BTN: Array) -> Array:
        """The global query blocks' part of what belongs to queries."""
        ends_BMWN = self._own(self.shards.ends(self._in_blocks(x_BTN), 1), 3)
        batch, _, _, *rest = ends_BMWN.shape
        return _heads_first(ends_BMWN.reshape(batch, 1, _GLOBAL * self.width, *rest))

    def from_ends(self, ends_BNMW: Array) -> Array:
        """What belongs to queries, of which only this part is known."""
        batch, _, _, *rest = (ends_BMWN := _tokens_first(ends_BNMW)).shape
        ends_BRWN = ends_BMWN.reshape(batch, _GLOBAL, self.width, *rest)
        return self.shards.with_ends(ends_BRWN, self.held, 1).reshape(batch, -1, *rest)

    def without_ends(self, queries: Queries, number: Array) -> Queries:
        """A row step's queries; nothing flows back from global ones that it should not take."""
        if not self.halo:
            return queries
        is_taken_M1 = self._is_taken(number)
        return queries._replace(
            dout_BNMWH=jnp.where(is_taken_M1[None, None, :, :, None], queries.dout_BNMWH, 0),
            means_BNMW=jnp.where(is_taken_M1[None, None], queries.means_BNMW, 0),
        )

    def all_keys(self, number: Array) -> Keys:
        """What an all step reads."""
        start = self._first_of_all(number)
        first = start + self.offset

        def take(x: Blocks) -> Array:
            near = _heads_first(self._own(_slice(x.near, start, self.per_all, axis=1), 3))
            return _side_by_side(near[:, :, None])

        blocks_NMR = (first + jnp.arange(self.per_all))[None, None]
        read = _Read(blocks_NMR, None, self._segments(self.given.key_segments_BT, blocks_NMR))
        bias = self._bias(jnp.array([[0, self.blocks - 1]]), read)
        return self._dropped(Keys(take(self.k), take(self.v), bias), 0, first, self.per_all)

    def add_all(self, number: Array, d: Blocks, part_BNMHS: Array) -> Blocks:
        """Adds an all step's part of the gradients of keys or values."""
        part_BNHRW = self._apart(part_BNMHS)[:, :, 0]
        return d._replace(near=_add_slice(d.near, part_BNHRW, self._first_of_all(number)))

    def rows(self, x_BTN: Array, number: Array) -> Array:
        """A row step's part of what belongs to queries."""
        part = _slice(x_BTN, self._first_token(number), self.per_row * self.width, axis=1)
        return _heads_first(self._in_blocks(self._own(part, 2)))

    def set_rows(self, number: Array, x_BTN: Array, part_BNMW: Array) -> Array:
        """Puts their part in its place."""
        part_BNMW = part_BNMW.astype(x_BTN.dtype)
        if self.halo:
            is_taken_M1 = self._is_taken(number)
            is_taken = is_taken_M1.reshape(*is_taken_M1.shape, *[1] * (x_BTN.ndim - 3))
            part_BNMW = jnp.where(is_taken, part_BNMW, self.rows(x_BTN, number))
        part_BMWN = _tokens_first(part_BNMW)
        part_BTN = part_BMWN.reshape(len(x_BTN), -1, *part_BMWN.shape[3:])
        starts = 0, self._first_token(number), self.first_head, 0
        return lax.dynamic_update_slice(
            x_BTN, part_BTN, starts[: x_BTN.ndim], allow_negative_indices=False
        )

    def row_keys(self, number: Array) -> Keys:
        """What a row step reads."""
        first, random_NMR = self._first_row(number), self._random(number)

        def take(x: Blocks) -> Array:
            near = self._own(_slice(x.near, first - 1, self.per_row + 2, axis=1), 3)
            ends = self._own(x.ends, 1)[:, :, None]
            ends = jnp.broadcast_to(ends, (*ends.shape[:2], self.per_row, *ends.shape[3:]))
            parts = [ends, _windows(_heads_first(near))]
            if random_NMR is not None:
                source, heads = (self._own(x.near, 3), 3) if x.source is None else (x.source, 1)
                parts.append(_take(source, random_NMR, heads))
            return _side_by_side(jnp.concatenate(parts, axis=3))

        rows_M1 = first + self.offset + jnp.arange(self.per_row)[:, None]
        read = jax.tree.map(functools.partial(self._of_step, number), self.read)
        keys = Keys(take(self.k), take(self.v), self._bias(rows_M1, read))
        return self._dropped(keys, 1, first + self.offset, self.per_row)

    def add_rows(self, number: Array, d: Blocks, part_BNMHS: Array) -> Blocks:
        """Adds a row step's part of the gradients of keys or values."""
        kinds = jnp.split(self._apart(part_BNMHS), (_GLOBAL, _GLOBAL + _WINDOW), axis=4)
        near = _add_slice(d.near, _from_windows(kinds[1]), self._first_row(number) - 1)
        random_NMR, source = self._random(number), d.source
        if random_NMR is not None:
            if source is None:
                near = _add_blocks(near, random_NMR, kinds[2])
            else:
                add = _add_to_source if self.reading.reach is None else _add_by_product
                source = add(source, random_NMR, kinds[2])
        return Blocks(near, d.ends + kinds[0].sum(2), source)

    def _own(self, x: Array, axis: int) -> Array:
        """What belongs to the heads of this part."""
        return lax.slice_in_dim(x, self.first_head, self.first_head + self.heads, axis=axis)

    def _apart(self, x_BNMHS: Array) -> Array:
        """The blocks that each query block reads, each by itself again, (B, N, M, H, R, W)."""
        return x_BNMHS.reshape(*x_BNMHS.shape[:4], -1, self.width)

    def _in_blocks(self, x_BTN: Array) -> Array:
        return x_BTN.reshape(x_BTN.shape[0], -1, self.width, *x_BTN.shape[2:])

    def _first_of_all(self, number: Array) -> Array:
        """Place of an all step's first block."""
        return self.halo + number * self.per_all

    def _first_row(self, number: Array) -> Array:
        """Place of a row step's first query block."""
        return 1 + number * self.per_row

    def _first_token(self, number: Array) -> Array:
        """The first token of a row step, among those of this device."""
        return (self._first_row(number) - self.halo) * self.width

    def _is_taken(self, number: Array) -> Array:
        """Which query blocks of a row step are not global."""
        rows_M1 = self._first_row(number) + self.offset + jnp.arange(self.per_row)[:, None]
        return (rows_M1 > 0) & (rows_M1 < self.blocks - 1)

    def _random(self, number: Array) -> Array | None:
        random_NMR = self.given.random_blocks_NMR
        if random_NMR is None:
            return None
        first = self._first_row(number) + self.offset
        return self._own(_slice(random_NMR, first, self.per_row, axis=1), 0)

    def _rows_read(self, rows: int) -> _Read:
        """What row steps read: both global blocks, the window, the random blocks."""
        last, random_NMR = self.blocks - 1, self.given.random_blocks_NMR
        rows_M1 = 1 + self.offset + jnp.arange(rows)[:, None]
        window_MR = rows_M1 + jnp.arange(-1, 2)[None]
        is_new_MR = (window_MR > 0) & (window_MR < last)  # a global block is not read twice
        share = math.log1p(self.reading.repeats)
        shares_MR = jnp.where(is_new_MR, 0.0, LOWEST)
        shares_MR = jnp.pad(shares_MR, ((0, 0), (_GLOBAL, 0))).at[:, 0].set(share)
        ends_MR = jnp.broadcast_to(jnp.array([[0, last]]), (rows, 2))
        blocks_MR = jnp.concatenate([ends_MR, jnp.clip(window_MR, 0, last)], axis=1)
        blocks_NMR, shares_NMR = blocks_MR[None], shares_MR[None]
        if random_NMR is not None:
            random_NMR = _slice(random_NMR, 1 + self.offset, rows, axis=1)
            blocks_NMR = jnp.broadcast_to(blocks_NMR, (len(random_NMR), *blocks_MR.shape))
            blocks_NMR = jnp.concatenate([blocks_NMR, random_NMR], axis=2)
            shares_NMR = jnp.pad(shares_NMR, ((0, 0), (0, 0), (0, random_NMR.shape[2])))
        segments_BNMS = self._segments(self.given.key_segments_BT, blocks_NMR)
        return _Read(blocks_NMR, shares_NMR, segments_BNMS)

    def _of_step(self, number: Array, x_NM: Array) -> Array:
        """A row step's part of what is there for all of them."""
        x_NM = _slice(x_NM, number * self.per_row, self.per_row, axis=x_NM.ndim - 2)
        heads = x_NM.ndim - 3
        return x_NM if x_NM.shape[heads] == 1 else self._own(x_NM, heads)

    def _bias(self, queries_MR: Array, read: _Read) -> Array | None:
        """What is added to the scores of a step."""
        bias_BNMWS = jnp.zeros(())
        if read.shares_NMR is not None:
            bias_BNMWS = jnp.repeat(read.shares_NMR, self.width, axis=2)[None, :, :, None]
        elif not self.reading.causal and read.segments_BNMS is None:
            return None
        if self.reading.causal:
            queries_MW, keys_NMS = self._places(queries_MR), self._places(read.blocks_NMR)
            is_before_NMWS = keys_NMS[:, :, None] <= queries_MW[None, :, :, None]
            bias_BNMWS = jnp.where(is_before_NMWS[None], bias_BNMWS, LOWEST)
        if (keys_BNMS := read.segments_BNMS) is not None:
            bias_BNMWS = jnp.where((keys_BNMS > 0)[:, :, :, None], bias_BNMWS, LOWEST)
            own_BNMW = self._segments(self.given.query_segments_BT, queries_MR[None])
            if own_BNMW is not None:
                is_own_BNMWS = keys_BNMS[:, :, :, None] == own_BNMW[..., None]
                bias_BNMWS = jnp.where(is_own_BNMWS, bias_BNMWS, LOWEST)
        return bias_BNMWS

    def _dropped(self, keys: Keys, kind: int, first: Array, count: int) -> Keys:
        """The keys of a step with its dropout, which is that of each block on any device."""
        if self.given.seed_2 is None:
            return keys
        numbers_K = 2 * (first + jnp.arange(count)) + kind
        seeds_K2 = numbered_seeds(self.given.seed_2, numbers_K)
        (batch, own, rows, keys_read), heads = keys.k_BNMSH.shape[:4], self.k.near.shape[3]
        if kind:  # a seed for each query block
            seeds_K2, shape = seeds_K2[:, None, None], (batch, heads, rows, self.width, keys_read)
        else:  # a seed for each block of keys
            shape = (batch, heads, _GLOBAL * self.width, count, self.width)
            seeds_K2 = seeds_K2[:, None]
        keep = self._own(hashed_factors(seeds_K2, self.reading.dropout_rate, shape), 1)
        if not kind:
            keep = keep.reshape(batch, own, 1, _GLOBAL * self.width, keys_read)
        return keys._replace(keep_BNMWS=keep)

    def _segments(self, segments_BT: Array | None, blocks_NMR: Array) -> Array | None:
        """Documents of the tokens of some blocks."""
        if segments_BT is None:
            return None
        found_BNMRW = self._in_blocks(segments_BT).at[:, blocks_NMR].get(mode="promise_in_bounds")
        return found_BNMRW.reshape(*found_BNMRW.shape[:3], -1)

    def _places(self, blocks: Array) -> Array:
        """Places of the tokens of blocks, along the last axis."""
        inside = jnp.arange(self.width).reshape(*[1] * blocks.ndim, self.width)
        places = blocks[..., None] * self.width + inside
        return places.reshape(*blocks.shape[:-1], -1)


def join_heads(parts: Sequence[Any], axis: int) -> Any:
    """What belongs to all heads, from that of each part of them.

    Args:
        parts: Pytrees of arrays, one for each of `Steps.by_heads`.
        axis: The axis of heads.

    Returns:
        One such pytree.
    """
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis), *parts) if parts[1:] else parts[0]


def _heads_first(x_BMWN: Array) -> Array:
    """The layout in which a step computes."""
    return jnp.moveaxis(x_BMWN, 3, 1)


def _tokens_first(x_BNMW: Array) -> Array:
    """That of the results."""
    return jnp.moveaxis(x_BNMW, 1, 3)


def _side_by_side(x_BNMRWH: Array) -> Array:
    """The tokens of the blocks that each query block reads in a row, (B, N, M, S, H)."""
    batch, heads, rows, _, _, features = x_BNMRWH.shape
    return x_BNMRWH.reshape(batch, heads, rows, -1, features)


def _windows(x_BNMWH: Array) -> Array:
    """Each block but the outermost between its neighbours, (B, N, M, R, W, H)."""
    rows = x_BNMWH.shape[2] - 2
    if rows == 1:
        return x_BNMWH[:, :, None]  # one slice, which XLA copies as such
    return jnp.stack([x_BNMWH[:, :, i : i + rows] for i in range(_WINDOW)], axis=3)


def _from_windows(d_BNMHRW: Array) -> Array:
    """The sums of the gradients of the blocks that `_windows` takes, (B, N, H, M, W)."""
    if d_BNMHRW.shape[2] == 1:
        return d_BNMHRW[:, :, 0]
    d_BNHMRW = d_BNMHRW.swapaxes(2, 3)
    beside = [[(i, 2 - i) if axis == 3 else (0, 0) for axis in range(5)] for i in range(_WINDOW)]
    return functools.reduce(
        jnp.add, [jnp.pad(d_BNHMRW[..., i, :], beside[i]) for i in range(_WINDOW)]
    )


def _take(x: Array, blocks_NMR: Array, heads: int) -> Array:
    """Some of all blocks, by head: from B, M, W, H and an axis of heads to (B, N, M, R, W, H)."""

    def take(x_BMWH: Array, blocks_MR: Array) -> Array:
        return x_BMWH.at[:, blocks_MR].get(mode="promise_in_bounds")

    return jax.vmap(take, in_axes=(heads, 0), out_axes=1)(x, blocks_NMR)


def _add_blocks(d_BNHMW: Array, blocks_NMR: Array, part_BNMHRW: Array) -> Array:
    """Adds to some blocks of each head, in place within a loop."""

    def add(d_BHMW: Array, blocks_MR: Array, part_BMHRW: Array) -> Array:
        part_BHMRW = part_BMHRW.swapaxes(1, 2).astype(d_BHMW.dtype)
        return d_BHMW.at[:, :, blocks_MR].add(part_BHMRW, mode="promise_in_bounds")

    return jax.vmap(add, in_axes=(1, 0, 1), out_axes=1)(d_BNHMW, blocks_NMR, part_BNMHRW)


def _add_to_source(d_NMBHW: Array, blocks_NMR: Array, part_BNMHRW: Array) -> Array:
    """The same, with all of a block in one place."""
    part_NMRBHW = part_BNMHRW.transpose(1, 2, 4, 0, 3, 5).astype(d_NMBHW.dtype)

    def add(d_MBHW: Array, blocks_MR: Array, part_MRBHW: Array) -> Array:
        return d_MBHW.at[blocks_MR].add(part_MRBHW, mode="promise_in_bounds")

    return jax.vmap(add)(d_NMBHW, blocks_NMR, part_NMRBHW)


def _add_by_product(d_NXBHW: Array, blocks_NMR: Array, part_BNMHRW: Array) -> Array:
    """The same: where there are few blocks, accelerators are faster so, and add in one order."""
    is_read_NMRX = jax.nn.one_hot(blocks_NMR, d_NXBHW.shape[1], dtype=jnp.float32)
    part_BNMHRW = part_BNMHRW.astype(jnp.float32)
    return d_NXBHW + jnp.einsum("NMRX,BNMHRW->NXBHW", is_read_NMRX, part_BNMHRW)


def _add_slice(d_BNHMW: Array, part_BNHMW: Array, start: Array) -> Array:
    """Adds to some neighbouring blocks, in place within a loop."""
    before = _slice(d_BNHMW, start, part_BNHMW.shape[3], axis=3)
    return _set_slice(d_BNHMW, before + part_BNHMW, start, axis=3)


def greatest_divisor(total: int, limit: int) -> int:
    """The greatest divisor of a number up to a limit.

    Args:
        total: The number.
        limit: Greatest divisor that is wanted; below 1 it is 1.

    Returns:
        The divisor.
    """
    return max(size for size in range(1, max(1, min(total, limit)) + 1) if total % size == 0)
