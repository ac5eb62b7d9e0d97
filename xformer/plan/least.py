"""The exchanges that a sharding cannot do without, whatever program it is compiled to.

    weights over fsdp or sequence   gathered forward and again backward; gradients reduced and
                                    scattered; once for each part of a step
    gradients                       added up over the devices that hold other rows, once a step
    tables of the vocabulary        rows looked up on the devices that hold their columns, and the
                                    gradients of these rows sent back; those of positions, too,
                                    where each device has positions of its own
    activations over tensor         the results of every product with a matrix whose inputs are
                                    split, added up forward, and those of its gradient backward

All in the compute dtype, gradients of weights in `MeshConfig.gradient_dtype`. What a step
recomputes is not counted, nor what attention reads of tokens on other devices, which block-sparse
attention keeps far below the weights.
"""

import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from xformer.plan.hlo import BETWEEN_SLICES, Collective
from xformer.training.config import Run
from xformer.training.state import Blueprint

_TABLE, _PROJECTION, _POSITIONS = ("vocab", "embed"), ("embed", "vocab"), ("positions", "embed")


def least(
    run: Run, design: Blueprint, batch: dict[str, jax.ShapeDtypeStruct]
) -> tuple[Collective, ...]:
    """Counts the exchanges of a training step.

    Args:
        run: The run.
        design: Its blueprint.
        batch: The shapes of a batch.

    Returns:
        One for every kind and group, the largest first; what one device does in a whole step.
    """
    size = run.execution.compute_dtype.itemsize
    summed = jnp.dtype(run.mesh.gradient_dtype or run.execution.compute_dtype).itemsize
    parts, mesh = run.accumulation_steps, design.mesh
    sums: dict[tuple[str, tuple[str, ...]], int] = defaultdict(int)
    params = jax.tree_util.tree_leaves_with_path(design.shapes.params)
    names = [tuple(one) for one in jax.tree.leaves(design.axes.params, is_leaf=_is_spec)]
    is_tied = not any(one[-2:] == _PROJECTION for one in names)
    rowwise = {*run.rules.act_batch, *run.rules.act_length}
    for (path, leaf), axes in zip(params, names, strict=True):
        split = _split(leaf.sharding.spec)
        gathered = tuple(axis for axis in mesh.shape if axis in split and axis in rowwise)
        array = math.prod(leaf.shape) * size // _ways(mesh, split - {*gathered})
        rows = _tokens(jax.tree_util.keystr(path), batch) // _ways(mesh, rowwise)
        width = leaf.shape[-1] * size
        is_table = axes[-2:] == _TABLE
        if is_table:
            sums["all-to-all", gathered] += 2 * rows * width
        if axes[-2:] == _POSITIONS and "sequence" in gathered:
            read = min(leaf.shape[-2], max(one.shape[-1] for one in batch.values()))
            array = read // mesh.shape["sequence"] * width
            sums["all-to-all", gathered] += 2 * parts * array
        elif not is_table or is_tied:
            sums["all-gather", gathered] += 2 * parts * array
            sums["reduce-scatter", gathered] += parts * array // size * summed
        other = tuple(axis for axis in mesh.shape if axis in rowwise and axis not in gathered)
        sums["all-reduce", other] += math.prod(leaf.sharding.shard_shape(leaf.shape)) * summed
        if inputs := _split_inputs(leaf.sharding.spec, axes, rowwise):
            layers = leaf.shape[0] if axes[0] == "layers" else 1
            sums["all-reduce", inputs] += 2 * layers * rows * width
    found: dict[tuple[str, str], Collective] = {}
    for (kind, over), total in sums.items():
        for one in _collectives(kind, over, total, mesh, run.mesh.slices):
            before = found.get((one.kind, one.axes), replace(one, array_bytes=0))
            both = one.array_bytes + before.array_bytes
            found[one.kind, one.axes] = replace(one, array_bytes=both)
    return tuple(sorted(found.values(), key=lambda one: -one.wire_bytes))


def _collectives(
    kind: str, axes: tuple[str, ...], total: int, mesh: Mesh, slices: int
) -> list[Collective]:
    """An exchange along mesh axes; what crosses slices is what is left of it in each."""
    axes = tuple(axis for axis in axes if mesh.shape[axis] > 1)
    group = _ways(mesh, axes)
    if "data" in axes and slices > 1:
        within = group // slices
        sent = math.ceil(2 * total / within * (slices - 1) / slices)
        between = [Collective("send", BETWEEN_SLICES, 2, sent)]
        axes = axes if mesh.shape["data"] > slices else axes[1:]
        return [*_collectives(kind, axes, total, mesh, 1), *between] if within > 1 else between
    return [Collective(kind, "+".join(axes), group, total)] if group > 1 and total else []


def _split_inputs(spec: PartitionSpec, axes: tuple[Any, ...], rowwise: set[str]) -> tuple[str, ...]:
    """The mesh axes along which products with an array must be added up: those of its inputs."""
    if "embed" not in axes[1:]:
        return ()
    inputs = tuple(spec)[: axes.index("embed", 1)]
    return tuple(axis for axis in _split(inputs) if axis not in rowwise)


def _split(spec: Any) -> set[str]:
    """The mesh axes in a partition."""
    return {axis for one in spec if one for axis in ((one,) if isinstance(one, str) else one)}


def _ways(mesh: Mesh, axes: Any) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def _tokens(path: str, batch: dict[str, jax.ShapeDtypeStruct]) -> int:
    """The tokens that a parameter is used for, on both sides of an encoder-decoder."""
    sides = ["input_ids"]
    if "decoder_input_ids" in batch:
        wanted = {"encoder": ["input_ids"], "decoder": ["decoder_input_ids"]}
        side = path.lstrip("['").partition("'")[0]
        sides = wanted.get(side, ["input_ids", "decoder_input_ids"])
    return sum(math.prod(batch[side].shape) for side in sides)


def _is_spec(one: Any) -> bool:
    return isinstance(one, PartitionSpec)
