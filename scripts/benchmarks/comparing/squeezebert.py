"""SqueezeBERT beside PyTorch's, beside BERT, and beside itself without groups."""

import functools
from typing import Any

import numpy as np

from comparing import programs, training
from comparing.case import OURS, Case, Goal, Program, Setting, Side

_SMALL = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
_SMALL |= {"num_attention_heads": 4}
_LENGTH = 128
_GROUPED = ("q_groups", "k_groups", "v_groups", "intermediate_groups", "output_groups")
_CLASSIFIER = "SqueezeBertForSequenceClassification"


def config_of(setting: Setting, groups: int = 4) -> Any:
    """The architecture; 1 group makes every projection dense."""
    import xformer

    fields = setting.size({}, _SMALL | {"embedding_size": _SMALL["hidden_size"]})
    fields |= dict.fromkeys(_GROUPED, groups)
    return programs.without_dropout(xformer.SqueezeBertConfig(**fields))


def ids_of(rows: int, setting: Setting) -> np.ndarray:
    """The rows."""
    return programs.token_ids(rows, _LENGTH, setting.size(30522, _SMALL["vocab_size"]))


def forward(setting: Setting, *, rows: int) -> Program:
    """Hidden states by xformer."""
    import xformer

    config = config_of(setting)
    model = programs.our_model("FlaxSqueezeBertModel", config, xformer.Base(), setting)
    return forward_of(*model, ids_of(rows, setting))


def dense_forward(setting: Setting, *, rows: int) -> Program:
    """Hidden states by xformer, of projections without groups."""
    import xformer

    config = config_of(setting, groups=1)
    params = xformer.FlaxSqueezeBertModel(config).params
    return forward_of(xformer.build(config, xformer.Base()), params, ids_of(rows, setting))


def forward_of(module: Any, params: Any, ids: np.ndarray) -> Program:
    """Hidden states by a module of xformer."""
    return programs.jax_program(
        lambda params, ids: module.apply({"params": params}, ids),
        params,
        ids,
        outputs=lambda out: {"hidden states": out.last_hidden_state, "pooled": out.pooler_output},
    )


def torch_forward(setting: Setting, *, rows: int) -> Program:
    """Hidden states by PyTorch."""
    import torch

    model = programs.torch_model("SqueezeBertModel", setting)
    ids = torch.tensor(ids_of(rows, setting)).long().to(model.device)
    return programs.torch_program(
        lambda: model(ids), lambda out: {"hidden states": out[0], "pooled": out[1]}
    )


def bert_forward(setting: Setting, *, rows: int) -> Program:
    """Hidden states of a BERT of the same size by PyTorch."""
    import torch
    import transformers

    device = programs.torch_device(setting)
    model = transformers.BertModel(transformers.BertConfig(**setting.size({}, _SMALL)))
    model = model.eval().to(device)
    ids = torch.tensor(ids_of(rows, setting)).long().to(device)
    return programs.torch_program(lambda: model(ids), lambda out: {"hidden states": out[0]})


def labels_of(rows: int) -> np.ndarray:
    """One of two labels for each row."""
    return np.arange(rows, dtype=np.int32) % 2


def train(setting: Setting, *, rows: int) -> Program:
    """Training steps of xformer."""
    import xformer
    from xformer.data.tasks.classification import SequenceClassificationData
    from xformer.objectives import Classification

    config, head = config_of(setting), xformer.SequenceClassification()
    _, params = programs.our_model(f"Flax{_CLASSIFIER}", config, head, setting)
    ids = ids_of(rows, setting)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": labels_of(rows)}
    return training.ours(
        params,
        batch,
        model=config,
        head=head,
        objective=Classification(),
        train_data=SequenceClassificationData(("not read",), "not read", _LENGTH),
    )


def torch_train(setting: Setting, *, rows: int) -> Program:
    """Training steps of PyTorch."""
    import torch

    model = programs.torch_model(_CLASSIFIER, setting)
    ids = torch.tensor(ids_of(rows, setting)).long().to(model.device)
    labels = torch.tensor(labels_of(rows)).long().to(model.device)
    mask = torch.ones_like(ids)
    return training.torch(lambda: model(ids, attention_mask=mask, labels=labels).loss, model)


def forward_case(rows: int) -> Case:
    """A forward pass of some rows."""
    return Case(
        f"squeezebert-forward-{rows}x{_LENGTH}",
        f"SqueezeBERT-base forward {rows}x{_LENGTH}",
        {
            OURS: Side(functools.partial(forward, rows=rows)),
            "PyTorch": Side(functools.partial(torch_forward, rows=rows)),
            "PyTorch BERT": Side(functools.partial(bert_forward, rows=rows), another=True),
            "xformer, dense": Side(functools.partial(dense_forward, rows=rows), another=True),
        },
        (Goal("PyTorch", 1.35, 1.6), Goal("PyTorch BERT", 2.9, 3.3), Goal("xformer, dense")),
        note="BERT-base, and SqueezeBERT with one group, are other models of the same size.",
    )


CASES = [
    forward_case(1),
    forward_case(8),
    Case(
        f"squeezebert-train-8x{_LENGTH}",
        f"SqueezeBERT-base train step 8x{_LENGTH}",
        {
            OURS: Side(functools.partial(train, rows=8)),
            "PyTorch": Side(functools.partial(torch_train, rows=8)),
        },
        (Goal("PyTorch", 1.4, 1.8),),
        tolerance=1e-3,
        huge_pages=True,
        note="Two labels of texts, AdamW, gradients clipped at 1, no dropout.",
    ),
]
