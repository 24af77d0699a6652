"""What ends a training against its will, in one sentence: losses that are not finite, and lack of memory."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

from oid.files import InputError, replacing
from training.processes import is_first

BAD_BATCH = "bad_batch.json"
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
    if is_first():
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
