"""Proves that a data set of another format becomes one in Open Images' layout that a01 takes: boxes and image labels,
ids, links, splits and folds; that the same command again gives the same files, and that nothing else is overwritten."""

import json
import os

import pytest

import oid.sources.write
from a01_create_training_files import main as create_training_files
from benchmarks.training_runs import measure
from benchmarks.training_runs import score as mean_average_precision
from oid import paths
from oid.annotations import read_class_descriptions
from oid.files import InputError
from oid.hierarchy import read_hierarchy
from oid.images.find import find_images
from oid.metric.ground_truth import read_ground_truth
from oid.sources.conversion import convert
from oid.sources.splits import choose_sets
from oid.sources.write import class_labels, image_ids
from tests.helpers.own_data import (
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


# === The data set ===


@pytest.mark.parametrize("form", WRITERS)
def test_a_source_becomes_a_data_set(form, tmp_path):
    source, data_set = WRITERS[form](tmp_path / "source"), tmp_path / "data"
    convert(form, str(source), str(data_set))
    renamed = {"Car": "dog", "Cyclist": "cat"}
    for split, expected in (("train", TRAIN), ("validation", VALIDATION)):
        rows = converted(data_set, split).items()
        assert {i: [(renamed.get(c, c), b) for c, b in boxes] for i, boxes in rows} == expected
        assert find_images(data_set / split).keys() == expected.keys()
        labels = table(paths.image_label_annotations(data_set, split))
        assert len(labels) == 2 * len(expected)
        present = {i: {"Car" if form == "kitti" and c == "dog" else c for c, _ in rows} for i, rows in expected.items()}
        assert sum(row["Confidence"] == "1" for row in labels) == sum(map(len, present.values()))
    assert not (data_set / "source_problems.csv").exists()
    tree = read_hierarchy(paths.annotation_file(data_set, paths.HIERARCHY))
    assert all(tree.height(label) == 1 for label in tree.labels if label != tree.root)


@pytest.mark.parametrize("form", WRITERS)
def test_a01_takes_the_data_set(form, tmp_path):
    convert(form, str(WRITERS[form](tmp_path / "source")), str(tmp_path / "data"))
    create_training_files(dataset_path=str(tmp_path / "data"), output_path=str(tmp_path / "out"), levels=("1",))
    result = Result(tmp_path / "out", "1")
    assert len(result.boxes) == sum(map(len, TRAIN.values()))
    assert [row[0] for row in result.negatives] == ["c"]
    assert len(Result(tmp_path / "out", "1", "validation").boxes) == sum(map(len, VALIDATION.values()))


def test_the_ground_truth_as_predictions_measures_one(tmp_path):
    """The metric takes the data set: its own boxes are all right, and a box of a class that is not there is wrong."""
    data_set, path = tmp_path / "data", tmp_path / "predictions.csv"
    convert("voc", str(write_voc_source(tmp_path / "source")), str(data_set))
    own = {image: [(0.5, *box) for box in boxes] for image, boxes in converted(data_set, "validation").items()}
    for extra, expected in (([], 1.0), ([(0.9, "dog", (0, 0, 40, 30))], 0.75)):  # before the only dog: AP 1/2
        lines = ["ImageId,PredictionString"]
        for image, boxes in (own | {"v": own["v"] + extra}).items():
            corners = [(name, score, x0 / 40, y0 / 30, x1 / 40, y1 / 30) for score, name, (x0, y0, x1, y1) in boxes]
            lines.append(f"{image},{' '.join(f'/m/{name} ' + ' '.join(map(str, rest)) for name, *rest in corners)}")
        path.write_text("\n".join(lines) + "\n")
        assert mean_average_precision([measure(data_set, path)])[0] == pytest.approx(expected)


def test_images_are_links_and_the_source_stays(tmp_path):
    source = write_csv_source(tmp_path / "source")
    before = contents(source)
    convert("csv", str(source), str(tmp_path / "data"))
    assert (tmp_path / "data" / "train" / "a.png").samefile(source / "images" / "a.png")
    assert contents(source) == before
    row = table(tmp_path / "data" / "source_images.csv")[0]
    assert (row["Split"], row["ImageID"], row["Width"], row["Height"]) == ("train", "a", "40", "30")
    assert os.path.samefile(row["Path"], source / "images" / "a.png")


@pytest.mark.parametrize(("without", "link"), [("link", True), ("link symlink", False)])
def test_where_no_hard_links_are_possible(without, link, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("not here")

    for name in without.split():
        monkeypatch.setattr(os, name, refuse)
    source = write_csv_source(tmp_path / "source")
    convert("csv", str(source), str(tmp_path / "data"))
    path = tmp_path / "data" / "train" / "a.png"
    assert path.is_symlink() == link
    assert path.read_bytes() == (source / "images" / "a.png").read_bytes()


def test_a_class_whose_box_was_unusable_is_not_verified(tmp_path):
    """Whoever drew the box saw the class there; what is not annotated at all is not there."""
    write_voc_source(tmp_path / "source")
    flat = voc_object("cat", (5, 5, 5, 9)) + voc_object("cow", (5, 5, 9, 9))
    (tmp_path / "source" / "Annotations" / "b.xml").write_text(voc_file(flat))
    convert("voc", str(tmp_path / "source"), str(tmp_path / "data"))
    labels = table(paths.image_label_annotations(tmp_path / "data", "train"))
    assert {(x["LabelName"], x["Confidence"]) for x in labels if x["ImageID"] == "b"} == {
        ("/m/cow", "1"),
        ("/m/dog", "0"),
    }
    (problem,) = table(tmp_path / "data" / "source_problems.csv")
    assert (problem["place"], problem["problem"]) == ("line 3, object 1", "box without area")


def test_marks_of_objects_come_into_the_columns(tmp_path):
    write_voc_source(tmp_path / "source")
    marks = "<truncated>1</truncated><occluded>1</occluded><difficult>1</difficult>"
    (tmp_path / "source" / "Annotations" / "b.xml").write_text(voc_file(voc_object("cat", (5, 5, 9, 9), marks)))
    convert("voc", str(tmp_path / "source"), str(tmp_path / "data"))
    rows = {row["ImageID"]: row for row in table(paths.box_annotations(tmp_path / "data", "train"))}
    names = ("IsOccluded", "IsTruncated", "IsGroupOf", "IsDifficult")
    assert [rows["b"][name] for name in names] == ["1", "1", "0", "1"]
    assert [rows["a"][name] for name in names] == ["0", "0", "0", "0"]
    create_training_files(dataset_path=str(tmp_path / "data"), output_path=str(tmp_path / "out"), levels=("1",))
    assert ("b", "/m/cat") in Result(tmp_path / "out", "1").shown()


def test_areas_where_any_class_may_be_teach_nothing(tmp_path):
    """KITTI's DontCare: an ignored region of every class in training, no class, and no ground truth."""
    write_kitti_source(tmp_path / "source")
    with open(tmp_path / "source" / "train" / "labels" / "c.txt", "a") as file:
        file.write(kitti_line("DontCare", (20, 15, 40, 30), -1, -1))
    data_set = tmp_path / "data"
    convert("kitti", str(tmp_path / "source"), str(data_set))
    create_training_files(dataset_path=str(data_set), output_path=str(tmp_path / "out"), levels=("1", "all"))
    for level in ("1", "all"):
        result = Result(tmp_path / "out", level)
        assert set(result.classes) == {"/m/car", "/m/cyclist"}
        assert result.ignored() == [("c", "/m/anything", "ancestor_class")]
        train = read_data_set(str(data_set), str(tmp_path / "out"), level, "train")
        assert train.region_classes[train.regions.labels].tolist() == [[1, 1]]  # neither class learns anything there
        assert [float(x) for x in result.regions[0][2:6]] == [0.5, 1, 0.5, 1]
    tree = read_hierarchy(paths.annotation_file(data_set, paths.HIERARCHY))
    classes = read_class_descriptions(paths.annotation_file(data_set, paths.CLASS_DESCRIPTIONS))
    _, report = read_ground_truth(paths.box_annotations(data_set, "train"), None, tree, list(classes))
    assert report.boxes == sum(map(len, TRAIN.values()))
    assert report.dropped_boxes == {"/m/anything": 1}


# === Ids and labels ===


def test_ids_are_file_names_where_these_are_unique():
    names = ["in/a", "in/b", "other/b", "x y,z", "Zürich/写真", "A B", "deep/a b"]
    assert image_ids(names) == ["a", "in_b", "other_b", "x_y_z", "写真", "A_B", "deep_a_b"]


def test_ids_never_meet_even_in_other_letters():
    ids = image_ids(["IMG", "img", "d/img", "d_img", "d/IMG", '"', ",", "é" * 300, "é" * 301])
    assert len({image.casefold() for image in ids}) == len(ids)
    assert all(image and not set(image) & set('/,". ') and len(image) < 200 for image in ids)


def test_labels_of_classes_have_no_white_space_and_are_unique():
    labels = class_labels(["Red cell", "red_cell", "RED CELL", "a,b", "anything", "0bl9f", "車"])
    assert list(labels.values()) == [
        *("/m/red_cell", "/m/red_cell_2", "/m/red_cell_3"),
        *("/m/a_b", "/m/anything_2", "/m/0bl9f_2", "/m/車"),
    ]


def test_kittis_numbers_of_two_sets_do_not_meet(tmp_path):
    write_kitti_source(tmp_path / "source", {"train": TRAIN, "val": {"a": VALIDATION["v"]}})
    convert("kitti", str(tmp_path / "source"), str(tmp_path / "data"))
    assert converted(tmp_path / "data", "train").keys() == {"train_a", "b", "c", "d"}
    assert converted(tmp_path / "data", "validation").keys() == {"val_a"}


# === Running again, and what is in the way ===


def test_the_same_command_again_gives_the_same_files(tmp_path):
    source, data_set = write_csv_source(tmp_path / "source"), tmp_path / "data"
    convert("csv", str(source), str(data_set))
    before = contents(data_set)
    convert("csv", str(source), str(data_set))
    assert contents(data_set) == before


def test_a_changed_source_leaves_nothing_of_before(tmp_path):
    source, data_set = write_csv_source(tmp_path / "source"), tmp_path / "data"
    convert("csv", str(source), str(data_set))
    (data_set / "notes.txt").write_text("mine")
    (data_set / "train" / "mine.png").write_bytes(b"mine")
    write_rows(source / "annotations.csv", [("images/a.png", 1, 1, 9, 9, "dog"), ("images/b.png", 9, 1, 1, 9, "dog")])
    convert("csv", str(source), str(data_set))
    assert sorted(path.name for path in (data_set / "train").iterdir()) == ["a.png", "b.png", "mine.png"]
    assert len(table(data_set / "source_problems.csv")) == 1
    write_rows(source / "annotations.csv", [("images/a.png", 1, 1, 9, 9, "dog")])
    convert("csv", str(source), str(data_set))
    assert not (data_set / "source_problems.csv").exists()
    assert (data_set / "notes.txt").exists()


def test_after_a_kill_the_same_command_goes_on(tmp_path, monkeypatch):
    source, data_set = write_csv_source(tmp_path / "source"), tmp_path / "data"
    convert("csv", str(source), str(tmp_path / "whole"))
    real, calls = oid.sources.write._link, []

    def stop(path, link):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(path, link)

    monkeypatch.setattr(oid.sources.write, "_link", stop)
    with pytest.raises(KeyboardInterrupt):
        convert("csv", str(source), str(data_set))
    assert not (data_set / "annotations").exists()
    assert not list(data_set.rglob(".*"))
    convert("csv", str(source), str(data_set))
    assert contents(data_set) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        ({"source_splits": ("train=annotations",)}, "source_splits"),
        ({"source_splits": ("train=annotations",), "validation_folds": 2}, "source_splits"),
        ({"source": "coco"}, "source 'csv'"),
    ],
)
def test_another_conversion_is_not_overwritten(flags, what, tmp_path):
    source, data_set = write_csv_source(tmp_path / "source"), tmp_path / "data"
    WRITERS["coco"](source)
    convert("csv", str(source), str(data_set))
    before = contents(data_set)
    flags = {"source": "csv", "source_path": str(source), "dataset_path": str(data_set)} | flags
    with pytest.raises(InputError, match=rf"is the data set made with {what}.*give another folder by --dataset_path"):
        convert(**flags)
    assert contents(data_set) == before


