"""The architecture of BigBird; `xformer.models.bigbird` computes it."""

from typing import Any, ClassVar

import flax.linen as nn
from flax.typing import Initializer

from xformer.layers.cache import Cache
from xformer.layers.execution import Execution
from xformer.layers.feedforward import ACTIVATIONS
from xformer.models.block_attention import ATTENTION_TYPES, RANDOM_BLOCKS
from xformer.models.config import ModelConfig, extension, model_config
from xformer.models.field_checks import MAX_LAYERS, MAX_POSITIONS, MAX_VOCAB, MAX_WIDTH


@model_config
class BigBirdConfig(ModelConfig):
    """The architecture of a BigBird model; the defaults are those of BigBird-RoBERTa-base.

    Attributes:
        vocab_size: Number of tokens.
        hidden_size: Model width.
        num_hidden_layers: Number of layers.
        num_attention_heads: Number of heads; must divide `hidden_size`.
        intermediate_size: Width of the feed-forward layers.
        hidden_act: Activation of the feed-forward layers and the heads, a key of `ACTIVATIONS`.
            The pooler's is tanh, as published.
        hidden_dropout_prob: Dropout on the embeddings and on every sublayer's result.
        attention_probs_dropout_prob: Dropout on the attention probabilities.
        max_position_embeddings: Rows of the position table: the longest sequence.
        type_vocab_size: Number of token types.
        initializer_range: Standard deviation of the normal initialisation.
        layer_norm_eps: Added to the variance of layer normalisations.
        use_cache: Whether generation keeps keys and values instead of recomputing them.
        pad_token_id: Token of padding; its embedding starts at zero.
        bos_token_id: Token that begins a sequence, for those who build sequences; nothing here
            reads it.
        eos_token_id: Token that ends a sequence; generation goes on to the longest length if None.
        sep_token_id: Token between texts: a question ends with the first one.
        attention_type: "block_sparse" or "original_full" (every token reads every token).
        use_bias: Whether the query, key and value projections have biases.
        rescale_embeddings: Whether token vectors are multiplied by sqrt(hidden_size).
        block_size: Tokens per block.
        num_random_blocks: Random blocks that each block reads; 0 leaves window and global blocks.
        classifier_dropout: Dropout before the classifiers of tokens and sequences;
            `hidden_dropout_prob` if None.
        is_decoder: Whether tokens read only those before them; always so with the `CausalLM` head.
        add_cross_attention: Whether layers attend to `encoder_hidden_states`.
        tie_word_embeddings: Whether the output projection is the token table.
        random_blocks: Which blocks are random, in training and in evaluation. "hf_eval": each is
            the first block, as `transformers` evaluates; "fixed": one seeded table per layer and
            head, as the published models were trained.
        projection_groups: Groups of the query, key, value and feed-forward projections; 1 is
            dense. Not part of the published architecture.
    """

    vocab_size: int = 50358
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 4096
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    use_cache: bool = True
    pad_token_id: int = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    sep_token_id: int | None = 66
    attention_type: str = "block_sparse"
    use_bias: bool = True
    rescale_embeddings: bool = False
    block_size: int = 64
    num_random_blocks: int = 3
    classifier_dropout: float | None = None
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True
    random_blocks: str = extension(default="hf_eval", where={"attention_type": "block_sparse"})
    projection_groups: int = extension(default=1)

    model_type: ClassVar[str] = "big_bird"
    longer_rows: ClassVar[str] = "resize_position_embeddings"
    unpublished: ClassVar[tuple[str, ...]] = ("BigBirdForNextSentencePrediction",)

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
        if self.sep_token_id is not None:  # a small vocabulary may lack the default
            self.require_range("sep_token_id", 0, MAX_VOCAB)
        for key in ("hidden_size", "intermediate_size", "num_attention_heads", "projection_groups"):
            self.require_range(key, 1, MAX_WIDTH)
        self.require_divisor("num_attention_heads", "hidden_size")
        self.require_divisor("projection_groups", "hidden_size")
        self.require_divisor("projection_groups", "intermediate_size")
        for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if getattr(self, key) is not None:
                self.require_rate(key)
        self.require_one_of("hidden_act", sorted(ACTIVATIONS))
        self.require_one_of("attention_type", ATTENTION_TYPES)
        self.require_one_of("random_blocks", RANDOM_BLOCKS)
        self.require_positive("initializer_range")
        self.require_positive("layer_norm_eps")
        self.require_token_ids("pad_token_id", "bos_token_id", "eos_token_id")

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def kernel_init(self) -> Initializer:
        """Initializer of projections and tables."""
        return nn.initializers.normal(self.initializer_range)

    @property
    def head_dropout(self) -> float:
        """Dropout before the classifier of tokens or sequences."""
        given = self.classifier_dropout
        return self.hidden_dropout_prob if given is None else given

    def empty_cache(self, batch: int, max_length: int, execution: Execution) -> Cache:
        """Makes room for keys and values.

        Args:
            batch: Number of rows.
            max_length: Most tokens of a row.
            execution: How the model is computed.

        Returns:
            A cache with no token stored.

        Raises:
            ValueError: if the model has no positions for so many tokens.
        """
        self.check_length(max_length)
        return Cache.empty(
            num_layers=self.num_hidden_layers,
            batch=batch,
            max_length=max_length,
            heads=self.num_attention_heads,
            head_dim=self.head_dim,
            dtype=execution.compute_dtype,
        )

    def published_as(self, architecture: str, dtype: str) -> "BigBirdConfig":
        """A copy for the config.json of saved weights.

        Args:
            architecture: Name of the model's class, without "Flax".
            dtype: Dtype of the weights.

        Returns:
            The copy; that of a causal language model says that it is a decoder, for other readers
            of the file make it one by that field alone.
        """
        copy: Any = super().published_as(architecture, dtype)
        copy.is_decoder = self.is_decoder or architecture == "BigBirdForCausalLM"
        return copy

    def misread(self, architecture: str) -> tuple[str, ...]:
        """What makes saved weights another model to `transformers`, for it does not know it.

        Args:
            architecture: Name of the model's class, without "Flax".

        Returns:
            As for every family, and block-sparse attention of a decoder: `transformers` lets its
            tokens read later ones.
        """
        unknown = super().misread(architecture)
        causal = self.is_decoder or architecture == "BigBirdForCausalLM"
        if causal and self.attention_type == "block_sparse":
            unknown += ("attention_type='block_sparse' of a decoder",)
        return unknown
