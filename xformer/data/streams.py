"""The two streams of rows behind `open_batches`, on grain.

    prepared  rows -> shuffle -> repeat -> [first::processes] -> decode -> batch -> workers
    text      documents -> shuffle -> repeat -> tokenize -> workers -> pack -> [first::processes]

Everything before the workers is random access: grain deals its elements (batches, documents) out to
them one by one and takes them back in turn, so the order is the same for any number of workers.
What joins elements in sequence (packing) comes behind them.  A stream is resumed by building it anew
from a number; grain's own state would bind a run to its numbers of workers and processes.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

from xformer.data.documents import DocumentSource
from xformer.data.manifest import check_files, read_manifest
from xformer.data.packing import Batch, Packer, Row, decode_record, expand_row
from xformer.data.processes import die_with
from xformer.data.rows import RowSource
from xformer.data.sources import SourceOptions
from xformer.tokenization.xglm import XGLMTokenizer

ORDER_VERSION = 1
_State = dict[str, int]


@dataclass(frozen=True)
class Request:
    """What of a stream is wanted; see `open_batches`.

    Attributes:
        batch_size: rows of a global batch.
        seed: decides the order.
        process_index: which share of a batch.
        process_count: number of shares.
        epochs: passes over the data; None is no end.
        shuffle: whether the order is shuffled.
        workers: reading processes.
    """

    batch_size: int
    seed: int
    process_index: int
    process_count: int
    epochs: int | None
    shuffle: bool
    workers: int

    @property
    def local_size(self) -> int:
        """Rows of this process's share of a batch."""
        return self.batch_size // self.process_count

    def describe(self) -> dict[str, Any]:
        """Describes what of this decides the global batches.

        Returns:
            A JSON object; processes and workers are not in it.
        """
        return {
            "order_version": ORDER_VERSION,
            "batch_size": self.batch_size,
            "seed": self.seed if self.shuffle else None,
            "shuffle": self.shuffle,
            "epochs": self.epochs,
        }

    def order(self, dataset: grain.MapDataset) -> grain.MapDataset:
        """Shuffles and repeats, as wanted.

        Args:
            dataset: one epoch.

        Returns:
            All epochs, each in an order of its own where `shuffle` is set.
        """
        if self.shuffle:
            # grain adds the epoch to the seed; spread, so that seeds 0 and 1 share no epochs.
            spread = np.random.SeedSequence(self.seed).generate_state(1)
            dataset = dataset.shuffle(seed=int(spread[0]))
        return dataset.repeat(self.epochs)

    def in_workers(self, dataset: grain.MapDataset, ahead: int) -> grain.IterDataset:
        """Computes elements ahead, in threads or in worker processes.

        Args:
            dataset: random access.
            ahead: elements that each worker keeps ready.

        Returns:
            The same elements in the same order.
        """
        if not self.workers:
            return dataset.to_iter_dataset(
                grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 * ahead)
            )
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags.
        options = grain.MultiprocessingOptions(
            num_workers=self.workers, per_worker_buffer_size=ahead
        )
        return dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
        ).mp_prefetch(options, worker_init_fn=partial(_start_worker, os.getpid()))


class Stream(Protocol):
    """What a `BatchIterator` needs of a stream.

    Attributes:
        rows: rows of one epoch, where known.
        batches: number of batches, where known and finite.
    """

    rows: int | None
    batches: int | None

    def fingerprint(self) -> dict[str, Any]:
        """Describes everything that decides the batches.

        Returns:
            A JSON object.
        """

    def first_state(self) -> _State:
        """Gives the position of batch 0.

        Returns:
            A JSON object.
        """

    def batches_from(self, state: _State) -> Iterator[tuple[Batch, _State]]:
        """Reads on from a position.

        Args:
            state: the position.

        Yields:
            A batch and the position behind it.
        """


