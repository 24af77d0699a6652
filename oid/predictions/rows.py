"""The plain reader of prediction files: one row at a time, in Python, for rows that are unusual or wrong."""

import collections
import csv
import io
import math
import re
from collections.abc import Iterator

import numpy as np

KAGGLE_COLUMNS = ("ImageId", "PredictionString")
ROW_COLUMNS = ("ImageID", "LabelName", "Score", "XMin", "XMax", "YMin", "YMax")
BOX_COLUMNS = ("XMin", "YMin", "XMax", "YMax")
TOKENS_PER_BOX = 6  # label confidence XMin YMin XMax YMax

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")  # what float() takes, less '1_0' and 'nan'


class RowError(Exception):
    """A mistake in a row; the message goes on where `file, line 5` ends: `, token 2: the score 'nan' is not finite`."""


def fields_of_row(row: bytes) -> list[str]:
    """The fields of a CSV row.

    Raises:
        RowError: it is not UTF-8, or its quotation marks are wrong.
    """
    try:
        text = row.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(": not UTF-8 text, save the file as UTF-8") from error
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    try:
        return next(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise RowError(f": {error}, a quotation mark is not closed or misplaced") from error


def check_header(header: list[str]) -> None:
    """Raises a RowError that says what is wrong, unless the columns are those of one of the two forms, in any order."""
    if sorted(header) in (sorted(KAGGLE_COLUMNS), sorted(ROW_COLUMNS)):
        return
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
    raise RowError(f": {problem}, expected {','.join(KAGGLE_COLUMNS)} or {','.join(ROW_COLUMNS)}")


def column_numbers(header: list[str]) -> np.ndarray:
    """What each column is, for the compiled reader: 0 to 3 a coordinate of `BOX_COLUMNS`, 4 the score, 5 the label or
    the prediction string, 6 the image id."""
    numbers = dict(zip(BOX_COLUMNS, range(4), strict=True)) | {"Score": 4, "LabelName": 5, "PredictionString": 5}
    return np.array([numbers.get(name, 6) for name in header])


def image_of_row(header: list[str], fields: list[str]) -> str:
    """The image id of a row.

    Raises:
        RowError: the row has not as many fields as the header, or the id is empty.
    """
    if len(fields) != len(header):
        raise RowError(f": {len(fields)} fields, but the header has {len(header)} columns")
    image_id = fields[header.index("ImageId" if "ImageId" in header else "ImageID")]
    if not image_id.strip():
        raise RowError(": the image id is empty")
    return image_id


def boxes_of_row(header: list[str], fields: list[str]) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yields each box of a row: its label, and (score, x_min, y_min, x_max, y_max).

    Raises:
        RowError: naming token and value: tokens that are not a multiple of 6, a number that is none or not finite, a
            label that is empty or has white space.
    """
    image_id, row = image_of_row(header, fields), dict(zip(header, fields, strict=True))
    names = ("the score", *BOX_COLUMNS)
    if "PredictionString" not in row:
        label, texts = row["LabelName"], [row[name] for name in ("Score", *BOX_COLUMNS)]
        if not is_label(label):
            raise RowError(f": the label {label!r} is empty or has white space")
        yield label, tuple(_number("", *pair) for pair in zip(names, texts, strict=True))
        return
    tokens = row["PredictionString"].split()
    if len(tokens) % TOKENS_PER_BOX:
        raise RowError(
            f": {len(tokens)} tokens for image {image_id!r} (the last is {_short(tokens[-1])!r}) "
            "are not a multiple of 6, a box is 'label confidence XMin YMin XMax YMax'"
        )
    for first in range(0, len(tokens), TOKENS_PER_BOX):
        label, *texts = tokens[first : first + TOKENS_PER_BOX]
        yield (
            label,
            tuple(
                _number(f", token {position}", name, text)
                for position, (name, text) in enumerate(zip(names, texts, strict=True), start=first + 2)
            ),
        )


def is_label(text: str) -> bool:
    """Whether a text can be a label: not empty, no white space."""
    return text.split() == [text]


def _number(where: str, name: str, text: str) -> float:
    text = text.strip()
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    if math.isfinite(number):
        return number
    not_finite = math.isinf(number) or text.lower().lstrip("+-") in ("nan", "inf", "infinity")
    problem = "is not finite" if not_finite else "is not a number"
    raise RowError(f"{where}: {name} {_short(text)!r} {problem}")


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


# === Swapped corners ==================================================================================================


def is_swapped(boxes: np.ndarray) -> np.ndarray:
    """(N,) bool: XMin > XMax or YMin > YMax. `boxes` is (N, 4) as read."""
    return (boxes[:, 0] > boxes[:, 2]) | (boxes[:, 1] > boxes[:, 3])


def looks_like_x1x2y1y2(boxes: np.ndarray) -> bool:
    """Whether the four coordinates of every box would be in order if they were x1 x2 y1 y2."""
    return bool(np.all(boxes[:, 0] <= boxes[:, 1]) and np.all(boxes[:, 2] <= boxes[:, 3]))


def swapped_corners(box: np.ndarray, token: int | None, other_order: bool) -> RowError:
    """The error for a box whose corners are swapped.

    Args:
        box: (4,) as read.
        token: its place among the tokens of the row, from 1; None where the row is the box.
        other_order: all boxes of the file look like x1 x2 y1 y2.
    """
    x_min, y_min, x_max, y_max = (float(number) for number in box)
    low, high, axis = (x_min, x_max, "X") if x_min > x_max else (y_min, y_max, "Y")
    place = "" if token is None else f", tokens {token} to {token + TOKENS_PER_BOX - 1}"
    remedy = "swap them or leave the box out"
    if other_order:
        remedy = "all boxes of the file look like the order x1 x2 y1 y2, but it must be XMin YMin XMax YMax"
    return RowError(f"{place}: {axis}Min {low} is greater than {axis}Max {high}, {remedy}")
