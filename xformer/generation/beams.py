"""Beam search: the sequences of a prompt that are most likely as a whole.

Which candidates may finish, how finished ones are scored and when a prompt is done follow the
PyTorch implementation of `transformers` 4.57, whose sequences this reproduces:

- of the candidates of a step, the best `num_beams` may finish; the others are there so that as
  many can go on, whichever of them end;
- at the last step all of those finish;
- a finished sequence counts with its sum of log probabilities over its new tokens, divided by their
  number to the power `length_penalty`.

K is the number of beams, N that of the candidates of a step.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from xformer.generation.decoders import DecoderState, Prompts, advance, expand, reorder, start
from xformer.generation.decoding import NEVER, Beams, Decoding, Found
from xformer.generation.rules import Written
from xformer.generation.search import Limits, ends
from xformer.models.build import Module

_WORST = -1e9  # finite, so that sequences of this score can still be told apart


@struct.dataclass
class _Finished:
    """The best sequences of every prompt that have ended, best first."""

    ids_BKS: Int[Array, "B K S"]
    score_BK: Float[Array, "B K"]
    length_BK: Int[Array, "B K"]
    ended_BK: Bool[Array, "B K"]


@struct.dataclass
class _Search:
    """What one step hands to the next."""

    step: Int[Array, ""]
    ids_BKS: Int[Array, "B K S"]
    score_BK: Float[Array, "B K"]
    parent_BK: Int[Array, "B K"]
    finished: _Finished
    improvable_B1: Bool[Array, "B 1"]
    stuck: Bool[Array, ""]
    decoder: DecoderState


def beam_search(
    module: Module,
    params: Any,
    prompts: Prompts,
    limits: Limits,
    *,
    room: int,
    decoding: Decoding,
) -> Found:
    """Continues prompts by beam search.

    Args:
        module: The model.
        params: Its parameters.
        prompts: What the rows begin with.
        limits: How many tokens follow.
        room: Places for new tokens, at least `limits.max_new`.
        decoding: How sequences are written; with beams.

    Returns:
        `decoding.num_return_sequences` sequences for each prompt, best first, with their scores.
    """
    beams = decoding.beams
    assert beams is not None  # the caller has asked
    batch, width = prompts.ids_BP.shape
    search = _begin(module, params, prompts, beams.number, room=room, decoding=decoding)
    # Division by a power, as a table: the power is taken in double precision.
    penalty_U = jnp.asarray(
        np.arange(1, room + 1, dtype=np.float64) ** beams.length_penalty, jnp.float32
    )
    rows_B1 = jnp.arange(batch)[:, None] * beams.number

    def more(search: _Search) -> Array:
        open_ = search.improvable_B1.any() & ~search.stuck
        if beams.early_stopping is True:
            open_ &= ~search.finished.ended_BK.all()
        return open_

    def step(search: _Search) -> _Search:
        parents = (rows_B1 + search.parent_BK).reshape(-1)
        written = Written(
            ids_BS=search.ids_BKS.reshape(-1, search.ids_BKS.shape[-1]),
            skip=limits.skip,
            step=search.step,
            min_new=limits.min_new,
            max_new=limits.max_new,
            prompt=width,
        )
        logits_NV, state = advance(
            module, params, written.newest(), reorder(search.decoder, parents)
        )
        log_probs_NV = jax.nn.log_softmax(logits_NV.astype(jnp.float32), axis=-1)
        log_probs_NV = decoding.rules(log_probs_NV, written)
        search = dataclasses.replace(search, decoder=state)
        return _select(search, log_probs_NV, written, penalty_U, decoding)

    best = jax.lax.while_loop(more, step, search).finished
    count = decoding.num_return_sequences
    return Found(
        sequences_BS=best.ids_BKS[:, :count].reshape(batch * count, -1),
        new_tokens=best.length_BK[:, :count].max(),
        scores=best.score_BK[:, :count].reshape(-1),
    )


def _begin(
    module: Module, params: Any, prompts: Prompts, number: int, *, room: int, decoding: Decoding
) -> _Search:
    """Reads the prompts, and makes the beams of each."""
    state = start(module, params, prompts, room=room, use_cache=decoding.caches(module.config))
    ids_BS = jnp.pad(prompts.ids_BP, ((0, 0), (0, room)), constant_values=_fill(decoding))
    ids_BKS = jnp.repeat(ids_BS[:, None], number, axis=1)
    shape = ids_BKS.shape[:2]
    none_BK = jnp.zeros(shape, jnp.int32)
    return _Search(
        step=jnp.zeros((), jnp.int32),
        ids_BKS=ids_BKS,
        # All beams are equal at first: the first one alone has successors.
        score_BK=jnp.full(shape, _WORST).at[:, 0].set(0.0),
        parent_BK=none_BK,
        finished=_Finished(ids_BKS, jnp.full(shape, _WORST), none_BK, jnp.zeros(shape, bool)),
        improvable_B1=jnp.ones((shape[0], 1), bool),
        stuck=jnp.asarray(False),
        decoder=expand(state, number),
    )


def _select(
    search: _Search,
    log_probs_NV: Float[Array, "BK V"],
    written: Written,
    penalty_U: Float[Array, " U"],
    decoding: Decoding,
) -> _Search:
    """Extends every beam by a token and keeps the best."""
    beams: Any = decoding.beams
    batch, number = search.score_BK.shape
    vocabulary = log_probs_NV.shape[-1]
    sums_BKV = log_probs_NV.reshape(batch, number, vocabulary) + search.score_BK[..., None]
    candidates = max(2, 1 + len(decoding.eos_token_ids)) * number
    sum_BN, choice_BN = jax.lax.top_k(sums_BKV.reshape(batch, -1), candidates)
    parent_BN, token_BN = choice_BN // vocabulary, choice_BN % vocabulary
    ids_BNS = _take(search.ids_BKS, parent_BN)
    ids_BNS = jax.lax.dynamic_update_index_in_dim(ids_BNS, token_BN, written.end, axis=2)
    length = search.step + 1
    ended_BN = ends(token_BN, decoding) | (length == written.max_new)

    # Those that go on.
    running_BN = jnp.where(ended_BN, sum_BN + _WORST, sum_BN)
    score_BK, kept_BK = jax.lax.top_k(running_BN, number)

    # Those that end, beside those that have ended before.
    improvable_B1, finished = search.improvable_B1, search.finished
    may_end_BN = ended_BN & (jnp.arange(candidates) < number)[None]
    closed_B1 = ~improvable_B1
    if beams.early_stopping is True:
        closed_B1 |= finished.ended_BK.all(axis=1, keepdims=True)
    final_BN = sum_BN / penalty_U[length - 1]
    final_BN += _WORST * (closed_B1.astype(jnp.float32) + ~may_end_BN)
    finished = _best(
        finished,
        _Finished(ids_BNS, final_BN, jnp.full_like(token_BN, length), may_end_BN),
        number,
    )
    return dataclasses.replace(
        search,
        step=length,
        ids_BKS=_take(ids_BNS, kept_BK),
        score_BK=score_BK,
        parent_BK=jnp.take_along_axis(parent_BN, kept_BK, axis=1),
        finished=finished,
        improvable_B1=improvable_B1
        & _can_improve(score_BK, finished, length, written.max_new, penalty_U, beams),
        stuck=ended_BN.all(),
    )


def _best(old: _Finished, new: _Finished, number: int) -> _Finished:
    """The best of two groups of sequences."""
    both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), old, new)
    chosen_BK = jax.lax.top_k(both.score_BK, number)[1]
    return jax.tree.map(lambda leaf: _take(leaf, chosen_BK), both)


def _can_improve(
    score_BK: Array, finished: _Finished, length: Array, most: Array, penalty_U: Array, beams: Beams
) -> Bool[Array, "B 1"]:
    """Whether the best running beam may still beat the worst finished one."""
    longest = beams.early_stopping == NEVER and beams.length_penalty > 0.0
    best_B1 = score_BK[:, :1] / penalty_U[(most if longest else length) - 1]
    worst_B1 = finished.score_BK.min(axis=1, keepdims=True)
    worst_BK = jnp.where(finished.ended_BK, worst_B1, _WORST)
    return (best_B1 > worst_BK).any(axis=1, keepdims=True)


def _take(x: Array, chosen_BK: Int[Array, "B K"]) -> Array:
    """Rows of the second axis, for each of the first."""
    index = chosen_BK.reshape(*chosen_BK.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1)


def _fill(decoding: Decoding) -> int:
    """What follows a sequence: the end token where padding is token 0, as published."""
    ends_by = decoding.eos_token_ids
    return decoding.pad_token_id or (ends_by[0] if ends_by else 0)
