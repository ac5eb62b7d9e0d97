"""Configs: files, aliases, assignment, and what is refused."""

import copy
import dataclasses
import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest

from xformer.configurables import load
from xformer.layers.heads import Base, CausalLM, SequenceClassification, TokenClassification
from xformer.models.bigbird_config import BigBirdConfig
from xformer.models.build import build, config_class
from xformer.models.config import labelled
from xformer.models.published_fields import CARRIED
from xformer.models.squeezebert_config import SqueezeBertConfig
from xformer.models.xglm import XGLMConfig
from xformer.training.config import describe

PUBLISHED = {
    "activation_dropout": 0,
    "activation_function": "gelu",
    "architectures": ["XGLMForCausalLM"],
    "attention_heads": 16,
    "d_model": 1024,
    "decoder_start_token_id": 2,
    "model_type": "xglm",
    "num_layers": 24,
    "torch_dtype": "float32",
    "transformers_version": "4.16.0.dev0",
    "use_cache": True,
    "vocab_size": 256008,
}


def test_published_fields_give_the_documented_defaults():
    assert XGLMConfig.from_dict(PUBLISHED) == XGLMConfig()


def test_a_file_is_read_and_written_without_loss(tmp_path):
    config = XGLMConfig.from_dict({**PUBLISHED, "dropout": 0.25, "output_attentions": True})
    config.save_pretrained(tmp_path)
    again = XGLMConfig.from_pretrained(tmp_path)
    assert again == config
    assert again.output_attentions is True
    assert again.architectures == ["XGLMForCausalLM"]
    assert again.to_dict() == config.to_dict()
    assert again.name_or_path == str(tmp_path)
    assert XGLMConfig.from_json_file(tmp_path / "config.json") == config


def test_the_file_holds_the_architecture_and_what_differs_from_the_defaults():
    config = XGLMConfig(output_hidden_states=True)
    short, long = (json.loads(config.to_json_string(use_diff=d)) for d in (True, False))
    assert short["model_type"] == "xglm" and short["ffn_dim"] == 4096
    assert short["output_hidden_states"] is True
    assert "return_dict" not in short and long["return_dict"] is True


@pytest.mark.reference
def test_transformers_reads_the_file_as_its_own(tmp_path):
    from transformers import XGLMConfig as Reference

    config = XGLMConfig(d_model=48, attention_heads=4, dropout=0.2, num_layers=3)
    config.save_pretrained(tmp_path)
    theirs = Reference.from_pretrained(tmp_path)
    for name, value in config.to_dict().items():
        assert getattr(theirs, name) == value
    theirs.save_pretrained(tmp_path)
    assert XGLMConfig.from_pretrained(tmp_path) == config


def test_aliases_read_write_and_come_from_files():
    config = XGLMConfig(d_model=48, attention_heads=4)
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (48, 4, 24)
    config.hidden_size = 96
    assert config.d_model == 96
    assert XGLMConfig.from_dict({"num_hidden_layers": 3}).num_layers == 3


def test_overrides_replace_fields_of_the_file(tmp_path):
    XGLMConfig(num_layers=2).save_pretrained(tmp_path)
    config = XGLMConfig.from_pretrained(tmp_path, dropout=0.5, hidden_size=32)
    assert (config.num_layers, config.dropout, config.d_model) == (2, 0.5, 32)
    config, rest = XGLMConfig.from_pretrained(tmp_path, return_unused_kwargs=True, seed=3)
    assert rest == {"seed": 3}
    with pytest.raises(ValueError, match="has no field .'layers'."):
        XGLMConfig.from_pretrained(tmp_path, layers=3)


def test_assignment_is_judged_when_a_model_is_built():
    config = XGLMConfig()
    config.d_model = 1000
    config.attention_heads = 10
    build(config, Base())
    config.attention_heads = 11
    with pytest.raises(ValueError, match=r"attention_heads=11 must divide"):
        build(config, Base())
    with pytest.raises(AttributeError, match="has no field 'layers'"):
        config.layers = 3
    with pytest.raises(AttributeError, match="has no field 'layers'"):
        config.update({"layers": 3})


def test_equal_architectures_are_one_key():
    config = XGLMConfig(output_attentions=True)
    assert config == XGLMConfig() and hash(config) == hash(XGLMConfig())
    config.dropout = 0.3
    assert config != XGLMConfig() and hash(config) != hash(XGLMConfig())
    assert copy.deepcopy(config) == config


