"""What all tokenizers have in common: the documented calls, special tokens, files, identity.

There are two kinds, and a family has one class of each: the slow kind (`slow.py`) works in Python
on the model file of the family, the fast kind (`fast.py`) on the `tokenizers` library.  From the
top of the class to its base classes, one file each:

    PreTrainedTokenizerBase  construction, decoding, files, identity
    EncodingCalls            `tokenizer(...)`, `encode`, `pad`, ...            calls.py
    ModelInput               special tokens around a sequence, masks, padding  model_input.py
    SpecialTokens            roles, ids, adding tokens                         special_tokens.py

A kind supplies what raises `NotImplementedError`; a family supplies its class attributes and how
a sequence is built.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypedDict, TypeVar, Unpack

import numpy as np
from tokenizers import AddedToken

from xformer.hub import HubOptions, Source, open_source
from xformer.tokenization.calls import EncodingCalls
from xformer.tokenization.folders import (
    CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    TokenizerFolder,
    json_bytes,
    read_tokenizer_folder,
    token_fields,
    write_folder,
)
from xformer.tokenization.preparation import as_lists
from xformer.tokenization.settings import VERY_LARGE_INTEGER
from xformer.tokenization.special_tokens import Token

_Tokenizer = TypeVar("_Tokenizer", bound="PreTrainedTokenizerBase")
_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


_SIDES = ("right", "left")
# Attribute set from an option of the same name: its type, its values where they are few.
_SETTINGS: dict[str, tuple[type, tuple[Any, ...]]] = {
    "name_or_path": (str, ()),
    "model_max_length": (int, ()),
    "padding_side": (str, _SIDES),
    "truncation_side": (str, _SIDES),
    "clean_up_tokenization_spaces": (bool, ()),
    "split_special_tokens": (bool, ()),
    "model_input_names": (list, ()),
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


class PreTrainedTokenizerBase(EncodingCalls):
    """Base of all tokenizers, slow and fast.

    Attributes:
        vocab_files_names: constructor argument to file name, for the files of the vocabulary.
        class_names: names that `tokenizer_config.json` may give this class, its own first.
        family_options: constructor arguments beyond `TokenizerOptions` that
            `tokenizer_config.json` may set and `save_pretrained` writes.
        slow_tokenizer_class: for a fast tokenizer, the family's slow one.
        name_or_path: where the tokenizer came from.
        clean_up_tokenization_spaces: whether `decode` joins punctuation to the word before it.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {}
    class_names: ClassVar[tuple[str, ...]] = ()
    family_options: ClassVar[tuple[str, ...]] = ()
    slow_tokenizer_class: ClassVar[type["PreTrainedTokenizerBase"] | None] = None
    model_max_length: int = VERY_LARGE_INTEGER
    clean_up_tokenization_spaces: bool = False
    name_or_path: str = ""

    def __init__(self, **options: Unpack[TokenizerOptions]) -> None:
        """Sets what every tokenizer has; a kind adds the tokens to its vocabulary afterwards.

        Args:
            **options: see `TokenizerOptions`.

        Raises:
            TypeError: there is no such option.
            ValueError: an option is out of range, or a token is neither a str nor an AddedToken.
        """
        unknown = options.keys() - TokenizerOptions.__annotations__.keys()
        if unknown:
            raise TypeError(
                f"{type(self).__name__} has no argument {', '.join(sorted(unknown))}; it takes "
                f"{', '.join(TokenizerOptions.__annotations__)}"
            )
        if options.get("extra_special_tokens"):
            raise ValueError(
                "extra_special_tokens must be empty, name such tokens in additional_special_tokens;"
                f" got {options['extra_special_tokens']!r}"
            )
        self._told = set()
        given = {role: options.get(role) for role in self.SPECIAL_TOKENS_ATTRIBUTES}
        super().__init__(given)
        _check_options(options)
        for key in _SETTINGS:
            value = options.get(key)
            setattr(self, key, getattr(self, key) if value is None else value)
        self.model_input_names = list(self.model_input_names)
        self.init_kwargs: dict[str, Any] = dict(options)

    # What the kinds of tokenizers supply.

    @property
    def is_fast(self) -> bool:
        """Whether this is the fast kind."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        """Number of ids of the model file, without those of added tokens."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Number of ids, with those of added tokens."""
        raise NotImplementedError

    def get_vocab(self) -> dict[str, int]:
        """Gives every token with its id, added tokens too.

        Returns:
            Token to id.
        """
        raise NotImplementedError

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The tokens that no text is split within, by id, ascending."""
        raise NotImplementedError

    def tokenize(
        self,
        text: str,
        pair: str | None = None,
        add_special_tokens: bool = False,
        split_special_tokens: bool | None = None,
    ) -> list[str]:
        """Splits a text into tokens.

        Args:
            text: any text; added tokens in it are tokens of their own.
            pair: a second text.
            add_special_tokens: whether the family's leading, separating, closing tokens are added.
            split_special_tokens: whether special tokens spelled in the text are read as text; the
                tokenizer's own setting by default.

        Returns:
            The tokens.
        """
        raise NotImplementedError

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Joins tokens to a text.

        Args:
            tokens: tokens as `tokenize` gives them.

        Returns:
            The text.
        """
        raise NotImplementedError

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes documents for training, each with its begin and end.

        Special tokens are taken literally: a text that spells one does not get its id, so what a
        corpus contains cannot end a document.

        Args:
            texts: whole documents.

        Returns:
            One int32 array of ids for each.
        """
        raise NotImplementedError

    def _decode_ids(
        self, ids: list[int], skip_special_tokens: bool, spaces_between_special_tokens: bool
    ) -> str:
        """Turns ids into a text that is not cleaned up yet."""
        raise NotImplementedError

    def _vocabulary_files(self) -> dict[str, bytes]:
        """The vocabulary by file name, what `save_vocabulary` writes."""
        raise NotImplementedError

    def _identity(self) -> bytes:
        """What the ids rest on beside tokens and settings: the vocabulary's files."""
        files = sorted(self._vocabulary_files().items())
        return b"".join(f"{name}:{len(content)}:".encode() + content for name, content in files)

    def _further_files(self, legacy_format: bool | None) -> dict[str, bytes]:
        """What `save_pretrained` writes beside the vocabulary and the two config files."""
        raise NotImplementedError

    @classmethod
    def _from_folder(cls: type[_Tokenizer], folder: TokenizerFolder) -> _Tokenizer:
        """Builds the tokenizer that a folder describes."""
        raise NotImplementedError

    # What they share.

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """The ids of the tokens that no text is split within, ascending."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    def get_added_vocab(self) -> dict[str, int]:
        """Gives the tokens that no text is split within.

        Returns:
            Token to id, as `added_tokens_encoder`.
        """
        return self.added_tokens_encoder

    @property
    def max_len_single_sentence(self) -> int:
        """Length of the longest sequence that fits the model without its special tokens."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=False)

    @property
    def max_len_sentences_pair(self) -> int:
        """Length of the longest pair that fits the model without its special tokens."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """Turns ids back into text.

        Args:
            token_ids: an id, or a list or array of them.
            skip_special_tokens: whether special tokens are left out.
            clean_up_tokenization_spaces: whether punctuation is joined to the word before it; the
                tokenizer's own setting by default.
            spaces_between_special_tokens: whether there are spaces around added tokens (slow only;
                the fast kind decides by its decoder).

        Returns:
            The text.

        Raises:
            ValueError: an id is outside of the vocabulary.
        """
        ids = as_lists(token_ids)
        text = self._decode_ids(
            ids if isinstance(ids, list) else [ids],
            skip_special_tokens,
            spaces_between_special_tokens,
        )
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text

    def batch_decode(
        self,
        sequences: Iterable[Any],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
    ) -> list[str]:
        """Turns several sequences of ids back into texts.

        Args:
            sequences: a list or array of sequences of ids.
            skip_special_tokens: as for `decode`.
            clean_up_tokenization_spaces: as for `decode`.
            spaces_between_special_tokens: as for `decode`.

        Returns:
            A text for each.

        Raises:
            ValueError: an id is outside of the vocabulary.
        """
        options = (clean_up_tokenization_spaces, spaces_between_special_tokens)
        return [self.decode(ids, skip_special_tokens, *options) for ids in sequences]

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """Removes the spaces before punctuation and English contractions.

        Args:
            out_string: a decoded text.

        Returns:
            The text without them.
        """
        for spaced, joined in _CLEAN_UP:
            out_string = out_string.replace(spaced, joined)
        return out_string

    def fingerprint(self) -> str:
        """Identity of what this tokenizer does: SHA-256 over vocabulary, tokens and settings.

        Returns:
            64 hexadecimal digits; the same for the same class, vocabulary and tokens, in whatever
            order files name them.
        """
        digest = hashlib.sha256(self._identity())
        special = self.special_tokens_map
        special["additional_special_tokens"] = sorted(self.additional_special_tokens)
        described = {
            "class": type(self).__name__,
            "special": special,
            "added": [[i, token_fields(one)] for i, one in self.added_tokens_decoder.items()],
            "clean_up": self.clean_up_tokenization_spaces,
            "family": {key: getattr(self, key) for key in self.family_options},
        }
        digest.update(json.dumps(described, sort_keys=True).encode())
        return digest.hexdigest()

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Writes the vocabulary alone; `save_pretrained` writes all of the tokenizer.

        Args:
            save_directory: the folder.
            filename_prefix: put in front of the file names, with a hyphen.

        Returns:
            The paths written.

        Raises:
            OSError: the folder cannot be written.
        """
        return write_folder(Path(save_directory), self._vocabulary_files(), filename_prefix)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        """Writes the folder that `from_pretrained` and `transformers` read.

        A folder that does not exist yet appears whole or not at all; in an existing one every file
        is replaced by a rename.

        Args:
            save_directory: the folder.
            legacy_format: whether the model file of the slow kind is written (`True`), or
                `tokenizer.json` (`False`); both where possible by default. The slow kind has only
                the former.
            filename_prefix: put in front of the file names, with a hyphen.

        Returns:
            The paths written.

        Raises:
            OSError: the folder cannot be written.
            ValueError: the kind cannot write this format.
        """
        further = self._further_files(legacy_format)
        files = {
            CONFIG_FILE: json_bytes(self._tokenizer_config()),
            SPECIAL_TOKENS_FILE: json_bytes(self._special_tokens_file()),
            **further,
        }
        return write_folder(Path(save_directory), files, filename_prefix)

    @classmethod
    def from_pretrained(
        cls: type[_Tokenizer],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        subfolder: str = "",
        **options: Any,
    ) -> _Tokenizer:
        """Reads a folder, local or on the hub, written by `save_pretrained` or `transformers`.

        Args:
            pretrained_model_name_or_path: a folder, or a repository of the hub ("org/name").
            cache_dir: where downloaded files are kept.
            force_download: whether files are downloaded again.
            local_files_only: whether only files of the cache are used.
            token: the hub's access token, `True` for the one that is logged in.
            revision: branch, tag or commit of the repository.
            subfolder: folder inside of the repository.
            **options: arguments of the constructor; they win over what the folder says.

        Returns:
            The tokenizer.

        Raises:
            FileNotFoundError: the folder, the repository or a file of the vocabulary is missing.
            TypeError: there is no such argument.
            ValueError: the files are another tokenizer's, damaged, or ask for what cannot be had.
        """
        hub = HubOptions(
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            subfolder=subfolder,
        )
        return cls.from_source(open_source(pretrained_model_name_or_path, hub), options)

    @classmethod
    def from_source(
        cls: type[_Tokenizer], source: Source, options: Mapping[str, Any]
    ) -> _Tokenizer:
        """Reads a folder that is open already.

        Args:
            source: the folder.
            options: as the further arguments of `from_pretrained`.

        Returns:
            The tokenizer.

        Raises:
            FileNotFoundError: a file of the vocabulary is missing.
            TypeError: there is no such argument.
            ValueError: the files are another tokenizer's, damaged, or ask for what cannot be had.
        """
        known = (*TokenizerOptions.__annotations__, *cls.family_options)
        folder = read_tokenizer_folder(source, options, known=known, class_names=cls.class_names)
        try:
            return cls._from_folder(folder)
        except ValueError as error:
            if source.name in str(error):
                raise
            raise ValueError(f"{source.name}: {str(error):.1000}") from error

    def _tokenizer_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {key: getattr(self, key) for key in self.family_options}
        for key in ("padding_side", "truncation_side", "split_special_tokens", "model_input_names"):
            usual = getattr(type(self), key)
            if getattr(self, key) != (list(usual) if isinstance(usual, tuple) else usual):
                config[key] = getattr(self, key)
        return {
            **config,
            **self.special_tokens_map,
            "added_tokens_decoder": {
                index: token_fields(token) for index, token in self.added_tokens_decoder.items()
            },
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "extra_special_tokens": {},
            "model_max_length": self.model_max_length,
            "tokenizer_class": self.class_names[0],
        }

    def _special_tokens_file(self) -> dict[str, Any]:
        def written(token: Token) -> Any:
            fields = {} if isinstance(token, str) else token_fields(token)
            fields.pop("special", None)
            return fields if any(value is True for value in fields.values()) else str(token)

        return {
            role: [written(one) for one in token] if isinstance(token, list) else written(token)
            for role, token in self.special_tokens_map_extended.items()
        }

    def __repr__(self) -> str:
        """Says what this is, with its added tokens."""
        shown = {
            "name_or_path": self.name_or_path,
            "vocab_size": self.vocab_size,
            "model_max_length": self.model_max_length,
            "is_fast": self.is_fast,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "special_tokens": self.special_tokens_map,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "added_tokens_decoder": self.added_tokens_decoder,
        }
        fields = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{type(self).__name__}({fields})"


def _check_options(options: TokenizerOptions) -> None:
    """Refuses values that no tokenizer can have; they may come from a file."""
    for key, value in options.items():
        if value is None or key not in _SETTINGS:
            continue
        kind, allowed = _SETTINGS[key]
        if type(value) is not kind or (allowed and value not in allowed):
            wanted = " or ".join(map(repr, allowed)) or f"a {kind.__name__}"
            raise ValueError(f"{key} must be {wanted}, got {value!r:.80}")
    if (options.get("model_max_length") or 1) < 1:
        raise ValueError(f"model_max_length must be positive, got {options['model_max_length']}")
    names = options.get("model_input_names") or ["input_ids"]
    if not isinstance(names, list | tuple) or names[0] != "input_ids":
        raise ValueError(f"model_input_names must be names, input_ids first, got {names!r:.80}")
