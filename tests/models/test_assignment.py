"""Every box finds anchors, and both assignments equal a slow reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.assignment import (
    centre_inside,
    classes_of_boxes,
    max_iou_assignment,
    pairwise_iou,
    scores_of_boxes,
    task_aligned_assignment,
)
from models.box_deltas import decode_distances
from oid.anchors.grids import grids_of_sizes
from oid.boxes.suppression import iou_matrix
from tests.helpers.detection_cases import (
    ANCHORS,
    CELLS,
    NUM_CLASSES,
    logit_gradient,
    numpy,
    random_case,
    reference_max_iou,
    reference_task_aligned,
)
from tests.helpers.tiny_network import targets


def assign(truth, scores=None, boxes=None, anchors=ANCHORS, cells=CELLS):
    """`task_aligned_assignment` as arrays; by default every score is 0.5 and the predictions are the anchors."""
    batch = len(truth["labels"])
    scores = np.full((batch, len(anchors), NUM_CLASSES), 0.5, "float32") if scores is None else scores
    boxes = np.stack([anchors] * batch) if boxes is None else boxes
    logits = np.log(scores) - np.log1p(-scores)
    result = task_aligned_assignment(logits, boxes, truth["boxes"], truth["labels"], anchors, cells)
    return tuple(map(numpy, result))


# === IoU ===


def test_iou_by_hand_and_against_the_host():
    """Two unit squares shifted by half in both directions: 0.25 / 1.75 = 1/7."""
    unit, shifted = np.array([[0, 0, 1, 1.0]], "float32"), np.array([[0.5, 0.5, 1.5, 1.5]], "float32")
    np.testing.assert_allclose(numpy(pairwise_iou(unit, shifted)), [[1 / 7]], rtol=1e-6)
    _, _, truth = random_case(0)
    a, b = truth["boxes"][0], truth["regions"][0]
    np.testing.assert_allclose(numpy(pairwise_iou(a, b)), iou_matrix(a, b), atol=1e-6)


# === Assignment ===


def test_assignment_by_hand():
    """Four anchors in a row, two boxes: two anchors each overlap the first, one the second, one nothing."""
    anchors = np.array([[0, 0, 0.2, 0.2], [0.1, 0, 0.3, 0.2], [0.5, 0.5, 0.7, 0.7], [0.8, 0.8, 1, 1]], "float32")
    truth = targets([[(1, 0.0, 0.0, 0.2, 0.2), (0, 0.5, 0.5, 0.7, 0.6)]])
    assigned, target = assign(truth, anchors=anchors, cells=np.full(4, 0.1, "float32"))
    assert assigned.tolist() == [[0, 0, 1, -1]]
    # IoUs 1, 1/3 and 1/2: the best anchor of a box gets its IoU, another its share (1/3)^6
    np.testing.assert_allclose(target, [[1, 3.0**-6, 0.5, 0]], rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(2e-3, 1), st.floats(2e-3, 1))
def test_a_box_with_area_has_an_anchor(x, y, width, height):
    """Anywhere, also on the border between cells or at the edge, and however much smaller than a cell."""
    box = np.array([max(x - width / 2, 0), max(y - height / 2, 0), min(x + width / 2, 1), min(y + height / 2, 1)])
    assigned, target = assign(targets([[(2, *box)]]))
    assert (assigned == 0).any()
    assert np.isfinite(target).all()
    assert target.max() > 0
    assert ((target > 0) <= (assigned == 0)).all()
    assert (max_iou(targets([[(2, *box)]])) == 0).any()


@pytest.mark.parametrize("side", [8, 40, 20, 10, 5])
def test_a_tiny_box_on_the_border_of_cells_has_an_anchor(side):
    grids = grids_of_sizes((((4 / side, 4 / side),),), [side])
    anchors, cells = grids.boxes(), grids.cell_sides()
    centre = np.arange(side + 1) / side
    rows = [[(0, max(c - 1e-3, 0), 0.5 - 1e-3, min(c + 1e-3, 1), 0.5 + 1e-3)] for c in centre]
    assigned, _ = assign(targets(rows), anchors=anchors, cells=cells)
    assert (assigned == 0).any(axis=1).all()


@pytest.mark.parametrize("seed", range(3))
def test_assignment_equals_the_reference(seed):
    offsets, logits, truth = random_case(seed)
    scores, boxes = 1 / (1 + np.exp(-logits)), numpy(decode_distances(offsets, ANCHORS))
    assigned, target = assign(truth, scores, boxes)
    assert assigned.dtype == np.int32
    assert (assigned >= 0).any()
    assert target.min() >= 0
    assert target.max() <= 1
    np.testing.assert_array_equal(target[assigned < 0], 0)
    for image in range(len(assigned)):  # alone, so the images of a batch do not touch each other
        expected = reference_task_aligned(scores[image], boxes[image], truth["boxes"][image], truth["labels"][image])
        np.testing.assert_array_equal(assigned[image], expected[0])
        np.testing.assert_allclose(target[image], expected[1], rtol=1e-3, atol=1e-6)


def test_a_box_listed_with_two_classes_has_both_and_the_mean_of_their_scores():
    box = (0.2, 0.2, 0.7, 0.7)
    truth = targets([[(0, *box), (2, *box), (1, 0.6, 0.6, 1, 1)]])
    logits = np.random.default_rng(0).normal(size=(1, 7, NUM_CLASSES)).astype("float32")
    p = 1 / (1 + np.exp(-logits[0]))
    mean = (p[:, 0] + p[:, 2]) / 2
    scores = numpy(scores_of_boxes(logits, truth["boxes"], truth["labels"]))[0]
    np.testing.assert_allclose(scores[:3], [mean, mean, p[:, 1]], rtol=1e-5)
    classes = numpy(classes_of_boxes(truth["boxes"], truth["labels"], NUM_CLASSES))
    assert classes[0].tolist() == [[1, 0, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]
    gradient = logit_gradient(truth)[0]
    learned = (gradient < 0).sum(axis=0)  # a negative gradient raises the score
    assert learned[0] == learned[2] > 0
    np.testing.assert_array_equal(gradient[:, 0] < 0, gradient[:, 2] < 0)


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_an_anchor_that_is_half_covered_has_its_centre_in_the_box(x, y, width, height):
    """So the rule of ignored regions contains the published one, IoA >= 0.5."""
    box = np.array([[[max(x - width, 0), max(y - height, 0), min(x + width, 1), min(y + height, 1)]]], "float32")
    overlap = np.minimum(ANCHORS[:, 2:], box[0, :, 2:]) - np.maximum(ANCHORS[:, :2], box[0, :, :2])
    covered = np.maximum(overlap, 0).prod(-1) / (ANCHORS[:, 2:] - ANCHORS[:, :2]).prod(-1)
    assert (numpy(centre_inside(box, ANCHORS, CELLS))[0, 0] >= (covered >= 0.5)).all()


# === Both assignments ===


def task_aligned(truth) -> np.ndarray:
    assigned, target = assign(truth)
    assert np.isfinite(target).all()
    np.testing.assert_array_equal(target[assigned < 0], 0)
    return assigned


def max_iou(truth, anchors=ANCHORS, **options) -> np.ndarray:
    assigned, target = map(numpy, max_iou_assignment(truth["boxes"], truth["labels"], anchors, **options))
    assert assigned.dtype == np.int32
    np.testing.assert_array_equal(target, assigned >= 0)
    return assigned


@st.composite
def padded_boxes(draw):
    """Boxes of all sizes, without area, of the whole image, and with several classes; padding with coordinates."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    boxes, labels = np.zeros((1, 6, 4), "float32"), np.full((1, 6), -1, "int32")
    for row in range(6):
        corner, size = rng.uniform(0, 0.9, 2), 10 ** rng.uniform(-3, 0, 2)
        boxes[0, row] = [*corner, *np.minimum(corner + size, 1)]
        kind = draw(st.sampled_from(["padding", "any", "any", "any", "no area", "whole", "same"]))
        labels[0, row] = -1 if kind == "padding" else rng.integers(NUM_CLASSES)
        if kind == "no area":
            boxes[0, row, 2:] = boxes[0, row, :2]
        elif kind == "whole":
            boxes[0, row] = 0, 0, 1, 1
        elif kind == "same" and row:
            boxes[0, row] = boxes[0, row - 1]
    return {"boxes": boxes, "labels": labels}


