"""Prediction files: the boxes that a detector found, one CSV for many images.

Two forms are read, plain or gzip-compressed, told apart by their header:

- Kaggle: `ImageId,PredictionString`, one row per image, empty when nothing was found there, else six tokens per box,
  `label confidence XMin YMin XMax YMax`, separated by white space;
- rows: `ImageID,LabelName,Score,XMin,XMax,YMin,YMax`, one row per box (mind the other order of the coordinates).

Coordinates are normalised to [0, 1], but values outside are read as they are. Image ids and labels are text and never
touched ('007' and '1e5' stay). Written is the Kaggle form.

Compiled functions read and write what is common (`prediction_scanner.py`, `prediction_printer.py`). A row that they
leave is read by the plain reader (`prediction_rows.py`), which names every mistake, or written by `prediction_string`.
What imports Numba is imported by the functions that need it, because `--help` must not wait for it.
"""

import collections
import contextlib
import dataclasses
import gzip
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np

from oid.files import replacing, require_file
from oid.predictions import rows as plain
from oid.predictions.rows import KAGGLE_COLUMNS, TOKENS_PER_BOX, RowError, is_label

_KAGGLE_ROWS, _BOX_ROWS = 1 << 11, 1 << 17  # rows of either form that are read at a time
_BOXES_AT_ONCE = 1 << 16  # that are written at a time


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The boxes of many images, N in all; those of an image are together, in the order of the file.

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

    @classmethod
    def from_images(
        cls,
        image_ids: Sequence[str],
        labels: Sequence[str],
        images: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    ) -> "Predictions":
        """Joins what was found image by image.

        Args:
            image_ids: all images.
            labels: the label vocabulary.
            images: for each image, in their order, (n,) indices into `labels`, (n,) scores and (n, 4) xyxy boxes.
        """
        found = list(images)
        label_index = np.concatenate([np.zeros(0, np.int64), *[np.asarray(image[0], np.int64) for image in found]])
        scores = np.concatenate([np.zeros(0), *[np.asarray(image[1], np.float64) for image in found]])
        boxes = np.concatenate(
            [np.zeros((0, 4)), *[np.asarray(image[2], np.float64).reshape(-1, 4) for image in found]]
        )
        counts = [len(image[1]) for image in found]
        if len(counts) != len(image_ids):
            raise ValueError(f"{len(counts)} results for {len(image_ids)} images")
        return cls(list(image_ids), list(labels), np.repeat(np.arange(len(counts)), counts), label_index, scores, boxes)

    def offsets(self) -> np.ndarray:
        """(len(image_ids) + 1,) int64: the boxes of image i are offsets[i] to offsets[i + 1]."""
        return np.searchsorted(self.image_index, np.arange(len(self.image_ids) + 1))


def read_predictions(path: str | os.PathLike, *, allow_swapped_corners: bool = False) -> Predictions:
    """Reads a prediction file of either form.

    Args:
        path: the file.
        allow_swapped_corners: read boxes with XMin > XMax or YMin > YMax as they are, for a metric that drops and
            counts them; a Kaggle file all of whose boxes look like the order x1 x2 y1 y2 is an error all the same.

    Raises:
        InputError: naming file, line, token and value: no such file, unknown columns, an empty image id, an image with
            two rows (Kaggle form), tokens that are not a multiple of 6, a number that is none or not finite, swapped
            corners (equal ones are fine), a label with white space.
    """
    file = PredictionFile(path, allow_swapped_corners=allow_swapped_corners)
    return file.read(np.arange(file.num_images))


def write_predictions(path: str | os.PathLike, predictions: Predictions) -> None:
    """Writes the Kaggle form, all or nothing, compressed when the name ends in `.gz`.

    Raises:
        ValueError: see `PredictionWriter.write`.
    """
    with PredictionWriter(path) as writer:
        writer.write(predictions)


# === Reading ==========================================================================================================


