"""Pascal VOC's layout -> Open Images' layout, for the benchmarks: clean files, every class verified on every image."""

import csv
import json
import os
from pathlib import Path
from xml.etree import ElementTree

from oid import layout
from oid.annotations import BOX_COLUMNS
from oid.files import InputError, require_file


def convert(voc: Path, data_set: Path, splits: dict[str, str]) -> None:
    """Writes a data set with links to the images.

    Args:
        voc: folder with Annotations, ImageSets/Main and JPEGImages.
        data_set: DATASET, to be made.
        splits: `{"train": a name of ImageSets/Main, "validation": another}`.

    Raises:
        InputError: a file is missing.
    """
    found = {split: _objects(voc, name) for split, name in splits.items()}
    names = sorted({row[1] for objects in found.values() for rows in objects.values() for row in rows})
    annotations = data_set / "annotations"
    annotations.mkdir(parents=True, exist_ok=True)
    tree = {"LabelName": "/m/entity", "Subcategory": [{"LabelName": _label(name)} for name in names]}
    (annotations / layout.HIERARCHY).write_text(json.dumps(tree), encoding="utf-8")
    _write(annotations / layout.CLASS_DESCRIPTIONS, [(_label(name), name) for name in names])
    for split, objects in found.items():
        (data_set / split).mkdir(exist_ok=True)
        boxes, labels = [BOX_COLUMNS], [("ImageID", "Source", "LabelName", "Confidence")]
        for image, rows in objects.items():
            link = data_set / split / f"{image}.jpg"
            if not link.exists():
                os.symlink((voc / "JPEGImages" / f"{image}.jpg").resolve(), link)
            present = {row[1] for row in rows}
            boxes += [(i, "xclick", _label(name), 1, *corners, 0, 0, 0, 0, 0) for i, name, *corners in rows]
            labels += [(image, "verification", _label(name), int(name in present)) for name in names]
        _write(layout.box_annotations(data_set, split), boxes)
        _write(layout.image_label_annotations(data_set, split), labels)


def _objects(voc: Path, split: str) -> dict[str, list[tuple]]:
    """`{image: [(image, class name, XMin, XMax, YMin, YMax)]}` of a split, boxes without area left out."""
    listing = require_file(voc / "ImageSets" / "Main" / f"{split}.txt", "name a folder in Pascal VOC's layout by --voc")
    objects: dict[str, list[tuple]] = {}
    for image in listing.read_text(encoding="utf-8").split():
        path = require_file(voc / "Annotations" / f"{image}.xml", f"{listing} names it")
        root = ElementTree.parse(path).getroot()
        width, height = (float(root.findtext(f"size/{name}", "0")) for name in ("width", "height"))
        if width <= 0 or height <= 0:
            raise InputError(f"{path} has the size {width:g} x {height:g}: correct it")
        objects[image] = []
        for item in root.iter("object"):
            x0, y0, x1, y1 = (float(item.findtext(f"bndbox/{name}")) for name in ("xmin", "ymin", "xmax", "ymax"))
            # pixels count from 1, and the last one belongs to the box
            box = (max(x0 - 1, 0) / width, min(x1, width) / width, max(y0 - 1, 0) / height, min(y1, height) / height)
            if x1 > x0 and y1 > y0:
                objects[image].append((image, item.findtext("name"), *box))
    return objects


def _label(name: str) -> str:
    return "/m/" + name.lower().replace(" ", "_")


def _write(path: Path, rows: list[tuple]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
