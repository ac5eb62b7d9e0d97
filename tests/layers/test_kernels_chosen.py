"""Kernels are chosen by how a model is computed, and change none of its numbers."""

import dataclasses
import functools
import importlib.util
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from xformer.layers.attention import dense_attention
from xformer.layers.dense_cores import cudnn_attention
from xformer.layers.execution import Execution
from xformer.layers.heads import Base, ConditionalGeneration, MaskedLM
from xformer.layers.mask import Mask
from xformer.models.bigbird_config import BigBirdConfig
from xformer.models.build import build
from xformer.models.squeezebert_config import SqueezeBertConfig
from xformer.models.umt5_config import UMT5Config
from xformer.models.xglm import XGLMConfig
from xformer.plan.flops import matrix_flops
from xformer.plan.topology import Topology

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 256,
    "block_size": 16,
    "num_random_blocks": 1,
    "random_blocks": "fixed",
}
LENGTH = 8 * 16 - 5  # the last block is not full


@pytest.mark.usefixtures("small_steps")
def test_kernels_change_no_number():
    config = BigBirdConfig(**SIZES)
    drawn = np.random.default_rng(0).integers(1, 50, (2, LENGTH))
    drawn[1, -20:] = 0
    ids = jnp.asarray(drawn, jnp.int32)
    plain = build(config, MaskedLM(), Execution(layers="scan"))
    params = jax.jit(plain.init)(jax.random.key(0), ids)
    found = []
    for attention in ("xla", "pallas"):
        module = build(config, MaskedLM(), Execution(layers="scan", attention=attention))
        run = jax.jit(module.apply).trace(params, ids, attention_mask=(ids > 0).astype(jnp.int32))
        assert ("pallas_call" in str(run.jaxpr)) == (attention == "pallas")
        found.append(run.lower().compile()(params, ids, attention_mask=(ids > 0).astype(jnp.int32)))
    xla, pallas = (out.logits[ids > 0] for out in found)
    np.testing.assert_allclose(pallas, xla, rtol=0, atol=1e-5 * float(abs(xla).max()))


def tokens(length, padding):
    """Random tokens of two rows, padding (0) behind the second."""
    drawn = np.random.default_rng(0).integers(2, 50, (2, length))
    drawn[1, length - padding :] = 0
    return jnp.asarray(drawn, jnp.int32)


UMT5 = UMT5Config(
    vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2
)
DENSE = {
    "xglm": XGLMConfig(
        vocab_size=50,
        d_model=16,
        ffn_dim=16,
        num_layers=1,
        attention_heads=2,
        add_cross_attention=True,
    ),
    "squeezebert": SqueezeBertConfig(
        vocab_size=50,
        hidden_size=16,
        embedding_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    ),
    "bigbird": BigBirdConfig(
        **SIZES | {"attention_type": "original_full", "is_decoder": True},
        add_cross_attention=True,
    ),
    "umt5": UMT5,
}


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("family", DENSE)
def test_kernels_leave_nothing_of_heads_times_both_lengths(family):
    config, length, key_length = DENSE[family], 25, 31
    ids, mask = jnp.ones((2, length), jnp.int32), jnp.ones((2, key_length), jnp.int32)
    inputs = {"input_ids": ids, "attention_mask": ids}
    if family == "umt5":
        inputs = {"input_ids": mask, "attention_mask": mask, "decoder_input_ids": ids}
    elif family != "squeezebert":
        inputs |= {
            "encoder_hidden_states": jnp.ones((2, key_length, 16)),
            "encoder_attention_mask": mask,
        }
    for attention in ("xla", "pallas"):
        module = build(config, Base(), Execution(attention=attention))
        params = jax.eval_shape(module.init, jax.random.key(0), **inputs)
        program = str(jax.make_jaxpr(functools.partial(module.apply, **inputs))(params))
        queries = {length} if family == "squeezebert" else {length, key_length}
        found = [f"2,{length},{size}]" in program for size in queries]
        assert all(found) if attention == "xla" else not any(found)


@pytest.mark.usefixtures("small_steps")
def test_kernels_change_no_number_of_umt5():
    ids = tokens(25, 6)
    real = ids > 0
    inputs = {"input_ids": ids, "attention_mask": real.astype(jnp.int32)}
    inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": real.astype(jnp.int32)}
    plain = build(UMT5, ConditionalGeneration(), Execution())
    params = jax.jit(plain.init)(jax.random.key(0), **inputs)
    found = []
    for attention in ("xla", "pallas"):
        module = build(UMT5, ConditionalGeneration(), Execution(attention=attention))

        def loss(params, module=module):
            logits = module.apply(params, **inputs).logits
            return jnp.where(real[..., None], logits, 0).std(), logits

        found.append(jax.jit(jax.grad(loss, has_aux=True))(params))
    (xla_grads, xla), (grads, logits) = found
    np.testing.assert_allclose(logits[real], xla[real], rtol=0, atol=1e-5 * float(abs(xla).max()))
    highest = max(float(abs(x).max()) for x in jax.tree.leaves(xla_grads))
    for x, y in zip(jax.tree.leaves(grads), jax.tree.leaves(xla_grads), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-5 * highest)


LOW = Execution("bfloat16", attention="cudnn")


@pytest.mark.parametrize(
    "config, message",
    [
        (UMT5Config(), "does not compute biases by distance, which the UMT5Config describes; or"),
        (
            BigBirdConfig(),
            "block-sparse attention, got BigBirdConfig.attention_type='block_sparse'",
        ),
        (
            XGLMConfig(),
            r"set XGLMConfig.attention_dropout to 0 \(got 0.1\); or set Execution.atten",
        ),
        (SqueezeBertConfig(), "set SqueezeBertConfig.attention_probs_dropout_prob to 0"),
        (
            XGLMConfig(attention_dropout=0.0, d_model=36, attention_heads=3),
            "heads whose width is no multiple of 8 up to 128, got 12",
        ),
    ],
    ids=["umt5", "blocks", "xglm", "squeezebert", "width"],
)
def test_what_cudnn_does_not_compute_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build(config, Base(), LOW)


