import gzip
import io
import json

import pytest
import zstandard

from xformer.data.formats.base import SourceOptions
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
