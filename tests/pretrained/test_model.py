"""The drop-in classes: construction, calls, parameters, files and reports, as documented."""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from flax.core import freeze
from safetensors.numpy import load_file, save_file

import xformer
from xformer import FlaxXGLMForCausalLM, FlaxXGLMModel, XGLMConfig
from xformer.models import xglm
from xformer.partitioning import MeshConfig, make_mesh

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = XGLMConfig(
    vocab_size=19,
    max_position_embeddings=16,
    d_model=12,
    ffn_dim=20,
    num_layers=2,
    attention_heads=3,
    init_std=0.3,
)
IDS = np.random.default_rng(0).integers(3, 19, (2, 7))


def leaves(params):
    return traverse_util.flatten_dict(params, sep="/")


def assert_same(actual, expected):
    assert leaves(actual).keys() == leaves(expected).keys()
    for path, leaf in leaves(expected).items():
        np.testing.assert_array_equal(leaves(actual)[path], leaf, err_msg=path)


@pytest.fixture(scope="module")
def model():
    return FlaxXGLMForCausalLM(CONFIG, seed=1)


@pytest.fixture
def folder(tmp_path, model):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# Construction


def test_the_constructor_takes_the_documented_arguments():
    model = FlaxXGLMForCausalLM(
        CONFIG, input_shape=(2, 5), seed=3, dtype=jnp.bfloat16, _do_init=True
    )
    assert model(IDS).logits.shape == (2, 7, 19)
    assert model(IDS, output_hidden_states=True).hidden_states[1].dtype == jnp.bfloat16
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(model.params)} == {"float32"}
    assert (model.dtype, model.input_shape, model.framework) == (jnp.bfloat16, (2, 5), "flax")
    assert model.config is CONFIG and model.base_model_prefix == "model"
    assert model.main_input_name == "input_ids"
    assert model.module.apply({"params": model.params}, jnp.asarray(IDS, jnp.int32)).logits.shape


def test_seeds_decide_the_weights(model):
    assert_same(FlaxXGLMForCausalLM(CONFIG, seed=1).params, model.params)
    other = FlaxXGLMForCausalLM(CONFIG, seed=2).params
    assert not np.array_equal(
        other["model"]["embed_tokens"]["embedding"],
        model.params["model"]["embed_tokens"]["embedding"],
    )


def test_published_parameter_paths(model, parity_folder):
    assert ("model", "layers", "0", "self_attn", "q_proj", "kernel") in model.required_params
    base = FlaxXGLMModel(CONFIG, _do_init=False)
    assert {("model", *path) for path in base.required_params} == model.required_params
    assert leaves(base.params_shape_tree)["layers/1/fc1/kernel"].shape == (12, 20)


def test_a_model_without_init_keeps_no_params():
    model = FlaxXGLMModel(CONFIG, _do_init=False)
    with pytest.raises(ValueError, match="made with _do_init=False keeps no params: call"):
        _ = model.params
    with pytest.raises(ValueError, match="keeps no params: hold them outside"):
        model.params = {}
    with pytest.raises(ValueError, match="keeps no params"):
        model(IDS)
    params = model.init_weights(jax.random.PRNGKey(0), (1, 1))
    assert model(IDS, params=params).last_hidden_state.shape == (2, 7, 12)


def test_init_weights_fills_what_is_missing(model):
    params = jax.tree.map(lambda leaf: leaf, model.params)
    kept = params["model"]["layers"].pop("1")
    filled = model.init_weights(jax.random.PRNGKey(5), (1, 1), params)
    assert_same(filled["model"]["layers"]["0"], model.params["model"]["layers"]["0"])
    assert leaves(filled["model"]["layers"]["1"]).keys() == leaves(kept).keys()
    with pytest.raises(ValueError, match=r"input_shape must be \(batch, length\)"):
        model.init_weights(jax.random.PRNGKey(5), (1,))


