"""The boxes of an image become detections: by this project's rules, and exactly as keras-retinanet does it."""

import dataclasses
import inspect
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import a04_inference as a04
from models.suppression import Candidates, DetectionOptions, ScoredBoxes, clip_ends, keras_retinanet_suppress, suppress
from oid.boxes.suppression import classwise_nms, classwise_soft_nms, iou_matrix
from oid.files import InputError


def test_suppress_clips_and_leaves_out_what_has_no_area():
    rows = np.array(
        [
            (0, 0.9, 0.1, 0.1, 0.5, 0.5),
            (0, 0.8, 0.1, 0.1, 0.5, 0.48),  # IoU 0.95 with the first
            (1, 0.7, 0.1, 0.1, 0.5, 0.5),  # another class
            (1, 0.3, 0.6, 0.6, 1.4, 0.9),  # beyond the edge
            (1, 0.2, 1.1, 0.0, 1.2, 0.5),  # outside
            (0, 0.1, 0.2, 0.2, 0.2, 0.7),  # without area
            (0, 0.05, 0.0, 0.8, 0.1, 0.9),
        ]
    )
    found = ScoredBoxes(rows[:, 2:], rows[:, 1], rows[:, 0])
    boxes, scores, labels = suppress(found, DetectionOptions(score_threshold=0.05))
    assert scores.tolist() == [0.9, 0.7, 0.3, 0.05]
    assert labels.tolist() == [0, 1, 1, 0]
    assert boxes[2].tolist() == [0.6, 0.6, 1, 0.9]
    assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float64, np.float64, np.int64)
    assert suppress(found, DetectionOptions(score_threshold=0.31, max_boxes=1)).scores.tolist() == [0.9]
    assert len(suppress(found, DetectionOptions(nms_iou=1.0)).boxes) == 5


@pytest.mark.parametrize("nms", ["hard", "linear", "gaussian"])
def test_suppress_is_the_function_of_its_name(nms):
    rng = np.random.default_rng(3)
    corners = rng.uniform(0, 0.7, (200, 2))
    boxes, scores, labels = np.concatenate([corners, corners + 0.3], axis=1), rng.random(200), rng.integers(0, 2, 200)
    options = DetectionOptions(0.2, nms, nms_iou=0.4, nms_sigma=0.3, vote_iou=1.0, max_boxes=60)
    found = suppress(ScoredBoxes(boxes, scores, labels), options)
    if nms == "hard":
        kept = classwise_nms(boxes, scores, labels, 0.4)
        new_scores = scores[kept]
    else:
        parameters = {"iou_threshold": 0.4, "sigma": 0.3, "score_threshold": 0.0}
        kept, new_scores = classwise_soft_nms(boxes, scores, labels, method=nms, **parameters)
    kept, new_scores = kept[new_scores >= 0.2][:60], new_scores[new_scores >= 0.2][:60]  # as if filtered afterwards
    for one, other in zip(found, (boxes[kept], new_scores, labels[kept]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_boxes_that_voting_moves_together_are_one():
    """Two of three overlap by an IoU of 0.6 and stay, until their voters pull them onto each other."""
    boxes = np.array([[0.0, 0.0, 0.4, 0.4], [0.1, 0.0, 0.5, 0.4], [0.05, 0.0, 0.45, 0.4]])
    scores = np.array([0.9, 0.8, 0.7])
    found = ScoredBoxes(boxes, scores, np.zeros(3, int))
    apart = suppress(found, DetectionOptions(nms_iou=0.65, vote_iou=1.0))
    assert apart.scores.tolist() == [0.9, 0.8]
    together = suppress(found, DetectionOptions(nms_iou=0.65, vote_iou=0.5))
    assert together.scores.tolist() == [0.9]
    np.testing.assert_allclose(together.boxes[0], scores @ boxes / scores.sum())


def test_the_defaults_are_those_of_a04():
    defaults = {name: parameter.default for name, parameter in inspect.signature(a04.main).parameters.items()}
    for field in dataclasses.fields(DetectionOptions):
        assert field.default == defaults[field.name]


@pytest.mark.parametrize(
    ("suppression", "any_shape", "expected"),
    [
        ("auto", False, "own"),
        ("own", True, "own"),
        ("auto", True, "keras_retinanet"),
        ("keras_retinanet", True, "keras_retinanet"),
        ("keras_retinanet", False, None),
    ],
)
def test_which_suppression_belongs_to_a_network(suppression, any_shape, expected):
    options = DetectionOptions(suppression=suppression)
    if expected:
        assert options.resolved(any_shape=any_shape) == DetectionOptions(suppression=expected)
    else:
        with pytest.raises(InputError, match="is for converted RetinaNets"):
            options.resolved(any_shape=any_shape)


# === keras-retinanet ===


def reference_suppression(boxes, scores, labels, *, score_threshold, nms_iou, max_boxes, ends):
    """That of keras-retinanet: suppression in each class, then the best boxes of all classes."""
    boxes = np.clip(boxes, 0, (*ends, *ends))
    kept = []
    for label in np.unique(labels):
        mine = np.flatnonzero((labels == label) & (scores > score_threshold))
        chosen = []
        for index in sorted(mine, key=lambda i: (-scores[i], i)):
            upright = np.sort(boxes[[*chosen, index]].reshape(-1, 2, 2), axis=1).reshape(-1, 4)
            if len(chosen) < max_boxes and (iou_matrix(upright[-1:], upright[:-1]) <= nms_iou).all():
                chosen.append(index)
        kept += chosen
    kept.sort(key=lambda i: -scores[i])  # stable: of equal ones the lower class first
    kept = np.asarray(kept[:max_boxes], int)
    return boxes[kept], scores[kept], labels[kept]


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    anchors=st.integers(0, 40),
    classes=st.integers(1, 4),
    levels=st.integers(1, 30),
    max_boxes=st.integers(1, 12),
)
def test_keras_retinanets_suppression_is_exact(seed, anchors, classes, levels, max_boxes):
    """Scores of few levels, so that many are equal; boxes outside the picture, without area, and with swapped sides."""
    random = np.random.default_rng(seed)
    boxes = np.round(random.uniform(-0.2, 1.2, (anchors, 4)), 1)
    ordered = random.random(anchors) < 0.8
    boxes[ordered] = np.sort(boxes[ordered].reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    table = random.integers(0, levels + 1, (anchors, classes)) / levels
    anchor, label = (values.ravel() for values in np.indices(table.shape))
    flat = table.ravel()
    limits = {"ends": clip_ends("last_pixel", 10, 20), "score_threshold": 0.3, "nms_iou": 0.5, "max_boxes": max_boxes}
    asked = []

    def get_candidates(count, score_threshold):
        asked.append(count)
        order = np.lexsort((label, anchor, -flat))
        order = order[flat[order] >= score_threshold][:count]
        return Candidates(ScoredBoxes(boxes[anchor[order]], flat[order], label[order]), anchor[order])

    found = keras_retinanet_suppress(get_candidates, **limits)
    for ours, theirs in zip(found, reference_suppression(boxes[anchor], flat, label, **limits), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert all(b == 16 * a for a, b in itertools.pairwise(asked))