@settings(max_examples=20, deadline=None, derandomize=True)
@given(padded_boxes(), st.sampled_from([0.4, 0.5]))
def test_max_iou_equals_the_reference(truth, negative):
    expected = reference_max_iou(truth["boxes"][0], truth["labels"][0], negative)
    np.testing.assert_array_equal(max_iou(truth, negative=negative)[0], expected)


def test_max_iou_by_hand():
    """IoUs with the first box are 1, 1/3, 0.45 and 0; the second box overlaps its anchor by a hundredth."""
    anchors = np.array([[0, 0, 0.2, 0.2], [0.1, 0, 0.3, 0.2], [0, 0, 0.2, 0.09], [0.8, 0.8, 1, 1]], "float32")
    truth = targets([[(1, 0, 0, 0.2, 0.2), (0, 0.98, 0.98, 1, 1)]])
    assert max_iou(truth, anchors).tolist() == [[0, -1, -2, 1]]
    assert max_iou(truth, anchors, negative=0.5).tolist() == [[0, -1, -1, 1]]
    assert max_iou(targets([[]]), anchors).tolist() == [[-1, -1, -1, -1]]


FLAT_BOXES = [(0.5, 0.5, 0.5, 0.5), (0.2, 0.3, 0.2, 0.9), (0, 0, 1, 0), (0.7, 0.7, 0.3, 0.3)]


@pytest.mark.parametrize("assign_boxes", [task_aligned, max_iou])
def test_padding_and_boxes_without_area_take_no_anchor(assign_boxes):
    truth = targets([[], [(1, 0.1, 0.1, 0.6, 0.6), *((0, *box) for box in FLAT_BOXES)]], width=7)
    truth["boxes"][0] = (0.2, 0.2, 0.7, 0.7)
    truth["boxes"][1, 5:] = (0.1, 0.1, 0.6, 0.6)
    assigned = assign_boxes(truth)
    assert set(assigned[0]) == {-1}
    assert set(assigned[1]) - {-2} == {-1, 0}
    wider = {name: np.concatenate([value, np.full_like(value, -1)], axis=1) for name, value in truth.items()}
    np.testing.assert_array_equal(assign_boxes(wider), assigned)
