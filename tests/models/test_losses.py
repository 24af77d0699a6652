"""The losses equal slow references, and stay finite with finite gradients, whatever the ground truth."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.box_coding import BOX_CODINGS, BOX_ENCODINGS
from models.losses import (
    ASSIGNMENTS,
    BOX_WEIGHTS,
    CLASS_LOSSES,
    assigned_targets,
    complete_iou,
    cross_entropy,
    detection_losses,
    focal,
    generalised_iou,
    quality_focal,
    smooth_l1,
    varifocal,
)
from oid.boxes.suppression import iou_matrix
from tests.helpers.detection_cases import (
    ANCHORS,
    CELLS,
    LEVELS,
    NUM_CLASSES,
    gradients,
    losses,
    numpy,
    random_case,
    reference_atss,
    reference_centre_inside,
    reference_cross_entropy,
    reference_giou,
    reference_max_iou,
    reference_task_aligned,
    with_parts,
)
from tests.helpers.tiny_network import targets

ANCESTORS = np.array([[0, 0, 1], [0, 0, 1], [0, 0, 0]], "float32")  # class 2 lies above the others
NAMES = ("assignment", "class_loss", "box_loss", "box_coding")
ALL_OPTIONS = [
    dict(zip(NAMES, values, strict=True))
    for values in itertools.product(ASSIGNMENTS, CLASS_LOSSES, BOX_WEIGHTS, BOX_CODINGS)
]


def element_case():
    """Targets and logits of 200 anchors."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, 200).astype("float32")
    return np.where(rng.random(200) < 0.5, 0, rng.random(200)).astype("float32"), logits


@pytest.mark.parametrize("logit", [-1e4, -100, 100, 1e4])
def test_cross_entropy_is_finite_at_extreme_logits(logit):
    value = numpy(cross_entropy(np.array([0, 0.5, 1], "float32"), np.full(3, logit, "float32")))
    assert np.isfinite(value).all()
    assert (value >= 0).all()


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


def test_without_boxes_every_score_is_lowered_and_no_box_moves():
    truth = targets([[]])
    shape = (1, len(ANCHORS))
    parts, by_logits, by_offsets = gradients(np.zeros((*shape, 4), "f"), np.zeros((*shape, NUM_CLASSES), "f"), truth)
    assert parts[1] == 0
    assert (by_logits > 0).all()
    np.testing.assert_array_equal(by_offsets, 0)


# === Losses of classes ===


def test_focal_loss_is_that_of_keras():
    target, logits = element_case()
    target = (target > 0).astype("float32")
    reference = keras.losses.BinaryFocalCrossentropy(
        apply_class_balancing=True, alpha=0.25, gamma=2.0, from_logits=True, reduction="none"
    )
    expected = numpy(reference(target[:, None], logits[:, None]))
    np.testing.assert_allclose(numpy(focal(target, logits)), expected, rtol=1e-4, atol=1e-7)


def test_losses_of_classes_equal_their_formulas():
    target, logits = element_case()
    p = 1 / (1 + np.exp(-logits.astype("float64")))
    entropy = np.array([reference_cross_entropy(*map(float, row)) for row in zip(target, logits, strict=True)])
    np.testing.assert_allclose(numpy(cross_entropy(target, logits)), entropy, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(numpy(quality_focal(target, logits)), (target - p) ** 2 * entropy, rtol=1e-3, atol=1e-6)
    weight = np.where(target > 0, target, 0.75 * p**2)
    np.testing.assert_allclose(numpy(varifocal(target, logits)), weight * entropy, rtol=1e-3, atol=1e-6)


# === Losses of boxes ===


def reference_ciou(a, b) -> float:
    """Equations 8 to 10 of the paper."""
    iou = float(iou_matrix(a[None], b[None])[0, 0])
    distance = ((a[:2] + a[2:] - b[:2] - b[2:]) ** 2).sum() / 4
    diagonal = ((np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2])) ** 2).sum()
    angles = [np.arctan((box[2] - box[0]) / (box[3] - box[1])) for box in (a, b)]
    v = 4 / np.pi**2 * (angles[0] - angles[1]) ** 2
    return iou - distance / diagonal - v * v / (1 - iou + v)


@pytest.mark.parametrize(("function", "reference"), [(generalised_iou, reference_giou), (complete_iou, reference_ciou)])
def test_ious_equal_the_reference_and_are_1_of_equal_boxes(function, reference):
    _, _, truth = random_case(1)
    a, b = truth["boxes"].reshape(-1, 4), truth["regions"].reshape(-1, 4)
    expected = [reference(x, y) for x, y in zip(a.astype("float64"), b.astype("float64"), strict=True)]
    np.testing.assert_allclose(numpy(function(a, b)), expected, atol=1e-5)
    np.testing.assert_allclose(numpy(function(a, a)), 1, atol=1e-5)
    assert min(expected) < 0 < max(expected)


