"""Prediction files: the boxes that a detector found, one CSV for many images.

Two forms are read, plain or gzip-compressed; the header tells which:

- Kaggle: `ImageId,PredictionString`, one row per image. The string has six tokens per box, separated by white space:
  `label confidence XMin YMin XMax YMax`. It is empty if nothing was found.
- Rows: `ImageID,LabelName,Score,XMin,XMax,YMin,YMax`, one row per box (note the other order of the coordinates). The
  rows of an image need not be together.

The Kaggle form is written. Coordinates are normalised to [0, 1]; values outside are read unchanged. Image ids and
labels are text and never changed ('007' and '1e5' stay). Every line is a row: a quoted field has no line break.

Polars parses blocks of lines. A block that it refuses, or that has something unusual, is read again line by line in
Python: this slow reader also takes blank lines, tabs and repeated spaces, and it names the first mistake.
"""

import collections
import contextlib
import csv
import dataclasses
import gzip
import io
import itertools
import math
import mmap
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO

import numpy as np

from oid.columns import CORNERS, KAGGLE_COLUMNS, PREDICTION_COLUMNS
from oid.files import InputError, replacing, require_file

_TOKENS = ("LabelName", "Score", *CORNERS)  # of a box in the Kaggle form
_BYTES_PER_BLOCK = 1 << 22  # of text that is parsed at a time
_BOXES_PER_BLOCK = 1 << 16  # that are written at a time
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


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

    @classmethod
    def from_images(
        cls,
        image_ids: Sequence[str],
        labels: Sequence[str],
        images: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    ) -> "Predictions":
        """Joins the results of single images.

        Args:
            image_ids: all images.
            labels: the label vocabulary.
            images: for each image, in their order, (n,) indices into `labels`, (n,) scores and (n, 4) xyxy boxes.
        """
        found = list(images)
        if len(found) != len(image_ids):
            raise ValueError(f"{len(found)} results for {len(image_ids)} images")
        label_index = np.concatenate([np.zeros(0, np.int64), *[np.asarray(image[0], np.int64) for image in found]])
        scores = np.concatenate([np.zeros(0), *[np.asarray(image[1], np.float64) for image in found]])
        boxes = np.concatenate(
            [np.zeros((0, 4)), *[np.asarray(image[2], np.float64).reshape(-1, 4) for image in found]]
        )
        image_index = np.repeat(np.arange(len(found)), [len(image[1]) for image in found])
        return cls(list(image_ids), list(labels), image_index, label_index, scores, boxes)

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
                swapped corners (equal ones are fine), a label with white space.
        """
        self._path = require_file(path, "predictions are a CSV file with the columns " + ",".join(KAGGLE_COLUMNS))
        images, labels = _Numbers(), _Numbers()
        run_images, run_boxes = [], [np.zeros(0, dtype=np.int64)]
        with tempfile.TemporaryFile() as file:
            for line, block in self._parse(strict=not allow_swapped_corners):
                for image_id, row in zip(block.ids, block.rows.tolist(), strict=True):
                    if self._is_kaggle and image_id in images:
                        raise self._mistake(line + row, f": image {image_id!r} has a second row, join the two")
                    run_images.append(images[image_id])
                run_boxes.append(block.num_boxes)
                block.table[:, 0] = np.array([labels[label] for label in block.labels])[block.table[:, 0].astype(int)]
                file.write(block.table.data)
            file.truncate(max(file.tell(), 1))  # an empty file cannot be mapped
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.image_ids, self.labels, self.num_images = list(images), list(labels), len(images)
        self._index(np.array(run_images, dtype=np.int64), np.concatenate(run_boxes))

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
        table = np.frombuffer(self._memory, dtype=np.float64, count=self._num_boxes * len(_TOKENS))
        table = table.reshape(-1, len(_TOKENS))
        labels, scores, boxes = np.empty(len(rows), dtype=np.int64), np.empty(len(rows)), np.empty((len(rows), 4))
        for first in range(0, len(rows), _BOXES_PER_BLOCK):
            part = slice(first, first + _BOXES_PER_BLOCK)
            found = table[rows[part]]
            labels[part], scores[part], boxes[part] = found[:, 0], found[:, 1], found[:, 2:]
            if hasattr(mmap, "MADV_DONTNEED"):  # what was read need not stay in memory
                self._memory.madvise(mmap.MADV_DONTNEED)
        ids = [self.image_ids[position] for position in positions.tolist()]
        return Predictions(ids, self.labels, image_index, labels, scores, boxes)

    def _index(self, run_images: np.ndarray, run_boxes: np.ndarray) -> None:
        """Finds the boxes of each image, given the image and the number of boxes of each run."""
        counts = np.bincount(run_images, run_boxes, self.num_images).astype(np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(counts)])
        self._num_boxes, self._order = int(self._offsets[-1]), None
        if np.any(np.diff(run_images) < 0):
            self._order = np.argsort(np.repeat(run_images, run_boxes), kind="stable")

    def _parse(self, strict: bool) -> Iterator[tuple[int, "_Block"]]:
        """Yields the line of the file at which each block begins, and the block."""
        texts = _blocks_of_lines(self._path)
        first = next(texts, b"").removeprefix(b"\xef\xbb\xbf")  # the byte-order mark
        head, _, first_rows = first.lstrip().partition(b"\n")
        line = first[: len(first) - len(first.lstrip())].count(b"\n") + 1
        if not head:
            expected = f"expected a header {','.join(KAGGLE_COLUMNS)} and a row per image"
            raise InputError(f"{self._path} is empty: {expected}")
        try:
            header = _checked_header(_fields(head))
        except RowError as error:
            raise self._mistake(line, error) from error
        self._is_kaggle = "PredictionString" in header
        line, swapped, is_other_order = line + 1, None, self._is_kaggle
        texts = itertools.chain([first_rows] if first_rows else [], texts)
        for text, block in _in_parallel(lambda text: (text, _parse_block(text, header)), texts):
            block = block or self._parse_lines(text, header, line)
            boxes = block.table[:, 2:]
            is_other_order = is_other_order and bool(np.all(boxes[:, ::2] <= boxes[:, 1::2]))
            swapped = swapped or self._find_swapped(block, line)
            if swapped and strict and not is_other_order:
                raise InputError(f"{swapped}, swap them or leave the box out")
            yield line, block
            line += text.count(b"\n")
        if swapped and is_other_order:
            remedy = "all boxes of the file look like the order x1 x2 y1 y2, but it must be XMin YMin XMax YMax"
            raise InputError(f"{swapped}, {remedy}")

    def _parse_lines(self, text: bytes, header: list[str], line: int) -> "_Block":
        """Parses a block line by line; `line` is the number of the first. Raises the InputError for a mistake."""
        ids, rows, num_boxes, labels, table = [], [], [], _Numbers(), []
        for row, content in enumerate(text.split(b"\n")[:-1]):
            if not content.strip(b"\r"):
                continue
            try:
                image_id, boxes = _parse_line(content, header)
            except RowError as error:
                raise self._mistake(line + row, error) from error
            ids.append(image_id)
            rows.append(row)
            num_boxes.append(len(boxes))
            table += [(labels[label], *numbers) for label, *numbers in boxes]
        table = np.array(table, dtype=np.float64).reshape(-1, len(_TOKENS))
        return _Block(ids, np.array(rows, dtype=int), np.array(num_boxes, dtype=int), list(labels), table)

    def _find_swapped(self, block: "_Block", line: int) -> str | None:
        """The sentence about the first box with swapped corners, if there is one."""
        x_min, y_min, x_max, y_max = block.table[:, 2:].T
        swapped = np.flatnonzero((x_min > x_max) | (y_min > y_max))
        if not len(swapped):
            return None
        box = swapped[0]
        ends = np.cumsum(block.num_boxes)
        run = np.searchsorted(ends, box, side="right")
        number, line, tokens = box - ends[run] + block.num_boxes[run], line + block.rows[run], ""
        if self._is_kaggle:
            tokens = f", tokens {number * len(_TOKENS) + 1} to {(number + 1) * len(_TOKENS)}"
        else:
            line += number
        low, high, axis = (x_min, x_max, "X") if x_min[box] > x_max[box] else (y_min, y_max, "Y")
        problem = f"{axis}Min {float(low[box])} is greater than {axis}Max {float(high[box])}"
        return str(self._mistake(line, f"{tokens}: {problem}"))

    def _mistake(self, line: int, what: object) -> InputError:
        return InputError(f"{self._path}, line {line}{what}")


class _Numbers(dict):
    """Numbers texts in the order in which they are first asked for."""

    def __missing__(self, text: str) -> int:
        self[text] = len(self)
        return self[text]


def _blocks_of_lines(path: Path) -> Iterator[bytes]:
    """Yields the text of a file, which may be compressed, in blocks of whole lines."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        head = file.peek(4)
        if head.startswith(b"PK\x03\x04"):
            raise InputError(f"{path} is a zip archive: unpack it first")
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputError(f"{path} is encoded in UTF-16: save it as UTF-8")
        if head.startswith(b"\x1f\x8b"):
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        rest = b""
        try:
            while piece := file.read(_BYTES_PER_BLOCK):
                cut = piece.rfind(b"\n") + 1
                if cut:
                    yield rest + piece[:cut]
                rest = piece[cut:] if cut else rest + piece
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path} is a damaged gzip file ({error}): copy it again") from error
        if rest:
            yield rest + b"\n"


