"""XGLM's tokenizer: a SentencePiece model in the id layout of fairseq.

Source: Lin et al. 2021, "Few-shot Learning with Multilingual Language Models"; the layout is that
of fairseq's dictionaries, to which the published embedding matrices are aligned:

    id            0     1       2      3      4 ...           then
    token         <s>   <pad>   </s>   <unk>  SPM pieces 3..  <madeupword0> ... <madeupword6>
    SPM id        1     -       2      0      3 ...           -
"""

import os
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from xformer.tokenization.sentencepiece import SentencePieceTokenizer

OFFSET = 1
MADEUP_WORDS = 7
_FIRST_IDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}


class XGLMTokenizer(SentencePieceTokenizer):
    """The tokenizer of the XGLM family (the one that `transformers` calls slow)."""

    vocab_file_name: ClassVar[str] = "sentencepiece.bpe.model"
    class_names: ClassVar[tuple[str, ...]] = ("XGLMTokenizer", "XGLMTokenizerFast")
    role_names: ClassVar[tuple[str, ...]] = (
        "bos_token",
        "eos_token",
        "unk_token",
        "sep_token",
        "pad_token",
        "cls_token",
    )

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        bos_token: str = "<s>",
        eos_token: str = "</s>",
        sep_token: str = "</s>",
        cls_token: str = "<s>",
        unk_token: str = "<unk>",
        pad_token: str = "<pad>",
        *,
        additional_special_tokens: Sequence[str] = (),
        clean_up_tokenization_spaces: bool = False,
    ) -> None:
        """Reads the model.

        Args:
            vocab_file: the SentencePiece model, usually `sentencepiece.bpe.model`.
            bos_token: begin of a sequence (unused by the model, which begins with `sep_token`).
            eos_token: end of a sequence.
            sep_token: put in front of every sequence.
            cls_token: the token of a classifier.
            unk_token: stands for pieces outside of the vocabulary.
            pad_token: fills up batches.
            additional_special_tokens: further special texts; the seven `<madeupword..>` are added.
            clean_up_tokenization_spaces: whether `decode` removes spaces before punctuation.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no SentencePiece model, or a special token is not in the vocabulary.
        """
        madeup = [f"<madeupword{i}>" for i in range(MADEUP_WORDS)]
        roles = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "unk_token": unk_token,
            "sep_token": sep_token,
            "pad_token": pad_token,
            "cls_token": cls_token,
        }
        super().__init__(
            vocab_file,
            special_tokens=roles,
            additional_special_tokens=tuple(dict.fromkeys([*additional_special_tokens, *madeup])),
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
        )

    @property
    def vocab_size(self) -> int:
        """Number of ids: pieces, offset and made-up words."""
        return self.processor.get_piece_size() + OFFSET + MADEUP_WORDS

    bos_token_id = property(lambda self: self._id_of(self.special_tokens["bos_token"]))
    eos_token_id = property(lambda self: self._id_of(self.special_tokens["eos_token"]))
    sep_token_id = property(lambda self: self._id_of(self.special_tokens["sep_token"]))
    cls_token_id = property(lambda self: self._id_of(self.special_tokens["cls_token"]))
    unk_token_id = property(lambda self: self._id_of(self.special_tokens["unk_token"]))
    pad_token_id = property(lambda self: self._id_of(self.special_tokens["pad_token"]))

    def convert_token_to_id(self, token: str) -> int:
        """Gives the id of a piece or of one of the layout's own tokens.

        Args:
            token: a piece as `tokenize` returns it.

        Returns:
            Its id, or 3 where the model does not have it.
        """
        if token in _FIRST_IDS:
            return _FIRST_IDS[token]
        number = token.removeprefix("<madeupword").removesuffix(">")
        if token == f"<madeupword{number}>" and number in map(str, range(MADEUP_WORDS)):
            return self.processor.get_piece_size() + OFFSET + int(number)
        piece_id = self.processor.piece_to_id(token)
        return piece_id + OFFSET if piece_id else _FIRST_IDS["<unk>"]

    def convert_id_to_token(self, index: int) -> str:
        """Gives the text of an id.

        Args:
            index: an id, 0 to `vocab_size - 1`.

        Returns:
            A piece, or one of the layout's own tokens.
        """
        if index < len(_FIRST_IDS):
            return list(_FIRST_IDS)[index]
        madeup = index - OFFSET - self.processor.get_piece_size()
        return self.processor.id_to_piece(index - OFFSET) if madeup < 0 else f"<madeupword{madeup}>"

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Builds `</s> A` or `</s> A </s></s> B`.

        Args:
            token_ids_0: ids of the first sequence.
            token_ids_1: ids of the second sequence, where there is one.

        Returns:
            The ids of the model's input.
        """
        separator = [self.sep_token_id]
        if token_ids_1 is None:
            return separator + token_ids_0
        return separator + token_ids_0 + separator + separator + token_ids_1

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes documents for training as `</s> X </s>`, taken literally.

        Args:
            texts: whole documents; one that spells `</s>` does not become that token.

        Returns:
            One int32 array of ids for each.
        """
        documents = []
        for pieces in self.processor.encode(list(texts), num_threads=1):
            ids = np.empty(len(pieces) + 2, np.int32)
            ids[0], ids[-1] = self.sep_token_id, self.eos_token_id
            ids[1:-1] = pieces
            # SentencePiece calls its unknown piece 0; the layout gives it the id 3.
            ids[1:-1] = np.where(ids[1:-1] == 0, self.unk_token_id, ids[1:-1] + OFFSET)
            documents.append(ids)
        return documents
