"""BigBird-base beside the published models of Flax and PyTorch."""

import functools
from typing import Any

import numpy as np

from comparing import programs, training
from comparing.case import OURS, Case, Goal, Program, Setting, Side

_SMALL = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
_SMALL |= {"num_attention_heads": 4, "block_size": 16}
_VOCABULARY = 50358
_SHARE = 0.15  # of tokens are masked
_MASKED_LM = "BigBirdForMaskedLM"


def config_of(setting: Setting, **fields: Any) -> Any:
    """The architecture."""
    import xformer

    config = xformer.BigBirdConfig(**setting.size({}, _SMALL), **fields)
    return programs.without_dropout(config)


def ids_of(length: int, setting: Setting) -> np.ndarray:
    """One row."""
    return programs.token_ids(1, length, setting.size(_VOCABULARY, _SMALL["vocab_size"]))


def masked_of(length: int, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Places that are masked, and what stood there."""
    places = np.arange(0, length, round(1 / _SHARE), dtype=np.int32)[None]
    return places, programs.token_ids(
        1, places.size, setting.size(_VOCABULARY, _SMALL["vocab_size"]), seed=1
    )


def forward(setting: Setting, *, length: int) -> Program:
    """Hidden states by xformer."""
    import xformer

    model = programs.our_model("FlaxBigBirdModel", config_of(setting), xformer.Base(), setting)
    module, params = model
    return programs.jax_program(
        lambda params, ids: module.apply({"params": params}, ids),
        params,
        ids_of(length, setting),
        outputs=lambda out: {"hidden states": out.last_hidden_state},
    )


def flax_forward(setting: Setting, *, length: int) -> Program:
    """Hidden states by the published Flax model."""
    model, params = programs.flax_model("FlaxBigBirdModel", setting)
    return programs.jax_program(
        lambda params, ids: model(ids, params=params),
        params,
        ids_of(length, setting),
        outputs=lambda out: {"hidden states": out.last_hidden_state},
    )


def torch_forward(setting: Setting, *, length: int) -> Program:
    """Hidden states by PyTorch."""
    import torch

    model = programs.torch_model("BigBirdModel", setting)
    ids = torch.tensor(ids_of(length, setting)).long().to(model.device)
    return programs.torch_program(lambda: model(ids), lambda out: {"hidden states": out[0]})


def masked_loss(setting: Setting, *, length: int) -> Program:
    """The loss at masked places and its gradient by xformer, which scores no others."""
    import jax

    import xformer
    from xformer.losses import cross_entropy
    from xformer.partitioning import Rules, constraints

    config, head = config_of(setting), xformer.MaskedLM()
    module, params = programs.our_model(f"Flax{_MASKED_LM}", config, head, setting)
    places, labels = masked_of(length, setting)

    def loss(params: Any, ids: Any, places: Any, labels: Any) -> Any:
        with constraints(Rules()):  # as in a training step
            out = module.apply(
                {"params": params}, ids, masked_positions=places, output_logits=False
            )
        return cross_entropy(out.logits, labels).loss / labels.size

    return programs.jax_program(
        jax.value_and_grad(loss),
        params,
        ids_of(length, setting),
        places,
        labels,
        outputs=lambda out: {"loss": out[0], "gradient": programs.global_norm(out[1])},
    )


def flax_masked_loss(setting: Setting, *, length: int) -> Program:
    """The same by the published Flax model, as its examples compute it."""
    import jax
    import jax.numpy as jnp
    import optax

    model, params = programs.flax_model(f"Flax{_MASKED_LM}", setting)
    labels, scored = labels_everywhere(length, setting)

    def loss(params: Any, ids: Any, labels: Any, scored: Any) -> Any:
        logits = model(ids, params=params, train=False).logits
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.where(scored, each, 0.0).sum() / scored.sum()

    return programs.jax_program(
        jax.value_and_grad(loss),
        params,
        ids_of(length, setting),
        labels,
        scored,
        outputs=lambda out: {"loss": out[0], "gradient": programs.global_norm(out[1])},
    )


def torch_masked_loss(setting: Setting, *, length: int) -> Program:
    """The same by PyTorch."""
    import torch

    model = programs.torch_model(_MASKED_LM, setting)
    labels, scored = labels_everywhere(length, setting)
    given = torch.tensor(np.where(scored, labels, -100)).long().to(model.device)
    ids = torch.tensor(ids_of(length, setting)).long().to(model.device)

    return programs.torch_gradient(model, lambda: model(ids, labels=given).loss)


def labels_everywhere(length: int, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Labels of all places, and which of them count."""
    places, labels = masked_of(length, setting)
    everywhere = np.zeros((1, length), np.int32)
    everywhere[0, places[0]] = labels[0]
    scored = np.zeros((1, length), bool)
    scored[0, places[0]] = True
    return everywhere, scored


def compiled_step(setting: Setting, *, length: int) -> Program:
    """The compilation of xformer's training step, with dropout and random blocks."""
    import jax

    import xformer
    from xformer.data.pipeline import PreparedData
    from xformer.layers.execution import Execution
    from xformer.objectives import MaskedTokens

    check = masked_loss(setting, length=length)
    config = xformer.BigBirdConfig(**setting.size({}, _SMALL), random_blocks="fixed")
    head = xformer.MaskedLM()
    places, labels = masked_of(length, setting)
    ids = ids_of(length, setting)
    batch = {
        **programs.packed_rows(ids),
        "masked_positions": places,
        "masked_labels": labels,
    }
    params = xformer.read_params(setting.folder / "weights", config, head)
    state, step = training.started(
        params,
        batch,
        model=config,
        head=head,
        objective=MaskedTokens(),
        train_data=PreparedData("not read"),
        execution=Execution(),
    )
    _, figures = programs.compile_for(step, state, batch, jax.random.key(0))
    return Program(check.run, check.outputs, figures)


def flax_compiled_step(setting: Setting, *, length: int) -> Program:
    """The compilation of a training step of the published Flax model."""
    import jax
    import jax.numpy as jnp
    import optax

    check = flax_masked_loss(setting, length=length)
    model, params = programs.flax_model(f"Flax{_MASKED_LM}", setting)
    labels, scored = labels_everywhere(length, setting)
    ids = ids_of(length, setting)

    def loss(params: Any, key: Any) -> Any:
        keys = jax.random.split(key)
        logits = model(
            ids, params=params, train=True, dropout_rng=keys[0], indices_rng=keys[1]
        ).logits
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.where(scored, each, 0.0).sum() / scored.sum()

    state, step = training.flax_started(loss, params)
    _, figures = programs.compile_for(step, state, jax.random.PRNGKey(0))
    return Program(check.run, check.outputs, figures)


def sides_of(ours: Any, flax: Any, torch: Any, length: int) -> dict[str, Side]:
    """The sides of a case of a whole model."""
    return {
        OURS: Side(functools.partial(ours, length=length)),
        "Flax": Side(functools.partial(flax, length=length)),
        "PyTorch": Side(functools.partial(torch, length=length)),
    }


def forward_case(length: int, at_least: float) -> Case:
    """A forward pass of one row."""
    return Case(
        f"bigbird-forward-1x{length}",
        f"BigBird-base forward 1x{length:,}",
        sides_of(forward, flax_forward, torch_forward, length),
        (Goal("Flax", at_least, of_limit=0.85), Goal("PyTorch", at_least, of_limit=0.85)),
        note='Random blocks as in evaluation by `transformers` ("hf_eval").',
    )


CASES = [
    forward_case(1024, 1.05),
    forward_case(4096, 1.2),
    Case(
        "bigbird-masked-lm-1x1024",
        "BigBird-base masked-LM loss and gradient 1x1,024",
        sides_of(masked_loss, flax_masked_loss, torch_masked_loss, 1024),
        (
            Goal("Flax", 1.4, 1.7),
            Goal("PyTorch", 1.4, 1.7),
            Goal("Flax", 2.0, 3.0, measure="temporary"),
        ),
        tolerance=1e-3,
        huge_pages=True,
        note="15 % of the tokens are masked; xformer scores those alone.",
    ),
    Case(
        "bigbird-compile",
        "BigBird-base train step, 12 layers, 1x1,024, trace and compile",
        {
            OURS: Side(functools.partial(compiled_step, length=1024)),
            "Flax": Side(functools.partial(flax_compiled_step, length=1024)),
        },
        (Goal("Flax", 10.0, 20.0, measure="compile"),),
        tolerance=1e-3,
        timed=False,
        note="With dropout and random blocks; losses without either are compared.",
    ),
]
