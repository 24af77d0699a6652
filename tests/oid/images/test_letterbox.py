"""Images get into the network's square and boxes out of it again, warped and letterboxed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oid.images.letterbox import (
    GREY,
    boxes_in_square,
    boxes_of_picture,
    letterbox_frame,
    letterbox_to_square,
    warp_to_square,
)

SIDE = 64


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 64), (300, 500), (20, 30), (31, 77), (1, 1), (10, 1000)])
def test_warping_keeps_the_place_of_things(height, width):
    image = np.full((height, width, 3), 200, "uint8")
    image[:, : width // 2] = 40
    square = warp_to_square(image, 64)
    assert square.shape == (64, 64, 3)
    assert square.dtype == np.uint8
    stripes = np.tile(np.array([0, 255], "uint8"), (256, 128))[..., None].repeat(3, axis=2)
    assert np.ptp(warp_to_square(stripes, 64).astype(int)) == 0  # reducing averages
    if width > 1:
        assert (square[:, :20] < 60).all()
        assert (square[:, -20:] > 180).all()


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
