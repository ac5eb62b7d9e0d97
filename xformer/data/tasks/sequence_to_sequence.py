"""Texts that are written after reading others: translation, summaries, text to text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from xformer.data.packing import Batch
from xformer.data.tasks.base import Outputs, Prediction, TaskData
from xformer.data.tasks.opened import OpenedTask
from xformer.data.tasks.rows import Row, Table, read_table
from xformer.data.tasks.sides import Side
from xformer.data.tasks.tokens import task_tokenizer
from xformer.layers.heads import ConditionalGeneration, Head
from xformer.losses import IGNORED
from xformer.metrics import generation
from xformer.tokenization.base import PreTrainedTokenizerBase

CUT, LEAVE_OUT, REFUSE = "cut", "leave_out", "refuse"


@dataclass(frozen=True)
class SequenceToSequenceData(TaskData):
    """Sources with targets: the encoder reads the one, the decoder writes the other.

    `length` is the most tokens of a source, `prefix` and end token with it. Scores are of whole
    texts, which the model writes by itself. Further fields: see `TaskData`.

    Attributes:
        source: column of the text to read.
        target: column of the text to write.
        references: column of a list of texts that are right, for scores; the target is right too.
            Where it is the column of the target, its first text is the target. None: one text only.
        prefix: stands before every source, such as "translate English to German: ".
        target_length: most tokens of a target, its end token with it; None is `length`.
        too_long: what becomes of an example with a longer source or target: "cut" cuts it (what is
            cut off a target is not learned, but counts in scores), "leave_out" leaves it out of the
            rows and of predictions, "refuse" names it. Evaluations say how many there are.
        max_new_tokens: most tokens that are written for predictions; None is `target_length`.
        num_beams: sequences that beam search follows; 1 takes the likeliest token every time.
        length_penalty: of beams alone, above 0 for longer texts; see
            `xformer.generation.decoding.Beams`.
        metrics: which scores are computed, of "bleu", "chrf", "rouge" and "exact_match".
        bleu_tokenizer: how sacreBLEU finds words: "13a", "intl", "zh", "char" or "none".
        rouge_stemming: whether ROUGE compares English words without their endings.
    """

    source: str = "source"
    target: str = "target"
    references: str | None = None
    prefix: str = ""
    target_length: int | None = None
    too_long: str = CUT
    max_new_tokens: int | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    metrics: tuple[str, ...] = generation.METRICS
    bleu_tokenizer: str = "13a"
    rouge_stemming: bool = False

    head_class: ClassVar[type] = ConditionalGeneration
    prediction_fields: ClassVar[tuple[str, ...]] = (
        *TaskData.prediction_fields,
        "references",
        "max_new_tokens",
        "num_beams",
        "length_penalty",
        "metrics",
        "bleu_tokenizer",
        "rouge_stemming",
    )

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        super().__post_init__()
        key = type(self).__name__
        for name, least in (("target_length", 2), ("max_new_tokens", 1), ("num_beams", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{key}.{name} must be at least {least}, got {value}")
        if self.num_beams == 1 and self.length_penalty != 1.0:
            raise ValueError(
                f"{key}.length_penalty={self.length_penalty} is for beams: set {key}.num_beams "
                "above 1, or leave it out"
            )
        ways = (CUT, LEAVE_OUT, REFUSE)
        if self.too_long not in ways:
            raise ValueError(f"{key}.too_long must be one of {ways}, got {self.too_long!r}")
        if unknown := [name for name in self.metrics if name not in generation.METRICS]:
            raise ValueError(f"{key}.metrics must be of {generation.METRICS}, got {unknown}")
        if self.bleu_tokenizer not in generation.BLEU_TOKENIZERS:
            raise ValueError(
                f"{key}.bleu_tokenizer must be one of {generation.BLEU_TOKENIZERS}, got "
                f"{self.bleu_tokenizer!r}"
            )

    @property
    def most_target_tokens(self) -> int:
        """Most tokens of a target that the decoder learns."""
        return self.length if self.target_length is None else self.target_length

    @property
    def most_new_tokens(self) -> int:
        """Most tokens that are written for a prediction."""
        return self.most_target_tokens if self.max_new_tokens is None else self.max_new_tokens

    def open(self, head: Head, *, labelled: bool = True) -> "SequenceToSequenceTask":
        """Reads, checks and tokenizes the files; see `TaskData.open`.

        Args:
            head: a `ConditionalGeneration`.
            labelled: whether the files have targets.

        Returns:
            The task.
        """
        self.check_head(head)
        assert isinstance(head, ConditionalGeneration)
        key = type(self).__name__
        if labelled:
            generation.require(self.metrics)
        tokenizer = task_tokenizer(self.tokenizer, self.length, key, pair=False)
        _check_end(tokenizer, key)
        optional = (*((self.target, self.references) if labelled else ()), self.id)
        table = read_table(self.files, [self.source, *filter(None, optional)], key)

        def parse(row: Row) -> tuple[str, tuple[str, ...]]:
            return self.prefix + row.text(self.source), self._right(row) if labelled else ()

        sources, right = zip(*table.examples(parse, name=self.id), strict=True)
        sides = [Side(tokenizer, sources, self.length)]
        if labelled:
            targets = [texts[0] for texts in right]
            sides.append(Side(tokenizer, targets, self.most_target_tokens))
        kept = self._kept(table, sides)
        return SequenceToSequenceTask(self, head, table, sides, right, kept)

    def _right(self, row: Row) -> tuple[str, ...]:
        """The target of a row, and behind it all other texts that are right."""
        if self.references is None:
            if isinstance(row.values[self.target], list):
                raise ValueError(
                    f"column {self.target!r} holds a list; if all of its texts are right, set "
                    f"{type(self).__name__}.references = {self.target!r} (the first is learned)"
                )
            return (row.text(self.target),)
        listed = row.texts(self.references)
        if not all(text.strip() for text in listed):
            raise ValueError(f"column {self.references!r} must not hold empty texts")
        if self.references != self.target:
            return (row.text(self.target), *listed)
        if not listed:
            raise ValueError(f"column {self.target!r} must hold at least one text, got []")
        return tuple(listed)

    def _kept(self, table: Table, sides: Sequence["Side"]) -> list[int]:
        """The numbers of the examples that become rows."""
        key = type(self).__name__
        longest = {number: (side.length, size) for side in sides for number, size in side.long}
        if longest and self.too_long == REFUSE:
            number = min(longest)
            most, size = longest[number]
            raise ValueError(
                f"{len(longest)} of {len(table.rows)} examples are too long, the first "
                f"{table.rows[number].place}: {size} tokens, and the most are {most}; set "
                f"{key}.length and target_length, or too_long = {CUT!r} or {LEAVE_OUT!r}"
            )
        if self.too_long != LEAVE_OUT:
            return list(range(len(table.rows)))
        kept = [number for number in range(len(table.rows)) if number not in longest]
        if not kept:
            raise ValueError(
                f"all {len(table.rows)} examples are too long; set {key}.length and target_length"
            )
        return kept


class SequenceToSequenceTask(OpenedTask[SequenceToSequenceData, ConditionalGeneration]):
    """Sources with targets.

    Its outputs are what the model writes: `sequences`, which begin with the decoder's start token.

    Attributes:
        too_long: how many sources and targets are longer than rows.
    """

    fields: tuple[str, ...] = ("sequences",)

    def __init__(
        self,
        data: SequenceToSequenceData,
        head: ConditionalGeneration,
        table: Table,
        sides: Sequence[Side],
        right: Sequence[tuple[str, ...]],
        kept: Sequence[int],
    ) -> None:
        """Holds what was read.

        Args:
            data: the config.
            head: the head.
            table: the files' rows.
            sides: the sources and, where the files have some, the targets as tokens.
            right: the texts that are right for each example, uncut.
            kept: the numbers of the examples that are rows.
        """
        super().__init__(
            data, head, table, sides[0].rows(kept), labels={}, labelled=len(sides) == 2
        )
        self._names = [self._names[number] for number in kept]
        self._right = [right[number] for number in kept]
        self._decoder = sides[1].rows(kept) if len(sides) == 2 else None
        names = ("sources_too_long", "targets_too_long")
        self.too_long = {name: len(side.long) for name, side in zip(names, sides, strict=False)}

    def fingerprint(self) -> dict[str, Any]:
        """Describes everything that decides the rows.

        Returns:
            A JSON object; how many texts are too long is in it.
        """
        return super().fingerprint() | self.too_long

    def _tokens_of(self, index: int) -> Batch:
        written = None if self._decoder is None else self._decoder.row(index)
        return self._both(super()._tokens_of(index), written)

    def _no_tokens(self) -> Batch:
        written = None if self._decoder is None else self._decoder.padding()
        return self._both(super()._no_tokens(), written)

    def _both(self, row: Batch, written: Batch | None) -> Batch:
        """A row of the encoder with what the decoder reads and what it learns to write."""
        if written is None:
            return row
        ids, mask = written["input_ids"], written["attention_mask"]
        start = self._tokens.tokenizer.required_id("pad_token")
        return {
            **row,
            "decoder_input_ids": np.concatenate([[start], ids[:-1]]).astype(np.int32),
            "decoder_attention_mask": mask,
            "labels": np.where(mask == 1, ids, IGNORED).astype(np.int32),
        }

    def _read(self, outputs: Outputs) -> list[Prediction]:
        tokenizer = self._tokens.tokenizer
        end = tokenizer.required_id("eos_token")
        return [
            {"text": tokenizer.decode(list(_until(ids, end)), skip_special_tokens=True).strip()}
            for ids in outputs["sequences"][:, 1:].tolist()
        ]

    def _score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        found = generation.scores(
            self._right,
            [one["text"] for one in predictions],
            self.data.metrics,
            bleu_tokenizer=self.data.bleu_tokenizer,
            rouge_stemming=self.data.rouge_stemming,
        )
        return found | {name: float(count) for name, count in self.too_long.items() if count}


def _until(ids: Sequence[int], end: int) -> Iterator[int]:
    """The tokens before an end token."""
    for one in ids:
        if one == end:
            return
        yield one


def _check_end(tokenizer: PreTrainedTokenizerBase, key: str) -> None:
    """Refuses tokenizers that do not say where a text ends, which the decoder could not learn."""
    end = tokenizer.required_id("eos_token")
    if tokenizer.encode("a")[-1] != end:
        raise ValueError(
            f"{key}.tokenizer must end texts in its eos_token, as those of the umt5 family do; "
            f"{tokenizer.name_or_path} does not"
        )
