"""Saving: the files, their bytes, and what is there when saving is stopped."""

import json
import os
import signal
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import serialization, traverse_util
from safetensors import safe_open
from safetensors.numpy import load_file

from xformer import partitioning
from xformer.hub import open_source
from xformer.layers.stack import restack
from xformer.partitioning import MeshConfig, Rules
from xformer.pretrained import saving
from xformer.pretrained.loading import load_params
from xformer.pretrained.reading import open_weights
from xformer.pretrained.saving import parse_size, save_params
from xformer.pretrained.xglm import WEIGHTS

LAYOUTS = ("published", "flax")
WEIGHT_FILES = {"published": "model.safetensors", "flax": "flax_model.msgpack"}
FILES = {"config.json": b"{}", "tokenizer.json": b"[]"}


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_published_names_layouts_and_metadata(tmp_path, draw):
    params = draw()
    assert save_params(tmp_path / "out", params, WEIGHTS) == ("model.safetensors",)
    with safe_open(tmp_path / "out" / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert len(tensors) == len(jax.tree.leaves(params))
    layer = params["model"]["layers"]["2"]
    for name, value in {
        "lm_head.weight": params["lm_head"]["kernel"].T,
        "model.embed_tokens.weight": params["model"]["embed_tokens"]["embedding"],
        "model.layers.2.self_attn.q_proj.weight": layer["self_attn"]["q_proj"]["kernel"].T,
        "model.layers.2.final_layer_norm.weight": layer["final_layer_norm"]["scale"],
    }.items():
        np.testing.assert_array_equal(tensors[name], value)


def test_flax_files_are_those_that_flax_writes(tmp_path, draw):
    assert save_params(tmp_path, draw(), WEIGHTS, layout="flax") == ("flax_model.msgpack",)
    sorted_keys = jax.tree.map(lambda leaf: leaf, draw())
    assert content(tmp_path) == {"flax_model.msgpack": serialization.to_bytes(sorted_keys)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", ["5GB", 1500])
def test_bytes_are_the_same_however_the_parameters_are_kept(
    tmp_path, draw, shapes_of, layout, size
):
    """As NumPy arrays, in another order, scanned, on eight devices, and loaded again."""
    params = draw()
    backwards = traverse_util.unflatten_dict(
        dict(reversed(traverse_util.flatten_dict(params).items()))
    )
    boxed = shapes_of(layers="scan", boxed=True)
    mesh = partitioning.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    names = partitioning.axis_names(boxed)
    shardings = partitioning.shardings(shapes_of(layers="scan"), names, mesh, Rules())
    sharded = jax.device_put(restack(params, "scan"), shardings)
    save_params(tmp_path / "first", params, WEIGHTS, layout=layout, max_shard_size=size)
    for at, kept in enumerate((backwards, restack(params, "scan"), sharded)):
        save_params(tmp_path / str(at), kept, WEIGHTS, layout=layout, max_shard_size=size)
        assert content(tmp_path / str(at)) == content(tmp_path / "first")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_loaded_and_saved_again_is_the_same(tmp_path, draw, load, layout):
    save_params(tmp_path / "a", draw(), WEIGHTS, layout=layout, max_shard_size=1500)
    again = load(tmp_path / "a").params
    save_params(tmp_path / "b", again, WEIGHTS, layout=layout, max_shard_size=1500)
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_make_up_the_same_bytes(tmp_path, draw, layout, monkeypatch):
    sharded = jax.tree.map(jax.numpy.asarray, draw())
    save_params(tmp_path / "whole", sharded, WEIGHTS, layout=layout)
    monkeypatch.setattr(saving, "PIECE_BYTES", 100)
    save_params(tmp_path / "pieces", sharded, WEIGHTS, layout=layout)
    assert content(tmp_path / "pieces") == content(tmp_path / "whole")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards_have_an_index_and_at_most_the_size(tmp_path, draw, load, assert_same, layout):
    names = save_params(tmp_path, draw(), WEIGHTS, layout=layout, max_shard_size="1KB")
    stem, suffix = WEIGHT_FILES[layout].split(".")
    *shards, last = names
    count = len(shards)
    assert last == f"{WEIGHT_FILES[layout]}.index.json" and count > 5
    assert shards == [f"{stem}-{i:05}-of-{count:05}.{suffix}" for i in range(1, count + 1)]
    index = json.loads((tmp_path / last).read_text())
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(draw()))
    assert index["metadata"] == {"total_size": total}
    assert set(index["weight_map"].values()) == set(shards)
    if layout == "published":
        held = [load_file(tmp_path / shard) for shard in shards]
        assert all(sum(v.nbytes for v in one.values()) <= 1000 or len(one) == 1 for one in held)
    assert_same(load(tmp_path).params, draw())


def test_shards_follow_the_order_of_the_layers(tmp_path, config, shapes_of):
    layers = {str(i): {"fc1": {"bias": np.zeros(8, np.float32)}} for i in range(12)}
    save_params(tmp_path, {"model": {"layers": layers}}, WEIGHTS, max_shard_size=32)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["model.layers.2.fc1.bias"] == "model-00003-of-00012.safetensors"
    assert index["model.layers.11.fc1.bias"] == "model-00012-of-00012.safetensors"


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dtype_is_converted(tmp_path, draw, load, assert_same, layout, dtype):
    save_params(tmp_path, draw(), WEIGHTS, layout=layout, dtype=dtype)
    expected = jax.tree.map(lambda leaf: leaf.astype(dtype), draw())
    assert_same(load(tmp_path, dtype=None).params, expected)


def test_tensors_of_several_dtypes_are_aligned(tmp_path, draw):
    params = draw()
    params["model"]["layer_norm"]["bias"] = np.arange(3, dtype=np.float16)
    params["model"]["layer_norm"]["scale"] = np.arange(3, dtype=np.float64)
    save_params(tmp_path, params, WEIGHTS)
    data = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    widths = {"F64": 8, "F32": 4, "F16": 2}
    del header["__metadata__"]
    assert {one["dtype"] for one in header.values()} == set(widths)
    assert all(one["data_offsets"][0] % widths[one["dtype"]] == 0 for one in header.values())
    assert load_file(tmp_path / "model.safetensors")["model.layer_norm.bias"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "size, expected",
    [(7, 7), ("5GB", 5 * 10**9), ("500MiB", 500 * 2**20), ("2 kb", 2000), ("1TB", 10**12)],
)
def test_sizes_are_read(size, expected):
    assert parse_size(size) == expected


@pytest.mark.parametrize("size", [0, -1, "", "5", "GB", "5 apples", "-5GB", "0GB", "1.5GB"])
def test_sizes_that_are_none_are_refused(tmp_path, draw, size):
    with pytest.raises(ValueError, match='max_shard_size must be bytes or a size like "5GB", got'):
        save_params(tmp_path / "out", draw(), WEIGHTS, max_shard_size=size)
    assert not (tmp_path / "out").exists()


def test_dtype_that_the_format_lacks_is_refused(tmp_path):
    params = {"layer_norm": {"bias": np.zeros(3, np.complex64)}}
    with pytest.raises(ValueError, match="weights must have a dtype of .*, got complex64"):
        save_params(tmp_path / "out", params, WEIGHTS)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_the_bytes(tmp_path, draw):
    calls = []
    save_params(tmp_path, draw(), WEIGHTS, progress=lambda *call: calls.append(call))
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(draw()))
    done = [call[0] for call in calls]
    assert done == sorted(done) and done[-1] == total and {call[1] for call in calls} == {total}


