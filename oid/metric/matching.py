"""The loops of the challenge metric, compiled. `oid/metric.py` has the rules; nothing here checks its arguments."""

from typing import NamedTuple

import numba
import numpy as np

MAX_DETECTIONS = 10_000  # per image and class
MIN_SCORE = -10.0  # exclusive


class Targets(NamedTuple):
    """The ground truth of I images, ordered by image, then class, then row; image i is at `first[i]:first[i + 1]`.

    first: `(I + 1,)` int64.
    class_index, boxes, group_of: `(G,)` int64, `(G, 4)` float64 xyxy, `(G,)` bool.
    row: `(G,)` int64, the place of each box in the unordered ground truth.
    label_first, label_class: `(I + 1,)` and `(V,)` int64, the classes of the image-level labels, image after image.
    """

    first: np.ndarray
    class_index: np.ndarray
    boxes: np.ndarray
    group_of: np.ndarray
    row: np.ndarray
    label_first: np.ndarray
    label_class: np.ndarray


@numba.njit(cache=True, nogil=True)
def match_images(
    images, first, order, class_index, scores, boxes, targets, num_classes, group_of_weight, iou_threshold, found
):
    """Matches the detections of some images.

    Args:
        images: `(B,)` int64, distinct.
        first, order: `(B + 1,)` and `(N,)` int64; the rows of images[b] are order[first[b]:first[b + 1]], ascending.
        class_index, scores, boxes: `(N,)` int64, `(N,)` and `(N, 4)` float64.
        targets: `Targets`.
        num_classes, group_of_weight, iou_threshold: as in `oid.metric.challenge.evaluate`.
        found: `(G,)` float64, written: 1 for an ordinary box that is taken, for a group-of box the highest score in it.

    Returns:
        Entries, image after image: the detections in descending score, then the group-of boxes: scores `(E,)`,
        labels `(E,)`, classes `(E,)` int32, images `(E,)` int32, rows `(E,)` int64 (-1 for a group-of box); and `(4,)`
        int64, how many detections each rule dropped.
    """
    size = len(scores)
    for image in images:
        for j in range(targets.first[image], targets.first[image + 1]):
            size += targets.group_of[j]
    entry_scores, entry_labels = np.empty(size), np.empty(size)
    entry_class, entry_image = np.empty(size, dtype=np.int32), np.empty(size, dtype=np.int32)
    entry_row = np.empty(size, dtype=np.int64)
    verified_in = np.full(num_classes, -1, dtype=np.int64)  # the last b in which a class counts
    ranges = np.zeros((num_classes, 3), dtype=np.int64)  # first and last target there, detections so far
    dropped = np.zeros(4, dtype=np.int64)
    entries = 0
    for b in range(len(images)):
        image = images[b]
        _mark_classes(b, image, targets, verified_in, ranges)
        own = order[first[b] : first[b + 1]]
        for row in _ordered_rows(b, own, class_index, scores, boxes, verified_in, dropped):
            label_class = class_index[row]
            ranges[label_class, 2] += 1
            if ranges[label_class, 2] > MAX_DETECTIONS:
                dropped[3] += 1
                continue
            start, end = ranges[label_class, 0], ranges[label_class, 1]
            label = 0.0
            if start < end:
                best, group = _best_boxes(boxes[row], targets.boxes, targets.group_of, start, end, iou_threshold)
                if best >= 0 and found[best] == 0:
                    found[best] = label = 1.0
                elif group >= 0:
                    found[group] = max(found[group], scores[row])
                    continue
            entry_scores[entries], entry_labels[entries], entry_row[entries] = scores[row], label, row
            entry_class[entries], entry_image[entries] = label_class, image
            entries += 1
        for j in range(targets.first[image], targets.first[image + 1]):
            if targets.group_of[j] and found[j] > 0 and group_of_weight > 0:
                entry_scores[entries], entry_labels[entries], entry_row[entries] = found[j], group_of_weight, -1
                entry_class[entries], entry_image[entries] = targets.class_index[j], image
                entries += 1
    columns = entry_scores[:entries], entry_labels[:entries], entry_class[:entries], entry_image[:entries]
    return columns, entry_row[:entries], dropped


