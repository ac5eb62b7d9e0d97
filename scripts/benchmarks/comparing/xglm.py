"""XGLM-564M beside PyTorch's and the published Flax one."""

from typing import Any

import numpy as np

from comparing import decoding, programs, training
from comparing.case import OURS, Case, Goal, Program, Setting, Side

_SMALL = {"vocab_size": 512, "d_model": 64, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4}
_CLASS = "XGLMForCausalLM"
_LENGTH = 128
_LOSSES_APART = 0.01  # in bfloat16 and in float32


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
    batch = programs.packed_rows(ids_of(setting))
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


_WIDE = {"d_model": 2048, "ffn_dim": 8192, "num_layers": 24, "attention_heads": 16}  # 1.7B
_WIDE_ROWS, _WIDE_LENGTH = 4, 2048


def wide(setting: Setting) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """The config of XGLM-1.7B, new weights of it, and packed rows."""
    import xformer

    config = config_of(setting, **setting.size(_WIDE, {}))
    length = setting.size(_WIDE_LENGTH, 64)
    ids = programs.token_ids(_WIDE_ROWS, length, config.vocab_size)
    return config, xformer.FlaxXGLMForCausalLM(config).params, programs.packed_rows(ids)


def wide_train(setting: Setting) -> Program:
    """Training steps of XGLM-1.7B by xformer in bfloat16, with weights in float32."""
    import xformer
    from xformer.data.pipeline import PreparedData
    from xformer.layers.execution import Execution
    from xformer.objectives import NextToken

    config, params, batch = wide(setting)
    program = training.ours(
        params,
        batch,
        model=config,
        head=xformer.CausalLM(),
        objective=NextToken(),
        train_data=PreparedData("not read"),
        execution=Execution(dtype="bfloat16", attention="cudnn").on(setting.platform),
    )
    program.figures["flops"] = useful_flops(config, *batch["input_ids"].shape)
    return program


def wide_loss(setting: Setting) -> Program:
    """The loss before the first of those steps, in float32."""
    import xformer
    from xformer.objectives import NextToken
    from xformer.training.steps import eval_step

    config, params, batch = wide(setting)
    head = xformer.CausalLM()
    module = xformer.build(config, head)

    def loss(params: Any, batch: Any) -> Any:
        sums = eval_step(params, batch, module=module, objective=NextToken(), head=head).sums
        return sums.loss / sums.tokens

    return programs.jax_program(loss, params, batch, outputs=lambda out: {"loss": out})


def useful_flops(config: Any, rows: int, length: int) -> float:
    """Operations of a step's matrix products that no way of computing it can leave out.

    Forward and twice as many backward: products with weights and the table, and of queries with the
    keys that they may read. Nothing that is computed again counts.

    Args:
        config: The architecture.
        rows: Rows of a batch.
        length: Tokens of a row.

    Returns:
        The number.
    """
    width, layers = config.d_model, config.num_layers
    weights = layers * (4 * width**2 + 2 * width * config.ffn_dim) + width * config.vocab_size
    read = layers * 2 * width * (length + 1) / 2  # of each token, by scores and by contexts
    return 3 * 2 * rows * length * (weights + read)


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
        {OURS: Side(train), "Flax": Side(flax_train)},  # a third side takes 5 GB more
        (Goal("Flax", 1.1, 1.3),),
        tolerance=1e-3,
        huge_pages=True,
        note="Next token, AdamW, gradients clipped at 1, no dropout.",
    ),
    Case(
        "xglm-1.7b-train",
        f"XGLM-1.7B train step {_WIDE_ROWS}x{_WIDE_LENGTH:,}, bfloat16",
        {OURS: Side(wide_train), "float32": Side(wide_loss, timed=False)},
        (Goal(OURS, 0.45, 0.6, measure="of_limit"),),
        tolerance=_LOSSES_APART,
        dtype="bfloat16",
        platform="gpu",
        note="Weights and moments in float32, cuDNN's attention; the limit is the measured rate of "
        "products of bfloat16, for the operations that no step can leave out.",
    ),
    *decoding.cases(
        "xglm",
        "XGLM-564M",
        _CLASS,
        config_of,
        {1: Goal("PyTorch", 1.8, of_limit=0.8), 8: Goal("PyTorch", 2.0, of_limit=0.8)},
    ),
]