def _in_parallel(function: Callable, items: Iterable) -> Iterator:
    """As `map`, in two threads which are only a few items ahead."""
    with ThreadPoolExecutor(2) as pool:
        waiting = collections.deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 3:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


# === Parsing by Polars ================================================================================================


class _Block(NamedTuple):
    """The boxes of a block of lines. A run is a group of adjacent rows of one image, in the Kaggle form a single row.

    ids, rows, num_boxes: of each run the image, the first line within the block, and the number of boxes.
    labels: the labels of the block.
    table: (N, 6) float64, of each box the index into `labels`, the score and the xyxy corners.
    """

    ids: list[str]
    rows: np.ndarray
    num_boxes: np.ndarray
    labels: list[str]
    table: np.ndarray


def _parse_block(text: bytes, header: list[str]) -> _Block | None:
    """The boxes of lines without mistakes and without anything unusual; else None."""
    import polars as pl

    if b"\r" in text and text.count(b"\r") != text.count(b"\r\n"):
        return None
    types = {name: pl.Float64 if name in _TOKENS[1:] else pl.String for name in header}
    try:
        frame = pl.read_csv(text, has_header=False, schema=types, quote_char='"' if b'"' in text else None)
        ids = frame["ImageId" if "ImageId" in header else "ImageID"]
        if len(frame) != text.count(b"\n") or ids.null_count() or (ids.str.strip_chars() == "").any():
            return None
        if "PredictionString" in header:
            strings = frame["PredictionString"]
            if strings.null_count() and (b'"' in text or text.count(b",") != len(frame)):
                return None  # an empty string and a missing field look alike
            tokens = strings.str.strip_chars(" ").replace("", None).str.split(" ")
            num_tokens = tokens.list.len().fill_null(0).to_numpy().astype(np.int64)
            if np.any(num_tokens % len(_TOKENS)):
                return None
            rows, num_boxes = np.arange(len(ids)), num_tokens // len(_TOKENS)
            tokens = tokens.drop_nulls().explode().to_frame("token")
            every = {name: pl.col("token").gather_every(len(_TOKENS), k) for k, name in enumerate(_TOKENS)}
            frame = tokens.select(**every | {name: every[name].cast(pl.Float64) for name in _TOKENS[1:]})
        else:
            runs = ids.rle().struct.unnest()
            ids, num_boxes = runs["value"], runs["len"].to_numpy().astype(np.int64)
            rows = np.cumsum(num_boxes) - num_boxes
    except pl.exceptions.PolarsError:
        return None
    labels = frame["LabelName"].unique(maintain_order=True)
    if labels.null_count() or not all(map(is_label, labels.to_list())):
        return None
    index = pl.col("LabelName").cast(pl.Enum(labels)).to_physical().cast(pl.Float64)
    table = frame.select(index, *_TOKENS[1:]).to_numpy(order="c")
    if not np.isfinite(table).all():  # a missing number is NaN here
        return None
    return _Block(ids.to_list(), rows, num_boxes, labels.to_list(), table)


