"""The compiled loops of the challenge metric. `challenge.py` and `errors.py` have the rules.

Nothing here checks its arguments. Loops that call each other stay in this file: numba's cache notices only changes in
the file of the loop itself.
"""

from typing import NamedTuple

import numba
import numpy as np

MAX_DETECTIONS = 10_000  # per image and class
MIN_SCORE = -10.0  # exclusive
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(6)  # kinds of error
NO_ERROR = 255


class Targets(NamedTuple):
    """The ground truth of I images, ordered by image, class and row. Image i is at `first[i]:first[i + 1]`.

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


class Block(NamedTuple):
    """Detections of some images, image after image. Image `images[b]` is at `first[b]:first[b + 1]`.

    images, first: `(B,)` and `(B + 1,)` int64.
    class_index, scores, boxes: `(N,)` int64, `(N,)` float64, `(N, 4)` float64 xyxy.
    """

    images: np.ndarray
    first: np.ndarray
    class_index: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray


class Entries(NamedTuple):
    """What precision and recall are computed from: detections, and the group-of boxes that absorbed some.

    scores: `(E,)` float64.
    labels: `(E,)` float64, what the entry counts as true positives: 0 = false positive, 1, or `group_of_weight`.
    class_index, image: `(E,)` int32.
    """

    scores: np.ndarray
    labels: np.ndarray
    class_index: np.ndarray
    image: np.ndarray


# === Matching =========================================================================================================


@numba.njit(cache=True, nogil=True)
def match_images(block, targets, num_classes, group_of_weight, iou_threshold, found):
    """Matches the detections of a block. Entries are in the order of the images, each with its detections first.

    Args:
        block, targets: detections and ground truth.
        num_classes, group_of_weight, iou_threshold: as in `oid.metric.challenge.evaluate`.
        found: `(G,)` float64, written: 1 for a taken ordinary box, the highest absorbed score for a group-of box.

    Returns:
        `Entries` with spare room; `(E,)` int64, the row of each in the block, -1 for a group-of box, with spare room;
        the number of entries; and `(4,)` int64, the detections that each rule dropped.
    """
    size = len(block.scores) + len(targets.boxes)  # an entry for each detection and group-of box at most
    entries = Entries(np.empty(size), np.empty(size), np.empty(size, np.int32), np.empty(size, np.int32))
    rows = np.empty(size, dtype=np.int64)
    is_verified, seen = np.empty(num_classes, dtype=np.bool_), np.empty(num_classes, dtype=np.int64)
    dropped = np.zeros(4, dtype=np.int64)
    n = 0
    for b, image in enumerate(block.images):
        start, end = targets.first[image], targets.first[image + 1]
        is_verified[:], seen[:] = False, 0
        is_verified[targets.label_class[targets.label_first[image] : targets.label_first[image + 1]]] = True
        is_verified[targets.class_index[start:end]] = True
        for row in _ordered_rows(b, block, is_verified, dropped):
            own, score, label = block.class_index[row], block.scores[row], 0.0
            seen[own] += 1
            if seen[own] > MAX_DETECTIONS:
                dropped[3] += 1
                continue
            best, group = _best_boxes(block.boxes[row], own, targets, start, end, iou_threshold)
            if best >= 0 and found[best] == 0:
                found[best] = label = 1.0
            elif group >= 0:
                found[group] = max(found[group], score)
                continue
            _write(entries, n, score, label, own, image)
            rows[n] = row
            n += 1
        for j in range(start, end):
            if targets.group_of[j] and found[j] > 0 and group_of_weight > 0:
                _write(entries, n, found[j], group_of_weight, targets.class_index[j], image)
                rows[n] = -1
                n += 1
    return entries, rows, n, dropped


@numba.njit(cache=True, nogil=True)
def _write(entries, n, score, label, class_index, image):
    """Writes entry n."""
    entries.scores[n], entries.labels[n] = score, label
    entries.class_index[n], entries.image[n] = class_index, image


@numba.njit(cache=True, nogil=True)
def _ordered_rows(b, block, is_verified, dropped):
    """The rows of one image that no rule drops, in descending score, the later row first; counts the dropped ones."""
    rows = np.empty(block.first[b + 1] - block.first[b], dtype=np.int64)
    kept = 0
    for row in range(block.first[b + 1] - 1, block.first[b] - 1, -1):
        box = block.boxes[row]
        if not is_verified[block.class_index[row]]:
            dropped[0] += 1
        elif not (box[0] < box[2] and box[1] < box[3]):
            dropped[1] += 1
        elif not block.scores[row] > MIN_SCORE:  # so nan is dropped, too
            dropped[2] += 1
        else:
            rows[kept] = row
            kept += 1
    rows = rows[:kept]
    return rows[np.argsort(-block.scores[rows], kind="mergesort")]


@numba.njit(cache=True, nogil=True)
def _best_boxes(box, own, targets, start, end, threshold):
    """The box of class `own` of the highest IoU, and the group-of box of the highest IoA; -1 = below the threshold."""
    best, group, best_overlap, group_overlap = -1, -1, 0.0, 0.0
    for j in range(start + np.searchsorted(targets.class_index[start:end], own), end):
        if targets.class_index[j] != own:
            break
        overlap = _overlap(box, targets.boxes[j], targets.group_of[j])
        if targets.group_of[j]:
            if overlap > group_overlap:
                group, group_overlap = j, overlap
        elif overlap > best_overlap:
            best, best_overlap = j, overlap
    return best if best_overlap >= threshold else -1, group if group_overlap >= threshold else -1


@numba.njit(cache=True, nogil=True)
def _overlap(box, target, group_of):
    """IoU of a detection `(4,)` and an ordinary box `(4,)`; for a group-of box intersection / area of the detection."""
    width = min(box[2], target[2]) - max(box[0], target[0])
    height = min(box[3], target[3]) - max(box[1], target[1])
    intersection = width * height
    if width <= 0 or height <= 0 or intersection <= 0:
        return 0.0
    area = (box[2] - box[0]) * (box[3] - box[1])
    if group_of:
        return intersection / area
    return intersection / (area + (target[2] - target[0]) * (target[3] - target[1]) - intersection)


# === Average precision ================================================================================================


@numba.njit(cache=True, nogil=True)
def areas_below(labels, first, num_gt):
    """The area below the envelope of precision over recall, for every class.

    Args:
        labels: `(E,)` float64, what each entry counts, ordered by class, then descending score.
        first: `(C + 1,)`, where each class begins.
        num_gt: `(C,)` float64.

    Returns:
        `(C,)` float64, nan where `num_gt` is 0.
    """
    areas = np.full(len(num_gt), np.nan)
    precision = np.empty(np.diff(first).max())
    for c in range(len(num_gt)):
        if num_gt[c] == 0:
            continue
        own = labels[first[c] : first[c + 1]]
        hits, misses = 0.0, 0
        for i in range(len(own)):
            hits += own[i]
            misses += own[i] <= 0
            precision[i] = hits / (hits + misses)
        area = envelope = 0.0
        for i in range(len(own) - 1, -1, -1):
            envelope = max(envelope, precision[i])
            area += own[i] * envelope
        areas[c] = area / num_gt[c]
    return areas


# === Kinds of error ===================================================================================================


@numba.njit(cache=True, nogil=True)
def classify_errors(entries, rows, block, targets, low, high):
    """The kind of each false positive; `low` and `high` are the thresholds t_b and t_f of `errors.py`.

    Returns:
        `(E,)` uint8, the kind, or `NO_ERROR`, and `(E,)` int32, the target that the entry aims at, or -1.
    """
    kinds = np.full(len(rows), NO_ERROR, dtype=np.uint8)
    aims = np.full(len(rows), -1, dtype=np.int32)
    for e, row in enumerate(rows):
        if row >= 0 and entries.labels[e] == 0:
            own, image = entries.class_index[e], entries.image[e]
            kinds[e], aims[e] = _kind(block.boxes[row], own, image, targets, low, high)
    return kinds, aims


@numba.njit(cache=True, nogil=True)
def _kind(box, own, image, targets, low, high):
    """The kind of one false positive of class `own`, and its target, or -1."""
    first, last = targets.first[image], targets.first[image + 1]
    best, most = np.full((2, 2), -1), np.zeros((2, 2))  # [of another class or of its own, ordinary or group-of]
    for j in range(first, last):
        is_own, group = int(targets.class_index[j] == own), int(targets.group_of[j])
        overlap, rival = _overlap(box, targets.boxes[j], group), best[is_own, group]
        is_better = overlap > most[is_own, group]
        if overlap == most[is_own, group] and rival >= 0:
            is_better = targets.row[j] < targets.row[rival]
        if is_better and (is_own or not _has_copy(targets, j, own, first, last)):
            best[is_own, group], most[is_own, group] = j, overlap
    for group in range(2):
        if low <= most[1, group] < high:
            return LOCALISATION, best[1, group]
        if most[1, group] >= high:
            break
    for group in range(2):
        if most[0, group] >= high:
            return CLASSIFICATION, best[0, group]
    if most[1, 0] >= high:
        return DUPLICATE, -1
    return BOTH if most.max() >= low else BACKGROUND, -1


@numba.njit(cache=True, nogil=True)
def _has_copy(targets, j, own, first, last):
    """Whether class `own` has the box of target `j`, too, among the targets from `first` to `last`."""
    for k in range(first, last):
        is_own = targets.class_index[k] == own and targets.group_of[k] == targets.group_of[j]
        if is_own and (targets.boxes[k] == targets.boxes[j]).all():
            return True
    return False
