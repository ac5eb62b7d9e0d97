"""What the commands share that read a run folder."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Gives a command the argument RUN.

    Args:
        parser: The command's parser.
    """
    parser.add_argument("run", metavar="RUN", help="run folder")


def read_run(folder: str) -> Any:
    """The run that a folder's config describes, on all devices there are now.

    Args:
        folder: The run folder, which may have been moved.

    Returns:
        The `Run`.

    Raises:
        FileNotFoundError: if it is no run folder.
    """
    from xformer.configurables import load
    from xformer.partitioning import MeshConfig

    config = Path(folder) / "config.gin"
    if not config.is_file():
        raise FileNotFoundError(f"{folder} is no run folder: it has no config.gin")
    return dataclasses.replace(load(config).run, folder=folder, mesh=MeshConfig())
