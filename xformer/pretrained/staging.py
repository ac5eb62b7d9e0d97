"""Folders whose files appear together or not at all."""

import contextlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from xformer.files import umask


@contextlib.contextmanager
def staged(folder: Path, replace: Callable[[Path, Path], None]) -> Iterator[Path]:
    """Writes a folder's files elsewhere first, and moves them only when all are on the disk.

    A folder that did not exist appears in one step, whenever the process ends. What a process that
    was killed has left beside it is removed by the next one on the same host.

    Args:
        folder: Where the files belong.
        replace: Moves the files of a first folder into a second one that exists.

    Yields:
        An empty folder, to be filled with files.

    Raises:
        OSError: if something cannot be written; it names the folder.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        exists = os.path.lexists(folder)
        stage = _make_stage(folder, exists)
        try:
            yield stage
            for path in stage.iterdir():
                _sync(path)
            if exists:
                replace(stage, folder)
                _sync(folder)
            else:
                stage.chmod(0o777 & ~umask())
                _sync(stage)
                stage.rename(folder)
                _sync(folder.parent)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            error.errno,
            f"cannot save to {folder}: {reason}; free space there, or give a folder that can be "
            "written",
        ) from error


def _make_stage(folder: Path, exists: bool) -> Path:
    """A folder on the same file system with this process's name; dead ones' are removed."""
    place, prefix = (folder, ".saving-") if exists else (folder.parent, f".{folder.name}.saving-")
    prefix += f"{socket.gethostname()}-"
    for path in place.iterdir():
        match = re.fullmatch(re.escape(prefix) + r"(\d+)-\w+", path.name)
        if match and not _is_alive(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=place, prefix=f"{prefix}{os.getpid()}-"))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def _sync(path: Path) -> None:
    """Waits until a file or a folder's list of files is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
