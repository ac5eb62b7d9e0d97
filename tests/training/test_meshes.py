"""Every family with every head that learns: eight devices, however arranged, are as one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xformer import objectives, partitioning
from xformer.data.pipeline import PreparedData
from xformer.data.tasks import (
    MultipleChoiceData,
    QuestionAnsweringData,
    SequenceClassificationData,
    TokenClassificationData,
)
from xformer.data.text_files import PairData
from xformer.layers import heads
from xformer.layers.execution import Execution
from xformer.models.bigbird_config import BigBirdConfig
from xformer.models.squeezebert_config import SqueezeBertConfig
from xformer.models.umt5_config import UMT5Config
from xformer.models.xglm import XGLMConfig
from xformer.optim import SGD, Adafactor, AdamW
from xformer.partitioning import MeshConfig, make_mesh
from xformer.training.checkpoints import CheckpointStore
from xformer.training.config import Run
from xformer.training.state import DROPOUT, blueprint, create_state, own_form, purpose_key
from xformer.training.steps import compile_train_step

MESHES = [
    MeshConfig(data=8),
    MeshConfig(fsdp=8),
    MeshConfig(data=2, fsdp=2, tensor=2),
    MeshConfig(fsdp=2, tensor=4),
    MeshConfig(data=2, sequence=4),
    MeshConfig(fsdp=2, tensor=2, sequence=2),
]
# These compile in half the time and compute the same.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
B, T, V = 8, 16, 32  # 8 blocks of 2 tokens
SIZES = {"vocab_size": V, "num_hidden_layers": 1, "num_attention_heads": 4}
SIZES |= {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 64}
BLOCKS = {"attention_type": "block_sparse", "block_size": 2, "num_random_blocks": 1}
BLOCKS |= {"random_blocks": "fixed"}
CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BIGBIRD = BigBirdConfig(**SIZES, **BLOCKS, initializer_range=0.3, sep_token_id=5)
GROUPS = {f"{name}_groups": 2 for name in ("q", "k", "v", "intermediate", "output")}
FAMILIES = {
    "bigbird": dataclasses.replace(BIGBIRD, **CALM, attention_type="original_full"),
    "bigbird in blocks": BIGBIRD,
    "bigbird decoder": dataclasses.replace(BIGBIRD, is_decoder=True),
    "squeezebert": SqueezeBertConfig(
        **SIZES, **GROUPS, **CALM, embedding_size=32, initializer_range=0.3
    ),
    "squeezebert in blocks": SqueezeBertConfig(
        **SIZES, **GROUPS, **BLOCKS, embedding_size=32, initializer_range=0.3
    ),
    "umt5": UMT5Config(
        vocab_size=V, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=4, dropout_rate=0.1
    ),
    "xglm": XGLMConfig(
        vocab_size=V,
        max_position_embeddings=T,
        d_model=16,
        ffn_dim=32,
        num_layers=1,
        attention_heads=4,
        init_std=0.3,
    ),
}
CLASSES = ("a", "b", "c")
LABELLED = [
    (heads.SequenceClassification(CLASSES), objectives.Classification()),
    (heads.TokenClassification(CLASSES), objectives.TokenLabels()),
    (heads.QuestionAnswering(), objectives.SpanExtraction()),
]
ENCODER = [
    (heads.MaskedLM(), objectives.MaskedTokens()),
    (heads.PreTraining(), objectives.MaskedPairs()),
    (heads.NextSentence(), objectives.SentencePairs()),
    (heads.MultipleChoice(), objectives.ChoiceSelection()),
    *LABELLED,
]
CASES = {
    "bigbird": ENCODER,
    "bigbird in blocks": ENCODER[:1],
    "bigbird decoder": [(heads.CausalLM(), objectives.NextToken())],
    "squeezebert": ENCODER,
    "squeezebert in blocks": ENCODER[:1],
    "umt5": [(heads.ConditionalGeneration(), objectives.Denoising()), *LABELLED],
    "xglm": [(heads.CausalLM(), objectives.NextToken())],
}


def make_batch(head, typed):
    """Rows for a head: two documents each, or a pair of texts, with types or not, and padding."""
    rng = np.random.default_rng(0)
    place = np.arange(T)[None].repeat(B, 0)
    length = rng.integers(10, T + 1, (B, 1))
    valid = place < length
    second = valid & (place >= 6)
    ids = np.where(valid, rng.integers(6, V, (B, T)), 0)
    ids[:, 5] = 5  # where a question ends
    rows = {"input_ids": ids, "attention_mask": valid}
    rows |= {"token_type_ids": second} if typed else {}
    positions, labels = np.sort(rng.permuted(place, axis=1)[:, :3]), rng.integers(0, 3, (B, T))
    masked = {"masked_positions": positions, "masked_labels": rng.integers(6, V, (B, 3))}
    packed = {"input_ids": ids, "segment_ids": valid + second.astype(int)}
    match head:
        case heads.CausalLM():
            rows = {**packed, "position_ids": np.where(second, place - 6, place) * valid}
        case heads.ConditionalGeneration():
            rows = packed | {f"decoder_{name}": value for name, value in packed.items()}
            rows["labels"] = np.where(valid, rng.integers(6, V, (B, T)), -100)
        case heads.MaskedLM():
            rows |= masked
        case heads.PreTraining():
            rows |= {**masked, "next_sentence_label": labels[:, 0] % 2}
        case heads.NextSentence():
            rows |= {"next_sentence_label": labels[:, 0] % 2}
        case heads.MultipleChoice():
            rows = {name: np.stack([row, row[::-1], row], 1) for name, row in rows.items()}
            rows["labels"] = labels[:, 0]
        case heads.SequenceClassification():
            rows["labels"] = labels[:, 0]
        case heads.TokenClassification():
            rows["labels"] = np.where(valid, labels, -100)
        case heads.QuestionAnswering():
            rows |= {"start_positions": labels[:, 0], "end_positions": labels[:, 0] + 3}
    return {name: row.astype(np.int32) for name, row in rows.items()}


DATA = {
    heads.PreTraining: PairData(("unused",), "unused", T),
    heads.NextSentence: PairData(("unused",), "unused", T),
    heads.MultipleChoice: MultipleChoiceData(("unused",), "unused", T),
    heads.SequenceClassification: SequenceClassificationData(("unused",), "unused", T),
    heads.TokenClassification: TokenClassificationData(("unused",), "unused", T),
    heads.QuestionAnswering: QuestionAnsweringData(("unused",), "unused", T),
}


def make_run(family, head, objective, mesh):
    return Run(
        model=FAMILIES[family],
        head=head,
        objective=objective,
        train_data=DATA.get(type(head), PreparedData("unused")),
        optimizer=SGD(1.0, momentum=0.0, clip_norm=None),
        steps=2,
        batch_size=B,
        folder="unused",
        mesh=mesh,
        execution=Execution(),
    )


@functools.cache
def first_state(family, head, objective):
    run = make_run(family, head, objective, MeshConfig(data=1))
    plan = blueprint(run, make_mesh(run.mesh, jax.devices()[:1]))
    return jax.device_get(create_state(plan, seed=0))


@functools.cache
def first_step(family, head, objective, mesh):
    """Metrics of one step of a size that shows it, and how far it moves the weights."""
    run = make_run(family, head, objective, mesh)
    count = mesh.data * mesh.fsdp * mesh.tensor * mesh.sequence if mesh.data > 0 else 8
    plan = blueprint(run, make_mesh(mesh, jax.devices()[:count]))
    rows = partitioning.batch_sharding(plan.mesh, run.rules)
    before = first_state(family, head, objective)
    arguments = (
        jax.device_put(before, plan.shardings),
        partitioning.global_batch(make_batch(head, family != "umt5"), rows),
        purpose_key(0, DROPOUT),
    )
    step = compile_train_step(run, plan).lower(*arguments).compile(QUICK)
    result = jax.device_get(step(*arguments))
    return result.metrics, jax.tree.map(np.subtract, result.state.params, before.params)


def close(found, expected):
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * scale)


def mesh_name(mesh):
    return "-".join(f"{axis}{size}" for axis, size in mesh.shape(8).items() if size > 1)


@pytest.mark.parametrize("mesh", MESHES, ids=mesh_name)
@pytest.mark.parametrize(
    "family, head, objective",
    [
        pytest.param(family, head, objective, id=f"{family}-{type(head).__name__}")
        for family, cases in CASES.items()
        for head, objective in cases
    ],
)
def test_devices_together_are_as_one(family, head, objective, mesh):
    metrics, moved = first_step(family, head, objective, mesh)
    expected, expected_moved = first_step(family, head, objective, MeshConfig(data=1))
    assert expected.finite and expected.gradient_norm > 1e-3
    np.testing.assert_allclose(metrics.loss, expected.loss, rtol=1e-5)
    np.testing.assert_allclose(metrics.gradient_norm, expected.gradient_norm, rtol=1e-5)
    close(moved, expected_moved)


@pytest.mark.parametrize("family", ["bigbird in blocks", "squeezebert", "umt5", "xglm"])
def test_activations_that_wait_on_the_host_change_nothing(family):
    layers = "num_layers" if family in ("umt5", "xglm") else "num_hidden_layers"
    model = dataclasses.replace(FAMILIES[family], **{layers: 2})
    head, objective = CASES[family][0]

    def one_step(remat):
        run = make_run(family, head, objective, MeshConfig(data=1))
        execution = Execution(layers="scan", remat=remat)
        run = dataclasses.replace(run, model=model, execution=execution)
        plan = blueprint(run, make_mesh(run.mesh, jax.devices()[:1]))
        batch = make_batch(head, family != "umt5")
        arguments = create_state(plan, seed=0), batch, purpose_key(0, DROPOUT)
        result = compile_train_step(run, plan).lower(*arguments).compile(QUICK)(*arguments)
        return jax.device_get((result.metrics.loss, result.state.params))

    (loss, params), expected = one_step("offload"), one_step("none")
    assert np.isfinite(loss) and all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    close((loss, params), expected)


def tables(state):
    """The arrays with an axis of the vocabulary, moments included."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    names = ("embed_tokens", "lm_head")
    return [leaf for path, leaf in leaves if any(name in str(path) for name in names)]


