"""Score a run's newest checkpoint on its validation data, or on others.

A run on a task gives the task's metrics; one on text the loss and the perplexity.

Example:
  xformer eval runs/quickstart --data runs/quickstart-data/validation
  xformer eval runs/quickstart --weights int8
"""

import argparse
import dataclasses
import json
from typing import Any

from xformer.cli.run_folder import (
    add_run_argument,
    add_weights_argument,
    other_data,
    read_run,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments.

    Args:
        parser: The command's parser.
    """
    add_run_argument(parser)
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="PATH",
        help="a prepared corpus, or files like those that the run reads (its validation data)",
    )
    parser.add_argument("--batches", type=int, metavar="N", help="score at most N batches (all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_weights_argument(parser, decodes=False)


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints the scores.

    Args:
        args: Parsed arguments.

    Returns:
        0.

    Raises:
        ValueError: if there is nothing to score on, or it is of another tokenizer.
    """
    config = read_run(args)
    from xformer.data.pipeline import read_tokenizer
    from xformer.data.tasks import TaskData
    from xformer.generation.weights import decoding_execution, rounded_params
    from xformer.training.evaluation import Scorer
    from xformer.training.inference import load_trained

    data = other_data(config, args.data) if args.data else config.validation_data
    if data is None:
        raise ValueError(f"{args.run} has no Run.validation_data; give --data PATH")
    if args.batches is not None and args.batches < 1:
        raise ValueError(f"--batches must be at least 1, got {args.batches}")
    if args.batches is not None and isinstance(data, TaskData):
        raise ValueError("--batches is not for a task, whose metrics are those of whole files")
    weights = args.weights or "float32"
    execution = decoding_execution(config.execution, weights)
    config = dataclasses.replace(
        config, validation_data=data, eval_batches=args.batches, execution=execution
    )
    model = load_trained(config)
    if read_tokenizer(data).fingerprint() != model.tokenizer.fingerprint():
        raise ValueError("--data must be prepared with the run's tokenizer; it has another one")
    params = rounded_params(model.params, weights)
    scores = Scorer(model.run, model.plan, data)(params)
    if args.json:
        print(json.dumps({"step": model.step, **scores}))
    else:
        print(_shown(model.step, scores, model.run.objective.scored))
    return 0


def _shown(step: int, scores: dict[str, Any], scored: str) -> str:
    from xformer.training.console import scores_line

    return f"step {step:,}: {scores_line('', scores)}  over {scores[scored]:,.0f} {scored}"
