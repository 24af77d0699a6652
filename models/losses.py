"""What the network is trained to do: losses of classes and boxes, from padded ground truth.

All is float32, whatever the precision of the network.
"""

import math
from collections.abc import Sequence

from keras import ops

from models.assignment import area, classes_of_boxes, task_aligned_assignment
from models.box_coding import BOX_CODINGS, BOX_ENCODINGS
from models.label_rules import silent_classes
from models.matching import atss_assignment, max_iou_assignment
from models.pieces import in_pieces

BOX_WEIGHTS = {"giou": 2.0, "ciou": 2.0, "smooth_l1": 1.0}
ASSIGNMENTS = ("task_aligned", "atss", "max_iou")
FARTHEST = 1e9  # a decoded box is cut there, so that its area is finite


def detection_losses(
    outputs,
    targets,
    anchors,
    cell_sides,
    *,
    assignment: str = "task_aligned",
    class_loss: str = "bce",
    box_loss: str = "giou",
    box_coding: str = "distances",
    ancestors=None,
    region_classes=None,
    level_sizes: Sequence[int] | None = None,
):
    """The two parts of the loss of a batch, in float32 whatever the precision of the network.

    Both are sums over the batch, to be divided by the third number where that is above 1: so it can be added up over
    several devices before, and a batch without boxes has a finite loss.

    A positive's target, which its box loss is weighted with, is: its quality by the task-aligned assignment; with the
    others 1, or, for "varifocal" and "quality_focal", the IoU of its prediction; for "focal" 1 always.

    Args:
        outputs: `classes` logits `(batch, anchors, classes)` and `boxes` offsets `(batch, anchors, 4)`.
        targets: `boxes` `(batch, gt, 4)` xyxy normalised and `labels` `(batch, gt)` int32, padded with -1; for the
            rules of `models.label_rules` also `regions` `(batch, regions, 4)` and `region_labels` `(batch, regions)`,
            the same for ignored regions, and `parts` `(batch, parts, 4)`, xyxy, with `verified` `(batch, parts,
            classes)`.
        anchors: `(anchors, 4)`, xyxy, normalised.
        cell_sides: `(anchors,)`, side of each anchor's cell, normalised.
        assignment: one of `ASSIGNMENTS`.
        class_loss: a key of `CLASS_LOSSES`.
        box_loss: a key of `BOX_WEIGHTS`.
        box_coding: a key of `models.box_coding.BOX_CODINGS`.
        ancestors: `(classes, classes)`, see `models.label_rules.silent_classes`.
        region_classes: `(region labels, classes)`, see `models.label_rules.ignored_regions`.
        level_sizes: anchors of each map (`oid.anchors.grids.anchors_per_level`), which "atss" needs.

    Returns:
        A tuple of scalars `(class_sum, box_sum, normaliser)`: both sums, and the sum of the positives' targets.
    """
    logits, offsets, boxes = predictions(outputs, anchors, box_coding)
    assigned, target, silent = assigned_targets(
        assignment,
        ops.stop_gradient(logits),
        ops.stop_gradient(boxes),
        targets,
        anchors,
        cell_sides,
        ancestors=ancestors,
        region_classes=region_classes,
        level_sizes=level_sizes,
    )
    gt = rows_of(targets["boxes"], assigned)  # [B,A,4]
    if class_loss == "focal":
        target = ops.cast(target > 0, "float32")
    elif class_loss != "bce" and assignment != "task_aligned":
        target = target * ops.stop_gradient(paired_iou(gt, boxes))

    classes = classes_of_boxes(targets["boxes"], targets["labels"], logits.shape[-1])  # [B,G,C]
    class_target = rows_of(classes, assigned) * ops.expand_dims(target, -1)  # [B,A,C]
    loss = CLASS_LOSSES[class_loss](class_target, logits)
    if silent is not None:
        loss = ops.where(ops.logical_and(silent, class_target <= 0), 0.0, loss)

    if box_loss == "smooth_l1":
        distance = smooth_l1(BOX_ENCODINGS[box_coding](gt, anchors) - offsets)
    else:
        distance = 1.0 - OVERLAPS[box_loss](gt, boxes)
    return ops.sum(loss), BOX_WEIGHTS[box_loss] * ops.sum(target * distance), ops.sum(target)


