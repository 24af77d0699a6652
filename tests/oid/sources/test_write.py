"""Proves that a data set of another format becomes one in Open Images' layout that a01 takes: boxes and image labels,
ids, links, splits and folds; that the same command again gives the same files, and that nothing else is overwritten."""

import os
from pathlib import Path

import pytest

import oid.sources.write
from a01_create_training_files import main as create_training_files
from oid import paths
from oid.annotations import read_class_descriptions
from oid.files import InputError
from oid.hierarchy import read_hierarchy
from oid.images.find import find_images
from oid.metric.ground_truth import read_ground_truth
from oid.sources.base import FolderError
from oid.sources.splits import SetError, SplitChoice
from oid.sources.write import READERS, class_labels, convert, image_ids
from tests.helpers.own_data import (
    COCO_TRAIN,
    SETS,
    TRAIN,
    VALIDATION,
    WRITERS,
    converted,
    kitti_line,
    picture,
    table,
    voc_file,
    voc_object,
    write_csv_source,
    write_kitti_source,
    write_rows,
    write_voc_source,
)
from tests.helpers.small_open_images import Result
from tests.helpers.small_open_images import box as oid_box
from tests.helpers.small_open_images import make_data_set as make_open_images
from training.data_set import read_data_set


def contents(folder):
    """{path below the folder: bytes} of all files."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_levels(data_set, folder, *levels):
    """a01's results for levels of a data set."""
    create_training_files(dataset_path=str(data_set), output_path=str(folder), levels=levels)
    return [Result(folder, level) for level in levels]


# === The data set ===
@pytest.mark.parametrize("form", WRITERS)
def test_a_source_becomes_a_data_set_that_a01_takes(form, tmp_path):
    data_set = tmp_path / "data"
    convert(form, WRITERS[form](tmp_path / "source"), data_set)
    renamed = {"Car": "dog", "Cyclist": "cat"}
    for split, expected in (("train", TRAIN), ("validation", VALIDATION)):
        rows = converted(data_set, split).items()
        assert {i: [(renamed.get(c, c), b) for c, b in boxes] for i, boxes in rows} == expected
        assert find_images(data_set / split).keys() == expected.keys()
        labels = table(paths.image_label_annotations(data_set, split))
        assert len(labels) == 2 * len(expected)
        present = {(image, name) for image, boxes in expected.items() for name, _ in boxes}
        assert sum(row["Confidence"] == "1" for row in labels) == len(present)
    assert not (data_set / "source_problems.csv").exists()
    names = read_class_descriptions(paths.annotation_file(data_set, paths.CLASS_DESCRIPTIONS)).values()
    order = {"voc": ["cat", "dog"], "kitti": ["Car", "Cyclist"]}  # by the alphabet; by KITTI's list; else by the ids
    assert list(names) == order.get(form, ["dog", "cat"])
    tree = read_hierarchy(paths.annotation_file(data_set, paths.HIERARCHY))
    assert all(tree.height(label) == 1 for label in tree.labels if label != tree.root)
    (result,) = make_levels(data_set, tmp_path / "out", "1")
    assert len(result.boxes) == sum(map(len, TRAIN.values()))
    assert [row[0] for row in result.negatives] == ["c"]


