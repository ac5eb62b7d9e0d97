"""Weights as decoding keeps them: what they say, what reads them and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from flax.core import meta
from jax.sharding import PartitionSpec

import xformer
from xformer import partitioning
from xformer.cli.run_folder import WEIGHTS as FLAG_VALUES
from xformer.generation.weights import (
    WEIGHTS,
    decoding_execution,
    decoding_params,
    quantized,
    rounded_params,
)
from xformer.layers.embedding import TokenEmbedding
from xformer.layers.execution import Execution
from xformer.layers.linear import Linear
from xformer.layers.vocabulary import VocabularyProjection
from xformer.partitioning import MeshConfig

pytestmark = pytest.mark.usefixtures("quick_compilation")

D, F, V = 24, 40, 57
IDS = np.array([[5, 6, 7, 30], [8, 9, 10, 56]])
SIZES = {"vocab_size": V, "num_layers": 1}


def models():
    """One of each family that writes, with weights far from one another."""
    xglm = {"d_model": D, "ffn_dim": F, "attention_heads": 4, "max_position_embeddings": 64}
    umt5 = {"d_model": D, "d_kv": 6, "d_ff": F, "num_heads": 4, "initializer_factor": 1.0}
    bert = {"hidden_size": D, "intermediate_size": F, "num_attention_heads": 4}
    full = {"attention_type": "original_full", "is_decoder": True, "max_position_embeddings": 64}
    return {
        "xglm": xformer.FlaxXGLMForCausalLM(xformer.XGLMConfig(**SIZES, **xglm, init_std=0.3)),
        "untied": xformer.FlaxXGLMForCausalLM(
            xformer.XGLMConfig(**SIZES, **xglm, init_std=0.3, tie_word_embeddings=False)
        ),
        "umt5": xformer.FlaxUMT5ForConditionalGeneration(xformer.UMT5Config(**SIZES, **umt5)),
        "bigbird": xformer.FlaxBigBirdForCausalLM(
            xformer.BigBirdConfig(
                vocab_size=V, num_hidden_layers=1, **bert, **full, initializer_range=0.3
            )
        ),
        "grouped": xformer.FlaxBigBirdForCausalLM(
            xformer.BigBirdConfig(
                vocab_size=V,
                num_hidden_layers=1,
                **bert,
                **full,
                initializer_range=0.3,
                projection_groups=2,
            )
        ),
    }


@pytest.fixture(scope="module")
def families():
    return models()


def logits(model, params=None):
    more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    return np.asarray(model(IDS, params=params, **more).logits)


def test_integers_are_within_half_a_scale():
    rows = jax.random.normal(jax.random.key(0), (3, D, F)) * jnp.arange(3)[:, None, None]
    integers, scale = quantized(rows)
    wide = np.asarray(scale)[..., None]
    assert integers.dtype == jnp.int8 and np.abs(integers.astype(int)).max() == 127
    assert (np.abs(integers * wide - rows) <= wide * 0.5000001).all()
    assert (integers[0] == 0).all() and (scale[0] == 1.0).all()  # zeros stay zeros
    assert np.isnan(quantized(rows.at[1, 2, 3].set(jnp.nan))[1][1, 2])


@pytest.mark.parametrize("name", ["xglm", "umt5", "bigbird", "grouped"])
def test_every_family_computes_with_the_weights_that_are_kept(families, name):
    model = families[name]
    kept = traverse_util.flatten_dict(model.for_decoding("int8").params, sep="/")
    matrices = {path for path, leaf in kept.items() if leaf.dtype == jnp.int8}
    for path, leaf in traverse_util.flatten_dict(model.params, sep="/").items():
        is_matrix = leaf.ndim > 1 and "relative_attention_bias" not in path
        assert (path in matrices or f"{path}_OI" in matrices) == is_matrix, path
        assert is_matrix or kept[path] is leaf
    rounded = rounded_params(model.params, "int8")
    expected, scale = logits(model, rounded), np.abs(logits(model)).max()
    np.testing.assert_allclose(
        logits(model.for_decoding("int8")), expected, rtol=0, atol=2e-5 * scale
    )
    difference = np.abs(expected - logits(model)).max()
    assert 1e-4 * scale < difference < 0.1 * scale


def test_products_are_as_near_as_the_scales_say():
    x_BTD = jax.random.normal(jax.random.key(1), (2, 3, D))
    norm_BT1 = np.abs(np.asarray(x_BTD)).sum(-1, keepdims=True)
    for module in (Linear(F, ("embed", "mlp"), use_bias=False), VocabularyProjection(F)):
        params = nn_params(module.init(jax.random.key(2), x_BTD))
        kept = decoding_params(params, "int8")
        exact, near = (
            out.logits() if isinstance(module, VocabularyProjection) else out
            for out in (module.apply({"params": tree}, x_BTD) for tree in (params, kept))
        )
        bound_BTF = 0.5 * np.asarray(kept["kernel_scale"]) * norm_BT1
        error_BTF = np.abs(near - exact)
        assert (error_BTF <= bound_BTF + 1e-5).all() and (error_BTF > 0.02 * bound_BTF).any()
    table = TokenEmbedding(V, D)
    params = nn_params(table.init(jax.random.key(3), jnp.asarray(IDS)))
    kept = decoding_params(params, "int8")
    scores = [table.apply({"params": p}, x_BTD, method="scores").logits() for p in (params, kept)]
    bound_BTV = 0.5 * np.asarray(kept["embedding_scale"]) * norm_BT1
    assert (np.abs(scores[1] - scores[0]) <= bound_BTV + 1e-6).all()
    found = [table.apply({"params": p}, jnp.asarray(IDS)) for p in (params, kept)]
    assert (
        np.abs(found[1] - found[0]) <= 0.5000001 * kept["embedding_scale"][IDS][..., None]
    ).all()
    assert np.isnan(table.apply({"params": kept}, jnp.asarray([[V, -1]]))).all()


def nn_params(variables):
    return jax.tree.map(jnp.asarray, meta.unbox(variables["params"]))


@pytest.mark.parametrize("name", ["xglm", "umt5"])
def test_bfloat16_is_the_model_cast_beforehand(families, name):
    model = families[name]
    half = model.for_decoding("bfloat16")
    assert half.dtype == jnp.bfloat16 and model.dtype == jnp.float32
    cast = type(model)(model.config, dtype=jnp.bfloat16, _do_init=False)
    mask = traverse_util.path_aware_map(
        lambda path, leaf: leaf.ndim > 1 and "relative_attention_bias" not in path, model.params
    )
    params = model.to_bf16(model.params, mask)
    options = {"max_new_tokens": 6, "min_new_tokens": 6}
    ids = IDS[:1]  # products of one row are a case of their own
    expected = cast.generate(ids, params=params, **options).sequences
    np.testing.assert_array_equal(half.generate(ids, **options).sequences, expected)
    expected = logits(model, params)  # the same weights, computed with in float32
    np.testing.assert_allclose(logits(half), expected, rtol=0, atol=0.03 * np.abs(expected).max())


def test_settings_of_generation_are_the_copy_s_own(families):
    model = families["bigbird"]
    before = model.generation_config.max_length
    model.for_decoding("int8").generation_config.max_length = before + 1
    assert model.generation_config.max_length == before


def test_generated_tokens_are_those_of_full_forwards(families):
    model = families["xglm"].for_decoding("int8")
    written = model.generate(IDS, max_new_tokens=5, min_new_tokens=5).sequences
    for end in (IDS.shape[1], written.shape[1] - 1):
        scores_BV = np.array(model(written[:, :end]).logits[:, -1])
        scores_BV[:, model.config.eos_token_id] = -np.inf
        np.testing.assert_array_equal(written[:, end], scores_BV.argmax(-1))
    beams = {"max_new_tokens": 5, "num_beams": 2}
    assert model.generate(IDS, **beams).sequences.shape == written.shape


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_weights_split_over_devices_write_the_same(families, weights):
    model = families["xglm"].for_decoding(weights)
    mesh = partitioning.make_mesh(MeshConfig(fsdp=2, tensor=4))
    split = families["xglm"].params

    def spec(leaf):
        wide = leaf.ndim == 2 and leaf.shape[1] % 4 == 0
        return jax.NamedSharding(mesh, PartitionSpec(None, "tensor") if wide else PartitionSpec())

    split = jax.device_put(split, jax.tree.map(spec, split))
    kept = families["xglm"].for_decoding(weights, params=split)
    fc1 = kept.params["model"]["layers"]["0"]["fc1"]
    assert fc1["kernel_OI"].sharding.shard_shape((F, D)) == (F // 4, D)
    options = {"max_new_tokens": 4}
    np.testing.assert_array_equal(
        np.asarray(kept.generate(IDS, **options).sequences),
        np.asarray(model.generate(IDS, **options).sequences),
    )


def test_perplexity_hardly_moves():
    config = xformer.XGLMConfig(
        **SIZES, d_model=32, ffn_dim=64, attention_heads=4, max_position_embeddings=64, dropout=0.0
    )
    model = xformer.FlaxXGLMForCausalLM(config)
    key = np.random.default_rng(0)
    follows = np.stack([key.permutation(V) for _ in range(3)])

    def text(rows):
        ids = [key.integers(0, V, rows)]
        for _ in range(23):
            ids.append(follows[key.choice(3, rows, p=[0.7, 0.2, 0.1]), ids[-1]])
        return jnp.asarray(np.stack(ids, 1))

    def loss(params, ids_BT, dtype=jnp.float32):
        module = model.module.clone(execution=Execution(dtype=jnp.dtype(dtype).name))
        scores = module.apply({"params": params}, ids_BT).logits[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(scores, ids_BT[:, 1:]).mean()

    tx = optax.adam(1e-2)

    @jax.jit
    def step(params, state, ids_BT):
        updates, state = tx.update(jax.grad(loss)(params, ids_BT), state)
        return optax.apply_updates(params, updates), state

    params, state = model.params, tx.init(model.params)
    for _ in range(40):
        params, state = step(params, state, text(32))
    held_out = text(64)
    plain = float(jax.jit(loss)(params, held_out))
    assert plain < 3.0  # guessing has 4
    for weights, dtype in (("int8", jnp.float32), ("bfloat16", jnp.bfloat16)):
        kept = decoding_params(params, weights)
        ratio = np.exp(float(jax.jit(loss, static_argnums=2)(kept, held_out, dtype)) - plain)
        assert abs(ratio - 1.0) < 0.01
    with pytest.raises(TypeError, match="int8"):  # they are not trained
        jax.grad(loss)(decoding_params(params, "int8"), held_out)


def test_losses_read_integers_as_their_weights(families):
    ids = jnp.asarray(IDS)
    for name in ("untied", "xglm"):
        module = families[name].module.clone(execution=Execution(vocabulary_chunk=16))

        @jax.jit
        def sums(params, module=module):
            out = module.apply({"params": params}, ids, output_logits=False)
            return out.logits.sums(ids)

        params = families[name].params
        kept, rounded = decoding_params(params, "int8"), rounded_params(params, "int8")
        for one, other in zip(sums(kept), sums(rounded), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


def test_what_cannot_be_is_refused(families, tmp_path):
    model = families["xglm"]
    assert FLAG_VALUES == WEIGHTS
    with pytest.raises(ValueError, match=r"weights must be one of .*'int8'.* got 'int4'"):
        model.for_decoding("int4")
    with pytest.raises(ValueError, match="weights must be one of"):
        decoding_execution(Execution(), "fp8")
    small = model.for_decoding("int8")
    for refused in (
        lambda: small.for_decoding("int8"),
        lambda: small.save_pretrained(tmp_path / "x"),
    ):
        with pytest.raises(ValueError, match="kept for decoding, and neither saved nor converted"):
            refused()
    with pytest.raises(ValueError, match="kept for decoding, and neither saved"):
        model.params = small.params
    with pytest.raises(ValueError, match="kernel_OI is kept for decoding"):
        decoding_params(small.params, "bfloat16")
    with pytest.raises(ValueError, match="params lack"):
        model.for_decoding("int8", params={})
    bare = xformer.FlaxXGLMForCausalLM(model.config, _do_init=False)
    with pytest.raises(ValueError, match="_do_init=False keeps no params"):
        bare.for_decoding("int8")
    assert bare.for_decoding("int8", model.params).generate(IDS).sequences.shape == (2, 20)


def test_float32_changes_the_layout_alone(families):
    model = families["xglm"]
    laid_out = model.for_decoding("float32")
    fc1, kept = (m.params["model"]["layers"]["0"]["fc1"] for m in (model, laid_out))
    np.testing.assert_array_equal(kept["kernel_OI"], fc1["kernel"].T)
    np.testing.assert_allclose(logits(laid_out), logits(model), rtol=1e-5, atol=1e-4)
    assert jax.tree.all(
        jax.tree.map(
            lambda a, b: a is b, rounded_params(model.params, "float32"), dict(model.params)
        )
    )
