"""Whether what is read from a checkpoint is what was saved.

A record is sealed when it is saved: shapes, dtypes and checksums of the arrays beside it, and a
hash of itself. Reading checks the seal, then that the arrays are those the run wants, then those.
"""

import hashlib
import json
from typing import Any

import jax

from xformer.training.fingerprint import tree_checksums

# Errors that say nothing about the files: another try may well succeed.
_PASSING = (MemoryError, OSError, jax.errors.JaxRuntimeError, AttributeError, ImportError)
_PASSING_WORDS = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED")
_LISTED = 8


class MismatchError(Exception):
    """A checkpoint's arrays are not those of the run."""


class DamagedError(Exception):
    """A checkpoint is not what was saved."""


def seal(record: dict[str, Any], tree: Any) -> dict[str, Any]:
    """Adds to a record what verifies it and the arrays that it is saved with.

    Args:
        record: JSON values.
        tree: The arrays.

    Returns:
        The record with "arrays", "checksums" and "sha256".
    """
    record = {**record, "arrays": _forms(tree), "checksums": tree_checksums(tree)}
    return {**record, "sha256": _hash(record)}


def check_record(record: dict[str, Any]) -> None:
    """Refuses a record that has been changed.

    Raises:
        DamagedError: if its hash is not that of its content.
    """
    content = {key: value for key, value in record.items() if key != "sha256"}
    if record.get("sha256") != _hash(content):
        raise DamagedError("the record beside the state has been changed")


def check_forms(record: dict[str, Any], target: Any, *, whole: bool) -> None:
    """Refuses arrays of other names, shapes or dtypes than the run's.

    Args:
        record: A sealed record.
        target: What the run wants, as arrays or their shapes.
        whole: Whether the checkpoint must hold nothing beside it.

    Raises:
        MismatchError: with the differences.
    """
    saved, wanted = record["arrays"], _forms(target)
    differences = [f"{path} is missing" for path in wanted.keys() - saved.keys()]
    differences += [
        f"{path} is {saved[path]}, the run has {wanted[path]}"
        for path in wanted.keys() & saved.keys()
        if saved[path] != wanted[path]
    ]
    if whole:
        differences += [f"{path} is not in the run" for path in saved.keys() - wanted.keys()]
    if differences:
        more = len(differences) - _LISTED
        rest = f" and {more} more" if more > 0 else ""
        raise MismatchError("; ".join(sorted(differences)[:_LISTED]) + rest)


def check_contents(record: dict[str, Any], tree: Any) -> None:
    """Refuses arrays with other contents than were saved.

    Raises:
        DamagedError: with the names of those that differ.
    """
    sums = tree_checksums(tree)
    damaged = [path for path, value in sums.items() if record["checksums"][path] != value]
    if damaged:
        raise DamagedError(f"checksums differ for {damaged}")


def is_damage(error: Exception) -> bool:
    """Whether an error in reading says that the files are not what was saved."""
    if isinstance(error, FileNotFoundError):
        return True
    passing = isinstance(error, (*_PASSING, MismatchError)) or isinstance(
        error.__cause__, MemoryError
    )
    return not passing and not any(word in str(error) for word in _PASSING_WORDS)


def is_missing(error: Exception) -> bool:
    """Whether an error in reading says that a file is not there."""
    return isinstance(error, FileNotFoundError) or "NOT_FOUND" in str(error)


def brief(error: Exception) -> str:
    """An error on one line: the libraries below print whole arrays."""
    line = f"{type(error).__name__}: {error}".splitlines()[0]
    return line if len(line) <= 200 else line[:199] + "…"


def _forms(tree: Any) -> dict[str, list]:
    """Shape and dtype of every array of a pytree, as JSON."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [list(leaf.shape), str(leaf.dtype)]
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _hash(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
