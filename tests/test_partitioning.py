"""Where arrays live: meshes, specs, and constraints that reach the compiled program."""

import contextlib
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from jax.sharding import PartitionSpec

from xformer import partitioning
from xformer.data.pipeline import PreparedData
from xformer.dims import DIMENSIONS
from xformer.layers.execution import Execution
from xformer.layers.heads import CausalLM
from xformer.models import build
from xformer.models.xglm import XGLMConfig
from xformer.objectives import NextToken
from xformer.optim import SGD, Adafactor, AdamW, Lion
from xformer.partitioning import MESH_AXES, MeshConfig, Rules, make_mesh, partition_spec
from xformer.plan.compilation import trace_step
from xformer.plan.shapes import batch_shapes
from xformer.training.config import Run
from xformer.training.state import blueprint

P = PartitionSpec
MODEL = XGLMConfig(
    vocab_size=32,
    max_position_embeddings=8,
    d_model=16,
    ffn_dim=24,
    num_layers=2,
    attention_heads=4,
    tie_word_embeddings=False,
    add_cross_attention=True,
)
RUN = Run(
    model=MODEL,
    head=CausalLM(),
    objective=NextToken(),
    train_data=PreparedData("unused"),
    optimizer=AdamW(1e-3),
    steps=5,
    batch_size=8,
    folder="unused",
    execution=Execution(layers="scan"),
)


def plan(**fields):
    """The blueprint of a run on a mesh of fsdp=4 and tensor=2, or another."""
    run = dataclasses.replace(RUN, **{"mesh": MeshConfig(fsdp=4, tensor=2)} | fields)
    return blueprint(run, make_mesh(run.mesh))


def named(tree, leaf=lambda leaf: leaf):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf(value)
        for path, value in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_every_logical_axis_has_a_rule():
    axes = {
        axis
        for dimension in DIMENSIONS.values()
        for axis in (dimension.parameter_axis, dimension.activation_axis)
        if axis
    }
    assert axes == {field.name for field in dataclasses.fields(Rules)}
    assert all(len(letter) == 1 and letter.isupper() for letter in DIMENSIONS)


# Meshes


@pytest.mark.parametrize(
    "config, devices, shape",
    [
        (MeshConfig(), 8, (8, 1, 1, 1)),
        (MeshConfig(), 1, (1, 1, 1, 1)),
        (MeshConfig(fsdp=4, tensor=2), 8, (1, 4, 1, 2)),
        (MeshConfig(fsdp=2), 8, (4, 2, 1, 1)),
        (MeshConfig(2, 2, 2), 8, (2, 2, 1, 2)),
        (MeshConfig(1, 1, 4), 4, (1, 1, 1, 4)),
        (MeshConfig(sequence=4, tensor=2), 8, (1, 1, 4, 2)),
        (MeshConfig(fsdp=2, slices=2), 8, (4, 2, 1, 1)),
    ],
)
def test_mesh_has_this_shape(config, devices, shape):
    assert tuple(config.shape(devices).items()) == tuple(zip(MESH_AXES, shape, strict=True))
    mesh = make_mesh(config, jax.devices()[:devices])
    assert mesh.devices.shape == shape and mesh.axis_names == MESH_AXES
    assert set(mesh.devices.flat) == set(jax.devices()[:devices])


def test_mesh_takes_all_devices_by_default():
    assert make_mesh(MeshConfig(fsdp=2)).devices.size == 8


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (8, 2, 1), (-1, 16, 1), (4, 1, 1)])
def test_mesh_that_does_not_fit_the_devices_is_refused(sizes):
    data, fsdp, tensor = sizes
    message = (
        rf"data={data}, fsdp={fsdp}, sequence=1, tensor={tensor} must multiply to the 8 devices; "
        "set MeshConfig.data, fsdp, sequence or tensor"
    )
    with pytest.raises(ValueError, match=message):
        MeshConfig(*sizes).shape(8)


