"""Continuing prompts: one pass over the prompts, then one token at a time, in one program."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from xformer.generation.beams import beam_search
from xformer.generation.decoders import Prompts
from xformer.generation.decoding import Decoding, Found
from xformer.generation.search import Limits, begin, proceed
from xformer.models.build import Module
from xformer.outputs import FlaxBeamSearchOutput, FlaxGreedySearchOutput, FlaxSampleOutput

PROMPT_BUCKET = 32
"""Prompts are padded to a multiple of this, so that few lengths are compiled."""

GenerateOutput = FlaxGreedySearchOutput | FlaxSampleOutput | FlaxBeamSearchOutput


def generate(
    module: Module,
    params: Any,
    input_ids: Int[Array, "B T"],
    attention_mask: Int[Array, "B T"] | None,
    key: PRNGKeyArray,
    *,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    decoding: Decoding | None = None,
    decoder_input_ids: Int[Array, "B P"] | None = None,
    decoder_attention_mask: Int[Array, "B P"] | None = None,
    encoder_hidden_states: Float[Array, "B E D"] | None = None,
    encoder_attention_mask: Int[Array, "B E"] | None = None,
) -> GenerateOutput:
    """Continues prompts until every row has ended or the tokens are used up.

    Pure, for use inside `jit`. Without `config.use_cache` every step reads the whole row again,
    which is slower and gives the same tokens.

    Args:
        module: A model that predicts next tokens, with a `config`; best with looped layers.
        params: Its parameters.
        input_ids: Prompts, padded on the left; for encoder-decoders what the encoder reads.
        attention_mask: 1 for tokens, 0 for padding; all are tokens if None.
        key: Random key; used by sampling alone.
        max_new_tokens: Most tokens to write.
        min_new_tokens: No row ends with fewer.
        decoding: How tokens are chosen; greedy, with the config's padding and end tokens, if None.
        decoder_input_ids: What an encoder-decoder goes on from, padded on the left; if None the
            `decoder_start_token_id` of `decoding`, or that of the config.
        decoder_attention_mask: 1 for its tokens, 0 for padding.
        encoder_hidden_states: What a decoder with cross-attention reads.
        encoder_attention_mask: 1 for states that may be read; all may be if None.

    Returns:
        The documented struct. `sequences` are the prompts with their continuations (for
        encoder-decoders the decoder's), and padding after an end token. `scores` are those of each
        token if `decoding.output_scores`, (token, row, vocabulary), or for beams those of each
        sequence.

    Raises:
        ValueError: if `max_new_tokens` is below 1 or `min_new_tokens` not between 0 and that, if
            the model has no positions for so many tokens, or if the arguments do not fit the kind
            of model or each other.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not 0 <= min_new_tokens <= max_new_tokens:
        raise ValueError(
            f"min_new_tokens must be from 0 to max_new_tokens={max_new_tokens}, got "
            f"{min_new_tokens}"
        )
    decoding = decoding or Decoding.of(module.config)
    prompts = prompts_of(
        module.config,
        input_ids,
        attention_mask,
        decoder_input_ids,
        decoder_attention_mask,
        encoder_hidden_states=encoder_hidden_states,
        encoder_attention_mask=encoder_attention_mask,
        decoder_start_token_id=decoding.decoder_start_token_id,
    )
    limits = Limits(*(jnp.asarray(n, jnp.int32) for n in (0, min_new_tokens, max_new_tokens)))
    found = search(module, params, prompts, limits, key, room=max_new_tokens, decoding=decoding)
    return as_output(found.sequences_BS, found.scores, decoding)


def search(
    module: Module,
    params: Any,
    prompts: Prompts,
    limits: Limits,
    key: PRNGKeyArray,
    *,
    room: int,
    decoding: Decoding,
) -> Found:
    """Continues prompts in the way that is asked for.

    Args:
        module: The model.
        params: Its parameters.
        prompts: What the rows begin with.
        limits: How many tokens follow.
        key: Random key of sampling.
        room: Places for new tokens, at least `limits.max_new`.
        decoding: How sequences are written.

    Returns:
        The sequences.
    """
    if decoding.beams is not None:
        return beam_search(module, params, prompts, limits, room=room, decoding=decoding)
    first = begin(module, params, prompts, limits, room=room, decoding=decoding)
    return proceed(module, params, first, limits.max_new, key, decoding=decoding).found


def prompts_of(
    config: Any,
    input_ids: Array,
    attention_mask: Array | None = None,
    decoder_input_ids: Array | None = None,
    decoder_attention_mask: Array | None = None,
    *,
    encoder_hidden_states: Array | None = None,
    encoder_attention_mask: Array | None = None,
    decoder_start_token_id: int | None = None,
) -> Prompts:
    """Documented arguments as prompts.

    Args:
        config: The architecture.
        input_ids: (batch, length) as for `generate`.
        attention_mask: (batch, length) or None.
        decoder_input_ids: (batch, prompt) or None.
        decoder_attention_mask: (batch, prompt) or None.
        encoder_hidden_states: (batch, encoder length, width) or None.
        encoder_attention_mask: (batch, encoder length) or None.
        decoder_start_token_id: What an encoder-decoder goes on from that is given no
            `decoder_input_ids`; that of the config if None.

    Returns:
        The prompts.

    Raises:
        ValueError: if the arguments do not fit the kind of model or each other.
    """
    _check_prompts("input_ids", input_ids)
    mask = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
    _check_same("attention_mask", mask, input_ids)
    if not getattr(config, "is_encoder_decoder", False):
        if decoder_input_ids is not None or decoder_attention_mask is not None:
            raise ValueError("decoder_input_ids and their mask are for encoder-decoders alone")
        states = _read_states(input_ids, encoder_hidden_states, encoder_attention_mask)
        return Prompts(input_ids, mask, **states)
    if encoder_hidden_states is not None or encoder_attention_mask is not None:
        raise ValueError(
            "encoder_hidden_states and their mask are for decoders with cross-attention: the "
            "encoder of an encoder-decoder reads input_ids"
        )
    if decoder_input_ids is None:
        if decoder_attention_mask is not None:
            raise ValueError("decoder_attention_mask needs decoder_input_ids")
        shape = (input_ids.shape[0], 1)
        first = decoder_start_token_id
        first = config.decoder_start_token_id if first is None else first
        decoder_input_ids = jnp.full(shape, first, input_ids.dtype)
    _check_prompts("decoder_input_ids", decoder_input_ids)
    if len(decoder_input_ids) != len(input_ids):
        raise ValueError(
            f"decoder_input_ids must have {len(input_ids)} rows, one for each of input_ids, got "
            f"{len(decoder_input_ids)}"
        )
    if decoder_attention_mask is None:
        decoder_attention_mask = jnp.ones_like(decoder_input_ids)
    _check_same("decoder_attention_mask", decoder_attention_mask, decoder_input_ids)
    return Prompts(
        decoder_input_ids, decoder_attention_mask, source_BT=input_ids, source_mask_BT=mask
    )


def _read_states(ids: Array, states: Array | None, mask: Array | None) -> dict[str, Any]:
    """Encoder states and their mask as fields of `Prompts`."""
    if states is None:
        if mask is not None:
            raise ValueError("encoder_attention_mask needs encoder_hidden_states")
        return {}
    if states.ndim != 3 or states.shape[0] != ids.shape[0]:
        raise ValueError(
            f"encoder_hidden_states must have shape ({ids.shape[0]}, length, width), a row for "
            f"each of input_ids, got {states.shape}"
        )
    mask = jnp.ones(states.shape[:2], jnp.int32) if mask is None else mask
    if mask.shape != states.shape[:2]:
        raise ValueError(
            f"encoder_attention_mask must have the shape of its states {states.shape[:2]}, got "
            f"{mask.shape}"
        )
    return {"encoded_BTD": states, "source_mask_BT": mask}


def as_output(sequences: Array, scores: Any, decoding: Decoding) -> GenerateOutput:
    """The documented struct of a way of decoding.

    Args:
        sequences: Prompts with their continuations.
        scores: Of tokens or sequences, or None.
        decoding: How they were written.

    Returns:
        The struct.
    """
    if decoding.beams is not None:
        return FlaxBeamSearchOutput(sequences=sequences, scores=scores)
    kind = FlaxGreedySearchOutput if decoding.sampling.greedy else FlaxSampleOutput
    return kind(sequences=sequences, scores=scores)


def left_pad(
    prompts: Sequence[Sequence[int]], pad_token_id: int, multiple: int = PROMPT_BUCKET
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as a rectangle.

    Args:
        prompts: Token ids of each prompt.
        pad_token_id: Fills the rows on the left.
        multiple: The width is the smallest multiple of this that fits the longest prompt.

    Returns:
        Ids and attention mask, each (B, P).

    Raises:
        ValueError: if there is no prompt or an empty one.
    """
    if not prompts or not all(prompts):
        raise ValueError("every prompt needs at least one token")
    width = round_up(max(len(prompt) for prompt in prompts), multiple)
    ids = np.full((len(prompts), width), pad_token_id, np.int32)
    mask = np.zeros((len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def round_up(number: int, multiple: int = PROMPT_BUCKET) -> int:
    """The smallest multiple that is not below a number."""
    return -(-number // multiple) * multiple


def bucket(config: Any, prompt: int, new: int) -> tuple[int, int]:
    """Numbers of places that many lengths share.

    Args:
        config: The architecture.
        prompt: Places that a prompt needs.
        new: Places that new tokens need.

    Returns:
        Both as multiples of `PROMPT_BUCKET`; as they are where padding would change what is read
        (block-sparse attention) or outgrow the positions of the model.
    """
    places = round_up(prompt), round_up(new)
    most = getattr(config, "max_position_embeddings", sum(places))
    by_place = getattr(config, "attention_type", "") == "block_sparse"
    return (prompt, new) if by_place or sum(places) > most else places


def in_bucket(config: Any, prompts: Prompts, new: int, pad_token_id: int) -> tuple[Prompts, int]:
    """Prompts of a width that many share.

    Args:
        config: The architecture.
        prompts: Prompts of any width.
        new: Most new tokens.
        pad_token_id: Fills the rows.

    Returns:
        The prompts, padded on the left, and what the encoder of an encoder-decoder reads, on the
        right, as encoder states are; and the room for new tokens. A decoder's prompt of a single
        token, with which most begin, stays as it is.
    """
    if prompts.source_BT is None:
        width, room = bucket(config, prompts.ids_BP.shape[1], new)
        prompts = _begun_at(width, prompts, pad_token_id)
        if prompts.encoded_BTD is None:
            return prompts, room
        more = round_up(prompts.encoded_BTD.shape[1]) - prompts.encoded_BTD.shape[1]
        encoded_BTD = _padded(prompts.encoded_BTD, (0, more), 0)
        mask_BT = _padded(prompts.source_mask_BT, (0, more), 0)
        return dataclasses.replace(prompts, encoded_BTD=encoded_BTD, source_mask_BT=mask_BT), room
    width, room = bucket(config, prompts.source_BT.shape[1], new)
    more = width - prompts.source_BT.shape[1]
    source_BT = _padded(prompts.source_BT, (0, more), pad_token_id)
    mask_BT = _padded(prompts.source_mask_BT, (0, more), 0)
    prompts = dataclasses.replace(prompts, source_BT=source_BT, source_mask_BT=mask_BT)
    begun = prompts.ids_BP.shape[1]
    return prompts if begun == 1 else _begun_at(round_up(begun), prompts, pad_token_id), room


def _begun_at(width: int, prompts: Prompts, pad_token_id: int) -> Prompts:
    """Prompts that end at a place, padded on the left."""
    more = width - prompts.ids_BP.shape[1]
    ids_BP = _padded(prompts.ids_BP, (more, 0), pad_token_id)
    mask_BP = _padded(prompts.mask_BP, (more, 0), 0)
    return dataclasses.replace(prompts, ids_BP=ids_BP, mask_BP=mask_BP)


def _padded(x: Any, places: tuple[int, int], value: int) -> Array:
    """Rows with more places; on the host where they are whole there, for nothing is compiled."""
    split = isinstance(x, jax.Array) and len(x.devices()) > 1
    pad = jnp.pad if split else np.pad
    widths = ((0, 0), places, *((0, 0),) * (x.ndim - 2))
    return jnp.asarray(pad(x, widths, constant_values=value))


@functools.lru_cache(maxsize=16)
def compiled_search(module: Module, room: int, decoding: Decoding) -> Callable[..., Found]:
    """`search` under `jit`, as a function of (params, prompts, limits, key); compiled per shape."""
    return jax.jit(functools.partial(_search, module, room, decoding))


def _search(
    module: Module,
    room: int,
    decoding: Decoding,
    params: Any,
    prompts: Prompts,
    limits: Limits,
    key: PRNGKeyArray,
) -> Found:
    return search(module, params, prompts, limits, key, room=room, decoding=decoding)


def _check_prompts(name: str, ids: Array) -> None:
    if ids.ndim != 2 or not ids.size:
        raise ValueError(
            f"{name} must have shape (rows, tokens), at least one of each, got {ids.shape}"
        )


def _check_same(name: str, array: Array, ids: Array) -> None:
    if array.shape != ids.shape:
        raise ValueError(f"{name} must have the shape of its ids {ids.shape}, got {array.shape}")
