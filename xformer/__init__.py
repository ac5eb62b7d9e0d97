"""JAX/Flax transformers: UMT5, BigBird, SqueezeBERT and XGLM.

Every public name is imported on first use, so that `import xformer` costs nothing: neither JAX nor
Flax is loaded before a name that needs them is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that it comes from. The import below shows the same names to type
# checkers and editors.
_HOMES = {
    "AddedToken": "tokenization.special_tokens",
    "AutoConfig": "pretrained.auto",
    "AutoTokenizer": "tokenization.auto",
    "BatchEncoding": "tokenization.encoding",
    "CharSpan": "tokenization.encoding",
    "CausalLM": "layers.heads",
    "Execution": "layers.execution",
    "FlaxAutoModel": "pretrained.auto",
    "FlaxAutoModelForCausalLM": "pretrained.auto",
    "FlaxBaseModelOutput": "outputs",
    "FlaxBaseModelOutputWithNoAttention": "outputs",
    "FlaxBaseModelOutputWithPast": "outputs",
    "FlaxBaseModelOutputWithPastAndCrossAttentions": "outputs",
    "FlaxBaseModelOutputWithPooling": "outputs",
    "FlaxBaseModelOutputWithPoolingAndCrossAttentions": "outputs",
    "FlaxBaseModelOutputWithPoolingAndNoAttention": "outputs",
    "FlaxBeamSearchOutput": "outputs",
    "FlaxBigBirdForPreTrainingOutput": "outputs",
    "FlaxBigBirdForQuestionAnsweringModelOutput": "outputs",
    "FlaxCausalLMOutputWithCrossAttentions": "outputs",
    "FlaxGreedySearchOutput": "outputs",
    "FlaxImageClassifierOutputWithNoAttention": "outputs",
    "FlaxMaskedLMOutput": "outputs",
    "FlaxMultipleChoiceModelOutput": "outputs",
    "FlaxNextSentencePredictorOutput": "outputs",
    "FlaxPreTrainedModel": "pretrained.model",
    "FlaxQuestionAnsweringModelOutput": "outputs",
    "FlaxSampleOutput": "outputs",
    "FlaxSeq2SeqLMOutput": "outputs",
    "FlaxSeq2SeqModelOutput": "outputs",
    "FlaxSeq2SeqQuestionAnsweringModelOutput": "outputs",
    "FlaxSeq2SeqSequenceClassifierOutput": "outputs",
    "FlaxSequenceClassifierOutput": "outputs",
    "FlaxTokenClassifierOutput": "outputs",
    "FlaxXGLMForCausalLM": "pretrained.xglm",
    "FlaxXGLMModel": "pretrained.xglm",
    "FlaxXGLMPreTrainedModel": "pretrained.xglm",
    "ModelOutput": "outputs",
    "PreTrainedTokenizer": "tokenization.slow",
    "PreTrainedTokenizerBase": "tokenization.base",
    "PreTrainedTokenizerFast": "tokenization.fast",
    "Sampling": "generation.sampling",
    "TokenSpan": "tokenization.encoding",
    "XGLMConfig": "models.xglm",
    "XGLMForCausalLM": "models.xglm",
    "XGLMModel": "models.xglm",
    "XGLMTokenizer": "tokenization.xglm",
    "XGLMTokenizerFast": "tokenization.xglm_fast",
    "build": "models.build",
    "generate": "generation.decode",
    "read_params": "pretrained.folder",
}

if TYPE_CHECKING:
    from xformer.generation.decode import generate as generate
    from xformer.generation.sampling import Sampling as Sampling
    from xformer.layers.execution import Execution as Execution
    from xformer.layers.heads import CausalLM as CausalLM
    from xformer.models.build import build as build
    from xformer.models.xglm import XGLMConfig as XGLMConfig
    from xformer.models.xglm import XGLMForCausalLM as XGLMForCausalLM
    from xformer.models.xglm import XGLMModel as XGLMModel
    from xformer.outputs import *  # noqa: F403
    from xformer.pretrained.auto import AutoConfig as AutoConfig
    from xformer.pretrained.auto import FlaxAutoModel as FlaxAutoModel
    from xformer.pretrained.auto import FlaxAutoModelForCausalLM as FlaxAutoModelForCausalLM
    from xformer.pretrained.folder import read_params as read_params
    from xformer.pretrained.model import FlaxPreTrainedModel as FlaxPreTrainedModel
    from xformer.pretrained.xglm import FlaxXGLMForCausalLM as FlaxXGLMForCausalLM
    from xformer.pretrained.xglm import FlaxXGLMModel as FlaxXGLMModel
    from xformer.pretrained.xglm import FlaxXGLMPreTrainedModel as FlaxXGLMPreTrainedModel
    from xformer.tokenization.auto import AutoTokenizer as AutoTokenizer
    from xformer.tokenization.base import PreTrainedTokenizerBase as PreTrainedTokenizerBase
    from xformer.tokenization.encoding import BatchEncoding as BatchEncoding
    from xformer.tokenization.encoding import CharSpan as CharSpan
    from xformer.tokenization.encoding import TokenSpan as TokenSpan
    from xformer.tokenization.fast import PreTrainedTokenizerFast as PreTrainedTokenizerFast
    from xformer.tokenization.slow import PreTrainedTokenizer as PreTrainedTokenizer
    from xformer.tokenization.special_tokens import AddedToken as AddedToken
    from xformer.tokenization.xglm import XGLMTokenizer as XGLMTokenizer
    from xformer.tokenization.xglm_fast import XGLMTokenizerFast as XGLMTokenizerFast

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Imports a public name from its module when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'xformer' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"xformer.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Lists the public names, imported or not, for completion."""
    return sorted({*globals(), *_HOMES})
