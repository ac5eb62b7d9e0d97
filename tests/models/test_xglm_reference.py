"""XGLM beside the PyTorch reference at random weights, where no case was recorded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xformer.layers.execution import Execution
from xformer.layers.heads import CausalLM
from xformer.models import build
from xformer.models.xglm import XGLMConfig
from xformer.pretrained.folder import read_params

pytestmark = pytest.mark.reference

B, T, ENCODER = 2, 6, 5
SIZES = {
    "vocab_size": 29,
    "max_position_embeddings": 16,
    "d_model": 12,
    "ffn_dim": 20,
    "num_layers": 2,
    "attention_heads": 3,
    "init_std": 0.4,
    "attn_implementation": "eager",
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Makes the reference and our module with the same weights, all of them random."""
    import torch
    import transformers

    def make(**fields):
        torch.manual_seed(0)
        theirs = transformers.XGLMForCausalLM(transformers.XGLMConfig(**SIZES | fields)).eval()
        for name, weight in theirs.named_parameters():
            if "norm" in name or "bias" in name:
                torch.nn.init.normal_(weight, 1.0 if name.endswith("norm.weight") else 0.0, 0.4)
        folder = tmp_path_factory.mktemp("reference")
        theirs.save_pretrained(folder)
        config = XGLMConfig.from_pretrained(folder)
        params = {"params": read_params(folder, config, CausalLM())}
        ours = jax.jit(
            build(config, CausalLM(), Execution()).apply,
            static_argnames=("output_attentions", "output_hidden_states"),
        )
        return theirs, lambda *args, **inputs: ours(params, *args, **inputs)

    return make


def assert_same(theirs, ours, ids, inputs):
    """Compares every output, relative to the scale of the output."""
    import torch

    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(ids),
            **{name: torch.tensor(value) for name, value in inputs.items()},
            output_attentions=True,
            output_hidden_states=True,
            use_cache=False,
        )
    actual = ours(
        jnp.asarray(ids, jnp.int32),
        **jax.tree.map(jnp.asarray, inputs),
        output_attentions=True,
        output_hidden_states=True,
    )
    assert set(expected) == set(actual)
    for name in expected:
        wanted = expected[name] if isinstance(expected[name], tuple) else (expected[name],)
        got = actual[name] if isinstance(actual[name], tuple) else (actual[name],)
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            scale = float(other.abs().max())
            np.testing.assert_allclose(one, other.numpy(), atol=1e-5 * scale, err_msg=name)


RNG = np.random.default_rng(0)
HEAD_MASK, CROSS_HEAD_MASK = RNG.uniform(0, 2, (2, 2, 3)).astype(np.float32)
STATES = RNG.normal(size=(B, ENCODER, 12)).astype(np.float32)
VALID = np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]])
CASES = {
    "head mask": ({"activation_function": "gelu_new"}, {"head_mask": HEAD_MASK}),
    "cross-attention": (
        {"add_cross_attention": True, "activation_function": "relu"},
        {"encoder_hidden_states": STATES, "encoder_attention_mask": VALID},
    ),
    "cross-attention with head masks": (
        {"add_cross_attention": True},
        {
            "encoder_hidden_states": STATES,
            "head_mask": HEAD_MASK,
            "cross_attn_head_mask": CROSS_HEAD_MASK,
        },
    ),
    "longer than max_position_embeddings": (
        {"scale_embedding": False, "activation_function": "silu", "max_position_embeddings": 4},
        {"attention_mask": np.array([[1, 1, 1, 1, 1, 0], [1] * T])},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_output_is_that_of_the_reference(pair, case):
    fields, inputs = CASES[case]
    theirs, ours = pair(**fields)
    assert_same(theirs, ours, RNG.integers(3, 29, (B, T)), inputs)
