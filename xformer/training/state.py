"""The state of a run: created sharded, described without being created."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util
from flax.core import meta
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PRNGKeyArray

from xformer import partitioning
from xformer.layers.heads import Head
from xformer.layers.stack import restack
from xformer.models.build import Module, build, dummy_inputs
from xformer.training.config import Run

INIT, DROPOUT, SAMPLE = range(3)
"""Purposes of random keys: no two draw from the same stream."""


@struct.dataclass
class TrainState:
    """What an optimizer step reads and replaces.

    Attributes:
        step: int32 number of steps taken, skipped ones included.
        params: The "params" collection of the module.
        opt_state: The optimizer's state.
    """

    step: Any
    params: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A run's parts and the form of its state, before anything is allocated.

    Attributes:
        module: The model.
        head: What its hidden states are turned into.
        optimizer: The optax transformation; `update` may be told the gradients' global `norm`.
        mesh: The device mesh.
        shapes: The state as `jax.ShapeDtypeStruct`s, shardings included, as devices hold it: a
            vocabulary that the mesh does not divide is padded with zeros.
        axes: Logical axes of every array of the state, as `PartitionSpec`s of axis names.
        own_shapes: The state as the model and the optimizer know it, and as files hold it.
    """

    module: Module
    head: Head
    optimizer: optax.GradientTransformationExtraArgs
    mesh: Mesh
    shapes: TrainState
    axes: TrainState
    own_shapes: TrainState

    @property
    def is_padded(self) -> bool:
        """Whether devices hold arrays in other shapes than the model knows."""
        pairs = zip(jax.tree.leaves(self.shapes), jax.tree.leaves(self.own_shapes), strict=True)
        return any(held.shape != own.shape for held, own in pairs)

    @property
    def shardings(self) -> TrainState:
        """The sharding of every array of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.shapes)


def purpose_key(seed: int, purpose: int) -> PRNGKeyArray:
    """The key of one purpose; keys of steps are folded in from it."""
    return jax.random.fold_in(jax.random.key(seed), purpose)


def blueprint(run: Run, mesh: Mesh, *, pad: bool = True) -> Blueprint:
    """Describes a run's state on a mesh.

    Args:
        run: The run.
        mesh: The device mesh.
        pad: Whether a vocabulary that the mesh does not divide is padded, and split, rather than
            whole on every device.

    Returns:
        The parts and shapes; no array is allocated.

    Raises:
        ValueError: if the mesh does not divide the batch, the heads or an array, or splits tokens
            that `Run.execution` cannot attend to; names the key.
    """
    _check_mesh(run, mesh)
    module = build(run.model, run.head, run.execution)
    params, names = _abstract_params(module, run.head)
    optimizer = run.optimizer.build(run.steps)
    tracked, tracked_names = params, names
    if per_layer_optimizer(run):
        optimizer = _per_layer(optimizer)
        looped = run.execution.looped()
        tracked, tracked_names = _abstract_params(build(run.model, run.head, looped), run.head)
    opt_state = jax.eval_shape(optimizer.init, params)
    none = PartitionSpec()
    opt_names = optax.tree_utils.tree_map_params(
        optimizer,
        lambda leaf, param, axes: partitioning.axes_like(leaf.shape, param.shape, axes),
        opt_state,
        tracked,
        tracked_names,
        transform_non_params=lambda _: none,
    )
    own = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, opt_state)
    axes = TrainState(none, names, opt_names)

    def longer(leaf: jax.ShapeDtypeStruct, axes: PartitionSpec) -> jax.ShapeDtypeStruct:
        shape = partitioning.padded_shape(leaf.shape, axes, mesh, run.rules)
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    def placed(shapes: TrainState) -> TrainState:
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            partitioning.shardings(shapes, axes, mesh, run.rules),
        )

    held = jax.tree.map(longer, own, axes) if pad else own
    return Blueprint(module, run.head, optimizer, mesh, placed(held), axes, placed(own))


def create_state(plan: Blueprint, seed: int, given: dict[str, Any] | None = None) -> TrainState:
    """Initialises a state, each device making its own part.

    Args:
        plan: The run's blueprint.
        seed: Decides the weights; they do not depend on the mesh or the layer mode.
        given: Parameters to take instead of drawing them, as nested dicts; their memory goes into
            the state.

    Returns:
        The state at step 0.
    """

    def init(key: PRNGKeyArray, given: dict[Any, Array]) -> TrainState:
        drawn = meta.unbox(plan.module.init(key, **dummy_inputs(plan.module, plan.head))["params"])
        # The compiler leaves out the draws that nobody reads.
        params = traverse_util.unflatten_dict({**traverse_util.flatten_dict(drawn), **given})
        state = TrainState(jnp.zeros((), jnp.int32), params, plan.optimizer.init(params))
        return partitioning.resized(state, plan.shapes)

    donated = () if plan.is_padded else (1,)
    make = jax.jit(init, out_shardings=plan.shardings, donate_argnums=donated)
    return make(purpose_key(seed, INIT), traverse_util.flatten_dict(given or {}))


def own_form(plan: Blueprint, state: TrainState) -> TrainState:
    """A state without the padding that devices hold.

    Args:
        plan: The run's blueprint.
        state: The state, as steps return it.

    Returns:
        The state as `Blueprint.own_shapes` describes it; itself if nothing is padded.
    """
    if not plan.is_padded:
        return state
    places = jax.tree.map(lambda leaf: leaf.sharding, plan.own_shapes)
    cut = jax.jit(lambda state: partitioning.resized(state, plan.own_shapes), out_shardings=places)
    return cut(state)


def per_layer_optimizer(run: Run) -> bool:
    """Whether the optimizer's state is that of looped layers although the layers are scanned.

    An optimizer that looks at a whole array at a time would otherwise mix the layers.

    Args:
        run: The run.

    Returns:
        True if the blueprint wraps the optimizer.
    """
    return run.execution.layers == "scan" and not run.optimizer.elementwise


def _per_layer(
    optimizer: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer applied to every layer of scanned stacks by itself."""

    def init(params: Any) -> Any:
        return optimizer.init(restack(params, "loop"))

    def update(grads: Any, state: Any, params: Any, **known: Any) -> Any:
        grads, params = (restack(tree, "loop") for tree in (grads, params))
        updates, state = optimizer.update(grads, state, params, **known)
        return restack(updates, "scan"), state

    return optax.GradientTransformationExtraArgs(init, update)


