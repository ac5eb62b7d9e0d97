"""Block-sparse attention: every query block reads a few key blocks, so cost grows with the length.

`xformer.layers.block_plan` says which ones. The definition is dense attention in which the score of
a key is raised by the logarithm of the number of times that its block is read (`block_counts`).
Where nothing of size T x S is asked for, the same comes out in linear time and memory.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from xformer.layers.attention import CoreOutput, dense_attention, masked_heads
from xformer.layers.block_reading import Given, Reading
from xformer.layers.block_rows import attend_in_blocks
from xformer.layers.mask import Mask
from xformer.layers.relative_bias import DistanceBias
from xformer.layers.sharding import mesh_axes, ways

MIN_BLOCKS = 3  # the two global blocks and one between them


def pad_blocks(
    x_BTD: Float[Array, "B T D"], mask: Mask, multiple: int
) -> tuple[Float[Array, "B S D"], Mask]:
    """Appends padding to what enters a stack of self-attention, up to whole blocks.

    No more than that: the last block is global, so further padding changes what real tokens see.
    What leaves the stack is cut back by `x_BTD[:, :T]` and `probabilities_BNTS[:, :, :T, :T]`.

    Args:
        x_BTD: Embedded tokens; nobody reads the zeros that are appended.
        mask: Who may read whom among the T tokens; without random blocks.
        multiple: What the length becomes a multiple of: the tokens per block, W, or 1 where
            nothing is read in blocks.

    Returns:
        The longer input and the mask in which the padding is marked; both as they were if the
        length is a multiple already.
    """
    batch, length = x_BTD.shape[:2]
    amount = -length % multiple
    if amount == 0:
        return x_BTD, mask

    def longer_BS(x_BT: Array | None) -> Array | None:
        return None if x_BT is None else jnp.pad(x_BT, ((0, 0), (0, amount)))

    valid_BT = mask.key_valid_BS
    if valid_BT is None:
        valid_BT = jnp.ones((batch, length), bool)
    padded = dataclasses.replace(
        mask,
        key_valid_BS=longer_BS(valid_BT),
        query_segments_BT=longer_BS(mask.query_segments_BT),
        key_segments_BS=longer_BS(mask.key_segments_BS),
    )
    return jnp.pad(x_BTD, ((0, 0), (0, amount), (0, 0))), padded


def block_counts(
    num_blocks: int, num_random_blocks: int, random_blocks_NMR: Int[Array, "N M R"] | None = None
) -> Int[Array, "_ M M"]:
    """How often each query block reads each key block.

    Args:
        num_blocks: Number of blocks, M.
        num_random_blocks: Random key blocks per query block, R.
        random_blocks_NMR: Which ones; None means that each of them is block 0.

    Returns:
        Counts for (head or 1, query block, key block); 0 is a block that is not read.
    """
    row_M1, column_1M = jnp.arange(num_blocks)[:, None], jnp.arange(num_blocks)[None, :]
    last = num_blocks - 1
    base_MM = (column_1M == 0) | (column_1M == last) | (jnp.abs(row_M1 - column_1M) <= 1)
    base_MM = base_MM.astype(jnp.int32)
    if random_blocks_NMR is None:
        counts_NMM = (base_MM + num_random_blocks * (column_1M == 0))[None]
    else:
        chosen_NMRM = random_blocks_NMR[..., None] == jnp.arange(num_blocks)[None, None, None]
        counts_NMM = base_MM[None] + chosen_NMRM.sum(2, dtype=jnp.int32)
    is_global_M1 = (row_M1 == 0) | (row_M1 == last)
    return jnp.where(is_global_M1[None], 1, counts_NMM)


@dataclass(frozen=True)
class BlockSparse:
    """The attention core of BigBird; called like `dense_attention`.

    `Mask.random_blocks_NMR` holds the random blocks of a layer. Without them all random blocks of a
    query block are block 0, which it reads 1 + num_random_blocks times in all: so the published
    code evaluates.

    Padded queries get a context of zeros. In a decoder with a cache the queries take their rows of
    the plan for all places of the cache, whose number need not be a multiple of the block size.

    Attributes:
        block_size: Tokens per block, W.
        num_random_blocks: Random key blocks per query block, R; 0 leaves the window and the global
            blocks.
        random_reach: The random blocks are among the first this many, which are all that devices
            send one another for them where the tokens of a row are split; None: anywhere.
        attend: What computes the contexts in linear time, called like `attend_in_blocks`.
    """

    block_size: int
    num_random_blocks: int
    random_reach: int | None = None
    attend: Callable[..., Array] = attend_in_blocks

    def __call__(
        self,
        q_BTNH: Float[Array, "B T N H"],
        k_BSNH: Float[Array, "B S N H"],
        v_BSNH: Float[Array, "B S N H"],
        *,
        mask: Mask,
        bias: DistanceBias | None = None,
        head_mask_N: Float[Array, " N"] | None = None,
        dropout_rate: float = 0.0,
        key: PRNGKeyArray | None = None,
        return_probabilities: bool = False,
    ) -> CoreOutput:
        """Attends in blocks; see `dense_attention` for the arguments.

        Probabilities, a bias, and decoding with a cache take the dense path.

        Returns:
            The context, and on request the probabilities, whose rows sum to one.

        Raises:
            ValueError: if the length is no multiple of the block size, or too short, or the random
                blocks do not fit.
        """
        length, key_length = q_BTNH.shape[1], k_BSNH.shape[1]
        decodes = mask.query_start is not None or length != key_length
        self._check(key_length, decodes, mask.random_blocks_NMR)
        if return_probabilities or bias is not None or decodes:
            bias_BNTS = self._shares(mask, length, key_length)[None]
            if bias is not None:
                bias_BNTS = bias.materialize(length) + bias_BNTS
            out = dense_attention(
                q_BTNH,
                k_BSNH,
                v_BSNH,
                mask=mask,
                bias=bias_BNTS,
                head_mask_N=head_mask_N,
                dropout_rate=dropout_rate,
                key=key,
                return_probabilities=return_probabilities,
            )
        else:
            out = self._linear(q_BTNH, k_BSNH, v_BSNH, mask, head_mask_N, dropout_rate, key)
        readers_BT = mask.readers(length, key_length)
        if readers_BT is None:
            return out
        context_BTNH = jnp.where(readers_BT[:, :, None, None], out.context_BTNH, 0)
        return CoreOutput(context_BTNH, out.probabilities_BNTS)

    def _linear(
        self,
        q_BTNH: Array,
        k_BTNH: Array,
        v_BTNH: Array,
        mask: Mask,
        head_mask_N: Array | None,
        dropout_rate: float,
        key: PRNGKeyArray | None,
    ) -> CoreOutput:
        """The context in linear time and memory."""
        given = Given(mask.random_blocks_NMR, *mask.segments())
        repeats = self.num_random_blocks if mask.random_blocks_NMR is None else 0
        axes = _token_axes(q_BTNH.shape[1] // self.block_size)
        reading = Reading(
            self.block_size, repeats, mask.causal, dropout_rate, self.random_reach, axes
        )
        context_BTNH = self.attend(reading, q_BTNH, k_BTNH, v_BTNH, given, key)
        return CoreOutput(masked_heads(context_BTNH, head_mask_N))

    def _shares(self, mask: Mask, length: int, key_length: int) -> Float[Array, "_ T S"]:
        """Logarithms of how often each query reads each key, for the definition."""
        counts_NMM = block_counts(
            -(-key_length // self.block_size), self.num_random_blocks, mask.random_blocks_NMR
        )
        start = 0 if mask.query_start is None else mask.query_start
        rows_T = (jnp.arange(length) + start) // self.block_size
        columns_S = jnp.arange(key_length) // self.block_size
        counts_NTS = counts_NMM[:, rows_T][:, :, columns_S]
        shares_NTS = jnp.log(jnp.maximum(counts_NTS, 1))
        return jnp.where(counts_NTS > 0, shares_NTS, 0.5 * jnp.finfo(jnp.float32).min)

    def _check(self, key_length: int, decodes: bool, random_blocks_NMR: Array | None) -> None:
        blocks = -(-key_length // self.block_size)
        if not decodes and (key_length % self.block_size or blocks < MIN_BLOCKS):
            raise ValueError(
                "block-sparse attention needs a length that is a multiple of block_size="
                f"{self.block_size} and at least {MIN_BLOCKS} blocks, got {key_length} tokens; "
                "pad it, or use dense attention"
            )
        if random_blocks_NMR is None:
            return
        expected = (blocks, self.num_random_blocks)
        if random_blocks_NMR.shape[1:] != expected:
            raise ValueError(
                f"Mask.random_blocks_NMR must have (M, R)={expected} for {key_length} keys and "
                f"num_random_blocks={self.num_random_blocks}, got {random_blocks_NMR.shape[1:]}"
            )


def _token_axes(blocks: int) -> tuple[str, ...]:
    """The mesh axes in force that the tokens of a row are split over."""
    axes = mesh_axes("act_length")
    count = ways(axes)
    if blocks % count:
        raise ValueError(
            f"the {count} ways of the mesh axes {axes} must divide the {blocks} blocks of a row; "
            "set MeshConfig.sequence, or the length of the rows"
        )
    return axes
