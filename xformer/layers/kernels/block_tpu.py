"""Block-sparse attention for TPUs: the kernels and what they fetch.

A step of a kernel takes a few neighbouring blocks, its "own", each with a list of other blocks:
the two global ones, the window of three, and the random ones, which are found by tables that are
there before the step, so that the next step's blocks arrive during this one. Five kernels:

- `read_all`: the two global query blocks against all keys, with a running softmax;
- `read_rows`: the other query blocks against what they list;
- `rows_back`: gradients of those queries, and of the global keys from them;
- `columns_back`: gradients of keys from the global queries and the window, and of those queries;
- `readers_back`: gradients of keys from the random blocks' readers, by the plan turned round.

The two lists are alike, for a window reads both ways and so do global blocks. A token's keys lie
beside its values, and its query beside its context's gradient, C = 2 * H numbers: 128, the width of
a TPU's registers, for heads of 64, and the matrix unit takes no longer for both than for one.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from xformer.layers.block_reading import Given, Reading
from xformer.layers.kernels import block_tpu_fetch
from xformer.layers.kernels.block_readers import readers
from xformer.layers.kernels.block_shape import Shape
from xformer.layers.kernels.block_tpu_fetch import (
    Blocks,
    Part,
    at_start,
    at_step,
    call,
    ends_of,
    groups_of,
    key_of_chunk,
    lists_of,
    per_all,
    per_step,
    result,
    row_of_chunk,
    source,
    table,
)
from xformer.layers.kernels.block_tpu_kernels import (
    columns_back,
    read_all,
    read_rows,
    readers_back,
    rows_back,
)


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
    groups = groups_of(shape)
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
    pairs = shape.blocks * shape.listed
    ends = call(
        shape,
        read_all,
        shape.blocks // per_all(shape),
        4 * shape.blocks,
        {
            "own": Part(ends_of(queries), 2, at_start),
            "keys": Part(keys, per_all(shape), at_step),
            **drawn,
        },
        (result(shape, 2, sizes, dtype, 2, at_start), result(shape, 2, (1, sizes[0]))),
        scratch=[(2 * shape.width, size) for size in (1, 1, shape.features)],
    )
    return call(
        shape,
        read_rows,
        shape.blocks // per_step(shape),
        2 * pairs,
        {
            "own": Part(queries, per_step(shape), at_step),
            "ends_out": Part(ends, 2, at_start),
            **lists_of(shape, keys),
            **drawn,
        },
        (result(shape, shape.blocks, sizes, dtype), result(shape, shape.blocks, (1, sizes[0]))),
        tables=(table(random_blocks_NMR),),
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
    pairs = shape.blocks * shape.listed
    dtype, steps = keys.x.dtype, shape.blocks // per_step(shape)
    added: dict[str, Part] = {}
    if random_blocks_NMR is not None:
        found = readers(random_blocks_NMR, source(shape), block_tpu_fetch.READERS)
        chunks = found.keys_NK.shape[1]
        (d_source,) = call(
            shape,
            readers_back,
            chunks,
            4 * shape.blocks * shape.random,
            {
                "own": Part(keys, 1, functools.partial(key_of_chunk, chunks)),
                "listed": [
                    Part(queries, 1, functools.partial(row_of_chunk, chunks, shape.random, i))
                    for i in range(block_tpu_fetch.READERS)
                ],
                **drawn,
            },
            (
                result(
                    shape,
                    source(shape),
                    packed,
                    count=1,
                    place=functools.partial(key_of_chunk, chunks),
                ),
            ),
            tables=(found.keys_NK.reshape(-1), found.entries_NKR.reshape(-1)),
        )
        last = source(shape) // per_step(shape) - 1
        added["source"] = Part(
            d_source, per_step(shape), lambda head, step, *tables: jnp.minimum(step, last)
        )
    dq_BNMWH, d_ends = call(
        shape,
        rows_back,
        steps,
        3 * pairs + 4 * shape.blocks,
        {"own": Part(queries, per_step(shape), at_step), **lists_of(shape, keys), **drawn},
        (result(shape, shape.blocks, sizes, dtype), result(shape, 2, packed)),
        tables=(table(random_blocks_NMR),),
    )
    d_BNMWC, dq_ends = call(
        shape,
        columns_back,
        steps,
        22 * shape.blocks,
        {
            "own": Part(keys, per_step(shape), at_step),
            "d_ends": Part(d_ends, 2, at_start),
            **added,
            **lists_of(shape, queries, random=False),
            **drawn,
        },
        (result(shape, shape.blocks, packed, dtype), result(shape, 2, sizes)),
    )
    dq_ends = dq_ends.astype(dtype)
    dq_BNMWH = dq_BNMWH.at[:, :, :1].set(dq_ends[:, :, :1]).at[:, :, -1:].set(dq_ends[:, :, 1:])
    return dq_BNMWH, d_BNMWC
