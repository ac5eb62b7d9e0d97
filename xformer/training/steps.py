"""The jit boundary: pure functions of (state, batch, key) and their compiled forms."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from xformer import partitioning
from xformer.generation.decode import generate
from xformer.generation.decoding import Beams, Decoding
from xformer.layers.heads import VOCABULARY_HEADS, Head
from xformer.layers.stack import restack
from xformer.losses import LossSums
from xformer.models.build import Module, build
from xformer.objectives import Objective
from xformer.optim import taken_steps
from xformer.partitioning import ShardedFunction
from xformer.training.config import Run
from xformer.training.state import Blueprint, TrainState

Batch = Mapping[str, Array]


@struct.dataclass
class StepMetrics:
    """Numbers of one training step; means are over the scored tokens of the whole batch.

    Attributes:
        loss: What is minimised, per token.
        nll: Negative log likelihood per token, in nats.
        z_loss: The z-loss per token.
        next_sentence: What pairs of texts add to the loss, per token; see `LossSums`.
        tokens: Number of scored tokens.
        gradient_norm: Global norm of the gradient, before clipping.
        learning_rate: Learning rate of the step; steps that changed nothing do not advance it.
        finite: Whether loss and gradient were finite, and so the update; if not, the step changed
            nothing.
    """

    loss: Float[Array, ""]
    nll: Float[Array, ""]
    z_loss: Float[Array, ""]
    next_sentence: Float[Array, ""]
    tokens: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    finite: Bool[Array, ""]


@struct.dataclass
class TrainResult:
    """What a training step returns.

    Attributes:
        state: The next state.
        metrics: The step's numbers.
        outputs: The model's documented output struct with the fields that were asked for.
    """

    state: TrainState
    metrics: StepMetrics
    outputs: Any


@struct.dataclass
class EvalResult:
    """What an evaluation step returns.

    Attributes:
        sums: Loss sums of the batch.
        outputs: The model's documented output struct with the fields that were asked for.
    """

    sums: LossSums
    outputs: Any


def keep_fields(outputs: Any, fields: tuple[str, ...]) -> Any:
    """The output struct with only the named fields; the compiler drops what nobody reads."""
    return type(outputs)(**{name: outputs[name] for name in fields})


def _output_flags(fields: tuple[str, ...], head: Head | None = None) -> dict[str, Any]:
    """The arguments that make a model return fields that it leaves out, where a loss is wanted."""
    flags = {
        "output_hidden_states": "hidden_states" in fields,
        "output_attentions": "attentions" in fields,
    }
    if isinstance(head, VOCABULARY_HEADS):
        flags["output_logits"] = bool({"logits", "prediction_logits"} & set(fields))
    return flags


def train_step(
    state: TrainState,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    module: Module,
    objective: Objective,
    head: Head,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    accumulation_steps: int = 1,
    fields: tuple[str, ...] = (),
) -> TrainResult:
    """One optimizer step.

    The gradient is that of the mean loss over all scored tokens of the batch, however the batch is
    split into accumulation steps or over devices and however many tokens each part has.

    Args:
        state: The state.
        batch: Rows of the whole step.
        key: Key of the run's dropout; the step's number is folded in.
        module: The model.
        objective: What it is trained to do.
        head: The model's head.
        optimizer: How it learns.
        learning_rate: The optimizer's schedule, for the record.
        accumulation_steps: Parts that the batch is computed in.
        fields: Fields of the model's output struct to return.

    Returns:
        The next state, metrics, and the asked-for outputs.
    """
    key = jax.random.fold_in(key, state.step)
    # float16 would overflow on sums over many tokens and lose means; a power of two costs no bits.
    tokens = math.prod(batch["input_ids"].shape) // accumulation_steps
    scale = 2.0 ** min(0, 10 - round(math.log2(tokens)))

    def loss_sum(params: Any, part: Batch, key: PRNGKeyArray) -> tuple[Array, tuple[LossSums, Any]]:
        outputs: Any = module.apply(
            {"params": params},
            **objective.inputs(part),
            **_output_flags(fields, head),
            deterministic=False,
            rngs={"dropout": key},
        )
        sums = objective.loss(outputs, part, head)
        return sums.loss * scale, (sums, keep_fields(outputs, fields))

    gradient = jax.grad(loss_sum, has_aux=True)
    if accumulation_steps == 1:
        grads, (sums, outputs) = gradient(state.params, batch, key)
    else:
        grads, sums, outputs = _accumulate(gradient, state.params, batch, key, accumulation_steps)
    count = jnp.maximum(sums.tokens, 1.0)
    norm = optax.tree.norm(grads) / (count * scale)
    finite = jnp.isfinite(sums.loss) & jnp.isfinite(norm)

    def take() -> tuple[Any, Any]:
        means = jax.tree.map(lambda g: g * (1.0 / (count * scale)), grads)
        update = optax.with_extra_args_support(optimizer).update
        updates, opt_state = update(means, state.opt_state, state.params, norm=norm)
        return optax.apply_updates(state.params, updates), opt_state

    def choose() -> tuple[Any, Any]:
        old = (state.params, state.opt_state)
        return jax.tree.map(lambda one, other: jnp.where(finite, one, other), take(), old)

    # CPUs would have old and new numbers in memory at once; others make one pass for both.
    params, opt_state = jax.lax.platform_dependent(
        cpu=lambda: jax.lax.cond(finite, take, lambda: (state.params, state.opt_state)),
        default=choose,
    )
    metrics = StepMetrics(
        loss=sums.loss / count,
        nll=sums.nll / count,
        z_loss=sums.z_loss / count,
        next_sentence=sums.next_sentence / count,
        tokens=sums.tokens,
        gradient_norm=norm,
        learning_rate=jnp.asarray(learning_rate(taken_steps(state.opt_state)), jnp.float32),
        finite=finite,
    )
    return TrainResult(TrainState(state.step + 1, params, opt_state), metrics, outputs)


def _accumulate(
    gradient: Callable, params: Any, batch: Batch, key: PRNGKeyArray, parts: int
) -> tuple[Any, LossSums, Any]:
    """Sums gradients and losses over equal parts of a batch.

    Part i takes rows i, i + parts, ...: every device has rows of every part, so nothing moves.

    Returns:
        Summed gradients, summed losses, and the outputs in the order of the batch's rows.
    """
    split = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), dict(batch)
    )

    def add(carry: tuple, part: tuple) -> tuple:
        grads, sums = carry
        rows, index = part
        new_grads, (new_sums, outputs) = gradient(params, rows, jax.random.fold_in(key, index))
        return (jax.tree.map(jnp.add, grads, new_grads), sums + new_sums), outputs

    zero = (jax.tree.map(jnp.zeros_like, params), LossSums.zero())
    outputs: Any
    (grads, sums), outputs = jax.lax.scan(add, zero, (split, jnp.arange(parts)))
    outputs = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), outputs)
    return grads, sums, outputs


def eval_step(
    params: Any,
    batch: Batch,
    *,
    module: Module,
    objective: Objective,
    head: Head,
    fields: tuple[str, ...] = (),
) -> EvalResult:
    """Scores a batch without dropout.

    Args:
        params: The model's parameters.
        batch: Rows; those that are all padding count for nothing.
        module: The model.
        objective: What it is trained to do.
        head: The model's head.
        fields: Fields of the model's output struct to return.

    Returns:
        Loss sums and the asked-for outputs.
    """
    outputs: Any = module.apply(
        {"params": params}, **objective.inputs(batch), **_output_flags(fields, head)
    )
    return EvalResult(objective.loss(outputs, batch, head), keep_fields(outputs, fields))


def predict_step(
    params: Any, batch: Batch, *, module: Module, objective: Objective, fields: tuple[str, ...]
) -> Any:
    """What a model says about a batch that may have no labels.

    Args:
        params: The model's parameters.
        batch: Rows.
        module: The model.
        objective: What it was trained to do.
        fields: Fields of the model's output struct to return.

    Returns:
        The output struct with those fields.
    """
    outputs: Any = module.apply(
        {"params": params}, **objective.inputs(batch), **_output_flags(fields)
    )
    return keep_fields(outputs, fields)


def compile_train_step(run: Run, plan: Blueprint, fields: tuple[str, ...] = ()) -> ShardedFunction:
    """The training step of a run as a jit-compiled function of (state, batch, key).

    The state is donated: the caller's becomes unusable.

    Args:
        run: The run.
        plan: Its blueprint.
        fields: Fields of the model's output struct to return.

    Returns:
        A function to `TrainResult`; traced once, as every batch has the same shape.
    """

    def step(state: TrainState, batch: Batch, key: PRNGKeyArray) -> TrainResult:
        with partitioning.constraints(run.rules, run.mesh.gradient_dtype):
            result = train_step(
                partitioning.resized(state, plan.own_shapes),
                batch,
                key,
                module=plan.module,
                objective=run.objective,
                head=run.head,
                optimizer=plan.optimizer,
                learning_rate=run.optimizer.schedule(run.steps),
                accumulation_steps=run.accumulation_steps,
                fields=fields,
            )
        held = partitioning.resized(result.state, plan.shapes)
        return TrainResult(held, result.metrics, result.outputs)

    whole = partitioning.replicated(plan.mesh)
    batch = partitioning.batch_sharding(plan.mesh, run.rules)
    return partitioning.jit(
        plan.mesh,
        step,
        in_shardings=(plan.shardings, batch, whole),
        out_shardings=TrainResult(plan.shardings, whole, batch),  # type: ignore[arg-type]
        donate_argnums=0,
    )


def compile_eval_step(run: Run, plan: Blueprint, fields: tuple[str, ...] = ()) -> ShardedFunction:
    """The evaluation step of a run as a jit-compiled function of (params, batch).

    Args:
        run: The run.
        plan: Its blueprint.
        fields: Fields of the model's output struct to return.

    Returns:
        A function to `EvalResult`.
    """

    def step(params: Any, batch: Batch) -> EvalResult:
        with partitioning.constraints(run.rules):
            return eval_step(
                partitioning.resized(params, plan.own_shapes.params),
                batch,
                module=plan.module,
                objective=run.objective,
                head=run.head,
                fields=fields,
            )

    whole = partitioning.replicated(plan.mesh)
    batch = partitioning.batch_sharding(plan.mesh, run.rules)
    return partitioning.jit(
        plan.mesh,
        step,
        in_shardings=(plan.shardings.params, batch),
        out_shardings=EvalResult(whole, batch),  # type: ignore[arg-type]
    )


def compile_predict_step(run: Run, plan: Blueprint, fields: tuple[str, ...]) -> ShardedFunction:
    """The prediction step of a run as a jit-compiled function of (params, batch).

    Args:
        run: The run.
        plan: Its blueprint.
        fields: Fields of the model's output struct to return.

    Returns:
        A function to the output struct with those fields.
    """

    def step(params: Any, batch: Batch) -> Any:
        with partitioning.constraints(run.rules):
            return predict_step(
                partitioning.resized(params, plan.own_shapes.params),
                batch,
                module=plan.module,
                objective=run.objective,
                fields=fields,
            )

    batch = partitioning.batch_sharding(plan.mesh, run.rules)
    return partitioning.jit(
        plan.mesh, step, in_shardings=(plan.shardings.params, batch), out_shardings=batch
    )


def compile_write_step(
    run: Run, plan: Blueprint, *, max_new_tokens: int, beams: Beams | None = None
) -> ShardedFunction:
    """Writing the targets of a batch's sources as a jit-compiled function of (params, batch).

    Args:
        run: The run, of an encoder-decoder.
        plan: Its blueprint.
        max_new_tokens: Most tokens to write.
        beams: Beam search; None for the likeliest token every time.

    Returns:
        A function to the documented output struct of generation with its `sequences` alone.
    """
    # Unrolled layers decode faster, and stacked parameters would be sliced for every token.
    execution = run.execution.looped()
    module = build(run.model, run.head, execution)
    decoding = Decoding.of(run.model, beams=beams)

    def step(params: Any, batch: Batch) -> Any:
        with partitioning.constraints(run.rules):
            written = generate(
                module,
                restack(partitioning.resized(params, plan.own_shapes.params), "loop"),
                batch["input_ids"],
                batch["attention_mask"],
                jax.random.key(0),  # nothing is drawn
                max_new_tokens=max_new_tokens,
                decoding=decoding,
            )
        return keep_fields(written, ("sequences",))

    batch = partitioning.batch_sharding(plan.mesh, run.rules)
    return partitioning.jit(
        plan.mesh, step, in_shardings=(plan.shardings.params, batch), out_shardings=batch
    )
