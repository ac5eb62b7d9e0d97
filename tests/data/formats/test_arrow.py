import re
import struct

import pyarrow as pa
import pytest

from xformer.data.formats.base import SourceOptions
from xformer.data.sources import open_file

TEXTS = ["one\ntwo", "drei \u00fc", "", "x" * 300, "\ufeffmark\r\n"]
KEPT = [text for text in TEXTS if text]
END = b"\xff\xff\xff\xff\0\0\0\0"


def _write(path, column, name="text", rows=1000, **options):
    table = pa.table({"id": pa.array(range(len(column))), name: column})
    options = pa.ipc.IpcWriteOptions(**options)
    with pa.OSFile(str(path), "wb") as sink:
        with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=rows)
    return path


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()]
)
def test_rows_of_every_string_type_are_documents(tmp_path, read, kind):
    column = pa.array([text.encode() for text in TEXTS]).cast(kind)
    found = read(_write(tmp_path / "a.arrow", column, rows=2))
    assert (found.texts, found.rows, found.bad) == (KEPT, 5, 0)
    content = (tmp_path / "a.arrow").read_bytes()
    if kind == pa.string_view():  # Short ones lie elsewhere, so all are kept in memory.
        assert found.places == [None] * 4
    else:
        assert [content[at : at + size].decode() for at, size in found.places] == KEPT


def test_unusable_rows_are_skipped_counted_and_named(tmp_path, read):
    column = pa.array([b"good", None, b"\xff\xfe", b"y" * 91, b"z" * 90, b"last"])
    # A string column that is not UTF-8, as only a careless writer makes it
    column = column.view(pa.string())
    found = read(_write(tmp_path / "a.arrow", column, rows=2), max_document_bytes=90)
    assert (found.texts, found.rows, found.bad) == (["good", "z" * 90, "last"], 6, 3)
    reasons = ("null", "not UTF-8 (invalid start byte at byte 0)", "longer than max_document_byt")
    for example, row, reason in zip(found.examples, (2, 3, 4), reasons, strict=True):
        assert example.startswith(f"{tmp_path / 'a.arrow'}:{row}: {reason}")


def test_column_of_nulls_alone_is_counted(tmp_path, read):
    path = _write(tmp_path / "a.arrow", pa.nulls(5), rows=2)
    found = read(path)
    assert (found.texts, found.rows, found.bad) == ([], 5, 5)
    assert found.examples[4] == f"{path}:5: null"


