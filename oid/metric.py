"""The detection metric of the Open Images Challenge: AP at IoU 0.5 with verified labels and group-of boxes.

Follows the TensorFlow Object Detection API (`object_detection_evaluation.py`, `per_image_evaluation.py`, `metrics.py`):

1. A detection counts only where its class was verified in its image: by an image-level label, positive or negative, or
   by a box. Elsewhere it is dropped without penalty.
2. Degenerate boxes, scores of -10 and less, and what is beyond 10,000 per image and class are dropped; nothing is
   clipped.
3. In descending order of score each detection looks at the ordinary box that it overlaps most (the first row on equal
   IoU). IoU >= threshold and the box is free: a true positive. There is no second choice.
4. The others look at the group-of box that covers most of them (intersection / area of the detection). Covered by the
   threshold or more: absorbed, removed from the list. Each group-of box that absorbed a score above 0 adds one entry
   with the highest absorbed score, which counts as `group_of_weight` true positives (0: no entry).
5. Number of ground truth = ordinary boxes + `group_of_weight` x group-of boxes. AP = area below the envelope of
   precision over recall, at every point. mAP = plain mean over the classes with ground truth.

The reference leaves the order of equal scores to NumPy's unstable sort, hence to NumPy's version and the processor.
Here it is fixed to what that sort does up to 16 elements: later ones come first. So within an image the later row is
matched first; over all images the list of entries (images in order; in each the detections in the order of matching,
then the group-of entries) is sorted with the later entry first.
"""

from dataclasses import dataclass

import numba
import numpy as np

MAX_DETECTIONS = 10_000  # per image and class
MIN_SCORE = -10.0  # exclusive


@dataclass(frozen=True)
class GroundTruth:
    """What is known about the evaluated images, with the class hierarchy already expanded.

    Images are indices into `image_ids`, classes are indices in [0, num_classes).

    Attributes:
        image_ids: the evaluated images, sorted; also those without a box.
        box_image: `(G,)` int64.
        box_class: `(G,)` int64.
        boxes: `(G, 4)` float64, xyxy.
        box_group_of: `(G,)` bool, one box around several objects.
        label_image: `(V,)` int64, verified image-level labels, positive and negative alike.
        label_class: `(V,)` int64.
    """

    image_ids: tuple[str, ...]
    box_image: np.ndarray
    box_class: np.ndarray
    boxes: np.ndarray
    box_group_of: np.ndarray
    label_image: np.ndarray
    label_class: np.ndarray


@dataclass(frozen=True)
class Detections:
    """Scored boxes on the images of a `GroundTruth`, in any order; the order of the rows decides between equal scores.

    Attributes:
        image: `(N,)` int64, index into `GroundTruth.image_ids`.
        class_index: `(N,)` int64.
        scores: `(N,)` float64; narrower types make ties.
        boxes: `(N, 4)` float64, xyxy.
    """

    image: np.ndarray
    class_index: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class Entries:
    """What precision and recall are computed from: `(E,)` entries, ordered by class, then image.

    In an image the detections come first, in descending order of score, then the group-of boxes that absorbed some.

    Attributes:
        scores: `(E,)` float64.
        labels: `(E,)` float64, what the entry counts as true positives: 0 = false positive, 1, or `group_of_weight`.
        class_index: `(E,)` int64.
        image: `(E,)` int64, index into `GroundTruth.image_ids`.
    """

    scores: np.ndarray
    labels: np.ndarray
    class_index: np.ndarray
    image: np.ndarray


@dataclass(frozen=True)
class Metrics:
    """The result of `evaluate`.

    Attributes:
        mean_average_precision: the mean over the classes with ground truth; nan when there is none.
        average_precision: `(num_classes,)` float64; nan for a class without ground truth.
        num_gt: `(num_classes,)` float64, ordinary boxes + weight x group-of boxes.
        dropped: {rule: number of detections that it dropped}, in the order of the rules.
    """

    mean_average_precision: float
    average_precision: np.ndarray
    num_gt: np.ndarray
    dropped: dict[str, int]


