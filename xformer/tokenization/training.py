"""Training a SentencePiece model on one's own text.

The settings differ from SentencePiece's defaults where code and laid-out text would suffer:

- no normalization (`identity`): what is written is what is encoded;
- runs of spaces are kept and may be pieces of their own, so indentation is cheap;
- newline and tab are pieces of their own (SentencePiece would turn them into spaces);
- the model is trained on lines, because the trainer drops sentences that contain a newline symbol
  less predictably than it counts short ones.

The file is an ordinary SentencePiece model: `transformers` gives the same ids for it.
"""

import io
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from xformer.tokenization.xglm import MADEUP_WORDS, OFFSET, XGLMTokenizer

_LAYOUT = OFFSET + len(MADEUP_WORDS)
_MAX_SENTENCE_BYTES = 8192


def train_sentencepiece(
    documents: Iterable[str],
    folder: str | os.PathLike[str],
    *,
    vocab_size: int,
    model_type: str = "unigram",
    character_coverage: float = 0.9995,
    max_sentences: int = 5_000_000,
) -> XGLMTokenizer:
    """Trains a SentencePiece model and writes a tokenizer folder for XGLM.

    The result is a function of the arguments: the same documents give the same bytes.

    Args:
        documents: the texts to learn from, in a fixed order.
        folder: where the tokenizer goes; must not exist.
        vocab_size: number of token ids wanted, the 8 of the layout included; at least 32.
        model_type: "unigram" or "bpe".
        character_coverage: share of characters that get a piece; the rarest become `<unk>`.
        max_sentences: lines read at most; further documents are not looked at.

    Returns:
        The trained tokenizer, read back from the folder.

    Raises:
        FileExistsError: the folder exists.
        ValueError: an argument is out of range, or the text is too small for the vocabulary.
    """
    if vocab_size < 32:
        raise ValueError(f"vocab_size must be at least 32, got {vocab_size}")
    if model_type not in ("unigram", "bpe"):
        raise ValueError(f'model_type must be "unigram" or "bpe", got {model_type!r}')
    if not 0.98 <= character_coverage <= 1.0:
        raise ValueError(f"character_coverage must be in 0.98..1.0, got {character_coverage}")
    if Path(folder).exists():
        raise FileExistsError(f"tokenizer folder {folder} exists; choose another or remove it")
    lines = itertools.islice(_sentences(documents), max_sentences)
    first = next(lines, None)
    if first is None:
        raise ValueError("a tokenizer must be trained on some text, got only empty documents")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], lines),
            model_writer=model,
            vocab_size=vocab_size - _LAYOUT,
            model_type=model_type,
            character_coverage=character_coverage,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n", "\t"],
            max_sentence_length=_MAX_SENTENCE_BYTES,
            train_extremely_large_corpus=max_sentences > 10_000_000,
            # Fixed, because the pieces that EM finds depend on how sums are split over threads.
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"vocab_size={vocab_size} with model_type={model_type!r} must suit the text; "
            f"SentencePiece says: {error}"
        ) from error
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / XGLMTokenizer.vocab_files_names["vocab_file"]
        path.write_bytes(model.getvalue())
        XGLMTokenizer(path).save_pretrained(folder)
    return XGLMTokenizer.from_pretrained(folder)


def _sentences(documents: Iterable[str]) -> Iterator[str]:
    """Cuts documents into lines that the trainer accepts; blank ones teach it nothing."""
    step = _MAX_SENTENCE_BYTES // 4
    for document in documents:
        for line in document.splitlines():
            for part in line.split("\t"):
                if part.strip():
                    yield from (part[i : i + step] for i in range(0, len(part), step))
