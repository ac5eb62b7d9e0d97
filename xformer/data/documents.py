"""Random access to the documents of text files, without preparing them."""

import os
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, SupportsIndex

from xformer.data.manifest import hash_file
from xformer.data.raw import SourceOptions, is_compressed
from xformer.data.sources import (
    BadRowError,
    BadRows,
    expand_files,
    parse,
    read_documents,
)

MEMORY_BYTES = 2**30


@dataclass(frozen=True)
class DocumentFile:
    """A file and its identity.

    Attributes:
        path: the file.
        bytes: its size.
        sha256: of its content, hexadecimal.
    """

    path: Path
    bytes: int
    sha256: str


class DocumentSource:
    """All usable documents of some files, in order; a data source for grain.

    Documents of plain files are read when they are asked for; those of compressed files are kept in
    memory, as one cannot jump into them.
    """

    def __init__(self, options: SourceOptions) -> None:
        """Begins empty.

        Args:
            options: how files become documents.
        """
        self._options = options
        self._files: list[DocumentFile] = []
        self._first: list[int] = []
        self._offsets = array("Q")
        self._sizes = array("Q")
        self._of_file = array("L")
        self._texts: dict[int, str] = {}
        self._handles: dict[int, int] = {}
        self._held = 0

    @classmethod
    def open(
        cls, files: Sequence[str], options: SourceOptions, bad_row_limit: float
    ) -> "DocumentSource":
        """Reads all files once.

        Args:
            files: names and patterns.
            options: how files become documents.
            bad_row_limit: largest share of unusable rows, 0 to 1.

        Returns:
            Their documents.

        Raises:
            FileNotFoundError: a name or pattern matches no file.
            ValueError: there are no documents, or too many bad rows.
        """
        source = cls(options)
        bad_rows = BadRows()
        for path in expand_files(files, "TextData.files"):
            source._add_file(path, bad_rows)
        bad_rows.check(bad_row_limit, "TextData.bad_row_limit")
        if not len(source):
            raise ValueError(
                f"TextData.files must hold at least one document with text, got none in {files}"
            )
        return source

    def describe(self) -> dict[str, Any]:
        """Identifies the documents.

        Returns:
            Name without folder, size and SHA-256 of each file, in order, and how they are read.
        """
        files = [[file.path.name, file.bytes, file.sha256] for file in self._files]
        return {"files": files, **asdict(self._options)}

    def __len__(self) -> int:
        """Number of documents."""
        return len(self._offsets)

    def __repr__(self) -> str:
        """Names this source in what grain prints."""
        return f"DocumentSource({len(self)} documents in {len(self._files)} files)"

    def __getitem__(self, index: SupportsIndex) -> str:
        """Reads a document.

        Args:
            index: its number, 0 to `len - 1`.

        Returns:
            Its text.

        Raises:
            OSError: the file is missing or has been changed since it was opened; the message names
                file and document.
        """
        number = index.__index__()
        if number in self._texts:
            return self._texts[number]
        file = self._of_file[number]
        path = self._files[file].path
        try:
            if file not in self._handles:
                self._handles[file] = os.open(path, os.O_RDONLY)
            size, offset = self._sizes[number], self._offsets[number]
            content = os.pread(self._handles[file], size, offset)
            if len(content) != size:
                raise OSError("the file is shorter than it was")
            return parse(path, content.rstrip(b"\r\n"), self._options)
        except (OSError, BadRowError) as error:
            raise OSError(
                f"cannot read document {number - self._first[file]} of {path} again ({error}); "
                "files must not change during training"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """Leaves open files behind: a worker opens its own."""
        return {**self.__dict__, "_handles": {}}

    def __del__(self) -> None:
        """Closes the files."""
        for handle in self._handles.values():
            os.close(handle)

    def _add_file(self, path: Path, bad_rows: BadRows) -> None:
        file = len(self._files)
        self._files.append(DocumentFile(path, path.stat().st_size, hash_file(path)))
        self._first.append(len(self._offsets))
        for raw, text in read_documents(path, self._options, bad_rows):
            if is_compressed(path):
                self._hold(text)
            self._offsets.append(raw.offset)
            self._sizes.append(raw.size)
            self._of_file.append(file)

    def _hold(self, text: str) -> None:
        self._held += len(text)
        if self._held > MEMORY_BYTES:
            raise ValueError(
                f"compressed TextData.files must hold at most {MEMORY_BYTES} characters, as they "
                "are kept in memory; run `xformer prepare` and use PreparedData"
            )
        self._texts[len(self._offsets)] = text
