"""Optimizers and learning-rate schedules, as values that build their optax counterparts."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

_DECAYED = ("kernel", "embedding")
# With rates up to this one, gradients of finite norm have finite updates.
_HIGHEST = 1e6


@dataclass(frozen=True)
class _Schedule:
    """A learning rate that rises linearly to its peak over the first steps.

    Attributes:
        peak: Highest learning rate.
        warmup_steps: Steps from 0 to the peak.
    """

    peak: float
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: naming the key.
        """
        name = type(self).__name__
        if not 0.0 < self.peak <= _HIGHEST:
            raise ValueError(
                f"{name}.peak must be positive and at most {_HIGHEST:g}, got {self.peak}"
            )
        if self.warmup_steps < 0:
            raise ValueError(f"{name}.warmup_steps must not be negative, got {self.warmup_steps}")

    def build(self, steps: int) -> optax.Schedule:
        """The learning rate as a function of the step.

        Args:
            steps: Steps of the whole run.

        Returns:
            The optax schedule.

        Raises:
            ValueError: if the warm-up does not fit into the run.
        """
        if self.warmup_steps >= steps:
            raise ValueError(
                f"{type(self).__name__}.warmup_steps={self.warmup_steps} must be below "
                f"Run.steps={steps}"
            )
        after = self._after_warmup(steps - self.warmup_steps)
        if not self.warmup_steps:
            return after
        # Step 0 already learns: the ramp goes from 1/warmup_steps of the peak to the peak.
        ramp = optax.linear_schedule(
            self.peak / self.warmup_steps, self.peak, max(self.warmup_steps - 1, 1)
        )
        return optax.join_schedules([ramp, after], [self.warmup_steps])

    def _after_warmup(self, steps: int) -> optax.Schedule:
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(_Schedule):
    """Stays at the peak."""

    def _after_warmup(self, steps: int) -> optax.Schedule:
        return optax.constant_schedule(self.peak)


@dataclass(frozen=True)
class Cosine(_Schedule):
    """Falls along half a cosine (Loshchilov and Hutter, 2017, arXiv:1608.03983).

    Attributes:
        final_fraction: Share of the peak that is left at the end.
    """

    final_fraction: float = 0.1

    def _after_warmup(self, steps: int) -> optax.Schedule:
        return optax.cosine_decay_schedule(self.peak, steps, alpha=self.final_fraction)


@dataclass(frozen=True)
class Linear(_Schedule):
    """Falls along a line.

    Attributes:
        final_fraction: Share of the peak that is left at the end.
    """

    final_fraction: float = 0.0

    def _after_warmup(self, steps: int) -> optax.Schedule:
        return optax.linear_schedule(self.peak, self.peak * self.final_fraction, steps)


@dataclass(frozen=True)
class InverseSqrt(_Schedule):
    """Falls with 1 / sqrt(step) (Vaswani et al., 2017, section 5.3); needs a warm-up."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: naming the key.
        """
        super().__post_init__()
        if self.warmup_steps < 1:
            raise ValueError("InverseSqrt.warmup_steps must be at least 1: it sets the time scale")

    def _after_warmup(self, steps: int) -> optax.Schedule:
        warmup = self.warmup_steps
        return lambda step: self.peak * jax.lax.rsqrt((step + warmup) / warmup)


@dataclass(frozen=True)
class WarmupStableDecay(_Schedule):
    """Stays at the peak, then falls along a line over the last steps.

    Source: Hu et al., 2024, arXiv:2404.06395, section 4.

    Attributes:
        decay_steps: Length of the fall.
        final_fraction: Share of the peak that is left at the end.
    """

    decay_steps: int = 0
    final_fraction: float = 0.0

    def _after_warmup(self, steps: int) -> optax.Schedule:
        if not 0 < self.decay_steps <= steps:
            raise ValueError(
                f"WarmupStableDecay.decay_steps={self.decay_steps} must be at least 1 and fit "
                f"into the {steps} steps that Run.steps leaves after the warm-up"
            )
        fall = optax.linear_schedule(self.peak, self.peak * self.final_fraction, self.decay_steps)
        stable = optax.constant_schedule(self.peak)
        return optax.join_schedules([stable, fall], [steps - self.decay_steps])


