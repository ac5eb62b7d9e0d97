"""What every format of file gives: documents in order, each with a place to find it again."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

TEXT_SPLITS = ("file", "paragraph", "line")
Place = tuple[int, int]


@dataclass(frozen=True)
class SourceOptions:
    """How files become documents.

    Attributes:
        text_key: the key of a JSON object, the column of a table or the feature of a
            tf.train.Example that holds the text.
        text_split: what of a text file is one document: "file" (all of it), "paragraph" (up to a
            blank line) or "line".
        max_document_bytes: a longer document is a bad row.
    """

    text_key: str = "text"
    text_split: str = "file"
    max_document_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if not self.text_key:
            raise ValueError("text_key must not be empty")
        if self.text_split not in TEXT_SPLITS:
            raise ValueError(f"text_split must be one of {TEXT_SPLITS}, got {self.text_split!r}")
        if self.max_document_bytes < 1:
            raise ValueError(
                f"max_document_bytes must be at least 1, got {self.max_document_bytes}"
            )


@dataclass(frozen=True)
class RawDocument:
    """One document, before it is looked at.

    Attributes:
        place: two numbers by which `RawFile.fetch` finds it again; None where the file can only be
            read from its begin.
        line: its first line, row or record, from 1.
        content: the bytes; None where they cannot be used.
        flaw: why they cannot.
    """

    place: Place | None
    line: int
    content: bytes | None
    flaw: str = ""


class RawFile(ABC):
    """A file of documents. It is opened when it is first read, and once for each process."""

    def __init__(self, path: Path, options: SourceOptions) -> None:
        """Remembers where the file is.

        Args:
            path: the file.
            options: how it becomes documents.
        """
        self.path, self.options = path, options

    def __reduce__(self) -> tuple[Any, ...]:
        """Leaves open files behind: a worker opens its own."""
        return type(self), (self.path, self.options)

    @property
    def splittable(self) -> bool:
        """Whether reading may begin at any byte."""
        return True

    @abstractmethod
    def read(self, start: int = 0, stop: int | None = None) -> Iterator[RawDocument]:
        """Reads the documents of the file, or those that begin in a range of its bytes.

        Args:
            start: first byte of the range; 0 where the file is not `splittable`.
            stop: end of the range, exclusive; None is the end of the file.

        Yields:
            The documents; ranges that meet give each document once.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not what its name says, is cut off or damaged, or lacks `text_key`.
        """

    def fetch(self, place: Place) -> bytes:
        """Gives the content of one document again; several threads may. This one never can.

        Args:
            place: what `read` gave.

        Raises:
            OSError: the file cannot be read, has changed, or gives no places.
            ValueError: it has changed.
        """
        raise OSError(f"{self.path} can only be read from its begin")

    @abstractmethod
    def parse(self, content: bytes) -> str:
        """Turns the bytes of a document into its text.

        Args:
            content: what `read` or `fetch` gave.

        Returns:
            The text.

        Raises:
            BadRowError: there is no usable text in them.
        """

    def locate(self, document: RawDocument, start: int) -> int:
        """Gives the number of a document's line, row or record.

        Args:
            document: what `read` gave.
            start: where that reading began.

        Returns:
            The number in the whole file, from 1.
        """
        del start
        return document.line

    def _document(self, place: Place | None, line: int, content: Any) -> RawDocument:
        """Describes a row of bytes (or of a buffer of them, or of None)."""
        if content is None:
            return RawDocument(place, line, None, "null")
        if len(content) > self.options.max_document_bytes:
            return RawDocument(place, line, None, self._too_long())
        return RawDocument(place, line, bytes(content))

    def _too_long(self) -> str:
        return f"longer than max_document_bytes={self.options.max_document_bytes}"

    def _share(self, count: int, start: int, stop: int | None) -> range:
        """Says which of the file's parts, taken as equally long, begin in a range of its bytes."""
        size = self.path.stat().st_size
        if stop is None or stop >= size:
            return range(-(-start * count // size), count)
        return range(-(-start * count // size), -(-stop * count // size))


class SeekableFile(RawFile):
    """A file in which a document's bytes lie as they are: its place is their offset and number."""

    def fetch(self, place: Place) -> bytes:
        """Reads one document again; see `RawFile.fetch`.

        Args:
            place: its place.

        Returns:
            Its bytes.

        Raises:
            OSError: the file cannot be read, or is shorter than it was.
        """
        offset, size = place
        content = os.pread(self._handle, size, offset)
        if len(content) != size:
            raise OSError("the file is shorter than it was")
        return content

    @cached_property
    def _handle(self) -> int:
        return os.open(self.path, os.O_RDONLY)

    def __del__(self) -> None:
        """Closes the file."""
        if "_handle" in self.__dict__:
            os.close(self._handle)
