"""Data sets in memory, for tests that need no files of a01."""

from pathlib import Path

import numpy as np

from training.data_set import Boxes, DataSet


def data_set_of(objects, regions=None, *, depiction=None, path: Path = Path("none.png")) -> DataSet:
    """A data set of images with these boxes.

    Args:
        objects: for each image its rows `(label, xmin, ymin, xmax, ymax)`.
        regions: the same for ignored regions; none by default.
        depiction: for each region of all images whether it is a depiction; the others are groups.
        path: the picture of every image.
    """

    def boxes(lists) -> Boxes:
        rows = np.array([row for rows in lists for row in rows], "float32").reshape(-1, 5)
        return Boxes(np.cumsum([0, *map(len, lists)]), rows[:, 1:], rows[:, 0].astype("int32"))

    found = boxes(regions or [[]] * len(objects))
    depiction = np.array([False] * len(found.labels) if depiction is None else depiction, bool)
    return DataSet(
        image_ids=[str(index) for index in range(len(objects))],
        paths=[path] * len(objects),
        objects=boxes(objects),
        regions=found,
        group_of=~depiction,
        depiction=depiction,
        verified=np.zeros((0, 2), "int64"),
        has_image_labels=False,
        missing=0,
    )
