"""The stream of rows of a prepared corpus."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from xformer.buckets import Folder, is_in_bucket
from xformer.data.manifest import check_files, read_manifest
from xformer.data.packing import Batch, decode_record, expand_row
from xformer.data.row_stream import RowStream
from xformer.data.rows import RowSource, allow_open_files
from xformer.data.streams import Request


class PreparedStream(RowStream):
    """Rows of a prepared corpus.

    Attributes:
        manifest: what is in it.
        source: its records.
    """

    def __init__(self, folder: Folder, request: Request) -> None:
        """Reads the manifest and compares the sizes of all files with it.

        Args:
            folder: the corpus.
            request: what is wanted of it.

        Raises:
            FileNotFoundError: there is no corpus.
            OSError: a bucket is refused to what reads rows.
            ValueError: it is damaged.
        """
        self.manifest = read_manifest(folder)
        check_files(folder, self.manifest)
        self.source = RowSource(folder, self.manifest.shards)
        allow_open_files([self.source])
        if is_in_bucket(folder):
            _ = self.source[0]  # Another client than the manifest's reads it.
        super().__init__(len(self.source), request, self.source.threads)

    def fingerprint(self) -> dict[str, Any]:
        """Describes everything that decides the batches.

        Returns:
            A JSON object; where the folder lies is not in it.
        """
        return {
            "kind": "PreparedData",
            **self._request.describe(),
            "length": self.manifest.settings.length,
            "rows": self.rows,
            "bytes": sum(shard.bytes for shard in self.manifest.shards),
            "shards_sha256": self.manifest.content_sha256(),
            "tokenizer": self.manifest.tokenizer.sha256,
        }

    def reader(self) -> Callable[[int], Batch]:
        """Gives what reads a row by its number; see `RowStream.reader`.

        Returns:
            The function.
        """
        return partial(
            _read,
            source=self.source,
            dtype=np.dtype(self.manifest.token_dtype),
            length=self.manifest.settings.length,
            pad_id=self.manifest.tokenizer.pad_token_id,
        )

    def padding_row(self) -> Batch:
        """Gives a row of padding.

        Returns:
            Its arrays.
        """
        manifest = self.manifest
        return expand_row(None, manifest.settings.length, manifest.tokenizer.pad_token_id)


def _read(number: int, source: RowSource, dtype: np.dtype, length: int, pad_id: int) -> Batch:
    return expand_row(decode_record(source[number], dtype), length, pad_id)
