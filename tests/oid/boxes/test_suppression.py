"""IoU and non-maximum suppression: hand-computed cases, and equality with slow plain versions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oid.boxes.suppression import classwise_nms, classwise_soft_nms, iou_matrix
from tests.helpers.project import shared

# Few distinct values, so that shared edges, equal boxes, boxes without area and equal scores are common.
GRID = st.integers(0, 8).map(lambda value: value / 8)
BOX = st.tuples(GRID, GRID, GRID, GRID).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)
DETECTION = st.tuples(BOX, GRID, st.sampled_from([-3, 0, 7]))


def nms(boxes, scores, iou_threshold):
    return classwise_nms(boxes, scores, np.zeros(len(scores), int), iou_threshold)


def soft_nms(boxes, scores, **options):
    return classwise_soft_nms(boxes, scores, np.zeros(len(scores), int), **options)


def plain_iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union if union > 0 else 0.0


def plain_nms(detections, iou_threshold):
    kept = []
    for i in sorted(range(len(detections)), key=lambda i: (-detections[i][1], i)):
        box, _, label = detections[i]
        rivals = [detections[j][0] for j in kept if detections[j][2] == label]
        if all(plain_iou(box, rival) <= iou_threshold for rival in rivals):
            kept.append(i)
    return kept


def arrays(detections):
    boxes = np.array([box for box, _, _ in detections], dtype=np.float64).reshape(-1, 4)
    return boxes, np.array([score for _, score, _ in detections]), np.array([d[2] for d in detections], dtype=np.int64)


def test_iou_by_hand_does_not_depend_on_the_unit():
    """Widths with the "+1 pixel" of older code would give 0.93 for the second pair."""
    assert iou_matrix([[0, 0, 2, 2]], [[1, 1, 3, 3]]) == [[1 / 7]]
    np.testing.assert_allclose(iou_matrix([[0, 0, 0.02, 0.02]], [[0.01, 0.01, 0.03, 0.03]]), 1 / 7, rtol=1e-12)


@settings(deadline=None)
@given(st.lists(BOX, max_size=6), st.lists(BOX, max_size=6))
def test_iou_equals_the_plain_formula_and_is_symmetric(a, b):
    expected = np.array([[plain_iou(p, q) for q in b] for p in a]).reshape(len(a), len(b))
    result = iou_matrix(np.array(a).reshape(-1, 4), np.array(b).reshape(-1, 4))
    assert result.dtype == np.float64
    assert np.array_equal(result, expected)
    assert np.array_equal(iou_matrix(np.array(b).reshape(-1, 4), np.array(a).reshape(-1, 4)), expected.T)


@settings(deadline=None)
@given(st.lists(DETECTION, max_size=25), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.integers(0, 30))
def test_classwise_nms_equals_the_plain_version_also_with_ties(detections, iou_threshold, max_boxes):
    kept = classwise_nms(*arrays(detections), iou_threshold)
    assert kept.dtype == np.int64
    assert kept.tolist() == plain_nms(detections, iou_threshold)
    assert classwise_nms(*arrays(detections), iou_threshold, max_boxes).tolist() == kept[:max_boxes].tolist()


# === Soft non-maximum suppression ===


def plain_soft_nms(detections, method, iou_threshold, sigma, score_threshold):
    rest = {i: score for i, (_, score, _) in enumerate(detections)}
    kept = []
    while rest:
        best = min(rest, key=lambda i: (-rest[i], i))
        kept.append((best, rest.pop(best)))
        for i in list(rest):
            iou = plain_iou(detections[best][0], detections[i][0])
            rest[i] *= 1 - iou * (iou > iou_threshold) if method == "linear" else np.exp(-(iou**2) / sigma)
            if iou > 0 and rest[i] < score_threshold:
                del rest[i]
    return kept


METHODS = st.sampled_from(["linear", "gaussian"])
THRESHOLDS = st.fixed_dictionaries(
    {
        "iou_threshold": st.sampled_from([0.0, 0.25, 0.5, 1.0]),
        "sigma": st.sampled_from([0.1, 0.5]),
        "score_threshold": st.sampled_from([0.0, 0.001, 0.3]),
    }
)


@settings(deadline=None)
@given(st.lists(DETECTION, max_size=20), METHODS, THRESHOLDS)
def test_soft_nms_equals_the_plain_version_also_with_ties(detections, method, options):
    boxes, scores, _ = arrays(detections)
    kept, new_scores = soft_nms(boxes, scores, method=method, **options)
    expected = plain_soft_nms(detections, method, **options)
    assert (kept.dtype, new_scores.dtype) == (np.int64, np.float64)
    assert kept.tolist() == [index for index, _ in expected]
    np.testing.assert_allclose(new_scores, [score for _, score in expected], rtol=1e-12)
    assert np.array_equal(scores, arrays(detections)[1])  # the caller's scores are as they were


@settings(deadline=None)
@given(st.lists(DETECTION, max_size=20), METHODS, st.none() | st.integers(0, 25))
def test_classwise_soft_nms_is_soft_nms_of_each_class(detections, method, max_boxes):
    boxes, scores, labels = arrays(detections)
    expected = []
    for label in set(labels.tolist()):
        of_class = np.flatnonzero(labels == label)
        kept, new_scores = soft_nms(boxes[of_class], scores[of_class], method=method)
        expected += zip(-new_scores, of_class[kept], strict=True)
    kept, new_scores = classwise_soft_nms(boxes, scores, labels, method=method, max_boxes=max_boxes)
    assert list(zip(-new_scores, kept, strict=True)) == sorted(expected)[:max_boxes]


def test_the_score_threshold_looks_only_at_boxes_that_overlap_a_better_one():
    boxes = [[0, 0, 1, 1], [0.9, 0.9, 2, 2], [5, 5, 6, 6], [3, 3, 3, 4]]  # little overlap, none, none without area
    kept, new_scores = soft_nms(boxes, [0.9, 0.01, 0.01, 0.02], method="linear", score_threshold=0.1)
    assert (kept.tolist(), new_scores.tolist()) == ([0, 3, 2], [0.9, 0.02, 0.01])


def wider(boxes):
    """Continuous boxes that overlap as the reference's do, a pixel wider and higher than their corners say."""
    return np.add(boxes, [0, 0, 1, 1], dtype=np.float64)


