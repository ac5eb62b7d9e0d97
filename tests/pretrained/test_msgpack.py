"""Flax's msgpack files: the same bytes as Flax writes, and nothing else is read."""

import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization, traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st

from xformer.pretrained import msgpack_writing
from xformer.pretrained.msgpack_reading import MsgpackFile
from xformer.pretrained.msgpack_writing import Entry, write_tree

RNG = np.random.default_rng(0)
TREE = {
    "layers": {
        str(i): {
            "kernel": RNG.normal(size=(7, 5)).astype(np.float32),
            "scale": RNG.normal(size=300).astype(np.float16),
        }
        for i in range(20)  # more than a short map has room for
    },
    "a name that is longer than the thirty-one bytes of a short text": {
        "table": RNG.normal(size=(200, 100)).astype(ml_dtypes.bfloat16),
        "wide": RNG.normal(size=(70000, 2)).astype(np.float64),
        "scalar": np.array(3.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "one": np.ones(1, np.int8),
        "a" * 31: np.ones(2, np.uint8),
        "b" * 32: np.ones(2, np.uint8),
    },
}


def flax_bytes(tree):
    """What Flax writes for a tree with sorted keys, as JAX makes them."""
    return serialization.to_bytes(jax.tree.map(lambda leaf: leaf, tree))


def written(tree, path):
    entries = [
        Entry(where, leaf.shape, leaf.dtype, lambda leaf=leaf: iter(np.array_split(leaf, 3)))
        if leaf.ndim
        else Entry(where, leaf.shape, leaf.dtype, lambda leaf=leaf: iter([leaf]))
        for where, leaf in traverse_util.flatten_dict(tree).items()
    ]
    with path.open("wb") as file:
        write_tree(file, reversed(entries))
    return path


def read_all(path):
    file = MsgpackFile(path)
    return {name: file.read(name) for name in file.forms}


def test_bytes_are_those_of_flax(tmp_path):
    assert written(TREE, tmp_path / "tree").read_bytes() == flax_bytes(TREE)


def test_what_flax_writes_is_read(tmp_path):
    path = tmp_path / "tree"
    path.write_bytes(flax_bytes(TREE))
    found = read_all(path)
    expected = traverse_util.flatten_dict(TREE, sep="/")
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        assert (found[name].dtype, found[name].shape) == (leaf.dtype, leaf.shape)
        np.testing.assert_array_equal(found[name], leaf)


@pytest.fixture
def small_chunks(monkeypatch):
    """Arrays above 1000 bytes are cut, as those above 2**30 are."""
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 1000)
    monkeypatch.setattr(msgpack_writing, "CHUNK_BYTES", 1000)


def test_chunked_arrays_are_written_and_read_as_flax_does(tmp_path, small_chunks):
    tree = {"a": TREE["layers"]["3"], "table": np.arange(90 * 41, dtype=np.float32).reshape(90, 41)}
    path = written(tree, tmp_path / "tree")
    assert path.read_bytes() == flax_bytes(tree)
    file = MsgpackFile(path)
    assert len(file.forms["table"].pieces) == 15
    np.testing.assert_array_equal(file.read("table"), tree["table"])
    part = (slice(13, 77), slice(5, 9))  # begins and ends inside chunks
    np.testing.assert_array_equal(file.read("table", part), tree["table"][part])


@pytest.mark.parametrize(
    "part", [(slice(0, 0), slice(None)), (slice(3, 5), slice(1, 2)), (slice(None), slice(4, 5))]
)
def test_parts_are_read(tmp_path, part):
    file = MsgpackFile(written(TREE, tmp_path / "tree"))
    expected = TREE["layers"]["4"]["kernel"][part]
    np.testing.assert_array_equal(file.read("layers/4/kernel", part), expected)


