"""How a text is to be encoded: what callers may say, and the same after every check."""

import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

VERY_LARGE_INTEGER = int(1e30)  # The `model_max_length` of a tokenizer that has none.
_LARGE_INTEGER = int(1e20)

_logger = logging.getLogger(__name__)


class PaddingStrategy(enum.StrEnum):
    """To which length sequences are filled up."""

    LONGEST = "longest"
    MAX_LENGTH = "max_length"
    DO_NOT_PAD = "do_not_pad"


class TruncationStrategy(enum.StrEnum):
    """Which sequence of a pair is cut to fit."""

    ONLY_FIRST = "only_first"
    ONLY_SECOND = "only_second"
    LONGEST_FIRST = "longest_first"
    DO_NOT_TRUNCATE = "do_not_truncate"


class EncodingOptions(TypedDict, total=False):
    """The keyword arguments of `__call__`, `encode`, `encode_plus`, ..., as they are documented.

    Attributes:
        add_special_tokens: whether the family's leading, separating and closing tokens are added.
        padding: `True` or "longest", "max_length", `False` or "do_not_pad".
        truncation: `True` or "longest_first", "only_first", "only_second", `False` or
            "do_not_truncate".
        max_length: length to pad or truncate to; `model_max_length` where it is left out.
        stride: tokens that overflowing parts share with what was kept.
        is_split_into_words: whether texts come as lists of words.
        pad_to_multiple_of: lengths are padded up to a multiple of this.
        padding_side: "right" or "left", the tokenizer's `padding_side` where it is left out.
        return_tensors: "np" or "jax" for arrays, `None` for lists.
        return_token_type_ids: whether they are returned; where the model takes them by default.
        return_attention_mask: whether it is returned; where the model takes it by default.
        return_overflowing_tokens: whether what was cut off is returned too.
        return_special_tokens_mask: whether a mask of the added special tokens is returned.
        return_offsets_mapping: whether characters of each token are returned (fast only).
        return_length: whether lengths are returned.
        verbose: whether doubtful settings are logged.
        split_special_tokens: whether special tokens spelled in a text are read as text.
    """

    add_special_tokens: bool
    padding: bool | str | PaddingStrategy
    truncation: bool | str | TruncationStrategy | None
    max_length: int | None
    stride: int
    is_split_into_words: bool
    pad_to_multiple_of: int | None
    padding_side: str | None
    return_tensors: str | None
    return_token_type_ids: bool | None
    return_attention_mask: bool | None
    return_overflowing_tokens: bool
    return_special_tokens_mask: bool
    return_offsets_mapping: bool
    return_length: bool
    verbose: bool
    split_special_tokens: bool | None


@dataclass(frozen=True, kw_only=True)
class EncodingSettings:
    """`EncodingOptions` after defaults and checks; the fields mean the same.

    `max_length` is a number where truncation or "max_length" padding needs one.  The
    `return_token_type_ids` and `return_attention_mask` that are `None` follow the tokenizer's
    `model_input_names`.
    """

    add_special_tokens: bool = True
    padding: PaddingStrategy = PaddingStrategy.DO_NOT_PAD
    truncation: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE
    max_length: int | None = None
    stride: int = 0
    is_split_into_words: bool = False
    pad_to_multiple_of: int | None = None
    padding_side: str = "right"
    return_tensors: str | None = None
    return_token_type_ids: bool | None = None
    return_attention_mask: bool | None = None
    return_overflowing_tokens: bool = False
    return_special_tokens_mask: bool = False
    return_offsets_mapping: bool = False
    return_length: bool = False
    verbose: bool = True
    split_special_tokens: bool = False


