"""The rules of Open Images for labels: which of them a data set can follow, and what the class hierarchy says."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from oid import paths
from oid.annotations import read_class_descriptions
from oid.hierarchy import Hierarchy, read_hierarchy
from training.options import LabelRule

if TYPE_CHECKING:  # which imports this module
    from training.data_set import DataSet

IgnoredRegions = Literal["all", "depictions", "none"]


@dataclasses.dataclass(frozen=True)
class LabelRulesInForce:
    """The label rules of a training.

    Attributes:
        verified: a class that is not verified in an image gives no gradient there.
        regions: the regions in which classes give no gradient: "all" ignored regions, only "depictions", or "none".
            With the first two the rest of an object that an image cuts off is such a region, too.
        ancestors: float32 `(classes, classes)`, see `ancestor_matrix`: they give no gradient on a box of the class
            below; None = not in force.
        region_classes: see `training.data_set.DataSet`; None = a region's label is the class itself.
    """

    verified: bool = False
    regions: IgnoredRegions = "all"
    ancestors: np.ndarray | None = None
    region_classes: np.ndarray | None = None


def rules_in_force(
    rules: Sequence[LabelRule], dataset_path: str | Path, labels: list[str], data: "DataSet"
) -> tuple[LabelRulesInForce, list[str]]:
    """Returns those of the wanted rules that the data can follow, and sentences about them.

    Args:
        rules: that are wanted.
        dataset_path: DATASET, with the hierarchy among its annotations.
        labels: of the classes, in the order of the network's outputs.
        data: the training data.

    Raises:
        InputError: the hierarchy is damaged.
    """
    verified = "verified" in rules and len(data.verified) > 0
    ancestors = ancestor_matrix(dataset_path, labels) if "ancestors" in rules else None
    regions = "all" if "regions" in rules else "depictions" if "depictions" in rules else "none"
    impossible = {"verified": not verified, "ancestors": ancestors is None}
    followed = [rule for rule in rules if not impossible.get(rule)]
    sentences = [f"label rules: {', '.join(followed) or 'none'}"]
    if "verified" in rules and not verified:
        sentences.append("a01 found no image-level labels: a class without a box in an image counts as absent there")
    if "ancestors" in rules and ancestors is None:
        sentences.append("no class of this level lies above another in the hierarchy: there are no ancestors to spare")
    region_classes = None if regions == "none" else data.region_classes
    return LabelRulesInForce(verified, regions, ancestors, region_classes), sentences


# === The class hierarchy =============================================================================================
@dataclasses.dataclass(frozen=True)
class CoarseClasses:
    """The classes of the full hierarchy that have classes of a level below them, in the hierarchy's order.

    Attributes:
        labels: of the coarse classes; some may be classes of the level themselves.
        names: the same as names; the label where the data set has no name for it.
        below: float32 `(coarse, classes)`, `[k, c]` is 1 where class c of the level lies below coarse class k.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]
    below: np.ndarray


def coarse_classes(dataset_path: str | Path, labels: list[str]) -> CoarseClasses | None:
    """Returns the classes above those of a level; None where the data set has no hierarchy.

    Raises:
        InputError: the hierarchy or the class descriptions are damaged.
    """
    hierarchy = _hierarchy(dataset_path)
    if hierarchy is None:
        return None
    below = _above(hierarchy, labels, hierarchy.labels).T
    found = np.flatnonzero(below.any(axis=1))
    coarse = tuple(hierarchy.labels[k] for k in found)
    descriptions = paths.annotation_file(dataset_path, paths.CLASS_DESCRIPTIONS)
    names = read_class_descriptions(descriptions) if descriptions.is_file() else {}
    return CoarseClasses(coarse, tuple(names.get(label, label) for label in coarse), below[found])


def ancestor_matrix(dataset_path: str | Path, labels: list[str]) -> np.ndarray | None:
    """Returns float32 `(classes, classes)`: `[c, a]` is 1 where class `a` is a proper ancestor of class `c`.

    None where the data set has no hierarchy, or no class lies above another.

    Raises:
        InputError: the hierarchy is damaged.
    """
    hierarchy = _hierarchy(dataset_path)
    matrix = None if hierarchy is None else _above(hierarchy, labels, labels)
    return matrix if matrix is not None and matrix.any() else None


def _hierarchy(dataset_path: str | Path) -> Hierarchy | None:
    path = paths.annotation_file(dataset_path, paths.HIERARCHY)
    return read_hierarchy(path) if path.is_file() else None


def _above(hierarchy: Hierarchy, labels: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """Float32 `(labels, others)`, 1 where the other is a proper ancestor of the label."""
    index = {label: position for position, label in enumerate(others)}
    matrix = np.zeros((len(labels), len(others)), "float32")
    for row, label in enumerate(labels):
        if label in hierarchy:
            matrix[row, [index[ancestor] for ancestor in hierarchy.ancestors(label) if ancestor in index]] = 1.0
    return matrix