@dataclasses.dataclass(frozen=True)
class SliceDevice:
    """What arranging a mesh reads of a device."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "made up"
    device_kind: str = "made up"


def test_slices_are_the_outer_part_of_the_data_axis():
    devices = [SliceDevice(i, slice_index=i % 2) for i in range(8)]
    found = make_mesh(MeshConfig(fsdp=2, slices=2), devices).devices
    slices = np.vectorize(lambda device: device.slice_index)(found)
    np.testing.assert_array_equal(slices[:2], 0)
    np.testing.assert_array_equal(slices[2:], 1)


@pytest.mark.parametrize("slices", [1, 4])
def test_slices_that_are_not_there_are_refused(slices):
    devices = [SliceDevice(i, slice_index=i % 2) for i in range(8)]
    message = f"lie in 2 slices: set MeshConfig.slices = 2, got {slices}"
    with pytest.raises(ValueError, match=message):
        make_mesh(MeshConfig(slices=slices), devices)
    with pytest.raises(ValueError, match="slices=3 must divide the mesh axis data=8"):
        MeshConfig(slices=3).shape(8)


def test_any_axis_may_span_hosts_of_gpus():
    """JAX calls each of them a slice."""
    devices = [SliceDevice(i, i // 4, i // 4, "gpu") for i in range(8)]
    found = make_mesh(MeshConfig(fsdp=8), devices).devices
    assert found.shape == (1, 8, 1, 1) and list(found.flat) == devices
    assert list(make_mesh(MeshConfig(fsdp=4, slices=2), devices).devices[1].flat) == devices[4:]
    with pytest.raises(ValueError, match="lie in 2 slices"):
        make_mesh(MeshConfig(slices=4), devices)


def test_hosts_of_gpus_that_are_compiled_for_are_told_by_their_processes():
    """Where nothing runs, JAX has them all in one slice."""
    devices = [SliceDevice(i, 0, i // 4, "gpu") for i in range(8)]
    found = make_mesh(MeshConfig(fsdp=4, slices=2), devices).devices
    assert [device.id for device in found[1].flat] == [4, 5, 6, 7]
    assert make_mesh(MeshConfig(fsdp=8), devices).devices.shape == (1, 8, 1, 1)
    with pytest.raises(ValueError, match="lie in 2 slices"):
        make_mesh(MeshConfig(slices=4), devices)


@pytest.mark.parametrize(
    "field, value",
    [
        ("data", 0),
        ("data", -2),
        ("fsdp", 0),
        ("fsdp", -1),
        ("tensor", -1),
        ("sequence", 0),
        ("slices", 0),
    ],
)
def test_mesh_config_refuses_bad_sizes(field, value):
    with pytest.raises(ValueError, match=rf"MeshConfig\.{field} must be at least 1.* got {value}"):
        MeshConfig(**{field: value})


# Specs

SPECS = {
    "lm_head/kernel": P("fsdp", "tensor"),
    "model/embed_tokens/embedding": P("tensor", "fsdp"),
    "model/layer_norm/bias": P("fsdp"),
    "model/layer_norm/scale": P("fsdp"),
    **{
        f"model/layers/stacked/{attention}_attn/{name}": spec
        for attention in ("encoder", "self")
        for name, spec in {
            **{f"{x}_proj/bias": P(None, "tensor") for x in "kqv"},
            **{f"{x}_proj/kernel": P(None, "fsdp", "tensor") for x in "kqv"},
            "out_proj/bias": P(None, "fsdp"),
            "out_proj/kernel": P(None, "tensor", "fsdp"),
        }.items()
    },
    **{
        f"model/layers/stacked/{norm}_layer_norm/{name}": P(None, "fsdp")
        for norm in ("encoder_attn", "final", "self_attn")
        for name in ("bias", "scale")
    },
    "model/layers/stacked/fc1/bias": P(None, "tensor"),
    "model/layers/stacked/fc1/kernel": P(None, "fsdp", "tensor"),
    "model/layers/stacked/fc2/bias": P(None, "fsdp"),
    "model/layers/stacked/fc2/kernel": P(None, "tensor", "fsdp"),
}


def specs(tree):
    return named(tree, lambda leaf: leaf.sharding.spec)


def test_every_parameter_is_split_like_this():
    assert specs(plan().shapes.params) == SPECS


def test_looped_layers_are_split_like_scanned_ones():
    looped = specs(plan(execution=Execution()).shapes.params)
    expected = {
        name.replace("stacked", str(layer)): P(*spec[1:]) if "stacked" in name else spec
        for name, spec in SPECS.items()
        for layer in range(2)
    }
    assert looped == expected


@pytest.mark.parametrize(
    "optimizer, moments", [(AdamW(1e-3), 2), (Lion(1e-3), 1), (SGD(1e-3), 1)], ids=str
)
def test_moments_are_split_like_their_parameters(optimizer, moments):
    state = specs(plan(optimizer=optimizer).shapes.opt_state)
    found = [(name, spec) for name, spec in state.items() if spec != P()]
    assert len(found) == moments * len(SPECS)
    for name, spec in found:
        (parameter,) = [one for one in SPECS if name.endswith(f"/{one}")]
        assert spec == SPECS[parameter]


def test_factored_moments_are_split_like_what_is_left_of_their_parameters():
    run = {"optimizer": Adafactor(1e-3, min_dim_size_to_factor=8), "execution": Execution()}
    state = plan(**run).shapes.opt_state
    fc1 = {
        name.split("/")[-6]: (leaf.shape, leaf.sharding.spec)
        for name, leaf in named(state).items()
        if name.endswith("layers/0/fc1/kernel")
    }
    # The kernel is (embed=16, mlp=24): one array has lost its columns, one its rows.
    assert fc1["v_row"] == ((16,), P("fsdp")) and fc1["v_col"] == ((24,), P("tensor"))
    assert fc1["v"] == ((1,), P())
    whole = {
        name: leaf.sharding.spec
        for name, leaf in named(state).items()
        if "/v/" in name and name.endswith("layers/0/fc1/bias")
    }
    assert list(whole.values()) == [P("tensor")]


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((3, 4, 5), P("layers", "embed", "mlp")),
        ((3, 4), P("layers", "embed")),
        ((3, 5), P("layers", "mlp")),
        ((4, 5), P("embed", "mlp")),
        ((1,), P()),
        ((), P()),
        ((3, 4, 6), P()),
    ],
)
def test_axes_of_an_optimizers_array_follow_its_shape(shape, expected):
    names = P("layers", "embed", "mlp")
    assert partitioning.axes_like(shape, (3, 4, 5), names) == expected


@pytest.mark.parametrize(
    "names, rules, expected",
    [
        (P("embed", "mlp"), Rules(), P("fsdp", "tensor")),
        (P("embed"), Rules(), P("fsdp")),
        (P(None, "mlp"), Rules(), P(None, "tensor")),
        (P("embed", "mlp"), Rules(embed=(), mlp=("fsdp", "tensor")), P(None, ("fsdp", "tensor"))),
        (P("embed", "mlp"), Rules(embed=("data",), mlp=("data", "tensor")), P(None, "tensor")),
        (P("layers", "head_dim"), Rules(), P(None, None)),
    ],
)
def test_spec_follows_the_rules(names, rules, expected):
    mesh = make_mesh(MeshConfig(1, 4, 2))
    assert partition_spec("w", (8, 16), names, mesh, rules) == expected


def test_dimension_that_a_mesh_axis_does_not_divide_is_refused():
    mesh = make_mesh(MeshConfig(1, 4, 2))
    message = r"mesh axis 'fsdp'=4 must divide the 'embed' dimension 6 of a/b; set MeshConfig.fsdp"
    with pytest.raises(ValueError, match=message):
        partition_spec("a/b", (6, 8), P("embed", "mlp"), mesh, Rules())
    message = "'tensor'=8 must divide the 'mlp' dimension 20 of params/model/layers/stacked/fc1/"
    model = dataclasses.replace(MODEL, ffn_dim=20, attention_heads=8)
    with pytest.raises(ValueError, match=message):
        plan(model=model, mesh=MeshConfig(tensor=8))


def test_vocabulary_that_the_mesh_does_not_divide_is_padded():
    model, mesh = dataclasses.replace(MODEL, vocab_size=30), MeshConfig(fsdp=2, tensor=4)
    found = plan(model=model, mesh=mesh)
    held, own = (
        (tree.params["lm_head"]["kernel"], tree.params["model"]["embed_tokens"]["embedding"])
        for tree in (found.shapes, found.own_shapes)
    )
    assert [leaf.shape for leaf in held] == [(16, 32), (32, 16)]
    assert [leaf.sharding.spec for leaf in held] == [P("fsdp", "tensor"), P("tensor", "fsdp")]
    assert [leaf.shape for leaf in own] == [(16, 30), (30, 16)]
    assert [leaf.sharding.spec for leaf in own] == [P("fsdp", None), P(None, "fsdp")]
    moments = [leaf for leaf in jax.tree.leaves(found.shapes.opt_state) if leaf.shape == (16, 32)]
    assert len(moments) == 2 and found.is_padded
    assert not plan(mesh=mesh).is_padded


def test_resized_arrays_are_padded_with_zeros_or_cut():
    x = jnp.arange(6.0).reshape(2, 3)
    longer = partitioning.resized(x, jax.ShapeDtypeStruct((2, 5), jnp.float32))
    np.testing.assert_array_equal(longer, [[0, 1, 2, 0, 0], [3, 4, 5, 0, 0]])
    np.testing.assert_array_equal(partitioning.resized(longer, x), x)
    assert partitioning.resized(x, x) is x


def test_two_dimensions_over_one_mesh_axis_are_refused():
    message = (
        r"lm_head/kernel with axes \('embed', 'vocab'\) would split two dimensions over the mesh "
        r"axis \['tensor'\]; change Rules.vocab"
    )
    with pytest.raises(ValueError, match=message):
        plan(rules=Rules(embed=("tensor",)))


@pytest.mark.parametrize("axes", [("model",), ("data", "data"), ("fsdp", "pipeline")])
def test_rules_refuse_what_is_no_mesh_axis(axes):
    with pytest.raises(ValueError, match=r"Rules\.mlp must hold mesh axes, .* out of \('data', "):
        Rules(mlp=axes)


def test_mesh_config_refuses_other_dtypes_of_gradients():
    with pytest.raises(
        ValueError, match=r"MeshConfig.gradient_dtype must be None or one of \('float32'"
    ):
        MeshConfig(gradient_dtype="float16")


@pytest.mark.parametrize("dtype, expected", [(None, "bf16"), ("float32", "f32")])
def test_steps_have_the_gradients_of_projections_in_this_dtype(dtype, expected):
    run = dataclasses.replace(
        RUN,
        execution=Execution("bfloat16", layers="scan"),
        mesh=MeshConfig(data=1, gradient_dtype=dtype),
    )
    design = blueprint(run, make_mesh(run.mesh, jax.devices()[:1]))
    program = str(trace_step(run, design, batch_shapes(run, 4)).jaxpr)
    found = re.findall(r":(b?f\d+)\[16,(?:16|24)\] = dot_general", program)
    assert set(found) == {expected} and len(found) >= 5


def test_bytes_per_device_fall_with_fsdp():
    def bytes_per_device(ways):
        shapes = plan(mesh=MeshConfig(fsdp=ways)).shapes
        return sum(
            np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(shapes)
        )

    sizes = {ways: bytes_per_device(ways) for ways in (1, 2, 4, 8)}
    for ways in (2, 4, 8):  # all but biases of heads and mlp, which fsdp does not split
        assert sizes[1] / ways < sizes[ways] < 1.3 * sizes[1] / ways


# Batches and programs


@pytest.mark.parametrize("sizes, ways", [((8, 1, 1), 8), ((2, 2, 2), 4), ((1, 1, 8), 1)])
def test_batch_is_split_over_data_and_fsdp(sizes, ways):
    mesh = make_mesh(MeshConfig(*sizes))
    assert partitioning.batch_ways(mesh, Rules()) == ways
    rows = {"input_ids": np.arange(16, dtype=np.int32).reshape(8, 2)}
    sharding = partitioning.batch_sharding(mesh, Rules())
    batch = partitioning.global_batch(rows, sharding)["input_ids"]
    np.testing.assert_array_equal(batch, rows["input_ids"])
    assert {shard.data.shape for shard in batch.addressable_shards} == {(8 // ways, 2)}


def lowered(rules):
    """The constraints in the program of a forward pass, each as its partition."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    config = dataclasses.replace(MODEL, num_layers=1, add_cross_attention=False)
    module = build(config, CausalLM())
    ids = jax.ShapeDtypeStruct((8, 4), jnp.int32)
    boxed = jax.eval_shape(module.init, jax.random.key(0), ids)["params"]
    names = partitioning.axis_names(boxed)
    params = meta.unbox(boxed)

    def forward(params, ids):
        with partitioning.constraints(rules) if rules else contextlib.nullcontext():
            return module.apply({"params": params}, ids).logits

    program = partitioning.jit(
        mesh,
        forward,
        in_shardings=(
            partitioning.shardings(params, names, mesh, Rules()),
            partitioning.batch_sharding(mesh, Rules()),
        ),
        out_shardings=None,
    )
    text = program.lower(params, ids).as_text()
    return re.findall(r"sharding_constraint .* <@mesh, \[(.*)\]> : tensor<(.*)xf32>", text)


