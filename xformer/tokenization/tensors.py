"""Nested lists as arrays of NumPy or JAX."""

from collections.abc import Callable
from typing import Any

import numpy as np


def converter(tensor_type: str) -> Callable[[Any], Any]:
    """Gives what makes arrays of (nested) lists.

    Args:
        tensor_type: "np" or "jax".

    Returns:
        A function of a list, or of an array.

    Raises:
        ValueError: `tensor_type` is another.
    """
    if tensor_type == "np":
        return _numpy_array
    if tensor_type == "jax":
        import jax.numpy as jnp  # Here, because tokenizing needs no JAX.

        # Through NumPy: building an array from nested lists is many times faster there.
        return lambda value: jnp.asarray(_array(value))
    raise ValueError(
        f'return_tensors must be "np" or "jax" (or None for lists), got {tensor_type!r}'
    )


def moved(value: Any, device: Any) -> Any:
    """Puts an array of JAX onto a device.

    Args:
        value: anything; what is no array of JAX has no device, and stays as it is.
        device: a device or sharding of JAX, or the name of one: "cpu", "cuda", "tpu:1".

    Returns:
        The array there, or the value.

    Raises:
        ValueError: there is no such device.
    """
    import jax  # Here, because tokenizing needs no JAX.

    if not isinstance(value, jax.Array):
        return value
    return jax.device_put(value, _named_device(device) if isinstance(device, str) else device)


def _named_device(name: str) -> Any:
    import jax

    platform, _, index = name.partition(":")
    try:
        return jax.devices(platform)[int(index or 0)]
    except (RuntimeError, ValueError, IndexError) as error:
        found = ", ".join(sorted({one.platform for one in jax.local_devices()}))
        raise ValueError(f"device must be one of JAX's ({found}), got {name!r:.80}") from error


def _numpy_array(value: Any) -> np.ndarray:
    """An int64 array; rows of different lengths become an object array of rows."""
    if (
        isinstance(value, list | tuple)
        and value
        and isinstance(value[0], list | tuple | np.ndarray)
    ):
        if len({len(row) for row in value}) > 1:
            rows = np.empty(len(value), object)
            rows[:] = [np.asarray(row) for row in value]
            return rows
    return _array(value)


def _array(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array if array.size else array.astype(np.int64)  # NumPy calls what is empty a float.