def predictions(outputs, anchors, box_coding: str):
    """The network's logits `(batch, anchors, classes)`, offsets and boxes `(batch, anchors, 4)` in float32."""
    logits, offsets = (ops.cast(outputs[name], "float32") for name in ("classes", "boxes"))
    return logits, offsets, ops.clip(BOX_CODINGS[box_coding](offsets, anchors), -FARTHEST, FARTHEST)


def assigned_targets(
    assignment,
    logits,
    boxes,
    targets,
    anchors,
    cell_sides,
    *,
    ancestors=None,
    region_classes=None,
    level_sizes=None,
):
    """The assignment and the label rules, a few images at a time. No gradient flows through them.

    Args:
        assignment: one of `ASSIGNMENTS`.
        logits: `(batch, anchors, classes)`.
        boxes: `(batch, anchors, 4)`, predicted, xyxy.
        targets: and all others as `detection_losses` takes them.

    Returns:
        A tuple `(assigned, target, silent)`: int32 `(batch, anchors)`, index of the box that each anchor learns, -1 for
        none, -2 for an ignored anchor; float32 `(batch, anchors)`, its target in [0, 1]; bool `(batch, anchors,
        classes)`, where a negative gives no loss, or None where none is silent.

    Raises:
        ValueError: an unknown assignment, or "atss" without `level_sizes`.
    """
    if assignment not in ASSIGNMENTS:
        raise ValueError(f"unknown assignment {assignment!r}")
    if assignment == "atss" and level_sizes is None:
        raise ValueError("assignment 'atss' needs level_sizes")
    names = sorted(targets)
    num_anchors, num_classes = logits.shape[1:]

    def of_piece(logits, boxes, *values):
        piece = dict(zip(names, values, strict=True))
        truth = piece["boxes"], piece["labels"], anchors
        if assignment == "task_aligned":
            assigned, target = task_aligned_assignment(logits, boxes, *truth, cell_sides)
        elif assignment == "atss":
            assigned, target = atss_assignment(*truth, cell_sides, level_sizes)
        else:
            assigned, target = max_iou_assignment(*truth)
        silent = silent_classes(piece, assigned, anchors, cell_sides, num_classes, ancestors, region_classes)
        return (assigned, target) if silent is None else (assigned, target, silent)

    rows = targets["boxes"].shape[1] + (targets["regions"].shape[1] if "regions" in targets else 0)
    result = in_pieces(of_piece, (logits, boxes, *(targets[name] for name in names)), rows * num_anchors)
    assigned, target, silent = (*map(ops.stop_gradient, result), None)[:3]
    if assignment == "max_iou":
        ignored = ops.expand_dims(assigned == -2, -1)
        silent = ignored if silent is None else ops.logical_or(silent, ignored)
    return assigned, target, silent


def rows_of(values, index):
    """Rows of `(batch, rows, width)` by `(batch, n)`: `(batch, n, width)`; row 0 for a negative index."""
    batch, rows, width = ops.shape(values)[0], *values.shape[1:]
    first = ops.expand_dims(ops.arange(batch, dtype="int32") * rows, -1)
    return ops.take(ops.reshape(values, (-1, width)), first + ops.maximum(index, 0), axis=0)


# === Classes: the loss of each element, `(...)`, of a target and a logit, `(...)`. 0 is the target of a negative. ===


