"""Tries meshes, batch sizes and remat policies, and ranks what fits.

First the meshes are tried as the run is, then batch sizes and remat policies on the best of them:
to try everything with everything would take hours and seldom finds more.
"""

import dataclasses
import math
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from xformer.layers.execution import REMAT_POLICIES
from xformer.partitioning import MeshConfig
from xformer.plan.compilation import Plan
from xformer.plan.report import duration, table
from xformer.training.config import Run

TENSOR_WAYS = (1, 2, 4, 8)
DATA_WAYS = (1, 4)
BATCH_FACTORS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Trial:
    """One thing that was tried.

    Attributes:
        run: The run as it was changed.
        plan: What it needs; None if it was refused.
        refusal: Why it was refused; empty if it was not.
        flags: How it is asked for on the command line; see `flags`.
    """

    run: Run
    plan: Plan | None
    refusal: str = ""
    flags: str = ""

    @property
    def rank(self) -> tuple[float, float, float]:
        """How bad it is: less is better.

        Seconds a token takes at least, then bytes that wait on the host (their way there is in no
        bound), then the seconds of all bounds together.
        """
        plan = self.plan
        if plan is None or plan.memory is None or plan.bounds is None or not plan.fits:
            return math.inf, math.inf, math.inf
        costs = (plan.bounds.step, plan.memory.host, sum(dataclasses.astuple(plan.bounds)))
        step, host, total = (cost / plan.tokens for cost in costs)
        return step, host, total


def flags(run: Run, config_text: str, given: Sequence[str] = ()) -> str:
    """Writes what makes a run of another one that differs in mesh, batch size or remat policy.

    Args:
        run: The run wanted.
        config_text: The other one's configuration, as `xformer.configurables.Loaded` has it.
        given: The bindings beside the gin file that it was read with, each "KEY=VALUE".

    Returns:
        All flags beside `--gin_file`, for a shell: those that were given, or others in their place.
    """
    mesh = run.mesh
    values: dict[str, object] = {}
    for field, name, bound in (
        ("mesh", "MeshConfig", {
            "data": mesh.data, "fsdp": mesh.fsdp, "sequence": mesh.sequence,
            "tensor": mesh.tensor, "slices": mesh.slices,
        }),
        ("execution", "Execution", {"remat": f'"{run.execution.remat}"'}),
    ):  # fmt: skip
        built = re.search(rf"^Run\.{field} = @([\w./]+)\(\)$", config_text, re.MULTILINE)
        if built is None:  # what nothing builds cannot be bound
            values[f"Run.{field}"] = f"@{name}()"
        owner = built[1] if built else name
        values |= {f"{owner}.{key}": value for key, value in bound.items()}
    values["Run.batch_size"] = run.batch_size
    replaced = {key.rpartition("/")[2] for key in values}
    kept = [one for one in given if one.partition("=")[0].rpartition("/")[2] not in replaced]
    written = [*kept, *(f"{key}={value}" for key, value in values.items())]
    return " ".join(shlex.quote(f"--gin.{one}") for one in written)


def sweep(
    run: Run,
    device_count: int,
    measure: Callable[[Run], Plan],
    tell: Callable[[Trial, int, int], None],
    write: Callable[[Run], str],
) -> list[Trial]:
    """Tries meshes, then batch sizes and remat policies on the best of them.

    Args:
        run: The run.
        device_count: Devices of the topology.
        measure: Plans a run.
        tell: Is told of each trial when it is done, its number and how many there will be at most.
        write: Writes the flags that ask for a run.

    Returns:
        The trials, the best first.
    """
    tried: dict[Run, Trial] = {}
    first = [dataclasses.replace(run, mesh=mesh) for mesh in meshes(run.mesh, device_count)]
    most = len(first) + len(list(_steps(run)))

    def attempt(candidate: Run) -> None:
        if candidate in tried:
            return
        try:
            trial = Trial(candidate, measure(candidate), flags=write(candidate))
        except ValueError as error:
            trial = Trial(candidate, None, str(error), flags=write(candidate))
        tried[candidate] = trial
        tell(trial, len(tried), most)

    for candidate in first:
        attempt(candidate)
    best = min(tried.values(), key=lambda trial: trial.rank).run
    for candidate in _steps(best):
        attempt(candidate)
    return sorted(tried.values(), key=lambda trial: trial.rank)


def meshes(config: MeshConfig, device_count: int) -> Iterator[MeshConfig]:
    """Gives the meshes that are tried: some tensor ways, and as much fsdp as that leaves, or less.

    Args:
        config: The run's own mesh, which comes first; its slices and `sequence` stay.
        device_count: Devices of the topology.

    Yields:
        Meshes, each once.
    """
    shape = config.shape(device_count)
    own = dataclasses.replace(config, data=shape["data"])
    yield own
    given = {own}
    for tensor in TENSOR_WAYS:
        for data in DATA_WAYS:
            ways = max(data, config.slices)
            fixed = tensor * ways * config.sequence
            mesh = dataclasses.replace(
                config, data=ways, fsdp=max(1, device_count // fixed), tensor=tensor
            )
            if device_count % fixed == 0 and mesh not in given:
                given.add(mesh)
                yield mesh


def _steps(run: Run) -> Iterator[Run]:
    scans = run.execution.layers == "scan"
    policies = [policy for policy in REMAT_POLICIES if scans or policy != "offload"]
    for factor in BATCH_FACTORS:
        size = int(run.batch_size * factor)
        for remat in policies:
            if size and size % run.accumulation_steps == 0:
                execution = dataclasses.replace(run.execution, remat=remat)
                yield dataclasses.replace(run, batch_size=size, execution=execution)


def trial_line(trial: Trial) -> str:
    """Writes what became of a trial."""
    return "  ".join(filter(None, cells(trial)))


def ranking(trials: list[Trial]) -> list[str]:
    """Writes all trials as a table, the best first.

    Args:
        trials: What was tried, in order.

    Returns:
        Lines of text.
    """
    return table([COLUMNS, *map(cells, trials)])


COLUMNS = ("mesh", "rows", "remat", "needed", "step", "tokens/s", "slowest")
"""What `cells` says of a trial."""


def cells(trial: Trial) -> tuple[str, ...]:
    """Says what was tried and what it needs, under the heads of `COLUMNS`."""
    run, plan = trial.run, trial.plan
    mesh = " ".join(
        f"{axis}={getattr(run.mesh, axis)}"
        for axis in ("data", "fsdp", "sequence", "tensor")
        if getattr(run.mesh, axis) > 1
    )
    settings = (mesh or "one device", f"{run.batch_size:,}", run.execution.remat)
    if plan is None:
        return (*settings, "refused", "", "", "")
    if plan.bounds is None or plan.memory is None:
        return (*settings, "too much", "", "", "")
    needed = f"{plan.memory.needed / 2.0**30:.2f} GiB"
    speed = f"{plan.tokens / plan.bounds.step:,.0f}"
    return (*settings, needed, duration(plan.bounds.step), speed, plan.bounds.slowest)
