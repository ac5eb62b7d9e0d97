"""Which key blocks each query block reads: decided on the host, in NumPy, before anything compiles.

Block-sparse attention (Zaheer et al., 2020, "Big Bird", arXiv:2007.14062, section 2) cuts T tokens
into M blocks of W. The first and the last block are global: they read every block and every block
reads them. Another query block reads itself, its two neighbours and R random blocks.

The random blocks are those of the published code in training: one table per layer and head, drawn
from `numpy.random.RandomState(layer)`.
"""

import functools

import numpy as np
from jaxtyping import Int

# Lengths that the paper's models were trained at; their tables are cut from one long table, whose
# random blocks lie among the first 1024 tokens. (Some later copies leave 2048 out of this list, or
# make the table longer where a model has more positions.)
TABLE_LENGTHS = (1024, 2048, 3072, 4096)
_TABLE_TOKENS = 4096  # `MAX_SEQ_LEN` of the original code
_TABLE_REACH = 1024


def is_sparse(length: int, block_size: int, num_random_blocks: int) -> bool:
    """Whether a sequence is long enough for block-sparse attention to leave anything out.

    Args:
        length: Number of tokens before padding.
        block_size: Tokens per block, W.
        num_random_blocks: Random key blocks per query block, R.

    Returns:
        True above (5 + 2 * num_random_blocks) blocks; dense attention is meant for the rest.
    """
    return length > (5 + 2 * num_random_blocks) * block_size


@functools.lru_cache(maxsize=128)
def random_blocks(
    length: int,
    *,
    block_size: int,
    num_random_blocks: int,
    num_heads: int,
    layer: int,
    max_position_embeddings: int,
) -> Int[np.ndarray, "N M R"]:
    """The random key blocks of one layer.

    The lengths of `TABLE_LENGTHS` up to `max_position_embeddings` take the first rows of a table
    for `max_position_embeddings` tokens, or for 4096 where that is less, so that more positions
    leave the blocks of a published model as they are. As published, a block may appear there that
    the window or the global blocks bring too, and is then read twice. Other lengths draw from the
    first 5 + 2 * num_random_blocks blocks, without such repetitions.

    Args:
        length: Number of tokens, a multiple of `block_size`.
        block_size: Tokens per block, W.
        num_random_blocks: Random key blocks per query block, R.
        num_heads: Number of heads, N; each has blocks of its own.
        layer: Number of the layer from the bottom, the seed.
        max_position_embeddings: The model's longest sequence, which bounds the long table.

    Returns:
        A read-only int32 table. The rows of the first and the last block, which read everything,
        are unused and hold 0.

    Raises:
        ValueError: if the length is no multiple of the block size, or too short to be sparse.
    """
    if length % block_size:
        raise ValueError(f"a block plan needs length={length} to be a multiple of {block_size=}")
    if not is_sparse(length, block_size, num_random_blocks):
        raise ValueError(
            f"a block plan of {block_size=} and {num_random_blocks=} needs more than "
            f"{(5 + 2 * num_random_blocks) * block_size} tokens, got length={length}; use dense "
            "attention"
        )
    rng = np.random.RandomState(layer)
    plan_NMR = np.zeros((num_heads, length // block_size, num_random_blocks), np.int32)
    rows = np.arange(1, plan_NMR.shape[1] - 1)
    tabled = length in TABLE_LENGTHS and length <= max_position_embeddings
    if tabled and is_sparse(_TABLE_REACH, block_size, num_random_blocks):
        table_blocks = min(max_position_embeddings, _TABLE_TOKENS) // block_size
        for head in range(num_heads):  # a head draws its whole table before the next one
            table = [
                rng.permutation(_table_candidates(row, table_blocks, block_size))
                for row in range(1, table_blocks - 1)
            ]
            for row in rows:
                plan_NMR[head, row] = table[row - 1][:num_random_blocks]
    else:
        reach = 5 + 2 * num_random_blocks
        drawn = _permutations(rng, len(rows) * num_heads, reach).reshape(reach, -1, num_heads)
        allowed = np.take_along_axis(_is_new(rows, reach)[..., None], drawn, axis=0)
        first = np.argsort(~allowed, axis=0, kind="stable")[:num_random_blocks]
        plan_NMR[:, 1:-1] = np.take_along_axis(drawn, first, axis=0).transpose(2, 1, 0)
    plan_NMR.setflags(write=False)
    return plan_NMR


def _table_candidates(row: int, table_blocks: int, block_size: int) -> Int[np.ndarray, " M"]:
    """What a row of the long table draws from, with the published table's own repetitions."""
    middle = np.arange(1, table_blocks - 1, dtype=np.int32)
    last = _TABLE_REACH // block_size - 1
    if row <= 2:
        return middle[row + 1 : last]
    if row >= table_blocks - 3:
        return middle[:last]
    before = row - 2
    if before > last:
        return middle[:last]
    if row + 1 == last:
        return middle[:before]
    return np.concatenate((middle[:before], middle[row + 1 : last]))


def _permutations(rng: np.random.RandomState, count: int, size: int) -> np.ndarray:
    """Draws what as many calls of `rng.permutation(size)` would.

    Each swaps its last element with one not behind it, then the last but one, and so on (Fisher and
    Yates); here all do so at once, with the numbers that they would draw one after the other.

    Returns:
        The permutations, each a column.
    """
    last = np.arange(size - 1, 0, -1)
    partners = rng.randint(0, np.tile(last + 1, count)).reshape(count, -1).T
    drawn = np.repeat(np.arange(size, dtype=np.int32)[:, None], count, axis=1)
    columns = np.arange(count)
    for place, partner in zip(last, partners, strict=True):
        moved = drawn[partner, columns]
        drawn[partner, columns] = drawn[place]
        drawn[place] = moved
    return drawn


def _is_new(rows: np.ndarray, reach: int) -> np.ndarray:
    """Which of the first `reach` blocks (down) neither window nor global blocks bring to rows."""
    blocks = np.arange(reach)[:, None]
    allowed = (blocks > 0) & (blocks < reach - 1) & (abs(blocks - rows) > 1)
    allowed &= (rows != 1) | (blocks != reach - 2)
    return allowed & ((rows != reach - 2) | (blocks != 1))
