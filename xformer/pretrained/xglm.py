"""XGLM's drop-in classes and the names of its weights."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import PRNGKeyArray

from xformer.models.xglm import XGLMConfig, XGLMForCausalLM, XGLMModel
from xformer.pretrained.generating import FlaxGenerationMixin
from xformer.pretrained.model import FlaxPreTrainedModel, ParamPath, Params
from xformer.pretrained.names import WeightTable

WEIGHTS = WeightTable(
    prefix="model",
    # Sinusoids that early checkpoints stored, and the output projection of a tied model.
    ignored=(r"(model\.)?embed_positions\.weights", r"lm_head\.weight"),
)


class FlaxXGLMPreTrainedModel(FlaxPreTrainedModel):
    """What XGLM's drop-in classes share: the config, the weight names and the documented call."""

    config_class = XGLMConfig
    base_model_prefix = "model"
    weights = WEIGHTS

    def cache_paths(self) -> tuple[ParamPath, ...]:
        """The self-attention module of each layer in the parameter tree."""
        prefix = () if self.module_class is XGLMModel else (self.base_model_prefix,)
        count = self.config.num_hidden_layers
        return tuple((*prefix, "layers", str(i), "self_attn") for i in range(count))

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        params: Params | None = None,
        past_key_values: Mapping[str, Any] | None = None,
        dropout_rng: PRNGKeyArray | None = None,
        *,
        head_mask: Any = None,
        cross_attn_head_mask: Any = None,
        inputs_embeds: Any = None,
    ) -> Any:
        """Computes the model; compiled once for each shape, also differentiable inside `jit`.

        Arrays may be NumPy's, JAX's or nested lists.

        Args:
            input_ids: (batch, length) token ids, in [0, config.vocab_size); or give
                `inputs_embeds`.
            attention_mask: (batch, length) 1 for tokens to read, 0 for padding; with
                `past_key_values` (batch, max_length of the cache).
            position_ids: (batch, length) position of each token; counts from 0, or on from the
                cache, if None. Left-padded prompts need it.
            encoder_hidden_states: (batch, encoder length, d_model) states for cross-attention
                (`config.add_cross_attention`).
            encoder_attention_mask: (batch, encoder length) 1 for states to read.
            output_attentions: Whether to return attention probabilities.
            output_hidden_states: Whether to return the states of every layer.
            return_dict: Whether to return a struct; a tuple of its fields that are not None if not.
            train: Whether dropout and LayerDrop act.
            params: Parameters; the model's own if None.
            past_key_values: The cache, from `init_cache` or an earlier call.
            dropout_rng: Random key, needed with `train`.
            head_mask: (layers, heads) factor on the attention probabilities.
            cross_attn_head_mask: The same for cross-attention.
            inputs_embeds: (batch, length, d_model) token vectors, already scaled.

        Returns:
            `FlaxBaseModelOutputWithPastAndCrossAttentions`, or for a language model
            `FlaxCausalLMOutputWithCrossAttentions`. `past_key_values` is the extended cache, if
            one was given.

        Raises:
            ValueError: if an argument has the wrong shape, arguments contradict each other, or an
                id is outside of the vocabulary (checked where the ids are not on a device yet).
        """
        return self._call(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "position_ids": position_ids,
                "encoder_hidden_states": encoder_hidden_states,
                "encoder_attention_mask": encoder_attention_mask,
                "head_mask": head_mask,
                "cross_attn_head_mask": cross_attn_head_mask,
                "inputs_embeds": inputs_embeds,
            },
            params=params,
            past_key_values=past_key_values,
            dropout_rng=dropout_rng,
            train=train,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )


class FlaxXGLMModel(FlaxXGLMPreTrainedModel):
    """XGLM without a head: token ids to hidden states."""

    module_class = XGLMModel


class FlaxXGLMForCausalLM(FlaxXGLMPreTrainedModel, FlaxGenerationMixin):
    """XGLM with scores of the next token."""

    module_class = XGLMForCausalLM


AUTO = {"Model": FlaxXGLMModel, "ForCausalLM": FlaxXGLMForCausalLM}
"""The class of each task, for the auto classes."""
