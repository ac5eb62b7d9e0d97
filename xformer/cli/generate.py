"""Continue prompts with a run's newest checkpoint.

Greedy by default; a temperature above 0 draws. Without prompts they are read from standard input,
one a line. All prompts of a call are continued together, in one compiled program with a cache.

Example:
  xformer generate runs/quickstart "The with statement" --max-new-tokens 64 --temperature 0.8
"""

import argparse
import json
import sys

from xformer.cli.run_folder import add_run_argument, read_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments.

    Args:
        parser: The command's parser.
    """
    add_run_argument(parser)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="text to continue")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="divides the logits; 0 is greedy"
    )
    parser.add_argument("--top-k", type=int, default=0, help="draw from the k likeliest; 0: all")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="draw from the likeliest that reach p together"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides what is drawn (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(args: argparse.Namespace) -> int:
    """Generates and prints the texts.

    Args:
        args: Parsed arguments.

    Returns:
        0.

    Raises:
        ValueError: if an argument is out of range or there is no prompt.
    """
    from xformer.generation.sampling import Sampling

    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, got {args.max_new_tokens}")
    prompts = args.prompts or [line for line in sys.stdin.read().splitlines() if line]
    if not prompts:
        raise ValueError("give a PROMPT, or prompts on standard input, one a line")
    config = read_run(args)
    from xformer.training.inference import load_trained
    from xformer.training.samples import continue_prompts

    model = load_trained(config)
    continuations = continue_prompts(
        model.run,
        model.params,
        model.tokenizer,
        tuple(prompts),
        max_new_tokens=args.max_new_tokens,
        sampling=sampling,
        seed=args.seed,
    )
    for prompt, continuation in zip(prompts, continuations, strict=True):
        if args.json:
            print(json.dumps({"prompt": prompt, "continuation": continuation}))
        else:
            print(f"{prompt}{continuation}\n")
    return 0
