"""Running a case: build, compare, take turns."""

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from comparing import limits
from comparing.case import OURS, Case, Goal, Outputs, Setting
from comparing.worker import ProcessEnded, Worker

_LEAST_SECONDS = 0.3  # of a turn: shorter programs run several times in it
_TURNS_OF_LIMITS = 3

Say = Callable[[str], None]


class Disagreement(Exception):
    """Two sides compute different things."""


class Machine:
    """The processes that say how fast the machine is, for as long as all cases take."""

    def __init__(self, script: Path, setting: Setting) -> None:
        """Starts them."""
        self._script, self._setting = script, setting
        self._workers: dict[tuple[str, str], Worker] = {}
        built = self._worker(limits.PRODUCT, setting.dtype).built
        self.platform: str = built["platform"]
        self.device: str = built["device"]

    def rates(self, dtype: str) -> dict[str, float]:
        """Operations on numbers of a dtype and bytes per second, the best of some turns."""
        product = self._worker(limits.PRODUCT, dtype)
        vector = self._worker(limits.VECTOR, self._setting.dtype)
        return {"flops": _best(product, "flops"), "bytes": _best(vector, "bytes")}

    def _worker(self, side: str, dtype: str) -> Worker:
        if (side, dtype) not in self._workers:
            setting = dataclasses.replace(self._setting, dtype=dtype)
            worker = self._workers[side, dtype] = Worker(self._script, "", side, setting)
            worker.seconds()  # compiles
        return self._workers[side, dtype]

    def stop(self) -> None:
        """Ends them."""
        for worker in self._workers.values():
            worker.stop()


def _best(worker: Worker, kind: str) -> float:
    return worker.built[kind] / min(worker.seconds() for _ in range(_TURNS_OF_LIMITS))


def run_case(
    case: Case, *, script: Path, setting: Setting, runs: int, rates: dict[str, float], say: Say
) -> dict[str, Any]:
    """Builds the sides of a case, compares their outputs and times them in turns.

    Args:
        case: The case.
        script: The command, which serves as a worker.
        setting: What to build the sides for.
        runs: Turns of each side.
        rates: The machine's limits, measured just before.
        say: Told what happens.

    Returns:
        The record, as JSON has it. Where outputs differ, or a process ends early, it says so by
        "refused" and has no figures.
    """
    record = {"name": case.name, "family": case.family, "work": case.work, "note": case.remarks}
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        try:
            for name in case.sides:
                say(f"{name} is built")
                workers[name] = Worker(script, case.name, name, setting, huge_pages=case.huge_pages)
                stack.callback(workers[name].stop)
            say("outputs are compared")
            outputs = {name: worker.outputs() for name, worker in workers.items()}
            record["agreement"] = agreement(case, outputs)
            timed = {name: one for name, one in workers.items() if case.sides[name].timed}
            seconds = take_turns(timed, runs, say) if case.timed else {}
            figures = {name: worker.figures() for name, worker in timed.items()}
        except Disagreement as error:
            return {**record, "refused": str(error)}
        except ProcessEnded as error:
            say(error.log)
            return {**record, "refused": str(error)}
    units = {name: worker.built["units"] for name, worker in timed.items()}
    same = [name for name in timed if not case.sides[name].another]
    least = least_of({name: figures[name] for name in same}, units)
    sides = {}
    for name in timed:
        another = case.sides[name].another
        work = least_of({name: figures[name]}, units) if another else least
        sides[name] = side_record(figures[name], units[name], seconds.get(name), work, rates)
        sides[name]["another"] = another
    return {
        **record,
        "sides": sides,
        "goals": [goal_record(goal, sides) for goal in case.goals],
        "limits": rates,
        "took": time.monotonic() - began,
    }


