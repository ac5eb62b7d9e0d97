"""Block-sparse attention by kernels: an exchange for `xformer.layers.block_rows.attend_in_blocks`.

Contexts and gradients come from kernels alone; in between there is nothing larger than the inputs.
The kernels of the device that the program is compiled for are taken; on CPUs those for TPUs are
interpreted, which is slow and meant for tests.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from xformer.layers.block_reading import Given, Reading, check_width
from xformer.layers.kernels import block_gpu, block_tpu
from xformer.layers.kernels.block_dropout import draws
from xformer.layers.kernels.devices import by_platform, split
from xformer.layers.sharding import dividing_axes

_KERNELS = {"tpu": block_tpu, "cuda": block_gpu}
_INTERPRETED = block_tpu  # on other platforms


def attend_by_kernels(
    reading: Reading,
    q_BTNH: Float[Array, "B T N H"],
    k_BTNH: Float[Array, "B T N H"],
    v_BTNH: Float[Array, "B T N H"],
    given: Given,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "B T N H"]:
    """Called like `attend_in_blocks`, and equal to it.

    The compiler cannot split a kernel over devices: each takes the rows of the batch and the heads
    that it has by the rules and the mesh in force. Where those do not divide them it takes all.

    Args:
        reading: Who reads whom, the static part.
        q_BTNH: Queries, already scaled; T is a multiple of the block size.
        k_BTNH: Keys.
        v_BTNH: Values.
        given: Who reads whom, the arrays.
        key: Random key of the dropout; None means evaluation.

    Returns:
        The contexts in the values' dtype.

    Raises:
        ValueError: if the blocks have a width that no kernel takes, or the tokens are split over
            devices; names the key.
    """
    check_width(reading.block_size)
    if key is not None and reading.dropout_rate:
        given = dataclasses.replace(given, seed_2=jax.random.key_data(key)[:2])
    if reading.axes:
        raise ValueError(
            'Execution.attention="pallas" needs the tokens of a row on one device, got them split '
            f"over the mesh axes {reading.axes}; set MeshConfig.sequence to 1, or "
            'Execution.attention to "xla"'
        )
    batch, _, heads, _ = q_BTNH.shape
    task = _Task(reading, dividing_axes("act_batch", batch), dividing_axes("act_heads", heads))
    return _traced_once(task, q_BTNH, k_BTNH, v_BTNH, given)


class _Task(NamedTuple):
    """The static part of what is computed.

    Attributes:
        reading: Who reads whom.
        rows: Mesh axes that the rows of the batch are split over.
        heads: Mesh axes that the heads are split over.
    """

    reading: Reading
    rows: tuple[str, ...]
    heads: tuple[str, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    task: _Task, q_BTNH: Array, k_BTNH: Array, v_BTNH: Array, given: Given
) -> Float[Array, "B T N H"]:
    return _forward(task, q_BTNH, k_BTNH, v_BTNH, given)[0]


def _forward(
    task: _Task, q_BTNH: Array, k_BTNH: Array, v_BTNH: Array, given: Given
) -> tuple[Array, Any]:
    """The contexts, and what the backward pass needs."""
    out_BTNH, sums_BNT = _run(task, "contexts", given, (q_BTNH, k_BTNH, v_BTNH))
    return out_BTNH, (q_BTNH, k_BTNH, v_BTNH, given, out_BTNH, sums_BNT)


def _backward(task: _Task, saved: Any, dout_BTNH: Array) -> tuple[Array, Array, Array, None]:
    """The gradients of queries, keys and values."""
    q_BTNH, k_BTNH, v_BTNH, given, out_BTNH, sums_BNT = saved
    means_BTN = (out_BTNH.astype(jnp.float32) * dout_BTNH).sum(-1)
    tokens = q_BTNH, k_BTNH, v_BTNH, dout_BTNH
    stats = sums_BNT, means_BTN.swapaxes(1, 2)
    dq_BTNH, dk_BTNH, dv_BTNH = _run(task, "gradients", given, tokens, stats)
    return dq_BTNH, dk_BTNH, dv_BTNH, None


_attend.defvjp(_forward, _backward)
_traced_once = jax.jit(_attend, static_argnums=0)  # for all layers of one shape


def _run(
    task: _Task,
    name: str,
    given: Given,
    tokens: tuple[Array, ...],
    stats: tuple[Array, ...] = (),
) -> tuple[Array, ...]:
    """Computes contexts or gradients with the kernels of each device, from what it has."""
    masks = given.random_blocks_NMR, given.query_segments_BT, given.key_segments_BT, given.seed_2
    all_heads = tokens[0].shape[2]

    def on_device(masks: Any, tokens: Any, stats: Any) -> Any:
        drawn, (rows, length, heads, _) = None, tokens[0].shape
        if masks[3] is not None:
            first_row, first_head = (
                lax.axis_index(axes) * count if axes else 0
                for axes, count in ((task.rows, rows), (task.heads, heads))
            )
            blocks = length // task.reading.block_size
            drawn = draws(masks[3], blocks, first_row, first_head, all_heads)

        def run(
            kernels: Any, interpret: bool, masks: Any, drawn: Any, tokens: Any, stats: Any
        ) -> Any:
            compute = functools.partial(getattr(kernels, name), task.reading, Given(*masks))
            return compute(*tokens, *stats, draws=drawn, interpret=interpret)

        return by_platform(run, _KERNELS, _INTERPRETED, masks, drawn, tokens, stats)

    of_rows, of_heads = PartitionSpec(task.rows), PartitionSpec(task.heads)
    of_tokens = PartitionSpec(task.rows, None, task.heads)
    of_stats = PartitionSpec(task.rows, task.heads)
    compute = split(
        on_device,
        ((of_heads, of_rows, of_rows, PartitionSpec()), of_tokens, of_stats),
        of_tokens if stats else (of_tokens, of_stats),
    )
    return compute(masks, tokens, stats)
