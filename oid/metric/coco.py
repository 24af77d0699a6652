"""COCO's detection metric: the 12 numbers that pycocotools prints for boxes, from the same boxes.

Follows `COCOeval` (github.com/cocodataset/cocoapi, bbox), whose rules differ from the challenge's:

1. Every detection on an evaluated image counts, because COCO takes images as completely annotated: a class that nobody
   verified in an image is not there. Of an image and class the 100 best are taken; equal scores: the earlier row first.
2. Ten IoU thresholds, .50 to .95. In descending score a detection takes the free box of its class that it overlaps
   most; of equal ones the last. A group-of box is a crowd: overlap is intersection / area of the detection, any number
   of detections may match it, and these are neither right nor wrong. Ordinary boxes come first.
3. Boxes outside of a range of areas are ignored in the same way, as are detections outside of it that match nothing.
   Small is up to 32 x 32 pixels, medium up to 96 x 96. The area is the box's (COCO's own files have the outline's).
4. AP is the mean of the highest precision at recall 0, .01, .. 1 or beyond; AR is the highest recall, of the best 1, 10
   and 100 detections per image and class. Both are means over thresholds and the classes with ground truth.
"""

from typing import NamedTuple

import numba
import numpy as np

from oid.metric.challenge import Block, Detections, GroundTruth, by_image, mean_of_defined, ordered_targets
from oid.metric.ordering import ascending, grouped

IOUS = np.linspace(0.5, 0.95, 10)  # as pycocotools makes them: .9 is not the nearest float
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # all, small, medium, large; pixels, inclusive
MAX_DETECTIONS = np.array([1, 10, 100])  # per image and class
NAMES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)


class CocoMetrics(NamedTuple):
    """The result of `CocoMatcher.metrics`.

    numbers: {name: number} for `NAMES`; nan, where pycocotools has -1, without any box that could be found.
    average_precision: `(num_classes,)` float64, the AP of each class; nan without ground truth.
    """

    numbers: dict[str, float]
    average_precision: np.ndarray


class CocoMatcher:
    """Matches detections block by block, all detections of an image in one block.

    Args:
        truth: the ground truth; boxes normalised.
        sizes: `(images, 2)` float64, width and height in pixels.
        num_classes: number of classes.

    Raises:
        ValueError: arrays that do not fit each other, indices out of range, or a size that is not positive.
    """

    def __init__(self, truth: GroundTruth, sizes: np.ndarray, *, num_classes: int):
        self._sizes = np.ascontiguousarray(sizes, dtype=np.float64)
        self._num_images, self._num_classes = len(truth.image_ids), num_classes
        if self._sizes.shape != (self._num_images, 2) or not (self._sizes > 0).all():
            raise ValueError(f"expected {self._num_images} positive sizes, width and height")
        targets = ordered_targets(truth, num_classes)
        image = np.repeat(np.arange(self._num_images), np.diff(targets.first))
        self._boxes = in_pixels(targets.boxes, self._sizes[image])
        self._targets = targets
        area = (self._boxes[:, 2] * self._boxes[:, 3])[:, None]
        self._ignored = (area < AREAS[:, 0]) | (area > AREAS[:, 1]) | targets.group_of[:, None]  # [G,4]
        self._blocks: list[tuple[np.ndarray, ...]] = []

    def add(self, detections: Detections) -> None:
        """Matches the detections of some images, normalised boxes; an image comes in one block."""
        block: Block = by_image(detections, self._num_images, self._num_classes)
        image = np.empty(len(block.scores), np.int64)
        image[block.order] = np.repeat(block.images, np.diff(block.first))
        columns = _match(
            *(block.images, block.first, block.order, block.class_index, block.scores),
            *(in_pixels(block.boxes, self._sizes[image]), self._targets, self._boxes, self._ignored),
            *(self._num_classes, IOUS, AREAS, MAX_DETECTIONS[-1]),
        )
        self._blocks.append(tuple(column.copy() for column in columns))

    def metrics(self) -> CocoMetrics:
        """The twelve numbers, and the AP of each class."""
        types = (np.float64, np.uint64, np.uint64, np.int32, np.int32, np.uint8)
        blocks = [tuple(np.empty(0, kind) for kind in types), *self._blocks]
        scores, hits, ignored, class_index, image, rank = (np.concatenate(part) for part in zip(*blocks, strict=True))
        order, _ = grouped(image, self._num_images)
        order = order[ascending(-scores[order])]
        by_class, first = grouped(class_index[order], self._num_classes)
        order = order[by_class]
        num_gt = np.zeros((self._num_classes, len(AREAS)), dtype=np.int64)
        np.add.at(num_gt, self._targets.class_index, ~self._ignored)
        columns = hits[order], ignored[order], rank[order]
        precision, recall = _accumulate(*columns, first, num_gt, len(IOUS), RECALLS, MAX_DETECTIONS)
        return _summary(precision, recall)


