"""Compiles a run's own training step for a topology, and reads off what it needs."""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

import jax

from xformer.layers.execution import Execution
from xformer.partitioning import make_mesh
from xformer.plan.flops import matrix_flops
from xformer.plan.hlo import BETWEEN_SLICES, Collective, collectives
from xformer.plan.least import least
from xformer.plan.shapes import batch_shapes
from xformer.plan.topology import Topology
from xformer.training.config import Run
from xformer.training.state import Blueprint, blueprint
from xformer.training.steps import compile_train_step

QUICK = {"exec_time_optimization_effort": -1.0}
"""Options that leave out what only makes TPU programs faster: a fifth of the time, and memory and
collectives within a tenth of what they are in the end."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device during a step.

    Attributes:
        arguments: The state and the batch.
        outputs: The next state and the metrics.
        aliased: The part of `outputs` that takes the place of `arguments`.
        temporary: Everything between, as it is laid out in memory.
        peak: The most that is alive at once, arguments included; 0 where the compiler does not say.
        host: What waits in the memory of the device's host; see `Execution.remat`.
    """

    arguments: int
    outputs: int
    aliased: int
    temporary: int
    peak: int
    host: int = 0

    @property
    def needed(self) -> int:
        """What must be there: all of it, however it lies."""
        return self.arguments + self.outputs - self.aliased + self.temporary

    @property
    def traffic(self) -> int:
        """Bytes that are moved at least: what is alive at some time, in and out once each."""
        alive = self.peak - self.arguments if self.peak else self.temporary
        return self.arguments + self.outputs + 2 * max(0, alive)


@dataclass(frozen=True)
class Bounds:
    """Seconds that a step takes at least, if nothing but one thing took time.

    They overlap at best, so that a step takes as long as the longest of them.

    Attributes:
        compute: Matrix products at the published peak.
        memory: Every byte that is alive once from and to memory.
        links: Collectives within slices, over all links of a chip at once.
        network: What is sent between slices.
    """

    compute: float
    memory: float
    links: float
    network: float

    @property
    def step(self) -> float:
        """The longest."""
        return max(dataclasses.astuple(self))

    @property
    def slowest(self) -> str:
        """What takes longest."""
        return max(dataclasses.asdict(self).items(), key=lambda one: one[1])[0]


@dataclass(frozen=True)
class Plan:
    """What a step of a run needs of a topology.

    Attributes:
        topology: The topology.
        mesh: Sizes of the mesh axes.
        execution: Dtype, layers and what is recomputed.
        batch_size: Rows of a step.
        accumulation_steps: Parts that they are computed in.
        rows: Shapes of the arrays of a row, by name.
        parameters: Number of parameters.
        state_bytes: Bytes of the state on one device.
        flops: Operations of the matrix products of a step, over all devices.
        recomputed: The part of `flops` that is computed a second time.
        memory: Bytes on one device; None if the program does not fit.
        required: Bytes on one device that the compiler could not find; None if it fits.
        collectives: What devices say to one another; what one device does in a step.
        least: What they cannot do without, split as they are; see `xformer.plan.least`.
        bounds: The least time of a step; None if the program does not fit.
    """

    topology: Topology
    mesh: dict[str, int]
    execution: Execution
    batch_size: int
    accumulation_steps: int
    rows: dict[str, tuple[int, ...]]
    parameters: int
    state_bytes: int
    flops: int
    recomputed: int
    memory: Memory | None
    required: float | None
    collectives: tuple[Collective, ...]
    least: tuple[Collective, ...]
    bounds: Bounds | None

    @property
    def fits(self) -> bool:
        """Whether the step fits into the memory of a device."""
        return self.memory is not None and self.memory.needed <= self.topology.hbm_bytes

    @property
    def tokens(self) -> int:
        """Tokens of a step, on both sides of an encoder-decoder, padding included."""
        sides = ("input_ids", "decoder_input_ids")
        row = sum(math.prod(self.rows[side]) for side in sides if side in self.rows)
        return self.batch_size * row