def test_constraints_reach_the_program():
    batch = '{"data", "fsdp"}, {"sequence"}'
    heads = (f'{batch}, {{"tensor"}}, {{}}', "8x4x4x4")
    assert lowered(Rules()) == [
        (f"{batch}, {{}}", "8x4x16"),  # embeddings
        *[heads] * 3,  # queries, keys, values
        (f'{batch}, {{"tensor"}}', "8x4x24"),  # feed-forward
        (f"{batch}, {{}}", "8x4x16"),  # the layer's result
        (f'{batch}, {{"tensor"}}', "8x4x32"),  # logits
    ]
    assert lowered(None) == []


def test_calls_have_their_mesh_in_force():
    seen = []

    def function(x):
        seen.append(jax.sharding.get_abstract_mesh().shape)
        return x

    whole = partitioning.replicated(make_mesh(MeshConfig(2, 2, 2)))
    compiled = partitioning.jit(
        make_mesh(MeshConfig(2, 2, 2)), function, in_shardings=whole, out_shardings=whole
    )
    compiled(jnp.ones(()))
    assert [dict(shape) for shape in seen] == [{"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}]


@pytest.mark.parametrize(
    "rule, expected",
    [
        ({"act_batch": ("data",)}, '{"data"}, {"sequence"}, {}'),
        ({"act_length": ("tensor",)}, '{"data", "fsdp"}, {"tensor"}, {}'),
        ({"act_embed": ("tensor",)}, '{"data", "fsdp"}, {"sequence"}, {"tensor"}'),
    ],
)
def test_rules_of_activations_change_the_program(rule, expected):
    free = {"act_heads": (), "act_mlp": (), "act_vocab": ()}
    assert (expected, "8x4x16") in lowered(Rules(**free | rule))
    others = {"8x4x24": "act_mlp", "8x4x32": "act_vocab", "8x4x4x4": "act_heads"}
    for partition, shape in lowered(Rules(**free)):
        assert shape not in others or "tensor" not in partition
