"""The shapes of a run's batches, without its data.

Where the run's tokenizer is there, it is asked. Where it is not, a stand-in with the size of the
model's vocabulary is: shapes depend on no more, but for the prefixes of denoisers, which are then
taken for one token each.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from xformer.buckets import is_in_bucket
from xformer.data.manifest import read_manifest
from xformer.data.mixture import Mixture
from xformer.data.packing import Batch, Row, expand_row
from xformer.data.pipeline import PreparedData, read_tokenizer
from xformer.data.tasks import (
    MultipleChoiceData,
    QuestionAnsweringData,
    SequenceToSequenceData,
    TaskData,
    TokenClassificationData,
)
from xformer.data.text_files import PairData
from xformer.layers.heads import MULTI_LABEL, REGRESSION, SequenceClassification
from xformer.tokenization.base import PreTrainedTokenizerBase
from xformer.training.config import Run

CHOICES = 4
"""Choices of a task whose files say how many there are."""


def batch_shapes(run: Run, length: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Says what a batch of a run's training data looks like.

    Args:
        run: The run.
        length: Tokens of a row, for prepared corpora that are not here; all other data say it.

    Returns:
        The shape and type of every array of a batch by name.

    Raises:
        ValueError: if the length is neither known nor given, or both and they differ.
    """
    row = _row(run, _length(run, length))
    if not isinstance(run.train_data, TaskData):
        transform = run.objective.transform(_tokenizer(run))
        if transform is not None:
            row = transform(row, np.random.default_rng(0))
    return {
        name: jax.ShapeDtypeStruct((run.batch_size, *array.shape), array.dtype)
        for name, array in row.items()
    }


def _length(run: Run, given: int | None) -> int:
    data = run.train_data
    kind = type(data).__name__
    known: int | None = getattr(data, "length", None)
    if paths := _prepared(run):
        kind = f"{kind} {paths[0]}"
        if Path(paths[0]).is_dir():
            known = read_manifest(Path(paths[0])).settings.length
    if given is None and known is None:
        raise ValueError(
            f"the corpus of {kind} is not here, so nothing says how long its rows are: pass "
            "--length"
        )
    if given is None or given == known:
        return int(known or 0)
    if known is not None:
        raise ValueError(
            f"--length={given} is for prepared corpora that are not here, and the rows of {kind} "
            f"have {known} tokens; leave it out"
        )
    if given < 2:
        raise ValueError(f"--length must be at least 2, got {given}")
    return given


def _prepared(run: Run) -> list[str]:
    """Where the prepared corpora are that a run is trained on."""
    data = run.train_data
    if isinstance(data, Mixture):
        return list(data.sources.values())
    return [data.path] if isinstance(data, PreparedData) else []


def _tokenizer(run: Run) -> PreTrainedTokenizerBase:
    if any(map(is_in_bucket, _prepared(run))):  # Planning asks nobody.
        return _StandIn(run.model.vocab_size)  # type: ignore[abstract]
    try:
        return read_tokenizer(run.train_data)
    except FileNotFoundError:
        return _StandIn(run.model.vocab_size)  # type: ignore[abstract]


def _row(run: Run, length: int) -> Batch:
    """One row of the data, before the objective changes it."""
    data, head = run.train_data, run.head
    if not isinstance(data, TaskData | PairData):
        ids = np.full(length, _StandIn.ORDINARY)
        return expand_row(Row(ids, np.array([length], np.uint32)), length, _StandIn.PAD)
    tokens = np.ones(length, np.int32)
    names = ["input_ids", "attention_mask"]
    if hasattr(run.model, "type_vocab_size"):
        names.append("token_type_ids")
    row = dict.fromkeys(names, tokens)
    one = np.zeros((), np.int32)
    match data, head:
        case PairData(), _:
            return {**row, "next_sentence_label": one}
        case SequenceToSequenceData(), _:
            written = np.ones(data.most_target_tokens, np.int32)
            decoder = ("decoder_input_ids", "decoder_attention_mask", "labels")
            return {**row, **dict.fromkeys(decoder, written)}
        case TokenClassificationData(), _:
            return {**row, "labels": tokens}
        case QuestionAnsweringData(), _:
            return {**row, "start_positions": one, "end_positions": one}
        case MultipleChoiceData(), _:
            choices = len(data.choices) if len(data.choices) > 1 else CHOICES
            return {**{name: np.stack([tokens] * choices) for name in row}, "labels": one}
        case _, SequenceClassification(problem_type=kind, labels=labels):
            several = np.zeros(len(labels), np.float32 if kind == REGRESSION else np.int32)
            return {**row, "labels": several if kind in (MULTI_LABEL, REGRESSION) else one}
    raise ValueError(f"no rows are known of {type(data).__name__} with {type(head).__name__}")


class _StandIn(PreTrainedTokenizerBase):
    """What objectives ask of a tokenizer, for a vocabulary of which nothing but the size is known.

    Its last ids are sentinels, as many as T5 has.
    """

    PAD, EOS, MASK, ORDINARY = 0, 1, 2, 3
    SENTINELS = 100
    name_or_path = "the model's vocabulary"

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    mask_token_id = MASK
    pad_token_id = PAD
    eos_token_id = EOS
    all_special_ids = [PAD, EOS, MASK]

    @property
    def sentinel_token_ids(self) -> tuple[int, ...]:
        return tuple(range(max(3, self._size - self.SENTINELS), self._size))

    def word_starts(self) -> np.ndarray:
        starts = np.ones(self._size, np.bool_)
        starts[self.all_special_ids] = False
        return starts

    def encode(self, text: str, **_: Any) -> list[int]:  # type: ignore[override]
        return [self.ORDINARY] if text else []

    def required_id(self, role: str) -> int:
        return getattr(self, f"{role}_id")


_StandIn.__abstractmethods__ = frozenset()  # objectives ask for no more than the above
