"""What a box or an image label means for the classes of a level of the class hierarchy; a01 has the rules in words.

The rules work on *kinds* of rows (`oid.levels.rows`). Labels are of a polars type that knows every one: the kept
classes come first, in the order of the network's outputs, then the excluded ones.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from oid.hierarchy import Hierarchy

REASONS = ("group_of", "excluded_class", "ancestor_class")  # of the first two the first that applies


@dataclass(frozen=True)
class Classes:
    """The kept classes and their places.

    Attributes:
        names: {label: name} of the kept classes, in the order of the description file.
        hierarchy: the full one, excluded classes included.
        labels: every known label as a polars type whose order is that of `names`, then of the hierarchy.
    """

    names: dict[str, str]
    hierarchy: Hierarchy
    labels: pl.Enum

    def above(self, label: str) -> tuple[str, ...]:
        """The ancestors in the full hierarchy."""
        return self.hierarchy.ancestors(label) if label in self.hierarchy else ()

    def below(self, label: str) -> tuple[str, ...]:
        """The descendants in the full hierarchy."""
        return self.hierarchy.descendants(label) if label in self.hierarchy else ()

    @cached_property
    def heights(self) -> dict[str, str]:
        """{label: level} of the kept classes in the hierarchy contracted to them; 1 for those that it lacks."""
        contracted = self.hierarchy.contract(self.names)
        return {label: str(contracted.height(label)) if label in contracted else "1" for label in self.names}


class Meaning:
    """What each kind of row becomes: for every kind any number of entries.

    Attributes:
        starts: [kinds + 1] where the entries of each kind begin.
        classes: [entries] the class as index of a label; with the reason ancestor_class that of the box itself.
        reasons: [entries] index in REASONS; 0 where there are none.
    """

    def __init__(self, kinds: int, entries: pl.DataFrame):
        """Takes `kind`, `class` and perhaps `Reason`, sorted by kind and class."""
        self.starts = np.searchsorted(entries["kind"].to_numpy(), np.arange(kinds + 1))
        self.classes = entries["class"].to_physical().to_numpy().astype(np.uint32)
        reasons = entries["Reason"].to_physical() if "Reason" in entries.columns else pl.zeros(len(entries), eager=True)
        self.reasons = reasons.to_numpy().astype(np.uint32)

    def counts(self) -> np.ndarray:
        """[kinds] how many entries each has."""
        return np.diff(self.starts)

    def of(self, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The entries of rows of these kinds, row by row: index of the row, index of the entry."""
        counts = self.counts()[kind]
        row = np.repeat(np.arange(len(kind), dtype=np.uint32), counts)
        before = np.cumsum(counts) - counts  # entries of earlier rows
        return row, np.arange(len(row)) + (self.starts[kind] - before)[row]


def pairs(
    classes: Classes, level_labels: Iterable[str], related: Callable[[str], tuple[str, ...]], *, itself: bool
) -> pl.DataFrame:
    """Every known `label` with each `class` of the level among `related(label)` (and `label` itself where asked)."""
    level_labels = set(level_labels)
    rows = [
        (label, found)
        for label in classes.labels.categories
        for found in ((label,) if itself else ()) + related(label)
        if found in level_labels
    ]
    return pl.DataFrame(rows, schema={"label": classes.labels, "class": classes.labels}, orient="row")


def mean_boxes(classes: Classes, labels: list[str], kinds: pl.DataFrame) -> Meaning:
    """The ordinary boxes of kept classes, once for each class of the level that is their own or above."""
    upward = pairs(classes, labels, classes.above, itself=True)
    return Meaning(
        len(kinds), first_of_each(kinds.filter(~pl.col("group_of"), is_kept(classes)).join(upward, on="label"))
    )


def mean_regions(classes: Classes, labels: list[str], kinds: pl.DataFrame) -> Meaning:
    """What must give no gradient: one entry for each rectangle and class, with the first reason that applies, and one
    for each rectangle whose own class, which the entry has, stands for the level's classes below it."""
    upward = pairs(classes, labels, classes.above, itself=True)
    coarse = pairs(classes, labels, classes.below, itself=False).select("label").unique()
    group_of = kinds.filter("group_of", is_kept(classes)).join(upward, on="label")
    excluded = kinds.filter(~is_kept(classes)).join(upward, on="label")
    ambiguous = without_repeated_ancestors(classes, kinds).join(coarse, on="label", how="semi")
    ambiguous = ambiguous.with_columns(pl.col("label").alias("class"))
    reasons = zip(REASONS, (group_of, excluded, ambiguous), strict=True)
    *single, below = (rows.with_columns(Reason=pl.lit(reason, pl.Enum(REASONS))) for reason, rows in reasons)
    found = first_of_each(pl.concat(single)), first_of_each(below)
    return Meaning(len(kinds), pl.concat(found, how="diagonal").sort("kind", "class", "Reason"))


def mean_image_labels(classes: Classes, labels: list[str], kinds: pl.DataFrame) -> Meaning:
    """Positive labels for all ancestors, negative ones for all descendants."""
    rows = [
        kinds.filter("positive").join(pairs(classes, labels, classes.above, itself=True), on="label"),
        kinds.filter(~pl.col("positive")).join(pairs(classes, labels, classes.below, itself=True), on="label"),
    ]
    return Meaning(len(kinds), pl.concat(rows).sort("kind", "class"))


def without_repeated_ancestors(classes: Classes, kinds: pl.DataFrame) -> pl.DataFrame:
    """Leaves out the boxes on whose rectangle another box has a class below theirs."""
    shared = kinds.filter(pl.len().over("rectangle") > 1)
    above = pairs(classes, classes.labels.categories, classes.above, itself=False)
    described = shared.join(above, on="label").select("rectangle", label="class").unique()
    return kinds.join(described, on=["rectangle", "label"], how="anti")


def first_of_each(rows: pl.DataFrame) -> pl.DataFrame:
    """Of rows with equal rectangle and class the one with the first reason, then kind; sorted by kind and class."""
    by_reason = ["Reason"] if "Reason" in rows.columns else []
    rows = rows.sort(*by_reason, "kind").unique(["rectangle", "class"], keep="first", maintain_order=True)
    return rows.sort("kind", "class")


def is_kept(classes: Classes) -> pl.Expr:
    """Whether a label is a kept class, by its place in the order of labels."""
    return pl.col("label").to_physical() < len(classes.names)
