"""The unigram baseline: how well token frequencies alone predict."""

import io

import numpy as np

from xformer.buckets import open_folder
from xformer.data.manifest import UNIGRAM_FILE, check_files, read_manifest
from xformer.data.pipeline import PreparedData


def read_unigram_counts(data: PreparedData) -> np.ndarray:
    """Reads how often each id is the target of a prediction in a prepared corpus.

    A causal model predicts every token but the first of each segment, so those are not counted.

    Args:
        data: the corpus.

    Returns:
        int64 counts `[vocab_size]`.

    Raises:
        FileNotFoundError: there is no corpus.
        ValueError: it is damaged.
    """
    folder = open_folder(data.path, "PreparedData.path")
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    counts = np.load(io.BytesIO((folder / UNIGRAM_FILE).read_bytes()), allow_pickle=False)
    if counts.shape != (manifest.tokenizer.vocab_size,) or counts.dtype != np.int64:
        raise ValueError(
            f"{folder / UNIGRAM_FILE} must hold int64 [{manifest.tokenizer.vocab_size}], got "
            f"{counts.dtype} {list(counts.shape)}; prepare the corpus again"
        )
    return counts


def unigram_perplexity(train_counts: np.ndarray, validation_counts: np.ndarray) -> float:
    """Gives the perplexity of the training frequencies, add-one smoothed, on other data.

    Args:
        train_counts: target counts of the training data `[vocab_size]`.
        validation_counts: target counts of the data to predict `[vocab_size]`.

    Returns:
        exp of the mean negative log-likelihood of a target.

    Raises:
        ValueError: the vocabularies differ, or there is nothing to predict.
    """
    if train_counts.shape != validation_counts.shape:
        raise ValueError(
            "training and validation data must have one vocabulary, got "
            f"{train_counts.size} and {validation_counts.size} ids; set both to one tokenizer"
        )
    if not validation_counts.sum():
        raise ValueError("validation data must hold at least one token to predict")
    log_probability = np.log(train_counts + 1.0) - np.log(train_counts.sum() + train_counts.size)
    return float(np.exp(-(validation_counts @ log_probability) / validation_counts.sum()))
