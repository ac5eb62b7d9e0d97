#!/usr/bin/env python
"""How long `xformer train` takes to its first step: loop or scan, compiled before or not.

Makes a small corpus and tokenizer of the standard library's documentation, and trains the XGLM of
the quickstart, with more layers, for one step in processes of their own. Each has a folder of
compiled programs of its own, empty for the first run and kept for the second. Counted are the
seconds from the start of the process to the end of its first step (before it the untrained model is
evaluated), and the CPU seconds of the whole process, over all cores.

Examples:
  .venv/bin/python scripts/benchmarks/first_step.py
  .venv/bin/python scripts/benchmarks/first_step.py --layers 4 24 --runs 1
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
XFORMER = (sys.executable, "-m", "xformer")
RUN = """
include "models/xglm/tiny.gin"
include "heads/causal_lm.gin"
include "data/prepared.gin"
include "optim/adamw_cosine.gin"
include "mesh/data.gin"
Cosine.peak = 1e-3
Cosine.warmup_steps = 0
Run.steps = 1
Run.batch_size = 8
Run.log_every_steps = 1
Run.sample_prompts = ()
Run.execution = @Execution()
"""
STATES = "nothing compiled", "compiled before"


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 12, 24], help="their numbers")
    parser.add_argument("--runs", type=int, default=3, help="of each; medians are shown")
    return parser.parse_args()


def main() -> None:
    """Measures every form, and prints a table."""
    args = parse_arguments()
    print("| layers | " + " | ".join(f"{form}, {state}" for form, state in forms()) + " |")
    print("|---" * (1 + len(forms())) + "|")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        prepare(folder)
        for count in args.layers:
            found: dict[tuple[str, str], list[tuple[float, float]]] = {one: [] for one in forms()}
            for run in range(args.runs):
                for form, state in forms():
                    kept = folder / f"compiled-{count}-{form}-{run}"
                    found[form, state].append(first_step(folder, kept, form, count))
            cells = []
            for measured in found.values():
                seconds, processor = map(statistics.median, zip(*measured, strict=True))
                cells.append(f"{seconds:.1f} s ({processor:.1f})")
            print(f"| {count} | " + " | ".join(cells) + " |", flush=True)


def forms() -> list[tuple[str, str]]:
    """Forms of the layers, each without and with programs that were compiled before."""
    return [(form, state) for form in ("loop", "scan") for state in STATES]


def prepare(folder: Path) -> None:
    """Makes the corpus, the tokenizer and the rows of the quickstart, and the run file."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "configs" / "run.gin").write_text(RUN)
    texts, tokenizer = folder / "text", folder / "tokenizer"
    call(sys.executable, ROOT / "scripts" / "python_docs_corpus.py", "--out", texts)
    known = texts / "train.jsonl"
    call(*XFORMER, "tokenizer", "train", known, "--vocab-size", "4096", "--out", tokenizer)
    for split in ("train", "validation"):
        given = ("--tokenizer", tokenizer, "--length", "256", "--out", folder / split)
        call(*XFORMER, "prepare", texts / f"{split}.jsonl", *given)


def first_step(folder: Path, kept: Path, form: str, layers: int) -> tuple[float, float]:
    """Trains for one step.

    Args:
        folder: Where the rows are.
        kept: Folder of compiled programs.
        form: Of the layers.
        layers: Their number.

    Returns:
        Seconds to the end of the step, and CPU seconds of the process.
    """
    with tempfile.TemporaryDirectory(dir=folder) as run:
        log = Path(run) / "metrics.jsonl"
        bindings = {
            "Run.folder": f'"{run}"',
            "Execution.layers": f'"{form}"',
            "XGLMConfig.num_layers": str(layers),
            "train/PreparedData.path": f'"{folder / "train"}"',
            "validation/PreparedData.path": f'"{folder / "validation"}"',
        }
        began, before = time.time(), processor_seconds()
        call(
            *(*XFORMER, "train", "--plain", "--gin_file", folder / "configs" / "run.gin"),
            *(f"--gin.{key}={value}" for key, value in bindings.items()),
            XDG_CACHE_HOME=str(kept),
        )
        records = map(json.loads, log.read_text().splitlines())
        ended = next(one["time"] for one in records if one["kind"] == "train")
        return ended - began, processor_seconds() - before


def processor_seconds() -> float:
    """CPU seconds of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def call(*command: str | Path, **environment: str) -> None:
    """Runs a command, and shows what it said only if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