@numba.njit(cache=True, nogil=True)
def _mark_classes(b, image, targets, verified_in, ranges):
    """Notes which classes count in an image, and where their targets are."""
    for v in range(targets.label_first[image], targets.label_first[image + 1]):
        verified_in[targets.label_class[v]] = b
        ranges[targets.label_class[v]] = 0
    for j in range(targets.first[image], targets.first[image + 1]):
        own = targets.class_index[j]
        if verified_in[own] != b:
            verified_in[own] = b
            ranges[own] = 0
        if ranges[own, 1] == 0:
            ranges[own, 0] = j
        ranges[own, 1] = j + 1


@numba.njit(cache=True, nogil=True)
def _ordered_rows(b, own, class_index, scores, boxes, verified_in, dropped):
    """Those rows of one image that no rule drops, in descending score, the later row first; counts the dropped ones."""
    rows = np.empty(len(own), dtype=np.int64)
    kept = 0
    for row in own[::-1]:
        if verified_in[class_index[row]] != b:
            dropped[0] += 1
        elif not (boxes[row, 0] < boxes[row, 2] and boxes[row, 1] < boxes[row, 3]):
            dropped[1] += 1
        elif not scores[row] > MIN_SCORE:  # so nan is dropped, too
            dropped[2] += 1
        else:
            rows[kept] = row
            kept += 1
    rows = rows[:kept]
    return rows[np.argsort(-scores[rows], kind="mergesort")]


@numba.njit(cache=True, nogil=True)
def _best_boxes(box, gt_boxes, gt_group_of, gt_start, gt_end, threshold):
    """Row of the ordinary box of the highest IoU, row of the group-of box of the highest IoA; -1 = below threshold."""
    best, group, best_overlap, group_overlap = -1, -1, 0.0, 0.0
    for j in range(gt_start, gt_end):
        overlap = overlap_with(box, gt_boxes[j], gt_group_of[j])
        if gt_group_of[j]:
            if overlap > group_overlap:
                group, group_overlap = j, overlap
        elif overlap > best_overlap:
            best, best_overlap = j, overlap
    return best if best_overlap >= threshold else -1, group if group_overlap >= threshold else -1


@numba.njit(cache=True, nogil=True)
def overlap_with(box, gt, group_of):
    """IoU of a detection `(4,)` with an ordinary box `(4,)`, or intersection / area of the detection."""
    width = min(box[2], gt[2]) - max(box[0], gt[0])
    if width <= 0:
        return 0.0
    height = min(box[3], gt[3]) - max(box[1], gt[1])
    intersection = width * height
    if height <= 0 or intersection <= 0:
        return 0.0
    area = (box[2] - box[0]) * (box[3] - box[1])
    if group_of:
        return intersection / area
    return intersection / (area + (gt[2] - gt[0]) * (gt[3] - gt[1]) - intersection)


@numba.njit(cache=True, nogil=True)
def areas_below(labels, first, num_gt):
    """The area below the envelope of precision over recall, for every class.

    Args:
        labels: `(E,)`, what each entry counts, ordered by class, then descending score.
        first: `(C + 1,)`, where each class begins.
        num_gt: `(C,)`.

    Returns:
        `(C,)` float64, nan where `num_gt` is 0.
    """
    areas = np.full(len(num_gt), np.nan)
    longest = 0
    for c in range(len(num_gt)):
        longest = max(longest, first[c + 1] - first[c])
    precision = np.empty(longest)
    for c in range(len(num_gt)):
        if num_gt[c] == 0:
            continue
        hits, misses = 0.0, 0
        for i in range(first[c], first[c + 1]):
            hits += labels[i]
            misses += labels[i] <= 0
            precision[i - first[c]] = hits / (hits + misses)
        area = envelope = 0.0
        for i in range(first[c + 1] - 1, first[c] - 1, -1):
            envelope = max(envelope, precision[i - first[c]])
            area += labels[i] * envelope
        areas[c] = area / num_gt[c]
    return areas