@pytest.mark.parametrize("mark", [None, "", "[]", "{}"])
def test_a_folder_of_the_users_is_not_written_to(mark, tmp_path):
    data_set = tmp_path / "data"
    data_set.mkdir()
    (data_set / ("mine.txt" if mark is None else "source.json")).write_text(mark or "")
    before = contents(data_set)
    with pytest.raises(InputError, match="--dataset_path"):
        convert("csv", str(write_csv_source(tmp_path / "source")), str(data_set))
    assert contents(data_set) == before


def test_nothing_is_written_when_the_source_is_wrong(tmp_path):
    source = write_csv_source(tmp_path / "source")
    write_rows(source / "annotations.csv", [("images/no.png", 1, 1, 9, 9, "dog")])
    with pytest.raises(
        InputError, match=r"no usable image for train: the first of 1 problems is .*line 1: missing image"
    ):
        convert("csv", str(source), str(tmp_path / "data"))
    write_rows(source / "annotations.csv", [("images/a.png", 1, 1, 9, 9, "cow"), ("images/b.png", 1, 1, 9, 9, "cow")])
    with pytest.raises(
        InputError, match=r"no usable box for train: the first of 2 problems is .*line 1: unknown class"
    ):
        convert("csv", str(source), str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


# === Splits ===


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["test", "train", "trainval", "val"], {"train": ["train"], "validation": ["val"], "test": ["test"]}),
        (["trainval", "test"], {"train": ["trainval"], "test": ["test"]}),
        (["train2017", "val2017"], {"train": ["train2017"], "validation": ["val2017"]}),
        (["training"], {"train": ["training"]}),
        (["train", "valid"], {"train": ["train"], "validation": ["valid"]}),
        (["annotations", "val_annotations"], {"train": ["annotations"], "validation": ["val_annotations"]}),
        (["annotations", "notes"], {"train": ["annotations"]}),
        (["default"], {"train": ["default"]}),
        (["cat_train", "train", "cat_val", "val"], {"train": ["train"], "validation": ["val"]}),
    ],
)
def test_sets_are_known_by_their_names(names, chosen):
    assert choose_sets(names, ()) == chosen
    assert choose_sets(names[::-1], ()) == chosen


