"""The position-wise feed-forward network."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jaxtyping import Array, Float, PRNGKeyArray

from xformer.layers.dropout import dropout
from xformer.layers.linear import Linear


@jax.custom_jvp
def exact_gelu(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """`x` times the probability that a normal variable is below it, computed in float32.

    As published, by the error function: its complement, which `jax.nn.gelu` takes, needs three
    times as long on CPUs. The backward pass keeps one array in the dtype of `x`, the slope.

    Args:
        x: Any numbers.

    Returns:
        As many of the same dtype.
    """
    y = x.astype(jnp.float32)
    return (y * _below(y)).astype(x.dtype)


@exact_gelu.defjvp
def _exact_gelu_jvp(inputs: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = inputs, tangents
    y = x.astype(jnp.float32)
    slope = _below(y) + y * jnp.exp(-0.5 * y * y) * (2 * math.pi) ** -0.5
    return exact_gelu(x), dx * slope.astype(x.dtype)


def _below(x: Array) -> Array:
    """The probability that a normal variable is below `x`."""
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": exact_gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
"""Activation functions by their documented names: "gelu" is exact, "gelu_new" its tanh form."""


def feed_forward(
    x_BTD: Float[Array, "B T D"],
    *,
    width: int,
    activation: str,
    names: tuple[str, ...],
    dropout_rate: float = 0.0,
    use_bias: bool = True,
    dtype: jnp.dtype,
    down_dtype: jnp.dtype | None = None,
    kernel_init: Initializer,
    down_init: Initializer | None = None,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "B T D"]:
    """Two projections around an activation (Vaswani et al., 2017, section 3.3).

    With three names the activated projection is multiplied by another one, a gated linear unit
    (Shazeer, 2020, arXiv:2002.05202).

    Called inside a compact method: the projections become submodules of the caller, which is
    where the families' published parameter trees have them.

    Args:
        x_BTD: Hidden states.
        width: Width of the hidden layer, F.
        activation: A key of `ACTIVATIONS`.
        names: Names of the projections in the parameter tree: up and down; or activated, gated
            and down.
        dropout_rate: Dropout on the hidden layer.
        use_bias: Whether the projections have biases.
        dtype: Compute dtype.
        down_dtype: That of the last projection, if another.
        kernel_init: Initializer of the projections.
        down_init: That of the last projection, if another.
        key: Random key of the dropout; None means evaluation.

    Returns:
        The network's result for every position.
    """
    *up_names, down_name = names
    up_BTF = [
        nn.with_logical_constraint(
            Linear(
                width,
                ("embed", "mlp"),
                use_bias=use_bias,
                dtype=dtype,
                kernel_init=kernel_init,
                name=name,
            )(x_BTD),
            ("act_batch", "act_length", "act_mlp"),
        )
        for name in up_names
    ]
    h_BTF = ACTIVATIONS[activation](up_BTF[0])
    if len(up_BTF) == 2:
        h_BTF = h_BTF * up_BTF[1]
    down = Linear(
        x_BTD.shape[-1],
        ("mlp", "embed"),
        use_bias=use_bias,
        dtype=down_dtype or dtype,
        kernel_init=down_init or kernel_init,
        name=down_name,
    )
    return down(dropout(h_BTF, dropout_rate, key))


class Intermediate(nn.Module):
    """The first half of a feed-forward network, in a module of its own: projection, activation.

    The parameters are `dense/{kernel,bias}`, as BERT and its relatives have them; `ResidualNorm` is
    the second half.

    Attributes:
        width: Width of the hidden layer, F.
        activation: A key of `ACTIVATIONS`.
        projection: Module class or factory for the projection, called like `Linear`.
        dtype: Compute dtype.
        kernel_init: Initializer of the projection.
    """

    width: int
    activation: str
    projection: Callable[..., nn.Module] = Linear
    dtype: jnp.dtype = jnp.dtype("float32")
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T F"]:
        """Computes the hidden layer of every position."""
        h_BTF = self.projection(
            features=self.width,
            axes=("embed", "mlp"),
            dtype=self.dtype,
            activation=ACTIVATIONS[self.activation],
            kernel_init=self.kernel_init,
            name="dense",
        )(x_BTD)
        return nn.with_logical_constraint(h_BTF, ("act_batch", "act_length", "act_mlp"))
