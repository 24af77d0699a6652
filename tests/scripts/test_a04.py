"""Proves a04: a row for every image, exact tokens, limits, and the same file however often it was stopped."""

import csv
import functools
import gzip
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import a04_inference as a04
import models.load
from models.detector import Detector, build_network
from models.suppression import DetectionOptions
from oid import paths
from oid.lock import locked
from oid.predictions.files import read_predictions
from tests.helpers.project import refused
from tests.helpers.tiny_network import pictures, randomised, tiny_settings, write_settings


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with random weights, loaded once, and seven images in one folder, in an order that is not the ids'."""
    output, images = tmp_path_factory.mktemp("output"), tmp_path_factory.mktemp("images")
    write_run(output / "weights" / "trained", seed=1)
    ids = ["007", "10", "9", "Z", "a", "b", "e,1 ü"]  # a comma, a blank and a letter beyond ASCII
    for number, name in enumerate(reversed(ids)):
        (image,) = pictures(1, 60 + 9 * number, 150 - 20 * number, seed=number)
        cv2.imwrite(str(images / f"{name}{('.png', '.jpg')[number % 2]}"), image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models.load, "load_model", functools.cache(models.load.load_model))
        yield SimpleNamespace(output=output, folder=output / "weights" / "trained", images=images, ids=ids)


def write_run(folder: Path, *, seed: int) -> None:
    """A run's folder, with other weights in its checkpoint."""
    write_settings(folder, tiny_settings(resize="letterbox"))
    (folder / "checkpoint").mkdir()
    network = randomised(build_network(tiny_settings()), seed=seed)
    network.save(folder / "model.keras")
    randomised(network, seed=seed + 10).save_weights(folder / "checkpoint" / "network.weights.h5")


def predict(case, target: Path, **flags) -> Path:
    flags = {"output_path": str(case.output), "run": ("trained",), "images": str(case.images), "batch_size": 2} | flags
    a04.main(predictions=str(target), **flags)
    return target


