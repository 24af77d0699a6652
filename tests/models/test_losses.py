"""The losses equal published code and slow references, and stay finite whatever the ground truth."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.box_deltas import DECODERS, ENCODERS, encode_ssd
from models.losses import (
    DetectionLoss,
    complete_iou,
    cross_entropy,
    focal,
    generalised_iou,
    multibox,
    smooth_l1,
)
from oid.anchors.grids import m2det_anchors
from oid.boxes.suppression import iou_matrix
from tests.helpers.detection_cases import (
    ANCHORS,
    GRIDS,
    M2DET,
    NUM_CLASSES,
    OWN,
    RECIPES,
    gradients,
    losses,
    numpy,
    random_case,
    reference_centre_inside,
    reference_giou,
    reference_max_iou,
    reference_task_aligned,
    with_parts,
)
from tests.helpers.tiny_network import targets

GOLDEN = Path(__file__).resolve().parents[2] / "../shared/golden/m2det/multibox.npz"
ANCESTORS = np.array([[0, 0, 1], [0, 0, 1], [0, 0, 0]], "float32")  # class 2 lies above the others
TRAINED = [*RECIPES, OWN | {"box_loss": "ciou"}, OWN | {"assignment": "max_iou"}, OWN | {"class_loss": "focal"}]


def case_for(options: dict, seed: int, batch: int = 3):
    """A random case with the class outputs that the loss needs."""
    return random_case(seed, batch, outputs=NUM_CLASSES + (options["class_loss"] == "softmax"))


# === Published code ===================================================================================================
@pytest.fixture(scope="module")
def golden():
    """Three images of the authors' training of M2Det: outputs, ground truth, matches and losses."""
    if not GOLDEN.is_file():
        pytest.skip(f"{GOLDEN} is not there")
    with np.load(GOLDEN) as file:
        return dict(file)


def test_m2det_loss_equals_the_released_code(golden):
    conf, positive = golden["conf_t"], golden["conf_t"] > 0
    class_target = (conf[..., None] == np.arange(1, 11)).astype("float32")
    class_sum = float(multibox(class_target, golden["conf"], np.where(positive, 0, -1)))
    np.testing.assert_allclose(class_sum / positive.sum(), golden["loss_c"], rtol=1e-5)
    box_sum = numpy(smooth_l1(golden["loc_t"] - golden["loc"]))[positive].sum()
    np.testing.assert_allclose(box_sum / positive.sum(), golden["loss_l"], rtol=1e-5)


def test_m2det_matches_equal_the_released_code(golden):
    """Except where anchors tie for a box: the released code takes any of them, here the nearest learns the box."""
    grids, rows = m2det_anchors(320, 6, "official"), [golden[f"target{k}"] for k in range(3)]
    truth = targets([[(row[4] - 1, *row[:4]) for row in image] for image in rows], width=9)
    found = DetectionLoss(grids, **M2DET).assign({"classes": golden["conf"], "boxes": golden["loc"]}, truth)
    index, anchors = numpy(found.index), grids.boxes()
    labels = np.where(index >= 0, np.take_along_axis(truth["labels"], np.maximum(index, 0), 1) + 1, 0)
    differ = list(zip(*np.nonzero(labels != golden["conf_t"]), strict=True))
    assert len(differ) <= 2
    for image, anchor in differ:
        iou = iou_matrix(truth["boxes"][image], anchors)
        box = iou[:, anchor].argmax()
        np.testing.assert_allclose(iou[box, anchor], iou[box].max(), rtol=1e-6)
    same = (labels == golden["conf_t"]) & (labels > 0)
    boxes = np.take_along_axis(truth["boxes"], np.maximum(index, 0)[..., None], axis=1)
    np.testing.assert_allclose(numpy(encode_ssd(boxes, anchors))[same], golden["loc_t"][same], atol=1e-4)


def test_focal_loss_is_that_of_keras():
    rng = np.random.default_rng(0)
    target, logits = (rng.random(200) < 0.5).astype("float32"), rng.normal(0, 3, 200).astype("float32")
    reference = keras.losses.BinaryFocalCrossentropy(
        apply_class_balancing=True, alpha=0.25, gamma=2.0, from_logits=True, reduction="none"
    )
    expected = numpy(reference(target[:, None], logits[:, None]))
    np.testing.assert_allclose(numpy(focal(target, logits)), expected, rtol=1e-4, atol=1e-7)


def multibox_gradient(class_target, logits, index, silent=None) -> tuple[float, np.ndarray]:
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = multibox(class_target, logits, index, silent)
    return float(value), numpy(tape.gradient(value, logits))


