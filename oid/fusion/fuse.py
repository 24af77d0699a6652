"""Fusion: the boxes of several models on one image become one set, class by class.

The methods, with the package ensemble-boxes 1.0.9 as the definition of those that come from there:

- `wbf`, weighted boxes fusion (Solovyev, Wang, Gabruseva: "Weighted boxes fusion: Ensembling boxes from different
  object detection models", 2021): see `weighted_boxes_fusion`;
- `nms`, non-maximum suppression over the boxes of all models: see `nms_fusion`;
- `soft_nms_linear`, `soft_nms_gaussian`, the same, but the scores of overlapping boxes fall: see `soft_nms_fusion`;
- `nmw`, non-maximum weighted (Zhou et al.: "CAD: Scale invariant framework for real-time object detection", 2017): see
  `non_maximum_weighted`.

What is different from the package, in all of them: equal scores have an order (score, then model, then position in the
model's list), so that the result does not depend on the sort; nothing in is nothing out; results are in descending
score over all classes; the caller's lists stay as they are; mistakes raise ValueError instead of a message on the
screen and the default, or the end of the process.

Boxes are xyxy, normalised. As in the package, swapped corners are put in order, coordinates are clipped to [0, 1], and
boxes that then have no area are dropped, silently; `clean_boxes` tells a caller which.

`fuse_images` does many images in one call, which is the fast way; all others are a call of it with one.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

METHODS = ("wbf", "nms", "soft_nms_linear", "soft_nms_gaussian", "nmw")
CONF_TYPES = ("avg", "max", "box_and_model_avg", "absent_model_aware_avg")

LARGE_LABEL = 100_000  # from here on labels are renumbered, or a table of them would be large
BOXES_PER_PART = 4096  # of all models, about; what is computed of so many stays in the processor's cache
Fused = tuple[np.ndarray, np.ndarray, np.ndarray]


def fuse_images(
    method: str,
    boxes_list: Sequence[np.ndarray],
    scores_list: Sequence[np.ndarray],
    labels_list: Sequence[np.ndarray],
    offsets_list: Sequence[np.ndarray],
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
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fuses many images, each by itself: neither the other images nor the threads have a part in an image's result.

    Args:
        method: one of `METHODS`.
        boxes_list: per model (N_i, 4) xyxy, normalised, image after image.
        scores_list: per model (N_i,).
        labels_list: per model (N_i,) integers.
        offsets_list: per model (images + 1,) integers: image k has its boxes from offsets[k] to offsets[k + 1].
        weights, iou_threshold, skip_box_threshold: see the functions below.
        conf_type, allows_overflow: of `weighted_boxes_fusion`; the other methods do not use them.
        sigma, score_threshold: of `soft_nms_fusion`; the other methods do not use them.
        limit: boxes per image at most, the best over all classes; None = all.
        threads: images are shared out to so many.

    Returns:
        (N, 4) float64 boxes, (N,) float64 scores, (N,) int64 labels, in descending score within each image, and
        (images + 1,) int64 offsets of the images in them.

    Raises:
        ValueError: as the functions below, or the offsets are not those of the boxes.
    """
    boxes, scores, labels, bases = _concatenated(boxes_list, scores_list, labels_list)
    offsets = _checked_offsets(offsets_list, np.diff(bases))
    starts, stops = offsets[:, :-1] + bases[:-1, None], offsets[:, 1:] + bases[:-1, None]
    options = {"weights": weights, "iou_threshold": iou_threshold, "skip_box_threshold": skip_box_threshold}
    options |= {"conf_type": conf_type, "allows_overflow": allows_overflow, "sigma": sigma}
    options |= {"score_threshold": score_threshold, "limit": limit, "threads": threads}
    return _fused(method, boxes, scores, labels, starts, stops, **options)


def fuse(
    method: str,
    boxes_list: Sequence[np.ndarray],
    scores_list: Sequence[np.ndarray],
    labels_list: Sequence[np.ndarray],
    **options,
) -> Fused:
    """Fuses the boxes of several models on one image.

    Args:
        method: one of `METHODS`.
        boxes_list: per model (N_i, 4) xyxy, normalised; a model without boxes has an empty list.
        scores_list: per model (N_i,).
        labels_list: per model (N_i,) integers.
        options: the keywords of `fuse_images`.

    Returns:
        (N, 4) float64 boxes, (N,) float64 scores, (N,) int64 labels, in descending score; equal scores: the one whose
        first box comes first (model, position).

    Raises:
        ValueError: lengths differ, a number is not finite, a weight is negative, all are 0, or an option is out of its
            range.
    """
    boxes, scores, labels, bases = _concatenated(boxes_list, scores_list, labels_list)
    starts, stops = bases[:-1].reshape(-1, 1), bases[1:].reshape(-1, 1)
    return _fused(method, boxes, scores, labels, starts, stops, **options)[:3]


