"""The linear computation of block-sparse attention, with a backward pass of its own.

The two global query blocks read all keys, a few blocks a step; the other query blocks are taken a
few a step, each with the 5 + R blocks that it reads, which the step lays out by head
(`xformer.layers.block_steps`). The gradients of keys and values are added up in place, so nothing
that lives longer than a step is larger than the inputs.

Where the tokens of a row are split over devices, each takes the steps of its own blocks, with what
`xformer.layers.block_shards` brings from the others; the global query blocks read on every device,
and their softmax is joined.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from xformer.layers.block_reading import Given, Reading
from xformer.layers.block_softmax import Queries, Softmax, gradients
from xformer.layers.block_steps import Steps, join_heads
from xformer.layers.sharding import on_one_device


class _Shared(NamedTuple):
    """What one turn of a loop gives to the threads of a CPU.

    Attributes:
        heads: How many of them are taken together, as `Steps` says.
        steps: How many steps; little of one waits for the one before.
    """

    heads: int
    steps: int = 1

    def scan(self, add: Any, begun: Any, numbers: Any, *, on_cpu: bool) -> Any:
        """A loop, with so many steps a turn where a CPU that is alone runs it."""
        return lax.scan(add, begun, numbers, unroll=self.steps if on_cpu else 1)


# Of 12 heads faster than fewer or more. Several steps take more memory, and longer to compile.
_EVALUATION = _Shared(6, 3)
_FORWARD = _Shared(4)
_BACKWARD = _Shared(2)


@functools.partial(jax.jit, static_argnums=(0,))  # layers of one shape are traced once
def attend_in_blocks(
    reading: Reading,
    q_BTNH: Float[Array, "B T N H"],
    k_BTNH: Float[Array, "B T N H"],
    v_BTNH: Float[Array, "B T N H"],
    given: Given,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "B T N H"]:
    """Block-sparse attention in time and memory linear in the length.

    Scores and softmax are float32. The context of a query that may read nothing has no meaning;
    where its gradient is zero nothing flows back from it.

    Args:
        reading: Who reads whom, the static part.
        q_BTNH: Queries, already scaled; T is a multiple of the block size, times the number of
            devices that the tokens are split over.
        k_BTNH: Keys.
        v_BTNH: Values.
        given: Who reads whom, the arrays.
        key: Random key of the dropout; None means evaluation.

    Returns:
        The contexts in the values' dtype.
    """
    if key is not None and reading.dropout_rate:
        given = dataclasses.replace(given, seed_2=jax.random.key_data(key)[:2])
    attend = functools.partial(_attend, reading)
    if reading.axes:
        tokens = PartitionSpec(None, reading.axes)
        attend = jax.shard_map(
            attend,
            in_specs=(tokens, tokens, tokens, PartitionSpec()),
            out_specs=tokens,
            axis_names=set(reading.axes),
            check_vma=False,
        )
    return attend(q_BTNH, k_BTNH, v_BTNH, given)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    reading: Reading, q_BTNH: Array, k_BTNH: Array, v_BTNH: Array, given: Given
) -> Float[Array, "B T N H"]:
    contexts = functools.partial(_contexts, _EVALUATION)
    return _by_platform(contexts, reading, q_BTNH, k_BTNH, v_BTNH, given)[0]


def _forward(
    reading: Reading, q_BTNH: Array, k_BTNH: Array, v_BTNH: Array, given: Given
) -> tuple[Array, Any]:
    """The contexts, and what the backward pass needs."""
    arrays = q_BTNH, k_BTNH, v_BTNH, given
    out_BTNH, sums_BTN = _by_platform(functools.partial(_contexts, _FORWARD), reading, *arrays)
    return out_BTNH, (*arrays, out_BTNH, sums_BTN)


def _backward(reading: Reading, saved: Any, dout_BTNH: Array) -> tuple[Array, Array, Array, None]:
    """The gradients of queries, keys and values."""
    compute = functools.partial(_gradients, _BACKWARD)
    return *_by_platform(compute, reading, *saved, dout_BTNH), None


_attend.defvjp(_forward, _backward)


def _by_platform(function: Any, reading: Reading, *arrays: Any) -> Any:
    """Computes as suits the device: a CPU that is alone parts the heads, which a mesh may split."""
    default = functools.partial(function, reading, False)
    if reading.axes or not on_one_device():
        return default(*arrays)
    return lax.platform_dependent(
        *arrays, cpu=functools.partial(function, reading, True), default=default
    )


def _contexts(
    shared: _Shared,
    reading: Reading,
    on_cpu: bool,
    q_BTNH: Array,
    k_BTNH: Array,
    v_BTNH: Array,
    given: Given,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """The contexts, and the logarithms of the softmax's denominators."""
    steps = Steps(reading, given, k_BTNH, v_BTNH, on_cpu)
    parts = steps.by_heads(shared.heads)
    scan = functools.partial(shared.scan, on_cpu=on_cpu)
    ends = [part.ends(q_BTNH) for part in parts]

    def read_all(states: list[Softmax], number: Array) -> tuple[list[Softmax], None]:
        own = [Softmax.of(q, part.all_keys(number)) for q, part in zip(ends, parts, strict=True)]
        return [state.join(more) for state, more in zip(states, own, strict=True)], None

    def read_rows(found: Any, number: Array) -> tuple[Any, None]:
        for part in parts:
            result = Softmax.of(part.rows(q_BTNH, number), part.row_keys(number)).finish()
            found = jax.tree.map(functools.partial(part.set_rows, number), found, result)
        return found, None

    states, _ = scan(read_all, [Softmax.empty(q) for q in ends], steps.all_steps)
    state = steps.shards.joined(join_heads(states, 1)).finish()
    state = state._replace(context_BNMWH=state.context_BNMWH.astype(v_BTNH.dtype))
    found = jax.tree.map(steps.from_ends, state)
    (top_BTN, total_BTN, out_BTNH), _ = scan(read_rows, found, steps.row_steps)
    return out_BTNH, top_BTN + jnp.log(total_BTN)


