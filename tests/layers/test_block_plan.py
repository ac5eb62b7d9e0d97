"""Random blocks: those recorded from the published code, and what holds for all of them."""

import json

import numpy as np
import pytest

from xformer.layers.block_plan import _permutations, is_sparse, random_blocks


def plan(length, **changes):
    fields = {"block_size": 64, "num_random_blocks": 3, "num_heads": 2, "layer": 0}
    return random_blocks(length, **fields | {"max_position_embeddings": 4096} | changes)


def test_plan_is_the_recorded_one(parity_folder):
    recorded = json.loads((parity_folder / "random_plan.json").read_text())["torch"]
    assert len(recorded) > 10
    for case in recorded:
        found = random_blocks(
            case["seq_len"],
            block_size=case["block_size"],
            num_random_blocks=case["num_random_blocks"],
            num_heads=case["num_heads"],
            layer=case["np_seed_is_layer_index"],
            max_position_embeddings=case["max_position_embeddings"],
        )
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found[:, 1:-1], case["train_rand_attn"])


@pytest.mark.parametrize("size", [1, 2, 7, 16, 17, 300])
def test_permutations_drawn_together_are_those_drawn_one_by_one(size):
    together, single = np.random.RandomState(3), np.random.RandomState(3)
    found = _permutations(together, 50, size)
    np.testing.assert_array_equal(found.T, [single.permutation(size) for _ in range(50)])
    assert together.randint(2**31) == single.randint(2**31)  # as many numbers were drawn


@pytest.mark.parametrize("length", [1024, 2048, 3072, 4096])
def test_plan_of_listed_length_is_cut_from_one_long_table(length):
    whole = plan(4096)
    np.testing.assert_array_equal(plan(length)[:, 1:-1], whole[:, 1 : length // 64 - 1])
    assert whole.max() <= 1024 // 64 - 1  # random blocks lie among the first 1024 tokens


def test_plan_of_listed_length_beyond_the_table_is_drawn_like_others():
    drawn = plan(2048, max_position_embeddings=1024)
    assert (drawn[:, 1:-1] != plan(2048)[:, 1:-1]).any()
    assert drawn.max() <= 5 + 2 * 3 - 2


@pytest.mark.parametrize("length", [1024, 2048, 3072, 4096])
def test_plan_of_listed_length_is_that_of_4096_positions_where_there_are_more(length):
    longer = plan(length, max_position_embeddings=8192)
    np.testing.assert_array_equal(longer, plan(length))


@pytest.mark.parametrize("length, random", [(768, 3), (8192, 3), (512, 1), (65536, 2)])
def test_plan_adds_blocks_that_neither_window_nor_global_blocks_bring(length, random):
    table = plan(length, num_random_blocks=random)
    last = length // 64 - 1
    for head in table:
        for row in range(1, last):
            chosen = set(head[row])
            assert len(chosen) == random
            assert not chosen & {0, row - 1, row, row + 1, last}
    assert not table[:, [0, last]].any()


def test_plan_differs_by_layer_and_head_and_leaves_numpys_state_alone():
    before = np.random.get_state()[1].copy()
    first, second = plan(8192), plan(8192, layer=1)
    assert (first != second).any() and (first[0] != first[1]).any()
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_plan_is_shared_and_cannot_be_written():
    assert plan(8192) is plan(8192)
    with pytest.raises(ValueError, match="read-only"):
        plan(8192)[0, 1, 0] = 1


def test_plan_of_no_random_blocks_is_empty():
    assert plan(1024, num_random_blocks=0).shape == (2, 16, 0)


def test_sequence_is_sparse_above_five_blocks_and_two_per_random_block():
    assert is_sparse(705, 64, 3) and not is_sparse(704, 64, 3)
    assert is_sparse(321, 64, 0) and not is_sparse(320, 64, 0)


@pytest.mark.parametrize(
    "length, message",
    [
        (1000, "length=1000 to be a multiple of block_size=64"),
        (704, "needs more than 704 tokens, got length=704; use dense attention"),
    ],
)
def test_plan_refuses_lengths_that_have_none(length, message):
    with pytest.raises(ValueError, match=message):
        plan(length)
