"""The fast kind of tokenizer: all work on texts is done by the `tokenizers` library, in Rust.

The backend comes from `tokenizer.json`, or from the family's own model file by conversion.  Its ids
are those of the documented fast classes, which differ from the slow kind's on a few texts.
"""

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Unpack

import numpy as np
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import Decoder

from xformer.files import read_limited
from xformer.tokenization.backend import (
    describe_backend,
    literal_copy,
    read_backend,
)
from xformer.tokenization.backend_calls import BackendCalls
from xformer.tokenization.base import PreTrainedTokenizerBase
from xformer.tokenization.conversion import rust_errors
from xformer.tokenization.folders import (
    ADDED_TOKENS_FILE,
    MAX_BACKEND_BYTES,
    TOKENIZER_FILE,
    TokenizerFolder,
    json_bytes,
    read_pieces,
)
from xformer.tokenization.options import TokenizerOptions
from xformer.tokenization.retraining import rename_token, retrain
from xformer.tokenization.settings import EncodingOptions, EncodingSettings
from xformer.tokenization.special_tokens import ADDITIONAL, Token
from xformer.tokenization.tokens import token_fields

_Tokenizer = TypeVar("_Tokenizer", bound="PreTrainedTokenizerFast")


class PreTrainedTokenizerFast(BackendCalls, PreTrainedTokenizerBase):
    """Base of the fast tokenizers; by itself, the tokenizer of any `tokenizer.json`.

    A family supplies `_convert`, what it puts around a sequence, and its file names.

    Attributes:
        vocab_file: the model file that the backend was converted from, or that lies beside it.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"tokenizer_file": TOKENIZER_FILE}
    class_names: ClassVar[tuple[str, ...]] = ("PreTrainedTokenizerFast",)
    _literal: Tokenizer | None = None  # for documents; made when the first comes

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        *,
        tokenizer_object: Tokenizer | None = None,
        **options: Unpack[TokenizerOptions],
    ) -> None:
        """Takes the backend from the first that is given: object, `tokenizer.json`, model file.

        Args:
            vocab_file: the family's model file.
            tokenizer_file: a `tokenizer.json`.
            tokenizer_object: a tokenizer of the `tokenizers` library, which is copied.
            **options: see `TokenizerOptions`.

        Raises:
            FileNotFoundError: there is no such file.
            TypeError: there is no such option.
            ValueError: no file or a damaged one is given, or an option is out of range.
        """
        self.vocab_file = None if vocab_file is None else str(vocab_file)
        self._model = (
            None if vocab_file is None else read_pieces(Path(vocab_file))
        )
        if tokenizer_object is not None:
            self._tokenizer = copy.deepcopy(tokenizer_object)
        elif tokenizer_file is not None:
            path = Path(tokenizer_file)
            self._tokenizer = read_backend(read_limited(path, MAX_BACKEND_BYTES), str(path))
        elif self._model is not None:
            self._tokenizer = self._convert(self._model)
        else:
            raise ValueError(
                f"{type(self).__name__} must have a tokenizer_file or a tokenizer_object"
                + (", or a vocab_file" if "vocab_file" in self.vocab_files_names else "")
            )
        arguments: dict[str, Any] = {**_saved_defaults(self._tokenizer), **options}
        super().__init__(**arguments)
        self._configure(EncodingSettings(split_special_tokens=self.split_special_tokens))
        self._take_added(options.get("added_tokens_decoder") or {})

    # What a family supplies.

    def _convert(self, content: bytes) -> Tokenizer:
        """Builds the backend from the content of the family's model file."""
        raise NotImplementedError

    # The vocabulary.

    @property
    def is_fast(self) -> bool:
        """Whether this is the fast kind: it is."""
        return True

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The tokenizer of the `tokenizers` library."""
        return self._tokenizer

    @property
    def decoder(self) -> Decoder | None:
        """The decoder of the `tokenizers` library, where the backend has one."""
        return self._tokenizer.decoder

    @property
    def can_save_slow_tokenizer(self) -> bool:
        """Whether the family's model file is at hand to be saved."""
        return self._model is not None

    @property
    def vocab_size(self) -> int:
        """Number of ids of the model, without those of added tokens."""
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        """Number of ids, with those of added tokens."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        """Gives every token with its id, added tokens too.

        Returns:
            Token to id.
        """
        return self._tokenizer.get_vocab(with_added_tokens=True)

    @property
    def vocab(self) -> dict[str, int]:
        """Every token with its id, as `get_vocab()`."""
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The tokens that no text is split within, by id, ascending."""
        return dict(sorted(self._tokenizer.get_added_tokens_decoder().items()))

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Gives the ids of tokens.

        Args:
            tokens: a token, or several.

        Returns:
            The id, or a list of them; that of the unknown token (`None` where there is no such)
            for what is not in the vocabulary.
        """
        if isinstance(tokens, str):
            index = self._tokenizer.token_to_id(tokens)
            return self._unknown_id() if index is None else index
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Gives the tokens of ids.

        Args:
            ids: an id, or several.
            skip_special_tokens: whether special tokens are left out of several.

        Returns:
            The token, or a list of them; `None` for an id that has none.

        Raises:
            ValueError: an id is negative.
        """
        with rust_errors("token ids must be integers of 0 or more"):
            if isinstance(ids, Integral):
                return self._tokenizer.id_to_token(int(ids))
            hidden = set(self.all_special_ids) if skip_special_tokens else set()
            return [self._tokenizer.id_to_token(i) for i in map(int, ids) if i not in hidden]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Joins tokens to a text.

        Args:
            tokens: tokens as `tokenize` gives them.

        Returns:
            The text.
        """
        decoder = self._tokenizer.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(tokens)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Says how many tokens are put around one sequence or a pair.

        Args:
            pair: whether two sequences are meant.

        Returns:
            Number of tokens.
        """
        return self._tokenizer.num_special_tokens_to_add(pair)

    def _unknown_id(self) -> int | None:
        return None if self.unk_token is None else self._tokenizer.token_to_id(self.unk_token)

    def _add_tokens(self, tokens: list[Token], special_tokens: bool) -> int:
        self._literal = None
        if special_tokens:
            return self._tokenizer.add_special_tokens(tokens)
        return self._tokenizer.add_tokens(tokens)

    def _take_added(self, added: Mapping[int, AddedToken]) -> None:
        """Adds the tokens that files name, then the special ones that are still missing."""
        tokens: list[Token] = [token for _, token in sorted(added.items())]
        present = {*self.added_tokens_encoder, *map(str, tokens)}
        tokens += [
            token
            for token in self.all_special_tokens_extended
            if token not in tokens and (isinstance(token, AddedToken) or token not in present)
        ]
        special = set(self.all_special_tokens)
        self._add_tokens([_marked(token, special) for token in tokens], special_tokens=False)
        for index, token in added.items():
            found = self._tokenizer.token_to_id(token.content)
            if found != index:
                raise ValueError(
                    f"added_tokens_decoder must continue the vocabulary without a gap: "
                    f"{token.content!r} must have the id {found}, got {index}"
                )

    # From texts to ids and back.

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
            split_special_tokens: whether special tokens spelled in it are read as text; the
                tokenizer's own setting by default.

        Returns:
            The tokens.
        """
        settings = self._settings(
            EncodingOptions(
                add_special_tokens=add_special_tokens, split_special_tokens=split_special_tokens
            )
        )
        return self._encode_one(text, pair, settings).tokens()

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes documents for training, each with its begin and end.

        Special tokens are taken literally: a text that spells one does not get its id, so what a
        corpus contains cannot end a document.  Added tokens that are not special get theirs.

        Args:
            texts: whole documents.

        Returns:
            One int32 array of ids for each.
        """
        if self._literal is None:
            self._literal = literal_copy(self._tokenizer)
        with rust_errors("documents must be str that the tokenizer can encode"):
            rows = self._literal.encode_batch_fast(list(texts), add_special_tokens=False)
        before, after = self.document_affixes
        return [np.array([*before, *row.ids, *after], np.int32) for row in rows]

    def _special_tokens_mask(self, ids: list[int], pair_ids: list[int] | None) -> list[int]:
        raise ValueError(
            "already_has_special_tokens must be True for a fast tokenizer; for ids without special "
            "tokens use the slow one (use_fast=False)"
        )

    def _decode_ids(
        self, ids: list[int], skip_special_tokens: bool, spaces_between_special_tokens: bool
    ) -> str:
        with rust_errors("token ids must be integers of 0 or more"):
            return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    # Another vocabulary.

    def train_new_from_iterator(
        self: _Tokenizer,
        text_iterator: Iterable[Any],
        vocab_size: int,
        length: int | None = None,
        new_special_tokens: Sequence[Token] | None = None,
        special_tokens_map: Mapping[str, str] | None = None,
        **trainer_options: Any,
    ) -> _Tokenizer:
        """Learns a vocabulary from texts, with the special tokens and the pipeline of this one.

        Special tokens get the first ids. The library's trainers break ties by chance: the same
        texts need not give the same vocabulary twice.

        Args:
            text_iterator: texts, or batches of them.
            vocab_size: number of ids wanted, special tokens included.
            length: number of texts, for the progress bar.
            new_special_tokens: further special tokens.
            special_tokens_map: new text of special tokens that are to have another.
            **trainer_options: further arguments of the library's trainer, such as `min_frequency`
                and `show_progress`.

        Returns:
            The new tokenizer, of the same class.

        Raises:
            ValueError: the trainer refuses the texts or its arguments.
        """
        renamed = special_tokens_map or {}
        self._configure(EncodingSettings())
        backend = retrain(
            self._tokenizer,
            text_iterator,
            vocab_size=vocab_size,
            length=length,
            new_special_tokens=new_special_tokens or (),
            renamed=renamed,
            options=trainer_options,
        )
        options: dict[str, Any] = dict(self.init_kwargs)
        options.pop("added_tokens_decoder", None)  # its ids are those of the old vocabulary
        for role, token in self.special_tokens_map_extended.items():
            options[role] = token if role == ADDITIONAL else rename_token(token, renamed)
        options[ADDITIONAL] = [*options.get(ADDITIONAL, ()), *(new_special_tokens or ())]
        return type(self)(tokenizer_object=backend, **options)

    # Files.

    @classmethod
    def _from_folder(cls: type[_Tokenizer], folder: TokenizerFolder) -> _Tokenizer:
        names = cls.vocab_files_names
        files: dict[str, Any] = {key: folder.source.file(name) for key, name in names.items()}
        if not any(files.values()):
            raise FileNotFoundError(
                f"tokenizer folder {folder.source.name} must have {' or '.join(names.values())}"
            )
        return cls(**files, **folder.options)

    def _vocabulary_files(self) -> dict[str, bytes]:
        if self._model is None:
            raise ValueError(
                f"{type(self).__name__} must have been given a vocab_file to write one; "
                "save_pretrained writes tokenizer.json"
            )
        return {self.vocab_files_names["vocab_file"]: self._model}

    def _further_files(self, legacy_format: bool | None) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        if legacy_format or (legacy_format is None and self.can_save_slow_tokenizer):
            files |= self._vocabulary_files()
            behind = {
                one: i for one, i in self.added_tokens_encoder.items() if i >= self.vocab_size
            }
            files |= {ADDED_TOKENS_FILE: json_bytes(behind)} if behind else {}
        if not legacy_format:
            self._configure(EncodingSettings())  # a file must not depend on the last call
            files[TOKENIZER_FILE] = self._tokenizer.to_str(pretty=True).encode()
        return files

    def _identity(self) -> bytes:
        return describe_backend(self._tokenizer)

    def _tokenizer_config(self) -> dict[str, Any]:
        # The folder is the slow tokenizer's too where its model file is there.
        name = self.class_names[0]
        name = name.removesuffix("Fast") if self.can_save_slow_tokenizer else name
        return {**super()._tokenizer_config(), "tokenizer_class": name}


def _saved_defaults(backend: Tokenizer) -> dict[str, Any]:
    """What a `tokenizer.json` that truncates or pads says about sides and the padding token."""
    defaults = {}
    if backend.truncation is not None:
        defaults["truncation_side"] = backend.truncation["direction"]
    if backend.padding is not None:
        defaults["padding_side"] = backend.padding["direction"]
        defaults["pad_token"] = backend.padding["pad_token"]
    return defaults


def _marked(token: Token, special: set[str]) -> AddedToken:
    """The token with its flags; special where it has a role, whatever they say."""
    if isinstance(token, str):
        return AddedToken(token, special=token in special)
    fields = token_fields(token)
    return AddedToken(**fields | {"special": token.special or token.content in special})
