"""Proves that on clean data the readers find the images, classes and boxes that keras-retinanet's own readers find, and
what it makes of our exports. Without keras-retinanet these tests are skipped."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from oid.sources.write import READERS, convert
from tests.helpers.own_data import SETS, WRITERS, export_all, found, read_clean

pytest.importorskip(
    "keras_retinanet", reason="keras-retinanet is not installed: `make keras-retinanet` adds these tests"
)


def theirs(form, folder, name, classes):
    """{image: [(class, box)]} by keras-retinanet's generator of that format, and its classes."""
    from keras_retinanet.preprocessing.coco import CocoGenerator
    from keras_retinanet.preprocessing.csv_generator import CSVGenerator
    from keras_retinanet.preprocessing.kitti import KittiGenerator
    from keras_retinanet.preprocessing.pascal_voc import PascalVocGenerator

    options = {"batch_size": 1, "group_method": "none", "shuffle_groups": False}
    with contextlib.redirect_stdout(io.StringIO()):
        if form == "csv":
            file = {"train": "annotations.csv", "val": "val_annotations.csv"}[name]
            generator = CSVGenerator(str(folder / file), str(folder / "classes.csv"), **options)
        elif form == "voc":
            numbers = {label: number for number, label in enumerate(classes)}
            generator = PascalVocGenerator(str(folder), name, classes=numbers, **options)
        elif form == "coco":
            generator = CocoGenerator(str(folder), name, **options)
        else:
            generator = KittiGenerator(str(folder), subset=name, **options)
    result = {}
    for index in range(generator.size()):
        annotations = generator.load_annotations(index)
        labels = map(generator.label_to_name, annotations["labels"].astype(int))
        image = generator.image_path(index).rpartition("/")[2].rpartition(".")[0]
        result[image] = [(label, *box) for label, box in zip(labels, annotations["bboxes"].tolist(), strict=True)]
    return result, [generator.label_to_name(number) for number in range(len(classes))]


def assert_equal_boxes(images, others, form):
    """Compares {image: boxes}. keras-retinanet gives Pascal VOC's last pixel, 1 before our edge."""
    behind = (0, 0, 1, 1) if form == "voc" else (0, 0, 0, 0)
    assert images.keys() == others.keys()
    for image, boxes in images.items():
        others_edges = sorted((label, *np.add(box, behind)) for label, *box in others[image])
        assert sorted((label, *box) for label, box in boxes) == others_edges


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("form", WRITERS)
def test_both_find_the_same(form, name, tmp_path):
    folder = WRITERS[form](tmp_path / "source")
    reader = READERS[form](folder)
    images = read_clean(reader, {"train": "annotations", "val": "val_annotations"}[name] if form == "csv" else name)
    assert reader.problems == []
    boxes, classes = theirs(form, folder, name, reader.classes())
    assert_equal_boxes(found(images), boxes, form)
    if form != "kitti":  # its classes are fixed, ours those that occur
        assert classes == reader.classes()


@pytest.mark.parametrize("form", ["csv", "coco", "voc"])
def test_keras_retinanet_reads_our_exports(form, tmp_path):
    convert("csv", WRITERS["csv"](tmp_path / "source"), tmp_path / "data")
    export_all(form, tmp_path / "data", tmp_path / "export")
    for path in (tmp_path / "export").glob("JPEGImages/*.png"):  # it takes one suffix only
        Image.open(path).save(path.with_suffix(".jpg"))
    for name, rows in SETS.items():
        name = "validation" if form == "coco" and name == "val" else name
        boxes, classes = theirs(form, tmp_path / "export", name, ["dog", "cat"])
        assert classes == ["dog", "cat"]
        assert_equal_boxes(rows, boxes, form)