def test_the_params_setter_names_what_is_missing(model):
    other = FlaxXGLMForCausalLM(CONFIG)
    params = jax.tree.map(lambda leaf: leaf, model.params)
    other.params = freeze(params)
    assert_same(other.params, model.params)
    del params["model"]["layer_norm"]["bias"]
    with pytest.raises(ValueError, match="lack these parameters: .'model/layer_norm/bias'."):
        other.params = params


def test_a_foreign_or_missing_config_is_refused(untyped):
    with pytest.raises(TypeError, match="FlaxXGLMModel needs a XGLMConfig, got dict"):
        FlaxXGLMModel({"d_model": 3})
    with pytest.raises(ValueError, match="FlaxXGLMPreTrainedModel is a base class"):
        xformer.FlaxXGLMPreTrainedModel(CONFIG)
    with pytest.raises(ValueError, match="float8"):
        FlaxXGLMModel(CONFIG, dtype=jnp.float8_e4m3fn)


def test_assigned_config_fields_act_on_the_next_call(model):
    config = dataclasses.replace(CONFIG)
    other = FlaxXGLMForCausalLM(config, seed=1)
    before = other(IDS).logits
    config.scale_embedding = False
    assert not np.allclose(other(IDS).logits, before)
    config.attention_heads = 5
    with pytest.raises(ValueError, match="attention_heads=5 must divide"):
        other(IDS)


# Calls


def test_numpy_jax_lists_jit_and_eager_agree(model):
    expected = model(IDS).logits
    for ids in (jnp.asarray(IDS), IDS.astype(np.int32), IDS.tolist()):
        np.testing.assert_array_equal(model(ids).logits, expected)
    inside = jax.jit(lambda ids, params: model(ids, params=params).logits)
    np.testing.assert_allclose(inside(IDS, model.params), expected, atol=1e-5)
    np.testing.assert_array_equal(model(IDS, params=freeze(model.params)).logits, expected)


def test_masks_of_any_number_type_mean_the_same(model):
    mask = np.ones((2, 7))
    mask[0, 5:] = 0
    expected = model(IDS, attention_mask=mask.astype(np.int32)).logits
    assert not np.array_equal(expected[0], model(IDS).logits[0])
    for kind in (np.float32, np.int64, bool):
        np.testing.assert_array_equal(model(IDS, attention_mask=mask.astype(kind)).logits, expected)


def test_the_result_is_the_documented_struct_or_a_tuple(model):
    out = model(IDS, output_attentions=True, output_hidden_states=True)
    assert type(out) is xformer.FlaxCausalLMOutputWithCrossAttentions
    assert list(out.keys()) == ["logits", "hidden_states", "attentions"]
    assert out.attentions[0].shape == (2, 3, 7, 7) and len(out.hidden_states) == 3
    parts = model(IDS, output_attentions=True, return_dict=False)
    assert type(parts) is tuple and len(parts) == 2
    np.testing.assert_array_equal(parts[0], out.logits)
    assert list(model(IDS).keys()) == ["logits"]


def test_defaults_of_calls_come_from_the_config(model):
    config = dataclasses.replace(CONFIG, output_attentions=True, output_hidden_states=True)
    other = FlaxXGLMForCausalLM(config, seed=1)
    assert set(other(IDS).keys()) == {"logits", "hidden_states", "attentions"}
    assert set(other(IDS, output_attentions=False, output_hidden_states=False).keys()) == {"logits"}
    config.return_dict = False
    assert len(other(IDS)) == 3


def test_train_switches_dropout_on(model):
    key = jax.random.PRNGKey(0)
    first, again = (model(IDS, train=True, dropout_rng=key).logits for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, model(IDS).logits)
    np.testing.assert_array_equal(model(IDS, dropout_rng=key).logits, model(IDS).logits)
    with pytest.raises(ValueError, match="train=True needs dropout_rng"):
        model(IDS, train=True)


def test_embeddings_may_be_given_instead_of_ids(model):
    table = model.params["model"]["embed_tokens"]["embedding"]
    embeds = table[IDS] * 12**0.5
    np.testing.assert_allclose(model(inputs_embeds=embeds).logits, model(IDS).logits, atol=1e-5)
    past = model.init_cache(2, 7)
    out = model(inputs_embeds=embeds, past_key_values=past)
    np.testing.assert_allclose(out.logits, model(IDS).logits, atol=1e-5)


