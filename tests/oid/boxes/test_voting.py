"""Box voting: the weighted mean of the right boxes."""

import numpy as np
import pytest

from oid.boxes.suppression import classwise_nms, iou_matrix
from oid.boxes.voting import vote_boxes


def test_a_box_moves_to_the_weighted_mean_of_its_voters():
    boxes = np.array([[0.0, 0.0, 0.4, 0.4], [0.0, 0.0, 0.4, 0.5], [0.0, 0.0, 0.4, 0.9], [0.0, 0.0, 0.4, 0.5]])
    scores, labels = np.array([0.6, 0.2, 0.5, 0.4]), np.array([3, 3, 3, 8])
    # IoU with the first: 0.8 of the second, 0.44 of the third; the fourth is of another class
    voted = vote_boxes(boxes, scores, labels, np.array([0]), 0.8)
    assert voted == pytest.approx(np.array([[0.0, 0.0, 0.4, (0.6 * 0.4 + 0.2 * 0.5) / 0.8]]))
    assert vote_boxes(boxes, scores, labels, np.array([0]), 0.81) == pytest.approx(boxes[:1])


def test_nothing_moves_at_one_and_where_scores_are_zero():
    boxes = np.array([[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.6]])
    labels, kept = np.zeros(3, int), np.array([2, 0])
    np.testing.assert_array_equal(vote_boxes(boxes, np.array([0.3, 0.3, 0.9]), labels, kept, 1.0), boxes[kept])
    np.testing.assert_array_equal(vote_boxes(boxes, np.zeros(3), labels, kept, 0.5), boxes[kept])
    assert vote_boxes(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), np.zeros(0, int), 0.5).shape == (0, 4)


def test_voting_equals_the_formula_in_numpy():
    rng = np.random.default_rng(0)
    corner, sides = rng.uniform(0, 0.5, (200, 2)), rng.uniform(0.05, 0.5, (200, 2))
    boxes, scores, labels = np.concatenate([corner, corner + sides], axis=1), rng.random(200), rng.integers(0, 3, 200)
    kept = classwise_nms(boxes, scores, labels, 0.5)
    overlaps = iou_matrix(boxes[kept], boxes) >= 0.4
    weights = overlaps * (labels[kept][:, None] == labels) * scores
    expected = weights @ boxes / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(vote_boxes(boxes, scores, labels, kept, 0.4), expected, rtol=0, atol=1e-12)
