"""ArrayRecord files made elsewhere: records of text, of JSON objects or of `tf.train.Example`s."""

import json
import re
from collections.abc import Callable, Iterator
from functools import cached_property, partial

from array_record.python import array_record_module

from xformer.data.formats.base import Place, RawDocument, RawFile
from xformer.data.formats.decoding import (
    BadRowError,
    decode_example,
    decode_json,
    decode_text,
    read_features,
)

# Texts of wikis, of TeX and of programs begin with a brace too.
_OBJECT_BEGIN = re.compile(r"\s*\{\s*[\"}]")


class ArrayRecordFile(RawFile):
    """An ArrayRecord file; a record's place is its number.

    What its records are, the first one says. Files whose records are compressed in groups are not
    jumped into: each jump would decompress a group.
    """

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[RawDocument]:
        """Reads a share of the records; see `RawFile.read`.

        Args:
            start: first byte of the range.
            stop: its end.

        Yields:
            The records.

        Raises:
            ValueError: the file is damaged, or its records are something else.
        """
        reader = self._open()
        try:
            numbers = self._share(reader.num_records(), start, stop)
            single = "group_size:1," in reader.writer_options_string()
            if numbers:
                _ = self._decode  # Refuses what no record could be read of.
                reader.seek(numbers.start)
            for number in numbers:
                place = (number, 0) if single else None
                yield self._document(place, number + 1, reader.read())
        except (RuntimeError, IndexError) as error:
            raise self._damaged(error) from error

    def fetch(self, place: Place) -> bytes:
        """Reads one record again; see `RawFile.fetch`.

        Args:
            place: its place.

        Returns:
            Its bytes.

        Raises:
            ValueError: the file has changed.
        """
        try:
            return self._reader.read([place[0]])[0]
        except (RuntimeError, IndexError) as error:
            raise self._damaged(error) from error

    def parse(self, content: bytes) -> str:
        """Decodes a record; see `RawFile.parse`.

        Args:
            content: its bytes.

        Returns:
            The text.
        """
        return self._decode(content)

    @cached_property
    def _reader(self) -> array_record_module.ArrayRecordReader:
        return self._open()

    @cached_property
    def _decode(self) -> Callable[[bytes], str]:
        """Chooses how records are read, by the first."""
        first = self.fetch((0, 0))
        key = self.options.text_key
        if read_features(first):
            return partial(decode_example, key=key)
        if _is_json_object(first):
            return partial(decode_json, key=key)
        if _is_text(first):
            return decode_text
        raise ValueError(
            f"the records of {self.path} must be UTF-8 text, JSON objects or tf.train.Examples "
            f"with text_key, but the first begins with {first[:16]!r}; write them as one of these "
            "(a corpus that `xformer prepare` wrote is read by PreparedData)"
        )

    def _open(self) -> array_record_module.ArrayRecordReader:
        self.path.open("rb").close()  # A file that cannot be opened is Python's own error.
        try:
            # No read-ahead: shuffled records are far apart.
            reader = array_record_module.ArrayRecordReader(
                str(self.path), options="readahead_buffer_size:0,max_parallelism:0"
            )
            if not reader.ok():  # A file that is cut off would have 0 records.
                reader.read_all()
                raise RuntimeError("it has no index of records")
            return reader
        except RuntimeError as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> ValueError:
        return ValueError(f"{self.path} must be a whole ArrayRecord file: {error}")


def _is_json_object(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), dict)
    except (ValueError, RecursionError):
        return False


def _is_text(content: bytes) -> bool:
    """Says whether bytes are meant as text: UTF-8, no numbers, no broken JSON object."""
    try:
        text = decode_text(content)
    except BadRowError:
        return False
    return "\0" not in text and not _OBJECT_BEGIN.match(text)
