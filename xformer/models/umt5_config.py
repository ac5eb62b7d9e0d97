"""The architecture of UMT5; `xformer.models.umt5` computes it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
from flax.typing import Initializer

from xformer.layers.cache import Cache
from xformer.layers.execution import Execution
from xformer.layers.feedforward import ACTIVATIONS
from xformer.models.config import ModelConfig, model_config
from xformer.models.field_checks import MAX_LAYERS, MAX_POSITIONS, MAX_VOCAB, MAX_WIDTH

_GATED = "gated-"

_DERIVED = {"dense_act_fn": "activation", "is_gated_act": "is_gated", "scalable_attention": None}
"""Fields of published files that follow from others, with our names; None has no reader at all."""


@model_config
class UMT5Config(ModelConfig):
    """The architecture of a UMT5 model; the defaults are those of UMT5-small.

    Attributes:
        vocab_size: Number of tokens.
        d_model: Model width.
        d_kv: Width of an attention head; the heads need not fill `d_model`.
        d_ff: Width of the feed-forward layers.
        num_layers: Number of encoder layers.
        num_decoder_layers: Number of decoder layers; None means as many.
        num_heads: Number of attention heads.
        relative_attention_num_buckets: Buckets of distances that a bias is learned for; even, as
            the encoder has half of them for each direction.
        relative_attention_max_distance: Distance from which all share a bucket.
        dropout_rate: Dropout on embeddings, attention probabilities, hidden layers, every
            sublayer's result and the final states.
        layer_norm_epsilon: Added to the mean square of the normalisations.
        initializer_factor: Factor on the standard deviations of the initialisation.
        feed_forward_proj: Activation of the feed-forward layers, a key of `ACTIVATIONS`, with
            "gated-" before it for a gated linear unit. In "gated-gelu" it is "gelu_new".
        use_cache: Whether generation keeps keys and values instead of recomputing them.
        pad_token_id: Token of padding.
        eos_token_id: Token that ends a sequence.
        decoder_start_token_id: Token that the decoder reads first.
        classifier_dropout: Dropout of the classifiers.
        tie_word_embeddings: Whether the output projection is the token table, its scores scaled by
            d_model ** -0.5. The released models have a projection of their own.
    """

    vocab_size: int = 250112
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 1024
    num_layers: int = 8
    num_decoder_layers: int | None = None
    num_heads: int = 6
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "gated-gelu"
    use_cache: bool = True
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0
    classifier_dropout: float = 0.0
    tie_word_embeddings: bool = True

    model_type: ClassVar[str] = "umt5"
    attribute_map: ClassVar[Mapping[str, str]] = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], *arguments: Any, **overrides: Any) -> Any:
        """A config from the fields of a config.json; see `ModelConfig.from_dict`.

        Args:
            config_dict: The fields. Those that published files derive from others must agree.
            *arguments: As for `ModelConfig.from_dict`.
            **overrides: As for `ModelConfig.from_dict`.

        Returns:
            The config.

        Raises:
            TypeError: if a field has the wrong type.
            ValueError: naming a field that is out of range or contradicts another.
        """
        plain = {key: value for key, value in config_dict.items() if key not in _DERIVED}
        result = super().from_dict(plain, *arguments, **overrides)
        config = result[0] if isinstance(result, tuple) else result
        for key, derived in _DERIVED.items():
            found = config_dict.get(key)
            if found is not None and derived and found != getattr(config, derived):
                raise ValueError(
                    f"{key}={found!r:.80} contradicts feed_forward_proj="
                    f"{config.feed_forward_proj!r}, of which it is a part"
                )
        return result

    def __post_init__(self) -> None:
        """Fills in the number of decoder layers, and checks the fields.

        Raises:
            TypeError: naming a field of the wrong type.
            ValueError: naming the field to change.
        """
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        super().__post_init__()

    def validate(self) -> None:
        """Checks the fields' types, their ranges, and them against each other.

        Raises:
            TypeError: naming a field of the wrong type.
            ValueError: naming the field to change.
        """
        super().validate()
        self.require_range("vocab_size", 1, MAX_VOCAB)
        self.require_range("num_layers", 1, MAX_LAYERS)
        self.require_range("num_decoder_layers", 1, MAX_LAYERS)
        for key in ("d_model", "d_kv", "d_ff", "num_heads"):
            self.require_range(key, 1, MAX_WIDTH)
        self.require_range("relative_attention_num_buckets", 4, MAX_POSITIONS)
        if self.relative_attention_num_buckets % 2:
            raise ValueError(
                "UMT5Config.relative_attention_num_buckets must be even, got "
                f"{self.relative_attention_num_buckets}"
            )
        exact = self.relative_attention_num_buckets // 2
        self.require_range("relative_attention_max_distance", exact + 1, MAX_POSITIONS)
        for key in ("dropout_rate", "classifier_dropout"):
            self.require_rate(key)
        for key in ("layer_norm_epsilon", "initializer_factor"):
            self.require_positive(key)
        activations = sorted(ACTIVATIONS)
        legal = [*activations, *(_GATED + name for name in activations)]
        self.require_one_of("feed_forward_proj", legal)
        self.require_token_ids("pad_token_id", "eos_token_id", "decoder_start_token_id")

    @property
    def is_encoder_decoder(self) -> bool:
        """Always True."""
        return True

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward layers are gated."""
        return self.feed_forward_proj.startswith(_GATED)

    @property
    def activation(self) -> str:
        """The activation of the feed-forward layers, a key of `ACTIVATIONS`."""
        if self.feed_forward_proj == "gated-gelu":
            return "gelu_new"
        return self.feed_forward_proj.removeprefix(_GATED)

    def normal(self, fan_in: int = 1) -> Initializer:
        """A normal initializer of deviation `initializer_factor` / sqrt(fan_in)."""
        return nn.initializers.normal(self.initializer_factor * fan_in**-0.5)

    def empty_cache(self, batch: int, max_length: int, execution: Execution) -> Cache:
        """A cache of the decoder for `batch` rows of up to `max_length` tokens, none stored."""
        assert self.num_decoder_layers is not None
        return Cache.empty(
            num_layers=self.num_decoder_layers,
            batch=batch,
            max_length=max_length,
            heads=self.num_heads,
            head_dim=self.d_kv,
            dtype=execution.compute_dtype,
        )