def test_call_defaults_are_not_part_of_a_run(tmp_path):
    assert describe(XGLMConfig(output_attentions=True)) == describe(XGLMConfig())
    assert "output_attentions" not in describe(XGLMConfig())
    gin_file = tmp_path / "run.gin"
    gin_file.write_text("XGLMConfig.output_attentions = True\n")
    with pytest.raises(ValueError, match="output_attentions"):
        load(gin_file)


def test_unknown_fields_are_named_and_left_out(caplog):
    with caplog.at_level(logging.WARNING):
        config = XGLMConfig.from_dict({**PUBLISHED, "scalable_attention": True})
    assert "scalable_attention" in caplog.text
    assert config == XGLMConfig()
    caplog.clear()
    XGLMConfig.from_dict(PUBLISHED)
    assert not caplog.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": "1024"}, "XGLMConfig.d_model must be int, got str '1024'"),
        ({"d_model": None}, "XGLMConfig.d_model must be int"),
        ({"d_model": True}, "XGLMConfig.d_model must be int"),
        ({"scale_embedding": 1}, "XGLMConfig.scale_embedding must be bool"),
        ({"dropout": float("nan")}, r"XGLMConfig.dropout must be in \[0, 1\)"),
        ({"activation_function": ["gelu"]}, "activation_function must be str"),
        ({"num_layers": 10**9}, "XGLMConfig.num_layers must be at most 1024"),
        ({"vocab_size": 2**40}, "XGLMConfig.vocab_size must be at most"),
        ({"max_position_embeddings": 2**40}, "max_position_embeddings must be at most"),
        ({"ffn_dim": 0}, "XGLMConfig.ffn_dim must be at least 1"),
        ({"model_type": "bert"}, "needs model_type 'xglm', got 'bert'"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "'auto_map' is refused"),
        ({"custom_code": True}, "'custom_code' is refused"),
        ({"_attn_implementation_internal": "x/y"}, "is refused"),
        ({"pruned_heads": {"0": [1]}}, "'pruned_heads' must be one of"),
    ],
)
def test_bad_files_are_refused_by_file_and_key(tmp_path, fields, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**PUBLISHED, **fields}))
    with pytest.raises(ValueError, match=message) as caught:
        XGLMConfig.from_pretrained(tmp_path)
    assert str(path) in str(caught.value)


def test_wrong_types_are_refused_at_construction(untyped):
    with pytest.raises(TypeError, match="XGLMConfig.d_model must be int"):
        XGLMConfig(d_model="1024")
    with pytest.raises(TypeError, match="unexpected keyword argument 'layers'"):
        XGLMConfig(layers=3)


@pytest.mark.parametrize("content", ["", "[]", "{", "nul", '"x"', "[" * 100_000, "1" * 5000])
def test_what_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="config.json"):
        XGLMConfig.from_pretrained(tmp_path)


def test_unknown_families_are_refused():
    assert config_class("xglm") is XGLMConfig
    for name in ("gpt", None, ["xglm"], 3):
        with pytest.raises(ValueError, match=r"model_type must be one of \[.*'xglm'\]"):
            config_class(name)


def test_the_constructor_takes_aliases_and_common_fields():
    config = XGLMConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=2, max_length=9)
    assert (config.d_model, config.attention_heads, config.num_layers) == (64, 4, 2)
    assert config.max_length == 9 and config.to_dict()["max_length"] == 9
    assert XGLMConfig(**config.to_dict()) == config
    with pytest.raises(ValueError, match="has its own model_type"):
        XGLMConfig(model_type="bert")


def test_common_fields_have_the_documented_defaults():
    config = XGLMConfig()
    assert (config.max_length, config.top_k, config.is_decoder) == (20, 50, False)
    assert config.num_labels == 2 and config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert "max_length" not in config.to_dict()


@pytest.mark.reference
def test_common_fields_have_the_defaults_of_transformers():
    from transformers import XGLMConfig as Reference

    theirs, ours = Reference(), XGLMConfig()
    for name in CARRIED:
        if name != "gradient_checkpointing":  # not an attribute of theirs
            assert getattr(ours, name) == getattr(theirs, name), name
    assert Reference(num_labels=3).id2label == XGLMConfig(num_labels=3).id2label