@pytest.mark.parametrize("impossible", [[], ["link"], ["link", "symlink"]])
def test_images_are_hard_links_else_symbolic_links_else_copies(impossible, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("not here")

    for name in impossible:
        monkeypatch.setattr(os, name, refuse)
    source, path = write_csv_source(tmp_path / "source"), tmp_path / "data" / "train" / "a.png"
    before = contents(source)
    convert("csv", source, tmp_path / "data")
    assert contents(source) == before
    assert path.read_bytes() == (source / "images" / "a.png").read_bytes()
    assert path.samefile(source / "images" / "a.png") == (len(impossible) < 2)
    assert path.is_symlink() == (len(impossible) == 1)
    row = table(tmp_path / "data" / "source_images.csv")[0]
    assert [row[name] for name in ("Split", "ImageID", "Width", "Height")] == ["train", "a", "40", "30"]
    assert os.path.samefile(row["Path"], source / "images" / "a.png")


def test_a_class_whose_box_was_left_out_is_not_verified(tmp_path):
    """The class is somewhere in the image; a class without any box is not there."""
    source = write_voc_source(tmp_path / "source")
    outside = voc_object("cat", (55, 5, 60, 9)) + voc_object("cow", (5, 5, 9, 9))
    (source / "Annotations" / "b.xml").write_text(voc_file(outside))
    convert("voc", source, tmp_path / "data")
    labels = table(paths.image_label_annotations(tmp_path / "data", "train"))
    labels = {(row["LabelName"], row["Confidence"]) for row in labels if row["ImageID"] == "b"}
    assert labels == {("/m/cow", "1"), ("/m/dog", "0")}
    (problem,) = table(tmp_path / "data" / "source_problems.csv")
    assert (problem["place"], problem["problem"]) == ("object 1", "box outside the image")


def test_marks_of_objects_have_columns(tmp_path):
    source = write_voc_source(tmp_path / "source")
    marks = "<truncated>1</truncated><occluded>1</occluded><difficult>1</difficult>"
    group = voc_object("dog", (5, 5, 9, 9), "<group_of>1</group_of>")
    (source / "Annotations" / "b.xml").write_text(voc_file(voc_object("cat", (5, 5, 9, 9), marks) + group))
    told = convert("voc", source, tmp_path / "data")
    assert "  train: 4 images, 1 without boxes, 6 boxes (1 of groups, 1 difficult)" in told
    rows = {row["ImageID"]: row for row in reversed(table(paths.box_annotations(tmp_path / "data", "train")))}
    names = ("IsOccluded", "IsTruncated", "IsGroupOf", "IsDifficult")
    assert [rows["b"][name] for name in names] == ["1", "1", "0", "1"]
    assert [rows["a"][name] for name in names] == ["0", "0", "0", "0"]
    (result,) = make_levels(tmp_path / "data", tmp_path / "out", "1")
    assert ("b", "/m/cat") in result.shown()


def test_nothing_is_learned_in_areas_where_any_class_may_be(tmp_path):
    """KITTI's DontCare: an ignored region of every class in training, no class, and no ground truth."""
    source, data_set = write_kitti_source(tmp_path / "source"), tmp_path / "data"
    with open(source / "train" / "labels" / "c.txt", "a") as file:
        file.write(kitti_line("DontCare", (20, 15, 40, 30), -1, -1))
    assert "  train: 4 images, 0 without boxes, 6 boxes (1 of DontCare)" in convert("kitti", source, data_set)
    for level, result in zip(("1", "all"), make_levels(data_set, tmp_path / "out", "1", "all"), strict=True):
        assert set(result.classes) == {"/m/car", "/m/cyclist"}
        assert result.ignored() == [("c", "/m/anything", "ancestor_class")]
        assert [float(x) for x in result.regions[0][2:6]] == [0.5, 1, 0.5, 1]
        train = read_data_set(str(data_set), str(tmp_path / "out"), level, "train")
        assert train.region_classes[train.regions.labels].tolist() == [[1, 1]]  # neither class learns anything there
    tree = read_hierarchy(paths.annotation_file(data_set, paths.HIERARCHY))
    classes = read_class_descriptions(paths.annotation_file(data_set, paths.CLASS_DESCRIPTIONS))
    _, report = read_ground_truth(paths.box_annotations(data_set, "train"), None, tree, list(classes))
    assert report.boxes == sum(map(len, TRAIN.values()))
    assert report.dropped_boxes == {"/m/anything": 1}


# === Ids and labels ===
def test_ids_are_file_names_if_these_are_unique_apart_from_upper_and_lower_case():
    names = ["in/a", "in/b", "other/b", "x y,z", "Zürich/写真", "A B", "deep/a b"]
    assert image_ids(names) == ["a", "in_b", "other_b", "x_y_z", "写真", "A_B", "deep_a_b"]
    ids = image_ids(["IMG", "img", "d/img", "d_img", "d/IMG", '"', ",", "é" * 300, "é" * 301])
    assert len({image.casefold() for image in ids}) == len(ids)
    assert all(image and not set(image) & set('/,". ') and len(image) < 200 for image in ids)


def test_labels_of_classes_have_no_white_space_and_are_unique():
    labels = class_labels(["Red cell", "red_cell", "RED CELL", "a,b", "anything", "0bl9f", "車"])
    assert list(labels.values()) == [
        *("/m/red_cell", "/m/red_cell_2", "/m/red_cell_3"),
        *("/m/a_b", "/m/anything_2", "/m/0bl9f_2", "/m/車"),
    ]


# === Running again, and what is in the way ===
def test_running_again_gives_the_same_and_leaves_nothing_of_a_changed_source(tmp_path):
    source, data_set = write_csv_source(tmp_path / "source"), tmp_path / "data"
    convert("csv", source, data_set)
    before = contents(data_set)
    convert("csv", source, data_set)
    with pytest.raises(FolderError, match="was made with other settings"):
        convert("csv", source, data_set, SplitChoice(("train=annotations",)))
    assert contents(data_set) == before
    (data_set / "notes.txt").write_text("mine")
    (data_set / "train" / "mine.png").write_bytes(b"mine")
    write_rows(source / "annotations.csv", [("images/a.png", 1, 1, 9, 9, "dog"), ("images/b.png", 9, 1, 1, 9, "dog")])
    convert("csv", source, data_set)
    assert sorted(path.name for path in (data_set / "train").iterdir()) == ["a.png", "b.png", "mine.png"]
    assert len(table(data_set / "source_problems.csv")) == 1
    write_rows(source / "annotations.csv", [("images/a.png", 1, 1, 9, 9, "dog")])
    convert("csv", source, data_set)
    assert not (data_set / "source_problems.csv").exists()
    assert (data_set / "notes.txt").exists()


def test_after_a_kill_the_same_command_goes_on(tmp_path, monkeypatch):
    source, data_set = write_csv_source(tmp_path / "source"), tmp_path / "data"
    convert("csv", source, tmp_path / "whole")
    real, calls = oid.sources.write._link, []

    def stop(path, link):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(path, link)

    monkeypatch.setattr(oid.sources.write, "_link", stop)
    with pytest.raises(KeyboardInterrupt):
        convert("csv", source, data_set)
    assert not (data_set / "annotations").exists()
    assert not list(data_set.rglob(".*"))
    convert("csv", source, data_set)
    assert contents(data_set) == contents(tmp_path / "whole")


SAME_IDS = b'{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}'
BAD_SOURCES = [  # format, file, its content, sentence
    ("csv", "annotations.csv", b"a.png,1,2,3,4,dog\na.png,1,2,3,4,d\xf6g\n", "line 2: not UTF-8: save it as UTF-8"),
    ("csv", "annotations.csv", b"\xff\xfea\x00\x00", "line 1: not UTF-16: save it as UTF-8"),
    ("csv", "annotations.csv", b'"a.png,1,2,3,4,dog\n', r"line 1: not CSV .*check the quotes"),
    ("csv", "annotations.csv", b"images/no.png,1,1,9,9,dog", "no usable image for train: .* 1 .*line 1: missing image"),
    ("csv", "annotations.csv", b"images/a.png,1,1,9,9,x", "no usable box .* 1 problems .*line 1: unknown class"),
    ("csv", "annotations.csv", b"images/a.png,,,,,", "no usable box for train: the annotations have none"),
    ("csv", "annotations.csv", b"\n", "annotations.csv is empty"),
    ("csv", "classes.csv", b"cat,0\ndog,0", "line 2: 'dog,0' is not class_name,id.* a number of its own"),
    ("csv", "classes.csv", b"cat,0\ndog,x", "line 2: 'dog,x' is not class_name,id"),
    ("csv", "classes.csv", b"name,id", "has no class"),
    ("voc", "ImageSets/Main/train.txt", b"a\n\xff", "line 2: not UTF-8"),
    ("coco", COCO_TRAIN, b"{", r"instances_train.json is not JSON .*line 1"),
    ("coco", COCO_TRAIN, b"[" * 100_000, "is not JSON of a data set"),
    ("coco", COCO_TRAIN, b'{"images": [], "annotations": {}}', "no list 'annotations'"),
    ("coco", COCO_TRAIN, SAME_IDS, r"categories\[1\].* of its own as id"),
]


@pytest.mark.parametrize(("form", "file", "content", "sentence"), BAD_SOURCES)
def test_a_bad_source_is_one_sentence_and_nothing_is_written(form, file, content, sentence, tmp_path):
    source = WRITERS[form](tmp_path / "source")
    (source / file).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        convert(form, source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("form", READERS)
def test_a_folder_of_another_format_is_one_sentence(form, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for source in ("empty", "file") if form in ("oid", "voc", "kitti") else ("empty",):
        with pytest.raises(InputError, match=rf"{source} has no .*: expected"):
            convert(form, tmp_path / source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


# === Splits and folds ===
def test_images_in_two_splits_are_refused_and_joined_sets_have_them_once(tmp_path):
    source = write_voc_source(tmp_path / "source")
    (source / "ImageSets" / "Main" / "more.txt").write_text("a\nv\n")
    with pytest.raises(SetError, match=r"v.jpg is in the sets of train and of validation"):
        convert("voc", source, tmp_path / "data", SplitChoice(("train=more", "validation=val")))
    convert("voc", source, tmp_path / "data", SplitChoice(("train=train+more",), folds=2))
    found = [*converted(tmp_path / "data", "train"), *converted(tmp_path / "data", "validation")]
    assert sorted(found) == ["a", "b", "c", "d", "v"]


def test_all_folds_together_cover_each_image_once(tmp_path):
    """Twelve images, two of them copies of others; no set for validation."""
    rows = {f"i{n:02d}": [("dog" if n % 3 else "cat", (1, 1, 9, 9 + n))] for n in range(12)}
    source, seen = write_csv_source(tmp_path / "source", {"train": rows}), []
    images = source / "images"
    for copy, original in (("i10", "i00"), ("i11", "i01")):
        (images / f"{copy}.png").write_bytes((images / f"{original}.png").read_bytes())
    for fold in range(4):
        data_set = tmp_path / f"data{fold}"
        convert("csv", source, data_set, SplitChoice(folds=4, fold=fold))
        train, validation = converted(data_set, "train").keys(), converted(data_set, "validation").keys()
        assert len(train) + len(validation) == 12
        for copy, original in (("i10", "i00"), ("i11", "i01")):
            assert (copy in validation) == (original in validation)
        problems = {row["problem"] for row in table(data_set / "source_problems.csv")}
        assert problems <= {"identical images within train", "identical images within validation"}
        seen += validation
    assert sorted(seen) == [f"i{n:02d}" for n in range(12)]


def test_equal_images_of_two_given_sets_are_reported(tmp_path):
    source = write_csv_source(tmp_path / "source", {**SETS, "val": {**VALIDATION, "copy": TRAIN["a"]}})
    (source / "images" / "copy.png").write_bytes((source / "images" / "a.png").read_bytes())
    convert("csv", source, tmp_path / "data")
    (row,) = table(tmp_path / "data" / "source_problems.csv")
    assert row["problem"] == "identical images in train and in validation: the metric is too good"
    assert (Path(row["file"]).name, Path(row["value"]).name) == ("copy.png", "a.png")


# === Open Images as a source ===
def test_the_training_images_of_open_images_are_divided(tmp_path):
    """Nine boxed images, one of them a copy, and one that is not on disk."""
    source, boxes, images = tmp_path / "source", [], []
    rows = [oid_box(f"i{n}", "apple" if n % 3 else "car") for n in range(9)]
    make_open_images(source, rows, train_labels=[(f"i{n}", "carrot", "0") for n in range(10)])
    paths.box_annotations(source, "validation").unlink()
    for n in range(8):
        picture(source / "train" / f"i{n}.png", n if n < 7 else 0)
    whole = table(paths.box_annotations(source, "train"))
    for fold in range(3):
        data_set = tmp_path / f"data{fold}"
        convert("oid", source, data_set, SplitChoice(folds=3, fold=fold))
        train, validation = (table(paths.box_annotations(data_set, split)) for split in ("train", "validation"))
        assert sorted(train + validation, key=str) == sorted(whole, key=str)
        labelled = [table(paths.image_label_annotations(data_set, split)) for split in ("train", "validation")]
        assert sum(map(len, labelled)) == 10
        shown = {row["ImageID"] for row in validation}
        assert ("i7" in shown) == ("i0" in shown)  # they are the same image
        assert find_images(data_set / "validation").keys() == shown & {f"i{n}" for n in range(8)}
        boxes += validation
        images += find_images(data_set / "validation")
        make_levels(data_set, tmp_path / "out", "1")
    assert sorted(row["ImageID"] for row in boxes) == [f"i{n}" for n in range(9)]
    assert sorted(images) == [f"i{n}" for n in range(8)]


def test_open_images_with_validation_needs_no_conversion(tmp_path):
    source = make_open_images(tmp_path / "source", [oid_box("a", "apple"), oid_box("b", "apple")])
    with pytest.raises(FolderError, match=r"source has a validation split, so there is nothing to make: give it"):
        convert("oid", source, tmp_path / "data")
    convert("oid", source, tmp_path / "data", SplitChoice(("train=train",), folds=2))
    assert len(table(paths.box_annotations(tmp_path / "data", "train"))) == 1
