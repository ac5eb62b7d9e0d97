"""Sums over the scores of a vocabulary, a chunk of it at a time, with a backward pass of its own.

The forward pass keeps the normaliser of each place, and the scores if they are few; else the
backward pass computes those of a chunk again, which is one product with the table more than the
three of a loss on all scores.

Devices that share the vocabulary pass over their own tokens, and tell each other of sums alone.
Those that hold other columns of the table gather those of a chunk, and add up its gradient such
that each keeps its own part. The axes of chunks have the order that the table's layout is
multiplied in without being transposed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from xformer.layers.sharding import gradient_dtype, ways
from xformer.layers.table_shards import TableShards

# CPUs are fastest on scores that stay in the cache: of 512 places (and 1,024 columns of the table),
# 2,000 tokens at a time, 4 MB of scores, take 1 / 1.2 of the time of 10,667. Never fewer tokens
# than 256, lest products of many places become narrow.
_CPU_SCORES, _CPU_CHUNK = 2**20, 256
_FEW_SCORES = 2**25  # 128 MB
_LOWEST = 0.5 * jnp.finfo(jnp.float32).min  # of padding; differences are finite
_multiply = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


class Sums(NamedTuple):
    """What a loss needs to know of the scores at each place.

    Attributes:
        log_z_BT: Logarithm of the sum of their exponentials.
        chosen_BT: The score of one token.
        mean_BT: Their mean.
    """

    log_z_BT: Float[Array, "B T"]
    chosen_BT: Float[Array, "B T"]
    mean_BT: Float[Array, "B T"]


_SCORES = {"VD": "VBT", "DV": "BTV"}
"""The axes of scores, by those of the table."""


class _Form(NamedTuple):
    """What is known of a vocabulary before its numbers.

    Attributes:
        letters: The axes of the table, "VD" or "DV".
        vocab_size: Number of tokens.
        chunk: Most tokens that a device scores at once.
        shards: How table and places are split.
        gradient_dtype: Dtype that devices add up the table's gradient in.
    """

    letters: str
    vocab_size: int
    chunk: int
    shards: TableShards
    gradient_dtype: jnp.dtype

    @property
    def scores(self) -> str:
        return _SCORES[self.letters]

    def spread(self, x: Array, letters: str) -> Array:
        """An array with some of the axes of scores, such that it broadcasts with them."""
        return jnp.expand_dims(x, [i for i, axis in enumerate(self.scores) if axis not in letters])

    @property
    def specs(self) -> tuple[PartitionSpec, ...]:
        """How states, table, bias and tokens are split."""
        spec = self.shards.spec
        return spec("BTD", whole="D"), spec(self.letters), spec("V"), spec("BT")


def sums_in_chunks(
    letters: str,
    chunk: int,
    x_BTD: Float[Array, "B T D"],
    table: Float[Array, "V D"] | Float[Array, "D V"],
    bias_V: Float[Array, " V"] | None,
    ids_BT: Int[Array, "B T"],
) -> Sums:
    """Sums over the scores of hidden states, of which those of a chunk exist at any time.

    Args:
        letters: "VD" or "DV", the axes of the table.
        chunk: Most tokens that a device scores at once.
        x_BTD: Hidden states in the compute dtype.
        table: What they are compared with.
        bias_V: What is added to the scores; None for nothing.
        ids_BT: The chosen token of each place; the score of one that is none is zero.

    Returns:
        The sums in float32.
    """
    axis = letters.index("V")
    vocab_size = table.shape[axis]
    shards = TableShards.of(ids_BT.shape, "act_vocab", x_BTD.shape[-1])
    more = (0, -vocab_size % ways(shards.rows))
    table = jnp.pad(table, [more if one == axis else (0, 0) for one in range(2)])
    bias_V = None if bias_V is None else jnp.pad(bias_V, [more])
    dtype = gradient_dtype() or _product_dtype(x_BTD)
    return _sums(_Form(letters, vocab_size, chunk, shards, dtype), x_BTD, table, bias_V, ids_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(form: _Form, x_BTD: Array, table: Array, bias_V: Array | None, ids_BT: Array) -> Sums:
    add_up = functools.partial(_sums_of_shares, form, False)
    run = form.shards.run(add_up, form.specs, (form.shards.spec("BT"), None))
    return run(x_BTD, table, bias_V, ids_BT)[0]


def _forward(
    form: _Form, x_BTD: Array, table: Array, bias_V: Array | None, ids_BT: Array
) -> tuple[Sums, Any]:
    """The sums, and what the backward pass needs."""
    given = x_BTD, table, bias_V, ids_BT
    keeps = form.shards.share(ids_BT.size, table.shape[form.letters.index("V")]) <= _FEW_SCORES
    add_up = functools.partial(_sums_of_shares, form, keeps)
    kept = form.shards.spec(form.scores) if keeps else None
    sums, scores = form.shards.run(add_up, form.specs, (form.shards.spec("BT"), kept))(*given)
    return sums, (given, sums.log_z_BT, scores)


def _backward(form: _Form, saved: Any, given: Sums) -> tuple[Any, ...]:
    """The gradients of states, table and bias."""
    places, (states, table, bias, _) = form.shards.spec("BT"), form.specs
    scores = None if saved[-1] is None else form.shards.spec(form.scores)
    add_up = functools.partial(_gradients_of_shares, form)
    run = form.shards.run(add_up, (form.specs, places, scores, places), (states, table, bias))
    return *run(*saved, given), None


_sums.defvjp(_forward, _backward)


def _sums_of_shares(
    form: _Form, keeps: bool, x_BTD: Array, table: Array, bias_V: Array | None, ids_BT: Array
) -> tuple[Sums, Array | None]:
    """The sums, from what a device holds, and the scores."""
    shards, chunks = form.shards, _Chunks(form, x_BTD, table, bias_V, ids_BT)
    over_V = form.scores.index("V")

    def add(sums: tuple[Any, ...], start: Any, size: int) -> tuple[Any, ...]:
        top_BT, z_BT, chosen_BT, total_BT, kept = sums
        scores, is_chosen, is_token = chunks.scores(chunks.part(start, size), start)
        total_BT = total_BT + jnp.where(is_token, scores, 0.0).sum(over_V)
        new_top_BT = jnp.maximum(top_BT, scores.max(over_V))
        z_BT = z_BT * jnp.exp(top_BT - new_top_BT)
        z_BT = z_BT + jnp.exp(scores - jnp.expand_dims(new_top_BT, over_V)).sum(over_V)
        chosen_BT = chosen_BT + jnp.where(is_chosen, scores, 0.0).sum(over_V)
        if kept is not None:
            kept = lax.dynamic_update_slice_in_dim(kept, scores, start, over_V)
        return new_top_BT, z_BT, chosen_BT, total_BT, kept

    zero_BT = jnp.zeros(ids_BT.shape)
    shape = list(ids_BT.shape)
    shape.insert(over_V, chunks.share_size)
    kept = jnp.zeros(shape) if keeps else None
    begun = (jnp.full_like(zero_BT, -jnp.inf), zero_BT, zero_BT, zero_BT, kept)
    top_BT, z_BT, chosen_BT, total_BT, kept = _for_chunks(
        add, begun, chunks.share_size, form.chunk, ids_BT.size
    )
    all_top_BT = shards.largest_over_rows(top_BT)
    z_BT = shards.over_rows(z_BT * jnp.exp(top_BT - all_top_BT))
    sums = Sums(
        all_top_BT + jnp.log(z_BT),
        shards.over_rows(chosen_BT),
        shards.over_rows(total_BT) / form.vocab_size,
    )
    return sums, kept


def _gradients_of_shares(
    form: _Form, saved: tuple[Any, ...], log_z_BT: Array, kept: Array | None, given: Sums
) -> tuple[Any, ...]:
    """The gradients of what a device holds."""
    x_BTD, table, bias_V, ids_BT = saved
    shards, chunks = form.shards, _Chunks(form, x_BTD, table, bias_V, ids_BT)
    log_z, dlog_z, dchosen, dmean = (form.spread(x_BT, "BT") for x_BT in (log_z_BT, *given))
    dmean = dmean / form.vocab_size
    dtype = _product_dtype(x_BTD)
    states_BTD = x_BTD.astype(dtype)

    def add(gradients: tuple[Any, ...], start: Any, size: int) -> tuple[Any, ...]:
        dx_BTD, dtable, dbias_V = gradients
        part = chunks.part(start, size)
        scores, is_chosen, _ = chunks.scores(part, start, kept)
        dscores = dlog_z * jnp.exp(scores - log_z) + jnp.where(is_chosen, dchosen, 0.0) + dmean
        if dbias_V is not None:
            more_V = dscores.sum([form.scores.index(axis) for axis in "BT"])
            dbias_V = lax.dynamic_update_slice_in_dim(dbias_V, more_V, start, 0)
        dscores, part = dscores.astype(dtype), part.astype(dtype)
        dx_BTD = dx_BTD + _multiply(f"{form.scores},{form.letters}->BTD", dscores, part)
        dpart = _multiply(f"{form.scores},BTD->{form.letters}", dscores, states_BTD)
        if form.gradient_dtype != dtype:  # CPUs fail at float32 products that XLA transposes
            dpart = lax.optimization_barrier(dpart)
        dpart = shards.own_columns(dpart.astype(form.gradient_dtype), 1 - chunks.axis)
        dtable = lax.dynamic_update_slice_in_dim(dtable, dpart, start, chunks.axis)
        return dx_BTD, dtable, dbias_V

    zero = (
        jnp.zeros(x_BTD.shape),
        jnp.zeros(table.shape, form.gradient_dtype),
        None if bias_V is None else jnp.zeros(bias_V.shape),
    )
    dx_BTD, dtable, dbias_V = _for_chunks(add, zero, chunks.share_size, form.chunk, ids_BT.size)
    dtable = shards.over_other_places(dtable).astype(table.dtype)
    if dbias_V is not None:
        dbias_V = shards.over_places(dbias_V)
    return shards.over_rows(dx_BTD.astype(x_BTD.dtype)), dtable, dbias_V


def _product_dtype(x_BTD: Array) -> jnp.dtype:
    """Dtype of the products of the backward pass: float16 has not the range of gradients."""
    return x_BTD.dtype if x_BTD.dtype == jnp.bfloat16 else jnp.dtype("float32")


class _Chunks:
    """The scores of chunks of a device's share of the vocabulary."""

    def __init__(
        self, form: _Form, x_BTD: Array, table: Array, bias_V: Array | None, ids_BT: Array
    ) -> None:
        self._form, self._x_BTD, self._table, self._bias_V = form, x_BTD, table, bias_V
        self.axis = form.letters.index("V")
        self.share_size = table.shape[self.axis]
        self._first = form.shards.first_row(self.share_size)
        self._ids = form.spread(ids_BT, "BT")

    def part(self, start: Any, size: int) -> Array:
        """The table of a chunk in the compute dtype; who has some of its columns gets them all."""
        part = lax.dynamic_slice_in_dim(self._table, start, size, self.axis)
        return self._form.shards.with_all_columns(part.astype(self._x_BTD.dtype), 1 - self.axis)

    def scores(
        self, part: Array, start: Any, kept: Array | None = None
    ) -> tuple[Array, Array, Array | bool]:
        """The scores of a chunk, which are those of chosen tokens, and which of any token."""
        form, size = self._form, part.shape[self.axis]
        if kept is not None:
            scores = lax.dynamic_slice_in_dim(kept, start, size, form.scores.index("V"))
        elif form.letters == "VD":
            scores = _multiply("VD,BTD->VBT", part, self._x_BTD)
        else:
            scores = _multiply("BTD,DV->BTV", self._x_BTD, part)
        if self._bias_V is not None and kept is None:
            bias_V = lax.dynamic_slice_in_dim(self._bias_V, start, size, 0)
            scores = scores + form.spread(bias_V, "V")
        ids = form.spread(self._first + start + jnp.arange(size), "V")
        is_token: Array | bool = True
        if self.share_size * ways(form.shards.rows) > form.vocab_size:
            is_token = ids < form.vocab_size
            scores = jnp.where(is_token, scores, _LOWEST)
        return scores, ids == self._ids, is_token


def _for_chunks(add: Callable[..., Any], begun: Any, size: int, most: int, places: int) -> Any:
    """Adds up chunks of at most so many tokens, and no larger than is fast for so many places."""

    def run(chunk: int, begun: Any) -> Any:
        # The loop is last: XLA would copy a gradient to write into it and give it another shape.
        count, rest = divmod(size, chunk)
        sums = add(begun, count * chunk, rest) if rest else begun
        return lax.fori_loop(0, count, lambda i, sums: add(sums, i * chunk, chunk), sums)

    fast = min(most, max(_CPU_CHUNK, _CPU_SCORES // places))
    if fast == most:
        return run(most, begun)
    return lax.platform_dependent(
        begun, cpu=functools.partial(run, fast), default=functools.partial(run, most)
    )