def test_sets_can_be_named_and_joined():
    names = ["a", "b", "c"]
    assert choose_sets(names, ["validation=c", "train=b+a"]) == {"train": ["b", "a"], "validation": ["c"]}


@pytest.mark.parametrize(
    ("names", "wanted", "sentence"),
    [
        (
            ["train2014", "train2017"],
            [],
            r"train2014, train2017 could be train: choose by --source_splits train=\.\.\.",
        ),
        (["a", "b"], [], "a, b could be train"),
        (["val"], [], "no set for training: name one of val"),
        (["a"], ["validation=a"], "no set for training"),
        (["a"], ["train=x"], "the source has no set 'x', but a"),
        (["a"], ["train=a", "validation=a"], "the set 'a' is in train already"),
        (["a"], ["train=a+a"], "the set 'a' is in train already"),
        (["a"], ["train=a", "train=a"], "train is there twice, join its sets with +"),
        (["a"], ["val=a"], "--source_splits val=a: give train=..., validation=..., test=..."),
        (["a"], ["train"], "--source_splits train: give train="),
        (["a"], ["train="], "--source_splits train=: give train="),
    ],
)
def test_wrong_sets_are_one_sentence(names, wanted, sentence):
    with pytest.raises(InputError) as error:
        choose_sets(names, wanted)
    assert sentence.replace("\\", "") in str(error.value)


