import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from array_record.python import array_record_module

from xformer.data.formats.array_record import ArrayRecordFile
from xformer.data.formats.base import SourceOptions
from xformer.data.prepare import PrepareOptions, prepare
from xformer.data.sources import BadRows, expand_files, open_file, read_documents

ROWS = [{"text": "one\ntwo"}, {"text": "  "}, {"text": "drei \u00fc"}, {"text": "x" * 300}]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def _write(path, content, compression):
    if compression == "gz":
        content = gzip.compress(content)
    elif compression == "zst":
        # Two frames: what `cat a.zst b.zst` gives.
        half = len(content) // 2
        content = zstandard.compress(content[:half]) + zstandard.compress(content[half:])
    path = path.with_name(path.name + (f".{compression}" if compression else ""))
    path.write_bytes(content)
    return path


def _texts(path, options=None, bad_rows=None, start=0, stop=None):
    options, bad_rows = options or SourceOptions(), bad_rows or BadRows()
    return [text for _, text in read_documents(open_file(path, options), bad_rows, start, stop)]


@pytest.mark.parametrize("compression", ["", "gz", "zst"])
def test_json_rows_are_documents(tmp_path, compression):
    path = _write(tmp_path / "rows.jsonl", JSONL, compression)
    assert open_file(path, SourceOptions()).splittable == (not compression)
    assert _texts(path) == ["one\ntwo", "drei \u00fc", "x" * 300]


@pytest.mark.parametrize("compression", ["", "gz", "zst"])
@pytest.mark.parametrize(
    ("split", "documents"),
    [
        ("file", ["\na b\nc\n\n \n\nd\ne"]),
        ("paragraph", ["a b\nc", "d\ne"]),
        ("line", ["a b", "c", "d", "e"]),
    ],
)
def test_text_splits_as_asked(tmp_path, compression, split, documents):
    path = _write(tmp_path / "text.txt", b"\na b\r\nc\n\n \n\nd\ne", compression)
    texts = _texts(path, SourceOptions(text_split=split))
    assert [text.replace("\r", "") for text in texts] == documents


def test_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert _texts(tmp_path / "a.txt") == ["hello"]


def test_ranges_meet_without_gap_or_overlap(tmp_path):
    path = _write(tmp_path / "rows.jsonl", JSONL + b"\n\n" + JSONL.rstrip(), "")
    whole = _texts(path)
    assert len(whole) == 6
    for cut in range(1, path.stat().st_size):
        assert _texts(path, stop=cut) + _texts(path, start=cut) == whole


def test_unusable_rows_are_skipped_counted_and_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [b'{"text": "good"}', b'{"text": "\xff"}', b"{", b'{"body": "x"}', b'{"text": 3}']
    rows += [b'{"text": "\\ud800"}', b'["text"]', b'{"text": "%s"}' % (b"y" * 99), b"[" * 60]
    path.write_bytes(b"\n".join([*rows, b"", b'{"text": "last"}']))
    bad_rows = BadRows()
    assert _texts(path, SourceOptions(max_document_bytes=90), bad_rows) == ["good", "last"]
    assert (bad_rows.rows, bad_rows.bad) == (10, 8)
    for example, line, reason in zip(
        bad_rows.examples,
        (2, 3, 4, 5, 6),
        ("not UTF-8", "not JSON", "keys are 'body'", "text_key='text' must name", "surrogate"),
        strict=True,
    ):
        assert example.startswith(f"{path}:{line}: ") and reason in example
    with pytest.raises(ValueError, match=r"8 of 10 rows .* more than some_key=0\.5(.|\n)*:2: not"):
        bad_rows.check(0.5, "some_key")
    bad_rows.check(0.8, "some_key")


def test_deeply_nested_json_is_a_bad_row(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"[" * 100_000)
    bad_rows = BadRows()
    assert _texts(tmp_path / "a.jsonl", bad_rows=bad_rows) == [] and bad_rows.bad == 1


