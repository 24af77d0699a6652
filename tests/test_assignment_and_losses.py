"""Every box finds anchors, ignored regions give no gradient, the losses equal a slow reference and stay finite."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_network import targets

from models.anchors import anchor_settings, cell_sides, make_anchors
from models.assignment import classes_of_boxes, pairwise_iou, task_aligned_assignment
from models.box_coding import decode_distances
from models.label_rules import silent_classes
from models.losses import BOX_WEIGHTS, cross_entropy, detection_losses, generalised_iou
from oid.boxes import iou_matrix

SETTINGS = anchor_settings(64, 3)
ANCHORS, CELLS = make_anchors(SETTINGS), cell_sides(SETTINGS)
CENTRES = (ANCHORS[:, :2] + ANCHORS[:, 2:]) / 2
NUM_CLASSES = 3


def numpy(tensor) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


def assign(truth, scores=None, boxes=None, anchors=ANCHORS, cells=CELLS):
    """`task_aligned_assignment` as arrays; by default every score is 0.5 and the predictions are the anchors."""
    batch = len(truth["labels"])
    scores = np.full((batch, len(anchors), NUM_CLASSES), 0.5, "float32") if scores is None else scores
    boxes = np.stack([anchors] * batch) if boxes is None else boxes
    logits = np.log(scores) - np.log1p(-scores)
    result = task_aligned_assignment(logits, boxes, truth["boxes"], truth["labels"], anchors, cells)
    return tuple(map(numpy, result))


def random_case(seed: int, batch: int = 3):
    """Random predictions near the anchors and random ground truth with padding in between."""
    rng = np.random.default_rng(seed)
    offsets = rng.normal(0, 0.5, (batch, len(ANCHORS), 4)).astype("float32")
    logits = rng.normal(-1, 2, (batch, len(ANCHORS), NUM_CLASSES)).astype("float32")
    truth = {}
    for boxes, labels in (("boxes", "labels"), ("regions", "region_labels")):
        corner, size = rng.uniform(0, 0.8, (batch, 5, 2)), rng.uniform(0.02, 0.5, (batch, 5, 2))
        truth[boxes] = np.concatenate([corner, np.minimum(corner + size, 1)], -1).astype("float32")
        truth[labels] = rng.integers(-1, NUM_CLASSES, (batch, 5)).astype("int32")
    return offsets, logits, truth


# === References, one anchor and one box at a time ===


def reference_centre_inside(box, anchor) -> bool:
    half = np.maximum((box[2:] - box[:2]) / 2, CELLS[anchor] / 2) + 1e-6
    return bool((np.abs(CENTRES[anchor] - (box[:2] + box[2:]) / 2) <= half).all())


def reference_assignment(scores, boxes, gt_boxes, gt_labels, candidates=10):
    """One image; boxes with equal coordinates do not occur."""
    iou = iou_matrix(gt_boxes, boxes)
    alignment = np.zeros_like(iou)
    chosen = np.zeros(iou.shape, bool)
    for g, label in enumerate(gt_labels):
        for a in range(len(ANCHORS)):
            if label >= 0 and reference_centre_inside(gt_boxes[g], a):
                alignment[g, a] = scores[a, label] ** 0.5 * iou[g, a] ** 6
        best = np.argsort(-alignment[g], kind="stable")[:candidates]
        chosen[g, best] = alignment[g, best] > 0
    assigned, target = np.full(len(ANCHORS), -1), np.zeros(len(ANCHORS))
    for a in range(len(ANCHORS)):
        if chosen[:, a].any():
            assigned[a] = np.argmax(np.where(chosen[:, a], iou[:, a], -1))
    for a, g in enumerate(assigned):
        if g >= 0:
            mine = assigned == g
            target[a] = alignment[g, a] / alignment[g, mine].max() * iou[g, mine].max()
    return assigned, target


def reference_giou(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    outer = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return intersection / union - (outer - union) / outer


def reference_cross_entropy(target: float, logit: float, ignored: bool = False) -> float:
    p = 1 / (1 + np.exp(-logit))
    value = -(target * np.log(p) + (1 - target) * np.log(1 - p))
    return value if target > 0 or not ignored else 0.0


def reference_losses(offsets, logits, truth):
    scores, boxes = 1 / (1 + np.exp(-logits.astype("float64"))), numpy(decode_distances(offsets, ANCHORS))
    classification = box_loss = total = 0.0
    for image in range(len(logits)):
        labels = truth["labels"][image]
        assigned, target = reference_assignment(scores[image], boxes[image], truth["boxes"][image], labels)
        total += target.sum()
        for a, g in enumerate(assigned):
            for c in range(NUM_CLASSES):
                quality = target[a] if g >= 0 and labels[g] == c else 0.0
                regions = zip(truth["regions"][image], truth["region_labels"][image], strict=True)
                ignored = any(label == c and reference_centre_inside(region, a) for region, label in regions)
                classification += reference_cross_entropy(quality, float(logits[image, a, c]), ignored)
            if g >= 0:
                giou = reference_giou(truth["boxes"][image, g].astype("float64"), boxes[image, a].astype("float64"))
                box_loss += BOX_WEIGHTS["giou"] * target[a] * (1 - giou)
    return classification / max(total, 1), box_loss / max(total, 1)


# === IoU ===


def test_iou_by_hand_and_against_the_host():
    """Two unit squares shifted by half in both directions: 0.25 / 1.75 = 1/7."""
    unit, shifted = np.array([[0, 0, 1, 1.0]], "float32"), np.array([[0.5, 0.5, 1.5, 1.5]], "float32")
    np.testing.assert_allclose(numpy(pairwise_iou(unit, shifted)), [[1 / 7]], rtol=1e-6)
    _, _, truth = random_case(0)
    a, b = truth["boxes"][0], truth["regions"][0]
    np.testing.assert_allclose(numpy(pairwise_iou(a, b)), iou_matrix(a, b), atol=1e-6)


def test_boxes_without_area_overlap_nothing():
    boxes = np.array([[0.5, 0.5, 0.5, 0.5], [0.2, 0.1, 0.2, 0.9], [0.6, 0.6, 0.4, 0.4], [0, 0, 1, 1]], "float32")
    iou = numpy(pairwise_iou(boxes, boxes))
    assert np.isfinite(iou).all()
    np.testing.assert_array_equal(iou[:3], 0)


def test_giou_by_hand():
    """The shifted squares of before: 1/7 - (2.25 - 1.75) / 2.25. Squares side by side with a gap of 1: 0 - 1/3."""
    a = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 2, 2]], "float32")
    b = np.array([[0.5, 0.5, 1.5, 1.5], [2, 0, 3, 1], [0, 0, 1, 1], [0, 0, 1, 1]], "float32")
    np.testing.assert_allclose(numpy(generalised_iou(a, b)), [1 / 7 - 0.5 / 2.25, -1 / 3, 1, 0.25], rtol=1e-5)


def test_giou_equals_the_reference_and_is_symmetric():
    _, _, truth = random_case(1)
    a, b = truth["boxes"].reshape(-1, 4), truth["regions"].reshape(-1, 4)
    value = numpy(generalised_iou(a, b))
    expected = [reference_giou(x, y) for x, y in zip(a.astype("float64"), b.astype("float64"), strict=True)]
    np.testing.assert_allclose(value, expected, atol=1e-5)
    np.testing.assert_allclose(numpy(generalised_iou(b, a)), value, atol=1e-6)
    assert value.min() < 0 < value.max()


# === Assignment ===


def test_assignment_by_hand():
    """Four anchors in a row, two boxes: two anchors each overlap the first, one the second, one nothing."""
    anchors = np.array([[0, 0, 0.2, 0.2], [0.1, 0, 0.3, 0.2], [0.5, 0.5, 0.7, 0.7], [0.8, 0.8, 1, 1]], "float32")
    truth = targets([[(1, 0.0, 0.0, 0.2, 0.2), (0, 0.5, 0.5, 0.7, 0.6)]])
    assigned, target = assign(truth, anchors=anchors, cells=np.full(4, 0.1, "float32"))
    assert assigned.tolist() == [[0, 0, 1, -1]]
    # IoUs 1, 1/3 and 1/2: the best anchor of a box gets its IoU, another its share (1/3)^6
    np.testing.assert_allclose(target, [[1, 3.0**-6, 0.5, 0]], rtol=1e-4)


def test_a_higher_score_of_the_right_class_is_better_aligned():
    truth = targets([[(1, 0.25, 0.25, 0.75, 0.75)]])
    scores = np.full((1, len(ANCHORS), NUM_CLASSES), 0.5, "float32")
    assigned, before = assign(truth, scores)
    runner_up = np.flatnonzero((assigned[0] == 0) & (before[0] < before.max()))[0]
    other_class, right_class = scores.copy(), scores.copy()
    other_class[0, runner_up, 2] = right_class[0, runner_up, 1] = 0.9
    np.testing.assert_array_equal(assign(truth, other_class)[1], before)
    assert assign(truth, right_class)[1][0, runner_up] > before[0, runner_up]


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(2e-3, 1), st.floats(2e-3, 1))
def test_a_box_with_area_has_an_anchor(x, y, width, height):
    """Anywhere, also on the border between cells or at the edge, and however much smaller than a cell."""
    box = np.array([max(x - width / 2, 0), max(y - height / 2, 0), min(x + width / 2, 1), min(y + height / 2, 1)])
    assigned, target = assign(targets([[(2, *box)]]))
    assert (assigned == 0).any()
    assert np.isfinite(target).all()
    assert target.max() > 0
    assert ((target > 0) <= (assigned == 0)).all()


@pytest.mark.parametrize("side", [8, 40, 20, 10, 5])
def test_a_tiny_box_on_the_border_of_cells_has_an_anchor(side):
    description = {"feature_map_sides": [side], "steps": [1 / side], "sizes": [[[4 / side, 4 / side]]], "clip": False}
    anchors, cells = make_anchors(description), cell_sides(description)
    centre = np.arange(side + 1) / side
    rows = [[(0, max(c - 1e-3, 0), 0.5 - 1e-3, min(c + 1e-3, 1), 0.5 + 1e-3)] for c in centre]
    assigned, _ = assign(targets(rows), anchors=anchors, cells=cells)
    assert (assigned == 0).any(axis=1).all()


@pytest.mark.parametrize("box", [(0.5, 0.5, 0.5, 0.5), (0.2, 0.3, 0.2, 0.9), (0, 0, 1, 0), (0.7, 0.7, 0.3, 0.3)])
def test_a_box_without_area_has_none(box):
    assigned, target = assign(targets([[(0, *box), (1, 0.1, 0.1, 0.6, 0.6)]]))
    assert set(assigned[0]) == {-1, 1}
    assert np.isfinite(target).all()


def test_padding_and_images_without_boxes_have_none():
    truth = targets([[], [(0, 0.1, 0.1, 0.6, 0.6)]])
    truth["boxes"][0] = (0.2, 0.2, 0.7, 0.7)  # padding with coordinates is still padding
    truth["boxes"][1, 1:] = (0.1, 0.1, 0.6, 0.6)
    assigned, target = assign(truth)
    assert set(assigned[0]) == {-1}
    assert set(assigned[1]) == {-1, 0}
    np.testing.assert_array_equal(target[assigned < 0], 0)


@pytest.mark.parametrize("seed", range(4))
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
        expected = reference_assignment(scores[image], boxes[image], truth["boxes"][image], truth["labels"][image])
        np.testing.assert_array_equal(assigned[image], expected[0])
        np.testing.assert_allclose(target[image], expected[1], rtol=1e-3, atol=1e-6)


def test_the_order_of_the_boxes_does_not_matter():
    offsets, logits, truth = random_case(7)
    scores, boxes = 1 / (1 + np.exp(-logits)), numpy(decode_distances(offsets, ANCHORS))
    assigned, target = assign(truth, scores, boxes)
    order = np.array([3, 0, 4, 2, 1])
    permuted = {name: value[:, order] for name, value in truth.items()}
    assigned_permuted, target_permuted = assign(permuted, scores, boxes)
    back = np.where(assigned_permuted >= 0, order[assigned_permuted], -1)
    np.testing.assert_array_equal(back, assigned)
    np.testing.assert_allclose(target_permuted, target, rtol=1e-5)


def test_a_box_listed_with_two_classes_has_both():
    """A class with its ancestor, as level `all` lists them: the same anchors learn both."""
    box = (0.2, 0.2, 0.7, 0.7)
    truth = targets([[(0, *box), (2, *box), (1, 0.6, 0.6, 1, 1)]])
    classes = numpy(classes_of_boxes(truth["boxes"], truth["labels"], NUM_CLASSES))
    assert classes[0].tolist() == [[1, 0, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]
    gradient = logit_gradient(truth)[0]
    learned = (gradient < 0).sum(axis=0)  # a negative gradient raises the score
    assert learned[0] == learned[2] > 0
    np.testing.assert_array_equal(gradient[:, 0] < 0, gradient[:, 2] < 0)


# === Losses ===


def losses(offsets, logits, truth):
    """Both parts of the loss, divided as the trainer divides them."""
    *sums, normaliser = detection_losses({"classes": logits, "boxes": offsets}, truth, ANCHORS, CELLS)
    return [part / keras.ops.maximum(normaliser, 1.0) for part in sums]


def gradients(offsets, logits, truth):
    """The two losses and the gradients of their sum by logits and by offsets."""
    offsets, logits = tf.constant(offsets), tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch([offsets, logits])
        parts = losses(offsets, logits, truth)
        total = tf.add_n(parts)
    by_logits, by_offsets = tape.gradient(total, [logits, offsets])
    return [float(part) for part in parts], numpy(by_logits), numpy(by_offsets)


def logit_gradient(truth):
    shape = (len(truth["labels"]), len(ANCHORS))
    return gradients(np.zeros((*shape, 4), "float32"), np.full((*shape, NUM_CLASSES), -1, "float32"), truth)[1]


def test_cross_entropy_equals_the_reference():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, 200).astype("float32")
    target = np.where(rng.random(200) < 0.5, 0, rng.random(200)).astype("float32")
    expected = [reference_cross_entropy(*map(float, row)) for row in zip(target, logits, strict=True)]
    np.testing.assert_allclose(numpy(cross_entropy(target, logits)), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("logit", [-1e4, -100, 100, 1e4])
def test_cross_entropy_is_finite_at_extreme_logits(logit):
    value = numpy(cross_entropy(np.array([0, 0.5, 1], "float32"), np.full(3, logit, "float32")))
    assert np.isfinite(value).all()
    assert (value >= 0).all()


@pytest.mark.parametrize("seed", range(2))
def test_losses_equal_the_reference(seed):
    offsets, logits, truth = random_case(20 + seed)
    parts = [float(part) for part in losses(offsets, logits, truth)]
    np.testing.assert_allclose(parts, reference_losses(offsets, logits, truth), rtol=1e-3)


def test_losses_are_float32_for_outputs_of_half_precision():
    offsets, logits, truth = random_case(3)
    for part in losses(tf.cast(offsets, "bfloat16"), tf.cast(logits, "bfloat16"), truth):
        assert part.dtype == tf.float32


def test_perfect_predictions_leave_no_box_loss():
    box = ANCHORS[27]
    truth = targets([[(0, *box)]])
    zeros = np.zeros((1, len(ANCHORS), 4), "float32")
    logits = np.full((1, len(ANCHORS), NUM_CLASSES), -20, "float32")
    (_, before), *_ = gradients(zeros, logits, truth)
    logits[0, np.abs(ANCHORS - box).sum(-1) < 1e-6, 0] = 20
    class_loss, box_loss = (float(part) for part in losses(zeros, logits, truth))
    assert class_loss < 1e-3
    assert box_loss < 0.05 * before


@pytest.mark.parametrize(
    "truth",
    [
        targets([[], []]),
        targets([[], []], [[(0, 0, 0, 1, 1)], []]),
        targets([[], []], [[(0, 0.5, 0.5, 0.5, 0.5)], [(1, 0, 0, 0, 0)]]),
        targets([[(0, 0.5, 0.5, 0.5, 0.5), (1, 0.1, 0.1, 0.1, 0.8)], []]),
        targets([[(0, 0.5, 0.5, 0.5, 0.5), (1, 0.1, 0.1, 0.6, 0.8)], [(2, 0, 0, 1, 1)]], [[], [(1, 0, 0, 0.5, 0.5)]]),
        targets([[(0, 0, 0, 1e-4, 1e-4)], [(0, 0.9999, 0.9999, 1, 1)]]),
    ],
    ids=["no boxes", "only regions", "regions without area", "no area", "mixed", "a hundredth of a pixel"],
)
@pytest.mark.parametrize("scale", [0.0, 1.0, 50.0])
def test_loss_and_gradients_are_finite(truth, scale):
    rng = np.random.default_rng(0)
    offsets = (scale * rng.normal(size=(2, len(ANCHORS), 4))).astype("float32")
    logits = (scale * rng.normal(size=(2, len(ANCHORS), NUM_CLASSES))).astype("float32")
    parts, by_logits, by_offsets = gradients(offsets, logits, truth)
    assert np.isfinite(parts).all()
    assert np.isfinite(by_logits).all()
    assert np.isfinite(by_offsets).all()
    assert parts[0] > 0


def test_without_boxes_every_score_is_lowered_and_no_box_moves():
    truth = targets([[]])
    shape = (1, len(ANCHORS))
    parts, by_logits, by_offsets = gradients(np.zeros((*shape, 4), "f"), np.zeros((*shape, NUM_CLASSES), "f"), truth)
    assert parts[1] == 0
    assert (by_logits > 0).all()
    np.testing.assert_array_equal(by_offsets, 0)


# === Ignored regions ===


def test_a_region_silences_its_class_inside_and_nothing_else():
    region = (0.25, 0.25, 0.75, 0.75)
    plain, silenced = (logit_gradient(targets([[]], [r]))[0] for r in ([], [(1, *region)]))
    inside = ((CENTRES > 0.25) & (CENTRES < 0.75)).all(axis=1)
    far = (np.abs(CENTRES - 0.5) > 0.25 + CELLS[:, None]).any(axis=1)
    assert inside.sum() >= 16
    assert far.any()
    np.testing.assert_array_equal(silenced[inside, 1], 0)
    assert (plain[inside, 1] > 0).all()
    np.testing.assert_array_equal(silenced[:, [0, 2]], plain[:, [0, 2]])
    np.testing.assert_array_equal(silenced[far], plain[far])


@pytest.mark.parametrize("region", [(0, 0, 1, 1), (0.4, 0.4, 0.45, 0.43), (0, 0.9, 0.02, 1)])
def test_a_region_reaches_every_map_however_large_or_small(region):
    ignored = silent_in(regions([(2, *region)]))[0]
    for side in SETTINGS["feature_map_sides"]:
        on_map = np.isclose(CELLS, 1 / side)
        assert ignored[on_map, 2].any()
        assert ignored[on_map, 2].all() == (region == (0, 0, 1, 1))
    np.testing.assert_array_equal(ignored[:, :2], 0)


def regions(rows):
    truth = targets([[]], [rows])
    return {name: truth[name] for name in ("regions", "region_labels")}


def silent_in(truth):
    return numpy(silent_classes(truth, None, ANCHORS, CELLS, NUM_CLASSES))


def test_a_region_hides_what_the_same_box_would_have_learned():
    """The anchors that would be positive for a box are silent when it is an ignored region instead."""
    box = (0.1, 0.3, 0.35, 0.8)
    assigned, _ = assign(targets([[(0, *box)]]))
    ignored = silent_in(regions([(0, *box)]))
    assert (ignored[0, assigned[0] == 0, 0] == 1).all()


def test_padding_is_no_region():
    truth = targets([[]])
    truth["regions"][:] = (0, 0, 1, 1)
    assert not silent_in({name: truth[name] for name in ("regions", "region_labels")}).any()


def test_a_positive_inside_a_region_still_learns():
    box = (1, 0.3, 0.3, 0.7, 0.7)
    plain, silenced = (logit_gradient(targets([[box]], [r]))[0] for r in ([], [(1, 0, 0, 1, 1)]))
    positive = assign(targets([[box]]))[0][0] == 0
    assert (plain[positive, 1] < 0).any()
    np.testing.assert_array_equal(silenced[positive, 1], plain[positive, 1])
    np.testing.assert_array_equal(silenced[~positive, 1], 0)
