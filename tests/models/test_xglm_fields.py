"""Every field of the configuration changes something, and bad values are refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xformer.generation.decode import generate
from xformer.layers.execution import Execution
from xformer.layers.heads import Base, CausalLM
from xformer.models import build, supported_heads
from xformer.models.config import ModelConfig
from xformer.models.xglm import XGLMConfig

IDS = jnp.asarray(np.random.default_rng(1).integers(3, 19, (2, 7)), jnp.int32)
LONG = {"position_ids": jnp.arange(12, 19)[None]}
TRAIN = {"deterministic": False, "rngs": {"dropout": jax.random.key(1)}}

# Field -> another value and what it changes.
CHANGES = {
    "vocab_size": (23, "shapes"),
    "d_model": (18, "shapes"),
    "ffn_dim": (21, "shapes"),
    "num_layers": (1, "shapes"),
    "add_cross_attention": (True, "shapes"),
    "tie_word_embeddings": (False, "shapes"),
    "init_std": (0.1, "weights"),
    "pad_token_id": (2, "weights"),
    "attention_heads": (2, "outputs"),
    "activation_function": ("relu", "outputs"),
    "scale_embedding": (False, "outputs"),
    "max_position_embeddings": (32, "outputs of late positions"),
    "dropout": (0.4, "outputs in training"),
    "attention_dropout": (0.4, "outputs in training"),
    "activation_dropout": (0.4, "outputs in training"),
    "layerdrop": (0.4, "outputs in training"),  # the key above drops a layer
    "use_cache": (False, "program of generation"),
    "eos_token_id": (None, "generated tokens"),  # the value is the first token that is generated
}
# Part of the documented config for its users; no computation of the model refers to them.
IDS_FOR_USERS = {"bos_token_id", "decoder_start_token_id"}


def shapes(config):
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    params = jax.eval_shape(build(config, CausalLM()).init, jax.random.key(0), ids)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}


@functools.cache
def weights(config):
    module = build(config, Base())
    init = jax.jit(lambda key: module.init(key, IDS)["params"]["embed_tokens"]["embedding"].value)
    return np.asarray(init(jax.random.key(0)))


def is_cache(variable):
    return variable.aval.ndim == 4 and variable.aval.shape[::2] == (2, 10)  # rows, places


def decode(model, config, **options):
    module = build(config, CausalLM())
    mask, key = jnp.ones_like(IDS), jax.random.key(0)

    def run(params):
        return generate(module, params, IDS, mask, key, max_new_tokens=3).sequences

    return run, model(**options).params


def effects(kind, model, config):
    """What a config leads to: arrays or descriptions that can be compared."""
    fields = dataclasses.asdict(config)
    if kind == "shapes":
        return shapes(config)
    if kind == "weights":
        return weights(config)
    if kind == "program of generation":
        run, params = decode(model, config)
        (loop,) = [e for e in jax.make_jaxpr(run)(params).eqns if e.primitive.name == "while"]
        return sum(map(is_cache, loop.invars))
    if kind == "generated tokens":
        run, params = decode(model, config)
        return jax.jit(run)(params)
    inputs = {"outputs of late positions": LONG, "outputs in training": TRAIN}.get(kind, {})
    return model(**fields)(IDS, **inputs).logits


def names(cls):
    return [field.name for field in dataclasses.fields(cls)]


def test_every_field_of_the_config_is_accounted_for():
    own = {*names(XGLMConfig)} - {*names(ModelConfig)}  # the base's are defaults of calls
    assert own == {*CHANGES, *IDS_FOR_USERS}


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_of_the_config_changes_something(field, model, tiny):
    value, kind = CHANGES[field]
    before = effects(kind, model, tiny)
    value = int(before[0, 7]) if field == "eos_token_id" else value
    assert value != getattr(tiny, field)
    after = effects(kind, model, dataclasses.replace(tiny, **{field: value}))
    if isinstance(before, dict | int):
        assert before != after
    else:
        assert not np.array_equal(before, after)
    if kind == "outputs of late positions":
        assert np.isnan(before).any() and np.isfinite(after).all()
    if field == "use_cache":
        assert before == 4 and after == 0  # keys and values of two layers


def test_the_padding_token_starts_at_zero(tiny):
    embedding = weights(tiny)
    assert not embedding[1].any() and embedding[np.arange(19) != 1].any(axis=1).all()
    np.testing.assert_allclose(embedding.std() * (19 / 18) ** 0.5, 0.3, rtol=0.1)


def test_dtype_of_the_execution_changes_the_hidden_states(model):
    dtypes = [
        model(execution=Execution(dtype=dtype))(IDS, output_hidden_states=True).hidden_states[0]
        for dtype in ("float32", "bfloat16", "float16")
    ]
    assert [str(state.dtype) for state in dtypes] == ["float32", "bfloat16", "float16"]


def test_layers_of_the_execution_changes_the_parameter_tree(tiny):
    def names(layers):
        module = build(tiny, Base(), Execution(layers=layers))
        return set(jax.eval_shape(module.init, jax.random.key(0), IDS)["params"]["layers"])

    assert names("loop") == {"0", "1"} and names("scan") == {"stacked"}


def test_remat_of_the_execution_changes_the_gradients_program(model):
    def program(remat):
        xglm = model(execution=Execution(remat=remat))
        gradient = jax.grad(lambda params: xglm(IDS, params=params).logits.sum())
        return str(jax.make_jaxpr(gradient)(xglm.params))

    programs = [program(remat) for remat in ("none", "minimal", "full")]
    assert [" checkpoint[" in one or " remat" in one for one in programs] == [False, True, True]
    assert len(set(programs)) == 3


def test_documented_names_are_those_of_the_sizes():
    config = XGLMConfig(d_model=24, num_layers=3, attention_heads=4)
    assert (config.hidden_size, config.num_hidden_layers) == (24, 3)
    assert (config.num_attention_heads, config.head_dim, config.model_type) == (4, 6, "xglm")


BAD = {
    "vocab_size": (0, "must be at least 1, got 0"),
    "max_position_embeddings": (0, "must be at least 1, got 0"),
    "d_model": (-2, "must be at least 1, got -2"),
    "ffn_dim": (0, "must be at least 1, got 0"),
    "num_layers": (0, "must be at least 1, got 0"),
    "attention_heads": (5, "=5 must divide XGLMConfig.d_model=1024"),
    "activation_function": ("gelu_fast", r"must be one of \['gelu', .*\], got 'gelu_fast'"),
    "dropout": (1.0, r"must be in \[0, 1\), got 1.0"),
    "attention_dropout": (-0.1, r"must be in \[0, 1\), got -0.1"),
    "activation_dropout": (1.5, r"must be in \[0, 1\), got 1.5"),
    "layerdrop": (float("nan"), r"must be in \[0, 1\), got nan"),
    "init_std": (0.0, "must be positive, got 0.0"),
    "decoder_start_token_id": (-1, "=-1 must be a token id below XGLMConfig.vocab_size=256008"),
    "pad_token_id": (256008, "=256008 must be a token id below XGLMConfig.vocab_size=256008"),
    "bos_token_id": (300000, "=300000 must be a token id below"),
    "eos_token_id": (-5, "=-5 must be a token id below"),
}


@pytest.mark.parametrize("field", BAD)
def test_bad_values_are_refused_by_name(field):
    value, message = BAD[field]
    with pytest.raises(ValueError, match=rf"XGLMConfig\.{field} ?{message}"):
        XGLMConfig(**{field: value})


def test_attention_heads_must_be_positive():
    with pytest.raises(ValueError, match=r"XGLMConfig\.attention_heads must be at least 1, got 0"):
        XGLMConfig(attention_heads=0)


@dataclasses.dataclass(frozen=True)
class Unknown:
    """A head or a family that nobody has."""


def test_build_refuses_what_it_does_not_know(untyped):
    assert supported_heads(XGLMConfig()) == (Base, CausalLM)
    message = r"has no head Unknown; set Run.head or Run.model to one of "
    with pytest.raises(ValueError, match=rf"XGLMConfig {message}\['Base', 'CausalLM'\]"):
        build(XGLMConfig(), Unknown())
    with pytest.raises(ValueError, match=r"Unknown has no head CausalLM; .*'XGLMConfig'\]"):
        build(Unknown(), CausalLM())
