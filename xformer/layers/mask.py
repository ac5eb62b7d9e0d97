"""What may attend to what: described first, turned into an array only where one is needed."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int


@struct.dataclass
class Mask:
    """A description of an attention mask.

    A query may read a key if every condition that is present allows it.

    Attributes:
        causal: Whether a query reads only keys at its own place or before it.
        query_start: Place of the first query among the keys (tokens already in a cache); None is 0.
        key_valid_BS: False for keys that nobody reads (padding).
        query_segments_BT: Document number of each query; 0 is padding.
        key_segments_BS: Document number of each key. Queries read keys of their own document only.
        random_blocks_NMR: For cores that read in blocks, and of no meaning to others: the random
            key blocks of each head and query block (`xformer.layers.block_plan.random_blocks`).
    """

    causal: bool = struct.field(pytree_node=False, default=False)
    query_start: Int[Array, ""] | None = None
    key_valid_BS: Bool[Array, "B S"] | None = None
    query_segments_BT: Int[Array, "B T"] | None = None
    key_segments_BS: Int[Array, "B S"] | None = None
    random_blocks_NMR: Int[Array, "N M R"] | None = None

    @classmethod
    def of(
        cls,
        attention_mask: Int[Array, "B S"] | None,
        query_segments: Int[Array, "B T"] | None = None,
        key_segments: Int[Array, "B S"] | None = None,
        *,
        causal: bool = False,
        query_start: Int[Array, ""] | None = None,
    ) -> "Mask":
        """The mask of documented arguments.

        Args:
            attention_mask: 1 for keys that may be read, 0 for padding.
            query_segments: Document of each query, 0 for padding.
            key_segments: Document of each key; that of the queries if None.
            causal: As the attribute.
            query_start: As the attribute.

        Returns:
            The mask.
        """
        return cls(
            causal=causal,
            query_start=query_start,
            key_valid_BS=None if attention_mask is None else attention_mask > 0,
            query_segments_BT=query_segments,
            key_segments_BS=query_segments if key_segments is None else key_segments,
        )

    def materialize(self, length: int, key_length: int) -> Bool[Array, "_ 1 T S"] | None:
        """The mask as an array, True where a query may read a key.

        Args:
            length: Number of queries, T.
            key_length: Number of keys, S.

        Returns:
            An array that broadcasts to (B, 1, T, S), or None if everything may be read.
        """
        parts = []
        if self.causal:
            start = 0 if self.query_start is None else self.query_start
            queries_T1 = jnp.arange(length)[:, None] + start
            parts.append((jnp.arange(key_length)[None, :] <= queries_T1)[None, None])
        if self.key_valid_BS is not None:
            parts.append(self.key_valid_BS[:, None, None, :])
        if self.query_segments_BT is not None and self.key_segments_BS is not None:
            same_BTS = self.query_segments_BT[:, :, None] == self.key_segments_BS[:, None, :]
            parts.append((same_BTS & (self.key_segments_BS[:, None, :] > 0))[:, None])
        if not parts:
            return None
        allowed = parts[0]
        for part in parts[1:]:
            allowed = allowed & part
        return allowed

    def segments(self) -> tuple[Int[Array, "B T"] | None, Int[Array, "B S"] | None]:
        """Documents and padding in one: documents of queries, and of keys with 0 for padding.

        Returns:
            The first is None if queries read the keys of all documents, and the second if there is
            no padding either.
        """
        queries_BT, keys_BS = self.query_segments_BT, self.key_segments_BS
        if queries_BT is None or keys_BS is None:
            queries_BT = keys_BS = None
        if self.key_valid_BS is not None:
            keys_BS = jnp.where(self.key_valid_BS, 1 if keys_BS is None else keys_BS, 0)
        return queries_BT, keys_BS

    def readers(self, length: int, key_length: int) -> Bool[Array, "B T"] | None:
        """Which queries of self-attention are tokens rather than padding.

        Args:
            length: Number of queries, T.
            key_length: Number of keys, S; the queries are the keys at `query_start` onwards.

        Returns:
            False where a query is padding by any condition; None if no condition is present.
        """
        valid = self.key_valid_BS
        if valid is not None and length != key_length:
            start = 0 if self.query_start is None else self.query_start
            valid = jax.lax.dynamic_slice_in_dim(valid, start, length, axis=1)
        if self.query_segments_BT is None:
            return valid
        inside = self.query_segments_BT > 0
        return inside if valid is None else valid & inside
