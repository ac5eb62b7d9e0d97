"""What a source of files is, which files are opened, and that none leads out of its folder."""

import abc
import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

# What models and tokenizers are made of. Nothing else is downloaded or opened: a pickle or a
# Python file would be code.
READABLE = frozenset({".json", ".safetensors", ".msgpack", ".model", ".txt"})


@dataclass(frozen=True)
class HubOptions:
    """How a name of the hub is resolved; a local folder only looks at `subfolder`.

    Attributes:
        revision: A branch, a tag or a commit; a commit's full hash always means the same files.
        cache_dir: Where downloads are kept; the hub's own cache where it is None.
        force_download: Whether files are downloaded again although the cache has them.
        local_files_only: Whether only the cache is used, as with HF_HUB_OFFLINE=1.
        token: Gives access to private and gated repositories; None takes the stored login, False
            goes without.
        subfolder: Where in the repository or the folder the files are.
    """

    revision: str = "main"
    cache_dir: str | os.PathLike[str] | None = None
    force_download: bool = False
    local_files_only: bool = False
    token: str | bool | None = field(default=None, repr=False)
    subfolder: str = ""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant.

        Raises:
            ValueError: if a field is out of range, or two contradict one another.
        """
        if not self.revision or ".." in self.revision or self.revision.startswith("/"):
            raise ValueError(f"revision must be a branch, a tag or a commit, got {self.revision!r}")
        if self.force_download and self.local_files_only:
            raise ValueError("force_download and local_files_only exclude one another; set one")
        if self.subfolder:
            check_relative(self.subfolder, "subfolder")


class Source(abc.ABC):
    """The files of one model or tokenizer.

    Attributes:
        name: For messages: the folder's path, or the repository's name and revision.
    """

    name: str

    def file(self, name: str) -> Path | None:
        """Gives a file, downloading it where need be.

        Args:
            name: The file's name inside the source, such as "config.json".

        Returns:
            Its path; None where the source does not have it (offline: where the cache does not).

        Raises:
            ValueError: if the name is none that is read (see `READABLE`), leads out of the source,
                or is there but no regular file.
            FileNotFoundError: if the repository or its revision does not exist.
            PermissionError: if the repository is gated or private.
            ConnectionError: if the hub cannot be reached and the cache lacks the file.
        """
        check_relative(name, "file name")
        if PurePosixPath(name).suffix not in READABLE:
            raise ValueError(
                f"{self.name}: {name} is not read; files must end in one of {sorted(READABLE)} "
                "(pickles and Python files are code)"
            )
        return self._locate(name)

    def require(self, name: str) -> Path:
        """Gives a file that must be there.

        Args:
            name: The file's name inside the source.

        Returns:
            Its path.

        Raises:
            FileNotFoundError: if the source lacks it, or as `file` raises.
        """  # noqa: DOC502
        path = self.file(name)
        if path is None:
            raise FileNotFoundError(f"{self.name} has no {name}{self._hint()}")
        return path

    @abc.abstractmethod
    def names(self) -> tuple[str, ...] | None:
        """Lists the files, readable or not, without downloading them.

        Returns:
            Names as `file` takes them, sorted; None where they cannot be known (offline).
        """

    @abc.abstractmethod
    def _locate(self, name: str) -> Path | None:
        """Finds a file of a checked name."""

    def _hint(self) -> str:
        """What to add where a file is missing."""
        return ""


def check_relative(name: str, what: str) -> None:
    """Refuses names that could lead out of their folder.

    Args:
        name: A name inside a source.
        what: What the message calls it.

    Raises:
        ValueError: if it is absolute or empty, or goes up.
    """
    parts = name.split("/") if isinstance(name, str) else []
    if not parts or {"", ".", ".."} & set(parts) or "\\" in name or "\0" in name:
        raise ValueError(f"{what} must be a plain relative name, got {name!r}")


def contained(path: Path, root: Path) -> Path:
    """Refuses a file that a link leads elsewhere, and what is no regular file.

    Args:
        path: The file.
        root: The folder that it must be in.

    Returns:
        The path.

    Raises:
        ValueError: naming the path.
    """
    allowed = [root]
    # A snapshot in the hub's cache is made of links into the `blobs` of its repository.
    allowed += [parent.parent / "blobs" for parent in root.parents if parent.name == "snapshots"]
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links
        raise ValueError(f"{path} is a link that leads nowhere") from error
    if not any(real.is_relative_to(place) for place in allowed):
        raise ValueError(f"{path} is a link that leads out of its folder, to {real}")
    if not real.is_file():
        raise ValueError(f"{path} must be a regular file")
    return path
