"""Ground truth of the challenge metric: box and image-label files in Open Images columns, expanded by the hierarchy.

The rules are those of `oid_hierarchical_labels_expansion.py` (2019): a box is copied once to every ancestor of its
class, identical boxes stay; a positive image-level label is copied to every ancestor, a negative one to every
descendant. A row whose class is in the hierarchy but not in the class list is dropped before that, so that the 500
challenge classes can be measured on the files of all 600: the official challenge files do not have those rows either.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from oid.annotations import csv_errors, scan_rows
from oid.files import InputError, require_file
from oid.hierarchy import Hierarchy
from oid.metric.challenge import GroundTruth

COORDINATES = ("XMin", "YMin", "XMax", "YMax")
BOX_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
LABEL_COLUMNS = ("ImageID", "LabelName", "Confidence")
SIZE_COLUMNS = ("id", "width", "height")


@dataclass(frozen=True)
class GroundTruthReport:
    """What `read_ground_truth` found.

    Attributes:
        labels: the class list; a class index of the `GroundTruth` is a position in it.
        boxes: rows with a box of a listed class.
        image_labels: rows with an image-level label of a listed class.
        dropped_boxes: {label: rows} of the classes that are in the hierarchy only.
        dropped_image_labels: the same for image-level labels.
    """

    labels: tuple[str, ...]
    boxes: int
    image_labels: int
    dropped_boxes: dict[str, int]
    dropped_image_labels: dict[str, int]


def read_ground_truth(
    boxes_path: str | os.PathLike,
    image_labels_path: str | os.PathLike | None = None,
    hierarchy: Hierarchy | None = None,
    labels: Sequence[str] | None = None,
) -> tuple[GroundTruth, GroundTruthReport]:
    """Reads the ground truth of the images that have a row in one of the two files.

    Args:
        boxes_path: CSV with at least `ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf`. A row with an ImageID and
            nothing in the other columns is an image without boxes.
        image_labels_path: CSV with at least `ImageID,LabelName,Confidence`, Confidence being 0 or 1; None = no
            image-level labels, so that in every image only the classes of its boxes are verified.
        hierarchy: copies boxes and labels to ancestors and descendants; None = classes stay as they are.
        labels: the class list; None = every class that occurs, in the rows or by expansion.

    Returns:
        The ground truth, images in sorted order, boxes in the order of the file, the copies after their original.

    Raises:
        InputError: a file is missing or not CSV, a column is missing, or a row has a value that cannot be used: an
            unknown label, a label that the hierarchy in use does not have, a coordinate that is no number or is
            greater than its counterpart, or an IsGroupOf or Confidence other than the allowed ones. Or no row is left.
    """
    box_file = _BoxFile(boxes_path)
    label_file = None if image_labels_path is None else _LabelFile(image_labels_path)
    files = [box_file] if label_file is None else [box_file, label_file]
    if labels is None:
        labels = _occurring_labels(files, hierarchy)
    class_of = {label: index for index, label in enumerate(labels)}
    for file in files:
        file.check_labels(class_of, hierarchy)
    image_ids = sorted(set().union(*(file.images for file in files)))

    def up(label: str) -> Iterable[str]:
        return (label, *hierarchy.ancestors(label)) if hierarchy else (label,)

    def down(label: str) -> Iterable[str]:
        return (label, *hierarchy.descendants(label)) if hierarchy else (label,)

    rows, box_class, dropped_boxes = box_file.expanded(up, class_of)
    box_image, boxes, group_of = box_file.image_index(image_ids)[rows], box_file.boxes[rows], box_file.group_of[rows]
    label_image, label_class = np.empty((2, 0), dtype=np.int64)
    dropped_labels: dict[str, int] = {}
    if label_file is not None:
        parts = [
            label_file.expanded(direction, class_of, label_file.positive == sign)
            for direction, sign in ((up, True), (down, False))
        ]
        label_image = label_file.image_index(image_ids)[np.concatenate([part[0] for part in parts])]
        label_class = np.concatenate([part[1] for part in parts])
        for label, count in (item for part in parts for item in part[2].items()):
            dropped_labels[label] = dropped_labels.get(label, 0) + count
    if not len(boxes) and not len(label_image):
        names = " and ".join(str(file.path) for file in files)
        raise InputError(f"{names}: not one row has a class that is evaluated, so there is nothing to measure")
    report = GroundTruthReport(
        labels=tuple(labels),
        boxes=len(box_file.labels) - sum(dropped_boxes.values()),
        image_labels=len(label_file.labels) - sum(dropped_labels.values()) if label_file else 0,
        dropped_boxes=dropped_boxes,
        dropped_image_labels=dropped_labels,
    )
    return GroundTruth(tuple(image_ids), box_image, box_class, boxes, group_of, label_image, label_class), report


def read_sizes(path: str | os.PathLike, image_ids: Sequence[str]) -> np.ndarray:
    """Reads width and height in pixels from a02's table.

    Args:
        path: CSV with at least `id,width,height`.
        image_ids: the images whose sizes are wanted.

    Returns:
        `(len(image_ids), 2)` float64.

    Raises:
        InputError: no such file or column, an image without a row, or a size that is not a positive whole number.
    """
    remedy = "run a02_find_image_parameters.py on these images, or name its table by --image_params"
    path = require_file(path, remedy)
    with csv_errors(path):
        table = scan_rows(path, SIZE_COLUMNS).unique("id", keep="first").collect()
    wanted = pl.DataFrame({"id": list(image_ids)}, schema={"id": pl.String})
    found = wanted.join(table, on="id", how="left", maintain_order="left")
    without = found.filter(pl.col("line").is_null())["id"]
    if len(without):
        many = f"{len(without)} of the {len(image_ids)} evaluated images"
        raise InputError(f"{path} has no size of {many}, for example {without[0]!r}: {remedy}")
    sizes = found.select("id", "line", *(pl.col(name).cast(pl.UInt32, strict=False) for name in SIZE_COLUMNS[1:]))
    for image_id, line, *_ in sizes.filter(~((pl.col("width") > 0) & (pl.col("height") > 0)).fill_null(False)).rows():
        raise InputError(f"{path}, line {line}: width or height of {image_id!r} is not a positive number: {remedy}")
    return sizes.select(SIZE_COLUMNS[1:]).to_numpy().astype(np.float64)


class _LabelledRows:
    """The rows of one CSV file, less those without a label.

    Attributes:
        images: every image id of the file, each once.
        table: `(R,)` rows as text, with the column `line`, as an editor counts lines.
        labels: `(R,)` text.
    """

    def __init__(self, path: str | os.PathLike, columns: Sequence[str], remedy: str, *, bare_images: bool):
        self.path = require_file(path, remedy)
        with csv_errors(self.path):
            table = scan_rows(self.path, columns).collect()
        table = table.with_columns(pl.when(pl.col(columns) != "").then(pl.col(columns)).name.keep())  # "" is empty, too
        self._refuse(table, pl.col("ImageID").is_null(), "ImageID", "give every row an image id")
        self.images: set[str] = set(table["ImageID"].unique())
        bare = pl.all_horizontal(pl.col(columns[1:]).is_null())
        self.table = table.filter(~bare) if bare_images else table
        self._refuse(self.table, pl.col("LabelName").is_null(), "LabelName", "give every row a label")
        self.labels: pl.Series = self.table["LabelName"]

    def _refuse(self, table: pl.DataFrame, bad: pl.Expr, column: str, remedy: str) -> None:
        """Raises an InputError for the first row where `bad` holds."""
        rows = table.filter(bad).head(1)
        if len(rows):
            value = rows[column][0]
            found = f"{column} is empty" if value is None else f"{column} is {value!r}"
            raise InputError(f"{self.path}, line {rows['line'][0]}: {found}: {remedy}")

    def check_labels(self, class_of: dict[str, int], hierarchy: Hierarchy | None) -> None:
        """Raises an InputError for the first label that cannot be used."""
        for label in self.labels.unique(maintain_order=True):
            if label in (class_of if hierarchy is None else hierarchy):
                continue
            if hierarchy is None:
                problem = "is not in the class descriptions: add it there, or give the hierarchy that has it"
            elif label in class_of:
                problem = "is in the class descriptions but not in the hierarchy: take the hierarchy of these classes"
            else:
                problem = "is neither in the class descriptions nor in the hierarchy: take files that belong together"
            line = self.table.filter(pl.col("LabelName") == label)["line"][0]
            raise InputError(f"{self.path}, line {line}: the label {label!r} {problem}")

    def image_index(self, image_ids: Sequence[str]) -> np.ndarray:
        """`(R,)` int64: the position of each row's image in `image_ids`."""
        return _positions(self.table["ImageID"], {image_id: index for index, image_id in enumerate(image_ids)})

    def expanded(
        self, reach: Callable[[str], Iterable[str]], class_of: dict[str, int], chosen: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
        """Repeats each row for every listed class that its label reaches.

        Args:
            reach: label -> itself and the classes that it is copied to.
            class_of: {label: class index}.
            chosen: `(R,)` bool, the rows to take; None = all.

        Returns:
            Row numbers `(E,)` and class indices `(E,)` in the order of the rows, and {label: rows} of the dropped ones.
        """
        vocabulary = self.labels.unique(maintain_order=True).to_list()
        reached = [[class_of[other] for other in reach(label) if other in class_of] for label in vocabulary]
        reached = [found if label in class_of else [] for label, found in zip(vocabulary, reached, strict=True)]
        word = _positions(self.labels, {label: index for index, label in enumerate(vocabulary)})
        rows = np.arange(len(word)) if chosen is None else np.flatnonzero(chosen)
        word = word[rows]
        counts = np.array([len(found) for found in reached], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)])
        flat = np.array([index for found in reached for index in found], dtype=np.int64)
        repeats = counts[word]
        offset = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        classes = flat[np.repeat(starts[word], repeats) + offset]
        seen = np.bincount(word, minlength=len(vocabulary))
        dropped = {label: int(seen[i]) for i, label in enumerate(vocabulary) if label not in class_of and seen[i]}
        return np.repeat(rows, repeats), classes, dropped


