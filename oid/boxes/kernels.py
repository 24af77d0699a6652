"""Compiled loops over boxes: IoU, non-maximum suppression, voting, fusion.

All boxes are `(N, 4)` float64, xyxy, contiguous; indices and labels are int64.

The loops share one file because numba's cache checks only the file that a function is defined in. A compiled function
that calls one of another file would go on running the old code after that file has changed.
"""

import numba
import numpy as np

AVG, MAX, BOX_AND_MODEL_AVG, ABSENT_MODEL_AWARE_AVG = range(4)  # positions in oid.fusion.fuse.CONF_TYPES
NEARLY_1 = 1.0 - 1e-12


@numba.njit(cache=True, nogil=True)
def iou(a, b):
    """IoU of two boxes `(4,)`; 0 if one has no area."""
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
    """Keeps each box unless a kept box of its class overlaps it by more than the threshold; at most `limit` boxes.

    `order` are the `(M,)` indices of the boxes to consider, in descending score; `class_of` are `(N,)` numbers below
    `num_classes`. Returns the `(K,)` indices of the kept boxes, in the order of `order`.
    """
    # The kept boxes of a class form a chain: last[c] is the newest of class c, previous[i] was kept before box i.
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
def classwise_soft_nms(boxes, scores, by_class, starts, is_gaussian, iou_threshold, sigma, score_threshold, limit):
    """Soft non-maximum suppression of each class by itself; lowers `scores` in place.

    The boxes of class c are `by_class[starts[c]:starts[c + 1]]`; at most `limit` of them are kept. Returns the `(K,)`
    indices of the kept boxes, class by class, in descending new score.
    """
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
                if is_gaussian and overlap > 0.0:
                    scores[i] *= np.exp(-overlap * overlap / sigma)
                elif overlap > iou_threshold:
                    scores[i] *= 1.0 - overlap
                if overlap > 0.0 and scores[i] < score_threshold:
                    left -= 1
                    rest[k] = rest[left]
                else:
                    k += 1
    return kept[:count]


@numba.njit(cache=True, nogil=True)
def _take_best(rest, left, scores):
    """Removes the index of the highest score from `rest[:left]` and returns it; the last index takes its place."""
    best = 0
    for k in range(1, left):
        i, j = rest[k], rest[best]
        if scores[i] > scores[j] or (scores[i] == scores[j] and i < j):
            best = k
    chosen = rest[best]
    rest[best] = rest[left - 1]
    return chosen


# === Voting ===========================================================================================================
@numba.njit(cache=True, nogil=True)
def vote_boxes(boxes, scores, by_class, kept, first, last, iou_threshold):
    """Moves box `kept[k]` to the mean of the boxes `by_class[first[k]:last[k]]` that overlap it, weighted by score."""
    voted = boxes[kept]
    for k in range(len(kept)):
        voters, total, sums = 0, 0.0, np.zeros(4)
        for i in by_class[first[k] : last[k]]:
            if iou(boxes[kept[k]], boxes[i]) >= iou_threshold:
                voters += 1
                total += scores[i]
                sums += scores[i] * boxes[i]
        if voters > 1 and total > 0.0:  # a box without other voters must not move by rounding
            voted[k] = sums / total
    return voted


# === Fusion: `prepare`, then `wbf`, `nmw`, `nms` or `soft_nms` ========================================================
#
# A run is the boxes of one class in one image. Runs are fused independently of each other. The four methods are
# separate functions, so that a process compiles only the one it uses.


@numba.njit(cache=True, nogil=True)
def prepare(boxes, scores, labels, starts, stops, factors, skip_box_threshold):
    """Cleans the boxes, multiplies their scores by the model's factor, and sorts them into runs.

    Args:
        boxes, scores, labels: `(N, 4)`, `(N,)`, `(N,)` of all models and images.
        starts, stops: `(models, images)`; the boxes of a model in an image are `boxes[start:stop]`.
        factors: `(models, 2)`; a score becomes `score * factors[model, 0] / factors[model, 1]`.
        skip_box_threshold: boxes with a lower score, before this, are left out. So are boxes without area.

    Returns:
        clean: `(K, 4)` boxes with ordered corners inside [0, 1], image after image, model after model.
        weighted: `(K,)` scores.
        label_of, model_of: `(K,)`.
        image_stops: `(images,)` the end of each image in these arrays.
        order: `(K,)` indices into these arrays, run after run, in descending score within a run, equal ones ascending.
        runs: `(runs + 1,)` the start of each run in `order`, and the end of the last one.
    """
    total = (stops - starts).sum()
    clean, weighted = np.empty((total, 4)), np.empty(total)
    label_of, model_of = np.empty(total, np.int64), np.empty(total, np.int64)
    order, runs = np.empty(total, np.int64), np.zeros(total + 1, np.int64)
    image_stops = np.empty(starts.shape[1], np.int64)
    n = num_runs = 0
    for image in range(starts.shape[1]):
        first = n
        for model in range(len(starts)):
            for i in range(starts[model, image], stops[model, image]):
                if scores[i] >= skip_box_threshold and _clean(boxes[i], clean[n]):
                    weighted[n] = scores[i] * factors[model, 0] / factors[model, 1]
                    label_of[n], model_of[n] = labels[i], model
                    n += 1
        image_stops[image] = n
        ranking = first + np.argsort(-weighted[first:n], kind="mergesort")
        order[first:n] = ranking[np.argsort(label_of[ranking], kind="mergesort")]
        for k in range(first, n):
            if k == first or label_of[order[k]] != label_of[order[k - 1]]:
                runs[num_runs] = k
                num_runs += 1
    runs[num_runs] = n
    return clean[:n], weighted[:n], label_of[:n], model_of[:n], image_stops, order[:n], runs[: num_runs + 1]


