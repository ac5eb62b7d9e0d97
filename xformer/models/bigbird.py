"""BigBird, an encoder (or decoder) whose attention reads blocks of a long sequence.

Paper: Zaheer et al., 2020, "Big Bird: Transformers for Longer Sequences", arXiv:2007.14062.

Differs from the vanilla Transformer encoder in: learned positions and token types, with dropout
before the normalisation of their sum; each query block reads the first and the last block, its
neighbours and some random blocks (`attention_type="block_sparse"`); query, key and value
projections without biases on request; causal attention and cross-attention on request.

Inputs of at most (5 + 2 * num_random_blocks) blocks are read densely, as published. Longer ones are
padded to whole blocks inside, and every output is cut back. Decoding with a cache follows the
blocks of the cache's whole length.

Parameters of the body, under `bert` in a model with a head, with looped layers:

    embeddings/{word,position,token_type}_embeddings/embedding       (vocab, embed), ...
    embeddings/LayerNorm/{scale,bias}
    encoder/layer/<i>/attention/self/{query,key,value}/{kernel,bias} (embed, heads)
    encoder/layer/<i>/attention/output/dense/{kernel,bias}           (heads, embed)
    encoder/layer/<i>/attention/output/LayerNorm/{scale,bias}
    encoder/layer/<i>/crossattention/...                             with add_cross_attention
    encoder/layer/<i>/intermediate/dense/{kernel,bias}               (embed, mlp)
    encoder/layer/<i>/output/{dense,LayerNorm}/...                   (mlp, embed)
    pooler/{kernel,bias}                                             where a head reads it
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from xformer.layers.attention import (
    AttentionCore,
    AttentionOutput,
    MultiHeadAttention,
    ProjectionNames,
)
from xformer.layers.cache import Cache, LayerCache
from xformer.layers.checks import check_encoder, check_shape, check_tokens
from xformer.layers.dense_cores import dense_core
from xformer.layers.dropout import dropout, split_key
from xformer.layers.embedding import TokenEmbedding, normal_but_padding
from xformer.layers.execution import Execution
from xformer.layers.feedforward import Intermediate
from xformer.layers.layer import (
    Context,
    LayerInputs,
    LayerOutputs,
    attentions,
    cross_attentions,
)
from xformer.layers.linear import GroupedLinear, Linear
from xformer.layers.mask import Mask
from xformer.layers.norm import layer_norm
from xformer.layers.residual import ResidualNorm
from xformer.models.bigbird_config import BigBirdConfig
from xformer.models.block_encoder import BlockEncoder
from xformer.outputs import FlaxBaseModelOutputWithPoolingAndCrossAttentions

_NAMES = ProjectionNames("query", "key", "value", None)


class BigBirdAttention(nn.Module):
    """Heads, and the end of their sublayer.

    Attributes:
        config: The architecture.
        execution: How it is computed.
        core: What combines queries, keys and values.
    """

    config: BigBirdConfig
    execution: Execution
    core: AttentionCore

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        memory: Float[Array, "B S D"] | LayerCache | None = None,
        *,
        mask: Mask,
        head_mask_N: Float[Array, " N"] | None = None,
        cache: LayerCache | None = None,
        cache_start: Int[Array, ""] | None = None,
        key: PRNGKeyArray | None = None,
        return_probabilities: bool = False,
    ) -> AttentionOutput:
        """Attends as `MultiHeadAttention` does, then adds and normalises."""
        config, dtype = self.config, self.execution.compute_dtype
        keys = split_key(key, 2)
        out = MultiHeadAttention(
            num_heads=config.num_attention_heads,
            head_dim=config.head_dim,
            names=_NAMES,
            query_scale=config.head_dim**-0.5,
            core=self.core,
            projection=_projection(config),
            use_bias=config.use_bias,
            dropout_rate=config.attention_probs_dropout_prob,
            dtype=dtype,
            kernel_init=config.kernel_init,
            name="self",
        )(
            x_BTD,
            memory,
            mask=mask,
            head_mask_N=head_mask_N,
            cache=cache,
            cache_start=cache_start,
            key=keys[0],
            return_probabilities=return_probabilities,
        )
        add_and_norm = ResidualNorm(
            axes=("heads", "embed"),
            dropout_rate=config.hidden_dropout_prob,
            epsilon=config.layer_norm_eps,
            dtype=dtype,
            kernel_init=config.kernel_init,
            name="output",
        )
        return dataclasses.replace(out, x_BTD=add_and_norm(out.x_BTD, x_BTD, key=keys[1]))


class BigBirdBlock(nn.Module):
    """One layer: self-attention, cross-attention on request, feed-forward."""

    config: BigBirdConfig
    execution: Execution
    core: AttentionCore

    @nn.compact
    def __call__(
        self, x_BTD: Float[Array, "B T D"], inputs: LayerInputs, context: Context
    ) -> tuple[Float[Array, "B T D"], LayerOutputs]:
        """Applies the layer; `inputs.key` switches dropout on."""
        config = self.config
        keys = split_key(inputs.key, 3)
        self_attention = BigBirdAttention(config, self.execution, self.core, name="attention")(
            x_BTD,
            mask=dataclasses.replace(context.mask, random_blocks_NMR=inputs.random_blocks_NMR),
            head_mask_N=inputs.head_mask_N,
            cache=inputs.cache,
            cache_start=context.mask.query_start,
            key=keys[0],
            return_probabilities=context.output_attentions,
        )
        x_BTD = self_attention.x_BTD
        cross_attention = None
        memory = context.encoder_BED if inputs.cross is None else inputs.cross
        if config.add_cross_attention and self.is_initializing() and memory is None:
            memory = x_BTD  # parameters exist whether or not the first call uses them
        if memory is not None:
            core = dense_core(self.execution)
            cross_attention = BigBirdAttention(config, self.execution, core, name="crossattention")(
                x_BTD,
                memory,
                mask=context.encoder_mask,
                head_mask_N=inputs.head_mask_N,
                key=keys[1],
                return_probabilities=context.output_attentions,
            )
            x_BTD = cross_attention.x_BTD

        h_BTF = intermediate(config, self.execution)(x_BTD)
        x_BTD = output(config, self.execution)(h_BTF, x_BTD, key=keys[2])
        return x_BTD, LayerOutputs.of(inputs, self_attention, cross_attention)


def intermediate(config: BigBirdConfig, execution: Execution) -> Intermediate:
    """The submodule "intermediate", the first half of a feed-forward network."""
    return Intermediate(
        config.intermediate_size,
        config.hidden_act,
        projection=_projection(config),
        dtype=execution.compute_dtype,
        kernel_init=config.kernel_init,
        name="intermediate",
    )


def output(config: BigBirdConfig, execution: Execution) -> ResidualNorm:
    """The submodule "output", the second half of a feed-forward network."""
    return ResidualNorm(
        axes=("mlp", "embed"),
        dropout_rate=config.hidden_dropout_prob,
        epsilon=config.layer_norm_eps,
        projection=_projection(config),
        dtype=execution.compute_dtype,
        kernel_init=config.kernel_init,
        name="output",
    )


def _projection(config: BigBirdConfig) -> Callable[..., nn.Module]:
    """What makes the projections that may be grouped."""
    if config.projection_groups == 1:
        return Linear
    return functools.partial(GroupedLinear, groups=config.projection_groups)


class BigBirdEmbeddings(nn.Module):
    """Token vectors with their positions and types.

    Attributes:
        config: The architecture.
        execution: How it is computed.
    """

    config: BigBirdConfig
    execution: Execution

    def setup(self) -> None:
        """Declares the tables."""
        config, dtype = self.config, self.execution.compute_dtype
        width, init = config.hidden_size, config.kernel_init
        init_tokens = normal_but_padding(config.initializer_range, config.pad_token_id)
        self.word_embeddings = TokenEmbedding(config.vocab_size, width, dtype, init_tokens)
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
        start: Int[Array, ""] | None,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "B T D"]:
        """Adds the vectors of tokens, types and positions, and normalises.

        Arguments that are None are as for `BigBirdModel`; positions count from `start`.

        Returns:
            What enters the first layer.

        Raises:
            ValueError: if there are too many tokens.
        """
        x_BTD: Any = inputs_embeds if input_ids is None else self.word_embeddings(input_ids)
        x_BTD = x_BTD.astype(self.execution.compute_dtype)
        if self.config.rescale_embeddings:
            x_BTD = x_BTD * self.config.hidden_size**0.5
        length = x_BTD.shape[1]
        if position_ids is None:
            self.config.check_length(length)
            position_ids = (jnp.arange(length) + (0 if start is None else start))[None]
        if token_type_ids is None:
            token_type_ids = jnp.zeros((1, length), jnp.int32)
        x_BTD = x_BTD + self.token_type_embeddings(token_type_ids)
        x_BTD = x_BTD + self.position_embeddings(position_ids)
        return self.LayerNorm(dropout(x_BTD, self.config.hidden_dropout_prob, key))


class BigBirdModel(nn.Module):
    """The body without a head.

    Attributes:
        config: The architecture.
        execution: How it is computed.
        add_pooling_layer: Whether the first state is pooled, for heads that read that.
        is_causal: Whether tokens read only those before them whatever `config.is_decoder` says.
    """

    config: BigBirdConfig
    execution: Execution = Execution()
    add_pooling_layer: bool = True
    is_causal: bool = False

    def setup(self) -> None:
        """Declares the submodules."""
        self.embeddings = BigBirdEmbeddings(self.config, self.execution)
        self.encoder = BlockEncoder(BigBirdBlock, self.config, self.execution)
        if self.add_pooling_layer:
            self.pooler = Linear(
                self.config.hidden_size,
                ("embed", None),
                dtype=self.execution.compute_dtype,
                kernel_init=self.config.kernel_init,
            )

    @property
    def token_table(self) -> TokenEmbedding:
        """The table of token vectors, which heads compare states with."""
        return self.embeddings.word_embeddings

    def __call__(
        self,
        input_ids: Int[Array, "B T"] | None = None,
        *,
        attention_mask: Int[Array, "B S"] | None = None,
        token_type_ids: Int[Array, "B T"] | None = None,
        position_ids: Int[Array, "#B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        head_mask: Float[Array, "L N"] | None = None,
        inputs_embeds: Float[Array, "B T D"] | None = None,
        encoder_hidden_states: Float[Array, "B E D"] | None = None,
        encoder_attention_mask: Int[Array, "B E"] | None = None,
        cache: Cache | None = None,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> FlaxBaseModelOutputWithPoolingAndCrossAttentions:
        """Computes hidden states.

        Args:
            input_ids: Token ids; or give `inputs_embeds`.
            attention_mask: 1 for keys that may be read, 0 for padding. With a cache it covers
                every place of it, S = `cache.max_length`; without one S = T.
            token_type_ids: Which text of a pair a token is of; zeros if None.
            position_ids: Position of each token; by default they count on from the cache's length.
            segment_ids: Document of each token in packed rows, 0 for padding; tokens read their
                own document only. Not together with a cache.
            head_mask: Factor on the attention probabilities of each layer and head, in self- and
                cross-attention.
            inputs_embeds: Token vectors instead of ids, not rescaled yet.
            encoder_hidden_states: States for cross-attention (`config.add_cross_attention`); not
                read where the cache has their keys and values.
            encoder_attention_mask: 1 for encoder states that may be read.
            cache: Keys and values of earlier tokens (`BigBirdConfig.empty_cache`).
            deterministic: False switches dropout on; needs the "dropout" rng.
            output_attentions: Whether to return attention probabilities, for which
                block-sparse attention needs the memory of dense attention.
            output_hidden_states: Whether to return the states that enter each layer and the last.

        Returns:
            The documented struct; `past_key_values` is the extended cache, if one was given.

        Raises:
            ValueError: if the arguments contradict each other or the config.
        """
        config = self.config
        batch, length = check_tokens(input_ids, inputs_embeds, config.hidden_size)
        check_shape("token_type_ids", token_type_ids, (batch, length))
        check_shape("position_ids", position_ids, (batch, length), (1, length))
        check_shape("segment_ids", segment_ids, (batch, length))
        check_shape("head_mask", head_mask, (config.num_hidden_layers, config.num_attention_heads))
        if cache is not None:
            cache.check_call(length, segment_ids)
            if not (self.is_causal or config.is_decoder):
                raise ValueError("a cache needs BigBirdConfig.is_decoder=True")
        whole = length if cache is None else cache.max_length
        check_shape("attention_mask", attention_mask, (batch, whole))
        cross = None if cache is None else cache.cross
        self._check_encoder(batch, encoder_hidden_states, encoder_attention_mask, cross)

        key = None if deterministic else self.make_rng("dropout")
        embed_key, *keys = split_key(key, 1 + config.num_hidden_layers)
        start = None if cache is None else cache.length
        x_BTD = self.embeddings(
            input_ids, inputs_embeds, token_type_ids, position_ids, start, embed_key
        )
        x_BTD = nn.with_logical_constraint(x_BTD, ("act_batch", "act_length", "act_embed"))
        context = Context(
            mask=Mask.of(
                attention_mask,
                segment_ids,
                causal=self.is_causal or config.is_decoder,
                query_start=start,
            ),
            encoder_BED=encoder_hidden_states,
            encoder_mask=Mask.of(encoder_attention_mask),
            output_attentions=output_attentions,
        )
        stack = self.encoder(
            x_BTD,
            context,
            keys,
            cache=cache,
            head_mask=head_mask,
            keep_inputs=output_hidden_states,
        )
        x_BTD = stack.x_BTD
        return FlaxBaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=x_BTD,
            pooler_output=jnp.tanh(self.pooler(x_BTD[:, 0])) if self.add_pooling_layer else None,
            hidden_states=(*stack.inputs_BTD, x_BTD) if stack.inputs_BTD else None,
            past_key_values=None if cache is None else cache.advanced(stack.outputs, length),
            attentions=attentions(stack.outputs),
            cross_attentions=cross_attentions(stack.outputs),
        )

    def _check_encoder(
        self,
        batch: int,
        states: Array | None,
        mask: Array | None,
        cross: Sequence[LayerCache] | None,
    ) -> None:
        """Refuses encoder states that do not fit the model or the rows, or a mask of others."""
        if states is None and cross is None and mask is not None:
            raise ValueError("encoder_attention_mask needs encoder_hidden_states")
        if states is not None and not self.config.add_cross_attention:
            raise ValueError("encoder_hidden_states need BigBirdConfig.add_cross_attention=True")
        check_encoder(states, mask, cross, batch=batch, width=self.config.hidden_size)
