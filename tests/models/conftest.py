"""A tiny XGLM at random weights, in any configuration and form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from xformer.layers.execution import Execution
from xformer.layers.heads import CausalLM
from xformer.layers.stack import restack
from xformer.models import build
from xformer.models.xglm import XGLMConfig

# Sizes that differ from one another show transposition mistakes.
TINY = XGLMConfig(
    vocab_size=19,
    max_position_embeddings=16,
    d_model=12,
    ffn_dim=20,
    num_layers=2,
    attention_heads=3,
    dropout=0.0,
    attention_dropout=0.0,
    init_std=0.3,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A module with parameters, called like the module."""

    module: object
    params: dict
    apply: object

    def __call__(self, *args, params=None, **inputs):
        return self.apply({"params": self.params if params is None else params}, *args, **inputs)


def random_params(module):
    """Parameters of a looped model that are all random: biases and norms too."""
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    shapes = meta.unbox(jax.eval_shape(module.init, jax.random.key(0), ids))["params"]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(mean + 0.4 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def load(config, head, execution):
    looped = build(config, head, dataclasses.replace(execution, layers="loop"))
    module = build(config, head, execution)
    flags = ("deterministic", "output_attentions", "output_hidden_states")
    params = restack(random_params(looped), execution.layers)
    return Model(module, params, jax.jit(module.apply, static_argnames=flags))


@pytest.fixture(scope="session")
def tiny():
    return TINY


@pytest.fixture(scope="session")
def model():
    """Makes a model of the tiny config; keywords change fields of the config."""

    def make(head=None, execution=None, **fields):
        config = dataclasses.replace(TINY, **fields)
        return load(config, head or CausalLM(), execution or Execution())

    return make


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly(quick_compilation):
    yield