def resolve(
    options: EncodingOptions,
    *,
    model_max_length: int,
    padding_side: str,
    split_special_tokens: bool,
    has_pad_token: bool,
    warn: Callable[[str], None] = _logger.warning,
) -> EncodingSettings:
    """Checks what a caller asked for and fills in the tokenizer's defaults.

    Args:
        options: what the caller said.
        model_max_length: the tokenizer's; a huge number where it has none.
        padding_side: the tokenizer's.
        split_special_tokens: the tokenizer's.
        has_pad_token: whether it can pad.
        warn: called with each doubt about the options, unless `verbose=False`.

    Returns:
        The settings.

    Raises:
        TypeError: there is no such option.
        ValueError: an option is out of range, or does not go with another.
    """
    unknown = options.keys() - EncodingOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"there is no option {', '.join(sorted(unknown))} of encoding")
    if not options.get("verbose", True):
        warn = _ignore
    chosen: dict[str, Any] = dict(options)
    if chosen.get("padding_side") is None:
        chosen["padding_side"] = padding_side
    if chosen.get("split_special_tokens") is None:
        chosen["split_special_tokens"] = split_special_tokens
    chosen |= _lengths(options, model_max_length, warn)
    settings = EncodingSettings(**chosen)
    _check(settings, has_pad_token)
    return settings


def _lengths(
    options: EncodingOptions, model_max_length: int, warn: Callable[[str], None]
) -> dict[str, Any]:
    """The strategies and the length they go to, from all that may be left out."""
    padding, truncation = options.get("padding", False), options.get("truncation")
    max_length = options.get("max_length")
    if max_length is not None and padding is False and truncation is None:
        warn(
            "max_length without truncation cuts longest_first; pass truncation=True (or a "
            "strategy) to say so, or truncation=False to keep long texts whole"
        )
        truncation = True
    if padding is True and max_length is not None and not _truncates(truncation):
        warn("max_length is not used by padding=True; pass padding='max_length' to pad to it")
    pads = _strategy("padding", padding, PaddingStrategy.LONGEST, PaddingStrategy.DO_NOT_PAD)
    cuts = _strategy(
        "truncation",
        truncation,
        TruncationStrategy.LONGEST_FIRST,
        TruncationStrategy.DO_NOT_TRUNCATE,
    )
    if max_length is None and (pads is PaddingStrategy.MAX_LENGTH or _truncates(cuts)):
        if model_max_length > _LARGE_INTEGER:
            warn(
                "neither max_length nor the tokenizer's model_max_length is set; nothing is "
                "padded or truncated to it"
            )
            cuts = TruncationStrategy.DO_NOT_TRUNCATE
            if pads is PaddingStrategy.MAX_LENGTH:
                pads = PaddingStrategy.DO_NOT_PAD
        else:
            max_length = model_max_length
    return {"padding": pads, "truncation": cuts, "max_length": max_length}


def _truncates(truncation: bool | str | TruncationStrategy | None) -> bool:
    return truncation not in (None, False, TruncationStrategy.DO_NOT_TRUNCATE)


def _strategy(key: str, value: Any, default: Any, off: Any) -> Any:
    if value is None or value is False:
        return off
    if value is True:
        return default
    try:
        return type(default)(value)
    except ValueError:
        known = ", ".join(repr(strategy.value) for strategy in type(default))
        raise ValueError(f"{key} must be True, False or one of {known}, got {value!r}") from None


def _check(settings: EncodingSettings, has_pad_token: bool) -> None:
    if settings.padding_side not in ("right", "left"):
        raise ValueError(f'padding_side must be "right" or "left", got {settings.padding_side!r}')
    for key, least in (("max_length", 0), ("stride", 0), ("pad_to_multiple_of", 1)):
        value = getattr(settings, key)
        if value is not None and value < least:
            raise ValueError(f"{key} must be at least {least}, got {value}")
    pads = settings.padding is not PaddingStrategy.DO_NOT_PAD
    if pads and not has_pad_token:
        raise ValueError(
            "a tokenizer must have a padding token to pad; set one, for example "
            "tokenizer.pad_token = tokenizer.eos_token"
        )
    multiple, length = settings.pad_to_multiple_of, settings.max_length
    if pads and _truncates(settings.truncation) and multiple and length and length % multiple:
        raise ValueError(
            f"max_length={length} must be a multiple of pad_to_multiple_of={multiple} where both "
            "padding and truncation are on"
        )


def _ignore(message: str) -> None:
    """Says nothing."""
