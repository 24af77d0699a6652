"""What the class hierarchy says about the classes of a level: which lies above which, and which below a coarse one."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from oid import paths
from oid.annotations import read_class_descriptions
from oid.hierarchy import Hierarchy, read_hierarchy


@dataclasses.dataclass(frozen=True)
class CoarseClasses:
    """The classes of the full hierarchy that have classes of a level below them, in the hierarchy's order.

    They are the same for every split: which of them occur does not matter.

    Attributes:
        labels: of the coarse classes; some may be classes of the level themselves.
        names: of the same, the label where the data set has no name for it.
        below: float32 `(coarse, classes)`, `[k, c]` is 1 where class c of the level lies below coarse class k.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]
    below: np.ndarray


def ancestor_matrix(dataset_path: str | Path, labels: list[str]) -> np.ndarray | None:
    """Which class lies above which: float32 `(classes, classes)`, `[c, a]` is 1 where `a` is a proper ancestor of `c`.

    None where the data set has no hierarchy, or no class lies above another: there is nothing to spare.

    Args:
        dataset_path: DATASET, with the hierarchy among its annotations.
        labels: of the classes, in the order of the network's outputs.

    Raises:
        InputError: the hierarchy is damaged.
    """
    hierarchy = _hierarchy(dataset_path)
    if hierarchy is None:
        return None
    matrix = _above(hierarchy, labels, labels)
    return matrix if matrix.any() else None


def coarse_classes(dataset_path: str | Path, labels: list[str]) -> CoarseClasses | None:
    """The classes above those of a level; None where the data set has no hierarchy.

    Args:
        dataset_path: as `ancestor_matrix` takes it.
        labels: likewise.

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
