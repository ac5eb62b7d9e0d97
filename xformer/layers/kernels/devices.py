"""Where kernels run: each device takes what it has, by the kernels of its platform."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import lax

from xformer.layers.sharding import ways


def split(run: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """A function over all devices of the mesh in force, for the compiler cannot split kernels.

    Args:
        run: What each device computes from its parts.
        in_specs: How its arguments are split, as `jax.shard_map` takes them.
        out_specs: How its results are.

    Returns:
        The function; `run` itself where there is but one device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = set(mesh.axis_names) - set(mesh.manual_axes)
    if ways(tuple(free)) == 1:
        return run
    return jax.shard_map(
        run, in_specs=in_specs, out_specs=out_specs, axis_names=free, check_vma=False
    )


def by_platform(
    run: Callable[..., Any], kernels: Mapping[str, Any], interpreted: Any, *arrays: Any
) -> Any:
    """Computes with the kernels of the device that the program is compiled for.

    Args:
        run: Called with the kernels, whether to interpret them, and the arrays.
        kernels: The kernels of each platform.
        interpreted: Those that other platforms interpret, which is slow and meant for tests.
        arrays: Pytrees of arrays.

    Returns:
        What `run` returns.
    """
    compiled = {name: functools.partial(run, one, False) for name, one in kernels.items()}
    interpret = functools.partial(run, interpreted, True)
    return lax.platform_dependent(*arrays, **compiled, default=interpret)