def trace_step(run: Run, design: Blueprint, batch: dict[str, jax.ShapeDtypeStruct]) -> Any:
    """Traces the training step of a run, which computes nothing.

    Args:
        run: The run.
        design: Its blueprint.
        batch: The shapes of a batch.

    Returns:
        What `jax.jit(step).trace` gives.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    return compile_train_step(run, design).trace(design.shapes, batch, key)


def measure(
    run: Run,
    topology: Topology,
    devices: list[Any],
    *,
    length: int | None = None,
    quick: bool = False,
) -> Plan:
    """Compiles a run's training step for a topology.

    Args:
        run: The run; its data need not be here.
        topology: What to compile for.
        devices: The topology's devices.
        length: Tokens of a row, for prepared corpora that are not here.
        quick: Whether to leave out what takes the compiler long and changes little of a plan.

    Returns:
        What it needs, whether it fits or not.

    Raises:
        JaxRuntimeError: if the compiler fails for another reason than memory.
        ValueError: if the mesh does not divide the devices, the batch or an array; names the key.
    """
    mesh = make_mesh(run.mesh, devices)
    run.execution.check_devices(mesh.devices.flat)
    design = blueprint(run, mesh)
    batch = batch_shapes(run, length)
    traced = trace_step(run, design, batch)
    flops = matrix_flops(traced.jaxpr)
    memory, required = None, None
    found: tuple[Collective, ...] = ()
    try:
        compiled = traced.lower().compile(QUICK if quick and topology.chip.is_tpu else None)
    except jax.errors.JaxRuntimeError as error:
        required = _required(str(error))
        if required is None:
            raise
    else:
        memory = _memory(compiled.memory_analysis())
        found = collectives(compiled.as_text(), mesh.shape)
    return Plan(
        topology=topology,
        mesh=dict(mesh.shape),
        execution=run.execution,
        batch_size=run.batch_size,
        accumulation_steps=run.accumulation_steps,
        rows={name: one.shape[1:] for name, one in batch.items()},
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(design.shapes.params)),
        state_bytes=_device_bytes(design.shapes),
        flops=flops,
        recomputed=flops - _plain_flops(run, mesh, batch) if run.execution.remat != "none" else 0,
        memory=memory,
        required=required,
        collectives=found,
        least=least(run, design, batch),
        bounds=_bounds(topology, flops, memory, found) if memory else None,
    )


def _plain_flops(run: Run, mesh: Any, batch: Any) -> int:
    """The operations of a step that recomputes nothing."""
    execution = dataclasses.replace(run.execution, remat="none")
    plain = dataclasses.replace(run, execution=execution)
    return matrix_flops(trace_step(plain, blueprint(plain, mesh), batch).jaxpr)


def _memory(stats: Any) -> Memory:
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporary=stats.temp_size_in_bytes,
        peak=getattr(stats, "peak_memory_in_bytes", 0),
        host=stats.host_temp_size_in_bytes,
    )


def _required(message: str) -> float | None:
    """The bytes that the compiler asked for in vain; None if that is not what is wrong."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    units = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
    found = re.search(
        r"\(?\b([\d.]+)([KMGT])\)?[^(]*?(?:exceeds available|of [\d.]+[KMGT] hbm)", message
    )
    return float(found[1]) * units[found[2]] if found else math.inf


def _device_bytes(shapes: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes)
    )


def _bounds(
    topology: Topology, flops: int, memory: Memory, found: tuple[Collective, ...]
) -> Bounds:
    chip = topology.chip
    outside = sum(one.wire_bytes for one in found if one.axes == BETWEEN_SLICES)
    inside = sum(one.wire_bytes for one in found) - outside
    return Bounds(
        compute=flops / (topology.chips * chip.flops_per_s),
        memory=memory.traffic * chip.devices / chip.hbm_bytes_per_s,
        links=inside * chip.devices / chip.link_bytes_per_s,
        network=outside * chip.devices / chip.network_bytes_per_s,
    )
