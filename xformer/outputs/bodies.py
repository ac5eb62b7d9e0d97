"""What models without a head return.

Letters in shapes: B batch, T length, S encoder length, D model width, N heads, L layers.
"""

from flax import struct

from xformer.outputs.base import Array, Arrays, Cache, ModelOutput


@struct.dataclass(eq=False)
class FlaxBaseModelOutput(ModelOutput):
    """A body with attention.

    Attributes:
        last_hidden_state: what leaves the last layer, `[B, T, D]`.
        hidden_states: what enters the first layer and what leaves each, L + 1 of `[B, T, D]`.
        attentions: each layer's weights after the softmax, L of `[B, N, T, T]`.
    """

    last_hidden_state: Array | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@struct.dataclass(eq=False)
class FlaxBaseModelOutputWithNoAttention(ModelOutput):
    """A body that has no attention.

    Attributes:
        last_hidden_state: what leaves the last layer, `[B, channels, height, width]` for images.
        hidden_states: a tuple of L + 1 arrays of that layout.
    """

    last_hidden_state: Array | None = None
    hidden_states: Arrays | None = None


@struct.dataclass(eq=False)
class FlaxBaseModelOutputWithPoolingAndNoAttention(ModelOutput):
    """A body that has no attention, and a pooled summary.

    Attributes:
        last_hidden_state: what leaves the last layer, `[B, channels, height, width]` for images.
        pooler_output: the last state pooled over positions, `[B, D]`.
        hidden_states: a tuple of L + 1 arrays of that layout.
    """

    last_hidden_state: Array | None = None
    pooler_output: Array | None = None
    hidden_states: Arrays | None = None


@struct.dataclass(eq=False)
class FlaxBaseModelOutputWithPast(ModelOutput):
    """A decoder body with a cache.

    Attributes:
        last_hidden_state: what leaves the last layer, `[B, T, D]`.
        past_key_values: every layer's cached keys and values, for the next call.
        hidden_states: what enters the first layer and what leaves each, L + 1 of `[B, T, D]`.
        attentions: each layer's weights after the softmax, L of `[B, N, T, T]`.
    """

    last_hidden_state: Array | None = None
    past_key_values: Cache | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@struct.dataclass(eq=False)
class FlaxBaseModelOutputWithPooling(ModelOutput):
    """An encoder body with a pooler.

    Attributes:
        last_hidden_state: what leaves the last layer, `[B, T, D]`.
        pooler_output: the first token's last state after the pooler, `[B, D]`.
        hidden_states: what enters the first layer and what leaves each, L + 1 of `[B, T, D]`.
        attentions: each layer's weights after the softmax, L of `[B, N, T, T]`.
    """

    last_hidden_state: Array | None = None
    pooler_output: Array | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@struct.dataclass(eq=False)
class FlaxBaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    """A body with a pooler that may decode over an encoder's output.

    Attributes:
        last_hidden_state: what leaves the last layer, `[B, T, D]`.
        pooler_output: the first token's last state after the pooler, `[B, D]`.
        hidden_states: what enters the first layer and what leaves each, L + 1 of `[B, T, D]`.
        past_key_values: every layer's cached keys and values, for the next call.
        attentions: each layer's weights after the softmax, L of `[B, N, T, T]`.
        cross_attentions: the same towards the encoder's positions, L of `[B, N, T, S]`.
    """

    last_hidden_state: Array | None = None
    pooler_output: Array | None = None
    hidden_states: Arrays | None = None
    past_key_values: Cache | None = None
    attentions: Arrays | None = None
    cross_attentions: Arrays | None = None


@struct.dataclass(eq=False)
class FlaxBaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """A decoder body with a cache that may attend to an encoder's output.

    Attributes:
        last_hidden_state: what leaves the last layer, `[B, T, D]`; T is 1 in a step with a cache.
        past_key_values: every layer's cached keys and values, for the next call.
        hidden_states: what enters the first layer and what leaves each, L + 1 of `[B, T, D]`.
        attentions: each layer's weights after the softmax, L of `[B, N, T, T]`.
        cross_attentions: the same towards the encoder's positions, L of `[B, N, T, S]`.
    """

    last_hidden_state: Array | None = None
    past_key_values: Cache | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None
    cross_attentions: Arrays | None = None


@struct.dataclass(eq=False)
class FlaxSeq2SeqModelOutput(ModelOutput):
    """An encoder-decoder body.

    Attributes:
        last_hidden_state: what leaves the decoder's last layer, `[B, T, D]`.
        past_key_values: every layer's cached keys and values, for the next call.
        decoder_hidden_states: the decoder's layers, L + 1 of `[B, T, D]`.
        decoder_attentions: the decoder's self-attention weights, L of `[B, N, T, T]`.
        cross_attentions: from decoder to encoder positions, L of `[B, N, T, S]`.
        encoder_last_hidden_state: what leaves the encoder's last layer, `[B, S, D]`.
        encoder_hidden_states: the encoder's layers, L + 1 of `[B, S, D]`.
        encoder_attentions: the encoder's attention weights, L of `[B, N, S, S]`.
    """

    last_hidden_state: Array | None = None
    past_key_values: Cache | None = None
    decoder_hidden_states: Arrays | None = None
    decoder_attentions: Arrays | None = None
    cross_attentions: Arrays | None = None
    encoder_last_hidden_state: Array | None = None
    encoder_hidden_states: Arrays | None = None
    encoder_attentions: Arrays | None = None
