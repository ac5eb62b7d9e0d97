"""Which tokens may be drawn, and how often."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xformer.generation.sampling import LEAST_TEMPERATURE, Sampling, allowed_logits, next_token

PROBABILITIES = np.array([0.10, 0.40, 0.05, 0.25, 0.20])
LOGITS = jnp.asarray(np.log(PROBABILITIES), jnp.float32) + 3.0
DRAWS = 20_000


@functools.partial(jax.jit, static_argnames="sampling")
def draw(logits, key, sampling):
    return next_token(logits, key, sampling)[0]


def kept(sampling, probabilities=PROBABILITIES):
    logits = jnp.log(jnp.asarray([probabilities], jnp.float32))
    return np.flatnonzero(np.isfinite(allowed_logits(logits, sampling))[0]).tolist()


@pytest.mark.parametrize(
    "sampling, weights",
    [
        (Sampling(1.0), PROBABILITIES),
        (Sampling(0.5), PROBABILITIES**2),
        (Sampling(1.0, top_k=2), PROBABILITIES * [0, 1, 0, 1, 0]),
        (Sampling(1.0, top_p=0.7), PROBABILITIES * [0, 1, 0, 1, 1]),
        (Sampling(0.5, top_k=3, top_p=0.9), PROBABILITIES**2 * [0, 1, 0, 1, 1]),
        (Sampling(1.0, min_p=0.45), PROBABILITIES * [0, 1, 0, 1, 1]),
        (Sampling(0.5, min_p=0.45), PROBABILITIES**2 * [0, 1, 0, 0, 0]),  # 0.25^2 of 0.40^2 is less
        (Sampling(1.0, top_k=3, top_p=0.6), PROBABILITIES * [0, 1, 0, 1, 0]),  # 0.40 of 0.85 first
    ],
    ids=str,
)
def test_tokens_are_drawn_as_often_as_they_are_likely(sampling, weights):
    rows = jnp.broadcast_to(LOGITS, (DRAWS, 5))
    counts = np.bincount(draw(rows, jax.random.key(0), sampling=sampling), minlength=5)
    expected = DRAWS * weights / weights.sum()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 33.4  # one in a million at four degrees of freedom


def test_greedy_takes_the_most_likely_and_the_first_of_equals():
    logits = jnp.array([[0.0, 3.0, 1.0], [2.0, 2.0, 1.0], [-9.0, -8.0, -7.0]])
    tokens = draw(logits, jax.random.key(0), sampling=Sampling())
    assert tokens.tolist() == [1, 0, 2] and tokens.dtype == jnp.int32


def test_the_first_of_the_most_likely_tokens_is_taken():
    nan, inf = jnp.nan, jnp.inf
    logits = jnp.asarray(
        [[1, 3, 2, 3], [-inf] * 4, [nan] * 4, [-5, -inf, -4, -4.5], [0, 1, inf, 2]]
    )
    tokens = draw(logits, jax.random.key(0), sampling=Sampling())
    assert tokens.dtype == jnp.int32 and tokens.tolist() == [1, 0, 0, 2, 2]
    assert tokens.tolist() == logits.argmax(axis=-1).tolist()


def test_draws_follow_the_key():
    rows = jnp.broadcast_to(LOGITS, (64, 5))
    one, same, other = (
        draw(rows, jax.random.key(seed), sampling=Sampling(1.0)).tolist() for seed in (0, 0, 1)
    )
    assert one == same != other


@pytest.mark.parametrize(
    "top_p, tokens",
    [
        (1e-6, [1]),
        (0.39, [1]),
        (0.41, [1, 3]),
        (0.64, [1, 3]),
        (0.66, [1, 3, 4]),
        (0.96, [0, 1, 2, 3, 4]),
        (1.0, [0, 1, 2, 3, 4]),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p, tokens):
    assert kept(Sampling(1.0, top_p=top_p)) == tokens


def test_top_p_that_is_reached_exactly_keeps_no_more():
    assert kept(Sampling(1.0, top_p=0.5), [0.5, 0.25, 0.25]) == [0]


@pytest.mark.parametrize(
    "top_k, tokens", [(1, [1]), (3, [1, 3, 4]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])]
)
def test_top_k_keeps_k_tokens_or_all(top_k, tokens):
    assert kept(Sampling(1.0, top_k=top_k)) == tokens


@pytest.mark.parametrize(
    "min_p, tokens", [(0.99, [1]), (0.63, [1]), (0.62, [1, 3]), (0.3, [1, 3, 4]), (0.0, range(5))]
)
def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(min_p, tokens):
    assert kept(Sampling(1.0, min_p=min_p)) == list(tokens)


@pytest.mark.parametrize("sampling", [Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.6)], ids=str)
def test_tokens_of_equal_probability_stay_together(sampling):
    assert kept(sampling, [0.4, 0.25, 0.25, 0.1]) == [0, 1, 2]


@pytest.mark.parametrize("sampling", [Sampling(1.0, top_k=1), Sampling(1.0, top_p=0.5)], ids=str)
def test_every_row_has_its_own_limit(sampling):
    logits = jnp.log(jnp.array([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7]]))
    for shift in (9.0, -9.0):  # scores need not be on one scale
        shifted = logits + jnp.array([[0.0], [shift]])
        allowed = np.isfinite(allowed_logits(shifted, sampling))
        assert allowed.tolist() == [[True, False, False], [False, False, True]]


def test_the_least_temperature_draws_the_most_likely_token():
    logits = jnp.array([[-1e7, 1e7, 1e7 - 2], [0.5, 0.25, -jnp.inf]])
    drawn, _ = next_token(logits, jax.random.key(0), Sampling(LEAST_TEMPERATURE))
    assert drawn.tolist() == [1, 0]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"temperature": -0.5}, "temperature must not be negative, got -0.5"),
        ({"temperature": float("nan")}, "temperature must not be negative, got nan"),
        ({"temperature": 1e-42}, "temperature must be 0, or at least 1e-30, got 1e-42"),
        ({"temperature": 1.0, "top_k": -1}, "top_k must not be negative, got -1"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"temperature": 1.0, "top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
        ({"temperature": 1.0, "min_p": 1.1}, r"min_p must be in \[0, 1\], got 1.1"),
        ({"top_k": 5}, "top_k, top_p and min_p need .*temperature above 0"),
        ({"top_p": 0.5}, "top_k, top_p and min_p need .*temperature above 0"),
        ({"min_p": 0.5}, "top_k, top_p and min_p need .*temperature above 0"),
    ],
)
def test_bad_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**fields)
