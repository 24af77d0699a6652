"""What the class hierarchy says about the labels of a training."""

from pathlib import Path

import numpy as np

from oid import layout
from oid.hierarchy import read_hierarchy


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