class _BoxFile(_LabelledRows):
    """A box file: `boxes` `(R, 4)` float64 xyxy, `group_of` `(R,)` bool."""

    def __init__(self, path: str | os.PathLike):
        remedy = "expected the ground-truth boxes, a CSV file with " + ",".join(BOX_COLUMNS)
        super().__init__(path, BOX_COLUMNS, remedy, bare_images=True)
        number = {name: pl.col(name).str.strip_chars().cast(pl.Float64, strict=False) for name in BOX_COLUMNS[2:]}
        for name in COORDINATES:
            self._refuse(self.table, ~number[name].is_finite().fill_null(False), name, "a coordinate is a number")
        for low, high in (("XMin", "XMax"), ("YMin", "YMax")):
            self._refuse(self.table, number[low] > number[high], low, f"greater than {high}, swap them")
        # -1 is "unknown" in Open Images; the reference turns the number into a truth value
        known = number["IsGroupOf"].is_in([-1.0, 0.0, 1.0]).fill_null(False)
        self._refuse(self.table, ~known, "IsGroupOf", "it must be 0 or 1")
        self.boxes = self.table.select(number[name] for name in COORDINATES).to_numpy()
        self.group_of = self.table.select(number["IsGroupOf"] != 0).to_series().to_numpy()


