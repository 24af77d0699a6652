"""Validation prepares images as inference does, and measures all of them or an even sample."""

import cv2
import numpy as np
import pytest

from models.detector import Detector, build_network
from models.run_settings import DetectionClass
from models.suppression import ScoredBoxes
from oid.images.letterbox import letterbox_frame
from tests.helpers.tiny_network import tiny_settings
from training.data_set import read_data_set
from training.validation import make_validation

SIDE = 64  # of tiny_settings
CLASSES = tuple(DetectionClass(name, name) for name in "tac")


@pytest.fixture(scope="module")
def data(photographs):
    return read_data_set(*photographs, "1", "validation")


class KnowsAll(Detector):
    """Is right about every box, and tells images apart by the square that it is shown."""

    def __init__(self, data, resize: str):
        settings = tiny_settings(classes=CLASSES, resize=resize, backbone="tiny", scales=1)
        super().__init__(build_network(settings), settings)
        self.truth, self.seen = {}, []
        for index, path in enumerate(data.paths):
            picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
            boxes, labels = data.objects.of(index)
            height, width = picture.shape[:2]
            frame = letterbox_frame(height, width, SIDE, SIDE) if resize == "letterbox" else (0, 0, SIDE, SIDE)
            extent = np.array([frame[2] - frame[0], frame[3] - frame[1]] * 2)
            in_square = (boxes * extent + np.array(frame[:2] * 2)) / SIDE
            self.truth[self.prepare(picture).tobytes()] = (
                index,
                ScoredBoxes(in_square, np.full(len(boxes), 0.9), labels),
            )

    def _best_boxes(self, inputs, score_threshold):
        nothing = -1, ScoredBoxes(np.zeros((0, 4)), np.zeros(0), np.zeros(0, "int64"))
        found = [self.truth.get(square.tobytes(), nothing) for square in inputs]  # the last batch ends with others
        self.seen += [index for index, _ in found]
        return [boxes for _, boxes in found]


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("resize", ["warp", "letterbox"])
def test_the_validation_sees_images_as_inference_does(data, resize):
    detector = KnowsAll(data, resize)
    validation = make_validation(data, detector.settings)
    assert validation.images == len(data)
    for _ in range(2):  # the second time from its cache
        assert validation.measure(detector) == pytest.approx(1.0)
    del detector.truth[next(iter(detector.truth))]
    assert validation.measure(detector) < 1.0


@pytest.mark.usefixtures("tiny_backbone")
def test_a_sample_is_even_and_the_others_count_nowhere(data):
    detector = KnowsAll(data, "warp")
    whole = make_validation(data, detector.settings)
    sample = whole.sample(3)
    done = []
    assert sample.measure(detector, done.append) == pytest.approx(1.0)
    assert (sample.images, done) == (3, [3])
    assert sorted(set(detector.seen) - {-1}) == [0, round((len(data) - 1) / 2), len(data) - 1]
    assert [whole.sample(images).images for images in (None, 1, 100)] == [len(data), 1, len(data)]


def test_the_weight_of_groups_reaches_the_metric(data, monkeypatch):
    weights = []
    monkeypatch.setattr(
        "training.validation.evaluate",
        lambda *arguments, group_of_weight, **options: weights.append(group_of_weight) or _Metrics(),
    )
    settings = tiny_settings(classes=CLASSES)
    empty = ScoredBoxes(np.zeros((0, 4)), np.zeros(0), np.zeros(0, "int64"))

    class FindsNothing:
        def detect_prepared(self, inputs, **options):
            return [empty] * len(inputs)

    assert make_validation(data, settings, group_of_weight=0.25).measure(FindsNothing()) == 0.0
    assert weights == [0.25]


class _Metrics:
    mean_average_precision = float("nan")
