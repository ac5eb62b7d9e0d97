"""Arrow streams, which is how `datasets` keeps its tables (`data-00000-of-00001.arrow`).

A stream is its schema, record batches of some thousand rows, and an end mark.
"""

import itertools
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from xformer.data.formats.base import Place, RawDocument, SeekableFile
from xformer.data.formats.columns import as_bytes, find_column, import_pyarrow, named_damage
from xformer.data.formats.decoding import decode_text

_END = b"\xff\xff\xff\xff\0\0\0\0"
_FILE_MAGIC = b"ARROW1"


class ArrowStream(SeekableFile):
    """An Arrow stream. Its record batches are not compressed, so a text lies in it as it is."""

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[RawDocument]:
        """Reads the rows of the record batches in a range; see `RawFile.read`.

        Args:
            start: first byte of the range.
            stop: its end.

        Yields:
            The rows.

        Raises:
            ValueError: the file is damaged, or lacks the column.
        """
        pyarrow = import_pyarrow(self.path)
        with named_damage(pyarrow, self.path, "Arrow stream"):
            mapped = pyarrow.memory_map(str(self.path)).read_buffer()
            self._check_ends(mapped)
            reader = pyarrow.BufferReader(mapped)
            schema = pyarrow.ipc.read_schema(reader)
            index = find_column(pyarrow, schema, self.path, self.options.text_key)
            end = mapped.size - len(_END)
            row = 0
            while (at := reader.tell()) < (end if stop is None else min(stop, end)):
                message = pyarrow.ipc.read_message(reader)
                self._check_message(message)
                batch = pyarrow.ipc.read_record_batch(message, schema)
                column = as_bytes(pyarrow, batch.column(index))
                rows = zip(_places(column, mapped), column, strict=True) if at >= start else ()
                for number, (place, value) in enumerate(rows, row + 1):
                    yield self._document(place, number, value.as_buffer())
                row += batch.num_rows

    def parse(self, content: bytes) -> str:
        """Decodes a row; see `RawFile.parse`.

        Args:
            content: its bytes.

        Returns:
            The text.
        """
        return decode_text(content)

    def _check_ends(self, mapped: Any) -> None:
        """Notices a stream that was cut between two batches, where pyarrow would end quietly."""
        if bytes(mapped.slice(0, len(_FILE_MAGIC))) == _FILE_MAGIC:
            raise ValueError(
                f"{self.path} must be an Arrow stream, as `datasets` writes them, got an Arrow "
                "(Feather) file; write it again as Parquet"
            )
        if bytes(mapped.slice(max(mapped.size - len(_END), 0))) != _END:
            raise ValueError(f"{self.path} must be a whole Arrow stream: the end is missing")

    def _check_message(self, message: Any) -> None:
        if message.type != "record batch" or _is_compressed(message.metadata):
            raise ValueError(
                f"{self.path} must hold uncompressed record batches without dictionaries, as "
                "`datasets` writes them; write it again as Parquet"
            )


def _places(column: Any, mapped: Any) -> list[Place] | list[None]:
    """Finds where in the file the texts of a column lie, by where they lie in mapped memory."""
    _, ends, texts = column.buffers()
    first = texts.address - mapped.address if len(column) and texts else -1
    if not 0 <= first < mapped.size:  # A column of views is a copy.
        return [None] * len(column)
    width = "<i8" if str(column.type).startswith("large") else "<i4"
    pairs = itertools.pairwise(np.frombuffer(ends, width, len(column) + 1).tolist())
    return [(first + begin, end - begin) for begin, end in pairs]


def _is_compressed(metadata: Any) -> bool:
    """Looks whether a record batch has the field `compression`, which pyarrow does not show.

    The metadata is a flatbuffer: `Message` has its header as field 2, `RecordBatch` its compression
    as field 3. A table begins with the distance back to a list of where its fields are.

    Args:
        metadata: the metadata of a message that holds a record batch.

    Returns:
        Whether it has.
    """

    def field(table: int, number: int) -> int:
        fields = table - struct.unpack_from("<i", metadata, table)[0]
        at = 4 + 2 * number
        (size,) = struct.unpack_from("<H", metadata, fields)
        (offset,) = struct.unpack_from("<H", metadata, fields + at) if at < size else (0,)
        return table + offset if offset else 0

    (root,) = struct.unpack_from("<I", metadata, 0)
    header = field(root, 2)
    (distance,) = struct.unpack_from("<I", metadata, header)
    return field(header + distance, 3) != 0
