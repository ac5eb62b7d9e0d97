"""Text and JSON-lines files, plain and compressed: where one document ends and the next begins.

What a file is, its name says, in any case: `.jsonl` and `.ndjson` hold one JSON object a line,
everything else is UTF-8 text; `.gz` and `.zst` behind either are read through.
"""

import gzip
import io
import zlib
from collections.abc import Iterator

from xformer.data.formats.base import Place, RawDocument, SeekableFile
from xformer.data.formats.decoding import decode_json, decode_text
from xformer.data.formats.signatures import refuse_binary
from xformer.data.formats.zstd import ZstdReader

_JSONL = (".jsonl", ".ndjson")
_COMPRESSED = (".gz", ".zst")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n\v\f"

# Offset and size in the (decompressed) file, line, and the bytes unless they are too many
_Piece = tuple[int, int, int, bytes | None]


class TextFile(SeekableFile):
    """A text or JSON-lines file."""

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[RawDocument]:
        """Reads the documents that begin in a range of bytes, blank lines left out.

        Args:
            start: first byte of the range.
            stop: its end.

        Yields:
            The documents; their lines are counted from where reading began.

        Raises:
            ValueError: the file is not what its name says, or is cut off.
        """
        try:
            with self.path.open("rb") as file:
                stream = self._decompress(file)
                if start:
                    start = _skip_line(file, start)
                else:
                    refuse_binary(stream, self.path, self._compression)
                yield from self._split(stream, start, stop)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{self.path} must be a whole {self._compression} file: {error}"
            ) from error

    def fetch(self, place: Place) -> bytes:
        """Reads one document again; see `RawFile.fetch`.

        Args:
            place: its place.

        Returns:
            Its bytes.
        """
        return super().fetch(place).rstrip(b"\r\n")

    def parse(self, content: bytes) -> str:
        """Decodes a document; see `RawFile.parse`.

        Args:
            content: its bytes.

        Returns:
            The text.
        """
        content = content.removeprefix(_BYTE_ORDER_MARK)
        if self._is_jsonl:
            return decode_json(content, self.options.text_key)
        return decode_text(content).replace("\r\n", "\n")

    def locate(self, document: RawDocument, start: int) -> int:
        """Gives the number of a document's line in the whole file; see `RawFile.locate`.

        Args:
            document: what `read` gave.
            start: where that reading began.

        Returns:
            The number, from 1.
        """
        if not start or document.place is None:
            return document.line
        with self.path.open("rb") as file:
            left = min(_skip_line(file, start), document.place[0])
            file.seek(0)
            count = document.line
            while left > 0 and (block := file.read(min(left, 2**20))):
                count += block.count(b"\n")
                left -= len(block)
        return count

    @property
    def splittable(self) -> bool:
        """Whether every document is one line of an uncompressed file."""
        return not self._compression and self._is_lines

    @property
    def _compression(self) -> str:
        suffix = self.path.suffix.lower()
        return suffix if suffix in _COMPRESSED else ""

    @property
    def _is_jsonl(self) -> bool:
        name = self.path.with_suffix("") if self._compression else self.path
        return name.suffix.lower() in _JSONL

    @property
    def _is_lines(self) -> bool:
        return self._is_jsonl or self.options.text_split == "line"

    def _decompress(self, file: io.BufferedReader) -> io.BufferedReader | gzip.GzipFile:
        if self._compression == ".gz":
            return gzip.GzipFile(fileobj=file)
        if self._compression == ".zst":
            return io.BufferedReader(ZstdReader(file), 2**20)
        return file

    def _split(
        self, stream: io.BufferedIOBase, start: int, stop: int | None
    ) -> Iterator[RawDocument]:
        limit = self.options.max_document_bytes
        if self._is_lines:
            documents = _read_lines(stream, limit, start, stop)
        elif self.options.text_split == "paragraph":
            documents = _read_paragraphs(stream, limit)
        else:
            documents = _read_whole(stream, limit)
        for offset, size, line, content in documents:
            place = None if self._compression else (offset, size)
            flaw = self._too_long() if content is None else ""
            yield RawDocument(place, line, content, flaw)


def _skip_line(file: io.BufferedIOBase, start: int) -> int:
    """Goes to the first line that begins at or behind a byte: the one before is another range's."""
    file.seek(start - 1)
    file.readline()
    return file.tell()


def _read_lines(
    stream: io.BufferedIOBase, limit: int, offset: int, stop: int | None
) -> Iterator[_Piece]:
    line = 0
    while stop is None or offset < stop:
        content, size = _read_line(stream, limit)
        if not size:
            return
        line += 1
        if content is None or content.strip(_SPACE):
            yield offset, size, line, content and content.rstrip(b"\r\n")
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


def _read_paragraphs(stream: io.BufferedIOBase, limit: int) -> Iterator[_Piece]:
    lines: list[bytes] = []
    begin = first = offset = number = size = 0
    while True:
        line, line_size = _read_line(stream, limit)
        number += 1
        blank = line is not None and not line.strip(_SPACE)
        if blank and size:
            yield begin, size, first, b"".join(lines).rstrip(b"\r\n") if size <= limit else None
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


def _read_whole(stream: io.BufferedIOBase, limit: int) -> Iterator[_Piece]:
    content = stream.read(limit + 1)
    if len(content) > limit:
        yield 0, len(content), 1, None
    elif content.strip(_SPACE):
        yield 0, len(content), 1, content