def evaluate(
    truth: GroundTruth,
    detections: Detections,
    *,
    num_classes: int,
    group_of_weight: float = 1.0,
    iou_threshold: float = 0.5,
) -> Metrics:
    """Computes average precision per class and its mean, as the module's docstring says.

    Args:
        truth: the ground truth; boxes are xyxy in any unit, the same as the detections'.
        detections: the scored boxes, also of classes that are not verified in their image.
        num_classes: number of classes; class indices are below it.
        group_of_weight: what a found group-of box counts, from 0 (found or missed, it does not count) to 1.
        iou_threshold: the smallest overlap that is a match, for IoU and for intersection over the detection's area.

    Returns:
        `Metrics`.

    Raises:
        ValueError: arrays that do not fit each other, indices out of range, or a parameter out of range.
    """
    entries, dropped = score(
        truth, detections, num_classes=num_classes, group_of_weight=group_of_weight, iou_threshold=iou_threshold
    )
    group_of, classes = np.asarray(truth.box_group_of, dtype=bool), np.asarray(truth.box_class, dtype=np.int64)
    num_gt = np.bincount(classes[~group_of], minlength=num_classes).astype(np.float64)
    num_gt += group_of_weight * np.bincount(classes[group_of], minlength=num_classes)

    order = np.lexsort((-np.arange(len(entries.scores)), -entries.scores, entries.class_index))
    starts = np.searchsorted(entries.class_index, np.arange(1, num_classes))
    labels = np.split(entries.labels[order], starts)
    average_precision = np.array([average_precision_of(*pair) for pair in zip(labels, num_gt, strict=True)])
    defined = ~np.isnan(average_precision)
    mean = float(average_precision[defined].mean()) if defined.any() else float("nan")
    return Metrics(mean, average_precision, num_gt, dropped)


def score(
    truth: GroundTruth,
    detections: Detections,
    *,
    num_classes: int,
    group_of_weight: float = 1.0,
    iou_threshold: float = 0.5,
) -> tuple[Entries, dict[str, int]]:
    """Matches detections with the ground truth, steps 1 to 4 of the module's docstring.

    Args:
        truth, detections, num_classes, group_of_weight, iou_threshold: as in `evaluate`.

    Returns:
        The list from which precision and recall are computed, and {rule: number of detections that it dropped}.

    Raises:
        ValueError: as `evaluate`.
    """
    if num_classes < 1:
        raise ValueError("there is no class")
    if not 0 <= group_of_weight <= 1:
        raise ValueError(f"group_of_weight is {group_of_weight}, it must be from 0 to 1")
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold is {iou_threshold}, it must be above 0 and at most 1")
    num_images = len(truth.image_ids)
    gt_boxes, gt_group_of = _boxes(truth.boxes), np.ascontiguousarray(truth.box_group_of, dtype=bool)
    boxes, scores = _boxes(detections.boxes), np.ascontiguousarray(detections.scores, dtype=np.float64)
    if len(gt_group_of) != len(gt_boxes) or len(scores) != len(boxes):
        raise ValueError("box_group_of or scores has another length than its boxes")
    gt_keys = _keys(truth.box_image, truth.box_class, num_images, num_classes, len(gt_boxes))
    label_keys = _keys(truth.label_image, truth.label_class, num_images, num_classes, len(truth.label_class))
    keys = _keys(detections.image, detections.class_index, num_images, num_classes, len(boxes))

    kept, dropped = _apply_rules(keys, scores, boxes, np.concatenate([gt_keys, label_keys]))
    kept = kept[np.lexsort((-kept, -scores[kept], keys[kept]))]
    gt_order = np.argsort(gt_keys, kind="stable")
    entry_scores, entry_labels, entry_keys, beyond = _match(
        keys[kept],
        scores[kept],
        boxes[kept],
        gt_keys[gt_order],
        gt_boxes[gt_order],
        gt_group_of[gt_order],
        float(group_of_weight),
        float(iou_threshold),
    )
    dropped["beyond_limit"] = int(beyond)
    class_index, image = np.divmod(entry_keys, max(num_images, 1))
    return Entries(entry_scores, entry_labels, class_index, image), dropped


