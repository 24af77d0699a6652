"""What the boxes of a level are like, and how well anchors cover them: for each class, as a table, and for all."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from oid.anchors.clusters import COVERED, cluster_sizes
from oid.anchors.coverage import best_ious, weighted_mean, weighted_quantiles
from oid.anchors.sampled_boxes import SampledBoxes
from oid.files import replacing

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True)
class AnchorSet:
    """Anchors with a name for tables and plots.

    Attributes:
        name: "square", "official", a file's, or "k-means".
        settings: the description that `oid.anchors.grids.make_anchors` takes.
    """

    name: str
    settings: dict[str, object]

    @property
    def per_cell(self) -> int:
        """How many anchors each cell has."""
        return len(self.settings["sizes"][0])


@dataclass(frozen=True)
class Coverage:
    """The boxes of a split and their best IoU with each of several anchor sets, by the set's position.

    Attributes:
        split: "train" or "validation".
        boxes: drawn from a01's file.
        ious: float64 `(n,)` for each set.
    """

    split: str
    boxes: SampledBoxes
    ious: tuple[np.ndarray, ...]

    def share(self, number: int, chosen: np.ndarray | None = None) -> float:
        """Of all boxes, or of the `chosen` ones, the share that a set covers."""
        covered, weights = self.ious[number] >= COVERED, self.boxes.weights
        return weighted_mean(covered, weights) if chosen is None else weighted_mean(covered[chosen], weights[chosen])

    def class_shares(self, number: int) -> np.ndarray:
        """For each class the share of its boxes that a set covers, NaN where it has none: float64 `(classes,)`."""
        covered = np.bincount(self.boxes.classes, self.ious[number] >= COVERED, len(self.boxes.counts))
        with np.errstate(invalid="ignore"):
            return covered / self.boxes.sampled


def measure(split: str, boxes: SampledBoxes, sets: Sequence[AnchorSet]) -> Coverage:
    """Finds the best IoU of each box with each set."""
    return Coverage(split, boxes, tuple(best_ious(boxes.boxes, anchors.settings) for anchors in sets))


def clustered(
    boxes: SampledBoxes, sides: Sequence[int], counts: Sequence[int], seed: int
) -> dict[int, list[list[list[float]]]]:
    """Sizes by k-means for several numbers of anchors per cell; those for which there are too few boxes are absent.

    Args:
        boxes: what the anchors shall cover.
        sides: of the maps.
        counts: anchors per cell.
        seed: see `cluster_sizes`.
    """
    found = {}
    for count in counts:
        sizes = cluster_sizes(boxes.boxes, boxes.weights, sides=list(sides), anchors_per_cell=count, seed=seed)
        if sizes is not None:
            found[count] = sizes
    return found


def class_table(
    coverages: Sequence[Coverage], names: dict[str, str], before: int, after: int | None, image_size: int
) -> pl.DataFrame:
    """A row for each split and class, those that the set `before` covers worst first, those without boxes last.

    Args:
        coverages: of the splits.
        names: {label: name}, in the order of the classes.
        before, after: two of the sets; None = there is no second.
        image_size: side of the network's square; widths and heights are in its pixels.
    """
    tables = []
    for coverage in coverages:
        boxes = coverage.boxes
        order = np.argsort(boxes.classes, kind="stable")
        ends = np.cumsum(boxes.sampled)
        sizes = boxes.sizes * image_size
        rows = [order[end - count : end] for end, count in zip(ends, boxes.sampled, strict=True)]
        medians = np.array([np.median(sizes[row], axis=0) if len(row) else (np.nan, np.nan) for row in rows])
        columns = {
            "split": [coverage.split] * len(names),
            "label": list(names),
            "name": list(names.values()),
            "boxes": boxes.counts,
            "drawn": boxes.sampled,
            "median_width": medians[:, 0],
            "median_height": medians[:, 1],
        }
        for number, word in ((before, ""), (after, "_kmeans")):
            ious = coverage.ious[number] if number is not None else np.full(len(boxes.classes), np.nan)
            shares = coverage.class_shares(number) if number is not None else np.full(len(names), np.nan)
            means = [np.mean(ious[row]) if len(row) else np.nan for row in rows]
            columns |= {f"covered{word}": shares, f"mean_iou{word}": means}
        table = pl.DataFrame(columns).with_columns(pl.col(pl.Float64).fill_nan(None).round(4))
        tables.append(table.sort("covered", "boxes", descending=[False, True], nulls_last=True, maintain_order=True))
    return pl.concat(tables)


def write_class_table(path: str | os.PathLike, table: pl.DataFrame) -> None:
    """Writes what `class_table` made, all or nothing."""
    with replacing(path) as temporary:
        table.write_csv(temporary)


def percentiles(values: np.ndarray, weights: np.ndarray) -> list[float]:
    """`PERCENTILES` of weighted values."""
    return weighted_quantiles(values, weights, np.asarray(PERCENTILES) / 100).tolist()


def size_rows(boxes: SampledBoxes, image_size: int) -> list[tuple[str, list[float]]]:
    """Percentiles of the boxes' width, height, side of a square of their area, in pixels, and of width / height."""
    width, height = (boxes.sizes * image_size).T
    values = {
        "box width, pixels": width,
        "box height, pixels": height,
        "square root of the area, pixels": np.sqrt(width * height),
        "box width / height": width / height,
    }
    weights = boxes.weights
    return [(name, percentiles(column, weights)) for name, column in values.items()]


def image_rows(image_sizes: pl.DataFrame) -> list[tuple[str, list[float]]]:
    """Percentiles of the images' width and height in pixels, and of their ratio."""
    width, height = image_sizes.select("width", "height").to_numpy().T.astype("float64")
    weights = np.ones(len(width))
    values = {"image width, pixels": width, "image height, pixels": height, "image width / height": width / height}
    return [(name, percentiles(column, weights)) for name, column in values.items()]
