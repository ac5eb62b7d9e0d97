"""What every task has: a description that gin can set, and what it becomes once it is opened.

    SequenceClassificationData(files, tokenizer, length, ...)   a config: which columns mean what
        .open(head) -> Task                                     rows, predictions, metrics

Opening reads and checks all files and tokenizes them; a task is kept in memory as token ids.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from xformer.data.packing import Batch
from xformer.files import check_mounted
from xformer.layers.heads import Head

Outputs = Mapping[str, np.ndarray]
"""Fields of a model's output struct over all rows of a task in order, each (rows, ...)."""

Prediction = dict[str, Any]
"""What a model says about an example: a JSON object with the example's `id`."""


@runtime_checkable
class Task(Protocol):
    """An opened task: examples of labelled files, as rows of tokens.

    An example may become several rows, and its prediction is made of the outputs of all of them.

    Attributes:
        fields: the output fields that predictions are made of.
        rows: number of rows.
    """

    fields: tuple[str, ...]
    rows: int

    @property
    def data(self) -> "TaskData":
        """The config that it was opened from."""
        ...

    @property
    def head(self) -> Head:
        """The head whose outputs it understands."""
        ...

    def row(self, index: int) -> Batch:
        """Gives a row.

        Args:
            index: its number, 0 to `rows - 1`.

        Returns:
            Arrays of the same names and shapes for every row: token ids and, where the files were
            opened with labels, those.
        """
        ...

    def padding_row(self) -> Batch:
        """Gives a row that scores nothing.

        Returns:
            Arrays like those of `row`.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Describes everything that decides the rows.

        Returns:
            A JSON object; where the files lie is not in it.
        """
        ...

    def predictions(self, outputs: Outputs) -> list[Prediction]:
        """Reads a model's outputs.

        Args:
            outputs: the arrays named in `fields`.

        Returns:
            A prediction for every example, in the order of the files.

        Raises:
            ValueError: there is not one output for every row.
        """
        ...

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Compares predictions with the labels of the files.

        Args:
            predictions: what `predictions` gave.

        Returns:
            Scores by name.

        Raises:
            ValueError: the files were opened without labels.
        """
        ...


@dataclass(frozen=True)
class TaskData(ABC):
    """Files of examples with declared columns; the base of each task's config.

    Attributes:
        files: names and glob patterns of JSON lines, CSV, TSV and Parquet files.
        tokenizer: a tokenizer folder, of a family that has a fast kind.
        length: tokens of a row.
        id: column of the examples' names; None numbers them from 0 over all files.
        shuffle: whether every epoch has an order of its own; a pass with an end is always in order.
    """

    files: tuple[str, ...]
    tokenizer: str
    length: int
    id: str | None = None
    shuffle: bool = True

    head_class: ClassVar[type]
    prediction_fields: ClassVar[tuple[str, ...]] = ("id",)
    """Fields that say how predictions are read and named, and leave the rows as they are."""

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        name = type(self).__name__
        if not isinstance(self.files, tuple | list) or not self.files:
            raise ValueError(f"{name}.files must be a tuple of file names, got {self.files!r}")
        for file in self.files:
            check_mounted(file, f"{name}.files")
        if not self.tokenizer:
            raise ValueError(f"{name}.tokenizer must name a folder, got an empty string")
        if self.length < 8:
            raise ValueError(f"{name}.length must be at least 8, got {self.length}")

    @abstractmethod
    def open(self, head: Head, *, labelled: bool = True) -> Task:
        """Reads, checks and tokenizes the files.

        Args:
            head: what the model's hidden states are turned into.
            labelled: whether the files have labels; without, there are only predictions.

        Returns:
            The task.

        Raises:
            FileNotFoundError: files are missing.
            ModuleNotFoundError: a library is missing that reads the files or computes the metrics.
            ValueError: the head is another task's, or rows cannot be used; the message names them.
        """

    def check_head(self, head: Head) -> None:
        """Refuses a head of another task.

        Args:
            head: what the model's hidden states are turned into.

        Raises:
            ValueError: it is no `head_class`.
        """
        if not isinstance(head, self.head_class):
            raise ValueError(
                f"{type(self).__name__} goes with heads.{self.head_class.__name__}, got "
                f"heads.{type(head).__name__}; set Run.head, or other data"
            )

    def describe(self) -> dict[str, Any]:
        """Describes how rows are made of files.

        Returns:
            A JSON object of all fields but those that say where something lies, and those of
            predictions alone.
        """
        fields = asdict(self)
        for name in ("files", "tokenizer", "shuffle", *self.prediction_fields):
            del fields[name]
        return {"kind": type(self).__name__, **fields}
