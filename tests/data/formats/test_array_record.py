import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from xformer.data.formats.base import SourceOptions
from xformer.data.sources import open_file

TEXTS = ["one\ntwo", "drei \u00fc", "", "x" * 300, "\ufeffmark\r\n"]
KEPT = [text for text in TEXTS if text]
KINDS = ["text", "json", "example"]


@pytest.fixture
def encode(example_class):
    """Makes a record of a text, as `kind` says."""

    def encoded(kind, text, key="text"):
        if kind == "json":
            return json.dumps({"id": 1, key: text}).encode()
        if kind == "example":
            example = example_class()
            example.features.feature[key].bytes_list.value.append(text.encode())
            example.features.feature["id"].int64_list.value.append(1)
            example.features.feature["weight"].float_list.value.append(0.5)
            return example.SerializeToString()
        return text.encode()

    return encoded


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", ["group_size:1", "group_size:3", "group_size:1,uncompressed"])
def test_records_of_every_kind_are_documents(tmp_path, read, write_records, encode, kind, options):
    path = write_records(
        tmp_path / "a.arrayrecord", [encode(kind, text) for text in TEXTS], options
    )
    found = read(path)
    assert (found.texts, found.rows, found.bad) == (KEPT, 5, 0)
    # A jump into a group would decompress all of it.
    single = [(0, 0), (1, 0), (3, 0), (4, 0)]
    assert found.places == ([None] * 4 if "3" in options else single)


@pytest.mark.parametrize(
    "name",
    ["a.arrayrecord", "a.array_record", "a.array_record-00003-of-00010", "a.b.arrayrecord-0-of-1"],
)
def test_usual_names_are_known(tmp_path, read, write_records, name):
    assert read(write_records(tmp_path / name, [b"a", b"b"])).texts == ["a", "b"]


@pytest.mark.parametrize("kind", ["json", "example"])
def test_text_key_names_the_text(tmp_path, read, write_records, encode, kind):
    path = write_records(tmp_path / "a.arrayrecord", [encode(kind, "a", "body")] * 2)
    assert read(path, text_key="body").texts == ["a", "a"]
    found = read(path)
    assert (found.texts, found.bad) == ([], 2)
    assert "text_key='text' must name" in found.examples[0] and "'body'" in found.examples[0]


def test_unusable_records_are_skipped_counted_and_named(
    tmp_path, read, write_records, encode, example_class
):
    many, other = example_class(), example_class()
    many.features.feature["text"].bytes_list.value.extend([b"a", b"b"])
    other.features.feature["text"].int64_list.value.append(7)
    broken = encode("example", "\udcff".encode("utf-8", "surrogateescape").decode("latin-1"))
    broken = broken.replace("\u00ff".encode(), b"\xff\xff")
    records = [encode("example", "good"), many.SerializeToString(), other.SerializeToString()]
    records += [b"plain text", broken, encode("example", "y" * 99), encode("example", "last")]
    found = read(write_records(tmp_path / "a.arrayrecord", records), max_document_bytes=90)
    assert (found.texts, found.rows, found.bad) == (["good", "last"], 7, 5)
    reasons = ("one bytes value: features are 'text'", "one bytes value", "not a tf.train.Example")
    reasons += ("not UTF-8", "longer than max_document_bytes=90")
    for example, number, reason in zip(found.examples, (2, 3, 4, 5, 6), reasons, strict=True):
        assert example.startswith(f"{tmp_path / 'a.arrayrecord'}:{number}: ") and reason in example


def test_what_the_first_record_is_holds_for_all(tmp_path, read, write_records):
    path = write_records(tmp_path / "a.arrayrecord", [b"text", b'{"text": "a"}', b"\xff"])
    found = read(path)
    assert (found.texts, found.bad) == (["text", '{"text": "a"}'], 1)
    path = write_records(tmp_path / "b.arrayrecord", [b'{"text": "a"}', b"text", b"[1]"])
    found = read(path)
    assert (found.texts, found.bad) == (["a"], 2)


@pytest.mark.parametrize(
    "record",
    [b"\x05\0\0\0\x07\0\0\0", b"\xff\xfe", b"\x89PNG\r\n", b' {"text": "a"', b'{ "', b"{}x"],
)
def test_records_of_something_else_are_refused(tmp_path, read, write_records, record):
    path = write_records(tmp_path / "a.arrayrecord", [record] * 3)
    with pytest.raises(ValueError, match=r"records of .*a\.arrayrecord must be UTF-8 text, JSON"):
        read(path)


@pytest.mark.parametrize("text", ["{{Infobox}}", "{\\bf TeX}", "{ a: 1 }", "\n{", "{'a': 1}"])
def test_texts_may_begin_with_a_brace(tmp_path, read, write_records, text):
    path = write_records(tmp_path / "a.arrayrecord", [text.encode(), b"second"])
    assert read(path).texts == [text, "second"]


def test_prepared_rows_are_no_documents(prepared_folder, read):
    shard = Path(prepared_folder) / "rows-00000.arrayrecord"
    with pytest.raises(ValueError, match="must be UTF-8 text, .*read by PreparedData"):
        read(shard)


@pytest.mark.parametrize("options", ["group_size:1", "group_size:4"])
def test_ranges_meet_without_gap_or_overlap(tmp_path, read, write_records, options):
    texts = [f"record {i}" for i in range(20)]
    path = write_records(tmp_path / "a.arrayrecord", [text.encode() for text in texts], options)
    for cut in range(1, path.stat().st_size, path.stat().st_size // 97):
        assert read(path, stop=cut).texts + read(path, start=cut).texts == texts
    assert read(path, start=path.stat().st_size // 2).texts == texts[10:]
    assert read(path, start=path.stat().st_size).texts == []


def test_records_of_a_later_range_are_named_from_the_start(tmp_path, read, write_records):
    path = write_records(tmp_path / "a.arrayrecord", [b"a"] * 6 + [b"\xff"])
    [example] = read(path, start=path.stat().st_size // 2).examples
    assert example.startswith(f"{path}:7: not UTF-8")


def test_file_without_records_has_no_documents(tmp_path, read, write_records):
    assert read(write_records(tmp_path / "a.arrayrecord", [])).rows == 0


@pytest.mark.parametrize("damage", ["cut", "block", "empty", "text", "flip"])
def test_damaged_file_is_named(tmp_path, read, write_records, damage):
    path = write_records(
        tmp_path / "a.arrayrecord", [b"%d " % i * 500 for i in range(1000)], "uncompressed"
    )
    content = path.read_bytes()
    at = content.index(b"700 700")
    changed = {
        "cut": content[: len(content) // 2],
        "block": content[:65536],
        "empty": b"",
        "text": b"some text that is no container of records",
        "flip": content[:at] + b"8" + content[at + 1 :],
    }
    path.write_bytes(changed[damage])
    with pytest.raises(ValueError, match=r"a\.arrayrecord must be a whole ArrayRecord file: "):
        read(path)


def test_a_missing_file_is_an_os_error(tmp_path, read):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "a.arrayrecord")


def test_threads_may_fetch_at_once(tmp_path, write_records):
    records = [b"%d " % i * 200 for i in range(500)]
    path = write_records(tmp_path / "a.arrayrecord", records)
    file = open_file(path, SourceOptions())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: file.fetch((i, 0)), [*range(500)] * 4))
    assert found == records * 4
