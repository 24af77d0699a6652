"""Proves that a data set written as COCO, Pascal VOC or CSV has the same boxes when it comes back, that pycocotools
opens the COCO files, and that an export is whole or not there."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oid import paths
from oid.files import InputError
from oid.sources.base import Box
from oid.sources.conversion import convert
from oid.sources.export import WRITERS as FORMS
from oid.sources.export import export, whole_pixels
from tests.helpers.own_data import TRAIN, VALIDATION, WRITERS, converted, picture, table, write_csv_source
from tests.helpers.project import shared
from tests.helpers.small_open_images import box as oid_box
from tests.helpers.small_open_images import make_data_set as make_open_images


def coordinates(rows):
    """The boxes of a data set as sorted tuples: image, class, corners."""
    return sorted((image, name, *corners) for image, boxes in rows.items() for name, corners in boxes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("source", WRITERS)
def test_there_and_back(source, form, tmp_path):
    convert(source, str(WRITERS[source](tmp_path / "source")), str(tmp_path / "data"))
    export(form, str(tmp_path / "data"), str(tmp_path / "export"))
    convert(form, str(tmp_path / "export"), str(tmp_path / "back"))
    for split, rows in (("train", TRAIN), ("validation", VALIDATION)):
        assert converted(tmp_path / "back", split).keys() == rows.keys()
        assert coordinates(converted(tmp_path / "back", split)) == coordinates(converted(tmp_path / "data", split))
        labels = [table(paths.image_label_annotations(tmp_path / name, split)) for name in ("data", "back")]
        assert sorted(map(str, labels[0])) == sorted(map(str, labels[1]))
    assert not (tmp_path / "export" / "source_problems.csv").exists()


@pytest.mark.parametrize(("form", "least"), [("coco", 0.0006), ("voc", 0.5001), ("csv", 0.5001)])
def test_parts_of_pixels_are_rounded(form, least, tmp_path):
    rows = {"train": {"a": [("dog", (0.26, 1.74, 20.49, 29.6))]}, "val": {"v": [("cat", (1.2345, 2.3456, 3.9, 30))]}}
    convert("csv", str(write_csv_source(tmp_path / "source", rows)), str(tmp_path / "data"))
    export(form, str(tmp_path / "data"), str(tmp_path / "export"))
    convert(form, str(tmp_path / "export"), str(tmp_path / "back"))
    for split, images in (("train", rows["train"]), ("validation", rows["val"])):
        for image, ((name, corners),) in images.items():
            ((other, found),) = converted(tmp_path / "back", split)[image]
            assert (other, found) == (name, pytest.approx(corners, abs=least))


@given(st.tuples(st.floats(0, 40), st.floats(0, 40), st.floats(0, 30), st.floats(0, 30)), st.sampled_from([1, 2]))
def test_whole_pixels_are_near_and_apart(sides, least):
    x0, x1, y0, y1 = *sorted(sides[:2]), *sorted(sides[2:])
    found = whole_pixels(Box("", (x0, y0, x1, y1), ""), (40, 30), least)
    assert all(isinstance(corner, int) for corner in found)
    assert found[0] >= 0
    assert found[1] >= 0
    assert found[2] <= 40
    assert found[3] <= 30
    for low, corners in ((0, (x0, x1)), (1, (y0, y1))):
        assert found[low + 2] - found[low] >= least
        wide = corners[1] - corners[0] >= least + 0.5
        assert abs(found[low] - corners[0]) <= (0.5 if wide else least)


def odd_data_set(folder):
    """Groups, marks, an excluded class, an image without boxes, and images that are not on disk."""
    rows = [
        oid_box("one", "apple", ("0.1", "0.5", "0.1", "0.5")),
        oid_box("one", "apple", ("0.25", "0.75", "0.2", "0.4"), group="1"),
        oid_box("one", "fruit", ("0.1", "0.5", "0.1", "0.5")),
        oid_box("two", "car", ("0", "1", "0", "1"), group="1"),
        oid_box("gone", "apple"),
    ]
    labels = [("bare", "apple", "0")]
    make_open_images(folder, rows, [oid_box("three", "car")], labels, challenge=("apple", "car"))
    for name in ("one", "two", "bare", "unknown"):
        picture(folder / "train" / f"{name}.jpg", name)
    picture(folder / "validation" / "three.png", 3)
    return folder


def test_pycocotools_opens_what_is_written(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    export("coco", str(odd_data_set(tmp_path / "data")), str(tmp_path / "coco"))
    truth = coco.COCO(str(tmp_path / "coco" / "annotations" / "instances_train.json"))
    names = {image["id"]: image["file_name"] for image in truth.loadImgs(truth.getImgIds())}
    assert sorted(names.values()) == ["bare.jpg", "one.jpg", "two.jpg"]
    annotations = truth.loadAnns(truth.getAnnIds())
    classes = {category["id"]: category["name"] for category in truth.loadCats(truth.getCatIds())}
    found = sorted((names[a["image_id"]], classes[a["category_id"]], a["iscrowd"], a["bbox"]) for a in annotations)
    assert found == [
        ("one.jpg", "Apple", 0, [4, 3, 16, 12]),
        ("one.jpg", "Apple", 1, [10, 6, 20, 6]),
        ("two.jpg", "Car", 1, [0, 0, 40, 30]),
    ]
    assert all(a["area"] == a["bbox"][2] * a["bbox"][3] for a in annotations)
    (lost,) = table(tmp_path / "coco" / "source_problems.csv")
    assert (lost["place"], lost["problem"]) == ("gone", "missing image")


def test_cocos_own_evaluation_takes_the_files(tmp_path):
    """Its boxes as detections measure 1 with COCO's code: sizes, ids, areas and crowds are what it expects."""
    coco, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    export("coco", str(odd_data_set(tmp_path / "data")), str(tmp_path / "coco"))
    truth = coco.COCO(str(tmp_path / "coco" / "annotations" / "instances_train.json"))
    annotations = truth.loadAnns(truth.getAnnIds(iscrowd=False))
    detections = truth.loadRes(
        [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 1.0} for a in annotations]
    )
    found = evaluation.COCOeval(truth, detections, "bbox")
    found.evaluate()
    found.accumulate()
    found.summarize()
    assert found.stats[0] == pytest.approx(1)


