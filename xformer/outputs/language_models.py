"""What language-model and pretraining heads return.

Letters in shapes: B batch, T length, S encoder length, D model width, N heads, V vocabulary, L
layers.
"""

from flax import struct

from xformer.outputs.base import Array, Arrays, Cache, ModelOutput


@struct.dataclass(eq=False)
class FlaxCausalLMOutputWithCrossAttentions(ModelOutput):
    """A decoder that predicts the next token.

    Attributes:
        logits: scores of every token of the vocabulary, before the softmax, `[B, T, V]`.
        past_key_values: every layer's cached keys and values, for the next call.
        hidden_states: what enters the first layer and what leaves each, L + 1 of `[B, T, D]`.
        attentions: each layer's weights after the softmax, L of `[B, N, T, T]`.
        cross_attentions: the same towards the encoder's positions, L of `[B, N, T, S]`.
    """

    logits: Array | None = None
    past_key_values: Cache | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None
    cross_attentions: Arrays | None = None


@struct.dataclass(eq=False)
class FlaxMaskedLMOutput(ModelOutput):
    """An encoder that predicts masked tokens.

    Attributes:
        logits: scores of every token of the vocabulary, before the softmax, `[B, T, V]`.
        hidden_states: what enters the first layer and what leaves each, L + 1 of `[B, T, D]`.
        attentions: each layer's weights after the softmax, L of `[B, N, T, T]`.
    """

    logits: Array | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@struct.dataclass(eq=False)
class FlaxSeq2SeqLMOutput(ModelOutput):
    """An encoder-decoder that predicts the decoder's next token.

    Attributes:
        logits: scores of every token of the vocabulary, before the softmax, `[B, T, V]`.
        past_key_values: every layer's cached keys and values, for the next call.
        decoder_hidden_states: the decoder's layers, L + 1 of `[B, T, D]`.
        decoder_attentions: the decoder's self-attention weights, L of `[B, N, T, T]`.
        cross_attentions: from decoder to encoder positions, L of `[B, N, T, S]`.
        encoder_last_hidden_state: what leaves the encoder's last layer, `[B, S, D]`.
        encoder_hidden_states: the encoder's layers, L + 1 of `[B, S, D]`.
        encoder_attentions: the encoder's attention weights, L of `[B, N, S, S]`.
    """

    logits: Array | None = None
    past_key_values: Cache | None = None
    decoder_hidden_states: Arrays | None = None
    decoder_attentions: Arrays | None = None
    cross_attentions: Arrays | None = None
    encoder_last_hidden_state: Array | None = None
    encoder_hidden_states: Arrays | None = None
    encoder_attentions: Arrays | None = None


@struct.dataclass(eq=False)
class FlaxBigBirdForPreTrainingOutput(ModelOutput):
    """BigBird's two pretraining heads.

    Attributes:
        prediction_logits: scores of every token of the vocabulary, before the softmax, `[B, T, V]`.
        seq_relationship_logits: scores that the second segment follows the first (class 0)
            or does not (class 1), before the softmax, `[B, 2]`.
        hidden_states: what enters the first layer and what leaves each, L + 1 of `[B, T, D]`.
        attentions: each layer's weights after the softmax, L of `[B, N, T, T]`.
    """

    prediction_logits: Array | None = None
    seq_relationship_logits: Array | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@struct.dataclass(eq=False)
class FlaxNextSentencePredictorOutput(ModelOutput):
    """Whether two sentences follow one another.

    Attributes:
        logits: scores that the second sentence follows the first (class 0) or does not
            (class 1), before the softmax, `[B, 2]`.
        hidden_states: what enters the first layer and what leaves each, L + 1 of `[B, T, D]`.
        attentions: each layer's weights after the softmax, L of `[B, N, T, T]`.
    """

    logits: Array | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None
