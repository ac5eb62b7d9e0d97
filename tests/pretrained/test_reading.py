"""Opening weights: what is found, what is refused, and that parts are read alone."""

import hashlib
import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from flax import serialization
from safetensors.numpy import load_file, save_file

from xformer.hub import open_source
from xformer.pretrained import reading, safetensors_reading
from xformer.pretrained.msgpack_reading import MsgpackFile
from xformer.pretrained.reading import MSGPACK, SAFETENSORS, open_weights
from xformer.pretrained.safetensors_reading import MAX_HEADER_BYTES, SafetensorsFile

TENSORS = {
    "a.weight": np.arange(35, dtype=np.float32).reshape(7, 5),
    "a.bias": np.arange(5, dtype=np.float16),
    "b.weight": np.arange(12, dtype=np.float32).reshape(4, 3).astype(ml_dtypes.bfloat16),
    "b.scale": np.array(2.5, np.float32),
    "b.empty": np.zeros((0, 3), np.float32),
    "b.ids": np.arange(4),
}


@pytest.fixture
def folder(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def split(folder, shards=3):
    """Replaces the weights by shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(places.values()):
        part = {name: value for name, value in tensors.items() if places[name] == shard}
        save_file(part, folder / shard)
    return write_index(folder, places)


def write_index(folder, places, name="model.safetensors.index.json"):
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder / name


def opened(folder):
    return open_weights(open_source(folder))


def assert_holds(weights, tensors=TENSORS):
    assert weights.names.keys() == tensors.keys()
    for name, value in tensors.items():
        assert weights.names[name] == (value.shape, value.dtype)
        found = weights.read(name)
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(found, value)


def test_single_file_is_opened(folder):
    weights = opened(folder)
    assert weights.layout == "published" and weights.source == str(folder)
    assert weights.origin("a.bias") == folder / "model.safetensors"
    assert_holds(weights)


def test_shards_are_opened_through_their_index(folder):
    split(folder)
    weights = opened(folder)
    assert_holds(weights)
    assert {weights.origin(name).name for name in weights.names} == {
        f"model-{i}.safetensors" for i in range(3)
    }


@pytest.mark.parametrize("sharded", [False, True])
def test_parts_are_read(folder, sharded):
    if sharded:
        split(folder)
    weights = opened(folder)
    part = (slice(2, 5), slice(1, 4))
    np.testing.assert_array_equal(weights.read("a.weight", part), TENSORS["a.weight"][part])
    whole = (slice(None), slice(0, 2))
    np.testing.assert_array_equal(weights.read("b.weight", whole), TENSORS["b.weight"][whole])
    assert weights.read("b.empty", (slice(0, 0), slice(0, 3))).shape == (0, 3)
    assert weights.read("b.scale", ()) == 2.5


TREE = {"a": {"kernel": TENSORS["a.weight"].T.copy()}, "b": {"bias": TENSORS["a.bias"]}}
FLAT = {"a/kernel": TREE["a"]["kernel"], "b/bias": TREE["b"]["bias"]}


def test_flax_msgpack_is_opened(tmp_path):
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.to_bytes(TREE))
    weights = opened(tmp_path)
    assert weights.layout == "flax"
    assert_holds(weights, FLAT)


def test_flax_msgpack_shards_are_opened(tmp_path):
    for key in TREE:
        content = serialization.to_bytes({key: TREE[key]})
        (tmp_path / f"flax_model-{key}.msgpack").write_bytes(content)
    places = {"a/kernel": "flax_model-a.msgpack", "b/bias": "flax_model-b.msgpack"}
    write_index(tmp_path, places, "flax_model.msgpack.index.json")
    assert_holds(opened(tmp_path), FLAT)


def test_flax_safetensors_have_the_layout_of_the_tree(tmp_path):
    dotted = {name.replace("/", "."): value for name, value in FLAT.items()}
    save_file(dotted, tmp_path / "model.safetensors", metadata={"format": "flax"})
    weights = opened(tmp_path)
    assert weights.layout == "flax"
    assert_holds(weights, FLAT)


def test_shards_of_several_layouts_are_refused(folder):
    split(folder)
    path = folder / "model-1.safetensors"
    save_file(load_file(path), path, metadata={"format": "flax"})
    with pytest.raises(ValueError, match="all of PyTorch's layout or all of Flax's"):
        opened(folder)


def test_safetensors_are_preferred(folder):
    (folder / "flax_model.msgpack").write_bytes(b"no tree")
    (folder / "pytorch_model.bin").write_bytes(b"no weights")
    assert_holds(opened(folder))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "weights.pkl", "tf_model.h5", "model.ckpt", "m.pth"]
)
def test_formats_that_run_code_are_refused_with_a_way_out(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ValueError, match=rf"weights only in {name}: formats that can run code"):
        opened(tmp_path)


def test_folder_without_weights_says_what_is_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor flax_model.msgpack"):
        opened(tmp_path)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/m", "sub/m", "..", "", None, 3])
def test_shard_outside_the_folder_is_refused(folder, shard):
    index = split(folder)
    places = json.loads(index.read_text())["weight_map"] | {"a.bias": shard}
    write_index(folder, places)
    with pytest.raises(ValueError, match="index.json: shard names must be plain file names, got"):
        opened(folder)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "index.json is not JSON"),
        ("[" * 100_000, "index.json is not JSON"),
        ("[]", "index.json must hold a JSON object, got list"),
        ("{}", "index.json must have a weight_map from tensors to shards"),
        ('{"weight_map": ["a"]}', "index.json must have a weight_map from tensors to shards"),
        ('{"weight_map": {}}', "index.json must have a weight_map from tensors to shards"),
        (" " * (MAX_HEADER_BYTES + 1), "index.json must not be larger than 2097152 bytes"),
    ],
)
def test_index_that_is_none_is_refused(folder, text, message):
    split(folder).write_text(text)
    with pytest.raises(ValueError, match=message):
        opened(folder)


def test_index_of_very_many_shards_is_refused(folder):
    index = split(folder)
    write_index(folder, {f"t{i}": f"model-{i}.safetensors" for i in range(2001)})
    with pytest.raises(ValueError, match=f"{index.name} must name at most 2000 shards"):
        opened(folder)


def test_index_and_shards_must_agree(folder):
    index = split(folder)
    places = json.loads(index.read_text())["weight_map"]
    write_index(folder, places | {"c.weight": "model-0.safetensors"})
    message = "index.json says that c.weight is in model-0.safetensors, which does not hold it"
    with pytest.raises(ValueError, match=message):
        opened(folder)
    write_index(folder, places | {"c.weight": "model-9.safetensors"})
    with pytest.raises(FileNotFoundError, match="lacks model-9.safetensors, which model.safet"):
        opened(folder)


def test_files_that_are_damaged_are_named(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content + b"x", b"", b"\x10" + bytes(7)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="model.safetensors is not a whole safetensors file"):
            opened(folder)


def test_huge_header_is_refused_before_it_is_read(folder):
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.write((2**40).to_bytes(8, "little"))
    with pytest.raises(
        ValueError, match=r"must have a header of at most 2097152 bytes .*, got 10995"
    ):
        opened(folder)


@pytest.mark.parametrize("form", ["safetensors", "msgpack"])
def test_shards_together_have_the_limit_of_one_file(tmp_path, form, monkeypatch):
    """Many files below a limit are one above it."""
    values = [np.full(3, at, np.float32) for at in range(4)]
    names = {f"t{at}": f"part-{at}.{form}" for at in range(4)}
    for at, (name, shard) in enumerate(names.items()):
        if form == "safetensors":
            save_file({name: values[at]}, tmp_path / shard)
        else:
            (tmp_path / shard).write_bytes(serialization.to_bytes({name: values[at]}))
    single = SAFETENSORS if form == "safetensors" else MSGPACK
    write_index(tmp_path, names, f"{single}.index.json")
    kind = SafetensorsFile if form == "safetensors" else MsgpackFile
    cost = kind(tmp_path / f"part-0.{form}").cost
    monkeypatch.setattr(kind, "limit", 4 * cost)
    assert_holds(opened(tmp_path), dict(zip(names, values, strict=True)))
    monkeypatch.setattr(kind, "limit", 4 * cost - 1)
    message = rf"part-3.{form} .* at most {cost - 1} bytes|part-3.{form} .*than {cost - 1} objects"
    with pytest.raises(ValueError, match=message):
        opened(tmp_path)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_shards_that_are_one_file_are_refused(folder, link):
    path = folder / "model.safetensors"
    path.rename(folder / "a.safetensors")
    link(folder / "a.safetensors", folder / "b.safetensors")
    places = dict.fromkeys(TENSORS, "a.safetensors") | {"b.ids": "b.safetensors"}
    write_index(folder, places)
    message = "index.json: b.safetensors and a.safetensors must not be the same file"
    with pytest.raises(ValueError, match=message):
        opened(folder)


def test_of_a_shard_only_what_the_index_names_is_kept(folder):
    """The rest would fill the memory for nothing."""
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    write_index(folder, {"a.bias": "a.safetensors"})
    weights = opened(folder)
    assert_holds(weights, {"a.bias": TENSORS["a.bias"]})
    assert [file.forms.keys() for file, _ in weights._files.values()] == [{"a.bias"}]


def test_dtype_that_is_not_known_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"dtype":"F16"', b'"dtype":"U16"'))
    with pytest.raises(ValueError, match="model.safetensors: a.bias has dtype U16; known are F64"):
        opened(folder)


def test_tensor_names_are_never_paths(tmp_path):
    save_file({"../../etc/x": TENSORS["a.bias"]}, tmp_path / "model.safetensors")
    assert opened(tmp_path).names.keys() == {"../../etc/x"}
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def write_manifest(folder, **changes):
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    content = {"format": 1, "sha256": sums} | changes
    (folder / "xformer_manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize("sharded", [False, True])
def test_manifest_is_verified(folder, sharded):
    if sharded:
        split(folder)
    write_manifest(folder)
    opened(folder).verify()
    for path in folder.glob("model*"):
        content = path.read_bytes()
        last = b"0" if path.suffix == ".safetensors" else b" "  # silent without the manifest
        path.write_bytes(content[:-1] + last)
        with pytest.raises(ValueError, match=f"{path.name} is not the file that .* describes"):
            opened(folder).verify()
        path.write_bytes(content)
    opened(folder).verify()


def test_weights_that_the_manifest_lacks_are_refused(folder):
    write_manifest(folder, sha256={})
    with pytest.raises(ValueError, match="model.safetensors is not the file that .* remove the"):
        opened(folder).verify()


def test_file_of_nothing_is_refused_without_reading_all_of_it(tmp_path):
    """A terabyte of zeros is a small file."""
    size = 2**40
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    text = json.dumps({"zeros": entry}).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    sums = {"format": 1, "sha256": {"model.safetensors": "0" * 64}}
    (tmp_path / "xformer_manifest.json").write_text(json.dumps(sums))
    weights = opened(tmp_path)
    with pytest.raises(ValueError, match="model.safetensors is not the file that .* describes"):
        weights.verify()


@pytest.mark.parametrize("changes", [{"format": 2}, {"sha256": []}])
def test_manifest_of_another_format_is_refused(folder, changes):
    write_manifest(folder, **changes)
    with pytest.raises(ValueError, match="xformer_manifest.json must have format 1 and checksums"):
        opened(folder)


@pytest.mark.parametrize("piece_bytes, most", [(2**26, 3), (160, 12), (1, 23)])
def test_files_are_opened_again_only_after_a_piece_was_read(folder, monkeypatch, piece_bytes, most):
    """A file that is opened has its header parsed, so that opening it for each tensor is slow."""
    split(folder)
    opened_paths = []
    safe_open = safetensors_reading.safe_open

    def counting(path, **options):
        opened_paths.append(path)
        return safe_open(path, **options)

    monkeypatch.setattr(safetensors_reading, "safe_open", counting)
    monkeypatch.setattr(reading, "PIECE_BYTES", piece_bytes)
    weights = opened(folder)
    for row in range(7):
        part = (slice(row, row + 1), slice(0, 5))
        np.testing.assert_array_equal(weights.read("a.weight", part), TENSORS["a.weight"][part])
        assert weights.read("b.scale") == 2.5
    assert_holds(weights)
    assert 3 <= len(opened_paths) <= most
    assert (len(opened_paths) > 3) == (piece_bytes < 2**26)


def test_nothing_of_a_large_part_stays(folder, monkeypatch):
    """Its pages would be in memory beside the array that it becomes."""
    monkeypatch.setattr(reading, "PIECE_BYTES", 140)
    weights = opened(folder)
    weights.read("b.weight")
    (file,) = weights._mapped
    assert file._file is not None
    weights.read("a.weight")
    assert file._file is None


HIGH_WATER = """
import sys
from pathlib import Path
from xformer.hub import open_source
from xformer.pretrained.reading import open_weights

def memory(field):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024

rows = int(sys.argv[2])
before = memory("VmHWM")
weights = open_weights(open_source(sys.argv[1]))
for name in weights.names:
    for start in range(0, min(16384, rows * 8), rows):
        part = weights.read(name, (slice(start, start + rows), slice(0, 1024)))
        assert part.shape == (rows, 1024) and part[3, 5] == 1, part
print(memory("VmHWM") - before)
"""


# 16 rows eight times over are 0.5 MiB; 4096 rows, 16 MiB, are read until the end of each tensor.
@pytest.mark.parametrize("rows, most", [(16, 16 * 2**20), (4096, 112 * 2**20)])
@pytest.mark.parametrize("form", ["safetensors", "msgpack"])
def test_reading_parts_needs_memory_for_the_parts_alone(tmp_path, form, rows, most):
    tensors = {f"t{i}": np.ones((16384, 1024), np.float32) for i in range(3)}  # 64 MiB each
    if form == "safetensors":
        save_file(tensors, tmp_path / "model.safetensors")
    else:
        (tmp_path / "flax_model.msgpack").write_bytes(serialization.to_bytes(tensors))
    command = [sys.executable, "-c", HIGH_WATER, tmp_path, str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert int(done.stdout) < most
