"""Boxes: intersection over union and non-maximum suppression, in float64.

A box is `xyxy`: x_min, y_min, x_max, y_max, continuous coordinates in any unit (normalised to [0, 1] or pixels), so a
box is x_max - x_min wide. (The "+1 pixel" convention of older code is wrong here: on normalised boxes it makes each one
about twice as large and overlaps come out far too high.) A box without area overlaps nothing, its IoU is 0 even with
itself: no division by zero, no NaN.

Equal scores have an order everywhere: the lower index first.
"""

from typing import Literal

import numpy as np

from oid.boxes import kernels as box_kernels

SOFT_NMS_METHODS = ("linear", "gaussian", "hard")


def iou_matrix(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of one set with every box of the other.

    Args:
        boxes_a: (N, 4) xyxy.
        boxes_b: (M, 4) xyxy, in the same unit.

    Returns:
        (N, M) float64 in [0, 1].
    """
    return box_kernels.iou_matrix(_as_boxes(boxes_a), _as_boxes(boxes_b))


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
    return box_kernels.classwise_nms(boxes, order, class_of.astype(np.int64), len(classes), float(iou_threshold), limit)


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
    kind = SOFT_NMS_METHODS.index(method)
    kept = box_kernels.classwise_soft_nms(boxes, new_scores, by_class, starts, kind, *numbers, limit)
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
