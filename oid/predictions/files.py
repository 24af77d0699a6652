"""Prediction files: the boxes that a detector found, one CSV for many images.

Two forms are read, plain or gzip-compressed; the header tells which:

- Kaggle: `ImageId,PredictionString`, one row per image. The string has six tokens per box, separated by spaces or tabs:
  `label confidence XMin YMin XMax YMax`. It is empty if nothing was found.
- Rows: `ImageID,LabelName,Score,XMin,XMax,YMin,YMax`, one row per box (note the other order of the coordinates). The
  rows of an image need not be together.

The Kaggle form is written. Coordinates are normalised to [0, 1]; values outside are read unchanged. Image ids and
labels are text and never changed ('007' and '1e5' stay). Every line is a row: a quoted field has no line break.
"""

import contextlib
import dataclasses
import errno
import gzip
import io
import itertools
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np

from oid.columns import CORNERS, KAGGLE_COLUMNS
from oid.files import InputError, replacing, require_file
from oid.machine import map_in_threads
from oid.predictions.parse import TOKENS, Parser, is_label, open_text

_BOXES_PER_BLOCK = 1 << 16  # that are written at a time


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The boxes of many images, N in all; those of an image are together.

    image_ids: every image of the file in its order, also those without boxes.
    labels: the label vocabulary, in the order of first occurrence.
    image_index: (N,) int64 into `image_ids`, never decreasing.
    label_index: (N,) int64 into `labels`.
    scores: (N,) float64, finite.
    boxes: (N, 4) float64, xyxy, finite.
    """

    image_ids: list[str]
    labels: list[str]
    image_index: np.ndarray
    label_index: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray

    def offsets(self) -> np.ndarray:
        """(len(image_ids) + 1,) int64: the boxes of image i are offsets[i] to offsets[i + 1]."""
        return np.searchsorted(self.image_index, np.arange(len(self.image_ids) + 1))


# === Reading ==========================================================================================================
def read_predictions(path: str | os.PathLike, *, allow_swapped_corners: bool = False) -> Predictions:
    """Reads a whole prediction file; see `PredictionFile`."""
    file = PredictionFile(path, allow_swapped_corners=allow_swapped_corners)
    return file.read(np.arange(file.num_images))


class PredictionFile:
    """A prediction file of either form, whose images can be read in any order.

    Opening it parses the whole file, block by block, into a temporary file with 48 bytes per box. Memory holds the ids
    and 8 bytes per image, and 8 bytes per box if the rows of an image are not together.

    Attributes:
        path: the file.
        image_ids: every image of the file in its order, also those without boxes.
        labels: the label vocabulary, in the order of first occurrence.
        num_images: the number of images.
    """

    def __init__(self, path: str | os.PathLike, *, allow_swapped_corners: bool = False):
        """Opens the file.

        Args:
            path: the file.
            allow_swapped_corners: accept boxes with XMin > XMax or YMin > YMax, for a metric that drops and counts
                them. A Kaggle file is still an error if all its boxes look like the order x1 x2 y1 y2.

        Raises:
            InputError: naming file, line, token and value: no such file, unknown columns, an empty image id, an image
                with two rows (Kaggle form), tokens that are not a multiple of 6, a token that is not a finite number,
                swapped corners (equal ones are fine), a label with white space, no room for the temporary file.
        """
        path = require_file(path, "predictions are a CSV file with the columns " + ",".join(KAGGLE_COLUMNS))
        self.path = path
        images, labels = {}, {}  # the number of each in the order of first occurrence
        run_images, run_boxes = [], [np.zeros(0, dtype=np.int64)]
        with open_text(path) as text, _temporary_table(path) as table:
            for block in Parser(path, text).blocks(allow_swapped_corners):
                run_images += [images.setdefault(image_id, len(images)) for image_id in block.ids]
                run_boxes.append(block.num_boxes)
                numbers = np.array([labels.setdefault(label, len(labels)) for label in block.labels], dtype=np.float64)
                block.table[:, 0] = numbers[block.table[:, 0].astype(np.int64)]
                table.write(block.table.data)
            table.truncate(max(table.tell(), 1))  # an empty file cannot be mapped
            self._memory = mmap.mmap(table.fileno(), 0, access=mmap.ACCESS_READ)
        self.image_ids, self.labels, self.num_images = list(images), list(labels), len(images)
        run_images, run_boxes = np.array(run_images, dtype=np.int64), np.concatenate(run_boxes)
        counts = np.bincount(run_images, run_boxes, self.num_images).astype(np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(counts)])
        self._order = None
        if np.any(np.diff(run_images) < 0):
            self._order = np.argsort(np.repeat(run_images, run_boxes), kind="stable")

    def blocks(self, images_per_block: int = 4096) -> Iterator[Predictions]:
        """Yields all images in the order of the file, `images_per_block` at a time; see `read`."""
        for first in range(0, self.num_images, images_per_block):
            yield self.read(np.arange(first, min(first + images_per_block, self.num_images)))

    def read(self, positions: np.ndarray) -> Predictions:
        """The boxes of some images.

        Args:
            positions: (n,) positions in `image_ids`, in any order.

        Returns:
            these images in the given order; `labels` is the file's own list.
        """
        positions = np.asarray(positions, dtype=np.int64)
        counts = np.diff(self._offsets)[positions]
        image_index = np.repeat(np.arange(len(positions)), counts)
        rows = np.arange(len(image_index)) + (self._offsets[positions] - np.cumsum(counts) + counts)[image_index]
        if self._order is not None:
            rows = self._order[rows]
        table = np.frombuffer(self._memory, count=self._offsets[-1] * len(TOKENS)).reshape(-1, len(TOKENS))
        labels, scores, boxes = np.empty(len(rows), dtype=np.int64), np.empty(len(rows)), np.empty((len(rows), 4))
        for first in range(0, len(rows), _BOXES_PER_BLOCK):
            part = slice(first, first + _BOXES_PER_BLOCK)
            found = table[rows[part]]
            labels[part], scores[part], boxes[part] = found[:, 0], found[:, 1], found[:, 2:]
            if hasattr(mmap, "MADV_DONTNEED"):  # what was read need not stay in memory
                self._memory.madvise(mmap.MADV_DONTNEED)
        ids = [self.image_ids[position] for position in positions.tolist()]
        return Predictions(ids, self.labels, image_index, labels, scores, boxes)


@contextlib.contextmanager
def _temporary_table(path: Path) -> Iterator[BinaryIO]:
    """Yields a temporary file for the boxes of `path`; raises an InputError if the disk is full."""
    try:
        with tempfile.TemporaryFile() as table:
            yield table
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f"no room for its boxes in {tempfile.gettempdir()} ({error.strerror})"
        raise InputError(f"{path}: {place}, make room or name another folder by TMPDIR") from error


# === Writing ==========================================================================================================
def write_predictions(path: str | os.PathLike, predictions: Predictions) -> None:
    """Writes a whole prediction file; see `PredictionWriter`."""
    with PredictionWriter(path) as writer:
        writer.write(predictions)


class PredictionWriter:
    """Writes the Kaggle form block by block, compressed when the name ends in `.gz`.

    A context manager: the file appears when the block of `with` ends without an error.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens nothing yet."""
        self._path = path
        self._ids: set[str] = set()

    def __enter__(self) -> "PredictionWriter":
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(open_for_writing(stack.enter_context(replacing(self._path))))
            self._file.write(",".join(KAGGLE_COLUMNS) + "\n")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> bool | None:
        return self._stack.__exit__(*error)

    def write(self, predictions: Predictions) -> None:
        """Appends the rows of some images: scores with 9 significant digits, coordinates with 6 decimals.

        Raises:
            ValueError: for what could not be read: an id that is empty, repeated or has a line break, boxes that are
                not together by image, a label that is empty or has white space, a number that is not finite.
        """
        ids, image_index, label_index = predictions.image_ids, predictions.image_index, predictions.label_index
        if not all(map(str.strip, ids)) or len(set(ids)) < len(ids) or not self._ids.isdisjoint(ids):
            raise ValueError("an image id is repeated or empty")
        if any(line_break in image_id for image_id in ids for line_break in "\r\n"):
            raise ValueError("an image id has a line break")
        offsets = predictions.offsets()
        if offsets[0] != 0 or offsets[-1] != len(predictions.boxes) or np.any(np.diff(image_index) < 0):
            raise ValueError("image_index must not decrease and must point into image_ids")
        if np.any((label_index < 0) | (label_index >= len(predictions.labels))):
            raise ValueError("label_index must point into labels")
        _check_boxes(predictions.labels, predictions.scores, predictions.boxes)
        self._ids.update(ids)
        cuts = np.searchsorted(offsets, np.arange(0, offsets[-1], _BOXES_PER_BLOCK))
        parts = itertools.pairwise(np.unique([0, *cuts, len(ids)]).tolist())
        self._file.writelines(map_in_threads(lambda part: _rows_of(predictions, offsets, *part), parts))


def _rows_of(predictions: Predictions, offsets: np.ndarray, begin: int, end: int) -> str:
    """The rows of the images `begin` to `end`.

    Polars writes the boxes, separated by spaces. The text before an image's first box is joined to the box's label: it
    ends the row before, begins the row of the image, and contains images without boxes in between.
    """
    import polars as pl

    part = slice(offsets[begin], offsets[end])
    label_index = predictions.label_index[part].copy()
    quote = '"' if any(_csv_field(label) != label for label in predictions.labels) else ""
    texts = [" " + label.replace('"', '""') for label in predictions.labels]
    between = ""
    for image in range(begin, end):
        first, stop = offsets[image : image + 2]
        between += _csv_field(predictions.image_ids[image]) + ","
        if first < stop:
            texts.append(between + quote + texts[label_index[first - part.start]][1:])
            label_index[first - part.start] = len(texts) - 1
            between = quote
        between += "\n"
    scores = predictions.scores[part].tolist()
    score_lines = ("%.9g\n" * len(scores) % tuple(scores)).encode()  # Polars cannot write significant digits
    frame = pl.read_csv(score_lines, has_header=False, schema={"score": pl.String})
    labels = pl.Series("label", texts, dtype=pl.String).gather(label_index)
    corners = map(pl.Series, CORNERS, predictions.boxes[part].T)
    frame = frame.select(labels, "score", *corners)
    form = {"include_header": False, "separator": " ", "line_terminator": "", "quote_style": "never"}
    return frame.write_csv(float_precision=6, **form) + between


def prediction_string(labels: Sequence[str], scores: np.ndarray, boxes: np.ndarray) -> str:
    """The boxes of one image as Kaggle takes them; "" for none.

    Args:
        labels: (N,) texts without white space.
        scores: (N,), written with 9 significant digits.
        boxes: (N, 4) xyxy, written with 6 decimals.

    Raises:
        ValueError: a number is not finite, or a label is empty or has white space: nobody could read that again.
    """
    scores, boxes = np.asarray(scores, dtype=np.float64), np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    _check_boxes(labels, scores, boxes)
    rows = zip(labels, scores.tolist(), *boxes.T.tolist(), strict=True)
    return " ".join("{} {:.9g} {:.6f} {:.6f} {:.6f} {:.6f}".format(*row) for row in rows)


def _check_boxes(labels: Iterable[str], scores: np.ndarray, boxes: np.ndarray) -> None:
    if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
        raise ValueError("a score or a coordinate is not finite")
    for label in set(labels):
        if not is_label(label):
            raise ValueError(f"the label {label!r} is empty or has white space")


def _csv_field(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text


@contextlib.contextmanager
def open_for_writing(path: Path) -> Iterator[TextIO]:
    """Opens a text file for writing, compressed when the name ends in `.gz`."""
    with open(path, "wb") as file:
        if path.suffix == ".gz":  # neither time nor name in its header: the same predictions give the same file
            file = gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0)
        with io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
            yield text