def cross_entropy(target, logits):
    """Binary cross-entropy against a soft target, every negative at its full weight.

    Focal weights would make background cheap, but also the confusion of one class with another at the same object:
    with assignment by alignment the positives are good enough to go without (on the demonstration's ten classes 0.77
    instead of 0.54 mAP after 800 steps).
    """
    return ops.softplus(logits) - target * logits


def focal(target, logits):
    """Sigmoid focal loss (Lin et al. 2017, section 3.2) with alpha 0.25 and gamma 2, of targets 0 and 1."""
    alpha = 0.75 - 0.5 * target
    return alpha * quality_focal(target, logits)


def quality_focal(target, logits):
    """Quality focal loss (Li et al. 2020, arXiv 2006.04388, equation 3) with beta 2."""
    return ops.square(target - ops.sigmoid(logits)) * cross_entropy(target, logits)


def varifocal(target, logits):
    """Varifocal loss (Zhang et al. 2021, arXiv 2008.13367, equation 2) with alpha 0.75 and gamma 2.

    Positives are weighted by their target, only negatives by what is wrong with them.
    """
    weight = ops.where(target > 0, target, 0.75 * ops.square(ops.sigmoid(logits)))
    return weight * cross_entropy(target, logits)


CLASS_LOSSES = {"bce": cross_entropy, "focal": focal, "varifocal": varifocal, "quality_focal": quality_focal}


# === Boxes: pair by pair, two `(..., 4)`, xyxy, give `(...)`, with finite gradients for boxes without area. ===


def paired_iou(a, b):
    """Intersection over union, pair by pair: in [0, 1]."""
    intersection, union = _intersection_and_union(a, b)
    return intersection / ops.maximum(union, 1e-9)


def generalised_iou(a, b):
    """GIoU (Rezatofighi et al. 2019, arXiv 1902.09630): in [-1, 1]."""
    intersection, union = _intersection_and_union(a, b)
    size = _hull(a, b)
    outer = size[..., 0] * size[..., 1]
    return intersection / ops.maximum(union, 1e-9) - (outer - union) / ops.maximum(outer, 1e-9)


def complete_iou(a, b):
    """CIoU (Zheng et al. 2020, arXiv 1911.08287, section 3.3): in [-2, 1]. `b` is the prediction.

    The IoU, less the squared distance of the centres over the squared diagonal of the hull, less the difference of the
    aspect ratios; the weight of the latter is a constant for the gradient, as in the paper.
    """
    iou = paired_iou(a, b)
    shift = ops.square((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2)
    diagonal = ops.sum(ops.square(_hull(a, b)), axis=-1)
    angles = []
    for box in (a, b):
        width, height = (ops.maximum(box[..., k + 2] - box[..., k], 1e-6) for k in (0, 1))
        angles.append(ops.arctan(width / height))
    aspect = 4 / math.pi**2 * ops.square(angles[0] - angles[1])
    weight = ops.stop_gradient(aspect / ops.maximum(1.0 - iou + aspect, 1e-9))
    return iou - ops.sum(shift, axis=-1) / ops.maximum(diagonal, 1e-9) - weight * aspect


OVERLAPS = {"giou": generalised_iou, "ciou": complete_iou}


def smooth_l1(difference):
    """Smooth L1 (Girshick 2015, equation 3) of differences `(..., 4)`, added up: `(...)`."""
    size = ops.abs(difference)
    return ops.sum(ops.where(size < 1, 0.5 * difference * difference, size - 0.5), axis=-1)


def _intersection_and_union(a, b):
    left_top, right_bottom = ops.maximum(a[..., :2], b[..., :2]), ops.minimum(a[..., 2:], b[..., 2:])
    size = ops.maximum(right_bottom - left_top, 0.0)
    intersection = size[..., 0] * size[..., 1]
    return intersection, area(a) + area(b) - intersection


def _hull(a, b):
    """Width and height of the smallest box around both: `(..., 2)`."""
    return ops.maximum(a[..., 2:], b[..., 2:]) - ops.minimum(a[..., :2], b[..., :2])
