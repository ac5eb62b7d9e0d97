"""Where arrays live: logical axes of parameters and activations, mapped onto a device mesh.

Layers name the axes of their arrays (`xformer.dims`); `Rules` says which mesh axes a logical axis
is split over; this file turns the two into shardings. It knows names and trees, no models.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from flax.core.spmd import logical_axis_rules
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xformer.layers.sharding import step_with_gradients_in

MeshAxes = tuple[str, ...]
MESH_AXES = ("data", "fsdp", "sequence", "tensor")
GRADIENT_DTYPES = ("float32", "bfloat16")
VOCABULARY = "vocab"
"""The logical axis that may be padded."""


@dataclass(frozen=True)
class Rules:
    """The mesh axes that each logical axis is split over; one field per logical axis.

    The defaults shard weights over `fsdp` and `sequence` (gathered when used) and over `tensor`
    (kept split while computing), the batch over `data` and `fsdp`, and the tokens of a row over
    `sequence`. Fields that begin with `act_` are activations.
    """

    embed: MeshAxes = ("fsdp", "sequence")
    heads: MeshAxes = ("tensor",)
    head_dim: MeshAxes = ()
    mlp: MeshAxes = ("tensor",)
    vocab: MeshAxes = ("tensor",)
    layers: MeshAxes = ()
    positions: MeshAxes = ()
    groups: MeshAxes = ()
    act_batch: MeshAxes = ("data", "fsdp")
    act_length: MeshAxes = ("sequence",)
    act_embed: MeshAxes = ()
    act_heads: MeshAxes = ("tensor",)
    act_mlp: MeshAxes = ("tensor",)
    act_vocab: MeshAxes = ("tensor",)

    def __post_init__(self) -> None:
        """Checks the names.

        Raises:
            ValueError: naming the key.
        """
        for field in dataclasses.fields(self):
            axes = getattr(self, field.name)
            if not set(axes) <= set(MESH_AXES) or len(set(axes)) < len(axes):
                raise ValueError(
                    f"Rules.{field.name} must hold mesh axes, each at most once, out of "
                    f"{MESH_AXES}, got {axes}"
                )


@dataclass(frozen=True)
class MeshConfig:
    """The shape of the device mesh, and what is added up over it.

    Attributes:
        data: Copies of the model that each take a share of the batch, over all slices; -1 means
            all devices that the other axes leave.
        fsdp: Ways that weights, gradients and optimizer state are split beside the batch.
        tensor: Ways that heads, feed-forward and vocabulary are split.
        sequence: Ways that the tokens of a row are split.
        slices: TPU slices (or hosts of GPUs, which 1 leaves to all axes) that the data axis spans:
            whole parts of it lie within one slice, so that only gradients cross the network between
            them.
        gradient_dtype: Dtype in which gradients of projections, and of vocabularies that are scored
            in chunks, leave their product and are added up over devices: "float32" or "bfloat16",
            which sends half the bytes. None is the compute dtype (but float32 for scores computed
            in float16).
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    slices: int = 1
    gradient_dtype: str | None = None

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: naming the key.
        """
        if self.data != -1 and self.data < 1:
            raise ValueError(
                f"MeshConfig.data must be at least 1, or -1 for the rest, got {self.data}"
            )
        for key in ("fsdp", "tensor", "sequence", "slices"):
            if getattr(self, key) < 1:
                raise ValueError(f"MeshConfig.{key} must be at least 1, got {getattr(self, key)}")
        if self.gradient_dtype not in (None, *GRADIENT_DTYPES):
            raise ValueError(
                f"MeshConfig.gradient_dtype must be None or one of {GRADIENT_DTYPES}, got "
                f"{self.gradient_dtype!r}"
            )

    def shape(self, device_count: int) -> dict[str, int]:
        """Sizes of the mesh axes for a number of devices.

        Args:
            device_count: How many devices there are.

        Returns:
            The size of every axis, in the order of the mesh.

        Raises:
            ValueError: if the axes do not multiply to it, or the slices do not divide the data
                axis.
        """
        fixed = self.fsdp * self.sequence * self.tensor
        data = device_count // fixed if self.data == -1 else self.data
        if data * fixed != device_count or not data:
            raise ValueError(
                f"the mesh axes data={self.data}, fsdp={self.fsdp}, sequence={self.sequence}, "
                f"tensor={self.tensor} must multiply to the {device_count} devices; set "
                "MeshConfig.data, fsdp, sequence or tensor"
            )
        if data % self.slices:
            raise ValueError(
                f"MeshConfig.slices={self.slices} must divide the mesh axis data={data}"
            )
        sizes = (data, self.fsdp, self.sequence, self.tensor)
        return dict(zip(MESH_AXES, sizes, strict=True))


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges devices so that neighbours on the mesh are neighbours.

    Args:
        config: The shape.
        devices: Devices, or those of a topology that is compiled for; all devices by default.

    Returns:
        The mesh, whose last axes lie closest together.

    Raises:
        ValueError: if the shape does not fit the devices, or their slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = config.shape(len(devices))
    sizes = tuple(shape.values())
    # Devices that are not in slices (CPUs) may stand for some.
    found = len({getattr(device, "slice_index", None) for device in devices})
    by_process = False
    if devices[0].platform == "gpu":  # what JAX calls a slice of GPUs is a host
        if config.slices == 1:
            found = 1  # any axis may span hosts
        elif found == 1:  # GPUs that are compiled for do not say their host but by the process
            found, by_process = len({device.process_index for device in devices}), True
    if found != config.slices and hasattr(devices[0], "slice_index"):
        raise ValueError(
            f"the devices lie in {found} slices: set MeshConfig.slices = {found}, "
            f"got {config.slices}"
        )
    if found > 1:
        within = (sizes[0] // found, *sizes[1:])
        arranged = mesh_utils.create_hybrid_device_mesh(
            within,
            (found, 1, 1, 1),
            devices,
            process_is_granule=by_process,
            allow_split_physical_axes=True,
        )
    else:
        arranged = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(arranged, tuple(shape))


def axis_names(boxed: Any) -> Any:
    """The logical axes of every leaf of a boxed tree, each as a `PartitionSpec` of axis names."""
    return meta.get_partition_spec(boxed)


def axes_like(
    shape: tuple[int, ...], parameter_shape: tuple[int, ...], names: PartitionSpec
) -> PartitionSpec:
    """The logical axes of an optimizer's array that belongs to a parameter.

    Args:
        shape: Shape of the optimizer's array: that of the parameter (a moment), or with one
            dimension summed away (a factored moment), or something else (not split).
        parameter_shape: Shape of the parameter.
        names: Logical axes of the parameter.

    Returns:
        Logical axes of the optimizer's array.
    """
    if shape == parameter_shape:
        return names
    for gone in reversed(range(len(parameter_shape))):
        if shape == parameter_shape[:gone] + parameter_shape[gone + 1 :]:
            return PartitionSpec(*names[:gone], *names[gone + 1 :])
    return PartitionSpec()


def partition_spec(
    path: str, shape: tuple[int, ...], names: PartitionSpec, mesh: Mesh, rules: Rules
) -> PartitionSpec:
    """The partition of one array.

    Args:
        path: The array's name, for errors.
        shape: Its shape.
        names: Logical axis of each dimension; None or a missing one means not split.
        mesh: The device mesh.
        rules: Logical axis to mesh axes.

    Returns:
        One entry per dimension. A vocabulary that the mesh does not divide is not split; see
        `padded_shape`.

    Raises:
        ValueError: if two dimensions want the same mesh axis, or a mesh axis does not divide
            another dimension.
    """
    entries: list[MeshAxes | None] = []
    for size, name in zip(shape, names, strict=False):
        axes = _axes_of(name, mesh, rules)
        for taken in entries:
            if set(axes) & set(taken or ()):
                raise ValueError(
                    f"{path} with axes {tuple(names)} would split two dimensions over the mesh "
                    f"axis {sorted(set(axes) & set(taken or ()))}; change Rules.{name}"
                )
        if size % _ways(axes, mesh) and name == VOCABULARY:
            axes = ()
        if size % _ways(axes, mesh):
            axis = axes[-1]
            raise ValueError(
                f"mesh axis {axis!r}={mesh.shape[axis]} must divide the {name!r} dimension {size} "
                f"of {path}; set MeshConfig.{axis} or the model's size"
            )
        entries.append(axes or None)
    return PartitionSpec(*(e[0] if e and len(e) == 1 else e for e in entries))


def padded_shape(
    shape: tuple[int, ...], names: PartitionSpec, mesh: Mesh, rules: Rules
) -> tuple[int, ...]:
    """The shape in which an array can be split although the mesh does not divide its vocabulary.

    Args:
        shape: The array's own shape.
        names: Logical axis of each dimension.
        mesh: The device mesh.
        rules: Logical axis to mesh axes.

    Returns:
        The shape with every vocabulary rounded up to what the mesh divides.
    """
    padded = list(shape)
    for dimension, name in enumerate(tuple(names)[: len(shape)]):
        if name == VOCABULARY:
            padded[dimension] += -shape[dimension] % _ways(_axes_of(name, mesh, rules), mesh)
    return tuple(padded)


def resized(tree: Any, shapes: Any) -> Any:
    """Arrays padded with zeros at their ends, or cut there, where they have another shape.

    Within `jit` a split array is cut and padded in place: XLA computes with parts of unequal size.

    Args:
        tree: Arrays.
        shapes: Anything with the shapes wanted, of the same structure.

    Returns:
        The arrays.
    """

    def one(x: jax.Array, like: Any) -> jax.Array:
        if x.shape == like.shape:
            return x
        kept = tuple(slice(min(sizes)) for sizes in zip(x.shape, like.shape, strict=True))
        more = [(0, max(0, new - old)) for old, new in zip(x.shape, like.shape, strict=True)]
        return jnp.pad(x[kept], more)

    return jax.tree.map(one, tree, shapes)


def shardings(shapes: Any, names: Any, mesh: Mesh, rules: Rules) -> Any:
    """The sharding of every leaf of a tree of shapes, from a tree of logical axis names."""

    def one(path: Any, leaf: Any, axes: PartitionSpec) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, partition_spec(name, leaf.shape, axes, mesh, rules))

    return jax.tree_util.tree_map_with_path(one, shapes, names)


def _axes_of(name: str | None, mesh: Mesh, rules: Rules) -> MeshAxes:
    """The mesh axes of more than one device that a logical axis is split over."""
    return tuple(axis for axis in (getattr(rules, name) if name else ()) if mesh.shape[axis] > 1)


def _ways(axes: MeshAxes, mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, rules: Rules) -> NamedSharding:
    """The sharding of a batch, split along its first dimension."""
    return NamedSharding(mesh, PartitionSpec(rules.act_batch))


def batch_ways(mesh: Mesh, rules: Rules) -> int:
    """How many ways a batch is split."""
    return _ways(rules.act_batch, mesh)


def batch_share(sharding: NamedSharding) -> tuple[int, int]:
    """Which part of a batch this process's devices hold.

    Args:
        sharding: That of the batch.

    Returns:
        The number of the part, and of how many; processes may hold the same part.

    Raises:
        ValueError: if the devices of a process hold rows that are no neighbours.
    """
    ways = math.prod(sharding.mesh.shape.values())
    places = sharding.addressable_devices_indices_map((ways,)).values()
    held = sorted({range(ways)[place[0]].start for place in places if place is not None})
    size = sharding.shard_shape((ways,))[0]
    rows = len(held) * size
    if ways % rows or held != list(range(held[0], held[0] + rows, size)) or held[0] % rows:
        raise ValueError(
            "the devices of a process must hold neighbouring rows of a batch; set MeshConfig.data, "
            "fsdp, sequence and tensor so that they do"
        )
    return held[0] // rows, ways // rows


def global_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Assembles global arrays from the rows that this process holds."""
    return {
        key: jax.make_array_from_process_local_data(sharding, rows) for key, rows in batch.items()
    }


