"""Streams of rows that are read by number; a position is the number of the next batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np

from xformer.data.packing import Batch
from xformer.data.streams import Request, State, close, stack


class RowStream(ABC):
    """Batches of rows; the base of streams that say how a row is read.

    Attributes:
        rows: rows of one epoch.
        batches: number of batches; None where there is no end.
        threads: rows of a batch that are read at once, which pays where one has to be waited for.
    """

    def __init__(self, rows: int, request: Request, threads: int = 1) -> None:
        """Begins a stream.

        Args:
            rows: rows of one epoch.
            request: what is wanted of it.
            threads: rows of a batch that are read at once.
        """
        self._request = request
        self.threads = threads
        self.rows: int | None = rows
        self.batches: int | None = None
        if request.epochs is not None:
            self.batches = -(-rows * request.epochs // request.batch_size)

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Describes everything that decides the batches.

        Returns:
            A JSON object; where the files lie is not in it.
        """

    @abstractmethod
    def reader(self) -> Callable[[int], Batch]:
        """Gives what reads a row by its number.

        Returns:
            A function that can be pickled where there are workers; every row has arrays of the same
            names and shapes.
        """

    @abstractmethod
    def padding_row(self) -> Batch:
        """Gives a row that scores nothing.

        Returns:
            Arrays like those of the others.
        """

    def first_state(self) -> State:
        """Gives the position of batch 0.

        Returns:
            The number of the next batch.
        """
        return {"batch": 0}

    def batches_from(self, state: State) -> Iterator[tuple[Batch, State]]:
        """Reads on from a batch.

        Args:
            state: its number.

        Yields:
            A batch and the number of the next.
        """
        request, rows = self._request, self.rows
        assert rows is not None
        padding = request.transformed(self.padding_row(), 0, 0)
        read = _BatchReader(self.reader(), request, rows, self.threads)
        dataset = request.order(grain.MapDataset.range(rows)).map_with_index(_place)
        dataset = request.share(dataset, state["batch"]).batch(request.local_size, batch_fn=read)
        shares = iter(request.in_workers(dataset, ahead=2))
        number = state["batch"]
        try:
            while self.batches is None or number < self.batches:
                share = next(shares, None)
                number += 1
                yield _fill_up(share, padding, request.local_size), {"batch": number}
        finally:
            close(shares)


def _place(position: int, number: int) -> tuple[int, int]:
    """Where a row is: its position among those of all epochs, and its number."""
    return position, int(number)


class _BatchReader:
    """Reads and transforms the rows of a batch; reaches worker processes by pickling."""

    def __init__(
        self, read: Callable[[int], Batch], request: Request, rows: int, threads: int
    ) -> None:
        self._read, self._request, self._rows, self._threads = read, request, rows, threads
        self._pool = self._make_pool()

    def __call__(self, places: Sequence[tuple[int, int]]) -> Batch:
        """Reads the rows at some places."""
        rows = map(self._row, places) if self._pool is None else self._pool.map(self._row, places)
        return stack(list(rows))

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the threads behind."""
        return {**self.__dict__, "_pool": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Starts threads of this process."""
        self.__dict__.update(state)
        self._pool = self._make_pool()

    def _make_pool(self) -> ThreadPoolExecutor | None:
        return None if self._threads == 1 else ThreadPoolExecutor(self._threads)

    def _row(self, place: tuple[int, int]) -> Batch:
        position, number = place
        return self._request.transformed(self._read(number), position // self._rows, number)


def _fill_up(share: Batch | None, padding: Batch, size: int) -> Batch:
    """Returns a share with rows of padding behind those of the last batch, in memory of its own."""
    # What workers give lies in shared memory, hence the copy.
    name = next(iter(padding))
    missing = size if share is None else size - len(share[name])
    filled = {}
    for name, row in padding.items():
        parts = [] if share is None else [share[name]]
        filled[name] = np.concatenate([*parts, np.broadcast_to(row, (missing, *row.shape))])
    return filled
