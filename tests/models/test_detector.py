"""The detector speaks in pixels of the image given; the host, the graph and a faster copy find the same."""

import dataclasses

import cv2
import keras
import numpy as np
import pytest

from models.detector import Detector, build_network
from models.suppression import DetectionOptions
from oid.boxes.suppression import iou_matrix
from tests.helpers.stand_in_network import detector_that_finds
from tests.helpers.tiny_network import CLASSES, pictures, randomised, tiny_settings

PLAIN = DetectionOptions(mirror=False)


def answering(*rows: tuple) -> Detector:
    """A detector whose network gives the same `(class, score, xmin, ymin, xmax, ymax)` rows for every image."""
    return detector_that_finds(lambda _: rows)


# === What users pass and get =========================================================================================
def test_boxes_are_in_pixels_of_the_image_given():
    detector = answering((1, 0.9, 0.25, 0.5, 0.75, 1.0), (0, 0.5, 0.0, 0.1, 0.5, 0.2))
    options = dataclasses.replace(PLAIN, max_boxes=3)
    for height, width in ((64, 64), (50, 200), (7, 3), (300, 90)):
        boxes, scores, labels = detector.predict_on_batch(pictures(2, height, width), options)
        scale = np.array([width, height, width, height])
        for image in range(2):
            np.testing.assert_allclose(boxes[image, 0], scale * (0.25, 0.5, 0.75, 1.0), rtol=1e-5)
            np.testing.assert_allclose(boxes[image, 1], scale * (0.0, 0.1, 0.5, 0.2), rtol=1e-5, atol=1e-4)
        assert labels.tolist() == [[1, 0, -1]] * 2
        np.testing.assert_allclose(scores, [[0.9, 0.5, -1]] * 2, rtol=1e-6)
        np.testing.assert_array_equal(boxes[:, 2], -1)
    sizes = [(40, 80), (100, 20), (64, 64)]
    found = detector.predict_on_batch([pictures(1, *size)[0] for size in sizes], PLAIN)
    np.testing.assert_allclose(found.boxes[:, 0], [(w / 4, h / 2, 3 * w / 4, h) for h, w in sizes], rtol=1e-5)


@pytest.mark.parametrize("images", [[], np.zeros((0, 30, 40, 3), "uint8"), pictures(1)])
def test_shapes_and_dtypes(images):
    found = answering((0, 0.9, 0, 0, 1, 1)).predict_on_batch(images, dataclasses.replace(PLAIN, max_boxes=5))
    count = len(images)
    assert [values.shape for values in found] == [(count, 5, 4), (count, 5), (count, 5)]
    assert [str(values.dtype) for values in found] == ["float32", "float32", "int32"]


def test_float_images_are_rounded_to_the_same_pixels():
    detector, image = answering(), np.maximum(pictures(2, 90, 50), 1)
    for same in (image, image.astype("float64") + 0.3, list(image.astype("float32") - 0.3)):
        detector.predict_on_batch(same, PLAIN)
    as_bytes, *others = detector.network.seen
    assert as_bytes.dtype == np.uint8
    assert as_bytes.shape == (2, 64, 64, 3)
    for other in others:
        np.testing.assert_array_equal(other, as_bytes)


@pytest.mark.parametrize("images", [np.zeros((64, 64, 3)), np.zeros((2, 64, 64)), np.zeros((1, 3, 64, 64)), [[1, 2]]])
def test_other_arrays_than_images_are_refused(images):
    with pytest.raises(ValueError, match="expected \\(height, width, 3\\) in RGB: predict_on_batch takes a batch"):
        answering().predict_on_batch(images)


def test_preprocessed_images_are_refused():
    """What keras-retinanet's users passed: BGR minus the mean of ImageNet."""
    preprocessed = pictures(1, 90, 50)[..., ::-1].astype("float32") - (103.939, 116.779, 123.68)
    for call in (lambda: answering().predict_on_batch(preprocessed), lambda: answering().detect(preprocessed[0])):
        with pytest.raises(ValueError, match=r"pass raw RGB from 0 to 255.*without keras-retinanet's preprocess_image"):
            call()


