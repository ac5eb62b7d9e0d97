#!/usr/bin/env python
"""xformer beside its peers: how many times as fast and as small, and how close to the machine.

Each case is computed by xformer and by others (`transformers` on PyTorch and Flax, dense variants
of our own), each in a process of its own with as many threads. Their outputs are compared first; a
case whose outputs differ is refused, and so is told. Then they take turns. A ratio is the peer's
figure through xformer's, of times the median over turns; what is wanted at least stands beside it.

"of the limit" is the least time that the machine needs for the matrix products, or to move inputs
and outputs once, through the time taken; how fast the machine is at either is measured before each
case. JSON has all else: quartiles, memory, compilation, operations and bytes of every side.

With a GPU that JAX sees, everything runs on it, and so do the cases that are for GPUs alone, which
take the kernels. Needs requirements/reference.txt, and for XGLM some 15 GB of memory and 5 GB of
disk; two cores take an hour or so for everything.

Examples:
  .venv/bin/python scripts/benchmarks/peers.py --quick
  .venv/bin/python scripts/benchmarks/peers.py --family squeezebert bigbird --json runs/peers.json
  .venv/bin/python scripts/benchmarks/peers.py --only xglm-decode-1 xglm-decode-8 --runs 3
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from comparing import every, limits, measuring, reporting
from comparing.case import Case, Setting
from comparing.worker import serve, use_threads

from xformer.files import write_atomic

SCRIPT = Path(__file__).resolve()
_BUSY = 0.5  # load of others for each thread
_PACKAGES = ("jax", "flax", "transformers", "torch")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", nargs="+", choices=every.FAMILIES, default=every.FAMILIES)
    parser.add_argument("--only", nargs="+", choices=every.CASES, metavar="CASE", help="see --list")
    parser.add_argument("--list", action="store_true", help="name the cases, and measure nothing")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--runs", type=int, default=7, help="turns of each side")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--threads", type=int, default=cores, help="of each process")
    parser.add_argument("--scratch", help="where weights go (the system's temporary folder)")
    parser.add_argument("--json", type=Path, help="file for all figures, also after each case")
    parser.add_argument("--keep", action="store_true", help="leave out what --json holds already")
    parser.add_argument("--into", type=Path, help="document to write the table into, at its marks")
    parser.add_argument("--brief", type=Path, help="document for the ratios alone, at its marks")
    parser.add_argument("--svg", type=Path, help="file for a picture of the ratios")
    parser.add_argument("--html", type=Path, help="file for a page of both")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # how a process is called
    args = parser.parse_args()
    if args.runs < 1 or args.threads < 1:
        parser.error("--runs and --threads must be at least 1")
    if args.keep and not args.json:
        parser.error("--keep needs --json FILE")
    return args


def main() -> None:
    """Runs the cases, and prints the table."""
    args = parse_arguments()
    if args.worker:
        work(json.loads(args.worker))
        return
    # So that processes and weights of gigabytes do not stay behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    chosen = [
        case
        for name, case in every.CASES.items()
        if (name in args.only if args.only else case.family in args.family)
    ]
    if args.list:
        print("\n".join(f"{case.name}: {case.work}" for case in chosen))
        return
    documents = {path: path.read_text(encoding="utf-8") for path in (args.into, args.brief) if path}
    for text in documents.values():
        reporting.put_into(text, "")  # refuses it before anything is measured
    facts = facts_of(args)
    records = kept(args.json, facts) if args.keep else {}
    left = [case for case in chosen if case.name not in records]
    if platform := facts.get("platform"):
        left = fitting(left, platform, args)
    if lacking := [name for name, version in facts["versions"].items() if left and not version]:
        raise SystemExit(f"needs {' and '.join(lacking)}: install requirements/reference.txt")
    if left and (load := os.getloadavg()[0]) > _BUSY * args.threads:
        said = f"the machine is busy (load {load:.1f}): ratios say little, of PyTorch least"
        print(said, file=sys.stderr)
    for record in measured(left, args, facts):
        records[record["name"]] = record
        if args.json:
            write_json(args.json, facts, list(records.values()))
    ordered = [records[name] for name in every.CASES if name in records]
    days = sorted(record["date"] for record in ordered)  # what was kept is not of today
    facts["date"] = " to ".join(dict.fromkeys((*days[:1], *days[-1:])))
    report(ordered, facts, args, documents)
    if refused := [record["name"] for record in ordered if "refused" in record]:
        raise SystemExit(f"refused: {', '.join(refused)}")


def facts_of(args: argparse.Namespace) -> dict[str, Any]:
    """When and with what it is measured; the machine is added when it is known."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "threads": args.threads,
        "load": os.getloadavg()[0],
        "quick": args.quick,
        "runs": args.runs,
        "versions": {name: version_of(name) for name in _PACKAGES},
    }


