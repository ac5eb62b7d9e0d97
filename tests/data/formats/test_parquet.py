import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xformer.data.formats.base import SourceOptions
from xformer.data.sources import open_file

TEXTS = ["one\ntwo", "drei \u00fc", "", "x" * 300, "\ufeffmark\r\n"]
KEPT = [text for text in TEXTS if text]


def _write(path, column, name="text", **options):
    table = pa.table({"id": pa.array(range(len(column))), name: column})
    pq.write_table(table, path, **options)
    return path


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()]
)
def test_rows_of_every_string_type_are_documents(tmp_path, read, kind):
    column = pa.array([text.encode() for text in TEXTS]).cast(kind)
    found = read(_write(tmp_path / "a.parquet", column))
    assert (found.texts, found.rows, found.bad) == (KEPT, 5, 0)
    assert found.places == [None] * 4


def test_dictionary_column_is_a_column_of_strings(tmp_path, read):
    column = pa.array(["a", "b", None, "a"]).dictionary_encode()
    path = _write(tmp_path / "a.parquet", column)
    assert pa.types.is_dictionary(pq.read_schema(path).field("text").type)
    found = read(path)
    assert (found.texts, found.bad) == (["a", "b", "a"], 1)


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
def test_compressions_are_read(tmp_path, read, compression):
    path = _write(tmp_path / "a.parquet", pa.array(TEXTS), compression=compression)
    assert read(path).texts == KEPT


@pytest.mark.parametrize("name", ["body", "a.b", "te xt"])
def test_text_key_names_the_column(tmp_path, read, name):
    path = _write(tmp_path / "a.parquet", pa.array(TEXTS), name)
    assert read(path, text_key=name).texts == KEPT


def test_unusable_rows_are_skipped_counted_and_named(tmp_path, read):
    column = pa.array([b"good", None, b"\xff\xfe", b"y" * 91, b"z" * 90, b"last"])
    found = read(_write(tmp_path / "a.parquet", column, row_group_size=2), max_document_bytes=90)
    assert (found.texts, found.rows, found.bad) == (["good", "z" * 90, "last"], 6, 3)
    reasons = ("null", "not UTF-8 (invalid start byte at byte 0)", "longer than max_document_byt")
    for example, row, reason in zip(found.examples, (2, 3, 4), reasons, strict=True):
        assert example.startswith(f"{tmp_path / 'a.parquet'}:{row}: {reason}")


def test_column_of_nulls_alone_is_counted(tmp_path, read):
    path = _write(tmp_path / "a.parquet", pa.nulls(5), row_group_size=2)
    found = read(path)
    assert (found.texts, found.rows, found.bad) == ([], 5, 5)
    assert found.examples[4] == f"{path}:5: null"


def test_ranges_meet_without_gap_or_overlap(tmp_path, read):
    texts = [f"row {i}" for i in range(20)]
    path = _write(tmp_path / "a.parquet", pa.array(texts), row_group_size=3)
    for cut in range(1, path.stat().st_size, 7):
        assert read(path, stop=cut).texts + read(path, start=cut).texts == texts
    assert read(path, stop=path.stat().st_size // 2).texts != texts
    assert read(path, start=path.stat().st_size).texts == []


def test_rows_of_a_later_range_are_named_from_the_start(tmp_path, read):
    path = _write(tmp_path / "a.parquet", pa.array(["a"] * 6 + [None]), row_group_size=2)
    assert read(path, start=path.stat().st_size // 2).examples == [f"{path}:7: null"]


def test_missing_column_lists_the_columns(tmp_path, read):
    path = _write(tmp_path / "a.parquet", pa.array(TEXTS), "body")
    with pytest.raises(
        ValueError, match=r"a\.parquet must have one column 'text'; set text_key .*: 'id', 'body'$"
    ):
        read(path)


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ([1, 2], "int64"),
        ([["a"], ["b"]], "list<"),
        ([{"text": "a"}], "struct<"),
    ],
)
def test_column_of_something_else_names_its_type(tmp_path, read, column, kind):
    path = _write(tmp_path / "a.parquet", pa.array(column))
    with pytest.raises(ValueError, match=f"column 'text' of .* must hold strings, got {kind}"):
        read(path)


