"""Keys and values of tokens already seen, passed in and out explicitly."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int


@struct.dataclass
class LayerCache:
    """The keys and values that one attention layer reads: of earlier tokens, or of encoder states.

    Attributes:
        key_BSNH: Keys; places that no token has filled yet hold zeros.
        value_BSNH: Values.
    """

    key_BSNH: Float[Array, "B S N H"]
    value_BSNH: Float[Array, "B S N H"]

    def append(
        self,
        key_BTNH: Float[Array, "B T N H"],
        value_BTNH: Float[Array, "B T N H"],
        start: Int[Array, ""],
    ) -> "LayerCache":
        """Writes the keys and values of T new tokens at places start .. start + T - 1."""
        key, value = (
            jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=1)
            for old, new in ((self.key_BSNH, key_BTNH), (self.value_BSNH, value_BTNH))
        )
        return LayerCache(key, value)


@struct.dataclass
class Cache:
    """The state of a decoder between two calls.

    Attributes:
        layers: One entry per layer, from the bottom.
        length: Number of tokens stored so far, the same for every layer and row.
        cross: Keys and values of the encoder states, one entry per layer; None until a call has
            read them.
    """

    layers: tuple[LayerCache, ...]
    length: Int[Array, ""]
    cross: tuple[LayerCache, ...] | None = None

    @classmethod
    def empty(
        cls,
        *,
        num_layers: int,
        batch: int,
        max_length: int,
        heads: int,
        head_dim: int,
        dtype: jnp.dtype,
    ) -> "Cache":
        """A cache with room for `max_length` tokens in each of `batch` rows and none stored."""
        zeros = jnp.zeros((batch, max_length, heads, head_dim), dtype)
        return cls(
            tuple(LayerCache(zeros, zeros) for _ in range(num_layers)), jnp.zeros((), jnp.int32)
        )

    def advanced(self, outputs: Sequence[Any], new_tokens: int) -> "Cache":
        """The cache behind `new_tokens` more tokens.

        Args:
            outputs: What each layer returned, with its `cache` and `cross`.
            new_tokens: Number of tokens that the layers have read.

        Returns:
            The extended cache.
        """
        cross = tuple(out.cross for out in outputs)
        return Cache(
            tuple(out.cache for out in outputs),
            self.length + new_tokens,
            cross if cross[0] is not None else None,
        )

    @property
    def max_length(self) -> int:
        """Number of tokens there is room for."""
        return self.layers[0].key_BSNH.shape[1]

    def check_room(self, new_tokens: int) -> None:
        """Refuses tokens beyond the end, where the length is known (outside `jit`).

        Inside `jit` the caller must size the cache: a write beyond the end would land on the last
        places.

        Raises:
            ValueError: if fewer than `new_tokens` places are free.
        """
        stored = 0 if isinstance(self.length, jax.core.Tracer) else int(self.length)
        if stored + new_tokens > self.max_length:
            raise ValueError(
                f"a cache of max_length={self.max_length} holds {stored} tokens and cannot take "
                f"{new_tokens} more; make it longer"
            )

    def check_call(self, new_tokens: int, segment_ids: Array | None) -> None:
        """Refuses tokens that cannot be read behind those of a cache.

        Args:
            new_tokens: Their number.
            segment_ids: Their documents; None if all are of one.

        Raises:
            ValueError: if there is no room for them (`check_room`), or if they are packed rows.
        """
        self.check_room(new_tokens)
        if segment_ids is not None:
            raise ValueError("segment_ids describe packed rows and cannot be used with a cache")
