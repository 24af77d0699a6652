"""Boxes of one of a01's files as the network sees them, in its square image, up to a number for each class."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from oid.annotations import csv_errors, scan_rows
from oid.columns import CORNERS
from oid.files import InputError
from oid.images.letterbox import Resize, boxes_in_square

HASH = 2**32
MOST_PER_CLASS = 5_000  # boxes: 19 of 20 shares are off by 1.4 percentage points at most


@dataclass(frozen=True)
class SampledBoxes:
    """Boxes drawn by seed, up to a number for each class."""

    boxes: np.ndarray  # float64 (N, 4), xyxy, normalised to the network's square
    classes: np.ndarray  # int64 (N,)
    counts: np.ndarray  # int64 (classes,), boxes in the file
    without_size: int  # drawn, but left out because a02's table lacks their image
    without_area: int  # drawn, but left out because they have no area
    image_size: int  # side of the network's square in pixels
    resize: Resize

    @property
    def drawn(self) -> int:
        """Number of drawn boxes, including those left out."""
        return len(self.boxes) + self.without_size + self.without_area

    @property
    def sampled(self) -> np.ndarray:
        """Number of `boxes` of each class: int64 `(classes,)`."""
        return np.bincount(self.classes, minlength=len(self.counts))

    @property
    def weights(self) -> np.ndarray:
        """How many boxes of the file each box represents: float64 `(N,)`."""
        return (self.counts / np.maximum(self.sampled, 1))[self.classes]

    @property
    def sizes(self) -> np.ndarray:
        """Widths and heights in pixels of the square: float64 `(N, 2)`."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]) * self.image_size


def sample_boxes(
    path: str | os.PathLike,
    labels: Sequence[str],
    image_sizes: pl.DataFrame,
    *,
    image_size: int,
    resize: Resize,
    seed: int,
    most_per_class: int = MOST_PER_CLASS,
) -> SampledBoxes:
    """Reads boxes of an annotation file; in a class with more than `most_per_class` each has the same probability.

    Args:
        path: a CSV with the columns of Open Images.
        labels: the classes; other rows are skipped, also those without a label (negative images).
        image_sizes: see `oid.images.table.read_image_sizes`.
        image_size: side of the network's square in pixels.
        resize: how images become square.
        seed: of the draw.
        most_per_class: about how many boxes of a class are drawn.

    Raises:
        InputError: no such file or column, or a coordinate is not a number.
    """
    index = pl.DataFrame({"LabelName": list(labels), "class": np.arange(len(labels), dtype="int32")})
    with csv_errors(path):
        rows = scan_rows(path, ("ImageID", "LabelName", *CORNERS)).filter(pl.col("LabelName").is_not_null())
        found = rows.select("LabelName").join(index.lazy(), on="LabelName").group_by("class").len()
        counts = np.zeros(len(labels), "int64")
        for number, count in found.collect(engine="streaming").iter_rows():
            counts[number] = count
        share = np.minimum(1.0, most_per_class / np.maximum(counts, 1)) * HASH
        index = index.with_columns(below=pl.Series(share.astype("uint64")))
        drawn = rows.join(index.lazy(), on="LabelName").filter(_hashed("line", seed) < pl.col("below"))
        drawn = drawn.join(image_sizes.lazy(), left_on="ImageID", right_on="id", how="left")
        numbers = [pl.col(name).cast(pl.Float64, strict=False) for name in CORNERS]
        table = drawn.select("line", "class", "width", "height", *numbers).collect(engine="streaming")
    table = table.sort("line", "class")
    bad = table.filter(~pl.all_horizontal(pl.col(CORNERS).is_finite()).fill_null(False))
    for line, *_ in bad.head(1).iter_rows():
        raise InputError(f"{path}, line {line}: the coordinates are not four numbers: run a01 again")
    sized = table.filter(pl.col("width").is_not_null())
    boxes = sized.select(CORNERS).to_numpy()
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    if resize == "letterbox":
        width, height = sized.select("width", "height").to_numpy().T.astype("float64")
        boxes = boxes_in_square(boxes, height, width, image_size)
    return SampledBoxes(
        boxes=np.ascontiguousarray(boxes[has_area]),
        classes=sized["class"].to_numpy()[has_area].astype("int64"),
        counts=counts,
        without_size=len(table) - len(sized),
        without_area=len(sized) - int(has_area.sum()),
        image_size=image_size,
        resize=resize,
    )


def _hashed(column: str, seed: int) -> pl.Expr:
    """Maps integers to 0 ... HASH - 1, the same in every version of polars and on every machine."""
    value = pl.col(column).cast(pl.UInt64) * 2_654_435_761 + seed % HASH * 40_503
    for factor, shift in ((2_246_822_519, 2**15), (3_266_489_917, 2**13)):
        value = value % HASH
        value = (value ^ (value // shift)) * factor
    return value % HASH
