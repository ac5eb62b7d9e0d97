"""What is SqueezeBERT's own: its fields, its groups, and BigBird's attention on request."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from xformer.layers.heads import Base, MaskedLM, SequenceClassification
from xformer.models import build
from xformer.models.config import ModelConfig
from xformer.models.squeezebert_config import SqueezeBertConfig

IDS = np.random.default_rng(1).integers(6, 31, (2, 17)).astype(np.int32)
SPARSE = {"attention_type": "block_sparse"}
TRAIN = {"deterministic": False, "rngs": {"dropout": jax.random.key(1)}}

# Field -> another value and what it changes. The last ones need what is in NEEDS.
CHANGES = {
    "vocab_size": (40, "shapes"),
    "hidden_size": (24, "shapes"),
    "embedding_size": (24, "shapes"),
    "num_hidden_layers": (3, "shapes"),
    "intermediate_size": (36, "shapes"),
    "max_position_embeddings": (80, "shapes"),
    "type_vocab_size": (2, "shapes"),
    "tie_word_embeddings": (False, "shapes"),
    "q_groups": (4, "shapes"),
    "k_groups": (4, "shapes"),
    "v_groups": (4, "shapes"),
    "post_attention_groups": (4, "shapes"),
    "intermediate_groups": (4, "shapes"),
    "output_groups": (4, "shapes"),
    "initializer_range": (0.1, "weights"),
    "pad_token_id": (2, "weights"),
    "num_attention_heads": (2, "outputs"),
    "hidden_act": ("relu", "outputs"),
    "layer_norm_eps": (0.1, "outputs"),
    "hidden_dropout_prob": (0.4, "outputs in training"),
    "attention_probs_dropout_prob": (0.4, "outputs in training"),
    "attention_type": ("block_sparse", "outputs"),
    "block_size": (1, "outputs"),
    "num_random_blocks": (0, "outputs"),
    "random_blocks": ("fixed", "outputs"),
}
NEEDS = {
    "hidden_size": {"embedding_size": 24},
    "embedding_size": {"hidden_size": 24},
    **dict.fromkeys(("block_size", "num_random_blocks", "random_blocks"), SPARSE),
}

assert_equal = np.testing.assert_array_equal
assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def shapes(config):
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    boxed = jax.eval_shape(build(config, MaskedLM()).init, jax.random.key(0), ids)
    leaves = jax.tree_util.tree_leaves_with_path(meta.unbox(boxed))
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}


@functools.cache
def weights(config):
    module = build(config, Base())
    ids = jnp.asarray(IDS)

    def init(key):
        return meta.unbox(module.init(key, ids))["params"]["embeddings"]

    tree = jax.jit(init)(jax.random.key(0))
    return np.asarray(tree["word_embeddings"]["embedding"])


def effects(kind, make, fields):
    config = make(**fields).module.config
    if kind in ("shapes", "weights"):
        return {"shapes": shapes, "weights": weights}[kind](config)
    return make(MaskedLM(), **fields)(IDS, **(TRAIN if "training" in kind else {})).logits


def test_every_field_of_the_config_is_accounted_for():
    names, common = (
        {field.name for field in dataclasses.fields(cls)}
        for cls in (SqueezeBertConfig, ModelConfig)
    )
    assert names - common == {*CHANGES}


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_of_the_config_changes_something(field, squeezebert):
    value, kind = CHANGES[field]
    others = NEEDS.get(field, {})
    if field in ("hidden_size", "embedding_size"):  # they change together
        before = effects(kind, squeezebert, {})
    else:
        before = effects(kind, squeezebert, others)
    after = effects(kind, squeezebert, others | {field: value})
    assert before != after if kind == "shapes" else not np.array_equal(before, after)


def test_kernels_hold_a_matrix_for_each_group(squeezebert):
    found = shapes(squeezebert().module.config)
    layer = "['params']['transformer']['encoder']['layer']['1']"
    for name, shape in (
        ("['attention']['self']['query']", (2, 6, 6)),
        ("['attention']['self']['key']", (3, 4, 4)),
        ("['attention']['self']['value']", (1, 12, 12)),
        ("['attention']['output']['dense']", (6, 2, 2)),
        ("['intermediate']['dense']", (2, 6, 12)),
        ("['output']['dense']", (3, 8, 4)),
    ):
        assert found[f"{layer}{name}['kernel']"] == shape


def test_the_padding_token_starts_at_zero(squeezebert):
    embedding = weights(squeezebert().module.config)
    assert not embedding[0].any() and embedding[1:].any(axis=1).all()


def test_short_inputs_are_read_densely_and_long_ones_in_blocks(squeezebert):
    dense, sparse = squeezebert(), squeezebert(**SPARSE)
    fixed = squeezebert(**SPARSE, random_blocks="fixed")
    short = IDS[:, :14]
    assert_equal(fixed(short).last_hidden_state, dense(short).last_hidden_state)
    one, two = (model(IDS, output_attentions=True).attentions for model in (sparse, fixed))
    read = [[(np.asarray(layer) > 0).sum() for layer in layers] for layers in (one, two)]
    assert read[0][0] == read[0][1], "every head and layer reads the same blocks"
    assert min(read[1]) > max(read[0]), "random blocks are read beside the first one"


def test_inputs_longer_than_the_position_table_are_refused(squeezebert):
    ids = np.tile(IDS, (1, 4))
    with pytest.raises(ValueError, match="68 tokens are more than .*max_position_embeddings=64"):
        squeezebert()(ids)
    positions = np.arange(68, dtype=np.int32)[None] % 64
    assert np.isfinite(squeezebert()(ids, position_ids=positions).last_hidden_state).all()


def test_the_number_of_labels_is_that_of_the_head(squeezebert):
    head = SequenceClassification(labels=("x", "y", "z"), problem_type="multi_label_classification")
    module = squeezebert(head).module
    assert module.config.id2label == {0: "x", 1: "y", 2: "z"}
    assert module.config.label2id == {"x": 0, "y": 1, "z": 2}
    assert module.config.problem_type == "multi_label_classification"
    assert squeezebert(head)(IDS).logits.shape == (2, 3)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1"),
        ({"hidden_size": 24}, "embedding_size=12 must be SqueezeBertConfig.hidden_size=24"),
        ({"num_attention_heads": 5}, "num_attention_heads=5 must divide .*hidden_size=12"),
        ({"q_groups": 5}, "q_groups=5 must divide SqueezeBertConfig.hidden_size=12"),
        ({"post_attention_groups": 8}, "post_attention_groups=8 must divide .*hidden_size=12"),
        ({"intermediate_groups": 8}, "intermediate_groups=8 must divide .*hidden_size=12"),
        ({"intermediate_size": 20}, "output_groups=3 must divide .*intermediate_size=20"),
        ({"output_groups": 0}, "output_groups must be at least 1"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must be in \[0, 1\)"),
        ({"initializer_range": 0.0}, "initializer_range must be positive"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps must be positive"),
        ({"hidden_act": "step"}, "hidden_act must be one of .*'gelu'"),
        ({"attention_type": "sparse"}, "attention_type must be one of .*'block_sparse'"),
        ({"random_blocks": "none"}, "random_blocks must be one of .*'fixed'"),
        ({"pad_token_id": 31}, "pad_token_id=31 must be a token id below .*vocab_size=31"),
        ({"block_size": 0}, "block_size must be at least 1"),
        ({"num_random_blocks": -1}, "num_random_blocks must be at least 0"),
    ],
)
def test_bad_values_are_refused(squeezebert, fields, message):
    with pytest.raises(ValueError, match=message):
        squeezebert(**fields)
