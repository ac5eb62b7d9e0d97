"""Say what a run needs of a topology, before paying for it: memory, time, communication.

The run's own training step is compiled ahead of time for chips that need not be there; nothing is
computed, and the data need not be there either. Topologies are v5e:16x16, v5p:4x4x8, v6e:4x4,
tpu7x:4x4x8 and the like (with the package libtpu), or h100:8x8 for 8 hosts of 8 GPUs (with JAX's
CUDA plugin). Times are lower bounds: what is published of the chips, and nothing lost.

The exit code is 1 where the step does not fit.

Example:
  xformer plan --gin_file configs/runs/pretrain_xglm_7.5b.gin --topology v5e:16x16 --length 2048
"""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

from xformer.cli.main import add_gin_arguments
from xformer.configurables import load
from xformer.files import write_atomic
from xformer.plan import report
from xformer.plan.advice import advice
from xformer.plan.apart import measure_apart
from xformer.plan.compilation import Plan
from xformer.plan.page import plan_page, sweep_page
from xformer.plan.sweep import Trial, flags, ranking, sweep, trial_line
from xformer.plan.topology import Topology
from xformer.training.config import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the gin file, its bindings, the topology and what to say about it.

    Args:
        parser: The command's parser.
    """
    add_gin_arguments(parser)
    parser.add_argument("--topology", required=True, metavar="NAME", help="such as v5e:16x16")
    parser.add_argument(
        "--slices",
        type=int,
        metavar="N",
        help="slices of that topology (default: MeshConfig.slices)",
    )
    parser.add_argument(
        "--length",
        type=int,
        metavar="TOKENS",
        help="tokens of a row, for prepared corpora that are not here",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="compile in a fifth of the time; figures are a tenth off or so",
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="try meshes, batch sizes and remat policies, quickly, and rank them",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures as JSON")
    parser.add_argument(
        "--html", metavar="FILE", help="also write them as a page with pictures, one file by itself"
    )
    parser.add_argument(
        "--gpu_target",
        metavar="FILE",
        help="XLA's description of the GPU, for h100 topologies (default: published figures)",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the plan, or what was tried and came of it.

    Args:
        args: Parsed arguments.

    Returns:
        0 if the step fits (of a sweep, if any does), else 1.
    """
    loaded = load(args.gin_file, args.gin_bindings)
    slices = loaded.run.mesh.slices if args.slices is None else args.slices
    topology = Topology.parse(args.topology, slices)
    wanted = dataclasses.replace(
        loaded.run, mesh=dataclasses.replace(loaded.run.mesh, slices=slices)
    )

    def plan(candidate: Run) -> Plan:
        return measure_apart(
            candidate,
            topology,
            gpu_target=args.gpu_target,
            length=args.length,
            quick=args.quick or args.sweep,
        )

    name = f"{Path(args.gin_file).stem} on {topology.name}"
    if args.sweep:
        write = functools.partial(flags, config_text=loaded.config_text, given=args.gin_bindings)
        trials = sweep(wanted, topology.device_count, plan, _tell, write)
        _write(args.json, lambda: _json_text([_trial_json(one) for one in trials]))
        _write(args.html, lambda: sweep_page(trials, name))
        return _show_trials(trials)
    found = plan(wanted)
    helpful = [] if found.fits else advice(wanted, found)
    _write(args.json, lambda: _json_text(report.as_json(found)))
    _write(args.html, lambda: plan_page(found, name, helpful))
    print("\n".join(report.lines(found)))
    if helpful:
        print("\nto make it fit:")
        print("\n".join(f"- {line}" for line in helpful))
    return 0 if found.fits else 1


def _show_trials(trials: list[Trial]) -> int:
    refused = {trial.refusal for trial in trials if trial.refusal}
    print("\n".join([*ranking(trials), *(f"refused: {one}" for one in sorted(refused))]))
    best = trials[0]
    if best.plan is None or not best.plan.fits:
        print("\nnothing that was tried fits")
        if best.plan is not None:
            print("\n".join(f"- {line}" for line in advice(best.run, best.plan)))
        return 1
    print(f"\nthe best: {best.flags}")
    return 0


def _trial_json(trial: Trial) -> dict:
    if trial.plan is None:
        return {"settings": trial.flags, "refusal": trial.refusal}
    return {"settings": trial.flags, **report.as_json(trial.plan)}


def _tell(trial: Trial, number: int, most: int) -> None:
    print(f"{number:2}/{most}  {trial_line(trial)}", file=sys.stderr, flush=True)


def _json_text(described: object) -> str:
    return json.dumps(described, indent=1) + "\n"


def _write(path: str | None, text: Callable[[], str]) -> None:
    if path is not None:
        write_atomic(Path(path), text())
