"""Steps: the same numbers on every mesh and in every split of the batch, and safe ones."""

import dataclasses
import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xformer import partitioning
from xformer.data.pipeline import PreparedData
from xformer.layers.execution import Execution
from xformer.layers.heads import CausalLM
from xformer.layers.stack import restack
from xformer.losses import LossSums
from xformer.models import build
from xformer.models.xglm import XGLMConfig
from xformer.objectives import NextToken
from xformer.optim import SGD, AdamW, Linear
from xformer.outputs import FlaxCausalLMOutputWithCrossAttentions
from xformer.partitioning import MeshConfig, make_mesh
from xformer.plan.topology import Topology
from xformer.training.config import Run
from xformer.training.state import DROPOUT, TrainState, blueprint, create_state, purpose_key
from xformer.training.steps import (
    compile_eval_step,
    compile_train_step,
    eval_step,
    train_step,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS, LENGTH, VOCABULARY = 8, 8, 32
MODEL = XGLMConfig(
    vocab_size=VOCABULARY,
    max_position_embeddings=LENGTH,
    d_model=16,
    ffn_dim=24,
    num_layers=2,
    attention_heads=8,
    dropout=0.2,
    attention_dropout=0.2,
    init_std=0.2,
)
RUN = Run(
    model=MODEL,
    head=CausalLM(),
    objective=NextToken(z_loss=1e-2, label_smoothing=0.1),
    train_data=PreparedData("unused"),
    # Adam would divide rounding errors of gradients that are zero by their own size.
    optimizer=SGD(Linear(0.5, warmup_steps=2), weight_decay=0.1, clip_norm=0.5),
    steps=10,
    batch_size=ROWS,
    folder="unused",
    execution=Execution(layers="scan"),
)
CALM = dataclasses.replace(
    RUN,
    model=dataclasses.replace(MODEL, dropout=0.0, attention_dropout=0.0),
    optimizer=SGD(1.0, momentum=0.0, clip_norm=None),
)
LOOP = Execution(layers="loop")
KEY = purpose_key(0, DROPOUT)

assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
assert_equal = np.testing.assert_array_equal


def make_batch(lengths=(8, 3, 5, 0, 2, 7, 1, 4), offset=0):
    """Rows of two documents that fill different shares of them."""
    place = np.arange(LENGTH)[None]
    ends = np.array(lengths)[:, None]
    is_second = place >= (ends + 1) // 2
    valid = place < ends
    ids = (np.arange(ROWS)[:, None] * 7 + place * 5 + offset) % (VOCABULARY - 3) + 3
    rows = {
        "input_ids": np.where(valid, ids, 1),
        "segment_ids": np.where(valid, 1 + is_second, 0),
        "position_ids": np.where(valid, place - is_second * ((ends + 1) // 2), 0),
    }
    return {name: row.astype(np.int32) for name, row in rows.items()}


class Trainer:
    """A run's compiled step and where its arrays go."""

    def __init__(self, run, fields=("logits",)):
        sizes = run.mesh.shape(max(run.mesh.data, 1) * run.mesh.fsdp * run.mesh.tensor)
        devices = jax.devices()[: int(np.prod(list(sizes.values())))]
        self.run = run
        self.plan = blueprint(run, make_mesh(run.mesh, devices))
        self.compiled = compile_train_step(run, self.plan, fields)
        self.sharding = partitioning.batch_sharding(self.plan.mesh, run.rules)

    def place(self, batch):
        return partitioning.global_batch(batch, self.sharding)

    def start(self, step=0):
        """The one state that all runs of these tests start from, at some step."""
        params = restack(start_params(), self.run.execution.layers)
        init = jax.jit(self.plan.optimizer.init)
        state = TrainState(np.int32(step), params, init(params))
        return jax.device_put(state, self.plan.shardings)

    def step(self, batch=None, step=0, key=KEY, state=None):
        state = self.start(step) if state is None else state
        return self.compiled(state, self.place(batch or make_batch()), key)


@functools.cache
def start_params():
    run = dataclasses.replace(CALM, execution=LOOP)
    plan = blueprint(run, make_mesh(MeshConfig(), jax.devices()[:1]))
    return jax.device_get(create_state(plan, seed=0).params)


@functools.cache
def trainer(run, fields=("logits",)):
    return Trainer(run, fields)


def single(run, **changes):
    return trainer(dataclasses.replace(run, mesh=MeshConfig(data=1), **changes))


def on_mesh(run, sizes, **changes):
    return trainer(dataclasses.replace(run, mesh=MeshConfig(*sizes), **changes))


@functools.cache
def first_step(made):
    """What one step leads to, in looped form."""
    result = jax.device_get(made.step())
    params = restack(result.state.params, "loop")
    return result.metrics, params, result.outputs.logits


# One optimizer step is the same everywhere


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)], ids=str)
def test_step_does_not_depend_on_the_mesh(sizes):
    expected, actual = first_step(single(RUN)), first_step(on_mesh(RUN, sizes))
    jax.tree.map(assert_close, actual, expected)
    before = start_params()["model"]["layers"]["0"]["fc1"]["kernel"]
    assert not np.allclose(actual[1]["model"]["layers"]["0"]["fc1"]["kernel"], before, atol=1e-3)


