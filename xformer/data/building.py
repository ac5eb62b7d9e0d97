"""Folders that appear whole or not at all."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def building(final: Path) -> Iterator[Path]:
    """Gives an empty folder beside the final place, which only this process writes.

    Whatever is left of it at the end is removed; what a killed process has left, at the next start.

    Args:
        final: where the result will be.

    Yields:
        The folder.

    Raises:
        FileExistsError: another process is building the same.
        OSError: the place cannot be written.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    folder = final.parent / f".{final.name}.building"
    folder.mkdir(exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.fstat(handle).st_ino == os.stat(folder).st_ino
        except OSError:
            mine = False
        if not mine:
            raise FileExistsError(f"another process is preparing {final}; wait for it")
        for path in folder.iterdir():  # What a killed run has left.
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            yield folder
        finally:
            if folder.exists() and os.fstat(handle).st_ino == os.stat(folder).st_ino:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def publish(folder: Path, final: Path) -> None:
    """Puts a folder in its place by a rename, and what was there out of the way.

    Args:
        folder: what has been built.
        final: where it goes.

    Raises:
        OSError: the rename failed.
    """
    replaced = final.parent / f".{final.name}.replaced"
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    folder.rename(final)
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk.

    Args:
        path: the file or folder.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
