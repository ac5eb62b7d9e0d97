"""What a step of the kernels for TPUs holds of each array, and how it gets there."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from xformer.layers.block_steps import greatest_divisor
from xformer.layers.kernels.block_shape import Shape

TOKENS = 256  # of a step's own blocks
KEYS = 512  # of a step of the global query blocks
READERS = 8  # of a step of a random key block
TABLE_BYTES = 15 * 2**16  # of the 2**20 of scalar memory


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
class Part:
    """What a kernel holds of an array, or of several alike, in a step.

    Attributes:
        arrays: Arrays, or shapes of results, whose third axis counts blocks.
        count: How many blocks.
        place: From head, step and tables to where they are, counted in `count` blocks.
    """

    arrays: Any
    count: int
    place: Callable[..., Any]


def lists_of(shape: Shape, blocks: Blocks, random: bool = True) -> dict[str, Any]:
    """What the lists of a step's blocks are made of."""
    count, last = per_step(shape), shape.blocks - 1

    def chosen(i: int, k: int, head: Any, step: Any, table: Any) -> Any:
        return table[((head * shape.blocks) + step * count + i) * shape.random + k]

    return {
        "ends": Part(ends_of(blocks), 2, at_start),
        "before": Part(blocks, 1, lambda head, step, *_: jnp.maximum(step * count - 1, 0)),
        "tile": Part(blocks, count, at_step),
        "after": Part(blocks, 1, lambda head, step, *_: jnp.minimum((step + 1) * count, last)),
        "random": [
            Part(blocks, 1, functools.partial(chosen, i, k))
            for i in range(count)
            for k in range(shape.random * random)
        ],
    }


def table(random_blocks_NMR: Array | None) -> Array:
    """The random blocks where kernels read tables."""
    return jnp.zeros(1, jnp.int32) if random_blocks_NMR is None else random_blocks_NMR.reshape(-1)


def ends_of(blocks: Blocks) -> Blocks:
    """The first and the last block."""
    return jax.tree.map(lambda x: jnp.concatenate([x[:, :, :1], x[:, :, -1:]], axis=2), blocks)


def at_start(head: Any, step: Any, *tables: Any) -> Any:
    """The place of a part that is the same in every step."""
    return 0


def at_step(head: Any, step: Any, *tables: Any) -> Any:
    """The place of a part that is the next one in every step."""
    return step


def key_of_chunk(chunks: int, head: Any, step: Any, keys: Any, entries: Any) -> Any:
    """The place of a chunk's key block, by the tables of `block_readers.Readers`."""
    return keys[head * chunks + step]


def row_of_chunk(
    chunks: int, random: int, i: int, head: Any, step: Any, keys: Any, entries: Any
) -> Any:
    """The place of reader `i` of a chunk; any place if there is none."""
    return lax.div(jnp.maximum(entries[(head * chunks + step) * READERS + i], 0), random)


def result(
    shape: Shape,
    blocks: int,
    sizes: tuple[int, int],
    dtype: Any = jnp.float32,
    count: int | None = None,
    place: Callable[..., Any] | None = None,
) -> Part:
    """A result: of both ends at once, or some blocks a step."""
    whole = jax.ShapeDtypeStruct((shape.batch, shape.heads, blocks, *sizes), dtype)
    if blocks == 2:
        return Part(whole, 2, at_start)
    return Part(whole, count or per_step(shape), place or at_step)


def call(
    shape: Shape,
    kernel: Callable[..., None],
    steps: int,
    products: int,
    inputs: dict[str, Any],
    results: Sequence[Part],
    *,
    tables: tuple[Array, ...] = (),
    scratch: Sequence[tuple[int, ...]] = (),
) -> Any:
    """Runs a kernel over all rows of the batch, heads and steps, the last in order."""

    def is_part(x: Any) -> bool:
        return isinstance(x, Part)

    def spec(part: Part, x: Any) -> pl.BlockSpec:
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
        name=f"block_sparse_{kernel.__name__}",
    )(*tables, arrays)


def per_step(shape: Shape) -> int:
    """Own blocks of a step."""
    return greatest_divisor(shape.blocks, min(8, TOKENS // shape.width))


def per_all(shape: Shape) -> int:
    """Key blocks of a step of the global query blocks."""
    return greatest_divisor(shape.blocks, KEYS // shape.width)


def source(shape: Shape) -> int:
    """The blocks that random ones are among, in whole steps."""
    count = per_step(shape)
    return min(shape.blocks, -(-shape.reach // count) * count)


def groups_of(shape: Shape) -> int:
    """Parts of the heads whose tables fit, beside the seeds of dropout."""
    chunks = shape.blocks * shape.random // READERS + source(shape)
    entries = shape.random and max(shape.blocks * shape.random, chunks * (1 + READERS))
    room = TABLE_BYTES - (16 * shape.blocks if shape.dropout else 0)
    fitting = (
        count
        for count in range(1, shape.heads)
        if shape.heads % count == 0 and 4 * entries * shape.heads // count <= room
    )
    return next(fitting, shape.heads)
