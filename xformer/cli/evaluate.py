"""Score a run's newest checkpoint on its validation data, or on another prepared corpus.

Example:
  xformer eval runs/quickstart --data runs/quickstart-data/validation
"""

import argparse
import dataclasses
import json

from xformer.cli.run_folder import add_run_argument, read_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments.

    Args:
        parser: The command's parser.
    """
    add_run_argument(parser)
    parser.add_argument("--data", metavar="FOLDER", help="prepared corpus (the run's validation)")
    parser.add_argument("--batches", type=int, metavar="N", help="score at most N batches (all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


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
    from xformer.data.pipeline import PreparedData, read_tokenizer
    from xformer.training.evaluation import evaluate
    from xformer.training.inference import load_trained
    from xformer.training.steps import compile_eval_step

    data = PreparedData(args.data) if args.data else config.validation_data
    if data is None:
        raise ValueError(f"{args.run} has no Run.validation_data; give --data FOLDER")
    if args.batches is not None and args.batches < 1:
        raise ValueError(f"--batches must be at least 1, got {args.batches}")
    model = load_trained(dataclasses.replace(config, eval_batches=args.batches))
    if read_tokenizer(data).fingerprint() != model.tokenizer.fingerprint():
        raise ValueError("--data must be prepared with the run's tokenizer; it has another one")
    step = compile_eval_step(model.run, model.plan)
    scores = {"step": model.step, **evaluate(model.run, model.plan, step, model.params, data)}
    if args.json:
        print(json.dumps(scores))
    else:
        print(
            f"step {model.step:,}: loss {scores['loss']:.4f}  perplexity "
            f"{scores['perplexity']:,.2f}  over {scores['tokens']:,.0f} tokens"
        )
    return 0