# === Parsing line by line =============================================================================================


class RowError(Exception):
    """A mistake in a row. The message follows `FILE, line 5`, as `, token 2: the score 'x' is not a number` does."""


def is_label(text: str) -> bool:
    """Whether a text can be a label: not empty, no white space."""
    return text.split() == [text]


def _fields(line: bytes) -> list[str]:
    try:
        text = line.decode("utf-8")
        csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
        return next(csv.reader([text], strict=True))
    except UnicodeDecodeError as error:
        raise RowError(": not UTF-8 text, save the file as UTF-8") from error
    except csv.Error as error:
        raise RowError(f": {error}, a quotation mark is misplaced or not closed in its line") from error


def _checked_header(header: list[str]) -> list[str]:
    if sorted(header) in (sorted(KAGGLE_COLUMNS), sorted(PREDICTION_COLUMNS)):
        return header
    unknown = [name for name in header if name not in KAGGLE_COLUMNS + PREDICTION_COLUMNS]
    problem = f"unknown column {_short(unknown[0])!r}" if unknown else f"the columns are {_short(','.join(header))}"
    raise RowError(f": {problem}, expected {','.join(KAGGLE_COLUMNS)} or {','.join(PREDICTION_COLUMNS)}")


def _parse_line(line: bytes, header: list[str]) -> tuple[str, list[tuple]]:
    """The image id of a row, and of each box the label, the score and the corners."""
    fields = _fields(line)
    if len(fields) != len(header):
        raise RowError(f": {len(fields)} fields, but the header has {len(header)} columns")
    row = dict(zip(header, fields, strict=True))
    image_id = row.get("ImageId") or row.get("ImageID", "")
    if not image_id.strip():
        raise RowError(": the image id is empty")
    if "PredictionString" not in row:
        if not is_label(row["LabelName"]):
            raise RowError(f": the label {row['LabelName']!r} is empty or has white space")
        return image_id, [(row["LabelName"], *(_number(row[name], name, "") for name in _TOKENS[1:]))]
    tokens = row["PredictionString"].split()
    if len(tokens) % len(_TOKENS):
        raise RowError(
            f": {len(tokens)} tokens for image {image_id!r} (the last is {_short(tokens[-1])!r}) "
            "are not a multiple of 6, a box is 'label confidence XMin YMin XMax YMax'"
        )
    numbers = [_number(token, _TOKENS[i % 6], f", token {i + 1}") if i % 6 else token for i, token in enumerate(tokens)]
    return image_id, list(zip(*[iter(numbers)] * len(_TOKENS), strict=True))


