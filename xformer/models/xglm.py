"""XGLM, a multilingual decoder.

Paper: Lin et al., 2021, "Few-shot Learning with Multilingual Language Models", arXiv:2112.10668.

Differs from the vanilla Transformer decoder in: layer normalisation before each sublayer and after
the last; fixed sinusoidal positions that start at row 2 of their table, with the row of the padding
id cleared; token vectors scaled by sqrt(d_model) and shared with the output projection; cross-
attention only on request.

Parameters, for `XGLMForCausalLM` with looped layers:

    model/embed_tokens/embedding                                     (vocab, embed)
    model/layers/<i>/self_attn/{q,k,v}_proj/{kernel,bias}            (embed, heads)
    model/layers/<i>/self_attn/out_proj/{kernel,bias}                (heads, embed)
    model/layers/<i>/encoder_attn/..., encoder_attn_layer_norm/...   with add_cross_attention
    model/layers/<i>/fc1/{kernel,bias}, fc2/{kernel,bias}            (embed, mlp), (mlp, embed)
    model/layers/<i>/{self_attn_layer_norm,final_layer_norm}/{scale,bias}
    model/layer_norm/{scale,bias}
    lm_head/kernel                                                   with tie_word_embeddings=False
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from xformer.layers import heads
from xformer.layers.attention import MultiHeadAttention, ProjectionNames
from xformer.layers.cache import Cache
from xformer.layers.checks import check_encoder, check_shape, check_tokens
from xformer.layers.dense_cores import dense_core
from xformer.layers.dropout import dropout, split_key
from xformer.layers.embedding import TokenEmbedding, normal_but_padding
from xformer.layers.execution import Execution
from xformer.layers.feedforward import ACTIVATIONS, feed_forward
from xformer.layers.layer import (
    Context,
    LayerInputs,
    LayerOutputs,
    attentions,
    cross_attentions,
    layer_inputs,
)
from xformer.layers.mask import Mask
from xformer.layers.norm import layer_norm
from xformer.layers.position import lookup_positions, sinusoidal_table
from xformer.layers.stack import Stack
from xformer.layers.vocabulary import VocabularyProjection
from xformer.models.config import ModelConfig, model_config
from xformer.models.field_checks import (
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_TABLE,
    MAX_VOCAB,
    MAX_WIDTH,
)
from xformer.outputs import (
    FlaxBaseModelOutputWithPastAndCrossAttentions,
    FlaxCausalLMOutputWithCrossAttentions,
)

POSITION_OFFSET = 2  # fairseq counts positions from padding_idx + 1
LAYER_NORM_EPSILON = 1e-5  # not a config field: the published weights use PyTorch's default
_NAMES = ProjectionNames("q_proj", "k_proj", "v_proj", "out_proj")


@model_config
class XGLMConfig(ModelConfig):
    """The architecture of an XGLM model; the defaults are those of XGLM-564M.

    Attributes:
        vocab_size: Number of tokens.
        max_position_embeddings: Longest sequence the model is meant for. Longer ones work, as the
            positions are computed, but were never trained.
        d_model: Model width.
        ffn_dim: Width of the feed-forward layers.
        num_layers: Number of layers.
        attention_heads: Number of heads; must divide `d_model`.
        activation_function: Activation of the feed-forward layers, a key of `ACTIVATIONS`.
        dropout: Dropout on the embeddings and on every sublayer's result.
        attention_dropout: Dropout on the attention probabilities.
        activation_dropout: Dropout inside the feed-forward layers.
        layerdrop: Probability of skipping a layer in training.
        init_std: Standard deviation of the normal initialisation.
        scale_embedding: Whether token vectors are multiplied by sqrt(d_model).
        use_cache: Whether generation keeps keys and values instead of recomputing them.
        decoder_start_token_id: Token that a prompt starts with, for those who build prompts;
            nothing here reads it.
        pad_token_id: Token of padding; its embedding starts at zero, and the position row of the
            same number is cleared, as published.
        bos_token_id: Token that begins a sequence, for those who build sequences; nothing here
            reads it.
        eos_token_id: Token that ends a sequence.
        add_cross_attention: Whether layers attend to `encoder_hidden_states`.
        tie_word_embeddings: Whether the output projection is the token table.
    """

    vocab_size: int = 256008
    max_position_embeddings: int = 2048
    d_model: int = 1024
    ffn_dim: int = 4096
    num_layers: int = 24
    attention_heads: int = 16
    activation_function: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    layerdrop: float = 0.0
    init_std: float = 0.02
    scale_embedding: bool = True
    use_cache: bool = True
    decoder_start_token_id: int = 2
    pad_token_id: int = 1
    bos_token_id: int = 0
    eos_token_id: int = 2
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True

    model_type: ClassVar[str] = "xglm"
    attribute_map: ClassVar[Mapping[str, str]] = {
        "hidden_size": "d_model",
        "num_attention_heads": "attention_heads",
        "num_hidden_layers": "num_layers",
    }

    def validate(self) -> None:
        """Checks the fields' types, their ranges, and them against each other.

        Raises:
            TypeError: naming a field of the wrong type.
            ValueError: naming the field to change.
        """
        super().validate()
        self.require_range("vocab_size", 1, MAX_VOCAB)
        self.require_range("max_position_embeddings", 1, MAX_POSITIONS)
        self.require_range("num_layers", 1, MAX_LAYERS)
        for key in ("d_model", "ffn_dim", "attention_heads"):
            self.require_range(key, 1, MAX_WIDTH)
        if self.max_position_embeddings * self.d_model > MAX_TABLE:
            raise ValueError(
                f"XGLMConfig.max_position_embeddings={self.max_position_embeddings} times "
                f"XGLMConfig.d_model={self.d_model} must be at most {MAX_TABLE}"
            )
        self.require_divisor("attention_heads", "d_model")
        for key in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            self.require_rate(key)
        self.require_one_of("activation_function", sorted(ACTIVATIONS))
        self.require_positive("init_std")
        self.require_token_ids(
            "decoder_start_token_id", "pad_token_id", "bos_token_id", "eos_token_id"
        )

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.d_model // self.attention_heads

    def empty_cache(self, batch: int, max_length: int, execution: Execution) -> Cache:
        """A cache for `batch` rows of up to `max_length` tokens, with none stored."""
        return Cache.empty(
            num_layers=self.num_layers,
            batch=batch,
            max_length=max_length,
            heads=self.attention_heads,
            head_dim=self.head_dim,
            dtype=execution.compute_dtype,
        )


class XGLMBlock(nn.Module):
    """One decoder layer: self-attention, cross-attention on request, feed-forward."""

    config: XGLMConfig
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BTD: Float[Array, "B T D"], inputs: LayerInputs, context: Context
    ) -> tuple[Float[Array, "B T D"], LayerOutputs]:
        """Applies the layer; `inputs.key` switches dropout on."""
        config = self.config
        keys = split_key(inputs.key, 6)
        norm = functools.partial(
            layer_norm, epsilon=LAYER_NORM_EPSILON, dtype=self.execution.compute_dtype
        )

        self_attention = self._attention("self_attn")(
            norm(name="self_attn_layer_norm")(x_BTD),
            mask=context.mask,
            head_mask_N=inputs.head_mask_N,
            cache=inputs.cache,
            cache_start=context.mask.query_start,
            key=keys[0],
            return_probabilities=context.output_attentions,
        )
        x_BTD = x_BTD + dropout(self_attention.x_BTD, config.dropout, keys[1])

        cross_attention = None
        memory = context.encoder_BED if inputs.cross is None else inputs.cross
        if config.add_cross_attention and self.is_initializing() and memory is None:
            memory = x_BTD  # parameters exist whether or not the first call uses them
        if memory is not None:
            cross_attention = self._attention("encoder_attn")(
                norm(name="encoder_attn_layer_norm")(x_BTD),
                memory,
                mask=context.encoder_mask,
                head_mask_N=inputs.cross_head_mask_N,
                key=keys[2],
                return_probabilities=context.output_attentions,
            )
            x_BTD = x_BTD + dropout(cross_attention.x_BTD, config.dropout, keys[3])

        y_BTD = feed_forward(
            norm(name="final_layer_norm")(x_BTD),
            width=config.ffn_dim,
            activation=config.activation_function,
            names=("fc1", "fc2"),
            dropout_rate=config.activation_dropout,
            dtype=self.execution.compute_dtype,
            kernel_init=nn.initializers.normal(config.init_std),
            key=keys[4],
        )
        x_BTD = x_BTD + dropout(y_BTD, config.dropout, keys[5])
        return x_BTD, LayerOutputs.of(inputs, self_attention, cross_attention)

    def _attention(self, name: str) -> MultiHeadAttention:
        config = self.config
        return MultiHeadAttention(
            num_heads=config.attention_heads,
            head_dim=config.head_dim,
            names=_NAMES,
            query_scale=config.head_dim**-0.5,
            core=dense_core(self.execution),
            dropout_rate=config.attention_dropout,
            dtype=self.execution.compute_dtype,
            kernel_init=nn.initializers.normal(config.init_std),
            name=name,
        )


class XGLMModel(nn.Module):
    """The decoder without a head.

    Attributes:
        config: The architecture.
        execution: How it is computed.
    """

    config: XGLMConfig
    execution: Execution = Execution()

    def setup(self) -> None:
        """Declares the submodules."""
        config = self.config
        self.embed_tokens = TokenEmbedding(
            config.vocab_size,
            config.d_model,
            self.execution.compute_dtype,
            normal_but_padding(config.init_std, config.pad_token_id),
        )
        self.layers = Stack(
            functools.partial(XGLMBlock, config, self.execution),
            config.num_layers,
            self.execution,
            config.layerdrop,
            "XGLMConfig.num_layers",
        )
        self.layer_norm = layer_norm(
            epsilon=LAYER_NORM_EPSILON, dtype=self.execution.compute_dtype, name="layer_norm"
        )

    def __call__(
        self,
        input_ids: Int[Array, "B T"] | None = None,
        *,
        attention_mask: Int[Array, "B S"] | None = None,
        position_ids: Int[Array, "#B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        encoder_hidden_states: Float[Array, "B E D"] | None = None,
        encoder_attention_mask: Int[Array, "B E"] | None = None,
        head_mask: Float[Array, "L N"] | None = None,
        cross_attn_head_mask: Float[Array, "L N"] | None = None,
        inputs_embeds: Float[Array, "B T D"] | None = None,
        cache: Cache | None = None,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> FlaxBaseModelOutputWithPastAndCrossAttentions:
        """Computes hidden states.

        Args:
            input_ids: Token ids; or give `inputs_embeds`.
            attention_mask: 1 for keys that may be read, 0 for padding. With a cache it covers
                every place of it, S = `cache.max_length`; without one S = T.
            position_ids: Position of each token; by default they count on from the cache's length.
            segment_ids: Document of each token in packed rows, 0 for padding; tokens read their
                own document only. Not together with a cache.
            encoder_hidden_states: States for cross-attention (`config.add_cross_attention`); not
                read where the cache has their keys and values.
            encoder_attention_mask: 1 for encoder states that may be read.
            head_mask: Factor on the attention probabilities of each layer and head.
            cross_attn_head_mask: The same for cross-attention.
            inputs_embeds: Token vectors, already scaled, instead of ids.
            cache: Keys and values of earlier tokens (`XGLMConfig.empty_cache`).
            deterministic: False switches dropout and LayerDrop on; needs the "dropout" rng.
            output_attentions: Whether to return attention probabilities.
            output_hidden_states: Whether to return the states that enter each layer and the last.

        Returns:
            The documented struct; `past_key_values` is the extended cache, if one was given.

        Raises:
            ValueError: if the arguments contradict each other or the config.
        """
        config = self.config
        batch, length = check_tokens(input_ids, inputs_embeds, config.d_model)
        if cache is not None:
            cache.check_call(length, segment_ids)
        keys = length if cache is None else cache.max_length
        layers_heads = (config.num_layers, config.attention_heads)
        check_shape("attention_mask", attention_mask, (batch, keys))
        check_shape("position_ids", position_ids, (batch, length), (1, length))
        check_shape("segment_ids", segment_ids, (batch, length))
        check_shape("head_mask", head_mask, layers_heads)
        check_shape("cross_attn_head_mask", cross_attn_head_mask, layers_heads)
        cross = None if cache is None else cache.cross
        if encoder_hidden_states is not None:
            if not config.add_cross_attention:
                raise ValueError("encoder_hidden_states need XGLMConfig.add_cross_attention=True")
        elif cross is None and (
            encoder_attention_mask is not None or cross_attn_head_mask is not None
        ):
            raise ValueError(
                "encoder_attention_mask and cross_attn_head_mask need encoder_hidden_states"
            )
        check_encoder(
            encoder_hidden_states, encoder_attention_mask, cross, batch=batch, width=config.d_model
        )

        key = None if deterministic else self.make_rng("dropout")
        embed_key, drop_key, *layer_keys = split_key(key, 2 + config.num_layers)
        x_BTD: Any = inputs_embeds if input_ids is None else self._embed(input_ids)
        x_BTD = x_BTD + self._positions(position_ids, length, cache)
        x_BTD = dropout(x_BTD, config.dropout, embed_key).astype(self.execution.compute_dtype)
        x_BTD = nn.with_logical_constraint(x_BTD, ("act_batch", "act_length", "act_embed"))
        start = None if cache is None else cache.length
        stack = self.layers(
            x_BTD,
            layer_inputs(
                layer_keys,
                cache=cache,
                head_mask=head_mask,
                cross_head_mask=cross_attn_head_mask,
            ),
            Context(
                mask=Mask.of(attention_mask, segment_ids, causal=True, query_start=start),
                encoder_BED=encoder_hidden_states,
                encoder_mask=Mask.of(encoder_attention_mask),
                output_attentions=output_attentions,
            ),
            key=drop_key,
            keep_inputs=output_hidden_states,
        )
        x_BTD = self.layer_norm(stack.x_BTD)
        return FlaxBaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=x_BTD,
            past_key_values=None if cache is None else cache.advanced(stack.outputs, length),
            hidden_states=(*stack.inputs_BTD, x_BTD) if stack.inputs_BTD else None,
            attentions=attentions(stack.outputs),
            cross_attentions=cross_attentions(stack.outputs),
        )

    def _embed(self, input_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Scaled token vectors."""
        scale = self.config.d_model**0.5 if self.config.scale_embedding else 1.0
        return self.embed_tokens(input_ids) * scale

    def _positions(
        self, position_ids: Int[Array, "#B T"] | None, length: int, cache: Cache | None
    ) -> Float[Array, "#B T D"]:
        """Sinusoids of the tokens' positions, in float32."""
        rows = length if cache is None else cache.max_length
        if position_ids is None:
            start = 0 if cache is None else cache.length
            position_ids = (jnp.arange(length) + start)[None]
        else:  # positions that are given may be any of the model's
            rows = max(self.config.max_position_embeddings, rows)
        table_PD = sinusoidal_table(
            rows + POSITION_OFFSET, self.config.d_model, self.config.pad_token_id
        )
        return lookup_positions(table_PD, position_ids + POSITION_OFFSET)


