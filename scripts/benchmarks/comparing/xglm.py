"""XGLM-564M beside PyTorch's and the published Flax one."""

from typing import Any

import numpy as np

from comparing import decoding, programs, training
from comparing.case import OURS, Case, Goal, Program, Setting, Side

_SMALL = {"vocab_size": 512, "d_model": 64, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4}
_CLASS = "XGLMForCausalLM"
_LENGTH = 128


def config_of(setting: Setting, **fields: Any) -> Any:
    """The architecture."""
    import xformer

    return programs.without_dropout(xformer.XGLMConfig(**fields, **setting.size({}, _SMALL)))


def ids_of(setting: Setting) -> np.ndarray:
    """One row."""
    return programs.token_ids(1, _LENGTH, setting.size(256008, _SMALL["vocab_size"]))


def forward(setting: Setting) -> Program:
    """Scores by xformer."""
    import xformer

    config = config_of(setting)
    module, params = programs.our_model(f"Flax{_CLASS}", config, xformer.CausalLM(), setting)
    return programs.jax_program(
        lambda params, ids: module.apply({"params": params}, ids).logits,
        params,
        ids_of(setting),
        outputs=lambda logits: {"logits": logits},
    )


def flax_forward(setting: Setting) -> Program:
    """Scores by the published Flax model."""
    model, params = programs.flax_model(f"Flax{_CLASS}", setting)
    return programs.jax_program(
        lambda params, ids: model(ids, params=params).logits,
        params,
        ids_of(setting),
        outputs=lambda logits: {"logits": logits},
    )


def torch_forward(setting: Setting) -> Program:
    """Scores by PyTorch."""
    import torch

    model = programs.torch_model(_CLASS, setting)
    ids = torch.tensor(ids_of(setting)).long().to(model.device)
    return programs.torch_program(
        lambda: model(ids, use_cache=False).logits, lambda logits: {"logits": logits}
    )


def short(setting: Setting) -> dict[str, int]:
    """The fields of a model with fewer layers."""
    return setting.size({"num_layers": 4}, {})


def train(setting: Setting) -> Program:
    """Training steps of xformer."""
    import xformer
    from xformer.data.pipeline import PreparedData
    from xformer.objectives import NextToken

    config, head = config_of(setting, **short(setting)), xformer.CausalLM()
    _, params = programs.our_model(f"Flax{_CLASS}", config, head, setting)
    ids = ids_of(setting)
    batch = {
        "input_ids": ids,
        "segment_ids": np.ones_like(ids),
        "position_ids": np.arange(_LENGTH, dtype=np.int32)[None],
    }
    return training.ours(
        params,
        batch,
        model=config,
        head=head,
        objective=NextToken(),
        train_data=PreparedData("not read"),
    )


def flax_train(setting: Setting) -> Program:
    """Training steps of the published Flax model, as its examples score it."""
    import jax.numpy as jnp
    import optax

    model, params = programs.flax_model(f"Flax{_CLASS}", setting)
    ids = jnp.asarray(ids_of(setting))

    def loss(params: Any) -> Any:
        logits = model(ids, params=params, train=False).logits[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()

    return training.flax(loss, params)


CASES = [
    Case(
        f"xglm-forward-1x{_LENGTH}",
        f"XGLM-564M forward 1x{_LENGTH}",
        {OURS: Side(forward), "PyTorch": Side(torch_forward), "Flax": Side(flax_forward)},
        (Goal("PyTorch", 1.3, 1.4), Goal("Flax")),
    ),
    Case(
        f"xglm-train-1x{_LENGTH}",
        f"XGLM-564M train step, 4 layers, 1x{_LENGTH}",
        {OURS: Side(train, trains=True), "Flax": Side(flax_train)},  # a third side takes 5 GB more
        (Goal("Flax", 1.1, 1.3),),
        tolerance=1e-3,
        note="Next token, AdamW, gradients clipped at 1, no dropout; "
        "memory of xformer in huge pages, as in `xformer train`.",
    ),
    *decoding.cases(
        "xglm",
        "XGLM-564M",
        _CLASS,
        config_of,
        {1: Goal("PyTorch", 1.8, of_limit=0.8), 8: Goal("PyTorch", 2.0, of_limit=0.8)},
    ),
]
