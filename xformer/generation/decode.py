"""Continuing prompts: one pass over the prompts, then one token at a time, in one program."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from xformer.generation.sampling import Sampling, next_token
from xformer.layers.cache import Cache
from xformer.models.build import Module
from xformer.outputs import FlaxGreedySearchOutput, FlaxSampleOutput

PROMPT_BUCKET = 32
"""Prompts are padded to a multiple of this, so that few lengths are compiled."""


@struct.dataclass
class _Decoding:
    """What one decode step hands to the next.

    Attributes:
        step: Number of new tokens written.
        ids_BS: Prompts, then new tokens, then padding.
        finished_B: Rows that have written an end token.
        cache: Keys and values of all but the newest token, or None without a cache.
    """

    step: Int[Array, ""]
    ids_BS: Int[Array, "B S"]
    finished_B: Bool[Array, " B"]
    cache: Cache | None


def generate(
    module: Module,
    params: Any,
    input_ids: Int[Array, "B P"],
    attention_mask: Int[Array, "B P"],
    key: PRNGKeyArray,
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
) -> FlaxGreedySearchOutput | FlaxSampleOutput:
    """Continues prompts until every row has ended or the tokens are used up.

    Pure, for use inside `jit`. Without `config.use_cache` every step reads the whole row again,
    which is slower and gives the same tokens.

    Args:
        module: A causal language model with a `config`; best with looped layers.
        params: Its parameters.
        input_ids: Prompts, padded on the left.
        attention_mask: 1 for tokens of the prompt, 0 for padding.
        key: Random key; not used by greedy decoding.
        max_new_tokens: Most tokens to write.
        sampling: How tokens are chosen; greedy if None.

    Returns:
        The documented struct; `sequences` are the prompts with their continuations, and
        `config.pad_token_id` after an end token.

    Raises:
        ValueError: if `max_new_tokens` is below 1.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    sampling = sampling or Sampling()
    config, prompt_length = module.config, input_ids.shape[1]
    total = prompt_length + max_new_tokens
    mask_BS = jnp.pad(attention_mask, ((0, 0), (0, max_new_tokens)), constant_values=1)
    positions_BS = jnp.maximum(jnp.cumsum(mask_BS, axis=1) - 1, 0)
    ids_BS = jnp.pad(input_ids, ((0, 0), (0, max_new_tokens)), constant_values=config.pad_token_id)
    cache = None
    if config.use_cache:
        cache = config.empty_cache(input_ids.shape[0], total, module.execution)

    def score(ids_BS: Array, start: Any, length: int, cache: Cache | None) -> tuple[Array, Any]:
        """Logits after the `length` tokens from `start`."""
        if cache is None:
            out: Any = module.apply(
                {"params": params}, ids_BS, attention_mask=mask_BS, position_ids=positions_BS
            )
            last = jax.lax.dynamic_index_in_dim(out.logits, start + length - 1, 1, keepdims=False)
            return last, None
        ids, positions = (
            jax.lax.dynamic_slice_in_dim(x, start, length, axis=1) for x in (ids_BS, positions_BS)
        )
        out = module.apply(
            {"params": params}, ids, attention_mask=mask_BS, position_ids=positions, cache=cache
        )
        return out.logits[:, -1], out.past_key_values

    def write(
        step: Array, ids_BS: Array, logits_BV: Array, finished_B: Array, cache: Cache | None
    ) -> _Decoding:
        """Chooses a token for every row and writes it behind the `step` new ones."""
        token_B = next_token(logits_BV, jax.random.fold_in(key, step), sampling)
        token_B = jnp.where(finished_B, config.pad_token_id, token_B)
        ids_BS = jax.lax.dynamic_update_index_in_dim(ids_BS, token_B, prompt_length + step, 1)
        return _Decoding(step + 1, ids_BS, finished_B | (token_B == config.eos_token_id), cache)

    def more(state: _Decoding) -> Array:
        return (state.step < max_new_tokens) & ~state.finished_B.all()

    def step(state: _Decoding) -> _Decoding:
        logits_BV, cache = score(state.ids_BS, prompt_length + state.step - 1, 1, state.cache)
        return write(state.step, state.ids_BS, logits_BV, state.finished_B, cache)

    logits_BV, cache = score(ids_BS, 0, prompt_length, cache)
    none_B = jnp.zeros(input_ids.shape[0], bool)
    first = write(jnp.zeros((), jnp.int32), ids_BS, logits_BV, none_B, cache)
    sequences = jax.lax.while_loop(more, step, first).ids_BS
    struct_class = FlaxGreedySearchOutput if sampling.greedy else FlaxSampleOutput
    return struct_class(sequences=sequences)


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
    width = -(-max(len(prompt) for prompt in prompts) // multiple) * multiple
    ids = np.full((len(prompts), width), pad_token_id, np.int32)
    mask = np.zeros((len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return ids, mask


@functools.lru_cache(maxsize=8)
def compiled_generate(module: Module, max_new_tokens: int, sampling: Sampling) -> Callable:
    """`generate` under `jit`, as a function of (params, ids, mask, key); compiled once a shape."""
    return jax.jit(
        functools.partial(_call, module, max_new_tokens=max_new_tokens, sampling=sampling)
    )


def _call(
    module: Module,
    params: Any,
    ids: Array,
    mask: Array,
    key: PRNGKeyArray,
    *,
    max_new_tokens: int,
    sampling: Sampling,
) -> FlaxGreedySearchOutput | FlaxSampleOutput:
    return generate(
        module, params, ids, mask, key, max_new_tokens=max_new_tokens, sampling=sampling
    )
