"""The documented settings of `generate`, and the generation_config.json that keeps them."""

import dataclasses
import json
import logging
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from xformer.field_types import conform
from xformer.files import parse_object, read_limited, write_atomic
from xformer.generation.decoding import NEVER, Beams, Decoding, token_ids
from xformer.generation.rules import ScoreRules
from xformer.generation.sampling import LEAST_TEMPERATURE, Sampling

FILE_NAME = "generation_config.json"
MAX_BYTES = 2**20
MAX_TOKENS = 2**20

_logger = logging.getLogger(__name__)

_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "assistant_confidence_threshold": (0.4,),
    "assistant_early_exit": (None,),
    "assistant_lookbehind": (10,),
    "cache_config": (None,),
    "cache_implementation": (None,),
    "constraints": (None,),
    "diversity_penalty": (None, 0.0),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None,),
    "forced_decoder_ids": (None,),
    "guidance_scale": (None, 1.0),
    "is_assistant": (False,),
    "low_memory": (None, False),
    "max_matching_ngram_size": (None, 2),
    "max_time": (None,),
    "num_assistant_tokens": (None, 5, 20),
    "num_assistant_tokens_schedule": (None, "constant", "heuristic"),
    "num_beam_groups": (None, 1),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "output_logits": (None, False),
    "penalty_alpha": (None, 0.0),
    "prefill_chunk_size": (None,),
    "prompt_lookup_num_tokens": (None,),
    "remove_invalid_values": (None, False),
    "renormalize_logits": (None, False),
    "return_legacy_cache": (None, False, True),
    "sequence_bias": (None,),
    "stop_strings": (None,),
    "target_lookbehind": (10,),
    "token_healing": (None, False),
    "typical_p": (None, 1.0),
    "watermarking_config": (None,),
}
"""Documented settings that would change the result, with the values that ask for nothing."""

_IGNORED = frozenset(
    {"_commit_hash", "_from_model_config", "compile_config", "disable_compile"}
    | {"transformers_version"}
)


