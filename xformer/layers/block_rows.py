"""The linear computation of block-sparse attention, with a backward pass of its own.

The two global query blocks read all keys, a few blocks a step; the other query blocks are taken a
few a step, each with the 5 + R blocks that it reads, which the step lays out by head. The gradients
of keys and values are added up in place, so nothing that lives longer than a step is larger than
the inputs.

Where the tokens of a row are split over devices, each takes the steps of its own blocks, with what
`xformer.layers.block_shards` brings from the others; the global query blocks read on every device,
and their softmax is joined.

Within a step M counts its query blocks, R the blocks that each of them reads and S their tokens.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from xformer.layers.block_shards import Shards
from xformer.layers.block_softmax import LOWEST, Keys, Queries, Softmax, gradients
from xformer.layers.dropout import hashed_factors, numbered_seeds

# Scores of one step, over batch and heads. On CPU cores steps that stay in the cache are fastest:
# at 12 heads of width 64 and blocks of 64, one query block a step beat two, seven and all at once,
# and fewer heads were no faster.
_SCORES_PER_STEP = 2**18

_slice = functools.partial(lax.dynamic_slice_in_dim, allow_negative_indices=False)
_set_slice = functools.partial(lax.dynamic_update_slice_in_dim, allow_negative_indices=False)


@dataclass(frozen=True)
class Reading:
    """The static part of who reads whom.

    Attributes:
        block_size: Tokens per block, W.
        repeats: How many more times query blocks read block 0.
        causal: Whether a query reads only keys at its own place or before it.
        dropout_rate: Probability of dropping a probability, where there is a seed.
        reach: The random blocks are among the first this many; None: anywhere.
        axes: Mesh axes that the tokens are split over, of the mesh in force.
    """

    block_size: int
    repeats: int
    causal: bool
    dropout_rate: float
    reach: int | None = None
    axes: tuple[str, ...] = ()


@struct.dataclass
class Given:
    """The arrays that say who reads whom, whole on every device that splits the tokens.

    Attributes:
        random_blocks_NMR: Random blocks of each head and query block, or None.
        query_segments_BT: Document of each query; None reads the keys of all documents.
        key_segments_BT: Document of each key, 0 for padding; None reads every key.
        seed_2: Random words of the dropout; None drops nothing.
    """

    random_blocks_NMR: Int[Array, "N M R"] | None = None
    query_segments_BT: Int[Array, "B T"] | None = None
    key_segments_BT: Int[Array, "B T"] | None = None
    seed_2: UInt32[Array, "two"] | None = None


@functools.partial(jax.jit, static_argnums=(0,))  # layers of one shape are traced once
def attend_in_blocks(
    reading: Reading,
    q_BTNH: Float[Array, "B T N H"],
    k_BTNH: Float[Array, "B T N H"],
    v_BTNH: Float[Array, "B T N H"],
    given: Given,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "B T N H"]:
    """Block-sparse attention in time and memory linear in the length.

    Scores and softmax are float32. The context of a query that may read nothing has no meaning;
    where its gradient is zero nothing flows back from it.

    Args:
        reading: Who reads whom, the static part.
        q_BTNH: Queries, already scaled; T is a multiple of the block size, times the number of
            devices that the tokens are split over.
        k_BTNH: Keys.
        v_BTNH: Values.
        given: Who reads whom, the arrays.
        key: Random key of the dropout; None means evaluation.

    Returns:
        The contexts in the values' dtype.
    """
    if key is not None and reading.dropout_rate:
        given = dataclasses.replace(given, seed_2=jax.random.key_data(key)[:2])
    attend = functools.partial(_attend, reading)
    if reading.axes:
        tokens = PartitionSpec(None, reading.axes)
        attend = jax.shard_map(
            attend,
            in_specs=(tokens, tokens, tokens, PartitionSpec()),
            out_specs=tokens,
            axis_names=set(reading.axes),
            check_vma=False,
        )
    return attend(q_BTNH, k_BTNH, v_BTNH, given)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    reading: Reading, q_BTNH: Array, k_BTNH: Array, v_BTNH: Array, given: Given
) -> Float[Array, "B T N H"]:
    return _forward(reading, q_BTNH, k_BTNH, v_BTNH, given)[0]


def _forward(
    reading: Reading, q_BTNH: Array, k_BTNH: Array, v_BTNH: Array, given: Given
) -> tuple[Array, Any]:
    """The contexts, and what the backward pass needs."""
    steps = _Steps(reading, given, k_BTNH, v_BTNH)
    ends_BNMWH = steps.ends(q_BTNH)

    def read_all(state: Softmax, number: Array) -> tuple[Softmax, None]:
        return state.join(Softmax.of(ends_BNMWH, steps.all_keys(number))), None

    def read_rows(found: Any, number: Array) -> tuple[Any, None]:
        q_BNMWH = steps.rows(q_BTNH, number)
        result = Softmax.of(q_BNMWH, steps.row_keys(number)).finish()
        return jax.tree.map(functools.partial(steps.set_rows, number), found, result), None

    state, _ = lax.scan(read_all, Softmax.empty(ends_BNMWH), steps.all_steps)
    ends = steps.shards.joined(state).finish()
    ends = ends._replace(context_BNMWH=ends.context_BNMWH.astype(v_BTNH.dtype))
    found = jax.tree.map(steps.from_ends, ends)
    (top_BTN, total_BTN, out_BTNH), _ = lax.scan(read_rows, found, steps.row_steps)
    return out_BTNH, (q_BTNH, k_BTNH, v_BTNH, given, out_BTNH, top_BTN + jnp.log(total_BTN))


def _backward(reading: Reading, saved: Any, dout_BTNH: Array) -> tuple[Array, Array, Array, None]:
    """The gradients of queries, keys and values."""
    q_BTNH, k_BTNH, v_BTNH, given, out_BTNH, sums_BTN = saved
    steps = _Steps(reading, given, k_BTNH, v_BTNH)
    # A product of matrices, since XLA's CPU compiler makes slow sums of products of numbers.
    exact = (x.astype(jnp.float32) for x in (out_BTNH, dout_BTNH))
    means_BTN = jnp.einsum("BTNH,BTNH->BTN", *exact, precision=lax.Precision.HIGHEST)
    queries = Queries(q_BTNH, dout_BTNH, sums_BTN, means_BTN)
    ends = Queries(*(steps.ends(x) for x in queries))

    def read_all(carry: Any, number: Array) -> tuple[Any, None]:
        dends_BNMWH, dkv = carry
        more_BNMWH, *more = gradients(ends, steps.all_keys(number))
        dkv = steps.add_all_keys(number, dkv, jnp.stack(more))
        return (dends_BNMWH + more_BNMWH, dkv), None

    def read_rows(carry: Any, number: Array) -> tuple[Any, None]:
        dq_BTNH, dkv = carry
        rows = steps.without_ends(Queries(*(steps.rows(x, number) for x in queries)), number)
        dq_BNMWH, *more = gradients(rows, steps.row_keys(number))
        dq_BTNH = steps.set_rows(number, dq_BTNH, dq_BNMWH)
        return (dq_BTNH, steps.add_row_keys(number, dkv, jnp.stack(more))), None

    zeros = jnp.zeros(ends.q_BNMWH.shape), steps.no_gradient()
    (dends_BNMWH, dkv), _ = lax.scan(read_all, zeros, steps.all_steps)
    dq_BTNH = steps.from_ends(steps.shards.total(dends_BNMWH).astype(q_BTNH.dtype))
    (dq_BTNH, dkv), _ = lax.scan(read_rows, (dq_BTNH, dkv), steps.row_steps)
    dk_BTNH, dv_BTNH = steps.by_token(dkv).astype(k_BTNH.dtype)
    return dq_BTNH, dk_BTNH, dv_BTNH, None


_attend.defvjp(_forward, _backward)


class _Blocks(NamedTuple):
    """Keys or values where the steps read them, or the gradients of both where they are added.

    The global blocks are apart: every row step adds to their gradients, and XLA would copy the
    whole array to update it in several places.

    Attributes:
        near: The blocks of this device, between two of its neighbours if it has any:
            (B, M, W, N, H), or as the products have it (2, B, N, H, M, W).
        ends: The two global blocks: (B, N, M, W, H) or (2, B, N, H, M, W).
        source: Those that the random blocks are among: (B, N, M, W, H) or (2, N, M, B, H, W);
            None without random blocks.
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


