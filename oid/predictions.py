"""Prediction files: the boxes that a detector found, one CSV for many images.

Two forms are read, plain or gzip-compressed, told apart by their header:

- Kaggle: `ImageId,PredictionString`, one row per image, empty when nothing was found there, else six tokens per box,
  `label confidence XMin YMin XMax YMax`, separated by white space;
- rows: `ImageID,LabelName,Score,XMin,XMax,YMin,YMax`, one row per box (mind the other order of the coordinates).

Coordinates are normalised to [0, 1], but values outside are read as they are. Image ids and labels are text and never
touched ('007' and '1e5' stay). Written is the Kaggle form.

There are two readers. Polars and NumPy read a well-formed file column by column; whatever they do not find well-formed
(also quotation marks) is read again by the plain one, which takes row after row and knows the line of every mistake.
"""

import collections
import contextlib
import csv
import dataclasses
import gzip
import io
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

import numpy as np
import polars as pl

from oid.files import InputError, replacing, require_file

KAGGLE_COLUMNS = ("ImageId", "PredictionString")
ROW_COLUMNS = ("ImageID", "LabelName", "Score", "XMin", "XMax", "YMin", "YMax")
BOX_COLUMNS = ("XMin", "YMin", "XMax", "YMax")
TOKENS_PER_BOX = 6  # label confidence XMin YMin XMax YMax

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")  # what float() takes, less '1_0' and 'nan'
_BLOCK = 4096  # images that are split into tokens at a time


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
    path = require_file(path, "predictions are a CSV file with the columns " + ",".join(KAGGLE_COLUMNS))
    data = _read_bytes(path)
    predictions = _read_columns(data, allow_swapped_corners)
    return predictions or _read_rows(path, data, allow_swapped_corners)


def write_predictions(path: str | os.PathLike, predictions: Predictions) -> None:
    """Writes the Kaggle form, all or nothing, compressed when the name ends in `.gz`.

    Raises:
        ValueError: see `PredictionWriter.write`.
    """
    with PredictionWriter(path) as writer:
        writer.write(predictions)


class PredictionFile:
    """A prediction file of either form that is read in blocks of images.

    Attributes:
        image_ids: every image of the file in its order, also those without boxes.
        labels: the label vocabulary in the order of first occurrence; it grows as images are read, and `label_index` of
            everything that was read counts in it.
    """

    def __init__(self, path: str | os.PathLike, *, allow_swapped_corners: bool = False):
        """Opens the file; arguments and errors are those of `read_predictions`."""
        self._all = read_predictions(path, allow_swapped_corners=allow_swapped_corners)
        self._offsets = self._all.offsets()
        self.image_ids, self.labels = self._all.image_ids, self._all.labels

    @property
    def num_images(self) -> int:
        return len(self.image_ids)

    def blocks(self, images_per_block: int = 4096) -> Iterator[Predictions]:
        """Yields all images in the order of the file, so many at a time."""
        for first in range(0, self.num_images, images_per_block):
            yield self.read(np.arange(first, min(first + images_per_block, self.num_images)))

    def read(self, positions: np.ndarray) -> Predictions:
        """The boxes of some images.

        Args:
            positions: (n,) positions in `image_ids`, in any order.

        Returns:
            these images in the given order; `labels` is the file's own list, which later reads make longer.
        """
        starts, counts = self._offsets[positions], np.diff(self._offsets)[positions]
        image_index = np.repeat(np.arange(len(positions)), counts)
        source = np.arange(len(image_index)) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
        found = self._all
        arrays = found.label_index[source], found.scores[source], found.boxes[source]
        return Predictions([self.image_ids[position] for position in positions], self.labels, image_index, *arrays)


