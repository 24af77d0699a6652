"""COCO's detection metric: the 12 numbers of `COCOeval` for boxes (github.com/cocodataset/cocoapi).

Its rules differ from the challenge's:

1. COCO takes images as completely annotated. So every detection on an evaluated image counts; there are no verified
   classes. The 100 best detections of an image and class are taken; of equal scores the earlier row comes first.
2. There are ten IoU thresholds, .50 to .95. In descending score a detection takes the free box of its class that it
   overlaps most; of equal overlaps the last. A group-of box is a crowd: overlap is intersection / area of the
   detection, any number of detections may match it, and these are neither right nor wrong. Ordinary boxes come first.
3. Boxes outside a range of areas are ignored in the same way, as are detections outside it that match nothing.
   Small is up to 32 x 32 pixels, medium up to 96 x 96. The area is the box's (COCO's own files have the outline's).
4. AP is the mean of the highest precision at recall 0, .01, .. 1 or beyond. AR is the highest recall of the best 1, 10
   and 100 detections per image and class. Both are means over thresholds and the classes with ground truth.
"""

from typing import NamedTuple

import numba
import numpy as np

from oid.metric.challenge import Detections, GroundTruth, by_image, mean_of_defined, ordered_targets, rows_by_class

IOUS = np.linspace(0.5, 0.95, 10)  # as COCOeval makes them: .9 is not the nearest float
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # all, small, medium, large; pixels, inclusive
MAX_DETECTIONS = np.array([1, 10, 100])  # per image and class
NAMES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
WRONG, RIGHT, IGNORED = range(3)  # what a detection is for one range of areas and one threshold


class CocoMetrics(NamedTuple):
    """The result of `CocoMatcher.metrics`; nan without ground truth, where COCOeval has -1."""

    numbers: dict[str, float]  # {name: number} for NAMES
    average_precision: np.ndarray  # (num_classes,) float64


class CocoMatcher:
    """Matches detections block by block, all detections of an image in one block. Keeps 57 bytes for each detection.

    Boxes are normalised; `sizes` `(images, 2)` are width and height in pixels. Raises a ValueError for a size that is
    not positive, and as `evaluate`.
    """

    def __init__(self, truth: GroundTruth, sizes: np.ndarray, *, num_classes: int):
        self._sizes = np.asarray(sizes, dtype=np.float64)
        self._num_images, self._num_classes = len(truth.image_ids), num_classes
        if self._sizes.shape != (self._num_images, 2) or not (self._sizes > 0).all():
            raise ValueError(f"expected {self._num_images} positive sizes, width and height")
        targets = ordered_targets(truth, num_classes)
        image = np.repeat(np.arange(self._num_images), np.diff(targets.first))
        self._boxes, self._crowd = in_pixels(targets.boxes, self._sizes[image]), targets.group_of
        self._cell = image * num_classes + targets.class_index  # a cell is one class in one image
        self._ignored = _outside(self._boxes) | self._crowd[:, None]
        self._num_gt = np.zeros((num_classes, len(AREAS)), dtype=np.int64)
        np.add.at(self._num_gt, targets.class_index, ~self._ignored)
        empty = np.empty(0), np.empty(0, int), np.empty(0, int), np.empty((0, len(AREAS), len(IOUS)), np.uint8)
        self._blocks = [empty]  # scores, cells, ranks in the cell, states

    def add(self, detections: Detections) -> None:
        """Matches the detections of some images; boxes are normalised."""
        block = by_image(detections, self._num_images, self._num_classes)
        image = np.repeat(block.images, np.diff(block.first))
        cell = image * self._num_classes + block.class_index
        order = np.argsort(cell - 1j * block.scores, kind="stable")  # by cell, then descending score, in a single sort
        first = np.flatnonzero(np.diff(cell[order], prepend=-1))
        rank = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
        order, rank = order[rank < MAX_DETECTIONS[-1]], rank[rank < MAX_DETECTIONS[-1]]
        cell, boxes = cell[order], in_pixels(block.boxes[order], self._sizes[image[order]])
        state = np.where(_outside(boxes), np.uint8(IGNORED), np.uint8(WRONG))
        state = np.repeat(state[..., None], len(IOUS), axis=2)
        _match(cell, boxes, state, self._cell, self._boxes, self._crowd, self._ignored)
        self._blocks.append((block.scores[order], cell, rank, state))

    def metrics(self) -> CocoMetrics:
        """The twelve numbers, and the AP of each class."""
        scores, cell, rank, state = (np.concatenate(column) for column in zip(*self._blocks, strict=True))
        order, first = rows_by_class(cell % self._num_classes, self._num_classes)
        shape = self._num_classes, len(AREAS), len(IOUS)
        precision, recall = np.empty(shape), np.empty((*shape, len(MAX_DETECTIONS)))
        for c in range(self._num_classes):
            own = order[first[c] : first[c + 1]]
            own = own[np.lexsort((cell[own], -scores[own]))]
            precision[c], recall[c] = _accumulate(state[own], rank[own], self._num_gt[c])
        numbers = [
            mean_of_defined(precision[:, 0]),
            *(mean_of_defined(precision[:, 0, threshold]) for threshold in (0, 5)),
            *(mean_of_defined(precision[:, area]) for area in (1, 2, 3)),
            *(mean_of_defined(recall[:, 0, :, limit]) for limit in (0, 1, 2)),
            *(mean_of_defined(recall[:, area, :, -1]) for area in (1, 2, 3)),
        ]
        return CocoMetrics(dict(zip(NAMES, numbers, strict=True)), precision[:, 0].mean(axis=1))


