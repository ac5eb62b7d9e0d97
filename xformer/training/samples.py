"""Continuations of prompts by a model in training."""

from typing import Any

from xformer.generation.decoding import Decoding
from xformer.generation.sampling import Sampling
from xformer.generation.weights import decoding_execution, decoding_params
from xformer.generation.writer import Writer, prompt_ids
from xformer.layers.heads import CausalLM, ConditionalGeneration
from xformer.layers.stack import restack
from xformer.models.build import build
from xformer.tokenization.base import PreTrainedTokenizerBase
from xformer.training.config import Run
from xformer.training.state import SAMPLE, purpose_key


def continue_prompts(
    run: Run,
    params: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: tuple[str, ...],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    seed: int | None = None,
) -> list[str]:
    """Continues prompts with a run's model, all in one compiled call.

    Args:
        run: The run.
        params: Parameters in the run's layer mode.
        tokenizer: Its tokenizer.
        prompts: Texts to continue.
        max_new_tokens: Most tokens of a continuation.
        sampling: How tokens are chosen; greedy if None.
        seed: Decides what is drawn; the run's seed if None.

    Returns:
        The continuations, without the prompts.

    Raises:
        ValueError: if there is no prompt, or the run's head does not predict next tokens.
    """  # noqa: DOC502
    check_head(run)
    decoding = Decoding.of(run.model, sampling=sampling or Sampling())
    writer = run_writer(run, params, tokenizer, decoding, max_new_tokens)
    key = purpose_key(run.seed if seed is None else seed, SAMPLE)
    return [written[0].text for written in writer.write(prompts, key)]


def run_writer(
    run: Run,
    params: Any,
    tokenizer: PreTrainedTokenizerBase,
    decoding: Decoding,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    *,
    weights: str | None = None,
) -> Writer:
    """What continues texts with a run's model.

    Args:
        run: The run.
        params: Parameters in the run's layer mode.
        tokenizer: Its tokenizer.
        decoding: How tokens are chosen.
        max_new_tokens: Most tokens of a continuation.
        min_new_tokens: Fewest.
        weights: What matrices are kept as, one of `generation.weights.WEIGHTS`; None changes
            nothing.

    Returns:
        The writer.

    Raises:
        ValueError: if the run's head does not predict next tokens, the limits are out of range, or
            there are no such weights.
    """  # noqa: DOC502
    check_head(run)
    # Unrolled layers decode faster, and stacked parameters would be sliced for every token.
    execution, looped = run.execution.looped(), restack(params, "loop")
    if weights is not None:
        execution = decoding_execution(execution, weights)
        looped = decoding_params(looped, weights)
    module = build(run.model, run.head, execution)
    return Writer(module, looped, tokenizer, decoding, max_new_tokens, min_new_tokens)


def check_head(run: Run) -> None:
    """Refuses a run that writes no texts.

    Args:
        run: The run.

    Raises:
        ValueError: if its head does not predict next tokens.
    """
    if not isinstance(run.head, CausalLM | ConditionalGeneration):
        raise ValueError(
            "only a run with heads.ConditionalGeneration or heads.CausalLM continues texts, got "
            f"heads.{type(run.head).__name__}"
        )


def check_prompts(run: Run, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses prompts of a run that could not be continued after its last step.

    Args:
        run: The run.
        tokenizer: Its tokenizer.

    Raises:
        ValueError: if a prompt has no token, or the model has no positions for the longest one of a
            decoder and what follows it; names the key to change.
    """
    if not run.sample_prompts:
        return
    is_answered = run.model.is_encoder_decoder
    encoded = [
        tokenizer.encode(text) if is_answered else prompt_ids(tokenizer, text)
        for text in run.sample_prompts
    ]
    for text, ids in zip(run.sample_prompts, encoded, strict=True):
        if not ids:
            raise ValueError(
                f"Run.sample_prompts must have at least one token each, got {text!r}, which has "
                "none; remove it"
            )
    if is_answered:
        return
    longest, new = max(map(len, encoded)), run.sample_tokens
    try:
        run.model.check_length(longest + new)
    except ValueError as error:
        raise ValueError(
            f"Run.sample_tokens={new} do not fit behind the longest of Run.sample_prompts, of "
            f"length {longest}: {error}; or lower Run.sample_tokens"
        ) from error
