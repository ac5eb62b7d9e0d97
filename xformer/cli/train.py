"""Train a model as a gin file describes it, or go on with a run that was interrupted.

A killed or preempted run goes on where it was when the same command is given again, with the same
numbers as if nothing had happened. A finished run is left alone.

Example:
  xformer train --gin_file configs/runs/quickstart.gin --gin.Run.steps=100

Several processes train one model, one on each host: start the same command on all. On SLURM, Open
MPI and GKE they find one another, on TPU VMs with --distributed, elsewhere with --coordinator,
--process_count and --process_index (docs/distributed.md).

The run folder (Run.folder) then holds metrics.jsonl, TensorBoard events, checkpoints and a report.
"""

import argparse
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xformer.cli.main import add_gin_arguments

if TYPE_CHECKING:
    from xformer.distributed import Connection
    from xformer.training.signals import StopNotice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_gin_arguments(parser)
    parser.add_argument(
        "--plain", action="store_true", help="one line a step instead of a progress bar"
    )
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--distributed", action="store_true", help="let JAX's cluster detection find the others"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--process_count", type=int, metavar="N", help="number of processes")
    group.add_argument("--process_index", type=int, metavar="I", help="which this is, from 0")
    group.add_argument(
        "--heartbeat_s",
        type=int,
        default=60,
        metavar="SECONDS",
        help="after so long without a sign of life a process counts as dead and the others end "
        "(default 60)",
    )
    group.add_argument(
        "--timeout_s",
        type=int,
        default=300,
        metavar="SECONDS",
        help="how long a process waits for the others where all must meet, such as at the start "
        "and around checkpoints (default 300); while others write a checkpoint, at least 1800",
    )


def connection(args: argparse.Namespace) -> "Connection | None":
    """How this process finds the others, as the flags or the environment say.

    Args:
        args: The parsed arguments.

    Returns:
        The connection; None for a process alone.

    Raises:
        ValueError: flags that mean nothing together; names them.
    """
    from xformer.distributed import Connection, is_cluster

    given = (args.coordinator, args.process_count, args.process_index)
    if args.distributed and given != (None, None, None):
        raise ValueError(
            "--distributed finds what --coordinator, --process_count and --process_index say: give "
            "one or the others"
        )
    if given == (None, None, None):
        alone = not (args.distributed or is_cluster())
        waits = {"heartbeat_s": args.heartbeat_s, "timeout_s": args.timeout_s}
        return None if alone else Connection(**waits)
    return Connection(
        args.coordinator or "",
        args.process_count or 0,
        -1 if args.process_index is None else args.process_index,
        args.heartbeat_s,
        args.timeout_s,
    )


def run(args: argparse.Namespace) -> int:
    """Trains.

    Returns:
        0 if the run is finished, 75 if it was preempted and has saved its state, if it had
        taken a step.
    """
    from xformer.distributed import connected
    from xformer.training.signals import StopNotice

    # Left last: a signal must not kill a process that waits at the end for the others.
    with contextlib.ExitStack() as listening, connected(connection(args)):
        return _train(args, listening.enter_context(StopNotice()))


def _train(args: argparse.Namespace, notice: "StopNotice") -> int:
    from xformer.configurables import load
    from xformer.distributed import is_first
    from xformer.training.loop import train
    from xformer.training.signals import EXIT_PREEMPTED

    loaded = load(args.gin_file, args.gin_bindings)
    texts = {"config.gin": loaded.config_text, "operative.gin": loaded.operative_text}
    outcome = train(loaded.run, texts, plain=True if args.plain else None, notice=notice)
    folder = loaded.run.folder
    if outcome.status == "preempted":
        if is_first():
            saved = (
                f"and saved at step {outcome.step:,}" if outcome.step else "before the first step"
            )
            print(f"stopped {saved}; give the same command to go on")
        return EXIT_PREEMPTED
    if not is_first():
        return 0
    if outcome.already_finished:
        print(f"{folder} is finished ({outcome.step:,} steps): nothing to do")
    print("\n".join(summary(folder)))
    return 0


def summary(folder: str) -> list[str]:
    """What a finished run came to.

    Args:
        folder: The run folder.

    Returns:
        Lines: validation scores before and after, samples, and where everything is.
    """
    from xformer.training.runlog import read_metrics, read_samples

    lines = [""]
    scores = [record for record in read_metrics(folder) if record["kind"] == "validation"]
    if scores:
        lines += _before_and_after(scores[0], scores[-1])
    for sample in read_samples(folder):
        text = f"[{sample['prompt']}]{sample['continuation']}"
        lines += ["", *(line for line in text.splitlines() if line.strip())]
    places = {"run folder": "", "report": "report.html", "loss curve": "loss.png"}
    return [*lines, "", *(f"{name + ':':12}{Path(folder) / file}" for name, file in places.items())]


def _before_and_after(first: Mapping[str, Any], last: Mapping[str, Any]) -> list[str]:
    """Lines on the scores of the first evaluation and of the last one."""
    from xformer.training.console import score_text, task_scores

    lines = []
    if "perplexity" in last:
        before, after = (f"{one['perplexity']:,.1f}" for one in (first, last))
        lines.append(f"validation perplexity: {before} before, {after} after")
    if baseline := last.get("unigram_perplexity"):
        times = baseline / last["perplexity"]
        lines.append(f"unigram baseline:      {baseline:,.1f} ({times:.1f} x ours)")
    found = task_scores(last) or ({} if lines else {"loss": last["loss"]})
    for name, after in found.items():
        label, before = name.replace("_", " "), score_text(first.get(name))
        lines.append(f"validation {label}: {before} before, {score_text(after)} after")
    return lines
