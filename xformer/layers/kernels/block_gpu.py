"""Block-sparse attention for GPUs: the kernels and what they fetch.

A program takes one block, its "own", through the list of blocks that it reads or that read it: the
two global ones, the window of three, and the random ones, which it finds in tables. What a global
block reads, or is read by, is shared out among several programs, whose results are joined after.
Three kernels, each for both: contexts, gradients of queries, gradients of keys and values.

In this file S counts the tokens of one listed block.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from xformer.layers.block_rows import Given, Reading
from xformer.layers.kernels.block_dropout import Draw, factors, of_end, of_row, turned
from xformer.layers.kernels.block_readers import sorted_readers
from xformer.layers.kernels.block_shape import NEAR, Shape
from xformer.layers.kernels.block_tiles import LOWEST, Tokens, product, readable, score

_PER_PROGRAM = 16  # blocks that a program takes a global block through
_LEAST_FEATURES = 16  # of a head in a matrix product


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
        interpret: Whether to interpret the kernels, for devices that are no GPUs.
        draws: For dropout: see `xformer.layers.kernels.block_dropout.draws`.

    Returns:
        The contexts in the values' dtype, and the logarithms.
    """
    features = q_BTNH.shape[3]
    q_BTNH, k_BTNH, v_BTNH = map(_widened, (q_BTNH, k_BTNH, v_BTNH))
    shape = Shape.of(reading, given, q_BTNH, interpret)
    inputs = {**_masks(given, draws), "q": q_BTNH, "k": k_BTNH, "v": v_BTNH}
    tables = _row_tables(given)
    run = functools.partial(_call, shape, _contexts, inputs)
    out_BTNH, sums_BNT = run(tables, (v_BTNH.dtype, None))
    parts_BTNH, logarithms_BNT = run({}, (jnp.float32, None), shared=True)
    logarithms_BN2CW = _by_program(shape, logarithms_BNT, 2)
    ends_BN2W = jax.nn.logsumexp(logarithms_BN2CW, axis=3)
    weights_BN2CW = jnp.exp(logarithms_BN2CW - ends_BN2W[:, :, :, None])
    ends_BRWNH = jnp.einsum("BNRXW,BRXWNH->BRWNH", weights_BN2CW, _by_program(shape, parts_BTNH, 1))
    sums_BNT = _with_ends(shape, sums_BNT, ends_BN2W, 2)
    return _with_ends(shape, out_BTNH, ends_BRWNH, 1)[..., :features], sums_BNT


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
        interpret: Whether to interpret the kernels, for devices that are no GPUs.
        draws: For dropout: see `xformer.layers.kernels.block_dropout.draws`.

    Returns:
        The gradients in the inputs' dtype.
    """
    features = q_BTNH.shape[3]
    q_BTNH, k_BTNH, v_BTNH, dout_BTNH = map(_widened, (q_BTNH, k_BTNH, v_BTNH, dout_BTNH))
    shape = Shape.of(reading, given, q_BTNH, interpret)
    inputs = {
        **_masks(given, draws),
        "q": q_BTNH,
        "k": k_BTNH,
        "v": v_BTNH,
        "dout": dout_BTNH.astype(q_BTNH.dtype),
        "sums": sums_BNT,
        "means": means_BNT,
    }
    run = functools.partial(_call, shape, _query_gradients, inputs)
    (dq_BTNH,) = run(_row_tables(given), (q_BTNH.dtype,))
    (parts_BTNH,) = run({}, (jnp.float32,), shared=True)
    dq_BTNH = _with_ends(shape, dq_BTNH, _by_program(shape, parts_BTNH, 1).sum(2), 1)
    run = functools.partial(_call, shape, _key_gradients, inputs)
    parts = run({}, (jnp.float32,) * 2, shared=True)
    dk_ends, dv_ends = (_by_program(shape, part_BTNH, 1).sum(2) for part_BTNH in parts)
    inputs |= {"dk_ends": _side_by_side(dk_ends), "dv_ends": _side_by_side(dv_ends)}
    run = functools.partial(_call, shape, _key_gradients, inputs)
    dk_BTNH, dv_BTNH = run(_column_tables(shape, given), (k_BTNH.dtype, v_BTNH.dtype))
    dq_BTNH, dk_BTNH, dv_BTNH = (x[..., :features] for x in (dq_BTNH, dk_BTNH, dv_BTNH))
    return dq_BTNH, dk_BTNH, dv_BTNH


@dataclass(frozen=True)
class _List:
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

    def dropped(self, shape: Shape, given: Any, place: Array, number: Array, x_WS: Array) -> Array:
        """What dropout leaves of numbers of a tile."""
        if not shape.dropout:
            return x_WS
        draw = self.draw(place, jnp.maximum(number, 0))
        return x_WS * factors(shape, given["draws"], [draw], shape.width)


def _contexts(shape: Shape, rows: _List, given: Any, out: Any, sums: Any) -> None:
    """Contexts of a block."""
    q_WH = given["q"][_tokens(shape, rows.own), :]
    queries = _own(shape, rows.own, given.get("query_segments"))

    def read(place: Array, state: Any) -> Any:
        top_W1, total_W1, context_WH = state
        number = rows.number(place)
        here = _tokens(shape, jnp.maximum(number, 0))
        keys = _listed(shape, number, given.get("key_segments"))
        allowed = readable(queries, keys, shape.causal, keys.places >= 0)
        scores_WS = score(q_WH, given["k"][here, :], allowed, rows.share(place))
        higher_W1 = jnp.maximum(top_W1, scores_WS.max(1)[:, None])
        weights_WS, kept_W1 = jnp.exp(scores_WS - higher_W1), jnp.exp(top_W1 - higher_W1)
        total_W1 = total_W1 * kept_W1 + weights_WS.sum(1)[:, None]
        weights_WS = rows.dropped(shape, given, place, number, weights_WS)
        v_SH = given["v"][here, :]
        context_WH = context_WH * kept_W1 + product(weights_WS.astype(v_SH.dtype), v_SH, 0)
        return higher_W1, total_W1, context_WH

    state = jnp.full((shape.width, 1), LOWEST), jnp.zeros((shape.width, 1)), jnp.zeros(q_WH.shape)
    top_W1, total_W1, context_WH = lax.fori_loop(jnp.int32(0), jnp.int32(rows.count), read, state)
    total_W1 = jnp.where(total_W1 > 0, total_W1, 1.0)  # a global block has programs of its own
    out[...] = (context_WH / total_W1).astype(out.dtype)
    sums[...] = (top_W1 + jnp.log(total_W1)).reshape(shape.width)


def _query_gradients(shape: Shape, rows: _List, given: Any, dq: Any) -> None:
    """Gradients of a block of queries."""
    own = _tokens(shape, rows.own)
    q_WH, dout_WH = given["q"][own, :], given["dout"][own, :]
    sums_W1, means_W1 = given["sums"][own][:, None], given["means"][own][:, None]
    queries = _own(shape, rows.own, given.get("query_segments"))

    def read(place: Array, dq_WH: Array) -> Array:
        number = rows.number(place)
        here = _tokens(shape, jnp.maximum(number, 0))
        keys = _listed(shape, number, given.get("key_segments"))
        allowed = readable(queries, keys, shape.causal, keys.places >= 0)
        k_SH = given["k"][here, :]
        scores_WS = score(q_WH, k_SH, allowed, rows.share(place))
        weights_WS = jnp.where(allowed, jnp.exp(scores_WS - sums_W1), 0.0)
        dweights_WS = product(dout_WH, given["v"][here, :], 1)
        dweights_WS = rows.dropped(shape, given, place, number, dweights_WS)
        dscores_WS = weights_WS * (dweights_WS - means_W1)
        return dq_WH + product(dscores_WS.astype(k_SH.dtype), k_SH, 0)

    dq[...] = lax.fori_loop(
        jnp.int32(0), jnp.int32(rows.count), read, jnp.zeros(q_WH.shape)
    ).astype(dq.dtype)


def _key_gradients(shape: Shape, columns: _List, given: Any, dk: Any, dv: Any) -> None:
    """Gradients of a block of keys and their values."""
    own = _tokens(shape, columns.own)
    k_WH, v_WH = given["k"][own, :], given["v"][own, :]
    keys = _own(shape, columns.own, given.get("key_segments"))

    def read(place: Array, gradients: Any) -> Any:
        dk_WH, dv_WH = gradients
        number = columns.number(place)
        here = _tokens(shape, jnp.maximum(number, 0))
        queries = _listed(shape, number, given.get("query_segments"))
        allowed = readable(queries, keys, shape.causal, queries.places >= 0)
        q_SH, dout_SH = given["q"][here, :], given["dout"][here, :]
        scores_WS = score(k_WH, q_SH, allowed, columns.share(place))
        weights_WS = jnp.where(allowed, jnp.exp(scores_WS - given["sums"][here][None]), 0.0)
        drop = functools.partial(columns.dropped, shape, given, place, number)
        dweights_WS = drop(product(v_WH, dout_SH, 1))
        dscores_WS = weights_WS * (dweights_WS - given["means"][here][None])
        weights_WS = drop(weights_WS)
        dk_WH += product(dscores_WS.astype(q_SH.dtype), q_SH, 0)
        return dk_WH, dv_WH + product(weights_WS.astype(dout_SH.dtype), dout_SH, 0)

    zeros = jnp.zeros(k_WH.shape), jnp.zeros(k_WH.shape)
    found = lax.fori_loop(jnp.int32(0), jnp.int32(columns.count), read, zeros)
    for d, d_WH, more in zip((dk, dv), found, ("dk_ends", "dv_ends"), strict=True):
        if more in given:
            last = shape.blocks - 1
            is_end = ((columns.own == 0) | (columns.own == last)).astype(jnp.float32)
            end = (columns.own == last).astype(jnp.int32)
            d_WH += is_end * given[more][_tokens(shape, end), :]
        d[...] = d_WH.astype(d.dtype)


_PRODUCTS = {_contexts: 2, _query_gradients: 3, _key_gradients: 4}


def _rows(shape: Shape, given: Any) -> _List:
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

    return _List(row, count, number, lambda place: _share(shape, place == 0), draw)


def _columns(shape: Shape, given: Any) -> _List:
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

    return _List(column, count, number, lambda place: jnp.float32(0), draw)


def _share_of_all(shape: Shape, given: Any, of_keys: bool) -> _List:
    """A program's share of what a global block reads, or of the other blocks that read it."""
    programs, last = _programs(shape), shape.blocks - 1
    end, program = pl.program_id(0) // programs, pl.program_id(0) % programs
    among = _among(given)

    def number(place: Array) -> Array:
        found = program * _PER_PROGRAM + place
        is_listed = (found > 0) & (found < last) if of_keys else found <= last
        return _select(is_listed, found, -1)

    def share(place: Array) -> Array:
        return _share(shape, (end == 0) & of_keys)

    def draw(place: Array, number: Array) -> Draw:
        if of_keys:
            return turned(of_row(shape, among, number, end))
        return of_end(shape, among, end, number)

    return _List(end * last, _PER_PROGRAM, number, share, draw)


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


