"""The manifest of an exported folder: a checksum of every file, as no format of weights has one."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from xformer.files import read_object
from xformer.hub import Source

MANIFEST = "xformer_manifest.json"
_MAX_BYTES = 2**20
_FORMAT = 1


def describe(folder: Path) -> bytes:
    """Makes the manifest of a folder.

    Args:
        folder: The folder, complete except for the manifest.

    Returns:
        The manifest's content.
    """
    sums = {path.name: _digest(path) for path in sorted(folder.iterdir())}
    return (json.dumps({"format": _FORMAT, "sha256": sums}, indent=2) + "\n").encode()


def read_manifest(source: Source) -> Mapping[str, object] | None:
    """Reads the manifest of a model folder.

    Args:
        source: The folder or repository.

    Returns:
        The checksum of every file, by name; None where there is no manifest.

    Raises:
        ValueError: if it is damaged, or of a later format.
    """
    path = source.file(MANIFEST)
    if path is None:
        return None
    content = read_object(path, _MAX_BYTES)
    sums = content.get("sha256")
    if content.get("format") != _FORMAT or not isinstance(sums, dict):
        raise ValueError(f"{path} must have format {_FORMAT} and checksums; make a new export")
    return sums


def verify(path: Path, name: str, sums: Mapping[str, object] | None) -> Path:
    """Compares a file with the manifest.

    Args:
        path: The file.
        name: Its name in the manifest.
        sums: What `read_manifest` gave; with None nothing is compared.

    Returns:
        The path.

    Raises:
        ValueError: if the file is not the one that was exported.
    """
    if sums is None:
        return path
    if name not in sums or _is_mostly_holes(path) or sums[name] != _digest(path):
        raise ValueError(
            f"{path} is not the file that {MANIFEST} beside it describes: it was damaged or "
            "replaced. Copy or export it again; remove the manifest if you replaced it on purpose"
        )
    return path


def _is_mostly_holes(path: Path) -> bool:
    """Whether a file has far more bytes than the disk keeps of it: reading it might never end."""
    status = path.stat()
    return 0 < status.st_blocks * 512 * 100 < status.st_size  # some file systems count no blocks


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
