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
from oid.annotations import csv_errors, read_boxes, read_header, read_image_labels, scan_rows
from oid.columns import BOX_COLUMNS, CORNERS
from oid.files import require_file

BATCH = 100_000  # rows whose text is in memory at a time
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
    image_labels = read_image_label_rows(labels_path, labels) if labels_path.exists() else no_image_labels(labels)
    return Split(name, boxes_path, boxes, labels_path, image_labels)


def read_box_rows(path: Path, labels: pl.Enum) -> Rows:
    """Reads a box file; `labels` are the known ones.

    Raises:
        InputError: see `oid.annotations.read_boxes`.
    """
    corners = [pl.col(name).cast(pl.Float64, strict=False) + 0.0 for name in CORNERS]  # -0.0 becomes 0.0
    group_of = (pl.col("IsGroupOf") == "1").alias("group_of")
    rectangle = pl.struct("ImageID", *corners).hash().alias("rectangle")
    rows = read_boxes(path, (_image(), _label(labels), group_of, rectangle))
    patterns = _patterns_of_labels(labels, "group_of").with_columns(rectangle="pattern")

    # Equal hashes of different images do no harm, because rectangles are grouped by image as well. Two rectangles of
    # one image have equal hashes in fewer than one of 10^10 files of Open Images' size.
    is_shared = _is_repeated(rows["rectangle"]) & rows["label"].is_not_null()
    shared = rows.filter(is_shared).with_row_index("pattern", offset=len(patterns))
    first = pl.col("pattern").first().over("image", "rectangle")
    patterns = patterns.vstack(shared.select("pattern", "label", "group_of", rectangle=first))
    own = len(patterns) - len(shared) - 1 + is_shared.cast(pl.UInt32).cum_sum()
    pattern = rows.select(pattern=pl.when(is_shared).then(own).otherwise(_pattern_of_label("group_of"))).to_series()
    return Rows(rows["image"], pattern, patterns, _unknown_labels(path, labels, rows["label"]))


def read_image_label_rows(path: Path, labels: pl.Enum) -> Rows:
    """Reads human-verified image-level labels; `labels` are the known ones. The file may have no rows.

    Raises:
        InputError: see `oid.annotations.read_image_labels`.
    """
    positive = (pl.col("Confidence") == "1").alias("positive")
    rows = read_image_labels(path, (_image(), _label(labels), positive))
    pattern = rows.select(pattern=_pattern_of_label("positive")).to_series()
    unknown = _unknown_labels(path, labels, rows["label"])
    return Rows(rows["image"], pattern, _patterns_of_labels(labels, "positive"), unknown)


def no_image_labels(labels: pl.Enum) -> Rows:
    """Returns the rows of an empty image-label file."""
    image, pattern = pl.Series("image", dtype=pl.Categorical), pl.Series("pattern", dtype=pl.UInt32)
    return Rows(image, pattern, _patterns_of_labels(labels, "positive"), pl.Series(dtype=pl.String))


def read_text(path: Path, rows: Rows) -> Iterator[pl.DataFrame]:
    """Yields the text of box rows in batches, as it stands in a CSV file: with quotes where a value needs them.

    The columns are ImageID, Source, Confidence, `rest` (the values from XMin on, with commas between) and `pattern`:
    `len(rows.patterns)` if that is unknown.
    """
    with open(path, "rb") as file:
        has_quotes = any(b'"' in block for block in iter(lambda: file.read(1 << 20), b""))
    if has_quotes or read_header(path, BOX_COLUMNS) != list(BOX_COLUMNS):
        values = {name: as_csv(name) if has_quotes else pl.col(name) for name in BOX_COLUMNS}
        rest = pl.concat_str([values[name] for name in BOX_COLUMNS[4:]], separator=",")
        text = scan_rows(path, BOX_COLUMNS).select(*(values[name] for name in _FIRST_COLUMNS), rest=rest)
    else:  # whole lines are read in half the time, with a separator that no text contains
        lines = pl.scan_csv(path, infer_schema=False, glob=False, separator="\0", quote_char=None, new_columns=["line"])
        parts = lines.select(pl.col("line").str.splitn(",", 5).struct.rename_fields([*BOX_COLUMNS[:4], "rest"]))
        text = parts.unnest("line").filter(pl.col("ImageID") != "").drop("LabelName")
    pattern = rows.pattern.fill_null(len(rows.patterns)).to_frame()
    with csv_errors(path):
        both = pl.concat([text, pattern.lazy()], how="horizontal")
        for batch in both.collect_batches(chunk_size=BATCH, maintain_order=True, engine="streaming"):
            yield batch.rechunk()  # which makes it five times as fast to take rows from it


def as_csv(column: str) -> pl.Expr:
    """Returns the column with quotes around the values that need them in a CSV file."""
    text = pl.col(column)
    quoted = '"' + text.str.replace_all('"', '""', literal=True) + '"'
    return pl.when(text.str.contains(r'[",\r\n]|^$')).then(quoted).otherwise(text).alias(column)


def _is_repeated(values: pl.Series) -> pl.Series:
    """Like `is_duplicated`, in a third of its time."""
    ordered = values.sort()
    return values.is_in(ordered.filter(ordered == ordered.shift(1)).unique().implode())


def _image() -> pl.Expr:
    return pl.col("ImageID").cast(pl.Categorical).alias("image")


def _label(labels: pl.Enum) -> pl.Expr:
    """Null if the label is unknown."""
    return pl.col("LabelName").cast(labels, strict=False).alias("label")


def _pattern_of_label(flag: str) -> pl.Expr:
    return pl.col("label").to_physical().cast(pl.UInt32) * 2 + pl.col(flag)


def _patterns_of_labels(labels: pl.Enum, flag: str) -> pl.DataFrame:
    """Returns the two patterns of each label, without and with the flag, as `_pattern_of_label` numbers them."""
    both = pl.DataFrame({"label": labels.categories.cast(labels)}).join(
        pl.DataFrame({flag: [False, True]}), how="cross"
    )
    return both.select(pattern=_pattern_of_label(flag), label="label", **{flag: flag})


def _unknown_labels(path: Path, labels: pl.Enum, found: pl.Series) -> pl.Series:
    """Reads the labels once more, if one of those that were `found` is unknown."""
    if not found.null_count():
        return pl.Series(dtype=pl.String)
    with csv_errors(path):
        return scan_rows(path, ["LabelName"]).filter(_label(labels).is_null()).collect(engine="streaming")["LabelName"]
