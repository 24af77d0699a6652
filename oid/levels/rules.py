"""What a box or an image label means for the classes of a level.

Classes. Kept are the challenge file's classes, or without that file all described ones, in the order of the file. The
  user may name a part of them. All other known classes are "excluded". Ancestors are those of the full hierarchy; a
  class outside it has none. Rows of unknown labels are dropped and counted.
Levels. A level is a height in the hierarchy of the kept classes, in which the children of a dropped class move up: a
  leaf has height 1, another class 1 more than its highest child. `all` has every kept class, `rare` those with fewer
  than `rare_below` training boxes. Classes with fewer than `min_boxes` are left out. What counts is the number of
  training boxes that are written; validation files have the same classes.
Boxes. A box is written for its own class and each ancestor, if these are in the level. Boxes with equal image, class
  and coordinates (as numbers) are written once, as the first of them. Order: the rows of the source, then the classes.
Ignored regions. Inside a region a class gets no gradient. Order: the rows of the source, then the labels.
  group_of        A box with IsGroupOf 1 is a region of its class and each ancestor in the level.
  excluded_class  A box of an excluded class is a region of each ancestor in the level. An image, class and rectangle
                  has one row for these two reasons, with the first that applies.
  ancestor_class  A box of `Fruit` may be an apple: it is a region of all classes of the level below LabelName, which
                  itself need not be in the level. An image, label and rectangle has one such row. It has none if no
                  class of the level is below, or if an equal box of the image has a class below the label.
Image labels. A positive label counts for all ancestors, a negative one for all descendants. An image and class has one
  row; positive wins against negative. Boxes add no image labels: readers take the union.
Negatives. An image with an image label of the level, but without box and region, is a row with only its ImageID.

Each function takes the patterns of rows (`oid.levels.rows`) and returns what each pattern becomes: a frame with a
`pattern` and a `LabelName` (Enum of all known labels) in every row, sorted by these two columns. A pattern may become
several classes, or none.
"""

import math
from collections.abc import Callable, Iterable

import polars as pl

from oid.files import InputError
from oid.levels.classes import Classes
from oid.levels.rows import Rows

REASONS = ("group_of", "excluded_class", "ancestor_class")  # of the first two, the first that applies is written


def find_boxes(classes: Classes, level_labels: Iterable[str], patterns: pl.DataFrame) -> pl.DataFrame:
    """Ordinary boxes of kept classes, for each class of the level that is their own or above it."""
    upward = _related(classes, level_labels, classes.hierarchy.ancestors, itself=True)
    ordinary = patterns.filter(~pl.col("group_of"), _is_kept(classes))
    return _first_of_each(ordinary.join(upward, on="label")).select("pattern", "LabelName")


def find_regions(classes: Classes, level_labels: Iterable[str], patterns: pl.DataFrame) -> pl.DataFrame:
    """What must give no gradient, with its `Reason` (Enum of REASONS); LabelName need not be a class of the level."""
    upward = _related(classes, level_labels, classes.hierarchy.ancestors, itself=True)
    group_of = patterns.filter("group_of", _is_kept(classes)).join(upward, on="label")
    excluded = patterns.filter(~_is_kept(classes)).join(upward, on="label")
    has_classes_below = (
        _related(classes, level_labels, classes.hierarchy.descendants, itself=False).select("label").unique()
    )
    ambiguous = _without_known_descendants(classes, patterns).join(has_classes_below, on="label", how="semi")
    ambiguous = ambiguous.with_columns(LabelName="label")
    reasons = zip(REASONS, (group_of, excluded, ambiguous), strict=True)
    *single, ambiguous = (rows.with_columns(Reason=pl.lit(reason, pl.Enum(REASONS))) for reason, rows in reasons)
    regions = pl.concat([_first_of_each(pl.concat(single)), _first_of_each(ambiguous)], how="diagonal")
    return regions.sort("pattern", "LabelName", "Reason").select("pattern", "LabelName", "Reason")


def find_image_labels(classes: Classes, level_labels: Iterable[str], patterns: pl.DataFrame) -> pl.DataFrame:
    """Positive labels for all ancestors, negative ones for all descendants; `positive` (Boolean) tells which."""
    upward = _related(classes, level_labels, classes.hierarchy.ancestors, itself=True)
    downward = _related(classes, level_labels, classes.hierarchy.descendants, itself=True)
    positive = patterns.filter("positive").join(upward, on="label")
    negative = patterns.filter(~pl.col("positive")).join(downward, on="label")
    return pl.concat([positive, negative]).sort("pattern", "LabelName").select("pattern", "LabelName", "positive")


def choose_by_boxes(
    classes: Classes, levels: dict[str, list[str]], train: Rows, min_boxes: int, rare_below: int
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Divides the classes of each level by their number of training boxes, counted as they are written.

    Returns:
        {level: classes with `min_boxes` or more, and fewer than `rare_below` in level "rare"}, and
        {level: classes with fewer than `min_boxes`}.

    Raises:
        InputError: the first list of a level is empty.
    """
    chosen, left_out = {}, {}
    for level, labels in levels.items():
        found = find_boxes(classes, labels, train.patterns).join(train.counts, on="pattern")
        counts = dict.fromkeys(labels, 0) | dict(found.group_by("LabelName").agg(pl.col("count").sum()).iter_rows())
        limit = rare_below if level == "rare" else math.inf
        chosen[level] = [label for label in labels if min_boxes <= counts[label] < limit]
        left_out[level] = [label for label in labels if counts[label] < min_boxes]
        if not chosen[level]:
            wanted = f"{min_boxes} or more" + (f" and fewer than {rare_below}" if level == "rare" else "")
            none = f"none of its {len(labels)} classes has {wanted} training boxes"
            raise InputError(f"level {level}: {none}: leave it out")
    return chosen, left_out


def _related(
    classes: Classes, level_labels: Iterable[str], relation: Callable[[str], tuple[str, ...]], *, itself: bool
) -> pl.DataFrame:
    """Returns every known `label` with each `LabelName` of the level among `relation(label)`, or equal to it."""
    level_labels = set(level_labels)
    rows = [
        (label, found)
        for label in classes.labels.categories
        for found in ((label,) if itself else ()) + relation(label)
        if found in level_labels
    ]
    return pl.DataFrame(rows, schema={"label": classes.labels, "LabelName": classes.labels}, orient="row")


def _without_known_descendants(classes: Classes, patterns: pl.DataFrame) -> pl.DataFrame:
    """Leaves out boxes whose rectangle has another box with a class below theirs, because that says what they are."""
    shared = patterns.filter(pl.len().over("rectangle") > 1)
    above = _related(classes, classes.labels.categories, classes.hierarchy.ancestors, itself=False)
    described = shared.join(above, on="label").select("rectangle", label="LabelName").unique()
    return patterns.join(described, on=["rectangle", "label"], how="anti")


def _first_of_each(rows: pl.DataFrame) -> pl.DataFrame:
    """Keeps one row for each rectangle and class, with the first reason and then the first pattern."""
    order = [*(["Reason"] if "Reason" in rows.columns else []), "pattern"]
    rows = rows.sort(order).unique(["rectangle", "LabelName"], keep="first", maintain_order=True)
    return rows.sort("pattern", "LabelName")


def _is_kept(classes: Classes) -> pl.Expr:
    """Whether `label` is a kept class: these come first in the Enum."""
    return pl.col("label").to_physical() < len(classes.names)