def test_softmax_takes_the_three_hardest_negatives_per_positive():
    """In each image alone: one positive, an ignored anchor and six negatives; and an image without a positive."""
    logits = np.random.default_rng(0).normal(0, 2, (2, 8, 3)).astype("float32")
    index = np.full((2, 8), -1)
    index[0, 2], index[0, 5] = 0, -2
    class_target = np.zeros((2, 8, 2), "float32")
    class_target[0, 2, 1] = 1
    loss = np.log(np.exp(logits).sum(-1))[0] - np.where(np.arange(8) == 2, logits[0, :, 2], logits[0, :, 0])
    hardest = sorted({0, 1, 3, 4, 6, 7}, key=lambda k: -loss[k])[:3]
    value, gradient = multibox_gradient(class_target, logits, index)
    np.testing.assert_allclose(value, loss[[2, *hardest]].sum(), rtol=1e-5)
    assert np.flatnonzero(np.any(gradient[0] != 0, axis=-1)).tolist() == sorted([2, *hardest])
    np.testing.assert_array_equal(gradient[1], 0)


def test_softmax_leaves_out_silent_classes():
    """As if the network had no such output at that anchor; but an anchor learns the class of its box."""
    logits = np.random.default_rng(1).normal(0, 2, (1, 2, 4)).astype("float32")
    index, class_target = np.array([[0, -1]]), np.zeros((1, 2, 3), "float32")
    class_target[0, 0, 1] = 1
    silent = np.array([[[True, True, False], [False, True, False]]])
    value, gradient = multibox_gradient(class_target, logits, index, silent)
    seen = logits[0, 0, [0, 2, 3]], logits[0, 1, [0, 1, 3]]
    expected = np.log(np.exp(seen).sum(-1)) - [logits[0, 0, 2], logits[0, 1, 0]]
    np.testing.assert_allclose(value, expected.sum(), rtol=1e-5)
    np.testing.assert_array_equal(gradient[0] == 0, [[False, True, False, False], [False, False, True, False]])


def test_softmax_shares_the_target_among_the_classes_of_a_box():
    logits = np.array([[[0, 1, 2, 3]]], "float32")
    value = multibox(np.array([[[1, 0, 1]]], "float32"), logits, np.array([[0]]))
    np.testing.assert_allclose(float(value), np.log(np.exp(logits).sum()) - (1 + 3) / 2, rtol=1e-5)


# === Boxes ============================================================================================================
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


@pytest.mark.parametrize(("sigma", "expected"), [(1.0, [0.25, 4.5]), (3.0, [8 / 9, 6 - 3 / 18])])
def test_smooth_l1_by_hand(sigma, expected):
    """With keras-retinanet's sigma of 3 the line begins at 1/9."""
    difference = np.array([[0.5, -0.5, 0, 0], [1, -2, 3, 0]], "float32")
    np.testing.assert_allclose(numpy(smooth_l1(difference, sigma)), expected, rtol=1e-6)


# === Everything together ==============================================================================================
def reference_assignment(options: dict, scores, boxes, gt_boxes, labels):
    """One image: which box each anchor learns, and the target of its class."""
    if options["assignment"] == "task_aligned":
        assigned, target = reference_task_aligned(scores, boxes, gt_boxes, labels)
        return assigned, (target > 0).astype(float) if options["class_loss"] == "focal" else target
    assigned = reference_max_iou(gt_boxes, labels, negative=0.5 if options["class_loss"] == "softmax" else 0.4)
    return assigned, (assigned >= 0).astype(float)


def reference_box_loss(options: dict, gt, anchor: int, offsets, box) -> float:
    if options["box_loss"] != "smooth_l1":
        iou = {"giou": reference_giou, "ciou": reference_ciou}[options["box_loss"]]
        return 2 * (1 - iou(gt.astype("float64"), box.astype("float64")))
    s = 9 if options["box_deltas"] == "corners" else 1
    difference = abs(numpy(ENCODERS[options["box_deltas"]](gt, ANCHORS[anchor])) - offsets)
    return sum(s * d * d / 2 if d < 1 / s else d - 0.5 / s for d in difference)


