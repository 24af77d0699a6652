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
    """The ground truth of I images, ordered by image, class and row. Image i is at `first[i]:first[i + 1]`."""

    first: np.ndarray  # (I + 1,) int64
    class_index: np.ndarray  # (G,) int64
    boxes: np.ndarray  # (G, 4) float64, xyxy
    group_of: np.ndarray  # (G,) bool
    row: np.ndarray  # (G,) int64, the row of each box in the unordered ground truth
    label_first: np.ndarray  # (I + 1,) int64, where the image-level labels of each image begin
    label_class: np.ndarray  # (V,) int64


class Block(NamedTuple):
    """The detections of B images, image after image. Image `images[b]` is at `first[b]:first[b + 1]`."""

    images: np.ndarray  # (B,) int64
    first: np.ndarray  # (B + 1,) int64
    class_index: np.ndarray  # (N,) int64
    scores: np.ndarray  # (N,) float64
    boxes: np.ndarray  # (N, 4) float64, xyxy


class Entries(NamedTuple):
    """The scored list behind precision and recall: detections, and group-of boxes that absorbed detections."""

    scores: np.ndarray  # (E,) float64
    labels: np.ndarray  # (E,) float64, 1 = true positive, `group_of_weight` = group-of box, 0 = false positive
    class_index: np.ndarray  # (E,) int32
    image: np.ndarray  # (E,) int32


# === Matching =========================================================================================================
@numba.njit(cache=True, nogil=True)
def match_images(block, targets, num_classes, group_of_weight, iou_threshold, found):
    """Matches the detections of a block. Entries are in the order of the images, each with its detections first.

    Writes `found` `(G,)` float64: 1 for a taken ordinary box, the highest absorbed score for a group-of box.

    Returns:
        `Entries`; their rows in the block, `(E,)` int64, -1 for a group-of box; the number of entries (both arrays are
        longer); and `(4,)` int64, the detections that each rule dropped.
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
    """The kept rows of image b in descending score, the later row first; counts the others in `dropped`."""
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
    """The box of class `own` with the highest IoU, and the group-of box with the highest IoA; -1 below the limit."""
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
def areas_below(labels, counts, first):
    """`(C,)`, the area below the envelope of precision over the true positives of each class.

    Args:
        labels: `(E,)` of the entries, ordered by class, then descending score.
        counts: `(E,)` float32, how often each entry counts.
        first: `(C + 1,)`; class c is at `first[c]:first[c + 1]`.
    """
    areas, precision = np.zeros(len(first) - 1), np.empty(np.diff(first).max())
    for c in range(len(areas)):
        hits = misses = envelope = 0.0
        for i in range(first[c], first[c + 1]):
            hits += counts[i] * labels[i]
            misses += counts[i] * (labels[i] <= 0)
            precision[i - first[c]] = hits / max(hits + misses, 1e-300)  # 0 until an entry counts
        for i in range(first[c + 1] - 1, first[c] - 1, -1):
            envelope = max(envelope, precision[i - first[c]])
            areas[c] += counts[i] * labels[i] * envelope
    return areas


# === Kinds of error ===================================================================================================
@numba.njit(cache=True, nogil=True)
def classify_errors(entries, rows, block, targets, low, high):
    """The kind of each false positive, `(E,)` uint8 with `NO_ERROR` for others, and its target, `(E,)` int32 or -1.

    `low` and `high` are the thresholds t_b and t_f of `errors.py`.
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
    """Whether class `own` also has the box of target `j` among the targets `first` to `last`."""
    for k in range(first, last):
        is_own = targets.class_index[k] == own and targets.group_of[k] == targets.group_of[j]
        if is_own and (targets.boxes[k] == targets.boxes[j]).all():
            return True
    return False