@contextlib.contextmanager
def constraints(rules: Rules, gradient_dtype: str | None = None) -> Iterator[None]:
    """Within it, the activation axes that layers name are constrained to the mesh in force.

    Models that are traced within it have no derivatives in forward mode (`jax.jvp`).

    Args:
        rules: Logical axis to mesh axes.
        gradient_dtype: As that of `MeshConfig`.
    """
    table = tuple((f.name, getattr(rules, f.name) or None) for f in dataclasses.fields(rules))
    dtype = None if gradient_dtype is None else jnp.dtype(gradient_dtype)
    with logical_axis_rules(table), step_with_gradients_in(dtype):
        yield


class ShardedFunction:
    """A jit-compiled function that is called, and lowered, with its mesh in force."""

    def __init__(self, mesh: Mesh, compiled: Any) -> None:
        """Wraps a function.

        Args:
            mesh: The mesh that activation constraints refer to.
            compiled: A function under `jax.jit`.
        """
        self._mesh = mesh
        self._compiled = compiled

    def __call__(self, *args: Any) -> Any:
        """Calls the function."""
        with jax.set_mesh(self._mesh):
            return self._compiled(*args)

    def trace(self, *args: Any) -> Any:
        """Traces the function for arguments, or their shapes, for its program as JAX knows it."""
        with jax.set_mesh(self._mesh):
            return self._compiled.trace(*args)

    def lower(self, *args: Any) -> Any:
        """Traces the function for arguments, or their shapes, without running it."""
        with jax.set_mesh(self._mesh):
            return self._compiled.lower(*args)

    @property
    def traces(self) -> int:
        """How many programs were made for different shapes."""
        return self._compiled._cache_size()


def jit(
    mesh: Mesh,
    function: Callable,
    *,
    in_shardings: Any,
    out_shardings: Any,
    donate_argnums: tuple[int, ...] | int = (),
) -> ShardedFunction:
    """`jax.jit` for functions that constrain activations to a mesh.

    Args:
        mesh: The mesh.
        function: A pure function.
        in_shardings: Shardings of its arguments.
        out_shardings: Shardings of its results.
        donate_argnums: Arguments whose memory the results may take.

    Returns:
        The compiled function.
    """
    return ShardedFunction(
        mesh,
        jax.jit(
            function,
            in_shardings=in_shardings,
            out_shardings=out_shardings,
            donate_argnums=donate_argnums,
        ),
    )