def weighted_boxes_fusion(
    boxes_list: Sequence[np.ndarray],
    scores_list: Sequence[np.ndarray],
    labels_list: Sequence[np.ndarray],
    *,
    weights: Sequence[float] | None = None,
    iou_threshold: float = 0.55,
    skip_box_threshold: float = 0.0,
    conf_type: str = "avg",
    allows_overflow: bool = False,
) -> Fused:
    """Fuses boxes that overlap into one, the mean of their coordinates weighted by score.

    It gives the boxes, scores and labels of the package bit for bit when the scores are unique.

    1. Each score is multiplied by its model's weight; the boxes of a class are taken in descending score.
    2. A box joins the fused box of its class with the highest IoU, if that is > `iou_threshold`, else it founds one.
    3. A fused box's coordinates are the mean of its boxes', weighted by score. With the mean score m of its n boxes, of
       which T models have t given some, its score is

       - "avg": m * min(n, T) / sum of all weights, or with `allows_overflow` m * n / sum of all weights;
       - "max": the highest score / the highest weight;
       - "box_and_model_avg": m * n / sum of the weights of its boxes * sum of the weights of the t models / sum of all;
       - "absent_model_aware_avg": m * n / (sum of the weights of its boxes + those of the T - t models).

    What is defined there, and sometimes surprising: a box that 1 of 3 models has found at 0.9 gets 0.3, but for "max";
    duplicates of one model count as several votes, and with `allows_overflow` scores can exceed 1; coordinates and mean
    score of a fused box are rounded to float32, those of a box that stays alone are not; a box of a model with weight 0
    stays with score 0, unless it joins others, whose coordinates it does not move.

    What is different: where the package divides 0 by 0 (boxes of score 0 or of a model with weight 0 among themselves),
    a fused box has the coordinates of its first box, and score 0.

    Args:
        boxes_list, scores_list, labels_list: as in `fuse`.
        weights: one per model, none negative, not all 0; None = all 1. Only their ratio counts.
        iou_threshold: from 0 to 1.
        skip_box_threshold: boxes whose own score, without the weight, is lower are left out.
        conf_type: one of `CONF_TYPES`.
        allows_overflow: only "avg" uses it.

    Returns:
        as `fuse`.

    Raises:
        ValueError: as `fuse`.
    """
    options = {"weights": weights, "iou_threshold": iou_threshold, "skip_box_threshold": skip_box_threshold}
    options |= {"conf_type": conf_type, "allows_overflow": allows_overflow}
    return fuse("wbf", boxes_list, scores_list, labels_list, **options)


def nms_fusion(
    boxes_list: Sequence[np.ndarray],
    scores_list: Sequence[np.ndarray],
    labels_list: Sequence[np.ndarray],
    *,
    weights: Sequence[float] | None = None,
    iou_threshold: float = 0.55,
    skip_box_threshold: float = 0.0,
) -> Fused:
    """Keeps of all models' boxes of a class that overlap by more than `iou_threshold` only the one with the best score.

    With weights, scores are multiplied by weight / sum of weights before, as the package ensemble-boxes does; without,
    scores stay as they are. (So weights 1 1 give the same boxes as none, at half the score.) The package, whose boxes
    and scores these are, ends with an error where no box is left, and overwrites the caller's scores. Arguments, result
    and errors are those of `weighted_boxes_fusion`.
    """
    options = {"weights": weights, "iou_threshold": iou_threshold, "skip_box_threshold": skip_box_threshold}
    return fuse("nms", boxes_list, scores_list, labels_list, **options)


def soft_nms_fusion(
    boxes_list: Sequence[np.ndarray],
    scores_list: Sequence[np.ndarray],
    labels_list: Sequence[np.ndarray],
    *,
    kind: str = "gaussian",
    weights: Sequence[float] | None = None,
    iou_threshold: float = 0.55,
    skip_box_threshold: float = 0.0,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
) -> Fused:
    """Lowers the scores of boxes that overlap a better one of their class; see `oid.boxes.suppression.soft_nms`.

    The boxes are the package's. It gives them the scores that they had before; here they have the lowered ones, in
    whose order they are. Weights have the effect that they have in `nms_fusion`.

    Args:
        boxes_list, scores_list, labels_list, weights: as in `nms_fusion`.
        kind: "linear" or "gaussian".
        iou_threshold: only "linear" uses it; an IoU equal to it is not punished.
        skip_box_threshold: as in `nms_fusion`, and not negative.
        sigma: above 0; only "gaussian" uses it. The smaller, the harder.
        score_threshold: boxes whose new score is not above it are left out, also those that overlap no other.

    Returns:
        as `fuse`.

    Raises:
        ValueError: as `fuse`.
    """
    options = {"weights": weights, "iou_threshold": iou_threshold, "skip_box_threshold": skip_box_threshold}
    options |= {"sigma": sigma, "score_threshold": score_threshold}
    return fuse(f"soft_nms_{kind}", boxes_list, scores_list, labels_list, **options)