Schedule = Constant | Cosine | Linear | InverseSqrt | WarmupStableDecay
"""Any schedule."""


@dataclass(frozen=True)
class _Optimizer:
    """What all optimizers share.

    Attributes:
        learning_rate: A number or a schedule.
        weight_decay: Decoupled decay of kernels and embeddings (not of biases and norms), times
            the learning rate.
        clip_norm: Gradients are scaled down to this global norm; None leaves them alone.
    """

    learning_rate: float | Schedule
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0

    elementwise = True
    """Whether an element's update depends on that element alone (and the global norm)."""
    decays: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that say what is left of a moment after a step."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: naming the key.
        """
        name = type(self).__name__
        rate = self.learning_rate
        if isinstance(rate, int | float) and not 0.0 < rate <= _HIGHEST:
            raise ValueError(
                f"{name}.learning_rate must be positive and at most {_HIGHEST:g}, got {rate}"
            )
        if not 0.0 <= self.weight_decay <= _HIGHEST:
            raise ValueError(
                f"{name}.weight_decay must be from 0 to {_HIGHEST:g}, got {self.weight_decay}"
            )
        for key in self.decays:
            decay = getattr(self, key)
            if not 0.0 <= decay < 1.0:
                raise ValueError(f"{name}.{key} must be at least 0 and below 1, got {decay}")
        if self.clip_norm is not None and not self.clip_norm > 0.0:
            raise ValueError(f"{name}.clip_norm must be positive or None, got {self.clip_norm}")

    def schedule(self, steps: int) -> optax.Schedule:
        """The learning rate as a function of the step, for a run of `steps` steps."""
        if isinstance(self.learning_rate, int | float):
            return optax.constant_schedule(self.learning_rate)
        return self.learning_rate.build(steps)

    def build(self, steps: int) -> optax.GradientTransformationExtraArgs:
        """The optax transformation for a run of `steps` steps.

        Args:
            steps: Steps of the run.

        Returns:
            The transformation; its `update` may be told the gradients' global `norm`, if known.
        """
        parts = [self._update(self.schedule(steps))]
        if self.clip_norm is not None:
            parts.insert(0, _clip_by_global_norm(self.clip_norm))
        return optax.with_extra_args_support(optax.chain(*parts))

    def _update(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        raise NotImplementedError


@dataclass(frozen=True)
class AdamW(_Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, arXiv:1711.05101).

    Attributes:
        b1: Decay of the first moment.
        b2: Decay of the second moment.
        eps: Added to the root of the second moment.
    """

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8

    decays = ("b1", "b2")

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: naming the key.
        """
        super().__post_init__()
        if not self.eps > 0.0:
            raise ValueError(f"AdamW.eps must be positive, got {self.eps}")

    def _update(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        return optax.chain(
            _scale_by_adam(self.b1, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay, decay_mask),
            optax.scale_by_learning_rate(learning_rate),
        )


@dataclass(frozen=True)
class Adafactor(_Optimizer):
    """Adafactor (Shazeer and Stern, 2018, arXiv:1804.04235): factored second moments, no first.

    Attributes:
        decay_rate: Exponent of the second moment's decay, 1 - step**-decay_rate.
        clipping_threshold: Largest root mean square of an update, or None.
        multiply_by_parameter_scale: Whether updates are relative to the size of the parameter.
        min_dim_size_to_factor: Arrays with a smaller second-largest axis are not factored.
    """

    decay_rate: float = 0.8
    clipping_threshold: float | None = 1.0
    multiply_by_parameter_scale: bool = True
    min_dim_size_to_factor: int = 128

    elementwise = False

    def _update(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        adafactor = optax.adafactor(
            learning_rate,
            min_dim_size_to_factor=self.min_dim_size_to_factor,
            decay_rate=self.decay_rate,
            multiply_by_parameter_scale=self.multiply_by_parameter_scale,
            clipping_threshold=self.clipping_threshold,
        )
        return optax.chain(adafactor, _decoupled_decay(self.weight_decay, learning_rate))


@dataclass(frozen=True)
class Lion(_Optimizer):
    """Lion (Chen et al., 2023, arXiv:2302.06675): the sign of an interpolated momentum.

    Attributes:
        b1: Weight of the momentum in the update.
        b2: Decay of the momentum.
    """

    b1: float = 0.9
    b2: float = 0.99

    decays = ("b1", "b2")

    def _update(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        return optax.lion(
            learning_rate, self.b1, self.b2, weight_decay=self.weight_decay, mask=decay_mask
        )


@dataclass(frozen=True)
class SGD(_Optimizer):
    """Gradient descent with momentum.

    Attributes:
        momentum: Decay of the momentum; 0 for none.
        nesterov: Whether the gradient is taken ahead of the momentum step.
    """

    momentum: float = 0.9
    nesterov: bool = False

    decays = ("momentum",)

    def _update(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        momentum = optax.trace(self.momentum, self.nesterov) if self.momentum else optax.identity()
        return optax.chain(
            momentum,
            optax.add_decayed_weights(self.weight_decay, decay_mask),
            optax.scale_by_learning_rate(learning_rate),
        )


Optimizer = AdamW | Adafactor | Lion | SGD
"""Any optimizer."""


def decay_mask(params: Any) -> Any:
    """True for the parameters that weight decay applies to: kernels and embeddings."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in _DECAYED, params)