def test_ranges_meet_without_gap_or_overlap(tmp_path, read):
    texts = [f"row {i}" for i in range(20)]
    path = _write(tmp_path / "a.arrow", pa.array(texts), rows=3)
    whole = read(path)
    assert whole.texts == texts
    marks = [match.start() for match in re.finditer(b"\xff{4}", path.read_bytes())]
    for cut in (*range(1, path.stat().st_size, 31), *marks[1:]):
        first, second = read(path, stop=cut), read(path, start=cut)
        assert first.texts + second.texts == texts
        assert first.places + second.places == whole.places
    assert 0 < len(read(path, stop=path.stat().st_size // 2).texts) < 20


def test_rows_of_a_later_range_are_named_from_the_start(tmp_path, read):
    path = _write(tmp_path / "a.arrow", pa.array(["a"] * 6 + [None]), rows=2)
    assert read(path, start=path.stat().st_size // 2).examples == [f"{path}:7: null"]


def test_stream_without_rows_has_no_documents(tmp_path, read):
    path = _write(tmp_path / "a.arrow", pa.array([], pa.string()))
    assert read(path).rows == 0


def test_missing_column_lists_the_columns(tmp_path, read):
    path = _write(tmp_path / "a.arrow", pa.array(TEXTS), "body")
    with pytest.raises(
        ValueError, match=r"a\.arrow must have one column 'text'; .*: 'id', 'body'$"
    ):
        read(path)
    assert read(path, text_key="body").texts == KEPT


def test_column_of_something_else_names_its_type(tmp_path, read):
    path = _write(tmp_path / "a.arrow", pa.array([["a"], ["b"]]))
    with pytest.raises(ValueError, match="column 'text' of .* must hold strings, got list<"):
        read(path)


def test_column_that_appears_twice_is_refused(tmp_path, read):
    table = pa.table([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match="must have one column 'text'; .*: 'text', 'text'$"):
        read(tmp_path / "a.arrow")


@pytest.mark.parametrize("kept", ["nothing", "schema", "mid-schema", "batch", "mid-batch", "twice"])
def test_stream_that_is_not_whole_is_named(tmp_path, read, kept):
    path = _write(tmp_path / "a.arrow", pa.array(TEXTS * 10), rows=10)
    content = path.read_bytes()
    # Every message begins with this mark: the schema, five batches and the end.
    first, *_, last, _ = (match.start() for match in re.finditer(b"\xff{4}", content[1:]))
    ends = {
        "nothing": 0,
        "schema": first + 1,
        "mid-schema": first - 20,
        "batch": last + 1,
        "mid-batch": last - 20,
    }
    path.write_bytes(content[: ends[kept]] if kept in ends else content * 2)
    with pytest.raises(ValueError, match=r"a\.arrow must be a whole Arrow stream: "):
        read(path)


def test_lost_middle_is_noticed(tmp_path, read):
    path = _write(tmp_path / "a.arrow", pa.array(TEXTS * 10), rows=10)
    content = path.read_bytes()
    path.write_bytes(content[:400] + content[600:])
    with pytest.raises(ValueError, match=r"a\.arrow must be a whole Arrow stream: "):
        read(path)


def test_other_content_is_named(tmp_path, read):
    (tmp_path / "a.arrow").write_bytes(b"some text that is no table" + END)
    with pytest.raises(ValueError, match=r"a\.arrow must be a whole Arrow stream: "):
        read(tmp_path / "a.arrow")


def test_names_of_columns_that_are_no_text_are_damage(tmp_path, read):
    path = _write(tmp_path / "a.arrow", pa.array(TEXTS))
    path.write_bytes(path.read_bytes().replace(b"text", b"\xff\xff\xff\xff"))
    with pytest.raises(ValueError, match=r"a\.arrow must be a whole Arrow stream: "):
        read(path)


def test_positions_outside_of_the_memory_are_refused(tmp_path, read):
    path = _write(tmp_path / "a.arrow", pa.array(["aaa", "bbb", "ccc"]))
    offsets = struct.pack("<4i", 0, 3, 6, 9)
    for wrong in ((0, 3, 2**30, 9), (0, 6, 3, 9), (0, 3, 6, 2**30), (-5, 3, 6, 9)):
        content = path.read_bytes()
        assert content.count(offsets) == 1
        (tmp_path / "b.arrow").write_bytes(content.replace(offsets, struct.pack("<4i", *wrong)))
        with pytest.raises(ValueError, match=r"b\.arrow must be a whole Arrow stream: "):
            read(tmp_path / "b.arrow")


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_batches_are_refused_before_they_are_decompressed(
    tmp_path, read, peak_bytes, compression
):
    column = pa.array(["x" * 2**20] * 50)
    path = _write(tmp_path / "a.arrow", column, compression=compression)
    assert path.stat().st_size < 2**19
    before = peak_bytes()
    with pytest.raises(ValueError, match=r"a\.arrow must hold uncompressed .* again as Parquet"):
        read(path)
    assert peak_bytes() - before < 2**20


def test_dictionaries_are_refused(tmp_path, read):
    path = _write(tmp_path / "a.arrow", pa.array(["a", "b"]).dictionary_encode())
    with pytest.raises(ValueError, match="must hold .* without dictionaries"):
        read(path)


def test_feather_file_is_told_from_a_stream(tmp_path, read):
    table = pa.table({"text": TEXTS})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match=r"must be an Arrow stream, .* got an Arrow \(Feather\)"):
        read(tmp_path / "a.arrow")


def test_rows_are_read_without_copying_the_file(tmp_path):
    path = _write(tmp_path / "a.arrow", pa.array(["x" * 10_000] * 5000))
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    held = [pool.bytes_allocated() for _ in open_file(path, SourceOptions()).read()]
    assert len(held) == 5000 and max(held) - before < 2**20
