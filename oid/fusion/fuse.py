"""Fusion: the boxes that several models found in an image become one set of boxes, class by class.

`fuse` takes one image or many. Each image and each class is fused independently. First, boxes are cleaned as in the
package ensemble-boxes 1.0.9: swapped corners are exchanged, coordinates are clipped to [0, 1], boxes without area are
dropped. Then one of five methods fuses them. Equal scores are ordered by model, then by position in the model's list.

**wbf**, weighted boxes fusion (Solovyev, Wang, Gabruseva 2021):

1. Scores are multiplied by the model's weight. The boxes are taken in descending score.
2. A box joins the fused box with the highest IoU if that IoU is above `iou_threshold`. Otherwise it founds a new one.
3. The coordinates of a fused box are the mean over its boxes, weighted by score.
4. Its score depends on `conf_type`. Let m be the mean score of its n boxes, which come from t of the T models:

   - "avg": m * min(n, T) / sum of all weights; with `allows_overflow`, m * n / sum of all weights
   - "max": highest score / highest weight
   - "box_and_model_avg": m * n / sum of its boxes' weights * sum of the t models' weights / sum of all weights
   - "absent_model_aware_avg": m * n / (sum of its boxes' weights + sum of the T - t other models' weights)

   A box that 1 of 3 models found with score 0.9 gets the score 0.3, except with "max". Two boxes of one model count as
   two votes; with `allows_overflow` a score can exceed 1.

The result equals the package's bit for bit if the scores are unique, including its rounding to float32. It differs
where the package divides 0 by 0: such a fused box gets its first box's coordinates and score 0.

**nms**: non-maximum suppression over the boxes of all models. If weights are given, scores are first multiplied by
weight / sum of weights. The package's boxes and scores.

**soft_nms_linear, soft_nms_gaussian**: as nms, but overlapping boxes lose score instead of being dropped (see
`oid.boxes.suppression.classwise_soft_nms`). Boxes whose new score is at most `score_threshold` are dropped, whether
they overlap another box or not. The package keeps the same boxes, but returns their old scores.

**nmw**, non-maximum weighted (Zhou et al. 2017): scores are multiplied by weight / highest weight. Boxes are grouped as
in wbf, but compared with the first box of a group. A group becomes the mean of its boxes, weighted by score * IoU with
the first box, and keeps the first box's score. The package's numbers before it rounds them to float32.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

METHODS = ("wbf", "nms", "soft_nms_linear", "soft_nms_gaussian", "nmw")
CONF_TYPES = ("avg", "max", "box_and_model_avg", "absent_model_aware_avg")

BOXES_PER_PART = 4096  # of all models together: the intermediate results of a part fit into the processor's cache


class Boxes(NamedTuple):
    """Boxes, image after image: `(N, 4)` float64 xyxy, `(N,)` float64 scores, `(N,)` int64 labels.

    `offsets` is `(images + 1,)` int64; image k has the boxes offsets[k] to offsets[k + 1].
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray


