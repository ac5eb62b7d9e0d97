"""Whether all processes of a run, and all its parts in time, have the same settings."""

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

from xformer import distributed
from xformer.training.integrity import DamagedError, brief, is_damage, is_missing

_LISTED = 8
# As long as clients of NFS believe what they know of a folder, unless they are told otherwise.
_PAUSE_S = 30

T = TypeVar("T")


def check_processes(what: str, value: Any) -> None:
    """Refuses a process that was started with something else than the first one.

    Args:
        what: What is compared, for messages.
        value: JSON, dictionaries for what is named.

    Raises:
        ValueError: naming the processes and what differs.
    """
    values = distributed.meet(what, value)
    found = []
    for index, other in enumerate(values):
        lines = differences(values[0], other, words=("is {!r} at process 0", f"{{!r}} at {index}"))
        found += lines[:_LISTED]
    if found:
        raise ValueError(
            f"all processes of a run must have the same {what}: {'; '.join(found)}. Start all with "
            "the same command, packages and files"
        )


def agreed(what: str, read: Callable[[], T]) -> T:
    """Reads what may be damaged for one process alone, so that all learn of it or none.

    Args:
        what: What is done, for messages.
        read: Reads; must not wait for another process. If it misses a file, it is called once
            more after a pause.

    Returns:
        What it read.

    Raises:
        DamagedError: at all processes if one has found damage; says which, and what.
        Exception: what `read` raises that is no damage.
    """  # noqa: DOC502
    found = None
    try:
        value = _read_again_if_missing(read)
    except Exception as error:  # orbax raises bare ones for damaged files
        if not is_damage(error):
            raise
        found = error
    reasons = distributed.meet(what, brief(found) if found else None)
    damage = {index: reason for index, reason in enumerate(reasons) if reason}
    if not damage:
        return value
    if len(reasons) == 1:
        raise DamagedError(damage[0]) from found
    raise DamagedError("; ".join(f"process {at}: {why}" for at, why in damage.items())) from found


def differences(
    one: Any, other: Any, path: str = "", words: tuple[str, str] = ("was {!r}", "is now {!r}")
) -> list[str]:
    """Says where two JSON values differ.

    Args:
        one: The first value.
        other: The other.
        path: What they are called.
        words: How each of them is told.

    Returns:
        A line for every difference.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        parts = [
            differences(one.get(k), other.get(k), f"{path}.{k}" if path else k, words) for k in keys
        ]
        return [line for part in parts for line in part]
    if json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True):
        return []
    return [f"{path} {words[0].format(one)} and {words[1].format(other)}"]


def _read_again_if_missing(read: Callable[[], T]) -> T:
    """Gives a file that another host has written the time to be seen here."""
    try:
        return read()
    except Exception as error:
        if not is_missing(error):
            raise
    time.sleep(_PAUSE_S)
    return read()
