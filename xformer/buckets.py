"""Folders in buckets of Google Cloud Storage, named by addresses such as "gs://bucket/folder".

They are read through etils and gcsfs, which the extra `gcs` installs.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from etils import epath

from xformer.files import check_mounted

BUCKET = "gs://"
"""How their addresses begin."""

Folder: TypeAlias = Path | epath.Path
"""A folder of a file system that is mounted, or of a bucket."""


def is_in_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the address of something in a bucket.

    Args:
        path: The path.

    Returns:
        True for "gs://...".
    """
    return str(path).startswith(BUCKET)


def check_folder(path: str, key: str) -> None:
    """Refuses what names neither a folder that is mounted nor one in a bucket.

    Args:
        path: What should name it.
        key: The setting that holds it.

    Raises:
        ValueError: if it is an address of another kind, or of a whole bucket.
    """
    if not is_in_bucket(path):
        check_mounted(path, key)
    elif "/" not in path.removeprefix(BUCKET).strip("/"):
        raise ValueError(f"{key} must be a folder in a bucket (gs://BUCKET/FOLDER), got {path!r}")


def open_folder(path: str, key: str) -> Folder:
    """Opens a folder, once it is known that it can be looked at.

    Args:
        path: Its path or address.
        key: The setting that holds it, for messages.

    Returns:
        The folder; whether there is one that is mounted is not looked at.

    Raises:
        FileNotFoundError: if there is no such bucket, or no such folder in it.
        ModuleNotFoundError: if what reads buckets is not installed.
        OSError: if the bucket cannot be reached, or may not be read.
    """
    if not is_in_bucket(path):
        return Path(path)
    folder = epath.Path(path.rstrip("/"))
    with naming(folder, key):
        next(iter(folder.iterdir()), None)
    return folder


@contextlib.contextmanager
def naming(address: epath.PathLike, key: str) -> Iterator[None]:
    """Has errors of what reads buckets name the address and the setting.

    Args:
        address: What is looked at.
        key: The setting that holds it.

    Yields:
        Once.

    Raises:
        FileNotFoundError: if there is nothing.
        ModuleNotFoundError: if what reads buckets is not installed.
        OSError: for all other errors of the client, which have no base of their own.
    """
    try:
        yield
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{address} needs gcsfs: pip install 'xformer-jax[gcs]', or set {key} to a folder that "
            "is mounted"
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{address} must be a folder in a bucket, but there is nothing; set {key} to another"
        ) from error
    except Exception as error:
        raise OSError(
            f"{address} cannot be read: {error}; see to the network and the credentials (gcloud "
            f"auth application-default login), or set {key} to another"
        ) from error


def file_sizes(folder: Folder) -> dict[str, int]:
    """Lists the files of a folder; in a bucket with one request for a thousand of them.

    Args:
        folder: The folder.

    Returns:
        Their sizes in bytes, by name.
    """
    if not is_in_bucket(folder):
        return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    import fsspec  # comes with gcsfs; etils asks for the size of each file by itself

    found = fsspec.filesystem("gs").ls(str(folder), detail=True, refresh=True)
    return {one["name"].rpartition("/")[2]: one["size"] for one in found if one["type"] == "file"}


@contextlib.contextmanager
def on_disk(folder: Folder) -> Iterator[Path]:
    """Gives a small folder as one of a file system that is mounted.

    Args:
        folder: The folder.

    Yields:
        The folder itself, or a private copy of its files that is removed at the end.
    """
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        for file in folder.iterdir():
            (Path(name) / file.name).write_bytes(file.read_bytes())
        yield Path(name)