def _number(text: str, name: str, place: str) -> float:
    """What `float` makes of a text, without '1_0', 'nan', 'inf' and the digits of other scripts."""
    text = text.strip()
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    if math.isfinite(number):
        return number
    not_finite = math.isinf(number) or text.lower().lstrip("+-") in ("nan", "inf", "infinity")
    problem = "is not finite" if not_finite else "is not a number"
    raise RowError(f"{place}: {'the score' if name == 'Score' else name} {_short(text)!r} {problem}")


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


# === Writing ==========================================================================================================


def write_predictions(path: str | os.PathLike, predictions: Predictions) -> None:
    """Writes the Kaggle form, all or nothing, compressed when the name ends in `.gz`.

    Raises:
        ValueError: see `PredictionWriter.write`.
    """
    with PredictionWriter(path) as writer:
        writer.write(predictions)


class PredictionWriter:
    """Writes the Kaggle form block by block, all or nothing, compressed when the name ends in `.gz`.

    A context manager: the file appears when the block of `with` ends without an error.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens nothing yet."""
        self._path = path
        self._ids: set[str] = set()

    def __enter__(self) -> "PredictionWriter":
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(_open_binary(stack.enter_context(replacing(self._path))))
            self._file.write((",".join(KAGGLE_COLUMNS) + "\n").encode())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> bool | None:
        return self._stack.__exit__(*error)

    def write(self, predictions: Predictions) -> None:
        """Appends the rows of some images: scores with 9 significant digits, coordinates with 6 decimals.

        Raises:
            ValueError: boxes are not together by image; an id is empty, repeated or has a line break; a label is empty
                or has white space; a number is not finite. Such a file could not be read.
        """
        offsets = self._checked(predictions)
        cuts = np.searchsorted(offsets, np.arange(0, offsets[-1], _BOXES_PER_BLOCK))
        cuts = np.unique([0, *cuts, len(predictions.image_ids)]).tolist()
        parts = itertools.pairwise(cuts)
        self._file.writelines(_in_parallel(lambda part: _rows_of(predictions, offsets, *part), parts))

    def _checked(self, predictions: Predictions) -> np.ndarray:
        """Remembers the ids and returns the offsets, or raises a ValueError."""
        ids, offsets = predictions.image_ids, predictions.offsets()
        if not all(map(str.strip, ids)) or len(set(ids)) < len(ids) or not self._ids.isdisjoint(ids):
            raise ValueError("an image id is repeated or empty")
        if any("\n" in image_id or "\r" in image_id for image_id in ids):
            raise ValueError("an image id has a line break")
        self._ids.update(ids)
        if offsets[0] != 0 or offsets[-1] != len(predictions.boxes) or np.any(np.diff(predictions.image_index) < 0):
            raise ValueError("image_index must not decrease and must point into image_ids")
        if np.any((predictions.label_index < 0) | (predictions.label_index >= len(predictions.labels))):
            raise ValueError("label_index must point into labels")
        _check_boxes(predictions.labels, predictions.scores, predictions.boxes)
        return offsets


