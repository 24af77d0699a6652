"""Annotation files of Open Images: class descriptions, and box and image-label tables as polars text columns."""

import contextlib
import csv
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from oid.files import InputError, replacing, require_file

BOX_COLUMNS = (  # the 13 columns of V4; V6 adds the 8 of the extreme clicks
    *("ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax"),
    *("IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside"),
)
IMAGE_LABEL_COLUMNS = ("ImageID", "LabelName", "Confidence")
IGNORED_REGION_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "Reason")

COORDINATES = ("XMin", "XMax", "YMin", "YMax")
_HEADER = {"label", "labelname", "label_name", "mid", "id"}  # V6 has `LabelName,DisplayName`; V4 has no header


def read_class_descriptions(path: str | os.PathLike) -> dict[str, str]:
    """Reads a class description file: `label,name` with or without a header row, further columns ignored.

    Returns:
        {label: name} in the order of the file.

    Raises:
        InputError: no such file, no class in it, not UTF-8 or not CSV; a row without label or name, a label with
            white space (predictions are separated by spaces), or a label that occurs twice.
    """
    path = require_file(path, "expected a class description file with rows `label,name`")
    classes: dict[str, str] = {}
    lines: dict[str, int] = {}  # {label: line number}
    may_be_header = True
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            for row in rows:
                if not any(cell.strip() for cell in row):
                    continue
                where = f"{path}, line {rows.line_num}"
                label, name = (row[0], row[1].strip()) if len(row) > 1 else (row[0], "")
                is_header = may_be_header and label.strip().lower() in _HEADER
                may_be_header = False
                if is_header:
                    continue
                if not label or not name:
                    raise InputError(f"{where}: {','.join(row)!r} is not `label,name`: give every class both")
                if any(letter.isspace() for letter in label):
                    raise InputError(f"{where}: the label {label!r} contains white space: remove it")
                if label in classes:
                    raise InputError(f"{where}: label {label} is already in line {lines[label]}: remove one of the two")
                classes[label] = name
                lines[label] = rows.line_num
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8: save the file as UTF-8") from error
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: not CSV ({error}): check the quotes") from error
    if not classes:
        raise InputError(f"{path} holds no class: expected rows `label,name`")
    return classes


