"""One shard of a prepared corpus: which source bytes it covers, and writing it.

A shard depends on its sources, the tokenizer and the settings alone, so that any number of workers
writes the same files.  Its last row is padded: rows do not reach from one shard into the next.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from array_record.python import array_record_module

from xformer.data.formats.base import SourceOptions
from xformer.data.manifest import FileEntry, Settings, hash_file
from xformer.data.packing import Row, encode_record, pack, token_dtype
from xformer.data.sources import BadRows, open_file, read_documents
from xformer.tokenization.base import PreTrainedTokenizerBase

_BATCH_DOCUMENTS = 64
_BATCH_CHARACTERS = 2**20


@dataclass(frozen=True)
class Span:
    """A file, or a range of its bytes.

    Attributes:
        path: the file.
        start: first byte.
        stop: end, exclusive; None is the end of the file.
    """

    path: Path
    start: int = 0
    stop: int | None = None


@dataclass
class ShardResult:
    """What was written, and what was seen on the way.

    Attributes:
        entry: the file; None where its sources hold no document.
        documents: documents packed.
        characters: characters in them.
        tokens: tokens in the rows.
        bad_rows: what was skipped.
        unigram_counts: how often each id is predicted.
    """

    entry: FileEntry | None = None
    documents: int = 0
    characters: int = 0
    tokens: int = 0
    bad_rows: BadRows = field(default_factory=BadRows)
    unigram_counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


def choose_shard_bytes(total: int) -> int:
    """Chooses a size of shards from the size of the corpus, for about 64 of them.

    Args:
        total: bytes of all sources.

    Returns:
        Between 1 and 256 MiB.
    """
    return min(max(total // 64, 2**20), 2**28)


def plan_shards(
    files: Sequence[tuple[Path, int]], options: SourceOptions, shard_bytes: int
) -> list[tuple[Span, ...]]:
    """Divides sources into shards.

    Args:
        files: each file and its size in bytes.
        options: how files become documents; says where a file may be cut.
        shard_bytes: source bytes a shard should have.

    Returns:
        The spans of each shard: small files share one, files that can be cut give several.
    """
    plan: list[tuple[Span, ...]] = []
    waiting: list[Span] = []
    size = 0
    for path, file_bytes in files:
        pieces = [Span(path)]
        step = shard_bytes
        if file_bytes > shard_bytes and open_file(path, options).splittable:
            pieces = [Span(path, at, at + step) for at in range(0, file_bytes, step)]
        for piece in pieces:
            waiting.append(piece)
            size += min(piece.stop or file_bytes, file_bytes) - piece.start
            if size >= shard_bytes:
                plan.append(tuple(waiting))
                waiting, size = [], 0
    return [*plan, tuple(waiting)] if waiting else plan


def write_shard(
    path: Path, spans: Sequence[Span], tokenizer: PreTrainedTokenizerBase, settings: Settings
) -> ShardResult:
    """Tokenizes and packs the documents of a shard.

    Args:
        path: the ArrayRecord file to write.
        spans: its sources.
        tokenizer: the tokenizer.
        settings: the settings of the corpus.

    Returns:
        What was written.

    Raises:
        OSError: a source cannot be read, or the file cannot be written.
        ValueError: a source is damaged.
    """
    result = ShardResult(unigram_counts=np.zeros(len(tokenizer), np.int64))
    rows = 0
    writer = None
    dtype = token_dtype(len(tokenizer))
    try:
        for row in pack(_tokenize(spans, tokenizer, settings, result), settings.length):
            # The writer comes with the first row: an empty shard is no file.
            writer = writer or _open_writer(path)
            writer.write(encode_record(row, dtype))
            _count(row, result)
            rows += 1
    except RuntimeError as error:
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        _close(writer, path)
    if writer is not None:
        _check_written(path, rows)
        result.entry = FileEntry(path.name, path.stat().st_size, hash_file(path), rows)
    return result


def _open_writer(path: Path) -> array_record_module.ArrayRecordWriter:
    path.touch()  # A folder that cannot be written is Python's own, readable error.
    return array_record_module.ArrayRecordWriter(str(path), "group_size:1,zstd:1")


def _close(writer: array_record_module.ArrayRecordWriter | None, path: Path) -> None:
    if writer is None or not writer.is_open():
        return
    try:
        writer.close()
    except RuntimeError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def _check_written(path: Path, rows: int) -> None:
    """Makes the file durable, and notices what a full disk has swallowed."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        found = reader.num_records()
        reader.close()
    except RuntimeError as error:
        raise OSError(f"{path} was not written whole: {error}") from error
    if found != rows:
        raise OSError(f"{path} must hold {rows} rows, got {found}; is the disk full?")


def _count(row: Row, result: ShardResult) -> None:
    result.tokens += row.ids.size
    np.add.at(result.unigram_counts, row.target_ids(), 1)


def _tokenize(
    spans: Sequence[Span],
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    result: ShardResult,
) -> Iterator[np.ndarray]:
    options = SourceOptions(settings.text_key, settings.text_split, settings.max_document_bytes)
    texts: list[str] = []
    characters = 0
    for span in spans:
        documents = read_documents(
            open_file(span.path, options), result.bad_rows, span.start, span.stop
        )
        for _, text in documents:
            texts.append(text)
            characters += len(text)
            result.documents += 1
            result.characters += len(text)
            if len(texts) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
                yield from tokenizer.encode_documents(texts)
                texts, characters = [], 0
    yield from tokenizer.encode_documents(texts)
