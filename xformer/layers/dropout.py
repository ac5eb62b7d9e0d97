"""Dropout with explicit keys: no key, no dropout."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32


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


def hashed_factors(
    seeds: UInt32[Array, "*seeds 2"], rate: float, shape: tuple[int, ...]
) -> Float[Array, "..."]:
    """Factors of a dropout, each made from its seed and place alone: 0 or 1 / (1 - rate).

    A few integer operations that XLA fuses with what they multiply, where `dropout` draws its
    random bits in a loop of its own and stores them.

    Args:
        seeds: Random words: two for all, or for each place along axes of the factors that they
            have too (the last axes but their own; 1 stands for an axis that they do not have).
            Factors of one seed depend on nothing else, so that parts can be made by themselves.
        rate: Probability of a zero, in [0, 1].
        shape: Of the factors, fewer than 2**32 for a seed.

    Returns:
        An array of float32.
    """
    if rate >= 1.0:
        return jnp.zeros(shape)
    seeded = (1,) * (len(shape) - seeds.ndim + 1) + seeds.shape[:-1]
    free = [size if count == 1 else 1 for size, count in zip(shape, seeded, strict=True)]
    places = lax.iota(jnp.uint32, math.prod(free)).reshape(free)
    first, second = (seeds[..., i].reshape(seeded) for i in range(2))
    return jnp.broadcast_to(factors_at(places, first, second, rate), shape)


def factors_at(places: Array, first: Array, second: Array, rate: float) -> Float[Array, "..."]:
    """Factors of a dropout at some places: 0 or 1 / (1 - rate).

    Args:
        places: Places among those that share a seed, uint32.
        first: First random words of the seeds, uint32; they broadcast to the places.
        second: Their second words.
        rate: Probability of a zero, in [0, 1).

    Returns:
        An array of float32.
    """
    bits = _mixed(_mixed(places ^ first) ^ second)
    dropped = bits < jnp.uint32(int(rate * 2**32))
    return jnp.where(dropped, 0.0, 1.0 / (1.0 - rate))


def numbered_seeds(seed_2: UInt32[Array, "2"], numbers_K: Int[Array, " K"]) -> UInt32[Array, "K 2"]:
    """Random words for numbered parts of what a seed decides.

    Args:
        seed_2: Random words.
        numbers_K: Numbers of the parts.

    Returns:
        Two words for each.
    """
    mixed_K = _mixed(_mixed(numbers_K.astype(jnp.uint32) ^ seed_2[0]) ^ seed_2[1])
    return jnp.stack([mixed_K, _mixed(mixed_K + jnp.uint32(0x9E3779B9))], axis=-1)


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    # The finaliser of MurmurHash3, with the less biased constants that C. Wellons found
    # ("Prospecting for hash functions", 2018).
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
