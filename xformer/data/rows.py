"""Random access to the records of a prepared corpus."""

import bisect
import itertools
import resource
import threading
from collections.abc import Sequence
from typing import Any, SupportsIndex

from array_record.python import array_record_module

from xformer.buckets import Folder, is_in_bucket
from xformer.data.manifest import FileEntry

_BUCKET_THREADS = 32  # Each waits for an answer most of the time.
_BUCKET_FILES = 4  # That the client of a shard in a bucket has open.
_OTHER_FILES = 256  # That a process has open beside the shards: far more than it has.


class RowSource:
    """The records of all shards, in order; a data source for grain.

    Shards are opened when they are first read, and once for each process.

    Attributes:
        threads: records that should be asked for at once.
        files: files that are open once every shard is.
    """

    def __init__(self, folder: Folder, shards: Sequence[FileEntry]) -> None:
        """Remembers where the shards are.

        Args:
            folder: the corpus.
            shards: its shards, as the manifest lists them.
        """
        self._paths = [str(folder / shard.path) for shard in shards]
        self._ends = list(itertools.accumulate(shard.rows for shard in shards))
        self._readers: dict[int, Any] = {}
        self._opening: dict[int, threading.Lock] = {}
        self.threads = _BUCKET_THREADS if is_in_bucket(folder) else 1
        self.files = len(self._paths) * (_BUCKET_FILES if is_in_bucket(folder) else 1)

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
            with self._opening.setdefault(shard, threading.Lock()):
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
        return {**self.__dict__, "_readers": {}, "_opening": {}}


def allow_open_files(sources: Sequence[RowSource]) -> None:
    """Raises this process's limit of open files, which its workers inherit.

    Args:
        sources: what is read at once.

    Raises:
        ValueError: if the hard limit is lower.
    """
    files = sum(source.files for source in sources)
    needed = files + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != hard < needed:
        raise ValueError(
            f"PreparedData.path or Mixture.sources have {files} files open, as shards stay so: the "
            f"limit of open files must be at least {needed}, got {hard}; raise it (ulimit -Hn), or "
            "prepare the corpora in larger shards (--shard-bytes)"
        )
    if soft != resource.RLIM_INFINITY:
        # Beside this there are the other streams of a run.
        most = needed if hard == resource.RLIM_INFINITY else hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
