"""a04 on a converted RetinaNet: images in shapes of their own, and what the authors of the published ones did."""

import csv
import dataclasses
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from ensemble_boxes import weighted_boxes_fusion

import a04_inference as a04
from models import load_model
from models.any_shape_detector import AnyShapeDetector
from models.suppression import DetectionOptions, keras_retinanet_suppress
from oid.predictions.files import read_predictions
from tests.helpers import any_shape_network
from tests.helpers.project import refused

SHAPES = {"a": (60, 90), "b": (90, 60), "c": (60, 90), "d": (200, 40), "e": (33, 47), "f": (90, 60), "g": (60, 90)}
MEAN_BGR = np.array([103.939, 116.779, 123.68], "float32")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A run, and seven images of four shapes, losslessly stored."""
    folder = tmp_path_factory.mktemp("published")
    rng = np.random.default_rng(1)
    (folder / "images").mkdir()
    for name, (height, width) in SHAPES.items():
        image = cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype="uint8"), (width, height))
        cv2.imwrite(str(folder / "images" / f"{name}.png"), image)
    with pytest.MonkeyPatch.context() as patch:
        run = any_shape_network.write_run(folder / "run", patch)
        yield SimpleNamespace(run=run, images=folder / "images")


def predict(case, target, **flags):
    a04.main(**{"run": (str(case.run),), "images": str(case.images), "predictions": str(target)} | flags)
    return read_predictions(target)


def of_image(predictions, index: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    mine = predictions.image_index == index
    labels = [predictions.labels[label] for label in predictions.label_index[mine]]
    return predictions.boxes[mine], predictions.scores[mine], labels


def picture(case, name: str) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(case.images / f"{name}.png")), cv2.COLOR_BGR2RGB)


def assert_equal(one, other) -> None:
    np.testing.assert_array_equal(one.image_index, other.image_index)
    np.testing.assert_array_equal(one.label_index, other.label_index)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-5)


def published(detector, prepared: np.ndarray) -> list[np.ndarray]:
    """keras-retinanet's detections, without those whose sides have swapped."""
    ((_, get_candidates),) = detector._candidates([prepared])
    boxes, scores, labels = keras_retinanet_suppress(get_candidates, (1.0, 1.0))
    good = (boxes[:, 2] > boxes[:, 0] + 1e-5) & (boxes[:, 3] > boxes[:, 1] + 1e-5)
    return [boxes[good], scores[good], labels[good]]