@dataclass(kw_only=True)
class GenerationConfig:
    """The documented settings of `generate` with their documented defaults.

    Attributes:
        max_length: Most tokens of a row, prompt included.
        max_new_tokens: Most tokens to write; wins over `max_length`.
        min_length: No row ends with fewer tokens, prompt included.
        min_new_tokens: No row ends with fewer new tokens; wins over `min_length`.
        do_sample: Whether tokens are drawn.
        num_beams: Sequences that beam search follows for each prompt; 1 for no beam search.
        early_stopping: When beam search is done with a prompt: True where `num_beams` sequences
            have ended, False where no other one is likely to be better, "never" where none can be.
        length_penalty: The score of a beam is the sum of its log probabilities over its number of
            new tokens to this power.
        num_return_sequences: Sequences for each prompt, drawn or the best beams.
        temperature: Divides the scores before a token is drawn; at least 1e-30.
        top_k: Only the k most likely tokens are drawn; 0 for no limit.
        top_p: Only the smallest set of most likely tokens whose probabilities reach p is drawn.
        min_p: Only tokens at least this fraction as likely as the likeliest are drawn.
        repetition_penalty: Makes tokens that a row holds less likely; 1 for no change.
        no_repeat_ngram_size: No run of so many tokens comes twice; 0 for no limit.
        bad_words_ids: Runs of tokens that are never completed.
        suppress_tokens: Tokens that are never written.
        begin_suppress_tokens: Tokens that are not written first.
        forced_bos_token_id: The token behind a prompt of one token.
        forced_eos_token_id: The last token of rows that use their tokens up, or several to choose
            from.
        pad_token_id: Follows an end token; that of the model's config if None.
        bos_token_id: For those who build prompts; that of the model's config if None.
        eos_token_id: Ends a row, or several that do; that of the model's config if None.
        decoder_start_token_id: What encoder-decoders begin with; that of the model's config if
            None.
        use_cache: Whether keys and values are kept; the model's config may say no too.
        output_scores: Whether to return the scores that every token was chosen by.
        return_dict_in_generate: Whether to return a struct rather than its sequences alone. The
            default is that of the Flax classes.
    """

    max_length: int = 20
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    do_sample: bool = False
    num_beams: int = 1
    early_stopping: bool | str = False
    length_penalty: float = 1.0
    num_return_sequences: int = 1
    temperature: float = 1.0
    top_k: int | None = 50
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: list[list[int]] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | None = None
    use_cache: bool = True
    output_scores: bool = False
    return_dict_in_generate: bool = True

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            TypeError: naming a field of the wrong type.
            ValueError: naming the field to change.
        """
        self.validate()

    def validate(self) -> None:
        """Checks the fields' types and their ranges.

        Raises:
            TypeError: naming a field of the wrong type.
            ValueError: naming the field to change.
        """
        hints = typing.get_type_hints(type(self))
        for one in fields(self):
            value = _plain(getattr(self, one.name))
            try:
                setattr(self, one.name, conform(value, hints[one.name]))
            except TypeError as error:
                raise TypeError(f"GenerationConfig.{one.name} {error}") from None
        for name in ("max_length", "max_new_tokens", "num_beams", "num_return_sequences"):
            self._require(name, 1)
        for name in ("min_length", "min_new_tokens", "top_k", "no_repeat_ngram_size"):
            self._require(name, 0)
        if self.do_sample and not self.temperature >= LEAST_TEMPERATURE:
            raise ValueError(
                f"temperature must be at least {LEAST_TEMPERATURE}, got {self.temperature}; set "
                "do_sample=False for the likeliest tokens"
            )
        if self.early_stopping not in (True, False, NEVER):
            raise ValueError(
                f"early_stopping must be True, False or {NEVER!r}, got {self.early_stopping!r:.80}"
            )

    def _require(self, name: str, lowest: int) -> None:
        value = getattr(self, name)
        if value is not None and not lowest <= value <= MAX_TOKENS:
            raise ValueError(f"{name} must be from {lowest} to {MAX_TOKENS}, got {value}")

    @classmethod
    def from_model_config(cls, config: Any) -> "GenerationConfig":
        """The settings that older checkpoints keep in their config.json.

        Args:
            config: The architecture.

        Returns:
            The settings.
        """
        carried = getattr(config, "carried", {})
        known = {one.name for one in fields(cls)} - {"return_dict_in_generate"}
        return cls.from_dict({key: carried[key] for key in sorted(known & carried.keys())})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GenerationConfig":
        """Settings by name, as a file has them.

        Args:
            values: The settings. Those that are not known or not supported are named in a warning
                and left out.

        Returns:
            The settings.

        Raises:
            TypeError: naming a setting of the wrong type.
            ValueError: naming a setting that is out of range.
        """
        known = {one.name: values[one.name] for one in fields(cls) if one.name in values}
        foreign = [
            name
            for name, value in values.items()
            if name not in known
            and name not in _IGNORED
            and not (name in _UNSUPPORTED and value in _UNSUPPORTED[name])
        ]
        if foreign:
            shown = ", ".join(f"{name!r:.80}" for name in sorted(foreign)[:20])
            _logger.warning("settings of generation without effect here: %s", shown)
        nullable = {"max_new_tokens", "min_new_tokens", "top_k", "min_p"}
        return cls(
            **{
                name: value
                for name, value in known.items()
                if value is not None
                or name in nullable
                or name.endswith(("_id", "_ids", "_tokens"))
            }
        )

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> "GenerationConfig":
        """Reads generation_config.json.

        Args:
            folder: The folder that has it, or the file.

        Returns:
            The settings.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if the file is malformed, or naming it and a setting that is of the wrong
                type or out of range.
        """
        path = Path(folder)
        path = path / FILE_NAME if path.is_dir() else path
        return cls.from_json(read_limited(path, MAX_BYTES), str(path))

    @classmethod
    def from_json(cls, content: bytes, origin: str) -> "GenerationConfig":
        """Settings that were read from a generation_config.json.

        Args:
            content: The bytes of the file.
            origin: Where they come from, for messages.

        Returns:
            The settings.

        Raises:
            ValueError: if the file is malformed, or naming it and a setting that is of the wrong
                type or out of range.
        """
        values = parse_object(content, origin)
        try:
            return cls.from_dict(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{origin}: {error!s:.1000}") from error

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes generation_config.json into a folder, which is made where it does not exist.

        Args:
            folder: The folder.

        Raises:
            TypeError: naming a field of the wrong type.
            ValueError: naming the field to change.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_atomic(Path(folder) / FILE_NAME, self.to_json_string())

    def to_dict(self) -> dict[str, Any]:
        """The settings that differ from the documented defaults."""
        self.validate()
        defaults = {one.name: one.default for one in fields(self)}
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if value != defaults[name]
        }

    def to_json_string(self) -> str:
        """The settings that differ from the documented defaults, as the file has them."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def changed(self, settings: Mapping[str, Any]) -> "GenerationConfig":
        """A copy with other settings.

        Args:
            settings: Settings by name; those that are not supported only with the values that ask
                for nothing.

        Returns:
            The copy.

        Raises:
            TypeError: if there is no such setting, or naming one of the wrong type.
            ValueError: naming a setting that is out of range or not supported.
        """
        known = {one.name for one in fields(self)}
        for name, value in settings.items():
            if name in _UNSUPPORTED:
                if value not in _UNSUPPORTED[name]:
                    raise ValueError(f"{name}={value!r:.80} is not supported; leave it out")
            elif name not in known:
                raise TypeError(f"generate() has no setting {name!r}; it has {sorted(known)}")
        return dataclasses.replace(self, **{k: v for k, v in settings.items() if k in known})

    def decoding(self, config: Any) -> Decoding:
        """How sequences are written with these settings.

        Args:
            config: The architecture, for the tokens that are not set and the size of its
                vocabulary.

        Returns:
            The decoding.

        Raises:
            ValueError: naming a setting that is out of range or contradicts another.
        """
        self.validate()
        eos = token_ids(config.eos_token_id if self.eos_token_id is None else self.eos_token_id)
        pad = config.pad_token_id if self.pad_token_id is None else self.pad_token_id
        rules = ScoreRules(
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            bad_words_ids=tuple(map(tuple, self.bad_words_ids or ())),
            eos_token_ids=eos,
            forced_bos_token_id=self.forced_bos_token_id,
            forced_eos_token_ids=token_ids(self.forced_eos_token_id),
            suppress_tokens=token_ids(self.suppress_tokens),
            begin_suppress_tokens=token_ids(self.begin_suppress_tokens),
        )
        self._check_ids(config.vocab_size)
        sampling = Sampling()
        if self.do_sample:
            sampling = Sampling(self.temperature, self.top_k or 0, self.top_p, self.min_p or 0.0)
        beams = None
        if self.num_beams > 1:
            beams = Beams(self.num_beams, self.length_penalty, self.early_stopping)
        return Decoding(
            pad_token_id=pad if pad is not None else eos[0] if eos else 0,
            eos_token_ids=eos,
            rules=rules,
            sampling=sampling,
            beams=beams,
            num_return_sequences=self.num_return_sequences,
            output_scores=self.output_scores,
            use_cache=self.use_cache and config.use_cache,
            decoder_start_token_id=self.decoder_start_token_id,
        )

    def new_tokens(self, prompt: int) -> tuple[int, int]:
        """The limits on the number of new tokens.

        Args:
            prompt: Number of tokens of the prompts, padding included.

        Returns:
            The fewest and the most.

        Raises:
            ValueError: if there is no room behind the prompts.
        """
        most = self.max_new_tokens
        if most is None:
            most = self.max_length - prompt
            if most < 1:
                raise ValueError(
                    f"max_length={self.max_length} leaves no room after a prompt of {prompt} "
                    "tokens; set max_length or max_new_tokens"
                )
        fewest = self.min_new_tokens
        return max(self.min_length - prompt, 0) if fewest is None else fewest, most

    def _check_ids(self, vocabulary: int) -> None:
        """Refuses tokens that the model does not have."""
        groups = {
            "bad_words_ids": [token for word in self.bad_words_ids or () for token in word],
            "suppress_tokens": self.suppress_tokens or [],
            "begin_suppress_tokens": self.begin_suppress_tokens or [],
            "forced_bos_token_id": token_ids(self.forced_bos_token_id),
            "forced_eos_token_id": token_ids(self.forced_eos_token_id),
            "eos_token_id": token_ids(self.eos_token_id),
            "pad_token_id": token_ids(self.pad_token_id),
            "decoder_start_token_id": token_ids(self.decoder_start_token_id),
        }
        for name, tokens in groups.items():
            if tokens and not (min(tokens) >= 0 and max(tokens) < vocabulary):
                raise ValueError(
                    f"{name} must hold token ids below config.vocab_size={vocabulary}, got "
                    f"{min(tokens)} to {max(tokens)}"
                )


def _plain(value: Any) -> Any:
    """A setting without what NumPy makes of numbers, and tuples as the lists of a file."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value
