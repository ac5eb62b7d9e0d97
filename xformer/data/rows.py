"""Random access to the records of a prepared corpus."""

import bisect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

from array_record.python import array_record_module

from xformer.data.manifest import FileEntry


class RowSource:
    """The records of all shards, in order; a data source for grain.

    Shards are opened when they are first read, and once for each process.
    """

    def __init__(self, folder: Path, shards: Sequence[FileEntry]) -> None:
        """Remembers where the shards are.

        Args:
            folder: the corpus.
            shards: its shards, as the manifest lists them.
        """
        self._paths = [str(folder / shard.path) for shard in shards]
        self._ends = list(itertools.accumulate(shard.rows for shard in shards))
        self._readers: dict[int, Any] = {}

    def __len__(self) -> int:
        """Number of records."""
        return self._ends[-1]

    def __repr__(self) -> str:
        """Names this source in what grain prints."""
        return f"RowSource({len(self)} rows in {len(self._paths)} shards)"

    def __getitem__(self, index: SupportsIndex) -> bytes:
        """Reads a record.

        Args:
            index: its number, 0 to `len - 1`.

        Returns:
            The bytes.

        Raises:
            OSError: the shard is missing, cut off or damaged; the message names shard and record.
        """
        number = index.__index__()
        shard = bisect.bisect_right(self._ends, number)
        number -= self._ends[shard - 1] if shard else 0
        try:
            if shard not in self._readers:
                # No read-ahead: shuffled records are far apart.
                self._readers[shard] = array_record_module.ArrayRecordReader(
                    self._paths[shard], options="readahead_buffer_size:0"
                )
            return self._readers[shard].read([number])[0]
        except (RuntimeError, IndexError, ValueError) as error:
            raise OSError(
                f"cannot read record {number} of {self._paths[shard]}: {error}; restore the file "
                "or prepare the corpus again"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """Leaves open files behind: a worker opens its own."""
        return {**self.__dict__, "_readers": {}}