def agreement(case: Case, outputs: Mapping[str, Outputs]) -> dict[str, float]:
    """Compares the outputs of the sides.

    Args:
        case: The case.
        outputs: The outputs of each side.

    Returns:
        The largest difference of each output, as a part of the largest of the peer's values.

    Raises:
        Disagreement: if a side's outputs are not those of the others, or nobody has the same.
    """
    found: dict[str, float] = {}
    for place, (name, mine) in enumerate(outputs.items()):
        for key, value in mine.items():
            if value.size == 0 or not np.isfinite(value).all():
                raise Disagreement(f"{name}: {key} has values that are not finite, or none")
        if case.sides[name].another:
            continue
        shared = 0
        for peer, theirs in list(outputs.items())[:place]:
            if case.sides[peer].another:
                continue
            for key in mine.keys() & theirs.keys():
                off = difference(mine[key], theirs[key])
                shared += 1
                found[key] = max(off, found.get(key, 0.0))
                if not off <= case.tolerance:
                    raise Disagreement(
                        f"{key} of {name} and of {peer} differ by {off:.2g} of the largest, and "
                        f"{case.tolerance:.2g} is allowed"
                    )
        if place and not shared:
            raise Disagreement(f"{name} has no output that another side has")
    return found


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference as a part of the largest value; infinite for other shapes."""
    if ours.shape != theirs.shape:
        return math.inf
    if ours.dtype.kind in "iu":
        return 0.0 if (ours == theirs).all() else math.inf
    off = np.abs(ours.astype(np.float64) - theirs).max()
    return float(off / max(np.abs(theirs).max(), np.finfo(np.float32).tiny))


def take_turns(workers: Mapping[str, Worker], runs: int, say: Say) -> dict[str, list[float]]:
    """Times the sides, one after the other, some times.

    Args:
        workers: The processes.
        runs: How often.
        say: Told what happens.

    Returns:
        The seconds of each run of each side.
    """
    times = {}
    for name, worker in workers.items():
        times[name] = max(1, math.ceil(_LEAST_SECONDS / worker.seconds()))
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(runs):
        say(f"turn {turn + 1} of {runs}")
        for name, worker in workers.items():
            seconds[name].append(worker.seconds(times[name]))
    return seconds


def least_of(
    figures: Mapping[str, Mapping[str, float]], units: Mapping[str, int]
) -> dict[str, float]:
    """The fewest operations and bytes, of each unit, that a program does the same work with.

    Args:
        figures: Figures of the programs.
        units: Units of the programs.

    Returns:
        Those of "flops" and "bytes" that are known of a program.
    """
    least = {}
    for kind in ("flops", "bytes"):
        known = [one[kind] / units[name] for name, one in figures.items() if kind in one]
        if known:
            least[kind] = min(known)
    return least


def side_record(
    figures: Mapping[str, float],
    units: int,
    seconds: list[float] | None,
    least: Mapping[str, float],
    rates: Mapping[str, float],
) -> dict[str, Any]:
    """What is said about one side.

    Args:
        figures: The program's figures.
        units: What its time is divided by before it is compared.
        seconds: Of each run.
        least: Operations and bytes of a unit of the work, as `least_of` has them.
        rates: The machine's limits.

    Returns:
        The record. "of_limit" is the least time that the machine needs for those operations and
        bytes, through the time it took.
    """
    record: dict[str, Any] = {**figures, "units": units}
    if not seconds:
        return record
    record |= {"runs": seconds, "seconds": statistics.median(seconds)}
    record["quartiles"] = [float(one) for one in np.percentile(seconds, (25, 75))]
    if least:
        bounds = {kind: units * one / rates[kind] for kind, one in least.items()}
        bound = max(bounds, key=bounds.__getitem__)
        record |= {"bound": bound, "of_limit": bounds[bound] / record["seconds"]}
    return record


def goal_record(goal: Goal, sides: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """How a goal stands.

    Args:
        goal: The goal.
        sides: The records of the sides.

    Returns:
        The record: "ratio" is the peer's figure through ours, of times the median over turns, in
        which the machine was the same for both, or the share of the machine's limit; "quartiles"
        is how that spreads.
    """
    ours, theirs = sides[OURS], sides[goal.peer]
    more = ours["units"] / theirs["units"]
    if goal.measure == "of_limit":
        ratios = [ours["of_limit"] * ours["seconds"] / one for one in ours["runs"]]
    elif goal.measure == "seconds":
        pairs = zip(theirs["runs"], ours["runs"], strict=True)
        ratios = [more * peer / mine for peer, mine in pairs]
    else:
        per_unit = more if goal.measure == "temporary" else 1.0
        ratios = [per_unit * theirs[goal.measure] / max(ours[goal.measure], 1e-9)]
    ratio = statistics.median(ratios)
    return {
        "peer": goal.peer,
        "measure": goal.measure,
        "ratio": ratio,
        "quartiles": [float(one) for one in np.percentile(ratios, (25, 75))],
        "at_least": goal.at_least,
        "aim": goal.aim,
        "of_limit": goal.of_limit,
        "met": None if goal.at_least is None else ratio >= goal.at_least,
    }
