"""Continuations: text that follows the prompt, the same however the layers are computed."""

import dataclasses
from pathlib import Path

import jax
import pytest

from xformer import partitioning
from xformer.generation.sampling import Sampling
from xformer.layers.execution import Execution
from xformer.tokenization.xglm import XGLMTokenizer
from xformer.training.samples import _continuation, continue_prompts
from xformer.training.state import blueprint, create_state

TOKENIZER = Path(__file__).parents[1] / "tokenization" / "fixtures" / "xglm"


@pytest.fixture(scope="module")
def tokenizer():
    return XGLMTokenizer.from_pretrained(TOKENIZER)


def test_a_continuation_keeps_its_leading_space(tokenizer):
    prompt, whole = tokenizer.encode("The value"), tokenizer.encode("The value is returned")
    assert whole[: len(prompt)] == prompt
    assert _continuation(tokenizer, prompt, whole[len(prompt) :]) == " is returned"
    assert _continuation(tokenizer, prompt, [tokenizer.eos_token_id]) == ""


def test_the_layer_mode_does_not_change_what_is_drawn(make_run, tokenizer):
    texts = []
    for layers in ("loop", "scan"):
        run = make_run(execution=Execution(layers=layers))
        plan = blueprint(run, partitioning.make_mesh(run.mesh, jax.devices()))
        params = jax.tree.map(lambda leaf: leaf * 20, create_state(plan, 0).params)
        draw = dataclasses.replace(Sampling(), temperature=1.0)
        prompts = ("The value", "def f")
        texts.append(
            continue_prompts(run, params, tokenizer, prompts, max_new_tokens=6, sampling=draw)
        )
    assert texts[0] == texts[1] and all(texts[0])
