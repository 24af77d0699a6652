"""Small data sets in the formats that a01 converts, each with the same images and boxes, for several test files."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np

from oid import paths
from oid.annotations import read_class_descriptions
from oid.columns import CORNERS
from oid.sources.base import Problems, Reader, SourceImage
from oid.sources.clean import clean_boxes, measure
from oid.sources.export import export
from oid.sources.write import READERS

WIDTH, HEIGHT = 40, 30
Rows = dict[str, list[tuple[str, tuple[float, float, float, float]]]]
# image -> (class, edges x0, y0, x1, y1 in pixels); one image has nothing
TRAIN: Rows = {
    "a": [("cat", (0, 0, 10, 20)), ("dog", (12, 3, 40, 30))],
    "b": [("dog", (5, 5, 7, 7))],
    "c": [],
    "d": [("cat", (1, 2, 3, 4)), ("cat", (10, 10, 20, 20))],
}
VALIDATION: Rows = {"v": [("cat", (7, 8, 30, 29))], "w": [("dog", (0, 1, 39, 29)), ("cat", (2, 2, 38, 10))]}
SETS = {"train": TRAIN, "val": VALIDATION}
GOOD = [("dog", (1, 2, 30, 20))]  # in image b of `with_item`
COCO_TRAIN = "annotations/instances_train.json"


def picture(path: Path, seed: int | str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """Writes an image of width and height `size`; each seed gives another content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([ord(letter) for letter in str(seed)])
    assert cv2.imwrite(str(path), rng.integers(0, 255, (size[1], size[0], 3)).astype("uint8"))
    return path


def write_csv_source(folder: Path, sets: dict[str, Rows] = SETS) -> Path:
    names = {"train": "annotations.csv", "val": "val_annotations.csv"}
    for name, images in sets.items():
        rows = []
        for image, boxes in images.items():
            picture(folder / "images" / f"{image}.png", image)
            rows += [(f"images/{image}.png", *corners, label) for label, corners in boxes]
            rows += [] if boxes else [(f"images/{image}.png", "", "", "", "", "")]
        write_rows(folder / names[name], rows)
    write_rows(folder / "classes.csv", [("dog", 0), ("cat", 1)])
    return folder