def test_an_image_is_detected_by_name_without_padding(tmp_path):
    detector = answering((1, 0.9, 0.25, 0.5, 0.75, 1.0), (0, 0.5, 0.0, 0.1, 0.5, 0.2))
    image = pictures(1, 50, 200)[0]
    cv2.imwrite(str(tmp_path / "image.png"), image[..., ::-1])
    for given in (image, tmp_path / "image.png", str(tmp_path / "image.png")):
        best, other = detector.detect(given, PLAIN)
        assert (best.label, best.name) == CLASSES[1]
        assert best.score == pytest.approx(0.9)
        assert best.box == pytest.approx((50, 25, 150, 50))
        assert (other.name, other.box) == ("Apple", pytest.approx((0, 5, 100, 10), abs=1e-4))
    assert answering().detect(image) == []


@pytest.mark.parametrize("resize", ["warp", "letterbox"])
def test_boxes_are_in_pixels_of_the_file_although_a_large_jpeg_is_reduced(resize, tmp_path):
    image = np.full((401, 301, 3), 40, "uint8")
    image[100:200, 150:300] = 255
    cv2.imwrite(str(tmp_path / "image.jpg"), image)

    def find(square):
        y, x = np.nonzero(square.min(axis=2) > 150)
        return [(0, 0.9, x.min() / 64, y.min() / 64, (x.max() + 1) / 64, (y.max() + 1) / 64)]

    detector = detector_that_finds(find, resize=resize)
    for given in (image, tmp_path / "image.jpg"):
        (found,) = detector.detect(given, PLAIN)
        np.testing.assert_allclose(found.box, (150, 100, 300, 200), atol=401 / 64)


def test_limits_are_those_asked_for():
    detector = answering((0, 0.9, 0.1, 0.1, 0.5, 0.5), (0, 0.8, 0.1, 0.1, 0.5, 0.48), (1, 0.7, 0.1, 0.1, 0.5, 0.5))
    changes = ({}, {"score_threshold": 0.8}, {"max_boxes": 1}, {"nms_iou": 1.0}, {"score_threshold": 1.0})
    for change, count in zip(changes, (2, 1, 1, 3, 0), strict=True):
        (found,) = detector.detect_prepared(pictures(1), options=dataclasses.replace(PLAIN, vote_iou=1.0, **change))
        assert [len(values) for values in found] == [count] * 3


# === Ways to the same boxes ==========================================================================================
@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(3)
    return randomised(build_network(tiny_settings()))


@pytest.mark.parametrize(("resize", "scores"), [("warp", "sigmoid"), ("letterbox", "sigmoid"), ("warp", "softmax")])
def test_the_host_and_the_graph_find_the_same(resize, scores, monkeypatch):
    """On a CPU the host decodes the raw outputs; with an accelerator the graph does."""
    settings = tiny_settings(resize=resize, scores=scores, box_deltas="ssd" if scores == "softmax" else "distances")
    network, inputs = randomised(build_network(settings)), pictures(2)
    options = DetectionOptions(score_threshold=0.001, max_boxes=50, vote_iou=1.0)
    host = Detector(network, settings).detect_prepared(inputs, sizes=[(30, 60)] * 2, options=options)
    monkeypatch.setattr("models.detector.runs_on_cpu", lambda: False)
    for precision in (None, "float32"):
        graph = Detector(network, settings, precision=precision)
        found = graph.detect_prepared(inputs, sizes=[(30, 60)] * 2, options=options)
        for one, other in zip(host, found, strict=True):
            assert len(one.boxes) > 20
            np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4, atol=1e-5)
            assert (iou_matrix(one.boxes, other.boxes).max(axis=1) > 0.99).mean() > 0.95


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_the_faster_copy_finds_the_same(network, precision, tolerance):
    """The copy for predictions against the network itself: without suppression each pair of anchor and class, once."""
    options = DetectionOptions(score_threshold=0.0, nms_iou=1.0, max_boxes=10**6, mirror=False)
    plain, fast = (Detector(network, tiny_settings(), precision=given) for given in (None, precision))
    pairs = zip(*(each.detect_prepared(pictures(2), options=options) for each in (plain, fast)), strict=True)
    for expected, found in pairs:
        assert abs(len(found.boxes) - len(expected.boxes)) <= tolerance * len(expected.boxes)
        np.testing.assert_allclose(np.sort(found.scores)[-20:], np.sort(expected.scores)[-20:], rtol=tolerance)