def precision_recall(labels: np.ndarray, num_gt: float) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall after each entry of a list in descending order of score.

    Args:
        labels: `(N,)` float64, what each entry counts as true positives; 0 is a false positive.
        num_gt: the number of ground truth, above 0.

    Returns:
        precision `(N,)` and recall `(N,)`, float64.
    """
    labels = np.asarray(labels, dtype=np.float64)
    true_positives = np.cumsum(labels)
    false_positives = np.cumsum(labels <= 0)
    return true_positives / (true_positives + false_positives), true_positives / num_gt


def area_below(precision: np.ndarray, recall: np.ndarray) -> float:
    """The area below the envelope of `(N,)` precision over `(N,)` non-decreasing recall: all points, as in VOC 2010."""
    envelope = np.maximum.accumulate(np.asarray(precision)[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def average_precision_of(labels: np.ndarray, num_gt: float) -> float:
    """AP of one class from its `(N,)` labels in descending order of score; nan when `num_gt` is 0."""
    if num_gt == 0:
        return float("nan")
    return area_below(*precision_recall(labels, num_gt))


def _boxes(boxes: np.ndarray) -> np.ndarray:
    """`boxes` as contiguous `(N, 4)` float64."""
    boxes = np.ascontiguousarray(boxes, dtype=np.float64)
    return boxes.reshape(-1, 4) if boxes.size == 0 else boxes


def _keys(image: np.ndarray, class_index: np.ndarray, num_images: int, num_classes: int, length: int) -> np.ndarray:
    """One integer for each pair of class and image, ordered by class, then image: `(length,)` int64."""
    image, class_index = np.asarray(image, dtype=np.int64), np.asarray(class_index, dtype=np.int64)
    if not len(image) == len(class_index) == length:
        raise ValueError(f"{length} boxes, but {len(image)} images and {len(class_index)} classes")
    for name, values, end in (("image", image, num_images), ("class", class_index, num_classes)):
        if length and not 0 <= values.min() <= values.max() < end:
            raise ValueError(f"{name} indices go from {values.min()} to {values.max()}, but there are only {end}")
    return class_index * num_images + image


def _apply_rules(
    keys: np.ndarray, scores: np.ndarray, boxes: np.ndarray, verified_keys: np.ndarray
) -> tuple[np.ndarray, dict[str, int]]:
    """Which detections enter the matching: their positions `(K,)`, ascending, and how many each rule dropped."""
    verified = np.isin(keys, verified_keys)
    regular = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    scored = scores > MIN_SCORE  # false for nan, too
    dropped = {
        "unverified_class": int(np.count_nonzero(~verified)),
        "degenerate_box": int(np.count_nonzero(verified & ~regular)),
        "low_score": int(np.count_nonzero(verified & regular & ~scored)),
    }
    return np.flatnonzero(verified & regular & scored), dropped


@numba.njit(cache=True)
def _match(keys, scores, boxes, gt_keys, gt_boxes, gt_group_of, group_of_weight, iou_threshold):
    """Matches the detections of each image and class; the rules are in the module's docstring.

    Args:
        keys, scores, boxes: `(N,)`, `(N,)`, `(N, 4)`, ordered by key, then descending score.
        gt_keys, gt_boxes, gt_group_of: `(G,)`, `(G, 4)`, `(G,)`, ordered by key, then row.
        group_of_weight, iou_threshold: as in `evaluate`.

    Returns:
        scores `(E,)`, labels `(E,)` and keys `(E,)` of the scored list, in the order of keys (in each the detections
        come first, then the group-of boxes), and the number of detections beyond the limit.
    """
    size = len(keys) + np.count_nonzero(gt_group_of)
    entry_scores, entry_labels = np.empty(size), np.empty(size)
    entry_keys = np.empty(size, dtype=np.int64)
    used = np.zeros(len(gt_keys), dtype=np.bool_)  # ordinary boxes: taken
    absorbed = np.zeros(len(gt_keys))  # group-of boxes: the highest score inside
    entries = beyond = start = gt_start = 0
    while start < len(keys):
        key, end = keys[start], start
        while end < len(keys) and keys[end] == key:
            end += 1
        while gt_start < len(gt_keys) and gt_keys[gt_start] < key:
            gt_start += 1
        gt_end = gt_start
        while gt_end < len(gt_keys) and gt_keys[gt_end] == key:
            gt_end += 1
        limit = min(end, start + MAX_DETECTIONS)
        beyond += end - limit
        for i in range(start, limit):
            label = 0.0
            best, group = _best_boxes(boxes[i], gt_boxes, gt_group_of, gt_start, gt_end, iou_threshold)
            if best >= 0 and not used[best]:
                used[best] = True
                label = 1.0
            elif group >= 0:
                absorbed[group] = max(absorbed[group], scores[i])
                continue
            entry_scores[entries], entry_labels[entries], entry_keys[entries] = scores[i], label, key
            entries += 1
        for j in range(gt_start, gt_end):
            if gt_group_of[j] and absorbed[j] > 0 and group_of_weight > 0:
                entry_scores[entries], entry_labels[entries], entry_keys[entries] = absorbed[j], group_of_weight, key
                entries += 1
        start, gt_start = end, gt_end
    return entry_scores[:entries], entry_labels[:entries], entry_keys[:entries], beyond


@numba.njit(cache=True)
def _best_boxes(box, gt_boxes, gt_group_of, gt_start, gt_end, threshold):
    """Row of the ordinary box of the highest IoU, row of the group-of box of the highest IoA; -1 = below threshold."""
    best, group, best_overlap, group_overlap = -1, -1, 0.0, 0.0
    area = (box[2] - box[0]) * (box[3] - box[1])
    for j in range(gt_start, gt_end):
        gt = gt_boxes[j]
        width = max(0.0, min(box[2], gt[2]) - max(box[0], gt[0]))
        height = max(0.0, min(box[3], gt[3]) - max(box[1], gt[1]))
        intersection = width * height
        if intersection <= 0:
            continue
        if gt_group_of[j]:
            overlap = intersection / area
            if overlap > group_overlap:
                group, group_overlap = j, overlap
        else:
            overlap = intersection / (area + (gt[2] - gt[0]) * (gt[3] - gt[1]) - intersection)
            if overlap > best_overlap:
                best, best_overlap = j, overlap
    return best if best_overlap >= threshold else -1, group if group_overlap >= threshold else -1
