import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xformer.layers.attention import AttentionOutput
from xformer.layers.cache import Cache, LayerCache
from xformer.layers.layer import (
    LayerInputs,
    LayerOutputs,
    attentions,
    cross_attentions,
    layer_inputs,
)
from xformer.layers.mask import Mask

READ = LayerCache.of(jnp.ones((1, 4, 2, 3)), jnp.zeros((1, 4, 2, 3)))
OTHER = LayerCache.of(jnp.full((1, 5, 2, 3), 2.0), jnp.zeros((1, 5, 2, 3)))


def attended(read, probabilities=None):
    return AttentionOutput(jnp.zeros((1, 4, 6)), read, probabilities)


def test_each_layer_gets_its_own_part_and_nothing_that_is_not_given():
    keys = list(jax.random.split(jax.random.key(0), 2))
    masks = jnp.arange(4.0).reshape(2, 2)
    cache = Cache((READ, READ), jnp.int32(4), (READ, OTHER))
    first, second = layer_inputs(keys, cache=cache, head_mask=masks, random_blocks=[None, None])
    np.testing.assert_array_equal(second.head_mask_N, [2.0, 3.0])
    assert (first.cross, second.cross) == (READ, OTHER)
    assert (first.key, second.key) == tuple(keys)
    assert second.cross_head_mask_N is None and second.random_blocks_NMR is None
    assert layer_inputs([None] * 3) == [LayerInputs()] * 3


@pytest.mark.parametrize("decodes", [False, True])
@pytest.mark.parametrize("crosses", [False, True])
def test_a_layer_returns_keys_and_values_only_to_extend_a_cache(decodes, crosses):
    cross = attended(OTHER) if crosses else None
    out = LayerOutputs.of(LayerInputs(cache=READ if decodes else None), attended(READ), cross)
    assert out.cache is (READ if decodes else None)
    assert out.cross is (OTHER if decodes and crosses else None)


def test_probabilities_are_collected_where_there_are_some():
    weights, others = jnp.ones((1, 2, 4, 4)), jnp.ones((1, 2, 4, 5))
    plain = LayerOutputs.of(LayerInputs(), attended(READ), attended(OTHER))
    assert attentions([plain] * 2) is None and cross_attentions([plain] * 2) is None
    out = LayerOutputs.of(LayerInputs(), attended(READ, weights), attended(OTHER, others))
    assert attentions([out] * 2) == (weights, weights)
    assert cross_attentions([out] * 2) == (others, others)
    alone = LayerOutputs.of(LayerInputs(), attended(READ, weights))
    assert attentions([alone]) == (weights,) and cross_attentions([alone]) is None


def test_the_mask_of_documented_arguments_reads_keys_above_zero_of_the_queries_documents():
    ones, segments = jnp.array([[1, 1, 0, 1]]), jnp.array([[1, 1, 1, 2]])
    allowed = Mask.of(ones, segments, causal=True).materialize(4, 4)
    expected = [[[[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]]]]
    np.testing.assert_array_equal(allowed, expected)
    crossed = Mask.of(None, segments, jnp.array([[2, 1]])).materialize(4, 2)
    np.testing.assert_array_equal(crossed, [[[[0, 1], [0, 1], [0, 1], [1, 0]]]])
    assert Mask.of(None).materialize(4, 4) is None
