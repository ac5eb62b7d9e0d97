"""What the commands share that read a run folder."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WEIGHTS = ("float32", "bfloat16", "int8")
"""Those of `generation.weights`, which costs an import that `--help` does not wait for."""

# Every field is spelled out in the first: a default that changes later does not matter.
_CONFIGS = ("operative.gin", "config.gin")


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


def add_weights_argument(parser: argparse.ArgumentParser, *, decodes: bool = True) -> None:
    """Gives a command the argument `--weights`.

    Args:
        parser: The command's parser.
        decodes: Whether it decodes, for which weights of float32 can be laid out anew.
    """
    layout = ", or to float32 laid out for decoding" if decodes else ""
    parser.add_argument(
        "--weights",
        choices=WEIGHTS if decodes else WEIGHTS[1:],
        help="convert matrices first: to bfloat16, in which all is then computed, to int8 with a "
        f"scale for each output channel{layout} (default: as they are)",
    )


def read_run(args: argparse.Namespace) -> Any:
    """The run that a folder's config describes.

    Args:
        args: Parsed arguments with `run` and `gin_bindings`; the folder may have been moved.

    Returns:
        The `Run`.

    Raises:
        FileNotFoundError: if it is no run folder.
        ValueError: if this is one of several processes.
    """  # noqa: DOC502
    from xformer.configurables import load

    refuse_several()
    found = _configs(args.run)
    if not found:
        raise FileNotFoundError(f"{args.run} is no run folder: it has no config.gin")
    return dataclasses.replace(load(found[0], args.gin_bindings).run, folder=args.run)


def refuse_several() -> None:
    """Refuses to be one of several processes, each of which would do and write the same.

    Raises:
        ValueError: if the environment says so.
    """
    from xformer.distributed import is_cluster

    if is_cluster():
        raise ValueError(
            "only `xformer train` runs in several processes, and this is one of them by the "
            "environment (SLURM, Open MPI or a TPU slice of several hosts); start one process on "
            "one host: `srun --ntasks=1`, a machine with GPUs, or a TPU slice of one host"
        )


def refuse_run_folder(path: str) -> None:
    """Refuses a run folder where a model folder is wanted.

    Args:
        path: A folder, or a name on the hub.

    Raises:
        ValueError: if it is a run folder.
    """
    if _configs(path):
        raise ValueError(
            f"{path} is a run folder, no model folder; make one of it with `xformer export {path} "
            "FOLDER`"
        )


def _configs(folder: str) -> list[Path]:
    return [path for name in _CONFIGS if (path := Path(folder) / name).is_file()]


def other_data(run: Any, paths: Sequence[str]) -> Any:
    """Other data of the kind that a run reads.

    Args:
        run: The run.
        paths: Files with the columns of the run's data, or a prepared corpus, also in a bucket.

    Returns:
        The data's config, with the run folder's tokenizer where it has one.

    Raises:
        ValueError: if the run reads prepared corpora and the path is none.
    """
    from xformer.buckets import is_in_bucket
    from xformer.data.manifest import FILE_NAME
    from xformer.data.mixture import Mixture
    from xformer.data.pipeline import PreparedData
    from xformer.data.tasks import TaskData
    from xformer.training.folder import RunFolder

    data = run.validation_data or run.train_data
    in_bucket = is_in_bucket(paths[0]) and not isinstance(data, TaskData)
    if len(paths) == 1 and (in_bucket or (Path(paths[0]) / FILE_NAME).is_file()):
        return PreparedData(paths[0])
    if isinstance(data, PreparedData | Mixture):
        raise ValueError(
            f"the run reads prepared corpora: give one folder that `xformer prepare` wrote, not "
            f"{', '.join(paths)}"
        )
    tokenizer = str(RunFolder(run.folder).tokenizer)
    return dataclasses.replace(data, files=tuple(paths), tokenizer=tokenizer)
