"""Sums over the scores of a vocabulary, a chunk of it at a time, with a backward pass of its own.

The forward pass keeps the normaliser of each place, and the scores if they are few, which are then
one chunk; else the backward pass computes those of a chunk again, which is one product with the
table more than the three of a loss on all scores.

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

# Scores that stay in a CPU's cache, 4 MB: of 512 places (and 1,024 columns of the table), 1,024 to
# 8,192 tokens at a time take as long, and 16,384 a twentieth longer. Never fewer than 256, lest
# products of many places become narrow.
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


_SCORES = {"VD": "VN", "DV": "NV"}
"""The axes of scores, by those of the table; N = B x T, as XLA would transpose three axes."""


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

    def spread(self, x: Array, axis: str) -> Array:
        """Numbers of an axis of scores, such that they broadcast with these."""
        return jnp.expand_dims(x, 1 - self.scores.index(axis))

    def chunk_of(self, share_size: int, places: int) -> int:
        """How many tokens a device scores at once; all where these are few scores.

        Args:
            share_size: Number of its tokens.
            places: Number of its places.

        Returns:
            The most tokens: `chunk` where columns of the table are gathered for them.
        """
        few = share_size * places <= _FEW_SCORES and not self.shards.columns
        return share_size if few else self.chunk

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
    """Sums over the scores of hidden states, of which few exist at any time, or those of a chunk.

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
        top_N, z_N, chosen_N, total_N, kept = sums
        scores, is_chosen, is_token = chunks.scores(chunks.part(start, size), start)
        total_N = total_N + jnp.where(is_token, scores, 0.0).sum(over_V)
        new_top_N = jnp.maximum(top_N, scores.max(over_V))
        z_N = z_N * jnp.exp(top_N - new_top_N)
        z_N = z_N + jnp.exp(scores - form.spread(new_top_N, "N")).sum(over_V)
        chosen_N = chosen_N + jnp.where(is_chosen, scores, 0.0).sum(over_V)
        if kept is not None:
            kept = lax.dynamic_update_slice_in_dim(kept, scores, start, over_V)
        return new_top_N, z_N, chosen_N, total_N, kept

    zero_N = jnp.zeros(ids_BT.size)
    shape = (chunks.share_size, ids_BT.size)
    kept = jnp.zeros(shape if form.scores == "VN" else shape[::-1]) if keeps else None
    begun = (jnp.full_like(zero_N, -jnp.inf), zero_N, zero_N, zero_N, kept)
    top_N, z_N, chosen_N, total_N, kept = chunks.run(add, begun)
    all_top_N = shards.largest_over_rows(top_N)
    z_N = shards.over_rows(z_N * jnp.exp(top_N - all_top_N))
    sums = Sums(
        all_top_N + jnp.log(z_N),
        shards.over_rows(chosen_N),
        shards.over_rows(total_N) / form.vocab_size,
    )
    return jax.tree.map(lambda x_N: x_N.reshape(ids_BT.shape), sums), kept


def _gradients_of_shares(
    form: _Form, saved: tuple[Any, ...], log_z_BT: Array, kept: Array | None, given: Sums
) -> tuple[Any, ...]:
    """The gradients of what a device holds."""
    x_BTD, table, bias_V, ids_BT = saved
    shards, chunks = form.shards, _Chunks(form, x_BTD, table, bias_V, ids_BT)
    log_z, dlog_z, dchosen, dmean = (
        form.spread(x_BT.reshape(-1), "N") for x_BT in (log_z_BT, *given)
    )
    dmean = dmean / form.vocab_size
    dtype = _product_dtype(x_BTD)
    states_ND = chunks.x_ND.astype(dtype)

    def add(gradients: tuple[Any, ...], start: Any, size: int) -> tuple[Any, ...]:
        dx_ND, dtable, dbias_V = gradients
        part = chunks.part(start, size)
        scores, is_chosen, _ = chunks.scores(part, start, kept)
        dscores = dlog_z * jnp.exp(scores - log_z) + jnp.where(is_chosen, dchosen, 0.0) + dmean
        if dbias_V is not None:
            more_V = dscores.sum(form.scores.index("N"))
            dbias_V = lax.dynamic_update_slice_in_dim(dbias_V, more_V, start, 0)
        dscores, part = dscores.astype(dtype), part.astype(dtype)
        dx_ND = dx_ND + _multiply(f"{form.scores},{form.letters}->ND", dscores, part)
        dpart = _multiply(f"{form.scores},ND->{form.letters}", dscores, states_ND)
        if form.gradient_dtype != dtype:  # CPUs fail at float32 products that XLA transposes
            dpart = lax.optimization_barrier(dpart)
        dpart = shards.own_columns(dpart.astype(form.gradient_dtype), 1 - chunks.axis)
        dtable = lax.dynamic_update_slice_in_dim(dtable, dpart, start, chunks.axis)
        return dx_ND, dtable, dbias_V

    zero = (
        jnp.zeros(states_ND.shape),
        jnp.zeros(table.shape, form.gradient_dtype),
        None if bias_V is None else jnp.zeros(bias_V.shape),
    )
    dx_ND, dtable, dbias_V = chunks.run(add, zero)
    dtable = shards.over_other_places(dtable).astype(table.dtype)
    if dbias_V is not None:
        dbias_V = shards.over_places(dbias_V)
    dx_BTD = dx_ND.astype(x_BTD.dtype).reshape(x_BTD.shape)
    return shards.over_rows(dx_BTD), dtable, dbias_V


