"""Writes a data set of Open Images' layout in the form of COCO, Pascal VOC, or keras-retinanet's CSV.

The images are links. Only boxes of kept classes are written, each with the class that it has, not with those above it.
The other formats have no image-level labels: to them a class that has no box is not there, whether anybody looked or
not; and they have no hierarchy.

    coco    annotations/instances_{train,validation}.json, images/{train,validation}/; a group-of box is iscrowd
    voc     Annotations/, ImageSets/Main/{train,val}.txt, JPEGImages/; a group-of box is difficult, and has group_of
    csv     annotations.csv, val_annotations.csv, classes.csv, {train,validation}/; group-of boxes are left out
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from oid import paths
from oid.files import InputError, output_file, replacing_folder
from oid.sources.base import Box, Picture
from oid.sources.open_images import read_class_names, read_pictures, unique_names
from oid.sources.problems import Problems
from oid.sources.write import link_images

Splits = dict[str, list[Picture]]


def export(form: str, dataset_path: str, export_path: str, kept: dict[str, str] | None = None) -> None:
    """Writes train and validation of DATASET.

    Args:
        form: a name of WRITERS.
        dataset_path: DATASET.
        export_path: the folder to be made.
        kept: {label: name} of the classes to write, in this order; None = those that count by the data set's lists.

    Raises:
        InputError: `export_path` is there already, or DATASET lacks something; nothing is written then.
    """
    folder = Path(export_path)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"--export_path {folder} is there already: give a new folder, or remove it")
    output_file(paths.source_problems(folder), "give another place by --export_path")
    problems = Problems()
    names = unique_names(kept or read_class_names(Path(dataset_path)))
    splits = {split: read_pictures(Path(dataset_path), split, names, problems) for split in ("train", "validation")}
    if not any(splits.values()):
        raise InputError(f"{dataset_path} has none of its annotated images on disk, and only those can be exported")
    with replacing_folder(folder) as temporary:
        WRITERS[form](temporary, list(names.values()), splits, problems)
        problems.write(paths.source_problems(temporary))
    print(f"{form}: {folder}")
    print("  this form has no hierarchy and no image-level labels: a class without a box counts as not there")
    problems.show(paths.source_problems(folder))
    for split, pictures in splits.items():
        print(f"  {split}: {len(pictures)} images, {sum(len(p.boxes) for p in pictures)} boxes of {len(names)} classes")


def write_coco(folder: Path, classes: list[str], splits: Splits, problems: Problems) -> None:
    """One JSON file for each split, which pycocotools opens; pixels with three decimals."""
    link_images(folder / "images", _links(splits))
    number_of = {name: number for number, name in enumerate(classes, start=1)}
    (folder / "annotations").mkdir()
    for split, pictures in splits.items():
        images, annotations = [], []
        for number, picture in enumerate(pictures, start=1):
            width, height = picture.size
            file = picture.image_id + picture.path.suffix
            images.append({"id": number, "file_name": file, "width": width, "height": height})
            for box in picture.boxes:
                x0, y0, x1, y1 = (round(corner, 3) for corner in box.corners)
                bbox = [x0, y0, round(x1 - x0, 3), round(y1 - y0, 3)]
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": number_of[box.class_name]}
                entry |= {"bbox": bbox, "area": round(bbox[2] * bbox[3], 3), "iscrowd": int(box.group_of == 1)}
                annotations.append(entry | {"segmentation": []})
        categories = [{"id": number, "name": name} for name, number in number_of.items()]
        content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content), encoding="utf-8")


def write_csv(folder: Path, classes: list[str], splits: Splits, problems: Problems) -> None:
    """keras-retinanet's files; it reads whole pixels only. An image that has nothing but groups is left out."""
    link_images(folder, _links(splits))
    _write_rows(folder / "classes.csv", [(name, number) for number, name in enumerate(classes)])
    for split, file in (("train", "annotations.csv"), ("validation", "val_annotations.csv")):
        rows = []
        for picture in splits[split]:
            path = f"{split}/{picture.image_id}{picture.path.suffix}"
            for box in picture.boxes:
                if box.group_of == 1:
                    problems.add(picture.file, box.place, "group-of box", box.class_name, "left out of the CSV")
                else:
                    rows.append((path, *whole_pixels(box, picture.size), box.class_name))
            if not picture.boxes:
                rows.append((path, "", "", "", "", ""))
        _write_rows(folder / file, rows)


def write_voc(folder: Path, classes: list[str], splits: Splits, problems: Problems) -> None:
    """An XML file for each image; corners are pixels counted from 1, the last one included.

    Raises:
        InputError: train and validation have an id in common: the layout has one folder for both.
    """
    ids = [picture.image_id for pictures in splits.values() for picture in pictures]
    if len(ids) > len(set(ids)):
        twice = next(image for image in ids if ids.count(image) > 1)
        raise InputError(f"the image id {twice} is in train and in validation: Pascal VOC has one folder for both")
    link_images(folder, {"JPEGImages": [pair for pairs in _links(splits).values() for pair in pairs]})
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for split, name in (("train", "train"), ("validation", "val")):
        listing = "".join(f"{picture.image_id}\n" for picture in splits[split])
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(listing, encoding="utf-8")
        for picture in splits[split]:
            tree = ElementTree.ElementTree(_voc_annotation(picture))
            ElementTree.indent(tree)
            tree.write(folder / "Annotations" / f"{picture.image_id}.xml", encoding="utf-8")


def _voc_annotation(picture: Picture) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    _add(root, {"folder": "JPEGImages", "filename": picture.image_id + picture.path.suffix})
    _add(ElementTree.SubElement(root, "size"), {"width": picture.size[0], "height": picture.size[1], "depth": 3})
    _add(root, {"segmented": 0})
    for box in picture.boxes:
        group = box.group_of == 1
        flags = {
            "truncated": box.truncated == 1,
            "occluded": box.occluded == 1,
            "difficult": box.difficult == 1 or group,
        }
        item = ElementTree.SubElement(root, "object")
        _add(item, {"name": box.class_name, "pose": "Unspecified"})
        _add(item, {name: int(value) for name, value in flags.items()} | ({"group_of": 1} if group else {}))
        x0, y0, x1, y1 = whole_pixels(box, picture.size, least=2)  # a box of one pixel would seem to have no area
        corners = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}
        _add(ElementTree.SubElement(item, "bndbox"), corners)
    return root


def _add(parent: ElementTree.Element, texts: dict[str, object]) -> None:
    for name, value in texts.items():
        ElementTree.SubElement(parent, name).text = str(value)


def whole_pixels(box: Box, size: tuple[int, int], least: int = 1) -> tuple[int, int, int, int]:
    """The corners rounded to whole pixels, at least `least` apart, inside an image of width and height `size`."""
    corners = [round(corner) for corner in box.corners]
    for low, side in ((0, size[0]), (1, size[1])):
        if corners[low + 2] - corners[low] < least:
            corners[low] = max(min(int(box.corners[low]), side - least), 0)
            corners[low + 2] = min(corners[low] + least, side)
    return tuple(corners)


def _links(splits: Splits) -> dict[str, list[tuple[str, Path]]]:
    return {split: [(picture.image_id, picture.path) for picture in pictures] for split, pictures in splits.items()}


def _write_rows(path: Path, rows: list[tuple[object, ...]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


WRITERS: dict[str, Callable[[Path, list[str], Splits, Problems], None]] = {
    "coco": write_coco,
    "csv": write_csv,
    "voc": write_voc,
}
