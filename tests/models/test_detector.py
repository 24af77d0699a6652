"""The graph ends at an exact top-k, the detector speaks in pixels of the picture given, every kind of run loads."""

import json
import shutil
import zipfile
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest

from models import load_model
from models.detector import Detector, inference_model, network_from_settings, read_settings
from oid.boxes.suppression import iou_matrix
from tests.helpers.project import refused
from tests.helpers.tiny_network import CLASSES, arrays, pictures, targets, tiny_settings, write_settings
from training.averages import averaged_weights
from training.checkpoints import write_checkpoint
from training.schedule import Schedule, make_optimizer
from training.trainer import DetectionTrainer

SETTINGS = tiny_settings()


# === Detector, behind a network that answers what it is told ===


class Answering:
    """Stands for the model: gives the same `(class, score, xmin, ymin, xmax, ymax)` rows for every picture."""

    def __init__(self, rows):
        self.rows = np.array(rows, "float32").reshape(-1, 6)
        self.seen = []

    def predict_on_batch(self, squares):
        self.seen.append(squares)
        count = len(squares)
        return {
            "boxes": np.stack([self.rows[:, 2:]] * count),
            "scores": np.stack([self.rows[:, 1]] * count),
            "labels": np.stack([self.rows[:, 0].astype("int32")] * count),
        }


def answering(*rows) -> Detector:
    return Detector(Answering(rows), SETTINGS)


def test_boxes_are_in_pixels_of_the_picture_given():
    detector = answering((1, 0.9, 0.25, 0.5, 0.75, 1.0), (0, 0.5, 0.0, 0.1, 0.5, 0.2))
    for height, width in ((64, 64), (50, 200), (7, 3), (300, 90)):
        found = detector.predict_on_batch(pictures(2, height, width), max_boxes=3)
        scale = np.array([width, height, width, height])
        for image in range(2):
            np.testing.assert_allclose(found["boxes"][image, 0], scale * (0.25, 0.5, 0.75, 1.0), rtol=1e-6)
            np.testing.assert_allclose(found["boxes"][image, 1], scale * (0.0, 0.1, 0.5, 0.2), rtol=1e-6)
        assert found["labels"].tolist() == [[1, 0, -1]] * 2
        np.testing.assert_allclose(found["scores"], [[0.9, 0.5, -1]] * 2, rtol=1e-6)
        np.testing.assert_array_equal(found["boxes"][:, 2], -1)
    sizes = [(40, 80), (100, 20), (64, 64)]
    found = detector.predict_on_batch([pictures(1, *size)[0] for size in sizes])
    np.testing.assert_allclose(found["boxes"][:, 0], [(w / 4, h / 2, 3 * w / 4, h) for h, w in sizes])


@pytest.mark.parametrize("images", [[], np.zeros((0, 30, 40, 3), "uint8"), pictures(1)])
def test_shapes_and_dtypes(images):
    found = answering((0, 0.9, 0, 0, 1, 1)).predict_on_batch(images, max_boxes=5)
    count = len(images)
    shapes = {"boxes": (count, 5, 4), "scores": (count, 5), "labels": (count, 5)}
    assert {name: value.shape for name, value in found.items()} == shapes
    dtypes = {"boxes": "float32", "scores": "float32", "labels": "int32"}
    assert {name: str(value.dtype) for name, value in found.items()} == dtypes


def test_float_pictures_are_rounded_to_the_same_pixels():
    detector, image = answering(), pictures(2, 90, 50)
    detector.predict_on_batch(image)
    detector.predict_on_batch(image.astype("float64") + 0.3)
    detector.predict_on_batch(list(image.astype("float32") - 0.3))
    as_bytes, *others = detector.model.seen
    assert as_bytes.dtype == np.uint8
    assert as_bytes.shape == (2, 64, 64, 3)
    for other in others:
        np.testing.assert_array_equal(other, as_bytes)


@pytest.mark.parametrize("images", [np.zeros((64, 64, 3)), np.zeros((2, 64, 64)), np.zeros((1, 3, 64, 64)), [[1, 2]]])
def test_other_arrays_than_pictures_are_refused(images):
    with pytest.raises(ValueError, match="expected \\(height, width, 3\\)"):
        answering().predict_on_batch(images)


