"""Proves that on clean data the readers find the images, classes and boxes that keras-retinanet's own readers find, and
what it makes of our exports. Without keras-retinanet these tests are skipped."""

import contextlib
import io

import numpy as np
import pytest

from oid.sources.clean import clean_boxes, measure
from oid.sources.conversion import READERS, convert
from oid.sources.export import export
from oid.sources.problems import Problems
from tests.helpers.own_data import SETS, WRITERS, found, write_kitti_source

pytest.importorskip(
    "keras_retinanet", reason="keras-retinanet is not installed: `make keras-retinanet` adds these tests"
)


def theirs(form, folder, name, classes):
    """{image: [(class, box)]} by keras-retinanet's generator of that format; images without boxes, too."""
    options = {"batch_size": 1, "group_method": "none", "shuffle_groups": False}
    with contextlib.redirect_stdout(io.StringIO()):
        if form == "csv":
            from keras_retinanet.preprocessing.csv_generator import CSVGenerator

            file = {"train": "annotations.csv", "val": "val_annotations.csv"}[name]
            generator = CSVGenerator(str(folder / file), str(folder / "classes.csv"), **options)
        elif form == "voc":
            from keras_retinanet.preprocessing.pascal_voc import PascalVocGenerator

            numbers = {label: number for number, label in enumerate(classes)}
            generator = PascalVocGenerator(str(folder), name, classes=numbers, **options)
        elif form == "coco":
            from keras_retinanet.preprocessing.coco import CocoGenerator

            generator = CocoGenerator(str(folder), name, **options)
        else:
            from keras_retinanet.preprocessing.kitti import KittiGenerator

            generator = KittiGenerator(str(folder), subset=name, **options)
    result = {}
    for index in range(generator.size()):
        annotations = generator.load_annotations(index)
        boxes = [
            (generator.label_to_name(int(label)), tuple(map(float, box)))
            for label, box in zip(annotations["labels"], annotations["bboxes"], strict=True)
        ]
        result[generator.image_path(index).rpartition("/")[2].rpartition(".")[0]] = boxes
    return result, [generator.label_to_name(number) for number in range(len(classes))]


def ours(form, folder, name):
    source, problems = READERS[form](folder), Problems()
    name = {"train": "annotations", "val": "val_annotations"}[name] if form == "csv" else name
    pictures = measure(source.read(name, problems), problems)
    known = [*source.classes(), source.ignored_class]
    clean_boxes(pictures, known, problems, corners_are_pixels=source.corners_are_pixels)
    assert problems.rows == []
    return found(pictures), source.classes()


def by_corners(boxes, form):
    """Sorted boxes. keras-retinanet gives Pascal VOC's last pixel where we give the edge behind it, 1 further."""
    behind = (0, 0, 1, 1) if form == "voc" else (0, 0, 0, 0)
    return sorted((label, *np.add(box, behind)) for label, box in boxes)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("form", WRITERS)
def test_both_find_the_same(form, name, tmp_path):
    folder = WRITERS[form](tmp_path / "source")
    mine, classes = ours(form, folder, name)
    other, their_classes = theirs(form, folder, name, classes)
    assert mine.keys() == other.keys()
    for image, boxes in mine.items():
        assert by_corners(boxes, None) == by_corners(other[image], form)
    if form != "kitti":  # its classes are fixed, ours those that occur
        assert classes == their_classes


def test_parts_of_pixels_of_kitti(tmp_path):
    rows = {"train": {"a": [("dog", (0.25, 1.75, 20.5, 29.06))]}}
    folder = write_kitti_source(tmp_path / "source", rows)
    mine, classes = ours("kitti", folder, "train")
    assert mine == theirs("kitti", folder, "train", classes)[0]


@pytest.mark.parametrize("form", ["csv", "coco", "voc"])
def test_keras_retinanet_reads_our_exports(form, tmp_path):
    convert("csv", str(WRITERS["csv"](tmp_path / "source")), str(tmp_path / "data"))
    export(form, str(tmp_path / "data"), str(tmp_path / "export"))
    if form == "voc":
        from PIL import Image

        for path in (tmp_path / "export" / "JPEGImages").glob("*.png"):  # it takes one suffix only
            Image.open(path).save(path.with_suffix(".jpg"))
    for name, rows in SETS.items():
        name = "validation" if form == "coco" and name == "val" else name
        other, classes = theirs(form, tmp_path / "export", name, ["dog", "cat"])
        assert classes == ["dog", "cat"]
        assert other.keys() == rows.keys()
        for image, boxes in rows.items():
            assert by_corners(boxes, None) == by_corners(other[image], form)
