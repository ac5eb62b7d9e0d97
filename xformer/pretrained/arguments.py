"""Arguments of documented calls: NumPy, JAX or lists in, checked arrays out."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xformer.layers.cache import Cache

_FORMER: Mapping[str, tuple[Any, ...]] = {
    "resume_download": (None, False, True),
    "proxies": (None, {}),
    "use_safetensors": (None, True),
    "from_tf": (False,),
    "_fast_init": (True, False),
    "low_cpu_mem_usage": (None, False, True),
}
"""Former arguments, with the values that ask for nothing that does not happen anyway."""


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


def without_former(
    token: str | bool | None, arguments: Mapping[str, Any]
) -> tuple[str | bool | None, dict[str, Any]]:
    """Takes out the arguments of the former `from_pretrained` that have no meaning here.

    Args:
        token: The hub's token.
        arguments: What was given beside the arguments that have one.

    Returns:
        The token, which `use_auth_token` also names, and the other arguments.

    Raises:
        ValueError: if one of them asks for what is not done here.
    """
    rest = dict(arguments)
    former_token = rest.pop("use_auth_token", None)
    for name, legal in _FORMER.items():
        value = rest.pop(name, legal[0])
        if value not in legal:
            raise ValueError(f"{name} must be one of {list(legal)} or be left out, got {value!r}")
    return (former_token if token is None else token), rest


def _check_ids(name: str, ids: np.ndarray, vocab_size: int) -> None:
    """Refuses ids outside of the vocabulary, where looking at them costs nothing."""
    if ids.size and not (ids.min() >= 0 and ids.max() < vocab_size):
        raise ValueError(
            f"{name} must be below config.vocab_size={vocab_size} and not negative, got "
            f"{ids.min()} to {ids.max()}"
        )
