"""Tables of vectors; that of the tokens is shared between input lookup and output projection."""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from xformer.layers.lookup import look_up
from xformer.layers.parameter import scales, with_axes
from xformer.layers.vocabulary import VocabularyScores


class TokenEmbedding(nn.Module):
    """A table of token vectors that can also score hidden states against every token.

    Attributes:
        vocab_size: Rows of the table.
        features: Width of a vector.
        dtype: Compute dtype; the table is float32, or what decoding keeps it as.
        embedding_init: Initializer of the table.
        axis: Logical axis of the rows: "vocab", or "positions" for tables of positions and types.
    """

    vocab_size: int
    features: int
    dtype: jnp.dtype = jnp.dtype("float32")
    embedding_init: Initializer = nn.initializers.normal(0.02)
    axis: str = "vocab"

    def setup(self) -> None:
        """Declares the table."""
        self.embedding = self.param(
            "embedding",
            with_axes(self.embedding_init, (self.axis, "embed")),
            (self.vocab_size, self.features),
            jnp.float32,
        )
        self.scale_V = scales(self, "embedding")

    def __call__(self, ids_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Looks up vectors. An id outside the table gives NaN, never another token's vector."""
        if self.scale_V is None:
            return look_up(self.embedding, ids_BT, self.dtype, self.axis)
        row_BTD, scale_BT1 = (
            look_up(table, ids_BT, jnp.dtype("float32"), self.axis)
            for table in (self.embedding, self.scale_V[:, None])
        )
        return (row_BTD * scale_BT1).astype(self.dtype)

    def scores(self, x_BTD: Float[Array, "B T D"], chunk: int | None = None) -> VocabularyScores:
        """What the scores of every token for hidden states are computed from.

        Args:
            x_BTD: Hidden states.
            chunk: As that of `VocabularyScores`.

        Returns:
            The scores, in float32 once they are computed.
        """
        return VocabularyScores(
            x_BTD.astype(self.dtype), self.embedding, scale_V=self.scale_V, chunk=chunk
        )


def normal_but_padding(std: float, padding_id: int) -> Initializer:
    """An initializer of normal token vectors, with that of the padding token at zero.

    Args:
        std: Standard deviation.
        padding_id: Row of the padding token.

    Returns:
        The initializer.
    """

    def init(key: PRNGKeyArray, shape: tuple[int, int], dtype: DTypeLike) -> Float[Array, "V D"]:
        table_VD = nn.initializers.normal(std)(key, shape, dtype)
        return table_VD.at[padding_id].set(0.0)

    return init
