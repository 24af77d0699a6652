"""The losses of classes and boxes, from the network's raw outputs and padded ground truth.

Everything is float32, whatever the precision of the network.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from keras import ops

from models.assignment import area, classes_of_boxes, max_iou_assignment, task_aligned_assignment
from models.box_deltas import DECODERS, ENCODERS
from models.chunked_map import chunked_map
from models.label_rules import silent_classes
from oid.anchors.grids import AnchorGrids

ASSIGNMENTS = ("task_aligned", "max_iou")
CLASS_LOSSES = ("bce", "focal", "softmax")
BOX_WEIGHTS = {"giou": 2.0, "ciou": 2.0, "smooth_l1": 1.0}
SMOOTH_L1_SIGMAS = {"corners": 3.0}  # keras-retinanet's; 1 for other box deltas
NEGATIVE_IOU = {"softmax": 0.5}  # SSD ignores no anchor; 0.4 (RetinaNet) for other class losses
HARD_NEGATIVES = 3  # per positive of an image
FARTHEST = 1e9  # a decoded box is cut there, so that its area is finite
LEFT_OUT = -1e9  # a logit that softmax does not see


class Assignment(NamedTuple):
    """What each anchor learns.

    Attributes:
        index: int32 `(batch, anchors)`, row of the box that an anchor learns; -1 for background, -2 if it is ignored.
        target: float32 `(batch, anchors)`, in [0, 1]; 0 without a box.
        silent: bool `(batch, anchors, classes)`, where a class is no negative; None where it always is.
    """

    index: object
    target: object
    silent: object


class DetectionLoss:
    """Assigns anchors to ground truth and computes the loss of a batch.

    The combinations that are trained: "task_aligned" with "bce", where a positive's target is its quality, the overlap
    of its prediction; "max_iou" with "softmax" as SSD and M2Det; "max_iou" with "focal" as RetinaNet. Except for
    "task_aligned" with "bce" the target of a positive is 1.

    Args:
        anchors: of the network.
        assignment: one of `ASSIGNMENTS`.
        class_loss: one of `CLASS_LOSSES`; "softmax" has the background as its first class output, and goes with
            "max_iou" only.
        box_loss: a key of `BOX_WEIGHTS`.
        box_deltas: a key of `models.box_deltas.DECODERS`.
        ancestors: `(classes, classes)`, see `models.label_rules.silent_classes`; None = the rule is off.
        region_classes: `(region labels, classes)`, see `models.label_rules.ignored_regions`.

    Raises:
        ValueError: unknown names, or softmax without maximum IoU.
    """

    def __init__(
        self,
        anchors: AnchorGrids,
        *,
        assignment: str = "task_aligned",
        class_loss: str = "bce",
        box_loss: str = "giou",
        box_deltas: str = "distances",
        ancestors: np.ndarray | None = None,
        region_classes: np.ndarray | None = None,
    ):
        chosen = (assignment, class_loss, box_loss, box_deltas)
        for name, names in zip(chosen, (ASSIGNMENTS, CLASS_LOSSES, BOX_WEIGHTS, DECODERS), strict=True):
            if name not in names:
                raise ValueError(f"{name!r} does not exist: choose one of {', '.join(names)}")
        if class_loss == "softmax" and assignment != "max_iou":
            raise ValueError("softmax goes with max_iou: task alignment needs independent scores")
        self.anchors, self.cell_sides = anchors.boxes(), anchors.cell_sides()
        self.assignment, self.class_loss, self.box_loss, self.box_deltas = assignment, class_loss, box_loss, box_deltas
        self.ancestors, self.region_classes = ancestors, region_classes

    def __call__(self, outputs: dict, targets: dict) -> tuple:
        """Computes the parts of the loss.

        All three are sums over the batch, so that they can be added up over several devices before the division, and
        a batch without boxes has a finite loss.

        Args:
            outputs: `classes`, logits `(batch, anchors, outputs)`, and `boxes`, deltas `(batch, anchors, 4)`.
            targets: `boxes` `(batch, gt, 4)` xyxy normalised and `labels` `(batch, gt)` int32, padded with -1; for the
                label rules also `regions` `(batch, regions, 4)` and `region_labels` `(batch, regions)`, the same for
                ignored regions, and `parts` `(batch, parts, 4)`, xyxy, with `verified` `(batch, parts, classes)`.

        Returns:
            A tuple of scalars `(class_sum, box_sum, normaliser)`; the normaliser, to be used where it is above 1, is
            the sum of the positives' targets.
        """
        logits, deltas, boxes = self._predictions(outputs)
        assigned = self._assign(logits, boxes, targets)
        index, target = assigned.index, assigned.target
        if self.class_loss == "focal":
            target = ops.cast(target > 0, "float32")
        gt = rows_of(targets["boxes"], index)  # [B,A,4]
        classes = classes_of_boxes(targets["boxes"], targets["labels"], self._num_classes(logits))  # [B,G,C]
        class_target = rows_of(classes, index) * ops.expand_dims(target, -1)  # [B,A,C]
        if self.class_loss == "softmax":
            class_sum = multibox(class_target, logits, index, assigned.silent)
        else:
            loss = {"bce": cross_entropy, "focal": focal}[self.class_loss](class_target, logits)
            if assigned.silent is not None:
                loss = ops.where(ops.logical_and(assigned.silent, class_target <= 0), 0.0, loss)
            class_sum = ops.sum(loss)
        if self.box_loss == "smooth_l1":
            difference = ENCODERS[self.box_deltas](gt, ops.convert_to_tensor(self.anchors)) - deltas
            distance = smooth_l1(difference, SMOOTH_L1_SIGMAS.get(self.box_deltas, 1.0))
        else:
            distance = 1.0 - OVERLAPS[self.box_loss](gt, boxes)
        return class_sum, BOX_WEIGHTS[self.box_loss] * ops.sum(target * distance), ops.sum(target)

    def assign(self, outputs: dict, targets: dict) -> Assignment:
        """Assigns the anchors as in `__call__`, which takes the same arguments."""
        logits, _, boxes = self._predictions(outputs)
        return self._assign(logits, boxes, targets)

    def _predictions(self, outputs: dict) -> tuple:
        """The logits `(batch, anchors, outputs)`, deltas and boxes `(batch, anchors, 4)` in float32."""
        logits, deltas = (ops.cast(outputs[name], "float32") for name in ("classes", "boxes"))
        boxes = DECODERS[self.box_deltas](deltas, ops.convert_to_tensor(self.anchors))
        return logits, deltas, ops.clip(boxes, -FARTHEST, FARTHEST)

    def _num_classes(self, logits) -> int:
        return logits.shape[-1] - (self.class_loss == "softmax")

    def _assign(self, logits, boxes, targets: dict) -> Assignment:
        """Assigns in chunks of images; no gradient flows through the result."""
        anchors, cell_sides = ops.convert_to_tensor(self.anchors), ops.convert_to_tensor(self.cell_sides)
        names, num_classes = sorted(targets), self._num_classes(logits)

        def assign_chunk(logits, boxes, *values):
            chunk = dict(zip(names, values, strict=True))
            truth = chunk["boxes"], chunk["labels"], anchors
            if self.assignment == "task_aligned":
                index, target = task_aligned_assignment(logits, boxes, *truth, cell_sides)
            else:
                index, target = max_iou_assignment(*truth, negative=NEGATIVE_IOU.get(self.class_loss, 0.4))
            rules = {"ancestors": self.ancestors, "region_classes": self.region_classes}
            silent = silent_classes(chunk, index, anchors, cell_sides, num_classes, **rules)
            return (index, target) if silent is None else (index, target, silent)

        rows = targets["boxes"].shape[1] + (targets["regions"].shape[1] if "regions" in targets else 0)
        predicted = ops.stop_gradient(logits), ops.stop_gradient(boxes)
        arguments = (*predicted, *(targets[name] for name in names))
        index, target, silent = (*chunked_map(assign_chunk, arguments, rows * len(self.anchors)), None)[:3]
        if self.assignment == "max_iou" and self.class_loss != "softmax":
            ignored = ops.expand_dims(index == -2, -1)
            silent = ignored if silent is None else ops.logical_or(silent, ignored)
        return Assignment(*(None if x is None else ops.stop_gradient(x) for x in (index, target, silent)))


def rows_of(values, index):
    """Takes rows of `(batch, rows, width)` by `(batch, n)`: `(batch, n, width)`; row 0 for a negative index."""
    batch, rows, width = ops.shape(values)[0], *values.shape[1:]
    first = ops.expand_dims(ops.arange(batch, dtype="int32") * rows, -1)
    return ops.take(ops.reshape(values, (-1, width)), first + ops.maximum(index, 0), axis=0)


# === Classes ==========================================================================================================
def cross_entropy(target, logits):
    """Binary cross-entropy of each logit against a soft target, every negative at its full weight.

    Focal weights would make background cheap, but also the confusion of one class with another at the same object.
    Task alignment has good enough positives to go without (on the demonstration's ten classes 0.77 instead of 0.54 mAP
    after 800 steps).
    """
    return ops.softplus(logits) - target * logits


def focal(target, logits):
    """Sigmoid focal loss (Lin et al. 2017, 3.2) of each logit with alpha 0.25 and gamma 2; targets are 0 or 1."""
    alpha = 0.75 - 0.5 * target
    return alpha * ops.square(target - ops.sigmoid(logits)) * cross_entropy(target, logits)


def multibox(class_target, logits, index, silent=None):
    """Softmax cross-entropy of positives and of the hardest negatives (SSD, Liu et al. 2016, 2.2), summed.

    In each image the background anchors with the highest loss count, `HARD_NEGATIVES` for each positive. A silent class
    that is no target of an anchor is left out of the anchor's softmax: its logit gets no gradient, and the anchor's
    other classes compete without it. A box with several classes has each of them as an equal share of the target.

    Args:
        class_target: `(batch, anchors, classes)`, above 0 for the classes of an anchor's box.
        logits: `(batch, anchors, 1 + classes)`, the background first.
        index: `(batch, anchors)`, see `Assignment`; and so is `silent`.
        silent: bool `(batch, anchors, classes)`, or None.

    Returns:
        A scalar.
    """
    if silent is not None:
        silent = ops.logical_and(silent, class_target <= 0)
        silent = ops.pad(silent, ((0, 0), (0, 0), (1, 0)))  # never the background
        logits = ops.where(silent, LEFT_OUT, logits)
    positive, background = index >= 0, index == -1
    shares = class_target / ops.maximum(ops.sum(class_target, axis=-1, keepdims=True), 1.0)
    of_target = ops.where(positive, ops.sum(shares * logits[..., 1:], axis=-1), logits[..., 0])
    loss = ops.logsumexp(logits, axis=-1) - of_target  # [B,A]
    hardest = -ops.sort(-ops.where(background, loss, 0.0), axis=-1)
    count = HARD_NEGATIVES * ops.sum(ops.cast(positive, "int32"), axis=-1, keepdims=True)
    chosen = ops.arange(loss.shape[-1], dtype="int32") < count
    return ops.sum(ops.where(positive, loss, 0.0)) + ops.sum(ops.where(chosen, hardest, 0.0))


# === Boxes: pair by pair; two `(..., 4)`, xyxy, give `(...)`, with finite gradients for boxes without area ============
def paired_iou(a, b):
    """Intersection over union: in [0, 1]."""
    intersection, union = _intersection_and_union(a, b)
    return intersection / ops.maximum(union, 1e-9)


def generalised_iou(a, b):
    """GIoU (Rezatofighi et al. 2019, arXiv 1902.09630): in [-1, 1]."""
    intersection, union = _intersection_and_union(a, b)
    size = _hull(a, b)
    outer = size[..., 0] * size[..., 1]
    return intersection / ops.maximum(union, 1e-9) - (outer - union) / ops.maximum(outer, 1e-9)


def complete_iou(a, b):
    """CIoU (Zheng et al. 2020, arXiv 1911.08287, 3.3): in [-2, 1]. `b` is the prediction.

    The IoU, minus the squared distance of the centres over the squared diagonal of the hull, minus the difference of
    the aspect ratios; the weight of the latter is a constant for the gradient, as in the paper.
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


OVERLAPS: dict[str, Callable] = {"giou": generalised_iou, "ciou": complete_iou}


def smooth_l1(difference, sigma: float = 1.0):
    """Smooth L1 (Girshick 2015, equation 3) of differences `(..., 4)`, quadratic below 1 / sigma^2, summed: `(...)`."""
    size, border = ops.abs(difference), 1 / sigma**2
    return ops.sum(ops.where(size < border, 0.5 * ops.square(sigma * difference), size - 0.5 * border), axis=-1)


def _intersection_and_union(a, b):
    left_top, right_bottom = ops.maximum(a[..., :2], b[..., :2]), ops.minimum(a[..., 2:], b[..., 2:])
    size = ops.maximum(right_bottom - left_top, 0.0)
    intersection = size[..., 0] * size[..., 1]
    return intersection, area(a) + area(b) - intersection


def _hull(a, b):
    """Width and height of the smallest box around both: `(..., 2)`."""
    return ops.maximum(a[..., 2:], b[..., 2:]) - ops.minimum(a[..., :2], b[..., :2])
