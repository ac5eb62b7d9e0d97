"""How a model is computed: only documented values."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from xformer.layers.execution import Execution


@pytest.mark.parametrize(
    "field, value, legal",
    [
        ("dtype", "float64", "'float32', 'bfloat16', 'float16'"),
        ("layers", "unrolled", "'loop', 'scan'"),
        ("remat", "dots", "'none', 'minimal', 'full', 'offload'"),
    ],
)
def test_execution_refuses_other_values(field, value, legal):
    message = rf"Execution\.{field} must be one of \({legal}\), got '{value}'"
    with pytest.raises(ValueError, match=message):
        Execution(**{field: value})


def test_execution_refuses_to_offload_from_unrolled_layers():
    message = r"Execution\.remat='offload' needs Execution\.layers='scan', got 'loop'; set "
    with pytest.raises(ValueError, match=message):
        Execution(remat="offload")


def test_activations_are_offloaded_where_devices_know_such_memory_alone():
    offload = Execution(layers="scan", remat="offload")
    offload.check_devices(jax.devices())
    silent = SimpleNamespace(platform="abacus", addressable_memories=lambda: [])
    offload.check_devices([silent, *jax.devices()])
    offload.check_devices([silent])
    beads = SimpleNamespace(kind="beads")
    device = SimpleNamespace(platform="abacus", addressable_memories=lambda: [beads])
    message = (
        r"Execution\.remat='offload' needs memory of the kind 'pinned_host', and devices of the "
        r"platform 'abacus' have \['beads'\]; set Execution\.remat = 'full'"
    )
    with pytest.raises(ValueError, match=message):
        offload.check_devices([device, silent])
    Execution(layers="scan", remat="full").check_devices([device])


def test_looped_layers_recompute_nothing():
    scanned = Execution("bfloat16", layers="scan", remat="offload", vocabulary_chunk=7)
    assert scanned.looped() == Execution("bfloat16", vocabulary_chunk=7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_compute_dtype_is_that_of_the_name(dtype):
    assert Execution(dtype=dtype).compute_dtype == jnp.dtype(dtype)


def test_execution_refuses_a_negative_chunk():
    message = r"Execution\.vocabulary_chunk must be None, 0 or a number of tokens, got -1"
    with pytest.raises(ValueError, match=message):
        Execution(vocabulary_chunk=-1)


@pytest.mark.parametrize(
    "chunk, vocab_size, expected",
    [
        (None, 99_999, None),
        (None, 100_000, 8192),
        (None, 256_008, 8192),
        (0, 256_008, None),
        (64, 100, 64),
    ],
)
def test_large_vocabularies_are_scored_in_chunks(chunk, vocab_size, expected):
    assert Execution(vocabulary_chunk=chunk).chunk_of(vocab_size) == expected
