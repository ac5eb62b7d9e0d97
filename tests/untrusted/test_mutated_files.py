"""Damaged files of model and tokenizer folders, thousands of them: loaded or refused, no more."""

import collections
import json

import pytest

from xformer.pretrained.manifest import MANIFEST
from xformer.pretrained.reading import MSGPACK, SAFETENSORS
from xformer.pretrained.saving import save_params
from xformer.pretrained.xglm import FlaxXGLMForCausalLM
from xformer.tokenization.xglm_fast import XGLMTokenizerFast

INDEX = f"{SAFETENSORS}.index.json"


@pytest.fixture
def resaved(model_folder):
    """Replaces the weights of the folder by the same in another form."""

    def resave(**options):
        model = FlaxXGLMForCausalLM.from_pretrained(model_folder)
        save_params(model_folder, model.params, model.weights, **options)
        return model_folder

    return resave


@pytest.fixture
def mutate(attack):
    """Mutates files of a folder; gives how many cases of each were (refused, loaded)."""

    def mutate(loader, folder, count, *files):
        found = collections.Counter(
            (one["case"].split(":")[0], one["kind"] == "loaded")
            for one in attack(loader, "mutate", folder, count, *files)
        )
        return {file: (found[file, False], found[file, True]) for file in files}

    return mutate


def assert_both(found, least=20):
    """The mutations are neither harmless nor all alike: some are refused, some load."""
    assert {file: pair for file, pair in found.items() if min(pair) < least} == {}


def test_mutated_configs(model_folder, mutate):
    assert_both(mutate("config", model_folder, 500, "config.json"))


def test_mutated_safetensors(model_folder, mutate):
    assert_both(mutate("weights", model_folder, 500, SAFETENSORS))


def test_mutated_shards_and_index(resaved, mutate):
    folder = resaved(max_shard_size=40_000)
    shard = "model-00002-of-00006.safetensors"
    assert_both(mutate("weights", folder, 200, INDEX, shard))


def test_mutated_msgpack(resaved, mutate):
    assert_both(mutate("weights", resaved(layout="flax"), 500, MSGPACK))


def test_mutated_weights_are_all_refused_where_there_is_a_manifest(resaved, mutate):
    found = mutate("weights", resaved(with_manifest=True), 100, SAFETENSORS)
    assert found[SAFETENSORS][1] == 0


def test_mutated_manifests(resaved, mutate):
    assert_both(mutate("weights", resaved(with_manifest=True), 100, MANIFEST), least=1)


def test_mutated_models(model_folder, mutate):
    """The whole way, and what most of a folder's files promise of the others."""
    assert_both(mutate("model", model_folder, 60, "config.json"), least=5)


@pytest.mark.parametrize("loader", ["slow", "fast"])
def test_mutated_tokenizers(model_folder, mutate, loader):
    files = ("sentencepiece.bpe.model", "tokenizer_config.json")
    assert_both(mutate(loader, model_folder, 500, *files))


def test_mutated_backends(model_folder, mutate):
    XGLMTokenizerFast.from_pretrained(model_folder).save_pretrained(model_folder)
    assert_both(mutate("fast", model_folder, 500, "tokenizer.json"))


@pytest.mark.parametrize("loader", ["slow", "fast"])
def test_mutated_files_of_older_tokenizers(model_folder, mutate, loader):
    """Before `added_tokens_decoder`, two more files said what the special tokens are."""
    path = model_folder / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    added = {one["content"]: int(key) for key, one in fields.pop("added_tokens_decoder").items()}
    path.write_text(json.dumps(fields))
    behind = {content: index for content, index in added.items() if index >= 400}
    (model_folder / "added_tokens.json").write_text(json.dumps(behind))
    files = ("special_tokens_map.json", "added_tokens.json")
    assert_both(mutate(loader, model_folder, 300, *files), least=10)
