"""Images get into the network's square and boxes out of it again, warped and letterboxed.

The stand-in for the network finds a bright rectangle by its pixels, so the boxes of `predict_on_batch`, a04 and the
validation can be compared with the place where it was drawn.
"""

import csv
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import a04_inference as a04
import models
from models.detector import Detector, read_settings
from oid.files import InputError
from oid.images.letterbox import (
    GREY,
    boxes_in_square,
    boxes_of_picture,
    letterbox_frame,
    letterbox_to_square,
    warp_to_square,
)
from tests.helpers.tiny_network import tiny_settings
from training.data_set import read_data_set
from training.validation import make_validation

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


# === Geometry ========================================================================================================
@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 64), (300, 500), (20, 30), (31, 77), (1, 1), (10, 1000)])
def test_warping_keeps_the_place_of_things(height, width):
    image = np.full((height, width, 3), 200, "uint8")
    image[:, : width // 2] = 40
    square = warp_to_square(image, 64)
    assert square.shape == (64, 64, 3)
    assert square.dtype == np.uint8
    if width > 1:
        assert (square[:, :20] < 60).all()
        assert (square[:, -20:] > 180).all()


def test_shrinking_averages():
    stripes = np.zeros((256, 256, 3), "uint8")
    stripes[:, ::2] = 255
    assert np.ptp(warp_to_square(stripes, 64).astype(int)) == 0


@pytest.mark.parametrize(
    ("height", "width", "frame"),
    [
        (300, 600, (0, 16, 64, 48)),
        (600, 300, (16, 0, 48, 64)),
        (64, 64, (0, 0, 64, 64)),
        (10, 1000, (0, 31, 64, 32)),
        (30, 50, (0, 13, 64, 51)),
    ],
)
def test_an_image_fills_the_middle_of_the_square(height, width, frame):
    assert letterbox_frame(height, width, SIDE, SIDE) == frame
    x0, y0, x1, y1 = frame
    square = letterbox_to_square(np.full((height, width, 3), 250, "uint8"), SIDE)
    assert square.shape == (SIDE, SIDE, 3)
    assert (square[y0:y1, x0:x1] == 250).all()
    square[y0:y1, x0:x1] = GREY
    assert (square == GREY).all()


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    side=st.integers(32, 700),
    box=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_boxes_go_to_the_square_and_come_back(height, width, side, box):
    frame = np.array(letterbox_frame(height, width, side, side))
    assert (frame[2:] > frame[:2]).all()
    assert frame.min() >= 0
    assert frame.max() <= side
    assert (frame[2:] - frame[:2]).max() == side  # as large as fits
    boxes = np.array([box, [0, 0, 1, 1]])
    there = boxes_in_square(boxes, np.full(2, float(height)), np.full(2, float(width)), side)
    np.testing.assert_allclose(there[1] * side, frame, atol=1e-9)
    np.testing.assert_allclose(boxes_of_picture(there, height, width, side), boxes, atol=1e-9 * side)


def test_boxes_on_the_grey_have_no_area():
    boxes = np.array([[0, 0, 1, 0.2], [0.2, 0.1, 0.4, 0.6], [-1, 0.3, 2, 0.9]])
    found = boxes_of_picture(boxes, 300, 600, SIDE)  # which fills the rows 0.25 to 0.75
    np.testing.assert_allclose(found, [[0, 0, 1, 0], [0.2, 0, 0.4, 0.7], [0, 0.1, 1, 1]], atol=1e-12)


# === Users of the square =============================================================================================
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


def test_an_unknown_resize_is_refused(tmp_path):
    changed = settings_with("stretch")
    (tmp_path / "settings.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match=r"preprocessing\.resize is 'stretch': make it warp or letterbox"):
        read_settings(tmp_path)


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


@pytest.mark.parametrize("resize", ["warp", "letterbox"])
def test_the_validation_sees_pictures_as_inference_does(photographs, resize):
    """A detector that is right about every box, told apart by the square that it is shown, has an mAP of 1."""
    data = read_data_set(*photographs, "1", "validation")
    changed = settings_with(resize) | {"classes": [{"label": name, "name": name} for name in ("t", "a", "c")]}
    detector = Detector(FindsBright(), changed)
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
