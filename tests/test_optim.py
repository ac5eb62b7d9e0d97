"""Optimizers and schedules: what each field does, in numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xformer.optim import (
    SGD,
    Adafactor,
    AdamW,
    Constant,
    Cosine,
    InverseSqrt,
    Linear,
    Lion,
    WarmupStableDecay,
    decay_mask,
)

OPTIMIZERS = [AdamW, Adafactor, Lion, SGD]
RNG = np.random.default_rng(0)
STEPS = 12


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def tree():
    """Arrays of every kind that weight decay tells apart."""
    return {
        "embed": {"embedding": normal(5, 4)},
        "dense": {"kernel": normal(4, 3), "bias": normal(3)},
        "norm": {"scale": normal(4), "bias": normal(4)},
    }


PARAMS = tree()
# Of different sizes, so that clipping changes their proportions: global norms of 0.6, 20 and 2.
GRADIENTS = [jax.tree.map(lambda g, s=size: s * g, tree()) for size in (0.1, 3.0, 0.3)]


@functools.cache
def updates(config, fixed=False):
    """Updates over a few steps; with `fixed` parameters every step starts from the same ones."""
    optimizer = config.build(STEPS)

    @jax.jit
    def run(params):
        state, history = optimizer.init(params), []
        for gradient in GRADIENTS:
            update, state = optimizer.update(gradient, state, params)
            history.append(update)
            params = params if fixed else optax.apply_updates(params, update)
        return history

    return run(PARAMS)


def differ(one, other):
    return any(jax.tree.leaves(jax.tree.map(lambda a, b: not np.allclose(a, b), one, other)))


# Optimizers


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_every_optimizer_lowers_a_quadratic(cls):
    optimizer = cls(learning_rate=Cosine(0.1, warmup_steps=5)).build(200)

    def loss(params):
        return sum(jnp.square(leaf - 1.0).sum() for leaf in jax.tree.leaves(params))

    @jax.jit
    def minimise(params):
        def step(carry, _):
            params, state = carry
            update, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, update), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=200)[0][0]

    assert loss(minimise(PARAMS)) < 0.05 * loss(PARAMS)


@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize("learning_rate", [0.1, Linear(0.1, warmup_steps=2)])
def test_weight_decay_is_decoupled_and_hits_kernels_and_embeddings_only(cls, learning_rate):
    plain = updates(cls(learning_rate), fixed=True)
    decayed = updates(cls(learning_rate, weight_decay=0.3), fixed=True)
    schedule = cls(learning_rate).schedule(STEPS)
    for step in range(len(GRADIENTS)):
        expected = jax.tree.map(
            lambda p, is_decayed, step=step: -float(schedule(step)) * 0.3 * p * is_decayed,
            PARAMS,
            decay_mask(PARAMS),
        )
        change = jax.tree.map(np.subtract, decayed[step], plain[step])
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-7), change, expected)
    assert decay_mask(PARAMS) == {
        "embed": {"embedding": True},
        "dense": {"kernel": True, "bias": False},
        "norm": {"scale": False, "bias": False},
    }


@pytest.mark.parametrize("clip_norm", [0.5, None, 1e3])
def test_clipping_scales_the_gradient_to_the_norm(clip_norm):
    (update, *_) = updates(SGD(1.0, momentum=0.0, clip_norm=clip_norm))
    norm = float(optax.tree.norm(GRADIENTS[0]))
    factor = 0.5 / norm if clip_norm == 0.5 else 1.0
    expected = jax.tree.map(lambda g: -factor * g, GRADIENTS[0])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), update, expected)


FIELDS = [
    (
        AdamW,
        {
            "learning_rate": 0.2,
            "clip_norm": None,
            "weight_decay": 0.1,
            "b1": 0.5,
            "b2": 0.5,
            "eps": 1.0,
        },
    ),
    (Lion, {"learning_rate": 0.2, "clip_norm": None, "weight_decay": 0.1, "b1": 0.1, "b2": 0.1}),
    (
        SGD,
        {
            "learning_rate": 0.2,
            "clip_norm": None,
            "weight_decay": 0.1,
            "momentum": 0.0,
            "nesterov": True,
        },
    ),
    (
        Adafactor,
        {
            "learning_rate": 0.2,
            "clip_norm": None,
            "weight_decay": 0.1,
            "decay_rate": 0.3,
            "clipping_threshold": 0.1,
            "multiply_by_parameter_scale": False,
            "min_dim_size_to_factor": 2,
        },
    ),
]


@pytest.mark.parametrize(
    "cls, field, value", [(cls, *item) for cls, values in FIELDS for item in values.items()]
)
def test_every_field_of_an_optimizer_changes_its_updates(cls, field, value):
    base = cls(learning_rate=0.1)
    assert differ(updates(base), updates(dataclasses.replace(base, **{field: value})))


@pytest.mark.parametrize("cls, values", FIELDS)
def test_fields_of_optimizers_are_all_tested(cls, values):
    assert {field.name for field in dataclasses.fields(cls)} == set(values)


def test_adafactor_factors_large_arrays_only():
    def second_moments(threshold):
        optimizer = Adafactor(0.1, min_dim_size_to_factor=threshold).build(STEPS)
        shapes = jax.eval_shape(optimizer.init, PARAMS)
        return {leaf.shape for leaf in jax.tree.leaves(shapes)}

    assert (5,) in second_moments(4) and (5, 4) not in second_moments(4)
    assert (5, 4) in second_moments(5) and (4, 3) in second_moments(4)


@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize(
    "field, value, message",
    [
        ("learning_rate", 0.0, r"must be positive and at most 1e\+06, got 0.0"),
        ("learning_rate", 3e38, r"must be positive and at most 1e\+06, got 3e\+38"),
        ("weight_decay", -0.1, r"must be from 0 to 1e\+06, got -0.1"),
        ("clip_norm", 0.0, "must be positive or None, got 0.0"),
    ],
)
def test_optimizers_refuse_bad_values(cls, field, value, message):
    with pytest.raises(ValueError, match=f"{cls.__name__}.{field} {message}"):
        cls(**{"learning_rate": 0.1, field: value})


@pytest.mark.parametrize(
    "cls, field, value, message",
    [
        (AdamW, "b1", 1.0, "must be at least 0 and below 1, got 1.0"),
        (AdamW, "b2", -0.1, "must be at least 0 and below 1, got -0.1"),
        (AdamW, "eps", 0.0, "must be positive, got 0.0"),
        (Lion, "b2", 1.5, "must be at least 0 and below 1, got 1.5"),
        (SGD, "momentum", 1.0, "must be at least 0 and below 1, got 1.0"),
    ],
)
def test_what_would_make_updates_infinite_is_refused(cls, field, value, message):
    with pytest.raises(ValueError, match=rf"{cls.__name__}\.{field} {message}"):
        cls(**{"learning_rate": 0.1, field: value})


@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e18])
def test_updates_are_finite_where_the_norm_of_the_gradient_is(cls, size):
    optimizer = cls(1e6, weight_decay=1e6, clip_norm=None).build(STEPS)
    params, update = PARAMS, jax.jit(optimizer.update)
    gradients = jax.tree.map(lambda p: size * jnp.sign(p), params)
    state = optimizer.init(params)
    assert jnp.isfinite(optax.tree.norm(gradients))
    for _ in range(3):
        found, state = update(gradients, state, params)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((found, state)))


@pytest.mark.parametrize("fields", [{}, {"weight_decay": 0.2}, {"clip_norm": 0.5}])
def test_adamw_is_that_of_optax(fields):
    ours = AdamW(0.03, **fields).build(STEPS)
    decay = {"weight_decay": fields.get("weight_decay", 0.0), "mask": decay_mask}
    theirs = optax.chain(
        optax.clip_by_global_norm(fields.get("clip_norm", 1.0)),
        optax.adamw(optax.constant_schedule(0.03), 0.9, 0.95, **decay),
    )
    states = [one.init(PARAMS) for one in (ours, theirs)]
    for gradient in GRADIENTS:
        norm = optax.tree.norm(gradient)
        known, states[0] = ours.update(gradient, states[0], PARAMS, norm=norm)
        expected, states[1] = theirs.update(gradient, states[1], PARAMS)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
        jax.tree.map(close, (known, states[0]), (expected, states[1]))  # and of the same structure


@pytest.mark.reference
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_adamw_is_that_of_pytorch(clip_norm):
    import torch

    start = np.asarray(normal(6, 5))
    gradients = np.asarray(normal(20, 6, 5)) * np.linspace(0.01, 2.0, 20)[:, None, None]
    weight = torch.nn.Parameter(torch.tensor(start))
    theirs = torch.optim.AdamW([weight], 0.03, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.2)
    optimizer = AdamW(0.03, weight_decay=0.2, clip_norm=clip_norm).build(20)
    params = {"kernel": jnp.asarray(start)}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients.astype(np.float32):
        weight.grad = torch.tensor(gradient)
        if clip_norm:
            torch.nn.utils.clip_grad_norm_([weight], clip_norm)
        theirs.step()
        change, state = update({"kernel": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, change)
        np.testing.assert_allclose(params["kernel"], weight.detach(), rtol=1e-5, atol=1e-6)


# Schedules

WSD = WarmupStableDecay(1.0, warmup_steps=2, decay_steps=4, final_fraction=0.2)
VALUES = [
    (Constant(0.5), {0: 0.5, 11: 0.5}),
    (Constant(1.0, warmup_steps=4), {0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0, 4: 1.0, 11: 1.0}),
    (Cosine(1.0, warmup_steps=2), {0: 0.5, 1: 1.0, 2: 1.0, 7: 0.55, 12: 0.1}),
    (Cosine(1.0, final_fraction=0.0), {0: 1.0, 6: 0.5, 12: 0.0}),
    (Linear(1.0, warmup_steps=2), {0: 0.5, 1: 1.0, 2: 1.0, 7: 0.5, 11: 0.1, 12: 0.0}),
    (Linear(2.0, final_fraction=0.5), {0: 2.0, 6: 1.5, 12: 1.0}),
    (InverseSqrt(1.0, warmup_steps=1), {0: 1.0, 1: 1.0, 4: 0.5, 9: 1 / 3}),
    (InverseSqrt(1.0, warmup_steps=3), {0: 1 / 3, 2: 1.0, 3: 1.0, 12: 0.5}),
    (WSD, {0: 0.5, 1: 1.0, 2: 1.0, 8: 1.0, 9: 0.8, 10: 0.6, 11: 0.4, 12: 0.2}),
]


@pytest.mark.parametrize("config, values", VALUES)
def test_schedule_has_these_values(config, values):
    schedule = config.build(STEPS)
    eager = {step: float(schedule(step)) for step in values}
    assert eager == pytest.approx(values, abs=1e-6)
    traced = jax.jit(schedule)
    assert float(traced(jnp.int32(7))) == pytest.approx(float(schedule(7)))


@pytest.mark.parametrize("config, _", VALUES)
@pytest.mark.parametrize("warmup_steps", [1, 2, 5])
def test_warm_up_learns_from_the_first_step_and_reaches_the_peak(config, _, warmup_steps):
    config = dataclasses.replace(config, warmup_steps=warmup_steps)
    values = [float(config.build(STEPS)(step)) for step in range(STEPS)]
    assert min(values) > 0.0 and max(values) == pytest.approx(config.peak)
    assert values[warmup_steps - 1] == pytest.approx(config.peak)
    assert values[:warmup_steps] == sorted(values[:warmup_steps])


@pytest.mark.parametrize(
    "config, field, value",
    [(config, "peak", 3.0) for config, _ in VALUES]
    + [(config, "warmup_steps", 3) for config, _ in VALUES if config.warmup_steps != 3]
    + [(cls(1.0), "final_fraction", 0.7) for cls in (Cosine, Linear)]
    + [(WSD, "final_fraction", 0.7), (WSD, "decay_steps", 2)],
)
def test_every_field_of_a_schedule_changes_it(config, field, value):
    def values(config):
        return [float(config.build(STEPS)(step)) for step in range(STEPS)]

    assert values(config) != values(dataclasses.replace(config, **{field: value}))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Constant(0.0), r"Constant.peak must be positive and at most 1e\+06, got 0.0"),
        (lambda: Cosine(1.0, -1), "Cosine.warmup_steps must not be negative, got -1"),
        (
            lambda: Linear(1.0, 12).build(12),
            "Linear.warmup_steps=12 must be below Run.steps=12",
        ),
        (lambda: InverseSqrt(1.0), "InverseSqrt.warmup_steps must be at least 1"),
        (
            lambda: WarmupStableDecay(1.0).build(12),
            "WarmupStableDecay.decay_steps=0 must be at least 1 and fit into the 12 steps that",
        ),
        (
            lambda: WarmupStableDecay(1.0, 5, decay_steps=8).build(12),
            "decay_steps=8 must be at least 1 and fit into the 7 steps that Run.steps leaves",
        ),
    ],
)
def test_schedules_refuse_what_does_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_learning_rate_may_be_a_number_or_a_schedule():
    assert float(SGD(0.3).schedule(STEPS)(5)) == pytest.approx(0.3)
    assert float(SGD(Linear(0.3)).schedule(STEPS)(6)) == pytest.approx(0.15)