def test_the_network_sees_what_the_published_script_gives_it(case):
    """It subtracts the mean first, and then resizes: 48 pixels for the shorter side, but at most 80 for the longer."""
    detector = load_model(case.run)
    layer = next(layer for layer in detector.network.layers if layer.name.startswith("preprocessing"))
    for name, size in {"a": (48, 72), "b": (72, 48), "d": (80, 16), "e": (48, 68)}.items():
        rgb = picture(case, name)
        centred = rgb[:, :, ::-1].astype("float32") - MEAN_BGR
        scale = min(48 / min(rgb.shape[:2]), 80 / max(rgb.shape[:2]))
        expected = cv2.resize(centred, None, fx=scale, fy=scale)
        prepared = detector.prepare(rgb)
        assert prepared.shape == (*size, 3) == expected.shape
        np.testing.assert_allclose(np.asarray(layer(prepared[None]))[0], expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Zero area box skipped")
def test_the_image_and_its_mirrored_one_are_fused(case, tmp_path, capsys):
    """The package ensemble-boxes fuses, here, what keras-retinanet's suppression leaves of the two."""
    found = predict(case, tmp_path / "out.csv")
    expected = "the image and its mirrored one, shorter side 48 pixels, longer 80 at most; suppression keras_retinanet"
    assert expected in capsys.readouterr().out
    detector = load_model(case.run)
    halved = 0
    for index, name in enumerate(SHAPES):
        prepared = detector.prepare(picture(case, name))
        views = [published(detector, view) for view in (prepared, prepared[:, ::-1])]
        lists = [list(part) for part in zip(*views, strict=True)]
        lists[0][1] = np.stack([1 - lists[0][1][:, 2], lists[0][1][:, 1], 1 - lists[0][1][:, 0], lists[0][1][:, 3]], 1)
        boxes, scores, labels = weighted_boxes_fusion(*lists, iou_thr=0.55, skip_box_thr=0.0)
        assert min(len(view[1]) for view in views) > 10
        mine = of_image(found, index)
        assert len(mine[1]) == min(300, len(scores))
        np.testing.assert_allclose(mine[1], scores[: len(mine[1])], atol=1e-5)
        for box, score, label in zip(*mine, strict=True):  # equal scores may change places
            same = np.abs(np.column_stack([boxes, scores]) - (*box, score)).max(axis=1) < 1e-5
            assert label in [detector.class_labels[int(index)] for index in labels[same]]
        halved += (mine[1] < 0.05).sum()
    assert halved > 0  # found in one of the two at less than 0.1


def test_without_mirror_it_is_keras_retinanets_suppression(case, tmp_path):
    found = predict(case, tmp_path / "out.csv", mirror=False, max_boxes=7, score_threshold=0.2)
    detector = load_model(case.run)
    for index, name in enumerate(SHAPES):
        expected = published(detector, detector.prepare(picture(case, name)))
        boxes, scores, labels = (values[:7][expected[1][:7] >= 0.2] for values in expected)
        mine = of_image(found, index)
        np.testing.assert_allclose(mine[1], scores, atol=1e-6)
        np.testing.assert_allclose(mine[0], boxes, atol=1e-5)
        assert mine[2] == [detector.class_labels[label] for label in labels]


@pytest.mark.parametrize("flags", [{}, {"suppression": "own", "mirror": False, "nms": "linear"}])
def test_the_batch_size_does_not_change_boxes(case, tmp_path, flags):
    one, seven = (predict(case, tmp_path / f"{size}.csv", batch_size=size, **flags) for size in (1, 7))
    assert len(one.scores) > 50
    assert_equal(one, seven)


def test_our_own_suppression(case, tmp_path, capsys):
    options = {"nms_iou": 0.4, "vote_iou": 0.7, "score_threshold": 0.1, "max_boxes": 30}
    found = predict(case, tmp_path / "out.csv", suppression="own", **options)
    assert "suppression own" in capsys.readouterr().out
    detector = load_model(case.run)
    for index, name in enumerate(SHAPES):
        chosen = DetectionOptions(suppression="own", **options)
        ((boxes, scores, _),) = detector.detect_prepared([detector.prepare(picture(case, name))], options=chosen)
        np.testing.assert_allclose(of_image(found, index)[1], scores, atol=1e-6)
        np.testing.assert_allclose(of_image(found, index)[0], boxes, atol=1e-5)


def test_other_sides(case, tmp_path):
    inputs = dataclasses.replace(any_shape_network.SETTINGS.inputs, min_side=64, max_side=128)
    changed = dataclasses.replace(any_shape_network.SETTINGS, inputs=inputs)
    with pytest.MonkeyPatch.context() as patch:
        any_shape_network.write_run(tmp_path / "changed", patch, changed)
        by_settings = predict(case, tmp_path / "settings.csv", run=(str(tmp_path / "changed"),))
    by_flags = predict(case, tmp_path / "flags.csv", min_side=64, max_side=128)
    assert_equal(by_flags, by_settings)
    assert len(predict(case, tmp_path / "usual.csv").scores) != len(by_flags.scores)


def test_a_stopped_run_goes_on_and_unreadable_images_have_empty_rows(case, tmp_path, monkeypatch, capsys):
    images = shutil.copytree(case.images, tmp_path / "images")
    whole = predict(case, tmp_path / "whole.csv")
    (images / "c.png").write_bytes(b"")
    calls, original = [], AnyShapeDetector.detect_prepared

    def detect(*arguments, **options):
        calls.append(1)
        if len(calls) % 2 == 0:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    for changes in ({}, {"min_side": 60}):  # other sides do not give the same rows
        with monkeypatch.context() as patch:
            patch.setattr(AnyShapeDetector, "detect_prepared", detect)
            with pytest.raises(KeyboardInterrupt):
                predict(case, tmp_path / "out.csv", images=str(images), batch_size=4, **changes)
    assert len(list(tmp_path.glob(".out.csv.*.unfinished"))) == 2
    capsys.readouterr()
    found = predict(case, tmp_path / "out.csv", images=str(images), batch_size=4)
    printed = capsys.readouterr().out
    assert "going on after 3 of 7 images" in printed  # the fourth of the first batch could not be read
    assert f"empty row: {images / 'c.png'} is empty" in printed
    with open(tmp_path / "out.csv", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["ImageId", *SHAPES]
    for index, name in enumerate(SHAPES):
        expected = of_image(whole, index)[1] if name != "c" else []
        np.testing.assert_allclose(of_image(found, index)[1], expected, atol=1e-6)
    for path in images.iterdir():
        path.write_bytes(b"")
    assert len(predict(case, tmp_path / "none.csv", images=str(images)).scores) == 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"nms": "linear"}, "--nms linear has no part in the published suppression: add --suppression own"),
        ({"nms_iou": 0.3}, "--nms_iou 0.3 has no part in the published suppression"),
        ({"vote_iou": 1.0}, "--vote_iou 1.0 has no part in the published suppression"),
        ({"min_side": 900}, "the shorter side 900 is more than the longer one 80: give both"),
        ({"min_side": 5}, "--min_side is 5: give a number of at least 32"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing_behind(case, tmp_path, flags, sentence):
    with refused(sentence):
        predict(case, tmp_path / "new" / "out.csv", **flags)
    assert not (tmp_path / "new").exists()
