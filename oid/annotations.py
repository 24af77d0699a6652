"""Annotation files of Open Images: class descriptions, boxes and image-level labels."""

import contextlib
import csv
import difflib
import math
import os
from collections.abc import Iterator, Mapping, Sequence

import polars as pl

from oid.columns import BOX_COLUMNS, CORNERS, IMAGE_LABEL_COLUMNS
from oid.files import InputError, require_file
from oid.text_files import read_rows, write_rows

Columns = Sequence[str | pl.Expr]  # names of columns, or expressions of them
_LABEL_HEADERS = {"label", "labelname", "label_name", "mid", "id"}  # V6: LabelName,DisplayName; V4: no header


def read_class_descriptions(path: str | os.PathLike) -> dict[str, str]:
    """Reads a class description file: rows `label,name`, with or without a header; further columns are ignored.

    Returns:
        {label: name} in the order of the file.

    Raises:
        InputError: the file does not exist, has no class, or is not CSV in UTF-8; or a row has no label or no name, a
            label with white space (which separates the values of predictions), or a label that an earlier row has.
    """
    path = require_file(path, "expected a class description file with rows `label,name`")
    classes: dict[str, str] = {}
    lines: dict[str, int] = {}  # {label: line number}
    for number, (line, row) in enumerate(read_rows(path)):
        label, name = row[0], "".join(row[1:2]).strip()
        if number == 0 and label.strip().lower() in _LABEL_HEADERS:
            continue
        where = f"{path}, line {line}"
        if not label or not name:
            raise InputError(f"{where}: {','.join(row)!r} is not `label,name`: give every class both")
        if any(letter.isspace() for letter in label):
            raise InputError(f"{where}: the label {label!r} contains white space: remove it")
        if label in classes:
            raise InputError(f"{where}: label {label} is already in line {lines[label]}: remove one of the two")
        classes[label], lines[label] = name, line
    if not classes:
        raise InputError(f"{path} holds no class: expected rows `label,name`")
    return classes


def find_class(text: str, classes: Mapping[str, str]) -> str:
    """Returns the label of the class with the label or name `text`, upper and lower case alike in names.

    Raises:
        InputError: none of the {label: name} `classes` fits, or several do.
    """
    if text in classes:
        return text
    found = [label for label, name in classes.items() if name.casefold() == text.casefold()]
    if len(found) > 1:
        raise InputError(f"{len(found)} classes have the name {text}: give the label, {' or '.join(found)}")
    if not found:
        by_name = {name.casefold(): name for name in classes.values()}
        (near,) = difflib.get_close_matches(text.casefold(), by_name, n=1, cutoff=0.0)
        raise InputError(f"no class has the name or label {text}, did you mean {by_name[near]}?")
    return found[0]


def write_class_descriptions(path: str | os.PathLike, classes: dict[str, str]) -> None:
    """Writes {label: name} without a header, like the official V4 file; names with a comma get quotes."""
    write_rows(path, classes.items())


def read_header(path: str | os.PathLike, expected: Sequence[str]) -> list[str]:
    """Returns the column names of an annotation file; `expected` are named in the message of an error.

    Raises:
        InputError: the file does not exist or is empty, or its first line is not UTF-8 text with LF or CRLF at its end.
    """
    path = require_file(path, "expected an annotation file of Open Images")
    with open(path, "rb") as file:
        first = file.readline()
    if not first.strip():
        raise InputError(f"{path} is empty: expected a header with {','.join(expected)}")
    if b"\r" in first.rstrip(b"\r\n"):
        raise InputError(f"{path}: the lines end with CR alone: save the file with LF or CRLF line ends")
    try:
        return next(csv.reader([first.decode("utf-8-sig")]), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}, line 1: the header is not UTF-8 text: expected {','.join(expected)}") from error


