"""The documented output structs, each of them dataclass, tuple, dictionary and pytree at once."""

from xformer.outputs.base import (
    ModelOutput,
)
from xformer.outputs.bodies import (
    FlaxBaseModelOutput,
    FlaxBaseModelOutputWithNoAttention,
    FlaxBaseModelOutputWithPast,
    FlaxBaseModelOutputWithPastAndCrossAttentions,
    FlaxBaseModelOutputWithPooling,
    FlaxBaseModelOutputWithPoolingAndCrossAttentions,
    FlaxBaseModelOutputWithPoolingAndNoAttention,
    FlaxSeq2SeqModelOutput,
)
from xformer.outputs.generation import (
    FlaxBeamSearchOutput,
    FlaxGreedySearchOutput,
    FlaxSampleOutput,
)
from xformer.outputs.language_models import (
    FlaxBigBirdForPreTrainingOutput,
    FlaxCausalLMOutputWithCrossAttentions,
    FlaxMaskedLMOutput,
    FlaxNextSentencePredictorOutput,
    FlaxSeq2SeqLMOutput,
)
from xformer.outputs.tasks import (
    FlaxBigBirdForQuestionAnsweringModelOutput,
    FlaxImageClassifierOutputWithNoAttention,
    FlaxMultipleChoiceModelOutput,
    FlaxQuestionAnsweringModelOutput,
    FlaxSeq2SeqQuestionAnsweringModelOutput,
    FlaxSeq2SeqSequenceClassifierOutput,
    FlaxSequenceClassifierOutput,
    FlaxTokenClassifierOutput,
)

__all__ = [
    "FlaxBaseModelOutput",
    "FlaxBaseModelOutputWithNoAttention",
    "FlaxBaseModelOutputWithPast",
    "FlaxBaseModelOutputWithPastAndCrossAttentions",
    "FlaxBaseModelOutputWithPooling",
    "FlaxBaseModelOutputWithPoolingAndCrossAttentions",
    "FlaxBaseModelOutputWithPoolingAndNoAttention",
    "FlaxBeamSearchOutput",
    "FlaxBigBirdForPreTrainingOutput",
    "FlaxBigBirdForQuestionAnsweringModelOutput",
    "FlaxCausalLMOutputWithCrossAttentions",
    "FlaxGreedySearchOutput",
    "FlaxImageClassifierOutputWithNoAttention",
    "FlaxMaskedLMOutput",
    "FlaxMultipleChoiceModelOutput",
    "FlaxNextSentencePredictorOutput",
    "FlaxQuestionAnsweringModelOutput",
    "FlaxSampleOutput",
    "FlaxSeq2SeqLMOutput",
    "FlaxSeq2SeqModelOutput",
    "FlaxSeq2SeqQuestionAnsweringModelOutput",
    "FlaxSeq2SeqSequenceClassifierOutput",
    "FlaxSequenceClassifierOutput",
    "FlaxTokenClassifierOutput",
    "ModelOutput",
]