def test_labels_survive_a_file(tmp_path):
    config = XGLMConfig(num_labels=3)
    config.id2label = {0: "a", 1: "b", 2: "c"}
    config.save_pretrained(tmp_path)
    again = XGLMConfig.from_pretrained(tmp_path)
    assert again.num_labels == 3 and again.id2label == {0: "a", 1: "b", 2: "c"}
    for count in (-1, 0, 2**20, "3"):
        with pytest.raises(ValueError, match="num_labels must be in 1"):
            XGLMConfig.from_pretrained(tmp_path, num_labels=count)


def test_labels_of_a_file_give_way_to_another_number_of_them(tmp_path):
    labels = {0: "a", 1: "b", 2: "c"}
    XGLMConfig(id2label=labels, label2id={"a": 0, "b": 1, "c": 2}).save_pretrained(tmp_path)
    same = XGLMConfig.from_pretrained(tmp_path, num_labels=3)
    assert same.id2label == labels and same.label2id == {"a": 0, "b": 1, "c": 2}
    other = XGLMConfig.from_pretrained(tmp_path, num_labels=2)
    assert other.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert other.label2id == {"LABEL_0": 0, "LABEL_1": 1}
    assert XGLMConfig(id2label=labels, num_labels=5).id2label == labels
    assert XGLMConfig.from_dict({"id2label": None, "label2id": None}).num_labels == 2
    same.num_labels = 3
    assert same.id2label == labels
    same.num_labels = 4
    assert same.num_labels == 4 and same.label2id["LABEL_3"] == 3


def test_names_of_labels_bring_their_numbers(tmp_path):
    config = XGLMConfig(id2label={"1": "yes", "0": "no"})  # the keys of a file are text
    assert list(config.id2label.items()) == [(0, "no"), (1, "yes")]
    assert config.label2id == {"no": 0, "yes": 1}
    config.save_pretrained(tmp_path)
    tagger = XGLMConfig.from_pretrained(tmp_path, id2label={0: "O", 1: "B", 2: "I"})
    assert tagger.label2id == {"O": 0, "B": 1, "I": 2}
    given = XGLMConfig(id2label={0: "a", 1: "b"}, label2id={"a": 0, "A": 0, "b": 1})
    assert given.label2id["A"] == 0
    given.id2label = {0: "c"}
    assert (given.num_labels, given.label2id) == (1, {"c": 0})
    assert XGLMConfig(id2label={0: 0, 1: 1}).id2label == {0: "0", 1: "1"}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"id2label": {0: "a", 2: "b"}}, r"1 to 65536 labels from 0 without gaps, .* \['0', '2'\]"),
        ({"id2label": {"1": "a"}}, r"from 0 without gaps, got the ids \['1'\]; num_labels= or"),
        ({"id2label": {}}, r"from 0 without gaps, got the ids \[\]"),
        ({"id2label": {"a": 0}}, "id2label must have whole numbers as ids, got 'a'"),
        ({"id2label": ["a", "b"]}, "id2label must be a dict, got list"),
        ({"label2id": "a"}, "label2id must be a dict, got str 'a'"),
        ({"problem_type": "nonsense"}, "problem_type must be None or one of .* got 'nonsense'"),
    ],
)
def test_labels_that_no_score_belongs_to_are_refused(tmp_path, fields, message):
    with pytest.raises((TypeError, ValueError), match=message):
        XGLMConfig(**fields)
    (tmp_path / "config.json").write_text(json.dumps({**PUBLISHED, **fields}))
    with pytest.raises(ValueError, match=message):
        XGLMConfig.from_pretrained(tmp_path)
    if "id2label" in fields:
        assert XGLMConfig.from_pretrained(tmp_path, num_labels=4).num_labels == 4


def test_labels_that_were_changed_in_place_are_judged_when_a_model_is_built():
    config = XGLMConfig(num_labels=2)
    config.id2label[5] = "c"
    with pytest.raises(ValueError, match=r"without gaps, got the ids \['0', '1', '5'\]"):
        build(config, Base())


@pytest.mark.parametrize(
    "copied", [dataclasses.replace, lambda config: config.published_as("XGLMModel", "float32")]
)
def test_copies_can_be_changed_in_place_alone(copied):
    config = XGLMConfig(id2label={0: "a", 1: "b"}, task_specific_params={"sum": {"beams": 2}})
    other = copied(config)
    other.id2label[0] = "X"
    other.task_specific_params["sum"]["beams"] = 4
    assert config.id2label == {0: "a", 1: "b"}
    assert config.task_specific_params == {"sum": {"beams": 2}}


