"""Box voting: each box that non-maximum suppression keeps moves to the mean of the boxes that overlap it.

Neighbouring anchors find the same object at slightly different places, and the best-placed one need not have the
highest score (Gidaris and Komodakis 2015, arXiv 1505.01749, section 4.3).
"""

import numpy as np

from oid.boxes import kernels


def vote_boxes(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, kept: np.ndarray, iou_threshold: float
) -> np.ndarray:
    """Replaces each kept box by the mean of its voters, weighted by score.

    The voters of a box are all boxes of its class with IoU >= `iou_threshold`, including itself. A box without other
    voters stays as it is, and so does a box whose voters all have the score 0.

    Args:
        boxes: `(N, 4)` xyxy, all boxes found in one image.
        scores: `(N,)`, not negative.
        labels: `(N,)` integers.
        kept: `(K,)` indices of the boxes that non-maximum suppression kept.
        iou_threshold: from 0 to 1; at 1 nothing moves.

    Returns:
        `(K, 4)` float64 xyxy, in the order of `kept`.
    """
    boxes, scores = np.ascontiguousarray(boxes, np.float64), np.ascontiguousarray(scores, np.float64)
    labels, kept = np.asarray(labels), np.asarray(kept, np.int64)
    if iou_threshold >= 1.0:
        return boxes[kept]
    by_class = np.argsort(labels, kind="stable")
    first, last = (np.searchsorted(labels[by_class], labels[kept], side=side) for side in ("left", "right"))
    return kernels.vote_boxes(boxes, scores, by_class, kept, first, last, float(iou_threshold))
