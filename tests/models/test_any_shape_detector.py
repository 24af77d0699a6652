"""A converted RetinaNet finds the same in any grouping of its images, on the host and in the graph."""

import numpy as np
import pytest

from models.any_shape_detector import AnyShapeDetector
from models.decoding import TopPairs
from models.suppression import DetectionOptions
from tests.helpers import any_shape_network
from tests.helpers.tiny_network import pictures

SIZES = [(48, 72), (72, 48), (48, 72), (80, 16)]


@pytest.fixture(scope="module")
def network():
    return any_shape_network.build()


@pytest.mark.parametrize("suppression", ["own", "keras_retinanet"])
@pytest.mark.parametrize("count", [2000, 30])  # keras-retinanet's suppression then asks for more pairs than leave it
def test_the_host_and_the_graph_find_the_same(network, suppression, count, monkeypatch):
    inputs = [pictures(1, *size, seed=seed)[0].astype("float32") for seed, size in enumerate(SIZES)]
    options = DetectionOptions(suppression=suppression, mirror=False, vote_iou=1.0, score_threshold=0.05)
    expected = AnyShapeDetector(network, any_shape_network.SETTINGS).detect_prepared(inputs, options=options)
    monkeypatch.setattr("models.detector.runs_on_cpu", lambda: False)
    monkeypatch.setattr("models.any_shape_detector.TopPairs", lambda: TopPairs(count))
    graph = AnyShapeDetector(network, any_shape_network.SETTINGS, precision="float32")
    for found, other in zip(graph.detect_prepared(inputs, options=options), expected, strict=True):
        assert len(other.scores) > 10
        np.testing.assert_allclose(found.scores, other.scores, atol=1e-4)
        np.testing.assert_allclose(found.boxes, other.boxes, atol=1e-3)


def test_together_or_alone(network, monkeypatch):
    detector = AnyShapeDetector(network, any_shape_network.SETTINGS)
    images = [pictures(1, *size, seed=seed)[0] for seed, size in enumerate(SIZES)]
    together = detector.predict_on_batch(images)
    monkeypatch.setattr("models.any_shape_detector.MOST_OUTPUTS", 1)  # one image at a time
    for index, image in enumerate(images):
        found = detector.detect(image)
        assert [detection.label for detection in found] == [
            detector.class_labels[label] for label in together.labels[index] if label >= 0
        ]
        boxes = together.boxes[index][: len(found)]
        np.testing.assert_allclose([detection.box for detection in found], boxes, atol=1e-2)


def test_other_sides_are_another_detector(network):
    detector = AnyShapeDetector(network, any_shape_network.SETTINGS)
    other = detector.with_sides(64, 128)
    image = pictures(1, 60, 90)[0]
    assert (detector.prepare(image).shape, other.prepare(image).shape) == ((48, 72, 3), (64, 96, 3))
    assert detector.fingerprint() != other.fingerprint()
