"""The settings of `xformer generate`: its flags, and the model's own for what they do not say."""

import argparse
import math
from collections.abc import Sequence
from typing import Any

MAX_NEW_TOKENS = 64

_SETTINGS = (
    ("max_new_tokens", "min_new_tokens", "temperature", "top_k", "top_p", "min_p", "num_beams")
    + ("length_penalty", "num_return_sequences", "repetition_penalty", "no_repeat_ngram_size")
)  # fmt: skip
_COUNTS = {"max_new_tokens", "num_beams", "num_return_sequences"}


def add_setting_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags about what is written.

    Args:
        parser: The command's parser.
    """
    length = parser.add_argument_group("how much is written", "as the folder says if not given")
    length.add_argument("--max-new-tokens", type=int, metavar="N", help=f"({MAX_NEW_TOKENS})")
    length.add_argument("--min-new-tokens", type=int, metavar="N", help="(0)")
    choice = parser.add_argument_group("how tokens are chosen", "as the folder says if not given")
    choice.add_argument("--temperature", type=float, help="divides the logits; 0 is greedy (0)")
    choice.add_argument("--top-k", type=int, help="draw from the k likeliest; 0: all (50)")
    choice.add_argument(
        "--top-p", type=float, help="draw from the likeliest that reach p together (1)"
    )
    choice.add_argument(
        "--min-p", type=float, help="draw from those at least p times the likeliest (0)"
    )
    choice.add_argument("--seed", type=int, help="decides what is drawn (0)")
    choice.add_argument("--num-beams", type=int, metavar="N", help="1: no beam search (1)")
    choice.add_argument(
        "--length-penalty", type=float, help="of beams: above 0 for longer ones (1)"
    )
    choice.add_argument(
        "--num-return-sequences", type=int, metavar="N", help="drawn, or the best beams (1)"
    )
    choice.add_argument("--repetition-penalty", type=float, help="above 1: against repetition (1)")
    choice.add_argument(
        "--no-repeat-ngram-size", type=int, metavar="N", help="no run of N tokens comes twice (0)"
    )


def chosen_settings(args: argparse.Namespace, own: Any, *, limited: bool) -> Any:
    """The settings of the command, and the model's own for what it does not say.

    Args:
        args: Parsed arguments.
        own: The model's own `GenerationConfig`.
        limited: Whether it says `max_length`, of which the default is a number too.

    Returns:
        The `GenerationConfig` to write with.

    Raises:
        ValueError: if a setting is out of range, or flags mean nothing together or with what the
            model's own settings say.
    """
    given = {name: value for name in _SETTINGS if (value := getattr(args, name)) is not None}
    for name in _COUNTS & given.keys():
        if given[name] < 1:
            raise ValueError(f"{_flag(name)} must be at least 1, got {given[name]}")
    if args.temperature is not None:
        if not args.temperature >= 0.0:
            raise ValueError(f"--temperature must not be negative, got {args.temperature}")
        given["do_sample"] = args.temperature > 0.0
        if args.temperature == 0.0:
            del given["temperature"]
    for name, value in given.items():
        if not math.isfinite(value):
            raise ValueError(f"{_flag(name)} must be finite, got {value}")
    settings = own.changed({**given, "output_scores": False})
    _check_choice(args, settings)
    if settings.max_new_tokens is None and not limited:
        settings = settings.changed({"max_new_tokens": MAX_NEW_TOKENS})
    fewest, most = settings.min_new_tokens, settings.max_new_tokens
    if None not in (fewest, most) and fewest > most:
        raise ValueError(f"--min-new-tokens {fewest} must not be above --max-new-tokens {most}")
    return settings


def _check_choice(args: argparse.Namespace, settings: Any) -> None:
    """Refuses what means nothing together, whether the command or the model says it."""
    drawing, beams, several = settings.do_sample, settings.num_beams, settings.num_return_sequences
    if drawing and beams > 1:
        raise ValueError(
            f"tokens are drawn (--temperature {settings.temperature:g}) or searched for "
            f"(--num-beams {beams}), not both: give --temperature 0 or --num-beams 1"
        )
    for name in ("top_k", "top_p", "min_p", "seed"):
        if getattr(args, name) is not None and not drawing:
            raise ValueError(f"{_flag(name)} is for drawn tokens: give --temperature above 0")
    if args.length_penalty is not None and beams == 1:
        raise ValueError("--length-penalty is for beams: give --num-beams above 1")
    if args.stream and (beams > 1 or several > 1):
        raise ValueError(
            f"--stream writes one text as it comes, not the best of --num-beams {beams} nor "
            f"--num-return-sequences {several}: give 1 for both"
        )
    if several > beams and not drawing:
        raise ValueError(
            f"--num-return-sequences {several} needs --num-beams {several} or more, or "
            f"--temperature above 0; got --num-beams {beams}"
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def token_limits(
    settings: Any, prompts: Sequence[str], config: Any, tokenizer: Any
) -> tuple[int, int]:
    """Most and fewest new tokens; limits that count the prompt count the longest.

    Args:
        settings: The `GenerationConfig` to write with.
        prompts: All prompts.
        config: The architecture.
        tokenizer: The model's tokenizer.

    Returns:
        The most and the fewest.

    Raises:
        ValueError: if the limits, or the positions of the model, leave no room behind the longest
            prompt.
    """
    from xformer.generation.writer import prompt_ids

    counts_prompt = settings.max_new_tokens is None or (
        settings.min_new_tokens is None and settings.min_length
    )
    longest, prompt = 1, ""
    if not config.is_encoder_decoder and (counts_prompt or config.longer_rows):
        longest, prompt = max((len(prompt_ids(tokenizer, text)), text) for text in prompts)
    fewest, most = settings.new_tokens(longest)
    try:
        config.check_length(longest + most)
    except ValueError as error:
        raise ValueError(
            f"the prompt {prompt!r:.60} has {longest} tokens, too many with {most} new ones: "
            f"{error}"
        ) from error
    return most, min(fewest, most)
