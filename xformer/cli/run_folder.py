"""What the commands share that read a run folder."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Gives a command the argument RUN and `--gin.KEY=VALUE`.

    Args:
        parser: The command's parser.
    """
    parser.add_argument("run", metavar="RUN", help="run folder")
    group = parser.add_argument_group("bindings")
    group.description = (
        "--gin.KEY=VALUE  change a value of the run's config, for this command only: "
        "--gin.Execution.dtype='\"bfloat16\"'"
    )
    parser.set_defaults(gin_bindings=[])


def read_run(args: argparse.Namespace) -> Any:
    """The run that a folder's config describes.

    Args:
        args: Parsed arguments with `run` and `gin_bindings`; the folder may have been moved.

    Returns:
        The `Run`.

    Raises:
        FileNotFoundError: if it is no run folder.
    """
    from xformer.configurables import load

    # Every field is spelled out in operative.gin: a default that changes later does not matter.
    found = [p for n in ("operative.gin", "config.gin") if (p := Path(args.run) / n).is_file()]
    if not found:
        raise FileNotFoundError(f"{args.run} is no run folder: it has no config.gin")
    return dataclasses.replace(load(found[0], args.gin_bindings).run, folder=args.run)
