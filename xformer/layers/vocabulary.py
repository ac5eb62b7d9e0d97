"""Scores of every token of a vocabulary, computed only by those who need each of them.

A loss needs sums over the vocabulary. It takes `VocabularyScores`, which is what the scores would
be computed from, and looks at a chunk of the vocabulary at a time.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.typing import Initializer
from jaxtyping import Array, Float, Int, Num

from xformer.layers.linear import multiply_kept
from xformer.layers.parameter import OUTPUTS_FIRST, scales, with_axes
from xformer.layers.sharding import ways
from xformer.layers.table_shards import TableShards
from xformer.layers.vocabulary_chunks import Sums, sums_in_chunks


@struct.dataclass
class VocabularyScores:
    """Scores of every token for hidden states, before they are computed.

    Attributes:
        states_BTD: Hidden states in the compute dtype.
        table: What they are compared with, (V, D) or (D, V), in float32, or what decoding keeps it
            as.
        bias_V: What is added to the scores; None for nothing.
        scale_V: What the products with a table of integers, (V, D), are multiplied with; None for
            nothing.
        letters: "VD" or "DV", the axes of the table.
        chunk: Most tokens of the vocabulary that `sums` scores at once, on every device that has a
            share of them and more than few scores; None for all.
    """

    states_BTD: Float[Array, "B T D"]
    table: Num[Array, "V D"] | Num[Array, "D V"]
    bias_V: Float[Array, " V"] | None = None
    scale_V: Float[Array, " V"] | None = None
    letters: str = struct.field(pytree_node=False, default="VD")
    chunk: int | None = struct.field(pytree_node=False, default=None)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.table.shape[self.letters.index("V")]

    def logits(self) -> Float[Array, "B T V"]:
        """Computes all scores, in float32."""
        if self.letters == "VD":
            logits_BTV = multiply_kept(self.states_BTD, self.table, self.scale_V)
        else:
            table_DV = self.table.astype(self.states_BTD.dtype)
            logits_BTV = jnp.matmul(self.states_BTD, table_DV, preferred_element_type=jnp.float32)
        if self.bias_V is not None:
            logits_BTV = logits_BTV + self.bias_V[None, None, :]
        return nn.with_logical_constraint(logits_BTV, ("act_batch", "act_length", "act_vocab"))

    def resolved(self, output_logits: bool) -> Any:
        """The logits if they are asked for, else these scores as they are."""
        return self.logits() if output_logits else self

    def sums(self, ids_BT: Int[Array, "B T"]) -> Sums:
        """What a loss needs to know, with `chunk` without ever computing all scores at once.

        Each device that has a share of the vocabulary sums over it by itself. Gradients are those
        of the computed scores, but where these are bfloat16's, whose gradients are rounded to it.

        Args:
            ids_BT: Token of each place; any other number gives NaN.

        Returns:
            The sums of every place.
        """
        shards = TableShards.of(ids_BT.shape, "act_vocab", self.states_BTD.shape[-1])
        if self.chunk is None or self.chunk >= -(-self.vocab_size // ways(shards.rows)):
            return sums_of(self.logits(), ids_BT)
        sums = sums_in_chunks(
            self.letters, self.chunk, self.states_BTD, self._floats(), self.bias_V, ids_BT
        )
        is_token_BT = (ids_BT >= 0) & (ids_BT < self.vocab_size)
        return sums._replace(chosen_BT=jnp.where(is_token_BT, sums.chosen_BT, jnp.nan))

    def _floats(self) -> Array:
        """The table, which losses read in chunks, without scales of its own."""
        if self.scale_V is None:
            return self.table
        return self.table * self.scale_V[:, None]


def sums_of(logits_BTV: Float[Array, "B T V"], ids_BT: Int[Array, "B T"]) -> Sums:
    """What a loss needs to know of scores.

    Args:
        logits_BTV: The scores; computed on in float32.
        ids_BT: Token of each place; any other number gives NaN.

    Returns:
        The sums of every place.
    """
    logits_BTV = logits_BTV.astype(jnp.float32)
    ids_BT = jnp.where(ids_BT < 0, logits_BTV.shape[-1], ids_BT)  # else they count from the end
    chosen_BT = jnp.take_along_axis(logits_BTV, ids_BT[..., None], axis=-1, mode="fill")[..., 0]
    return Sums(jax.nn.logsumexp(logits_BTV, axis=-1), chosen_BT, logits_BTV.mean(axis=-1))


def computed(outputs: Any) -> Any:
    """A model's outputs with logits in the place of `VocabularyScores`.

    Args:
        outputs: A pytree.

    Returns:
        The same with arrays only.
    """

    def compute(leaf: Any) -> Any:
        return leaf.logits() if isinstance(leaf, VocabularyScores) else leaf

    is_leaf = lambda node: isinstance(node, VocabularyScores)  # noqa: E731
    return jax.tree.map(compute, outputs, is_leaf=is_leaf)


class VocabularyProjection(nn.Module):
    """A projection of hidden states onto the vocabulary, for models that do not share their table.

    Attributes:
        vocab_size: Number of tokens.
        dtype: Compute dtype; the kernel is float32, or what decoding keeps it as.
        kernel_init: Initializer of the kernel.
        chunk: As that of `VocabularyScores`.
    """

    vocab_size: int
    dtype: jnp.dtype = jnp.dtype("float32")
    kernel_init: Initializer = nn.initializers.normal(0.02)
    chunk: int | None = None

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> VocabularyScores:
        """What the scores of hidden states are computed from."""
        kept_VD: Any = self.get_variable("params", OUTPUTS_FIRST)
        if kept_VD is not None:
            scale_V = scales(self, "kernel")
            return VocabularyScores(
                x_BTD.astype(self.dtype), kept_VD, scale_V=scale_V, chunk=self.chunk
            )
        kernel_DV = self.param(
            "kernel",
            with_axes(self.kernel_init, ("embed", "vocab")),
            (x_BTD.shape[-1], self.vocab_size),
            jnp.float32,
        )
        return VocabularyScores(
            x_BTD.astype(self.dtype),
            kernel_DV,
            letters="DV",
            chunk=self.chunk,
        )
