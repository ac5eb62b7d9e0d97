"""Heads on encoders, each written once where the families agree.

A family's file names its body and gets a module for each head:

    class SqueezeBertForMaskedLM(ForMaskedLM):
        body_class, prefix = SqueezeBertModel, "transformer"

What a family does differently it writes out itself. A body is a module of (config, execution,
add_pooling_layer) with the arguments of `EncoderWithHead.__call__` and a property `token_table`.

Parameters beside those of the body:

    cls/predictions/transform/dense/{kernel,bias}                    (embed, -)
    cls/predictions/transform/LayerNorm/{scale,bias}
    cls/predictions/bias, decoder/kernel (tie_word_embeddings=False) (embed, vocab)
    cls/seq_relationship/{kernel,bias}
    classifier/{kernel,bias}                                         (embed, -)
    qa_outputs/{kernel,bias}                                         (embed, -)
"""

import dataclasses
from typing import Any, ClassVar, Protocol, runtime_checkable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from xformer.layers.checks import check_shape
from xformer.layers.dropout import dropout
from xformer.layers.embedding import TokenEmbedding
from xformer.layers.execution import Execution
from xformer.layers.feedforward import ACTIVATIONS
from xformer.layers.linear import Linear
from xformer.layers.norm import layer_norm
from xformer.layers.parameter import with_axes
from xformer.layers.vocabulary import VocabularyProjection, VocabularyScores, computed
from xformer.outputs import (
    FlaxBigBirdForPreTrainingOutput,
    FlaxMaskedLMOutput,
    FlaxMultipleChoiceModelOutput,
    FlaxNextSentencePredictorOutput,
    FlaxQuestionAnsweringModelOutput,
    FlaxSequenceClassifierOutput,
    FlaxTokenClassifierOutput,
)


@runtime_checkable
class EncoderConfig(Protocol):
    """The config fields that heads read; see the families' configs for their meaning.

    Attributes:
        head_dropout: Dropout before the classifier of tokens or sequences.
    """

    vocab_size: int
    hidden_size: int
    hidden_act: str
    hidden_dropout_prob: float
    initializer_range: float
    layer_norm_eps: float
    tie_word_embeddings: bool
    num_labels: int

    @property
    def head_dropout(self) -> float:
        """Dropout before the classifier of tokens or sequences."""
        ...


def scorer(
    config: EncoderConfig, execution: Execution, width: int, name: str | None = None
) -> Linear:
    """The projection of hidden states onto a head's scores, which are float32.

    Args:
        config: The architecture.
        execution: How it is computed.
        width: Number of scores.
        name: Of the submodule; None where `setup` gives it one.

    Returns:
        The Linen module.
    """
    return Linear(
        width,
        ("embed", None),
        dtype=execution.compute_dtype,
        output_dtype=jnp.dtype("float32"),
        kernel_init=nn.initializers.normal(config.initializer_range),
        name=name,
    )


class TokenPrediction(nn.Module):
    """Scores of every token of the vocabulary for hidden states (Devlin et al., 2018).

    Attributes:
        config: The architecture.
        execution: How it is computed.
    """

    config: EncoderConfig
    execution: Execution

    @nn.compact
    def __call__(self, x_BKD: Float[Array, "B K D"], table: TokenEmbedding) -> VocabularyScores:
        """Transforms the states; they are scored by comparing them with the token table.

        Args:
            x_BKD: Hidden states.
            table: The body's token table; not read with `tie_word_embeddings=False`.

        Returns:
            What the scores are computed from.
        """
        config = self.config
        chunk = self.execution.chunk_of(config.vocab_size)
        h_BKD = PredictionTransform(config, self.execution, name="transform")(x_BKD)
        if config.tie_word_embeddings:
            scores = table.scores(h_BKD, chunk)
        else:
            scores = VocabularyProjection(
                config.vocab_size,
                self.execution.compute_dtype,
                nn.initializers.normal(config.initializer_range),
                chunk,
                name="decoder",
            )(h_BKD)
        zeros = with_axes(nn.initializers.zeros, ("vocab",))
        bias_V = self.param("bias", zeros, (config.vocab_size,), jnp.float32)
        return dataclasses.replace(scores, bias_V=bias_V)


class PredictionTransform(nn.Module):
    """Dense layer, activation and normalisation before the vocabulary."""

    config: EncoderConfig
    execution: Execution

    @nn.compact
    def __call__(self, x_BKD: Float[Array, "B K D"]) -> Float[Array, "B K D"]:
        """Transforms hidden states."""
        dtype = self.execution.compute_dtype
        h_BKD = Linear(
            self.config.hidden_size,
            ("embed", None),
            dtype=dtype,
            kernel_init=nn.initializers.normal(self.config.initializer_range),
            name="dense",
        )(x_BKD)
        h_BKD = ACTIVATIONS[self.config.hidden_act](h_BKD)
        return layer_norm(epsilon=self.config.layer_norm_eps, dtype=dtype, name="LayerNorm")(h_BKD)


