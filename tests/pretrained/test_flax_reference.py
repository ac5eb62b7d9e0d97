"""The drop-in classes beside the Flax classes of `transformers`: the same calls on both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import xformer

pytestmark = [
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.reference,
    # their classes say on construction that they are deprecated
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

FIELDS = {
    "vocab_size": 31,
    "max_position_embeddings": 16,
    "d_model": 16,
    "ffn_dim": 20,
    "num_layers": 2,
    "attention_heads": 2,
    "init_std": 0.3,
}
IDS = np.random.default_rng(0).integers(3, 31, (2, 7))
MASK = np.ones((2, 7), np.int64)
MASK[1, 4:] = 0


@pytest.fixture(scope="module", params=["FlaxXGLMModel", "FlaxXGLMForCausalLM"])
def pair(request):
    """Their model and ours, with their weights."""
    import transformers

    config = transformers.XGLMConfig(**FIELDS)
    theirs = getattr(transformers, request.param)(config, seed=3)
    ours = getattr(xformer, request.param)(xformer.XGLMConfig(**FIELDS))
    ours.params = theirs.params
    return theirs, ours


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def shapes(tree):
    return {path: (leaf.shape, str(leaf.dtype)) for path, leaf in flat(tree).items()}


def assert_close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), ours, theirs)


def test_parameters_and_cache_have_the_same_form(pair):
    theirs, ours = pair
    drawn = ours.init_weights(jax.random.PRNGKey(0), (1, 1))
    assert shapes(drawn) == shapes(theirs.params)
    assert ours.required_params == theirs.required_params
    assert shapes(ours.params_shape_tree) == shapes(theirs.params_shape_tree)
    assert shapes(ours.init_cache(2, 9)) == shapes(theirs.init_cache(2, 9))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"attention_mask": MASK},
        {"attention_mask": MASK, "position_ids": np.cumsum(MASK, 1) - 1},
        {"output_attentions": True, "output_hidden_states": True},
        {"output_hidden_states": True, "return_dict": False},
    ],
    ids=lambda arguments: "+".join(arguments) or "ids",
)
def test_calls_return_the_same(pair, arguments):
    theirs, ours = pair
    expected, actual = theirs(IDS, **arguments), ours(IDS, **arguments)
    if isinstance(expected, tuple):
        assert type(actual) is tuple and len(actual) == len(expected)
    else:
        assert type(actual).__name__ == type(expected).__name__
        assert list(actual.keys()) == list(expected.keys())
        expected, actual = expected.to_tuple(), actual.to_tuple()
    assert_close(actual, expected)


def test_decoding_steps_return_the_same(pair):
    theirs, ours = pair
    states = {model: model.init_cache(2, 7) for model in pair}
    positions = np.broadcast_to(np.arange(7), (2, 7))
    full = np.ones((2, 7), np.int64)
    for start, end in [(0, 3), (3, 4), (4, 5)]:
        outs = []
        for model in pair:
            out = model(
                IDS[:, start:end],
                attention_mask=full,
                position_ids=positions[:, start:end],
                past_key_values=states[model],
            )
            states[model] = out.past_key_values
            outs.append(out[0])
        assert_close(outs[1], outs[0])
    assert_close(states[ours], states[theirs])


def test_gradients_are_the_same(pair):
    def gradients(model):
        return jax.grad(lambda params: (model(IDS, params=params)[0] ** 2).sum())(model.params)

    theirs, ours = map(gradients, pair)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), ours, theirs)


def test_folders_are_read_by_either_side(pair, tmp_path):
    theirs, ours = pair
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours", safe_serialization=False)
    read_here = type(ours).from_pretrained(tmp_path / "theirs")
    read_there = type(theirs).from_pretrained(tmp_path / "ours")
    for model in (read_here, read_there):
        jax.tree.map(np.testing.assert_array_equal, dict(model.params), dict(theirs.params))


def test_greedy_continuations_are_the_same(pair):
    theirs, ours = pair
    if not ours.can_generate():
        assert not theirs.can_generate()
        return
    expected = np.asarray(theirs.generate(IDS, max_length=12, pad_token_id=1).sequences)
    actual = np.asarray(ours.generate(IDS, max_length=12).sequences)
    np.testing.assert_array_equal(actual, expected[:, : actual.shape[1]])