def _programs(shape: Shape) -> int:
    """Programs that share a global block."""
    return -(-shape.blocks // _PER_PROGRAM)


def _masks(given: Given, draws: Array | None) -> dict[str, Array]:
    found = {
        "query_segments": given.query_segments_BT,
        "key_segments": given.key_segments_BT,
        "draws": draws,
    }
    return {name: x.astype(jnp.int32) for name, x in found.items() if x is not None}


def _row_tables(given: Given) -> dict[str, Array]:
    table = given.random_blocks_NMR
    return {} if table is None else {"random": table.reshape(table.shape[0], -1)}


def _column_tables(shape: Shape, given: Given) -> dict[str, Array]:
    if given.random_blocks_NMR is None:
        return {}
    bounds, rows = sorted_readers(given.random_blocks_NMR, shape.blocks)
    return {"bounds": bounds, "readers": rows}


def _by_program(shape: Shape, x: Array, axis: int) -> Array:
    """Splits tokens of parts into the two global blocks, their programs and the tokens of each."""
    sizes = 2, _programs(shape), shape.width
    return x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])


def _widened(x_BTNH: Array) -> Array:
    """Heads with zeros up to a width that programs can hold, a power of two."""
    features = x_BTNH.shape[3]
    width = max(_LEAST_FEATURES, 1 << (features - 1).bit_length())
    return jnp.pad(x_BTNH, ((0, 0), (0, 0), (0, 0), (0, width - features)))