class PredictionWriter:
    """Writes the Kaggle form block by block, all or nothing, compressed when the name ends in `.gz`.

    A context manager: the file is there when the block of `with` ends well.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = path
        self._ids: set[str] = set()

    def __enter__(self) -> "PredictionWriter":
        self._stack = contextlib.ExitStack()
        temporary = self._stack.enter_context(replacing(self._path))
        self._writer = csv.writer(self._stack.enter_context(open_for_writing(temporary)), lineterminator="\n")
        self._writer.writerow(KAGGLE_COLUMNS)
        return self

    def __exit__(self, *error: object) -> bool | None:
        return self._stack.__exit__(*error)

    def write(self, predictions: Predictions) -> None:
        """Appends the rows of some images.

        Raises:
            ValueError: boxes are not together by image, an id is empty or repeated, or see `prediction_string`.
        """
        ids, offsets = predictions.image_ids, predictions.offsets()
        if "" in ids or len(self._ids | set(ids)) != len(self._ids) + len(ids):
            raise ValueError("an image id is repeated or empty")
        self._ids.update(ids)
        if offsets[0] != 0 or offsets[-1] != len(predictions.boxes) or np.any(np.diff(predictions.image_index) < 0):
            raise ValueError("image_index must not decrease and must point into image_ids")
        labels = np.array(predictions.labels, dtype=object)
        for image_id, start, stop in zip(ids, offsets[:-1], offsets[1:], strict=True):
            image_labels = labels[predictions.label_index[start:stop]]
            scores, boxes = predictions.scores[start:stop], predictions.boxes[start:stop]
            self._writer.writerow((image_id, prediction_string(image_labels, scores, boxes)))


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
    if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
        raise ValueError("a score or a coordinate is not finite")
    for label in set(labels):
        if not _is_label(label):
            raise ValueError(f"the label {label!r} is empty or has white space")
    columns = (labels, scores.tolist(), *boxes.T.tolist())
    rows = zip(*columns, strict=True)
    return " ".join([f"{label} {score:.9g} {a:.6f} {b:.6f} {c:.6f} {d:.6f}" for label, score, a, b, c, d in rows])


def _is_label(text: str) -> bool:
    return text.split() == [text]


@contextlib.contextmanager
def open_for_writing(path: Path) -> Iterator[TextIO]:
    """Opens a text file for writing, compressed when the name ends in `.gz`."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "wb"))
        if path.suffix == ".gz":  # neither time nor name in its header: the same predictions give the same file
            file = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0))
        yield stack.enter_context(io.TextIOWrapper(file, encoding="utf-8", newline=""))


def _read_bytes(path: Path) -> bytes:
    """The file's text, unpacked, without byte-order mark and trailing line ends."""
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path} is a damaged gzip file ({error}): copy it again") from error
    if data.startswith(b"PK\x03\x04"):
        raise InputError(f"{path} is a zip archive: unpack it first")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path} is encoded in UTF-16: save it as UTF-8")
    data = data.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
    if not data.strip():
        raise InputError(f"{path} is empty: expected a header {','.join(KAGGLE_COLUMNS)} and a row per image")
    return data


# === The column-wise reader: returns None where it is in any doubt ===================================================


def _read_columns(data: bytes, allow_swapped_corners: bool) -> Predictions | None:
    if b'"' in data:
        return None  # then a comma may be text, and counting commas proves nothing
    try:
        table = pl.read_csv(data, infer_schema=False)
    except pl.exceptions.PolarsError:
        return None
    columns = sorted(table.columns)
    if data.count(b",") != (len(table) + 1) * (len(columns) - 1):
        return None  # Polars fills up rows that are too short
    if columns == sorted(KAGGLE_COLUMNS):
        predictions = _kaggle_columns(table)
    elif columns == sorted(ROW_COLUMNS):
        predictions = _row_columns(table)
    else:
        return None
    if predictions is None or not all(map(_is_label, predictions.labels)):
        return None
    if not (np.isfinite(predictions.scores).all() and np.isfinite(predictions.boxes).all()):
        return None
    kaggle = "PredictionString" in columns
    return None if _swapped(predictions.boxes, kaggle, allow_swapped_corners).any() else predictions


def _kaggle_columns(table: pl.DataFrame) -> Predictions | None:
    ids, strings = table["ImageId"], table["PredictionString"]
    if ids.null_count() or ids.n_unique() != len(ids) or (ids.str.strip_chars() == "").any():
        return None
    vocabulary: dict[str, int] = {}
    blocks = [_tokens(strings.slice(start, _BLOCK), vocabulary) for start in range(0, len(strings), _BLOCK)]
    if None in blocks:
        return None
    blocks = blocks or [_tokens(strings, vocabulary)]
    counts, label_index, numbers = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    image_index = np.repeat(np.arange(len(ids)), counts)
    return Predictions(ids.to_list(), list(vocabulary), image_index, label_index, numbers[:, 0], numbers[:, 1:])