def test_ious_by_hand():
    """Two unit squares with a gap of 1: no overlap; a hull of 3 x 1 has a third of it empty, its diagonal is 10."""
    a, b = np.array([[0, 0, 1, 1]], "float32"), np.array([[2, 0, 3, 1]], "float32")
    np.testing.assert_allclose(numpy(generalised_iou(a, b)), [-1 / 3], rtol=1e-5)
    np.testing.assert_allclose(numpy(complete_iou(a, b)), [-4 / 10], rtol=1e-5)


def test_smooth_l1_by_hand():
    difference = np.array([[0.5, -0.5, 0, 0], [1, -2, 3, 0], [0, 0, 0, 0]], "float32")
    np.testing.assert_allclose(numpy(smooth_l1(difference)), [0.25, 0.5 + 1.5 + 2.5, 0])


@pytest.mark.parametrize("coding", BOX_CODINGS)
def test_encoding_is_the_inverse_of_decoding(coding):
    offsets = np.random.default_rng(0).normal(0, 1, (2, len(ANCHORS), 4)).astype("float32")
    boxes = numpy(BOX_CODINGS[coding](offsets, ANCHORS))
    np.testing.assert_allclose(numpy(BOX_ENCODINGS[coding](boxes, ANCHORS)), offsets, atol=1e-4)
    flat = np.zeros_like(boxes)
    assert np.isfinite(numpy(BOX_ENCODINGS[coding](flat, ANCHORS))).all()


# === Everything together ===


def reference_target(assignment, class_loss, scores, boxes, gt_boxes, labels):
    """One image: which box each anchor learns, and the target of its class."""
    if assignment == "task_aligned":
        assigned, target = reference_task_aligned(scores, boxes, gt_boxes, labels)
    else:
        assigned = (reference_max_iou if assignment == "max_iou" else reference_atss)(gt_boxes, labels)
        target = (assigned >= 0).astype(float)
        if class_loss in ("varifocal", "quality_focal"):
            target *= iou_matrix(gt_boxes, boxes)[np.maximum(assigned, 0), np.arange(len(assigned))]
    return assigned, (target > 0).astype(float) if class_loss == "focal" else target


def reference_losses(offsets, logits, truth, assignment, class_loss, box_loss, box_coding):
    scores, boxes = 1 / (1 + np.exp(-logits.astype("float64"))), numpy(BOX_CODINGS[box_coding](offsets, ANCHORS))
    class_sum = box_sum = total = 0.0
    for image, labels in enumerate(truth["labels"]):
        gt = truth["boxes"][image]
        assigned, target = reference_target(assignment, class_loss, scores[image], boxes[image], gt, labels)
        total += target.sum()
        quality = np.zeros_like(scores[image])
        active = np.repeat((assigned != -2)[:, None], NUM_CLASSES, axis=1)
        for a, g in enumerate(assigned):
            if g >= 0:
                quality[a, labels[g]] = target[a]
                if box_loss == "smooth_l1":
                    encoded = numpy(BOX_ENCODINGS[box_coding](gt[g], ANCHORS[a]))
                    distance = sum(0.5 * d * d if d < 1 else d - 0.5 for d in abs(encoded - offsets[image, a]))
                else:
                    pair = gt[g].astype("float64"), boxes[image, a].astype("float64")
                    distance = 1 - (reference_giou if box_loss == "giou" else reference_ciou)(*pair)
                box_sum += BOX_WEIGHTS[box_loss] * target[a] * distance
            for region, label in zip(truth["regions"][image], truth["region_labels"][image], strict=True):
                if label >= 0 and reference_centre_inside(region, a):
                    active[a, label] = False
        elements = numpy(CLASS_LOSSES[class_loss](quality.astype("float32"), logits[image])).astype("float64")
        class_sum += elements[active | (quality > 0)].sum()
    return class_sum / max(total, 1), box_sum / max(total, 1)


@pytest.mark.parametrize("options", ALL_OPTIONS[::5], ids=str)
def test_losses_equal_the_reference(options):
    offsets, logits, truth = random_case(20, batch=2)
    parts = [float(part) for part in losses(offsets, logits, truth, **options)]
    np.testing.assert_allclose(parts, reference_losses(offsets, logits, truth, **options), rtol=1e-3)


