"""SqueezeBERT, an encoder whose projections are grouped convolutions.

Paper: Iandola et al., 2020, "SqueezeBERT: What can computer vision teach NLP about efficient neural
networks?", arXiv:2006.11316.

Differs from the vanilla Transformer encoder in: learned positions and token types, whose sum with
the token vectors is normalised, then dropped out; all projections of a layer are grouped, each with
a number of groups of its own; the exact gelu; an epsilon of layer normalisation inside the layers
that is no config field.

`attention_type="block_sparse"`, which is not part of the published architecture, makes attention
that of BigBird. Inputs of at most (5 + 2 * num_random_blocks) blocks are then read densely; longer
ones are padded to whole blocks inside, and every output is cut back.

Parameters of the body, under `transformer` in a model with a head, with looped layers:

    embeddings/{word,position,token_type}_embeddings/embedding       (vocab, embed), ...
    embeddings/LayerNorm/{scale,bias}
    encoder/layer/<i>/attention/self/{query,key,value}/{kernel,bias} (groups, embed, heads)
    encoder/layer/<i>/attention/output/dense/{kernel,bias}           (groups, heads, embed)
    encoder/layer/<i>/attention/output/LayerNorm/{scale,bias}
    encoder/layer/<i>/intermediate/dense/{kernel,bias}               (groups, embed, mlp)
    encoder/layer/<i>/output/dense/{kernel,bias}                     (groups, mlp, embed)
    encoder/layer/<i>/output/LayerNorm/{scale,bias}
    pooler/dense/{kernel,bias}                                       where a head reads it

A kernel holds one matrix for each group. Heads: `xformer.models.encoder_heads`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Initializer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from xformer.layers import heads
from xformer.layers.attention import AttentionCore, MultiHeadAttention, ProjectionNames
from xformer.layers.checks import check_shape, check_tokens
from xformer.layers.dropout import dropout, split_key
from xformer.layers.embedding import TokenEmbedding, normal_but_padding
from xformer.layers.execution import Execution
from xformer.layers.feedforward import Intermediate
from xformer.layers.layer import Context, LayerInputs, LayerOutputs, attentions
from xformer.layers.linear import GroupedLinear, Linear
from xformer.layers.mask import Mask
from xformer.layers.norm import layer_norm
from xformer.layers.residual import ResidualNorm
from xformer.models import encoder_heads
from xformer.models.block_encoder import BlockEncoder
from xformer.models.squeezebert_config import SqueezeBertConfig
from xformer.outputs import FlaxBaseModelOutputWithPooling

LAYER_NORM_EPSILON = 1e-12  # inside the layers; `layer_norm_eps` is that of embeddings and heads
_NAMES = ProjectionNames("query", "key", "value", None)


class SqueezeBertAttention(nn.Module):
    """Heads with grouped projections, and the end of their sublayer."""

    config: SqueezeBertConfig
    execution: Execution
    core: AttentionCore

    @nn.compact
    def __call__(
        self, x_BTD: Float[Array, "B T D"], inputs: LayerInputs, context: Context
    ) -> tuple[Float[Array, "B T D"], LayerOutputs]:
        """Attends, then projects, adds and normalises."""
        config, dtype = self.config, self.execution.compute_dtype
        keys = split_key(inputs.key, 2)
        out = MultiHeadAttention(
            num_heads=config.num_attention_heads,
            head_dim=config.head_dim,
            names=_NAMES,
            query_scale=config.head_dim**-0.5,
            core=self.core,
            projection=functools.partial(
                _projection_by_name, config.q_groups, config.k_groups, config.v_groups
            ),
            dropout_rate=config.attention_probs_dropout_prob,
            dtype=dtype,
            kernel_init=config.kernel_init,
            name="self",
        )(
            x_BTD,
            mask=dataclasses.replace(context.mask, random_blocks_NMR=inputs.random_blocks_NMR),
            head_mask_N=inputs.head_mask_N,
            key=keys[0],
            return_probabilities=context.output_attentions,
        )
        x_BTD = ResidualNorm(
            axes=("heads", "embed"),
            dropout_rate=config.hidden_dropout_prob,
            epsilon=LAYER_NORM_EPSILON,
            projection=_grouped(config.post_attention_groups),
            dtype=dtype,
            kernel_init=config.kernel_init,
            name="output",
        )(out.x_BTD, x_BTD, key=keys[1])
        return x_BTD, LayerOutputs.of(inputs, out)


class SqueezeBertBlock(nn.Module):
    """One layer: self-attention, feed-forward, each normalised after its residual sum."""

    config: SqueezeBertConfig
    execution: Execution
    core: AttentionCore

    @nn.compact
    def __call__(
        self, x_BTD: Float[Array, "B T D"], inputs: LayerInputs, context: Context
    ) -> tuple[Float[Array, "B T D"], LayerOutputs]:
        """Applies the layer; `inputs.key` switches dropout on."""
        config, dtype = self.config, self.execution.compute_dtype
        keys = split_key(inputs.key, 2)
        attention = SqueezeBertAttention(config, self.execution, self.core, name="attention")
        x_BTD, outputs = attention(x_BTD, dataclasses.replace(inputs, key=keys[0]), context)
        h_BTF = Intermediate(
            width=config.intermediate_size,
            activation=config.hidden_act,
            projection=_grouped(config.intermediate_groups),
            dtype=dtype,
            kernel_init=config.kernel_init,
            name="intermediate",
        )(x_BTD)
        x_BTD = ResidualNorm(
            axes=("mlp", "embed"),
            dropout_rate=config.hidden_dropout_prob,
            epsilon=LAYER_NORM_EPSILON,
            projection=_grouped(config.output_groups),
            dtype=dtype,
            kernel_init=config.kernel_init,
            name="output",
        )(h_BTF, x_BTD, key=keys[1])
        return x_BTD, outputs


class SqueezeBertEmbeddings(nn.Module):
    """Vectors of tokens, positions and types: their normalised sum.

    Attributes:
        config: The architecture.
        execution: How it is computed.
    """

    config: SqueezeBertConfig
    execution: Execution

    def setup(self) -> None:
        """Declares the tables."""
        config, dtype = self.config, self.execution.compute_dtype
        width, init = config.hidden_size, config.kernel_init
        self.word_embeddings = TokenEmbedding(
            config.vocab_size,
            width,
            dtype,
            normal_but_padding(config.initializer_range, config.pad_token_id),
        )
        self.position_embeddings = TokenEmbedding(
            config.max_position_embeddings, width, dtype, init, axis="positions"
        )
        self.token_type_embeddings = TokenEmbedding(
            config.type_vocab_size, width, dtype, init, axis="positions"
        )
        self.LayerNorm = layer_norm(epsilon=config.layer_norm_eps, dtype=dtype, name="LayerNorm")

    def __call__(
        self,
        input_ids: Int[Array, "B T"] | None,
        inputs_embeds: Float[Array, "B T D"] | None,
        token_type_ids: Int[Array, "B T"] | None,
        position_ids: Int[Array, "#B T"] | None,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "B T D"]:
        """Embeds tokens; arguments that are None are as for `SqueezeBertModel`."""
        x_BTD: Any = inputs_embeds if input_ids is None else self.word_embeddings(input_ids)
        x_BTD = x_BTD.astype(self.execution.compute_dtype)
        length = x_BTD.shape[1]
        if position_ids is None:
            self.config.check_length(length)
            position_ids = jnp.arange(length)[None]
        if token_type_ids is None:
            token_type_ids = jnp.zeros((1, length), jnp.int32)
        x_BTD = x_BTD + self.position_embeddings(position_ids)
        x_BTD = x_BTD + self.token_type_embeddings(token_type_ids)
        return dropout(self.LayerNorm(x_BTD), self.config.hidden_dropout_prob, key)


class SqueezeBertPooler(nn.Module):
    """The first token's state through a projection and tanh."""

    config: SqueezeBertConfig
    execution: Execution

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B D"]:
        """Pools the first token."""
        dense = Linear(
            self.config.hidden_size,
            ("embed", None),
            dtype=self.execution.compute_dtype,
            kernel_init=self.config.kernel_init,
            name="dense",
        )
        return jnp.tanh(dense(x_BTD[:, 0]))


