"""Arguments of documented calls: NumPy, JAX or lists in, checked arrays out."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xformer.layers.cache import Cache

FORMER: Mapping[str, tuple[Any, ...]] = {
    "use_safetensors": (None, True),
    "from_tf": (False,),
    "_fast_init": (True, False),
    "low_cpu_mem_usage": (None, False, True),
}
"""Former arguments of models, with the values that ask for nothing but what happens anyway."""


def as_arrays(inputs: Mapping[str, Any], main: str, vocab_size: int) -> dict[str, jax.Array]:
    """The arguments that are given, as arrays of the dtypes that modules take.

    Args:
        inputs: Documented arguments by name; None means not given.
        main: Name of the one that holds token ids.
        vocab_size: Ids are below it.

    Returns:
        Ids and masks as int32, others as they are, on the default device.

    Raises:
        ValueError: if the ids have another rank, or one is outside of the vocabulary (looked at
            only where they are not on a device yet).
    """
    arrays = {}
    for name, value in inputs.items():
        if value is None:
            continue
        if name == main and not isinstance(value, jax.Array):
            _check_ids(name, np.asarray(value), vocab_size)
        whole = name.endswith(("_ids", "attention_mask"))
        arrays[name] = jnp.asarray(value, jnp.int32 if whole else None)
        if name == main and arrays[name].ndim != 2:
            raise ValueError(f"{name} must have shape (batch, length), got {arrays[name].shape}")
    return arrays


def check_cache(cache: Cache, arrays: Mapping[str, jax.Array], main: str) -> None:
    """Refuses tokens that a cache cannot take.

    Args:
        cache: Keys and values of earlier tokens.
        arrays: The arguments of the call; the module refuses a call without tokens.
        main: Name of the one that holds token ids.

    Raises:
        ValueError: if the cache has other rows, or no room.
    """
    tokens = arrays.get(main, arrays.get("inputs_embeds"))
    if tokens is None:
        return
    rows = cache.layers[0].key_BSNH.shape[0]
    if tokens.shape[0] != rows:
        raise ValueError(
            f"past_key_values of batch_size={rows} cannot take {tokens.shape[0]} rows; make "
            "another with init_cache"
        )
    cache.check_room(tokens.shape[1])


def _check_ids(name: str, ids: np.ndarray, vocab_size: int) -> None:
    """Refuses ids outside of the vocabulary, where looking at them costs nothing."""
    if ids.size and not (ids.min() >= 0 and ids.max() < vocab_size):
        raise ValueError(
            f"{name} must be below config.vocab_size={vocab_size} and not negative, got "
            f"{ids.min()} to {ids.max()}"
        )
