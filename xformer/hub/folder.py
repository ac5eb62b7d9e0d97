"""A source that is a folder on this machine."""

import os
from pathlib import Path

from xformer.hub.source import Source, contained


class FolderSource(Source):
    """A folder on this machine."""

    def __init__(self, folder: Path, subfolder: str) -> None:
        """Checks that the folder is there.

        Args:
            folder: The folder; none of its files may be a link that leads out of it.
            subfolder: Where in it the files are.

        Raises:
            ValueError: if it is a file.
            FileNotFoundError: if it has no such subfolder.
        """
        self.name = str(folder / subfolder)
        self._root = folder.resolve()
        self._folder = self._root / subfolder
        if not folder.is_dir():
            raise ValueError(f"{folder} must be a folder; give the one that the file is in")
        if not self._folder.is_dir():
            raise FileNotFoundError(f"{folder} has no subfolder {subfolder!r}")

    def names(self) -> tuple[str, ...]:
        """Lists the files of the folder, not of those inside it.

        Returns:
            Their names, sorted.
        """
        return tuple(sorted(entry.name for entry in self._folder.iterdir() if entry.is_file()))

    def _locate(self, name: str) -> Path | None:
        path = self._folder / name
        return contained(path, self._root) if os.path.lexists(path) else None
