"""Tokens while they are written, and texts in and out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from xformer import partitioning
from xformer.generation.decode import compiled_search, left_pad, prompts_of
from xformer.generation.decoding import Beams, Decoding
from xformer.generation.sampling import Sampling
from xformer.generation.search import Limits
from xformer.generation.streaming import _compiled_steps, stream_tokens
from xformer.layers.heads import CausalLM
from xformer.models import build
from xformer.models.xglm import XGLMConfig
from xformer.partitioning import MeshConfig, Rules

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
CONFIG = XGLMConfig(
    vocab_size=24,
    max_position_embeddings=64,
    d_model=16,
    ffn_dim=24,
    num_layers=2,
    attention_heads=4,
    init_std=0.6,
    eos_token_id=2,
)
MODULE = build(CONFIG, CausalLM())
PROMPTS = prompts_of(CONFIG, *map(jnp.asarray, left_pad([[4, 5, 6], [7]] * 4, 1, multiple=4)))
DRAW = Decoding.of(CONFIG, sampling=Sampling(1.0, top_k=12))
ROOM = 12


@pytest.fixture(scope="module")
def params():
    init = jax.jit(lambda key: meta.unbox(MODULE.init(key, jnp.zeros((1, 2), int)))["params"])
    return init(jax.random.key(5))


def limits(most=ROOM):
    return Limits(*(jnp.asarray(number, jnp.int32) for number in (0, 0, most)))


def streamed(params, decoding=DRAW, most=ROOM, every=1):
    blocks = stream_tokens(
        MODULE, params, PROMPTS, limits(most), KEY, room=ROOM, decoding=decoding, every=every
    )
    return [block.copy() for block in blocks]


@pytest.mark.parametrize("decoding", [DRAW, Decoding.of(CONFIG)], ids=["drawn", "greedy"])
@pytest.mark.parametrize("every, most", [(1, 12), (5, 12), (5, 3), (40, 7), (1, 1)])
def test_stream_gives_what_generate_writes(params, decoding, every, most):
    found = compiled_search(MODULE, ROOM, decoding)(params, PROMPTS, limits(most), KEY)
    expected = np.asarray(found.sequences_BS)[:, 4 : 4 + int(found.new_tokens)]
    blocks = streamed(params, decoding, most, every)
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), expected)
    assert all(block.shape[1] == every for block in blocks[:-1])


def test_steps_of_a_stream_share_a_program(params):
    first, onward = _compiled_steps(MODULE, ROOM, DRAW)
    before = onward._cache_size()
    streamed(params, most=9)
    streamed(params, every=3)
    assert onward._cache_size() - before <= 1


def test_streams_need_one_sequence_at_a_time(params):
    with pytest.raises(ValueError, match="needs num_beams=1"):
        streamed(params, Decoding.of(CONFIG, beams=Beams(2)))
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        streamed(params, every=0)


# Over devices: rows over data, heads and widths over tensor.

RULES = Rules()


def shard(params):
    """Parameters and prompts on 2 x 4 devices."""
    mesh = partitioning.make_mesh(MeshConfig(data=2, tensor=4))
    boxed = jax.eval_shape(MODULE.init, KEY, jax.ShapeDtypeStruct((1, 2), jnp.int32))["params"]
    names = partitioning.axis_names(boxed)
    placed = partitioning.shardings(meta.unbox(boxed), names, mesh, RULES)
    rows = partitioning.batch_sharding(mesh, RULES)
    return jax.device_put(params, placed), jax.device_put(PROMPTS, rows), mesh


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding.of(CONFIG),
        DRAW,
        Decoding.of(CONFIG, beams=Beams(3, early_stopping=True), num_return_sequences=2),
    ],
    ids=["greedy", "drawn", "beams"],
)
def test_sharded_model_writes_the_same(params, decoding):
    search = compiled_search(MODULE, ROOM, decoding)
    alone = search(params, PROMPTS, limits(), KEY)
    split, prompts, mesh = shard(params)
    with jax.set_mesh(mesh), partitioning.constraints(RULES):
        found = search(split, prompts, limits(), KEY)
    np.testing.assert_array_equal(found.sequences_BS, alone.sequences_BS)
    if decoding.beams:
        np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-5)


def test_cache_is_split_over_rows_and_heads(params):
    split, prompts, mesh = shard(params)
    first, onward = _compiled_steps(MODULE, ROOM, DRAW)
    with jax.set_mesh(mesh), partitioning.constraints(RULES):
        state = first(split, prompts, limits())
        for _ in range(2):
            for layer in state.decoder.cache.layers:
                assert layer.key_BNSH.sharding.shard_shape((8, 4, 16, 4)) == (4, 1, 16, 4)
            state = onward(split, state, jnp.asarray(5), KEY)