def test_lines_of_a_later_range_are_named_from_the_start(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n{"text": "b"}\n{"text": "c"}\nbad\n')
    for start in range(1, 43):
        bad_rows = BadRows()
        _texts(path, bad_rows=bad_rows, start=start)
        assert [one.split(": ")[0] for one in bad_rows.examples] == [f"{path}:5"]


def test_oversized_documents_are_bad_rows(tmp_path):
    options = {"text_split": "paragraph", "max_document_bytes": 10}
    (tmp_path / "a.txt").write_bytes(
        b"one\ntwo\n\n" + b"long line of text\n" + b"a\n" * 3 + b"\nend"
    )
    bad_rows = BadRows()
    assert _texts(tmp_path / "a.txt", SourceOptions(**options), bad_rows) == ["one\ntwo", "end"]
    assert bad_rows.examples == [f"{tmp_path / 'a.txt'}:4: longer than max_document_bytes=10"]
    options["text_split"] = "file"
    assert _texts(tmp_path / "a.txt", SourceOptions(**options)) == []


@pytest.mark.parametrize("compression", ["gz", "zst"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_cut_off_compression_is_an_error(tmp_path, compression, kept):
    path = _write(tmp_path / "rows.jsonl", JSONL * 50, compression)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=rf"rows\.jsonl\.{compression} must be a whole"):
        _texts(path)


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_wrong_compression_is_an_error(tmp_path, compression):
    path = tmp_path / f"rows.jsonl.{compression}"
    path.write_bytes(JSONL)
    with pytest.raises(ValueError, match=f"must be a whole .{compression} file"):
        _texts(path)


def test_many_zstd_frames_are_read_through(tmp_path):
    frames = io.BytesIO()
    for row in ROWS * 20:
        frames.write(zstandard.compress(json.dumps(row).encode() + b"\n"))
    (tmp_path / "a.jsonl.zst").write_bytes(frames.getvalue())
    assert len(_texts(tmp_path / "a.jsonl.zst")) == 60


def test_patterns_expand_sorted_and_once(tmp_path):
    for name in ("b.txt", "a.txt", "deep/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = expand_files([str(tmp_path / "b.txt"), str(tmp_path / "**/*.txt")])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["b.txt", "a.txt", "deep/c.txt"]


def test_a_name_with_brackets_is_a_name(tmp_path):
    (tmp_path / "a[1].txt").write_text("x")
    assert expand_files([str(tmp_path / "a[1].txt")]) == (tmp_path / "a[1].txt",)


def test_a_file_is_taken_once_whatever_leads_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").symlink_to("a.txt")
    (tmp_path / "loop").symlink_to(".")
    assert expand_files(["**/*.txt", str(tmp_path / "a.txt")]) == (Path("a.txt"),)


def test_link_to_nothing_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").symlink_to("gone.txt")
    for name in ("*.txt", "b.txt"):
        with pytest.raises(FileNotFoundError, match=r"b\.txt, which some\.key names, is a link to"):
            expand_files([str(tmp_path / name)], "some.key")


@pytest.fixture
def ordinary_user(tmp_path, monkeypatch):
    """Goes to the folder of the test as somebody for whom permissions count."""
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


@pytest.mark.parametrize("pattern", ["*/*.txt", "**/*.txt", "*/deep/*.txt", "b/*.txt", "b/a.txt"])
def test_folder_that_cannot_be_listed_is_named(tmp_path, request, pattern):
    for name in ("a/deep", "b/deep"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.txt").write_text("text")
    (tmp_path / "b").chmod(0)
    request.addfinalizer(lambda: (tmp_path / "b").chmod(0o755))
    request.getfixturevalue("ordinary_user")
    with pytest.raises(PermissionError, match=r"^b/ cannot be listed, .* of some\.key means"):
        expand_files([pattern], "some.key")
    assert expand_files(["a/**/*.txt"]) == (Path("a/deep/a.txt"),)


def test_pipe_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="pipe' is no regular file"):
        expand_files([str(tmp_path / "pipe")])


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"some\.key .* 'no-\*\.txt' matches no file"):
        expand_files(["no-*.txt"], "some.key")
    with pytest.raises(FileNotFoundError, match="is a folder; write"):
        expand_files([str(tmp_path)])
    with pytest.raises(ValueError, match="files must name at least one file"):
        expand_files([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_key": ""}, "text_key must not be empty"),
        ({"text_split": "word"}, "text_split must be one of"),
        ({"max_document_bytes": 0}, "max_document_bytes must be at least 1, got 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        SourceOptions(**options)


TABLE = pa.table({"text": ["a", "b"]})


def _table(path, kind):
    if kind == "parquet":
        pq.write_table(TABLE, path)
    else:
        new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with new(str(path), TABLE.schema) as writer:
            writer.write_table(TABLE)
    return path


@pytest.mark.parametrize("suffix", ["pq", "PARQUET", "Pq"])
def test_parquet_has_two_suffixes_in_any_case(tmp_path, suffix):
    assert _texts(_table(tmp_path / f"a.{suffix}", "parquet")) == ["a", "b"]


def test_case_of_a_suffix_does_not_matter(tmp_path):
    assert _texts(_table(tmp_path / "a.ARROW", "stream")) == ["a", "b"]
    assert type(open_file(tmp_path / "a.ArrayRecord", SourceOptions())) is ArrayRecordFile
    for name, content in (("a.JSONL", JSONL), ("a.NDJSON.GZ", gzip.compress(JSONL))):
        (tmp_path / name).write_bytes(content)
        assert _texts(tmp_path / name) == ["one\ntwo", "drei \u00fc", "x" * 300]
    (tmp_path / "a.ZST").write_bytes(zstandard.compress(b"text"))
    assert _texts(tmp_path / "a.ZST") == ["text"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("parquet", r"a Parquet file: its name must end in \.parquet$"),
        ("empty parquet", r"a Parquet file: its name must end in \.parquet$"),
        ("stream", r"an Arrow stream: its name must end in \.arrow$"),
        ("feather", r"an Arrow \(Feather\) file: write it again as Parquet$"),
        ("records", r"an ArrayRecord file: its name must end in \.arrayrecord$"),
        ("gzip", r"gzip: its name must end in \.gz$"),
        ("zstd", r"zstd: its name must end in \.zst$"),
        ("bzip2", "bzip2: compress it with gzip or zstd$"),
        ("xz", "xz: compress it with gzip or zstd$"),
        ("zip", "a zip archive: unpack it"),
        ("tar", "a tar archive: unpack it"),
        ("sqlite", "an SQLite database: write its texts as JSON lines$"),
        ("numpy", "a NumPy array: files hold text, not numbers$"),
        ("utf-16", "UTF-16: write it again as UTF-8$"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.gz", "a.zst", "a"])
def test_other_content_is_refused_as_a_file(tmp_path, make_binary, kind, message, name):
    path = tmp_path / name
    path.write_bytes(make_binary(kind))
    if path.suffix in (".gz", ".zst"):
        pack = gzip.compress if path.suffix == ".gz" else zstandard.compress
        path.write_bytes(pack(path.read_bytes()))
        message = message.replace(":", rf" inside of \{path.suffix}; decompress it first, then", 1)
    with pytest.raises(ValueError, match=f"{name} must hold text, .* but begins as {message}"):
        _texts(path)


@pytest.fixture
def make_binary(tmp_path):
    """Makes the bytes of files that are no text, with what usually writes them."""

    def make(kind):
        path = tmp_path / "made"
        if kind == "empty parquet":
            pq.write_table(TABLE[:0], path, use_dictionary=False)
        elif kind in ("parquet", "stream", "feather"):
            _table(path, kind)
        elif kind == "records":
            array_record_module.ArrayRecordWriter(str(path), "group_size:1").close()
        elif kind == "tar":
            (tmp_path / "inner.txt").write_text("text")
            with tarfile.open(path, "w") as archive:
                archive.add(tmp_path / "inner.txt", "inner.txt")
        elif kind == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("inner.txt", "text")
        elif kind == "sqlite":
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.execute("create table texts (text)")
        elif kind == "numpy":
            with path.open("wb") as file:
                np.save(file, np.zeros(3))
        else:
            pack = {"gzip": gzip, "zstd": zstandard, "bzip2": bz2, "xz": lzma}
            return "text".encode(kind) if kind == "utf-16" else pack[kind].compress(b"text")
        return path.read_bytes()

    return make


@pytest.mark.parametrize("text", ["PAR1", "PAR1 is a par file", "ARROW1", "PK", "Object", "BZh9"])
def test_text_that_only_begins_alike_is_text(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert _texts(tmp_path / "a.txt") == [text]


@pytest.mark.parametrize("workers", [1, 2])
def test_wrongly_named_table_is_not_one_bad_row_of_many(tmp_path, tokenizer_folder, workers):
    (tmp_path / "rows.jsonl").write_bytes(JSONL * 1000)
    _table(tmp_path / "shard.parquet-00000-of-00001", "parquet")
    options = PrepareOptions(length=8)
    with pytest.raises(ValueError, match="shard.parquet-00000-of-00001 must hold text"):
        prepare(
            [str(tmp_path / "*")],
            tokenizer_folder,
            tmp_path / "out",
            options=options,
            workers=workers,
        )
