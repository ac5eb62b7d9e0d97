"""Encoding and decoding with the `tokenizers` library."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from xformer.tokenization.backend import describe_backend, literal_copy
from xformer.tokenization.calls import EncodingCalls, Text
from xformer.tokenization.encoding import BatchEncoding
from xformer.tokenization.guards import BackendLock, rust_errors
from xformer.tokenization.settings import (
    EncodingOptions,
    EncodingSettings,
    PaddingStrategy,
    TruncationStrategy,
)


class BackendCalls(EncodingCalls):
    """The part of a fast tokenizer that encodes and decodes; the backend truncates and pads too."""

    _tokenizer: Tokenizer
    _lock: BackendLock
    _literal: Tokenizer | None
    _literal_of: bytes | None
    _is_shared: bool

    def _encode_one(
        self, text: Text, pair: Text | None, settings: EncodingSettings
    ) -> BatchEncoding:
        # The documented class takes an empty second text for none here, but not in a batch.
        encoding = self._encode_batch([(text, pair or None)], settings)
        if settings.return_tensors is not None or settings.return_overflowing_tokens:
            return encoding
        columns = encoding.data.items()
        first = {name: rows[0] if isinstance(rows[0], list) else rows for name, rows in columns}
        return BatchEncoding(first, encoding.encodings)

    def _encode_batch(
        self, batch: list[tuple[Text, Text | None]], settings: EncodingSettings
    ) -> BatchEncoding:
        overflows = settings.return_overflowing_tokens
        rows = [
            [row, *(row.overflowing if overflows else ())] for row in self._run(batch, settings)
        ]
        encodings = [row for group in rows for row in group]
        columns = self._columns(encodings, settings)
        if overflows:
            columns["overflow_to_sample_mapping"] = [
                i for i, group in enumerate(rows) for _ in group
            ]
        if settings.max_length is None:
            for ids in columns["input_ids"]:
                self._warn_if_too_long(ids, settings)
        return BatchEncoding(columns, encodings, tensor_type=settings.return_tensors)

    def _run(
        self, batch: Iterable[tuple[Text, Text | None]], settings: EncodingSettings
    ) -> list[Encoding]:
        meaning = (
            f"truncation={settings.truncation.value!r}, max_length={settings.max_length} and "
            f"stride={settings.stride} must suit the texts"
        )
        with self._lock, rust_errors(meaning):
            self._configure(settings)
            return self._tokenizer.encode_batch(
                [text if pair is None else (text, pair) for text, pair in batch],
                is_pretokenized=settings.is_split_into_words,
                add_special_tokens=settings.add_special_tokens,
            )

    def _columns(self, encodings: list[Encoding], settings: EncodingSettings) -> dict[str, Any]:
        columns: dict[str, Any] = {"input_ids": [row.ids for row in encodings]}
        if self._returns("token_type_ids", settings.return_token_type_ids):
            columns["token_type_ids"] = [row.type_ids for row in encodings]
        if self._returns("attention_mask", settings.return_attention_mask):
            columns["attention_mask"] = [row.attention_mask for row in encodings]
        if settings.return_special_tokens_mask:
            columns["special_tokens_mask"] = [row.special_tokens_mask for row in encodings]
        if settings.return_offsets_mapping:
            columns["offset_mapping"] = [row.offsets for row in encodings]
        if settings.return_length:
            columns["length"] = [len(row) for row in encodings]
        return columns

    def _configure(self, settings: EncodingSettings) -> None:
        """Sets the backend up, which holds truncation and padding; only what differs is touched."""
        backend = self._tokenizer
        truncation = self._truncation(settings)
        if truncation != backend.truncation:
            backend.enable_truncation(**truncation) if truncation else backend.no_truncation()
        padding = self._padding(settings)
        if padding != backend.padding:
            backend.enable_padding(**padding) if padding else backend.no_padding()
        if backend.encode_special_tokens != settings.split_special_tokens:
            backend.encode_special_tokens = settings.split_special_tokens

    def _truncation(self, settings: EncodingSettings) -> dict[str, Any] | None:
        if settings.truncation is TruncationStrategy.DO_NOT_TRUNCATE:
            return None
        return {
            "max_length": settings.max_length,
            "stride": settings.stride,
            "strategy": settings.truncation.value,
            "direction": self.truncation_side,
        }

    def _padding(self, settings: EncodingSettings) -> dict[str, Any] | None:
        if settings.padding is PaddingStrategy.DO_NOT_PAD:
            return None
        to_length = settings.padding is PaddingStrategy.MAX_LENGTH
        return {
            "length": settings.max_length if to_length else None,
            "pad_to_multiple_of": settings.pad_to_multiple_of,
            "pad_id": self.pad_token_id,
            "pad_token": self.pad_token,
            "pad_type_id": self.pad_token_type_id,
            "direction": settings.padding_side,
        }

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
        literal = self._literal_backend()
        with rust_errors("documents must be str that the tokenizer can encode"):
            rows = literal.encode_batch_fast(list(texts), add_special_tokens=False)
        before, after = self.document_affixes
        return [np.array([*before, *row.ids, *after], np.int32) for row in rows]

    def _literal_backend(self) -> Tokenizer:
        """The backend for documents, made anew where the one that it stands for has changed."""
        with self._lock:
            identity = describe_backend(self._tokenizer) if self._is_shared else None
            if self._literal is None or self._literal_of != identity:
                self._literal, self._literal_of = literal_copy(self._tokenizer), identity
            return self._literal

    def _special_tokens_mask(self, ids: list[int], pair_ids: list[int] | None) -> list[int]:
        raise ValueError(
            "already_has_special_tokens must be True for a fast tokenizer; for ids without special "
            "tokens use the slow one (use_fast=False)"
        )

    def _decode_ids(
        self, ids: list[int], skip_special_tokens: bool, spaces_between_special_tokens: bool
    ) -> str:
        with self._lock, rust_errors("token ids must be integers of 0 or more"):
            return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