@pytest.mark.parametrize("new", LAYOUTS)
@pytest.mark.parametrize("old", LAYOUTS)
def test_earlier_weights_are_replaced_and_other_files_stay(
    tmp_path, draw, load, assert_same, old, new
):
    save_params(
        tmp_path,
        jax.tree.map(np.zeros_like, draw()),
        WEIGHTS,
        layout=old,
        max_shard_size=1500,
        files=FILES,
        with_manifest=True,
    )
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model-card.md").write_text("mine")
    names = save_params(tmp_path, draw(), WEIGHTS, layout=new, files={"config.json": b"{1}"})
    assert set(content(tmp_path)) == {*names, "notes.txt", "model-card.md", "tokenizer.json"}
    assert names == (WEIGHT_FILES[new], "config.json")
    assert (tmp_path / "config.json").read_bytes() == b"{1}"
    assert_same(load(tmp_path).params, draw())
    save_params(tmp_path, draw(), WEIGHTS, layout=new, max_shard_size=3000)
    assert not (tmp_path / WEIGHT_FILES[new]).exists()
    assert_same(load(tmp_path).params, draw())


def test_new_folder_is_as_open_as_any_other(tmp_path, draw):
    (tmp_path / "plain").mkdir()
    save_params(tmp_path / "deep" / "out", draw(), WEIGHTS)
    assert (tmp_path / "deep" / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


# Saving with NumPy arrays, in a fork for every event of the file system, killed at that event.
KILLED_EVERYWHERE = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
from xformer.pretrained.xglm import WEIGHTS
from xformer.pretrained.saving import save_params

place, layout, state = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
size = 10**6 if state == "exists whole" else 256  # of a file: one, or two and an index
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.listdir",
          "os.scandir", "shutil.rmtree", "tempfile.mkdtemp"}

def params(value):
    return {"model": {"layer_norm": {"bias": np.full(64, value, np.float32),
                                     "scale": np.full(64, value, np.float32)}}}

def save(folder, value):
    save_params(folder, params(value), WEIGHTS, layout=layout, max_shard_size=size,
                files={"config.json": json.dumps(value).encode()})

def attempt(folder, at):
    seen = 0
    def count(event, arguments):
        nonlocal seen
        if event in EVENTS:
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    save(folder, 2)

for at in range(1, 1000):
    folder = place / str(at) / "out"
    folder.parent.mkdir(parents=True)
    if state != "new":
        save(folder, 1)
    child = os.fork()
    if not child:
        attempt(folder, at)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(at)