def _rows_of(predictions: Predictions, offsets: np.ndarray, begin: int, end: int) -> bytes:
    """The rows of the images `begin` to `end`.

    Polars writes the boxes, separated by spaces. The text before an image's first box is joined to the box's label: it
    ends the row before, begins the row of the image, and contains images without boxes in between.
    """
    import polars as pl

    boxes = slice(offsets[begin], offsets[end])
    label_index = predictions.label_index[boxes].copy()
    quote = '"' if any(map(_needs_quotes, predictions.labels)) else ""
    texts = [" " + label.replace('"', '""') for label in predictions.labels]
    row_ends = ""
    for image in range(begin, end):
        row_ends += f"{_csv_field(predictions.image_ids[image])},"
        if offsets[image] < offsets[image + 1]:
            first = offsets[image] - offsets[begin]
            texts.append(row_ends + quote + texts[label_index[first]][1:])
            label_index[first] = len(texts) - 1
            row_ends = quote
        row_ends += "\n"
    scores = predictions.scores[boxes].tolist()
    score_texts = ("%.9g " * len(scores) % tuple(scores)).split()
    frame = pl.DataFrame({"label": pl.Series(texts, dtype=pl.String).gather(label_index), "score": score_texts})
    frame = frame.with_columns(pl.Series(name, predictions.boxes[boxes, k]) for k, name in enumerate(CORNERS))
    text = io.BytesIO()
    frame.write_csv(
        text, include_header=False, separator=" ", line_terminator="", float_precision=6, quote_style="never"
    )
    text.write(row_ends.encode())
    return text.getvalue()


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
    rows = zip(labels, scores.tolist(), boxes.tolist(), strict=True)
    return " ".join(f"{label} {score:.9g} " + "{:.6f} {:.6f} {:.6f} {:.6f}".format(*box) for label, score, box in rows)


def _check_boxes(labels: Iterable[str], scores: np.ndarray, boxes: np.ndarray) -> None:
    if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
        raise ValueError("a score or a coordinate is not finite")
    for label in set(labels):
        if not is_label(label):
            raise ValueError(f"the label {label!r} is empty or has white space")


def _needs_quotes(text: str) -> bool:
    return "," in text or '"' in text


def _csv_field(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if _needs_quotes(text) else text


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
