"""Folders in the form that `save_to_disk` of `datasets` 5.2 writes."""

import json

import pyarrow as pa
import pytest

from xformer.data.sources import expand_files


def _save(folder, texts, shards=1, **state):
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    features = {"text": {"dtype": "string", "_type": "Value"}}
    schema = pa.schema(
        {"text": pa.string()},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    step = -(-len(texts) // shards)
    for i, name in enumerate(names):
        table = pa.table({"text": texts[i * step : (i + 1) * step]}, schema=schema)
        with pa.ipc.new_stream(str(folder / name), schema) as writer:
            writer.write_table(table, max_chunksize=1000)
    fields = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "36799b3a5a70bd95",
        "_format_columns": ["text"],
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(fields | state, indent=2))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


@pytest.fixture
def dataset(tmp_path):
    return _save(tmp_path / "saved", [f"row {i}" for i in range(25)], shards=3)


def test_folder_is_its_streams_in_order(dataset, read):
    (dataset / "cache-0123456789abcdef.arrow").write_bytes(b"of another computation")
    files = expand_files([str(dataset)])
    assert [path.name for path in files] == [f"data-0000{i}-of-00003.arrow" for i in range(3)]
    assert [text for path in files for text in read(path).texts] == [f"row {i}" for i in range(25)]


def test_patterns_find_folders_beside_files(tmp_path, dataset):
    _save(tmp_path / "second", ["a"])
    (tmp_path / "third.jsonl").write_text("{}")
    (tmp_path / "other").mkdir()
    found = [str(path.relative_to(tmp_path)) for path in expand_files([str(tmp_path / "*")])]
    streams = [f"saved/data-0000{i}-of-00003.arrow" for i in range(3)]
    assert found == [*streams, "second/data-00000-of-00001.arrow", "third.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "folder"),
    [
        ("both/train/*", "train"),
        ("both/train/*.arrow", "train"),
        ("both/train/data-00000*", "train"),
        ("both/train/state.json", "train"),
        ("both/train/cache-0.arrow", "train"),
        ("both/*/*.arrow", "t.*"),
        ("**/*.arrow", "t.*"),
        ("both/*", "both"),
        ("both/dataset_dict.json", "both"),
    ],
)
def test_parts_of_what_was_saved_are_refused(tmp_path, pattern, folder):
    for split in ("train", "test"):
        _save(tmp_path / "both" / split, ["a"])
    (tmp_path / "both" / "train" / "cache-0.arrow").write_bytes(b"of another computation")
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(
        ValueError, match=rf"/{folder}, which `datasets` saved .*; name the folder in some\.key"
    ):
        expand_files([str(tmp_path / pattern)], "some.key")


def test_stream_may_be_named_by_itself(dataset):
    path = dataset / "data-00001-of-00003.arrow"
    assert expand_files([str(path)]) == (path,)


def test_state_of_another_program_makes_no_dataset(tmp_path):
    (tmp_path / "state.json").write_text("{}")
    (tmp_path / "a.txt").write_text("text")
    assert expand_files([str(tmp_path / "*.txt")]) == (tmp_path / "a.txt",)


def test_several_splits_are_listed(tmp_path):
    for split in ("train", "test"):
        _save(tmp_path / "both" / split, ["a"])
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(
        ValueError, match="both holds several splits; name one in some.key: .*both/train, .*both/te"
    ):
        expand_files([str(tmp_path / "both")], "some.key")
    [path] = expand_files([str(tmp_path / "both" / "test")])
    assert path == tmp_path / "both" / "test" / "data-00000-of-00001.arrow"


def test_selection_of_rows_is_refused(tmp_path):
    folder = _save(tmp_path / "old", ["a"], _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(ValueError, match="old holds a selection of rows; call `flatten_indices"):
        expand_files([str(folder)])


def test_missing_stream_is_named(dataset):
    (dataset / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(FileNotFoundError, match=r"saved/data-00001-of-00003\.arrow, .* is missing"):
        expand_files([str(dataset)])


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", 3, None])
def test_names_that_leave_the_folder_are_refused(dataset, name):
    (dataset / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(ValueError, match=r"state\.json must list plain file names, got "):
        expand_files([str(dataset)])


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"_data_files": 3}', '{"_data_files": ["a"]}', "[" * 100_000]
)
def test_damaged_description_is_named(dataset, content):
    (dataset / "state.json").write_text(content)
    with pytest.raises(ValueError, match=r"state\.json must be"):
        expand_files([str(dataset)])


def test_dataset_without_files_is_named(dataset):
    (dataset / "state.json").write_text('{"_data_files": []}')
    with pytest.raises(
        FileNotFoundError, match="saved is a dataset without files, .* leave it out of some.key"
    ):
        expand_files([str(dataset)], "some.key")
