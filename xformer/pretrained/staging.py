"""Folders whose files appear together or not at all."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from xformer.files import umask


@contextlib.contextmanager
def staged(folder: Path, replace: Callable[[Path, Path], None]) -> Iterator[Path]:
    """Writes a folder's files elsewhere first, and moves them only when all are on the disk.

    A folder that did not exist appears in one step, whenever the process ends. What a process that
    was killed has left beside it is removed by the next one.

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
        if exists and not folder.is_dir():
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        place, prefix = (
            (folder, ".saving-") if exists else (folder.parent, f".{folder.name}.saving-")
        )
        _remove_abandoned(place, prefix)
        stage = Path(tempfile.mkdtemp(dir=place, prefix=prefix))
        lock = os.open(stage, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
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
            os.close(lock)
            shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            error.errno,
            f"cannot save to {folder}: {reason}; free space there, or give a folder that can be "
            "written",
        ) from error


def _sync(path: Path) -> None:
    """Waits until a file or a folder's list of files is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_abandoned(place: Path, prefix: str) -> None:
    """Removes what no living process is writing."""
    for path in place.iterdir():
        if not path.name.startswith(prefix) or not path.is_dir():
            continue
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass  # another process is saving to the same place
        finally:
            os.close(handle)
