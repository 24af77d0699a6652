"""The boxes of one of a01's files as the network sees them: in its square picture, up to so many of each class."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from oid.annotations import csv_errors, scan_rows
from oid.files import InputError, require_file

COORDINATES = ("XMin", "YMin", "XMax", "YMax")
SIZE_COLUMNS = ("id", "width", "height")
HASH = 2**32


@dataclass(frozen=True)
class SampledBoxes:
    """Boxes drawn by seed, up to a number for each class.

    Attributes:
        boxes: float64 `(n, 4)`, xyxy, normalised to the network's square.
        classes: int64 `(n,)`.
        counts: int64 `(classes,)`, how many the file has.
        without_size: drawn boxes that are left out, because a02's table lacks their image.
        without_area: drawn boxes that are left out, because they have no area.
    """

    boxes: np.ndarray
    classes: np.ndarray
    counts: np.ndarray
    without_size: int
    without_area: int

    @property
    def drawn(self) -> int:
        """How many boxes were drawn, with those that are left out."""
        return len(self.boxes) + self.without_size + self.without_area

    @property
    def sampled(self) -> np.ndarray:
        """How many boxes of each class are here: int64 `(classes,)`."""
        return np.bincount(self.classes, minlength=len(self.counts))

    @property
    def weights(self) -> np.ndarray:
        """How many of the file's boxes each box stands for: float64 `(n,)`."""
        return (self.counts / np.maximum(self.sampled, 1))[self.classes]

    @property
    def sizes(self) -> np.ndarray:
        """Widths and heights: float64 `(n, 2)`."""
        return self.boxes[:, 2:] - self.boxes[:, :2]


def read_image_sizes(path: str | os.PathLike) -> pl.DataFrame:
    """Reads `id` (String), `width` and `height` (UInt32) from a02's table.

    Raises:
        InputError: no such file, or a size is not a positive whole number.
    """
    remedy = "run a02_find_image_parameters.py again"
    path = require_file(path, remedy)
    numbers = [pl.col(name).cast(pl.UInt32, strict=False) for name in SIZE_COLUMNS[1:]]
    with csv_errors(path):
        table = scan_rows(path, SIZE_COLUMNS).select("line", "id", *numbers).collect(engine="streaming")
    bad = table.filter(~((pl.col("width") > 0) & (pl.col("height") > 0)).fill_null(False))
    for line, image_id, *_ in bad.head(1).iter_rows():
        raise InputError(f"{path}, line {line}: width or height of {image_id!r} is not a positive number: {remedy}")
    return table.drop("line")


def sample_boxes(
    path: str | os.PathLike,
    labels: Sequence[str],
    image_sizes: pl.DataFrame,
    *,
    image_size: int,
    letterbox: bool,
    most_per_class: int,
    seed: int,
) -> SampledBoxes:
    """Reads boxes of an annotation file; of a class with more than `most_per_class`, each with the same probability.

    Args:
        path: a CSV with the columns of Open Images; rows without a label, negative images, are passed over.
        labels: the classes; rows of others are passed over.
        image_sizes: see `read_image_sizes`.
        image_size: side of the network's square in pixels.
        letterbox: whether pictures keep their aspect ratio, on a ground that makes them square, or are stretched.
        most_per_class: so many boxes of a class, about.
        seed: of the draw.

    Raises:
        InputError: no such file or column, or a coordinate is not a number.
    """
    index = pl.DataFrame({"LabelName": list(labels), "class": np.arange(len(labels), dtype="int32")})
    with csv_errors(path):
        rows = scan_rows(path, ("ImageID", "LabelName", *COORDINATES)).filter(pl.col("LabelName").is_not_null())
        found = rows.select("LabelName").join(index.lazy(), on="LabelName").group_by("class").len()
        counts = np.zeros(len(labels), "int64")
        for number, count in found.collect(engine="streaming").iter_rows():
            counts[number] = count
        share = np.minimum(1.0, most_per_class / np.maximum(counts, 1)) * HASH
        index = index.with_columns(below=pl.Series(share.astype("uint64")))
        drawn = rows.join(index.lazy(), on="LabelName").filter(_hashed("line", seed) < pl.col("below"))
        numbers = [pl.col(name).cast(pl.Float64, strict=False) for name in COORDINATES]
        drawn = drawn.join(image_sizes.lazy(), left_on="ImageID", right_on="id", how="left")
        table = (
            drawn.select("line", "class", "width", "height", *numbers).collect(engine="streaming").sort("line", "class")
        )
    for line, *_ in table.filter(~pl.all_horizontal(pl.col(COORDINATES).is_finite()).fill_null(False)).iter_rows():
        raise InputError(f"{path}, line {line}: the coordinates are not four numbers: run a01 again")
    sized = table.filter(pl.col("width").is_not_null())
    boxes = sized.select(COORDINATES).to_numpy()
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    if letterbox:
        boxes = letterboxed(boxes, *sized.select("width", "height").to_numpy().T.astype("float64"), image_size)
    return SampledBoxes(
        boxes=np.ascontiguousarray(boxes[has_area]),
        classes=sized["class"].to_numpy()[has_area].astype("int64"),
        counts=counts,
        without_size=len(table) - len(sized),
        without_area=len(sized) - int(has_area.sum()),
    )


def letterboxed(boxes: np.ndarray, width: np.ndarray, height: np.ndarray, side: int) -> np.ndarray:
    """Boxes in the letterboxed square, which has the picture as large as fits in its middle, in whole pixels.

    Args:
        boxes: `(n, 4)` xyxy, normalised to the picture.
        width, height: `(n,)` of each box's picture, in pixels.
        side: of the square, in pixels.

    Returns:
        `(n, 4)` xyxy, normalised to the square.
    """
    scale = side / np.maximum(width, height)
    frame = np.stack([width * scale, height * scale], axis=1)
    frame = np.clip(np.rint(frame), 1, side)  # [n,2]
    offset = (side - frame) // 2
    return (boxes * np.tile(frame, 2) + np.tile(offset, 2)) / side


def _hashed(column: str, seed: int) -> pl.Expr:
    """Mixes a whole number to one from 0 to HASH - 1, the same in every version and on every machine."""
    value = pl.col(column).cast(pl.UInt64) * 2_654_435_761 + seed % HASH * 40_503
    for factor, shift in ((2_246_822_519, 2**15), (3_266_489_917, 2**13)):
        value = value % HASH
        value = (value ^ (value // shift)) * factor
    return value % HASH
