"""Checksums of arrays that do not depend on how they are sharded.

Storage can flip bits without an error, so every array is summed up on the device before it is
saved and after it is restored. An element's bits are multiplied by an odd number that depends on
its place and added modulo 2**32: addition is associative, so any sharding gives the same sum, and
an odd factor lets no single flipped bit vanish. A second lane with other factors catches what two
changes might hide from the first.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

_LANES = ((0x9E3779B1, 0x85EBCA6B), (0xC2B2AE35, 0x27D4EB2F))


def array_checksum(x: Array) -> UInt32[Array, "2"]:
    """The checksum of one array of any dtype of up to 8 bytes per element."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{min(x.dtype.itemsize, 4) * 8}"))
    words = words.astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.stack([(words * (_mix(place, *lane) | 1)).sum(dtype=jnp.uint32) for lane in _LANES])


def _mix(place: Array, multiplier: int, increment: int) -> Array:
    """Spreads a place over 32 bits."""
    h = place * jnp.uint32(multiplier) + jnp.uint32(increment)
    h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * jnp.uint32(0x846CA68B)
    return h ^ (h >> 16)


@jax.jit
def _tree_checksums(tree: Any) -> Any:
    return jax.tree.map(array_checksum, tree)


def tree_checksums(tree: Any) -> dict[str, str]:
    """The checksum of every array of a pytree.

    Args:
        tree: Arrays, however sharded.

    Returns:
        16 hexadecimal digits for each path.
    """
    sums = jax.tree_util.tree_flatten_with_path(jax.device_get(_tree_checksums(tree)))[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): "".join(
            f"{int(s):08x}" for s in lanes
        )
        for path, lanes in sums
    }
