"""Multi-head attention: projections around a core that can be exchanged.

A core is a function of the signature of `dense_attention`. Masks and biases reach it as
descriptions (`xformer.layers.mask.Mask`, `xformer.layers.relative_bias.DistanceBias`), so that a
core that needs no array of size T x S never makes one.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.typing import Initializer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from xformer.layers.cache import LayerCache
from xformer.layers.dropout import dropout
from xformer.layers.linear import Linear
from xformer.layers.mask import Mask
from xformer.layers.relative_bias import DistanceBias


@struct.dataclass
class CoreOutput:
    """What a core returns.

    Attributes:
        context_BTNH: Weighted sums of the values.
        probabilities_BNTS: Attention probabilities (after the head mask, before dropout) if they
            were asked for, else None.
    """

    context_BTNH: Float[Array, "B T N H"]
    probabilities_BNTS: Float[Array, "B N T S"] | None = None


def masked_heads(
    context_BTNH: Float[Array, "B T N H"], head_mask_N: Float[Array, " N"] | None
) -> Float[Array, "B T N H"]:
    """Contexts times the factors of their heads, for cores that make no probabilities to mask."""
    if head_mask_N is None:
        return context_BTNH
    return context_BTNH * head_mask_N.astype(context_BTNH.dtype)[None, None, :, None]


@runtime_checkable
class AttentionCore(Protocol):
    """The signature that every core has; see `dense_attention` for the meaning."""

    def __call__(
        self,
        q_BTNH: Float[Array, "B T N H"],
        k_BSNH: Float[Array, "B S N H"],
        v_BSNH: Float[Array, "B S N H"],
        *,
        mask: Mask,
        bias: DistanceBias | None,
        head_mask_N: Float[Array, " N"] | None,
        dropout_rate: float,
        key: PRNGKeyArray | None,
        return_probabilities: bool,
    ) -> CoreOutput:
        """Computes attention."""
        ...


def dense_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BSNH: Float[Array, "B S N H"],
    v_BSNH: Float[Array, "B S N H"],
    *,
    mask: Mask,
    bias: DistanceBias | Float[Array, "_ #N T S"] | None = None,
    head_mask_N: Float[Array, " N"] | None = None,
    dropout_rate: float = 0.0,
    key: PRNGKeyArray | None = None,
    return_probabilities: bool = False,
) -> CoreOutput:
    """Every query against every key (Vaswani et al., 2017, section 3.2.1), the reference core.

    Scores and softmax are float32 whatever the inputs' dtype. A query that may read no key at all
    weighs all keys alike instead of giving NaN.

    Args:
        q_BTNH: Queries, already scaled.
        k_BSNH: Keys.
        v_BSNH: Values.
        mask: Who may read whom.
        bias: Added to the scores; this core takes an array too.
        head_mask_N: Factor on the probabilities of each head.
        dropout_rate: Probability of dropping a probability.
        key: Random key of the dropout; None means evaluation.
        return_probabilities: Whether the output carries the probabilities.

    Returns:
        The context in the values' dtype, and the probabilities on request.
    """
    # Heads first: XLA's CPU compiler takes twice as long for products over heads in the middle.
    q_BNTH, k_BNSH, v_BNSH = (x.swapaxes(1, 2) for x in (q_BTNH, k_BSNH, v_BSNH))
    scores_BNTS = jnp.einsum("BNTH,BNSH->BNTS", q_BNTH, k_BNSH, preferred_element_type=jnp.float32)
    if isinstance(bias, DistanceBias):
        bias = bias.materialize(q_BTNH.shape[1])
    if bias is not None:
        scores_BNTS = scores_BNTS + bias.astype(jnp.float32)
    allowed = mask.materialize(q_BTNH.shape[1], k_BSNH.shape[1])
    if allowed is not None:
        scores_BNTS = jnp.where(allowed, scores_BNTS, jnp.finfo(jnp.float32).min)
    weights_BNTS = jax.nn.softmax(scores_BNTS, axis=-1)
    if head_mask_N is not None:
        weights_BNTS = weights_BNTS * head_mask_N.astype(jnp.float32)[None, :, None, None]
    weights_BNTS = weights_BNTS.astype(v_BSNH.dtype)
    dropped_BNTS = dropout(weights_BNTS, dropout_rate, key)
    context_BNTH = jnp.einsum("BNTS,BNSH->BNTH", dropped_BNTS, v_BNSH)
    return CoreOutput(context_BNTH.swapaxes(1, 2), weights_BNTS if return_probabilities else None)


class ProjectionNames(NamedTuple):
    """Names of the four projections in the parameter tree.

    Without an output projection the heads' contexts are returned side by side: families with their
    own sublayer behind the heads keep that projection there.
    """

    query: str
    key: str
    value: str
    output: str | None


@struct.dataclass
class AttentionOutput:
    """What `MultiHeadAttention` returns.

    Attributes:
        x_BTD: The layer's result; without an output projection its width is that of all heads.
        read: The keys and values that were read, with those of a cache.
        probabilities_BNTS: Attention probabilities if they were asked for, else None.
    """

    x_BTD: Float[Array, "B T D"]
    read: LayerCache
    probabilities_BNTS: Float[Array, "B N T S"] | None = None


class MultiHeadAttention(nn.Module):
    """Self- or cross-attention over heads.

    Attributes:
        num_heads: Number of heads, N.
        head_dim: Width of a head, H.
        names: Names of the projections in the parameter tree.
        query_scale: Factor on the queries.
        core: What combines queries, keys and values.
        projection: Module class or factory for the projections, called like `Linear`.
        use_bias: Whether the projections have biases.
        dropout_rate: Dropout on the attention probabilities.
        dtype: Compute dtype.
        kernel_init: Initializer of the projections.
        relative_bias: Makes what is added to the scores, called like a `RelativeBias`; None adds
            nothing.
    """

    num_heads: int
    head_dim: int
    names: ProjectionNames
    query_scale: float
    core: AttentionCore = dense_attention
    projection: Callable[..., nn.Module] = Linear
    use_bias: bool = True
    dropout_rate: float = 0.0
    dtype: jnp.dtype = jnp.dtype("float32")
    kernel_init: Initializer = nn.initializers.lecun_normal()
    relative_bias: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        memory: Float[Array, "B S D"] | LayerCache | None = None,
        *,
        mask: Mask,
        head_mask_N: Float[Array, " N"] | None = None,
        cache: LayerCache | None = None,
        cache_start: Int[Array, ""] | None = None,
        key: PRNGKeyArray | None = None,
        return_probabilities: bool = False,
    ) -> AttentionOutput:
        """Attends from `x_BTD` to itself, or to `memory` if that is given.

        Args:
            x_BTD: Where the queries come from.
            memory: Where the keys and values come from, or those themselves as an earlier call
                returned them; None means `x_BTD`.
            mask: Who may read whom.
            head_mask_N: Factor on the probabilities of each head.
            cache: Keys and values of earlier tokens; the new ones are appended to it.
            cache_start: Number of tokens in the cache.
            key: Random key of the dropout; None means evaluation.
            return_probabilities: Whether the output carries the probabilities.

        Returns:
            The projected context, the keys and values and, on request, the probabilities.

        Raises:
            ValueError: if there is a cache but no `cache_start`.
        """
        q_BTNH = self._heads(self.names.query, x_BTD) * self.query_scale
        if isinstance(memory, LayerCache):
            read = memory
        else:
            source = x_BTD if memory is None else memory
            read = LayerCache.of(
                self._heads(self.names.key, source), self._heads(self.names.value, source)
            )
        if cache is not None:
            if cache_start is None:
                raise ValueError("a cache needs cache_start, the number of tokens in it")
            read = cache.append(read, cache_start)
        bias = None
        if self.relative_bias is not None:
            lengths = x_BTD.shape[1], read.key_BSNH.shape[1]
            bias = self.relative_bias()(*lengths, cache_start)
        out = self.core(
            q_BTNH,
            read.key_BSNH,
            read.value_BSNH,
            mask=mask,
            bias=bias,
            head_mask_N=head_mask_N,
            dropout_rate=self.dropout_rate,
            key=key,
            return_probabilities=return_probabilities,
        )
        merged = out.context_BTNH.reshape(*x_BTD.shape[:2], self.num_heads * self.head_dim)
        if self.names.output is not None:
            project = self._project(self.names.output, x_BTD.shape[-1], ("heads", "embed"))
            merged = project(merged)
        return AttentionOutput(merged, read, out.probabilities_BNTS)

    def _project(self, name: str, features: int, axes: tuple[str, str]) -> nn.Module:
        return self.projection(
            features=features,
            axes=axes,
            use_bias=self.use_bias,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            name=name,
        )

    def _heads(self, name: str, x_BSD: Float[Array, "B S D"]) -> Float[Array, "B S N H"]:
        y = self._project(name, self.num_heads * self.head_dim, ("embed", "heads"))(x_BSD)
        y = y.reshape(*x_BSD.shape[:2], self.num_heads, self.head_dim)
        return nn.with_logical_constraint(y, ("act_batch", "act_length", "act_heads", None))
