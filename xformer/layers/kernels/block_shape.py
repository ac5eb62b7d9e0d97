"""The sizes that kernels of block-sparse attention are made for."""

import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import pallas as pl
from jaxtyping import Array

from xformer.layers.block_reading import Given, Reading

NEAR = 5
"""Global and neighbouring blocks of a list, which come first."""


@dataclass(frozen=True)
class Shape:
    """The sizes that kernels are made for.

    Attributes:
        batch: Rows of the batch.
        heads: Number of heads.
        blocks: Blocks of a row.
        width: Tokens of a block.
        features: Width of a head.
        random: Random blocks of a query block.
        reach: The random blocks are among the first this many.
        repeats: How many more times query blocks read block 0.
        dropout: Probability of dropping a probability; 0 drops nothing.
        causal: Whether a query reads only keys at its own place or before it.
        interpret: Whether to interpret the kernels, for devices that they are not for.
    """

    batch: int
    heads: int
    blocks: int
    width: int
    features: int
    random: int
    reach: int
    repeats: int
    dropout: float
    causal: bool
    interpret: bool

    @property
    def listed(self) -> int:
        """Key blocks that a query block reads, unless it is global."""
        return NEAR + self.random

    def cost(self, products: int, arrays: Any) -> pl.CostEstimate:
        """What the compiler and plans are told of a kernel, whose body they see but once.

        Args:
            products: Products of a block with a block or with its scores, for each row and head.
            arrays: What is read and written.

        Returns:
            The operations, exponentials (one for two products) and bytes.
        """
        scores = self.batch * self.heads * self.width**2
        leaves = jax.tree.leaves(arrays)
        return pl.CostEstimate(
            flops=2 * products * scores * self.features,
            transcendentals=products * scores // 2,
            bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves),
        )

    @classmethod
    def of(cls, reading: Reading, given: Given, q_BTNH: Array, interpret: bool) -> "Shape":
        """Those of some queries.

        Args:
            reading: Who reads whom, the static part.
            given: Who reads whom, the arrays.
            q_BTNH: The queries.
            interpret: As the attribute.

        Returns:
            The sizes.
        """
        batch, length, heads, features = q_BTNH.shape
        blocks, table = length // reading.block_size, given.random_blocks_NMR
        return cls(
            batch=batch,
            heads=heads,
            blocks=blocks,
            width=reading.block_size,
            features=features,
            random=0 if table is None else table.shape[2],
            reach=min(reading.reach or blocks, blocks),
            repeats=reading.repeats,
            dropout=0.0 if given.seed_2 is None else reading.dropout_rate,
            causal=reading.causal,
            interpret=interpret,
        )