class _LabelFile(_LabelledRows):
    """An image-label file: `positive` `(R,)` bool."""

    def __init__(self, path: str | os.PathLike):
        remedy = "expected image-level labels, a CSV file with " + ",".join(LABEL_COLUMNS)
        super().__init__(path, LABEL_COLUMNS, remedy, bare_images=False)
        known = pl.col("Confidence").is_in(["0", "1"]).fill_null(False)
        self._refuse(self.table, ~known, "Confidence", "it must be 0 or 1, take the human-verified labels")
        self.positive = (self.table["Confidence"] == "1").to_numpy()


def _occurring_labels(files: Sequence[_LabelledRows], hierarchy: Hierarchy | None) -> list[str]:
    """The classes of the files: sorted without a hierarchy, else with ancestors and descendants in its order."""
    found = set().union(*(file.labels.unique() for file in files))
    if hierarchy is None:
        return sorted(found)
    found = {label for label in found if label in hierarchy}
    reached = {other for label in found for other in (*hierarchy.ancestors(label), *hierarchy.descendants(label))}
    return [label for label in hierarchy.labels if label in found | reached]


def _positions(texts: pl.Series, position_of: dict[str, int]) -> np.ndarray:
    """`(N,)` int64: `position_of` each text."""
    unique = texts.unique()
    positions = pl.Series([position_of[text] for text in unique], dtype=pl.Int64)
    return texts.replace_strict(unique, positions, return_dtype=pl.Int64).to_numpy().astype(np.int64)
