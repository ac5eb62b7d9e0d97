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
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from xformer.layers.kernels.dense_tiles import (
    Inputs,
    Shape,
    Side,
    Softmax,
    Tile,
    lengthened,
    lengthened_bias,
    score_gradients,
    table_of,
    words_of,
)
from xformer.layers.kernels.tiles import LOWEST, Tokens, as_column, as_row, product
from xformer.layers.relative_bias import diagonals

LEAST, MOST = 128, 512  # tokens of a tile
_ROWS = 8  # of a register


class _Tokens(NamedTuple):
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
    out_BNTH, sums_BNM1W = _call(
        shape,
        _read,
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
    dq_BNTH, *of_biases = _call(
        shape,
        _queries_back,
        inputs,
        products=3,
        results=(inputs.q_BTNH.dtype,),
        scratch={"dx": width, "sums": 1, "means": 1},
        of_biases=inputs.bias_NC is not None,
    )
    dk_BNSH, dv_BNSH = _call(
        shape,
        _keys_back,
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


def _queries(shape: Shape, inputs: Inputs) -> _Tokens:
    """The queries, in whole tiles; padding reads nothing in the backward pass."""
    side = shape.queries
    return _Tokens(
        _by_head(side, inputs.q_BTNH),
        _by_head(side, inputs.dout_BTNH),
        _in_rows(side, inputs.query_segments_BT),
        _in_rows(side, inputs.sums_BNT, -LOWEST),
        _in_rows(side, inputs.means_BNT),
    )


def _keys(shape: Shape, inputs: Inputs) -> _Tokens:
    """The keys and values, in whole tiles."""
    side = shape.keys
    k_BNSH, v_BNSH = (_by_head(side, x) for x in (inputs.k_BSNH, inputs.v_BSNH))
    return _Tokens(k_BNSH, v_BNSH, _in_rows(side, inputs.key_segments_BS))


def _by_head(side: Side, x_BTNH: Array | None) -> Array | None:
    return None if x_BTNH is None else lengthened(x_BTNH, 1, side).swapaxes(1, 2)


def _in_rows(side: Side, x: Array | None, value: float = 0.0) -> Array | None:
    """Numbers of tokens, a row for each tile."""
    if x is None:
        return None
    x = lengthened(x, x.ndim - 1, side, value)
    return x.reshape(*x.shape[:-1], side.tiles, 1, side.width)


def _biases(shape: Shape, of_keys: bool, bias_NC: Array) -> Float[Array, "N K 1 W"]:
    """Biases in parts as wide as tiles, by how far listed tokens are behind own ones."""
    bias_NC = jnp.flip(bias_NC, 1) if of_keys else bias_NC
    bias_NC = lengthened_bias(bias_NC.astype(jnp.float32), shape.queries)
    return bias_NC.reshape(shape.heads, -1, 1, shape.queries.width)


def _bias_gradient(shape: Shape, sums_NK8W: Array) -> Float[Array, "N C"]:
    """Gradients of biases by distance, from sums over every eighth row."""
    side, heads = shape.queries, shape.heads
    sums_N8C = sums_NK8W.swapaxes(1, 2).reshape(heads, _ROWS, -1)
    moved = functools.partial(diagonals, rows=_ROWS)
    given = jax.ShapeDtypeStruct((heads, sums_N8C.shape[2] + _ROWS - 1), jnp.float32)
    (dbias_NC,) = jax.linear_transpose(moved, given)(sums_N8C)
    first = side.padded - side.length
    return dbias_NC[:, first : first + 2 * side.length - 1]


class _Step(NamedTuple):
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
    def now(cls, shape: Shape, of_keys: bool) -> "_Step":
        """That of the running program."""
        head, row, own, listed = (pl.program_id(axis) for axis in range(4))
        first, end = shape.listed(of_keys, own)
        is_met = (listed >= first) & (listed < end)
        is_last = listed == pl.num_programs(3) - 1
        return cls(own, listed, listed == 0, is_met, is_last, row * shape.heads + head)


def _read(shape: Shape, given: Any, out: Any, sums: Any, scratch: Any) -> None:
    """One tile of keys for a tile of queries."""
    step = _Step.now(shape, False)
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


def _queries_back(shape: Shape, given: Any, dq: Any, *rest: Any) -> None:
    """What one tile of keys adds to the gradients of a tile of queries and of biases."""
    *of_biases, scratch = rest
    step = _Step.now(shape, False)

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


def _keys_back(shape: Shape, given: Any, dk: Any, dv: Any, scratch: Any) -> None:
    """What one tile of queries adds to the gradients of a tile of keys and values."""
    step = _Step.now(shape, True)

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


def _turn(own: _Tokens, scratch: Any) -> None:
    """Keeps rows of numbers of own tokens as the columns that their tiles need."""
    for name in ("segments", "sums", "means"):
        if name in scratch:
            scratch[name][...] = as_column(getattr(own, name)[...])


def _tile(shape: Shape, of_keys: bool, step: _Step, given: Any, scratch: Any) -> Tile:
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
    return Tile.of(shape, of_keys, *tokens, bias_WS, words)


def _along_diagonals(first_1W: Array, second_1W: Array) -> Float[Array, "W W"]:
    """A matrix with one value along each diagonal, from the lower left to the upper right."""
    width = first_1W.shape[1]
    row_1K = jnp.concatenate([first_1W, second_1W], axis=1)
    rows_WK = jnp.broadcast_to(row_1K, (width, 2 * width))
    return pltpu.roll(rows_WK, width + 1, 1, stride=1, stride_axis=0)[:, :width]


def _diagonal_sums(x_WW: Array) -> Float[Array, "8 K"]:
    """Sums of every eighth row, each moved on so that diagonals lie beneath each other."""
    width = x_WW.shape[1]
    sums_8K = jnp.zeros((_ROWS, 2 * width))
    for start in range(0, width, _ROWS):
        rows_8K = jnp.concatenate([x_WW[start : start + _ROWS], jnp.zeros((_ROWS, width))], axis=1)
        sums_8K += pltpu.roll(rows_8K, width - _ROWS - start, 1)
    return sums_8K


def _call(
    shape: Shape,
    kernel: Callable[..., None],
    inputs: Inputs,
    *,
    products: int,
    results: tuple[Any, ...],
    scratch: dict[str, int],
    of_keys: bool = False,
    of_biases: bool = False,
) -> Any:
    """Runs a kernel for all heads, rows of the batch, own tiles, and those that they meet.

    Args:
        shape: The sizes.
        kernel: The kernel.
        inputs: What it reads.
        products: Products for each tile.
        results: For each result its dtype, or None for float32 numbers of tokens.
        scratch: Columns of what is kept from one listed tile to the next.
        of_keys: Whether keys are the own tokens.
        of_biases: Whether the last result are sums of score gradients by distance.

    Returns:
        The results.
    """
    own, listed = shape.sides(of_keys)
    tokens = _queries(shape, inputs), _keys(shape, inputs)
    given: dict[str, Any] = dict(
        zip(("listed", "own") if of_keys else ("own", "listed"), tokens, strict=True)
    )
    scratch_shapes = {
        name: pltpu.VMEM((own.width, size), jnp.float32) for name, size in scratch.items()
    }
    if given["own"].segments is not None:
        scratch_shapes["segments"] = pltpu.VMEM((own.width, 1), jnp.int32)

    def met(i: Any, j: Any) -> Any:
        """The listed tile, or the nearest that is met: what is held already is not fetched."""
        first, end = shape.listed(of_keys, i)
        return jnp.clip(j, jnp.minimum(first, listed.tiles - 1), end - 1)

    def spec(side: Side, number: Callable[..., Any], x: Any) -> pl.BlockSpec:
        if x.shape[-2] == side.padded:
            tokens = None, None, side.width, shape.features
            return pl.BlockSpec(tokens, lambda n, b, i, j: (b, n, number(i, j), 0))
        numbers = (*[None] * (x.ndim - 2), 1, side.width)
        of_head = x.ndim == 5
        return pl.BlockSpec(numbers, lambda n, b, i, j: (b, *[n] * of_head, number(i, j), 0, 0))

    def of_own(x: Any) -> pl.BlockSpec:
        return spec(own, lambda i, j: i, x)

    specs: dict[str, Any] = {
        "own": jax.tree.map(of_own, given["own"]),
        "listed": jax.tree.map(functools.partial(spec, listed, met), given["listed"]),
    }
    if inputs.bias_NC is not None:
        biases = _biases(shape, of_keys, inputs.bias_NC)
        given["biases"] = biases, biases
        specs["biases"] = tuple(
            pl.BlockSpec(
                (None, None, 1, own.width),
                lambda n, b, i, j, k=k: (n, met(i, j) - i + own.tiles - 1 + k, 0, 0),
            )
            for k in range(2)
        )
    if inputs.seeds_BN2 is not None:
        given["seeds"] = table_of(inputs.seeds_BN2)
        specs["seeds"] = pl.BlockSpec(memory_space=pltpu.SMEM)
    leading = shape.batch, shape.heads
    shapes = [
        jax.ShapeDtypeStruct((*leading, own.tiles, 1, own.width), jnp.float32)
        if dtype is None
        else jax.ShapeDtypeStruct((*leading, own.padded, shape.features), dtype)
        for dtype in results
    ]
    out_specs = [of_own(x) for x in shapes]
    if of_biases:
        sizes = 2 * own.tiles, _ROWS, own.width
        shapes.append(jax.ShapeDtypeStruct((shape.heads, *sizes), jnp.float32))
        out_specs.append(pl.BlockSpec((None, *sizes), lambda n, b, i, j: (n, 0, 0, 0)))
    return pl.pallas_call(
        functools.partial(kernel, shape),
        out_shape=shapes,
        grid_spec=pl.GridSpec(
            grid=(shape.heads, shape.batch, own.tiles, listed.tiles),
            in_specs=[specs],
            out_specs=out_specs,
            scratch_shapes=[scratch_shapes],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary")
        ),
        cost_estimate=shape.cost(products, (given, shapes)),
        interpret=shape.interpret,
        name=f"dense_{kernel.__name__.strip('_')}",
    )(given)
