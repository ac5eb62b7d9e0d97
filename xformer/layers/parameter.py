"""Naming the axes of parameters, and finding what decoding keeps in place of some."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax.typing import Initializer
from jaxtyping import Array, Float


def with_axes(init: Initializer, axes: tuple[str | None, ...]) -> Callable[..., Any]:
    """An initializer whose result remembers the logical axes of its dimensions.

    Args:
        init: The initializer.
        axes: Parameter axes of `xformer.dims.DIMENSIONS`, one per dimension; None for one
            that is never split.

    Returns:
        An initializer for `nn.Module.param`, which hands out the plain array.
    """
    return nn.with_logical_partitioning(init, axes)


OUTPUTS_FIRST = "kernel_OI"
"""What decoding keeps in place of a parameter "kernel" of (inputs, outputs): its transpose."""


def scale_name(name: str) -> str:
    """What the scales of a parameter are called, beside which they stand."""
    return f"{name}_scale"


def scales(module: nn.Module, name: str) -> Float[Array, "*channels"] | None:
    """What the outputs of a matrix are multiplied with where decoding keeps it as int8.

    Args:
        module: The module whose parameter it is.
        name: The parameter's name.

    Returns:
        A factor for each output channel of a kernel, or for each row of a table; None for a
        parameter that is kept as it is.
    """
    return module.get_variable("params", scale_name(name))
