"""Files read up to a size, and written so that a reader never finds a part of the content."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

MAX_JSON_VALUES = 1_250_000  # a tokenizer of 256,000 pieces has up to 1,050,000


def check_mounted(path: str | os.PathLike[str], key: str) -> None:
    """Refuses the address of a bucket, which would be taken for a folder of that name.

    Args:
        path: What should be a path of a file system that is mounted here.
        key: The setting that holds it.

    Raises:
        ValueError: if it begins like "gs://".
    """
    if "://" in str(path):
        raise ValueError(
            f"{key} must be a path, got {path!r}; mount the bucket (gcsfuse does it) and give its "
            "path there, or copy from it and to it (gcloud storage cp -r)"
        )


def read_limited(path: Path, limit: int) -> bytes:
    """Reads a file that must not be larger than expected.

    Args:
        path: The file.
        limit: Largest size accepted, in bytes.

    Returns:
        Its content.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is larger.
    """
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path} must not be larger than {limit} bytes")
    return content


def read_object(path: Path, limit: int) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: The file.
        limit: Largest size accepted, in bytes.

    Returns:
        The object.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no JSON object, or too large.
    """
    return parse_object(read_limited(path, limit), str(path))


def parse_object(content: bytes, origin: str) -> dict[str, Any]:
    """Parses a JSON object.

    Args:
        content: The bytes.
        origin: Where they come from, for messages.

    Returns:
        The object.

    Raises:
        ValueError: if it is no JSON object, or has too many values.
    """
    # A value of two bytes takes up to a hundred in memory.
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise ValueError(f"{origin} must hold at most {MAX_JSON_VALUES} values")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{origin} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{origin} must hold a JSON object, got {type(value).__name__}")
    return value


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replaces a file's content in one step.

    Args:
        path: The file; its folder must exist.
        content: Text (written as UTF-8) or bytes.

    Raises:
        OSError: if the folder cannot be written or the disk is full; the old content stays.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write_synced(temporary, data)
        temporary.chmod(0o666 & ~umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_synced(path: Path, content: bytes) -> None:
    """Writes a file and waits until it is on the disk.

    Args:
        path: The file.
        content: Its content.
    """
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def umask() -> int:
    """The permissions that new files do not get; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