def test_suppression_and_limits_are_those_asked_for():
    """`suppress` itself is tested in test_decoding.py."""
    detector = answering((0, 0.9, 0.1, 0.1, 0.5, 0.5), (0, 0.8, 0.1, 0.1, 0.5, 0.48), (1, 0.7, 0.1, 0.1, 0.5, 0.5))
    options = ({}, {"score_threshold": 0.8}, {"max_boxes": 1}, {"nms_iou": 1.0}, {"score_threshold": 1.0})
    for option, count in zip(options, (2, 1, 1, 3, 0), strict=True):
        assert [len(values) for values in detector.detect(pictures(1), **option)[0]] == [count] * 3


def test_the_host_and_the_graph_find_the_same(monkeypatch):
    """On a CPU the host decodes the raw outputs; with an accelerator the graph does."""
    keras.utils.set_random_seed(3)
    model = inference_model(network_from_settings(SETTINGS), SETTINGS)
    squares = pictures(2)
    host = Detector(model, SETTINGS)
    monkeypatch.setattr("models.detector.runs_on_cpu", lambda: False)
    graph = Detector(model, SETTINGS)
    calls = []
    predict = model.predict_on_batch
    monkeypatch.setattr(model, "predict_on_batch", lambda batch: calls.append(len(batch)) or predict(batch))
    options = {"score_threshold": 0.001, "max_boxes": 50}
    for found, expected in zip(host.detect(squares, **options), graph.detect(squares, **options), strict=True):
        assert len(found[0]) > 20
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert calls == [2]  # of the graph alone


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_the_faster_copy_finds_the_same(complete_run, precision, tolerance):
    """The copy for predictions against the model itself: without suppression each pair of anchor and class, once."""
    plain, fast = load_model(complete_run, precision=None), load_model(complete_run, precision=precision)
    options = {"score_threshold": 0.0, "nms_iou": 1.0, "max_boxes": 10**6}
    for found, expected in zip(fast.detect(pictures(2), **options), plain.detect(pictures(2), **options), strict=True):
        assert abs(len(found[0]) - len(expected[0])) <= tolerance * len(expected[0])
        np.testing.assert_allclose(np.sort(found[1])[-20:], np.sort(expected[1])[-20:], rtol=tolerance)


def test_with_the_mirror_a_mirrored_picture_gives_mirrored_boxes(complete_run):
    detector = load_model(complete_run)
    squares = pictures(2)
    options = {"score_threshold": 0.001, "max_boxes": 40, "mirror": True, "vote_iou": 1}
    mirrored = detector.detect(np.ascontiguousarray(squares[:, :, ::-1]), **options)
    for found, other in zip(detector.detect(squares, **options), mirrored, strict=True):
        assert len(found[0]) == 40
        np.testing.assert_allclose(np.sort(found[1]), np.sort(other[1]), atol=1e-5)
        back = np.stack([1 - other[0][:, 2], other[0][:, 1], 1 - other[0][:, 0], other[0][:, 3]], axis=1)
        assert (iou_matrix(found[0], back).max(axis=1) > 0.999).mean() > 0.9  # equal scores may be cut off differently


# === Runs ===


@pytest.fixture(scope="module")
def trained():
    """A network after two steps, with its trainer, made as a03 does."""
    keras.utils.set_random_seed(1)
    network = network_from_settings(SETTINGS)
    trainer = DetectionTrainer(network, SETTINGS["anchors"])
    optimizer = make_optimizer(Schedule(peak=0.01, steps=10), ema=True, weight_decay=0.01)
    trainer.compile(optimizer=optimizer, run_eagerly=True)
    optimizer.build(network.trainable_variables)
    truth = targets([[(0, 0.1, 0.1, 0.5, 0.6)], [(1, 0.4, 0.4, 1, 1)]])
    for _ in range(2):
        trainer.train_on_batch(pictures(2), truth)
    return trainer


@pytest.fixture(scope="module")
def complete_run(trained, tmp_path_factory):
    """A complete run: the weights of model.keras are the trained ones, those of the checkpoint their average."""
    folder = tmp_path_factory.mktemp("complete")
    write_settings(folder, SETTINGS)
    inference_model(trained.network, SETTINGS).save(folder / "model.keras")
    write_checkpoint(folder, trained, trained.network, {"epochs": 1, "best": 0.0, "history": []})
    return folder


@pytest.fixture
def run(complete_run, tmp_path):
    """A copy of the complete run, to be damaged."""
    return Path(shutil.copytree(complete_run, tmp_path / "run"))


def raw(detector) -> dict[str, np.ndarray]:
    return arrays(detector.model(pictures(2)))


def assert_same(one, other):
    for name in ("scores", "boxes", "labels"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-6)


