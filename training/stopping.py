"""Stopping a training before its end: by SIGTERM, by the keyboard, or because its hours are over."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

from oid.files import Unfinished


class Stopped(BaseException):
    """The training stops now; not an Exception, so that no handler of errors catches it. The text says where."""


class Stop:
    """Whether the training is to stop, and why.

    A signal stops at once while nothing can be lost, as when the data is read. While `waits` is true a training step
    is finished first, because an interrupted step leaves weights that belong in no checkpoint.

    Args:
        what: the run, to begin messages with.
        max_hours: stop after this time; None = never.
        started: when the time began, on the clock of `time.monotonic`.

    Attributes:
        reason: why to stop; empty = go on.
        waits: whether the training asks `wanted` after each step.
        by_keyboard: whether Ctrl-C is the reason.
    """

    def __init__(self, what: str = "the training", *, max_hours: float | None = None, started: float = 0.0):
        self.what = what
        self.reason = ""
        self.waits = False
        self.by_keyboard = False
        self._max_hours = max_hours
        self._end = None if max_hours is None else started + 3600 * max_hours

    def wanted(self) -> str:
        """The reason to stop; empty = go on."""
        if not self.reason and self._end is not None and time.monotonic() >= self._end:
            self.reason = f"its limit of {self._max_hours:g} hours"
        return self.reason

    def request(self, reason: str) -> None:
        """Makes a reason that another process has that of this one; empty = there is none."""
        self.reason = self.reason or reason

    @contextlib.contextmanager
    def on_signals(self) -> Iterator["Stop"]:
        """Inside the block SIGTERM and SIGINT are reasons to stop; a second SIGINT ends the process as usual.

        Raises:
            Unfinished: the block was stopped; the message says where, and how to go on.
            KeyboardInterrupt: the block was stopped by Ctrl-C; with the same message.
        """
        before = {}
        if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
            before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        except Stopped as stopped:
            where = str(stopped) or "before its next step"
            sentence = f"{self.what}: stopped by {self.reason} {where}: run the same command to go on"
            raise (KeyboardInterrupt if self.by_keyboard else Unfinished)(sentence) from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        again = self.by_keyboard
        self.by_keyboard = self.by_keyboard or number == signal.SIGINT
        self.reason = self.reason or ("the keyboard" if self.by_keyboard else signal.Signals(number).name)
        if number == signal.SIGINT and again:
            raise KeyboardInterrupt
        if not self.waits:
            raise Stopped
