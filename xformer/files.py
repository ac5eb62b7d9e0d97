"""Writing files so that a reader finds the old content or the new, never a part."""

import os
import tempfile
from pathlib import Path


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
