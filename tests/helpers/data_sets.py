"""Data sets in memory, for tests that need no files of a01, and their batches."""

from pathlib import Path

import numpy as np

from training.data_set import Boxes, DataSet
from training.options import ImageOptions, LabelOptions, Recipe
from training.verified_labels import LabelRulesInForce


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
        verified=np.zeros((0, 2), "int32"),
        missing=[],
    )


def make_batches(data: DataSet, *, kind: type | None = None, **changes):
    """The batches of a data set for a network of 64 pixels.

    Args:
        data: the images.
        kind: a subclass of `training.batches.Batches`.
        changes: arguments of `Batches`, or fields of its recipe, label or image options.
    """
    from training.batches import Batches

    groups = {"recipe": Recipe, "labels": LabelOptions, "images": ImageOptions}
    arguments = {"image_size": 64, "batch_size": 5, "num_classes": 3, "seed": 0, "cache_bytes": 2**30, "report": print}
    arguments["rules"] = changes.pop("rules", LabelRulesInForce())
    for name, group in groups.items():
        fields = {field: changes.pop(field) for field in set(changes) & set(group.__dataclass_fields__)}
        arguments[name] = group(**fields)
    return (kind or Batches)(data, **arguments | changes)
