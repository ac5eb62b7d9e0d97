"""Scoring a model on validation data, and collecting its outputs over the rows of a task."""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from xformer import distributed, partitioning
from xformer.data.iterator import BatchIterator
from xformer.data.mixture import Mixture
from xformer.data.mixture_quotas import divide
from xformer.data.pipeline import PreparedData, open_batches, read_tokenizer
from xformer.data.tasks import Task, TaskData
from xformer.data.tasks.sequence_to_sequence import SequenceToSequenceTask
from xformer.data.transform import RowTransform
from xformer.data.unigram import read_unigram_counts, unigram_perplexity
from xformer.generation.decoding import Beams
from xformer.layers.heads import PreTraining
from xformer.metrics import MeanLoss, perplexity
from xformer.training.config import Data, Run
from xformer.training.signals import StopNotice
from xformer.training.state import Blueprint
from xformer.training.steps import (
    EvalResult,
    compile_eval_step,
    compile_predict_step,
    compile_write_step,
)

# Batches in flight: enough to keep the devices busy, few enough to bound memory.
_AHEAD = 2

Outputs = dict[str, np.ndarray]


class Scorer:
    """Scores parameters on the same data, as often as is asked.

    Attributes:
        fingerprint: Everything that decides the batches.
        task: The opened task, where the data are one's.
    """

    def __init__(self, run: Run, plan: Blueprint, data: Data) -> None:
        """Opens the data, which reads a task's files once, and compiles nothing yet.

        Args:
            run: The run, for head, batch size and limits.
            plan: Its blueprint.
            data: What to score on.

        Raises:
            FileNotFoundError: if files are missing.
            ValueError: if they are damaged, or do not fit the head.
        """
        self.task: Task | None = data.open(run.head) if isinstance(data, TaskData) else None
        self._transform = run.objective.transform(read_tokenizer(data))
        self._run, self._plan = run, plan
        self._step = _scoring_step(run, plan, self.task)
        with contextlib.closing(self._open(self.task or data)) as batches:
            self.fingerprint = batches.fingerprint
        self._is_mixed = isinstance(data, Mixture)
        self._parts: Mapping[str, Data | Task] = {"": self.task or data}
        if isinstance(data, Mixture):
            self._parts = {
                name: PreparedData(path, workers=data.workers)
                for name, path in data.sources.items()
            }

    def __call__(self, params: Any, notice: StopNotice | None = None) -> dict[str, Any]:
        """Scores parameters on one pass over the data, in order.

        Args:
            params: The parameters.
            notice: If it has received a signal, the evaluation is given up.

        Returns:
            `loss` (what a scored token or example costs, without smoothing and z-loss), the number
            of those under their name, `perplexity` where tokens of text are scored,
            `next_sentence_loss` of pairs beside it, `next_sentence_accuracy` (the share of pairs
            that are told right from wrong) where pairs are learned, and a task's metrics. Of a
            mixture also `sources`: the first three for each source, by name.

        Raises:
            PreemptedError: if a signal arrived.
            ValueError: if there is nothing to score.
        """
        losses = {name: MeanLoss() for name in self._parts}
        pairs, right = MeanLoss(), np.zeros(2)

        def counted(batches: Iterator[Any], loss: MeanLoss) -> Iterator[tuple[np.ndarray, Any]]:
            for rows, result in results(self._run, self._plan, self._step, params, batches, notice):
                loss.add(float(result.sums.nll), float(result.sums.tokens))
                pairs.add(float(result.sums.next_sentence), float(result.sums.tokens))
                right[:] += float(result.sums.pairs_right), float(result.sums.pairs)
                yield rows, result.outputs

        opened = {name: self._open(part) for name, part in self._parts.items()}
        for name, batches in self._limited(opened).items():
            with contextlib.closing(opened[name]):
                found = counted(batches, losses[name])
                if self.task is None:
                    deque(found, maxlen=0)
                else:
                    outputs = in_order(found, self.task)
        total = MeanLoss()
        for loss in losses.values():
            total.add(loss.nll_sum, loss.tokens)
        scores = self._described(total)
        if self.task is not None:
            return {**scores, **self.task.metrics(self.task.predictions(outputs))}
        if isinstance(self._run.head, PreTraining):
            scores["next_sentence_loss"] = pairs.loss
        if right[1]:
            scores["next_sentence_accuracy"] = float(right[0] / right[1])
        if self._is_mixed:
            scores["sources"] = {
                name: self._described(loss) for name, loss in losses.items() if loss.tokens
            }
        return scores

    def _described(self, mean: MeanLoss) -> dict[str, Any]:
        """A loss, what it is the mean over, and its perplexity where it is that of a text."""
        scores: dict[str, Any] = {"loss": mean.loss, self._run.objective.scored: mean.tokens}
        if self._run.scores_text:
            scores["perplexity"] = perplexity(mean.loss)
        return scores

    def _limited(self, opened: Mapping[str, BatchIterator]) -> dict[str, Iterator[Any]]:
        """Shares the limit of batches out by size, one for each source at least."""
        limit = self._run.eval_batches
        if limit is None or not self._is_mixed:
            return dict(opened)
        sizes = {name: batches.batches or 0 for name, batches in opened.items()}
        rates = {name: Fraction(size) for name, size in sizes.items()}
        counts = divide(min(limit, sum(sizes.values())), rates)
        return {
            name: itertools.islice(batches, max(1, counts[name]))
            for name, batches in opened.items()
        }

    def _open(self, data: Data | Task) -> BatchIterator:
        sharding = partitioning.batch_sharding(self._plan.mesh, self._run.rules)
        share = partitioning.batch_share(sharding)
        return open_pass(self._run, data, self._transform, share)