def rows(path: Path) -> dict[str, list[list[str]]]:
    """{image id: its boxes, each a list of six texts}, in the file's order."""
    with open(path, newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    assert header == ["ImageId", "PredictionString"]
    tokens = {image_id: text.split(" ") if text else [] for image_id, text in lines}
    assert len(tokens) == len(lines)
    assert all(len(found) % 6 == 0 and all(found) for found in tokens.values())  # single blanks, none at the ends
    return {image_id: [t[i : i + 6] for i in range(0, len(t), 6)] for image_id, t in tokens.items()}


# === The file ========================================================================================================
def test_every_image_has_a_row_in_the_order_of_the_ids(run, tmp_path):
    found = rows(predict(run, tmp_path / "out.csv"))
    assert list(found) == run.ids
    labels = set(tiny_settings().labels)
    num_boxes = 0
    for boxes in found.values():
        scores = [float(box[1]) for box in boxes]
        assert scores == sorted(scores, reverse=True)
        assert len(boxes) <= 300
        for label, score, *corners in boxes:
            assert label in labels
            assert 0.01 <= float(score) <= 1
            assert score == f"{float(score):.9g}"
            assert all(text == f"{float(text):.6f}" for text in corners)
            x0, y0, x1, y1 = map(float, corners)
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1
            num_boxes += 1
    assert num_boxes > 20  # the test has seen boxes
    assert {path.name for path in tmp_path.iterdir()} <= {"out.csv", ".out.csv.lock"}  # no journal is left


@pytest.mark.parametrize(
    "options",
    [{}, {"nms_iou": 0.2}, {"nms_iou": 1.0, "vote_iou": 0.4}, {"nms": "linear"}, {"nms": "gaussian", "nms_sigma": 0.3}],
)
def test_the_file_is_what_the_detector_finds(run, tmp_path, options):
    predictions = read_predictions(predict(run, tmp_path / "out.csv", **options))
    detector = models.load_model(run.folder)
    for index, image_id in enumerate(run.ids):
        (path,) = run.images.glob(f"{image_id}.*")
        height, width = cv2.imread(str(path)).shape[:2]
        expected = detector.detect(path, DetectionOptions(**options))
        mine = predictions.image_index == index
        assert [predictions.labels[k] for k in predictions.label_index[mine]] == [found.label for found in expected]
        np.testing.assert_allclose(predictions.scores[mine], [found.score for found in expected], atol=1e-5)
        pixels = predictions.boxes[mine] * (width, height, width, height)
        np.testing.assert_allclose(pixels, [found.box for found in expected], atol=2e-3)


def test_limits(run, tmp_path):
    loose = rows(predict(run, tmp_path / "loose.csv", score_threshold=0.0, nms_iou=1.0, vote_iou=1))
    scores = sorted(float(box[1]) for boxes in loose.values() for box in boxes)
    threshold = scores[len(scores) // 2]
    options = {"nms_iou": 1.0, "vote_iou": 1, "max_boxes": 4}
    strict = rows(predict(run, tmp_path / "strict.csv", score_threshold=threshold, **options))
    assert max(map(len, loose.values())) == 300  # the default limit
    assert max(map(len, strict.values())) == 4
    for image_id in run.ids:
        above = [box for box in loose[image_id] if float(box[1]) >= threshold]
        assert strict[image_id] == above[:4]  # the best ones, not just any four
    assert list(strict) == run.ids
    nothing = rows(predict(run, tmp_path / "nothing.csv", score_threshold=1.0))
    assert nothing == {image_id: [] for image_id in run.ids}


def test_the_batch_size_does_not_change_boxes(run, tmp_path):
    one, four = (predict(run, tmp_path / f"{size}.csv", batch_size=size, threads=size) for size in (1, 4))
    one, four = read_predictions(one), read_predictions(four)
    np.testing.assert_array_equal(one.image_index, four.image_index)
    np.testing.assert_allclose(one.scores, four.scores, atol=1e-5)
    np.testing.assert_allclose(one.boxes, four.boxes, atol=1e-5)


def test_compressed_files_and_nested_folders_give_the_same_rows(run, tmp_path):
    """Folders are named by the first three characters of an id."""
    (tmp_path / "flat").mkdir()
    for path in run.images.iterdir():
        folder = tmp_path / "deep" / f"{path.stem}ab"[:3]
        folder.mkdir(parents=True, exist_ok=True)
        for place in (tmp_path / "flat", folder):
            shutil.copy(path, place / f"{path.stem}abc{path.suffix}")
    plain = predict(run, tmp_path / "flat.csv", images=str(tmp_path / "flat"))
    deep = predict(run, tmp_path / "deep.csv.gz", images=str(tmp_path / "deep"))
    assert gzip.decompress(deep.read_bytes()) == plain.read_bytes()


# === Images that cannot be read ======================================================================================
def test_an_unreadable_image_has_an_empty_row_and_is_named(run, tmp_path, capsys):
    folder = shutil.copytree(run.images, tmp_path / "images")
    (cut,) = folder.glob("10.*")
    cut.write_bytes(cut.read_bytes()[:200])
    (folder / "c.jpg").write_bytes(b"")
    (folder / os.fsdecode(b"\xff.jpg")).write_bytes(b"")  # no CSV in UTF-8 can hold it
    (folder / "notes.txt").write_text("")
    before = rows(predict(run, tmp_path / "before.csv"))
    capsys.readouterr()
    after = rows(predict(run, tmp_path / "after.csv", images=str(folder)))
    assert after == {image_id: before.get(image_id, []) for image_id in sorted([*run.ids, "c"])} | {"10": []}
    printed = capsys.readouterr().out
    assert f"empty row: {cut} is cut short" in printed
    assert f"empty row: {folder / 'c.jpg'} is empty" in printed
    assert "8 images, 2 of them unreadable" in printed
    assert f"passed over: '{folder / 'notes.txt'}' has none of the suffixes" in printed
    assert "\\udcff.jpg' " in printed


# === Stopping and going on ===========================================================================================
@pytest.fixture
def stopped(run, monkeypatch):
    """A function like `predict` that stops like a killed process after two batches."""

    def predict_and_stop(target: Path, **flags) -> None:
        count, detect = iter(range(100)), Detector.detect_prepared

        def limited(*arguments, **options):
            if next(count) == 2:
                raise KeyboardInterrupt
            return detect(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Detector, "detect_prepared", limited)
            with pytest.raises(KeyboardInterrupt):
                predict(run, target, **flags)

    return predict_and_stop


def test_a_stopped_run_goes_on_to_the_same_file(run, stopped, tmp_path, capsys):
    whole = predict(run, tmp_path / "whole.csv")
    folder = shutil.copytree(run.images, tmp_path / "images")
    (broken,) = folder.glob("007.*")
    good = broken.read_bytes()
    broken.write_bytes(b"")
    stopped(tmp_path / "out.csv", images=str(folder))
    assert not (tmp_path / "out.csv").exists()
    (journal,) = tmp_path.glob(".out.csv.*.unfinished")
    with journal.open("a") as file:
        file.write('["Z", "half a li')  # killed while writing
    broken.write_bytes(good)  # an image that could not be read is looked at again
    for going_on in (True, False):  # a finished file is made anew
        capsys.readouterr()
        predict(run, tmp_path / "out.csv", images=str(folder))
        assert ("going on after 3 of 7 images" in capsys.readouterr().out) == going_on
        assert (tmp_path / "out.csv").read_bytes() == whole.read_bytes()
        assert not list(tmp_path.glob("*.unfinished"))


@pytest.mark.parametrize(
    "change",
    [{"score_threshold": 0.02}, {"nms_iou": 0.3}, {"nms": "linear"}, {"precision": "bfloat16"}, {"run": ("other",)}],
)
def test_rows_made_with_other_settings_are_not_used(run, stopped, tmp_path, capsys, change):
    if not (run.output / "weights" / "other").exists():
        write_run(run.output / "weights" / "other", seed=2)
    stopped(tmp_path / "out.csv")
    capsys.readouterr()
    predict(run, tmp_path / "out.csv", **change)
    assert "going on" not in capsys.readouterr().out
    predict(run, tmp_path / "fresh.csv", **change)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "fresh.csv").read_bytes()


def test_a_checkpoint_that_went_on_is_another_network(run, stopped, tmp_path, capsys):
    """A training replaces the weights in its checkpoint, but not the best model beside them."""
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    shutil.copy(folder / "model.keras", folder / "checkpoint")
    stopped(tmp_path / "out.csv", run=(str(folder / "checkpoint"),))
    times = os.stat(folder / "checkpoint" / "network.weights.h5")
    randomised(build_network(tiny_settings()), seed=5).save_weights(folder / "checkpoint" / "network.weights.h5")
    os.utime(folder / "checkpoint" / "network.weights.h5", ns=(times.st_atime_ns, times.st_mtime_ns))
    models.load.load_model.cache_clear()
    capsys.readouterr()
    predict(run, tmp_path / "out.csv", run=(str(folder / "checkpoint"),))
    assert "going on" not in capsys.readouterr().out
    predict(run, tmp_path / "fresh.csv", run=(str(folder / "checkpoint"),))
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "fresh.csv").read_bytes()


