"""What kernels of attention compute on one tile, whatever fetched it.

A tile is some queries against keys that they read, or some keys against the queries that read
them. The first are "own", one token a row; the others are "listed" along the
columns, and S counts their tokens. Arithmetic is float32, and products take the inputs' dtype.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

LOWEST = float(jnp.finfo(jnp.float32).min)


class Tokens(NamedTuple):
    """Tokens of one side of a tile: a column of own ones, or a row of listed ones.

    Attributes:
        places: Place of each in its row of the batch.
        segments: Document of each, 0 for padding; None where there are no documents.
    """

    places: Int[Array, "_ _"]
    segments: Int[Array, "_ _"] | None = None


def readable(
    queries: Tokens, keys: Tokens, causal: bool, is_there: Bool[Array, "_ _"]
) -> Bool[Array, "_ _"]:
    """Which queries read which keys.

    Args:
        queries: The queries; own or listed. Without documents they read those of all.
        keys: The keys, the other side. Without documents all are read.
        causal: Whether a query reads only keys at its own place or before it.
        is_there: False for tokens of one side that stand for nothing.

    Returns:
        An array that broadcasts to the tile.
    """
    allowed = is_there
    if causal:
        allowed = allowed & (keys.places <= queries.places)
    if keys.segments is not None:
        allowed = allowed & (keys.segments > 0)
        if queries.segments is not None:
            allowed = allowed & (keys.segments == queries.segments)
    return allowed


class Tile(NamedTuple):
    """What happens to the scores of a tile.

    Attributes:
        allowed: Who reads whom; broadcasts to the tile.
        added: What is added to the scores, logarithms of how often keys are read, or biases; None
            adds nothing.
        kept_WS: Factors of the dropout; None drops nothing.
    """

    allowed: Bool[Array, "_ _"]
    added: Float[Array, "..."] | None = None
    kept_WS: Float[Array, "W S"] | None = None


def score(
    own_WC: Float[Array, "W C"], listed_SC: Float[Array, "S C"], tile: Tile
) -> Float[Array, "W S"]:
    """Scores of a tile, the lowest number where nothing is read.

    Args:
        own_WC: Queries or keys of the block.
        listed_SC: Keys or queries.
        tile: What happens to the scores.

    Returns:
        The scores.
    """
    scores_WS = product(own_WC, listed_SC, 1)
    if tile.added is not None:
        scores_WS = scores_WS + tile.added
    return jnp.where(tile.allowed, scores_WS, LOWEST)


def score_gradients(
    own: tuple[Array, Array],
    listed: tuple[Array, Array],
    stats: tuple[Array, Array],
    tile: Tile,
) -> tuple[Float[Array, "W S"], Float[Array, "W S"]]:
    """What is left of the probabilities of a tile, and the gradients of its scores.

    Args:
        own: Queries and the gradients of their contexts, or keys and their values.
        listed: The others of these.
        stats: Of the queries: logarithms of the denominators, and means of the gradients.
        tile: What happens to the scores.

    Returns:
        Both, in float32.
    """
    sums, means = stats
    scores_WS = score(own[0], listed[0], tile)
    weights_WS = jnp.where(tile.allowed, jnp.exp(scores_WS - sums), 0.0)
    dweights_WS = product(own[1], listed[1], 1)
    dropped_WS = weights_WS
    if tile.kept_WS is not None:
        dropped_WS, dweights_WS = (x * tile.kept_WS for x in (weights_WS, dweights_WS))
    return dropped_WS, weights_WS * (dweights_WS - means)


def product(left: Float[Array, "_ _"], right: Float[Array, "_ _"], axis: int) -> Array:
    """`left @ right`, or `left @ right.T` where `axis` of the right one is 1, in float32."""
    dimensions = (((1,), (axis,)), ((), ()))
    return lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def crossed(left_WS: Float[Array, "W S"], right_WC: Float[Array, "W C"]) -> Float[Array, "S C"]:
    """`left_WS.T @ right_WC`, in float32."""
    dimensions = (((0,), (0,)), ((), ()))
    return lax.dot_general(left_WS, right_WC, dimensions, preferred_element_type=jnp.float32)


def as_column(x_1W: Array) -> Array:
    """A row as a column."""
    width = x_1W.shape[1]
    rows, columns = (lax.broadcasted_iota(jnp.int32, (width, width), k) for k in range(2))
    return jnp.where(rows == columns, x_1W, jnp.zeros_like(x_1W)).sum(1, keepdims=True)


def as_row(x_W1: Array) -> Array:
    """A column as a row."""
    width = x_W1.shape[0]
    rows, columns = (lax.broadcasted_iota(jnp.int32, (width, width), k) for k in range(2))
    return jnp.where(rows == columns, x_W1, jnp.zeros_like(x_W1)).sum(0, keepdims=True)
