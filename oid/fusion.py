"""Fusion: the boxes of several models on one image become one set.

Two methods, both per class:

- `wbf`, weighted boxes fusion (Solovyev, Wang, Gabruseva: "Weighted boxes fusion: Ensembling boxes from different
  object detection models", 2021). Boxes that overlap become one box, the mean of their coordinates weighted by score.
  It gives the boxes, scores and labels of the package ensemble-boxes 1.0.9 (`conf_type="avg"`) bit for bit when the
  scores are unique;
- `nms`, non-maximum suppression over the union of all boxes, as the package's `nms`.

What is defined there, and sometimes surprising: a box that 1 of 3 models has found at 0.9 gets 0.3; duplicates of one
model count as several votes; coordinates and mean score of a fused box are rounded to float32, those of a box that
stays alone are not; a box of a model with weight 0 stays with score 0, unless it joins others, whose coordinates it
does not move.

What is different: equal scores have an order (score, then model, then position in the model's list), so that the result
does not depend on the sort; boxes of score 0 that are fused with each other alone take the coordinates of the
first instead of 0 / 0; mistakes raise ValueError instead of a message on the screen and the default.

Boxes are xyxy, normalised. As in the package, swapped corners are put in order, coordinates are clipped to [0, 1], and
boxes that then have no area are dropped, silently; `clean_boxes` tells a caller which.
"""

from collections.abc import Sequence

import numba
import numpy as np

from oid.boxes import classwise_nms

METHODS = ("wbf", "nms")


def fuse(
    method: str,
    boxes_list: Sequence[np.ndarray],
    scores_list: Sequence[np.ndarray],
    labels_list: Sequence[np.ndarray],
    *,
    weights: Sequence[float] | None = None,
    iou_threshold: float = 0.55,
    skip_box_threshold: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fuses by one of `METHODS`; see `weighted_boxes_fusion` and `nms_fusion`, which have the same arguments."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}, there are {', '.join(METHODS)}")
    function = weighted_boxes_fusion if method == "wbf" else nms_fusion
    options = {"weights": weights, "iou_threshold": iou_threshold, "skip_box_threshold": skip_box_threshold}
    return function(boxes_list, scores_list, labels_list, **options)


