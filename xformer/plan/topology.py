"""Accelerators by name: how many there are, what they can do, and JAX devices that stand for them.

    v5e:16x16      256 chips of Cloud TPU v5e
    tpu7x:4x4x8    128 chips, which are 256 devices
    h100:8x8       8 hosts with 8 GPUs each

The compiler for TPUs is the package `libtpu`, which needs no TPU; that for GPUs is JAX's CUDA
plugin, which needs no GPU.
"""

import contextlib
import difflib
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from xformer.plan.gpu_target import H100, description


@dataclass(frozen=True)
class Chip:
    """What is published of one accelerator.

    Attributes:
        name: Its name in a topology.
        dimensions: Numbers of a topology: the sides of a torus, or hosts and GPUs of a host.
        flops_per_s: Peak of bfloat16 matrix products.
        hbm_bytes: What a program may use of its memory, in bytes.
        hbm_bytes_per_s: Bandwidth of its memory.
        link_bytes_per_s: What it can send to its neighbours at once, over all links: half of what
            is published as the bandwidth of both directions.
        network_bytes_per_s: What it can send out of its slice.
        most: The largest number of chips in a slice.
        devices: JAX devices on a chip.
        options: What else the compiler needs to be told.
    """

    name: str
    dimensions: int
    flops_per_s: float
    hbm_bytes: float
    hbm_bytes_per_s: float
    link_bytes_per_s: float
    network_bytes_per_s: float
    most: int
    devices: int = 1
    options: tuple[tuple[str, str], ...] = ()

    @property
    def is_tpu(self) -> bool:
        """Whether libtpu compiles for it."""
        return self.name != "h100"


_GIB = 2.0**30

CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v3", 2, 123e12, 2 * 15.48 * _GIB, 900e9, 280e9, 3.1e9, 1024, devices=2),
        Chip(
            "v4", 3, 275e12, 30.75 * _GIB, 1200e9, 300e9, 6.25e9, 4096,
            options=(("chip_config_name", "megacore"),),
        ),
        Chip("v5e", 2, 197e12, 15.75 * _GIB, 819e9, 200e9, 3.125e9, 256),
        Chip("v5p", 3, 459e12, 95.74 * _GIB, 2765e9, 600e9, 6.25e9, 6144),
        Chip("v6e", 2, 918e12, 31.25 * _GIB, 1638e9, 400e9, 12.5e9, 256),
        Chip("tpu7x", 3, 2307e12, 2 * 94.75 * _GIB, 7380e9, 600e9, 12.5e9, 9216, devices=2),
        Chip("h100", 2, 989e12, 84942979072.0, 3352e9, 450e9, 50e9, 65536),
    )
}  # fmt: skip
"""The chips that can be compiled for.

Operations, memory, its bandwidth and that of the links are those of cloud.google.com/tpu/docs
(pages v3, v4, v5e, v5p, v6e, tpu7x) and of NVIDIA's data sheet of the H100 SXM; links of v3 and v4
are those of Jouppi et al. (2023, arXiv:2304.01433, table 4). Networks are those of the same pages
(of v5e, 6.4 Tbit/s of a pod over its 256 chips), one 400 Gbit/s adapter for a GPU. `hbm_bytes` is
what the compilers of libtpu 0.0.42 say that a program may use.
"""


