"""The dimension key: a letter per dimension for array names, annotations, einsums and sharding.

A letter at the end of an array's name (`logits_BTV`), in its annotation (`Float[Array, "B T V"]`)
and in an einsum (`"BTD,VD->BTV"`) always means the same dimension. The two axis names of a
dimension are what `xformer.partitioning.Rules` maps onto the device mesh: parameters and
activations have names of their own, so that "the embed axis of weights over fsdp" and "the batch
over data and fsdp" never collide.
"""

from typing import NamedTuple


class Dimension(NamedTuple):
    """One dimension of the key.

    Attributes:
        word: What the dimension counts.
        parameter_axis: Logical axis name in parameters, or None if parameters never have it.
        activation_axis: Logical axis name in activations, or None if it is never sharded.
    """

    word: str
    parameter_axis: str | None = None
    activation_axis: str | None = None


DIMENSIONS: dict[str, Dimension] = {
    "B": Dimension("batch", None, "act_batch"),
    "T": Dimension("query length, in tokens", None, "act_length"),
    "S": Dimension("key length, in tokens", None, "act_length"),
    "E": Dimension("encoder length, in tokens", None, "act_length"),
    "D": Dimension("model width", "embed", "act_embed"),
    "N": Dimension("heads", "heads", "act_heads"),
    "H": Dimension("head width", "head_dim", None),
    "F": Dimension("feed-forward width", "mlp", "act_mlp"),
    "V": Dimension("vocabulary", "vocab", "act_vocab"),
    "L": Dimension("stacked layers", "layers", None),
    "P": Dimension("rows of a position table, or buckets", "positions", None),
    "G": Dimension("convolution groups", "groups", None),
    "C": Dimension("classes or choices of a head"),
    "K": Dimension("places of a row that are predicted"),
    "M": Dimension("blocks in the sequence"),
    "W": Dimension("tokens per block"),
    "R": Dimension("key blocks per query block"),
    "X": Dimension("blocks that random blocks are among"),
}