def test_two_processes_do_not_write_the_same_file(run, tmp_path):
    with locked(tmp_path / "out.csv", "the test"), refused("out.csv is being written by process"):
        predict(run, tmp_path / "out.csv")
    assert len(rows(predict(run, tmp_path / "out.csv"))) == 7


# === Which run, which folder =========================================================================================
def test_a_run_by_name_by_folder_and_by_checkpoint(run, tmp_path, monkeypatch):
    by_name = predict(run, tmp_path / "name.csv")
    by_folder = predict(run, tmp_path / "folder.csv", run=(str(run.folder),))
    assert by_name.read_bytes() == by_folder.read_bytes()
    monkeypatch.chdir(run.folder.parent)
    by_relative_folder = predict(run, tmp_path / "relative.csv", run=("trained/checkpoint",))
    by_checkpoint = predict(run, tmp_path / "checkpoint.csv", run=(str(run.folder / "checkpoint"),))
    assert by_relative_folder.read_bytes() == by_checkpoint.read_bytes()
    assert by_name.read_bytes() != by_checkpoint.read_bytes()


@pytest.mark.parametrize(
    ("name", "file"), [("trained", "trained.csv"), ("trained/checkpoint", "trained_checkpoint.csv")]
)
def test_where_predictions_go_by_default(run, name, file):
    data_set, split = run.images.parent, run.images.name
    a04.main(dataset_path=str(data_set), output_path=str(run.output), run=(name,), split=split)
    target = run.output / "predictions" / split / file
    assert target == paths.run_predictions(run.output, split, name)
    assert len(rows(target)) == 7
    target.unlink()


