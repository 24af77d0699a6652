"""Predictions of all ancestors: every box is copied to the classes above its own, and what gained boxes is thinned.

Per image:

1. Boxes whose class is written stay, in their order.
2. After them every box comes once for each ancestor of its class that is written, nearest ancestor first.
3. A class that gained boxes in step 2 goes through non-maximum suppression with all its boxes, the old ones included:
   in descending score, of equal ones the earlier first, a box stays unless its IoU with one of its class that stays is
   above the threshold. No other class is touched, no box changes its place.

All images of a block are done by one compiled function; images do not touch each other, so results depend neither on
the size of the blocks nor on the two threads.
"""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

from oid.hierarchy import Hierarchy
from oid.predictions.files import Predictions


class Expansion:
    """What happens to a box of each label; labels may become more from block to block.

    Attributes:
        labels: those that are written: of the predictions, and their ancestors.
        inner: those of them that may gain boxes, in the order in which they came.
    """

    def __init__(self, tree: Hierarchy, classes: Collection[str]):
        """Takes the hierarchy and the classes that are written."""
        self._tree, self._classes = tree, frozenset(classes)
        self._position: dict[str, int] = {}
        self._own: list[int] = []  # per label of the predictions: its position in `labels`, -1 = not written
        self._ancestors: list[int] = []
        self._starts = [0]  # label i's ancestors are self._ancestors[self._starts[i] : self._starts[i + 1]]
        self.labels: list[str] = []
        self.inner: dict[str, None] = {}

    def expand(self, found: Predictions, *, nms_iou: float, only_new: bool = False) -> Predictions:
        """Expands the boxes of some images.

        Args:
            found: their predictions; its `labels` start with those of the calls before.
            nms_iou: the threshold of step 3; at 1.0 nothing is suppressed.
            only_new: leave the boxes of step 1 out of the result.

        Returns:
            the same images; `labels` is this object's own list, which later calls make longer.
        """
        self._learn(found.labels[len(self._own) :])
        own, starts = np.array(self._own, dtype=np.int64), np.array(self._starts, dtype=np.int64)
        ancestors = np.array(self._ancestors, dtype=np.int64)
        boxes = found.label_index, found.scores, np.ascontiguousarray(found.boxes)
        offsets, middle = found.offsets(), len(found.image_ids) // 2

        def expand(begin: int, end: int) -> tuple[np.ndarray, ...]:
            classes = own, starts, ancestors, len(self.labels)
            return _expand_images(begin, end, offsets, *boxes, *classes, nms_iou, only_new)

        with ThreadPoolExecutor(2) as pool:
            halves = pool.map(expand, (0, middle), (middle, len(found.image_ids)))
            counts, labels, scores, boxes = (np.concatenate(arrays) for arrays in zip(*halves, strict=True))
        image_index = np.repeat(np.arange(len(counts)), counts)
        return Predictions(found.image_ids, self.labels, image_index, labels, scores, boxes)

    def _learn(self, labels: list[str]) -> None:
        """Takes labels that the predictions did not have before."""
        for label in labels:
            above = self._tree.ancestors(label) if label in self._tree else ()
            self._own.append(self._number(label) if label in self._classes else -1)
            self._ancestors += [self._number(ancestor) for ancestor in above if ancestor in self._classes]
            self.inner |= dict.fromkeys(ancestor for ancestor in above if ancestor in self._classes)
            self._starts.append(len(self._ancestors))

    def _number(self, label: str) -> int:
        if label not in self._position:
            self._position[label] = len(self.labels)
            self.labels.append(label)
        return self._position[label]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _expand_images(
    begin, end, offsets, labels, scores, boxes, own, starts, ancestors, num_classes, iou_threshold, only_new
):
    """Expands the images `begin` to `end`.

    Returns:
        (images,) number of boxes, (N,) classes, (N,) scores and (N, 4) boxes.
    """
    room, most = 0, 0
    for image in range(begin, end):
        entries = 0
        for box in range(offsets[image], offsets[image + 1]):
            entries += 1 + starts[labels[box] + 1] - starts[labels[box]]
        room, most = room + entries, max(most, entries)
    class_of, source, stays = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.bool_)
    gained, previous = np.empty(most, np.int64), np.empty(most, np.int64)
    gained_in, last = np.full(num_classes, -1), np.empty(num_classes, np.int64)
    counts, new_labels = np.empty(end - begin, np.int64), np.empty(room, np.int64)
    new_scores, new_boxes = np.empty(room), np.empty((room, 4))
    total = 0
    for image in range(begin, end):
        old, entries = 0, 0  # entries are boxes that may be written: the old ones, then the added
        for box in range(offsets[image], offsets[image + 1]):
            if own[labels[box]] >= 0:
                class_of[old], source[old], stays[old] = own[labels[box]], box, True
                old += 1
        entries = old
        for box in range(offsets[image], offsets[image + 1]):
            for above in range(starts[labels[box]], starts[labels[box] + 1]):
                class_of[entries], source[entries] = ancestors[above], box
                gained_in[ancestors[above]] = image
                entries += 1
        count = 0
        for k in range(entries):
            if gained_in[class_of[k]] == image:
                gained[count] = k
                count += 1
        _suppress(gained[:count], class_of, source, scores, boxes, iou_threshold, last, previous, stays)
        before = total
        for k in range(old if only_new else 0, entries):
            if stays[k]:
                new_labels[total], new_scores[total] = class_of[k], scores[source[k]]
                new_boxes[total] = boxes[source[k]]
                total += 1
        counts[image - begin] = total - before
    return counts, new_labels[:total], new_scores[:total], new_boxes[:total]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _suppress(gained, class_of, source, scores, boxes, iou_threshold, last, previous, stays):
    """Sets `stays` of the entries `gained`, which are all boxes of some classes in one image.

    The entries that stay are chained per class: `last[c]` is the newest of class c, `previous[k]` the one before k.
    """
    keys = np.empty(len(gained))
    for i in range(len(gained)):
        keys[i] = -scores[source[gained[i]]]
        last[class_of[gained[i]]] = -1
    for k in gained[np.argsort(keys, kind="mergesort")]:
        other = last[class_of[k]]
        while other >= 0 and _iou(boxes, source[k], source[other]) <= iou_threshold:
            other = previous[other]
        stays[k] = other < 0
        if stays[k]:
            previous[k], last[class_of[k]] = last[class_of[k]], k


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _iou(boxes, a, b):
    """IoU of two rows of one array: numba would not notice a change in a function elsewhere."""
    width = min(boxes[a, 2], boxes[b, 2]) - max(boxes[a, 0], boxes[b, 0])
    height = min(boxes[a, 3], boxes[b, 3]) - max(boxes[a, 1], boxes[b, 1])
    if width <= 0.0 or height <= 0.0:
        return 0.0
    intersection = width * height
    area_a = (boxes[a, 2] - boxes[a, 0]) * (boxes[a, 3] - boxes[a, 1])
    area_b = (boxes[b, 2] - boxes[b, 0]) * (boxes[b, 3] - boxes[b, 1])
    union = area_a + area_b - intersection
    return intersection / union if union > 0.0 else 0.0
