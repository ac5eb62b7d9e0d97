"""Keys and values of tokens already seen, passed in and out explicitly."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int


@struct.dataclass
class LayerCache:
    """The keys and values that one attention layer reads: of earlier tokens, or of encoder states.

    Heads come before places, as products over heads want them: a cache in another order would be
    turned around for every new token.

    Attributes:
        key_BNSH: Keys; places that no token has filled yet hold zeros.
        value_BNSH: Values.
    """

    key_BNSH: Float[Array, "B N S H"]
    value_BNSH: Float[Array, "B N S H"]

    @classmethod
    def of(
        cls, key_BSNH: Float[Array, "B S N H"], value_BSNH: Float[Array, "B S N H"]
    ) -> "LayerCache":
        """Keys and values as projections make them."""
        return cls(key_BSNH.swapaxes(1, 2), value_BSNH.swapaxes(1, 2))

    @property
    def key_BSNH(self) -> Float[Array, "B S N H"]:
        """The keys as attention reads them."""
        return self.key_BNSH.swapaxes(1, 2)

    @property
    def value_BSNH(self) -> Float[Array, "B S N H"]:
        """The values as attention reads them."""
        return self.value_BNSH.swapaxes(1, 2)

    def append(self, new: "LayerCache", start: Int[Array, ""]) -> "LayerCache":
        """Writes the keys and values of T new tokens at places start .. start + T - 1."""

        def written(old_BNSH: Array, new_BNTH: Array) -> Array:
            new_BNTH = new_BNTH.astype(old_BNSH.dtype)
            if old_BNSH.dtype != jnp.float32:
                return _write(old_BNSH, new_BNTH, start)
            return lax.platform_dependent(
                old_BNSH, new_BNTH, start, cpu=_write_apart, default=_write
            )

        return jax.tree.map(written, self, new)


def _write(old_BNSH: Array, new_BNTH: Array, start: Array) -> Array:
    return lax.dynamic_update_slice_in_dim(old_BNSH, new_BNTH, start, axis=2)


def _write_apart(old_BNSH: Array, new_BNTH: Array, start: Array) -> Array:
    # XLA's CPU compiler puts a write into what reads it, and then copies the cache to write it for
    # the next token too; not into what it believes may not happen. It turns all of a bfloat16 cache
    # into float32 for either, which a write apart only makes longer.
    return lax.cond(start >= 0, _write, lambda old, *_: old, old_BNSH, new_BNTH, start)


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
        zeros = jnp.zeros((batch, heads, max_length, head_dim), dtype)
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
        return self.layers[0].key_BNSH.shape[2]

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
