"""The random blocks turned round: for each key block the query blocks that read it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


class SortedReaders(NamedTuple):
    """Query blocks that read each key block, one key block's after another's.

    Attributes:
        bounds_NX: Where those of each key block begin, and where the last one's end.
        entries_NR: Entries of the plan: the query block's number times R, plus which of its random
            blocks it is.
    """

    bounds_NX: Int[Array, "N X"]
    entries_NR: Int[Array, "N R"]


def sorted_readers(random_blocks_NMR: Int[Array, "N M R"], reach: int) -> SortedReaders:
    """The plan transposed, computed where the plan lies, for it may be that of a scanned layer.

    Args:
        random_blocks_NMR: Random key blocks of each head and query block, all less than `reach`;
            those of the first and the last query block are not read.
        reach: Number of key blocks that there may be readers of.

    Returns:
        The readers.
    """
    heads, _, random = random_blocks_NMR.shape
    read_NR = random_blocks_NMR[:, 1:-1].reshape(heads, -1)
    order_NR = jnp.argsort(read_NR, stable=True)
    read_NR = jnp.take_along_axis(read_NR, order_NR, axis=1)
    bounds_NX = jax.vmap(lambda read: jnp.searchsorted(read, jnp.arange(reach + 1)))(read_NR)
    return SortedReaders(bounds_NX.astype(jnp.int32), (order_NR + random).astype(jnp.int32))


class Readers(NamedTuple):
    """Query blocks that read each key block, in chunks of a fixed number.

    Every key block has a chunk at least, and those of one key block follow one another, so that
    their gradients can be added up where they lie. What is left over at the end are chunks of the
    last key block without a reader.

    Attributes:
        keys_NK: Key block of each chunk, ascending.
        entries_NKR: Its readers, as in `SortedReaders`; -1 stands for none.
    """

    keys_NK: Int[Array, "N K"]
    entries_NKR: Int[Array, "N K R"]


def readers(random_blocks_NMR: Int[Array, "N M R"], reach: int, per_chunk: int) -> Readers:
    """The plan transposed, in chunks; see `sorted_readers`.

    Args:
        random_blocks_NMR: As there.
        reach: As there.
        per_chunk: Readers of a chunk.

    Returns:
        The readers; there are (M - 2) * R // per_chunk + reach chunks for each head.
    """
    _, blocks, random = random_blocks_NMR.shape
    chunks = (blocks - 2) * random // per_chunk + reach

    def of_head(bounds: Array, entries: Array) -> Readers:
        chunk_ends = jnp.cumsum(jnp.maximum(1, -(-jnp.diff(bounds) // per_chunk)))
        chunk = jnp.arange(chunks)
        keys = jnp.minimum(jnp.searchsorted(chunk_ends, chunk, side="right"), reach - 1)
        before = jnp.where(keys > 0, chunk_ends[keys - 1], 0)
        places = bounds[keys] + (chunk - before) * per_chunk
        places = places[:, None] + jnp.arange(per_chunk)[None]
        found = entries.at[jnp.minimum(places, entries.size - 1)].get(mode="promise_in_bounds")
        found = jnp.where(places < bounds[keys + 1][:, None], found, -1)
        return Readers(keys.astype(jnp.int32), found.astype(jnp.int32))

    return jax.vmap(of_head)(*sorted_readers(random_blocks_NMR, reach))
