"""Packing: documents are joined end to end and cut into rows of one length.

Nothing is thrown away and only the last row is padded.  A document that does not fit continues in
the next row as a segment of its own, whose positions start at 0 again; segments do not see each
other.  With length 4, the documents `a a a` and `b b b` become

    input_ids     a a a b    b b . .
    segment_ids   1 1 1 2    1 1 0 0
    position_ids  0 1 2 0    0 1 0 0

A row is stored as one record, all numbers little-endian:

    uint32 n | n x uint32 lengths of the segments | ids

Ids are uint16 for vocabularies of up to 65536 ids, else uint32; the manifest says which.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """One packed row, before padding.

    Attributes:
        ids: the token ids, at most `length` of them.
        lengths: number of tokens of each segment; they sum to the number of ids.
    """

    ids: np.ndarray
    lengths: np.ndarray

    def target_ids(self) -> np.ndarray:
        """Gives the tokens that a causal model predicts: all but the first of each segment.

        Returns:
            Their ids.
        """
        starts = np.cumsum(self.lengths) - self.lengths
        return np.delete(self.ids, starts)


class Packer:
    """Joins documents and cuts rows; the caller adds and takes, so that both can be counted."""

    def __init__(self, length: int) -> None:
        """Begins empty.

        Args:
            length: tokens of a row.
        """
        self.length = length
        self._parts: deque[np.ndarray] = deque()
        self._tokens = 0

    def add(self, document: np.ndarray) -> None:
        """Puts a document behind the others.

        Args:
            document: its ids; an empty one is no segment.
        """
        if document.size:
            self._parts.append(document)
            self._tokens += document.size

    def full(self) -> bool:
        """Says whether there is enough for a whole row.

        Returns:
            Whether `take` gives a row without padding.
        """
        return self._tokens >= self.length

    def take(self) -> Row | None:
        """Cuts the next row, shorter than `length` where the documents do not suffice.

        Returns:
            The row; None where nothing is left.
        """
        pieces: list[np.ndarray] = []
        missing = self.length
        while missing and self._parts:
            part = self._parts.popleft()
            if part.size > missing:
                self._parts.appendleft(part[missing:])
                part = part[:missing]
            pieces.append(part)
            missing -= part.size
        if not pieces:
            return None
        self._tokens -= self.length - missing
        lengths = np.array([piece.size for piece in pieces], np.uint32)
        return Row(np.concatenate(pieces), lengths)


def pack(documents: Iterable[np.ndarray], length: int) -> Iterator[Row]:
    """Packs documents into rows.

    Args:
        documents: ids of each document.
        length: tokens of a row.

    Yields:
        The rows; only the last may be shorter than `length`.
    """
    packer = Packer(length)
    for document in documents:
        packer.add(document)
        while packer.full():
            yield packer.take()  # type: ignore[misc]
    while (row := packer.take()) is not None:
        yield row


def token_dtype(vocab_size: int) -> np.dtype:
    """Chooses how ids are stored.

    Args:
        vocab_size: number of ids.

    Returns:
        The smallest of uint16 and uint32 that holds them.
    """
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def encode_record(row: Row, dtype: np.dtype) -> bytes:
    """Writes a row as a record.

    Args:
        row: the row.
        dtype: `token_dtype` of the vocabulary.

    Returns:
        The bytes.
    """
    header = np.concatenate([[row.lengths.size], row.lengths]).astype("<u4")
    return header.tobytes() + row.ids.astype(dtype).tobytes()


def decode_record(record: bytes, dtype: np.dtype) -> Row:
    """Reads a record.

    Args:
        record: what `encode_record` wrote.
        dtype: `token_dtype` of the vocabulary.

    Returns:
        The row.

    Raises:
        ValueError: the bytes are no record.
    """
    count = int.from_bytes(record[:4], "little")
    end = 4 * (count + 1)
    if len(record) < end or (len(record) - end) % dtype.itemsize:
        raise ValueError(f"{len(record)} bytes are not a packed row of {count} segments")
    row = Row(np.frombuffer(record[end:], dtype), np.frombuffer(record[4:end], "<u4"))
    if row.lengths.sum() != row.ids.size:
        raise ValueError(f"segments of {row.lengths.sum()} tokens in a row of {row.ids.size}")
    return row


def expand_row(row: Row | None, length: int, pad_id: int) -> Batch:
    """Turns a row into what a model reads.

    Args:
        row: the row; None is a row of padding.
        length: tokens of the result.
        pad_id: the id of padding.

    Returns:
        `input_ids`, `segment_ids` and `position_ids`, int32 of `length`.
    """
    ids = np.full(length, pad_id, np.int32)
    segments = np.zeros(length, np.int32)
    positions = np.zeros(length, np.int32)
    if row is not None:
        size = row.ids.size
        lengths = row.lengths.astype(np.int32)
        ids[:size] = row.ids
        segments[:size] = np.repeat(np.arange(1, lengths.size + 1, dtype=np.int32), lengths)
        starts = np.cumsum(lengths) - lengths
        positions[:size] = np.arange(size, dtype=np.int32) - np.repeat(starts, lengths)
    return {"input_ids": ids, "segment_ids": segments, "position_ids": positions}
