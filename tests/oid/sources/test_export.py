"""Proves that a data set written as COCO, Pascal VOC or CSV has the same boxes when it comes back, that pycocotools
opens the COCO files, and that an export is whole or not there."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oid import paths
from oid.files import InputError
from oid.sources.base import Box, FolderError
from oid.sources.export import WRITERS as FORMS
from oid.sources.export import whole_pixels
from oid.sources.write import convert
from tests.helpers.own_data import TRAIN, VALIDATION, WRITERS, converted, export_all, picture, table
from tests.helpers.small_open_images import box as oid_box
from tests.helpers.small_open_images import make_data_set as make_open_images


def there_and_back(form, data_set, folder):
    """Exports a data set and converts the export; returns the new data set."""
    export_all(form, data_set, folder / "export")
    convert(form, folder / "export", folder / "back")
    return folder / "back"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("source", WRITERS)
def test_there_and_back(source, form, tmp_path):
    data_set = tmp_path / "data"
    convert(source, WRITERS[source](tmp_path / "source"), data_set)
    back = there_and_back(form, data_set, tmp_path)
    for split, rows in (("train", TRAIN), ("validation", VALIDATION)):
        assert converted(back, split).keys() == rows.keys()
        for image, boxes in converted(data_set, split).items():
            assert sorted(converted(back, split)[image]) == sorted(boxes)
        labels = [table(paths.image_label_annotations(folder, split)) for folder in (data_set, back)]
        assert sorted(map(str, labels[0])) == sorted(map(str, labels[1]))
    assert not (tmp_path / "export" / "source_problems.csv").exists()


@given(
    st.tuples(st.floats(0, 40), st.floats(0, 40)).map(sorted), st.tuples(st.floats(0, 30), st.floats(0, 30)).map(sorted)
)
def test_whole_pixels_are_near_and_apart(across, down):
    found = whole_pixels(Box("", (across[0], down[0], across[1], down[1]), ""), (40, 30))
    assert all(isinstance(corner, int) for corner in found)
    for low, (start, end), side in ((0, across, 40), (1, down, 30)):
        assert 0 <= found[low] < found[low + 2] <= side
        assert abs(found[low] - start) <= (0.5 if end - start >= 1.5 else 1)


@pytest.fixture
def odd_data_set(tmp_path):
    """Groups, marks, an excluded class, an image without boxes, and images that are not on disk."""
    rows = [
        oid_box("one", "apple", ("0.1", "0.5", "0.1", "0.5")),
        oid_box("one", "apple", ("0.25", "0.75", "0.2", "0.4"), group="1"),
        oid_box("one", "fruit", ("0.1", "0.5", "0.1", "0.5")),
        oid_box("two", "car", ("0", "1", "0", "1"), group="1"),
        oid_box("gone", "apple"),
    ]
    folder = tmp_path / "data"
    make_open_images(folder, rows, [oid_box("three", "car")], [("bare", "apple", "0")], challenge=("apple", "car"))
    for name in ("one", "two", "bare", "unknown"):
        picture(folder / "train" / f"{name}.jpg", name)
    picture(folder / "validation" / "three.png", 3)
    return folder


def test_pycocotools_opens_what_is_written(odd_data_set, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    export_all("coco", odd_data_set, tmp_path / "coco")
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


def test_groups_come_back_from_voc_and_coco_and_are_reported_for_csv(odd_data_set, tmp_path):
    for form in ("voc", "coco"):
        rows = table(paths.box_annotations(there_and_back(form, odd_data_set, tmp_path / form), "train"))
        assert sorted((row["ImageID"], row["IsGroupOf"]) for row in rows) == [("one", "0"), ("one", "1"), ("two", "1")]
    export_all("csv", odd_data_set, tmp_path / "csv")
    text = (tmp_path / "csv" / "annotations.csv").read_text().splitlines()
    assert text == ["train/bare.jpg,,,,,", "train/one.jpg,4,3,20,15,Apple"]  # two has nothing but a group: unknown
    problems = [row["problem"] for row in table(tmp_path / "csv" / "source_problems.csv")]
    assert problems == ["missing image", "group-of box", "group-of box"]


def test_nothing_is_written_without_images_or_if_voc_has_an_id_in_both_splits(tmp_path):
    make_open_images(tmp_path / "data", [oid_box("x", "apple")], [oid_box("x", "car")])
    for split in ("train", "validation"):
        picture(tmp_path / "data" / split / "x.png", split)
    with pytest.raises(InputError, match="image id x is in train and validation"):
        export_all("voc", tmp_path / "data", tmp_path / "voc")
    for path in tmp_path.glob("data/*/x.png"):
        path.unlink()
    with pytest.raises(InputError, match="has none of its annotated images on disk"):
        export_all("coco", tmp_path / "data", tmp_path / "coco")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_folder_in_use_is_not_overwritten(odd_data_set, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    export_all("coco", odd_data_set, tmp_path / "folder")
    for name in ("folder", "file"):
        with pytest.raises(FolderError, match=f"{name} is in use: give another folder"):
            export_all("coco", odd_data_set, tmp_path / name)


def test_classes_of_one_name_get_their_labels(odd_data_set, tmp_path):
    paths.annotation_file(odd_data_set, paths.CHALLENGE_CLASS_DESCRIPTIONS).write_text("apple,Same\ncar,Same\n")
    export_all("coco", odd_data_set, tmp_path / "coco")
    content = json.loads((tmp_path / "coco" / "annotations" / "instances_validation.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["Same (apple)", "Same (car)"]