def test_images_in_two_splits_are_refused(tmp_path):
    source = write_voc_source(tmp_path / "source")
    (source / "ImageSets" / "Main" / "trainval.txt").write_text("a\nv\n")
    with pytest.raises(InputError, match=r"v.jpg is in the sets of train and of validation: name others"):
        convert("voc", str(source), str(tmp_path / "d"), source_splits=("train=trainval", "validation=val"))


def test_joined_sets_have_each_image_once(tmp_path):
    source = write_voc_source(tmp_path / "source")
    (source / "ImageSets" / "Main" / "more.txt").write_text("a\nv\n")
    convert("voc", str(source), str(tmp_path / "data"), source_splits=("train=train+more",), validation_folds=2)
    found = [*converted(tmp_path / "data", "train"), *converted(tmp_path / "data", "validation")]
    assert sorted(found) == ["a", "b", "c", "d", "v"]


# === Folds ===


def folds_source(folder):
    """Twelve images, two of them copies of others; no set for validation."""
    images = {f"i{n:02d}": [("dog" if n % 3 else "cat", (1, 1, 9, 9 + n))] for n in range(12)}
    write_csv_source(folder, {"train": images})
    for copy, original in (("i10", "i00"), ("i11", "i01")):
        (folder / "images" / f"{copy}.png").write_bytes((folder / "images" / f"{original}.png").read_bytes())
    return folder