class XGLMForCausalLM(nn.Module):
    """The decoder with scores of the next token.

    Attributes:
        config: The architecture.
        execution: How it is computed.
    """

    config: XGLMConfig
    execution: Execution = Execution()

    def setup(self) -> None:
        """Declares the submodules."""
        self.model = XGLMModel(self.config, self.execution)
        if not self.config.tie_word_embeddings:
            self.lm_head = VocabularyProjection(
                self.config.vocab_size,
                self.execution.compute_dtype,
                nn.initializers.normal(self.config.init_std),
                self.execution.chunk_of(self.config.vocab_size),
            )

    def __call__(
        self,
        input_ids: Int[Array, "B T"] | None = None,
        *,
        attention_mask: Int[Array, "B S"] | None = None,
        position_ids: Int[Array, "#B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        encoder_hidden_states: Float[Array, "B E D"] | None = None,
        encoder_attention_mask: Int[Array, "B E"] | None = None,
        head_mask: Float[Array, "L N"] | None = None,
        cross_attn_head_mask: Float[Array, "L N"] | None = None,
        inputs_embeds: Float[Array, "B T D"] | None = None,
        cache: Cache | None = None,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        output_logits: bool = True,
    ) -> FlaxCausalLMOutputWithCrossAttentions:
        """Computes float32 logits of the next token at every position.

        The arguments are those of `XGLMModel`; without `output_logits` there are
        `VocabularyScores` in their place.

        Returns:
            The documented struct; its fields beside `logits` are those of `XGLMModel`.
        """
        out: Any = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            segment_ids=segment_ids,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            head_mask=head_mask,
            cross_attn_head_mask=cross_attn_head_mask,
            inputs_embeds=inputs_embeds,
            cache=cache,
            deterministic=deterministic,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        if self.config.tie_word_embeddings:
            chunk = self.execution.chunk_of(self.config.vocab_size)
            scores = self.model.embed_tokens.scores(out.last_hidden_state, chunk)
        else:
            scores = self.lm_head(out.last_hidden_state)
        return FlaxCausalLMOutputWithCrossAttentions(
            logits=scores.resolved(output_logits),
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
            cross_attentions=out.cross_attentions,
        )


MODULES: dict[type, type[nn.Module]] = {heads.Base: XGLMModel, heads.CausalLM: XGLMForCausalLM}
"""The module of each head."""