class PredictionFile:
    """A prediction file of either form that is read in blocks of images.

    Opening it finds the images, reading finds their boxes. Of the file itself some megabytes are in memory at a time (a
    packed one is unpacked to a temporary file). Beside the list of images there are 32 bytes per row of the Kaggle form
    and 8 of the other; while the latter is opened, 24, and 48 when the rows of its images are not together.

    Attributes:
        image_ids: every image of the file in its order, also those without boxes.
        labels: the label vocabulary in the order of first occurrence; it grows as images are read, and `label_index` of
            everything that was read counts in it.
    """

    def __init__(self, path: str | os.PathLike, *, allow_swapped_corners: bool = False):
        """Opens the file.

        Args:
            path, allow_swapped_corners: as for `read_predictions`.

        Raises:
            InputError: as `read_predictions`, for mistakes in the header and in image ids.
        """
        from oid.predictions import index as prediction_index
        from oid.predictions import scanner as prediction_scanner

        path = require_file(path, "predictions are a CSV file with the columns " + ",".join(KAGGLE_COLUMNS))
        self._scanner = prediction_scanner
        self._index = prediction_index.PredictionIndex(path)
        self._vocabulary = prediction_index.Vocabulary()
        self._columns = plain.column_numbers(self._index.header)
        self._strict = not allow_swapped_corners
        self._other_order: bool | None = None
        self.image_ids: list[str] = self._index.image_ids
        self.labels: list[str] = self._vocabulary.texts

    @property
    def num_images(self) -> int:
        """How many images the file has."""
        return len(self.image_ids)

    def blocks(self, images_per_block: int = 4096) -> Iterator[Predictions]:
        """Yields all images in the order of the file, so many at a time; see `read`."""
        for first in range(0, self.num_images, images_per_block):
            yield self.read(np.arange(first, min(first + images_per_block, self.num_images)))

    def read(self, positions: np.ndarray) -> Predictions:
        """The boxes of some images.

        Args:
            positions: (n,) positions in `image_ids`, in any order.

        Returns:
            these images in the given order; `labels` is the file's own list, which later reads make longer.

        Raises:
            InputError: as `read_predictions`.
        """
        positions, index = np.asarray(positions, dtype=np.int64), self._index
        first, num_rows = index.offsets[positions], np.diff(index.offsets)[positions]
        rows = np.arange(num_rows.sum()) + np.repeat(first - (np.cumsum(num_rows) - num_rows), num_rows)
        counts, labels, scores, boxes = self._read_rows(rows, self._strict)
        if not self._strict and index.is_kaggle:
            self._check_order(rows, counts, boxes)
        image_index = np.repeat(np.arange(len(positions)), counts if index.is_kaggle else num_rows)
        ids = [self.image_ids[position] for position in positions.tolist()]
        return Predictions(ids, self.labels, image_index, labels, scores, boxes)

    def _read_rows(self, numbers: np.ndarray, strict: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Reads some rows of the index, part by part.

        Returns:
            (R,) number of boxes, (N,) labels, (N,) scores, (N, 4) boxes.
        """
        index, size = self._index, _KAGGLE_ROWS if self._index.is_kaggle else _BOX_ROWS
        parts = [slice(first, first + size) for first in range(0, len(numbers), size)]
        most = np.ones(len(numbers), dtype=np.int64)
        for part in parts if index.is_kaggle else ():
            most[part] = self._scanner.most_boxes(index.data, index.rows(numbers[part]))
            index.forget()
        total, offsets, counts = int(most.sum()), np.cumsum(most) - most, most.copy()
        found = np.empty(total, dtype=np.int64), np.empty(total), np.empty((total, 4))
        with ThreadPoolExecutor(2) as pool:
            for part in parts:
                self._read_part(pool, index.rows(numbers[part]), strict, offsets[part], counts[part], *found)
                index.forget()
        if counts.sum() < total:  # there was white space beside that between tokens
            kept = np.arange(total) - np.repeat(offsets, most) < np.repeat(counts, most)
            found = tuple(array[kept] for array in found)
        return counts, *found

    def _read_part(self, pool: ThreadPoolExecutor, rows: np.ndarray, strict: bool, *places: np.ndarray) -> None:
        """Reads some rows in two halves at once; what a half leaves is read when all before it is, so that labels are
        numbered by first occurrence. `places` are offsets, counts, labels, scores and boxes of `read_kaggle`."""
        scanner, data = self._scanner, self._index.data
        scan = scanner.read_kaggle if self._index.is_kaggle else scanner.read_rows

        def read(begin: int, end: int) -> tuple[int, int, int, int]:
            return scan(data, rows, begin, end, self._columns, strict, self._vocabulary.arrays, *places)

        ends = (len(rows) // 2, len(rows))
        for end, (row, reason, first, stop) in zip(ends, pool.map(read, (0, ends[0]), ends), strict=True):
            while row < end:
                if not (reason == scanner.NEW_TEXT and self._learn(data[first:stop].tobytes())):
                    self._read_plain_row(rows[row], strict, row, *places)
                    row += 1
                row, reason, first, stop = read(row, end)

    def _learn(self, label: bytes) -> bool:
        """Takes a label into the vocabulary, if it is one."""
        try:
            text = label.decode()
        except UnicodeDecodeError:
            return False
        if is_label(text):
            self._vocabulary.number(text)
        return is_label(text)

    def _read_plain_row(self, row: np.ndarray, strict: bool, place: int, *places: np.ndarray) -> None:
        """Reads a row of the index to position `place` of `places`, see `_read_part`, or says what is wrong with it."""
        try:
            found = list(plain.boxes_of_row(self._index.header, self._index.fields(row)))
            numbers = np.array([numbers for _, numbers in found]).reshape(-1, TOKENS_PER_BOX - 1)
            swapped = np.flatnonzero(plain.is_swapped(numbers[:, 1:]))
            if strict and len(swapped):
                token = TOKENS_PER_BOX * swapped[0] + 1 if self._index.is_kaggle else None
                raise plain.swapped_corners(numbers[swapped[0], 1:], token, self._all_in_other_order())
        except RowError as error:
            raise self._index.mistake(row, error) from error
        offsets, counts, labels, scores, boxes = places
        counts[place] = len(found)
        there = slice(offsets[place], offsets[place] + len(found))
        labels[there] = [self._vocabulary.number(label) for label, _ in found]
        scores[there], boxes[there] = numbers[:, 0], numbers[:, 1:]

    def _check_order(self, rows: np.ndarray, counts: np.ndarray, boxes: np.ndarray) -> None:
        """Raises an InputError if a box that was read has swapped corners because the file has another order."""
        swapped = np.flatnonzero(plain.is_swapped(boxes))
        if len(swapped) and self._all_in_other_order():
            number = rows[np.searchsorted(np.cumsum(counts), swapped[0], side="right")]
            self._read_rows(np.array([number]), strict=True)

    def _all_in_other_order(self) -> bool:
        """Whether all boxes of a Kaggle file look like x1 x2 y1 y2; reads it up to the first that does not."""
        if self._other_order is None:
            numbers = np.arange(self.num_images)
            parts = (numbers[first : first + _KAGGLE_ROWS] for first in range(0, len(numbers), _KAGGLE_ROWS))
            self._other_order = self._index.is_kaggle and all(
                plain.looks_like_x1x2y1y2(self._read_rows(part, strict=False)[3]) for part in parts
            )
        return self._other_order


# === Writing ==========================================================================================================


class PredictionWriter:
    """Writes the Kaggle form block by block, all or nothing, compressed when the name ends in `.gz`.

    A context manager: the file is there when the block of `with` ends well.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens nothing yet."""
        self._path = path
        self._ids: set[str] = set()

    def __enter__(self) -> "PredictionWriter":
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(replacing(self._path))
            self._file = stack.enter_context(_open_binary(temporary))
            self._file.write((",".join(KAGGLE_COLUMNS) + "\n").encode())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> bool | None:
        return self._stack.__exit__(*error)

    def write(self, predictions: Predictions) -> None:
        """Appends the rows of some images.

        Raises:
            ValueError: boxes are not together by image, an id is empty or repeated, or see `prediction_string`.
        """
        from oid.predictions import printer

        offsets = self._checked(predictions)
        ids, id_starts = _joined([_csv_field(image_id) + "," for image_id in predictions.image_ids])
        names, name_starts = _joined(
            [label if is_label(label) and _needs_no_quotes(label) else "" for label in predictions.labels]
        )
        columns = (
            np.ascontiguousarray(predictions.label_index, dtype=np.int64),
            np.ascontiguousarray(predictions.scores, dtype=np.float64),
            np.ascontiguousarray(predictions.boxes, dtype=np.float64),
        )
        longest = int(np.diff(name_starts).max(initial=0)) + printer.NUMBERS_SIZE

        def text_of(begin: int, end: int) -> list[np.ndarray | bytes]:
            num_boxes = offsets[end] - offsets[begin]
            room = np.empty(id_starts[end] - id_starts[begin] + end - begin + num_boxes * longest, dtype=np.uint8)
            pieces, image, length = [], begin, 0
            while image < end:
                image, reason, size = printer.write_rows(
                    image, end, ids, id_starts, names, name_starts, offsets, *columns, room[length:]
                )
                pieces.append(room[length : length + size].data)
                length += size
                if reason == printer.PLAIN:
                    pieces.append(_plain_row(predictions, image, slice(*offsets[image : image + 2])).encode())
                    image += 1
            return pieces

        cuts = np.searchsorted(offsets, np.arange(0, offsets[-1], _BOXES_AT_ONCE))
        cuts = np.unique([0, *cuts, len(predictions.image_ids)]).tolist()
        with ThreadPoolExecutor(2) as pool:
            waiting = collections.deque()
            for begin, end in itertools.pairwise(cuts):
                waiting.append(pool.submit(text_of, begin, end))
                if len(waiting) > 2:
                    self._file.writelines(waiting.popleft().result())
            for future in waiting:
                self._file.writelines(future.result())

    def _checked(self, predictions: Predictions) -> np.ndarray:
        """Remembers the ids and returns the offsets, or raises a ValueError."""
        ids, offsets = predictions.image_ids, predictions.offsets()
        if "" in ids or len(set(ids)) < len(ids) or not self._ids.isdisjoint(ids):
            raise ValueError("an image id is repeated or empty")
        self._ids.update(ids)
        if offsets[0] != 0 or offsets[-1] != len(predictions.boxes) or np.any(np.diff(predictions.image_index) < 0):
            raise ValueError("image_index must not decrease and must point into image_ids")
        if np.any((predictions.label_index < 0) | (predictions.label_index >= len(predictions.labels))):
            raise ValueError("label_index must point into labels")
        _check_finite(predictions.scores, predictions.boxes)
        return offsets


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
    _check_finite(scores, boxes)
    for label in set(labels):
        if not is_label(label):
            raise ValueError(f"the label {label!r} is empty or has white space")
    columns = (labels, scores.tolist(), *boxes.T.tolist())
    rows = zip(*columns, strict=True)
    return " ".join([f"{label} {score:.9g} {a:.6f} {b:.6f} {c:.6f} {d:.6f}" for label, score, a, b, c, d in rows])


def _check_finite(scores: np.ndarray, boxes: np.ndarray) -> None:
    if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
        raise ValueError("a score or a coordinate is not finite")


def _plain_row(predictions: Predictions, image: int, place: slice) -> str:
    """The row of an image whose boxes are at `place`."""
    labels = [predictions.labels[label] for label in predictions.label_index[place]]
    text = prediction_string(labels, predictions.scores[place], predictions.boxes[place])
    return f"{_csv_field(predictions.image_ids[image])},{_csv_field(text)}\n"


def _csv_field(text: str) -> str:
    """A field as CSV has it, in quotation marks where they are needed."""
    return text if _needs_no_quotes(text) else '"' + text.replace('"', '""') + '"'


def _needs_no_quotes(text: str) -> bool:
    return not any(character in text for character in ',"\r\n')


def _joined(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """All texts as one array of bytes, and (T + 1,) where each begins."""
    encoded = [text.encode() for text in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)])


@contextlib.contextmanager
def _open_binary(path: Path) -> Iterator[BinaryIO]:
    with open(path, "wb") as file:
        if path.suffix != ".gz":
            yield file
            return
        # neither time nor name in its header: the same predictions give the same file
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as packed:
            yield packed


@contextlib.contextmanager
def open_for_writing(path: Path) -> Iterator[TextIO]:
    """Opens a text file for writing, compressed when the name ends in `.gz`."""
    with _open_binary(path) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
        yield text