def taken_steps(opt_state: Any) -> Array:
    """Updates that an optimizer's state has seen: what its learning rate depends on.

    Args:
        opt_state: State of an optimizer of this file.

    Returns:
        The count, an int32 scalar.
    """
    return optax.tree_utils.tree_get_all_with_path(opt_state, "count")[0][1]


def _clip_by_global_norm(largest: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm` for a `norm` that is known.

    Args:
        largest: The largest norm.

    Returns:
        The transformation. It multiplies where optax divides: XLA computes products within what
        reads them, and writes quotients to memory first.
    """

    def update(
        grads: Any, state: Any, params: Any = None, *, norm: Array | None = None, **_: Any
    ) -> tuple[Any, Any]:
        factor = jnp.minimum(1.0, largest / (optax.tree.norm(grads) if norm is None else norm))
        return jax.tree.map(lambda g: g * factor, grads), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """`optax.scale_by_adam` that CPUs do in place.

    They make a pass over memory for each array, and left to themselves would compute parameters
    from the old moments, of which they would make copies to have them beside the new ones.

    Args:
        b1: Decay of the first moment.
        b2: Decay of the second moment.
        eps: Added to the root of the second moment.

    Returns:
        The transformation.
    """

    def update(
        grads: Any, state: optax.ScaleByAdamState, params: Any = None
    ) -> tuple[Any, optax.ScaleByAdamState]:
        count = optax.safe_increment(state.count)
        moments = (
            optax.tree.update_moment(grads, state.mu, b1, 1),
            optax.tree.update_moment_per_elem_norm(grads, state.nu, b2, 2),
        )
        mu, nu = jax.lax.platform_dependent(
            moments, cpu=jax.lax.optimization_barrier, default=lambda moments: moments
        )
        unbiased = (
            optax.tree.bias_correction(mu, b1, count),
            optax.tree.bias_correction(nu, b2, count),
        )
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), *unbiased)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam(b1, b2, eps).init, update)


def _decoupled_decay(
    weight_decay: float, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """Adds -learning_rate * weight_decay * parameter to updates that are otherwise finished."""
    decay = optax.inject_hyperparams(optax.add_decayed_weights, static_args="mask")
    return decay(weight_decay=lambda step: -weight_decay * learning_rate(step), mask=decay_mask)
