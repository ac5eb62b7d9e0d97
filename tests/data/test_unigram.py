import shutil
from pathlib import Path

import numpy as np
import pytest

from xformer.data.pipeline import PreparedData, open_batches
from xformer.data.unigram import read_unigram_counts, unigram_perplexity


def test_counts_are_those_of_the_targets_in_the_batches(prepared_folder):
    config = PreparedData(prepared_folder)
    counts = np.zeros(2008, np.int64)
    for batch in open_batches(config, batch_size=8, seed=0, epochs=1):
        predicted = batch["position_ids"] > 0
        np.add.at(counts, batch["input_ids"][predicted], 1)
    np.testing.assert_array_equal(read_unigram_counts(config), counts)


def test_perplexity_of_equal_frequencies_is_the_number_of_ids():
    counts = np.full(8, 1000)
    assert unigram_perplexity(counts, np.arange(8)) == pytest.approx(8.0)


def test_perplexity_is_that_of_the_smoothed_frequencies():
    # (3 + 1) / 8, (1 + 1) / 8, (0 + 1) / 8, (0 + 1) / 8
    train, validation = np.array([3, 1, 0, 0]), np.array([2, 0, 1, 1])
    assert unigram_perplexity(train, validation) == pytest.approx((2 * 2 * 8 * 8) ** 0.25)


def test_unusable_counts_are_refused():
    with pytest.raises(ValueError, match="must have one vocabulary, got 3 and 4 ids"):
        unigram_perplexity(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="at least one token to predict"):
        unigram_perplexity(np.ones(3), np.zeros(3))


def test_damaged_counts_are_refused(tmp_path, prepared_folder):
    folder = Path(shutil.copytree(prepared_folder, tmp_path / "corpus"))
    size = (folder / "unigram_counts.npy").stat().st_size
    np.save(folder / "unigram_counts.npy", np.zeros(2008, np.float64))
    assert (folder / "unigram_counts.npy").stat().st_size == size
    with pytest.raises(ValueError, match=r"must hold int64 \[2008\], got float64 \[2008\]"):
        read_unigram_counts(PreparedData(str(folder)))
