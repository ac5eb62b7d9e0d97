"""Normalisation, with statistics in float32 whatever the compute dtype."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xformer.layers.lone_row import by_lone_row
from xformer.layers.parameter import with_axes


class LayerNorm(nn.LayerNorm):
    """A layer normalisation over the last axis, whose gradient is fast for a row by itself."""

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:  # type: ignore[override]
        """Normalises the last axis."""
        return by_lone_row(super().__call__, x)


def layer_norm(*, epsilon: float, dtype: jnp.dtype, name: str) -> LayerNorm:
    """A layer normalisation over the model width (Ba et al., 2016, arXiv:1607.06450).

    The variance is computed in two passes: the one-pass form loses digits where the mean is large.

    Args:
        epsilon: Added to the variance.
        dtype: Dtype of the result; the statistics are float32.
        name: Name of the submodule.

    Returns:
        The Linen module, with parameters `scale` and `bias` on the "embed" axis.
    """
    return LayerNorm(
        epsilon=epsilon,
        dtype=dtype,
        use_fast_variance=False,
        scale_init=with_axes(nn.initializers.ones, ("embed",)),
        bias_init=with_axes(nn.initializers.zeros, ("embed",)),
        name=name,
    )


class RMSNorm(nn.Module):
    """Division by the root mean square, without a mean (Zhang and Sennrich, arXiv:1910.07467).

    Attributes:
        epsilon: Added to the mean square.
        dtype: Dtype of the result; the mean square is float32. The parameter is `weight`.
        weight_init: Initial value of the weight.
    """

    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.dtype("float32")
    weight_init: float = 1.0

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Normalises the last axis."""
        weight_D = self.param(
            "weight",
            with_axes(nn.initializers.constant(self.weight_init), ("embed",)),
            x_BTD.shape[-1:],
            jnp.float32,
        )

        def normalise(x: Array) -> Array:
            square = jnp.mean(x * x, axis=-1, keepdims=True)
            normal = (x * jax.lax.rsqrt(square + self.epsilon)).astype(self.dtype)
            return normal * weight_D.astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))

        return by_lone_row(normalise, x_BTD.astype(jnp.float32))
