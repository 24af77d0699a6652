"""Offsets always decode to proper boxes around the centres of their anchors."""

import keras
import numpy as np
import pytest

from models.box_coding import decode_distances
from oid.anchors.grids import anchor_settings, make_anchors


def decode(offsets, anchors):
    return keras.ops.convert_to_numpy(decode_distances(np.asarray(offsets, "float32"), anchors))


def test_offsets_are_logarithms_of_distances_in_half_sides():
    anchor = np.array([[0.2, 0.4, 0.6, 0.6]], "float32")  # centre 0.4, 0.5; half sides 0.2, 0.1
    box = decode(np.log([[2.0, 0.5, 0.5, 3.0]]), anchor)
    np.testing.assert_allclose(box, [[0.4 - 0.4, 0.5 - 0.05, 0.4 + 0.1, 0.5 + 0.3]], atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 10.0, 1e4, 1e30, np.inf])
def test_sides_never_swap_and_nothing_overflows(scale):
    anchors = make_anchors(anchor_settings(64, 3, anchors="official"))
    offsets = np.random.default_rng(0).choice([-1.0, -0.3, 0.0, 0.3, 1.0], (64, len(anchors), 4))
    with np.errstate(invalid="ignore"):
        offsets = np.nan_to_num((offsets * scale).astype("float32"), nan=0.0, posinf=np.inf, neginf=-np.inf)
    boxes = decode(offsets, anchors)
    assert np.isfinite(boxes).all()
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    middle = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert (boxes[..., :2] < middle).all()
    assert (boxes[..., 2:] > middle).all()
