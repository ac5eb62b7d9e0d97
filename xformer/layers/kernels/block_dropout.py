"""Dropout of block-sparse attention in kernels: that of `xformer.layers.block_steps`, bit for bit.

Its factors are made from a seed and a place. What a query block reads has a seed for the query
block, and what the global query blocks read one for each key block; the place is that among all
rows of the batch, heads, queries and keys that share the seed.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt32

from xformer.layers.dropout import factors_at, numbered_seeds
from xformer.layers.kernels.block_shape import Shape

_SEEDS = 3  # where they begin


def draws(
    seed_2: UInt32[Array, "2"], blocks: int, first_row: Any, first_head: Any, heads: int
) -> Int[Array, " K"]:
    """What kernels must know to draw.

    Args:
        seed_2: Random words.
        blocks: Blocks of a row.
        first_row: Number of this device's first row of the batch.
        first_head: Number of its first head.
        heads: Heads on all devices.

    Returns:
        These numbers, then two words for the key block and two for the query block of each number.
    """
    seeds_K2 = numbered_seeds(seed_2, jnp.arange(2 * blocks))
    first = jnp.stack([jnp.asarray(x, jnp.int32) for x in (first_row, first_head, heads)])
    return jnp.concatenate([first, lax.bitcast_convert_type(seeds_K2, jnp.int32).reshape(-1)])


class Draw(NamedTuple):
    """How the factors of some columns of a tile are drawn.

    Attributes:
        start: Place of the first own token with the first listed one.
        step: From a listed token's place to the next one's.
        own_step: From an own token's place to the next one's.
        seed: Number of the seed.
    """

    start: Any
    step: Any
    own_step: Any
    seed: Any


def of_row(shape: Shape, among: Any, row: Any, entry: Any) -> Draw:
    """What a query block draws for a block of its list.

    Args:
        shape: The sizes.
        among: Number of the row of the batch and head.
        row: The query block.
        entry: Place of the key block in its list.

    Returns:
        How; the query block is the own one.
    """
    listed = shape.listed * shape.width
    return Draw(among * (shape.width * listed) + entry * shape.width, 1, listed, 2 * row + 1)


def of_end(shape: Shape, among: Any, end: Any, column: Any) -> Draw:
    """What a global query block, the first or the second, draws for a key block.

    Args:
        shape: The sizes.
        among: Number of the row of the batch and head.
        end: Which query block, 0 or 1.
        column: The key block.

    Returns:
        How; the query block is the own one.
    """
    tokens = shape.width * shape.width
    return Draw(among * (2 * tokens) + end * tokens, 1, shape.width, 2 * column)


def turned(draw: Draw) -> Draw:
    """The same where the key block is the own one."""
    return draw._replace(step=draw.own_step, own_step=draw.step)


def factors(shape: Shape, table: Any, drawn: list[Draw], own_tokens: int) -> Float[Array, "W S"]:
    """The factors of a tile.

    Args:
        shape: The sizes.
        table: What `draws` returns, or a reference to it.
        drawn: Of each listed block in turn; they agree on `own_step`.
        own_tokens: Rows of the tile.

    Returns:
        The factors on its probabilities.
    """
    lane_1S = lax.broadcasted_iota(jnp.int32, (1, len(drawn) * shape.width), 1)

    def joined(values: list[Any]) -> Any:
        found = values[0]
        for k, value in enumerate(values[1:], start=1):
            found = jnp.where(lane_1S >= k * shape.width, value, found)
        return found

    starts = joined(
        [one.start + (lane_1S - k * shape.width) * one.step for k, one in enumerate(drawn)]
    )
    seeds = [
        joined([jnp.full_like(lane_1S, table[_SEEDS + 2 * one.seed + word]) for one in drawn])
        for word in range(2)
    ]
    own_W1 = lax.broadcasted_iota(jnp.int32, (own_tokens, 1), 0)
    places = starts + own_W1 * drawn[0].own_step
    place, first, second = (lax.bitcast_convert_type(x, jnp.uint32) for x in (places, *seeds))
    return factors_at(place, first, second, shape.dropout)
