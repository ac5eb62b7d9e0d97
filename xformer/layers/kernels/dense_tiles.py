"""Dense attention by kernels: the sizes, and what is computed on one tile.

A tile is `own` tokens of one side by `listed` tokens of the other, as in
`xformer.layers.kernels.tiles`: queries by keys, or keys by queries.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from xformer.layers.dropout import factors_at
from xformer.layers.kernels.tiles import LOWEST, Tile, Tokens, product, readable, score


class Inputs(NamedTuple):
    """What contexts and gradients are computed from, or how each of it is split over devices.

    Attributes:
        q_BTNH: Queries, already scaled.
        k_BSNH: Keys.
        v_BSNH: Values.
        query_segments_BT: Document of each query; None without documents.
        key_segments_BS: Document of each key, 0 for padding; None without either.
        bias_NC: Biases by distance, as in `DistanceBias`; None without. S is T where there are.
        seeds_BN2: Random words of the dropout for each row and head; None without.
        dout_BTNH: Gradients of the contexts, for the backward pass as the following.
        sums_BNT: Logarithms of the softmax's denominators.
        means_BNT: Products of the contexts with their gradients.
    """

    q_BTNH: Any
    k_BSNH: Any
    v_BSNH: Any
    query_segments_BT: Any = None
    key_segments_BS: Any = None
    bias_NC: Any = None
    seeds_BN2: Any = None
    dout_BTNH: Any = None
    sums_BNT: Any = None
    means_BNT: Any = None


@dataclass(frozen=True)
class Side:
    """The queries, or the keys.

    Attributes:
        length: How many.
        width: How many a tile has.
    """

    length: int
    width: int

    @classmethod
    def of(cls, length: int, least: int, most: int) -> "Side":
        """The widest tiles, halved from `most` to `least`, that pad no more than an eighth."""
        width = most
        while width > least and 8 * -(-length // width) * width > 9 * length:
            width //= 2
        return cls(length, width)

    @property
    def tiles(self) -> int:
        """How many tiles there are."""
        return -(-self.length // self.width)

    @property
    def padded(self) -> int:
        """How many tokens the tiles have."""
        return self.tiles * self.width


@dataclass(frozen=True)
class Shape:
    """The sizes that kernels are made for.

    Attributes:
        batch: Rows of the batch.
        heads: Number of heads.
        features: Width of a head.
        queries: The queries.
        keys: The keys.
        causal: Whether a query reads only keys at its own place or before it.
        dropout: Probability of dropping a probability; 0 drops nothing.
        interpret: Whether to interpret the kernels, for devices that they are not for.
    """

    batch: int
    heads: int
    features: int
    queries: Side
    keys: Side
    causal: bool
    dropout: float
    interpret: bool

    def sides(self, of_keys: bool) -> tuple[Side, Side]:
        """Own and listed ones."""
        return (self.keys, self.queries) if of_keys else (self.queries, self.keys)

    def listed(self, of_keys: bool, own: Any) -> tuple[Any, Any]:
        """The first of the listed tiles that an own one meets, and the first after them."""
        queries, keys = self.queries, self.keys
        if not self.causal:
            return 0, self.sides(of_keys)[1].tiles
        if of_keys:
            return lax.div(own * keys.width, queries.width), queries.tiles
        return 0, jnp.minimum(lax.div((own + 1) * queries.width - 1, keys.width) + 1, keys.tiles)

    def cost(self, products: int, arrays: Any) -> pl.CostEstimate:
        """What the compiler and plans are told of a kernel, whose body they see but once.

        Args:
            products: Products of a tile with a tile or with its scores.
            arrays: What is read and written.

        Returns:
            The operations, exponentials (one for a score) and bytes.
        """
        scores = self.batch * self.heads * self.queries.padded * self.keys.padded
        if self.causal:
            scores //= 2
        leaves = jax.tree.leaves(arrays)
        return pl.CostEstimate(
            flops=2 * products * scores * self.features,
            transcendentals=scores,
            bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves),
        )


def tile_of(
    shape: Shape,
    of_keys: bool,
    own: Tokens,
    listed: Tokens,
    bias_WS: Array | None,
    words: tuple[Array, Array] | None,
) -> Tile:
    """What happens to the scores of some tokens; `words` are the random ones of row and head."""
    queries, keys = (listed, own) if of_keys else (own, listed)
    allowed = readable(queries, keys, shape.causal, keys.places < shape.keys.length)
    kept_WS = None
    if words is not None:
        places = queries.places * shape.keys.length + keys.places
        first, second = (jnp.full_like(listed.places, word) for word in words)
        place, first, second = (
            lax.bitcast_convert_type(x, jnp.uint32) for x in (places, first, second)
        )
        kept_WS = factors_at(place, first, second, shape.dropout)
    return Tile(allowed, bias_WS, kept_WS)


class Softmax(NamedTuple):
    """A softmax over the keys that were met so far.

    Attributes:
        top_W1: The highest scores.
        total_W1: Sums of the exponentials of scores beyond those.
        context_WH: Values, weighed by the same.
    """

    top_W1: Float[Array, "W 1"]
    total_W1: Float[Array, "W 1"]
    context_WH: Float[Array, "W H"]

    @classmethod
    def empty(cls, width: int, features: int) -> "Softmax":
        """That over no key."""
        numbers = jnp.full((width, 1), LOWEST), jnp.zeros((width, 1))
        return cls(*numbers, jnp.zeros((width, features)))

    def over(self, q_WH: Array, k_SH: Array, v_SH: Array, tile: Tile) -> "Softmax":
        """The same with the keys of one more tile."""
        scores_WS = score(q_WH, k_SH, tile)
        top_W1 = jnp.maximum(self.top_W1, scores_WS.max(1)[:, None])
        weights_WS = jnp.where(tile.allowed, jnp.exp(scores_WS - top_W1), 0.0)
        kept_W1 = jnp.exp(self.top_W1 - top_W1)
        total_W1 = self.total_W1 * kept_W1 + weights_WS.sum(1)[:, None]
        if tile.kept_WS is not None:
            weights_WS = weights_WS * tile.kept_WS
        read_WH = product(weights_WS.astype(v_SH.dtype), v_SH, 0)
        return Softmax(top_W1, total_W1, self.context_WH * kept_W1 + read_WH)

    def results(self) -> tuple[Float[Array, "W H"], Float[Array, "W 1"]]:
        """The contexts, zeros where no key is read, and logarithms of the denominators."""
        total_W1 = jnp.where(self.total_W1 > 0, self.total_W1, 1.0)
        return self.context_WH / total_W1, self.top_W1 + jnp.log(total_W1)


def lengthened(x: Array, axis: int, side: Side, value: float = 0.0) -> Array:
    """An array of tokens with padding up to whole tiles."""
    amounts = [(0, side.padded - side.length if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, amounts, constant_values=value)


def lengthened_bias(bias_NC: Float[Array, "N C"], side: Side) -> Float[Array, "N _"]:
    """Biases by distance of whole tiles, one more than there are distances."""
    amount = side.padded - side.length
    return jnp.pad(bias_NC, ((0, 0), (amount, amount + 1)))


def words_of(seeds: Any, place: Any) -> tuple[Array, Array]:
    """The random words at a place of a table of two for each row and head."""
    return seeds[2 * place], seeds[2 * place + 1]


def table_of(seeds_BN2: Array) -> Int[Array, " K"]:
    """Random words where kernels read tables."""
    return lax.bitcast_convert_type(seeds_BN2, jnp.int32).reshape(-1)
