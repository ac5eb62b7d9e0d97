"""Who reads whom in block-sparse attention: what its computations are given beside tokens.

B counts rows, T their tokens, N heads, M query blocks and R the random blocks that each reads.
"""

from dataclasses import dataclass

from flax import struct
from jaxtyping import Array, Int, UInt32

LEAST_WIDTH = 16
"""The fewest tokens of a block of kernels, a power of two: GPUs' matrix units take no fewer."""


def check_width(block_size: int, key: str = "block_size") -> None:
    """Refuses blocks of a width that no kernel takes.

    Args:
        block_size: Tokens per block.
        key: What to call it.

    Raises:
        ValueError: if it is too small, or no power of two; names the key.
    """
    if block_size < LEAST_WIDTH or block_size & (block_size - 1):
        raise ValueError(
            f'Execution.attention="pallas" needs {key} to be a power of two from {LEAST_WIDTH} on, '
            f'got {block_size}; set it, or Execution.attention to "xla"'
        )


@dataclass(frozen=True)
class Reading:
    """The static part of who reads whom.

    Attributes:
        block_size: Tokens per block, W.
        repeats: How many more times query blocks read block 0.
        causal: Whether a query reads only keys at its own place or before it.
        dropout_rate: Probability of dropping a probability, where there is a seed.
        reach: The random blocks are among the first this many; None: anywhere.
        axes: Mesh axes that the tokens are split over, of the mesh in force.
    """

    block_size: int
    repeats: int
    causal: bool
    dropout_rate: float
    reach: int | None = None
    axes: tuple[str, ...] = ()


@struct.dataclass
class Given:
    """The arrays that say who reads whom, whole on every device that splits the tokens.

    Attributes:
        random_blocks_NMR: Random blocks of each head and query block, or None.
        query_segments_BT: Document of each query; None reads the keys of all documents.
        key_segments_BT: Document of each key, 0 for padding; None reads every key.
        seed_2: Random words of the dropout; None drops nothing.
    """

    random_blocks_NMR: Int[Array, "N M R"] | None = None
    query_segments_BT: Int[Array, "B T"] | None = None
    key_segments_BT: Int[Array, "B T"] | None = None
    seed_2: UInt32[Array, "two"] | None = None