def non_maximum_weighted(
    boxes_list: Sequence[np.ndarray],
    scores_list: Sequence[np.ndarray],
    labels_list: Sequence[np.ndarray],
    *,
    weights: Sequence[float] | None = None,
    iou_threshold: float = 0.55,
    skip_box_threshold: float = 0.0,
) -> Fused:
    """Moves the best box of a class towards those that overlap it; it keeps its score.

    1. Each score is multiplied by its model's weight / the highest weight; the boxes of a class are taken in descending
       score.
    2. A box joins the group of its class whose first box overlaps it most, if that IoU is > `iou_threshold`, else it is
       the first of a new one.
    3. A group becomes a box, the mean of its boxes weighted by score * IoU with the first; its score is the first's.

    These are the package's numbers before it rounds them, also those of a box that stays alone, to float32, which makes
    different scores equal. A group of boxes of score 0 has the coordinates of its first box, instead of 0 / 0.
    Arguments, result and errors are those of `weighted_boxes_fusion`.
    """
    options = {"weights": weights, "iou_threshold": iou_threshold, "skip_box_threshold": skip_box_threshold}
    return fuse("nmw", boxes_list, scores_list, labels_list, **options)


def clean_boxes(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Puts corners in order and clips to [0, 1], as fusion does with the boxes it is given.

    Returns:
        (N, 4) xyxy, and (N,) bool: the box has an area; those that have none do not take part in fusion.
    """
    boxes = np.clip(boxes, 0.0, 1.0)
    low, high = np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])
    return np.concatenate([low, high], axis=1), np.prod(high - low, axis=1) > 0.0


def count_unusual(boxes: np.ndarray, scores: np.ndarray, skip_box_threshold: float = 0.0) -> tuple[int, int, int]:
    """How many boxes reach out of [0, 1], how many have no area there, and how many have a lower score than that."""
    from oid.boxes import kernels as box_kernels

    boxes, scores = np.ascontiguousarray(boxes, np.float64), np.ascontiguousarray(scores, np.float64)
    return box_kernels.count_unusual(boxes, scores, float(skip_box_threshold))


def _fused(
    method: str,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
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
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`fuse_images` with the boxes of all models in one array, those of a model in an image from a start to a stop,
    (models, images) both."""
    from oid.boxes import kernels as box_kernels

    options = {"conf_type": conf_type, "sigma": sigma, "limit": limit, "threads": threads}
    _check_options(method, iou_threshold, skip_box_threshold, **options)
    factors, divisor = _factors(method, weights, len(starts))
    labels, num_labels, names = _from_zero(labels)
    scaling = factors, divisor, float(skip_box_threshold)
    iou_threshold, sigma, score_threshold = float(iou_threshold), float(sigma), float(score_threshold)

    def part(images: slice) -> tuple[np.ndarray, ...]:
        places = np.ascontiguousarray(starts[:, images]), np.ascontiguousarray(stops[:, images])
        prepared = box_kernels.prepare(boxes, scores, labels, num_labels, *places, *scaling)
        clean, raised, label_of, model_of, image_stops, order, runs = prepared
        arguments = clean, raised, order, runs, iou_threshold
        if method == "wbf":
            confidence = CONF_TYPES.index(conf_type), bool(allows_overflow)
            fused = box_kernels.wbf(*arguments, model_of, factors, *confidence)
        elif method == "nmw":
            fused = box_kernels.nmw(*arguments)
        elif method == "nms":
            fused = box_kernels.nms(*arguments)
        else:
            kind = box_kernels.LINEAR if method == "soft_nms_linear" else box_kernels.GAUSSIAN
            fused = box_kernels.soft_nms(*arguments, kind, sigma, score_threshold)
        return box_kernels.collect(*fused, image_stops, label_of, len(clean) if limit is None else limit)

    num_parts = max(len(boxes) // BOXES_PER_PART + 1, 4 * threads if threads > 1 else 1)
    fused = _shared_out(part, starts.shape[1], num_parts, threads)
    return fused if names is None else (*fused[:2], names[fused[2]], fused[3])


def _check_options(
    method: str,
    iou_threshold: float,
    skip_box_threshold: float,
    *,
    conf_type: str,
    sigma: float,
    limit: int | None,
    threads: int,
) -> None:
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}, there are {', '.join(METHODS)}")
    if conf_type not in CONF_TYPES:
        raise ValueError(f"unknown conf_type {conf_type!r}, there are {', '.join(CONF_TYPES)}")
    if not 0.0 <= iou_threshold <= 1.0:
        raise ValueError(f"the IoU threshold {iou_threshold} is not in [0, 1]")
    if not sigma > 0.0:
        raise ValueError(f"sigma is {sigma}, expected more than 0")
    if method.startswith("soft_nms") and not skip_box_threshold >= 0.0:
        raise ValueError(f"skip_box_threshold is {skip_box_threshold}: soft-NMS takes no negative scores")
    if (limit is not None and limit < 0) or threads < 1:
        raise ValueError(f"limit is {limit} and threads is {threads}: expected at least 0 and 1")


def _factors(method: str, weights: Sequence[float] | None, num_models: int) -> tuple[np.ndarray, float]:
    """(num_models,) what the scores are multiplied by, and the number by which they are then divided."""
    if weights is None:
        return np.ones(num_models), 1.0
    factors = np.asarray(weights, dtype=np.float64)
    if factors.shape != (num_models,):
        raise ValueError(f"{factors.size} weights for {num_models} models")
    if not np.all(np.isfinite(factors)) or np.any(factors < 0.0):
        raise ValueError(f"weights {factors.tolist()}: one is negative or not finite")
    if num_models and not np.any(factors > 0.0):
        raise ValueError("all weights are 0")
    if method == "nmw" and num_models:
        return factors / factors.max(), 1.0
    if method == "wbf":
        return factors, 1.0
    return factors, float(factors.sum())


def _concatenated(
    boxes_list: Sequence[np.ndarray], scores_list: Sequence[np.ndarray], labels_list: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(N, 4) boxes, (N,) scores, (N,) labels: all boxes, model after model; (models + 1,) where each model begins."""
    sizes = [len(boxes) for boxes in boxes_list]
    if sizes != [len(scores) for scores in scores_list] or sizes != [len(labels) for labels in labels_list]:
        raise ValueError("a model's boxes, scores and labels have different lengths")
    bases = np.cumsum([0, *sizes])
    filled = [model for model, size in enumerate(sizes) if size]
    if not filled:
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), bases
    boxes = np.concatenate([boxes_list[model] for model in filled], dtype=np.float64)
    scores = np.concatenate([scores_list[model] for model in filled], dtype=np.float64)
    labels = np.concatenate([labels_list[model] for model in filled]).astype(np.int64, copy=False)
    return boxes, scores, labels, bases


def _from_zero(labels: np.ndarray) -> tuple[np.ndarray, int, np.ndarray | None]:
    """Labels that are small and not negative, how many there can be, and what they are called, None = as they are."""
    if not len(labels):
        return labels, 0, None
    highest = int(labels.view(np.uint64).max())  # a negative one is above all others
    if highest < LARGE_LABEL:
        return labels, highest + 1, None
    names, labels = np.unique(labels, return_inverse=True)
    return labels, len(names), names


def _shared_out(
    part: Callable[[slice], tuple[np.ndarray, ...]], num_images: int, num_parts: int, threads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Calls `part` with slices of the images in several threads, and joins the boxes, scores, labels and offsets."""
    num_parts = min(num_parts, num_images)
    if num_parts < 2:
        return part(slice(None))
    cuts = np.linspace(0, num_images, num_parts + 1).astype(int)
    slices = map(slice, cuts[:-1], cuts[1:])
    if threads == 1:
        found = list(map(part, slices))
    else:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(part, slices))
    *columns, parts = zip(*found, strict=True)
    counts = np.concatenate([np.diff(offsets) for offsets in parts])
    return *map(np.concatenate, columns), np.concatenate([[0], np.cumsum(counts)])


def _checked_offsets(offsets_list: Sequence[np.ndarray], sizes: np.ndarray) -> np.ndarray:
    """(models, images + 1) int64."""
    if len(offsets_list) != len(sizes) or len({len(offsets) for offsets in offsets_list}) > 1:
        raise ValueError("the models have offsets of different numbers of images")
    offsets = np.asarray(offsets_list, dtype=np.int64)
    if not len(sizes):
        return offsets.reshape(0, -1) if offsets.size else np.zeros((0, 1), np.int64)
    if np.any(offsets[:, 0] != 0) or np.any(offsets[:, -1] != sizes) or np.any(np.diff(offsets) < 0):
        raise ValueError("a model's offsets must rise from 0 to the number of its boxes")
    return offsets
