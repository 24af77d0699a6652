"""Writes a data set of Open Images' layout in the form of COCO, Pascal VOC, or keras-retinanet's CSV.

The images are links. Only boxes of kept classes are written, each with its own class and not with those above it. The
other formats have no hierarchy and no image-level labels: to them, a class without a box is not there, even if nobody
looked.

    coco    annotations/instances_{train,validation}.json, images/{train,validation}/; a group-of box is iscrowd
    voc     Annotations/, ImageSets/Main/{train,val}.txt, JPEGImages/; a group-of box is difficult, and has group_of
    csv     annotations.csv, val_annotations.csv, classes.csv, {train,validation}/; group-of boxes are left out
"""

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from oid.files import InputError, replacing_folder
from oid.sources.base import Box, Problems, Progress, SourceImage, Splits, require_free
from oid.sources.open_images import read_images
from oid.sources.voc import CORNERS
from oid.sources.write import link_images, link_name
from oid.text_files import write_rows


def export(form: str, data_set: Path, folder: Path, kept: dict[str, str], progress: Progress = iter) -> list[str]:
    """Writes train and validation of DATASET, and returns lines that tell what was written.

    Args:
        form: a name of WRITERS.
        data_set: DATASET.
        folder: to be made.
        kept: {label: name} of the classes to write, in this order.
        progress: shows how many images are measured.

    Raises:
        FolderError: `folder` is in use, or cannot be written.
        InputError: DATASET lacks something. In both cases nothing is written.
    """
    require_free(folder)
    problems = Problems()
    texts = list(kept.values())  # the other formats have only names: equal ones get their labels
    names = {label: f"{name} ({label})" if texts.count(name) > 1 else name for label, name in kept.items()}
    splits = {split: read_images(data_set, split, names, problems, progress) for split in ("train", "validation")}
    if not any(splits.values()):
        raise InputError(f"{data_set} has none of its annotated images on disk, and only those can be exported")
    with replacing_folder(folder) as temporary:
        WRITERS[form](temporary, list(names.values()), splits, problems)
        problems.write(temporary)
    counts = {split: sum(len(image.boxes) for image in images) for split, images in splits.items()}
    return [
        f"{form}: {folder}",
        "  this form has no hierarchy and no image-level labels: a class without a box counts as not there",
        *problems.summary(folder),
        *(f"  {split}: {len(splits[split])} images, {n} boxes of {len(names)} classes" for split, n in counts.items()),
    ]


def write_coco(folder: Path, classes: list[str], splits: Splits, problems: Problems) -> None:
    """One JSON file for each split, which pycocotools opens; pixels with three decimals."""
    link_images(folder / "images", splits)
    category_ids = {name: category_id for category_id, name in enumerate(classes, start=1)}
    categories = [{"id": category_id, "name": name} for name, category_id in category_ids.items()]
    (folder / "annotations").mkdir()
    for split, images in splits.items():
        entries, annotations = [], []
        for image_id, image in enumerate(images, start=1):
            name, (width, height) = link_name(image.image_id, image.path), image.size
            entries.append({"id": image_id, "file_name": name, "width": width, "height": height})
            for box in image.boxes:
                x0, y0, x1, y1 = (round(corner, 3) for corner in box.corners)
                bbox = [x0, y0, round(x1 - x0, 3), round(y1 - y0, 3)]
                ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_ids[box.class_name]}
                marks = {"iscrowd": int(box.group_of == 1), "segmentation": []}
                annotations.append(ids | {"bbox": bbox, "area": round(bbox[2] * bbox[3], 3)} | marks)
        content = {"info": {}, "licenses": [], "images": entries, "annotations": annotations, "categories": categories}
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content), encoding="utf-8")


def write_csv(folder: Path, classes: list[str], splits: Splits, problems: Problems) -> None:
    """keras-retinanet's files, with the whole pixels that it needs. An image with nothing but groups is left out."""
    link_images(folder, splits)
    write_rows(folder / "classes.csv", [(name, class_id) for class_id, name in enumerate(classes)])
    for split, file in (("train", "annotations.csv"), ("validation", "val_annotations.csv")):
        rows = []
        for image in splits[split]:
            path = f"{split}/{link_name(image.image_id, image.path)}"
            for box in image.boxes:
                if box.group_of == 1:
                    problems.add(image.file, box.place, "group-of box", box.class_name, "left out of the CSV")
                else:
                    rows.append((path, *whole_pixels(box, image.size), box.class_name))
            if not image.boxes:
                rows.append((path, *[""] * 5))
        write_rows(folder / file, rows)


def write_voc(folder: Path, classes: list[str], splits: Splits, problems: Problems) -> None:
    """An XML file for each image; corners are pixels counted from 1, the last one included.

    Raises an InputError if train and validation have an image id in common: the layout has one folder for both.
    """
    common = {image.image_id for image in splits["train"]} & {image.image_id for image in splits["validation"]}
    if common:
        raise InputError(f"image id {min(common)} is in train and validation: Pascal VOC has one folder for both")
    link_images(folder, {"JPEGImages": [image for images in splits.values() for image in images]})
    for name in ("Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for split, name in (("train", "train"), ("validation", "val")):
        listing = "".join(f"{image.image_id}\n" for image in splits[split])
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(listing, encoding="utf-8")
        for image in splits[split]:
            tree = ElementTree.ElementTree(_voc_annotation(image))
            ElementTree.indent(tree)
            tree.write(folder / "Annotations" / f"{image.image_id}.xml", encoding="utf-8")


def _voc_annotation(image: SourceImage) -> ElementTree.Element:
    width, height = image.size
    content = {"folder": "JPEGImages", "filename": link_name(image.image_id, image.path)}
    content |= {"size": {"width": width, "height": height, "depth": 3}, "segmented": 0}
    root = _element("annotation", content)
    for box in image.boxes:
        x0, y0, x1, y1 = whole_pixels(box, image.size)
        content = {"name": box.class_name, "pose": "Unspecified", "truncated": int(box.truncated == 1)}
        content |= {"occluded": int(box.occluded == 1), "difficult": int(1 in (box.difficult, box.group_of))}
        content |= {"group_of": 1} if box.group_of == 1 else {}
        content |= {"bndbox": dict(zip(CORNERS, (x0 + 1, y0 + 1, x1, y1), strict=True))}
        root.append(_element("object", content))
    return root


def _element(tag: str, content: object) -> ElementTree.Element:
    """An XML element with text, or with an element for each entry of a dictionary."""
    element = ElementTree.Element(tag)
    if isinstance(content, dict):
        element.extend([_element(*entry) for entry in content.items()])
    else:
        element.text = str(content)
    return element


def whole_pixels(box: Box, size: tuple[int, int]) -> tuple[int, ...]:
    """The corners rounded to whole pixels, at least 1 apart, inside an image of width and height `size`."""
    corners = [round(corner) for corner in box.corners]
    for low, side in enumerate(size):
        if corners[low + 2] == corners[low]:
            corners[low] = min(int(box.corners[low]), side - 1)
            corners[low + 2] = corners[low] + 1
    return tuple(corners)


WRITERS: dict[str, Callable[[Path, list[str], Splits, Problems], None]] = {
    "coco": write_coco,
    "csv": write_csv,
    "voc": write_voc,
}
