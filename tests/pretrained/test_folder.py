"""Model folders: what is read, and what is refused by name."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import traverse_util
from flax.core import meta
from safetensors.numpy import load_file, save_file

from xformer.layers.execution import Execution
from xformer.layers.heads import Base, CausalLM
from xformer.models import build
from xformer.models.xglm import XGLMConfig
from xformer.pretrained.folder import read_params
from xformer.pretrained.names import SAME, TRANSPOSED, Weight
from xformer.pretrained.xglm import WEIGHTS

CONFIG = XGLMConfig(
    vocab_size=11,
    max_position_embeddings=8,
    d_model=6,
    ffn_dim=10,
    num_layers=2,
    attention_heads=3,
    tie_word_embeddings=False,
)


def random_params(head, seed=0):
    module = build(CONFIG, head, Execution())
    ids = jax.ShapeDtypeStruct((1, 2), np.int32)
    shapes = meta.unbox(jax.eval_shape(module.init, jax.random.key(0), ids))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def write(folder, params, **changes):
    fields = {"model_type": "xglm", "architectures": ["X"]} | dataclasses.asdict(CONFIG) | changes
    (folder / "config.json").write_text(json.dumps(fields))
    flat = traverse_util.flatten_dict(params)
    places = {path: WEIGHTS.weight(path) for path in flat}
    tensors = {place.name: place.layout.to_published(flat[path]) for path, place in places.items()}
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def params():
    return random_params(CausalLM())


@pytest.fixture
def folder(tmp_path, params):
    """A folder with an untied head."""
    write(tmp_path, params)
    return tmp_path


def split(folder, parts=3):
    """Replaces the weights by shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {name: f"model-{i % parts:05d}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(names.values()):
        part = {name: tensor for name, tensor in tensors.items() if names[name] == shard}
        save_file(part, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return index


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(actual)} == {np.dtype("float32")}


def test_what_was_written_is_read(folder, params):
    assert_same(read_params(folder, CONFIG, CausalLM()), params)


def test_weights_are_found_by_their_published_names_and_layout(folder):
    names = set(load_file(folder / "model.safetensors"))
    assert {
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layer_norm.bias",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.fc1.bias",
        "model.layers.1.final_layer_norm.weight",
    } <= names
    assert load_file(folder / "model.safetensors")["model.layers.0.fc1.weight"].shape == (10, 6)
    assert WEIGHTS.weight(("a", "0", "kernel")) == Weight("a.0.weight", TRANSPOSED)
    assert WEIGHTS.weight(("embed_tokens", "embedding")) == Weight("embed_tokens.weight", SAME)


def test_low_precision_weights_become_float32(folder, params):
    tensors = load_file(folder / "model.safetensors")
    low = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    save_file(low, folder / "model.safetensors")
    expected = jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), params)
    assert_same(read_params(folder, CONFIG, CausalLM()), expected)


def test_shards_are_read_through_their_index(folder, params):
    split(folder)
    assert_same(read_params(folder, CONFIG, CausalLM()), params)


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/model.safetensors", "sub/m", "..", ".", "", None, 3]
)
def test_shard_outside_the_folder_is_refused(folder, shard):
    index = split(folder)
    names = json.loads(index.read_text())
    names["weight_map"]["lm_head.weight"] = shard
    index.write_text(json.dumps(names))
    with pytest.raises(ValueError, match="shard names must be plain file names, got"):
        read_params(folder, CONFIG, CausalLM())


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "index.json is not JSON"),
        ("[]", "index.json must hold a JSON object, got list"),
        ("{}", "index.json must have a weight_map from tensors to shards"),
        ('{"weight_map": ["a"]}', "index.json must have a weight_map from tensors to shards"),
    ],
)
def test_index_that_is_none_is_refused(folder, text, message):
    split(folder).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_params(folder, CONFIG, CausalLM())


def test_files_that_are_damaged_or_gone_are_named(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="model.safetensors is not a whole safetensors file"):
        read_params(folder, CONFIG, CausalLM())
    path.write_bytes(content)
    split(folder)
    (folder / "model-00001.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00001.safetensors"):
        read_params(folder, CONFIG, CausalLM())


def test_base_model_is_read_from_a_checkpoint_with_a_head(folder, params):
    assert_same(read_params(folder, CONFIG, Base()), params["model"])


def test_model_with_tied_head_is_read_from_a_base_checkpoint(tmp_path, params):
    write(tmp_path, params["model"], tie_word_embeddings=True)
    config = XGLMConfig.from_pretrained(tmp_path)
    assert_same(read_params(tmp_path, config, CausalLM()), {"model": params["model"]})


def test_names_that_the_model_does_not_have_are_ignored(folder, params):
    tensors = load_file(folder / "model.safetensors")
    extra = {"model.embed_positions.weights": np.zeros((10, 6), np.float32)}
    save_file(tensors | extra, folder / "model.safetensors")
    assert_same(read_params(folder, CONFIG, CausalLM()), params)
    tied = dataclasses.replace(CONFIG, tie_word_embeddings=True)
    assert_same(read_params(folder, tied, CausalLM()), {"model": params["model"]})


def test_missing_weights_are_named(folder):
    tensors = load_file(folder / "model.safetensors")
    for name in ("lm_head.weight", "model.layers.1.fc1.bias"):
        del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    message = r"lacks the weights \['lm_head/kernel', 'model/layers/1/fc1/bias'\]"
    with pytest.raises(ValueError, match=message):
        read_params(folder, CONFIG, CausalLM())


def test_weight_of_another_shape_is_named(folder):
    config = dataclasses.replace(CONFIG, ffn_dim=12)
    message = r"model.layers.0.fc1.bias: stored \(10,\), wanted \(12,\)"
    with pytest.raises(ValueError, match=message):
        read_params(folder, config, CausalLM())


def test_folder_without_files_is_refused(tmp_path, folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor flax_model.msgpack"):
        read_params(empty, CONFIG, CausalLM())
