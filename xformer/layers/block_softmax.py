"""Some query blocks against the keys of one step: a running softmax, and gradients without a tape.

The softmax is kept as a maximum and sums relative to it while keys come in (Milakov and Gimelshein,
2018, arXiv:1805.02867). The gradients compute the probabilities again from the logarithms of its
denominators (Dao et al., 2022, arXiv:2205.14135, section 3.1), which are all that is saved.

Within a step M counts its query blocks (or is 1, and W counts all of their tokens), and S counts
the keys that each of them reads.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

LOWEST = 0.5 * float(jnp.finfo(jnp.float32).min)
"""The score of what is not read; half the least number, so that more may be added."""

_WIDTH = _KEY = 3  # axes of queries and of keys
_HEAD = _S = 4  # and of their features, or of scores' keys


class Queries(NamedTuple):
    """What the backward pass knows of some query blocks.

    Attributes:
        q_BNMWH: Queries, already scaled.
        dout_BNMWH: Gradients of their contexts.
        sums_BNMW: Logarithms of the softmax's denominators.
        means_BNMW: Products of the contexts with their gradients: the gradient of a score is
            relative to this mean over all keys.
    """

    q_BNMWH: Float[Array, "B N M W H"]
    dout_BNMWH: Float[Array, "B N M W H"]
    sums_BNMW: Float[Array, "B N M W"]
    means_BNMW: Float[Array, "B N M W"]


class Keys(NamedTuple):
    """What they read in one step.

    Attributes:
        k_BNMSH: Keys.
        v_BNMSH: Values.
        bias_BNMWS: Added to the scores: the logarithm of how often a query reads a key, or
            `LOWEST` where it does not; sizes of 1 where it makes no difference. None: once each.
        keep_BNMWS: Factors of the dropout on the probabilities; None drops nothing.
    """

    k_BNMSH: Float[Array, "B N M S H"]
    v_BNMSH: Float[Array, "B N M S H"]
    bias_BNMWS: Float[Array, "_ _ _ _ S"] | None = None
    keep_BNMWS: Float[Array, "B N M W S"] | None = None


class Softmax(NamedTuple):
    """A weighted mean of values under way.

    Attributes:
        top_BNMW: Greatest score so far.
        total_BNMW: Sum of the weights, relative to it.
        context_BNMWH: Weighted sum of the values, relative to it.
    """

    top_BNMW: Float[Array, "B N M W"]
    total_BNMW: Float[Array, "B N M W"]
    context_BNMWH: Float[Array, "B N M W H"]

    @classmethod
    def empty(cls, q_BNMWH: Float[Array, "B N M W H"]) -> "Softmax":
        """That of queries which have read nothing yet."""
        context_BNMWH = jnp.zeros_like(q_BNMWH, jnp.float32)
        total_BNMW = context_BNMWH[..., 0]
        return cls(jnp.full_like(total_BNMW, LOWEST), total_BNMW, context_BNMWH)

    @classmethod
    def of(cls, q_BNMWH: Float[Array, "B N M W H"], keys: Keys) -> "Softmax":
        """That of queries which have read these keys alone."""
        scores_BNMWS = _scores(q_BNMWH, keys)
        top_BNMW = scores_BNMWS.max(-1)
        weights_BNMWS = jnp.exp(scores_BNMWS - top_BNMW[..., None])
        total_BNMW = weights_BNMWS.sum(-1)
        if keys.keep_BNMWS is not None:
            weights_BNMWS = weights_BNMWS * keys.keep_BNMWS
        weights_BNMWS = weights_BNMWS.astype(keys.v_BNMSH.dtype)
        context_BNMWH = _product(weights_BNMWS, keys.v_BNMSH, _S, _KEY, jnp.float32)
        return cls(top_BNMW, total_BNMW, context_BNMWH)

    def join(self, other: "Softmax") -> "Softmax":
        """That of the same queries after they read the keys of both."""
        top_BNMW = jnp.maximum(self.top_BNMW, other.top_BNMW)
        own_BNMW, others_BNMW = (jnp.exp(x.top_BNMW - top_BNMW) for x in (self, other))
        total_BNMW = self.total_BNMW * own_BNMW + other.total_BNMW * others_BNMW
        own_BNMWH = self.context_BNMWH * own_BNMW[..., None]
        others_BNMWH = other.context_BNMWH * others_BNMW[..., None]
        return Softmax(top_BNMW, total_BNMW, own_BNMWH + others_BNMWH)

    def finish(self) -> "Softmax":
        """The contexts, beside greatest scores and sums."""
        return self._replace(context_BNMWH=self.context_BNMWH / self.total_BNMW[..., None])


def gradients(
    queries: Queries, keys: Keys
) -> tuple[Float[Array, "B N M W H"], Float[Array, "B N M H S"], Float[Array, "B N M H S"]]:
    """One step's part of the gradients of queries, keys and values, to be added in float32."""
    weights_BNMWS = jnp.exp(_scores(queries.q_BNMWH, keys) - queries.sums_BNMW[..., None])
    dweights_BNMWS = _product(queries.dout_BNMWH, keys.v_BNMSH, _HEAD, _HEAD, jnp.float32)
    dropped_BNMWS = weights_BNMWS
    if keys.keep_BNMWS is not None:
        dropped_BNMWS = weights_BNMWS * keys.keep_BNMWS
        dweights_BNMWS = dweights_BNMWS * keys.keep_BNMWS
    dscores_BNMWS = weights_BNMWS * (dweights_BNMWS - queries.means_BNMW[..., None])
    dscores_BNMWS = dscores_BNMWS.astype(queries.q_BNMWH.dtype)
    dq_BNMWH = _product(dscores_BNMWS, keys.k_BNMSH, _S, _KEY, jnp.float32)
    # In the inputs' precision: XLA's CPU compiler has no such products from bfloat16 to float32.
    dk_BNMHS = _product(queries.q_BNMWH, dscores_BNMWS, _WIDTH, _WIDTH)
    dropped_BNMWS = dropped_BNMWS.astype(queries.dout_BNMWH.dtype)
    dv_BNMHS = _product(queries.dout_BNMWH, dropped_BNMWS, _WIDTH, _WIDTH)
    return dq_BNMWH, dk_BNMHS, dv_BNMHS


def _scores(q_BNMWH: Array, keys: Keys) -> Array:
    scores_BNMWS = _product(q_BNMWH, keys.k_BNMSH, _HEAD, _HEAD, jnp.float32)
    return scores_BNMWS if keys.bias_BNMWS is None else scores_BNMWS + keys.bias_BNMWS


def _product(
    x_BNM: Array, y_BNM: Array, x_axis: int, y_axis: int, dtype: type | None = None
) -> Array:
    """The matrix products that sum over an axis of either array."""
    # Not `einsum`, whose order of axes makes XLA's CPU compiler turn around what is read.
    heads, rows = x_BNM.shape[1:3]
    x_BX, y_BX = (a.reshape(len(a), heads * rows, *a.shape[3:]) for a in (x_BNM, y_BNM))
    axes = ((x_axis - 1,), (y_axis - 1,)), ((0, 1), (0, 1))
    product_BX = lax.dot_general(x_BX, y_BX, axes, preferred_element_type=dtype)
    return product_BX.reshape(len(x_BNM), heads, rows, *product_BX.shape[2:])