def test_only_the_rows_of_a_part_are_read(tmp_path):
    path = written(TREE, tmp_path / "tree")
    file = MsgpackFile(path)
    ((offset, size),) = file.forms["layers/4/kernel"].pieces
    with path.open("r+b") as cut:  # everything after the third row is gone
        cut.truncate(offset + 3 * size // 7)
    rows = file.read("layers/4/kernel", (slice(1, 3), slice(None)))
    np.testing.assert_array_equal(rows, TREE["layers"]["4"]["kernel"][1:3])
    with pytest.raises(ValueError, match="layers/4/kernel ends early; the file was cut short"):
        file.read("layers/4/kernel")


def array(shape=(2,), dtype="float32", data=bytes(8), code=1):
    return msgpack.ExtType(code, msgpack.packb((list(shape), dtype, data)))


CHUNKED = "__msgpack_chunked_array__"


@pytest.mark.parametrize(
    "content, message",
    [
        ({"a": array(code=2)}, "an extension of type 2; only arrays, type 1, are read"),
        ({"a": array(code=3)}, "an extension of type 3"),
        ({"a": array(code=42)}, "an extension of type 42"),
        ({"a": array(shape=(3,))}, r"an array \(3,\) of float32 that is not 12 bytes long"),
        ({"a": array(shape=(2**62, 2**62))}, "that is not .* bytes long"),
        ({"a": array(dtype="object")}, "an array of dtype 'object'; known are"),
        ({"a": array(dtype="V2")}, "an array of dtype 'V2'; known are"),
        ({"a": array(shape=[1] * 9)}, "whose shape is not of at most 8 sizes"),
        ({"a": array(shape=[-1])}, "an array of dtype"),
        ({"a": msgpack.ExtType(1, msgpack.packb([1, 2]))}, r"not \(shape, dtype, bytes\)"),
        ({"a": msgpack.ExtType(1, msgpack.packb(([2], "float32", bytes(8))) + b"x")}, "bytes long"),
        ({"a": "text"}, "an object of msgpack type 0xa4"),
        ({"a": None}, "an object of msgpack type 0xc0"),
        ({"a": [1]}, "an object of msgpack type 0x91"),
        ({"a": 1}, "a must hold arrays, got 1"),
        ({"a": True}, "a must hold arrays, got True"),
        (array(), "the file must hold arrays"),
        ([array()], "an object of msgpack type 0x91"),
        ({"a/b": array()}, "has the key 'a/b' twice, or it is empty or has a slash"),
        ({"": array()}, "has the key ''"),
        ({"k" * 257: array()}, "has a key that is no text of at most 256 bytes"),
        ({"k" * 200: {"k" * 57: array()}}, "has a key that is no text of at most 56 bytes"),
        ({3: array()}, "has a key that is no text"),
        ({CHUNKED: True, "shape": {"0": 2}}, "the chunks of  do not make up its shape"),
        ({"a": {CHUNKED: True, "shape": {"0": 3}, "chunks": {"0": array()}}}, "the chunks of a"),
        (
            {
                "a": {
                    CHUNKED: True,
                    "shape": {"0": 6},
                    "chunks": {"0": array(), "1": array((4,), "float16")},
                }
            },
            "the chunks of a",
        ),
        ({"a": {CHUNKED: True, "shape": {"1": 2}, "chunks": {"0": array()}}}, "the chunks of a"),
        ({"a": {CHUNKED: True, "shape": {"0": True}, "chunks": {"0": array()}}}, "chunks of a"),
        ({"a": {CHUNKED: True, "shape": {"0": 2}, "chunks": {"0": 5}}}, "the chunks of a"),
        ({"a": {CHUNKED: True, "shape": {"0": 2}, "chunks": array()}}, "the chunks of a"),
    ],
)
def test_what_is_no_tree_of_arrays_is_refused(tmp_path, content, message):
    path = tmp_path / "weights.msgpack"
    path.write_bytes(msgpack.packb(content))
    with pytest.raises(ValueError, match=f"weights.msgpack.*{message}"):
        MsgpackFile(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "ends early"),
        (b"\x81\xa1a", "ends early"),
        (b"\x80\x00", "goes on after its end, at byte 1"),
        (b"\x82\xa1a\x80\xa1a\x80", "has the key 'a' twice"),
        (b"\x81\xa1a" * 40 + b"\x80", "more than 40000 objects .* or 32 levels"),
        (b"\xdf\xff\xff\xff\xff", "ends early"),
        (b"\x81\xdb\xff\xff\xff\xff", "has a key that is no text of at most 256 bytes"),
        (b"\x81\xa1\xff\x80", "has a key that is no text"),
        (
            flax_bytes({"a": np.zeros(9, np.float32)})[:-1],
            r"\(9,\) of float32 that is not 36 bytes",
        ),
        (b"version https://git-lfs", "an object of msgpack type|must hold arrays|goes on"),
    ],
)
def test_bytes_that_are_no_tree_are_refused(tmp_path, content, message):
    path = tmp_path / "weights.msgpack"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        MsgpackFile(path)


def test_number_of_objects_is_limited(tmp_path):
    path = written({"layers": TREE["layers"]}, tmp_path / "tree")
    with pytest.raises(ValueError, match="more than 50 objects"):
        MsgpackFile(path, limit=50)


SMALL = serialization.to_bytes({"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}})


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), max_size=4))
def test_mutated_files_are_refused_or_read_within_their_bounds(tmp_path_factory, changes):
    content = bytearray(SMALL)
    for at, value in changes:
        content[at] = value
    path = tmp_path_factory.mktemp("mutated") / "weights.msgpack"
    path.write_bytes(content)
    try:
        file = MsgpackFile(path)
    except ValueError:
        return
    for name, form in file.forms.items():
        assert sum(size for _, size in form.pieces) <= len(content)
        assert file.read(name).shape == form.shape
