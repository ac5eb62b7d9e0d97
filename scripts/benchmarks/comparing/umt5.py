"""UMT5-small beside PyTorch's."""

from typing import Any

import numpy as np

from comparing import decoding, programs
from comparing.case import OURS, Case, Goal, Program, Setting, Side

_SMALL = {
    "vocab_size": 512,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
}
_CLASS = "UMT5ForConditionalGeneration"
_ROWS, _LENGTH, _WRITTEN = 4, 128, 32


def config_of(setting: Setting) -> Any:
    """The architecture."""
    import xformer

    fields = setting.size({}, _SMALL)
    return programs.without_dropout(xformer.UMT5Config(tie_word_embeddings=False, **fields))


def rows_of(setting: Setting) -> dict[str, np.ndarray]:
    """Sources, targets as the decoder reads them, and labels."""
    size = setting.size(250112, _SMALL["vocab_size"])
    labels = programs.token_ids(_ROWS, _WRITTEN, size, seed=1)
    return {
        "input_ids": programs.token_ids(_ROWS, _LENGTH, size),
        "decoder_input_ids": np.pad(labels[:, :-1], ((0, 0), (1, 0))),  # begins with token 0
        "labels": labels,
    }


def ours(setting: Setting) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """The module of xformer, its weights and the rows."""
    import xformer

    head = xformer.ConditionalGeneration()
    return *programs.our_model(f"Flax{_CLASS}", config_of(setting), head, setting), rows_of(setting)


def theirs(setting: Setting) -> tuple[Any, dict[str, Any]]:
    """The model of PyTorch, and the rows."""
    import torch

    model = programs.torch_model(_CLASS, setting)
    rows = {key: torch.tensor(ids).long() for key, ids in rows_of(setting).items()}
    return model, {key: ids.to(model.device) for key, ids in rows.items()}


def forward(setting: Setting) -> Program:
    """Scores by xformer."""
    module, params, rows = ours(setting)
    del rows["labels"]
    return programs.jax_program(
        lambda params, rows: module.apply({"params": params}, **rows).logits,
        params,
        rows,
        outputs=lambda logits: {"logits": logits},
    )


def torch_forward(setting: Setting) -> Program:
    """Scores by PyTorch."""
    model, rows = theirs(setting)
    del rows["labels"]
    return programs.torch_program(
        lambda: model(**rows, use_cache=False).logits, lambda logits: {"logits": logits}
    )


def gradient(setting: Setting) -> Program:
    """The loss and its gradients by xformer."""
    import jax

    from xformer.losses import cross_entropy
    from xformer.partitioning import Rules, constraints

    module, params, rows = ours(setting)
    labels = rows.pop("labels")

    def loss(params: Any, rows: Any, labels: Any) -> Any:
        with constraints(Rules()):  # as in a training step
            scores = module.apply({"params": params}, **rows, output_logits=False).logits
        return cross_entropy(scores, labels).loss / labels.size

    return programs.jax_program(
        jax.value_and_grad(loss),
        params,
        rows,
        labels,
        outputs=lambda out: {"loss": out[0], "gradient": programs.global_norm(out[1])},
    )


def torch_gradient(setting: Setting) -> Program:
    """The loss and its gradients by PyTorch."""
    model, rows = theirs(setting)

    return programs.torch_gradient(model, lambda: model(**rows, use_cache=False).loss)


_SIZES = f"encoder {_ROWS}x{_LENGTH}, decoder {_ROWS}x{_WRITTEN}"

CASES = [
    Case(
        "umt5-forward",
        f"UMT5-small forward, {_SIZES}",
        {OURS: Side(forward), "PyTorch": Side(torch_forward)},
        (Goal("PyTorch", 1.15, 1.3),),
    ),
    Case(
        "umt5-gradient",
        f"UMT5-small loss and gradient, {_SIZES}",
        {OURS: Side(gradient), "PyTorch": Side(torch_gradient)},
        (Goal("PyTorch", 1.25, 1.5),),
        tolerance=1e-3,
        huge_pages=True,
    ),
    *decoding.cases(
        "umt5",
        "UMT5-small",
        _CLASS,
        config_of,
        {1: Goal("PyTorch", 2.0, 2.5), 8: Goal("PyTorch", 1.5, 2.0)},
    ),
]
