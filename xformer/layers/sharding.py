"""What layers ask about the mesh that they are traced under."""

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

_gradient_dtype: ContextVar[jnp.dtype | None] = ContextVar("gradient_dtype", default=None)
_in_step: ContextVar[bool] = ContextVar("in_step", default=False)


def mesh_axes(name: str) -> tuple[str, ...]:
    """The mesh axes that a logical axis is split over, by the rules and the mesh in force.

    Args:
        name: A logical axis of `xformer.dims.DIMENSIONS`.

    Returns:
        Those of more than one device; none without rules or a mesh.
    """
    found: Any = nn.logical_to_mesh_axes((name,))
    axes = (found[0],) if isinstance(found[0], str) else tuple(found[0] or ())
    sizes = jax.sharding.get_abstract_mesh().shape
    return tuple(axis for axis in axes if sizes.get(axis, 1) > 1)


def dividing_axes(name: str, size: int) -> tuple[str, ...]:
    """The mesh axes that a logical axis of this size is split over; none if they do not divide it.

    Args:
        name: As for `mesh_axes`.
        size: Length of the array's axis.

    Returns:
        The axes, without those that a surrounding `jax.shard_map` has split already.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    axes = tuple(axis for axis in mesh_axes(name) if axis not in manual)
    return axes if size % ways(axes) == 0 else ()


def ways(axes: tuple[str, ...]) -> int:
    """The number of devices along mesh axes."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes[axis] for axis in axes)


def on_one_device() -> bool:
    """Whether what is traced is computed by one device, or is one device's part."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count() == 1  # arrays may be split all the same
    return ways(tuple(set(mesh.axis_names) - set(mesh.manual_axes))) == 1


def gradient_dtype() -> jnp.dtype | None:
    """The dtype that devices add up gradients of weights in; None is what their product gives."""
    return _gradient_dtype.get()


def in_step() -> bool:
    """Whether a step of a run is traced, which takes gradients in reverse alone, if at all."""
    return _in_step.get()


@contextlib.contextmanager
def step_with_gradients_in(dtype: jnp.dtype | None) -> Iterator[None]:
    """Within it, `gradient_dtype` gives this dtype, and `in_step` is true."""
    before = _gradient_dtype.set(dtype), _in_step.set(True)
    try:
        yield
    finally:
        _gradient_dtype.reset(before[0])
        _in_step.reset(before[1])
