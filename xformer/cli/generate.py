"""Continue texts with a run's newest checkpoint, or with a model folder.

Greedy by default; a temperature above 0 draws, --num-beams searches. What is not given is as the
generation_config.json of a model folder says, else as in parentheses. Prompts are arguments, the
lines of a file (of a .jsonl file their "prompt"), or the lines of standard input. An
encoder-decoder reads the prompt and writes its answer. What -o names appears when it is complete:
after an interrupt the same command goes on behind the batches that are done.

Examples:
  xformer generate runs/quickstart "The with statement" --max-new-tokens 64 --temperature 0.8
  xformer generate runs/quickstart "The with statement" --stream
  xformer generate models/summaries --file texts.jsonl -o summaries.jsonl --num-beams 4
"""

import argparse
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xformer.cli.generation_settings import add_setting_arguments, chosen_settings, token_limits
from xformer.cli.out_file import GrowingFile, check_writable
from xformer.cli.run_folder import (
    add_run_argument,
    add_weights_argument,
    read_run,
    refuse_several,
)
from xformer.cli.text_lines import STANDARD_INPUT, read_lines

BATCH_SIZE = 16

Row = dict[str, Any]


@dataclass(frozen=True)
class _Model:
    """What is known of a model before its weights are read.

    Attributes:
        config: The architecture.
        settings: Its own settings of generation.
        limited: Whether they say how long rows become at most.
        writer: What reads the weights: a function of the settings, the decoding and the prompts.
    """

    config: Any
    settings: Any
    limited: bool
    writer: Callable[..., Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments.

    Args:
        parser: The command's parser.
    """
    add_run_argument(parser)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="text to continue")
    parser.add_argument("--file", metavar="FILE", help="prompts, one a line; - is standard input")
    parser.add_argument("-o", "--out", metavar="OUT", help="file to write, one JSON object a line")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--stream", action="store_true", help="print text while it is written")
    parser.add_argument("--batch-size", type=int, metavar="N", help=f"({BATCH_SIZE})")
    add_weights_argument(parser)
    add_setting_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Generates and prints or writes the texts.

    Args:
        args: Parsed arguments.

    Returns:
        0.

    Raises:
        OSError: if a file cannot be read or written.
        ValueError: if an argument is out of range, arguments exclude one another, or there is no
            prompt.
    """
    _check(args)
    if args.out:
        check_writable(Path(args.out))
    model = _open(args)
    settings = chosen_settings(args, model.settings, limited=model.limited)
    decoding = settings.decoding(model.config)
    rows = list(_rows(args))
    if not rows:
        where = "standard input" if args.file in (None, STANDARD_INPUT) else args.file
        raise ValueError(f"there is no prompt in {where}; give PROMPTs, or write one a line")
    goes_on = not model.config.is_encoder_decoder
    writer = model.writer(settings, decoding, [row["prompt"] for row in rows])
    args.batch_size = args.batch_size or BATCH_SIZE
    if args.stream:
        return _stream(args, rows, writer, goes_on)
    if args.out:
        return _write_file(args, rows, writer)
    for made in _batches(args, rows, writer):
        for row, written in made:
            text = f"{row['prompt'] if goes_on else ''}{written.text}\n"
            print(_line(row, written) if args.json else text, flush=True)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuses flags that mean nothing together or are out of range, before anything is read."""
    if args.batch_size is not None and args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.prompts and args.file:
        raise ValueError("give PROMPTs or --file, not both")
    if args.json and args.out:
        raise ValueError("-o writes JSON lines and prints none: leave out --json")
    if args.stream and (args.json or args.out):
        raise ValueError("--stream prints text: leave out --json and -o")
    if args.stream and args.batch_size is not None:
        raise ValueError("--stream writes one text at a time: leave out --batch-size")


def _rows(args: argparse.Namespace) -> Iterator[Row]:
    """The prompts, and what stands beside them in a .jsonl file."""
    if args.prompts:
        yield from ({"prompt": text} for text in args.prompts)
        return
    file = args.file or STANDARD_INPUT
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        if not file.endswith(".jsonl"):
            yield {"prompt": line}
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}:{number} is not JSON: {error}") from error
        if not (isinstance(row, dict) and isinstance(row.get("prompt"), str) and row["prompt"]):
            raise ValueError(f'{file}:{number} must be an object with a text "prompt"')
        if taken := sorted({"continuation", "score"} & row.keys()):
            raise ValueError(f"{file}:{number} has {taken}, which the output says; rename it")
        yield row


def _open(args: argparse.Namespace) -> _Model:
    """The model of a run or a model folder, before its weights are read."""
    from xformer.files import parse_object, read_limited
    from xformer.generation.config import FILE_NAME, MAX_BYTES, GenerationConfig

    folder = Path(args.run)
    is_run = any((folder / name).is_file() for name in ("operative.gin", "config.gin"))
    if not is_run and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} is no run folder (it has no config.gin) and no model folder (no config.json)"
        )
    if is_run:
        config = read_run(args)
        from xformer.training.samples import check_head

        check_head(config)
        writer = functools.partial(_run_writer, config, args.weights)
        return _Model(config.model, GenerationConfig(), limited=False, writer=writer)
    refuse_several()
    if args.gin_bindings:
        raise ValueError(f"{folder} is a model folder: --gin.{args.gin_bindings[0]} has no effect")
    from xformer.pretrained.auto import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    path, said = folder / FILE_NAME, config.carried
    settings = GenerationConfig.from_model_config(config)
    if path.is_file():
        settings = GenerationConfig.from_pretrained(path)
        said = parse_object(read_limited(path, MAX_BYTES), str(path))
    limited = said.get("max_length") is not None
    writer = functools.partial(_folder_writer, folder, config, args.weights)
    return _Model(config, settings, limited, writer)


def _run_writer(
    config: Any, weights: str | None, settings: Any, decoding: Any, prompts: list[str]
) -> Any:
    """What writes with the newest checkpoint of a run."""
    from xformer.training.inference import load_trained
    from xformer.training.samples import run_writer

    trained = load_trained(config)
    tokenizer = trained.tokenizer
    limits = token_limits(settings, prompts, config.model, tokenizer)
    return run_writer(trained.run, trained.params, tokenizer, decoding, *limits, weights=weights)


def _folder_writer(
    folder: Path, config: Any, weights: str | None, settings: Any, decoding: Any, prompts: list[str]
) -> Any:
    """What writes with a model folder."""
    from xformer.generation.writer import Writer
    from xformer.pretrained.auto import FlaxAutoModelForCausalLM, FlaxAutoModelForSeq2SeqLM
    from xformer.tokenization.auto import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    limits = token_limits(settings, prompts, config, tokenizer)
    answers = config.is_encoder_decoder
    auto = FlaxAutoModelForSeq2SeqLM if answers else FlaxAutoModelForCausalLM
    model = auto.from_pretrained(folder)
    if weights is not None:
        model = model.for_decoding(weights)
    return Writer(model.module, model.params, tokenizer, decoding, *limits)


def _write_file(args: argparse.Namespace, rows: list[Row], writer: Any) -> int:
    """Writes the continuations of a batch as soon as they are made, behind those made before."""
    copies = writer.decoding.num_return_sequences
    with GrowingFile(Path(args.out), _identity(args, rows, writer)) as file:
        done = min(file.lines // copies, len(rows))
        if done < len(rows):
            done -= done % args.batch_size
        file.cut(done * copies)
        if done:
            print(f"{file.partial}: going on behind {file.lines:,} lines", file=sys.stderr)
        try:
            for made in _batches(args, rows, writer, done):
                file.add(_line(row, written) for row, written in made)
        except BaseException:
            if file.lines:
                print(
                    f"{file.partial}: {file.lines:,} lines are done; the same command goes on",
                    file=sys.stderr,
                )
            raise
    print(f"{args.out}: {file.lines:,} continuations")
    return 0


def _identity(args: argparse.Namespace, rows: list[Row], writer: Any) -> str:
    """Eight digits that stand for everything that decides what is written."""
    from xformer.pretrained.fingerprint import model_fingerprint

    module = writer.module
    decided = [
        model_fingerprint(module.config, writer.params, writer.tokenizer),
        repr((module.execution, writer.decoding, writer.max_new_tokens, writer.min_new_tokens)),
        args.seed,
        args.batch_size,
        rows,
    ]
    return hashlib.sha256(json.dumps(decided).encode()).hexdigest()[:8]


def _line(row: Row, written: Any) -> str:
    score = {} if written.score is None else {"score": written.score}
    return json.dumps({**row, "continuation": written.text, **score}, ensure_ascii=False)


def _batches(
    args: argparse.Namespace, rows: list[Row], writer: Any, first: int = 0
) -> Iterator[list[tuple[Row, Any]]]:
    """Every row with each of its continuations, a batch of rows at a time, from a row on."""
    import jax

    key = _key(args)
    for start in range(first, len(rows), args.batch_size):
        batch = rows[start : start + args.batch_size]
        texts = [row["prompt"] for row in batch]
        if start:  # the last batch is filled up: another number of rows were another program
            texts += texts[-1:] * (args.batch_size - len(texts))
        written = writer.write(texts, jax.random.fold_in(key, start))
        pairs = zip(batch, written[: len(batch)], strict=True)
        yield [(row, one) for row, several in pairs for one in several]


def _stream(args: argparse.Namespace, rows: list[Row], writer: Any, goes_on: bool) -> int:
    """Prints each text while it is written."""
    import jax

    for number, row in enumerate(rows):
        print(row["prompt"] if goes_on else "", end="", flush=True)
        for piece in writer.stream(row["prompt"], jax.random.fold_in(_key(args), number)):
            print(piece, end="", flush=True)
        print("\n", flush=True)
    return 0


def _key(args: argparse.Namespace) -> Any:
    from xformer.training.state import SAMPLE, purpose_key

    return purpose_key(args.seed or 0, SAMPLE)
