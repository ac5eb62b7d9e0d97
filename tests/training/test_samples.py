"""Continuations of prompts by the model of a run."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax.core import meta

from xformer.generation.sampling import Sampling
from xformer.generation.writer import continuation, prompt_ids
from xformer.layers.execution import Execution
from xformer.layers.heads import CausalLM, ConditionalGeneration
from xformer.layers.stack import restack
from xformer.models import build
from xformer.models.bigbird_config import BigBirdConfig
from xformer.models.umt5_config import UMT5Config
from xformer.objectives import TextToText
from xformer.tokenization.bigbird import BigBirdTokenizer
from xformer.tokenization.t5 import UMT5Tokenizer
from xformer.tokenization.xglm import XGLMTokenizer
from xformer.training.loop import train
from xformer.training.samples import check_prompts, continue_prompts

FIXTURES = Path(__file__).parents[1] / "tokenization" / "fixtures"
TOKENIZER = FIXTURES / "xglm"
PROMPTS = ("The", "Some words")


@pytest.fixture(scope="module")
def tokenizer():
    return XGLMTokenizer.from_pretrained(TOKENIZER)


@functools.cache
def params_of(model):
    """Parameters that are large enough for prompts to make a difference."""
    module = build(dataclasses.replace(model, init_std=1.0), CausalLM())
    init = jax.jit(lambda key: meta.unbox(module.init(key, jnp.zeros((1, 2), int)))["params"])
    return init(jax.random.key(0))


@pytest.fixture
def continued(make_run, tokenizer):
    def make(layers="loop", prompts=PROMPTS, **options):
        run = make_run(execution=Execution(layers=layers))
        params = restack(params_of(run.model), layers)
        return continue_prompts(run, params, tokenizer, prompts, max_new_tokens=5, **options)

    return make


def test_continuations_do_not_depend_on_layer_mode_or_company(continued):
    texts = continued()
    assert len(set(texts)) == 2 and all(texts)
    assert texts == continued("scan") and texts[:1] == continued(prompts=PROMPTS[:1])


def test_seed_decides_what_is_drawn(continued):
    texts = [continued(sampling=Sampling(1.0), seed=seed) for seed in (None, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_a_continuation_keeps_its_leading_space(tokenizer):
    prompt, whole = tokenizer.encode("The value"), tokenizer.encode("The value is returned")
    assert whole[: len(prompt)] == prompt
    assert continuation(tokenizer, prompt, whole[len(prompt) :]) == " is returned"
    assert continuation(tokenizer, prompt, [tokenizer.eos_token_id]) == ""


def test_a_prompt_begins_as_a_document_and_does_not_end(tokenizer):
    assert prompt_ids(tokenizer, "The value") == tokenizer.encode("The value")
    bigbird = BigBirdTokenizer.from_pretrained(FIXTURES / "bigbird")
    whole = bigbird.encode("The value")
    assert whole[-1] == bigbird.sep_token_id
    assert prompt_ids(bigbird, "The value") == whole[:-1]


def bigbird(attention_type):
    return BigBirdConfig(
        vocab_size=128,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        block_size=4,
        num_random_blocks=1,
        is_decoder=True,
        attention_type=attention_type,
    )


@pytest.mark.parametrize("attention_type", ["original_full", "block_sparse"])
def test_prompts_and_tokens_fill_the_positions_of_a_table_and_no_more(make_run, attention_type):
    tokenizer = BigBirdTokenizer.from_pretrained(FIXTURES / "bigbird")
    room = 32 - len(prompt_ids(tokenizer, "Some words"))
    model = dataclasses.replace(bigbird(attention_type), vocab_size=len(tokenizer))
    run = make_run(model=model, sample_prompts=("", "Some words"), sample_tokens=room)
    check_prompts(run, tokenizer)
    init = jax.jit(build(model, CausalLM()).init)
    params = meta.unbox(init(jax.random.key(0), jnp.zeros((1, 2), int)))["params"]
    texts = continue_prompts(run, params, tokenizer, run.sample_prompts, max_new_tokens=room)
    assert len(texts) == 2
    longer = dataclasses.replace(run, sample_tokens=room + 1)
    message = rf"Run\.sample_tokens={room + 1} do not fit .* 33 tokens are more than BigBird"
    with pytest.raises(ValueError, match=message):
        check_prompts(longer, tokenizer)


def test_sinusoids_go_on_behind_the_positions_that_are_trained(make_run, tokenizer):
    run = make_run(sample_prompts=("The", ""), sample_tokens=40)
    assert run.model.max_position_embeddings == 32
    check_prompts(run, tokenizer)
    params = params_of(run.model)
    assert len(continue_prompts(run, params, tokenizer, ("The",), max_new_tokens=40)) == 1


def test_what_is_answered_has_an_end_token_at_least(make_run):
    model = UMT5Config(vocab_size=600, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    tokenizer = UMT5Tokenizer.from_pretrained(FIXTURES / "umt5")
    fields = {"head": ConditionalGeneration(), "objective": TextToText()}
    check_prompts(make_run(model=model, sample_prompts=("",), **fields), tokenizer)


def test_a_prompt_without_a_token_is_refused(make_run):
    tokenizer = UMT5Tokenizer.from_pretrained(FIXTURES / "umt5")  # puts nothing before a document
    run = make_run(sample_prompts=("The", ""))
    with pytest.raises(
        ValueError, match=r"Run\.sample_prompts must have .*, got '', which has none"
    ):
        check_prompts(run, tokenizer)
    check_prompts(dataclasses.replace(run, sample_prompts=()), tokenizer)


def test_a_run_whose_samples_would_fail_is_refused_before_it_begins(make_run, tmp_path):
    ids = {"pad_token_id": 1, "sep_token_id": 2, "vocab_size": make_run().model.vocab_size}
    model = dataclasses.replace(bigbird("original_full"), **ids)
    run = make_run(model=model, sample_prompts=("",), steps=3)
    with pytest.raises(
        ValueError, match=r"Run\.sample_tokens=48 do not fit .* of length 1: 49 tokens"
    ):
        train(run, plain=True)
    assert not (tmp_path / "run").exists()