def test_runs_and_checkpoints_load(run, trained):
    model = inference_model(trained.network, SETTINGS)
    best = arrays(model(pictures(2)))
    with averaged_weights(trained):
        newest = arrays(model(pictures(2)))
    assert np.abs(best["scores"] - newest["scores"]).max() > 1e-5  # they can be told apart
    assert_same(raw(load_model(str(run))), best)
    assert_same(raw(load_model(run / "checkpoint")), newest)
    assert_same(raw(load_model(run, checkpoint=True)), newest)
    (run / "model.keras").unlink()
    assert_same(raw(load_model(run)), newest)


def test_a_loaded_run_detects_in_pixels(run):
    detector = load_model(run)
    assert detector.class_labels == [entry["label"] for entry in CLASSES]
    assert detector.class_names == [entry["name"] for entry in CLASSES]
    images = pictures(3, 50, 120)
    found = detector.predict_on_batch(images, score_threshold=0.0, max_boxes=10)
    valid = found["labels"] >= 0
    assert valid.any(axis=1).all()
    assert set(found["labels"][valid]) <= {0, 1}
    boxes = found["boxes"][valid]
    assert ((boxes >= 0) & (boxes <= (120, 50, 120, 50))).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (np.diff(found["scores"], axis=1) <= 0).all()
    warped = np.stack([cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA) for image in images])
    same = detector.predict_on_batch(warped, score_threshold=0.0, max_boxes=10)["boxes"][valid]
    np.testing.assert_allclose(boxes, same * (120 / 64, 50 / 64, 120 / 64, 50 / 64), rtol=1e-4)


def test_a_model_carries_its_own_anchors(run, monkeypatch):
    before = raw(load_model(run))
    monkeypatch.setattr("oid.anchors.grids.anchor_settings", lambda *_, **__: {})
    assert_same(raw(load_model(run)), before)


def assert_refused(run, *words):
    with refused(str(run), *words):
        load_model(run)


def test_places_without_a_trained_run(tmp_path):
    assert_refused(tmp_path / "nowhere", "settings.json", "a03")
    assert_refused(tmp_path, "settings.json")
    (tmp_path / "checkpoint").mkdir()
    with refused("is no run"):
        load_model(tmp_path / "checkpoint")
    (tmp_path / "file").write_text("")
    assert_refused(tmp_path / "file")
    write_settings(tmp_path, SETTINGS)
    assert_refused(tmp_path, "neither model.keras nor a checkpoint")
    with refused("neither"):
        load_model(tmp_path / "checkpoint")


def test_damaged_settings(tmp_path):
    for content in (b"", b"{", b"\xff\xfe", b"5", b"null", b"[]", b"{}", b'{"classes": []}'):
        (tmp_path / "settings.json").write_bytes(content)
        assert_refused(tmp_path, "settings.json")
    for name in ("anchors", "backbone", "channels", "classes", "image_size", "preprocessing"):
        write_settings(tmp_path, {key: value for key, value in SETTINGS.items() if key != name})
        with refused(name):
            read_settings(tmp_path)
    write_settings(tmp_path, SETTINGS | {"preprocessing": SETTINGS["preprocessing"] | {"resize": "stretch"}})
    with refused("preprocessing.resize is 'stretch': make it warp or letterbox"):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"channels": 4}, {"classes": 5}, {"classes": [{"label": "/m/a"}] * 2}, {"image_size": "64"}, {"anchors": {}}],
)
def test_settings_of_another_network_than_the_checkpoint(changes, run):
    write_settings(run, SETTINGS | changes)
    with refused():
        load_model(run / "checkpoint")


def test_damaged_weights(run):
    model, weights = run / "model.keras", run / "checkpoint" / "network.weights.h5"
    with zipfile.ZipFile(model) as archive:
        config = archive.read("config.json")
    good = model.read_bytes()
    half = len(good) // 2
    for content in (b"", b"x" * 500, good[:half], good[:half] + b"\0" * 100 + good[half + 100 :]):
        model.write_bytes(content)
        assert_refused(run)
    with zipfile.ZipFile(model, "w") as archive:  # without weights
        archive.writestr("config.json", config)
        archive.writestr("metadata.json", json.dumps({}))
    assert_refused(run)
    model.unlink()  # so the checkpoint is read
    good = weights.read_bytes()
    for content in (b"", b"x" * 500, good[: len(good) // 2]):
        weights.write_bytes(content)
        assert_refused(run)