@numba.njit(cache=True, nogil=True)
def _clean(box, clean):
    """Writes the box with ordered corners inside [0, 1] to `clean`; returns whether it has an area."""
    clean[0], clean[2] = min(max(min(box[0], box[2]), 0.0), 1.0), min(max(max(box[0], box[2]), 0.0), 1.0)
    clean[1], clean[3] = min(max(min(box[1], box[3]), 0.0), 1.0), min(max(max(box[1], box[3]), 0.0), 1.0)
    return (clean[2] - clean[0]) * (clean[3] - clean[1]) > 0.0


@numba.njit(cache=True, nogil=True)
def nms(boxes, scores, order, runs, iou_threshold):
    """Non-maximum suppression of every run; returns the same as `wbf`."""
    class_of = np.empty(len(order), np.int64)
    for run in range(len(runs) - 1):
        class_of[order[runs[run] : runs[run + 1]]] = run
    kept = classwise_nms(boxes, order, class_of, len(runs) - 1, iou_threshold, len(order))
    return boxes[kept], scores[kept], kept


@numba.njit(cache=True, nogil=True)
def soft_nms(boxes, scores, order, runs, iou_threshold, is_gaussian, sigma, score_threshold):
    """Soft non-maximum suppression of every run; lowers `scores` in place and returns the same as `wbf`."""
    options = is_gaussian, iou_threshold, sigma, score_threshold, len(order)
    kept = classwise_soft_nms(boxes, scores, order, runs, *options)
    kept = kept[scores[kept] > score_threshold]
    return boxes[kept], scores[kept], kept


@numba.njit(cache=True, nogil=True)
def _best_match(box, fused, areas, first, count, iou_threshold):
    """Index of the box `fused[first:count]` with the highest IoU above the threshold, the first of equal ones.

    Returns `count` if there is none.
    """
    area, best, best_iou = _area(box), count, iou_threshold
    lowest = best_iou * NEARLY_1  # most boxes overlap by less than this share of the union: that saves the division
    for c in range(first, count):
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
    """Weighted boxes fusion of every run; `oid.fusion.fuse` describes the method.

    The sums are rounded to float32 after each step, because the package ensemble-boxes does so.

    Args:
        boxes, scores, order, runs, model_of: from `prepare`.
        weights: `(models,)`.
        conf_type: AVG, MAX, BOX_AND_MODEL_AVG or ABSENT_MODEL_AWARE_AVG.

    Returns:
        `(K, 4)` fused boxes, `(K,)` scores, `(K,)` index of the founder: the first box of each fused box.
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
            c = _best_match(boxes[i], fused, areas, first_of_class, count, iou_threshold)
            if c == count:
                fused[c], areas[c], founder[c] = boxes[i], _area(boxes[i]), i
                count += 1
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
    total, highest = pairwise_sum(weights), weights.max() if len(weights) else 1.0
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
            fused_scores[c] = score * pairwise_sum(weights[has_model[c]]) / total
        else:
            weight += pairwise_sum(weights[~has_model[c]])
            fused_scores[c] = score * members[c] / weight if weight > 0.0 else 0.0
    return fused[:count], fused_scores, founder[:count]


@numba.njit(cache=True, nogil=True)
def pairwise_sum(numbers):
    """Sum of `(N,)` float64 in NumPy's order of addition for N <= 128, which keeps eight partial sums."""
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
    """Non-maximum weighted of every run; `oid.fusion.fuse` describes the method. Returns the same as `wbf`."""
    n = len(order)
    founders, areas, founder = np.empty((n, 4)), np.empty(n), np.empty(n, np.int64)
    members, confidences, sums = np.zeros(n, np.int64), np.zeros(n), np.zeros((n, 4))
    count = 0
    for run in range(len(runs) - 1):
        first_of_class = count
        for i in order[runs[run] : runs[run + 1]]:
            c = _best_match(boxes[i], founders, areas, first_of_class, count, iou_threshold)
            if c == count:
                founders[c], areas[c], founder[c] = boxes[i], _area(boxes[i]), i
                count += 1
            weight = scores[i] * iou(boxes[i], founders[c])
            members[c] += 1
            confidences[c] += weight
            for k in range(4):
                sums[c, k] += weight * boxes[i, k]
    for c in range(count):
        if members[c] > 1 and confidences[c] != 0.0:
            founders[c] = sums[c] / confidences[c]
    return founders[:count], scores[founder[:count]], founder[:count]
