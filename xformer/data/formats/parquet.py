"""Parquet files: one column of text, a row at a time."""

from collections.abc import Iterator

from xformer.data.formats.base import RawDocument, RawFile
from xformer.data.formats.columns import as_bytes, find_column, import_pyarrow, named_damage
from xformer.data.formats.decoding import decode_text

_READ_BYTES = 2**20


class ParquetFile(RawFile):
    """A Parquet file. Its row groups are compressed, so it cannot be jumped into."""

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[RawDocument]:
        """Reads the rows of the row groups in a range; see `RawFile.read`.

        In memory are one page of the text column, as written, and one row.

        Args:
            start: first byte of the range.
            stop: its end.

        Yields:
            The rows.

        Raises:
            ValueError: the file is damaged, or lacks the column.
        """
        pyarrow = import_pyarrow(self.path)
        with (
            named_damage(pyarrow, self.path, "Parquet file"),
            pyarrow.parquet.ParquetFile(
                self.path,
                buffer_size=_READ_BYTES,
                pre_buffer=False,  # which would read a row group's column at once
                page_checksum_verification=True,
            ) as file,
        ):
            name = self.options.text_key
            find_column(pyarrow, file.schema_arrow, self.path, name)
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            groups = self._share(len(sizes), start, stop)
            row = sum(sizes[: groups.start])
            for group in groups:
                end = row + sizes[group]
                # One row a batch: a page of kilobytes can repeat a value to gigabytes.
                for batch in file.iter_batches(
                    batch_size=1, row_groups=[group], columns=[name], use_threads=False
                ):
                    for value in as_bytes(pyarrow, batch.column(0)):
                        row += 1
                        yield self._document(None, row, value.as_buffer())
                if row != end:
                    raise ValueError(
                        f"row group {group} of {self.path} must have {sizes[group]} rows, got "
                        f"{row - end + sizes[group]}"
                    )

    def parse(self, content: bytes) -> str:
        """Decodes a row; see `RawFile.parse`.

        Args:
            content: its bytes.

        Returns:
            The text.
        """
        return decode_text(content)
