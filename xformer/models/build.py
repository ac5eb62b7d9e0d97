"""From descriptions to a module: the one table of families and heads."""

import logging
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from xformer.layers.execution import Execution
from xformer.layers.heads import Base, ConditionalGeneration, Head, MultipleChoice
from xformer.models import bigbird_heads, squeezebert, umt5_heads, xglm
from xformer.models.bigbird_config import BigBirdConfig
from xformer.models.block_attention import check_kernels
from xformer.models.config import ModelConfig, labelled
from xformer.models.encoder_heads import EncoderWithHead
from xformer.models.squeezebert_config import SqueezeBertConfig
from xformer.models.umt5_config import UMT5Config

_logger = logging.getLogger(__name__)

Module = nn.Module
"""A model: pure `init` and `apply`."""

_MODULES: dict[type[ModelConfig], dict[type, type[Module]]] = {
    BigBirdConfig: bigbird_heads.MODULES,
    SqueezeBertConfig: squeezebert.MODULES,
    UMT5Config: umt5_heads.MODULES,
    xglm.XGLMConfig: xglm.MODULES,
}


def config_class(model_type: object) -> type[ModelConfig]:
    """The config class of a family.

    Args:
        model_type: The family's published name, as in config.json.

    Returns:
        The class.

    Raises:
        ValueError: if there is no such family.
    """
    for cls in _MODULES:
        if cls.model_type == model_type:
            return cls
    known = sorted(cls.model_type for cls in _MODULES)
    raise ValueError(f"model_type must be one of {known}, got {model_type!r:.80}")


def supported_heads(config: ModelConfig) -> tuple[type, ...]:
    """The head descriptions that the config's family answers to."""
    return tuple(_MODULES[type(config)])


def build(config: ModelConfig, head: Head, execution: Execution | None = None) -> Module:
    """The Linen module of an architecture with a head.

    Args:
        config: A family's config; its class selects the family.
        head: What the hidden states are turned into.
        execution: Dtype, layer mode and rematerialisation; the defaults if None.

    Returns:
        A module whose `init` and `apply` are pure functions; its config has the head's labels.

    Raises:
        TypeError: if a field of the config has the wrong type.
        ValueError: if a field is out of range, if the family has no such head, if that head can
            make nothing of a decoder, or if there are no kernels for what is asked for.
    """
    modules = _MODULES.get(type(config))
    if modules is None or type(head) not in modules:
        legal = [h.__name__ for h in modules] if modules else [c.__name__ for c in _MODULES]
        raise ValueError(
            f"{type(config).__name__} has no head {type(head).__name__}; "
            f"set Run.head or Run.model to one of {legal}"
        )
    config.validate()
    check_direction(modules[type(head)], config)
    execution = execution or Execution()
    check_kernels(config, execution)
    return modules[type(head)](labelled(config, head), execution)


def check_direction(module_class: type[Module], config: ModelConfig) -> None:
    """Refuses a decoder under a head that reads the first state, which knows the first token alone.

    Under a head that predicts hidden tokens a decoder is unusual, which a warning says: it sees
    only what is before them.

    Args:
        module_class: The module of a head.
        config: The architecture.

    Raises:
        ValueError: naming the field to change.
    """
    if not config.is_decoder or not issubclass(module_class, EncoderWithHead):
        return
    name, key = module_class.__name__, f"{type(config).__name__}.is_decoder"
    if module_class.pooled:
        raise ValueError(
            f"{name} reads the state of the first token, which has read no other one with "
            f"{key}=True; set {key} = False"
        )
    if module_class.scores_vocabulary:
        _logger.warning("%s predicts tokens from those before them alone with %s=True", name, key)


def dummy_inputs(module: Module, head: Head, shape: tuple[int, int] = (1, 2)) -> dict[str, Any]:
    """Arguments that a module with a head can be initialised with.

    Args:
        module: The module.
        head: The head that it was built with.
        shape: (batch, length); no parameter depends on it.

    Returns:
        Arguments of the module's `init`; multiple choice has an axis of choices in the middle.
    """
    batch, length = shape
    full = (batch, 1, length) if isinstance(head, MultipleChoice) else (batch, length)
    inputs = {"input_ids": jnp.zeros(full, jnp.int32)}
    if isinstance(head, Base | ConditionalGeneration) and module.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = jnp.zeros(full, jnp.int32)
    return inputs
