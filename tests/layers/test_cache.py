"""The cache: where new tokens land, and refusal of tokens that have no room."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xformer.layers.cache import Cache, LayerCache


def tokens(*values):
    """Keys of one row and one head of width 1."""
    return jnp.asarray(values, jnp.float32).reshape(1, -1, 1, 1)


def cache(length=0, max_length=4, layers=2):
    empty = Cache.empty(
        num_layers=layers,
        batch=3,
        max_length=max_length,
        heads=2,
        head_dim=5,
        dtype=jnp.dtype("bfloat16"),
    )
    return empty.replace(length=jnp.int32(length))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_append_writes_behind_what_is_stored(wrap):
    layer = LayerCache.of(tokens(1, 2, 0, 0, 0), tokens(5, 6, 0, 0, 0))
    layer = wrap(LayerCache.append)(layer, LayerCache.of(tokens(3, 4), tokens(7, 8)), jnp.int32(2))
    np.testing.assert_array_equal(layer.key_BSNH, tokens(1, 2, 3, 4, 0))
    np.testing.assert_array_equal(layer.value_BSNH, tokens(5, 6, 7, 8, 0))


def test_append_keeps_the_cache_dtype():
    layer = LayerCache.of(tokens(0, 0).astype(jnp.bfloat16), tokens(0, 0).astype(jnp.bfloat16))
    layer = layer.append(LayerCache.of(tokens(1), tokens(2)), jnp.int32(1))
    assert layer.key_BSNH.dtype == layer.value_BSNH.dtype == jnp.bfloat16


def test_empty_cache_has_room_and_no_tokens():
    empty = cache()
    assert len(empty.layers) == 2 and empty.max_length == 4 and int(empty.length) == 0
    for leaf in jax.tree.leaves(empty.layers):
        assert leaf.shape == (3, 2, 4, 5) and leaf.dtype == jnp.bfloat16 and not leaf.any()


def test_check_room_accepts_up_to_the_end():
    cache(length=3).check_room(1)
    cache().check_room(4)


@pytest.mark.parametrize("length, new", [(3, 2), (4, 1), (0, 5)])
def test_check_room_refuses_more(length, new):
    message = f"max_length=4 holds {length} tokens and cannot take {new} more; make it longer"
    with pytest.raises(ValueError, match=message):
        cache(length).check_room(new)


def test_check_room_under_jit_refuses_what_never_fits():
    def step(cache, new):
        cache.check_room(new)
        return cache.length

    jax.jit(step, static_argnums=1)(cache(length=4), 4)  # the length is not known: accepted
    with pytest.raises(ValueError, match="cannot take 5 more"):
        jax.jit(step, static_argnums=1)(cache(), 5)
