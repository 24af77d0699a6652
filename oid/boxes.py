"""Boxes: intersection over union and non-maximum suppression, in float64.

A box is `xyxy`: x_min, y_min, x_max, y_max, continuous coordinates in any unit (normalised to [0, 1] or pixels), so a
box is x_max - x_min wide. (The "+1 pixel" convention of older code is wrong here: on normalised boxes it makes each one
about twice as large and overlaps come out far too high.) A box without area overlaps nothing, its IoU is 0 even with
itself: no division by zero, no NaN.

Equal scores have an order everywhere: the lower index first.
"""

from typing import Literal

import numba
import numpy as np

SOFT_NMS_METHODS = ("linear", "gaussian", "hard")


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
    boxes, scores = _as_boxes_and_scores(boxes, scores, labels)
    classes, class_of = np.unique(labels, return_inverse=True)
    order = np.argsort(-scores, kind="stable")
    limit = len(boxes) if max_boxes is None else max_boxes
    return _classwise_nms(boxes, order, class_of.astype(np.int64), len(classes), float(iou_threshold), limit)


def soft_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    *,
    method: Literal["linear", "gaussian", "hard"],
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
) -> tuple[np.ndarray, np.ndarray]:
    """Soft non-maximum suppression: overlapping boxes lose score instead of going (Bodla et al. 2017, algorithm 1).

    1. The box with the highest score left is chosen; it keeps the score it has by now.
    2. The score of every box left that overlaps it by IoU > 0 is multiplied by a weight. "linear": 1 - IoU where IoU >
       `iou_threshold`, else 1. "gaussian": exp(-IoU**2 / sigma). "hard": where IoU > `iou_threshold` the box goes.
    3. Of these boxes, those whose score is then below `score_threshold` go. Back to 1, until none is left.

    Step 3 looks only at boxes that overlap the chosen one, as the authors' code does: a box that overlaps no better one
    stays, however low its score; filter the scores before, or after, where this is not wanted. (The paper has no such
    threshold.) Overlap is continuous here; for the "+1 pixel" overlaps of that code add 1 to x_max and y_max.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,) finite, not negative.
        method: the weight.
        iou_threshold: an IoU equal to it is not punished; "gaussian" does not use it.
        sigma: above 0; only "gaussian" uses it. The smaller, the harder.
        score_threshold: see step 3; at 0.0 nothing goes by it.

    Returns:
        (K,) int64, the indices of the boxes that stay, and (K,) float64, their new scores, which descend; equal new
        scores: lower index first.

    Raises:
        ValueError: lengths differ, a score is NaN or negative, the method is unknown, or sigma is not above 0.
    """
    labels = np.zeros(len(scores), np.int64)
    options = {"iou_threshold": iou_threshold, "sigma": sigma, "score_threshold": score_threshold}
    return classwise_soft_nms(boxes, scores, labels, method=method, **options)


def classwise_soft_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    method: Literal["linear", "gaussian", "hard"],
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    max_boxes: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Soft non-maximum suppression in which only boxes of the same class lower each other's scores; see `soft_nms`.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,) finite, not negative.
        labels: (N,) integers, any values.
        method, iou_threshold, sigma, score_threshold: as in `soft_nms`.
        max_boxes: keep at most so many boxes, those with the best new scores over all classes; None = no limit.

    Returns:
        as `soft_nms`, over all classes.

    Raises:
        ValueError: as `soft_nms`.
    """
    boxes, scores = _as_boxes_and_scores(boxes, scores, labels)
    if method not in SOFT_NMS_METHODS:
        raise ValueError(f"unknown method {method!r}, there are {', '.join(SOFT_NMS_METHODS)}")
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}, expected more than 0")
    if (scores < 0).any():
        raise ValueError(f"score {np.flatnonzero(scores < 0)[0]} is negative")
    classes, class_of = np.unique(labels, return_inverse=True)
    by_class = np.argsort(class_of, kind="stable")
    starts = np.searchsorted(class_of[by_class], np.arange(len(classes) + 1))
    limit = len(boxes) if max_boxes is None else max_boxes
    numbers = (float(iou_threshold), float(sigma), float(score_threshold))
    new_scores = scores.copy()
    kept = _soft_nms(boxes, new_scores, by_class, starts, SOFT_NMS_METHODS.index(method), *numbers, limit)
    kept = kept[np.lexsort((kept, -new_scores[kept]))[:limit]]
    return kept, new_scores[kept]


def _as_boxes_and_scores(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) and (N,) float64, contiguous; raises ValueError where lengths differ or a score is NaN."""
    boxes, scores = _as_boxes(boxes), np.ascontiguousarray(scores, dtype=np.float64)
    if not len(boxes) == len(scores) == len(labels):
        raise ValueError(f"{len(boxes)} boxes, {len(scores)} scores and {len(labels)} labels")
    if np.isnan(scores).any():
        raise ValueError(f"score {np.flatnonzero(np.isnan(scores))[0]} is NaN")
    return boxes, scores


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


@numba.njit(cache=True)
def _soft_nms(boxes, scores, by_class, starts, method, iou_threshold, sigma, score_threshold, limit):
    """Lowers `scores` in place, class by class (class c is `by_class[starts[c]:starts[c + 1]]`), and returns the
    indices of the boxes that stay, at most `limit` of each class; `method` counts in `SOFT_NMS_METHODS`."""
    kept = np.empty(len(boxes), np.int64)
    count = 0
    for c in range(len(starts) - 1):
        rest = by_class[starts[c] : starts[c + 1]].copy()
        left = len(rest)
        last = count + min(limit, left)
        while left > 0 and count < last:
            chosen = _take_best(rest, left, scores)
            left -= 1
            kept[count] = chosen
            count += 1
            k = 0
            while k < left:
                i = rest[k]
                iou = _iou(boxes[chosen], boxes[i])
                k += 1
                if iou <= 0.0:
                    continue
                if method == 1:
                    scores[i] *= np.exp(-iou * iou / sigma)
                elif method == 0 and iou > iou_threshold:
                    scores[i] *= 1.0 - iou
                if scores[i] < score_threshold or (method == 2 and iou > iou_threshold):
                    k -= 1
                    left -= 1
                    rest[k] = rest[left]
    return kept[:count]


@numba.njit(cache=True)
def _take_best(rest, left, scores):
    """Takes the index with the highest score out of `rest[:left]`: the last one moves to its place."""
    best = 0
    for k in range(1, left):
        i, j = rest[k], rest[best]
        if scores[i] > scores[j] or (scores[i] == scores[j] and i < j):
            best = k
    chosen = rest[best]
    rest[best] = rest[left - 1]
    return chosen
