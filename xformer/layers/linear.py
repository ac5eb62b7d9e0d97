"""Projections along the last axis."""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Initializer
from jaxtyping import Array, Float

from xformer.layers.parameter import with_axes


class Linear(nn.Module):
    """A dense projection `x @ kernel + bias`.

    Attributes:
        features: Output width.
        axes: Logical axes of the kernel, (input, output); the bias carries the second.
        use_bias: Whether a bias is added.
        dtype: Compute dtype; parameters are float32.
        output_dtype: Dtype that the product accumulates in and has; `dtype` if None.
        kernel_init: Initializer of the kernel. The bias starts at zero.
    """

    features: int
    axes: tuple[str, str]
    use_bias: bool = True
    dtype: jnp.dtype = jnp.dtype("float32")
    output_dtype: jnp.dtype | None = None
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        """Projects the last axis of `x` onto `features`."""
        kernel = self.param(
            "kernel",
            with_axes(self.kernel_init, self.axes),
            (x.shape[-1], self.features),
            jnp.float32,
        )
        dtype = self.output_dtype or self.dtype
        y = jnp.matmul(
            x.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=dtype
        )
        if not self.use_bias:
            return y
        bias = self.param(
            "bias",
            with_axes(nn.initializers.zeros, self.axes[1:]),
            (self.features,),
            jnp.float32,
        )
        return y + bias.astype(dtype).reshape((1,) * (y.ndim - 1) + (-1,))
