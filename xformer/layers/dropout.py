"""Dropout with explicit keys: no key, no dropout."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def split_key(key: PRNGKeyArray | None, count: int) -> list[PRNGKeyArray | None]:
    """Splits a key into `count` keys, or None into `count` Nones."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def dropout(x: Float[Array, "..."], rate: float, key: PRNGKeyArray | None) -> Float[Array, "..."]:
    """Zeroes each element with probability `rate` and scales the rest by 1 / (1 - rate).

    Args:
        x: Any activations.
        rate: Probability of dropping an element, in [0, 1].
        key: Random key; None means evaluation, where nothing is dropped.

    Returns:
        An array of the shape and dtype of `x`.
    """
    if key is None or rate == 0.0:
        return x
    if rate >= 1.0:
        return jnp.zeros_like(x)
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
