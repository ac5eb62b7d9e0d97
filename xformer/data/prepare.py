"""Preparing a corpus: tokenize and pack once, in parallel, so that training only reads rows.

The folder is built under another name beside its place and renamed when it is complete; a crash at
any moment leaves either no corpus or a whole one.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from xformer.data import manifest as manifests
from xformer.data.building import building, publish, sync
from xformer.data.formats.base import SourceOptions
from xformer.data.manifest import Counts, FileEntry, Manifest, Settings, TokenizerEntry
from xformer.data.packing import token_dtype
from xformer.data.processes import die_with_parent
from xformer.data.shards import ShardResult, Span, choose_shard_bytes, plan_shards, write_shard
from xformer.data.sources import BadRows, expand_files
from xformer.data.tokenizer import load_tokenizer
from xformer.files import check_mounted
from xformer.tokenization.base import PreTrainedTokenizerBase

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PrepareOptions:
    """How a corpus is prepared.

    Attributes:
        length: tokens of a row.
        source: how files become documents.
        bad_row_limit: largest share of unusable rows, 0 to 1.
        shard_bytes: source bytes in one shard; None chooses by the size of the corpus.
    """

    length: int
    source: SourceOptions = SourceOptions()
    bad_row_limit: float = 0.01
    shard_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if not 2 <= self.length <= 2**24:
            raise ValueError(f"length must be in 2..{2**24}, got {self.length}")
        if not 0 <= self.bad_row_limit <= 1:
            raise ValueError(f"bad_row_limit must be in 0..1, got {self.bad_row_limit}")
        if self.shard_bytes is not None and self.shard_bytes < 1:
            raise ValueError(f"shard_bytes must be at least 1, got {self.shard_bytes}")


@dataclass(frozen=True)
class Prepared:
    """A corpus that is in its place.

    Attributes:
        manifest: its manifest.
        created: False where an equal corpus was there already and nothing was done.
    """

    manifest: Manifest
    created: bool


def prepare(
    files: Sequence[str],
    tokenizer: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    options: PrepareOptions,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> Prepared:
    """Tokenizes and packs documents into a folder of ArrayRecord shards.

    The rows are a function of the files' contents, the tokenizer and the options; not of the number
    of workers.

    Args:
        files: names and patterns of files and dataset folders.
        tokenizer: a tokenizer folder.
        out: the folder to write.
        options: length, and how files become documents.
        workers: processes; None is one for each processor, 1 works in this process.
        overwrite: whether a different corpus at `out` is replaced.
        progress: called with the source bytes done and their total.

    Returns:
        The manifest, and whether anything had to be done.

    Raises:
        FileNotFoundError: a source or the tokenizer is missing.
        FileExistsError: `out` holds something else, or is being written by another process.
        OSError: reading or writing failed; nothing is left at `out`.
        ValueError: the sources hold no text, too many bad rows, or are damaged; or one of these is
            an address in a bucket.
    """
    workers = os.cpu_count() or 1 if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    for key, place in (("out", out), ("tokenizer", tokenizer)):
        check_mounted(place, key)
    paths = expand_files(files)
    final = Path(out)
    tokenizer = Path(tokenizer)  # A path is never taken for a name of the hub.
    with _pool(workers, tokenizer) as run:
        stamps = list(map(_stamp, paths))
        hashes = list(run(manifests.hash_file, paths))
        sources = tuple(
            FileEntry(str(path), stamp[0], digest)
            for path, stamp, digest in zip(paths, stamps, hashes, strict=True)
        )
        entry = _describe_tokenizer(load_tokenizer(tokenizer))
        settings = _settings(options, sources)
        if final.exists() and (found := _existing(final, overwrite, settings, entry, sources)):
            return Prepared(found, created=False)
        with building(final) as folder:
            plan = plan_shards(
                [(path, stamp[0]) for path, stamp in zip(paths, stamps, strict=True)],
                options.source,
                settings.shard_bytes,
            )
            jobs = [(folder / f"part-{i}", spans) for i, spans in enumerate(plan)]
            results = _collect(
                run(partial(_work, settings), jobs), plan, sources, options.bad_row_limit, progress
            )
            if moved := [p for p, stamp in zip(paths, stamps, strict=True) if _stamp(p) != stamp]:
                raise ValueError(f"{moved[0]} must not change while it is prepared; run this again")
            _copy_tokenizer(tokenizer, folder, entry)
            built = _finish(folder, settings, entry, sources, results)
            publish(folder, final)
    return Prepared(built, created=True)


def _settings(options: PrepareOptions, sources: Sequence[FileEntry]) -> Settings:
    source = options.source
    return Settings(
        length=options.length,
        text_key=source.text_key,
        text_split=source.text_split,
        max_document_bytes=source.max_document_bytes,
        shard_bytes=options.shard_bytes or choose_shard_bytes(sum(s.bytes for s in sources)),
    )


def _describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> TokenizerEntry:
    return TokenizerEntry(
        class_name=type(tokenizer).__name__,
        sha256=tokenizer.fingerprint(),
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )


def _existing(
    final: Path,
    overwrite: bool,
    settings: Settings,
    tokenizer: TokenizerEntry,
    sources: tuple[FileEntry, ...],
) -> Manifest | None:
    """Recognises an equal corpus; refuses what must not be replaced."""
    if not (final / manifests.FILE_NAME).is_file():
        if final.is_dir() and not any(final.iterdir()):
            return None
        raise FileExistsError(f"{final} exists and is no prepared corpus; choose another --out")
    wanted = manifests.describe_inputs(settings, tokenizer, sources)
    try:
        found = manifests.read_manifest(final)
        has = found.identity()
        changed = [key for key in wanted if wanted[key] != has[key]]
        changed += list(manifests.find_damage(final, found, hashes=True))
    except ValueError as error:
        found, changed = None, [str(error)]
    if not changed:
        return found
    if not overwrite:
        raise FileExistsError(
            f"{final} holds another corpus (different: {', '.join(changed)}); choose another --out "
            "or give --overwrite"
        )
    return None


def _collect(
    results: Iterator[ShardResult],
    plan: Sequence[tuple[Span, ...]],
    sources: Sequence[FileEntry],
    bad_row_limit: float,
    progress: Progress,
) -> list[ShardResult]:
    """Waits for the shards in order, and judges the bad rows of all of them."""
    sizes = {source.path: source.bytes for source in sources}
    total = sum(sizes.values())
    done = 0
    bad_rows = BadRows()
    collected = []
    progress(0, total)
    for spans, result in zip(plan, results, strict=True):
        collected.append(result)
        bad_rows.add(result.bad_rows)
        ends = [(span, sizes[str(span.path)]) for span in spans]
        done += sum(min(span.stop or size, size) - span.start for span, size in ends)
        progress(done, total)
        if bad_rows.rows >= 10_000:  # No need to read terabytes of the wrong thing.
            bad_rows.check(bad_row_limit, "bad_row_limit")
    bad_rows.check(bad_row_limit, "bad_row_limit")
    if not any(result.entry for result in collected):
        names = ", ".join(source.path for source in sources[:3])
        raise ValueError(f"files must hold at least one document with text, got none in {names}")
    return collected


def _copy_tokenizer(source: str | os.PathLike[str], folder: Path, entry: TokenizerEntry) -> None:
    copied = folder / manifests.TOKENIZER_FOLDER
    load_tokenizer(source).save_pretrained(copied)
    if load_tokenizer(copied).fingerprint() != entry.sha256:
        raise ValueError(f"tokenizer {source} must not change while a corpus is prepared")


def _finish(
    folder: Path,
    settings: Settings,
    tokenizer: TokenizerEntry,
    sources: tuple[FileEntry, ...],
    results: Sequence[ShardResult],
) -> Manifest:
    """Gives the shards their names and writes counts and manifest."""
    shards: list[FileEntry] = []
    for result in results:
        if result.entry is not None:
            name = f"rows-{len(shards):05d}.arrayrecord"
            (folder / result.entry.path).rename(folder / name)
            shards.append(FileEntry(name, *_identity(result.entry)))
    unigram_path = folder / manifests.UNIGRAM_FILE
    np.save(unigram_path, sum(r.unigram_counts for r in results), allow_pickle=False)
    built = Manifest(
        settings=settings,
        tokenizer=tokenizer,
        token_dtype=token_dtype(tokenizer.vocab_size).str,
        counts=Counts(
            documents=sum(result.documents for result in results),
            characters=sum(result.characters for result in results),
            tokens=sum(result.tokens for result in results),
            rows=sum(shard.rows for shard in shards),
            bad_rows=sum(result.bad_rows.bad for result in results),
        ),
        sources=sources,
        shards=tuple(shards),
        unigram_counts=FileEntry(
            unigram_path.name, unigram_path.stat().st_size, manifests.hash_file(unigram_path)
        ),
    )
    (folder / manifests.FILE_NAME).write_text(built.to_json(), encoding="utf-8")
    for path in (unigram_path, folder / manifests.FILE_NAME, folder):
        sync(path)
    return built


def _identity(entry: FileEntry) -> tuple[int, str, int]:
    return entry.bytes, entry.sha256, entry.rows


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


_tokenizer: PreTrainedTokenizerBase | None = None  # Of this worker process.


def _load(tokenizer: str | os.PathLike[str]) -> None:
    global _tokenizer
    _tokenizer = load_tokenizer(tokenizer)


def _start_worker(tokenizer: str | os.PathLike[str]) -> None:
    die_with_parent()
    _load(tokenizer)


def _work(settings: Settings, job: tuple[Path, tuple[Span, ...]]) -> ShardResult:
    assert _tokenizer is not None
    return write_shard(job[0], job[1], _tokenizer, settings)


@contextlib.contextmanager
def _pool(workers: int, tokenizer: str | os.PathLike[str]) -> Iterator[Callable]:
    """Gives an ordered `map` over worker processes."""
    load_tokenizer(tokenizer)  # An error here is plainer than one in a worker.
    if workers == 1:
        _load(tokenizer)
        yield map
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (tokenizer,))
    try:
        yield pool.map
    except BrokenProcessPool as error:
        raise OSError("a worker process died (out of memory?); give fewer --workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
