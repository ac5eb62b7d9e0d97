"""Projections along the last axis."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Num

from xformer.layers.parameter import OUTPUTS_FIRST, scales, with_axes
from xformer.layers.sharding import gradient_dtype, in_step

GROUPED_PRODUCT = "grouped_product"
"""What `jax.checkpoint` knows products of groups by: it sees no weights in products of batches."""

_FEW_ROWS = 64
"""Most rows that CPUs multiply faster with a matrix that comes first; with 128 it is as fast."""


class Linear(nn.Module):
    """A dense projection `x @ kernel + bias`.

    Attributes:
        features: Output width.
        axes: Logical axes of the kernel, (input, output), None for one without a name; the bias
            carries the second.
        use_bias: Whether a bias is added.
        dtype: Compute dtype; parameters are float32, or what decoding keeps them as.
        output_dtype: Dtype that the product accumulates in and has; `dtype` if None.
        kernel_init: Initializer of the kernel. The bias starts at zero.
        activation: Applied to the sum; None for none.
    """

    features: int
    axes: tuple[str | None, str | None]
    use_bias: bool = True
    dtype: jnp.dtype = jnp.dtype("float32")
    output_dtype: jnp.dtype | None = None
    kernel_init: Initializer = nn.initializers.lecun_normal()
    activation: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        """Projects the last axis of `x` onto `features`."""
        dtype = self.output_dtype or self.dtype
        kept_OI: Any = self.get_variable("params", OUTPUTS_FIRST)
        if kept_OI is not None:
            kept = multiply_kept(x.astype(self.dtype), kept_OI, scales(self, "kernel"))
            y = kept.astype(dtype)
        else:
            kernel = self.param(
                "kernel",
                with_axes(self.kernel_init, self.axes),
                (x.shape[-1], self.features),
                jnp.float32,
            )
            y = multiply(x.astype(self.dtype), kernel, dtype)
        if self.use_bias:
            bias = self.param(
                "bias",
                with_axes(nn.initializers.zeros, self.axes[1:]),
                (self.features,),
                jnp.float32,
            )
            y = y + bias.astype(dtype).reshape((1,) * (y.ndim - 1) + (-1,))
        return y if self.activation is None else self.activation(y)


class GroupedLinear(nn.Module):
    """A grouped convolution of width one (Iandola et al., 2020, arXiv:2006.11316).

    Each group of the output sees one group of the input: `y[g] = x[g] @ kernel[g] + bias[g]`.

    Groups are neighbouring channels, in order. The projection has 1 / groups of the weights and
    work of `Linear`.

    Attributes:
        features: Output width.
        axes: Logical axes of the kernel without its groups, (input, output).
        groups: Number of groups; must divide both widths.
        use_bias: Whether a bias is added.
        dtype: Compute dtype; parameters are float32.
        kernel_init: Initializer of the kernel, (groups, inputs, outputs of a group). The
            bias starts at zero.
        activation: Applied to the sum, while the groups are in front; None for none.
    """

    features: int
    axes: tuple[str | None, str | None]
    groups: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.dtype("float32")
    kernel_init: Initializer = nn.initializers.lecun_normal(batch_axis=0)
    activation: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T F"]:
        """Projects the last axis of `x_BTD` onto `features`, group by group.

        Args:
            x_BTD: Activations.

        Returns:
            Activations of width `features`.

        Raises:
            ValueError: if the groups do not divide the widths.
        """
        batch, length, width = x_BTD.shape
        if width % self.groups or self.features % self.groups:
            raise ValueError(
                f"GroupedLinear.groups={self.groups} must divide the widths {width} and "
                f"{self.features}"
            )
        # Products of leading groups take two thirds of the time on CPUs; projections that follow
        # each other leave them in front.
        x_BTGD = x_BTD.astype(self.dtype).reshape(batch, length, self.groups, -1)
        x_GBTD = jnp.moveaxis(x_BTGD, 2, 0)
        kept_GFD: Any = self.get_variable("params", OUTPUTS_FIRST)
        if kept_GFD is not None:
            kept = jax.vmap(multiply_kept)(x_GBTD, kept_GFD, scales(self, "kernel"))
            y_GBTF = kept.astype(self.dtype)
        else:
            kernel_GDF = self.param(
                "kernel",
                with_axes(self.kernel_init, ("groups", *self.axes)),
                (self.groups, width // self.groups, self.features // self.groups),
                jnp.float32,
            )
            y_GBTF = multiply(x_GBTD, kernel_GDF, self.dtype)
        if self.use_bias:
            bias_F = self.param(
                "bias",
                with_axes(nn.initializers.zeros, self.axes[1:]),
                (self.features,),
                jnp.float32,
            )
            y_GBTF = y_GBTF + bias_F.astype(self.dtype).reshape(self.groups, 1, 1, -1)
        if self.activation is not None:
            y_GBTF = self.activation(y_GBTF)
        return jnp.moveaxis(y_GBTF, 0, 2).reshape(batch, length, self.features)


def multiply(
    x: Float[Array, "*batch I"], kernel: Float[Array, "*G I O"], dtype: jnp.dtype
) -> Float[Array, "*batch O"]:
    """Multiplies the last axis with a kernel, or that of each leading group with its own.

    Devices add up the kernel's gradient as it leaves its product: in the dtype of `x`, unless
    `MeshConfig.gradient_dtype` names another. In steps of a run the backward pass is made of
    products that XLA's CPU compiler turns little around for; elsewhere JAX derives it, so that
    models have derivatives of every kind.

    Args:
        x: Activations in the compute dtype, (..., inputs) or (groups, ..., inputs).
        kernel: The kernel in float32.
        dtype: Dtype that the product accumulates in and has.

    Returns:
        The product.
    """
    if not in_step():
        return _multiply(dtype, x, kernel)
    return _multiply_apart(dtype, gradient_dtype(), x, kernel)


def _multiply(dtype: jnp.dtype, x: Array, kernel: Array) -> Array:
    kernel = kernel.astype(x.dtype)
    if kernel.ndim == 2:
        return jnp.matmul(x, kernel, preferred_element_type=dtype)
    product = jnp.einsum("GBTD,GDF->GBTF", x, kernel, preferred_element_type=dtype)
    return checkpoint_name(product, GROUPED_PRODUCT)


def multiply_kept(
    x: Float[Array, "*batch I"],
    matrix_OI: Num[Array, "O I"],
    scale_O: Float[Array, " O"] | None = None,
) -> Float[Array, "*batch O"]:
    """Multiplies with a matrix as decoding keeps it, into float32.

    CPUs rearrange the second operand of a product before they multiply. For few rows it is these
    that come second, so that the matrix is read once, and in order.

    Args:
        x: Activations.
        matrix_OI: The matrix; integers are multiplied with as numbers of the dtype of `x`.
        scale_O: What the products are multiplied with; None for nothing.

    Returns:
        The product.
    """
    matrix_OI = matrix_OI.astype(x.dtype)
    if math.prod(x.shape[:-1]) <= _FEW_ROWS:
        y = lax.platform_dependent(x, matrix_OI, cpu=_product_with_few, default=_product)
    else:
        y = _product(x, matrix_OI)
    return y if scale_O is None else y * jnp.expand_dims(scale_O, range(y.ndim - 1))


def _product(x: Array, matrix_OI: Array) -> Array:
    sides = ((x.ndim - 1,), (1,)), ((), ())
    return lax.dot_general(x, matrix_OI, sides, preferred_element_type=jnp.float32)


def _product_with_few(x: Array, matrix_OI: Array) -> Array:
    # XLA makes a float32 copy of a bfloat16 matrix that one row is multiplied with, none with two.
    x_RI = lax.optimization_barrier(x.reshape(-1, x.shape[-1]))
    twice = len(x_RI) == 1 and x.dtype == jnp.bfloat16
    y_OR = _product(matrix_OI, jnp.concatenate([x_RI, x_RI]) if twice else x_RI)
    y_OR = lax.optimization_barrier(y_OR)  # or XLA turns the product round
    return y_OR[:, : len(x_RI)].T.reshape(*x.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _multiply_apart(dtype: jnp.dtype, wanted: jnp.dtype | None, x: Array, kernel: Array) -> Array:
    return _multiply(dtype, x, kernel)


def _forward(
    dtype: jnp.dtype, wanted: jnp.dtype | None, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _multiply(dtype, x, kernel), (x, kernel)


def _backward(
    dtype: jnp.dtype, wanted: jnp.dtype | None, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    """The gradients of activations and kernel, the latter as a product of its own."""
    x, kernel = saved
    groups = tuple(range(kernel.ndim - 2))
    places = tuple(range(len(groups), x.ndim - 1))
    last = x.ndim - 1, kernel.ndim - 1
    dx = lax.dot_general(
        dy,
        kernel.astype(x.dtype).astype(dy.dtype),
        ((last[:1], last[1:]), (groups, groups)),
        preferred_element_type=x.dtype,
    )
    # No product is made in less than its operands have: who wants less, has less multiplied.
    operands = jnp.promote_types(x.dtype, dy.dtype)
    if wanted is not None:
        operands = min(operands, wanted, key=lambda one: jnp.dtype(one).itemsize)
    # The narrower one first: XLA's CPU compiler computes it anew in another order.
    is_turned = dy.shape[-1] < x.shape[-1]
    first, second = (dy, x) if is_turned else (x, dy)
    dkernel = lax.dot_general(
        first.astype(operands),
        second.astype(operands),
        ((places, places), (groups, groups)),
        preferred_element_type=wanted or operands,
    )
    dkernel = dkernel.swapaxes(-1, -2) if is_turned else dkernel
    return dx, dkernel.astype(wanted or x.dtype).astype(kernel.dtype)


_multiply_apart.defvjp(_forward, _backward)
