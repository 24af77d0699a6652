"""What is seen of a training while it runs, and what ends it: progress, losses that are not finite, lack of memory."""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
from tqdm import tqdm

from oid.files import InputError, replacing
from training import machines

BAD_BATCH = "bad_batch.json"
SECONDS_PER_LINE = 10
OUT_OF_MEMORY = re.compile(
    r"RESOURCE_EXHAUSTED|ResourceExhausted|OutOfMemory|out of memory|MemoryError|bad_alloc|Insufficient memory", re.I
)


class NonFiniteLoss(InputError):
    """The loss became infinite or not a number; the message names the images of that batch."""


def spoiled_weight(trainer: keras.Model) -> str | None:
    """The name of a weight that is not finite: an update can spoil one though the loss before it was finite."""
    for variable in trainer.trainable_variables:
        if not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
            return variable.path
    return None


def report_bad_batch(run: Path, what: str, step: int, images: list[str], last_good: str) -> NonFiniteLoss:
    """The error that ends a training; RUN/bad_batch.json gets what its message says.

    Args:
        run: folder of the run.
        what: happened.
        step: in which.
        images: ids of the images in its batch.
        last_good: the newest checkpoint in words; empty = there is none.
    """
    good = last_good or "nothing: there is no checkpoint yet"
    report = {"step": step, "what": what, "images": images, "last_good_checkpoint": good}
    if machines.is_first():
        with replacing(run / BAD_BATCH) as path:
            path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return NonFiniteLoss(
        f"{what}: look at its images {' '.join(images)} and their boxes ({run / BAD_BATCH} lists them), or train "
        f"another run with a lower learning rate; the same command goes on from {good}"
    )


@contextlib.contextmanager
def memory_errors(*, batch_size: int, image_size: int, cache_bytes: int) -> Iterator[None]:
    """Inside the block a lack of memory, of the host or of an accelerator, is one sentence.

    Args:
        batch_size: images per step.
        image_size: side of the network's input in pixels.
        cache_bytes: memory for reduced images.

    Raises:
        InputError: there is not enough memory.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"):
            raise
        raise InputError(
            f"the memory does not suffice for a step of {batch_size} images of {image_size} pixels beside "
            f"{cache_bytes / 2**30:.1f} GB of cached images: take a smaller batch size (accumulating several), a "
            "smaller image size or network, or a smaller cache"
        ) from error


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
