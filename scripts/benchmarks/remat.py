#!/usr/bin/env python
"""What recomputing costs and saves: time and memory of a training step under each policy.

A step of XGLM-564M with fewer layers, AdamW, float32, on rows of random tokens. The policies take
turns in one process; "kept" is what the program sets aside beside its inputs and outputs, which are
weights, moments and rows. Ratios are to no recomputation with layers in a loop.

Examples:
  .venv/bin/python scripts/benchmarks/remat.py
  .venv/bin/python scripts/benchmarks/remat.py --layers 8 --rows 1 --length 1024 --turns 3
"""

import argparse
import statistics
import time
from typing import Any

import jax
from comparing import programs, training

import xformer
from xformer.data.pipeline import PreparedData
from xformer.layers.execution import LAYER_MODES, REMAT_POLICIES, Execution
from xformer.layers.stack import restack
from xformer.objectives import NextToken

VOCABULARY = 32_000  # of words, so that layers are most of the work


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--turns", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    """Compiles every form, times them in turns, and prints a table."""
    args = parse_arguments()
    config = programs.without_dropout(
        xformer.XGLMConfig(vocab_size=VOCABULARY, num_layers=args.layers)
    )
    batch = programs.packed_rows(programs.token_ids(args.rows, args.length, VOCABULARY))
    params = xformer.FlaxXGLMForCausalLM(config).params
    steps = {}
    for execution in forms():
        steps[execution] = program = step_of(config, params, batch, execution)
        program.run()
    seconds: dict[Execution, list[float]] = {execution: [] for execution in steps}
    for _ in range(args.turns):
        for execution, program in steps.items():
            program.run()  # memory and caches were another program's meanwhile
            began = time.perf_counter()
            program.run()
            seconds[execution].append(time.perf_counter() - began)
    print("| layers | policy | a step | ratio | kept | compiled in |")
    print("|---|---|---|---|---|---|")
    first = statistics.median(next(iter(seconds.values())))
    for execution, program in steps.items():
        median = statistics.median(seconds[execution])
        figures = program.figures
        print(
            f"| {execution.layers} | {execution.remat} | {median:.2f} s | {median / first:.2f} | "
            f"{figures['temporary'] / 1e6:,.0f} MB | {figures['compile']:.1f} s |"
        )


def forms() -> list[Execution]:
    """Every policy that devices without memory of a host's kind have, in either form of layers."""
    return [
        Execution(layers=layers, remat=remat)
        for layers in LAYER_MODES
        for remat in REMAT_POLICIES
        if remat != "offload"
    ]


def step_of(config: Any, params: Any, batch: Any, execution: Execution) -> programs.Program:
    """A training step, from weights of its own."""
    own = jax.tree.map(jax.numpy.copy, restack(params, execution.layers))
    return training.ours(
        own,
        batch,
        model=config,
        head=xformer.CausalLM(),
        objective=NextToken(),
        train_data=PreparedData("not read"),
        execution=execution,
    )


if __name__ == "__main__":
    main()
