"""Dense attention for TPUs: what the kernels compute from what they hold."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from xformer.layers.kernels.dense_tiles import Shape, Softmax, tile_of, words_of
from xformer.layers.kernels.tiles import (
    Tile,
    Tokens,
    as_column,
    as_row,
    product,
    score_gradients,
)

ROWS = 8  # of a register


class Held(NamedTuple):
    """Arrays of the tokens of one side, or what a kernel holds of them.

    Attributes:
        x: Queries or keys, (B, N, T, H).
        y: Gradients of the contexts, or values; None in the forward pass.
        segments: Document of each, (B, M, 1, W); None without.
        sums: Of queries in the backward pass: logarithms of the denominators, (B, N, M, 1, W).
        means: As those: means of the gradients of scores.
    """

    x: Any
    y: Any = None
    segments: Any = None
    sums: Any = None
    means: Any = None


class Step(NamedTuple):
    """Where a kernel is.

    Attributes:
        own: Number of the own tile.
        listed: Number of the listed one.
        is_first: Whether it is the first that the own tile could meet.
        is_met: Whether any token of it is read.
        is_last: Whether it is the last that the own tile could meet.
        place: Number of the row and head.
    """

    own: Any
    listed: Any
    is_first: Any
    is_met: Any
    is_last: Any
    place: Any

    @classmethod
    def now(cls, shape: Shape, of_keys: bool) -> "Step":
        """That of the running program."""
        head, row, own, listed = (pl.program_id(axis) for axis in range(4))
        first, end = shape.listed(of_keys, own)
        is_met = (listed >= first) & (listed < end)
        is_last = listed == pl.num_programs(3) - 1
        return cls(own, listed, listed == 0, is_met, is_last, row * shape.heads + head)


def read(shape: Shape, given: Any, out: Any, sums: Any, scratch: Any) -> None:
    """One tile of keys for a tile of queries."""
    step = Step.now(shape, False)
    held = tuple(scratch[name] for name in ("top", "total", "context"))

    @pl.when(step.is_first)
    def _() -> None:
        for ref, x in zip(held, Softmax.empty(shape.queries.width, shape.features), strict=True):
            ref[...] = x
        _turn(given["own"], scratch)

    @pl.when(step.is_met)
    def _() -> None:
        own, listed = given["own"], given["listed"]
        tile = _tile(shape, False, step, given, scratch)
        softmax = Softmax(*(ref[...] for ref in held))
        softmax = softmax.over(own.x[...], listed.x[...], listed.y[...], tile)
        for ref, x in zip(held, softmax, strict=True):
            ref[...] = x

    @pl.when(step.is_last)
    def _() -> None:
        context_WH, sums_W1 = Softmax(*(ref[...] for ref in held)).results()
        out[...] = context_WH.astype(out.dtype)
        sums[...] = as_row(sums_W1)


def queries_back(shape: Shape, given: Any, dq: Any, *rest: Any) -> None:
    """What one tile of keys adds to the gradients of a tile of queries and of biases."""
    *of_biases, scratch = rest
    step = Step.now(shape, False)

    @pl.when(step.is_first)
    def _() -> None:
        scratch["dx"][...] = jnp.zeros(scratch["dx"].shape)
        _turn(given["own"], scratch)

    for sums in of_biases:

        @pl.when(step.is_first & (step.own == 0) & (pl.program_id(1) == 0))
        def _(sums: Any = sums) -> None:
            sums[...] = jnp.zeros(sums.shape)

    @pl.when(step.is_met)
    def _() -> None:
        own, listed = given["own"], given["listed"]
        tile = _tile(shape, False, step, given, scratch)
        stats = scratch["sums"][...], scratch["means"][...]
        sides = (own.x[...], own.y[...]), (listed.x[...], listed.y[...])
        _, dscores_WS = score_gradients(*sides, stats, tile)
        k_SH = listed.x[...]
        scratch["dx"][...] += product(dscores_WS.astype(k_SH.dtype), k_SH, 0)
        for sums in of_biases:
            sums_8K = _diagonal_sums(dscores_WS)
            width = shape.keys.width
            part = step.listed - step.own + shape.queries.tiles - 1
            sums[part] += sums_8K[:, :width]
            sums[part + 1] += sums_8K[:, width:]

    @pl.when(step.is_last)
    def _() -> None:
        dq[...] = scratch["dx"][...].astype(dq.dtype)


def keys_back(shape: Shape, given: Any, dk: Any, dv: Any, scratch: Any) -> None:
    """What one tile of queries adds to the gradients of a tile of keys and values."""
    step = Step.now(shape, True)

    @pl.when(step.is_first)
    def _() -> None:
        for name in ("dx", "dy"):
            scratch[name][...] = jnp.zeros(scratch[name].shape)
        _turn(given["own"], scratch)

    @pl.when(step.is_met)
    def _() -> None:
        own, listed = given["own"], given["listed"]
        tile = _tile(shape, True, step, given, scratch)
        stats = listed.sums[...], listed.means[...]
        sides = (own.x[...], own.y[...]), (listed.x[...], listed.y[...])
        dropped_WS, dscores_WS = score_gradients(*sides, stats, tile)
        q_SH, dout_SH = sides[1]
        scratch["dx"][...] += product(dscores_WS.astype(q_SH.dtype), q_SH, 0)
        scratch["dy"][...] += product(dropped_WS.astype(dout_SH.dtype), dout_SH, 0)

    @pl.when(step.is_last)
    def _() -> None:
        for ref, name in ((dk, "dx"), (dv, "dy")):
            ref[...] = scratch[name][...].astype(ref.dtype)


def _turn(own: Held, scratch: Any) -> None:
    """Keeps rows of numbers of own tokens as the columns that their tiles need."""
    for name in ("segments", "sums", "means"):
        if name in scratch:
            scratch[name][...] = as_column(getattr(own, name)[...])


def _tile(shape: Shape, of_keys: bool, step: Step, given: Any, scratch: Any) -> Tile:
    """What happens to the scores of own tokens with listed ones."""
    own, listed = shape.sides(of_keys)
    own_W1 = lax.broadcasted_iota(jnp.int32, (own.width, 1), 0) + step.own * own.width
    listed_1S = lax.broadcasted_iota(jnp.int32, (1, listed.width), 1) + step.listed * listed.width
    own_segments = scratch["segments"][...] if "segments" in scratch else None
    segments = given["listed"].segments
    bias_WS, words = None, None
    if "biases" in given:
        bias_WS = _along_diagonals(*(ref[...] for ref in given["biases"]))
    if "seeds" in given:
        words = words_of(given["seeds"], step.place)
    tokens = (
        Tokens(own_W1, own_segments),
        Tokens(listed_1S, None if segments is None else segments[...]),
    )
    return tile_of(shape, of_keys, *tokens, bias_WS, words)


def _along_diagonals(first_1W: Array, second_1W: Array) -> Float[Array, "W W"]:
    """A matrix with one value along each diagonal, from the lower left to the upper right."""
    width = first_1W.shape[1]
    row_1K = jnp.concatenate([first_1W, second_1W], axis=1)
    rows_WK = jnp.broadcast_to(row_1K, (width, 2 * width))
    return pltpu.roll(rows_WK, width + 1, 1, stride=1, stride_axis=0)[:, :width]


def _diagonal_sums(x_WW: Array) -> Float[Array, "8 K"]:
    """Sums of every eighth row, each moved on so that diagonals lie beneath each other."""
    width = x_WW.shape[1]
    sums_8K = jnp.zeros((ROWS, 2 * width))
    for start in range(0, width, ROWS):
        rows_8K = jnp.concatenate([x_WW[start : start + ROWS], jnp.zeros((ROWS, width))], axis=1)
        sums_8K += pltpu.roll(rows_8K, width - ROWS - start, 1)
    return sums_8K
