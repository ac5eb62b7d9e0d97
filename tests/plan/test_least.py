"""The least that devices must say to one another, beside counts by hand."""

import dataclasses
from pathlib import Path

import jax
import pytest

from xformer.configurables import load
from xformer.partitioning import MeshConfig, make_mesh
from xformer.plan import report
from xformer.plan.hlo import Collective
from xformer.plan.least import least
from xformer.plan.shapes import batch_shapes
from xformer.training.state import blueprint

RUNS = Path(__file__).parents[2] / "configs" / "runs"
DEVICES = 8


def exchanges(name, *bindings, length, **mesh):
    """What is counted for a run file on 8 devices: bytes of the arrays by kind and axes."""
    run = load(RUNS / f"{name}.gin", list(bindings)).run
    run = dataclasses.replace(run, mesh=MeshConfig(**mesh))
    design = blueprint(run, make_mesh(run.mesh, jax.devices()[:DEVICES]))
    found = least(run, design, batch_shapes(run, length))
    sent = [one.wire_bytes for one in found]
    assert sent == sorted(sent, reverse=True)
    return {(one.kind, one.axes): one.array_bytes for one in found}


# XGLM of 4 million parameters: width 256, feed-forward 1,024, 4 layers, 4,096 tokens.
D, F, L, V = 256, 1024, 4, 4096
LAYER = 4 * D * D + 2 * D * F
BIASES = L * (3 * D + F)  # of products that have split outputs: not over fsdp
SPLIT = V * D + L * (LAYER + D + D + 4 * D) + 2 * D  # everything with a dimension `embed`
SMALL = ("Run.batch_size=16",)
TOKENS = 16 * 64


def test_weights_are_gathered_twice_and_their_gradients_scattered_once():
    found = exchanges("quickstart", *SMALL, length=64, fsdp=8)
    assert found == {
        ("all-gather", "fsdp"): 2 * 4 * SPLIT,
        ("reduce-scatter", "fsdp"): 4 * SPLIT,
        ("all-to-all", "fsdp"): 2 * 4 * TOKENS // 8 * D,
        ("all-reduce", "fsdp"): 4 * BIASES,
    }


def test_parts_of_a_step_gather_again_and_look_up_no_more():
    whole = exchanges("quickstart", *SMALL, length=64, fsdp=8)
    parts = exchanges("quickstart", *SMALL, "Run.accumulation_steps=2", length=64, fsdp=8)
    doubled = {"all-gather", "reduce-scatter"}
    assert parts == {key: size * (2 if key[0] in doubled else 1) for key, size in whole.items()}


def test_half_the_bytes_are_sent_in_half_the_precision():
    half = ("Run.execution=@Execution()", 'Execution.dtype="bfloat16"')
    whole = exchanges("quickstart", *SMALL, length=64, fsdp=4, tensor=2)
    assert exchanges("quickstart", *SMALL, *half, length=64, fsdp=4, tensor=2) == {
        key: size // 2 for key, size in whole.items()
    }


def test_gradients_are_scattered_in_their_own_precision():
    half = ("Run.execution=@Execution()", 'Execution.dtype="bfloat16"')
    found = exchanges("quickstart", *SMALL, *half, length=64, data=2, fsdp=4)
    whole = exchanges(
        "quickstart", *SMALL, *half, length=64, data=2, fsdp=4, gradient_dtype="float32"
    )
    gradients = {"reduce-scatter", "all-reduce"}
    assert whole == {key: size * (2 if key[0] in gradients else 1) for key, size in found.items()}


def test_copies_add_up_their_parts_of_the_gradients():
    found = exchanges("quickstart", *SMALL, length=64, data=2, fsdp=4)
    assert found["all-reduce", "data"] == 4 * SPLIT // 4
    assert found["all-reduce", "data+fsdp"] == 4 * BIASES
    assert found["all-gather", "fsdp"] == 2 * 4 * SPLIT


def test_activations_are_added_up_twice_a_layer_forward_and_backward():
    found = exchanges("quickstart", *SMALL, length=64, data=2, tensor=4)
    pairs = 2 * L + 1  # and once for the vocabulary
    assert found["all-reduce", "tensor"] == 2 * pairs * 4 * TOKENS // 2 * D
    assert not [key for key in found if "gather" in key[0]]


def test_slices_add_up_among_themselves_first():
    found = exchanges("quickstart", *SMALL, length=64, data=8, slices=2)
    gradients = 4 * (SPLIT + BIASES)
    assert found == {
        ("all-reduce", "data"): gradients,
        ("send", "slices"): gradients // 4,
    }
    apart = exchanges("quickstart", *SMALL, length=64, data=2, fsdp=4, slices=2)
    assert apart["send", "slices"] == 4 * SPLIT // 4 + BIASES
    assert ("all-reduce", "data") not in apart and apart["all-reduce", "fsdp"] == 4 * BIASES


def test_a_table_that_is_no_projection_is_not_gathered():
    umt5 = ("UMT5Config.vocab_size=1024", "UMT5Config.num_layers=1", "Run.batch_size=8")
    found = exchanges("pretrain_umt5_xxl", *umt5, length=568, fsdp=8)
    d, f, inner = 4096, 10240, 4096
    layers = (4 + 8) * d * inner + 2 * 3 * d * f
    weights = layers + 1024 * d + (2 + 3 + 2) * d  # a projection, and norms
    assert found["all-gather", "fsdp"] == 2 * 2 * weights
    assert found["all-to-all", "fsdp"] == 2 * 2 * (512 + 114) * d


def test_tensor_ways_of_an_encoder_decoder_add_up_on_both_sides():
    umt5 = ("UMT5Config.vocab_size=1024", "UMT5Config.num_layers=1", "Run.batch_size=8")
    found = exchanges("pretrain_umt5_xxl", *umt5, length=568, tensor=8)
    tokens = 8 * (2 * 512 + 3 * 114 + 512 + 114)
    assert found["all-reduce", "tensor"] == 2 * 2 * tokens * 4096


def test_positions_are_sent_where_their_tokens_are():
    long = ("BigBirdConfig.max_position_embeddings=8192", "Run.batch_size=1")
    found = exchanges("pretrain_bigbird_base", *long, length=8192, sequence=8)
    assert found["all-to-all", "sequence"] == 2 * 2 * (8192 // 8 * 768 + 8192 // 8 * 768)


def test_one_device_says_nothing():
    run = load(RUNS / "quickstart.gin").run
    design = blueprint(run, make_mesh(run.mesh, jax.devices()[:1]))
    assert least(run, design, batch_shapes(run, 64)) == ()


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("all-gather", ["all-gather fsdp 2 7 4,000 2,000 300"]),
        ("reduce-scatter", ["all-gather fsdp 2 7 4,000 2,000", "reduce-scatter fsdp 2 0 0 0 300"]),
    ],
)
def test_the_least_stands_beside_what_is_sent(kind, rows, invented):
    plan = dataclasses.replace(
        invented,
        collectives=(Collective("all-gather", "fsdp", 2, 4000, 7),),
        least=(Collective(kind, "fsdp", 2, 600),),
    )
    lines = [" ".join(line.split()) for line in report.lines(plan)]
    assert lines[-1 - len(rows) :] == [*rows, "together 2,000 300"]
