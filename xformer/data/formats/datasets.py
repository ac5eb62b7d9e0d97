"""Folders that the library `datasets` wrote with `save_to_disk`.

one dataset      state.json, dataset_info.json, data-00000-of-00002.arrow ...
a DatasetDict    dataset_dict.json, and such a folder for each split
"""

import json
from pathlib import Path
from typing import Any

_STATE = "state.json"
_INFO = "dataset_info.json"
_DICT = "dataset_dict.json"


def is_dataset(path: Path) -> bool:
    """Says whether a folder was written by `datasets`.

    Args:
        path: the folder.

    Returns:
        Whether it holds a dataset or several splits.
    """
    # Other programs write a `state.json` too.
    both = (path / _STATE).is_file() and (path / _INFO).is_file()
    return both or (path / _DICT).is_file()


def is_stream_by_name(path: Path) -> bool:
    """Says whether a file of a dataset may be named by itself.

    Args:
        path: a file in a folder for which `is_dataset`.

    Returns:
        Whether it is a table, and not one that `datasets` computed from the others.
    """
    return path.suffix == ".arrow" and not path.name.startswith("cache-")


def list_dataset(folder: Path, key: str) -> list[Path]:
    """Lists the files of a dataset.

    Args:
        folder: a folder for which `is_dataset`.
        key: the setting that names it, for messages.

    Returns:
        Its Arrow streams, in order.

    Raises:
        FileNotFoundError: one of them is missing, or there are none.
        ValueError: it holds several splits, or its description is damaged.
    """
    if not (folder / _STATE).is_file():
        splits = _read(folder / _DICT, "splits", str)
        shown = ", ".join(str(folder / name) for name in splits)
        raise ValueError(f"{folder} holds several splits; name one in {key}: {shown}")
    if _read(folder / _STATE, "_indices_data_files", dict):
        raise ValueError(
            f"{folder} holds a selection of rows; call `flatten_indices()` and save it again"
        )
    files = [entry.get("filename") for entry in _read(folder / _STATE, "_data_files", dict)]
    if not files:
        raise FileNotFoundError(
            f"{folder} is a dataset without files, as {_STATE} lists none; leave it out of {key}"
        )
    for name in files:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{folder / _STATE} must list plain file names, got {name!r}")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}, which {_STATE} lists, is missing")
    return [folder / name for name in files]


def _read(path: Path, key: str, kind: type) -> list[Any]:
    """Reads a list from a description."""
    try:
        values = json.loads(path.read_bytes()).get(key) or []
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} must be a JSON object: {error}") from error
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise ValueError(f"{key} of {path} must be a list of {kind.__name__}, got {values!r}")
    return values