def _abstract_params(module: Module, head: Head) -> tuple[Any, Any]:
    """Shapes and logical axes of a module's parameters."""
    boxed = jax.eval_shape(
        lambda key: module.init(key, **dummy_inputs(module, head))["params"], jax.random.key(0)
    )
    return meta.unbox(boxed), partitioning.axis_names(boxed)


def _check_mesh(run: Run, mesh: Mesh) -> None:
    ways = partitioning.batch_ways(mesh, run.rules)
    part = run.batch_size // run.accumulation_steps
    if part % ways:
        raise ValueError(
            f"the {ways} ways that the mesh splits a batch must divide Run.batch_size="
            f"{run.batch_size} / Run.accumulation_steps={run.accumulation_steps} = {part}"
        )
    heads, tensor = run.model.num_attention_heads, mesh.shape["tensor"]
    if heads % tensor:
        raise ValueError(
            f"mesh axis 'tensor'={tensor} must divide the model's {heads} attention heads; set "
            f"MeshConfig.tensor or {type(run.model).__name__}'s heads"
        )
    attention, sequence = run.execution.attention, mesh.shape.get("sequence", 1)
    if attention != "xla" and sequence > 1:
        raise ValueError(
            f"Execution.attention={attention!r} needs the tokens of a row on one device, got "
            f"MeshConfig.sequence={sequence}; set it to 1, or Execution.attention to 'xla'"
        )
