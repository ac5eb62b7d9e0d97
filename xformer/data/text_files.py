"""Files of documents that are read and tokenized while training."""

from dataclasses import dataclass

from xformer.data.formats.base import SourceOptions
from xformer.data.sentence_pairs import KINDS
from xformer.files import check_mounted


@dataclass(frozen=True)
class TextFiles:
    """What every such kind of data has.

    At the start every file is read once (to count, hash and find the documents), compressed ones
    are kept in memory, and every process of a run tokenizes everything.

    Attributes:
        files: names and glob patterns of text, JSON lines, Parquet, Arrow and ArrayRecord files,
            and of folders that `datasets` saved.
        tokenizer: a tokenizer folder.
        length: tokens of a row.
        text_key: key, column or feature that holds the text.
        text_split: what of a text file is one document: "file", "paragraph" or "line".
        shuffle: whether every epoch has an order of its own; a pass with an end is always in order.
        workers: processes that tokenize; 0 tokenizes in threads of the training process.
        bad_row_limit: largest share of unusable rows, 0 to 1.
    """

    files: tuple[str, ...]
    tokenizer: str
    length: int
    text_key: str = "text"
    text_split: str = "file"
    shuffle: bool = True
    workers: int = 0
    bad_row_limit: float = 0.01

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        name = type(self).__name__
        if not isinstance(self.files, tuple | list) or not self.files:
            raise ValueError(f"{name}.files must be a tuple of file names, got {self.files!r}")
        for file in self.files:
            check_mounted(file, f"{name}.files")
        if not self.tokenizer:
            raise ValueError(f"{name}.tokenizer must name a folder, got an empty string")
        if self.length < 2:
            raise ValueError(f"{name}.length must be at least 2, got {self.length}")
        if not 0 <= self.bad_row_limit <= 1:
            raise ValueError(f"{name}.bad_row_limit must be in 0..1, got {self.bad_row_limit}")
        check_workers(self.workers, f"{name}.workers")
        self.source_options()

    def source_options(self) -> SourceOptions:
        """Collects how files become documents.

        Returns:
            The options.

        Raises:
            ValueError: one of them is out of range.
        """
        try:
            return SourceOptions(text_key=self.text_key, text_split=self.text_split)
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}.{error}") from error


@dataclass(frozen=True)
class TextData(TextFiles):
    """Documents, packed into rows; the fields are those of `TextFiles`.

    For corpora of a few gigabytes; for more, `xformer prepare` once and use `PreparedData`.
    """


@dataclass(frozen=True)
class PairData(TextFiles):
    """Pairs of texts of documents, and whether the second follows the first.

    Rows are `[CLS] A [SEP] B [SEP]`, or what the tokenizer's family puts around a pair;
    `xformer.data.sentence_pairs` says how they are made. A document gives the same pairs wherever
    it stands, and others in every epoch. Beside the fields of `TextFiles`:

    Attributes:
        kind: what a wrong pair is: "next_sentence" (the second text is of another document) or
            "sentence_order" (the two are exchanged).
        short_share: share of rows that aim at a random smaller number of tokens, 0 to 1.
    """

    kind: str = "next_sentence"
    short_share: float = 0.1

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        super().__post_init__()
        if self.kind not in KINDS:
            raise ValueError(f"PairData.kind must be one of {KINDS}, got {self.kind!r}")
        if not 0 <= self.short_share <= 1:
            raise ValueError(f"PairData.short_share must be in 0..1, got {self.short_share}")


def check_workers(workers: int, key: str) -> None:
    """Refuses a senseless number of processes.

    Args:
        workers: the number.
        key: the setting that holds it.

    Raises:
        ValueError: it is out of range.
    """
    if not 0 <= workers <= 1024:
        raise ValueError(f"{key} must be in 0..1024, got {workers}")
