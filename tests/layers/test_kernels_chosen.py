"""Kernels are chosen by how a model is computed, and change none of its numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xformer.layers.execution import Execution
from xformer.layers.heads import Base, MaskedLM
from xformer.models.bigbird_config import BigBirdConfig
from xformer.models.build import build
from xformer.models.squeezebert_config import SqueezeBertConfig
from xformer.models.umt5_config import UMT5Config
from xformer.models.xglm import XGLMConfig

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


@pytest.mark.parametrize(
    "config, message",
    [
        (XGLMConfig(), "kernels for block-sparse attention alone, and the XGLMConfig describes"),
        (UMT5Config(), 'and the UMT5Config describes none; set it to "xla"'),
        (BigBirdConfig(attention_type="original_full"), "the BigBirdConfig describes none"),
        (SqueezeBertConfig(), "the SqueezeBertConfig describes none"),
    ],
    ids=["xglm", "umt5", "bigbird", "squeezebert"],
)
def test_what_no_kernel_computes_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build(config, Base(), Execution(attention="pallas"))


def test_other_cores_are_refused():
    message = r"Execution\.attention must be one of \('xla', 'pallas'\), got 'splash'"
    with pytest.raises(ValueError, match=message):
        Execution(attention="splash")
