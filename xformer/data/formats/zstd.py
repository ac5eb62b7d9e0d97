"""A reader of zstd files that notices when one is cut off.

The stream reader of `zstandard` ends quietly in the middle of a frame; training text must not get
shorter without a word.
"""

import io
from typing import Any

import zstandard

_BLOCK_BYTES = 2**17


class ZstdReader(io.RawIOBase):
    """Decompresses a stream of one or more zstd frames."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        """Begins at the file's position.

        Args:
            file: the compressed stream.
        """
        super().__init__()
        self._file = file
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._waiting = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Says that this can be read from.

        Returns:
            True.
        """
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fills a buffer with decompressed bytes.

        Args:
            buffer: a writable buffer.

        Returns:
            The number of bytes written into it; 0 at the end.

        Raises:
            EOFError: the last frame is cut off, or the data is damaged.
        """
        while not self._ready:
            if not self._decompress_block():
                return 0
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompress_block(self) -> bool:
        block = self._waiting or self._file.read(_BLOCK_BYTES)
        if not block:
            if self._frame is not None:
                raise EOFError("the last frame is cut off")
            return False
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj()
        try:
            self._ready = memoryview(self._frame.decompress(block))
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from error
        self._waiting = b""
        if self._frame.eof:
            self._waiting, self._frame = self._frame.unused_data, None
        return True
