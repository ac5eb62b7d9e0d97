"""Where the time of a run goes."""

import contextlib
import time
from collections.abc import Iterator

BESIDE = ("compilation", "evaluation")
"""Activities that are no part of training."""


class Stopwatch:
    """Adds up wall time by activity; what belongs to none is the training steps themselves."""

    def __init__(self) -> None:
        """Starts now."""
        self._start = time.perf_counter()
        self._spent: dict[str, float] = {}
        self._lapped = 0.0

    @contextlib.contextmanager
    def activity(self, name: str) -> Iterator[None]:
        """Counts the time within as that of an activity; activities must not nest."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spent[name] = self._spent.get(name, 0.0) + time.perf_counter() - start

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def fraction(self, name: str) -> float:
        """Share of an activity in the time spent training, which leaves out `BESIDE`."""
        training = self.elapsed - sum(self._spent.get(beside, 0.0) for beside in BESIDE)
        return self._spent.get(name, 0.0) / max(training, 1e-9)

    def lap(self) -> float:
        """Seconds since the last lap that went into steps and waiting for their input."""
        other = sum(seconds for name, seconds in self._spent.items() if name != "input")
        steps = self.elapsed - other
        lap, self._lapped = steps - self._lapped, steps
        return max(lap, 1e-9)
