"""Box voting: what stays after non-maximum suppression moves to the mean of all that was found there.

Neighbouring anchors find the same object at slightly different places, and the one with the highest score is not the
one that lies best. The suppressed boxes still know something (Gidaris and Komodakis 2015, arXiv 1505.01749, section
4.3).
"""

import numba
import numpy as np

from oid.boxes.kernels import iou


def vote_boxes(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, kept: np.ndarray, iou_threshold: float
) -> np.ndarray:
    """Replaces each box that is kept by the mean of its voters, weighted by score.

    Its voters are all boxes of its class whose IoU with it is `iou_threshold` or more, itself among them; where their
    scores are all 0 the box stays as it is.

    Args:
        boxes: (N, 4) xyxy, all that was found in one image.
        scores: (N,), not negative.
        labels: (N,) integers.
        kept: (K,) indices of the boxes that non-maximum suppression left.
        iou_threshold: from 0 to 1; at 1 nothing moves.

    Returns:
        (K, 4) float64 xyxy, in the order of `kept`.
    """
    boxes, scores = np.ascontiguousarray(boxes, np.float64), np.ascontiguousarray(scores, np.float64)
    if iou_threshold >= 1.0:
        return boxes[kept]
    by_class = np.argsort(labels, kind="stable")
    sorted_labels = np.asarray(labels)[by_class]
    first = np.searchsorted(sorted_labels, np.asarray(labels)[kept], side="left")
    last = np.searchsorted(sorted_labels, np.asarray(labels)[kept], side="right")
    return _vote_boxes(boxes, scores, by_class, np.asarray(kept, np.int64), first, last, float(iou_threshold))


@numba.njit(cache=True)
def _vote_boxes(boxes, scores, by_class, kept, first, last, iou_threshold):
    """The voters of box `kept[k]` are among `by_class[first[k]:last[k]]`."""
    voted = boxes[kept]
    for k in range(len(kept)):
        voters, total = 0, 0.0
        sums = np.zeros(4)
        for i in by_class[first[k] : last[k]]:
            if iou(boxes[kept[k]], boxes[i]) >= iou_threshold:
                voters += 1
                total += scores[i]
                sums += scores[i] * boxes[i]
        if voters > 1 and total > 0.0:  # alone, it stays where it is to the last bit
            voted[k] = sums / total
    return voted