def write_class_descriptions(path: str | os.PathLike, classes: dict[str, str]) -> None:
    """Writes {label: name} as the official V4 file has it: no header, a name with a comma in quotes."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(classes.items())


def scan_rows(path: str | os.PathLike, columns: Sequence[str]) -> pl.LazyFrame:
    """Opens a CSV file with a header lazily, every column as the text that it has in the file.

    Collect the frame inside `csv_errors(path)`: only then the rows are read.

    Args:
        path: an annotation file; blank lines in it are skipped.
        columns: those to read; others are ignored.

    Returns:
        `line` (UInt32, the line number as an editor shows it) and `columns` (String, null where empty), in file order.

    Raises:
        InputError: no such file, it is empty, or a column is missing.
    """
    header = read_header(path, columns)
    missing = [column for column in columns if column not in header]
    if missing:
        found = f"the header is {','.join(header)[:200]!r}"
        raise InputError(f"{path}, line 1: column {', '.join(missing)} is missing, {found}: download the file again")
    rows = pl.scan_csv(path, infer_schema=False, glob=False, row_index_name="line", row_index_offset=2)
    return rows.select("line", *columns).filter(pl.any_horizontal(pl.col(columns).is_not_null()))


def read_header(path: str | os.PathLike, expected: Sequence[str]) -> list[str]:
    """The column names of an annotation file, of which `expected` are what a message says.

    Raises:
        InputError: no such file, it is empty, or its first line is not UTF-8 text.
    """
    path = require_file(path, "expected an annotation file of Open Images")
    with open(path, "rb") as file:
        first = file.readline()
    if not first.strip():
        raise InputError(f"{path} is empty: expected a header with {','.join(expected)}")
    try:
        return next(csv.reader([first.decode("utf-8-sig")]), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}, line 1: the header is not UTF-8 text: expected {','.join(expected)}") from error


def read_boxes(path: str | os.PathLike) -> pl.DataFrame:
    """Reads who is boxed where from a box file of V4 or V6, without the columns' text.

    Returns:
        In file order: `line` (UInt32), `ImageID`, `LabelName` (String), `group_of` (Boolean, true where IsGroupOf is 1;
        -1 means unknown), `rectangle` (UInt32, the first line whose image and coordinates, as numbers, are equal).

    Raises:
        InputError: the file has no rows, or a value is missing or not what its column holds; names the first such line.
    """
    refuse_bad_boxes(path)
    with csv_errors(path):
        is_group = (pl.col("IsGroupOf") == "1").alias("group_of")
        rows = scan_rows(path, BOX_COLUMNS).select("line", "ImageID", "LabelName", is_group, *coordinates())
        table = rows.collect(engine="streaming")
    if table.is_empty():
        raise InputError(f"{path} holds no boxes: download the file again")
    rectangle = pl.col("line").min().over("ImageID", *COORDINATES).alias("rectangle")
    return table.with_columns(rectangle).drop(COORDINATES)


def read_image_labels(path: str | os.PathLike) -> pl.DataFrame:
    """Reads human-verified image-level labels.

    Returns:
        `image_line` (UInt32, the image's first line), `ImageID`, `LabelName` (String), `positive` (Boolean), in file
        order; no rows where the file has only a header.

    Raises:
        InputError: a value is missing or Confidence is neither 0 nor 1; names the first such line.
    """
    refuse_bad_image_labels(path)
    rows = scan_rows(path, IMAGE_LABEL_COLUMNS)
    with csv_errors(path):
        image_line = pl.col("line").min().over("ImageID").alias("image_line")
        is_positive = (pl.col("Confidence") == "1").alias("positive")
        return rows.select(image_line, "ImageID", "LabelName", is_positive).collect(engine="streaming")


def coordinates() -> list[pl.Expr]:
    """The four columns of a box as numbers, null where they are none."""
    return [pl.col(name).cast(pl.Float64, strict=False) for name in COORDINATES]


def is_bad_box() -> pl.Expr:
    """Whether a value of a box row is missing or not what its column holds."""
    x_min, x_max, y_min, y_max = coordinates()
    group_of = pl.col("IsGroupOf")
    good = pl.all_horizontal(
        *(pl.col(name).is_not_null() for name in BOX_COLUMNS),
        (group_of == "0") | (group_of == "1") | (group_of == "-1"),
        *(x_min > -math.inf, x_min <= x_max, x_max < math.inf),  # for Polars NaN is above infinity
        *(y_min > -math.inf, y_min <= y_max, y_max < math.inf),
    )
    return ~good.fill_null(False)


def is_bad_image_label() -> pl.Expr:
    """Whether a value of an image-label row is missing, or Confidence is neither 0 nor 1."""
    return pl.any_horizontal(pl.col(IMAGE_LABEL_COLUMNS).is_null(), ~pl.col("Confidence").is_in(["0", "1"]))


def refuse_bad_boxes(path: str | os.PathLike) -> None:
    """Raises an InputError that names the first bad row of a box file, if there is one."""
    expected = "13 values, finite coordinates with Min <= Max, and IsGroupOf 0, 1 or -1"
    with csv_errors(path):
        _refuse(path, scan_rows(path, BOX_COLUMNS).filter(is_bad_box()), expected)


def refuse_bad_image_labels(path: str | os.PathLike) -> None:
    """Raises an InputError that names the first bad row of an image-label file, if there is one."""
    expected = "an image id, a label, and Confidence 0 or 1 as people give it"
    with csv_errors(path):
        _refuse(path, scan_rows(path, IMAGE_LABEL_COLUMNS).filter(is_bad_image_label()), expected)


def _refuse(path: str | os.PathLike, bad_rows: pl.LazyFrame, expected: str) -> None:
    """Raises an InputError for the first of `bad_rows`, if there is one."""
    for line, *values in bad_rows.head(1).collect(engine="streaming").iter_rows():
        text = ",".join("" if value is None else value for value in values)
        raise InputError(f"{path}, line {line}: found {text!r} and expected {expected}: correct or remove the row")


@contextlib.contextmanager
def csv_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns what polars raises while it reads `path` into an InputError that names the first bad line."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise InputError(_first_bad_line(Path(path)) or f"{path}: {str(error).splitlines()[0]}") from error


def _first_bad_line(path: Path) -> str | None:
    """The sentence for the first line that is not UTF-8 or has more values than the header."""
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
