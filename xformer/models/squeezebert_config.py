"""The architecture of SqueezeBERT; `xformer.models.squeezebert` computes it."""

from typing import ClassVar

import flax.linen as nn
from flax.typing import Initializer

from xformer.layers.feedforward import ACTIVATIONS
from xformer.models.block_attention import ATTENTION_TYPES, RANDOM_BLOCKS
from xformer.models.config import ModelConfig, extension, model_config
from xformer.models.field_checks import MAX_LAYERS, MAX_POSITIONS, MAX_VOCAB, MAX_WIDTH

_GROUPS = {  # of each grouped projection: the widths that they divide
    "q_groups": ("hidden_size",),
    "k_groups": ("hidden_size",),
    "v_groups": ("hidden_size",),
    "post_attention_groups": ("hidden_size",),
    "intermediate_groups": ("hidden_size", "intermediate_size"),
    "output_groups": ("hidden_size", "intermediate_size"),
}

_SPARSE = {"attention_type": "block_sparse"}


@model_config
class SqueezeBertConfig(ModelConfig):
    """The architecture of a SqueezeBERT model; the defaults are those of SqueezeBERT-uncased.

    Attributes:
        vocab_size: Number of tokens.
        hidden_size: Model width.
        num_hidden_layers: Number of layers.
        num_attention_heads: Number of heads; must divide `hidden_size`.
        intermediate_size: Width of the feed-forward layers.
        hidden_act: Activation of the feed-forward layers and the masked-LM head, a key of
            `ACTIVATIONS`. The pooler's is tanh.
        hidden_dropout_prob: Dropout on the embeddings, on every sublayer's result and before the
            classifiers.
        attention_probs_dropout_prob: Dropout on the attention probabilities.
        max_position_embeddings: Rows of the position table: the longest sequence.
        type_vocab_size: Number of token types.
        initializer_range: Standard deviation of the normal initialisation.
        layer_norm_eps: Added to the variance of the layer normalisations of the embeddings and the
            masked-LM head; inside the layers it is 1e-12, as published.
        pad_token_id: Token of padding; its embedding starts at zero.
        embedding_size: Width of the embeddings; must be `hidden_size`.
        q_groups: Groups of the query projections.
        k_groups: Groups of the key projections.
        v_groups: Groups of the value projections.
        post_attention_groups: Groups of the projections after attention.
        intermediate_groups: Groups of the first projections of the feed-forward layers.
        output_groups: Groups of the second projections of the feed-forward layers.
        tie_word_embeddings: Whether the output projection is the token table.
        attention_type: "original_full" (every token reads every token) or "block_sparse", which is
            not part of the published architecture; nor are the following fields.
        block_size: Tokens per block.
        num_random_blocks: Random blocks that each block reads; 0 leaves window and global blocks.
        random_blocks: Which blocks are random. "hf_eval": each is the first block; "fixed": one
            seeded table per layer and head.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    embedding_size: int = 768
    q_groups: int = 4
    k_groups: int = 4
    v_groups: int = 4
    post_attention_groups: int = 1
    intermediate_groups: int = 4
    output_groups: int = 4
    tie_word_embeddings: bool = True
    attention_type: str = extension(default="original_full")
    block_size: int = extension(default=64, where=_SPARSE)
    num_random_blocks: int = extension(default=3, where=_SPARSE)
    random_blocks: str = extension(default="hf_eval", where=_SPARSE)

    model_type: ClassVar[str] = "squeezebert"
    longer_rows: ClassVar[str] = "give position_ids"
    unpublished: ClassVar[tuple[str, ...]] = (
        "SqueezeBertForPreTraining",
        "SqueezeBertForNextSentencePrediction",
    )

    def validate(self) -> None:
        """Checks the fields' types, their ranges, and them against each other.

        Raises:
            TypeError: naming a field of the wrong type.
            ValueError: naming the field to change.
        """
        super().validate()
        self.require_range("vocab_size", 1, MAX_VOCAB)
        self.require_range("num_hidden_layers", 1, MAX_LAYERS)
        for key in ("max_position_embeddings", "type_vocab_size", "block_size"):
            self.require_range(key, 1, MAX_POSITIONS)
        self.require_range("num_random_blocks", 0, MAX_POSITIONS)
        self.require_token_ids("pad_token_id")
        for key in ("hidden_size", "intermediate_size", "num_attention_heads", *_GROUPS):
            self.require_range(key, 1, MAX_WIDTH)
        self.require_divisor("num_attention_heads", "hidden_size")
        for key, widths in _GROUPS.items():
            for width in widths:
                self.require_divisor(key, width)
        if self.embedding_size != self.hidden_size:
            raise ValueError(
                f"SqueezeBertConfig.embedding_size={self.embedding_size} must be "
                f"SqueezeBertConfig.hidden_size={self.hidden_size}"
            )
        for key in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            self.require_rate(key)
        for key in ("initializer_range", "layer_norm_eps"):
            self.require_positive(key)
        self.require_one_of("hidden_act", sorted(ACTIVATIONS))
        self.require_one_of("attention_type", ATTENTION_TYPES)
        self.require_one_of("random_blocks", RANDOM_BLOCKS)

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def head_dropout(self) -> float:
        """Dropout before the classifier of tokens or sequences."""
        return self.hidden_dropout_prob

    @property
    def kernel_init(self) -> Initializer:
        """The initializer of kernels and tables."""
        return nn.initializers.normal(self.initializer_range)