def fitting(cases: list[Case], platform: str, args: argparse.Namespace) -> list[Case]:
    """The cases that are measured on a platform.

    Args:
        cases: The cases that are asked for.
        platform: The platform.
        args: The command line.

    Returns:
        Those of them.

    Raises:
        SystemExit: if one that is not was asked for by its name.
    """
    others = [case.name for case in cases if not case.is_for(platform, quick=args.quick)]
    if others and args.only:
        raise SystemExit(f"{', '.join(others)}: for a GPU alone; --quick computes small sizes here")
    return [case for case in cases if case.name not in others]


def version_of(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def kept(path: Path, facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The records of a file, which must have been made as the others are.

    Args:
        path: The file; none is no records.
        facts: How the others are made; the machine is taken over from the file.

    Returns:
        The records by name, but for those that were refused.

    Raises:
        SystemExit: if they were made otherwise.
    """
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    other = [key for key in ("threads", "quick", "runs", "versions") if found[key] != facts[key]]
    if other:
        raise SystemExit(f"{path} was made with other {' and '.join(other)}; leave --keep out")
    facts |= {key: found[key] for key in ("device", "platform", "load")}
    return {one["name"]: one for one in found["cases"] if "refused" not in one}


def write_json(path: Path, facts: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Writes everything that is known by now."""
    write_atomic(path, json.dumps({**facts, "cases": records}, indent=1) + "\n")


def report(
    records: list[dict[str, Any]],
    facts: dict[str, Any],
    args: argparse.Namespace,
    documents: dict[Path, str],
) -> None:
    """Prints the table, and writes what is asked for."""
    content = reporting.document(records, facts)
    print(content)
    if args.into:
        if args.svg:
            place = os.path.relpath(args.svg, args.into.parent)
            content = f"![ratios of all rows as bars]({place})\n\n{content}"
        write_atomic(args.into, reporting.put_into(documents[args.into], content))
    if args.brief:
        content = reporting.brief(records, facts)
        write_atomic(args.brief, reporting.put_into(documents[args.brief], content))
    if args.svg:
        write_atomic(args.svg, reporting.picture(records, "xformer beside its peers"))
    if args.html:
        write_atomic(args.html, reporting.html(records, facts))


def measured(
    cases: list[Case], args: argparse.Namespace, facts: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Runs cases one after the other.

    Args:
        cases: The cases.
        args: The command line.
        facts: Where the machine is added.

    Yields:
        The record of each case.

    Raises:
        SystemExit: if the records that are kept are of another machine, or as `fitting`.
    """
    if not cases:
        return
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=args.scratch)))
        setting = Setting(scratch, args.quick, args.threads, "any")
        machine = measuring.Machine(SCRIPT, setting)
        stack.callback(machine.stop)
        here = {"device": machine.device, "platform": machine.platform}
        if here != {key: facts.setdefault(key, value) for key, value in here.items()}:
            raise SystemExit(f"{args.json} was made on {facts['device']}; leave --keep out")
        cases = fitting(cases, machine.platform, args)
        for place, case in enumerate(cases, 1):
            began = time.monotonic()

            def say(what: str, said: str = f"[{place}/{len(cases)}] {case.name}") -> None:
                print(f"{said}: {what}", file=sys.stderr, flush=True)

            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                record = measuring.run_case(
                    case,
                    script=SCRIPT,
                    setting=Setting(
                        Path(folder), args.quick, args.threads, machine.platform, case.dtype
                    ),
                    runs=args.runs,
                    rates=machine.rates(case.dtype),
                    say=say,
                )
            say(f"{reporting.summary(record)}; {time.monotonic() - began:.0f} s")
            yield {**record, "date": facts["date"]}


def work(asked: dict[str, Any]) -> None:
    """Serves as the process of one side."""
    # What libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    use_threads(asked["threads"])
    case, side = asked.pop("case"), asked.pop("side")
    setting = Setting(**{**asked, "folder": Path(asked["folder"])})
    program = every.CASES[case].sides[side].build(setting) if case else limits.build(side, setting)
    serve(program, answers)


if __name__ == "__main__":
    main()
