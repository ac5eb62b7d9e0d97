"""Biases on attention scores that depend on how far a key is from its query."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.typing import Initializer
from jaxtyping import Array, Float, Int

from xformer.layers.parameter import with_axes


@functools.lru_cache(maxsize=32)
def relative_buckets(
    length: int, *, num_buckets: int, max_distance: int, bidirectional: bool
) -> Int[np.ndarray, " R"]:
    """The bucket of every distance between two of `length` places (Raffel et al., 2020, 2.1).

    The nearer half of the buckets holds one distance each, the others grow logarithmically up to
    `max_distance`, beyond which all share the last. Built on the host in float32: accelerators
    compute logarithms differently, and a distance in another bucket is another model.

    Args:
        length: Number of places, S.
        num_buckets: Number of buckets.
        max_distance: Distance from which all share one.
        bidirectional: Whether keys behind their query have buckets of their own, half of them;
            otherwise they share bucket 0.

    Returns:
        The buckets of key - query = -(S - 1) ... S - 1, so that R = 2 * S - 1.
    """
    behind_R = np.arange(-(length - 1), length, dtype=np.int32)
    buckets_R = np.zeros_like(behind_R)
    if bidirectional:
        num_buckets //= 2
        buckets_R += (behind_R > 0) * np.int32(num_buckets)
        distance_R = np.abs(behind_R)
    else:
        distance_R = -np.minimum(behind_R, 0)
    exact = num_buckets // 2
    ratio_R = np.log(np.maximum(distance_R, 1).astype(np.float32) / np.float32(exact))
    ratio_R = ratio_R / np.float32(math.log(max_distance / exact))
    far_R = exact + (ratio_R * np.float32(num_buckets - exact)).astype(np.int32)
    far_R = np.minimum(far_R, num_buckets - 1)
    buckets_R += np.where(distance_R < exact, distance_R, far_R)
    buckets_R.setflags(write=False)
    return buckets_R


@struct.dataclass
class DistanceBias:
    """A bias for each distance and head, turned into an array of T x S only where one is needed.

    Attributes:
        by_distance_NC: What is added to the scores, from the last query with the first key, which
            is farthest behind it, to the first query with the last key, so that C = T + S - 1.
    """

    by_distance_NC: Float[Array, "N C"]

    def materialize(self, length: int) -> Float[Array, "1 N T S"]:
        """The biases of all pairs, for `length` queries, T."""
        return diagonals(self.by_distance_NC, length)[None]


class RelativeBias(nn.Module):
    """A learned bias for each bucket of distances and each head.

    Attributes:
        num_heads: Number of heads, N.
        num_buckets: Number of buckets.
        max_distance: Distance from which all share one.
        bidirectional: Whether keys behind their query have buckets of their own.
        embedding_init: Initializer of the table.
    """

    num_heads: int
    num_buckets: int
    max_distance: int
    bidirectional: bool
    embedding_init: Initializer = nn.initializers.normal(1.0)

    @nn.compact
    def __call__(
        self, length: int, key_length: int, start: Int[Array, ""] | None = None
    ) -> DistanceBias:
        """Looks up the biases of neighbouring queries.

        Args:
            length: Number of queries, T.
            key_length: Number of keys, S.
            start: Place of the first query among the keys; None is 0.

        Returns:
            What is added to the scores, float32.
        """
        table_PN = self.param(
            "embedding",
            with_axes(self.embedding_init, ("positions", "heads")),
            (self.num_buckets, self.num_heads),
            jnp.float32,
        )
        places = max(length, key_length)
        buckets_R = relative_buckets(
            places,
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
            bidirectional=self.bidirectional,
        )
        # The distances of all queries and keys are neighbours: the last query's come first.
        first = places - length - (0 if start is None else start)
        near_C = jax.lax.dynamic_slice_in_dim(
            jnp.asarray(buckets_R), first, length + key_length - 1
        )
        return DistanceBias(table_PN[near_C].T)


def diagonals(values_NC: Float[Array, "N C"], rows: int) -> Float[Array, "N T S"]:
    """Matrices with one value along each diagonal, by copying and reshaping alone.

    Args:
        values_NC: The values, from the lower left corner to the upper right one.
        rows: Number of rows, T.

    Returns:
        Matrices of S = C - T + 1 columns.
    """
    heads, count = values_NC.shape
    padded_NC = jnp.pad(values_NC, ((0, 0), (0, 1)))
    repeated_NTC = jnp.broadcast_to(padded_NC[:, None], (heads, rows, count + 1))
    # Rows that are one value shorter than what they repeat move on by one place a row.
    moved_NTC = repeated_NTC.reshape(heads, -1)[:, : rows * count].reshape(heads, rows, count)
    return moved_NTC[:, :, rows - 1 :]