def test_step_is_golden():
    # Weights, dropout and arithmetic: what a seed leads to is the same in every version.
    metrics = first_step(single(RUN))[0]
    np.testing.assert_allclose(metrics.loss, 4.0874963, rtol=1e-5)
    np.testing.assert_allclose(metrics.gradient_norm, 1.7751390, rtol=1e-5)


def test_step_follows_the_gradient_of_the_mean_loss():
    made = single(CALM, execution=LOOP)
    module, batch = made.plan.module, jax.tree.map(jnp.asarray, make_batch())

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def mean_loss(params):
        out = module.apply({"params": params}, **batch)
        sums = CALM.objective.loss(out, batch, CALM.head)
        return sums.loss / sums.tokens, (sums, out.logits)

    (loss, (sums, logits)), gradient = mean_loss(start_params())
    metrics, params, returned = first_step(made)
    jax.tree.map(assert_close, params, jax.tree.map(np.subtract, start_params(), gradient))
    assert_close(metrics.loss, loss)
    assert_close(metrics.nll, sums.nll / sums.tokens)
    assert_close(metrics.z_loss, sums.z_loss / sums.tokens)
    assert_close(metrics.gradient_norm, optax.tree.norm(gradient))
    assert_close(returned, logits)
    # Each document of n tokens has n - 1 labels; the rows hold two documents, or one, or none.
    assert metrics.tokens == sum(max(n - 2, 0) for n in (8, 3, 5, 0, 2, 7, 1, 4))
    assert bool(metrics.finite) and metrics.learning_rate == 1.0


@pytest.mark.parametrize("sizes, parts", [((1, 1, 1), 2), ((1, 1, 1), 4), ((2, 2, 2), 2)], ids=str)
def test_accumulation_of_unequal_parts_is_the_whole_batch(sizes, parts):
    metrics, params, logits = first_step(single(CALM, execution=LOOP))
    split = first_step(on_mesh(CALM, sizes, accumulation_steps=parts))
    near = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    jax.tree.map(near, split[:2], (metrics, params))
    assert_close(split[2], logits)  # in the order of the batch's rows


# Randomness


def test_every_row_on_every_device_has_its_own_dropout():
    same = {name: np.repeat(row[:1], ROWS, axis=0) for name, row in make_batch().items()}
    for sizes in [(8, 1, 1), (2, 2, 2)]:
        logits = jax.device_get(on_mesh(RUN, sizes).step(same).outputs.logits)
        assert len({row.tobytes() for row in logits}) == ROWS


def test_dropout_depends_on_the_step_and_the_key():
    made = single(RUN)

    def logits(**changes):
        return np.asarray(made.step(**changes).outputs.logits)

    assert_equal(logits(step=3), logits(step=3))
    assert not np.allclose(logits(step=3), logits(step=4))
    assert not np.allclose(logits(step=3), logits(step=3, key=purpose_key(1, DROPOUT)))


def test_parts_of_a_batch_have_their_own_dropout():
    same = {name: np.repeat(row[:1], ROWS, axis=0) for name, row in make_batch().items()}
    made = single(RUN, accumulation_steps=2)
    logits = jax.device_get(made.step(same).outputs.logits)
    assert len({row.tobytes() for row in logits}) == ROWS


# What the compiled step promises


def test_step_is_traced_once_and_counts():
    made = on_mesh(RUN, (8, 1, 1))
    state = made.start()
    for offset in range(3):
        result = made.step(make_batch(offset=offset), state=state)
        state = result.state
        expected = RUN.optimizer.schedule(RUN.steps)(offset)
        assert int(state.step) == offset + 1
        assert float(result.metrics.learning_rate) == pytest.approx(float(expected))
    assert made.compiled.traces == 1
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == made.plan.shardings