def test_nested_text_is_no_column(tmp_path, read):
    path = _write(tmp_path / "a.parquet", pa.array([{"text": "a"}]), "row")
    with pytest.raises(ValueError, match=r"must have one column 'row\.text'; .*: 'id', 'row'$"):
        read(path, text_key="row.text")


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "footer"])
def test_damaged_file_is_named(tmp_path, read, damage):
    path = _write(tmp_path / "a.parquet", pa.array(TEXTS * 100))
    content = path.read_bytes()
    changed = {
        "cut": content[: len(content) // 2],
        "empty": b"",
        "text": b"some text that is no table",
        "footer": content[:-300] + b"\xff" * 200 + content[-100:],
    }
    path.write_bytes(changed[damage])
    with pytest.raises(ValueError, match=r"a\.parquet must be a whole Parquet file: "):
        read(path)


def test_changed_page_is_noticed_by_its_checksum(tmp_path, read):
    path = _write(
        tmp_path / "a.parquet",
        pa.array(TEXTS * 100),
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    content = path.read_bytes()
    path.write_bytes(content.replace(b"one\ntwo", b"one\ntwO", 1))
    with pytest.raises(
        ValueError, match=r"a\.parquet must be a whole Parquet file: .*[Cc][Rr][Cc]"
    ):
        read(path)


def test_lost_rows_are_noticed(tmp_path, read):
    path = _write(tmp_path / "a.parquet", pa.array(["x"] * 100))
    content = path.read_bytes()
    # The footer says 100 rows (a zigzag varint) of the file and of its row group.
    footer = content.rindex(b"\xc8\x01", 0, content.rindex(b"ARROW:schema"))
    path.write_bytes(content[:footer] + b"\xca\x01" + content[footer + 2 :])
    assert pq.ParquetFile(path).metadata.row_group(0).num_rows == 101
    with pytest.raises(ValueError, match="row group 0 of .*must have 101 rows, got 100"):
        read(path)


def test_a_missing_file_is_an_os_error(tmp_path, read):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "a.parquet")


def test_without_pyarrow_the_extra_is_named(tmp_path, read, monkeypatch):
    path = _write(tmp_path / "a.parquet", pa.array(TEXTS))
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ModuleNotFoundError, match=r"a\.parquet needs pyarrow; .* 'xformer-jax\[arrow\]'"
    ):
        read(path)


def test_without_parquet_files_pyarrow_is_not_imported():
    code = (
        "import sys, xformer.data.pipeline, xformer.data.prepare; print('pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_memory_does_not_grow_with_the_row_group(tmp_path, compression):
    texts = [f"{i} " * 400 for i in range(20_000)]
    path = _write(
        tmp_path / "a.parquet", pa.array(texts), compression=compression, use_dictionary=False
    )
    assert pq.ParquetFile(path).num_row_groups == 1
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    held = [pool.bytes_allocated() for _ in open_file(path, SourceOptions()).read()]
    assert len(held) == 20_000 and sum(map(len, texts)) > 40 * 2**20
    assert max(held) - before < 10 * 2**20


def test_repeated_values_are_not_multiplied_in_memory(tmp_path, read, peak_bytes):
    size = 8 * 2**20
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 500), pa.array(["x" * size]))
    path = _write(tmp_path / "a.parquet", column, compression="zstd")
    assert path.stat().st_size < 10_000
    before = peak_bytes()
    found = read(path, max_document_bytes=1000)
    assert (found.rows, found.bad) == (500, 500)
    assert peak_bytes() - before < 8 * size