def weighted_boxes_fusion(
    boxes_list: Sequence[np.ndarray],
    scores_list: Sequence[np.ndarray],
    labels_list: Sequence[np.ndarray],
    *,
    weights: Sequence[float] | None = None,
    iou_threshold: float = 0.55,
    skip_box_threshold: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fuses the boxes of several models on one image.

    1. Each score is multiplied by its model's weight; the boxes of a class are taken in descending score.
    2. A box joins the fused box of its class with the highest IoU, if that is > `iou_threshold`, else it founds one.
    3. A fused box's coordinates are the mean of its boxes', weighted by score; its score is their mean score, times
       min(number of its boxes, number of models), divided by the sum of the weights.

    Args:
        boxes_list: per model (N_i, 4) xyxy, normalised; a model without boxes has an empty list.
        scores_list: per model (N_i,).
        labels_list: per model (N_i,) integers.
        weights: one per model, none negative, not all 0; None = all 1.
        iou_threshold: from 0 to 1.
        skip_box_threshold: boxes whose own score, without the weight, is lower are left out.

    Returns:
        (N, 4) float64 boxes, (N,) float64 scores, (N,) int64 labels, in descending score; equal scores: the one whose
        first box comes first (model, position).

    Raises:
        ValueError: lengths differ, a weight is negative, all are 0, the IoU threshold is not in [0, 1], or a number is
            not finite.
    """
    weights = _checked_weights(weights, len(boxes_list), iou_threshold)
    boxes, scores, labels, models = _concatenated(boxes_list, scores_list, labels_list)
    return _weighted_boxes_fusion(
        boxes, scores, labels, models, weights, weights.sum(), iou_threshold, skip_box_threshold
    )


def nms_fusion(
    boxes_list: Sequence[np.ndarray],
    scores_list: Sequence[np.ndarray],
    labels_list: Sequence[np.ndarray],
    *,
    weights: Sequence[float] | None = None,
    iou_threshold: float = 0.55,
    skip_box_threshold: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keeps of all models' boxes of a class that overlap by more than `iou_threshold` only the one with the best score.

    With weights, scores are multiplied by weight / sum of weights before, as the package ensemble-boxes does; without,
    scores stay as they are. (So weights 1 1 give the same boxes as none, at half the score.) Arguments, result
    and errors are those of `weighted_boxes_fusion`.
    """
    total = _checked_weights(weights, len(boxes_list), iou_threshold).sum()
    boxes, scores, labels, models = _concatenated(boxes_list, scores_list, labels_list)
    boxes, has_area = clean_boxes(boxes)
    used = np.flatnonzero(has_area & (scores >= skip_box_threshold))
    if weights is not None:
        scores = scores * np.asarray(weights, dtype=np.float64)[models] / total
    kept = used[classwise_nms(boxes[used], scores[used], labels[used], iou_threshold)]
    return boxes[kept], scores[kept], labels[kept]


def clean_boxes(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Puts corners in order and clips to [0, 1], as fusion does with the boxes it is given.

    Returns:
        (N, 4) xyxy, and (N,) bool: the box has an area; those that have none do not take part in fusion.
    """
    boxes = np.clip(boxes, 0.0, 1.0)
    low, high = np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])
    return np.concatenate([low, high], axis=1), np.prod(high - low, axis=1) > 0.0


def _checked_weights(weights: Sequence[float] | None, num_models: int, iou_threshold: float) -> np.ndarray:
    """(num_models,) float64."""
    if not 0.0 <= iou_threshold <= 1.0:
        raise ValueError(f"the IoU threshold {iou_threshold} is not in [0, 1]")
    weights = np.ones(num_models) if weights is None else np.asarray(weights, dtype=np.float64)
    if weights.shape != (num_models,):
        raise ValueError(f"{weights.size} weights for {num_models} models")
    if not np.all(np.isfinite(weights)) or np.any(weights < 0.0):
        raise ValueError(f"weights {weights.tolist()}: one is negative or not finite")
    if num_models and not np.any(weights > 0.0):
        raise ValueError("all weights are 0")
    return weights


def _concatenated(
    boxes_list: Sequence[np.ndarray], scores_list: Sequence[np.ndarray], labels_list: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(N, 4) boxes, (N,) scores, (N,) labels, (N,) models: all boxes, model after model."""
    sizes = [len(boxes) for boxes in boxes_list]
    if sizes != [len(scores) for scores in scores_list] or sizes != [len(labels) for labels in labels_list]:
        raise ValueError("a model's boxes, scores and labels have different lengths")
    if sum(sizes) == 0:
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64)
    filled = [model for model, size in enumerate(sizes) if size]
    boxes = np.concatenate([boxes_list[model] for model in filled], dtype=np.float64)
    scores = np.concatenate([scores_list[model] for model in filled], dtype=np.float64)
    labels = np.concatenate([labels_list[model] for model in filled]).astype(np.int64)
    if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
        raise ValueError("a score or a coordinate is not finite")
    return boxes, scores, labels, np.repeat(np.arange(len(sizes)), sizes)


@numba.njit(cache=True)
def _usable(box, score, skip_box_threshold):
    """The box as x1, y1, x2, y2 with its corners in order and clipped, and whether it takes part."""
    x1, x2 = min(max(min(box[0], box[2]), 0.0), 1.0), min(max(max(box[0], box[2]), 0.0), 1.0)
    y1, y2 = min(max(min(box[1], box[3]), 0.0), 1.0), min(max(max(box[1], box[3]), 0.0), 1.0)
    return x1, y1, x2, y2, score >= skip_box_threshold and (x2 - x1) * (y2 - y1) > 0.0


@numba.njit(cache=True)
def _weighted_boxes_fusion(boxes, scores, labels, models, weights, total_weight, iou_threshold, skip_box_threshold):
    """See `weighted_boxes_fusion`; (N, 4), (N,), (N,), (N,) of all models, ordered by (model, position)."""
    # 1. The boxes that take part, in the order (class, descending weighted score, model, position).
    clean = np.empty((len(scores), 4))
    weighted = np.empty(len(scores))
    used = np.empty(len(scores), np.int64)
    count = 0
    for i in range(len(scores)):
        x1, y1, x2, y2, takes_part = _usable(boxes[i], scores[i], skip_box_threshold)
        if takes_part:
            clean[i, 0], clean[i, 1], clean[i, 2], clean[i, 3] = x1, y1, x2, y2
            weighted[i] = scores[i] * weights[models[i]]
            used[count] = i
            count += 1
    order = used[:count]
    order = order[np.argsort(-weighted[order], kind="mergesort")]
    order = order[np.argsort(labels[order], kind="mergesort")]

    # 2. Clusters. The float32 sums are part of the definition: each step rounds, as in the package.
    founder = np.empty(count, np.int64)
    members = np.zeros(count, np.int64)
    sums = np.zeros((count, 4), np.float32)
    confidences = np.zeros(count)
    fused = np.empty((count, 4))
    fused_scores = np.empty(count)
    num_clusters, first_of_class = 0, 0
    for position in range(count):
        i = order[position]
        if position > 0 and labels[i] != labels[order[position - 1]]:
            first_of_class = num_clusters
        c = _best_cluster(clean[i], fused, first_of_class, num_clusters, iou_threshold)
        if c < 0:
            c = num_clusters
            num_clusters += 1
            founder[c] = i
        members[c] += 1
        confidences[c] += weighted[i]
        for k in range(4):
            sums[c, k] = np.float32(np.float64(sums[c, k]) + weighted[i] * clean[i, k])
        if members[c] == 1:
            fused[c] = clean[i]
            fused_scores[c] = weighted[i]
            continue
        fused_scores[c] = np.float64(np.float32(confidences[c] / members[c]))
        if confidences[c] != 0.0:
            for k in range(4):
                fused[c, k] = np.float64(np.float32(np.float64(sums[c, k]) / confidences[c]))

    # 3. Scores by the number of votes, then descending; equal ones by the founder's (model, position).
    for c in range(num_clusters):
        fused_scores[c] = fused_scores[c] * min(len(weights), members[c]) / total_weight
    ranking = np.argsort(founder[:num_clusters], kind="mergesort")
    ranking = ranking[np.argsort(-fused_scores[ranking], kind="mergesort")]
    return fused[ranking], fused_scores[ranking], labels[founder[ranking]]


@numba.njit(cache=True)
def _best_cluster(box, fused, first, stop, iou_threshold):
    """The fused box from `first` to `stop` with the highest IoU above the threshold (the oldest of equal), or -1."""
    best, best_iou = -1, iou_threshold
    area = (box[2] - box[0]) * (box[3] - box[1])
    for c in range(first, stop):
        width = min(fused[c, 2], box[2]) - max(fused[c, 0], box[0])
        height = min(fused[c, 3], box[3]) - max(fused[c, 1], box[1])
        if width <= 0.0 or height <= 0.0:
            continue
        intersection = width * height
        fused_area = (fused[c, 2] - fused[c, 0]) * (fused[c, 3] - fused[c, 1])
        iou = intersection / (fused_area + area - intersection)
        if iou > best_iou:
            best, best_iou = c, iou
    return best
