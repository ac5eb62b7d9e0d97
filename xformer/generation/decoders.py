"""The state of a decoder between two tokens: started by a prompt, advanced by a token, reordered.

Causal decoders read their prompt; encoder-decoders read a source first, then the decoder's prompt.
Searches (`search`, `beams`) need no more of a model than the three functions here.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from xformer.layers.cache import Cache
from xformer.models.build import Module


@struct.dataclass
class Prompts:
    """What the rows of a batch begin with.

    Attributes:
        ids_BP: What the decoder goes on from, padded on the left.
        mask_BP: 1 for its tokens, 0 for padding.
        source_BT: What the encoder reads; None for models without an encoder.
        encoded_BTD: What the encoder of another model has made of a source, for decoders with
            cross-attention.
        source_mask_BT: 1 for tokens or states of the source, 0 for padding.
    """

    ids_BP: Int[Array, "B P"]
    mask_BP: Int[Array, "B P"]
    source_BT: Int[Array, "B T"] | None = None
    encoded_BTD: Float[Array, "B T D"] | None = None
    source_mask_BT: Int[Array, "B T"] | None = None


@struct.dataclass
class DecoderState:
    """A decoder that has read some tokens.

    Attributes:
        length: Number of tokens read, the same for every row.
        mask_BS: 1 for places that may be read; those of later tokens are 1 already.
        cache: Keys and values of the tokens read, or None without a cache.
        ids_BS: The tokens themselves, where there is no cache.
        encoded_BTD: What an encoder made of the source.
        source_mask_BT: 1 for its tokens, 0 for padding.
    """

    length: Int[Array, ""]
    mask_BS: Int[Array, "B S"]
    cache: Cache | None = None
    ids_BS: Int[Array, "B S"] | None = None
    encoded_BTD: Float[Array, "B T D"] | None = None
    source_mask_BT: Int[Array, "B T"] | None = None


def start(
    module: Module, params: Any, prompts: Prompts, *, room: int, use_cache: bool
) -> DecoderState:
    """Reads prompts in one pass.

    The last token of every prompt is left to `advance`, which finds its keys and values there and
    writes them again: so that no scores are computed for the other tokens, whose size is that of
    the vocabulary.

    Args:
        module: A model that predicts the next token of a decoder.
        params: Its parameters.
        prompts: What the rows begin with.
        room: Most tokens that follow.
        use_cache: Whether keys and values are kept; every token reads its whole row again if not.

    Returns:
        The state before the last token of the prompts.

    Raises:
        ValueError: if the model has no positions for so many tokens.
    """
    batch, length = prompts.ids_BP.shape
    module.config.check_length(length + room)
    state = DecoderState(
        length=jnp.zeros((), jnp.int32),
        mask_BS=jnp.pad(prompts.mask_BP, ((0, 0), (0, room)), constant_values=1),
        encoded_BTD=prompts.encoded_BTD,
        source_mask_BT=prompts.source_mask_BT,
    )
    if prompts.source_BT is not None:
        out: Any = module.apply(
            {"params": params},
            prompts.source_BT,
            attention_mask=prompts.source_mask_BT,
            method="encode",
        )
        state = dataclasses.replace(state, encoded_BTD=out.last_hidden_state)
    before_last = jnp.asarray(length - 1, jnp.int32)
    if not use_cache:
        ids_BS = jnp.pad(prompts.ids_BP, ((0, 0), (0, room)))
        return dataclasses.replace(state, ids_BS=ids_BS, length=before_last)
    cache = module.config.empty_cache(batch, length + room, module.execution)
    state = dataclasses.replace(state, cache=cache)
    filled: Any = _read(module, params, prompts.ids_BP, state)[1].cache
    cache = dataclasses.replace(filled, length=before_last)
    return dataclasses.replace(state, cache=cache, length=before_last)


def advance(
    module: Module, params: Any, token_B: Int[Array, " B"], state: DecoderState
) -> tuple[Float[Array, "B V"], DecoderState]:
    """Reads one more token of every row.

    Args:
        module: The model.
        params: Its parameters.
        token_B: The tokens.
        state: The state before them.

    Returns:
        Scores of the tokens that follow, and the state behind the tokens.
    """
    return _read(module, params, token_B[:, None], state)


def expand(state: DecoderState, times: int) -> DecoderState:
    """Repeats every row, the copies of a row beside one another."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, times, 0) if leaf.ndim else leaf, state)


def reorder(state: DecoderState, rows_B: Int[Array, " B"]) -> DecoderState:
    """Replaces what rows have read by what other rows of the same prompt have read.

    Args:
        state: The state.
        rows_B: For each row the number of the one to take; masks and sources are its own already.

    Returns:
        The state with the rows taken.
    """

    def take(leaf: Array) -> Array:
        return jnp.take(leaf, rows_B, axis=0)

    cache = state.cache
    if cache is not None:
        cache = dataclasses.replace(cache, layers=jax.tree.map(take, cache.layers))
    return dataclasses.replace(
        state, cache=cache, ids_BS=None if state.ids_BS is None else take(state.ids_BS)
    )


def _read(
    module: Module, params: Any, ids_BT: Int[Array, "B T"], state: DecoderState
) -> tuple[Float[Array, "B V"], DecoderState]:
    """Scores behind the last of some tokens, and the state with them read."""
    new = ids_BT.shape[1]
    if state.cache is None:
        assert state.ids_BS is not None  # a state without a cache has them
        ids_BT = jax.lax.dynamic_update_slice_in_dim(state.ids_BS, ids_BT, state.length, axis=1)
        state = dataclasses.replace(state, ids_BS=ids_BT)
    if not getattr(module.config, "is_encoder_decoder", False):
        out = _read_causal(module, params, ids_BT, state)
    else:
        out = module.apply(
            {"params": params},
            ids_BT,
            state.encoded_BTD,
            encoder_attention_mask=state.source_mask_BT,
            decoder_attention_mask=state.mask_BS,
            cache=state.cache,
            method="decode",
        )
    last = new - 1 if state.cache is not None else state.length + new - 1
    logits_BV = jax.lax.dynamic_index_in_dim(out.logits, last, axis=1, keepdims=False)
    cache = None if state.cache is None else out.past_key_values
    return logits_BV, dataclasses.replace(state, length=state.length + new, cache=cache)


def _read_causal(module: Module, params: Any, ids_BT: Array, state: DecoderState) -> Any:
    positions_BT = jnp.maximum(jnp.cumsum(state.mask_BS, axis=1) - 1, 0)
    arguments: dict[str, Any] = {}
    if state.cache is not None:
        positions_BT = jax.lax.dynamic_slice_in_dim(
            positions_BT, state.length, ids_BT.shape[1], axis=1
        )
        arguments["cache"] = state.cache
    if state.encoded_BTD is not None:
        arguments["encoder_hidden_states"] = state.encoded_BTD
        arguments["encoder_attention_mask"] = state.source_mask_BT
    return module.apply(
        {"params": params},
        ids_BT,
        attention_mask=state.mask_BS,
        position_ids=positions_BT,
        **arguments,
    )
