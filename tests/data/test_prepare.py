import gzip
import hashlib
import json
import os
import shutil
import signal
import textwrap
from pathlib import Path

import numpy as np
import pytest
import zstandard
from array_record.python import array_record_module

from xformer.data.formats.base import SourceOptions
from xformer.data.manifest import read_manifest
from xformer.data.packing import decode_record, pack
from xformer.data.prepare import PrepareOptions, prepare
from xformer.data.shards import choose_shard_bytes, plan_shards
from xformer.tokenization.xglm import XGLMTokenizer

OPTIONS = PrepareOptions(length=64, shard_bytes=20_000)


def _rows(folder):
    manifest = read_manifest(Path(folder))
    rows = []
    for shard in manifest.shards:
        reader = array_record_module.ArrayRecordReader(str(Path(folder) / shard.path))
        records = reader.read_all()
        reader.close()
        assert len(records) == shard.rows
        rows += [decode_record(record, np.dtype(manifest.token_dtype)) for record in records]
    return rows


def _content(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_rows_are_the_packed_documents(tmp_path, corpus_file, tokenizer_folder, texts):
    options = PrepareOptions(length=64)
    manifest = prepare([corpus_file], tokenizer_folder, tmp_path / "out", options=options).manifest
    documents = XGLMTokenizer.from_pretrained(tokenizer_folder).encode_documents(texts)
    wanted = list(pack(documents, 64))
    found = _rows(tmp_path / "out")
    assert len(found) == len(wanted) == manifest.counts.rows
    for row, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(row.ids, other.ids)
        np.testing.assert_array_equal(row.lengths, other.lengths)
    assert manifest.counts.documents == len(texts)
    assert manifest.counts.characters == sum(map(len, texts))
    assert manifest.counts.tokens == sum(document.size for document in documents)
    counts = np.load(tmp_path / "out" / "unigram_counts.npy", allow_pickle=False)
    targets = np.concatenate([row.target_ids() for row in wanted])
    np.testing.assert_array_equal(counts, np.bincount(targets, minlength=2008))


def test_number_of_workers_does_not_change_a_byte(
    tmp_path, corpus_file, tokenizer_folder, prepared_folder
):
    prepare([corpus_file], tokenizer_folder, tmp_path / "two", options=OPTIONS, workers=2)
    assert _content(tmp_path / "two") == _content(prepared_folder)
    assert len(read_manifest(tmp_path / "two").shards) > 3


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_sources_give_the_same_rows(tmp_path, corpus_file, tokenizer_folder, suffix):
    content = Path(corpus_file).read_bytes()
    compress = gzip.compress if suffix == ".gz" else zstandard.compress
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(compress(content))
    options = PrepareOptions(length=64)
    for source, out in ((str(path), "packed"), (corpus_file, "plain")):
        prepare([source], tokenizer_folder, tmp_path / out, options=options, workers=1)
    hashes = [read_manifest(tmp_path / out).content_sha256() for out in ("packed", "plain")]
    assert hashes[0] == hashes[1]


def test_manifest_lists_every_file_with_its_hash(prepared_folder, corpus_file):
    manifest = read_manifest(Path(prepared_folder))
    listed = [*manifest.shards, manifest.unigram_counts]
    for entry in listed:
        content = (Path(prepared_folder) / entry.path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry.bytes, entry.sha256)
    present = {path.name for path in Path(prepared_folder).iterdir()}
    assert present == {entry.path for entry in listed} | {"manifest.json", "tokenizer"}
    [source] = manifest.sources
    assert source.sha256 == hashlib.sha256(Path(corpus_file).read_bytes()).hexdigest()


def test_equal_corpus_is_recognised(tmp_path, corpus_file, tokenizer_folder, prepared_folder):
    folder = Path(shutil.copytree(prepared_folder, tmp_path / "out"))
    moved = str(shutil.copy(corpus_file, tmp_path / "elsewhere.jsonl"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    prepared = prepare([moved], tokenizer_folder, folder, options=OPTIONS, workers=1)
    assert not prepared.created
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("change", ["length", "source", "tokenizer", "damage", "manifest"])
def test_different_corpus_is_refused_and_overwritten(
    tmp_path, corpus_file, tokenizer_folder, prepared_folder, change, texts, write_rows
):
    folder = Path(shutil.copytree(prepared_folder, tmp_path / "out"))
    source, options, word = corpus_file, OPTIONS, change
    if change == "length":
        options = PrepareOptions(length=32, shard_bytes=20_000)
    elif change == "source":
        source = write_rows(tmp_path / "other.jsonl", texts[:5])
    elif change == "tokenizer":
        tokenizer_folder += "_bpe"
    elif change == "damage":
        shard = folder / "rows-00001.arrayrecord"
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
        word = r"rows-00001\.arrayrecord must have the SHA-256"
    else:
        (folder / "manifest.json").write_text("{}")
    with pytest.raises(FileExistsError, match=f"holds another corpus .*{word}.*--overwrite"):
        prepare([source], tokenizer_folder, folder, options=options, workers=1)
    prepared = prepare(
        [source], tokenizer_folder, folder, options=options, workers=1, overwrite=True
    )
    assert prepared.created and read_manifest(folder) == prepared.manifest
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_folder_of_something_else_is_never_replaced(tmp_path, corpus_file, tokenizer_folder):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="is no prepared corpus"):
        prepare([corpus_file], tokenizer_folder, tmp_path / "out", options=OPTIONS, overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "precious"


def test_empty_corpus_is_refused(tmp_path, tokenizer_folder):
    (tmp_path / "a.txt").write_text(" \n\n")
    (tmp_path / "b.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match="files must hold at least one document with text"):
        prepare([str(tmp_path / "*")], tokenizer_folder, tmp_path / "out", options=OPTIONS)
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "b.jsonl"}


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_rows_are_counted_up_to_the_limit(tmp_path, tokenizer_folder, workers, texts):
    lines = [json.dumps({"text": text}) for text in texts[:20]]
    lines[3:3] = ["broken"]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    options = PrepareOptions(length=64, shard_bytes=5_000, bad_row_limit=0.05)
    arguments = ([str(path)], tokenizer_folder, tmp_path / "out")
    manifest = prepare(*arguments, options=options, workers=workers).manifest
    assert (manifest.counts.bad_rows, manifest.counts.documents) == (1, 20)
    shutil.rmtree(tmp_path / "out")
    options = PrepareOptions(length=64, shard_bytes=5_000, bad_row_limit=0.04)
    with pytest.raises(ValueError, match=r"1 of 21 rows .* raise bad_row_limit:\n.*jsonl:4: not J"):
        prepare(*arguments, options=options, workers=workers)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_missing_tokenizer_is_named(tmp_path, corpus_file):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        prepare([corpus_file], tmp_path / "none", tmp_path / "out", options=OPTIONS)


def test_unwritable_place_is_an_error(tmp_path, corpus_file, tokenizer_folder):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "out", Path("/proc/out")):
        with pytest.raises(OSError):
            prepare([corpus_file], tokenizer_folder, place, options=OPTIONS, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, r"length must be in 2\.\."),
        ({"length": 8, "bad_row_limit": 1.5}, r"bad_row_limit must be in 0\.\.1, got 1\.5"),
        ({"length": 8, "shard_bytes": 0}, "shard_bytes must be at least 1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        PrepareOptions(**options)


def test_workers_are_checked(tmp_path, corpus_file, tokenizer_folder):
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        prepare([corpus_file], tokenizer_folder, tmp_path / "out", options=OPTIONS, workers=0)


def test_shards_cut_large_files_and_join_small_ones():
    files = [(Path("a.jsonl"), 25), (Path("b.txt"), 4), (Path("c.txt"), 8), (Path("d.jsonl"), 1)]
    plan = plan_shards(files, SourceOptions(), 10)
    assert [[(span.path.name, span.start, span.stop) for span in spans] for spans in plan] == [
        [("a.jsonl", 0, 10)],
        [("a.jsonl", 10, 20)],
        [("a.jsonl", 20, 30), ("b.txt", 0, None), ("c.txt", 0, None)],
        [("d.jsonl", 0, None)],
    ]


def test_shard_size_follows_the_corpus():
    sizes = [choose_shard_bytes(total) for total in (0, 2**28, 2**40)]
    assert sizes == [2**20, 2**22, 2**28]


_PROGRAM = """
import resource, sys
from xformer.data.prepare import PrepareOptions, prepare

if __name__ == "__main__":
    source, tokenizer, out, workers, limit = sys.argv[1:]
    if int(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    options = PrepareOptions(length=64, shard_bytes=100_000)
    prepare([source], tokenizer, out, options=options, workers=int(workers))
    print("prepared")
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(_PROGRAM))
    return path


@pytest.mark.parametrize("workers", ["1", "2"])
def test_full_disk_leaves_nothing(
    tmp_path, program, corpus_file, tokenizer_folder, workers, programs
):
    # No file may grow beyond this, as on a full disk; the error number alone differs.
    out = tmp_path / "folder" / "out"
    process = programs.start(program, corpus_file, tokenizer_folder, str(out), workers, "16384")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "prepared" not in output
    assert "OSError" in output.splitlines()[-1] and "part-" in output.splitlines()[-1], output
    assert not list(out.parent.iterdir())


def test_killed_preparation_leaves_no_corpus_and_no_workers(
    tmp_path, program, tokenizer_folder, texts, write_rows, programs
):
    source = write_rows(tmp_path / "rows.jsonl", texts * 40)
    out = tmp_path / "out"
    process = programs.start(program, source, tokenizer_folder, str(out), "2", "0")
    assert programs.wait_for(lambda: list(tmp_path.glob(".out.building/part-*")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    ended = programs.wait_for(lambda: not programs.members(process.pid), 10)
    for pid in programs.members(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert ended
    assert not out.exists()
    options = PrepareOptions(length=64, shard_bytes=100_000)
    prepare([source], tokenizer_folder, out, options=options, workers=1)
    prepare([source], tokenizer_folder, tmp_path / "again", options=options, workers=1)
    assert _content(out) == _content(tmp_path / "again")
    assert not list(tmp_path.glob(".*"))


def test_second_writer_is_refused(tmp_path, program, tokenizer_folder, texts, write_rows, programs):
    source = write_rows(tmp_path / "rows.jsonl", texts * 40)
    process = programs.start(program, source, tokenizer_folder, str(tmp_path / "out"), "1", "0")
    try:
        assert programs.wait_for(lambda: list(tmp_path.glob(".out.building/part-*")))
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(FileExistsError, match="another process is preparing"):
            prepare([source], tokenizer_folder, tmp_path / "out", options=OPTIONS, workers=1)
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=60)
        assert output == "prepared\n"
    finally:
        process.kill()


def test_names_that_are_no_utf8_are_kept(tmp_path, tokenizer_folder):
    path = tmp_path / os.fsdecode(b"r\xe9sum\xe9.txt")
    path.write_text("some text")
    out = tmp_path / "out"
    for created in (True, False):
        options = PrepareOptions(length=8)
        made = prepare([str(path)], tokenizer_folder, out, options=options, workers=1)
        assert made.created == created
    assert read_manifest(out).sources[0].path == str(path)
