"""Training steps of xformer, of Flax with optax, and of PyTorch: AdamW after clipping, no dropout.

All return the loss and the norm of the gradient, and all update in place.
"""

from collections.abc import Callable, Mapping
from typing import Any

from comparing import programs
from comparing.case import Program

RATE, BETAS, EPSILON, CLIP = 1e-4, (0.9, 0.95), 1e-8, 1.0
_STEPS = 1000


def ours(params: Any, batch: Mapping[str, Any], **run: Any) -> Program:
    """Steps of a run of xformer.

    Args:
        params: What it starts from.
        batch: The rows.
        **run: What the run is about: model, head, objective and data, execution.

    Returns:
        The program.
    """
    import jax

    state, step = started(params, batch, **run)
    return programs.jax_training(
        step,
        state,
        dict(batch),
        jax.random.key(0),
        outputs=lambda numbers: {"loss": numbers.loss, "gradient": numbers.gradient_norm},
    )


def started(params: Any, batch: Mapping[str, Any], **run: Any) -> tuple[Any, Any]:
    """The state that a run of xformer starts from, and its step.

    Args:
        params: What it starts from; their memory goes into the state.
        batch: The rows.
        **run: As `ours` has it.

    Returns:
        The state, and a step from state, rows and key to the next state and the metrics.
    """
    import jax

    from xformer import partitioning
    from xformer.optim import AdamW
    from xformer.partitioning import MeshConfig
    from xformer.training.config import Run
    from xformer.training.state import TrainState, blueprint
    from xformer.training.steps import train_step

    optimizer = AdamW(RATE, clip_norm=CLIP, b1=BETAS[0], b2=BETAS[1], eps=EPSILON)
    described = Run(
        optimizer=optimizer,
        steps=_STEPS,
        batch_size=len(next(iter(batch.values()))),
        folder="not written",
        **run,
    )
    plan = blueprint(described, partitioning.make_mesh(MeshConfig()))
    chosen = plan.optimizer
    state = TrainState(jax.numpy.int32(0), params, jax.jit(chosen.init)(params))

    def step(state: TrainState, batch: Any, key: Any) -> tuple[TrainState, Any]:
        result = train_step(
            state,
            batch,
            key,
            module=plan.module,
            objective=described.objective,
            head=described.head,
            optimizer=chosen,
            learning_rate=optimizer.schedule(_STEPS),
        )
        return result.state, result.metrics

    return state, jax.jit(step, donate_argnums=0)


def flax(loss: Callable[[Any], Any], params: Any) -> Program:
    """Steps of a Flax model.

    Args:
        loss: The loss of parameters.
        params: What it starts from.

    Returns:
        The program.
    """
    state, step = flax_started(lambda params, key: loss(params), params)
    import jax

    return programs.jax_training(step, state, jax.random.key(0), outputs=lambda numbers: numbers)


def flax_started(loss: Callable[[Any, Any], Any], params: Any) -> tuple[Any, Any]:
    """The state that a Flax model starts from, and its step.

    Args:
        loss: The loss of parameters and a key.
        params: What it starts from.

    Returns:
        The state, and a step from state and key to the next state and the numbers.
    """
    import jax
    import optax

    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP),
        optax.adamw(RATE, *BETAS, eps=EPSILON, weight_decay=0.0),
    )

    def step(state: Any, key: Any) -> tuple[Any, Any]:
        params, moments = state
        value, gradients = jax.value_and_grad(loss)(params, key)
        updates, moments = optimizer.update(gradients, moments, params)
        numbers = {"loss": value, "gradient": programs.global_norm(gradients)}
        return (optax.apply_updates(params, updates), moments), numbers

    state = (params, jax.jit(optimizer.init)(params))
    return state, jax.jit(step, donate_argnums=0)


def torch(loss: Callable[[], Any], model: Any) -> Program:
    """Steps of a PyTorch model.

    Args:
        loss: The loss.
        model: The model.

    Returns:
        The program.
    """
    import torch as library

    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = library.optim.AdamW(
        parameters, lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=0.0, fused=True
    )

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        norm = library.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        return {"loss": value.detach(), "gradient": norm}

    program = programs.torch_program(step, lambda numbers: numbers, gradient=True)

    def both() -> Any:
        first, second = (programs.as_numpy(program.run()) for _ in range(2))
        return {**first, **{f"{key} after a step": value for key, value in second.items()}}

    program.outputs = both
    return program