def test_groups_come_back_from_voc_and_coco_and_are_told_of_csv(tmp_path):
    data_set = odd_data_set(tmp_path / "data")
    for form in FORMS:
        export(form, str(data_set), str(tmp_path / form))
    for form in ("voc", "coco"):
        convert(form, str(tmp_path / form), str(tmp_path / f"back_{form}"))
        rows = table(paths.box_annotations(tmp_path / f"back_{form}", "train"))
        assert sorted((row["ImageID"], row["IsGroupOf"]) for row in rows) == [("one", "0"), ("one", "1"), ("two", "1")]
    text = (tmp_path / "csv" / "annotations.csv").read_text().splitlines()
    assert text == ["train/bare.jpg,,,,,", "train/one.jpg,4,3,20,15,Apple"]  # two has nothing but a group: unknown
    told = [row["problem"] for row in table(tmp_path / "csv" / "source_problems.csv")]
    assert told == ["missing image", "group-of box", "group-of box"]


def test_an_image_id_in_both_splits_is_refused_by_voc_only(tmp_path):
    make_open_images(tmp_path / "data", [oid_box("x", "apple")], [oid_box("x", "car")])
    for split in ("train", "validation"):
        picture(tmp_path / "data" / split / "x.png", split)
    with pytest.raises(InputError, match="the image id x is in train and in validation"):
        export("voc", str(tmp_path / "data"), str(tmp_path / "voc"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    export("coco", str(tmp_path / "data"), str(tmp_path / "coco"))


def test_what_is_there_is_not_overwritten(tmp_path):
    data_set = odd_data_set(tmp_path / "data")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(InputError, match=rf"--export_path .*{name} is there already: give a new folder"):
            export("coco", str(data_set), str(tmp_path / name))
    (tmp_path / "empty").mkdir()
    export("coco", str(data_set), str(tmp_path / "empty"))
    assert (tmp_path / "empty" / "annotations").is_dir()


def test_without_images_there_is_nothing_to_export(tmp_path):
    make_open_images(tmp_path / "data", [oid_box("x", "apple")])
    for split in ("train", "validation"):
        (tmp_path / "data" / split).mkdir()
    with pytest.raises(InputError, match="has none of its annotated images on disk"):
        export("coco", str(tmp_path / "data"), str(tmp_path / "coco"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_names_that_two_classes_share_get_their_labels(tmp_path):
    data_set = odd_data_set(tmp_path / "data")
    paths.annotation_file(data_set, paths.CHALLENGE_CLASS_DESCRIPTIONS).write_text("apple,Same\ncar,Same\n")
    export("coco", str(data_set), str(tmp_path / "coco"))
    content = json.loads((tmp_path / "coco" / "annotations" / "instances_validation.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["Same (apple)", "Same (car)"]


def sorted_pixels(rows, sizes):
    """(image, x0, x1, y0, y1) of each row in whole pixels; `sizes` has width and height of each image."""
    found = []
    for row in rows:
        width, height = sizes[row["ImageID"]]
        sides = {"XMin": width, "XMax": width, "YMin": height, "YMax": height}
        found.append((row["ImageID"], *(round(float(row[name]) * side) for name, side in sides.items())))
    return sorted(found)


@pytest.mark.parametrize("form", FORMS)
def test_real_photographs_there_and_back(form, tmp_path):
    """A box moves by half a pixel at most; the smallest photograph has a side of some hundred pixels."""
    data_set = shared("data", "fruit_oid")
    export(form, str(data_set), str(tmp_path / "export"))
    convert(form, str(tmp_path / "export"), str(tmp_path / "back"))
    for split in ("train", "validation"):
        sizes = {
            r["ImageID"]: (int(r["Width"]), int(r["Height"])) for r in table(tmp_path / "back" / "source_images.csv")
        }
        rows = {"source": table(paths.box_annotations(data_set, split))}
        rows["back"] = table(paths.box_annotations(tmp_path / "back", split))
        if form == "csv":
            rows["source"] = [row for row in rows["source"] if row["IsGroupOf"] != "1"]

        assert len(rows["back"]) == len(rows["source"]) > 50
        near = [
            (a[0] == b[0], max(abs(x - y) for x, y in zip(a[1:], b[1:], strict=True)))
            for a, b in zip(sorted_pixels(rows["source"], sizes), sorted_pixels(rows["back"], sizes), strict=True)
        ]
        assert all(same and distance <= 1 for same, distance in near)