def test_all_folds_together_cover_each_image_once(tmp_path):
    source, seen = folds_source(tmp_path / "source"), []
    for fold in range(4):
        data_set = tmp_path / f"data{fold}"
        convert("csv", str(source), str(data_set), validation_folds=4, fold=fold)
        train, validation = converted(data_set, "train").keys(), converted(data_set, "validation").keys()
        assert len(train) + len(validation) == 12
        for copy, original in (("i10", "i00"), ("i11", "i01")):
            assert (copy in validation) == (original in validation)
        told = {row["problem"] for row in table(data_set / "source_problems.csv")}
        assert told <= {"identical images within train", "identical images within validation"}
        seen += validation
    assert sorted(seen) == [f"i{n:02d}" for n in range(12)]


def test_without_a_set_for_validation_a_fold_is_taken_and_told(tmp_path, capsys):
    source = folds_source(tmp_path / "source")
    convert("csv", str(source), str(tmp_path / "data"))
    assert "no validation set: fold 0 of 5 of the training images is taken" in capsys.readouterr().out
    convert("csv", str(source), str(tmp_path / "same"), validation_folds=5, fold=0)
    assert converted(tmp_path / "data", "validation") == converted(tmp_path / "same", "validation")
    assert json.loads((tmp_path / "data" / "source.json").read_text())["validation_folds"] == 5


@pytest.mark.parametrize("flags", [{"validation_folds": 3}, {"fold": 1}])
def test_folds_beside_a_set_for_validation_are_refused(flags, tmp_path):
    with pytest.raises(
        InputError, match=r"has a set for validation: leave it out by --source_splits train=annotations"
    ):
        convert("csv", str(write_csv_source(tmp_path / "source")), str(tmp_path / "data"), **flags)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"validation_folds": 1}, "--validation_folds 1: there must be 2 or more"),
        ({"validation_folds": 3, "fold": 3}, "--fold 3: of 3 folds the first is 0"),
        ({"fold": -1}, "--fold -1: of 5 folds the first is 0"),
        ({"validation_folds": 11}, "--validation_folds 11: there are 10 different images"),
        ({"source_splits": ("train=few",), "fold": 1}, "has too few images with boxes for 5 folds: ask for fewer"),
        ({"source": "oid"}, "has no annotations/train-annotations-bbox.csv"),
        ({"source": "voc"}, "has no annotations: expected Annotations/"),
        ({"source": "coco"}, "has no annotations: expected annotations/instances_"),
        ({"source": "kitti"}, "has no labels: expected training/image_2"),
        ({"source_path": "nowhere"}, "--source_path nowhere does not exist"),
        ({"source_path": None}, "--source csv needs --source_path"),
        ({"source": "oid", "source_path": None, "fold": 1}, "--fold needs --source_path"),
        ({"source": "oid", "source_path": None, "source_splits": ("train=a",)}, "--source_splits needs --source_path"),
    ],
)
def test_wrong_flags_are_one_sentence(flags, sentence, tmp_path):
    flags = {"source": "csv", "source_path": str(folds_source(tmp_path / "source"))} | flags
    few = [("images/i00.png", 1, 1, 9, 9, "dog"), *((f"images/i0{n}.png", *[""] * 5) for n in range(1, 5))]
    write_rows(tmp_path / "source" / "few.csv", few)
    with pytest.raises(InputError) as error:
        convert(dataset_path=str(tmp_path / "data"), **flags)
    assert sentence in str(error.value)
    assert not (tmp_path / "data").exists()