def test_state_is_donated():
    made = single(RUN)
    state = made.start()
    made.step(state=state)
    leaves = jax.tree.leaves((state.params, state.opt_state))
    assert all(leaf.is_deleted() for leaf in leaves)


def test_outputs_are_the_documented_struct_with_the_fields_asked_for():
    outputs = single(RUN).step().outputs
    assert type(outputs) is FlaxCausalLMOutputWithCrossAttentions
    assert list(outputs) == ["logits"] and outputs.logits.shape == (ROWS, LENGTH, VOCABULARY)
    without = trainer(dataclasses.replace(CALM, mesh=MeshConfig(data=1)), fields=())
    program = without.compiled.lower(without.start(), without.place(make_batch()), KEY)
    assert program.out_info.outputs == FlaxCausalLMOutputWithCrossAttentions()


CHUNKED = Execution(layers="scan", vocabulary_chunk=3)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2), (1, 1, 4)], ids=str)
def test_chunks_of_the_vocabulary_do_not_change_the_step(sizes):
    made = trainer(dataclasses.replace(RUN, execution=CHUNKED, mesh=MeshConfig(*sizes)), fields=())
    result = jax.device_get(made.step())
    metrics, params, _ = first_step(single(RUN))
    jax.tree.map(
        assert_close, (result.metrics, restack(result.state.params, "loop")), (metrics, params)
    )


@pytest.mark.parametrize("fields, is_whole", [((), False), (("logits",), True)])
def test_steps_score_all_of_a_large_vocabulary_only_on_request(fields, is_whole):
    run = dataclasses.replace(RUN, execution=CHUNKED, mesh=MeshConfig(data=1))
    made = trainer(run, fields)
    batch, shape = made.place(make_batch()), f"f32[{ROWS},{LENGTH},{VOCABULARY}]"
    assert (shape in str(made.compiled.trace(made.start(), batch, KEY).jaxpr)) is is_whole
    scored = compile_eval_step(run, made.plan, fields)
    assert (shape in str(scored.trace(made.start().params, batch).jaxpr)) is is_whole
    result = scored(made.start().params, batch)
    assert ("logits" in result.outputs) is is_whole
    expected = compile_eval_step(RUN, single(RUN).plan, fields)(made.start().params, batch)
    jax.tree.map(assert_close, result, expected)


class Fragile(NextToken):
    """An objective whose loss, or only its gradient, can be made to fail by the batch."""

    def loss(self, outputs, batch, head):
        sums = super().loss(outputs, batch, head)
        root = jnp.sqrt(batch["under_root"] * jnp.square(outputs.logits.logits()).sum())
        return sums.replace(loss=sums.loss * batch["factor"] + root + batch["added"])


@functools.cache
def fragile_step(optimizer):
    made = single(CALM, optimizer=optimizer)
    step = functools.partial(
        train_step,
        module=made.plan.module,
        objective=Fragile(),
        head=CALM.head,
        optimizer=made.plan.optimizer,
        learning_rate=optimizer.schedule(CALM.steps),
    )
    batch = jax.tree.map(jnp.asarray, make_batch())

    def run(state, factor=1.0, under_root=1.0, added=0.0):
        extra = {"factor": factor, "under_root": under_root, "added": added}
        return jitted(state, batch | jax.tree.map(jnp.float32, extra), KEY)

    jitted = jax.jit(step)
    return run, made.start(step=1)


def assert_taken(result, state, is_taken):
    """Whether a step was taken, or counted and left everything else as it was, to the bit."""
    assert bool(result.metrics.finite) == is_taken and int(result.state.step) == 2
    old, new = jax.device_get([(one.params, one.opt_state) for one in (state, result.state)])
    same = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), old, new)
    assert all(jax.tree.leaves(same)) != is_taken


@pytest.mark.parametrize(
    "broken, loss_is_finite, is_taken",
    [
        pytest.param({}, True, True, id="all finite"),
        pytest.param({"added": np.inf}, False, False, id="infinite loss"),
        pytest.param({"factor": np.nan}, False, False, id="both are NaN"),
        pytest.param({"under_root": 0.0}, True, False, id="gradient is NaN"),
    ],
)
def test_step_that_is_not_finite_changes_nothing(broken, loss_is_finite, is_taken):
    optimizer = AdamW(Linear(0.1, warmup_steps=4))
    step, state = fragile_step(optimizer)
    result = step(state, **broken)
    assert_taken(result, state, is_taken)
    assert np.isfinite(result.metrics.loss) == loss_is_finite
    # The learning rate goes on from the steps that were taken, and is reported as it was applied.
    rates = [float(one.metrics.learning_rate) for one in (result, step(result.state))]
    expected = [float(optimizer.schedule(CALM.steps)(step)) for step in (0, int(is_taken))]
    assert rates == pytest.approx(expected)


