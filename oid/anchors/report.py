"""How well anchors cover the boxes of a level, those of k-means included: for each class, as a table, and for all."""

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from oid.anchors.clusters import cluster_sizes
from oid.anchors.coverage import COVERED, best_ious, weighted_mean, weighted_quantiles
from oid.anchors.grids import anchors_per_cell, settings_of_sizes
from oid.anchors.sampled_boxes import SampledBoxes
from oid.files import replacing

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
PER_CELL = (1, 2, 3, 6)  # numbers of anchors that k-means is always tried with

Percentiles = list[tuple[str, list[float]]]  # the name of a quantity, and its PERCENTILES


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
        return anchors_per_cell(self.settings)

    @property
    def title(self) -> str:
        """The name with the number of anchors."""
        return f"{self.name}, {self.per_cell} per cell"


@dataclass(frozen=True)
class Coverage:
    """The boxes of a split, and their best IoU with each of several anchor sets.

    Attributes:
        split: "train" or "validation".
        boxes: drawn from a01's file.
        ious: float64 `(N,)` for each set.
    """

    split: str
    boxes: SampledBoxes
    ious: tuple[np.ndarray, ...]

    def share(self, number: int) -> float:
        """The share of the boxes that a set covers, by its position."""
        return weighted_mean(self.ious[number] >= COVERED, self.boxes.weights)

    def class_shares(self, number: int) -> np.ndarray:
        """For each class the share of its boxes that a set covers, NaN without boxes: float64 `(classes,)`."""
        covered = np.bincount(self.boxes.classes, self.ious[number] >= COVERED, len(self.boxes.counts))
        with np.errstate(invalid="ignore"):
            return covered / self.boxes.sampled


@dataclass(frozen=True)
class LevelReport:
    """The boxes of a level, and how well anchors cover them.

    Attributes:
        level: its name.
        coverages: of its splits.
        sets: anchor sets, in the order of `Coverage.ious`; the first is compared with k-means.
        clusters: position of the set by k-means with the wanted number of anchors; None if there are too few boxes.
        classes: see `class_table`.
    """

    level: str
    coverages: Sequence[Coverage]
    sets: Sequence[AnchorSet]
    clusters: int | None
    classes: pl.DataFrame

    @property
    def compared(self) -> list[int]:
        """Positions of the sets that are compared: the first, and that by k-means."""
        return [0] if self.clusters is None else [0, self.clusters]


def report_level(
    level: str,
    samples: dict[str, SampledBoxes],
    names: dict[str, str],
    sets: Sequence[AnchorSet],
    *,
    per_cell: int,
    seed: int,
) -> LevelReport:
    """Finds anchors by k-means, and measures how well they and other sets cover the boxes of a level.

    Args:
        level: its name.
        samples: {split: boxes}; k-means looks at the first.
        names: {label: name} of the classes.
        sets: to be compared with k-means, the most important first.
        per_cell: the number of anchors per cell that k-means is wanted for; it is tried with PER_CELL as well.
        seed: of k-means.
    """
    boxes, sides, sets, clusters = next(iter(samples.values())), sets[0].settings["feature_map_sides"], [*sets], None
    for count in sorted({per_cell, *PER_CELL}):
        sizes = cluster_sizes(boxes.boxes, boxes.weights, sides=sides, anchors_per_cell=count, seed=seed)
        if sizes is not None:
            clusters = len(sets) if count == per_cell else clusters
            sets.append(AnchorSet("k-means", settings_of_sizes(sizes, sides)))
    coverages = []
    for split, boxes in samples.items():
        ious = tuple(best_ious(boxes.boxes, anchors.settings) for anchors in sets)
        coverages.append(Coverage(split, boxes, ious))
    return LevelReport(level, coverages, sets, clusters, class_table(coverages, names, clusters))


def class_table(coverages: Sequence[Coverage], names: dict[str, str], clusters: int | None) -> pl.DataFrame:
    """A row for each split and class, in each split the worst covered by the first set first, those without boxes last.

    Args:
        coverages: of the splits.
        names: {label: name}, in the order of the classes.
        clusters: position of a second set; None = there is none.
    """
    tables = []
    for coverage in coverages:
        boxes, first = coverage.boxes, coverage.ious[0]
        second = np.full(len(first), np.nan) if clusters is None else coverage.ious[clusters]
        sizes = {name: boxes.sizes[:, k] for k, name in enumerate(("median_width", "median_height"))}
        shares = {"covered": first >= COVERED, "mean_iou": first}
        shares |= {"covered_kmeans": np.where(np.isnan(second), np.nan, second >= COVERED), "mean_iou_kmeans": second}
        of_boxes = pl.DataFrame({"class": boxes.classes, **sizes, **shares}).group_by("class")
        classes = {
            "class": np.arange(len(names)),
            "split": [coverage.split] * len(names),
            "label": list(names),
            "name": list(names.values()),
            "boxes": boxes.counts,
            "drawn": boxes.sampled,
        }
        table = pl.DataFrame(classes).join(
            of_boxes.agg(pl.col(*sizes).median(), pl.col(*shares).mean()), on="class", how="left", maintain_order="left"
        )
        table = table.drop("class").with_columns(pl.col(pl.Float64).fill_nan(None).round(4))
        tables.append(table.sort("covered", "boxes", descending=[False, True], nulls_last=True, maintain_order=True))
    return pl.concat(tables)


def write_class_table(path: str | os.PathLike, report: LevelReport) -> None:
    """Writes the table of the classes as CSV, all or nothing."""
    with replacing(path) as temporary:
        report.classes.write_csv(temporary)


def write_anchor_file(path: str | os.PathLike, report: LevelReport, seed: int) -> None:
    """Writes the anchors by k-means as `anchor_settings` reads them, all or nothing. Without them it removes the file
    of an earlier run."""
    if report.clusters is None:
        Path(path).unlink(missing_ok=True)
        return
    chosen, coverage = report.sets[report.clusters], report.coverages[0]
    source = f"k-means over {coverage.split} of level {report.level}, seed {seed}"
    content = {
        "made_by": f"a02_find_image_parameters.py, {source}",
        "image_size": coverage.boxes.image_size,
        "resize": coverage.boxes.resize,
        "scales": len(chosen.settings["sizes"]),
        "anchors_per_cell": chosen.per_cell,
        "covered": {report.sets[number].name: round(coverage.share(number), 4) for number in report.compared},
        "sizes": chosen.settings["sizes"],
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def box_percentiles(boxes: SampledBoxes) -> Percentiles:
    """Of the boxes' width, height and square root of the area, in pixels, and of width / height."""
    width, height = boxes.sizes.T
    quantities = {
        "box width, pixels": width,
        "box height, pixels": height,
        "square root of the area, pixels": np.sqrt(width * height),
        "box width / height": width / height,
    }
    return _percentiles(quantities, boxes.weights)


def image_percentiles(image_sizes: pl.DataFrame) -> Percentiles:
    """Of the images' width and height in pixels, and of width / height; see `read_image_sizes`."""
    width, height = image_sizes.select("width", "height").to_numpy().T.astype("float64")
    quantities = {"image width, pixels": width, "image height, pixels": height, "image width / height": width / height}
    return _percentiles(quantities, np.ones(len(width)))


def _percentiles(quantities: dict[str, np.ndarray], weights: np.ndarray) -> Percentiles:
    of = functools.partial(weighted_quantiles, weights=weights, shares=np.asarray(PERCENTILES) / 100)
    return [(name, of(values).tolist()) for name, values in quantities.items()]
