"""A model of some hundred numbers, and where its weights are kept."""

import jax
import numpy as np
import pytest
from flax.core import meta

from xformer.hub import open_source
from xformer.layers.execution import Execution
from xformer.layers.heads import CausalLM
from xformer.models import build
from xformer.models.xglm import XGLMConfig
from xformer.pretrained.loading import load_params
from xformer.pretrained.reading import open_weights
from xformer.pretrained.xglm import WEIGHTS

CONFIG = XGLMConfig(
    vocab_size=16,
    max_position_embeddings=8,
    d_model=8,
    ffn_dim=24,
    num_layers=3,
    attention_heads=2,
    tie_word_embeddings=False,
)


@pytest.fixture(scope="session")
def config():
    """An XGLM with an untied head; no width is another's."""
    return CONFIG


@pytest.fixture(scope="session")
def shapes_of():
    """Shapes of the parameters of a config with a head."""

    def shapes_of(config=CONFIG, head=None, layers="loop", boxed=False):
        module = build(config, head or CausalLM(), Execution(layers=layers))
        ids = jax.ShapeDtypeStruct((1, 2), np.int32)
        found = jax.eval_shape(module.init, jax.random.key(0), ids)["params"]
        return found if boxed else meta.unbox(found)

    return shapes_of


@pytest.fixture(scope="session")
def draw(shapes_of):
    """Draws parameters as NumPy arrays."""

    def draw(config=CONFIG, head=None, dtype=np.float32):
        rng = np.random.default_rng(0)
        shapes = shapes_of(config, head)
        return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), shapes)

    return draw


@pytest.fixture
def load(shapes_of):
    """Loads a folder into a model, an XGLM with its head if nothing else is said."""

    def load(folder, config=CONFIG, head=None, layers="loop", **options):
        weights = open_weights(open_source(folder))
        return load_params(weights, shapes_of(config, head, layers), WEIGHTS, **options)

    return load


@pytest.fixture(scope="session")
def assert_same():
    """Compares two trees bit for bit, dtypes included."""

    def assert_same(actual, expected):
        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()

    return assert_same
