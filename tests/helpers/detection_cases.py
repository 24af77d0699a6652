"""A small set of anchors, random predictions and ground truth, and slow references, for the tests of the losses."""

import keras
import numpy as np
import tensorflow as tf

from models.losses import DetectionLoss
from oid.anchors.grids import m2det_anchors
from oid.boxes.suppression import iou_matrix

GRIDS = m2det_anchors(64, 3)
ANCHORS, CELLS = GRIDS.boxes(), GRIDS.cell_sides()
CENTRES = (ANCHORS[:, :2] + ANCHORS[:, 2:]) / 2
NUM_CLASSES = 3
OWN, M2DET, RETINANET = RECIPES = (
    {"assignment": "task_aligned", "class_loss": "bce", "box_loss": "giou", "box_deltas": "distances"},
    {"assignment": "max_iou", "class_loss": "softmax", "box_loss": "smooth_l1", "box_deltas": "ssd"},
    {"assignment": "max_iou", "class_loss": "focal", "box_loss": "smooth_l1", "box_deltas": "corners"},
)
REGION_CLASSES = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], "float32")  # label 3 means two classes
COARSE = [(3, 0.25, 0.25, 0.75, 0.75)]  # an ignored region of a box whose class lies above 0 and 1


def numpy(tensor) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


def random_case(seed: int, batch: int = 3, *, outputs: int = NUM_CLASSES):
    """Random predictions near the anchors and random ground truth with padding in between."""
    rng = np.random.default_rng(seed)
    offsets = rng.normal(0, 0.5, (batch, len(ANCHORS), 4)).astype("float32")
    logits = rng.normal(-1, 2, (batch, len(ANCHORS), outputs)).astype("float32")
    truth = {}
    for boxes, labels in (("boxes", "labels"), ("regions", "region_labels")):
        corner, size = rng.uniform(0, 0.8, (batch, 5, 2)), rng.uniform(0.02, 0.5, (batch, 5, 2))
        truth[boxes] = np.concatenate([corner, np.minimum(corner + size, 1)], -1).astype("float32")
        truth[labels] = rng.integers(-1, NUM_CLASSES, (batch, 5)).astype("int32")
    return offsets, logits, truth


def with_parts(truth: dict, parts: list[tuple], verified: list[list[int]]) -> dict:
    """`truth` with the same tiles in every picture, padded to four, and the classes verified in each."""
    batch, classes = len(truth["labels"]), len(verified[0])
    result = truth | {"parts": np.zeros((batch, 4, 4), "f"), "verified": np.zeros((batch, 4, classes), "uint8")}
    for row, (part, known) in enumerate(zip(parts, verified, strict=True)):
        result["parts"][:, row], result["verified"][:, row] = part, known
    return result


def assign(logits, offsets, truth, **options) -> np.ndarray:
    """Which box each anchor learns, `(batch, anchors)`."""
    return numpy(DetectionLoss(GRIDS, **options).assign({"classes": logits, "boxes": offsets}, truth).index)


def losses(offsets, logits, truth, **options):
    """Both parts of the loss, divided as the trainer divides them."""
    *sums, normaliser = DetectionLoss(GRIDS, **options)({"classes": logits, "boxes": offsets}, truth)
    return [part / keras.ops.maximum(normaliser, 1.0) for part in sums]


def gradients(offsets, logits, truth, **options):
    """The two losses and the gradients of their sum by logits and by offsets."""
    offsets, logits = tf.constant(offsets), tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch([offsets, logits])
        parts = losses(offsets, logits, truth, **options)
        total = tf.add_n(parts)
    by_logits, by_offsets = tape.gradient(total, [logits, offsets])
    return [float(part) for part in parts], numpy(by_logits), numpy(by_offsets)


def logit_gradient(truth, **options) -> np.ndarray:
    """By the classes' logits, of a network that predicts the anchors themselves, each class with the same low score.

    Softmax has the background first, as likely as a class; its gradient is left out.
    """
    background = options.get("class_loss") == "softmax"
    shape = (len(truth["labels"]), len(ANCHORS))
    logits = np.full((*shape, NUM_CLASSES + background), -1, "float32")
    return gradients(np.zeros((*shape, 4), "float32"), logits, truth, **options)[1][..., int(background) :]


def check_coarse(gradient: np.ndarray, plain: np.ndarray) -> None:
    """With and without the region, `(anchors, classes)`: inside the classes below are silent, all else is as it was."""
    inside = ((CENTRES > 0.25) & (CENTRES < 0.75)).all(axis=1)
    far = (np.abs(CENTRES - 0.5) > 0.25 + CELLS[:, None]).any(axis=1)
    assert inside.sum() >= 16
    assert far.sum() > 4
    assert (plain > 0).all()
    np.testing.assert_array_equal(gradient[inside, :2], 0)
    np.testing.assert_allclose(gradient[:, 2], plain[:, 2], rtol=1e-5)
    np.testing.assert_allclose(gradient[far], plain[far], rtol=1e-5)


# === References, one anchor and one box at a time ===


def reference_centre_inside(box, anchor: int) -> bool:
    half = np.maximum((box[2:] - box[:2]) / 2, CELLS[anchor] / 2) + 1e-6
    return bool((np.abs(CENTRES[anchor] - (box[:2] + box[2:]) / 2) <= half).all())


def reference_task_aligned(scores, boxes, gt_boxes, gt_labels, candidates=10):
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


def _first_highest(claims: list[tuple[float, int]]) -> int:
    return max(claims, key=lambda claim: (claim[0], -claim[1]))[1]


def reference_max_iou(gt_boxes, gt_labels, negative=0.4):
    """One image: RetinaNet's and SSD's rule, with a tolerance of 1e-4 between equal IoUs."""
    iou = iou_matrix(gt_boxes, ANCHORS)
    real = [g for g, label in enumerate(gt_labels) if label >= 0]
    assigned = np.full(len(ANCHORS), -1)
    for a in range(len(ANCHORS)):
        if real:
            g = _first_highest([(iou[g, a], g) for g in real])
            assigned[a] = g if iou[g, a] >= 0.5 else -2 if iou[g, a] > negative else -1
    claims = {}
    for g in real:
        if iou[g].max() > 0:
            equals = [a for a in range(len(ANCHORS)) if iou[g, a] >= iou[g].max() * (1 - 1e-4)]
            centre = (gt_boxes[g, :2] + gt_boxes[g, 2:]) / 2
            distance = np.sum((CENTRES[equals] - centre) ** 2, axis=-1)
            nearest = equals[np.flatnonzero(distance <= distance.min() * (1 + 1e-4) + 1e-9)[0]]
            claims.setdefault(nearest, []).append((iou[g, nearest], g))
    for a, rivals in claims.items():
        assigned[a] = _first_highest(rivals)
    return assigned


def reference_giou(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    outer = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return intersection / union - (outer - union) / outer