def _tokens(strings: pl.Series, vocabulary: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Splits the prediction strings of some images.

    Returns:
        (images,) number of boxes, (N,) label index, (N, 5) score and box.
    """
    lists = strings.fill_null("").str.strip_chars().str.split(" ")
    counts = np.where(strings.fill_null("").str.strip_chars() == "", 0, lists.list.len().to_numpy())
    if np.any(counts % TOKENS_PER_BOX):
        return None
    tokens = lists.filter(pl.Series(counts > 0)).explode()
    label_index = _index(tokens.gather_every(TOKENS_PER_BOX, 0), vocabulary)
    numbers = np.empty((len(label_index), TOKENS_PER_BOX - 1))
    for column in range(numbers.shape[1]):
        parsed = tokens.gather_every(TOKENS_PER_BOX, column + 1).cast(pl.Float64, strict=False)
        if parsed.null_count():
            return None
        numbers[:, column] = parsed.to_numpy()
    return counts // TOKENS_PER_BOX, label_index, numbers


def _row_columns(table: pl.DataFrame) -> Predictions | None:
    numbers = table.select(pl.col("Score", *BOX_COLUMNS).cast(pl.Float64, strict=False))
    has_nulls = any(column.null_count() for column in (*numbers, table["ImageID"], table["LabelName"]))
    if has_nulls or (table["ImageID"].str.strip_chars() == "").any():
        return None
    ids: dict[str, int] = {}
    labels: dict[str, int] = {}
    image_index = _index(table["ImageID"], ids)
    label_index = _index(table["LabelName"], labels)
    values = numbers.select("Score", *BOX_COLUMNS).to_numpy()
    order = np.argsort(image_index, kind="stable")
    values = np.ascontiguousarray(values[order])
    return Predictions(list(ids), list(labels), image_index[order], label_index[order], values[:, 0], values[:, 1:])


def _index(texts: pl.Series, vocabulary: dict[str, int]) -> np.ndarray:
    """(N,) int64: the position of every text in the vocabulary, to which new ones are appended."""
    unique = texts.unique(maintain_order=True)
    for text in unique.to_list():
        vocabulary.setdefault(text, len(vocabulary))
    positions = pl.Series([vocabulary[text] for text in unique.to_list()], dtype=pl.Int64)
    return texts.replace_strict(unique, positions, return_dtype=pl.Int64).to_numpy().astype(np.int64)


# === The plain reader, which names the mistake ========================================================================


def _read_rows(path: Path, data: bytes, allow_swapped_corners: bool) -> Predictions:
    rows = _csv_rows(path, data)
    line, header = next(rows)
    kaggle = _is_kaggle(path, line, header)
    ids: dict[str, int] = {}
    labels: dict[str, int] = {}
    image_index, label_index, numbers, places = [], [], [], []
    for line, fields in rows:
        if len(fields) != len(header):
            raise InputError(f"{path}, line {line}: {len(fields)} fields, but the header has {len(header)} columns")
        row = dict(zip(header, fields, strict=True))
        image_id = row["ImageId" if kaggle else "ImageID"]
        if not image_id.strip():
            raise InputError(f"{path}, line {line}: the image id is empty")
        if kaggle and image_id in ids:
            raise InputError(f"{path}, line {line}: image {image_id!r} has a second row, put all its boxes into one")
        index = ids.setdefault(image_id, len(ids))
        for place, label, values in _boxes_of(path, line, row, kaggle):
            image_index.append(index)
            label_index.append(labels.setdefault(label, len(labels)))
            numbers.append(values)
            places.append(place)
    values = np.array(numbers, dtype=np.float64).reshape(-1, 5)
    swapped = _swapped(values[:, 1:], kaggle, allow_swapped_corners)
    if swapped.any():
        _raise_swapped(values[:, 1:], places, kaggle, np.flatnonzero(swapped)[0])
    order = np.argsort(np.array(image_index, dtype=np.int64), kind="stable")
    indices = (np.array(column, dtype=np.int64)[order] for column in (image_index, label_index))
    values = values[order]
    return Predictions(list(ids), list(labels), *indices, values[:, 0], values[:, 1:])


def _csv_rows(path: Path, data: bytes) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with its first line's number as an editor shows it."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text, save the file as UTF-8") from error
    csv.field_size_limit(max(csv.field_size_limit(), len(data) + 1))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: {error}, a quotation mark is not closed or misplaced") from error


def _is_kaggle(path: Path, line: int, header: list[str]) -> bool:
    """True: the Kaggle form, False: a row per box; anything else is an error that names what is wrong."""
    if sorted(header) in (sorted(KAGGLE_COLUMNS), sorted(ROW_COLUMNS)):
        return "PredictionString" in header
    expected = KAGGLE_COLUMNS if "PredictionString" in header else ROW_COLUMNS
    unknown = [name for name in header if name not in expected]
    missing = [name for name in expected if name not in header]
    if len(missing) > len(expected) / 2:
        problem = f"{_short(','.join(header))!r} is not the header of a prediction file"
    elif unknown:
        problem = f"unknown column {_short(unknown[0])!r}"
    elif missing:
        problem = f"the column {missing[0]!r} is missing"
    else:
        problem = f"the column {collections.Counter(header).most_common(1)[0][0]!r} is there twice"
    forms = f"{','.join(KAGGLE_COLUMNS)} or {','.join(ROW_COLUMNS)}"
    raise InputError(f"{path}, line {line}: {problem}, expected {forms}")


def _boxes_of(path: Path, line: int, row: dict[str, str], kaggle: bool) -> Iterator[tuple[str, str, tuple[float, ...]]]:
    """The boxes of one row: where each is, its label, and (score, x_min, y_min, x_max, y_max)."""
    names = ("the score", *BOX_COLUMNS)
    where = f"{path}, line {line}"
    if not kaggle:
        label, texts = row["LabelName"], [row[name] for name in ("Score", *BOX_COLUMNS)]
        if not _is_label(label):
            raise InputError(f"{where}: the label {label!r} is empty or has white space")
        yield where, label, tuple(_number(f"{where}", *pair) for pair in zip(names, texts, strict=True))
        return
    tokens = row["PredictionString"].split()
    if len(tokens) % TOKENS_PER_BOX:
        raise InputError(
            f"{where}: {len(tokens)} tokens for image {row['ImageId']!r} (the last is {_short(tokens[-1])!r}) "
            "are not a multiple of 6, a box is 'label confidence XMin YMin XMax YMax'"
        )
    for first in range(0, len(tokens), TOKENS_PER_BOX):
        label, *texts = tokens[first : first + TOKENS_PER_BOX]
        numbers = (
            _number(f"{where}, token {position}", name, text)
            for position, (name, text) in enumerate(zip(names, texts, strict=True), start=first + 2)
        )
        yield f"{where}, tokens {first + 1} to {first + TOKENS_PER_BOX}", label, tuple(numbers)


def _number(where: str, name: str, text: str) -> float:
    text = text.strip()
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    if math.isfinite(number):
        return number
    not_finite = math.isinf(number) or text.lower().lstrip("+-") in ("nan", "inf", "infinity")
    problem = "is not finite" if not_finite else "is not a number"
    raise InputError(f"{where}: {name} {_short(text)!r} {problem}")


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


# === Swapped corners ==================================================================================================


def _swapped(boxes: np.ndarray, kaggle: bool, allowed: bool) -> np.ndarray:
    """(N,) bool: the boxes whose corners are an error. `boxes` is (N, 4) as read."""
    swapped = (boxes[:, 0] > boxes[:, 2]) | (boxes[:, 1] > boxes[:, 3])
    return swapped & (not allowed or (kaggle and _looks_like_x1x2y1y2(boxes)))


def _looks_like_x1x2y1y2(boxes: np.ndarray) -> bool:
    """Whether the four coordinates of every box would be in order if they were x1 x2 y1 y2."""
    return bool(np.all(boxes[:, 0] <= boxes[:, 1]) and np.all(boxes[:, 2] <= boxes[:, 3]))


def _raise_swapped(boxes: np.ndarray, places: list[str], kaggle: bool, index: int) -> NoReturn:
    x_min, y_min, x_max, y_max = boxes[index].tolist()
    low, high, axis = (x_min, x_max, "X") if x_min > x_max else (y_min, y_max, "Y")
    problem = f"{places[index]}: {axis}Min {low} is greater than {axis}Max {high}"
    if kaggle and _looks_like_x1x2y1y2(boxes):
        remedy = "all boxes of the file look like the order x1 x2 y1 y2, but it must be XMin YMin XMax YMax"
    else:
        remedy = "swap them or leave the box out"
    raise InputError(f"{problem}, {remedy}")
