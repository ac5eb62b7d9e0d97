"""Noticing that the machine is about to be taken away."""

import contextlib
import os
import signal
from types import FrameType, TracebackType

from xformer import distributed

EXIT_PREEMPTED = 75
"""Exit code of a run that was told to stop, saved its state and can be started again (the
`EX_TEMPFAIL` of sysexits.h)."""


_STDERR = 2
_ANSWER = "stopping before the next step; Ctrl-C from now on stops at once, without saving"
_STOP = "xformer/stop"
# No process is as many calls of `raise_if_received` ahead of another: it would have to have the
# results of batches that the other has not begun (two steps back in training, three batches in an
# evaluation).
_AHEAD = 8


class PreemptedError(Exception):
    """The run was told to stop and is about to save its state."""


class StopNotice:
    """Within it, SIGTERM and SIGINT ask the run to save and stop; a second SIGINT interrupts.

    The handlers only say so on stderr and set a flag: work that is under way, a compilation or a
    write, is not disturbed. Outside the main thread no handler is installed.

    A signal to one of several processes stops all, at the same place.
    """

    def __init__(self) -> None:
        """Has received nothing."""
        self.received: str | None = None
        self._calls = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopNotice":
        """Installs the handlers."""
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: whoever owns the signals decides
                break
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restores the handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def raise_if_received(self) -> None:
        """Ends work that can be done again later, such as an evaluation.

        All processes call it equally often, and so agree which call is the one that raises.

        Raises:
            PreemptedError: if a signal has arrived, at this process or another one.
        """
        self._calls += 1
        if distributed.process_count() > 1:
            self._raise_if_agreed()
        elif self.received:
            raise PreemptedError(self.received)

    def raise_if_any(self, before: str) -> None:
        """Ends what is about to begin.

        Args:
            before: What that is, for messages.

        Raises:
            PreemptedError: if a signal has arrived by now, at this process or another one.
            PeerError: as `distributed.meet`, at which all processes wait for one another here.
        """  # noqa: DOC502
        received = distributed.meet(before, self.received)
        for index, what in enumerate(received):
            if what:
                self.received = f"{what} at process {index}" if len(received) > 1 else what
                raise PreemptedError(self.received)

    def _raise_if_agreed(self) -> None:
        if self.received:
            place = f"{self._calls + _AHEAD} {self.received}"
            distributed.put(_STOP, f"{place} at process {distributed.process_index()}")
        call, _, what = (distributed.get(_STOP) or "").partition(" ")
        if call and self._calls >= int(call):
            self.received = what
            raise PreemptedError(what)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received:
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        if not self.received:
            with contextlib.suppress(OSError):  # not `print`: the signal may have come within one
                os.write(_STDERR, f"\n{name}: {_ANSWER}\n".encode())
        self.received = name
