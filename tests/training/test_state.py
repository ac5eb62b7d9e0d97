"""The state: created where it lives, with the same numbers wherever that is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xformer.data.pipeline import PreparedData
from xformer.layers.execution import Execution
from xformer.layers.heads import CausalLM
from xformer.layers.stack import restack
from xformer.models.xglm import XGLMConfig
from xformer.objectives import NextToken
from xformer.optim import SGD, Adafactor, AdamW, Lion
from xformer.partitioning import MeshConfig, Rules, make_mesh
from xformer.training.config import Run
from xformer.training.state import (
    DROPOUT,
    INIT,
    SAMPLE,
    blueprint,
    create_state,
    per_layer_optimizer,
    purpose_key,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

RUN = Run(
    model=XGLMConfig(
        vocab_size=32,
        max_position_embeddings=8,
        d_model=16,
        ffn_dim=24,
        num_layers=2,
        attention_heads=8,
    ),
    head=CausalLM(),
    objective=NextToken(),
    train_data=PreparedData("unused"),
    optimizer=AdamW(1e-3),
    steps=5,
    batch_size=8,
    folder="unused",
)


def plan(mesh=(1, 1, 1), **fields):
    run = dataclasses.replace(RUN, mesh=MeshConfig(*mesh), **fields)
    return blueprint(run, make_mesh(run.mesh, jax.devices()[: int(np.prod(mesh))]))


@pytest.fixture(scope="module")
def single():
    """The state on one device."""
    return jax.device_get(create_state(plan(), seed=3))


@pytest.mark.parametrize(
    "mesh, layers", [((1, 8, 1), "loop"), ((2, 2, 2), "loop"), ((2, 1, 4), "scan")]
)
def test_weights_do_not_depend_on_the_mesh_or_the_layer_mode(single, mesh, layers):
    sharded = plan(mesh, execution=Execution(layers=layers))
    state = create_state(sharded, seed=3)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == sharded.shardings
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), sharded.shapes
    )
    jax.tree.map(np.testing.assert_array_equal, restack(jax.device_get(state), "loop"), single)


def test_each_device_holds_its_part_only():
    state = create_state(plan((1, 8, 1), execution=Execution(layers="scan")), seed=0)
    kernel = state.opt_state[1][0].mu["model"]["layers"]["stacked"]["fc1"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 2, 24)}

    def held(device):
        return sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(state)
            for shard in leaf.addressable_shards
            if shard.device == device
        )

    total = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    # Biases of heads and feed-forward are whole on every device, and weigh much in this model.
    assert all(held(device) < total / 5 for device in jax.devices())


def test_seed_decides_the_weights(single):
    same, other = (jax.device_get(create_state(plan(), seed).params) for seed in (3, 4))
    jax.tree.map(np.testing.assert_array_equal, same, single.params)
    kernels = (p["model"]["layers"]["0"]["fc1"]["kernel"] for p in (same, other))
    assert not np.allclose(*kernels)
    assert single.step == 0 and single.step.dtype == np.int32


def test_blueprint_allocates_nothing():
    before = len(jax.live_arrays())
    made = plan((2, 2, 2))
    assert len(jax.live_arrays()) == before
    leaves = jax.tree.leaves(made.shapes)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding for leaf in leaves)


def test_purposes_draw_from_different_streams():
    keys = {jax.random.key_data(purpose_key(0, p)).tobytes() for p in (INIT, DROPOUT, SAMPLE)}
    assert len(keys) == 3
    seeds = {jax.random.key_data(purpose_key(seed, INIT)).tobytes() for seed in (0, 1, 2**32 - 1)}
    assert len(seeds) == 3


@pytest.mark.parametrize("optimizer", [AdamW(1e-3), Lion(1e-3), SGD(1e-3), Adafactor(1e-3)])
@pytest.mark.parametrize("layers", ["loop", "scan"])
def test_only_adafactor_looks_at_scanned_layers_one_by_one(optimizer, layers):
    run = dataclasses.replace(RUN, optimizer=optimizer, execution=Execution(layers=layers))
    assert per_layer_optimizer(run) == (layers == "scan" and isinstance(optimizer, Adafactor))
    made = plan(optimizer=optimizer, execution=Execution(layers=layers))
    stacked = any(
        getattr(key, "key", None) == "stacked"
        for path, _ in jax.tree_util.tree_leaves_with_path(made.shapes.opt_state)
        for key in path
    )
    assert stacked == (layers == "scan" and not per_layer_optimizer(run))


def test_adafactor_updates_scanned_layers_like_looped_ones():
    adafactor = Adafactor(0.1, min_dim_size_to_factor=8, weight_decay=0.1)
    rng = np.random.default_rng(0)
    shapes = plan().shapes.params
    trees = [
        jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
        for _ in range(4)
    ]

    def train(layers):
        optimizer = plan(optimizer=adafactor, execution=Execution(layers=layers)).optimizer
        params, *gradients = (restack(tree, layers) for tree in trees)
        state, update = jax.jit(optimizer.init)(params), jax.jit(optimizer.update)
        for gradient in gradients:
            updates, state = update(gradient, state, params)
            params = jax.tree.map(np.add, params, updates)
        return restack((params, state), "loop")

    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, train("scan"), train("loop"))


@pytest.mark.parametrize(
    "mesh, fields, message",
    [
        (
            (8, 1, 1),
            {"batch_size": 12},
            r"the 8 ways that the mesh splits a batch must divide Run.batch_size=12 / "
            r"Run.accumulation_steps=1 = 12",
        ),
        (
            (2, 2, 2),
            {"batch_size": 8, "accumulation_steps": 4},
            r"the 4 ways .* Run.batch_size=8 / Run.accumulation_steps=4 = 2",
        ),
        (
            (1, 1, 8),
            {"model": dataclasses.replace(RUN.model, attention_heads=4)},
            r"mesh axis 'tensor'=8 must divide the model's 4 attention heads; set "
            r"MeshConfig.tensor or XGLMConfig's heads",
        ),
        (
            (1, 8, 1),
            {"model": dataclasses.replace(RUN.model, d_model=12, attention_heads=4)},
            r"mesh axis 'fsdp'=8 must divide the 'embed' dimension 12 of params/model/embed_tok",
        ),
        (
            (1, 1, 1, 2),
            {"execution": Execution(attention="pallas")},
            r"Execution.attention='pallas' needs the tokens of a row on one device, got "
            r"MeshConfig.sequence=2; set it to 1, or Execution.attention to 'xla'",
        ),
    ],
)
def test_blueprint_refuses_what_the_mesh_does_not_divide(mesh, fields, message):
    with pytest.raises(ValueError, match=message):
        plan(mesh, **fields)


def test_rules_decide_where_the_state_lives():
    made = plan((1, 8, 1), rules=Rules(embed=(), mlp=("fsdp",)))
    fc1 = made.shapes.params["model"]["layers"]["0"]["fc1"]["kernel"]
    assert fc1.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp")
    assert jnp.dtype(fc1.dtype) == jnp.float32