def _gradients(
    shared: _Shared,
    reading: Reading,
    on_cpu: bool,
    q_BTNH: Array,
    k_BTNH: Array,
    v_BTNH: Array,
    given: Given,
    out_BTNH: Array,
    sums_BTN: Array,
    dout_BTNH: Array,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N H"], Float[Array, "B T N H"]]:
    """The gradients of queries, keys and values."""
    steps = Steps(reading, given, k_BTNH, v_BTNH, on_cpu)
    parts = steps.by_heads(shared.heads)
    scan = functools.partial(shared.scan, on_cpu=on_cpu)
    # A product of matrices, since XLA's CPU compiler makes slow sums of products of numbers.
    exact = (x.astype(jnp.float32) for x in (out_BTNH, dout_BTNH))
    means_BTN = jnp.einsum("BTNH,BTNH->BTN", *exact, precision=lax.Precision.HIGHEST)
    queries = Queries(q_BTNH, dout_BTNH, sums_BTN, means_BTN)
    ends = [Queries(*(part.ends(x) for x in queries)) for part in parts]

    def read_all(carry: Any, number: Array) -> tuple[Any, None]:
        found = []
        for part, own, (dends_BNMWH, dk, dv) in zip(parts, ends, carry, strict=True):
            dq_BNMWH, more_dk, more_dv = gradients(own, part.all_keys(number))
            dk, dv = part.add_all(number, dk, more_dk), part.add_all(number, dv, more_dv)
            found.append((dends_BNMWH + dq_BNMWH, dk, dv))
        return found, None

    def read_rows(carry: Any, number: Array) -> tuple[Any, None]:
        dq_BTNH, dkv = carry
        found = []
        for part, (dk, dv) in zip(parts, dkv, strict=True):
            rows = Queries(*(part.rows(x, number) for x in queries))
            dq_BNMWH, more_dk, more_dv = gradients(
                part.without_ends(rows, number), part.row_keys(number)
            )
            dq_BTNH = part.set_rows(number, dq_BTNH, dq_BNMWH)
            found.append((part.add_rows(number, dk, more_dk), part.add_rows(number, dv, more_dv)))
        return (dq_BTNH, found), None

    zeros = [
        (jnp.zeros(own.q_BNMWH.shape), *[part.no_gradient()] * 2)
        for part, own in zip(parts, ends, strict=True)
    ]
    found, _ = scan(read_all, zeros, steps.all_steps)
    dends, *dkv = zip(*found, strict=True)
    dends_BNMWH = steps.shards.total(join_heads(dends, 1))
    dq_BTNH = steps.from_ends(dends_BNMWH.astype(q_BTNH.dtype))
    carry = dq_BTNH, list(zip(*dkv, strict=True))
    (dq_BTNH, dkv), _ = scan(read_rows, carry, steps.row_steps)
    dk_BTNH, dv_BTNH = (
        join_heads([part.by_token(d) for part, d in zip(parts, dx, strict=True)], 2)
        for dx in zip(*dkv, strict=True)
    )
    return dq_BTNH, dk_BTNH.astype(k_BTNH.dtype), dv_BTNH.astype(v_BTNH.dtype)
