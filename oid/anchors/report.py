"""How well anchors cover the boxes of a level, those of k-means included: for each class, as a table, and for all."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from oid.anchors.clusters import cluster_sizes
from oid.anchors.coverage import COVERED, best_ious
from oid.anchors.grids import AnchorGrids, grids_of_sizes
from oid.anchors.sampled_boxes import SampledBoxes
from oid.files import replacing

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
PER_CELL = (1, 2, 3, 6)  # numbers of anchors that k-means is always tried with

Percentiles = list[tuple[str, list[float]]]  # the name of a quantity, and its PERCENTILES


@dataclass(frozen=True)
class AnchorSet:
    """Anchors with a name for tables and plots."""

    name: str  # "square", "official", a file's, or "k-means"
    grids: AnchorGrids

    @property
    def title(self) -> str:
        """The name with the number of anchors."""
        return f"{self.name}, {self.grids.per_cell} per cell"


@dataclass(frozen=True)
class Coverage:
    """The boxes of a split, and their best IoU with each of several anchor sets."""

    split: str
    boxes: SampledBoxes
    ious: tuple[np.ndarray, ...]  # float64 (N,) for each set

    def share(self, number: int) -> float:
        """The share of the boxes that a set covers, by its position."""
        return float(np.average(self.ious[number] >= COVERED, weights=self.boxes.weights))

    def class_shares(self, number: int) -> np.ndarray:
        """For each class the share of its boxes that a set covers, NaN without boxes: float64 `(classes,)`."""
        covered = np.bincount(self.boxes.classes, self.ious[number] >= COVERED, len(self.boxes.counts))
        with np.errstate(invalid="ignore"):
            return covered / self.boxes.sampled


@dataclass(frozen=True)
class LevelReport:
    """The boxes of a level, and how well anchors cover them."""

    level: str
    coverages: Sequence[Coverage]  # of its splits
    sets: Sequence[AnchorSet]  # in the order of `Coverage.ious`
    clusters: int | None  # position of the set by k-means with the wanted number of anchors; None: too few boxes
    classes: pl.DataFrame  # see `class_table`

    @property
    def compared(self) -> list[int]:
        """Positions of the first set, and of the set by k-means."""
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
        samples: {split: boxes}; k-means learns from the first.
        names: {label: name} of the classes.
        sets: the first is compared with k-means.
        per_cell: wanted number of anchors by k-means per cell; PER_CELL are tried as well.
        seed: of k-means.
    """
    boxes, sides, sets, clusters = next(iter(samples.values())), list(sets[0].grids.sides), [*sets], None
    for count in sorted({per_cell, *PER_CELL}):
        sizes = cluster_sizes(boxes.boxes, boxes.weights, sides=sides, anchors_per_cell=count, seed=seed)
        if sizes is not None:
            clusters = len(sets) if count == per_cell else clusters
            sets.append(AnchorSet("k-means", grids_of_sizes(sizes, sides)))
    coverages = [
        Coverage(split, boxes, tuple(best_ious(boxes.boxes, anchors.grids) for anchors in sets))
        for split, boxes in samples.items()
    ]
    return LevelReport(level, coverages, sets, clusters, class_table(coverages, names, clusters))


def class_table(coverages: Sequence[Coverage], names: dict[str, str], clusters: int | None) -> pl.DataFrame:
    """A row for each split and class; in each split the classes that the first set covers worst come first.

    `names` is {label: name}; `clusters` is the position of a second set, None if there is none.
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
        measured = of_boxes.agg(pl.col(*sizes).median(), pl.col(*shares).mean())
        table = pl.DataFrame(classes).join(measured, on="class", how="left", maintain_order="left")
        table = table.drop("class").with_columns(pl.col(pl.Float64).fill_nan(None).round(4))
        tables.append(table.sort("covered", "boxes", descending=[False, True], nulls_last=True, maintain_order=True))
    return pl.concat(tables)


def write_anchor_file(path: str | os.PathLike, report: LevelReport, seed: int) -> None:
    """Writes the anchors by k-means as `m2det_anchors` reads them, or removes the file of an earlier run."""
    if report.clusters is None:
        Path(path).unlink(missing_ok=True)
        return
    chosen, coverage = report.sets[report.clusters], report.coverages[0]
    source = f"a02_find_image_parameters.py, k-means over {coverage.split} of level {report.level}, seed {seed}"
    content = {
        "made_by": source,
        "image_size": coverage.boxes.image_size,
        "resize": coverage.boxes.resize,
        "scales": len(chosen.grids.sizes),
        "anchors_per_cell": chosen.grids.per_cell,
        "covered": {report.sets[number].name: round(coverage.share(number), 4) for number in report.compared},
        "sizes": chosen.grids.sizes,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def percentiles(kind: str, sizes: np.ndarray, weights: np.ndarray | None = None) -> Percentiles:
    """Percentiles of widths, heights, their geometric means, and aspect ratios.

    Args:
        kind: "box" or "image".
        sizes: `(N, 2)`, widths and heights in pixels.
        weights: `(N,)`, how often each counts; None = once.
    """
    width, height = sizes.astype("float64").T
    quantities = {"width, pixels": width, "height, pixels": height, "width / height": width / height}
    quantities["square root of the area, pixels"] = np.sqrt(width * height)
    how = {"weights": np.ones(len(sizes)) if weights is None else weights, "method": "inverted_cdf"}
    return [(f"{kind} {name}", np.percentile(q, PERCENTILES, **how).tolist()) for name, q in quantities.items()]