@pytest.mark.reference
@pytest.mark.parametrize(
    "fields",
    [
        {"num_labels": 1, "problem_type": "regression"},
        {"id2label": {0: "a", 1: "b", 2: "c"}},
        {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}},
        {"num_labels": 7, "problem_type": "multi_label_classification"},
    ],
)
def test_labels_in_files_of_transformers_are_read(tmp_path, fields):
    from transformers import SqueezeBertConfig as Reference

    theirs = Reference(**fields)
    theirs.save_pretrained(tmp_path)
    config = SqueezeBertConfig.from_pretrained(tmp_path)
    assert (config.id2label, config.problem_type) == (theirs.id2label, theirs.problem_type)
    if "id2label" not in fields:
        assert config.label2id == theirs.label2id


@pytest.mark.parametrize("family", [SqueezeBertConfig, BigBirdConfig])
def test_saved_question_answerers_have_two_labels(family):
    name = family.__name__.removesuffix("Config")
    config = family(id2label={0: "a", 1: "b", 2: "c"}, problem_type="regression")
    answers = config.published_as(f"{name}ForQuestionAnswering", "float32")
    assert answers.id2label == {0: "LABEL_0", 1: "LABEL_1"} and config.num_labels == 3
    assert config.published_as(f"{name}ForTokenClassification", "float32").num_labels == 3


def test_the_number_of_labels_is_part_of_equality():
    three, four = XGLMConfig(num_labels=3), XGLMConfig(num_labels=4)
    assert three != four and hash(three) != hash(four)
    assert three == XGLMConfig(id2label={0: "a", 1: "b", 2: "c"})
    assert hash(three) == hash(XGLMConfig(num_labels=3, max_length=7))
    assert three != "another thing"


def test_labels_of_a_head_become_those_of_a_copy():
    config = XGLMConfig(num_labels=5)
    tagged = labelled(config, TokenClassification(labels=("O", "B-X")))
    assert tagged.id2label == {0: "O", 1: "B-X"} and tagged.label2id == {"O": 0, "B-X": 1}
    assert tagged.problem_type is None and config.num_labels == 5
    classified = labelled(config, SequenceClassification(labels=("v",), problem_type="regression"))
    assert (classified.num_labels, classified.problem_type) == (1, "regression")
    assert labelled(config, CausalLM()) is config


def test_extensions_are_written_only_where_they_differ(tmp_path):
    config = SqueezeBertConfig()
    assert "attention_type" not in config.to_dict() and "block_size" not in config.to_diff_dict()
    config = SqueezeBertConfig(attention_type="block_sparse", block_size=16)
    config.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert '"attention_type": "block_sparse"' in text and '"block_size": 16' in text
    assert "random_blocks" not in text
    assert SqueezeBertConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16, jnp.dtype("bfloat16")])
def test_dtypes_are_kept_by_name(dtype):
    config = XGLMConfig.from_dict(PUBLISHED, torch_dtype=dtype)
    assert config.torch_dtype == "bfloat16"
    assert '"torch_dtype": "bfloat16"' in config.to_json_string()


def test_numpy_scalars_are_taken():
    config = XGLMConfig(vocab_size=np.int64(100), dropout=np.float32(0.5))
    assert type(config.vocab_size) is int and config.dropout == 0.5


def test_copies_keep_common_fields_and_do_not_share_them():
    config = XGLMConfig(max_length=9)
    config.name_or_path = "org/name"
    for other in (dataclasses.replace(config, dropout=0.3), copy.deepcopy(config)):
        assert other.max_length == 9 and other.name_or_path == "org/name"
        other.max_length = 5
        assert config.max_length == 9


@pytest.mark.parametrize(
    "fields", [{"model_type": "x" * 10**6}, {"pruned_heads": "x" * 10**6}, {"auto_map" + "x": 1}]
)
def test_messages_stay_short(tmp_path, fields):
    unknown = {f"{'k' * 1000}{i}": i for i in range(1000)}
    (tmp_path / "config.json").write_text(json.dumps({**PUBLISHED, **fields, **unknown}))
    try:
        XGLMConfig.from_pretrained(tmp_path)
    except ValueError as error:
        assert len(str(error)) < 2000


def test_many_unknown_fields_are_named_shortly(caplog):
    with caplog.at_level(logging.WARNING):
        XGLMConfig.from_dict({**PUBLISHED, **{f"k{i}": i for i in range(1000)}})
    assert "'k0'" in caplog.text and "and 980 more" in caplog.text
    assert len(caplog.text) < 2000
