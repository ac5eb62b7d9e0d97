"""Documents from text and JSON-lines files, and the judgement of rows that hold none.

A row that cannot be used (not
UTF-8, not JSON, no text under the key, too large) is skipped and counted, and `BadRows.check` makes
too many of them an error.  The same bytes always give the same documents in the same order.
"""

import glob
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xformer.data.raw import RawDocument, SourceOptions, is_jsonl, read_raw


class BadRowError(ValueError):
    """A row that holds no usable text; the message is the reason."""


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
        files: names and patterns (`*`, `?`, `[...]`, `**`).
        key: the setting they come from, for messages.

    Returns:
        The files in the order given, the matches of one pattern sorted, each file once.

    Raises:
        FileNotFoundError: a name or pattern matches no file.
        ValueError: no names are given.
    """
    if not files:
        raise ValueError(f"{key} must name at least one file")
    found: dict[Path, None] = {}
    for name in files:
        matches = [name] if os.path.isfile(name) else sorted(glob.glob(name, recursive=True))
        matches = [match for match in matches if os.path.isfile(match)]
        if not matches:
            hint = "is a folder; write FOLDER/*.txt" if os.path.isdir(name) else "matches no file"
            raise FileNotFoundError(f"every entry of {key} must name a file, but {name!r} {hint}")
        found.update(dict.fromkeys(map(Path, matches)))
    return tuple(found)


def parse(path: Path, content: bytes | None, options: SourceOptions) -> str:
    """Turns the bytes of a document into its text.

    Args:
        path: the file, which says what the bytes are.
        content: what `read_raw` gave.
        options: how files become documents.

    Returns:
        The text.

    Raises:
        BadRowError: there is no usable text in them.
    """
    if content is None:
        raise BadRowError(f"longer than max_document_bytes={options.max_document_bytes}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRowError(f"not UTF-8 ({error.reason} at byte {error.start})") from error
    if not is_jsonl(path):
        return text.replace("\r\n", "\n")
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRowError(f"not JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get(options.text_key), str):
        raise BadRowError(f"text_key={options.text_key!r} must name a string: {_shape(row)}")
    text = row[options.text_key]
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRowError("text holds half a surrogate pair") from error
    return text


def read_documents(
    path: Path,
    options: SourceOptions,
    bad_rows: BadRows,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[RawDocument, str]]:
    """Reads the usable documents of a file, and counts the others.

    Args:
        path: the file.
        options: how files become documents.
        bad_rows: is added to.
        start: see `read_raw`.
        stop: see `read_raw`.

    Yields:
        Where a document is, and its text; documents without any text are left out.
    """
    for raw in read_raw(path, options, start, stop):
        bad_rows.rows += 1
        try:
            text = parse(path, raw.content, options)
        except BadRowError as error:
            bad_rows.bad += 1
            if len(bad_rows.examples) < 5:
                line = raw.line + (_count_lines(path, start, raw.offset) if start else 0)
                bad_rows.examples.append(f"{path}:{line}: {error}")
            continue
        if text.strip():
            yield raw, text


def _count_lines(path: Path, start: int, offset: int) -> int:
    """Counts the lines before the first whole line of a range that begins at byte `start`."""
    count = 0
    with path.open("rb") as file:
        file.seek(start - 1)
        file.readline()
        left = min(file.tell(), offset)
        file.seek(0)
        while left > 0 and (block := file.read(min(left, 2**20))):
            count += block.count(b"\n")
            left -= len(block)
    return count


def _shape(row: object) -> str:
    if isinstance(row, dict):
        return f"keys are {', '.join(map(repr, list(row)[:8])) or 'none'}"
    return f"the row is a {type(row).__name__}"