def fuse(
    method: str,
    boxes_list: Sequence[np.ndarray],
    scores_list: Sequence[np.ndarray],
    labels_list: Sequence[np.ndarray],
    offsets_list: Sequence[np.ndarray] | None = None,
    *,
    weights: Sequence[float] | None = None,
    iou_threshold: float = 0.55,
    skip_box_threshold: float = 0.0,
    conf_type: str = "avg",
    allows_overflow: bool = False,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    limit: int | None = None,
    threads: int = 1,
) -> Boxes:
    """Fuses the boxes of several models; the module's docstring describes the methods.

    Args:
        method: one of `METHODS`.
        boxes_list: per model `(N_i, 4)` xyxy, normalised, image after image.
        scores_list: per model `(N_i,)`.
        labels_list: per model `(N_i,)` integers.
        offsets_list: per model `(images + 1,)` integers, see `Boxes`; None = all boxes belong to one image.
        weights: one per model, not negative, not all 0; None = all 1.
        iou_threshold: from 0 to 1; boxes match if their IoU is above it.
        skip_box_threshold: boxes whose own score is lower are left out.
        conf_type: one of `CONF_TYPES`; only wbf uses it.
        allows_overflow: only wbf with "avg" uses it.
        sigma: above 0; only soft_nms_gaussian uses it. Smaller values lower scores more.
        score_threshold: only soft-NMS uses it.
        limit: maximum number of boxes per image, the best over all classes; None = all.
        threads: number of threads; the result does not depend on it.

    Returns:
        The fused boxes, in descending score within each image.

    Raises:
        ValueError: lengths differ, offsets do not fit the boxes, a number is not finite, or an option is out of range.
    """
    for is_fine, problem in (
        (method in METHODS, f"unknown method {method!r}, there are {', '.join(METHODS)}"),
        (conf_type in CONF_TYPES, f"unknown conf_type {conf_type!r}, there are {', '.join(CONF_TYPES)}"),
        (0.0 <= iou_threshold <= 1.0, f"the IoU threshold {iou_threshold} is not in [0, 1]"),
        (sigma > 0.0, f"sigma is {sigma}, expected more than 0"),
        (skip_box_threshold >= 0.0 or "soft" not in method, "soft-NMS takes no negative scores"),
        (limit is None or limit >= 0, f"limit is {limit}, expected at least 0"),
        (threads >= 1, f"threads is {threads}, expected at least 1"),
    ):
        if not is_fine:
            raise ValueError(problem)
    factors = _factors(method, weights, len(boxes_list))
    boxes, scores, labels, bases = _concatenated(boxes_list, scores_list, labels_list)
    sizes = np.diff(bases)
    offsets = _checked_offsets([[0, size] for size in sizes] if offsets_list is None else offsets_list, sizes)
    starts, stops = offsets[:, :-1] + bases[:-1, None], offsets[:, 1:] + bases[:-1, None]

    def fuse_part(images: slice) -> Boxes:
        """Fuses some images."""
        from oid.boxes import kernels  # compiles: callers that only show their --help do not wait for it

        places = np.ascontiguousarray(starts[:, images]), np.ascontiguousarray(stops[:, images])
        prepared = kernels.prepare(boxes, scores, labels, *places, factors, float(skip_box_threshold))
        clean, weighted, label_of, model_of, image_stops, order, runs = prepared
        common = clean, weighted, order, runs, float(iou_threshold)
        if method == "wbf":
            confidence = CONF_TYPES.index(conf_type), bool(allows_overflow)
            found = kernels.wbf(*common, model_of, np.ascontiguousarray(factors[:, 0]), *confidence)
        elif method == "nmw":
            found = kernels.nmw(*common)
        elif method == "nms":
            found = kernels.nms(*common)
        else:
            is_gaussian = method == "soft_nms_gaussian"
            found = kernels.soft_nms(*common, is_gaussian, float(sigma), float(score_threshold))
        fused_boxes, fused_scores, founder = found
        image = np.searchsorted(image_stops, founder, side="right")
        ranking, every = np.lexsort((founder, -fused_scores, image)), np.arange(len(image_stops) + 1)
        fused_offsets = np.searchsorted(image, every)  # the images are in order
        if limit is not None:
            ranking = ranking[np.arange(len(image)) - fused_offsets[image] < limit]
            fused_offsets = np.searchsorted(image[ranking], every)
        return Boxes(fused_boxes[ranking], fused_scores[ranking], label_of[founder[ranking]], fused_offsets)

    num_parts = max(len(boxes) // BOXES_PER_PART + 1, 4 * threads if threads > 1 else 1)
    return _joined(fuse_part, starts.shape[1], num_parts, threads)


def count_unusual(boxes: np.ndarray, scores: np.ndarray, skip_box_threshold: float) -> tuple[int, int, int]:
    """Counts the boxes that reach out of [0, 1], that have no area there, and whose score is below the threshold."""
    sides = np.diff(boxes.reshape(-1, 2, 2).clip(0.0, 1.0), axis=1)
    unusual = ((boxes < 0.0) | (boxes > 1.0)).any(axis=1), sides.prod(axis=2) == 0.0, scores < skip_box_threshold
    return tuple(map(np.count_nonzero, unusual))


def _joined(fuse_part: Callable[[slice], Boxes], num_images: int, num_parts: int, threads: int) -> Boxes:
    """Calls `fuse_part` with slices of the images, in several threads, and joins the results."""
    if min(num_parts, num_images) < 2:
        return fuse_part(slice(None))
    cuts = np.linspace(0, num_images, min(num_parts, num_images) + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(fuse_part, map(slice, cuts[:-1], cuts[1:])))
    *columns, offsets = zip(*parts, strict=True)
    counts = np.concatenate([np.diff(of_part) for of_part in offsets])
    return Boxes(*map(np.concatenate, columns), np.concatenate([[0], np.cumsum(counts)]))


def _factors(method: str, weights: Sequence[float] | None, num_models: int) -> np.ndarray:
    """`(models, 2)`: scores are multiplied by the first number of their model and divided by the second."""
    factors = np.ones((num_models, 2))
    if weights is None:
        return factors
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (num_models,):
        raise ValueError(f"{weights.size} weights for {num_models} models")
    if not np.all(np.isfinite(weights) & (weights >= 0.0)) or (num_models and not weights.any()):
        raise ValueError(f"weights {weights.tolist()}: one is negative or not finite, or all are 0")
    factors[:, 0] = weights / weights.max(initial=0.0) if method == "nmw" else weights
    if method not in ("wbf", "nmw"):
        factors[:, 1] = weights.sum()
    return factors


def _concatenated(
    boxes_list: Sequence[np.ndarray], scores_list: Sequence[np.ndarray], labels_list: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`(N, 4)` boxes, `(N,)` scores, `(N,)` labels, model after model; `(models + 1,)` the start of each model."""
    sizes = [len(boxes) for boxes in boxes_list]
    if sizes != [len(scores) for scores in scores_list] or sizes != [len(labels) for labels in labels_list]:
        raise ValueError("a model's boxes, scores and labels have different lengths")
    boxes = np.concatenate([np.zeros((0, 4)), *(np.reshape(boxes, (-1, 4)) for boxes in boxes_list)])
    scores = np.concatenate([np.zeros(0), *scores_list])
    labels = np.concatenate([np.zeros(0, np.int64), *(np.asarray(labels, np.int64) for labels in labels_list)])
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError("a score or a coordinate is not finite")
    return boxes, scores, labels, np.cumsum([0, *sizes])


def _checked_offsets(offsets_list: Sequence[np.ndarray], sizes: np.ndarray) -> np.ndarray:
    """`(models, images + 1)` int64."""
    if len(offsets_list) != len(sizes) or len({len(offsets) for offsets in offsets_list}) > 1:
        raise ValueError("the models have offsets of different numbers of images")
    offsets = np.array(offsets_list, dtype=np.int64).reshape(len(sizes), -1 if len(sizes) else 2)
    if np.any(offsets[:, 0] != 0) or np.any(offsets[:, -1] != sizes) or np.any(np.diff(offsets) < 0):
        raise ValueError("a model's offsets must rise from 0 to the number of its boxes")
    return offsets
