"""Reading and writing tokenizer folders: size caps on the way in, renames on the way out."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from xformer.files import umask, write_synced

MAX_MODEL_BYTES = 64 * 2**20
MAX_CONFIG_BYTES = 8 * 2**20


def read_limited(path: Path, limit: int) -> bytes:
    """Reads a file that must not be larger than expected.

    Args:
        path: the file.
        limit: largest size accepted, in bytes.

    Returns:
        Its content.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is larger.
    """
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path} must not be larger than {limit} bytes")
    return content


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """Reads a JSON object; a missing file is an empty one.

    Args:
        path: the file.
        limit: largest size accepted, in bytes.

    Returns:
        The object.

    Raises:
        ValueError: the file is no JSON object, or too large.
    """
    try:
        value = json.loads(read_limited(path, limit))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a JSON object: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a JSON object, got a {type(value).__name__}")
    return value


def write_folder(folder: Path, files: dict[str, bytes]) -> tuple[str, ...]:
    """Writes small files into a folder, so that a crash leaves no half-written one.

    Args:
        folder: made where it does not exist.
        files: content by file name.

    Returns:
        The paths written.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, content in files.items():
            write_synced(building / name, content)
        if not folder.exists():
            building.chmod(0o777 & ~umask())
            building.rename(folder)
        else:
            for name in files:
                (building / name).replace(folder / name)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return tuple(str(folder / name) for name in files)
