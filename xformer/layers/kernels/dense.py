"""Dense attention by kernels: a core like `dense_attention`, in memory linear in T and S.

Contexts and gradients come from kernels alone; in between there is nothing larger than the inputs.
The kernels of the device that the program is compiled for are taken; on CPUs those for TPUs are
interpreted, which is slow and meant for tests.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from xformer.layers.attention import CoreOutput, dense_attention, masked_heads
from xformer.layers.dropout import numbered_seeds
from xformer.layers.kernels import dense_gpu, dense_tpu
from xformer.layers.kernels.dense_tiles import Inputs
from xformer.layers.kernels.devices import by_platform, split
from xformer.layers.mask import Mask
from xformer.layers.relative_bias import DistanceBias
from xformer.layers.sharding import dividing_axes, mesh_axes

_KERNELS = {"tpu": dense_tpu, "cuda": dense_gpu}
_INTERPRETED = dense_tpu  # on other platforms

LEAST_QUERIES = 16
"""Fewer queries, as in decoding, leave most of a matrix unit idle, and few scores to keep."""


def attend_densely(
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
    """Attends by kernels; see `dense_attention` for the arguments.

    Equal to it but for two things: a query that may read no key gets zeros, and dropout draws other
    numbers, each made from its place alone. Probabilities, decoding with a cache, and few queries
    are left to `dense_attention`.

    Each device takes the rows of the batch and the heads that it has by the rules and the mesh in
    force. Where those do not divide them it takes all.

    Returns:
        The context, and on request the probabilities.

    Raises:
        ValueError: if the tokens of a row are split over devices; names the key.
    """
    (batch, length, heads, _), key_length = q_BTNH.shape, k_BSNH.shape[1]
    decodes = mask.query_start is not None or (bias is not None and length != key_length)
    if return_probabilities or decodes or length < LEAST_QUERIES:
        return dense_attention(
            q_BTNH,
            k_BSNH,
            v_BSNH,
            mask=mask,
            bias=bias,
            head_mask_N=head_mask_N,
            dropout_rate=dropout_rate,
            key=key,
            return_probabilities=return_probabilities,
        )
    if axes := mesh_axes("act_length"):
        raise ValueError(
            'Execution.attention="pallas" needs the tokens of a row on one device, got them split '
            f"over the mesh axes {axes}; set MeshConfig.sequence to 1, or Execution.attention to "
            '"xla"'
        )
    seeds_BN2 = None
    if key is not None and dropout_rate > 0.0:
        seeds_BN2 = numbered_seeds(jax.random.key_data(key)[:2], jnp.arange(batch * heads))
        seeds_BN2 = seeds_BN2.reshape(batch, heads, 2)
    task = _Task(
        mask.causal,
        dropout_rate,
        dividing_axes("act_batch", batch),
        dividing_axes("act_heads", heads),
    )
    queries_BT, keys_BS = mask.segments()
    inputs = Inputs(
        q_BTNH,
        k_BSNH,
        v_BSNH,
        queries_BT,
        keys_BS,
        None if bias is None else bias.by_distance_NC,
        seeds_BN2,
    )
    context_BTNH = _traced_once(task, inputs)
    return CoreOutput(masked_heads(context_BTNH, head_mask_N))


class _Task(NamedTuple):
    """The static part of what is computed.

    Attributes:
        causal: Whether a query reads only keys at its own place or before it.
        dropout: Probability of dropping a probability.
        rows: Mesh axes that the rows of the batch are split over.
        heads: Mesh axes that the heads are split over.
    """

    causal: bool
    dropout: float
    rows: tuple[str, ...]
    heads: tuple[str, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(task: _Task, inputs: Inputs) -> Float[Array, "B T N H"]:
    return _forward(task, inputs)[0]


def _forward(task: _Task, inputs: Inputs) -> tuple[Array, Any]:
    """The contexts, and what the backward pass needs."""
    out_BTNH, sums_BNT = _run(task, "contexts", inputs)
    return out_BTNH, (inputs, out_BTNH, sums_BNT)


def _backward(task: _Task, saved: Any, dout_BTNH: Array) -> tuple[Inputs]:
    """The gradients of queries, keys, values and biases."""
    inputs, out_BTNH, sums_BNT = saved
    means_BTN = (out_BTNH.astype(jnp.float32) * dout_BTNH).sum(-1)
    given = inputs._replace(
        dout_BTNH=dout_BTNH.astype(inputs.v_BSNH.dtype),
        sums_BNT=sums_BNT,
        means_BNT=means_BTN.swapaxes(1, 2),
    )
    dq_BTNH, dk_BSNH, dv_BSNH, dbias_NC = _run(task, "gradients", given)
    if inputs.bias_NC is not None:
        dbias_NC = dbias_NC.astype(inputs.bias_NC.dtype)
    return (Inputs(dq_BTNH, dk_BSNH, dv_BSNH, bias_NC=dbias_NC),)


_attend.defvjp(_forward, _backward)
_traced_once = jax.jit(_attend, static_argnums=0)  # for all layers of one shape


def _run(task: _Task, name: str, inputs: Inputs) -> Any:
    """Computes contexts or gradients with the kernels of each device, from what it has."""

    def run(kernels: Any, interpret: bool, inputs: Inputs) -> Any:
        compute = getattr(kernels, name)
        return compute(inputs, causal=task.causal, dropout=task.dropout, interpret=interpret)

    def on_device(inputs: Inputs) -> Any:
        found = by_platform(run, _KERNELS, _INTERPRETED, inputs)
        if name == "contexts" or inputs.bias_NC is None or not task.rows:
            return found
        *of_tokens, dbias_NC = found
        return *of_tokens, lax.psum(dbias_NC, task.rows)

    of_rows, of_heads = PartitionSpec(task.rows), PartitionSpec(task.heads)
    of_tokens = PartitionSpec(task.rows, None, task.heads)
    of_stats = PartitionSpec(task.rows, task.heads)
    of_queries = of_tokens, of_stats, of_stats
    specs = Inputs(*(of_tokens,) * 3, of_rows, of_rows, of_heads, of_stats, *of_queries)
    results = (of_tokens, of_stats) if name == "contexts" else (*(of_tokens,) * 3, of_heads)
    return split(on_device, (specs,), results)(inputs)