class _Steps:
    """What each step reads, and where its results go.

    "All" steps take the two global query blocks, as one row of 2 * W queries, through all keys of
    this device; "row" steps take the query blocks of this device in order, each with the keys that
    it reads. (A device with a whole row leaves the global blocks out of those; one with a part of
    it goes through all that it has, and lets nothing come of the global ones.)

    A block has a place in `_Blocks.near` and a number in the row, which is `offset` more.
    """

    def __init__(self, reading: Reading, given: Given, k_BTNH: Array, v_BTNH: Array) -> None:
        self.reading, self.given, self.width = reading, given, reading.block_size
        self.shards = Shards(reading.axes)
        self.held = held = k_BTNH.shape[1] // self.width
        self.blocks, self.halo = held * self.shards.count, self.shards.halo
        self.offset = self.shards.index * held - self.halo
        self.k, self.v = (self._blocks(self._in_blocks(x)) for x in (k_BTNH, v_BTNH))
        # Once for all steps: within one XLA works everything out again for every score.
        self.read = self._rows_read(rows := held + 2 * self.halo - 2)
        batch, heads, *_ = self.k.ends.shape
        row_scores = batch * heads * self.width**2
        self.per_all = _divisor(held, _SCORES_PER_STEP // row_scores)
        row_scores *= self.read.blocks_NMR.shape[2]
        self.per_row = _divisor(rows, _SCORES_PER_STEP // row_scores)
        self.all_steps = jnp.arange(held // self.per_all)
        self.row_steps = jnp.arange(rows // self.per_row)

    def _blocks(self, x_BMWNH: Array) -> _Blocks:
        source = None
        if self.given.random_blocks_NMR is not None:
            reach = min(self.reading.reach or self.blocks, self.blocks)
            source = _heads_first(self.shards.prefix(x_BMWNH, reach, 1))
        ends = _heads_first(self.shards.ends(x_BMWNH, 1))
        return _Blocks(self.shards.beside(x_BMWNH, 1), ends, source)

    def no_gradient(self) -> _Blocks:
        """Gradients of keys and values before the first step."""
        batch, blocks, width, heads, features = self.k.near.shape
        near, ends = (jnp.zeros((2, batch, heads, features, count, width)) for count in (blocks, 2))
        source = None
        if self.k.source is not None:
            count = self.k.source.shape[2]
            source = jnp.zeros((2, heads, count, batch, features, width))
        return _Blocks(near, ends, source)

    def by_token(self, d: _Blocks) -> Array:
        """The sums of the gradients, in the layout of tokens."""
        d_2BNHMW = self.shards.from_ends(self.shards.from_beside(d.near, 4), d.ends, 4)
        if d.source is not None:
            source_2BNHMW = d.source.transpose(0, 3, 1, 4, 2, 5)
            d_2BNHMW = self.shards.from_prefix(d_2BNHMW, source_2BNHMW, 4)
        d_2BNHT = d_2BNHMW.reshape(*d_2BNHMW.shape[:4], -1)
        return d_2BNHT.transpose(0, 1, 4, 2, 3)

    def ends(self, x_BTN: Array) -> Array:
        """The global query blocks' part of what belongs to queries."""
        ends_BMWN = self.shards.ends(self._in_blocks(x_BTN), 1)
        return _heads_first(ends_BMWN.reshape(len(x_BTN), 1, 2 * self.width, *x_BTN.shape[2:]))

    def from_ends(self, ends_BNMW: Array) -> Array:
        """What belongs to queries, of which only this part is known."""
        batch, _, _, *rest = (ends_BMWN := _tokens_first(ends_BNMW)).shape
        ends_BRWN = ends_BMWN.reshape(batch, 2, self.width, *rest)
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

        def take(x: _Blocks) -> Array:
            near = _heads_first(_slice(x.near, start, self.per_all, axis=1))
            return _side_by_side(near[:, :, None])

        blocks_NMR = (first + jnp.arange(self.per_all))[None, None]
        read = _Read(blocks_NMR, None, self._segments(self.given.key_segments_BT, blocks_NMR))
        bias = self._bias(jnp.array([[0, self.blocks - 1]]), read)
        return self._dropped(Keys(take(self.k), take(self.v), bias), 0, first, self.per_all)

    def add_all_keys(self, number: Array, d: _Blocks, part_2BNMHS: Array) -> _Blocks:
        """Adds an all step's part of the gradients of keys and values."""
        part_2BNHRW = self._apart(part_2BNMHS)[:, :, :, 0]
        return d._replace(near=_add_slice(d.near, part_2BNHRW, self._first_of_all(number)))

    def rows(self, x_BTN: Array, number: Array) -> Array:
        """A row step's part of what belongs to queries."""
        part = _slice(x_BTN, self._first_token(number), self.per_row * self.width, axis=1)
        return _heads_first(self._in_blocks(part))

    def set_rows(self, number: Array, x_BTN: Array, part_BNMW: Array) -> Array:
        """Puts their part in its place."""
        part_BNMW = part_BNMW.astype(x_BTN.dtype)
        if self.halo:
            is_taken_M1 = self._is_taken(number)
            is_taken = is_taken_M1.reshape(*is_taken_M1.shape, *[1] * (x_BTN.ndim - 3))
            part_BNMW = jnp.where(is_taken, part_BNMW, self.rows(x_BTN, number))
        part = _tokens_first(part_BNMW).reshape(x_BTN.shape[0], -1, *x_BTN.shape[2:])
        return _set_slice(x_BTN, part, self._first_token(number), axis=1)

    def row_keys(self, number: Array) -> Keys:
        """What a row step reads."""
        first, random_NMR = self._first_row(number), self._random(number)

        def take(x: _Blocks) -> Array:
            near = _heads_first(_slice(x.near, first - 1, self.per_row + 2, axis=1))
            ends = x.ends[:, :, None]
            ends = jnp.broadcast_to(ends, (*ends.shape[:2], self.per_row, *ends.shape[3:]))
            parts = [ends, _windows(near)]
            if random_NMR is not None and x.source is not None:
                parts.append(self._take_random(x.near, x.source, random_NMR))
            return _side_by_side(jnp.concatenate(parts, axis=3))

        rows_M1 = first + self.offset + jnp.arange(self.per_row)[:, None]
        read = jax.tree.map(functools.partial(self._of_step, number), self.read)
        keys = Keys(take(self.k), take(self.v), self._bias(rows_M1, read))
        return self._dropped(keys, 1, first + self.offset, self.per_row)

    def add_row_keys(self, number: Array, d: _Blocks, part_2BNMHS: Array) -> _Blocks:
        """Adds a row step's part of the gradients of keys and values."""
        part_2BNMHRW = self._apart(part_2BNMHS)
        ends = d.ends + part_2BNMHRW[:, :, :, :, :, :2].sum(3)
        part_2BNHMRW = part_2BNMHRW.swapaxes(3, 4)
        near = jnp.zeros_like(d.near[..., : self.per_row + 2, :])
        for i in range(3):
            beside = [(i, 2 - i) if axis == 4 else (0, 0) for axis in range(near.ndim)]
            near += jnp.pad(part_2BNHMRW[..., 2 + i, :], beside)
        near = _add_slice(d.near, near, self._first_row(number) - 1)
        random_NMR, source = self._random(number), d.source
        if random_NMR is not None and source is not None:
            source = self._add_random(source, random_NMR, part_2BNMHRW[..., 5:, :])
        return _Blocks(near, ends, source)

    def _take_random(self, near_BMWNH: Array, source_BNMWH: Array, random_NMR: Array) -> Array:
        """The random blocks; a CPU that has the row needs no copy of it by head to read some."""

        def by_head(near_BMWNH: Array, source_BNMWH: Array, blocks_NMR: Array) -> Array:
            return _take(source_BNMWH, blocks_NMR, heads=1)

        def by_token(near_BMWNH: Array, source_BNMWH: Array, blocks_NMR: Array) -> Array:
            return _take(near_BMWNH, blocks_NMR, heads=3)

        arrays, cpu = (near_BMWNH, source_BNMWH, random_NMR), by_head if self.halo else by_token
        return lax.platform_dependent(*arrays, cpu=cpu, default=by_head)

    def _add_random(self, d_2NMBHW: Array, random_NMR: Array, part_2BNMHRW: Array) -> Array:
        """Adds to the blocks that random ones lie among."""
        arrays = d_2NMBHW, random_NMR, part_2BNMHRW
        if self.reading.reach is None:
            return _add_blocks(*arrays)
        return lax.platform_dependent(*arrays, cpu=_add_blocks, default=_add_by_product)

    def _apart(self, x_2BNMHS: Array) -> Array:
        """The blocks that each query block reads, each by itself again, (2, B, N, M, H, R, W)."""
        return x_2BNMHS.reshape(*x_2BNMHS.shape[:5], -1, self.width)

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
        return _slice(random_NMR, self._first_row(number) + self.offset, self.per_row, axis=1)

    def _rows_read(self, rows: int) -> _Read:
        """What row steps read: both global blocks, the window, the random blocks."""
        last, random_NMR = self.blocks - 1, self.given.random_blocks_NMR
        rows_M1 = 1 + self.offset + jnp.arange(rows)[:, None]
        window_MR = rows_M1 + jnp.arange(-1, 2)[None]
        is_new_MR = (window_MR > 0) & (window_MR < last)  # a global block is not read twice
        share = math.log1p(self.reading.repeats)
        shares_MR = jnp.where(is_new_MR, 0.0, LOWEST)
        shares_MR = jnp.pad(shares_MR, ((0, 0), (2, 0))).at[:, 0].set(share)
        ends_MR = jnp.broadcast_to(jnp.array([[0, last]]), (rows, 2))
        blocks_MR = jnp.concatenate([ends_MR, jnp.clip(window_MR, 0, last)], axis=1)
        blocks_NMR, shares_NMR = blocks_MR[None], shares_MR[None]
        if random_NMR is not None:
            random_NMR = _slice(random_NMR, 1 + self.offset, rows, axis=1)
            blocks_NMR = jnp.broadcast_to(blocks_NMR, (len(random_NMR), rows, 5))
            blocks_NMR = jnp.concatenate([blocks_NMR, random_NMR], axis=2)
            shares_NMR = jnp.pad(shares_NMR, ((0, 0), (0, 0), (0, random_NMR.shape[2])))
        segments_BNMS = self._segments(self.given.key_segments_BT, blocks_NMR)
        return _Read(blocks_NMR, shares_NMR, segments_BNMS)

    def _of_step(self, number: Array, x_NM: Array) -> Array:
        """A row step's part of what is there for all of them."""
        return _slice(x_NM, number * self.per_row, self.per_row, axis=x_NM.ndim - 2)

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
        batch, heads, rows, keys_read = keys.k_BNMSH.shape[:4]
        if kind:  # a seed for each query block
            seeds_K2, shape = seeds_K2[:, None, None], (batch, heads, rows, self.width, keys_read)
        else:  # a seed for each block of keys
            shape = (batch, heads, 2 * self.width, count, self.width)
            seeds_K2 = seeds_K2[:, None]
        keep = hashed_factors(seeds_K2, self.reading.dropout_rate, shape)
        if not kind:
            keep = keep.reshape(batch, heads, 1, 2 * self.width, keys_read)
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
    return jnp.stack([x_BNMWH[:, :, i : i + rows] for i in range(3)], axis=3)


def _take(x: Array, blocks_NMR: Array, heads: int) -> Array:
    """Some of all blocks, by head: from B, M, W, H and an axis of heads to (B, N, M, R, W, H)."""

    def take(x_BMWH: Array, blocks_MR: Array) -> Array:
        return x_BMWH.at[:, blocks_MR].get(mode="promise_in_bounds")

    return jax.vmap(take, in_axes=(heads, 0), out_axes=1)(x, blocks_NMR)


def _add_blocks(d_2NMBHW: Array, blocks_NMR: Array, part_2BNMHRW: Array) -> Array:
    """Adds to some blocks of each head, all of which there are, in place within a loop."""
    part_2NMRBHW = part_2BNMHRW.transpose(0, 2, 3, 5, 1, 4, 6).astype(d_2NMBHW.dtype)

    def add(d_MBHW: Array, blocks_MR: Array, part_MRBHW: Array) -> Array:
        return d_MBHW.at[blocks_MR].add(part_MRBHW, mode="promise_in_bounds")

    return jax.vmap(jax.vmap(add), in_axes=(0, None, 0))(d_2NMBHW, blocks_NMR, part_2NMRBHW)


def _add_by_product(d_2NXBHW: Array, blocks_NMR: Array, part_2BNMHRW: Array) -> Array:
    """The same: where there are few blocks, accelerators are faster so, and add in one order."""
    is_read_NMRX = jax.nn.one_hot(blocks_NMR, d_2NXBHW.shape[2], dtype=jnp.float32)
    product = functools.partial(jnp.einsum, "NMRX,BNMHRW->NXBHW", is_read_NMRX)
    return d_2NXBHW + jax.vmap(product)(part_2BNMHRW.astype(jnp.float32))


def _add_slice(d_2BNHMW: Array, part_2BNHMW: Array, start: Array) -> Array:
    """Adds to some neighbouring blocks, in place within a loop."""
    before = _slice(d_2BNHMW, start, part_2BNHMW.shape[4], axis=4)
    return _set_slice(d_2BNHMW, before + part_2BNHMW, start, axis=4)


def _divisor(total: int, limit: int) -> int:
    """The greatest divisor of `total` up to `limit`, and at least 1."""
    return max(size for size in range(1, max(1, min(total, limit)) + 1) if total % size == 0)
