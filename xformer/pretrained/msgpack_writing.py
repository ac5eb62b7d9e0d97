"""Writing the msgpack files of Flax as a stream, byte for byte as `flax.serialization.to_bytes`.

`msgpack.Packer` has no call for the header of an extension or of bytes without their content, which
here is the weights; what writes those two headers writes the other three in a line each.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from flax import traverse_util

from xformer.pretrained.msgpack_reading import CHUNKED, NDARRAY
from xformer.pretrained.names import Shape

CHUNK_BYTES = 2**30  # larger arrays are cut


class Entry(NamedTuple):
    """An array to write.

    Attributes:
        path: Where it is in the tree.
        shape: Its sizes.
        dtype: Its dtype.
        pieces: Yields its content in order, as contiguous arrays.
    """

    path: tuple[str, ...]
    shape: Shape
    dtype: np.dtype
    pieces: Callable[[], Iterator[np.ndarray]]


def write_tree(file: BinaryIO, entries: Iterable[Entry]) -> None:
    """Writes a tree as `flax.serialization.to_bytes` does, one array after the other.

    Args:
        file: Where to.
        entries: The arrays; they are written in the order of their paths.
    """
    tree = traverse_util.unflatten_dict({entry.path: entry for entry in entries})
    _write_node(file, tree)


def _write_node(file: BinaryIO, node: Any) -> None:
    if isinstance(node, Entry):
        _write_array(file, node)
        return
    file.write(_map_header(len(node)))
    for key in sorted(node):
        file.write(_text(key))
        _write_node(file, node[key])


def _write_array(file: BinaryIO, entry: Entry) -> None:
    size = math.prod(entry.shape)
    content = _ByteStream(entry.pieces())
    per_chunk = CHUNK_BYTES // entry.dtype.itemsize
    if size <= per_chunk:
        _write_ext(file, entry.shape, entry.dtype, content)
        return
    counts = [min(per_chunk, size - start) for start in range(0, size, per_chunk)]
    file.write(_map_header(3) + _text(CHUNKED) + b"\xc3")
    file.write(_text("shape") + _map_header(len(entry.shape)))
    for axis, length in enumerate(entry.shape):
        file.write(_text(str(axis)) + _number(length))
    file.write(_text("chunks") + _map_header(len(counts)))
    for at, count in enumerate(counts):
        file.write(_text(str(at)))
        _write_ext(file, (count,), entry.dtype, content)


def _write_ext(file: BinaryIO, shape: Shape, dtype: np.dtype, content: "_ByteStream") -> None:
    """Writes one array object: type 1 around (shape, dtype name, bytes)."""
    length = math.prod(shape) * dtype.itemsize
    sizes = b"".join(map(_number, shape))
    inner = b"\x93" + bytes([0x90 | len(shape)]) + sizes + _text(dtype.name)
    inner += _sized(length, {0xC4: 1, 0xC5: 2, 0xC6: 4})
    total = len(inner) + length
    fixed = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}.get(total)
    header = bytes([fixed]) if fixed else _sized(total, {0xC7: 1, 0xC8: 2, 0xC9: 4})
    file.write(header + bytes([NDARRAY]) + inner)
    content.copy(file, length)


class _ByteStream:
    """The bytes of arrays that follow one another, handed out in other portions."""

    def __init__(self, pieces: Iterator[np.ndarray]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def copy(self, file: BinaryIO, length: int) -> None:
        """Writes the next `length` bytes."""
        while length:
            if not self._rest:
                self._rest = next(self._pieces).reshape(-1).view(np.uint8).data
            part = self._rest[:length]
            file.write(part)
            self._rest = self._rest[len(part) :]
            length -= len(part)


def _map_header(count: int) -> bytes:
    return bytes([0x80 | count]) if count < 16 else _sized(count, {0xDE: 2, 0xDF: 4})


def _text(text: str) -> bytes:
    data = text.encode()
    short = len(data) < 32
    header = bytes([0xA0 | len(data)]) if short else _sized(len(data), {0xD9: 1, 0xDA: 2, 0xDB: 4})
    return header + data


def _number(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else _sized(value, {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8})


def _sized(value: int, sizes: dict[int, int]) -> bytes:
    """The shortest of some codes that can hold a number, and the number."""
    code = next(code for code, size in sizes.items() if value < 1 << 8 * size)
    return bytes([code]) + value.to_bytes(sizes[code], "big")
