"""Checksums: the same for every layout, different for every change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from xformer.partitioning import MeshConfig, make_mesh
from xformer.training.fingerprint import array_checksum, tree_checksums

RNG = np.random.default_rng(0)
DTYPES = ["float32", "bfloat16", "float16", "int32", "uint8", "int8", "bool", "uint16"]
checksum = jax.jit(array_checksum)


def value(x):
    return tuple(int(lane) for lane in checksum(x))


def sample(dtype, shape=(8, 4, 6)):
    if dtype == "bool":
        return RNG.integers(0, 2, shape).astype(bool)
    kind = np.dtype(jnp.dtype(dtype))
    return RNG.integers(0, 256, (*shape, kind.itemsize), np.uint8).view(kind)[..., 0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_does_not_depend_on_the_layout(dtype):
    x = jnp.asarray(RNG.normal(size=(8, 4, 6)), dtype)
    expected = value(x)
    for sizes in [(8, 1, 1), (2, 4, 1), (2, 2, 2)]:
        mesh = make_mesh(MeshConfig(*sizes))
        for spec in [
            PartitionSpec(),
            PartitionSpec("data"),
            PartitionSpec("fsdp", "tensor"),
            PartitionSpec(("data", "fsdp")),
        ]:
            assert value(jax.device_put(x, NamedSharding(mesh, spec))) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_flipped_bit_is_noticed(dtype):
    x = sample(dtype)
    expected = checksum(jnp.asarray(x))
    raw = np.ascontiguousarray(x).view(np.uint8).ravel()
    places = RNG.choice(raw.size, 40, replace=False)
    # A bool holds one bit; a flip of another makes an array that cannot exist.
    flips = [(place, bit) for place in places for bit in range(1 if dtype == "bool" else 8)]
    flipped = np.repeat(raw[None], len(flips), axis=0)
    for row, (place, bit) in zip(flipped, flips, strict=True):
        row[place] ^= np.uint8(1 << bit)
    variants = jnp.asarray(flipped.view(x.dtype).reshape(len(flips), *x.shape))
    lanes = np.asarray(jax.jit(jax.vmap(array_checksum))(variants))
    assert (lanes != np.asarray(expected)).all()  # each lane notices by itself


def test_moved_content_is_noticed():
    x = np.asarray(RNG.normal(size=(8, 16)), np.float32)
    expected = value(jnp.asarray(x))
    swapped = x.copy()
    swapped[[0, 5], [3, 9]] = x[[5, 0], [9, 3]]
    within = x.copy()
    within[3, [2, 7]] = x[3, [7, 2]]
    rows = x[[1, 0, *range(2, 8)]]
    page = x.copy()
    page[2:4] = 0.0  # a page that was never written
    shifted = np.roll(x, 1)
    changed = [swapped, within, rows, page, shifted, x[::-1].copy(), x.T.copy(), np.zeros_like(x)]
    values = {value(jnp.asarray(one)) for one in changed}
    assert len(values) == len(changed) and expected not in values


def test_zeros_of_both_signs_and_nan_payloads_differ():
    bits = np.array([0x00000000, 0x80000000, 0x7FC00000, 0x7FC00001], np.uint32)
    values = {value(jnp.asarray(word[None].view(np.float32))) for word in bits}
    assert len(values) == 4


def test_keys_have_the_checksum_of_their_data():
    key = jax.random.key(3)
    assert value(key) == value(jax.random.key_data(key)) != value(jax.random.key(4))


def test_tree_is_summed_up_by_path():
    tree = {"a": {"b": jnp.ones((3,))}, "c": (jnp.int32(1), jnp.zeros((0, 2)))}
    sums = tree_checksums(tree)
    assert set(sums) == {"a/b", "c/0", "c/1"}
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in sums.values())
    other = tree_checksums(tree | {"c": (jnp.int32(2), jnp.zeros((0, 2)))})
    assert {path for path in sums if sums[path] != other[path]} == {"c/0"}


def test_value_stays_what_saved_checkpoints_hold():
    # Changing the function would make every checkpoint that exists look damaged.
    assert tree_checksums(jnp.arange(6, dtype=jnp.float32)) == {"": "7c200000e0e00000"}
