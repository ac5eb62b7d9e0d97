"""Noticing that the machine is about to be taken away."""

import signal
from types import FrameType, TracebackType

EXIT_PREEMPTED = 75
"""Exit code of a run that was told to stop, saved its state and can be started again (the
`EX_TEMPFAIL` of sysexits.h)."""


class PreemptedError(Exception):
    """The run was told to stop and is about to save its state."""


class StopNotice:
    """Within it, SIGTERM and SIGINT ask the run to save and stop; a second SIGINT interrupts.

    The handlers only set a flag: work that is under way, a compilation or a write, is not
    disturbed. Outside the main thread no handler is installed.
    """

    def __init__(self) -> None:
        """Has received nothing."""
        self.received: str | None = None
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

        Raises:
            PreemptedError: if a signal has arrived.
        """
        if self.received:
            raise PreemptedError(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