class SqueezeBertModel(nn.Module):
    """The encoder without a head.

    Attributes:
        config: The architecture.
        execution: How it is computed.
        add_pooling_layer: Whether there is a pooler.
    """

    config: SqueezeBertConfig
    execution: Execution = Execution()
    add_pooling_layer: bool = True

    def setup(self) -> None:
        """Declares the submodules."""
        self.embeddings = SqueezeBertEmbeddings(self.config, self.execution)
        self.encoder = BlockEncoder(SqueezeBertBlock, self.config, self.execution)
        if self.add_pooling_layer:
            self.pooler = SqueezeBertPooler(self.config, self.execution)

    @property
    def token_table(self) -> TokenEmbedding:
        """The token table, for heads that score tokens."""
        return self.embeddings.word_embeddings

    def __call__(
        self,
        input_ids: Int[Array, "B T"] | None = None,
        *,
        attention_mask: Int[Array, "B T"] | None = None,
        token_type_ids: Int[Array, "B T"] | None = None,
        position_ids: Int[Array, "#B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        head_mask: Float[Array, "L N"] | None = None,
        inputs_embeds: Float[Array, "B T D"] | None = None,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> FlaxBaseModelOutputWithPooling:
        """Computes hidden states; the arguments are those of `EncoderWithHead`.

        Returns:
            The documented struct; `attentions` are probabilities.

        Raises:
            ValueError: if the arguments contradict each other or the config.
        """
        config, layers = self.config, self.config.num_hidden_layers
        batch, length = check_tokens(input_ids, inputs_embeds, config.hidden_size)
        check_shape("token_type_ids", token_type_ids, (batch, length))
        check_shape("position_ids", position_ids, (batch, length), (1, length))
        embed_key, *keys = split_key(
            None if deterministic else self.make_rng("dropout"), 1 + layers
        )
        x_BTD = self.embeddings(input_ids, inputs_embeds, token_type_ids, position_ids, embed_key)
        x_BTD = nn.with_logical_constraint(x_BTD, ("act_batch", "act_length", "act_embed"))
        check_shape("attention_mask", attention_mask, (batch, length))
        check_shape("segment_ids", segment_ids, (batch, length))
        check_shape("head_mask", head_mask, (layers, config.num_attention_heads))
        context = Context(Mask.of(attention_mask, segment_ids), output_attentions=output_attentions)
        stack = self.encoder(
            x_BTD, context, keys, head_mask=head_mask, keep_inputs=output_hidden_states
        )
        x_BTD = stack.x_BTD
        return FlaxBaseModelOutputWithPooling(
            last_hidden_state=x_BTD,
            pooler_output=self.pooler(x_BTD) if self.add_pooling_layer else None,
            hidden_states=(*stack.inputs_BTD, x_BTD) if stack.inputs_BTD else None,
            attentions=attentions(stack.outputs),
        )


class SqueezeBertForMaskedLM(encoder_heads.ForMaskedLM):
    """SqueezeBERT with scores of the token that stood at a place."""

    body_class, prefix = SqueezeBertModel, "transformer"


class SqueezeBertForPreTraining(encoder_heads.ForPreTraining):
    """SqueezeBERT with the scores of masked tokens and of the second text."""

    body_class, prefix = SqueezeBertModel, "transformer"


class SqueezeBertForNextSentencePrediction(encoder_heads.ForNextSentencePrediction):
    """SqueezeBERT with scores of whether the second text follows the first."""

    body_class, prefix = SqueezeBertModel, "transformer"


class SqueezeBertForSequenceClassification(encoder_heads.ForSequenceClassification):
    """SqueezeBERT with scores of each label for a row."""

    body_class, prefix = SqueezeBertModel, "transformer"


class SqueezeBertForMultipleChoice(encoder_heads.ForMultipleChoice):
    """SqueezeBERT with a score for each of several texts."""

    body_class, prefix = SqueezeBertModel, "transformer"


class SqueezeBertForTokenClassification(encoder_heads.ForTokenClassification):
    """SqueezeBERT with scores of each label for every token."""

    body_class, prefix = SqueezeBertModel, "transformer"


class SqueezeBertForQuestionAnswering(encoder_heads.ForQuestionAnswering):
    """SqueezeBERT with scores of each token as the start and end of an answer."""

    body_class, prefix = SqueezeBertModel, "transformer"


def _grouped(groups: int) -> Callable[..., nn.Module]:
    """A grouped projection, made like `Linear`."""
    return functools.partial(GroupedLinear, groups=groups)


def _projection_by_name(
    q_groups: int,
    k_groups: int,
    v_groups: int,
    *,
    features: int,
    axes: tuple[str, str],
    use_bias: bool,
    dtype: jnp.dtype,
    kernel_init: Initializer,
    name: str,
) -> GroupedLinear:
    """The grouped projection of queries, keys or values."""
    groups = {_NAMES.query: q_groups, _NAMES.key: k_groups, _NAMES.value: v_groups}[name]
    return GroupedLinear(features, axes, groups, use_bias, dtype, kernel_init, name=name)


MODULES: dict[type, type[nn.Module]] = {
    heads.Base: SqueezeBertModel,
    heads.MaskedLM: SqueezeBertForMaskedLM,
    heads.PreTraining: SqueezeBertForPreTraining,
    heads.NextSentence: SqueezeBertForNextSentencePrediction,
    heads.SequenceClassification: SqueezeBertForSequenceClassification,
    heads.MultipleChoice: SqueezeBertForMultipleChoice,
    heads.TokenClassification: SqueezeBertForTokenClassification,
    heads.QuestionAnswering: SqueezeBertForQuestionAnswering,
}
"""The module of each head."""
