"""Ground truth of the challenge metric: box and image-label files in Open Images columns, expanded by the hierarchy.

The rules are those of `oid_hierarchical_labels_expansion.py` (2019): a box is copied once to every ancestor of its
class, identical boxes stay; a positive image-level label is copied to every ancestor, a negative one to every
descendant. A row whose class is in the hierarchy but not in the class list is dropped before that, so that the 500
challenge classes can be measured on the files of all 600: the official challenge files do not have those rows either.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from oid import paths
from oid.annotations import csv_errors, read_class_descriptions, scan_rows
from oid.columns import CORNERS, GROUND_TRUTH_COLUMNS, IMAGE_LABEL_COLUMNS
from oid.files import InputError, require_file
from oid.hierarchy import Hierarchy, read_hierarchy
from oid.images.table import read_image_sizes
from oid.metric.challenge import GroundTruth


@dataclass(frozen=True)
class GroundTruthReport:
    """What `read_ground_truth` found."""

    labels: tuple[str, ...]  # the class list, whose positions are the class indices
    boxes: int  # rows with a box of a listed class
    image_labels: int  # rows with an image-level label of a listed class
    dropped_boxes: dict[str, int]  # {label: rows} of the classes that are in the hierarchy only
    dropped_image_labels: dict[str, int]

    def lines(self, truth: GroundTruth) -> list[str]:
        """Says what is measured against, a line each."""
        lines = [
            f"{len(truth.image_ids)} images, {len(self.labels)} classes",
            f"{self.boxes} boxes, {len(truth.boxes)} with the copies to ancestor classes",
            f"{self.image_labels} image-level labels, "
            f"{len(truth.label_image)} with the copies to ancestors and descendants",
        ]
        for what, dropped in (("boxes", self.dropped_boxes), ("image-level labels", self.dropped_image_labels)):
            if dropped:
                classes = f"{len(dropped)} classes that are in the hierarchy only, for example {next(iter(dropped))}"
                lines.append(f"  dropped {sum(dropped.values())} {what} of {classes}")
        return lines


def read_ground_truth(
    boxes_path: str | os.PathLike,
    image_labels_path: str | os.PathLike | None = None,
    hierarchy: Hierarchy | None = None,
    labels: Sequence[str] | None = None,
) -> tuple[GroundTruth, GroundTruthReport]:
    """Reads the ground truth of the images that have a row in one of the two files.

    Args:
        boxes_path: CSV with `GROUND_TRUTH_COLUMNS`. A row with nothing but an ImageID is an image without boxes.
        image_labels_path: CSV with `IMAGE_LABEL_COLUMNS`; None = only the classes of an image's boxes are verified.
        hierarchy: copies boxes and labels to ancestors and descendants; None = nothing is copied.
        labels: the class list; None = every class that occurs, in the rows or by expansion.

    Returns:
        The ground truth, images in sorted order, boxes in the order of the file, the copies after their original.

    Raises:
        InputError: a file or a column is missing, a file is not CSV, a row has an invalid value, or no row remains.
    """
    boxes, image_labels = _read_boxes(boxes_path), _read_image_labels(image_labels_path)
    found = set(boxes["LabelName"].drop_nulls()).union(image_labels["LabelName"])
    labels = tuple(_expanded_labels(found, hierarchy) if labels is None else labels)
    for path, rows in ((boxes_path, boxes), (image_labels_path, image_labels)):
        _check_labels(path, rows, labels, hierarchy)
    image_ids = pl.concat([boxes["ImageID"], image_labels["ImageID"]]).unique().sort()
    up, down = (hierarchy.ancestors, hierarchy.descendants) if hierarchy else (lambda label: (),) * 2
    copies = _expanded(boxes, up, labels, image_ids)
    verified = _expanded(image_labels.filter("positive"), up, labels, image_ids)
    verified.extend(_expanded(image_labels.filter(~pl.col("positive")), down, labels, image_ids))
    if not len(copies) and not len(verified):
        names = " and ".join(str(path) for path in (boxes_path, image_labels_path) if path)
        raise InputError(f"{names}: not one row has a class that is evaluated, so there is nothing to measure")
    (num_boxes, dropped_boxes), (num_labels, dropped_labels) = (_counts(rows, labels) for rows in (boxes, image_labels))
    truth = GroundTruth(
        image_ids=tuple(image_ids),
        box_image=copies["image"].to_numpy(),
        box_class=copies["class"].to_numpy(),
        boxes=copies.select(CORNERS).to_numpy(),
        box_group_of=copies["IsGroupOf"].to_numpy(),
        label_image=verified["image"].to_numpy(),
        label_class=verified["class"].to_numpy(),
    )
    return truth, GroundTruthReport(labels, num_boxes, num_labels, dropped_boxes, dropped_labels)


def _expanded(
    rows: pl.DataFrame, reach: Callable[[str], Iterable[str]], labels: Sequence[str], image_ids: pl.Series
) -> pl.DataFrame:
    """Repeats each row for every listed class that its label reaches; adds the columns `class` and `image`."""
    class_of = {label: index for index, label in enumerate(labels)}
    listed = [label for label in rows["LabelName"].unique() if label in class_of]
    reached = [[class_of[other] for other in (label, *reach(label)) if other in class_of] for label in listed]
    schema = {"LabelName": pl.String, "class": pl.List(pl.Int64)}
    classes = pl.DataFrame({"LabelName": listed, "class": reached}, schema=schema)
    images = pl.DataFrame({"ImageID": image_ids}).with_row_index("image").cast({"image": pl.Int64})
    rows = rows.join(classes, on="LabelName", maintain_order="left").explode("class")
    return rows.join(images, on="ImageID", maintain_order="left")


def _counts(rows: pl.DataFrame, labels: Sequence[str]) -> tuple[int, dict[str, int]]:
    """The number of rows of a listed class, and {label: rows} of the others."""
    is_listed = pl.col("LabelName").is_in(list(labels))
    others = rows.filter(~is_listed).group_by("LabelName", maintain_order=True).len()
    return len(rows.filter(is_listed)), dict(others.rows())


def read_sizes(path: str | os.PathLike, image_ids: Sequence[str]) -> np.ndarray:
    """Reads width and height in pixels `(len(image_ids), 2)` from a02's table, a CSV with `id,width,height`.

    Raises:
        InputError: an image without a row, or see `read_image_sizes`.
    """
    wanted = pl.DataFrame({"id": list(image_ids)}, schema={"id": pl.String})
    table = read_image_sizes(path).unique("id", keep="first")
    sizes = wanted.join(table, on="id", how="left", maintain_order="left")
    without = sizes.filter(pl.col("width").is_null())["id"]
    if len(without):
        many = f"{len(without)} of the {len(image_ids)} evaluated images"
        raise InputError(f"{path} has no size of {many}, for example {without[0]!r}")
    return sizes.select("width", "height").to_numpy().astype(np.float64)


def _read_boxes(path: str | os.PathLike) -> pl.DataFrame:
    """Rows with the corners as Float64, `IsGroupOf` as Boolean, and `line`; LabelName is null for an empty image."""
    path = require_file(path, "expected the ground-truth boxes, a CSV file with " + ",".join(GROUND_TRUTH_COLUMNS))
    table = _read_table(path, GROUND_TRUTH_COLUMNS)
    rows = table.filter(pl.any_horizontal(pl.col(GROUND_TRUTH_COLUMNS[1:]).is_not_null()))
    _refuse(path, rows, pl.col("LabelName").is_null(), "LabelName", "give every row a label")
    number = {name: pl.col(name).str.strip_chars().cast(pl.Float64, strict=False) for name in (*CORNERS, "IsGroupOf")}
    for name in CORNERS:
        _refuse(path, rows, ~number[name].is_finite().fill_null(False), name, "a coordinate is a number")
    for low, high in (("XMin", "XMax"), ("YMin", "YMax")):
        _refuse(path, rows, number[low] > number[high], low, f"greater than {high}, swap them")
    # -1 is "unknown" in Open Images; the reference turns the number into a truth value
    is_known = number["IsGroupOf"].is_in([-1.0, 0.0, 1.0]).fill_null(False)
    _refuse(path, rows, ~is_known, "IsGroupOf", "it must be 0 or 1")
    return table.with_columns(**number | {"IsGroupOf": number["IsGroupOf"] != 0})


def _read_image_labels(path: str | os.PathLike | None) -> pl.DataFrame:
    """Rows with `positive` as Boolean, and `line`; no rows without a file."""
    if path is None:
        schema = {"line": pl.UInt32, "ImageID": pl.String, "LabelName": pl.String, "positive": pl.Boolean}
        return pl.DataFrame(schema=schema)
    path = require_file(path, "expected image-level labels, a CSV file with " + ",".join(IMAGE_LABEL_COLUMNS))
    rows = _read_table(path, IMAGE_LABEL_COLUMNS)
    _refuse(path, rows, pl.col("LabelName").is_null(), "LabelName", "give every row a label")
    is_known = pl.col("Confidence").is_in(["0", "1"]).fill_null(False)
    _refuse(path, rows, ~is_known, "Confidence", "it must be 0 or 1, take the human-verified labels")
    return rows.with_columns(positive=pl.col("Confidence") == "1")


def _read_table(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """The columns as text, null where they are empty, and `line`."""
    with csv_errors(path):
        table = scan_rows(path, columns).collect()
    table = table.with_columns(pl.when(pl.col(columns) != "").then(pl.col(columns)).name.keep())  # "" is empty, too
    _refuse(path, table, pl.col("ImageID").is_null(), "ImageID", "give every row an image id")
    return table


def _refuse(path: Path, table: pl.DataFrame, is_bad: pl.Expr, column: str, remedy: str) -> None:
    """Raises an InputError for the first row where `is_bad` holds."""
    for line, value in table.filter(is_bad).select("line", column).head(1).rows():
        found = f"{column} is empty" if value is None else f"{column} is {value!r}"
        raise InputError(f"{path}, line {line}: {found}: {remedy}")


def _check_labels(
    path: str | os.PathLike | None, rows: pl.DataFrame, labels: Sequence[str], hierarchy: Hierarchy | None
) -> None:
    """Raises an InputError for the first unknown label."""
    listed = frozenset(labels)
    known = listed if hierarchy is None else hierarchy
    rows = rows.drop_nulls("LabelName").unique("LabelName", keep="first", maintain_order=True)
    for label, line in rows["LabelName", "line"].rows():
        if label in known:
            continue
        if hierarchy is None:
            problem = "is not in the class descriptions: add it there, or give the hierarchy that has it"
        elif label in listed:
            problem = "is in the class descriptions but not in the hierarchy: take the hierarchy of these classes"
        else:
            problem = "is neither in the class descriptions nor in the hierarchy: take files that belong together"
        raise InputError(f"{path}, line {line}: the label {label!r} {problem}")


def _expanded_labels(found: set[str], hierarchy: Hierarchy | None) -> list[str]:
    """Sorts the labels; with a hierarchy, adds their ancestors and descendants and takes its order."""
    if hierarchy is None:
        return sorted(found)
    known = [label for label in found if label in hierarchy]
    reached = {other for label in known for other in (*hierarchy.ancestors(label), *hierarchy.descendants(label))}
    return [label for label in hierarchy.labels if label in found | reached]


# === Which files ======================================================================================================
class GroundTruthFiles(NamedTuple):
    """The ground-truth files of a split; None = not used."""

    boxes: Path
    image_labels: Path | None
    hierarchy: Path | None
    class_descriptions: Path | None

    def lines(self) -> list[str]:
        """Says which files are used, a line each."""
        without = {
            "image_labels": "only the classes of an image's boxes count",
            "hierarchy": "boxes are not copied to ancestor classes",
            "class_descriptions": "every class that occurs counts",
        }
        return [f"{name}: {path or f'none, so {without[name]}'}" for name, path in self._asdict().items()]

    def read(self) -> tuple[GroundTruth, GroundTruthReport, dict[str, str]]:
        """Ground truth, report, and {label: name} of the class list; see `read_ground_truth` for errors.

        Without class descriptions the labels are the names.
        """
        names = read_class_descriptions(self.class_descriptions) if self.class_descriptions else None
        hierarchy = read_hierarchy(self.hierarchy) if self.hierarchy else None
        truth, report = read_ground_truth(self.boxes, self.image_labels, hierarchy, list(names) if names else None)
        return truth, report, names or {label: label for label in report.labels}


def find_ground_truth(
    dataset_path: str,
    split: str,
    boxes: str | None = None,
    image_labels: str | None = None,
    hierarchy: str | None = None,
    class_descriptions: str | None = None,
) -> GroundTruthFiles:
    """Chooses the named files, else the data set's if they exist; "none" = no file.

    Image-level labels of the data set are used with its own boxes only.

    Raises:
        InputError: there is no file of boxes.
    """
    own_boxes = paths.box_annotations(dataset_path, split)
    if boxes is None and split == "test" and not own_boxes.is_file():
        raise InputError(f"{own_boxes} does not exist, because the test split has no ground truth: take another")
    boxes_path = require_file(boxes or own_boxes, "expected the CSV file of the boxes")

    def choose(given: str | None, default: Path) -> Path | None:
        if given is None:
            return default if default.is_file() else None
        return None if given == "none" else Path(given)

    if boxes_path.resolve() != own_boxes.resolve():
        image_labels = image_labels or "none"
    return GroundTruthFiles(
        boxes_path,
        choose(image_labels, paths.image_label_annotations(dataset_path, split)),
        choose(hierarchy, paths.annotation_file(dataset_path, paths.HIERARCHY)),
        choose(class_descriptions, paths.evaluated_class_descriptions(dataset_path)),
    )