def write_rows(path: Path, rows: list[tuple]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def voc_object(label: str, corners: tuple, extra: str = "<truncated>0</truncated><difficult>0</difficult>") -> str:
    """One object; the corners are those of the file, as text or numbers."""
    names = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{name}>{value}</{name}>" for name, value in zip(names, corners, strict=True))
    return f"<object><name>{label}</name>{extra}<bndbox>{box}</bndbox></object>"


def voc_file(objects: str, size: tuple[object, object] = (WIDTH, HEIGHT)) -> str:
    width, height = size
    return f"<annotation>\n<size><width>{width}</width><height>{height}</height></size>\n{objects}\n</annotation>\n"


def write_voc_source(folder: Path, sets: dict[str, Rows] = SETS) -> Path:
    (folder / "Annotations").mkdir(parents=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for name, images in sets.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{image}\n" for image in images))
        for image, boxes in images.items():
            picture(folder / "JPEGImages" / f"{image}.jpg", image)
            pixels = [(label, (x0 + 1, y0 + 1, x1, y1)) for label, (x0, y0, x1, y1) in boxes]
            text = "\n".join(voc_object(label, corners) for label, corners in pixels)
            (folder / "Annotations" / f"{image}.xml").write_text(voc_file(text))
    return folder


def coco_content(images: Rows) -> dict:
    """The content of one JSON file."""
    categories = [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}]
    ids = {category["name"]: category["id"] for category in categories}
    annotations = [
        {"image_id": number, "category_id": ids[label], "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
        for number, boxes in enumerate(images.values())
        for label, (x0, y0, x1, y1) in boxes
    ]
    for number, annotation in enumerate(annotations):
        annotation |= {"id": number + 10, "area": annotation["bbox"][2] * annotation["bbox"][3]}
    pictures = [
        {"id": number, "file_name": f"{image}.png", "width": WIDTH, "height": HEIGHT}
        for number, image in enumerate(images)
    ]
    return {"images": pictures, "annotations": annotations, "categories": categories}


def write_coco_source(folder: Path, sets: dict[str, Rows] = SETS) -> Path:
    (folder / "annotations").mkdir(parents=True)
    for name, images in sets.items():
        (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(coco_content(images)))
        for image in images:
            picture(folder / "images" / name / f"{image}.png", image)
    return folder


def write_kitti_source(folder: Path, sets: dict[str, Rows] = SETS) -> Path:
    for name, images in sets.items():
        (folder / name / "labels").mkdir(parents=True)
        for image, boxes in images.items():
            picture(folder / name / "images" / f"{image}.png", image)
            names = {"cat": "Cyclist", "dog": "Car"}
            lines = [kitti_line(names[label], corners) for label, corners in boxes]
            (folder / name / "labels" / f"{image}.txt").write_text("".join(lines))
    return folder


def kitti_line(label: str, corners: tuple, truncated: object = 0, occluded: object = 0) -> str:
    return f"{label} {truncated} {occluded} 0 {' '.join(map(str, corners))} 1 1 1 0 0 0 0\n"


WRITERS = {"csv": write_csv_source, "voc": write_voc_source, "coco": write_coco_source, "kitti": write_kitti_source}


def read_clean(reader: Reader, name: str) -> list[SourceImage]:
    """The measured and clean images of a set."""
    images = measure(reader.read(name), reader.problems)
    known, pixels = [*reader.classes(), reader.ignored_class], reader.corners_are_pixels
    return [clean_boxes(image, known, reader.problems, corners_are_pixels=pixels) for image in images]


def with_item(form: str, folder: Path, item: str | dict, size: tuple[object, object] = (WIDTH, HEIGHT)) -> Reader:
    """A reader of a train set with GOOD in image b, and one more item of the format in image a (or anywhere).

    `size` is the size of a that Pascal VOC's file declares.
    """
    WRITERS[form](folder, {"train": {"b": GOOD, "a": []}})
    if form == "csv":
        with open(folder / "annotations.csv", "a") as file:
            file.write(item + "\n")
    elif form == "voc":
        (folder / "Annotations" / "a.xml").write_text(voc_file(item, size))
    elif form == "coco":
        content = coco_content({"b": GOOD, "a": [("cat", (3, 5, 9, 10))]})
        content["annotations"][1] |= item
        (folder / COCO_TRAIN).write_text(json.dumps(content))
    else:
        (folder / "train" / "labels" / "a.txt").write_text(item)
    return READERS[form](folder)


def train_set(reader: Reader) -> list[SourceImage]:
    """The clean images of the set for training."""
    return read_clean(reader, next(name for name in reader.sets if not name.startswith("val")))


def found(images: list[SourceImage]) -> Rows:
    """What a reader found, as the tables above."""
    return {i.name.rpartition("/")[2]: [(box.class_name, box.corners) for box in i.boxes] for i in images}


def told(problems: Problems) -> list[tuple[str, str, str]]:
    """(place, problem, what was done) of each case."""
    return [(row.place, row.problem, row.done) for row in problems]


def converted(data_set: Path, split: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Rows:
    """The boxes of a converted split in pixels, with the names of their classes."""
    with open(paths.annotation_file(data_set, paths.CLASS_DESCRIPTIONS), newline="", encoding="utf-8") as file:
        names = dict(csv.reader(file))
    rows: Rows = {}
    for row in table(paths.image_label_annotations(data_set, split)):
        rows.setdefault(row["ImageID"], [])
    for row in table(paths.box_annotations(data_set, split)):
        corners = [float(row[name]) for name in CORNERS]
        pixels = tuple(round(value * side, 5) for value, side in zip(corners, size * 2, strict=True))
        rows.setdefault(row["ImageID"], []).append((names.get(row["LabelName"], row["LabelName"]), pixels))
    return rows


def export_all(form: str, data_set: Path, folder: Path) -> None:
    """Exports a data set with all classes that count."""
    export(form, data_set, folder, read_class_descriptions(paths.evaluated_class_descriptions(data_set)))


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
