"""The detector and a04 find what was drawn, whether images are warped or letterboxed.

The stand-in for the network finds a bright rectangle by its pixels.
"""

import csv
import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import a04_inference as a04
import models
from models.detector import Detector
from oid.images.letterbox import letterbox_frame
from tests.helpers.tiny_network import tiny_settings

SIDE = 64  # of tiny_settings


def settings_with(resize: str) -> dict:
    changed = tiny_settings()
    changed["preprocessing"]["resize"] = resize
    return changed


class FindsBright:
    """Stands for the model: one box around the pixels above 200, and one that lies at the square's upper left."""

    def predict_on_batch(self, squares):
        boxes = np.zeros((len(squares), 2, 4), "float32")
        boxes[:, 1] = 0, 0, 0.05, 0.05
        for row, square in enumerate(squares):
            y, x = np.nonzero(square.min(axis=2) > 200)
            if len(x):
                boxes[row, 0] = x.min() / SIDE, y.min() / SIDE, (x.max() + 1) / SIDE, (y.max() + 1) / SIDE
        scores, labels = np.array([[0.9, 0.5]] * len(squares), "float32"), np.zeros((len(squares), 2), "int32")
        return {"boxes": boxes, "scores": scores, "labels": labels}


def drawn(height: int, width: int, box: tuple[float, float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """A dark picture with a bright rectangle, and the rectangle in pixels."""
    image = np.full((height, width, 3), 40, "uint8")
    x0, y0, x1, y1 = (int(share * side) for share, side in zip(box, (width, height) * 2, strict=True))
    image[y0:y1, x0:x1] = 255
    return image, np.array([x0, y0, x1, y1])


@pytest.mark.parametrize("resize", ["warp", "letterbox"])
@settings(max_examples=20, deadline=None)
@given(height=st.integers(40, 300), width=st.integers(40, 300), seed=st.integers(0, 2**32 - 1))
def test_the_detector_finds_what_was_drawn(resize, height, width, seed):
    corner = np.random.default_rng(seed).uniform(0, 0.5, 2)
    image, expected = drawn(height, width, (*corner, *(corner + 0.4)))
    detector = Detector(FindsBright(), settings_with(resize))
    found = detector.predict_on_batch([image])
    pixel = max(height, width) / SIDE  # of the square, in pixels of the picture
    assert np.abs(found["boxes"][0, 0] - expected).max() <= 1.01 * pixel
    on_grey = resize == "letterbox" and letterbox_frame(height, width, SIDE, SIDE)[:2]
    assert found["labels"][0, 1] == (-1 if on_grey and max(on_grey) >= 0.05 * SIDE else 0)


@pytest.mark.parametrize("resize", ["warp", "letterbox"])
def test_the_mirrored_picture_has_its_boxes_at_the_same_place(resize):
    """What is seen in the mirror alone comes back to where it is; what both see is one box."""
    image, expected = drawn(150, 90, (0.1, 0.25, 0.45, 0.55))
    detector = Detector(FindsBright(), settings_with(resize))
    square = detector.prepare(image)[None]
    plain, both = (detector.detect(square, sizes=[(150, 90)], mirror=mirror)[0] for mirror in (False, True))
    np.testing.assert_allclose(both[0][0] * (90, 150, 90, 150), expected, atol=1.01 * 150 / SIDE)
    np.testing.assert_allclose(both[0][0], plain[0][0], atol=1 / SIDE)
    corners = {"warp": 2, "letterbox": 0}[resize]  # upper left, also of the mirror; letterboxed, they are on the grey
    assert (len(plain[0]), len(both[0])) == (1 + min(corners, 1), 1 + corners)


def test_letterboxed_pictures_need_their_sizes():
    detector = Detector(FindsBright(), settings_with("letterbox"))
    square = detector.prepare(np.zeros((20, 50, 3), "uint8"))[None]
    for sizes in (None, [], [(20, 50)] * 2):
        with pytest.raises(ValueError, match="1 letterboxed pictures need as many sizes"):
            detector.detect(square, sizes=sizes)
    assert len(detector.detect(square, sizes=[(20, 50)])) == 1


@pytest.mark.parametrize("resize", ["warp", "letterbox"])
def test_a04_writes_boxes_of_the_picture(resize, tmp_path, monkeypatch):
    detector = Detector(FindsBright(), settings_with(resize))
    monkeypatch.setattr(models, "load_model", lambda *_, **__: detector)
    (tmp_path / "images").mkdir()
    expected = {}
    for name, (height, width) in {"a": (90, 150), "b": (201, 99), "c": (64, 64)}.items():
        image, box = drawn(height, width, (0.3, 0.25, 0.8, 0.55))
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), image)
        expected[name] = box / (width, height, width, height)
    (tmp_path / "images" / "d.png").write_bytes(b"")  # unreadable: its size must not shift the others'
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text(json.dumps(detector.settings))
    target = tmp_path / "out.csv"
    flags = {"run": (str(tmp_path / "run"),), "images": str(tmp_path / "images"), "predictions": str(target)}
    a04.main(**flags, output_path=str(tmp_path), batch_size=3)
    with open(target, newline="") as file:
        found = {row["ImageId"]: row["PredictionString"].split() for row in csv.DictReader(file)}
    assert list(found) == ["a", "b", "c", "d"]
    assert found["d"] == []
    for name, box in expected.items():
        ratio = 201 / 99 if resize == "letterbox" else 1
        np.testing.assert_allclose([float(text) for text in found[name][2:6]], box, atol=1.5 * ratio / SIDE)
