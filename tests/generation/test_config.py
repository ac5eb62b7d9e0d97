"""The documented settings: defaults, files, what they turn into and what is refused."""

import dataclasses
import json
import logging

import numpy as np
import pytest

from xformer.generation.config import FILE_NAME, GenerationConfig
from xformer.generation.decoding import Beams
from xformer.generation.sampling import Sampling
from xformer.models.xglm import XGLMConfig

MODEL = XGLMConfig(vocab_size=20, pad_token_id=1, eos_token_id=2)


def test_settings_survive_a_file(tmp_path):
    settings = GenerationConfig(
        num_beams=4, early_stopping="never", eos_token_id=[2, 7], bad_words_ids=[[3], [4, 5]]
    )
    settings.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / FILE_NAME).read_text()) == {
        "bad_words_ids": [[3], [4, 5]],
        "early_stopping": "never",
        "eos_token_id": [2, 7],
        "num_beams": 4,
    }
    assert GenerationConfig.from_pretrained(tmp_path / "new") == settings
    assert GenerationConfig.from_pretrained(tmp_path / "new" / FILE_NAME) == settings


def test_published_files_are_read_and_what_has_no_effect_is_named(caplog):
    published = {
        "_from_model_config": True,
        "transformers_version": "4.57.6",
        "temperature": None,
        "typical_p": 1.0,
        "top_k": 0,
        "max_length": 200,
    }
    with caplog.at_level(logging.WARNING):
        settings = GenerationConfig.from_dict(published)
    assert not caplog.messages
    assert settings == GenerationConfig(top_k=0, max_length=200)
    with caplog.at_level(logging.WARNING):
        odd = GenerationConfig.from_dict({"typical_p": 0.5, "num_beam": 3, "num_beams": 2})
    assert odd == GenerationConfig(num_beams=2)
    assert "without effect here: 'num_beam', 'typical_p'" in caplog.text


def test_settings_of_older_config_files_are_followed():
    model = dataclasses.replace(MODEL)
    model.max_length, model.num_beams = 33, 2
    assert GenerationConfig.from_model_config(model) == GenerationConfig(max_length=33, num_beams=2)


def test_settings_become_a_decoding():
    plain = GenerationConfig().decoding(MODEL)
    assert (plain.pad_token_id, plain.eos_token_ids, plain.sampling) == (1, (2,), Sampling())
    assert plain.rules.eos_token_ids == (2,) and plain.beams is None and plain.use_cache
    drawn = GenerationConfig(do_sample=True, top_k=None, min_p=0.1, temperature=0.5)
    assert drawn.decoding(MODEL).sampling == Sampling(0.5, min_p=0.1)
    beams = GenerationConfig(num_beams=3, length_penalty=2.0, eos_token_id=[4, 5]).decoding(MODEL)
    assert beams.beams == Beams(3, 2.0, False) and beams.eos_token_ids == (4, 5)
    endless = dataclasses.replace(MODEL, eos_token_id=0)
    assert GenerationConfig(pad_token_id=7).decoding(endless).pad_token_id == 7
    assert not GenerationConfig(use_cache=False).decoding(MODEL).use_cache


@pytest.mark.parametrize(
    "settings, limits",
    [
        ({}, (0, 16)),
        ({"max_length": 9, "min_length": 7}, (3, 5)),
        ({"max_length": 9, "max_new_tokens": 8, "min_length": 2}, (0, 8)),
        ({"min_new_tokens": 2, "min_length": 9}, (2, 16)),
    ],
)
def test_limits_count_all_tokens_or_new_ones(settings, limits):
    assert GenerationConfig(**settings).new_tokens(4) == limits