def _side_by_side(ends_BRWNH: Array) -> Array:
    """The tokens of both global blocks in a row."""
    batch, ends, width, *rest = ends_BRWNH.shape
    return ends_BRWNH.reshape(batch, ends * width, *rest)


def _with_ends(shape: Shape, x: Array, ends: Array, axis: int) -> Array:
    """Sets the tokens of the global blocks."""
    for end, start in enumerate((0, x.shape[axis] - shape.width)):
        place = *(slice(None),) * axis, slice(start, start + shape.width)
        part = lax.index_in_dim(ends, end, axis, keepdims=False).astype(x.dtype)
        x = x.at[place].set(part)
    return x


def _call(
    shape: Shape,
    kernel: Callable[..., None],
    inputs: dict[str, Array],
    tables: dict[str, Array],
    dtypes: Sequence[Any],
    shared: bool = False,
) -> tuple[Array, ...]:
    """Runs a kernel for every block, or for the parts of what concerns the global ones.

    Args:
        shape: The sizes.
        kernel: The kernel.
        inputs: Arrays of tokens.
        tables: Where random blocks are, by head.
        dtypes: For each result its dtype, or None for float32 numbers of tokens by head.
        shared: Whether programs share what concerns the global blocks.

    Returns:
        The results; of shared work two blocks for each program that takes part.
    """
    count = 2 * _programs(shape) if shared else shape.blocks
    length = count * shape.width

    def body(given: Any, *results: Any) -> None:
        if shared:
            blocks = _share_of_all(shape, given, of_keys=kernel is _key_gradients)
        else:
            blocks = (_columns if kernel is _key_gradients else _rows)(shape, given)
        kernel(shape, blocks, given, *results)

    def whole(x: Array) -> pl.BlockSpec:
        match x.ndim:
            case 4:
                sizes = None, x.shape[1], None, x.shape[3]
                return pl.BlockSpec(sizes, lambda i, head, row: (row, 0, head, 0))
            case 3:
                return pl.BlockSpec((None, None, x.shape[2]), lambda i, head, row: (row, head, 0))
            case 1:
                return pl.BlockSpec(x.shape, lambda i, head, row: (0,))
        return pl.BlockSpec((None, x.shape[1]), lambda i, head, row: (row, 0))

    def of_head(x: Array) -> pl.BlockSpec:
        return pl.BlockSpec((None, x.shape[1]), lambda i, head, row: (head, 0))

    width, features = shape.width, shape.features
    tokens = pl.BlockSpec((None, width, None, features), lambda i, head, row: (row, i, head, 0))
    numbers = pl.BlockSpec((None, None, width), lambda i, head, row: (row, head, i))
    listed = shape.blocks * shape.listed
    work = 2 * shape.blocks if shared else listed
    shapes = tuple(
        jax.ShapeDtypeStruct((shape.batch, shape.heads, length), jnp.float32)
        if dtype is None
        else jax.ShapeDtypeStruct((shape.batch, length, shape.heads, features), dtype)
        for dtype in dtypes
    )
    return pl.pallas_call(
        body,
        out_shape=shapes,
        grid=(count, shape.heads, shape.batch),
        in_specs=[jax.tree.map(whole, inputs) | jax.tree.map(of_head, tables)],
        out_specs=tuple(numbers if dtype is None else tokens for dtype in dtypes),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        cost_estimate=shape.cost(_PRODUCTS[kernel] * work, (inputs, shapes)),
        interpret=shape.interpret,
        name=f"block_sparse{kernel.__name__}",
    )(inputs | tables)
