"""The best anchor of each box is found without looking at all of them."""

import numpy as np
import pytest

from oid.anchors.coverage import best_ious
from oid.anchors.grids import grids_of_sizes, m2det_anchors
from oid.boxes.suppression import iou_matrix


def random_boxes(count):
    rng = np.random.default_rng(0)
    size = 2.0 ** rng.uniform(-7, 0, (count, 2))
    corner = rng.uniform(0, 1, (count, 2)) * (1 - size)
    return np.concatenate([corner, corner + size], axis=1)


@pytest.mark.parametrize(
    "anchors",
    [
        m2det_anchors(192, 4),
        m2det_anchors(100, 3, "official"),
        m2det_anchors(320, 6, "official"),  # centres beyond the image are cut to it
        m2det_anchors(800, 6, "official"),
        m2det_anchors(16, 1),
        grids_of_sizes([[[0.02, 0.3], [0.4, 0.1]], [[2.0, 0.5], [0.01, 0.01]]], [7, 2]),
    ],
)
def test_the_best_anchor_equals_that_of_a_search_through_all(anchors):
    boxes = np.concatenate(
        [random_boxes(60), [[0, 0, 1, 1], [0.99, 0.99, 1, 1], [-0.2, 0, 0.1, 0.1], [1, 1, 1.2, 1.1]]]
    )
    everywhere = anchors.boxes().astype("float64")
    np.testing.assert_allclose(best_ious(boxes, anchors), iou_matrix(boxes, everywhere).max(axis=1), atol=2e-6)


def test_ious_by_hand():
    """One cell, one square of half the image: a box of a quarter of its area inside it, and one beside it."""
    anchors = grids_of_sizes([[[0.5, 0.5]]], [1])
    boxes = np.array([[0.25, 0.25, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 0.2, 0.2], [0.5, 0.25, 1.0, 0.75]])
    np.testing.assert_allclose(best_ious(boxes, anchors), [0.25, 1.0, 0.0, 1 / 3])
    assert best_ious(np.empty((0, 4)), anchors).shape == (0,)