def test_cudnn_is_refused_what_it_cannot_run_on():
    message = r"Execution.attention='cudnn' needs 16-bit numbers.*set Execution.dtype = 'bfloat16'"
    with pytest.raises(ValueError, match=message):
        Execution(attention="cudnn")
    with pytest.raises(
        ValueError, match="needs NVIDIA GPUs, got devices of the platform 'cpu'; set"
    ):
        LOW.check_devices(jax.devices())
    LOW.check_devices([SimpleNamespace(platform="gpu")])


@pytest.mark.parametrize("family", [BigBirdConfig, SqueezeBertConfig])
@pytest.mark.parametrize("block_size", [48, 8])
def test_blocks_that_no_kernel_takes_are_refused(family, block_size):
    config = family(attention_type="block_sparse", block_size=block_size)
    pallas = Execution(attention="pallas")
    message = (
        f"needs {family.__name__}.block_size to be a power of two from 16 on, got {block_size}"
    )
    with pytest.raises(ValueError, match=f'Execution.attention="pallas" {message}; set it, or'):
        build(config, Base(), pallas)
    build(config, Base(), Execution())
    build(dataclasses.replace(config, attention_type="original_full"), Base(), pallas)


def test_kernels_of_float16_are_refused_on_tpus():
    half, tpu = Execution("float16", attention="pallas"), SimpleNamespace(platform="tpu")
    with pytest.raises(ValueError, match="no kernels of Execution.dtype='float16' for TPUs; set"):
        half.check_devices([tpu])
    half.check_devices([SimpleNamespace(platform="gpu")])
    Execution("bfloat16", attention="pallas").check_devices([tpu])


def test_a_trained_model_is_used_where_its_kernels_do_not_run():
    assert LOW.on("cpu") == dataclasses.replace(LOW, attention="xla")
    pallas = Execution(attention="pallas")
    assert pallas.on("cpu") == Execution()
    assert pallas.on("tpu") == pallas.on("gpu") == pallas
    assert LOW.on("gpu") == LOW


@pytest.mark.parametrize("lengths", [(7, 7), (5, 8), (6, 9)])
def test_cudnn_is_given_even_lengths(lengths, monkeypatch):
    attend = jax.nn.dot_product_attention

    def on_xla(q, k, v, *, implementation, **options):
        assert implementation == "cudnn" and q.shape[1] % 2 == k.shape[1] % 2 == 0
        return attend(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_xla)
    q, k = (jax.random.normal(jax.random.key(n), (2, n, 2, 8)) for n in lengths)
    valid = jnp.arange(lengths[1])[None] < jnp.array([[lengths[1]], [3]])
    mask = Mask(lengths[0] == lengths[1], key_valid_BS=valid)
    found = cudnn_attention(q, k, k, mask=mask).context_BTNH
    expected = dense_attention(q, k, k, mask=mask).context_BTNH
    np.testing.assert_allclose(found, expected, atol=1e-5)


def attend_to_documents(x, segments, core=cudnn_attention):
    mask = Mask(True, None, None, segments, segments)

    def loss(x):
        return (
            core(x, x, x, mask=mask, head_mask_N=jnp.ones(2)).context_BTNH.astype(jnp.float32).std()
        )

    return jax.grad(loss)(x)


def test_cudnn_leaves_what_it_does_not_compute_to_the_reference():
    x, start = jnp.ones((1, 4, 2, 8), jnp.bfloat16), Mask(True, query_start=jnp.int32(0))
    for options in ({"mask": start}, {"mask": Mask(), "return_probabilities": True}):
        found, expected = (core(x, x, x, **options) for core in (cudnn_attention, dense_attention))
        np.testing.assert_array_equal(found.context_BTNH, expected.context_BTNH)
    with pytest.raises(ValueError, match='set Execution.attention to "pallas" or "xla"'):
        cudnn_attention(x, x, x, mask=Mask(), dropout_rate=0.1, key=jax.random.key(0))


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="needs JAX's CUDA plugin: pip install 'xformer-jax[cuda]'",
)
def test_cudnn_compiles_for_gpus():
    place = SingleDeviceSharding(Topology.parse("h100:1x1").devices()[0])
    x = jax.ShapeDtypeStruct((2, 256, 2, 64), jnp.bfloat16, sharding=place)
    segments = jax.ShapeDtypeStruct((2, 256), jnp.int32, sharding=place)
    run = jax.jit(attend_to_documents).trace(x, segments)
    assert matrix_flops(run.jaxpr) == (2 + 5) * 2 * 2 * 2 * 256 * 256 * 64
    assert "fmha" in run.lower().compile().as_text()


@pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="needs a GPU, and JAX_PLATFORMS=cuda,cpu"
)
def test_cudnn_is_the_reference_on_a_gpu():
    x = jax.random.normal(jax.random.key(0), (2, 256, 2, 64), jnp.bfloat16) / 4
    segments = tokens(256, 0) // 17 + 1
    found = jax.jit(attend_to_documents)(x, segments)
    expected = attend_to_documents(x.astype(jnp.float32), segments, dense_attention)
    np.testing.assert_allclose(
        found.astype(jnp.float32), expected, rtol=0, atol=0.02 * float(abs(expected).max())
    )


def test_other_cores_are_refused():
    message = r"Execution\.attention must be one of \('xla', 'pallas', 'cudnn'\), got 'splash'"
    with pytest.raises(ValueError, match=message):
        Execution(attention="splash")