def test_head_masks_act(model):
    mask = np.ones((2, 3))
    np.testing.assert_allclose(model(IDS, head_mask=mask).logits, model(IDS).logits, atol=1e-5)
    mask[0, 1] = 0.5
    assert not np.allclose(model(IDS, head_mask=mask).logits, model(IDS).logits, atol=1e-3)


def test_bad_inputs_are_refused_by_name(model, untyped):
    with pytest.raises(ValueError, match=r"input_ids must be below config.vocab_size=19 .* 19"):
        model(np.full((1, 3), 19))
    with pytest.raises(ValueError, match="not negative, got -1"):
        model([[3, -1]])
    with pytest.raises(
        ValueError, match=r"input_ids must have shape \(batch, length\), got \(7,\)"
    ):
        model(IDS[0])
    with pytest.raises(ValueError, match=r"attention_mask must have shape \(2, 7\), got \(2, 3\)"):
        model(IDS, attention_mask=np.ones((2, 3)))
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()


def test_gradient_checkpointing_changes_the_program_and_not_the_gradients(model):
    def program(other):
        gradient = jax.grad(lambda params: other(IDS, params=params).logits.sum())
        return gradient(model.params), str(jax.make_jaxpr(gradient)(model.params))

    plain, text = program(model)
    assert "remat" not in text
    made = FlaxXGLMForCausalLM(CONFIG, seed=1, gradient_checkpointing=True)
    switched = FlaxXGLMForCausalLM(CONFIG, seed=1)
    switched.enable_gradient_checkpointing()
    for other in (made, switched):
        gradients, text = program(other)
        assert "remat" in text
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradients, plain)


# Cache


def test_the_cache_has_the_documented_form(model):
    past = model.init_cache(2, 9)
    shapes = {path: leaf.shape for path, leaf in leaves(past).items()}
    assert shapes == {
        f"model/layers/{i}/self_attn/{name}": shape
        for i in range(2)
        for name, shape in [
            ("cached_key", (2, 9, 3, 4)),
            ("cached_value", (2, 9, 3, 4)),
            ("cache_index", ()),
        ]
    }
    base = FlaxXGLMModel(CONFIG, _do_init=False).init_cache(1, 4)
    assert set(base) == {"layers"}


def test_decoding_with_the_cache_equals_the_full_call(model):
    past, parts = model.init_cache(2, 9), []
    for start, end in [(0, 3), (3, 4), (4, 7)]:
        out = model(IDS[:, start:end], past_key_values=freeze(past))
        past = out.past_key_values
        parts.append(out.logits)
    np.testing.assert_allclose(np.concatenate(parts, 1), model(IDS).logits, atol=1e-5)
    logits, cache = model(IDS[:, :1], past_key_values=past, return_dict=False)
    assert int(cache["model"]["layers"]["0"]["self_attn"]["cache_index"]) == 8
    step = jax.jit(lambda ids, past: model(ids, past_key_values=past).logits)
    np.testing.assert_allclose(step(IDS[:, :1], past), logits, atol=1e-5)


def test_a_foreign_or_full_cache_is_refused(model):
    past = model.init_cache(2, 4)
    with pytest.raises(ValueError, match="cannot take 7 more"):
        model(IDS, past_key_values=past)
    del past["model"]["layers"]["1"]["self_attn"]["cached_key"]
    with pytest.raises(ValueError, match="entries: .'model/layers/1/self_attn/cached_key'."):
        model(IDS[:, :1], past_key_values=past)
    mask = np.ones((2, 1))
    with pytest.raises(ValueError, match=r"attention_mask must have shape \(2, 4\)"):
        model(IDS[:, :1], attention_mask=mask, past_key_values=model.init_cache(2, 4))


# Casts


