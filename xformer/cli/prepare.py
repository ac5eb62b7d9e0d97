"""Tokenize and pack text into a corpus for training.

What a FILE is, its name says:
  *.jsonl *.ndjson   JSON objects, one a line, with the text under --text-key (or .gz, .zst of them)
  *.parquet          rows with the text in the column --text-key
  *.arrow            Arrow streams, in the same way; or name a folder that `datasets` saved
  *.arrayrecord      records of text, of JSON objects or of tf.train.Examples (or *.array_record)
  all others         UTF-8 text (or .gz, .zst of it)
The corpus appears at --out when it is complete; the same command run again finds it and does
nothing.  What it holds does not depend on the number of workers.

Examples:
  xformer prepare 'corpus/*.jsonl.zst' --tokenizer tokenizer --length 1024 --out prepared/train
  xformer prepare 'dump/*.parquet' --text-key content --tokenizer tokenizer --length 1024 --out new

A run then reads it with `PreparedData.path = "prepared/train"`.
"""

import argparse
import os
import sys
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from xformer.data.formats.base import TEXT_SPLITS, SourceOptions
from xformer.data.manifest import Manifest
from xformer.data.prepare import PrepareOptions, prepare


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say which files are read and how.

    Args:
        parser: the parser of a command.
    """
    default = SourceOptions()
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="file, dataset folder or quoted pattern"
    )
    parser.add_argument(
        "--text-key", default=default.text_key, help="key or column of the text (%(default)s)"
    )
    parser.add_argument(
        "--text-split",
        choices=TEXT_SPLITS,
        default=default.text_split,
        help="what of a text file is one document (%(default)s)",
    )
    parser.add_argument(
        "--max-document-bytes",
        type=int,
        default=default.max_document_bytes,
        help="a longer document counts as a bad row (%(default)s)",
    )
    parser.add_argument(
        "--bad-row-limit",
        type=float,
        default=0.01,
        help="largest share of rows that may be unusable (%(default)s)",
    )


def read_source_options(args: argparse.Namespace) -> SourceOptions:
    """Collects what `add_source_arguments` asked for.

    Args:
        args: parsed arguments.

    Returns:
        How files become documents.
    """
    return SourceOptions(
        text_key=args.text_key,
        text_split=args.text_split,
        max_document_bytes=args.max_document_bytes,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments.

    Args:
        parser: its parser.
    """
    add_source_arguments(parser)
    parser.add_argument("--tokenizer", required=True, metavar="FOLDER", help="tokenizer folder")
    parser.add_argument("--length", type=int, required=True, help="tokens of a packed row")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder of the corpus")
    parser.add_argument(
        "--shard-bytes", type=int, help="source bytes in one shard (chosen by the corpus's size)"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a different corpus at --out"
    )


def run(args: argparse.Namespace) -> int:
    """Prepares the corpus.

    Args:
        args: parsed arguments.

    Returns:
        0.
    """
    options = PrepareOptions(
        length=args.length,
        source=read_source_options(args),
        bad_row_limit=args.bad_row_limit,
        shard_bytes=args.shard_bytes,
    )
    with _progress_bar() as bar:
        prepared = prepare(
            args.files,
            args.tokenizer,
            args.out,
            options=options,
            workers=args.workers,
            overwrite=args.overwrite,
            progress=_updates(bar),
        )
    if not prepared.created:
        print(f"{args.out} already holds this corpus; nothing to do")
    print(_summary(prepared.manifest))
    return 0


def _progress_bar() -> Progress:
    console = Console(file=sys.stderr)
    columns = (TextColumn("preparing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _updates(bar: Progress) -> Callable[[int, int], None]:
    task = bar.add_task("preparing", total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)


def _summary(manifest: Manifest) -> str:
    counts = manifest.counts
    per_token = counts.characters / counts.tokens
    skipped = f", {counts.bad_rows} unusable rows skipped" if counts.bad_rows else ""
    return (
        f"{counts.documents:,} documents, {counts.characters:,} characters, {counts.tokens:,} "
        f"tokens ({per_token:.2f} characters each), {counts.rows:,} rows of "
        f"{manifest.settings.length} in {len(manifest.shards)} shards{skipped}"
    )