def in_pixels(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """`(N, 4)` normalised xyxy -> pixels, x, y, width, height, as COCO's files have them.

    Args:
        boxes: `(N, 4)`.
        sizes: `(N, 2)`, width and height of each box's image.
    """
    width, height = sizes[:, 0], sizes[:, 1]
    x, y = boxes[:, 0] * width, boxes[:, 1] * height
    return np.stack([x, y, (boxes[:, 2] - boxes[:, 0]) * width, (boxes[:, 3] - boxes[:, 1]) * height], axis=1)


def _summary(precision: np.ndarray, recall: np.ndarray) -> CocoMetrics:
    """The twelve means.

    Args:
        precision: `(classes, 4 areas, 10 thresholds)`, the mean over recall; nan without ground truth.
        recall: `(classes, 4 areas, 10 thresholds, 3 limits)`, the same.
    """
    per_area = [mean_of_defined(precision[:, area]) for area in range(len(AREAS))]
    at = [mean_of_defined(precision[:, 0, threshold]) for threshold in (0, 5)]
    per_limit = [mean_of_defined(recall[:, 0, :, limit]) for limit in range(len(MAX_DETECTIONS))]
    recalls = [mean_of_defined(recall[:, area, :, -1]) for area in range(1, len(AREAS))]
    numbers = [per_area[0], *at, *per_area[1:], *per_limit, *recalls]
    return CocoMetrics(dict(zip(NAMES, numbers, strict=True)), precision[:, 0].mean(axis=1))


@numba.njit(cache=True, nogil=True)
def _match(
    images, first, order, class_index, scores, boxes, targets, gt_boxes, gt_ignored, num_classes, ious, areas, limit
):
    """Matches the detections of some images for all areas and thresholds.

    Args:
        images, first, order, class_index, scores: of a `Block`.
        boxes, gt_boxes: `(N, 4)` and `(G, 4)`, in pixels, x, y, width, height.
        targets: the ground truth, ordered by image, then class.
        gt_ignored: `(G, 4)` bool.
        limit: detections per image and class.

    Returns:
        For the detections that the limit leaves, image after image, in descending score: scores, hits and ignored
        (uint64, the bit of area a and threshold t is a * thresholds + t), classes, images, and the rank in image and
        class, from 0.
    """
    size = len(scores)
    out_scores, out_hits = np.empty(size), np.zeros(size, dtype=np.uint64)
    out_ignored, out_rank = np.zeros(size, dtype=np.uint64), np.empty(size, dtype=np.uint8)
    out_class, out_image = np.empty(size, dtype=np.int32), np.empty(size, dtype=np.int32)
    seen_in = np.full(num_classes, -1, dtype=np.int64)
    ranges = np.zeros((num_classes, 3), dtype=np.int64)  # first and last target in the image, detections so far
    every = np.uint64(2 ** len(ious) - 1)
    n = 0
    for b in range(len(images)):
        image = images[b]
        start, end = targets.first[image], targets.first[image + 1]
        for j in range(start, end):
            own = targets.class_index[j]
            if seen_in[own] != b:
                seen_in[own], ranges[own, 0], ranges[own, 2] = b, j, 0
            ranges[own, 1] = j + 1
        taken = np.zeros(end - start, dtype=np.uint64)
        overlaps = np.empty(end - start)
        rows = order[first[b] : first[b + 1]]
        for row in rows[np.argsort(-scores[rows], kind="mergesort")]:
            own = class_index[row]
            if seen_in[own] != b:
                seen_in[own] = b
                ranges[own] = 0
            if ranges[own, 2] == limit:
                continue
            area = boxes[row, 2] * boxes[row, 3]
            outside = np.uint64(0)
            for a in range(len(areas)):
                if area < areas[a, 0] or area > areas[a, 1]:
                    outside |= every << np.uint64(a * len(ious))
            low, high = ranges[own, 0], ranges[own, 1]
            best = 0.0
            for j in range(low, high):
                overlaps[j - start] = _overlap(boxes[row], area, gt_boxes[j], targets.group_of[j])
                best = max(best, overlaps[j - start])
            hits = ignored = np.uint64(0)
            if best >= ious[0]:
                view = slice(low - start, high - start)
                crowd, outside_gt = targets.group_of[low:high], gt_ignored[low:high]
                hits, ignored = _take(overlaps[view], taken[view], crowd, outside_gt, ious)
            out_scores[n], out_class[n], out_image[n], out_rank[n] = scores[row], own, image, ranges[own, 2]
            out_hits[n], out_ignored[n] = hits, ignored | (outside & ~hits)
            ranges[own, 2] += 1
            n += 1
    return out_scores[:n], out_hits[:n], out_ignored[:n], out_class[:n], out_image[:n], out_rank[:n]


@numba.njit(cache=True, nogil=True)
def _take(overlaps, taken, crowd, gt_ignored, ious):
    """Which targets of its class one detection takes, for each area and threshold.

    Args:
        overlaps, taken, crowd, gt_ignored: `(g,)`, `(g,)` uint64 (bits, written), `(g,)` bool, `(g, 4)` bool.

    Returns:
        The bits of the areas and thresholds where it is a hit, and those where it is ignored.
    """
    hits = ignored = np.uint64(0)
    for a in range(gt_ignored.shape[1]):
        for t in range(len(ious)):
            bit = np.uint64(1) << np.uint64(a * len(ious) + t)
            match = -1
            for is_ignored in (False, True):  # ignored targets only where no other is left
                best = min(ious[t], 1 - 1e-10)
                for j in range(len(overlaps)):
                    if gt_ignored[j, a] != is_ignored or (taken[j] & bit and not crowd[j]):
                        continue
                    if overlaps[j] >= best:
                        best, match = overlaps[j], j
                if match >= 0:
                    break
            if match < 0:
                continue
            taken[match] |= bit
            if gt_ignored[match, a]:
                ignored |= bit
            else:
                hits |= bit
    return hits, ignored


@numba.njit(cache=True, nogil=True)
def _overlap(box, area, gt, crowd):
    """IoU of two boxes x, y, width, height, in the arithmetic of pycocotools; for a crowd intersection / `area`."""
    width = min(box[2] + box[0], gt[2] + gt[0]) - max(box[0], gt[0])
    if width <= 0:
        return 0.0
    height = min(box[3] + box[1], gt[3] + gt[1]) - max(box[1], gt[1])
    if height <= 0:
        return 0.0
    intersection = width * height
    return intersection / (area if crowd else area + gt[2] * gt[3] - intersection)


@numba.njit(cache=True, nogil=True)
def _accumulate(hits, ignored, rank, first, num_gt, num_ious, recalls, limits):
    """Precision and recall of every class, area and threshold.

    Args:
        hits, ignored, rank: `(E,)`, ordered by class, then descending score.
        first: `(C + 1,)`, where each class begins.
        num_gt: `(C, areas)`.

    Returns:
        `(C, areas, num_ious)`, the mean precision at `recalls`, and `(C, areas, num_ious, limits)`, the recall.
    """
    num_classes, num_areas = num_gt.shape
    precision = np.full((num_classes, num_areas, num_ious), np.nan)
    recall = np.full((num_classes, num_areas, num_ious, len(limits)), np.nan)
    envelope = np.empty(num_gt.max() + 1 if num_gt.size else 1)
    for c in range(num_classes):
        for a in range(num_areas):
            if num_gt[c, a] == 0:
                continue
            for t in range(num_ious):
                bit = np.uint64(1) << np.uint64(a * num_ious + t)
                found = np.zeros(len(limits), dtype=np.int64)
                right = wrong = 0
                for i in range(first[c], first[c + 1]):
                    if hits[i] & bit:
                        right += 1
                        envelope[right - 1] = right / (wrong + right + 2.220446049250313e-16)
                        for m in range(len(limits)):
                            found[m] += rank[i] < limits[m]
                    elif not ignored[i] & bit:
                        wrong += 1
                recall[c, a, t] = found / num_gt[c, a]
                precision[c, a, t] = _mean_precision(envelope[:right], num_gt[c, a], recalls)
    return precision, recall


@numba.njit(cache=True, nogil=True)
def _mean_precision(precision, num_gt, recalls):
    """The mean over `recalls` of the highest precision there or beyond; `precision[k]` is that at k + 1 hits."""
    for k in range(len(precision) - 2, -1, -1):
        precision[k] = max(precision[k], precision[k + 1])
    total, k = 0.0, 0
    for wanted in recalls:
        while k < len(precision) and (k + 1) / num_gt < wanted:
            k += 1
        if k == len(precision):
            break
        total += precision[k]
    return total / len(recalls)
