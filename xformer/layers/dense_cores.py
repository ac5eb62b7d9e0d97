"""What computes dense attention, by how a model is computed."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from xformer.layers.attention import AttentionCore, CoreOutput, dense_attention, masked_heads
from xformer.layers.execution import Execution
from xformer.layers.mask import Mask
from xformer.layers.relative_bias import DistanceBias


def dense_core(execution: Execution) -> AttentionCore:
    """The core of attention without blocks.

    Args:
        execution: How the model is computed.

    Returns:
        The core that `Execution.attention` names.
    """
    match execution.attention:
        case "cudnn":
            return cudnn_attention
        case "pallas":
            # Not loaded where it is not asked for.
            from xformer.layers.kernels.dense import attend_densely

            return attend_densely
    return dense_attention


def cudnn_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BSNH: Float[Array, "B S N H"],
    v_BSNH: Float[Array, "B S N H"],
    *,
    mask: Mask,
    bias: DistanceBias | None = None,
    head_mask_N: Float[Array, " N"] | None = None,
    dropout_rate: float = 0.0,
    key: PRNGKeyArray | None = None,
    return_probabilities: bool = False,
) -> CoreOutput:
    """Attends by cuDNN, on NVIDIA GPUs alone; see `dense_attention` for the arguments.

    Where a causal mask is all there is, nothing of the size T x S is stored; padding and documents
    are an array of T x S for each row of the batch. Probabilities and decoding with a cache are
    left to `dense_attention`.

    Returns:
        The context, and on request the probabilities.

    Raises:
        ValueError: if there is a bias, or dropout; names the key.
    """
    if bias is not None or (key is not None and dropout_rate > 0.0):
        raise ValueError(
            'Execution.attention="cudnn" computes neither biases by distance nor dropout of '
            'probabilities; set Execution.attention to "pallas" or "xla"'
        )
    if return_probabilities or mask.query_start is not None or q_BTNH.shape[1] == 1:
        return dense_attention(
            q_BTNH,
            k_BSNH,
            v_BSNH,
            mask=mask,
            head_mask_N=head_mask_N,
            return_probabilities=return_probabilities,
        )
    (batch, length, _, _), key_length = q_BTNH.shape, k_BSNH.shape[1]
    allowed = dataclasses.replace(mask, causal=False).materialize(length, key_length)
    if allowed is not None:
        # In training cuDNN takes no odd lengths with a mask, which leaves the rest unread.
        queries, keys = length % 2, key_length % 2
        allowed = jnp.broadcast_to(allowed, (batch, 1, length, key_length))
        allowed = jnp.pad(allowed, ((0, 0), (0, 0), (0, queries), (0, keys)))
        q_BTNH, k_BSNH, v_BSNH = (
            jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0)))
            for x, more in ((q_BTNH, queries), (k_BSNH, keys), (v_BSNH, keys))
        )
    context_BTNH = jax.nn.dot_product_attention(
        q_BTNH,
        k_BSNH,
        v_BSNH,
        mask=allowed,
        scale=1.0,
        is_causal=mask.causal,
        implementation="cudnn",
    )[:, :length]
    return CoreOutput(masked_heads(context_BTNH, head_mask_N))
