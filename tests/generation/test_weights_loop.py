"""What the compiled loop does for every token: weights are multiplied with, caches written to."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from flax.core import meta

from xformer.generation.decode import compiled_search, prompts_of
from xformer.generation.decoding import Decoding
from xformer.generation.search import Limits
from xformer.generation.weights import WEIGHTS, decoding_execution, decoding_params
from xformer.layers.execution import Execution
from xformer.layers.heads import CausalLM
from xformer.models import build
from xformer.models.xglm import XGLMConfig

CONFIG = XGLMConfig(vocab_size=57, d_model=24, ffn_dim=40, num_layers=1, attention_heads=4)
IDS = jnp.asarray([[5, 6, 7, 30], [8, 9, 10, 56]])


def loop_bodies(text):
    """The computations that loops of a compiled program repeat, without those that they call."""
    names = set(re.findall(r"body=%([\w.-]+)", text))
    return [part for part in re.split(r"\n(?=%|ENTRY)", text) if part[1:].split(" ")[0] in names]


@functools.cache
def written(weights, rows=2):
    """The compiled program that writes eight tokens."""
    module = build(CONFIG, CausalLM(), decoding_execution(Execution(), weights))
    drawn = meta.unbox(jax.jit(module.init)(jax.random.key(0), IDS)["params"])
    params = decoding_params(drawn, weights)
    limits = Limits(*(jnp.asarray(n, jnp.int32) for n in (0, 0, 8)))
    search = compiled_search(module, 8, Decoding.of(CONFIG))
    prompts = prompts_of(CONFIG, IDS[:rows])
    return search.lower(params, prompts, limits, jax.random.key(0)).compile().as_text()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_loop_converts_no_weight(weights):
    bodies = loop_bodies(written(weights))
    assert any("while" in body or "fusion" in body for body in bodies)
    made = r"= \w+\[(24,24|24,40|40,24|57,24|24,57)\]\S* (convert|fusion|copy)\("
    assert not [line for body in bodies for line in body.splitlines() if re.search(made, line)]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it is CPUs that make such copies")
@pytest.mark.parametrize("rows", [1, 2])
def test_no_matrix_of_bfloat16_is_copied_to_float32(rows):
    copied = re.findall(
        r"= f32\[(?:24,24|24,40|40,24|57,24|24,57)\]\S* fusion\(.*", written("bfloat16", rows)
    )
    assert not copied


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the form of writing is that of CPUs")
@pytest.mark.parametrize("rows", [1, 2])
def test_the_loop_neither_copies_nor_turns_its_cache(rows):
    # Of bfloat16, on which CPUs compute in float32, all is converted.
    lines = "".join(loop_bodies(written("float32", rows))).splitlines()
    caches = rf"= f32\[(?:{rows},)?(?:4,12|12,4),6\]"
    assert len([line for line in lines if re.search(rf"{caches}\S* get-tuple-element\(", line)]) > 2
    assert not [
        line for line in lines if re.search(rf"{caches}\S* (copy|fusion|transpose)\(", line)
    ]
    assert len([line for line in lines if re.search(r" conditional\(", line)]) == 2  # the writes
