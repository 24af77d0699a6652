"""Proves that a01 takes a data set of the user's own from the command line, that a mistake is one sentence, and that
the scripts after it work on the result as on Open Images, up to the metric."""

import json

import pytest

import a01_create_training_files as a01
from oid import paths
from tests.helpers.own_data import WRITERS, converted, table, write_csv_source, write_rows, write_voc_source
from tests.helpers.project import run_script, shared
from tests.helpers.small_open_images import Result
from tests.helpers.small_photographs import TINY, photograph


def test_a01_converts_and_exports(tmp_path):
    source, data_set = write_voc_source(tmp_path / "source"), tmp_path / "data"
    flags = ("--dataset_path", data_set, "--output_path", tmp_path / "out")
    done = run_script("a01_create_training_files.py", "--source", "voc", "--source_path", source, *flags)
    assert done.returncode == 0, done.stderr
    assert "train: 4 images, 1 without boxes, 5 boxes" in done.stdout
    assert "no class has them: 1 (2)" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["level_1_files", "level_all_files"]
    flags = ("--dataset_path", data_set, "--output_path", tmp_path / "none", "--export", "coco")
    done = run_script("a01_create_training_files.py", *flags, "--export_path", tmp_path / "coco")
    assert done.returncode == 0, done.stderr
    assert "train: 4 images, 5 boxes of 2 classes" in done.stdout
    assert not (tmp_path / "none").exists()
    content = json.loads((tmp_path / "coco" / "annotations" / "instances_train.json").read_text())
    assert len(content["annotations"]) == 5


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--source csv --source_path {0}/broken", "line 1: not CSV"),
        (
            "--source csv --source_path {0}/source --fold 7",
            "error: --fold is 7: give a number from 0 to 4, for 5 folds",
        ),
        (
            "--source csv --source_path {0}/source --source_splits a",
            "'a' cannot be chosen: give train=..., validation=..., test=",
        ),
        (
            "--source csv --source_path {0}/source --validation_folds 1",
            "--validation_folds is 1: give 2 or more",
        ),
        ("--output_path {0}/broken/annotations.csv", "is not a writable folder: give another --output_path"),
        ("--source csv --source_path {0}/nowhere", "error: --source_path is {0}/nowhere: give the folder"),
        (
            "--source csv --source_path {0}/source --dataset_path {0}/broken",
            "give another folder: change --dataset_path",
        ),
        ("--source csv", "error: --source is csv: give --source_path too"),
        ("--fold 1", "error: --source_splits, --validation_folds and --fold need --source_path"),
        ("--export coco", "error: --export and --export_path belong together"),
        ("--dataset_path {1} --export coco --export_path {0}/source", "give another folder: change --export_path"),
    ],
)
def test_a_mistake_is_one_sentence(flags, sentence, tmp_path):
    write_csv_source(tmp_path / "source")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "annotations.csv").write_text('"a.png\n')
    (tmp_path / "data").mkdir()
    place = ("--dataset_path", tmp_path / "data", "--output_path", tmp_path / "out")
    flags = flags.format(tmp_path, shared("data", "fruit_oid")).split()
    done = run_script("a01_create_training_files.py", *place, *flags)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert sentence.format(tmp_path) in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "data").iterdir()) == []


def test_real_microscope_images(tmp_path, capsys):
    """BCCD: two boxes of one pixel, reported with file and place; its own sets, or those that are named."""
    source = str(shared("data", "bccd_voc"))
    places = {"dataset_path": str(tmp_path / "data"), "output_path": str(tmp_path / "out"), "levels": ("1",)}
    a01.main(source="voc", source_path=source, **places)
    splits = ("train", "validation", "test")
    rows = {split: converted(tmp_path / "data", split, (640, 480)) for split in splits}
    assert [len(rows[split]) for split in splits] == [205, 87, 72]
    assert [sum(map(len, rows[split].values())) for split in splits] == [2805, 1138, 945]
    problems = table(tmp_path / "data" / "source_problems.csv")
    assert [(row["place"], row["value"], row["done"]) for row in problems] == [
        ("object 4", "RBC 181,329,181,329, image 640 x 480", "kept"),
        ("object 13", "RBC 504,337,504,337, image 640 x 480", "kept"),
    ]
    folds = {"dataset_path": str(tmp_path / "folds"), "source_splits": ("train=trainval", "test=test")}
    a01.main(source="voc", source_path=source, validation_folds=4, fold=2, **places | folds)
    assert "fold 2 of 4 of the training images" in capsys.readouterr().out
    train, validation = (converted(tmp_path / "folds", split, (640, 480)) for split in splits[:2])
    assert (len(train) + len(validation), abs(len(validation) - 73) <= 2) == (292, True)
    for name in ("RBC", "WBC", "Platelets"):
        images = [sum(any(c == name for c, _ in boxes) for boxes in rows.values()) for rows in (train, validation)]
        assert images[1] / sum(images) == pytest.approx(0.25, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["csv", "kitti"])
def test_from_own_data_to_the_metric(form, tmp_path, tiny_backbone, capsys):
    import a02_find_image_parameters as a02
    import a03_train_m2det as a03
    import a04_inference as a04
    import a05_expand_hierarchy as a05
    import a06_ensemble as a06
    import a07_evaluate as a07

    source = WRITERS[form](tmp_path / "source")
    for path in source.rglob("*.*g"):  # pictures in which there is something
        photograph(path, sum(map(ord, path.stem)), ("apple",))
    file_paths = {"dataset_path": str(tmp_path / "data"), "output_path": str(tmp_path / "out")}
    a01.main(source=form, source_path=str(source), **file_paths)
    a02.main(**file_paths)
    a03.main(run="own", **file_paths, **TINY)
    a04.main(run=("own",), score_threshold=0.0, **file_paths)
    a05.main(run=("own",), **file_paths)
    a06.main(**file_paths)
    a07.main(**file_paths)
    assert capsys.readouterr().out.splitlines()[-1].startswith("mAP@0.5 = ")
    metrics = json.loads(paths.metrics_file(paths.submission(tmp_path / "out", "validation")).read_text())
    assert metrics["images"] == 2


def test_a_second_class_file_decides_the_order_of_the_outputs(tmp_path):
    source = write_csv_source(tmp_path / "source")
    file_paths = {"dataset_path": str(tmp_path / "data"), "output_path": str(tmp_path / "out")}
    for number, order in ((0, ["/m/cat", "/m/dog"]), (9, ["/m/dog", "/m/cat"])):
        write_rows(source / "classes.csv", [("cat", number), ("dog", 1)])
        a01.main(source="csv", source_path=str(source), levels=("1",), **file_paths)
        assert list(Result(tmp_path / "out", "1").classes) == order
