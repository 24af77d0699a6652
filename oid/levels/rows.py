"""Box and image-label files of any size as two numbers for each row: its image and its pattern.

Rows of one *pattern* become the same in a training file. A box with a rectangle of its own is fully described by its
label and by whether it is a group, so each label has two patterns. A box that shares its rectangle with another box of
the image has a pattern of its own. The rules are applied to a few thousand patterns instead of millions of rows, and
no text stays in memory but the image ids.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from oid import paths
from oid.annotations import csv_errors, read_boxes, read_header, read_image_labels
from oid.columns import BOX_COLUMNS, CORNERS
from oid.files import InputError, require_file

BLOCK = 2**23  # bytes of text in memory at a time
_NAMES = (
    pl.col("ImageID").cast(pl.Categorical).alias("image"),
    pl.col("LabelName").cast(pl.Categorical).alias("label"),
)
_FIRST_COLUMNS = ("ImageID", "Source", "Confidence")


@dataclass(frozen=True)
class Rows:
    """The N rows of an annotation file in its order.

    Attributes:
        image: (N,) Categorical, the image ids.
        pattern: (N,) UInt32, the pattern of each row; null if its label is unknown.
        patterns: `pattern` (UInt32, ascending) and `label` (Enum) of each pattern. Boxes also have `group_of` (Boolean)
            and `rectangle` (UInt32, equal for boxes with equal corners in one image); image labels have `positive`.
        unknown_labels: (U,) String, the unknown labels, with repetitions.
    """

    image: pl.Series
    pattern: pl.Series
    patterns: pl.DataFrame
    unknown_labels: pl.Series

    @cached_property
    def counts(self) -> pl.DataFrame:
        """`pattern` and `count` (UInt32), the number of rows of each pattern that occurs."""
        return self.pattern.drop_nulls().value_counts()


@dataclass(frozen=True)
class Split:
    """The annotations of a split.

    Attributes:
        name: "train" or "validation".
        boxes_path, boxes: the box file and its rows.
        labels_path, image_labels: the image-label file, which need not exist, and its rows.
    """

    name: str
    boxes_path: Path
    boxes: Rows
    labels_path: Path
    image_labels: Rows


def read_split(dataset_path: str, name: str, labels: pl.Enum) -> Split:
    """Reads the boxes and, if there are any, the image labels of a split; `labels` are the known ones.

    Raises:
        InputError: the box file is missing, or a file is damaged.
    """
    labels_path = paths.image_label_annotations(dataset_path, name)
    boxes_path = paths.box_annotations(dataset_path, name)
    require_file(boxes_path, f"the {name} boxes are needed, see https://storage.googleapis.com/openimages/web/")
    boxes = read_box_rows(boxes_path, labels)
    return Split(name, boxes_path, boxes, labels_path, read_image_label_rows(labels_path, labels))


def read_box_rows(path: Path, labels: pl.Enum) -> Rows:
    """Reads a box file; `labels` are the known ones.

    Raises:
        InputError: see `oid.annotations.read_boxes`.
    """
    corners = [pl.col(name).cast(pl.Float64, strict=False) + 0.0 for name in CORNERS]  # -0.0 becomes 0.0
    group_of = (pl.col("IsGroupOf") == "1").alias("group_of")
    rectangle = pl.struct("ImageID", *corners).hash().alias("rectangle")
    rows, unknown = _with_known_labels(read_boxes(path, (*_NAMES, group_of, rectangle)), labels)
    patterns = _patterns_of_labels(labels, "group_of").with_columns(rectangle="pattern")

    # Equal hashes of different images do no harm, because rectangles are grouped by image as well. Two rectangles of
    # one image have equal hashes in fewer than one of 10^10 files of Open Images' size.
    is_shared = _is_repeated(rows["rectangle"]) & rows["label"].is_not_null()
    shared = rows.filter(is_shared).with_row_index("pattern", offset=len(patterns))
    first = pl.col("pattern").first().over("image", "rectangle")
    patterns = patterns.vstack(shared.select("pattern", "label", "group_of", rectangle=first))
    own = len(patterns) - len(shared) - 1 + is_shared.cast(pl.UInt32).cum_sum()
    pattern = rows.select(pattern=pl.when(is_shared).then(own).otherwise(_pattern_of_label("group_of"))).to_series()
    return Rows(rows["image"], pattern, patterns, unknown)


def read_image_label_rows(path: Path, labels: pl.Enum) -> Rows:
    """Reads human-verified image-level labels; `labels` are the known ones. The file may be missing or have no rows.

    Raises:
        InputError: see `oid.annotations.read_image_labels`.
    """
    rows = pl.DataFrame(schema={"image": pl.Categorical, "label": pl.Categorical, "positive": pl.Boolean})
    if path.exists():
        rows = read_image_labels(path, (*_NAMES, (pl.col("Confidence") == "1").alias("positive")))
    rows, unknown = _with_known_labels(rows, labels)
    pattern = rows.select(pattern=_pattern_of_label("positive")).to_series()
    return Rows(rows["image"], pattern, _patterns_of_labels(labels, "positive"), unknown)


def read_text(path: Path, rows: Rows) -> Iterator[pl.DataFrame]:
    """Yields the text of box rows in blocks, as it stands in a CSV file: with quotes where a value needs them.

    The columns are ImageID, Source, Confidence, `rest` (the values from XMin on, with commas between) and `pattern`:
    `len(rows.patterns)` if that is unknown.

    Raises:
        InputError: a value contains a line break.
    """
    is_v4, start = read_header(path, BOX_COLUMNS) == list(BOX_COLUMNS), 0
    with open(path, "rb") as file, csv_errors(path):
        header = file.readline()
        for block in iter(lambda: file.read(BLOCK) + file.readline(), b""):
            text = _split_lines(block) if is_v4 and b'"' not in block else _split_values(header + block)
            pattern = rows.pattern[start : start + len(text)].fill_null(len(rows.patterns))
            start += len(text)
            if len(text):
                yield text.with_columns(pattern.alias("pattern"))
    if start != len(rows.pattern):
        raise InputError(f"{path}: a value contains a line break: remove it")


def _split_lines(block: bytes) -> pl.DataFrame:
    """Whole lines are read in half the time, with a separator that no text contains."""
    options = {"infer_schema": False, "separator": "\0", "quote_char": None, "new_columns": ["line"]}
    lines = pl.read_csv(block, has_header=False, raise_if_empty=False, **options)
    parts = lines.select(pl.col("line").str.splitn(",", 5).struct.rename_fields([*BOX_COLUMNS[:4], "rest"]))
    return parts.unnest("line").filter(pl.col("ImageID") != "").drop("LabelName")


def _split_values(table: bytes) -> pl.DataFrame:
    """As `_split_lines` for quotes, and for columns in any order; `table` begins with the header."""
    values = pl.read_csv(table, infer_schema=False, columns=BOX_COLUMNS)
    values = values.filter(pl.any_horizontal(pl.all().is_not_null())).select(map(as_csv, BOX_COLUMNS))
    return values.select(*_FIRST_COLUMNS, rest=pl.concat_str(BOX_COLUMNS[4:], separator=","))


def as_csv(column: str) -> pl.Expr:
    """Returns the column with quotes around the values that need them in a CSV file."""
    text = pl.col(column)
    quoted = '"' + text.str.replace_all('"', '""', literal=True) + '"'
    return pl.when(text.str.contains(r'[",\r\n]|^$')).then(quoted).otherwise(text).alias(column)


def _is_repeated(values: pl.Series) -> pl.Series:
    """Like `is_duplicated`, in a third of its time."""
    ordered = values.sort()
    return values.is_in(ordered.filter(ordered == ordered.shift(1)).unique().implode())


def _with_known_labels(rows: pl.DataFrame, labels: pl.Enum) -> tuple[pl.DataFrame, pl.Series]:
    """Returns the rows with `label` as `labels`, null if it is unknown, and the unknown ones as text."""
    known = rows["label"].cast(labels, strict=False)
    return rows.with_columns(known), rows["label"].filter(known.is_null()).cast(pl.String)


def _pattern_of_label(flag: str) -> pl.Expr:
    return pl.col("label").to_physical().cast(pl.UInt32) * 2 + pl.col(flag)


def _patterns_of_labels(labels: pl.Enum, flag: str) -> pl.DataFrame:
    """Returns the two patterns of each label, without and with the flag, as `_pattern_of_label` numbers them."""
    both = pl.DataFrame({"label": labels.categories.cast(labels)}).join(
        pl.DataFrame({flag: [False, True]}), how="cross"
    )
    return both.select(pattern=_pattern_of_label(flag), label="label", **{flag: flag})
