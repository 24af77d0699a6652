"""Boxes: intersection over union and non-maximum suppression, in float64.

A box is `xyxy`: x_min, y_min, x_max, y_max, continuous coordinates in any unit (normalised to [0, 1] or pixels), so a
box is x_max - x_min wide. (The "+1 pixel" convention of older code is wrong here: on normalised boxes it makes each one
about twice as large and overlaps come out far too high.) A box without area overlaps nothing, its IoU is 0 even with
itself: no division by zero, no NaN.
"""

import numba
import numpy as np


def iou_matrix(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of one set with every box of the other.

    Args:
        boxes_a: (N, 4) xyxy.
        boxes_b: (M, 4) xyxy, in the same unit.

    Returns:
        (N, M) float64 in [0, 1].
    """
    return _iou_matrix(_as_boxes(boxes_a), _as_boxes(boxes_b))


def nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Greedy non-maximum suppression: of two boxes with IoU > `iou_threshold` the one with the lower score goes.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,) finite.
        iou_threshold: at 1.0 nothing is suppressed; an IoU equal to the threshold is not suppressed.

    Returns:
        (K,) int64, the indices of the boxes that stay, in descending score; equal scores: lower index first.
    """
    return classwise_nms(boxes, scores, np.zeros(len(scores), np.int64), iou_threshold)


def classwise_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    iou_threshold: float,
    max_boxes: int | None = None,
) -> np.ndarray:
    """Non-maximum suppression in which only boxes of the same class suppress each other; see `nms`.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,) finite.
        labels: (N,) integers, any values.
        iou_threshold: as in `nms`.
        max_boxes: keep at most so many boxes, the best over all classes; None = no limit.

    Returns:
        (K,) int64, the indices of the boxes that stay, in descending score over all classes; equal scores: lower index
        first.

    Raises:
        ValueError: lengths differ, or a score is NaN.
    """
    boxes, scores = _as_boxes(boxes), np.ascontiguousarray(scores, dtype=np.float64)
    if not len(boxes) == len(scores) == len(labels):
        raise ValueError(f"{len(boxes)} boxes, {len(scores)} scores and {len(labels)} labels")
    if np.isnan(scores).any():
        raise ValueError(f"score {np.flatnonzero(np.isnan(scores))[0]} is NaN")
    classes, class_of = np.unique(labels, return_inverse=True)
    order = np.argsort(-scores, kind="stable")
    limit = len(boxes) if max_boxes is None else max_boxes
    return _classwise_nms(boxes, order, class_of.astype(np.int64), len(classes), float(iou_threshold), limit)


def _as_boxes(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) float64, contiguous; an empty list is (0, 4)."""
    boxes = np.ascontiguousarray(boxes, dtype=np.float64)
    if boxes.size == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes have the shape (N, 4), not {boxes.shape}")
    return boxes


@numba.njit(cache=True)
def _iou(a, b):
    """IoU of two boxes, each an array of 4."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0.0 or height <= 0.0:
        return 0.0
    intersection = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union if union > 0.0 else 0.0


@numba.njit(cache=True)
def _iou_matrix(boxes_a, boxes_b):
    ious = np.empty((len(boxes_a), len(boxes_b)))
    for i in range(len(boxes_a)):
        for j in range(len(boxes_b)):
            ious[i, j] = _iou(boxes_a[i], boxes_b[j])
    return ious


@numba.njit(cache=True)
def _classwise_nms(boxes, order, class_of, num_classes, iou_threshold, limit):
    """Walks down the scores; a box stays unless one that stays, of its class, overlaps it too much.

    The boxes that stay are chained per class: `last[c]` is the newest of class c, `previous[i]` the one before i.
    """
    last = np.full(num_classes, -1, np.int64)
    previous = np.empty(len(boxes), np.int64)
    kept = np.empty(min(limit, len(boxes)), np.int64)
    count = 0
    for i in order:
        if count == len(kept):
            break
        c = class_of[i]
        j = last[c]
        while j >= 0 and _iou(boxes[i], boxes[j]) <= iou_threshold:
            j = previous[j]
        if j < 0:
            previous[i], last[c] = last[c], i
            kept[count] = i
            count += 1
    return kept[:count]