"""


@pytest.fixture(params=LAYOUTS)
def killed(request, tmp_path):
    """Makes folders on which a save was killed at each of its steps in turn."""

    def killed(state):
        command = [sys.executable, "-W", "ignore", "-c", KILLED_EVERYWHERE, tmp_path]
        done = subprocess.run(
            [*command, request.param, state], capture_output=True, text=True, check=True
        )
        steps = int(done.stdout)
        assert 10 < steps < 999, "the last attempt was not killed"
        return [tmp_path / str(at) / "out" for at in range(1, steps + 1)]

    return killed


def value_of(folder):
    """What the config and the weights in a folder say, or None where one of them is refused."""
    if not (folder / "config.json").exists():
        return None
    shapes = {"model": {"layer_norm": dict.fromkeys(("bias", "scale"), np.zeros(64, np.float32))}}
    try:
        weights = open_weights(open_source(folder))
    except FileNotFoundError:
        return None
    loaded = load_params(weights, shapes, WEIGHTS)
    assert not loaded.missing
    values = {float(value) for leaf in jax.tree.leaves(loaded.params) for value in leaf}
    assert len(values) == 1, "a mixture of the old weights and the new"
    assert values == {json.loads((folder / "config.json").read_text())}, "another model's config"
    return values.pop()


def test_new_folder_is_whole_or_not_there_whenever_it_is_killed(killed, draw):
    folders = killed("new")
    states = [value_of(folder) if folder.exists() else None for folder in folders]
    assert states[0] is None and states[-1] == 2
    assert states == sorted(states, key=bool), "once it is there it stays"
    for folder, state in zip(folders, states, strict=True):
        if state:
            assert len(list(folder.iterdir())) == 4  # two shards, the index, the config
    assert [path for folder in folders for path in folder.parent.glob(".out.saving-*")]
    for folder in folders:  # what was left is removed by the next save
        save_params(folder, draw(), WEIGHTS)
        assert [path.name for path in folder.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("stage", ["exists", "exists whole"])
def test_existing_folder_never_holds_a_mixture(killed, stage):
    folders = killed(stage)
    states = [value_of(folder) for folder in folders]
    assert states[0] == 1 and states[-1] == 2
    assert set(states) <= {1, None, 2}
    ranks = [{1: 0, None: 1, 2: 2}[state] for state in states]
    assert ranks == sorted(ranks)
    for folder, state in zip(folders, states, strict=True):
        is_touched = not (folder / "config.json").exists()
        assert is_touched == (state is None), "without a config until the last step and only so"


@pytest.fixture
def mounted(tmp_path):
    """Mounts a file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", "--lazy", str(place)], check=True)


BIG = {"embed_tokens": {"embedding": np.zeros((1024, 1024), np.float32)}}  # 4 MiB


@pytest.mark.parametrize("layout", LAYOUTS)
def test_full_disk_is_said_and_leaves_nothing(mounted, layout):
    place = mounted("size=2m")
    with pytest.raises(OSError, match="cannot save to .*/out: No space left.*; free space there"):
        save_params(place / "out", BIG, WEIGHTS, layout=layout)
    assert list(place.iterdir()) == []


def test_full_disk_leaves_the_earlier_save(mounted, draw, load, assert_same):
    place = mounted("size=2m")
    save_params(place / "out", draw(), WEIGHTS, files=FILES)
    before = content(place / "out")
    with pytest.raises(OSError, match="No space left"):
        save_params(place / "out", BIG, WEIGHTS, files=FILES)
    assert content(place / "out") == before


def test_read_only_target_is_said(mounted, draw):
    place = mounted("size=1m,ro")
    with pytest.raises(OSError, match="cannot save to .*/out: Read-only file system; .*can be"):
        save_params(place / "out", draw(), WEIGHTS)


def test_target_that_is_a_file_is_refused(tmp_path, draw):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OSError, match="cannot save to .*/out: Not a directory"):
        save_params(tmp_path / "out", draw(), WEIGHTS)
    assert content(tmp_path) == {"out": b"mine"}


def test_interrupted_save_leaves_nothing(tmp_path, draw):
    def interrupt(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_params(tmp_path / "out", draw(), WEIGHTS, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


SLOW_SAVE = """
import sys
from pathlib import Path
import numpy as np
from xformer.pretrained.xglm import WEIGHTS
from xformer.pretrained.saving import save_params

def wait(done, total):
    print("saving", flush=True)
    sys.stdin.readline()

params = {"layer_norm": {"bias": np.zeros(3, np.float32)}}
save_params(Path(sys.argv[1]), params, WEIGHTS, progress=wait)
"""


def test_what_another_process_is_saving_is_left_alone(tmp_path, draw):
    command = [sys.executable, "-c", SLOW_SAVE, tmp_path / "out"]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "saving\n"
    (theirs,) = tmp_path.glob(".out.saving-*")
    save_params(tmp_path / "out", draw(), WEIGHTS)
    assert (theirs / "model.safetensors").exists()
    other.send_signal(signal.SIGKILL)
    other.communicate()
    save_params(tmp_path / "out2", draw(), WEIGHTS)
    assert theirs.exists(), "it is another folder's"
    (tmp_path / "out").rename(tmp_path / "moved")
    save_params(tmp_path / "out", draw(), WEIGHTS)
    assert not theirs.exists()
