"""How far a training is, for a person to see: a bar or lines, a line per epoch, TensorBoard."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from training.state import EpochRow, TrainingState
from training.validation import LEFT_OUT

SECONDS_PER_LINE = 10


def best_so_far(state: TrainingState) -> str:
    """The best mAP so far, to end a sentence with; nothing without validation images."""
    return "" if state.best is None else f", best mAP {state.best:.4f} ({LEFT_OUT})"


def line_of_epoch(row: EpochRow, epochs: int, *, best: bool, seconds_left: float | None) -> str:
    """What is reported of a finished epoch.

    Args:
        row: of the epoch.
        epochs: in all.
        best: whether its mAP is the best so far.
        seconds_left: until the end of the training; None = unknown.
    """
    losses = f"loss {row.loss:.3f} (class {row.class_loss:.3f}, box {row.box_loss:.3f})"
    score = "" if row.mAP is None else f"  mAP {row.mAP:.4f} {LEFT_OUT}{', best' if best else ''}"
    speed = "" if row.images_per_second is None else f"  {row.images_per_second:.1f} images/s"
    return f"epoch {row.epoch}/{epochs}  {losses}{score}{speed}{minutes_left(seconds_left)}"


def minutes_left(seconds: float | None) -> str:
    """The end of a line; empty where the time is unknown."""
    return "" if seconds is None else f"  {seconds / 60:.1f} min left"


class Progress:
    """Shows how far a training is: a bar on a terminal, else a line every ten seconds.

    Args:
        report: gets the lines.
    """

    def __init__(self, report: Callable[[str], None]):
        self._report = report
        self._said = time.monotonic()
        self._bar = None

    def begin(self, what: str, *, total: int, done: int = 0) -> None:
        """Begins to count something, such as the steps of an epoch."""
        self.end()
        self._bar = tqdm(total=total, initial=done, desc=what, leave=False, disable=None)

    def update(self, done: int, text: str = "", *, line: Callable[[], str]) -> None:
        """Shows progress.

        Args:
            done: of the total.
            text: behind the bar.
            line: makes the line that is reported where there is no terminal.
        """
        if not self._bar.disable:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._said >= SECONDS_PER_LINE:
            self.say(line())

    def say(self, line: str) -> None:
        """Reports a line; the next one by itself comes ten seconds later."""
        self._said = time.monotonic()
        self._report(line)

    def end(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()


class TensorBoard:
    """Gives the numbers of each epoch to TensorBoard.

    Args:
        folder: for its files; None = nothing is written.
    """

    def __init__(self, folder: Path | None):
        self._writer = None
        if folder is not None:
            from tensorboard.summary import Writer

            self._writer = Writer(str(folder))

    def show(self, row: EpochRow) -> None:
        if not self._writer:
            return
        for name, value in dataclasses.asdict(row).items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(name, value, row.epoch)
        self._writer.flush()