def reference_class_loss(options: dict, logits, classes, active) -> float:
    """One image; `classes` `(anchors, classes)` has the targets, `active` says where a class counts."""
    logits, classes = logits.astype("float64"), classes.astype("float64")
    if options["class_loss"] != "softmax":
        function = {"bce": cross_entropy, "focal": focal}[options["class_loss"]]
        return numpy(function(classes, logits))[active].sum()
    positives, negatives = [], []
    for a, target in enumerate(classes):
        seen = np.append(logits[a, 0], logits[a, 1:][active[a]])
        own = logits[a, 1:][target > 0].mean() if target.any() else logits[a, 0]
        (positives if target.any() else negatives).append(np.log(np.exp(seen).sum()) - own)
    return sum(positives) + sum(sorted(negatives)[::-1][: 3 * len(positives)])


def reference_losses(offsets, logits, truth, options):
    scores, boxes = (
        1 / (1 + np.exp(-logits.astype("float64"))),
        numpy(DECODERS[options["box_deltas"]](offsets, ANCHORS)),
    )
    class_sum = box_sum = total = 0.0
    for image, labels in enumerate(truth["labels"]):
        gt = truth["boxes"][image]
        assigned, target = reference_assignment(options, scores[image], boxes[image], gt, labels)
        total += target.sum()
        classes = np.zeros((len(ANCHORS), NUM_CLASSES))
        active = np.repeat((assigned != -2)[:, None], NUM_CLASSES, axis=1)
        for a, g in enumerate(assigned):
            if g >= 0:
                classes[a, labels[g]] = target[a]
                box_sum += target[a] * reference_box_loss(options, gt[g], a, offsets[image, a], boxes[image, a])
            for region, label in zip(truth["regions"][image], truth["region_labels"][image], strict=True):
                if label >= 0 and reference_centre_inside(region, a):
                    active[a, label] = False
        class_sum += reference_class_loss(options, logits[image], classes, active | (classes > 0))
    return class_sum / max(total, 1), box_sum / max(total, 1)


@pytest.mark.parametrize("options", TRAINED, ids=str)
def test_losses_equal_the_reference(options):
    offsets, logits, truth = case_for(options, 20, batch=2)
    parts = [float(part) for part in losses(offsets, logits, truth, **options)]
    np.testing.assert_allclose(parts, reference_losses(offsets, logits, truth, options), rtol=1e-3)


@pytest.mark.parametrize("options", RECIPES, ids=str)
def test_twice_the_batch_doubles_every_sum(options):
    """So devices can share a batch."""
    offsets, logits, truth = case_for(options, 4)
    single = {"boxes": offsets, "classes": logits}, truth
    double = [{name: np.concatenate([value, value]) for name, value in part.items()} for part in single]
    once, twice = (np.array([float(x) for x in DetectionLoss(GRIDS, **options)(*case)]) for case in (single, double))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-5)
    assert once[2] > 1


@pytest.mark.parametrize("options", RECIPES, ids=str)
def test_padding_of_the_ground_truth_changes_nothing(options):
    offsets, logits, truth = case_for(options, 5)
    truth = with_parts(truth, [(0, 0, 0.5, 1), (0.5, 0, 1, 1)], [[1, 0, 1], [0, 1, 1]])
    padding = {name: 0 if name in ("parts", "verified") else -1 for name in truth}
    wider = {k: np.concatenate([value, np.full_like(value, padding[k])], axis=1) for k, value in truth.items()}
    few, many = (gradients(offsets, logits, t, ancestors=ANCESTORS, **options) for t in (truth, wider))
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


@pytest.mark.parametrize("options", TRAINED[:4], ids=str)
@pytest.mark.parametrize("truth", ODD_TRUTHS)
def test_losses_and_gradients_are_finite(truth, options):
    offsets, logits, _ = case_for(options, 0, batch=2)
    for scale in (0, 1, 1e4):
        found = gradients(scale * offsets, scale * logits, ODD_TRUTHS[truth], ancestors=ANCESTORS, **options)
        assert all(np.isfinite(values).all() for values in found)
        assert found[0][0] > 0 or options["class_loss"] == "softmax"  # which has no negatives without a positive


@pytest.mark.parametrize("options", RECIPES, ids=str)
def test_losses_are_float32_for_outputs_of_half_precision(options):
    offsets, logits, truth = case_for(options, 3)
    half = tf.cast(offsets, "bfloat16"), tf.cast(logits, "bfloat16")
    same = [tf.cast(x, "float32") for x in half]
    for part, expected in zip(losses(*half, truth, **options), losses(*same, truth, **options), strict=True):
        assert part.dtype == tf.float32
        assert float(part) == float(expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"assignment": "best"}, "'best' does not exist"), ({"class_loss": "softmax"}, "softmax goes with max_iou")],
)
def test_mistakes_in_a_program_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        DetectionLoss(GRIDS, **options)