def test_casts_follow_the_mask(model):
    mask = traverse_util.path_aware_map(lambda path, _: path[-1] != "scale", model.params)
    for cast, name in [
        (model.to_bf16, "bfloat16"),
        (model.to_fp16, "float16"),
        (model.to_fp32, "float32"),
    ]:
        everything = {str(leaf.dtype) for leaf in jax.tree.leaves(cast(model.params))}
        assert everything == {name}
        some = leaves(cast(model.to_bf16(model.params), mask))
        assert str(some["model/layer_norm/scale"].dtype) == "bfloat16"
        assert str(some["model/layer_norm/bias"].dtype) == name
    tree = {"ids": jnp.arange(3), "x": jnp.ones(3)}
    assert model.to_fp16(tree)["ids"].dtype == jnp.int32
    assert model(IDS, params=model.to_bf16(model.params)).logits.shape == (2, 7, 19)


# Files


def test_a_saved_model_is_read_bit_for_bit(folder, model):
    again = FlaxXGLMForCausalLM.from_pretrained(folder)
    assert again.config == CONFIG and again.config.architectures == ["XGLMForCausalLM"]
    assert_same(again.params, model.params)
    np.testing.assert_array_equal(again(IDS).logits, model(IDS).logits)
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "float32"


def test_msgpack_folders_are_written_and_read(tmp_path, model):
    model.save_pretrained(tmp_path, safe_serialization=False, max_shard_size="4KB")
    assert (tmp_path / "flax_model.msgpack.index.json").exists()
    assert_same(FlaxXGLMForCausalLM.from_pretrained(tmp_path).params, model.params)
    with pytest.raises(ValueError, match="from_pt=True, but .* no weights in PyTorch's layout"):
        FlaxXGLMForCausalLM.from_pretrained(tmp_path, from_pt=True)


def test_other_params_can_be_saved(tmp_path, model):
    params = model.to_bf16(model.params)
    model.save_pretrained(tmp_path, params=freeze(params), max_shard_size=2000)
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    again = FlaxXGLMForCausalLM.from_pretrained(tmp_path, param_dtype=None)
    assert_same(again.params, params)
    single = FlaxXGLMForCausalLM.from_pretrained(tmp_path)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(single.params)} == {"float32"}
    del params["model"]["layer_norm"]
    with pytest.raises(ValueError, match="params lack these parameters"):
        model.save_pretrained(tmp_path / "new", params=params)
    assert not (tmp_path / "new").exists()


def test_without_init_the_params_are_returned(folder, model):
    other, params = FlaxXGLMForCausalLM.from_pretrained(folder, _do_init=False, from_pt=True)
    assert_same(params, model.params)
    with pytest.raises(ValueError, match="keeps no params"):
        _ = other.params
    np.testing.assert_array_equal(other(IDS, params=params).logits, model(IDS).logits)


def test_base_and_head_checkpoints_load_into_each_other(tmp_path, folder, model, caplog):
    with caplog.at_level(logging.WARNING):
        base = FlaxXGLMModel.from_pretrained(folder)
    assert_same(base.params, model.params["model"])
    assert not caplog.text
    base.save_pretrained(tmp_path / "base")
    again = FlaxXGLMForCausalLM.from_pretrained(tmp_path / "base")
    assert_same(again.params, model.params)
    assert not caplog.text


def test_missing_and_unexpected_weights_are_reported(folder, caplog):
    with caplog.at_level(logging.WARNING):
        untied = FlaxXGLMForCausalLM.from_pretrained(folder, tie_word_embeddings=False)
    assert "newly initialized: ['lm_head/kernel']" in caplog.text
    assert untied.params["lm_head"]["kernel"].std() > 0.1
    tensors = load_file(folder / "model.safetensors") | {"score.weight": np.ones(3, np.float32)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "xformer_manifest.json").unlink(missing_ok=True)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        FlaxXGLMForCausalLM.from_pretrained(folder)
    assert "were not used by FlaxXGLMForCausalLM: ['score.weight']" in caplog.text
    assert "newly initialized" not in caplog.text