def test_the_normaliser_is_the_sum_of_the_targets():
    """Twice the batch: twice each number, so devices can share it."""
    offsets, logits, truth = random_case(4)
    single = {"boxes": offsets, "classes": logits}, truth
    double = [{name: np.concatenate([value, value]) for name, value in part.items()} for part in single]
    for options in ({}, {"assignment": "max_iou", "class_loss": "focal"}, {"assignment": "atss"}):
        parts = [detection_losses(*case, ANCHORS, CELLS, level_sizes=LEVELS, **options) for case in (single, double)]
        once, twice = np.array([[float(x) for x in values] for values in parts])
        np.testing.assert_allclose(twice, 2 * once, rtol=1e-5)
        assert once[2] > 1


def test_padding_of_the_ground_truth_changes_nothing():
    offsets, logits, truth = random_case(5)
    truth = with_parts(truth, [(0, 0, 0.5, 1), (0.5, 0, 1, 1)], [[1, 0, 1], [0, 1, 1]])
    padding = {name: 0 if name in ("parts", "verified") else -1 for name in truth}
    wider = {k: np.concatenate([value, np.full_like(value, padding[k])], axis=1) for k, value in truth.items()}
    for assignment in ASSIGNMENTS:
        few, many = (gradients(offsets, logits, t, assignment=assignment, ancestors=ANCESTORS) for t in (truth, wider))
        for a, b in zip(few, many, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


ODD_TRUTHS = {
    "no boxes": targets([[], []]),
    "regions only": targets([[], []], [[(0, 0, 0, 1, 1), (1, 0.5, 0.5, 0.5, 0.5)], [(1, 0, 0, 0, 0)]]),
    "boxes without area": targets([[(0, 0.5, 0.5, 0.5, 0.5), (1, 0.1, 0.1, 0.1, 0.8)], []]),
    "mixed": targets(
        [[(0, 0.5, 0.5, 0.5, 0.5), (1, 0, 0, 1, 1), (2, 0.2, 0.3, 0.2, 0.9)], [(0, 0, 0, 1e-4, 1e-4)]],
        [[], [(1, 0, 0, 0.5, 0.5)]],
    ),
}


@pytest.mark.parametrize("options", [{}, *ALL_OPTIONS[::7]], ids=str)
@pytest.mark.parametrize("truth", ODD_TRUTHS)
def test_losses_and_gradients_are_finite(truth, options):
    rng = np.random.default_rng(0)
    offsets, logits = (rng.normal(size=(2, len(ANCHORS), n)).astype("float32") for n in (4, NUM_CLASSES))
    for scale in (1, 50) if options else (0, 1, 50):
        found = gradients(scale * offsets, scale * logits, ODD_TRUTHS[truth], ancestors=ANCESTORS, **options)
        assert all(np.isfinite(values).all() for values in found)
        assert options or found[0][0] > 0


@pytest.mark.parametrize("options", ALL_OPTIONS[::11], ids=str)
def test_losses_are_float32_for_outputs_of_half_precision(options):
    offsets, logits, truth = random_case(3)
    half = tf.cast(offsets, "bfloat16"), tf.cast(logits, "bfloat16")
    same = [tf.cast(x, "float32") for x in half]
    for part, expected in zip(losses(*half, truth, **options), losses(*same, truth, **options), strict=True):
        assert part.dtype == tf.float32
        assert float(part) == float(expected)


def test_ignored_anchors_of_maximum_iou_give_no_gradient():
    """A box half a cell beside an anchor: shifted by 1/8 of the side IoU is 7/9, by 3/8 it is 5/11."""
    half_a_cell = np.array([CELLS[27] / 2, 0, CELLS[27] / 2, 0])
    truth = targets([[(0, *(ANCHORS[27] + half_a_cell))]])
    offsets, logits, _ = random_case(6, batch=1)
    assigned, _, _ = assigned_targets("max_iou", logits, offsets, truth, ANCHORS, CELLS)
    ignored = numpy(assigned) == -2
    _, by_logits, by_offsets = gradients(offsets, logits, truth, assignment="max_iou")
    assert ignored.any()
    np.testing.assert_array_equal(by_logits[ignored], 0)
    np.testing.assert_array_equal(by_offsets[numpy(assigned) < 0], 0)
    assert (by_logits[numpy(assigned) == -1] > 0).any()


@pytest.mark.parametrize("options", [{"assignment": "best"}, {"assignment": "atss", "level_sizes": None}])
def test_mistakes_in_a_program_are_named(options):
    offsets, logits, truth = random_case(0)
    with pytest.raises(ValueError, match=r"unknown assignment 'best'|needs level_sizes"):
        detection_losses({"classes": logits, "boxes": offsets}, truth, ANCHORS, CELLS, **options)
