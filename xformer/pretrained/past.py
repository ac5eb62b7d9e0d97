"""The documented `past_key_values`: a decoder's cache as nested dicts under module names."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import traverse_util

from xformer.layers.cache import Cache, LayerCache

Path = tuple[str, ...]
_ENTRIES = ("cached_key", "cached_value", "cache_index")


def to_past(cache: Cache, paths: tuple[Path, ...]) -> dict[str, Any]:
    """A cache in the documented form.

    Args:
        cache: Keys and values.
        paths: The self-attention module of each layer in the parameter tree.

    Returns:
        Nested dicts that hold, under each path, `cached_key` and `cached_value` (batch, max_length,
        heads, head_dim) and `cache_index`, the number of tokens stored.
    """
    flat: dict[Path, Any] = {}
    for path, layer in zip(paths, cache.layers, strict=True):
        values = (layer.key_BSNH, layer.value_BSNH, cache.length)
        flat |= {(*path, name): value for name, value in zip(_ENTRIES, values, strict=True)}
    return traverse_util.unflatten_dict(flat)


def from_past(past_key_values: Mapping[str, Any], paths: tuple[Path, ...]) -> Cache:
    """The inverse of `to_past`.

    Args:
        past_key_values: What `init_cache` or an earlier call returned.
        paths: As for `to_past`.

    Returns:
        The cache.

    Raises:
        ValueError: if an entry is missing or is not part of this model.
    """
    flat = traverse_util.flatten_dict(past_key_values)
    wanted = {(*path, name) for path in paths for name in _ENTRIES}
    if flat.keys() != wanted:
        differing = sorted("/".join(path) for path in flat.keys() ^ wanted)
        raise ValueError(
            "past_key_values must come from init_cache of this model or from its outputs; missing "
            f"or foreign entries: {differing[:6]}"
        )
    entries = {path: [jnp.asarray(flat[*path, name]) for name in _ENTRIES] for path in paths}
    layers = tuple(LayerCache.of(key, value) for key, value, _ in entries.values())
    return Cache(layers, entries[paths[0]][2])