def test_nms_and_soft_nms_equal_the_reference():
    """The reference suppresses at an IoU equal to the threshold, too; here none is."""
    reference = np.load(shared("golden", "m2det", "softnms.npz"))
    boxes, scores = wider(reference["dets"][:, :4]), reference["dets"][:, 4]
    for method, name in (("linear", "soft_linear"), ("gaussian", "soft_gauss")):
        kept, new_scores = soft_nms(boxes, scores, method=method)
        assert np.array_equal(boxes[kept], wider(reference[name][:, :4]))
        np.testing.assert_allclose(new_scores, reference[name][:, 4], rtol=0, atol=1e-6)
    assert not (iou_matrix(boxes, boxes) == 0.45).any()
    assert np.array_equal(nms(boxes, scores, 0.45), reference["nms_045_keep"])


def test_no_boxes_give_no_boxes():
    assert iou_matrix([], [[0, 0, 1, 1]]).shape == (0, 1)
    assert classwise_nms([], [], [], 0.5, 3).dtype == np.int64
    kept, new_scores = classwise_soft_nms(np.zeros((0, 4)), [], [], method="linear")
    assert (kept.shape, kept.dtype, new_scores.shape, new_scores.dtype) == ((0,), np.int64, (0,), np.float64)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda box: nms(box * 2, [0.5], 0.5), "2 boxes, 1 scores"),
        (lambda box: nms(box, [np.nan], 0.5), "score 0 is NaN"),
        (lambda box: iou_matrix(box[0], box), "shape"),
        (lambda box: soft_nms(box, [-0.5], method="linear"), "score 0 is negative"),
        (lambda box: classwise_soft_nms(box, [0.5], [0, 1], method="linear"), "1 boxes, 1 scores and 2 labels"),
    ],
)
def test_mistakes_raise(call, match):
    with pytest.raises(ValueError, match=match):
        call([[0, 0, 1, 1]])
