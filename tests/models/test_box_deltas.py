"""Box deltas decode to proper boxes, and encoding is the inverse of decoding."""

import numpy as np
import pytest

from models.box_deltas import DECODERS, ENCODERS, decode_distances
from oid.anchors.grids import m2det_anchors
from tests.helpers.detection_cases import ANCHORS, numpy


def decode(deltas, anchors):
    return numpy(decode_distances(np.asarray(deltas, "float32"), anchors))


def test_distances_are_logarithms_in_half_sides():
    anchor = np.array([[0.2, 0.4, 0.6, 0.6]], "float32")  # centre 0.4, 0.5; half sides 0.2, 0.1
    box = decode(np.log([[2.0, 0.5, 0.5, 3.0]]), anchor)
    np.testing.assert_allclose(box, [[0.4 - 0.4, 0.5 - 0.05, 0.4 + 0.1, 0.5 + 0.3]], atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30, np.inf])
def test_sides_of_distances_never_swap_or_overflow(scale):
    anchors = m2det_anchors(64, 3, "official").boxes()
    deltas = np.random.default_rng(0).choice([-1.0, -0.3, 0.0, 0.3, 1.0], (64, len(anchors), 4))
    with np.errstate(invalid="ignore"):
        deltas = np.nan_to_num((deltas * scale).astype("float32"), nan=0.0, posinf=np.inf, neginf=-np.inf)
    boxes = decode(deltas, anchors)
    assert np.isfinite(boxes).all()
    middle = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert (boxes[..., :2] < middle).all()
    assert (boxes[..., 2:] > middle).all()


@pytest.mark.parametrize("name", DECODERS)
def test_encoding_is_the_inverse_of_decoding(name):
    deltas = np.random.default_rng(0).normal(0, 1, (2, len(ANCHORS), 4)).astype("float32")
    boxes = numpy(DECODERS[name](deltas, ANCHORS))
    np.testing.assert_allclose(numpy(ENCODERS[name](boxes, ANCHORS)), deltas, atol=1e-4)
    assert np.isfinite(numpy(ENCODERS[name](np.zeros_like(boxes), ANCHORS))).all()
