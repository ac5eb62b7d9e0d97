"""One sequence at a time for each row: the most likely token, or a drawn one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from xformer.generation.decoders import DecoderState, Prompts, advance, expand, start
from xformer.generation.decoding import Decoding, Found
from xformer.generation.rules import Written
from xformer.generation.sampling import next_token
from xformer.models.build import Module


@struct.dataclass
class Limits:
    """Numbers of a call that its program does not depend on.

    Attributes:
        skip: Places left free before every prompt.
        min_new: Fewest new tokens of a row.
        max_new: Most new tokens of a row.
    """

    skip: Int[Array, ""]
    min_new: Int[Array, ""]
    max_new: Int[Array, ""]


@struct.dataclass
class Search:
    """What one step hands to the next.

    Attributes:
        written: Prompts and new tokens of every row.
        finished_B: Rows that have written an end token.
        decoder: The decoder, which has read all but the newest token.
        scores_UBV: Scores that every token was chosen by, if they are asked for.
    """

    written: Written
    finished_B: Bool[Array, " B"]
    decoder: DecoderState
    scores_UBV: Float[Array, "U B V"] | None = None

    @property
    def found(self) -> Found:
        """The result so far."""
        return Found(self.written.ids_BS, self.written.step, self.scores_UBV)


def begin(
    module: Module,
    params: Any,
    prompts: Prompts,
    limits: Limits,
    *,
    room: int,
    decoding: Decoding,
) -> Search:
    """Reads the prompts.

    Args:
        module: The model.
        params: Its parameters.
        prompts: What the rows begin with.
        limits: How many tokens follow.
        room: Places for new tokens, at least `limits.max_new`.
        decoding: How tokens are chosen.

    Returns:
        The search before its first step.
    """
    state = start(module, params, prompts, room=room, use_cache=decoding.caches(module.config))
    copies, ids_BP = decoding.num_return_sequences, prompts.ids_BP
    if copies > 1:
        state, ids_BP = expand(state, copies), jnp.repeat(ids_BP, copies, axis=0)
    rows, width = ids_BP.shape
    written = Written(
        ids_BS=jnp.pad(ids_BP, ((0, 0), (0, room)), constant_values=decoding.pad_token_id),
        skip=limits.skip,
        step=jnp.zeros((), jnp.int32),
        min_new=limits.min_new,
        max_new=limits.max_new,
        prompt=width,
    )
    scores_UBV = None
    if decoding.output_scores:
        scores_UBV = jnp.zeros((room, rows, module.config.vocab_size))
    return Search(written, jnp.zeros(rows, bool), state, scores_UBV)


def proceed(
    module: Module,
    params: Any,
    search: Search,
    stop: Int[Array, ""],
    key: PRNGKeyArray,
    *,
    decoding: Decoding,
) -> Search:
    """Writes on until every row has ended, the tokens are used up, or there are `stop` new ones.

    Args:
        module: The model.
        params: Its parameters.
        search: The search so far.
        stop: Number of new tokens after which to stop.
        key: Random key of sampling; the same one for all parts of a search.
        decoding: How tokens are chosen.

    Returns:
        The search after its last step.
    """

    def more(search: Search) -> Array:
        written = search.written
        return (written.step < jnp.minimum(written.max_new, stop)) & ~search.finished_B.all()

    def step(search: Search) -> Search:
        logits_BV, state = advance(module, params, search.written.newest(), search.decoder)
        return _write(dataclasses.replace(search, decoder=state), logits_BV, key, decoding)

    return jax.lax.while_loop(more, step, search)


def _write(
    search: Search, logits_BV: Float[Array, "B V"], key: PRNGKeyArray, decoding: Decoding
) -> Search:
    """Chooses a token for every row and writes it behind the others."""
    written = search.written
    scores_BV = decoding.rules(logits_BV.astype(jnp.float32), written)
    key = jax.random.fold_in(key, written.step)
    token_B, scores_BV = next_token(scores_BV, key, decoding.sampling)
    token_B = jnp.where(search.finished_B, decoding.pad_token_id, token_B).astype(jnp.int32)
    ids_BS = jax.lax.dynamic_update_index_in_dim(written.ids_BS, token_B, written.end, axis=1)
    scores_UBV = search.scores_UBV
    if scores_UBV is not None:
        scores_UBV = scores_UBV.at[written.step].set(scores_BV)
    ended_B = ends(token_B, decoding)
    return dataclasses.replace(
        search,
        written=dataclasses.replace(written, ids_BS=ids_BS, step=written.step + 1),
        finished_B=search.finished_B | ended_B,
        scores_UBV=scores_UBV,
    )


def ends(tokens: Int[Array, "*T"], decoding: Decoding) -> Bool[Array, "*T"]:
    """Which tokens end a row."""
    if not decoding.eos_token_ids:
        return jnp.zeros(tokens.shape, bool)
    return jnp.isin(tokens, jnp.asarray(decoding.eos_token_ids, tokens.dtype))
