"""A hand-made data set in Open Images layout, and a01's files of a level read back, for several test files.

The hierarchy with the heights; wheel is also a part of car, which must not matter:
entity: food 3 (fruit 2 (apple 1, tomato 1), vegetable 2 (tomato 1, carrot 1)), car 1, wheel 1.
"""

import csv
import json
from pathlib import Path

from oid import paths
from oid.annotations import read_class_descriptions
from oid.columns import BOX_COLUMNS, IGNORED_REGION_COLUMNS, IMAGE_LABEL_COLUMNS

TREE = {
    "LabelName": "entity",
    "Subcategory": [
        {
            "LabelName": "food",
            "Subcategory": [
                {"LabelName": "fruit", "Subcategory": [{"LabelName": "apple"}, {"LabelName": "tomato"}]},
                {"LabelName": "vegetable", "Subcategory": [{"LabelName": "tomato"}, {"LabelName": "carrot"}]},
            ],
        },
        {"LabelName": "car", "Part": [{"LabelName": "wheel", "Subcategory": [{"LabelName": "apple"}]}]},
        {"LabelName": "wheel"},
    ],
}
CLASSES = ("wheel", "tomato", "food", "apple", "vegetable", "car", "carrot", "fruit")  # not the hierarchy's order
V6_COLUMNS = (*BOX_COLUMNS, *(f"XClick{i}{axis}" for axis in "XY" for i in (1, 2, 3, 4)))
LEFT, RIGHT, BIG = ("0.1", "0.4", "0.1", "0.5"), ("0.600000", "0.9", "0.1", "0.5"), ("0", "1", "0", "1.0")


def box(image: str, label: str, rectangle: tuple = LEFT, group: str = "0", source: str = "xclick") -> tuple[str, ...]:
    """One row of a box file; the rectangle is XMin, XMax, YMin, YMax."""
    return (image, source, label, "1", *rectangle, "0", "-1", group, "1", "0")


def write_rows(path: Path, header: tuple[str, ...], rows, newline: str = "\n", encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, lineterminator=newline).writerows([header, *rows])


def make_data_set(folder: Path, train, validation=None, train_labels=None, validation_labels=None, **options) -> Path:
    """Writes `DATASET/annotations`; `options`: `challenge` and `classes` (labels), `header` of the box files."""
    annotations = folder / "annotations"
    annotations.mkdir(parents=True)
    (annotations / paths.HIERARCHY).write_text(json.dumps(TREE))
    classes = options.get("classes", CLASSES)
    (annotations / paths.CLASS_DESCRIPTIONS).write_text("".join(f'{label},"{label}, all"\n' for label in classes))
    if "challenge" in options:
        rows = "".join(f"{label},{label.title()}\n" for label in options["challenge"])
        (annotations / paths.CHALLENGE_CLASS_DESCRIPTIONS).write_text(rows)
    header = options.get("header", BOX_COLUMNS)
    write_rows(paths.box_annotations(folder, "train"), header, train)
    write_rows(paths.box_annotations(folder, "validation"), header, train[:1] if validation is None else validation)
    for split, labels in (("train", train_labels), ("validation", validation_labels)):
        if labels is not None:
            rows = [(image, "verification", label, confidence) for image, label, confidence in labels]
            path = paths.image_label_annotations(folder, split)
            write_rows(path, ("ImageID", "Source", "LabelName", "Confidence"), rows)
    return folder


class Result:
    """The files of one level as tuples of text, headers checked."""

    def __init__(self, output: Path, level: str, split: str = "train"):
        self.boxes, self.negatives = [], []
        for row in self._rows(paths.level_boxes(output, level, split), BOX_COLUMNS):
            (self.boxes if any(row[1:]) else self.negatives).append(row)
        self.regions = self._rows(paths.level_ignored_regions(output, level, split), IGNORED_REGION_COLUMNS)
        self.image_labels = self._rows(paths.level_image_labels(output, level, split), IMAGE_LABEL_COLUMNS)
        self.classes = read_class_descriptions(paths.level_class_descriptions(output, level))
        self.image_ids = (paths.level_folder(output, level) / f"image-ids-level-{level}.txt").read_text().splitlines()

    @staticmethod
    def _rows(path: Path, header: tuple[str, ...]) -> list[tuple[str, ...]]:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [tuple(row) for row in csv.reader(file)]
        assert rows[0] == header
        return rows[1:]

    def shown(self) -> list[tuple[str, str]]:
        """(image, class) of the boxes."""
        return [(row[0], row[2]) for row in self.boxes]

    def ignored(self) -> list[tuple[str, str, str]]:
        """(image, class, reason) of the regions."""
        return [(row[0], row[1], row[-1]) for row in self.regions]


ONE_OF_EACH = [box(f"i{number}", label) for number, label in enumerate(CLASSES)]
