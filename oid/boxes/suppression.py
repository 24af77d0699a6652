"""Intersection over union and non-maximum suppression, in float64.

Boxes are xyxy, in any unit. Their width is x_max - x_min. (Older code adds 1 pixel, which is wrong on normalised boxes:
it makes them about twice as large.) A box without area has the IoU 0 with every box, even with itself.

Equal scores have a fixed order everywhere: the lower index first.
"""

from typing import Literal

import numpy as np

from oid.boxes import kernels


def iou_matrix(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Computes the `(N, M)` float64 IoU of `(N, 4)` boxes with `(M, 4)` others in the same unit, both xyxy."""
    return kernels.iou_matrix(_as_boxes(boxes_a), _as_boxes(boxes_b))


def classwise_nms(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou_threshold: float, max_boxes: int | None = None
) -> np.ndarray:
    """Greedy non-maximum suppression within each class.

    The boxes are visited in descending score. A box is dropped if a kept box of its class overlaps it by more than
    `iou_threshold`.

    Args:
        boxes: `(N, 4)` xyxy.
        scores: `(N,)`, not NaN.
        labels: `(N,)` integers, any values.
        iou_threshold: from 0 to 1; at 1 nothing is suppressed.
        max_boxes: maximum number of boxes over all classes, the best ones; None = no limit.

    Returns:
        `(K,)` int64 indices of the kept boxes, in descending score.

    Raises:
        ValueError: lengths differ, or a score is NaN.
    """
    boxes, scores = _as_boxes_and_scores(boxes, scores, labels)
    classes, class_of = np.unique(labels, return_inverse=True)
    order = np.argsort(-scores, kind="stable")
    limit = len(boxes) if max_boxes is None else max_boxes
    return kernels.classwise_nms(boxes, order, class_of.astype(np.int64), len(classes), float(iou_threshold), limit)


def classwise_soft_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    method: Literal["linear", "gaussian"],
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    max_boxes: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Soft non-maximum suppression within each class (Bodla et al. 2017, algorithm 1).

    1. The remaining box with the highest score is kept, with the score that it has by now.
    2. The score of every remaining box that overlaps it is multiplied by a factor. "linear": 1 - IoU if IoU >
       `iou_threshold`, else 1. "gaussian": exp(-IoU**2 / sigma).
    3. An overlapping box is dropped if its score is then below `score_threshold`. Back to 1.

    A box that overlaps no better one is kept however low its score, as in the authors' code. Filter by score before or
    afterwards to drop it.

    Args:
        boxes: `(N, 4)` xyxy.
        scores: `(N,)`, not negative.
        labels: `(N,)` integers, any values.
        method: the factor of step 2.
        iou_threshold: for "linear".
        sigma: for "gaussian", above 0; smaller values lower scores more.
        score_threshold: see step 3; 0 drops nothing.
        max_boxes: maximum number of boxes over all classes, those with the best new scores; None = no limit.

    Returns:
        `(K,)` int64 indices of the kept boxes, and `(K,)` float64 new scores, descending.

    Raises:
        ValueError: lengths differ, or a score is NaN or negative.
    """
    boxes, scores = _as_boxes_and_scores(boxes, scores, labels)
    if (scores < 0).any():
        raise ValueError(f"score {np.flatnonzero(scores < 0)[0]} is negative")
    classes, class_of = np.unique(labels, return_inverse=True)
    by_class = np.argsort(class_of, kind="stable")
    starts = np.searchsorted(class_of[by_class], np.arange(len(classes) + 1))
    limit = len(boxes) if max_boxes is None else max_boxes
    options = method == "gaussian", float(iou_threshold), float(sigma), float(score_threshold)
    new_scores = scores.copy()
    kept = kernels.classwise_soft_nms(boxes, new_scores, by_class, starts, *options, limit)
    kept = kept[np.lexsort((kept, -new_scores[kept]))[:limit]]
    return kept, new_scores[kept]


def _as_boxes_and_scores(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(N, 4)` and `(N,)` float64, contiguous; raises ValueError if lengths differ or a score is NaN."""
    boxes, scores = _as_boxes(boxes), np.ascontiguousarray(scores, dtype=np.float64)
    if not len(boxes) == len(scores) == len(labels):
        raise ValueError(f"{len(boxes)} boxes, {len(scores)} scores and {len(labels)} labels")
    if np.isnan(scores).any():
        raise ValueError(f"score {np.flatnonzero(np.isnan(scores))[0]} is NaN")
    return boxes, scores


def _as_boxes(boxes: np.ndarray) -> np.ndarray:
    """`(N, 4)` float64, contiguous; an empty list becomes `(0, 4)`."""
    boxes = np.ascontiguousarray(boxes, dtype=np.float64)
    boxes = boxes if boxes.size else boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes have the shape (N, 4), not {boxes.shape}")
    return boxes