def test_equal_images_of_two_given_sets_are_told(tmp_path):
    source = write_csv_source(tmp_path / "source", {**SETS, "val": {**VALIDATION, "copy": TRAIN["a"]}})
    (source / "images" / "copy.png").write_bytes((source / "images" / "a.png").read_bytes())
    convert("csv", str(source), str(tmp_path / "data"))
    (row,) = table(tmp_path / "data" / "source_problems.csv")
    assert row["problem"] == "identical images in train and in validation: the metric is too good"
    assert (row["file"].endswith("copy.png"), row["value"].endswith("a.png")) == (True, True)


# === Open Images as a source ===


def open_images(folder):
    """A data set in Open Images' layout with nine boxed images, one of them a copy, and one that is not on disk."""
    rows = [oid_box(f"i{n}", "apple" if n % 3 else "car") for n in range(9)]
    labels = [(f"i{n}", "carrot", "0") for n in range(10)]
    make_open_images(folder, rows, train_labels=labels)
    paths.box_annotations(folder, "validation").unlink()
    for n in range(8):
        picture(folder / "train" / f"i{n}.png", n if n < 7 else 0)
    return folder


def test_the_training_images_of_open_images_are_divided(tmp_path):
    source, boxes, images = open_images(tmp_path / "source"), [], []
    whole = table(paths.box_annotations(source, "train"))
    for fold in range(3):
        data_set = tmp_path / f"data{fold}"
        convert("oid", str(source), str(data_set), validation_folds=3, fold=fold)
        train, validation = (table(paths.box_annotations(data_set, split)) for split in ("train", "validation"))
        assert sorted(train + validation, key=str) == sorted(whole, key=str)
        labelled = [table(paths.image_label_annotations(data_set, split)) for split in ("train", "validation")]
        assert sum(map(len, labelled)) == 10
        shown = {row["ImageID"] for row in validation}
        assert ("i7" in shown) == ("i0" in shown)  # they are the same image
        assert find_images(data_set / "validation").keys() == shown & {f"i{n}" for n in range(8)}
        boxes += validation
        images += find_images(data_set / "validation")
        create_training_files(dataset_path=str(data_set), output_path=str(tmp_path / "out"), levels=("1",))
    assert sorted(row["ImageID"] for row in boxes) == [f"i{n}" for n in range(9)]
    assert sorted(images) == [f"i{n}" for n in range(8)]


def test_open_images_with_validation_needs_no_conversion(tmp_path):
    source = make_open_images(tmp_path / "source", [oid_box("a", "apple"), oid_box("b", "apple")])
    with pytest.raises(InputError, match=r"has a validation split: give --dataset_path .*source alone"):
        convert("oid", str(source), str(tmp_path / "data"))
    with pytest.raises(InputError, match=r"has a validation split: leave it out by --source_splits train=train"):
        convert("oid", str(source), str(tmp_path / "data"), validation_folds=2)
    convert("oid", str(source), str(tmp_path / "data"), validation_folds=2, source_splits=("train=train",))
    assert len(table(paths.box_annotations(tmp_path / "data", "train"))) == 1
