"""Where one document ends and the next begins, in plain and compressed files.

What a file is, its name says: `.jsonl` and `.ndjson` hold one JSON object a line, everything else
is UTF-8 text; `.gz` and `.zst` behind either are read through.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xformer.data.zstd import ZstdReader

TEXT_SPLITS = ("file", "paragraph", "line")
_JSONL = (".jsonl", ".ndjson")
_COMPRESSED = (".gz", ".zst")
_SPACE = b" \t\r\n\v\f"


@dataclass(frozen=True)
class SourceOptions:
    """How files become documents.

    Attributes:
        text_key: the key of a JSON object that holds its text.
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
    """The bytes of one document, before they are looked at.

    Attributes:
        offset: its first byte in the (decompressed) file.
        size: its number of bytes, a line end included.
        line: its first line, from 1, counted from where reading began.
        content: the bytes; None where there are more than `max_document_bytes`.
    """

    offset: int
    size: int
    line: int
    content: bytes | None


def is_compressed(path: Path) -> bool:
    """Says whether a file has to be decompressed.

    Args:
        path: the file.

    Returns:
        Whether its name ends in `.gz` or `.zst`.
    """
    return path.suffix in _COMPRESSED


def is_jsonl(path: Path) -> bool:
    """Says whether a file holds JSON lines.

    Args:
        path: the file.

    Returns:
        Whether its name, less `.gz` or `.zst`, ends in `.jsonl` or `.ndjson`.
    """
    return (path.with_suffix("") if is_compressed(path) else path).suffix in _JSONL


def is_splittable(path: Path, options: SourceOptions) -> bool:
    """Says whether reading may begin at any byte of a file.

    Args:
        path: the file.
        options: how files become documents.

    Returns:
        Whether every document is one line of an uncompressed file.
    """
    return not is_compressed(path) and (is_jsonl(path) or options.text_split == "line")


def read_raw(
    path: Path, options: SourceOptions, start: int = 0, stop: int | None = None
) -> Iterator[RawDocument]:
    """Reads the documents of a file, or those that begin in a range of its bytes.

    Args:
        path: the file.
        options: how files become documents.
        start: first byte of the range; only for files that `is_splittable`.
        stop: end of the range, exclusive; None is the end of the file.

    Yields:
        The documents, blank lines left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not what its compression suffix says, or is cut off.
    """
    try:
        with path.open("rb") as file:
            if start:
                file.seek(start - 1)
                file.readline()  # The line that began before is another range's.
                start = file.tell()
            stream = _decompress(path, file)
            limit = options.max_document_bytes
            if is_jsonl(path) or options.text_split == "line":
                yield from _read_lines(stream, limit, start, stop)
            elif options.text_split == "paragraph":
                yield from _read_paragraphs(stream, limit)
            else:
                yield from _read_whole(stream, limit)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} must be a whole {path.suffix} file: {error}") from error


def _decompress(path: Path, file: io.BufferedIOBase) -> io.BufferedIOBase:
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=file)
    if path.suffix == ".zst":
        return io.BufferedReader(ZstdReader(file), 2**20)
    return file


def _read_lines(
    stream: io.BufferedIOBase, limit: int, offset: int, stop: int | None
) -> Iterator[RawDocument]:
    line = 0
    while stop is None or offset < stop:
        content, size = _read_line(stream, limit)
        if not size:
            return
        line += 1
        if content is None or content.strip(_SPACE):
            yield RawDocument(offset, size, line, content and content.rstrip(b"\r\n"))
        offset += size


def _read_line(stream: io.BufferedIOBase, limit: int) -> tuple[bytes | None, int]:
    """Reads a line without holding more of it than the limit."""
    content = stream.readline(limit + 2)
    size = len(content)
    if size <= limit or content.endswith(b"\n"):
        return content, size
    while content and not content.endswith(b"\n"):
        content = stream.readline(2**20)
        size += len(content)
    return None, size


def _read_paragraphs(stream: io.BufferedIOBase, limit: int) -> Iterator[RawDocument]:
    lines: list[bytes] = []
    begin = first = offset = number = size = 0
    while True:
        line, line_size = _read_line(stream, limit)
        number += 1
        blank = line is not None and not line.strip(_SPACE)
        if blank and size:
            content = b"".join(lines).rstrip(b"\r\n") if size <= limit else None
            yield RawDocument(begin, size, first, content)
            lines.clear()
            size = 0
        if not line_size:
            return
        if not blank:
            if not size:
                begin, first = offset, number
            size += line_size
            # Past the limit only the size is counted: the paragraph is not used.
            if line is None or size > limit:
                lines.clear()
            else:
                lines.append(line)
        offset += line_size


def _read_whole(stream: io.BufferedIOBase, limit: int) -> Iterator[RawDocument]:
    content = stream.read(limit + 1)
    if len(content) > limit:
        yield RawDocument(0, len(content), 1, None)
    elif content.strip(_SPACE):
        yield RawDocument(0, len(content), 1, content)