def test_a_mirrored_image_gives_mirrored_boxes(network):
    detector, inputs = Detector(network, tiny_settings()), pictures(2)
    options = DetectionOptions(score_threshold=0.001, max_boxes=40, vote_iou=1.0)
    mirrored = detector.detect_prepared(np.ascontiguousarray(inputs[:, :, ::-1]), options=options)
    for found, other in zip(detector.detect_prepared(inputs, options=options), mirrored, strict=True):
        assert len(found.boxes) == 40
        np.testing.assert_allclose(found.scores, other.scores, atol=1e-5)
        back = other.mirrored().boxes
        assert (iou_matrix(found.boxes, back).max(axis=1) > 0.999).mean() > 0.9  # equal scores may be cut off


def test_the_fingerprint_tells_weights_and_settings_apart(network):
    detector = Detector(network, tiny_settings())
    before = detector.fingerprint()
    assert before == Detector(network, tiny_settings(), precision="float32").fingerprint()
    assert before != Detector(network, tiny_settings(resize="letterbox")).fingerprint()
    weight = network.weights[-1]
    value = np.array(weight)
    weight.assign(value + 1e-3)
    assert before != detector.fingerprint()
    weight.assign(value)
    assert before == detector.fingerprint()


# === Letterboxed images ==============================================================================================
def bright(square: np.ndarray) -> list[tuple]:
    """One box around the pixels above 200, and one in the upper left corner of the square."""
    y, x = np.nonzero(square.min(axis=2) > 200)
    rows = [(0, 0.9, x.min() / 64, y.min() / 64, (x.max() + 1) / 64, (y.max() + 1) / 64)] if len(x) else []
    return [*rows, (0, 0.5, 0, 0, 0.05, 0.05)]


def drawn(height: int, width: int, x0: float, y0: float) -> tuple[np.ndarray, np.ndarray]:
    """A dark image with a bright rectangle, and the rectangle in pixels."""
    image = np.full((height, width, 3), 40, "uint8")
    box = np.array([x0 * width, y0 * height, (x0 + 0.4) * width, (y0 + 0.4) * height]).astype(int)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image, box


@pytest.mark.parametrize("resize", ["warp", "letterbox"])
def test_what_was_drawn_is_found_where_it_is_and_boxes_on_the_grey_are_dropped(resize):
    rng, detector = np.random.default_rng(0), detector_that_finds(bright, resize=resize)
    for height, width in [(50, 300), (300, 50), (64, 64), *rng.integers(40, 300, (15, 2))]:
        image, expected = drawn(height, width, *rng.uniform(0, 0.5, 2))
        found = detector.detect(image, PLAIN)
        assert np.abs(np.array(found[0].box) - expected).max() <= 1.01 * max(height, width) / 64
        grey = abs(height - width) / max(height, width) / 2 if resize == "letterbox" else 0
        assert len(found) == 1 or grey < 0.06
        assert len(found) == 2 or grey > 0.04


@pytest.mark.parametrize("resize", ["warp", "letterbox"])
def test_an_object_in_the_mirrored_image_is_at_the_same_place(resize):
    """What both views show is one box. The corner's box is in each of them, on the grey if letterboxed."""
    image, expected = drawn(150, 90, 0.1, 0.25)
    detector = detector_that_finds(bright, resize=resize)
    plain, both = (detector.detect(image, DetectionOptions(mirror=mirror)) for mirror in (False, True))
    np.testing.assert_allclose(both[0].box, expected, atol=1.01 * 150 / 64)
    corners = {"warp": 2, "letterbox": 0}[resize]
    assert (len(plain), len(both)) == (1 + min(corners, 1), 1 + corners)


def test_letterboxed_images_need_their_sizes():
    detector = detector_that_finds(bright, resize="letterbox")
    for sizes in (None, [], [(20, 50)] * 2):
        with pytest.raises(ValueError, match="1 letterboxed images need the size of each"):
            detector.detect_prepared(pictures(1), sizes=sizes, options=PLAIN)