def compile_outputs_step(run: Run, plan: Blueprint, task: Task) -> Callable[..., Any]:
    """What a task's predictions are made of, as a compiled function of (params, batch).

    Args:
        run: The run.
        plan: Its blueprint.
        task: The opened task.

    Returns:
        A function to an output struct with the task's fields: what the model writes for tasks whose
        targets are texts, else what it says of the batch.
    """
    if not isinstance(task, SequenceToSequenceTask):
        return compile_predict_step(run, plan, task.fields)
    data = task.data
    beams = Beams(data.num_beams, data.length_penalty) if data.num_beams > 1 else None
    return compile_write_step(run, plan, max_new_tokens=data.most_new_tokens, beams=beams)


def _scoring_step(run: Run, plan: Blueprint, task: Task | None) -> Callable[..., EvalResult]:
    """The loss of a batch with what predictions are made of: the logits of texts would be large."""
    if not isinstance(task, SequenceToSequenceTask):
        return compile_eval_step(run, plan, task.fields if task else ())
    scored, write = compile_eval_step(run, plan), compile_outputs_step(run, plan, task)
    return lambda params, batch: EvalResult(scored(params, batch).sums, write(params, batch))


def open_pass(
    run: Run,
    data: Data | Task,
    transform: RowTransform | None = None,
    share: tuple[int, int] = (0, 1),
) -> BatchIterator:
    """One pass over data in batches of the size that one accumulation step has.

    Args:
        run: The run, for head, seed and batch size.
        data: The data, or a task that is open already.
        transform: What the objective does to each row.
        share: Which part of a batch, and of how many, this process reads.

    Returns:
        That part of each batch.
    """
    return open_batches(
        data,
        head=run.head,
        batch_size=run.batch_size // run.accumulation_steps,
        seed=run.seed,
        process_index=share[0],
        process_count=share[1],
        epochs=1,
        transform=transform,
    )


def results(
    run: Run,
    plan: Blueprint,
    step: Callable,
    params: Any,
    batches: Iterator[Mapping[str, np.ndarray]],
    notice: StopNotice | None = None,
) -> Iterator[tuple[np.ndarray, Any]]:
    """What a compiled step makes of each batch of a pass, on the host.

    Args:
        run: The run, for its limit of batches.
        plan: Its blueprint.
        step: A function of (params, batch).
        params: The parameters.
        batches: This process's share of each batch.
        notice: If it has received a signal, the pass is given up.

    Yields:
        The numbers of a batch's rows in the order that its outputs have, and the step's result.

    Raises:
        PreemptedError: if a signal arrived.
    """
    sharding = partitioning.batch_sharding(plan.mesh, run.rules)
    share, shares = partitioning.batch_share(sharding)
    pending: deque[Any] = deque()
    for index, batch in enumerate(batches):
        if run.eval_batches is not None and index >= run.eval_batches:
            break
        if notice:
            notice.raise_if_received()
        local = len(batch["input_ids"])
        rows = (index * shares + share) * local + np.arange(local)
        placed = partitioning.global_batch({"rows": rows.astype(np.int32)}, sharding)["rows"]
        pending.append((placed, step(params, partitioning.global_batch(dict(batch), sharding))))
        if len(pending) > _AHEAD:
            yield distributed.on_host(pending.popleft())
    while pending:
        yield distributed.on_host(pending.popleft())


def in_order(parts: Iterable[tuple[np.ndarray, Any]], task: Task) -> Outputs:
    """The outputs of all rows of a task, without those of padding.

    Args:
        parts: Numbers and outputs of the rows of each batch, which are not kept.
        task: The task.

    Returns:
        The task's fields, each (rows, ...).

    Raises:
        ValueError: if rows are missing.
    """
    found: Outputs = {}
    is_there = np.zeros(task.rows, bool)
    for rows, outputs in parts:
        is_real = rows < task.rows
        is_there[rows[is_real]] = True
        for name in task.fields:
            values = outputs[name]
            if name not in found:
                found[name] = np.empty((task.rows, *values.shape[1:]), values.dtype)
            found[name][rows[is_real]] = values[is_real]
    if not is_there.all():
        raise ValueError(f"a task needs outputs of all {task.rows} rows, got {is_there.sum()}")
    return found


def unigram_baseline(run: Run) -> float | None:
    """Perplexity of a run's validation data under the token frequencies of its training data.

    Args:
        run: The run.

    Returns:
        The baseline, or None if either was not prepared (the counts are made by preparing).
    """
    train, validation = run.train_data, run.validation_data
    if not isinstance(train, PreparedData) or not isinstance(validation, PreparedData):
        return None
    return unigram_perplexity(read_unigram_counts(train), read_unigram_counts(validation))
