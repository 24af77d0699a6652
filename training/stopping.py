"""Stopping a training before its end: by SIGTERM, by the keyboard, or because its hours are over."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator


class Stopped(BaseException):
    """The training is to stop now; no error, so that nothing on its way takes it for one."""


class Stop:
    """Whether the training is to stop, and why.

    While nothing can be lost, as when the data is read, a signal stops at once; with `waits` a training step is
    finished first, because an interrupted one leaves weights that no checkpoint should have.

    Args:
        max_hours: after so many hours; None = never.
        started: since when, on `time.monotonic`'s clock.

    Attributes:
        reason: why; empty while there is none.
        waits: whether somebody asks `wanted` from time to time.
        by_keyboard: whether Ctrl-C is the reason.
        agree: makes the reason that one process has that of all, where several train together.
    """

    def __init__(self, *, max_hours: float | None = None, started: float = 0.0):
        self.reason = ""
        self.waits = False
        self.by_keyboard = False
        self.agree: Callable[[str], str] = lambda reason: reason
        self._max_hours = max_hours
        self._end = None if max_hours is None else started + 3600 * max_hours

    def wanted(self) -> bool:
        """Whether to stop."""
        if not self.reason and self._end is not None and time.monotonic() >= self._end:
            self.reason = f"--max_hours {self._max_hours:g}"
        self.reason = self.agree(self.reason)
        return bool(self.reason)

    def check(self) -> None:
        """Raises Stopped where it is wanted."""
        if self.wanted():
            raise Stopped

    @contextlib.contextmanager
    def on_signals(self) -> Iterator["Stop"]:
        """Inside the block SIGTERM and SIGINT are reasons to stop; a second SIGINT ends the process as usual."""
        if threading.current_thread() is not threading.main_thread():  # which alone can have handlers
            yield self
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        again = self.by_keyboard
        self.by_keyboard = self.by_keyboard or number == signal.SIGINT
        self.reason = self.reason or ("the keyboard" if self.by_keyboard else signal.Signals(number).name)
        if number == signal.SIGINT and (again or not self.waits):
            raise KeyboardInterrupt
        if not self.waits:
            raise Stopped