@pytest.mark.parametrize("optimizer", [AdamW(1e-2), Adafactor(1e-2, min_dim_size_to_factor=8)])
@pytest.mark.parametrize("tied", [True, False])
def test_padding_of_a_vocabulary_changes_nothing(tmp_path, optimizer, tied):
    model = dataclasses.replace(FAMILIES["xglm"], vocab_size=30, tie_word_embeddings=tied)
    run = make_run("xglm", *CASES["xglm"][0], MeshConfig(fsdp=2, tensor=4))
    run = dataclasses.replace(run, model=model, optimizer=optimizer)
    batch = {name: row % 30 for name, row in make_batch(run.head, False).items()}

    def two_steps(plan, state):
        step = compile_train_step(run, plan)
        rows = partitioning.global_batch(batch, partitioning.batch_sharding(plan.mesh, run.rules))
        for _ in range(2):
            result = step(state, rows, purpose_key(0, DROPOUT))
            state = result.state
        return result.metrics, state

    plan = blueprint(run, make_mesh(run.mesh))
    one = blueprint(run, make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    assert plan.is_padded and not one.is_padded
    metrics, state = two_steps(plan, create_state(plan, seed=0))
    expected, expected_state = two_steps(one, create_state(one, seed=0))
    np.testing.assert_allclose(metrics.loss, expected.loss, rtol=1e-5)
    # (The biases of keys have gradients of nothing but rounding errors.)
    close(*(tables(tree) for tree in (own_form(plan, state), expected_state)))

    with CheckpointStore(tmp_path, keep=2) as store:
        store.save(2, own_form(plan, state), run.execution.layers, {})
    for other in (plan, one):
        with CheckpointStore(tmp_path) as store:
            restored = store.restore(run, other).state
        jax.tree.map(
            np.testing.assert_array_equal,
            jax.device_get(own_form(other, restored)),
            jax.device_get(own_form(plan, state)),
        )
        assert jax.tree.map(jnp.shape, restored) == jax.tree.map(jnp.shape, other.shapes)


def test_every_head_that_learns_is_here():
    from xformer.models.build import supported_heads

    bare = {heads.Base, heads.Encoder}
    for config in FAMILIES.values():
        named = {
            type(head)
            for family, cases in CASES.items()
            if type(FAMILIES[family]) is type(config)
            for head, _ in cases
        }
        assert named == set(supported_heads(config)) - bare
