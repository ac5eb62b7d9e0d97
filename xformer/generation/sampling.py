"""How the next token is chosen from its logits."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

LEAST_TEMPERATURE = 1e-30
"""Less makes infinities of float32 logits; long before that, the most likely token is drawn."""


@dataclass(frozen=True)
class Sampling:
    """A choice rule; the default is greedy.

    Attributes:
        temperature: Divides the logits, at least 1e-30; 0 takes the most likely token (greedy).
        top_k: Only the k most likely tokens are drawn; 0 for no limit.
        top_p: Only the smallest set of most likely tokens whose probabilities reach p are drawn
            (Holtzman et al., 2020, arXiv:1904.09751); 1 for no limit. Tokens tied with the last
            one of top-k or top-p stay too.
        min_p: Only tokens at least this fraction as likely as the most likely one are drawn
            (Nguyen et al., 2024, arXiv:2407.01082); 0 for no limit.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: naming the key.
        """
        if not self.temperature >= 0.0:
            raise ValueError(f"Sampling.temperature must not be negative, got {self.temperature}")
        if 0.0 < self.temperature < LEAST_TEMPERATURE:
            raise ValueError(
                f"Sampling.temperature must be 0, or at least {LEAST_TEMPERATURE}, got "
                f"{self.temperature}"
            )
        if self.top_k < 0:
            raise ValueError(f"Sampling.top_k must not be negative, got {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"Sampling.top_p must be in (0, 1], got {self.top_p}")
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"Sampling.min_p must be in [0, 1], got {self.min_p}")
        if self.temperature == 0.0 and (self.top_k or self.top_p < 1.0 or self.min_p):
            raise ValueError("Sampling.top_k, top_p and min_p need Sampling.temperature above 0")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0.0


def next_token(
    logits_BV: Float[Array, "B V"], key: PRNGKeyArray, sampling: Sampling
) -> tuple[Int[Array, " B"], Float[Array, "B V"]]:
    """Chooses a token for every row, and says the logits that it was chosen by."""
    if sampling.greedy:
        return first_of_largest(logits_BV), logits_BV
    logits_BV = allowed_logits(logits_BV, sampling)
    return jax.random.categorical(key, logits_BV).astype(jnp.int32), logits_BV


def first_of_largest(logits_BV: Float[Array, "B V"]) -> Int[Array, " B"]:
    """The first of the most likely tokens, by two reductions that CPUs vectorize."""
    best_B1 = logits_BV.max(axis=-1, keepdims=True)
    ids_BV = jax.lax.broadcasted_iota(jnp.int32, logits_BV.shape, 1)
    is_best_BV = (logits_BV == best_B1) | jnp.isnan(best_B1)
    return jnp.where(is_best_BV, ids_BV, logits_BV.shape[-1]).min(axis=-1)


def allowed_logits(logits_BV: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
    """Logits after temperature, with tokens outside of the limits at minus infinity."""
    logits_BV = logits_BV / sampling.temperature
    vocabulary = logits_BV.shape[-1]
    if 0 < sampling.top_k < vocabulary:
        least_B1 = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    if sampling.top_p < 1.0:
        sorted_BV = -jnp.sort(-logits_BV, axis=-1)
        before_BV = jnp.cumsum(jax.nn.softmax(sorted_BV, axis=-1), axis=-1)
        before_BV = jnp.pad(before_BV[:, :-1], ((0, 0), (1, 0)))
        least_B1 = jnp.where(before_BV < sampling.top_p, sorted_BV, jnp.inf).min(-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    if sampling.min_p > 0.0:
        least_B1 = logits_BV.max(axis=-1, keepdims=True) + math.log(sampling.min_p)
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    return logits_BV