class PreparedStream:
    """Rows of a prepared corpus."""

    def __init__(self, folder: Path, request: Request) -> None:
        """Reads the manifest and compares the sizes of all files with it.

        Args:
            folder: the corpus.
            request: what is wanted of it.

        Raises:
            FileNotFoundError: there is no corpus.
            ValueError: it is damaged.
        """
        self._request = request
        self._manifest = read_manifest(folder)
        check_files(folder, self._manifest)
        self._source = RowSource(folder, self._manifest.shards)
        self.rows: int | None = len(self._source)
        self.batches: int | None = None
        if request.epochs is not None:
            self.batches = -(-self.rows * request.epochs // request.batch_size)

    def fingerprint(self) -> dict[str, Any]:
        """Describes everything that decides the batches.

        Returns:
            A JSON object; where the folder lies is not in it.
        """
        return {
            "kind": "PreparedData",
            **self._request.describe(),
            "length": self._manifest.settings.length,
            "rows": self.rows,
            "bytes": sum(shard.bytes for shard in self._manifest.shards),
            "shards_sha256": self._manifest.content_sha256(),
            "tokenizer": self._manifest.tokenizer.sha256,
        }

    def first_state(self) -> _State:
        """Gives the position of batch 0.

        Returns:
            The number of the next batch.
        """
        return {"batch": 0}

    def batches_from(self, state: _State) -> Iterator[tuple[Batch, _State]]:
        """Reads on from a batch.

        Args:
            state: its number.

        Yields:
            A batch and the number of the next.
        """
        request, manifest = self._request, self._manifest
        decode = partial(
            _decode,
            dtype=np.dtype(manifest.token_dtype),
            length=manifest.settings.length,
            pad_id=manifest.tokenizer.pad_token_id,
        )
        dataset = request.order(grain.MapDataset.source(self._source))
        first = state["batch"] * request.batch_size + request.process_index
        dataset = dataset[first :: request.process_count].map(decode).batch(request.local_size)
        shares = iter(request.in_workers(dataset, ahead=2))
        number = state["batch"]
        try:
            while self.batches is None or number < self.batches:
                share = next(shares, None)
                number += 1
                yield _fill_up(share, decode(None), request.local_size), {"batch": number}
        finally:
            _close(shares)


class TextStream:
    """Rows packed from text files on the fly."""

    def __init__(
        self, source: DocumentSource, tokenizer: XGLMTokenizer, length: int, request: Request
    ) -> None:
        """Begins a stream.

        Args:
            source: the documents.
            tokenizer: turns them into ids.
            length: tokens of a row.
            request: what is wanted.
        """
        self._source, self._tokenizer = source, tokenizer
        self._length, self._request = length, request
        self.rows: int | None = None
        self.batches: int | None = None

    @classmethod
    def open(
        cls,
        files: Sequence[str],
        tokenizer: XGLMTokenizer,
        *,
        length: int,
        options: SourceOptions,
        bad_row_limit: float,
        request: Request,
    ) -> "TextStream":
        """Reads all files once, to find the documents and to refuse what is unusable.

        Args:
            files: names and patterns.
            tokenizer: the tokenizer.
            length: tokens of a row.
            options: how files become documents.
            bad_row_limit: largest share of unusable rows.
            request: what is wanted.

        Returns:
            The stream.

        Raises:
            FileNotFoundError: files are missing.
            ValueError: they hold no text, or too many bad rows.
        """
        source = DocumentSource.open(files, options, bad_row_limit)
        return cls(source, tokenizer, length, request)

    def fingerprint(self) -> dict[str, Any]:
        """Describes everything that decides the batches.

        Returns:
            A JSON object.
        """
        return {
            "kind": "TextData",
            **self._request.describe(),
            "length": self._length,
            "files": self._source.describe(),
            "tokenizer": self._tokenizer.fingerprint(),
        }

    def first_state(self) -> _State:
        """Gives the position of batch 0.

        Returns:
            Number of the next batch, of the document (counted over all epochs) in which its first
            row begins, and of the token in that document.
        """
        return {"batch": 0, "document": 0, "token": 0}

    def batches_from(self, state: _State) -> Iterator[tuple[Batch, _State]]:
        """Reads on from a position.

        Args:
            state: the position.

        Yields:
            A batch and the position behind it.
        """
        request = self._request
        tokenize = partial(_tokenize, tokenizer=_LazyTokenizer(self._tokenizer))
        dataset = request.order(grain.MapDataset.source(self._source))
        dataset = dataset[state["document"] :].map(tokenize)
        documents = iter(request.in_workers(dataset, ahead=32))
        expand = partial(expand_row, length=self._length, pad_id=self._tokenizer.pad_token_id)
        packed = _PositionedRows(documents, self._length, state)
        number = state["batch"]
        try:
            while True:
                rows = [packed.take() for _ in range(request.batch_size)]
                if rows[0] is None:
                    return
                number += 1
                share = rows[request.process_index :: request.process_count]
                yield _stack([expand(row) for row in share]), {"batch": number, **packed.position()}
        finally:
            _close(documents)


class _PositionedRows:
    """Packs documents, and knows in which document the next row begins."""

    def __init__(self, documents: Iterator[np.ndarray], length: int, state: _State) -> None:
        self._documents = documents
        self._packer = Packer(length)
        self._document, self._token = state["document"], state["token"]
        self._sizes: list[int] = []
        if self._token:
            self._add(next(documents))

    def _add(self, ids: np.ndarray) -> None:
        begin = 0 if self._sizes else self._token
        self._sizes.append(ids.size)
        self._packer.add(ids[begin:])

    def take(self) -> Row | None:
        """Cuts the next row; None behind the last."""
        while not self._packer.full():
            ids = next(self._documents, None)
            if ids is None:
                break
            self._add(ids)
        row = self._packer.take()
        self._token += 0 if row is None else row.ids.size
        used = 0
        while used < len(self._sizes) and self._token >= self._sizes[used]:
            self._token -= self._sizes[used]
            used += 1
        self._document += used
        del self._sizes[:used]
        return row

    def position(self) -> _State:
        """Says where the next row begins."""
        return {"document": self._document, "token": self._token}


class _LazyTokenizer:
    """A tokenizer that reaches worker processes as the path of its model."""

    def __init__(self, tokenizer: XGLMTokenizer) -> None:
        self._tokenizer: XGLMTokenizer | None = tokenizer
        self._folder = tokenizer.vocab_file.parent
        self._fingerprint = tokenizer.fingerprint()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokenizer": None}

    def get(self) -> XGLMTokenizer:
        """Gives the tokenizer, reading it where this process has not yet."""
        if self._tokenizer is None:
            self._tokenizer = XGLMTokenizer.from_pretrained(self._folder)
            if self._tokenizer.fingerprint() != self._fingerprint:
                raise ValueError(f"{self._folder} must not change during training")
        return self._tokenizer


def _tokenize(text: str, tokenizer: _LazyTokenizer) -> np.ndarray:
    return tokenizer.get().encode_documents([text])[0]


def _decode(record: bytes | None, dtype: np.dtype, length: int, pad_id: int) -> Batch:
    row = None if record is None else decode_record(record, dtype)
    return expand_row(row, length, pad_id)


def _stack(rows: Sequence[Batch]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _start_worker(parent_id: int, worker_index: int, worker_count: int) -> None:
    del worker_index, worker_count  # grain passes them; every worker starts alike.
    die_with(parent_id)


def _fill_up(share: Batch | None, padding: Batch, size: int) -> Batch:
    """Puts rows of padding behind the rows of the last batch."""
    if share is None:
        return _stack([padding] * size)
    missing = size - len(share["input_ids"])
    if not missing:
        return share
    return {name: np.concatenate([rows, [padding[name]] * missing]) for name, rows in share.items()}


def _close(iterator: Iterator[Any]) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()