def test_missing_weights_without_init_wait_for_init_weights(folder, caplog):
    with caplog.at_level(logging.WARNING):
        model, params = FlaxXGLMForCausalLM.from_pretrained(
            folder, tie_word_embeddings=False, _do_init=False
        )
    assert "lm_head" not in params
    filled = model.init_weights(jax.random.PRNGKey(0), (1, 1), params)
    assert filled["lm_head"]["kernel"].shape == (12, 19)


def test_mismatched_sizes_are_refused_or_drawn(folder, model, caplog):
    with pytest.raises(ValueError, match=r"model.layers.0.fc1.weight: stored \(20, 12\), wanted"):
        FlaxXGLMForCausalLM.from_pretrained(folder, ffn_dim=24)
    with caplog.at_level(logging.WARNING):
        other = FlaxXGLMForCausalLM.from_pretrained(
            folder, ffn_dim=24, ignore_mismatched_sizes=True
        )
    assert "model.layers.0.fc1.weight" in caplog.text
    assert other.params["model"]["layers"]["0"]["fc1"]["kernel"].shape == (12, 24)
    assert_same(other.params["model"]["layer_norm"], model.params["model"]["layer_norm"])


def test_a_config_can_be_given(tmp_path, folder, model):
    config = dataclasses.replace(CONFIG, dropout=0.0)
    assert FlaxXGLMForCausalLM.from_pretrained(folder, config=config).config is config
    config.save_pretrained(tmp_path / "config")
    other = FlaxXGLMForCausalLM.from_pretrained(folder, config=tmp_path / "config")
    assert other.config.dropout == 0.0
    with pytest.raises(ValueError, match="set .'dropout'. in the config that is given"):
        FlaxXGLMForCausalLM.from_pretrained(folder, config=config, dropout=0.3)


def test_weights_are_read_into_their_shards(folder, model):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    config = dataclasses.replace(CONFIG, vocab_size=20, d_model=12, attention_heads=2)
    big = FlaxXGLMForCausalLM(config)
    big.save_pretrained(folder.parent / "even")
    sharded = FlaxXGLMForCausalLM.from_pretrained(folder.parent / "even", mesh=mesh)
    assert_same(sharded.params, big.params)
    kernel = sharded.params["model"]["layers"]["0"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    np.testing.assert_allclose(sharded(IDS).logits, big(IDS).logits, atol=1e-5)


def test_code_is_never_run(folder):
    with pytest.raises(ValueError, match="trust_remote_code must be False"):
        FlaxXGLMForCausalLM.from_pretrained(folder, trust_remote_code=True)


def test_most_of_a_model_is_not_drawn(folder):
    with pytest.raises(ValueError, match="its config.json or its weights are another model's"):
        FlaxXGLMForCausalLM.from_pretrained(
            folder,
            num_layers=1024,
            attention_heads=3,
            vocab_size=2**20,
            ignore_mismatched_sizes=True,
        )


# Auto classes


def test_auto_classes_read_the_model_type(folder, model):
    assert xformer.AutoConfig.from_pretrained(folder) == CONFIG
    assert xformer.AutoConfig.for_model("xglm", d_model=64).d_model == 64
    assert type(xformer.FlaxAutoModel.from_pretrained(folder)) is FlaxXGLMModel
    other = xformer.FlaxAutoModelForCausalLM.from_pretrained(folder, dropout=0.0, seed=2)
    assert type(other) is FlaxXGLMForCausalLM and other.config.dropout == 0.0
    assert_same(other.params, model.params)
    made = xformer.FlaxAutoModelForCausalLM.from_config(CONFIG, seed=1, dtype=jnp.bfloat16)
    assert_same(made.params, model.params)
    assert made.dtype == jnp.bfloat16


def test_auto_classes_refuse_what_they_do_not_know(folder):
    with pytest.raises(ValueError, match="trust_remote_code must be False"):
        xformer.FlaxAutoModel.from_pretrained(folder, trust_remote_code=True)
    with pytest.raises(ValueError, match="trust_remote_code must be False"):
        xformer.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "model_type": "gpt2"}))
    with pytest.raises(ValueError, match=r"model_type must be one of \[.*'xglm'\], got 'gpt2'"):
        xformer.FlaxAutoModelForCausalLM.from_pretrained(folder)