def _product_dtype(x_BTD: Array) -> jnp.dtype:
    """Dtype of the products of the backward pass: float16 has not the range of gradients."""
    return x_BTD.dtype if x_BTD.dtype == jnp.bfloat16 else jnp.dtype("float32")


class _Chunks:
    """The scores of chunks of a device's share of the vocabulary."""

    def __init__(
        self, form: _Form, x_BTD: Array, table: Array, bias_V: Array | None, ids_BT: Array
    ) -> None:
        self._form, self._table, self._bias_V = form, table, bias_V
        self.x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        self.axis = form.letters.index("V")
        self.share_size = table.shape[self.axis]
        self._first = form.shards.first_row(self.share_size)
        self._ids = form.spread(ids_BT.reshape(-1), "N")

    def part(self, start: Any, size: int) -> Array:
        """The table of a chunk in the compute dtype; who has some of its columns gets them all."""
        part = lax.dynamic_slice_in_dim(self._table, start, size, self.axis)
        return self._form.shards.with_all_columns(part.astype(self.x_ND.dtype), 1 - self.axis)

    def scores(
        self, part: Array, start: Any, kept: Array | None = None
    ) -> tuple[Array, Array, Array | bool]:
        """The scores of a chunk, which are those of chosen tokens, and which of any token."""
        form, size = self._form, part.shape[self.axis]
        if kept is not None:
            scores = lax.dynamic_slice_in_dim(kept, start, size, form.scores.index("V"))
        elif form.letters == "VD":
            scores = _multiply("VD,ND->VN", part, self.x_ND)
        else:
            scores = _multiply("ND,DV->NV", self.x_ND, part)
        if self._bias_V is not None and kept is None:
            bias_V = lax.dynamic_slice_in_dim(self._bias_V, start, size, 0)
            scores = scores + form.spread(bias_V, "V")
        ids = form.spread(self._first + start + jnp.arange(size), "V")
        is_token: Array | bool = True
        if self.share_size * ways(form.shards.rows) > form.vocab_size:
            is_token = ids < form.vocab_size
            scores = jnp.where(is_token, scores, _LOWEST)
        return scores, ids == self._ids, is_token

    def run(self, add: Callable[..., Any], begun: Any) -> Any:
        """Adds up chunks, all alike but one of what is left, and no larger than is fast."""

        def by(chunk: int, begun: Any) -> Any:
            # The loop is last: XLA would copy a gradient to write into it, and turn its axes.
            count, rest = divmod(self.share_size, chunk)
            sums = add(begun, count * chunk, rest) if rest else begun
            if count == 1:
                return add(sums, 0, chunk)
            return lax.fori_loop(0, count, lambda i, sums: add(sums, i * chunk, chunk), sums)

        places = len(self.x_ND)
        most = self._form.chunk_of(self.share_size, places)
        fast = max(_CPU_CHUNK, _CPU_SCORES // places)
        if most == self.share_size or most <= fast:
            return by(most, begun)
        return lax.platform_dependent(
            begun, cpu=functools.partial(by, fast), default=functools.partial(by, most)
        )
