"""Documents from files of every format, and the judgement of rows that hold none.

What a file is, its name says.  A row that cannot be used (not UTF-8, not JSON, null, no text under
the key, too large) is skipped and counted, and `BadRows.check` makes too many of them an error.
The same bytes always give the same documents in the same order.
"""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xformer.data.formats.array_record import ArrayRecordFile
from xformer.data.formats.arrow import ArrowStream
from xformer.data.formats.base import RawDocument, RawFile, SourceOptions
from xformer.data.formats.datasets import is_dataset, is_stream_by_name, list_dataset
from xformer.data.formats.decoding import BadRowError
from xformer.data.formats.parquet import ParquetFile
from xformer.data.formats.text import TextFile
from xformer.files import check_mounted

_PARQUET = (".parquet", ".pq")
# Shards are often called `train.array_record-00000-of-00010`.
_ARRAY_RECORD = re.compile(r"\.array_?record(-\d+-of-\d+)?$", re.IGNORECASE)


@dataclass
class BadRows:
    """Counts the rows read and those that could not be used.

    Attributes:
        rows: rows read, the bad ones included, blank ones not.
        bad: rows that could not be used.
        examples: `file:line: reason` of the first few.
    """

    rows: int = 0
    bad: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, other: "BadRows") -> None:
        """Adds the counts of a later part.

        Args:
            other: the counts of the files that follow.
        """
        self.rows += other.rows
        self.bad += other.bad
        self.examples = (self.examples + other.examples)[:5]

    def check(self, limit: float, key: str) -> None:
        """Refuses too many bad rows.

        Args:
            limit: largest share of bad rows accepted, 0 to 1.
            key: the setting that holds the limit, for the message.

        Raises:
            ValueError: the share is larger.
        """
        if self.bad > limit * self.rows:
            shown = "".join(f"\n  {example}" for example in self.examples)
            raise ValueError(
                f"{self.bad} of {self.rows} rows could not be used, more than {key}={limit} allows;"
                f" mend them, set text_key to the key that holds the text, or raise {key}:{shown}"
            )


def expand_files(files: Sequence[str], key: str = "files") -> tuple[Path, ...]:
    """Resolves file names and glob patterns.

    Args:
        files: names and patterns (`*`, `?`, `[...]`, `**`) of files, and of folders that `datasets`
            saved.
        key: the setting they come from, for messages.

    Returns:
        The files in the order given, the matches of one pattern sorted, each file once, whatever
        links lead to it.

    Raises:
        FileNotFoundError: a name or pattern matches no file, or a link leads to none.
        PermissionError: a folder in which a pattern looks cannot be listed.
        ValueError: no names are given, or a folder of several splits, parts of a dataset, or an
            address in a bucket.
    """
    if not files:
        raise ValueError(f"{key} must name at least one file")
    found: dict[str, Path] = {}
    for name in files:
        check_mounted(name, key)
        exists = os.path.exists(name)
        matches = [name] if exists else _expand_pattern(name, key)
        if not (exists and is_stream_by_name(Path(name))):
            _refuse_parts(name, matches, key)
        paths = [path for match in matches for path in _files_of(Path(match), key)]
        if not paths:
            hint = "is no regular file" if exists else "matches no file"
            hint = "is a folder; write FOLDER/*.txt" if os.path.isdir(name) else hint
            raise FileNotFoundError(f"every entry of {key} must name a file, but {name!r} {hint}")
        for path in paths:
            found.setdefault(os.path.realpath(path), path)
    return tuple(found.values())


def _expand_pattern(pattern: str, key: str) -> list[str]:
    """Expands a pattern; `glob` passes over folders that it cannot list without a word."""
    folder = os.path.dirname(pattern)
    while folder:
        for match in glob.glob(os.path.join(folder, ""), recursive=True):
            try:
                os.scandir(match).close()
            except PermissionError as error:
                raise PermissionError(
                    f"{match} cannot be listed, and may hold files that {pattern!r} of {key} means;"
                    " change its permissions, or name the folders beside it"
                ) from error
        folder = os.path.dirname(folder) if glob.has_magic(folder) else ""
    return sorted(glob.glob(pattern, recursive=True))


def _refuse_parts(name: str, matches: Sequence[str], key: str) -> None:
    """Refuses files beside which `datasets` says what belongs together: some are no documents."""
    folders = dict.fromkeys(Path(match).parent for match in matches if os.path.isfile(match))
    for folder in filter(is_dataset, folders):
        raise ValueError(
            f"{name!r} names files in {folder}, which `datasets` saved and which holds more than "
            f"documents; name the folder in {key}"
        )


def _files_of(path: Path, key: str) -> list[Path]:
    if path.is_file():
        return [path]
    # Not `path.exists`, which gives up where `**` went around a circle of folders often enough.
    if path.is_symlink() and not os.path.exists(os.path.realpath(path)):
        raise FileNotFoundError(f"{path}, which {key} names, is a link to a file that is missing")
    return list_dataset(path, key) if is_dataset(path) else []


def open_file(path: Path, options: SourceOptions) -> RawFile:
    """Chooses the reader of a file by its name; nothing is read yet.

    Args:
        path: the file.
        options: how it becomes documents.

    Returns:
        The file.
    """
    suffix = path.suffix.lower()
    if suffix in _PARQUET:
        return ParquetFile(path, options)
    if suffix == ".arrow":
        return ArrowStream(path, options)
    if _ARRAY_RECORD.search(path.name):
        return ArrayRecordFile(path, options)
    return TextFile(path, options)


def read_documents(
    file: RawFile, bad_rows: BadRows, start: int = 0, stop: int | None = None
) -> Iterator[tuple[RawDocument, str]]:
    """Reads the usable documents of a file, and counts the others.

    Args:
        file: the file.
        bad_rows: is added to.
        start: see `RawFile.read`.
        stop: see `RawFile.read`.

    Yields:
        A document and its text; documents without any text are left out.
    """
    for raw in file.read(start, stop):
        bad_rows.rows += 1
        text, flaw = "", raw.flaw
        try:
            text = "" if raw.content is None else file.parse(raw.content)
        except BadRowError as error:
            flaw = str(error)
        if flaw:
            bad_rows.bad += 1
            if len(bad_rows.examples) < 5:
                bad_rows.examples.append(f"{file.path}:{file.locate(raw, start)}: {flaw}")
        if text.strip():
            yield raw, text
