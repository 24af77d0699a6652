"""Compiled loops over boxes: IoU, non-maximum suppression, fusion.

They are in one file because numba notices a change of the file that a cached function is in, but not of a file whose
functions it calls. All boxes are (N, 4) float64, xyxy, contiguous; indices and labels are int64.
"""

import numba
import numpy as np

AVG, MAX, BOX_AND_MODEL_AVG, ABSENT_MODEL_AWARE_AVG = range(4)  # positions in oid.fusion.fuse.CONF_TYPES
LINEAR, GAUSSIAN, HARD = range(3)  # positions in oid.boxes.suppression.SOFT_NMS_METHODS
NEARLY_1 = 1.0 - 1e-12


@numba.njit(cache=True, nogil=True)
def iou(a, b):
    """IoU of two boxes, each an array of 4; 0 where one has no area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0.0 or height <= 0.0:
        return 0.0
    intersection = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union if union > 0.0 else 0.0


@numba.njit(cache=True, nogil=True)
def iou_matrix(boxes_a, boxes_b):
    ious = np.empty((len(boxes_a), len(boxes_b)))
    for i in range(len(boxes_a)):
        for j in range(len(boxes_b)):
            ious[i, j] = iou(boxes_a[i], boxes_b[j])
    return ious


# === Non-maximum suppression ==========================================================================================


@numba.njit(cache=True, nogil=True)
def classwise_nms(boxes, order, class_of, num_classes, iou_threshold, limit):
    """Walks down the scores; a box stays unless one that stays, of its class, overlaps it too much.

    The boxes that stay are chained per class: `last[c]` is the newest of class c, `previous[i]` the one before i.
    """
    last = np.full(num_classes, -1, np.int64)
    previous = np.empty(len(boxes), np.int64)
    kept = np.empty(min(limit, len(order)), np.int64)
    count = 0
    for i in order:
        if count == len(kept):
            break
        c = class_of[i]
        j = last[c]
        while j >= 0 and iou(boxes[i], boxes[j]) <= iou_threshold:
            j = previous[j]
        if j < 0:
            previous[i], last[c] = last[c], i
            kept[count] = i
            count += 1
    return kept[:count]


@numba.njit(cache=True, nogil=True)
def classwise_soft_nms(boxes, scores, by_class, starts, method, iou_threshold, sigma, score_threshold, limit):
    """Lowers `scores` in place, class by class (class c is `by_class[starts[c]:starts[c + 1]]`), and returns the
    indices of the boxes that stay, at most `limit` of each class."""
    kept = np.empty(len(by_class), np.int64)
    count = 0
    for c in range(len(starts) - 1):
        rest = by_class[starts[c] : starts[c + 1]].copy()
        left = len(rest)
        last = count + min(limit, left)
        while left > 0 and count < last:
            chosen = _take_best(rest, left, scores)
            left -= 1
            kept[count] = chosen
            count += 1
            k = 0
            while k < left:
                i = rest[k]
                overlap = iou(boxes[chosen], boxes[i])
                k += 1
                if overlap <= 0.0:
                    continue
                if method == GAUSSIAN:
                    scores[i] *= np.exp(-overlap * overlap / sigma)
                elif method == LINEAR and overlap > iou_threshold:
                    scores[i] *= 1.0 - overlap
                if scores[i] < score_threshold or (method == HARD and overlap > iou_threshold):
                    k -= 1
                    left -= 1
                    rest[k] = rest[left]
    return kept[:count]


@numba.njit(cache=True, nogil=True)
def _take_best(rest, left, scores):
    """Takes the index with the highest score out of `rest[:left]`: the last one moves to its place."""
    best = 0
    for k in range(1, left):
        i, j = rest[k], rest[best]
        if scores[i] > scores[j] or (scores[i] == scores[j] and i < j):
            best = k
    chosen = rest[best]
    rest[best] = rest[left - 1]
    return chosen


# === Fusion: `prepare`, then `wbf`, `nmw`, `nms` or `soft_nms`, then `collect` ========================================
#
# A run is the boxes of one class in one image. The functions in between see runs, whatever images they are of. They are
# compiled apart, because one is used of four.


@numba.njit(cache=True, nogil=True)
def prepare(boxes, scores, labels, num_labels, starts, stops, weights, divisor, skip_box_threshold):
    """Takes the boxes that take part and sorts them into runs.

    Args:
        boxes, scores, labels: (N, 4), (N,), (N,) of all models and images; labels from 0 to `num_labels` - 1.
        starts, stops: (models, images): the boxes of a model in an image are `boxes[start:stop]`.
        weights, divisor: scores are multiplied by the model's weight, then divided by `divisor`.
        skip_box_threshold: boxes with a lower score, before that, are left out.

    Returns:
        clean: (K, 4) boxes with their corners in order and clipped, image after image, model after model.
        raised: (K,) scores.
        label_of, model_of: (K,).
        image_stops: (images,) where the boxes of an image end.
        order: (K,) the indices of the boxes, run after run; in a run in descending score, equal ones ascending.
        runs: (runs + 1,) where each run begins in `order`, and where the last one ends.
    """
    total = 0
    for model in range(len(starts)):
        for image in range(starts.shape[1]):
            total += stops[model, image] - starts[model, image]
    clean, raised = np.empty((total, 4)), np.empty(total)
    label_of, model_of = np.empty(total, np.int64), np.empty(total, np.int64)
    order, runs = np.empty(total, np.int64), np.zeros(total + 1, np.int64)
    image_stops, number_of = np.empty(starts.shape[1], np.int64), np.full(num_labels, -1, np.int64)
    n = num_runs = 0
    for image in range(starts.shape[1]):
        first = n
        for model in range(len(starts)):
            for i in range(starts[model, image], stops[model, image]):
                if not np.isfinite(scores[i] + (boxes[i, 0] + boxes[i, 1] + boxes[i, 2] + boxes[i, 3])):
                    _check_finite(boxes[i], scores[i])
                if scores[i] >= skip_box_threshold and _clean(boxes[i], clean[n]):
                    raised[n] = scores[i] * weights[model] / divisor
                    label_of[n], model_of[n] = labels[i], model
                    n += 1
        image_stops[image] = n
        ranking = np.arange(first, n)
        _sort_by_score(ranking, raised)
        num_runs += _by_class(ranking, label_of, number_of, order[first:n], runs[num_runs:], first)
    runs[num_runs] = n
    return clean[:n], raised[:n], label_of[:n], model_of[:n], image_stops, order[:n], runs[: num_runs + 1]


@numba.njit(cache=True, nogil=True)
def _check_finite(box, score):
    """For a sum that is not finite, which may be an overflow of numbers that are."""
    if not (np.isfinite(score) and np.isfinite(box).all()):
        raise ValueError("a score or a coordinate is not finite")


@numba.njit(cache=True, nogil=True)
def _clean(box, clean):
    """Writes the box with its corners in order and clipped to `clean`, and says whether it has an area."""
    clean[0], clean[2] = min(max(min(box[0], box[2]), 0.0), 1.0), min(max(max(box[0], box[2]), 0.0), 1.0)
    clean[1], clean[3] = min(max(min(box[1], box[3]), 0.0), 1.0), min(max(max(box[1], box[3]), 0.0), 1.0)
    return (clean[2] - clean[0]) * (clean[3] - clean[1]) > 0.0


@numba.njit(cache=True, nogil=True)
def count_unusual(boxes, scores, skip_box_threshold):
    """How many boxes reach out of [0, 1], have no area there, have a score below the threshold."""
    clean = np.empty(4)
    outside = without_area = below = 0
    for i in range(len(boxes)):
        reaches_out = False
        for k in range(4):
            reaches_out |= boxes[i, k] < 0.0 or boxes[i, k] > 1.0
        outside += reaches_out
        without_area += not _clean(boxes[i], clean)
        below += scores[i] < skip_box_threshold
    return outside, without_area, below


@numba.njit(cache=True, nogil=True)
def _sort_by_score(order, scores):
    """Sorts the indices in `order`, in place, by descending score; equal ones stay in their order.

    Runs of 4 by insertion, which are then merged. The merging loop has no branch that depends on the scores: half of
    these would be predicted wrongly, which costs more than all the rest.
    """
    n = len(order)
    source, target = order, np.empty(n, np.int64)
    keys, merged = scores[order], np.empty(n)
    for start in range(0, n, 4):
        for stop in range(start + 1, min(start + 4, n)):
            i, key, k = order[stop], keys[stop], stop
            while k > start and key > keys[k - 1]:
                order[k], keys[k] = order[k - 1], keys[k - 1]
                k -= 1
            order[k], keys[k] = i, key
    width = 4
    while width < n:
        for start in range(0, n, 2 * width):
            middle, stop = min(start + width, n), min(start + 2 * width, n)
            a, b, k = start, middle, start
            while a < middle and b < stop:
                second = keys[b] > keys[a]
                target[k] = source[b] if second else source[a]
                merged[k] = keys[b] if second else keys[a]
                a, b, k = a + 1 - second, b + second, k + 1
            for rest in range(a, middle):
                target[k], merged[k] = source[rest], keys[rest]
                k += 1
            for rest in range(b, stop):  # then k is b already, or the first half came to its end
                target[k], merged[k] = source[rest], keys[rest]
                k += 1
        source, target, keys, merged = target, source, merged, keys
        width *= 2
    for k in range(n):
        order[k] = source[k]


@numba.njit(cache=True, nogil=True)
def _by_class(ranking, label_of, number_of, order, runs, first):
    """Sorts the indices of an image by class; those of a class stay in their order.

    `order` (n,) is filled with the indices, `runs` with `first` + where each class begins in them; `number_of`
    (labels,) is all -1, and again so afterwards. Returns the number of classes.
    """
    sizes = np.zeros(len(ranking), np.int64)
    count = 0
    for i in ranking:
        c = number_of[label_of[i]]
        if c < 0:
            c = count
            number_of[label_of[i]] = c
            count += 1
        sizes[c] += 1
    position = 0
    for c in range(count):
        runs[c] = first + position
        position += sizes[c]
        sizes[c] = position - sizes[c]  # from here on where the next one goes
    for i in ranking:
        c = number_of[label_of[i]]
        order[sizes[c]] = i
        sizes[c] += 1
    for i in ranking:
        number_of[label_of[i]] = -1
    return count


@numba.njit(cache=True, nogil=True)
def collect(fused, fused_scores, first, image_stops, label_of, limit):
    """Puts the fused boxes of each image in descending score; equal ones in the order of the box that founded them.

    Args:
        fused, fused_scores: (K, 4), (K,), in any order.
        first: (K,) the index of the box that founded each.
        image_stops, label_of: as of `prepare`.
        limit: boxes per image, at most.

    Returns:
        (M, 4) boxes, (M,) scores, (M,) labels, and (images + 1,) offsets of the images in them.
    """
    num_images, count = len(image_stops), len(first)
    boxes, scores, labels = np.empty((count, 4)), np.empty(count), np.empty(count, np.int64)
    offsets = np.zeros(num_images + 1, np.int64)
    entry_of = np.full(len(label_of), -1, np.int64)
    for entry in range(count):
        entry_of[first[entry]] = entry
    start = position = 0
    for image in range(num_images):
        ranking = np.empty(image_stops[image] - start, np.int64)
        n = 0
        for i in range(start, image_stops[image]):
            if entry_of[i] >= 0:
                ranking[n] = entry_of[i]
                n += 1
        start = image_stops[image]
        ranking = ranking[:n]
        _sort_by_score(ranking, fused_scores)
        for k in range(min(n, limit)):
            entry = ranking[k]
            for side in range(4):
                boxes[position, side] = fused[entry, side]
            scores[position], labels[position] = fused_scores[entry], label_of[first[entry]]
            position += 1
        offsets[image + 1] = position
    return boxes[:position], scores[:position], labels[:position], offsets


@numba.njit(cache=True, nogil=True)
def nms(boxes, scores, order, runs, iou_threshold):
    """Non-maximum suppression of every run; the result is that of `wbf`."""
    class_of = np.empty(len(order), np.int64)
    for run in range(len(runs) - 1):
        for k in range(runs[run], runs[run + 1]):
            class_of[order[k]] = run
    kept = classwise_nms(boxes, order, class_of, len(runs) - 1, iou_threshold, len(order))
    return boxes[kept], scores[kept], kept


@numba.njit(cache=True, nogil=True)
def soft_nms(boxes, scores, order, runs, iou_threshold, kind, sigma, score_threshold):
    """Soft non-maximum suppression of every run, which lowers `scores` in place; the result is that of `wbf`."""
    kept = classwise_soft_nms(boxes, scores, order, runs, kind, iou_threshold, sigma, score_threshold, len(order))
    kept = kept[scores[kept] > score_threshold]
    return boxes[kept], scores[kept], kept


@numba.njit(cache=True, nogil=True)
def _best_match(box, area, fused, areas, first, stop, iou_threshold):
    """The fused box from `first` to `stop` with the highest IoU above the threshold (the oldest of equal), or -1."""
    best, best_iou = -1, iou_threshold
    lowest = best_iou * NEARLY_1  # below this share of the union, no division is needed to know
    for c in range(first, stop):
        width = max(min(fused[c, 2], box[2]) - max(fused[c, 0], box[0]), 0.0)
        height = max(min(fused[c, 3], box[3]) - max(fused[c, 1], box[1]), 0.0)
        intersection = width * height
        union = areas[c] + area - intersection
        if intersection > lowest * union and intersection / union > best_iou:
            best, best_iou = c, intersection / union
            lowest = best_iou * NEARLY_1
    return best


@numba.njit(cache=True, nogil=True)
def _area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


@numba.njit(cache=True, nogil=True)
def wbf(boxes, scores, order, runs, iou_threshold, model_of, weights, conf_type, allows_overflow):
    """Weighted boxes fusion of every run: (K, 4), (K,), and (K,) the index of the box that founded each fused one.

    The float32 sums are part of the definition: each step rounds, as in the package.
    """
    n = len(order)
    fused, areas, founder = np.empty((n, 4)), np.empty(n), np.empty(n, np.int64)
    members, weight_sums = np.zeros(n, np.int64), np.zeros(n)
    confidences, sums = np.zeros(n), np.zeros((n, 4), np.float32)
    has_model = np.zeros((n, len(weights)), np.bool_)
    count = 0
    for run in range(len(runs) - 1):
        first_of_class = count
        for i in order[runs[run] : runs[run + 1]]:
            area = _area(boxes[i])
            c = _best_match(boxes[i], area, fused, areas, first_of_class, count, iou_threshold)
            if c < 0:
                c = count
                count += 1
                founder[c], areas[c] = i, area
                fused[c] = boxes[i]
            members[c] += 1
            confidences[c] += scores[i]
            weight_sums[c] += weights[model_of[i]]
            has_model[c, model_of[i]] = True
            for k in range(4):
                sums[c, k] = np.float32(np.float64(sums[c, k]) + scores[i] * boxes[i, k])
            if members[c] > 1 and confidences[c] != 0.0:
                for k in range(4):
                    fused[c, k] = np.float64(np.float32(np.float64(sums[c, k]) / confidences[c]))
                areas[c] = _area(fused[c])
    fused_scores = np.empty(count)
    total, highest = pairwise_sum(weights), 0.0
    for weight in weights:
        highest = max(highest, weight)
    for c in range(count):
        score, weight = scores[founder[c]], weight_sums[c]
        if members[c] > 1:
            mean = score if conf_type == MAX else confidences[c] / members[c]
            score, weight = np.float64(np.float32(mean)), np.float64(np.float32(weight))
        if conf_type == AVG:
            votes = members[c] if allows_overflow else min(len(weights), members[c])
            fused_scores[c] = score * votes / total
        elif conf_type == MAX:
            fused_scores[c] = score / highest
        elif conf_type == BOX_AND_MODEL_AVG:
            score = score * members[c] / weight if weight > 0.0 else 0.0
            fused_scores[c] = score * _sum_where(weights, has_model[c], True) / total
        else:
            weight += _sum_where(weights, has_model[c], False)
            fused_scores[c] = score * members[c] / weight if weight > 0.0 else 0.0
    return fused[:count], fused_scores, founder[:count]


@numba.njit(cache=True, nogil=True)
def _sum_where(weights, flags, wanted):
    """The sum of the weights whose flag is the one wanted."""
    chosen, n = np.empty(len(weights)), 0
    for model in range(len(weights)):
        if flags[model] == wanted:
            chosen[n] = weights[model]
            n += 1
    return pairwise_sum(chosen[:n])


@numba.njit(cache=True, nogil=True)
def pairwise_sum(numbers):
    """The sum of (N,) float64 in the order in which NumPy adds up to 128 numbers: eight sums side by side."""
    n = len(numbers)
    done = n - n % 8
    total = 0.0
    if done:
        r = numbers[:8].copy()
        for i in range(8, done):
            r[i % 8] += numbers[i]
        total = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]))
    for i in range(done, n):
        total += numbers[i]
    return total


@numba.njit(cache=True, nogil=True)
def nmw(boxes, scores, order, runs, iou_threshold):
    """Non-maximum weighted of every run: as `wbf`; the founder's box is what later ones are compared with."""
    n = len(order)
    founders, areas, founder = np.empty((n, 4)), np.empty(n), np.empty(n, np.int64)
    members, confidences, sums = np.zeros(n, np.int64), np.zeros(n), np.zeros((n, 4))
    count = 0
    for run in range(len(runs) - 1):
        first_of_class = count
        for i in order[runs[run] : runs[run + 1]]:
            area = _area(boxes[i])
            c = _best_match(boxes[i], area, founders, areas, first_of_class, count, iou_threshold)
            if c < 0:
                c = count
                count += 1
                founder[c], areas[c] = i, area
                founders[c] = boxes[i]
            weight = scores[i] * iou(boxes[i], founders[c])
            members[c] += 1
            confidences[c] += weight
            for k in range(4):
                sums[c, k] += weight * boxes[i, k]
    for c in range(count):
        if members[c] > 1 and confidences[c] != 0.0:
            for k in range(4):
                founders[c, k] = sums[c, k] / confidences[c]
    return founders[:count], scores[founder[:count]], founder[:count]
