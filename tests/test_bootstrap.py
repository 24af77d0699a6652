"""Proves the ablation's statistics: drawn images are measured as the metric measures them, and VOC's layout is read."""

import json

import numpy as np
import pytest

from benchmarks.bootstrap import curves, resampled
from benchmarks.voc import convert
from oid import layout
from oid.annotations import read_class_descriptions
from oid.files import InputError
from oid.metric import Detections, GroundTruth, evaluate


def some(rng, images: int, classes: int) -> tuple[GroundTruth, Detections]:
    """Boxes on a coarse grid, and detections that are half of them moved a little; all classes verified everywhere."""

    def boxes(count):
        corner = rng.integers(0, 4, (count, 2)) / 8
        return np.concatenate([corner, corner + rng.integers(1, 5, (count, 2)) / 8], axis=1)

    count = 4 * images
    truth_boxes = boxes(count)
    image, label = rng.integers(0, images, count), rng.integers(0, classes, count)
    pairs = np.stack(np.meshgrid(np.arange(images), np.arange(classes)), -1).reshape(-1, 2)
    ids = tuple(f"{k:03d}" for k in range(images))
    truth = GroundTruth(ids, image, label, truth_boxes, np.zeros(count, bool), pairs[:, 0], pairs[:, 1])
    near = rng.random(count) < 0.5
    found = np.where(near[:, None], truth_boxes + rng.uniform(-0.02, 0.02, (count, 4)), boxes(count))
    scores = rng.permutation(count) / count
    return truth, Detections(image, label, scores, found)


def drawn(truth: GroundTruth, detections: Detections, images: np.ndarray) -> tuple[GroundTruth, Detections]:
    """The data set that holds each drawn image as an image of its own."""
    rows, found, labels = [], [], []
    for new, old in enumerate(images):
        rows += [(new, row) for row in np.flatnonzero(truth.box_image == old)]
        found += [(new, row) for row in np.flatnonzero(detections.image == old)]
        labels += [(new, row) for row in np.flatnonzero(truth.label_image == old)]
    rows, found, labels = (np.array(pairs, "int64").reshape(-1, 2) for pairs in (rows, found, labels))
    ids = tuple(f"{k:03d}" for k in range(len(images)))
    columns = truth.box_class[rows[:, 1]], truth.boxes[rows[:, 1]], truth.box_group_of[rows[:, 1]]
    again = GroundTruth(ids, rows[:, 0], *columns, labels[:, 0], truth.label_class[labels[:, 1]])
    kept = found[:, 1]
    detections = Detections(found[:, 0], detections.class_index[kept], detections.scores[kept], detections.boxes[kept])
    return again, detections


@pytest.mark.parametrize("iou", [0.5, 0.75])
def test_all_images_once_give_the_metric_itself(iou):
    truth, detections = some(np.random.default_rng(0), 12, 3)
    expected = evaluate(truth, detections, num_classes=3, iou_threshold=iou).mean_average_precision
    assert 0.1 < expected < 0.9
    assert resampled(curves(truth, detections, 3, iou)) == pytest.approx(expected, abs=1e-12)


def test_permuted_images_change_nothing_and_missing_ones_are_left_out():
    truth, detections = some(np.random.default_rng(1), 10, 2)
    curve = curves(truth, detections, 2, 0.5)
    assert resampled(curve, np.random.default_rng(2).permutation(10)) == pytest.approx(resampled(curve), abs=1e-12)
    half = np.arange(5)
    expected = evaluate(*drawn(truth, detections, half), num_classes=2).mean_average_precision
    assert resampled(curve, half) == pytest.approx(expected, abs=1e-12)


def test_an_image_that_is_drawn_twice_counts_twice():
    """Copies tie in score; the metric takes them one after the other, the bootstrap at once: up to that they agree."""
    truth, detections = some(np.random.default_rng(3), 40, 1)
    curve = curves(truth, detections, 1, 0.5)
    for seed in range(5):
        images = np.random.default_rng(seed).integers(0, 40, 40)
        expected = evaluate(*drawn(truth, detections, images), num_classes=1).mean_average_precision
        assert resampled(curve, images) == pytest.approx(expected, abs=0.01)
    assert resampled(curve, np.array([0, 0])) == pytest.approx(resampled(curve, np.array([0])), abs=1e-12)


def test_nothing_found_is_zero_and_nothing_to_find_is_not_a_number():
    truth, detections = some(np.random.default_rng(4), 6, 2)
    none = Detections(*(column[:0] for column in vars(detections).values()))
    assert resampled(curves(truth, none, 2, 0.5)) == 0.0
    assert np.isnan(resampled(curves(truth, detections, 2, 0.5), np.zeros(0, "int64")))


VOC = """<annotation><size><width>200</width><height>100</height></size>
<object><name>Red cell</name><bndbox><xmin>1</xmin><ymin>11</ymin><xmax>100</xmax><ymax>60</ymax></bndbox></object>
<object><name>White</name><bndbox><xmin>50</xmin><ymin>5</ymin><xmax>50</xmax><ymax>9</ymax></bndbox></object>
</annotation>"""


def test_voc_becomes_open_images(tmp_path):
    """Corners count from 1 and include the last pixel; the box without width goes; each class is verified."""
    voc = tmp_path / "voc"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (voc / folder).mkdir(parents=True)
    (voc / "Annotations" / "a.xml").write_text(VOC)
    (voc / "Annotations" / "b.xml").write_text(VOC.replace("<xmin>50</xmin>", "<xmin>41</xmin>"))
    (voc / "ImageSets" / "Main" / "one.txt").write_text("a\nb\n")
    for name in "ab":
        (voc / "JPEGImages" / f"{name}.jpg").write_bytes(b"")
    convert(voc, tmp_path / "data", {"train": "one"})
    rows = layout.box_annotations(tmp_path / "data", "train").read_text().splitlines()
    assert [row.split(",")[0] + row.split(",")[2] for row in rows[1:]] == ["a/m/red_cell", "b/m/red_cell", "b/m/white"]
    assert [float(x) for x in rows[1].split(",")[4:8]] == pytest.approx([0, 0.5, 0.1, 0.6])
    labels = layout.image_label_annotations(tmp_path / "data", "train").read_text().splitlines()[1:]
    assert sorted(label[0] + label[-1] for label in labels) == ["a0", "a1", "b1", "b1"]
    names = read_class_descriptions(layout.annotation_file(tmp_path / "data", layout.CLASS_DESCRIPTIONS))
    assert names == {"/m/red_cell": "Red cell", "/m/white": "White"}
    tree = json.loads(layout.annotation_file(tmp_path / "data", layout.HIERARCHY).read_text())
    assert [node["LabelName"] for node in tree["Subcategory"]] == ["/m/red_cell", "/m/white"]
    assert (tmp_path / "data" / "train" / "a.jpg").is_symlink()


def test_a_folder_that_is_not_vocs_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"name a folder in Pascal VOC's layout by --voc"):
        convert(tmp_path, tmp_path / "data", {"train": "trainval"})