def in_pixels(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Converts normalised xyxy `(N, 4)` to COCO's x, y, width, height in pixels.

    `sizes` `(N, 2)` are width and height of each box's image.
    """
    return np.hstack([boxes[:, :2] * sizes, (boxes[:, 2:] - boxes[:, :2]) * sizes])


def _outside(boxes: np.ndarray) -> np.ndarray:
    """Whether the area of each box `(N, 4)` in pixels, x, y, width, height, is outside of each range: `(N, 4)` bool."""
    area = (boxes[:, 2] * boxes[:, 3])[:, None]
    return (area < AREAS[:, 0]) | (area > AREAS[:, 1])


@numba.njit(cache=True, nogil=True)
def _match(cell, boxes, state, gt_cell, gt_boxes, crowd, gt_ignored):
    """Writes which detections are right, and which ignored, for all areas and thresholds.

    Args:
        cell, boxes: `(N,)`, `(N, 4)` as `in_pixels` returns them; ordered by cell, then descending score.
        state: `(N, areas, thresholds)` uint8, written; on entry what a detection is if it matches nothing.
        gt_cell, gt_boxes, crowd, gt_ignored: `(G,)`, `(G, 4)`, `(G,)` bool and `(G, areas)` bool; ordered by cell.
    """
    taken = np.zeros((len(gt_cell), len(AREAS), len(IOUS)), dtype=np.bool_)
    overlaps = np.empty(len(gt_cell))
    start = 0
    for i in range(len(cell)):
        while start < len(gt_cell) and gt_cell[start] < cell[i]:
            start += 1
        end, highest = start, 0.0
        while end < len(gt_cell) and gt_cell[end] == cell[i]:
            overlaps[end] = _overlap(boxes[i], gt_boxes[end], crowd[end])
            highest = max(highest, overlaps[end])
            end += 1
        if highest < IOUS[0]:
            continue
        for a in range(len(AREAS)):
            for t in range(len(IOUS)):
                best, match = min(IOUS[t], 1 - 1e-10), -1
                for is_ignored in (False, True):  # ignored boxes only where no other is left
                    for j in range(start, end):
                        is_free = crowd[j] or not taken[j, a, t]
                        if gt_ignored[j, a] == is_ignored and is_free and overlaps[j] >= best:
                            best, match = overlaps[j], j
                    if match >= 0:
                        taken[match, a, t] = True
                        state[i, a, t] = IGNORED if is_ignored else RIGHT
                        break


@numba.njit(cache=True, nogil=True)
def _overlap(box, target, crowd):
    """IoU of two boxes x, y, width, height, in the arithmetic of pycocotools; for a crowd intersection / area."""
    width = min(box[2] + box[0], target[2] + target[0]) - max(box[0], target[0])
    height = min(box[3] + box[1], target[3] + target[1]) - max(box[1], target[1])
    if width <= 0 or height <= 0:
        return 0.0
    intersection, area = width * height, box[2] * box[3]
    return intersection / (area if crowd else area + target[2] * target[3] - intersection)


@numba.njit(cache=True, nogil=True)
def _accumulate(state, rank, num_gt):
    """Mean precision at `RECALLS` `(areas, thresholds)` and recall `(areas, thresholds, limits)` of one class, or nan.

    States `(N, areas, thresholds)` and ranks `(N,)`, the places in image and class, are in descending order of score.
    """
    shape = len(AREAS), len(IOUS)
    precision, recall = np.full(shape, np.nan), np.full((*shape, len(MAX_DETECTIONS)), np.nan)
    for a, t in np.ndindex(shape):
        if num_gt[a] == 0:
            continue
        found, right, wrong = np.zeros(len(MAX_DETECTIONS)), 0, 0
        envelope = np.empty(num_gt[a])
        for i in range(len(rank)):
            if state[i, a, t] == RIGHT:
                envelope[right] = (right + 1) / (wrong + right + 1 + 2.220446049250313e-16)
                for m in range(len(found)):
                    found[m] += rank[i] < MAX_DETECTIONS[m]
                right += 1
            wrong += state[i, a, t] == WRONG
        for k in range(right - 2, -1, -1):
            envelope[k] = max(envelope[k], envelope[k + 1])
        recall[a, t] = found / num_gt[a]
        reached = np.searchsorted(np.arange(1, right + 1) / num_gt[a], RECALLS)
        precision[a, t] = envelope[reached[reached < right]].sum() / len(RECALLS)
    return precision, recall
