"""Which of Open Images' rules hold for the labels of a training, and what the class hierarchy says about them."""

import dataclasses
from pathlib import Path

import numpy as np

from oid import layout
from oid.hierarchy import read_hierarchy
from training.data_set import DataSet


@dataclasses.dataclass(frozen=True)
class LabelRules:
    """The rules that are in force.

    Attributes:
        verified: no gradient for a class that is not verified in an image.
        regions: none in ignored regions.
        ancestors: none against a class above a box's own, see `ancestor_matrix`; None = not in force.
    """

    verified: bool
    regions: bool
    ancestors: np.ndarray | None


def in_force(flags: dict, labels: list[str], train: DataSet) -> LabelRules:
    """Of the rules that a03's flags ask for those that this data can follow; prints them, and why the others cannot.

    Args:
        flags: a03's.
        labels: of the classes, in the order of the network's outputs.
        train: the training data.
    """
    asked = flags["label_rules"]
    verified = "verified" in asked and train.has_image_labels
    ancestors = ancestor_matrix(flags["dataset_path"], labels) if "ancestors" in asked else None
    without = {"verified": not verified, "ancestors": ancestors is None}
    rules = [rule for rule in asked if not without.get(rule)]
    print(f"label rules: {', '.join(rules) or 'none'}")
    if "verified" in asked and not verified:
        print("a01 found no image-level labels: a class without a box in an image counts as absent there")
    if "ancestors" in asked and ancestors is None:
        print("no class of this level lies above another in the hierarchy: there are no ancestors to spare")
    return LabelRules(verified=verified, regions="regions" in asked, ancestors=ancestors)


def ancestor_matrix(dataset_path: str | Path, labels: list[str]) -> np.ndarray | None:
    """Which class lies above which: float32 `(classes, classes)`, `[c, a]` is 1 where `a` is a proper ancestor of `c`.

    None where the data set has no hierarchy, or no class lies above another: there is nothing to spare.

    Args:
        dataset_path: DATASET, with the hierarchy among its annotations.
        labels: of the classes, in the order of the network's outputs.

    Raises:
        InputError: the hierarchy is damaged.
    """
    path = layout.annotation_file(dataset_path, layout.HIERARCHY)
    if not path.is_file():
        return None
    hierarchy = read_hierarchy(path)
    index = {label: position for position, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)), "float32")
    for label in labels:
        if label in hierarchy:
            above = [index[ancestor] for ancestor in hierarchy.ancestors(label) if ancestor in index]
            matrix[index[label], above] = 1.0
    return matrix if matrix.any() else None