def test_auto_classes_pass_the_model_arguments_on(tmp_path, folder):
    CONFIG.save_pretrained(tmp_path / "config")
    for arguments in ({}, {"config": CONFIG}, {"config": tmp_path / "config"}):
        model = xformer.FlaxAutoModelForCausalLM.from_pretrained(
            folder, jnp.bfloat16, gradient_checkpointing=True, **arguments
        )
        assert model.dtype == jnp.bfloat16
        assert model.module.execution.remat == "full"
        assert model.config.torch_dtype in ("float32", None)
    made = xformer.FlaxAutoModel.from_config(CONFIG, trust_remote_code=False, dtype=jnp.float16)
    assert made.dtype == jnp.float16
    _, params = xformer.FlaxAutoModel.from_pretrained(folder, _do_init=False, dropout=0.0)
    assert "layers" in params


def test_former_arguments_that_ask_for_nothing_are_taken(folder):
    former = {
        "resume_download": True,
        "proxies": None,
        "use_safetensors": True,
        "use_auth_token": None,
        "revision": None,
        "from_tf": False,
    }
    for cls in (FlaxXGLMForCausalLM, xformer.FlaxAutoModelForCausalLM):
        assert cls.from_pretrained(folder, **former).config == CONFIG
        with pytest.raises(ValueError, match="from_tf must be one of .False. or be left out"):
            cls.from_pretrained(folder, from_tf=True)
        with pytest.raises(ValueError, match="has no field .'layers'."):
            cls.from_pretrained(folder, layers=3)


def test_casts_take_frozen_and_plain_trees_together(model):
    mask = traverse_util.path_aware_map(lambda path, _: path[-1] == "kernel", model.params)
    plain = model.to_fp16(model.params, freeze(mask))
    frozen = model.to_fp16(freeze(model.params), mask)
    assert type(plain) is dict and type(frozen) is not dict
    assert_same(frozen.unfreeze(), plain)
    assert str(plain["model"]["layer_norm"]["scale"].dtype) == "float32"


def test_params_of_another_shape_are_not_saved(tmp_path, model):
    params = jax.tree.map(lambda leaf: leaf, model.params)
    params["model"]["layer_norm"]["scale"] = jnp.ones(3)
    with pytest.raises(ValueError, match=r"layer_norm/scale must have shape \(12,\), got \(3,\)"):
        model.save_pretrained(tmp_path / "new", params=params)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("layers", [1, 3])
def test_a_changed_number_of_layers_is_explained(model, layers):
    other = FlaxXGLMForCausalLM(dataclasses.replace(CONFIG), _do_init=False)
    other.config.num_layers = layers
    message = f"have 2 layers and the config asks for {layers}; change XGLMConfig.num_layers"
    with pytest.raises(ValueError, match=message):
        other(IDS, params=model.params)


def test_a_cache_of_another_batch_is_refused(model):
    with pytest.raises(ValueError, match="batch_size=3 cannot take 2 rows"):
        model(IDS, past_key_values=model.init_cache(3, 9))


def test_a_larger_vocabulary_can_be_drawn(tmp_path):
    config = dataclasses.replace(CONFIG, vocab_size=30_000)
    FlaxXGLMForCausalLM(config).save_pretrained(tmp_path)
    larger = FlaxXGLMForCausalLM.from_pretrained(
        tmp_path, vocab_size=30_010, ignore_mismatched_sizes=True
    )
    assert larger.params["model"]["embed_tokens"]["embedding"].shape == (30_010, 12)


def test_a_mesh_does_not_make_refusals_slow(folder, monkeypatch):
    traced, plain = [], xglm.feed_forward
    monkeypatch.setattr(xglm, "feed_forward", lambda *a, **k: traced.append(1) or plain(*a, **k))
    mesh = make_mesh(MeshConfig(data=8))
    with pytest.raises(ValueError, match="its config.json or its weights are another model's"):
        FlaxXGLMForCausalLM.from_pretrained(folder, num_layers=1000, mesh=mesh)
    assert 0 < len(traced) < 5  # one layer, not a thousand
