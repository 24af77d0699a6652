"""Validation prepares images as inference does."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from models.detector import Detector
from oid.images.letterbox import letterbox_frame
from tests.helpers.tiny_network import tiny_settings
from training.data_set import read_data_set
from training.validation import make_validation

SIDE = 64  # of tiny_settings


@pytest.mark.parametrize("resize", ["warp", "letterbox"])
def test_the_validation_sees_pictures_as_inference_does(photographs, resize):
    """A detector that is right about every box, told apart by the square that it is shown, has an mAP of 1."""
    data = read_data_set(*photographs, "1", "validation")
    changed = tiny_settings() | {"classes": [{"label": name, "name": name} for name in ("t", "a", "c")]}
    changed["preprocessing"]["resize"] = resize
    detector = Detector(None, changed)
    truth = {}
    for index, path in enumerate(data.paths):
        picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        truth[detector.prepare(picture).tobytes()] = index, picture.shape[:2]

    def answer(squares):
        outputs = {"boxes": np.zeros((len(squares), 4, 4)), "scores": np.zeros((len(squares), 4))}
        outputs["labels"] = np.zeros((len(squares), 4), "int32")
        for row, square in enumerate(squares):
            if square.tobytes() in truth:  # the rest of the last batch is black
                index, (height, width) = truth[square.tobytes()]
                boxes, labels = data.objects.of(index)
                frame = letterbox_frame(height, width, SIDE, SIDE) if resize == "letterbox" else (0, 0, SIDE, SIDE)
                extent = np.array([frame[2] - frame[0], frame[3] - frame[1]] * 2)
                outputs["boxes"][row, : len(boxes)] = (boxes * extent + np.array(frame[:2] * 2)) / SIDE
                outputs["scores"][row, : len(boxes)] = 0.9
                outputs["labels"][row, : len(boxes)] = labels
        return outputs

    detector._predicting = SimpleNamespace(predict_on_batch=answer)
    validate = make_validation(data, changed, orientation="stored")
    assert validate(detector) == pytest.approx(1.0)
    assert validate(detector) == pytest.approx(1.0)  # from its cache