class PretrainingHeads(nn.Module):
    """The heads under `cls`; a model has the parameters of those that it calls.

    Attributes:
        config: The architecture.
        execution: How it is computed.
    """

    config: EncoderConfig
    execution: Execution

    def setup(self) -> None:
        """Declares the heads."""
        self.predictions = TokenPrediction(self.config, self.execution)
        self.seq_relationship = scorer(self.config, self.execution, 2)

    def tokens(self, x_BKD: Float[Array, "B K D"], table: TokenEmbedding) -> VocabularyScores:
        """Scores of every token of the vocabulary, as `TokenPrediction` describes them."""
        return self.predictions(x_BKD, table)

    def next_sentence(self, pooled_BD: Float[Array, "B D"]) -> Float[Array, "B C"]:
        """Scores that the second text follows the first (0) or does not (1)."""
        return self.seq_relationship(pooled_BD)


class EncoderWithHead(nn.Module):
    """A body and a head on it; a subclass declares its layers in `setup` and reads them in `score`.

    Attributes:
        config: The architecture; its `num_labels` is the width of a classifier.
        execution: How it is computed.
        body_class: The family's body.
        prefix: Name of the body in the parameter tree.
        pooled: Whether the head reads the first state; its body then has a pooler.
        scores_vocabulary: Whether the head scores the tokens of the vocabulary at each place.
    """

    config: EncoderConfig
    execution: Execution = Execution()

    body_class: ClassVar[type[nn.Module]]
    prefix: ClassVar[str]
    pooled: ClassVar[bool] = False
    scores_vocabulary: ClassVar[bool] = False

    def setup(self) -> None:
        """Declares the body."""
        make: Any = self.body_class
        self.body = make(self.config, self.execution, self.pooled, name=self.prefix)

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
        masked_positions: Int[Array, "B K"] | None = None,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        output_logits: bool = True,
    ) -> Any:
        """Computes the body and the head's scores.

        Args:
            input_ids: Token ids; or give `inputs_embeds`.
            attention_mask: 1 for tokens that may be read, 0 for padding.
            token_type_ids: Which text of a pair a token is of; zeros if None.
            position_ids: Position of each token; they count from 0 if None.
            segment_ids: Document of each token in packed rows, 0 for padding; tokens read their
                own document only.
            head_mask: Factor on the attention probabilities of each layer and head.
            inputs_embeds: Token vectors instead of ids.
            masked_positions: The places to score, for heads that score the vocabulary: the logits
                are then (B, K, V) instead of (B, T, V). A place beyond the row gives NaN.
            deterministic: False switches dropout on; needs the "dropout" rng.
            output_attentions: Whether to return attention probabilities.
            output_hidden_states: Whether to return the states that enter each layer and the last.
            output_logits: Whether heads that score the vocabulary compute all scores; if not,
                there are `VocabularyScores` in their place.

        Returns:
            The head's documented struct.

        Raises:
            ValueError: if the arguments contradict each other or the config.
        """
        if not output_logits:
            self._check_vocabulary("output_logits=False is")
        out = self.body(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            segment_ids=segment_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            deterministic=deterministic,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        if masked_positions is not None:
            states = self._states_at(out.last_hidden_state, masked_positions)
            out = out.replace(last_hidden_state=states)
        out = self.score(out, None if deterministic else self.make_rng("dropout"))
        return computed(out) if output_logits else out

    def score(self, out: Any, key: PRNGKeyArray | None) -> Any:
        """The head's struct, with scores of the vocabulary before they are computed.

        Args:
            out: What the body returned.
            key: Random key of the dropout; None means evaluation.

        Returns:
            The documented struct.

        Raises:
            NotImplementedError: if a subclass does not say it.
        """
        raise NotImplementedError(f"{type(self).__name__} must say what its head computes")

    def _states_at(
        self, x_BTD: Float[Array, "B T D"], masked_positions: Int[Array, "B K"]
    ) -> Float[Array, "B K D"]:
        """The states at the places asked for."""
        self._check_vocabulary("masked_positions are")
        shape = (x_BTD.shape[0], *masked_positions.shape[-1:])
        check_shape("masked_positions", masked_positions, shape)
        return jnp.take_along_axis(x_BTD, masked_positions[:, :, None], axis=1, mode="fill")

    def _check_vocabulary(self, given: str) -> None:
        """Refuses an argument that a head can make nothing of."""
        if not self.scores_vocabulary:
            raise ValueError(
                f"{given} for heads that score the vocabulary, and {type(self).__name__} does not"
            )


class ForMaskedLM(EncoderWithHead):
    """Scores of the token that stood at each place, or at the places asked for."""

    scores_vocabulary = True

    def setup(self) -> None:
        """Declares the submodules."""
        super().setup()
        self.cls = PretrainingHeads(self.config, self.execution)

    def score(self, out: Any, key: PRNGKeyArray | None) -> Any:
        """The head's struct."""
        scores: Any = self.cls.tokens(out.last_hidden_state, self.body.token_table)
        return FlaxMaskedLMOutput(
            logits=scores,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


class ForPreTraining(ForMaskedLM):
    """The scores of `ForMaskedLM`, and whether the second text of a pair follows the first."""

    pooled = True

    def score(self, out: Any, key: PRNGKeyArray | None) -> FlaxBigBirdForPreTrainingOutput:
        """The head's struct."""
        scores: Any = self.cls.tokens(out.last_hidden_state, self.body.token_table)
        return FlaxBigBirdForPreTrainingOutput(
            prediction_logits=scores,
            seq_relationship_logits=self.cls.next_sentence(out.pooler_output),
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


class ForNextSentencePrediction(EncoderWithHead):
    """Whether the second text of a pair follows the first."""

    pooled = True

    def setup(self) -> None:
        """Declares the submodules."""
        super().setup()
        self.cls = PretrainingHeads(self.config, self.execution)

    def score(self, out: Any, key: PRNGKeyArray | None) -> FlaxNextSentencePredictorOutput:
        """The head's struct."""
        return FlaxNextSentencePredictorOutput(
            logits=self.cls.next_sentence(out.pooler_output),
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


class ForSequenceClassification(EncoderWithHead):
    """Scores of each label for a row, from the pooled state."""

    pooled = True

    def setup(self) -> None:
        """Declares the submodules."""
        super().setup()
        self.classifier = scorer(self.config, self.execution, self.config.num_labels)

    def score(self, out: Any, key: PRNGKeyArray | None) -> FlaxSequenceClassifierOutput:
        """The head's struct."""
        pooled_BD = dropout(out.pooler_output, self.config.head_dropout, key)
        return FlaxSequenceClassifierOutput(
            logits=self.classifier(pooled_BD),
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


class ForTokenClassification(EncoderWithHead):
    """Scores of each label for every token."""

    def setup(self) -> None:
        """Declares the submodules."""
        super().setup()
        self.classifier = scorer(self.config, self.execution, self.config.num_labels)

    def score(self, out: Any, key: PRNGKeyArray | None) -> FlaxTokenClassifierOutput:
        """The head's struct."""
        x_BTD = dropout(out.last_hidden_state, self.config.head_dropout, key)
        return FlaxTokenClassifierOutput(
            logits=self.classifier(x_BTD),
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


class ForQuestionAnswering(EncoderWithHead):
    """Scores of each token as the start and as the end of an answer."""

    def setup(self) -> None:
        """Declares the submodules."""
        super().setup()
        self.qa_outputs = scorer(self.config, self.execution, 2)

    def score(self, out: Any, key: PRNGKeyArray | None) -> FlaxQuestionAnsweringModelOutput:
        """The head's struct."""
        start_BT, end_BT = jnp.moveaxis(self.qa_outputs(out.last_hidden_state), -1, 0)
        return FlaxQuestionAnsweringModelOutput(
            start_logits=start_BT,
            end_logits=end_BT,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


class ForMultipleChoice(EncoderWithHead):
    """A score for each of several texts, of which one is right.

    Arguments have an axis of choices after the batch. `hidden_states` and `attentions` have
    batch * choices rows, as documented.
    """

    pooled = True

    def setup(self) -> None:
        """Declares the submodules."""
        super().setup()
        self.classifier = scorer(self.config, self.execution, 1)

    def __call__(  # type: ignore[override]  # no place in a choice is scored
        self,
        input_ids: Int[Array, "B C T"] | None = None,
        *,
        attention_mask: Int[Array, "B C T"] | None = None,
        token_type_ids: Int[Array, "B C T"] | None = None,
        position_ids: Int[Array, "B C T"] | None = None,
        segment_ids: Int[Array, "B C T"] | None = None,
        head_mask: Float[Array, "L N"] | None = None,
        inputs_embeds: Float[Array, "B C T D"] | None = None,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> FlaxMultipleChoiceModelOutput:
        """Computes the body for every choice, and their scores.

        The arguments are those of `EncoderWithHead`.

        Returns:
            The documented struct.

        Raises:
            ValueError: if there are neither ids nor vectors with an axis of choices, or if
                another argument has no such axis.
        """
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None or given.ndim != (3 if given is input_ids else 4):
            raise ValueError(
                "multiple choice needs input_ids of shape (batch, choices, length), or "
                "inputs_embeds of one axis more"
            )
        batch, choices, length = given.shape[:3]
        for name, array in (
            ("attention_mask", attention_mask),
            ("token_type_ids", token_type_ids),
            ("position_ids", position_ids),
            ("segment_ids", segment_ids),
        ):
            check_shape(name, array, (batch, choices, length))

        def rows(array: Array | None) -> Array | None:
            return None if array is None else array.reshape(batch * choices, *array.shape[2:])

        out = self.body(
            rows(input_ids),
            attention_mask=rows(attention_mask),
            token_type_ids=rows(token_type_ids),
            position_ids=rows(position_ids),
            segment_ids=rows(segment_ids),
            head_mask=head_mask,
            inputs_embeds=rows(inputs_embeds),
            deterministic=deterministic,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        key = None if deterministic else self.make_rng("dropout")
        pooled_BD = dropout(out.pooler_output, self.config.hidden_dropout_prob, key)
        return FlaxMultipleChoiceModelOutput(
            logits=self.classifier(pooled_BD).reshape(batch, choices),
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
