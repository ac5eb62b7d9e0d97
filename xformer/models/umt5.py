"""UMT5, a multilingual encoder-decoder.

Papers: Chung et al., 2023, "UniMax", arXiv:2304.09151, for the models; Raffel et al., 2020,
arXiv:1910.10683, and Shazeer, 2020, arXiv:2002.05202, for the architecture.

Differs from the vanilla Transformer in: root-mean-square normalisation before each sublayer and
after the last; no biases and no positions, but a learned bias on the scores for buckets of
distances, in every self-attention layer one of its own; scores without a scale; gated feed-forward
layers; an output projection that is not the token table.

Parameters, for `UMT5ForConditionalGeneration` with looped layers:

    shared/embedding                                                    (vocab, embed)
    encoder/block/<i>/layer/0/SelfAttention/{q,k,v}/kernel              (embed, heads)
    encoder/block/<i>/layer/0/SelfAttention/o/kernel                    (heads, embed)
    encoder/block/<i>/layer/0/SelfAttention/relative_attention_bias/embedding
    encoder/block/<i>/layer/1/DenseReluDense/{wi_0,wi_1,wo}/kernel      wi, wo if not gated
    encoder/block/<i>/layer/<j>/layer_norm/weight, encoder/final_layer_norm/weight
    decoder/block/<i>/layer/0/..., decoder/final_layer_norm/weight      as above
    decoder/block/<i>/layer/1/EncDecAttention/{q,k,v,o}/kernel
    decoder/block/<i>/layer/2/DenseReluDense/...
    lm_head/kernel                                                      if it is not tied
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from xformer.layers.cache import Cache
from xformer.layers.checks import check_encoder, check_shape, check_tokens
from xformer.layers.embedding import TokenEmbedding
from xformer.layers.execution import Execution
from xformer.layers.layer import Context, attentions, cross_attentions
from xformer.layers.mask import Mask
from xformer.layers.vocabulary import VocabularyProjection, VocabularyScores
from xformer.models.umt5_config import UMT5Config
from xformer.models.umt5_stack import UMT5Stack
from xformer.outputs import (
    FlaxBaseModelOutput,
    FlaxBaseModelOutputWithPastAndCrossAttentions,
    FlaxCausalLMOutputWithCrossAttentions,
    FlaxSeq2SeqLMOutput,
    FlaxSeq2SeqModelOutput,
    ModelOutput,
)


class UMT5Base(nn.Module):
    """Token table, encoder and decoder; classes with a head add to it and say what they return.

    Attributes:
        config: The architecture.
        execution: How it is computed.
        has_decoder: Whether there is a decoder.
    """

    config: UMT5Config
    execution: Execution = Execution()
    has_decoder: ClassVar[bool] = True

    def setup(self) -> None:
        """Declares the submodules."""
        config, execution = self.config, self.execution
        self.shared = TokenEmbedding(
            config.vocab_size, config.d_model, execution.compute_dtype, config.normal()
        )
        self.encoder = UMT5Stack(config, execution, is_decoder=False)
        if self.has_decoder:
            self.decoder = UMT5Stack(config, execution, is_decoder=True)

    def encode(
        self,
        input_ids: Int[Array, "B S"] | None = None,
        *,
        attention_mask: Int[Array, "B S"] | None = None,
        segment_ids: Int[Array, "B S"] | None = None,
        head_mask: Float[Array, "L N"] | None = None,
        inputs_embeds: Float[Array, "B S D"] | None = None,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> FlaxBaseModelOutput:
        """Computes the encoder's states.

        Args:
            input_ids: Token ids; or give `inputs_embeds`.
            attention_mask: 1 for tokens that may be read, 0 for padding.
            segment_ids: Document of each token in packed rows, 0 for padding; tokens read their
                own document only.
            head_mask: Factor on the attention probabilities of each layer and head.
            inputs_embeds: Token vectors instead of ids.
            deterministic: False switches dropout on; needs the "dropout" rng.
            output_attentions: Whether to return attention probabilities.
            output_hidden_states: Whether to return the states that enter each layer and the last.

        Returns:
            The documented struct.

        Raises:
            ValueError: if the arguments contradict each other or the config.
        """
        batch_length = check_tokens(input_ids, inputs_embeds, self.config.d_model)
        check_shape("attention_mask", attention_mask, batch_length)
        check_shape("segment_ids", segment_ids, batch_length)
        x_BSD: Any = inputs_embeds if input_ids is None else self.shared(input_ids)
        context = Context(Mask.of(attention_mask, segment_ids), output_attentions=output_attentions)
        out = self.encoder(
            x_BSD,
            context,
            head_mask=head_mask,
            key=None if deterministic else self.make_rng("dropout"),
            keep_states=output_hidden_states,
        )
        return FlaxBaseModelOutput(
            last_hidden_state=out.last_BTD,
            hidden_states=out.states_BTD,
            attentions=attentions(out.outputs),
        )

    def decoder_states(
        self,
        decoder_input_ids: Int[Array, "B T"] | None = None,
        encoder_hidden_states: Float[Array, "B S D"] | None = None,
        *,
        encoder_attention_mask: Int[Array, "B S"] | None = None,
        decoder_attention_mask: Int[Array, "B K"] | None = None,
        segment_ids: Int[Array, "B S"] | None = None,
        decoder_segment_ids: Int[Array, "B T"] | None = None,
        decoder_head_mask: Float[Array, "L N"] | None = None,
        cross_attn_head_mask: Float[Array, "L N"] | None = None,
        decoder_inputs_embeds: Float[Array, "B T D"] | None = None,
        cache: Cache | None = None,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> FlaxBaseModelOutputWithPastAndCrossAttentions:
        """Computes the decoder's states.

        Args:
            decoder_input_ids: Token ids; or give `decoder_inputs_embeds`.
            encoder_hidden_states: What the encoder returned; not read where the cache has its keys
                and values.
            encoder_attention_mask: 1 for encoder states that may be read.
            decoder_attention_mask: 1 for keys that may be read, 0 for padding. With a cache it
                covers every place of it, K = `cache.max_length`; without one K = T.
            segment_ids: Document of each encoder state in packed rows, 0 for padding.
            decoder_segment_ids: Document of each token, whose tokens and states it reads. Not
                together with a cache.
            decoder_head_mask: Factor on the attention probabilities of each layer and head.
            cross_attn_head_mask: The same for cross-attention.
            decoder_inputs_embeds: Token vectors instead of ids.
            cache: Keys and values of earlier tokens (`UMT5Config.empty_cache`).
            deterministic: False switches dropout on; needs the "dropout" rng.
            output_attentions: Whether to return attention probabilities.
            output_hidden_states: Whether to return the states that enter each layer and the last.

        Returns:
            The documented struct; `past_key_values` is the extended cache, if one was given.

        Raises:
            ValueError: if the arguments contradict each other or the config.
        """
        tokens, vectors = decoder_input_ids, decoder_inputs_embeds
        if (tokens is None) == (vectors is None):
            raise ValueError("give exactly one of decoder_input_ids and decoder_inputs_embeds")
        batch, length = check_tokens(tokens, vectors, self.config.d_model)
        if cache is not None:
            cache.check_call(length, decoder_segment_ids)
        keys = length if cache is None else cache.max_length
        check_shape("decoder_attention_mask", decoder_attention_mask, (batch, keys))
        check_shape("decoder_segment_ids", decoder_segment_ids, (batch, length))
        if (segment_ids is None) != (decoder_segment_ids is None):
            raise ValueError("give segment_ids and decoder_segment_ids together")
        cross, width = None if cache is None else cache.cross, self.config.d_model
        if encoder_hidden_states is None and cross is None:
            raise ValueError("the decoder needs encoder_hidden_states")
        check_encoder(
            encoder_hidden_states, encoder_attention_mask, cross, batch=batch, width=width
        )
        if encoder_hidden_states is not None:
            check_shape("segment_ids", segment_ids, encoder_hidden_states.shape[:2])

        start = None if cache is None else cache.length
        x_BTD: Any = vectors if tokens is None else self.shared(tokens)
        out = self.decoder(
            x_BTD,
            Context(
                mask=Mask.of(
                    decoder_attention_mask, decoder_segment_ids, causal=True, query_start=start
                ),
                encoder_BED=encoder_hidden_states,
                encoder_mask=Mask.of(encoder_attention_mask, decoder_segment_ids, segment_ids),
                output_attentions=output_attentions,
            ),
            cache=cache,
            head_mask=decoder_head_mask,
            cross_attn_head_mask=cross_attn_head_mask,
            key=None if deterministic else self.make_rng("dropout"),
            keep_states=output_hidden_states,
        )
        return FlaxBaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=out.last_BTD,
            past_key_values=None if cache is None else cache.advanced(out.outputs, length),
            hidden_states=out.states_BTD,
            attentions=attentions(out.outputs),
            cross_attentions=cross_attentions(out.outputs),
        )

    def encode_and_decode(
        self,
        input_ids: Int[Array, "B S"] | None = None,
        *,
        attention_mask: Int[Array, "B S"] | None = None,
        decoder_input_ids: Int[Array, "B T"] | None = None,
        decoder_attention_mask: Int[Array, "B K"] | None = None,
        segment_ids: Int[Array, "B S"] | None = None,
        decoder_segment_ids: Int[Array, "B T"] | None = None,
        head_mask: Float[Array, "L N"] | None = None,
        decoder_head_mask: Float[Array, "L N"] | None = None,
        cross_attn_head_mask: Float[Array, "L N"] | None = None,
        encoder_hidden_states: Float[Array, "B S D"] | None = None,
        inputs_embeds: Float[Array, "B S D"] | None = None,
        decoder_inputs_embeds: Float[Array, "B T D"] | None = None,
        cache: Cache | None = None,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> FlaxSeq2SeqModelOutput:
        """Encodes and decodes; the arguments are those of `encode` and `decoder_states`.

        With `encoder_hidden_states` the encoder is left out, and `attention_mask` is that of them.

        Returns:
            The documented struct.

        Raises:
            ValueError: if the arguments contradict each other or the config.
        """
        flags = {
            "deterministic": deterministic,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
        }
        if encoder_hidden_states is None:
            encoded = self.encode(
                input_ids,
                attention_mask=attention_mask,
                segment_ids=segment_ids,
                head_mask=head_mask,
                inputs_embeds=inputs_embeds,
                **flags,
            )
        else:
            encoded = FlaxBaseModelOutput(last_hidden_state=encoder_hidden_states)
        decoded = self.decoder_states(
            decoder_input_ids,
            encoded.last_hidden_state,
            encoder_attention_mask=attention_mask,
            decoder_attention_mask=decoder_attention_mask,
            segment_ids=segment_ids,
            decoder_segment_ids=decoder_segment_ids,
            decoder_head_mask=decoder_head_mask,
            cross_attn_head_mask=cross_attn_head_mask,
            decoder_inputs_embeds=decoder_inputs_embeds,
            cache=cache,
            **flags,
        )
        return FlaxSeq2SeqModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )


class UMT5EncoderModel(UMT5Base):
    """The encoder alone."""

    has_decoder: ClassVar[bool] = False

    def __call__(
        self, input_ids: Int[Array, "B S"] | None = None, **arguments: Any
    ) -> FlaxBaseModelOutput:
        """Computes hidden states.

        Args:
            input_ids: Token ids.
            **arguments: Those of `UMT5Base.encode`.

        Returns:
            The documented struct.
        """
        return self.encode(input_ids, **arguments)


class UMT5Model(UMT5Base):
    """Encoder and decoder without a head."""

    def __call__(
        self, input_ids: Int[Array, "B S"] | None = None, **arguments: Any
    ) -> FlaxSeq2SeqModelOutput:
        """Computes hidden states.

        Args:
            input_ids: Token ids of the encoder.
            **arguments: Those of `UMT5Base.encode_and_decode`.

        Returns:
            The documented struct.
        """
        return self.encode_and_decode(input_ids, **arguments)

    def decode(
        self, decoder_input_ids: Int[Array, "B T"] | None = None, *states: Any, **arguments: Any
    ) -> FlaxBaseModelOutputWithPastAndCrossAttentions:
        """Computes the decoder's states.

        Args:
            decoder_input_ids: Token ids.
            *states: The encoder's states.
            **arguments: Those of `UMT5Base.decoder_states`.

        Returns:
            The documented struct.
        """
        return self.decoder_states(decoder_input_ids, *states, **arguments)


class UMT5ForConditionalGeneration(UMT5Base):
    """Encoder and decoder with scores of the decoder's next token."""

    def setup(self) -> None:
        """Declares the submodules."""
        super().setup()
        if not self.config.tie_word_embeddings:
            self.lm_head = VocabularyProjection(
                self.config.vocab_size,
                self.execution.compute_dtype,
                # As in the published pretraining. PyTorch's class draws deviations of 1, with which
                # the loss of a new model begins at several times that of guessing.
                self.config.normal(self.config.d_model),
                self.execution.chunk_of(self.config.vocab_size),
            )

    def __call__(
        self,
        input_ids: Int[Array, "B S"] | None = None,
        *,
        output_logits: bool = True,
        **arguments: Any,
    ) -> FlaxSeq2SeqLMOutput:
        """Scores the decoder's next token at every position, in float32.

        Args:
            input_ids: Token ids of the encoder.
            output_logits: Whether the scores are computed; if not, there are `VocabularyScores` in
                their place.
            **arguments: Those of `UMT5Base.encode_and_decode`.

        Returns:
            The documented struct; its fields beside `logits` are those of `UMT5Model`.
        """
        out = self.encode_and_decode(input_ids, **arguments)
        scores = self._score(out.last_hidden_state)
        return FlaxSeq2SeqLMOutput(scores.resolved(output_logits), **beside(out))

    def decode(
        self, decoder_input_ids: Int[Array, "B T"] | None = None, *states: Any, **arguments: Any
    ) -> FlaxCausalLMOutputWithCrossAttentions:
        """Scores the decoder's next token.

        Args:
            decoder_input_ids: Token ids.
            *states: The encoder's states.
            **arguments: Those of `UMT5Base.decoder_states`.

        Returns:
            The documented struct; its fields beside `logits` are those of `UMT5Model.decode`.
        """
        out = self.decoder_states(decoder_input_ids, *states, **arguments)
        return FlaxCausalLMOutputWithCrossAttentions(
            self._score(out.last_hidden_state).logits(), **beside(out)
        )

    def _score(self, x_BTD: Any) -> VocabularyScores:
        """Scores of every token."""
        if not self.config.tie_word_embeddings:
            return self.lm_head(x_BTD)
        chunk = self.execution.chunk_of(self.config.vocab_size)
        return self.shared.scores(x_BTD * self.config.d_model**-0.5, chunk)


def shift_tokens_right(
    input_ids: Int[Array, "B T"], pad_token_id: int, decoder_start_token_id: int
) -> Int[Array, "B T"]:
    """What the decoder reads to predict some tokens: a start token and all but the last of them.

    Args:
        input_ids: The tokens, or labels; padding takes the place of the label -100.
        pad_token_id: Token of padding.
        decoder_start_token_id: The start token.

    Returns:
        Token ids of the same shape.
    """
    first_B1 = jnp.full_like(input_ids[:, :1], decoder_start_token_id)
    shifted_BT = jnp.concatenate([first_B1, input_ids[:, :-1]], axis=1)
    return jnp.where(shifted_BT == -100, pad_token_id, shifted_BT)


def beside(out: ModelOutput) -> dict[str, Any]:
    """What a struct without a head holds beside the last states, for the struct of a head.

    Args:
        out: The struct.

    Returns:
        Its other fields by name.
    """
    return {name: out[name] for name in out.keys() if name != "last_hidden_state"}