def test_without_run_every_finished_run_predicts(run, tmp_path):
    for name in ("second", "first", "unfinished"):
        shutil.copytree(run.folder, tmp_path / "weights" / name)
    (tmp_path / "weights/unfinished/checkpoint/state.json").write_text(
        '{"state": {"epochs": 1, "plan": {"epochs": 2}}}'
    )
    places = {"output_path": str(tmp_path), "images": str(run.images), "split": "test", "batch_size": 2}
    a04.main(**places)
    first, second = sorted((tmp_path / "predictions" / "test").glob("[!.]*"))
    assert (first.name, second.name) == ("first.csv", "second.csv")
    assert first.read_bytes() == second.read_bytes()
    with refused(f"--predictions is {tmp_path / 'x.csv'}: give one run by --run"):
        a04.main(**places, predictions=str(tmp_path / "x.csv"))
    with refused("nothing/weights has no run that ", ": run a03 first, or name a run by --run"):
        a04.main(**places | {"output_path": str(tmp_path / "nothing")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": ("nothing",)}, "nothing is not a run: it has no settings.json; train one with a03, or change --run"),
        ({"images": "/nowhere"}, "/nowhere does not exist: name the folder with the images by --images"),
        ({"score_threshold": 1.5}, "--score_threshold is 1.5"),
        ({"nms_iou": float("nan")}, "--nms_iou is nan"),
        ({"nms_sigma": 0.0}, "--nms_sigma is 0.0"),
        ({"max_boxes": 0}, "--max_boxes is 0"),
        ({"batch_size": 0}, "--batch_size is 0"),
        ({"threads": -1}, "--threads is -1"),
        ({"min_side": 20}, "--min_side is 20: give a number of at least 32"),
        ({"max_side": 800}, "--max_side 800: these are for converted RetinaNets, and trained sees squares of 64"),
        (
            {"suppression": "keras_retinanet"},
            "is for converted RetinaNets, and this is another network: leave out --supp",
        ),
        ({"export_path": "a.onnx"}, "--export_path is a.onnx: give --export onnx or"),
        ({"export": "onnx"}, "does not go with --export, which looks at no image: leave out --images"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing_behind(run, tmp_path, change, message):
    with refused(message):
        predict(run, tmp_path / "new" / "out.csv", **change)
    assert not (tmp_path / "new").exists()


def test_a_folder_without_images_and_a_folder_as_target(run, tmp_path):
    (tmp_path / "empty").mkdir()
    with refused("empty has no image: name the folder with the images by --images"):
        predict(run, tmp_path / "out.csv", images=str(tmp_path / "empty"))
    with refused("is a folder: give another place by --predictions"):
        predict(run, tmp_path / "empty")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
