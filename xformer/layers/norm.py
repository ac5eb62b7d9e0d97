"""Normalisation, with statistics in float32 whatever the compute dtype."""

import flax.linen as nn
import jax.numpy as jnp

from xformer.layers.parameter import with_axes


def layer_norm(*, epsilon: float, dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    """A layer normalisation over the model width (Ba et al., 2016, arXiv:1607.06450).

    The variance is computed in two passes: the one-pass form loses digits where the mean is large.

    Args:
        epsilon: Added to the variance.
        dtype: Dtype of the result; the statistics are float32.
        name: Name of the submodule.

    Returns:
        The Linen module, with parameters `scale` and `bias` on the "embed" axis.
    """
    return nn.LayerNorm(
        epsilon=epsilon,
        dtype=dtype,
        use_fast_variance=False,
        scale_init=with_axes(nn.initializers.ones, ("embed",)),
        bias_init=with_axes(nn.initializers.zeros, ("embed",)),
        name=name,
    )