@dataclass(frozen=True)
class Topology:
    """A number of chips and how they are connected.

    Attributes:
        chip: What they are.
        shape: Chips along each side of a slice; hosts and GPUs of a host.
        slices: Slices, which only the network connects; hosts of GPUs, if one has to be each.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @classmethod
    def parse(cls, name: str, slices: int = 1) -> "Topology":
        """Reads a name such as "v5e:16x16".

        Args:
            name: Chip, colon, and the sides; a missing side of GPUs is one host.
            slices: How many of it there are.

        Returns:
            The topology.

        Raises:
            ValueError: if there is no such chip, or none of that shape; says what there is.
        """
        found = re.fullmatch(r"([a-zA-Z0-9]+):(\d+(?:x\d+)*)", name)
        examples = ", ".join(
            f"{one}:{'x'.join('4' * chip.dimensions)}" for one, chip in CHIPS.items()
        )
        if not found:
            raise ValueError(f"a topology must be written like one of {examples}, got {name!r}")
        chip = CHIPS.get(found[1].lower())
        if chip is None:
            near = difflib.get_close_matches(found[1].lower(), [*CHIPS, *_OTHER_NAMES], n=1)
            hint = f"; did you mean {_OTHER_NAMES.get(near[0], near[0])!r}?" if near else ""
            raise ValueError(
                f"the topology's chip must be one of {', '.join(CHIPS)}, got {name!r}{hint}"
            )
        shape = tuple(map(int, found[2].split("x")))
        if not chip.is_tpu and len(shape) == 1:
            shape = (1, *shape)
        if len(shape) != chip.dimensions or 0 in shape:
            raise ValueError(
                f"{chip.name} has topologies of {chip.dimensions} sides, such as "
                f"{chip.name}:{'x'.join('4' * chip.dimensions)}, got {name!r}"
            )
        if math.prod(shape) > chip.most:
            raise ValueError(
                f"a slice of {chip.name} has at most {chip.most} chips, got {name!r} with "
                f"{math.prod(shape)}; use more slices"
            )
        if slices < 1:
            raise ValueError(f"there must be at least 1 slice, got {slices}")
        if slices > 1 and not chip.is_tpu and shape[0] > 1:
            raise ValueError(
                f"a slice of GPUs is a host, got {slices} slices of {name!r}: write "
                f"{chip.name}:1x{shape[1]} for {slices} hosts, or MeshConfig.slices = 1 for "
                "several that any mesh axis may span"
            )
        return cls(chip, shape, slices)

    @property
    def name(self) -> str:
        """The name that `parse` reads, with the number of slices in front if there are several."""
        sides = "x".join(map(str, self.shape))
        return f"{f'{self.slices} x ' if self.slices > 1 else ''}{self.chip.name}:{sides}"

    @property
    def chips(self) -> int:
        """Number of chips in all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def device_count(self) -> int:
        """Number of JAX devices in all slices."""
        return self.chips * self.chip.devices

    @property
    def hbm_bytes(self) -> float:
        """What a program may use of the memory of one device."""
        return self.chip.hbm_bytes / self.chip.devices

    def check_compiler(self) -> None:
        """Looks for the package that compiles for it.

        Raises:
            ModuleNotFoundError: if it is not installed; says how to install it.
        """
        needed = ("libtpu", "the package libtpu, though no TPU", "plan")
        if not self.chip.is_tpu:
            needed = ("jax_cuda12_plugin", "JAX's CUDA plugin, though no GPU", "cuda")
        package, said, extra = needed
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(
                f"compiling for {self.name} needs {said}: pip install 'xformer-jax[{extra}]'"
            )

    def devices(self, gpu_target: str | None = None) -> list[Any]:
        """Devices that can be compiled for, and nothing else.

        Args:
            gpu_target: File with XLA's description of the GPU (`h100_sxm.txtpb` of its sources),
                for GPUs alone; by default what is published of it.

        Returns:
            As many as all slices have.

        Raises:
            ModuleNotFoundError: if the compiler is not installed; says how to install it.
            OSError: if the file cannot be read.
            ValueError: if the compiler refuses the topology, or the description of a GPU.
        """
        self.check_compiler()
        return self._gpus(gpu_target) if not self.chip.is_tpu else self._tpus()

    def _tpus(self) -> list[Any]:
        options: dict[str, Any] = dict(self.chip.options)
        if self.slices > 1:
            options["num_slices"] = self.slices
        if math.prod(self.shape) == 1:
            options["chips_per_host_bounds"] = [1, 1, 1]
        sides = "x".join(map(str, self.shape))
        name = {"tpu7x": "tpu7x"}.get(self.chip.name, self.chip.name)
        with _quiet_libtpu():
            try:
                found = topologies.get_topology_desc(
                    platform="tpu", topology_name=f"{name}:{sides}", **options
                )
            except Exception as error:  # the plugin's own class
                said = str(error).partition("\n")[0]
                raise ValueError(f"libtpu has no topology {self.name}: {said}") from error
        return list(found.devices)

    def _gpus(self, gpu_target: str | None) -> list[Any]:
        described = description(H100, (9, 0))
        if gpu_target is not None:
            described = Path(gpu_target).read_text(encoding="utf-8")
        hosts, gpus = self.shape
        try:
            found = topologies.get_topology_desc(
                platform="cuda",
                topology_name="",
                topology=f"1x{self.slices * hosts}x{gpus}",
                target_config=described,
            )
        except Exception as error:  # the plugin's own class
            said = str(error).partition("\n")[0]
            raise ValueError(f"XLA has no topology {self.name}: {said}") from error
        return list(found.devices)


_OTHER_NAMES = {
    "v5litepod": "v5e",
    "v5lite": "v5e",
    "v7x": "tpu7x",
    "7x": "tpu7x",
    "ironwood": "tpu7x",
    "trillium": "v6e",
}


@contextlib.contextmanager
def _quiet_libtpu() -> Iterator[None]:
    """Keeps libtpu from asking where it is, and from refusing a second process beside it."""
    settings = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any will do
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    missing = {key: value for key, value in settings.items() if key not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for key in missing:
            del os.environ[key]


def avoid_accelerators() -> None:
    """Has JAX compute on the CPU, if it computes nothing yet: planning takes no device away."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_platforms", "cpu")