def test_every_setting_becomes_something():
    """No setting is taken and forgotten: another value gives another decoding or other limits."""
    others = {
        "max_length": 30,
        "max_new_tokens": 3,
        "min_length": 6,
        "min_new_tokens": 2,
        "do_sample": True,
        "num_beams": 2,
        "repetition_penalty": 2.0,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[3]],
        "suppress_tokens": [3],
        "begin_suppress_tokens": [3],
        "forced_bos_token_id": 3,
        "forced_eos_token_id": 3,
        "pad_token_id": 3,
        "eos_token_id": 3,
        "use_cache": False,
        "output_scores": True,
    }
    beams = {"early_stopping": True, "length_penalty": 2.0, "num_return_sequences": 2}
    drawn = {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.5}
    elsewhere = {"bos_token_id", "decoder_start_token_id", "return_dict_in_generate"}
    every = {one.name for one in dataclasses.fields(GenerationConfig)}
    assert {*others, *beams, *drawn, *elsewhere} == every
    for group, base in [(others, {}), (beams, {"num_beams": 2}), (drawn, {"do_sample": True})]:
        plain = GenerationConfig(**base)
        for name, value in group.items():
            changed = plain.changed({name: value})
            effect, before = ((one.decoding(MODEL), one.new_tokens(4)) for one in (changed, plain))
            assert effect != before, name


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"num_beam": 2}, TypeError, "has no setting 'num_beam'; it has"),
        ({"num_beams": 2.5}, TypeError, "GenerationConfig.num_beams must be int, got float 2.5"),
        ({"eos_token_id": "2"}, TypeError, "GenerationConfig.eos_token_id must be int"),
        ({"typical_p": 0.5}, ValueError, "typical_p=0.5 is not supported"),
        ({"num_beam_groups": 2}, ValueError, "num_beam_groups=2 is not supported"),
        ({"num_beams": 0}, ValueError, "num_beams must be from 1 to 1048576, got 0"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be from 1"),
        ({"min_length": -1}, ValueError, "min_length must be from 0"),
        ({"early_stopping": "soon"}, ValueError, "early_stopping must be True, False or 'never'"),
        ({"do_sample": True, "temperature": 0.0}, ValueError, "temperature must be at least 1e-30"),
        ({"do_sample": True, "temperature": 1e-42}, ValueError, "temperature .* got 1e-42; set do"),
        ({"suppress_tokens": [3, 20]}, ValueError, "suppress_tokens must hold .*=20, got 3 to 20"),
        ({"eos_token_id": -1}, ValueError, "eos_token_id must hold token ids below"),
        ({"do_sample": True, "num_beams": 2}, ValueError, "do_sample=True needs num_beams=1"),
        ({"num_return_sequences": 2}, ValueError, "num_return_sequences=2 must be"),
    ],
)
def test_bad_settings_are_refused(untyped, settings, error, message):
    with pytest.raises(error, match=message):
        GenerationConfig().changed(settings).decoding(MODEL)


def test_numbers_of_numpy_are_those_of_python(untyped):
    given = {"max_length": np.int64(9), "do_sample": np.True_, "temperature": np.float32(0.5)}
    given |= {"eos_token_id": [np.int32(1), 2], "bad_words_ids": [(np.int64(3), 4)]}
    settings = GenerationConfig().changed(given)
    assert json.loads(settings.to_json_string()) == {
        "max_length": 9,
        "do_sample": True,
        "temperature": 0.5,
        "eos_token_id": [1, 2],
        "bad_words_ids": [[3, 4]],
    }
    with pytest.raises(TypeError, match="GenerationConfig.num_beams must be int, got float 2.0"):
        GenerationConfig(num_beams=np.float64(2.0))


def test_settings_that_ask_for_nothing_are_taken():
    neutral = {"typical_p": 1.0, "num_beam_groups": 1, "guidance_scale": None}
    assert GenerationConfig().changed(neutral) == GenerationConfig()


@pytest.mark.parametrize("content", ["[]", "{", '{"num_beams": "two"}', '{"num_beams": 0}'])
def test_malformed_files_are_refused(untyped, tmp_path, content):
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(ValueError, match="generation_config.json"):
        GenerationConfig.from_pretrained(tmp_path)
