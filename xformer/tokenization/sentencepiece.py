"""The part that all SentencePiece tokenizers share: the model file, special tokens, folders.

A family's tokenizer is a subclass that says how SentencePiece ids become the family's ids, and how
a sequence is built from them.  The rest (splitting at special tokens, encoding, decoding, reading
and writing folders, identity) is here and has no branch on the family.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import sentencepiece

from xformer.tokenization.folders import (
    MAX_CONFIG_BYTES,
    MAX_MODEL_BYTES,
    read_json,
    read_limited,
    write_folder,
)

_Tokenizer = TypeVar("_Tokenizer", bound="SentencePieceTokenizer")

SPACE = "\u2581"
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


class SentencePieceTokenizer:
    """Base of the tokenizers that are a SentencePiece model and a table of special tokens.

    Attributes:
        special_tokens: role (`eos_token`, ...) to text, as in `special_tokens_map.json`.
        additional_special_tokens: further texts that stand for one id of their own.
        clean_up_tokenization_spaces: whether `decode` joins punctuation to the word before it.
    """

    vocab_file_name: ClassVar[str]
    class_names: ClassVar[tuple[str, ...]]
    role_names: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        *,
        special_tokens: dict[str, str],
        additional_special_tokens: Sequence[str] = (),
        clean_up_tokenization_spaces: bool = False,
    ) -> None:
        """Reads the model and resolves the special tokens.

        Args:
            vocab_file: the SentencePiece model.
            special_tokens: text of every role in `role_names`.
            additional_special_tokens: further texts with an id of their own.
            clean_up_tokenization_spaces: whether `decode` removes spaces before punctuation.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no SentencePiece model, or a special token is not in the vocabulary.
        """
        self.vocab_file = Path(vocab_file)
        self.model_bytes = read_limited(self.vocab_file, MAX_MODEL_BYTES)
        self.processor = sentencepiece.SentencePieceProcessor()
        try:
            self.processor.LoadFromSerializedProto(self.model_bytes)
        except RuntimeError as error:
            raise ValueError(f"{vocab_file} must be a SentencePiece model: {error}") from error
        self.special_tokens = dict(special_tokens)
        self.additional_special_tokens = tuple(additional_special_tokens)
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self._special_ids = self._resolve_special_tokens()
        texts = sorted(self._special_ids, key=len, reverse=True)
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, texts)) + ")")

    # What a family says.

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        raise NotImplementedError

    def convert_token_to_id(self, token: str) -> int:
        """Gives the id of a piece or special token.

        Args:
            token: a piece as `tokenize` returns it.

        Returns:
            Its id, or that of the unknown token.
        """
        raise NotImplementedError

    def convert_id_to_token(self, index: int) -> str:
        """Gives the piece or special token of an id.

        Args:
            index: an id, 0 to `vocab_size - 1`.

        Returns:
            Its text.
        """
        raise NotImplementedError

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Adds the tokens that the family puts around one sequence or a pair.

        Args:
            token_ids_0: ids of the first sequence.
            token_ids_1: ids of the second sequence, where there is one.

        Returns:
            The ids of the model's input.
        """
        raise NotImplementedError

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes documents for training, each with its begin and end.

        Texts are taken literally: one that spells a special token does not become that token, so
        what a corpus contains cannot end a document.

        Args:
            texts: whole documents.

        Returns:
            One int32 array of ids for each.
        """
        raise NotImplementedError

    # What they share.

    def __len__(self) -> int:
        """Number of ids, as `vocab_size`."""
        return self.vocab_size

    @property
    def all_special_ids(self) -> tuple[int, ...]:
        """Ids of all special tokens, ascending."""
        return tuple(sorted(set(self._special_ids.values())))

    def tokenize(self, text: str) -> list[str]:
        """Splits a text into pieces; special tokens in it are pieces of their own.

        Args:
            text: any text.

        Returns:
            The pieces.
        """
        pieces: list[str] = []
        for part in self._special_pattern.split(text):
            if part in self._special_ids:
                pieces.append(part)
            elif part:
                pieces.extend(self.processor.encode(part, out_type=str))
        return pieces

    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """Gives the ids of pieces.

        Args:
            tokens: pieces and special tokens.

        Returns:
            An id for each.
        """
        return [self._id_of(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """Gives the pieces of ids.

        Args:
            ids: ids of the vocabulary.

        Returns:
            A piece for each.

        Raises:
            ValueError: an id is outside of the vocabulary.
        """
        tokens = []
        for index in map(int, ids):
            if not 0 <= index < self.vocab_size:
                raise ValueError(f"token ids must be in 0..{self.vocab_size - 1}, got {index}")
            tokens.append(self.convert_id_to_token(index))
        return tokens

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Encodes one text as the model's input.

        Args:
            text: any text; special tokens spelled in it become their ids.
            add_special_tokens: whether the family's leading or closing tokens are added.

        Returns:
            The ids.
        """
        ids = self.convert_tokens_to_ids(self.tokenize(text))
        return self.build_inputs_with_special_tokens(ids) if add_special_tokens else ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Turns ids back into text, without white space at either end.

        Args:
            ids: ids of the vocabulary.
            skip_special_tokens: whether special tokens are left out.

        Returns:
            The text.

        Raises:
            ValueError: an id is outside of the vocabulary.
        """
        hidden = set(self.all_special_ids) if skip_special_tokens else set()
        tokens = self.convert_ids_to_tokens(int(i) for i in ids if int(i) not in hidden)
        text = "".join(tokens).replace(SPACE, " ").strip()
        if self.clean_up_tokenization_spaces:
            text = functools.reduce(lambda t, pair: t.replace(*pair), _CLEAN_UP, text)
        return text

    def fingerprint(self) -> str:
        """Identity of what this tokenizer does: SHA-256 over the model file and special tokens.

        Returns:
            64 hexadecimal digits.
        """
        digest = hashlib.sha256(self.model_bytes)
        described = (
            type(self).__name__,
            self.special_tokens,
            self.additional_special_tokens,
            self.clean_up_tokenization_spaces,
        )
        digest.update(json.dumps(described, sort_keys=True).encode())
        return digest.hexdigest()

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> tuple[str, ...]:
        """Writes the folder that `from_pretrained` and `transformers` read.

        A folder that does not exist yet appears whole or not at all; in an existing one every file
        is replaced by a rename.

        Args:
            save_directory: the folder.

        Returns:
            The paths written.

        Raises:
            OSError: the folder cannot be written.
        """
        special = {
            **self.special_tokens,
            "additional_special_tokens": list(self.additional_special_tokens),
        }
        files = {
            self.vocab_file_name: self.model_bytes,
            "special_tokens_map.json": _json_bytes(special),
            "tokenizer_config.json": _json_bytes(self._tokenizer_config()),
        }
        return write_folder(Path(save_directory), files)

    @classmethod
    def from_pretrained(cls: type[_Tokenizer], folder: str | os.PathLike[str]) -> _Tokenizer:
        """Reads a folder written by `save_pretrained` or by `transformers`.

        Args:
            folder: a folder with the SentencePiece model and, optionally, its two JSON files.

        Returns:
            The tokenizer.

        Raises:
            FileNotFoundError: the folder or its model is missing.
            ValueError: the folder is another tokenizer's, or asks for what cannot be honoured.
        """
        path = Path(folder)
        vocab_file = path / cls.vocab_file_name
        if not vocab_file.is_file():
            raise FileNotFoundError(
                f"tokenizer folder {path} must contain {cls.vocab_file_name}; "
                "`xformer tokenizer train` writes such a folder"
            )
        config = read_json(path / "special_tokens_map.json", MAX_CONFIG_BYTES)
        config |= read_json(path / "tokenizer_config.json", MAX_CONFIG_BYTES)
        cls._check_config(path, config)
        chosen: dict[str, Any] = {
            role: _content(config[role]) for role in cls.role_names if config.get(role) is not None
        }
        extra = config.get("additional_special_tokens") or ()
        tokenizer = cls(
            vocab_file,
            **chosen,
            additional_special_tokens=tuple(map(_content, extra)),
            clean_up_tokenization_spaces=bool(config.get("clean_up_tokenization_spaces", False)),
        )
        tokenizer._check_added_tokens(path, config.get("added_tokens_decoder") or {})
        return tokenizer

    @classmethod
    def _check_config(cls, path: Path, config: dict[str, Any]) -> None:
        named = config.get("tokenizer_class")
        if named is not None and named not in cls.class_names:
            raise ValueError(
                f"{path}/tokenizer_config.json: tokenizer_class must be one of "
                f"{', '.join(cls.class_names)}, got {named!r}"
            )
        if config.get("sp_model_kwargs"):
            raise ValueError(
                f"{path}/tokenizer_config.json: sp_model_kwargs must be empty (sampled pieces are "
                f"not reproducible), got {config['sp_model_kwargs']!r}"
            )

    def _check_added_tokens(self, path: Path, added: dict[str, Any]) -> None:
        for index, token in added.items():
            text = _content(token)
            if self._special_ids.get(text) != int(index):
                raise ValueError(
                    f"{path}/tokenizer_config.json: added_tokens_decoder must name special tokens "
                    f"of the vocabulary, got {text!r} for id {index}; tokens added behind the "
                    "vocabulary are not supported"
                )

    def _id_of(self, token: str) -> int:
        index = self._special_ids.get(token)
        return self.convert_token_to_id(token) if index is None else index

    def _resolve_special_tokens(self) -> dict[str, int]:
        unknown = self.special_tokens["unk_token"]
        ids = {}
        named = [*self.special_tokens.items()]
        named += [("additional_special_tokens", text) for text in self.additional_special_tokens]
        for role, text in named:
            index = self.convert_token_to_id(text)
            if text != unknown and index == self.convert_token_to_id(unknown):
                raise ValueError(f"{role} must be in the vocabulary of {self.vocab_file}: {text!r}")
            ids[text] = index
        return ids

    def _tokenizer_config(self) -> dict[str, Any]:
        flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        by_id = sorted((index, text) for text, index in self._special_ids.items())
        added = {str(i): {"content": text, **flags, "special": True} for i, text in by_id}
        return {
            "added_tokens_decoder": added,
            "additional_special_tokens": list(self.additional_special_tokens),
            **self.special_tokens,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "extra_special_tokens": {},
            "model_max_length": int(1e30),
            "sp_model_kwargs": {},
            "tokenizer_class": type(self).__name__,
        }


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _json_bytes(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
