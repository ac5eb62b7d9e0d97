"""What classification and question-answering heads return.

Letters in shapes: B batch, T length, S encoder length, D model width, N heads, C classes or
choices, L layers.
"""

from flax import struct

from xformer.outputs.base import Array, Arrays, Cache, ModelOutput


@struct.dataclass(eq=False)
class FlaxSequenceClassifierOutput(ModelOutput):
    """One class, or one value, per sequence.

    Attributes:
        logits: scores of each class before the softmax, or the value where C is 1, `[B, C]`.
        hidden_states: what enters the first layer and what leaves each, L + 1 of `[B, T, D]`.
        attentions: each layer's weights after the softmax, L of `[B, N, T, T]`.
    """

    logits: Array | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@struct.dataclass(eq=False)
class FlaxSeq2SeqSequenceClassifierOutput(ModelOutput):
    """One class per sequence, from an encoder-decoder.

    Attributes:
        logits: scores of each class before the softmax, or the value where C is 1, `[B, C]`.
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
class FlaxImageClassifierOutputWithNoAttention(ModelOutput):
    """One class per image, from a model that has no attention.

    Attributes:
        logits: scores of each class before the softmax, or the value where C is 1, `[B, C]`.
        hidden_states: a tuple of the stages' outputs, `[B, channels, height, width]` each.
    """

    logits: Array | None = None
    hidden_states: Arrays | None = None


@struct.dataclass(eq=False)
class FlaxMultipleChoiceModelOutput(ModelOutput):
    """One of several choices per example.

    Attributes:
        logits: scores of each choice before the softmax, `[B, C]`.
        hidden_states: what enters the first layer and what leaves each, L + 1 of `[B, T, D]`.
        attentions: each layer's weights after the softmax, L of `[B, N, T, T]`.
    """

    logits: Array | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@struct.dataclass(eq=False)
class FlaxTokenClassifierOutput(ModelOutput):
    """One class per token.

    Attributes:
        logits: scores of each class before the softmax, `[B, T, C]`.
        hidden_states: what enters the first layer and what leaves each, L + 1 of `[B, T, D]`.
        attentions: each layer's weights after the softmax, L of `[B, N, T, T]`.
    """

    logits: Array | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@struct.dataclass(eq=False)
class FlaxQuestionAnsweringModelOutput(ModelOutput):
    """The span that answers a question.

    Attributes:
        start_logits: each position's score as the answer's start, `[B, T]`.
        end_logits: each position's score as the answer's end, `[B, T]`.
        hidden_states: what enters the first layer and what leaves each, L + 1 of `[B, T, D]`.
        attentions: each layer's weights after the softmax, L of `[B, N, T, T]`.
    """

    start_logits: Array | None = None
    end_logits: Array | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@struct.dataclass(eq=False)
class FlaxBigBirdForQuestionAnsweringModelOutput(ModelOutput):
    """The span that answers a question, from BigBird.

    Attributes:
        start_logits: each position's score as the answer's start, `[B, T]`.
        end_logits: each position's score as the answer's end, `[B, T]`.
        pooled_output: the body's pooled first token, `[B, D]`.
        hidden_states: what enters the first layer and what leaves each, L + 1 of `[B, T, D]`.
        attentions: each layer's weights after the softmax, L of `[B, N, T, T]`.
    """

    start_logits: Array | None = None
    end_logits: Array | None = None
    pooled_output: Array | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@struct.dataclass(eq=False)
class FlaxSeq2SeqQuestionAnsweringModelOutput(ModelOutput):
    """The span that answers a question, from an encoder-decoder.

    Attributes:
        start_logits: each encoder position's score as the answer's start, `[B, S]`.
        end_logits: each encoder position's score as the answer's end, `[B, S]`.
        past_key_values: every layer's cached keys and values, for the next call.
        decoder_hidden_states: the decoder's layers, L + 1 of `[B, T, D]`.
        decoder_attentions: the decoder's self-attention weights, L of `[B, N, T, T]`.
        cross_attentions: from decoder to encoder positions, L of `[B, N, T, S]`.
        encoder_last_hidden_state: what leaves the encoder's last layer, `[B, S, D]`.
        encoder_hidden_states: the encoder's layers, L + 1 of `[B, S, D]`.
        encoder_attentions: the encoder's attention weights, L of `[B, N, S, S]`.
    """

    start_logits: Array | None = None
    end_logits: Array | None = None
    past_key_values: Cache | None = None
    decoder_hidden_states: Arrays | None = None
    decoder_attentions: Arrays | None = None
    cross_attentions: Arrays | None = None
    encoder_last_hidden_state: Array | None = None
    encoder_hidden_states: Arrays | None = None
    encoder_attentions: Arrays | None = None