def scan_rows(path: str | os.PathLike, columns: Sequence[str]) -> pl.LazyFrame:
    """Opens a CSV file with a header lazily. Collect the frame inside `csv_errors(path)`: only then rows are read.

    Returns:
        `line` (UInt32, the line number as an editor shows it) and `columns` (String, the text of the file, null where
        that is empty), in file order, without blank lines.

    Raises:
        InputError: the file does not exist or is empty, or a column is missing.
    """
    header = read_header(path, columns)
    if missing := [column for column in columns if column not in header]:
        found = f"the header is {','.join(header)[:200]!r}"
        raise InputError(f"{path}, line 1: column {', '.join(missing)} is missing, {found}: take another file")
    rows = pl.scan_csv(path, infer_schema=False, glob=False, row_index_name="line", row_index_offset=2)
    return rows.select("line", *columns).filter(pl.any_horizontal(pl.col(columns).is_not_null()))


def read_boxes(path: str | os.PathLike, columns: Columns = ("ImageID", "LabelName", "IsGroupOf")) -> pl.DataFrame:
    """Reads and checks a box file of V4 or V6, and returns `columns` of BOX_COLUMNS, which are text, in file order.

    Raises:
        InputError: the file has no rows, or a value is missing or invalid; the message names the first such line.
    """
    x_min, y_min, x_max, y_max = (pl.col(name).cast(pl.Float64, strict=False) for name in CORNERS)
    is_good = pl.all_horizontal(
        *(pl.col(name).is_not_null() for name in BOX_COLUMNS),
        pl.col("IsGroupOf").is_in(["0", "1", "-1"]),  # -1: unknown
        *(x_min > -math.inf, x_min <= x_max, x_max < math.inf),  # for Polars NaN is above infinity
        *(y_min > -math.inf, y_min <= y_max, y_max < math.inf),
    )
    expected = "13 values, finite coordinates with Min <= Max, and IsGroupOf 0, 1 or -1"
    table = _read_checked(path, BOX_COLUMNS, columns, is_good, expected)
    if table.is_empty():
        raise InputError(f"{path} holds no boxes: download the file again")
    return table


def read_image_labels(path: str | os.PathLike, columns: Columns = IMAGE_LABEL_COLUMNS) -> pl.DataFrame:
    """Reads and checks human-verified image-level labels, as `read_boxes` does. The file may have no rows.

    Raises:
        InputError: a value is missing, or Confidence is neither 0 nor 1; the message names the first such line.
    """
    is_good = pl.all_horizontal(pl.col(IMAGE_LABEL_COLUMNS).is_not_null(), pl.col("Confidence").is_in(["0", "1"]))
    expected = "an image id, a label, and Confidence 0 or 1"
    return _read_checked(path, IMAGE_LABEL_COLUMNS, columns, is_good, expected)


def _read_checked(
    path: str | os.PathLike, file_columns: Sequence[str], columns: Columns, is_good: pl.Expr, expected: str
) -> pl.DataFrame:
    """Reads `columns`, and raises an InputError for the first row that is not good."""
    rows, is_good = scan_rows(path, file_columns), is_good.fill_null(False)
    with csv_errors(path):
        table = rows.select(*columns, is_good.alias("is good")).collect(engine="streaming")
        if table["is good"].all():
            return table.drop("is good")
        line, *values = rows.filter(~is_good).head(1).collect(engine="streaming").row(0)
    text = ",".join(value or "" for value in values)
    raise InputError(f"{path}, line {line}: found {text!r} and expected {expected}: correct or remove the row")


@contextlib.contextmanager
def csv_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns what polars raises while it reads `path` into an InputError that names the first bad line."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise InputError(_find_bad_line(path) or f"{path}: {str(error).splitlines()[0]}") from error


def _find_bad_line(path: str | os.PathLike) -> str | None:
    """Describes the first line that is not UTF-8, is not CSV or has more values than the header."""
    with open(path, "rb") as file:
        width = len(file.readline().split(b","))
        for number, line in enumerate(file, start=2):
            try:
                values = next(csv.reader([line.decode("utf-8")], strict=True), [])
            except UnicodeDecodeError:
                return f"{path}, line {number}: not UTF-8: save the file as UTF-8"
            except csv.Error as error:
                return f"{path}, line {number}: not CSV ({error}): check the quotes"
            if len(values) > width:
                return f"{path}, line {number}: {len(values)} values under a header of {width}: remove the surplus"
    return None
