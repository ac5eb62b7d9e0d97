"""Relative biases: the published buckets, one value along each diagonal, places in a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xformer.layers.relative_bias import RelativeBias, diagonals, relative_buckets

N = 3
SIZES = {"num_buckets": 8, "max_distance": 20}


@pytest.mark.reference
@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("buckets, farthest", [(32, 128), (8, 20), (6, 9)])
def test_buckets_are_the_published_ones(is_decoder, buckets, farthest):
    import torch
    import transformers
    from transformers.models.umt5.modeling_umt5 import UMT5Attention

    config = transformers.UMT5Config(
        d_model=8,
        num_heads=2,
        is_decoder=is_decoder,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=farthest,
    )
    theirs = UMT5Attention(config, True, 0)._relative_position_bucket(torch.arange(-4000, 4001))
    ours = relative_buckets(
        4001, num_buckets=buckets, max_distance=farthest, bidirectional=not is_decoder
    )
    np.testing.assert_array_equal(ours, theirs.numpy())


def bias(bidirectional=True):
    module = RelativeBias(N, **SIZES, bidirectional=bidirectional)
    return module, module.init(jax.random.key(0), 4, 4)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("length, keys", [(5, 5), (3, 7), (7, 3), (1, 1), (1, 6)])
def test_bias_is_that_of_the_bucket_of_each_distance(bidirectional, length, keys):
    module, variables = bias(bidirectional)
    got = module.apply(variables, length, keys).materialize(length)
    table = np.asarray(jax.tree.leaves(variables)[0])
    places = max(length, keys)
    buckets = relative_buckets(places, **SIZES, bidirectional=bidirectional)
    behind = np.arange(keys)[None] - np.arange(length)[:, None]
    expected = np.moveaxis(table[buckets[behind + places - 1]], -1, 0)[None]
    np.testing.assert_array_equal(got, expected)


def test_queries_behind_a_cache_have_the_rows_of_their_places():
    module, variables = bias(bidirectional=False)
    whole = module.apply(variables, 9, 9).materialize(9)

    def biases(length, start):
        return module.apply(variables, length, 9, start).materialize(length)

    for start, length in ((0, 4), (3, 2), (8, 1)):
        rows = jax.jit(lambda at, n=length: biases(n, at))(jnp.int32(start))
        np.testing.assert_array_equal(rows, whole[:, :, start : start + length])


def test_gradient_of_a_bucket_sums_its_distances():
    module, variables = bias()
    grad = jax.grad(lambda v: module.apply(v, 6, 5).materialize(6).sum())(variables)
    behind = np.arange(5)[None] - np.arange(6)[:, None]
    buckets = relative_buckets(6, **SIZES, bidirectional=True)[behind + 5]
    counts = np.bincount(buckets.ravel(), minlength=SIZES["num_buckets"])
    np.testing.assert_array_equal(jax.tree.leaves(grad)[0], np.repeat(counts[:, None], N, 1))


def test_diagonals_run_from_the_lower_left_to_the_upper_right():
    expected = [[[2, 3, 4, 5], [1, 2, 3, 4], [0, 1, 2, 3]]]
    np.testing.assert_array_equal(diagonals(jnp.arange(6.0)[None], 3), expected)
