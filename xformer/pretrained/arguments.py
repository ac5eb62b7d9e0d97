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

_DTYPES = {"_ids": jnp.int32, "attention_mask": jnp.int32, "head_mask": jnp.float32}
"""Dtypes of arguments by the ends of their names."""


def as_arrays(
    inputs: Mapping[str, Any],
    *,
    main: str,
    axes: tuple[str, ...],
    limits: Mapping[str, tuple[str, int]],
) -> dict[str, jax.Array]:
    """The arguments that are given, as arrays of the dtypes that modules take.

    Args:
        inputs: Documented arguments by name; None means not given.
        main: Name of the one that holds token ids.
        axes: What its axes are.
        limits: For arguments that hold ids, the config field that they are below, and its value.

    Returns:
        Ids and masks of tokens as int32, masks of heads as float32, others as they are, on the
        default device.

    Raises:
        ValueError: if the ids have another rank, or one is out of range (looked at only where they
            are not on a device yet).
    """
    arrays = {}
    for name, value in inputs.items():
        if value is None:
            continue
        if name in limits and not isinstance(value, jax.Array):
            _check_ids(name, np.asarray(value), *limits[name])
        dtype = next((dtype for end, dtype in _DTYPES.items() if name.endswith(end)), None)
        arrays[name] = jnp.asarray(value, dtype)
        if name == main and arrays[name].ndim != len(axes):
            raise ValueError(
                f"{name} must have shape ({', '.join(axes)}), got {arrays[name].shape}"
            )
    return arrays


def check_cache(cache: Cache, arrays: Mapping[str, jax.Array]) -> None:
    """Refuses tokens that a cache cannot take.

    Args:
        cache: Keys and values of earlier tokens.
        arrays: The arguments of the call; the module refuses a call without tokens.

    Raises:
        ValueError: if the cache has other rows, or no room.
    """
    names = ("decoder_input_ids", "decoder_inputs_embeds", "input_ids", "inputs_embeds")
    tokens = next((arrays[name] for name in names if name in arrays), None)
    if tokens is None:
        return
    rows = cache.layers[0].key_BNSH.shape[0]
    if tokens.shape[0] != rows:
        raise ValueError(
            f"past_key_values of batch_size={rows} cannot take {tokens.shape[0]} rows; make "
            "another with init_cache"
        )
    cache.check_room(tokens.shape[1])


def _check_ids(name: str, ids: np.ndarray, key: str, limit: int) -> None:
    """Refuses ids that no table has, where looking at them costs nothing."""
    if ids.size and not (ids.min() >= 0 and ids.max() < limit):
        raise ValueError(
            f"{name} must be below config.{key}={limit} and not negative, got "
            f"{ids.min()} to {ids.max()}"
        )
