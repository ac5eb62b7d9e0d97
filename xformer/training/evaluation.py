"""Scoring a model on validation data."""

from collections.abc import Callable
from typing import Any

import jax

from xformer import partitioning
from xformer.data.pipeline import PreparedData, open_batches
from xformer.data.unigram import read_unigram_counts, unigram_perplexity
from xformer.losses import LossSums
from xformer.metrics import MeanLoss, perplexity
from xformer.training.config import Data, Run
from xformer.training.signals import StopNotice
from xformer.training.state import Blueprint

# Batches in flight: enough to keep the devices busy, few enough to bound memory.
_AHEAD = 2


def evaluate(
    run: Run,
    plan: Blueprint,
    eval_step: Callable,
    params: Any,
    data: Data,
    notice: StopNotice | None = None,
) -> dict[str, float]:
    """Scores the model on one pass over data, in order.

    Args:
        run: The run, for batch size and limits.
        plan: Its blueprint.
        eval_step: The compiled evaluation step.
        params: The parameters to score.
        data: What to score on.
        notice: If it has received a signal, the evaluation is given up.

    Returns:
        `loss` (mean negative log likelihood, in nats), `perplexity` and `tokens`.

    Raises:
        PreemptedError: if a signal arrived.
        ValueError: if the data hold no token to score.
    """
    sharding = partitioning.batch_sharding(plan.mesh, run.rules)
    total = MeanLoss()
    pending: list[LossSums] = []

    def settle(count: int) -> None:
        while len(pending) > count:
            sums = jax.device_get(pending.pop(0))
            total.add(float(sums.nll), float(sums.tokens))

    batches = open_eval_batches(run, data)
    try:
        for index, batch in enumerate(batches):
            if run.eval_batches is not None and index >= run.eval_batches:
                break
            if notice:
                notice.raise_if_received()
            pending.append(eval_step(params, partitioning.global_batch(batch, sharding)).sums)
            settle(_AHEAD)
    finally:
        batches.close()
    settle(0)
    return {"loss": total.loss, "perplexity": perplexity(total.loss), "tokens": total.tokens}


def open_eval_batches(run: Run, data: Data) -> Any:
    """One pass over data in batches of the size that one accumulation step has."""
    return open_batches(
        data,
        batch_size=run.batch_size // run.accumulation_steps,
        seed=run.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        epochs=1,
    )


def unigram_baseline(train: Data, validation: Data) -> float | None:
    """Perplexity of validation data under the token frequencies of the training data.

    Args:
        train: The training data.
        validation: The validation data.

    Returns:
        The baseline, or None if either was not prepared (the counts are made by preparing).
    """
    if not isinstance(train, PreparedData) or not isinstance(validation, PreparedData):
        return None
    return unigram_perplexity(read_unigram_counts(train), read_unigram_counts(validation))
