"""The arguments that every tokenizer's constructor takes, and what each may be."""

import math
from collections.abc import Sequence
from typing import Any, TypedDict

from tokenizers import AddedToken

from xformer.tokenization.special_tokens import Token

_SIDES = ("right", "left")
# Attribute set from an option of the same name: its types, and its values where they are few.
SETTINGS: dict[str, tuple[tuple[type, ...], tuple[Any, ...]]] = {
    "name_or_path": ((str,), ()),
    "model_max_length": ((int, float), ()),
    "padding_side": ((str,), _SIDES),
    "truncation_side": ((str,), _SIDES),
    "clean_up_tokenization_spaces": ((bool,), ()),
    "split_special_tokens": ((bool,), ()),
    "model_input_names": ((list, tuple), ()),
}


class TokenizerOptions(TypedDict, total=False):
    """The keyword arguments that every tokenizer's constructor takes.

    Attributes:
        bos_token: begin of a sequence.
        eos_token: end of a sequence.
        unk_token: stands for what is not in the vocabulary.
        sep_token: separates the sequences of a pair.
        pad_token: fills up batches.
        cls_token: the token of a classifier.
        mask_token: stands for what a masked language model predicts.
        additional_special_tokens: further texts that stand for one id of their own.
        extra_special_tokens: must be empty; roles of other libraries' models.
        added_tokens_decoder: tokens by id that are not (or not as such) in the model file.
        model_max_length: length of the longest input; a huge number where there is no limit.
        padding_side: "right" or "left", where sequences are filled up.
        truncation_side: "right" or "left", where they are cut.
        model_input_names: what the model takes, `input_ids` first.
        clean_up_tokenization_spaces: whether `decode` joins punctuation to the word before it.
        split_special_tokens: whether special tokens spelled in a text are read as text.
        name_or_path: where the tokenizer came from.
    """

    bos_token: Token | None
    eos_token: Token | None
    unk_token: Token | None
    sep_token: Token | None
    pad_token: Token | None
    cls_token: Token | None
    mask_token: Token | None
    additional_special_tokens: Sequence[Token] | None
    extra_special_tokens: dict[str, Token]
    added_tokens_decoder: dict[int, AddedToken]
    model_max_length: int | None
    padding_side: str
    truncation_side: str
    model_input_names: Sequence[str]
    clean_up_tokenization_spaces: bool
    split_special_tokens: bool
    name_or_path: str


def check_options(options: TokenizerOptions, owner: str) -> None:
    """Refuses what no tokenizer can have; it may come from a file.

    Args:
        options: the arguments.
        owner: the class that they are for.

    Raises:
        TypeError: there is no such argument.
        ValueError: an argument is out of range.
    """
    known = TokenizerOptions.__annotations__
    unknown = options.keys() - known.keys()
    if unknown:
        raise TypeError(
            f"{owner} has no argument {', '.join(sorted(unknown))}; it takes {', '.join(known)}"
        )
    if options.get("extra_special_tokens"):
        raise ValueError(
            "extra_special_tokens must be empty, name such tokens in additional_special_tokens; "
            f"got {options['extra_special_tokens']!r:.80}"
        )
    for key, (kinds, allowed) in SETTINGS.items():
        value: Any = options.get(key)
        if value is None:
            continue
        if type(value) not in kinds or (allowed and value not in allowed):
            wanted = " or ".join(map(repr, allowed)) or f"a {kinds[0].__name__}"
            raise ValueError(f"{key} must be {wanted}, got {value!r:.80}")
    length = options.get("model_max_length")
    if length is not None and not 1 <= length < math.inf:
        raise ValueError(f"model_max_length must be positive and finite, got {length}")
    names = options.get("model_input_names") or ["input_ids"]
    if names[0] != "input_ids" or not all(isinstance(name, str) for name in names):
        raise ValueError(f"model_input_names must be names, input_ids first, got {names!r:.80}")