def test_a_step_in_bfloat16_keeps_its_state_in_float32():
    made = single(CALM, optimizer=AdamW(0.1), execution=Execution(dtype="bfloat16"))
    before, batch = jax.device_get(made.start().params), made.place(make_batch())
    program = made.compiled.trace(made.start(), batch, KEY).jaxpr
    assert re.search(r":bf16\[[\d,]+\] = dot_general", str(program))
    state = jax.device_get(made.step().state)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert len(moments) == 2 * len(jax.tree.leaves(before))
    dtypes = {leaf.dtype for leaf in (*jax.tree.leaves(state.params), *moments)}
    assert dtypes == {jnp.dtype("float32")}
    moved = jax.tree.map(lambda old, new: (old != new).any(), before, state.params)
    assert all(jax.tree.leaves(moved))


NO_LIBTPU = importlib.util.find_spec("libtpu") is None


@pytest.mark.parametrize(
    "topology, words",
    [
        (None, 1 << 14),
        pytest.param(
            "v5e:1x1",
            1 << 18,  # a table that there is no room for beside the cores
            marks=pytest.mark.skipif(NO_LIBTPU, reason="needs libtpu: requirements/plan.txt"),
        ),
    ],
)
def test_a_step_copies_neither_state_nor_updates(topology, words):
    model = dataclasses.replace(CALM.model, vocab_size=words, d_model=256)
    run = dataclasses.replace(CALM, model=model, optimizer=AdamW(0.1), mesh=MeshConfig())
    devices = Topology.parse(topology).devices() if topology else jax.devices()[:1]
    plan = blueprint(run, make_mesh(run.mesh, devices))
    step = compile_train_step(run, plan).lower(plan.shapes, make_batch(), KEY).compile()
    table, memory = 4 * model.vocab_size * model.d_model, step.memory_analysis()
    assert memory.alias_size_in_bytes > 3 * table  # it, and its moments
    assert memory.temp_size_in_bytes < 1.75 * table  # its gradient, and scores


# Evaluation


def test_evaluation_ignores_padding_rows_and_dropout():
    run = dataclasses.replace(RUN, mesh=MeshConfig(2, 2, 2))
    plan = blueprint(run, make_mesh(run.mesh))
    params = jax.device_put(restack(start_params(), "scan"), plan.shardings.params)
    compiled = compile_eval_step(run, plan, ("logits",))
    batch, place = make_batch(), partitioning.batch_sharding(plan.mesh, run.rules)
    result = compiled(params, partitioning.global_batch(batch, place))
    assert type(result.outputs) is FlaxCausalLMOutputWithCrossAttentions
    module = build(RUN.model, RUN.head, LOOP)
    alone = jax.jit(
        functools.partial(eval_step, module=module, objective=RUN.objective, head=RUN.head)
    )
    real = {name: jnp.asarray(row[[0, 1, 2, 4, 5, 6, 7]]) for name, row in batch.items()}
    jax.tree.map(assert_close, result.sums, alone(start_params(), real).sums)
    padding = {name: np.zeros_like(row) for name, row in batch.items()}
    nothing = compiled(params, partitioning.global_batch(padding, place))
    jax.tree.map(assert_equal, nothing.sums, LossSums.zero())
    assert compiled.traces == 1


@pytest.mark.parametrize("accumulation", [1, 2])
def test_states_and_attentions_are_returned_when_asked_for(accumulation):
    run = dataclasses.replace(CALM, mesh=MeshConfig(data=1), accumulation_steps=accumulation)
    made = trainer(run, fields=("hidden_states", "attentions"))
    program = made.compiled.lower(made.start(), made.place(make_batch()), KEY)
    outputs = program.out_info.outputs
    assert list(outputs) == ["hidden_states", "attentions"]
    assert all(leaf.shape[0] == ROWS for leaf in jax.tree.leaves(outputs))
    assert len(outputs.hidden_states) == len(outputs.attentions) + 1
