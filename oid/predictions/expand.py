"""Expands predictions to ancestor classes: every box is copied to the classes above its own, then NMS thins those.

For each image:

1. Boxes whose class is evaluated stay, in their order.
2. Each box is appended once for every evaluated ancestor of its class, nearest ancestor first.
3. In each class that gained boxes, non-maximum suppression runs on all boxes, old and new: in descending score, the
   earlier of equal scores first, a box stays unless its IoU with a box that stays is above the threshold. Boxes of
   other classes are untouched, and the order does not change.

A compiled function expands all images of a block. Images are independent of each other, so the result depends neither
on the size of the blocks nor on the two threads.
"""

import itertools
from collections.abc import Collection, Sequence

import numba
import numpy as np

from oid.hierarchy import Hierarchy
from oid.predictions.files import Predictions


class Expansion:
    """The ancestors of each label of a prediction file.

    Attributes:
        labels: the labels of the file, followed by the other evaluated ancestors.
        inner: the evaluated ancestors, whose classes may gain boxes.
    """

    def __init__(self, tree: Hierarchy, classes: Collection[str], labels: Sequence[str]):
        """Takes the hierarchy, the evaluated classes, and the labels of the file."""
        above = [tree.ancestors(label) if label in tree else () for label in labels]
        above = [[ancestor for ancestor in ancestors if ancestor in classes] for ancestors in above]
        self.inner = list(dict.fromkeys(itertools.chain.from_iterable(above)))
        self.labels = list(dict.fromkeys([*labels, *self.inner]))
        numbers = {label: number for number, label in enumerate(self.labels)}
        self._is_written = np.array([label in classes for label in labels], dtype=np.bool_)
        self._ancestors = np.array([numbers[ancestor] for ancestors in above for ancestor in ancestors], np.int64)
        self._starts = np.cumsum([0, *map(len, above)])  # label i has ancestors[starts[i] : starts[i + 1]]

    def expand(self, found: Predictions, *, nms_iou: float, only_new: bool = False) -> Predictions:
        """Expands the boxes of some images.

        Args:
            found: predictions from the file.
            nms_iou: the threshold of step 3; at 1.0 nothing is suppressed.
            only_new: leave out the boxes of step 1.

        Returns:
            the same images; their label indices refer to `labels`.
        """
        boxes = found.offsets(), found.label_index, found.scores, np.ascontiguousarray(found.boxes)
        classes = self._is_written, self._starts, self._ancestors, len(self.labels)
        counts, labels, scores, boxes = _expand_images(*boxes, *classes, nms_iou, only_new)
        image_index = np.repeat(np.arange(len(counts)), counts)
        return Predictions(found.image_ids, self.labels, image_index, labels, scores, boxes)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _expand_images(offsets, labels, scores, boxes, is_written, starts, ancestors, num_classes, iou_threshold, only_new):
    """Expands the boxes of some images.

    Returns:
        (images,) number of boxes of each image; (N,) classes, (N,) scores and (N, 4) boxes.
    """
    room, most = 0, 0
    for image in range(len(offsets) - 1):
        entries = 0
        for box in range(offsets[image], offsets[image + 1]):
            entries += 1 + starts[labels[box] + 1] - starts[labels[box]]
        room, most = room + entries, max(most, entries)
    class_of, source, stays = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.bool_)
    gained, previous = np.empty(most, np.int64), np.empty(most, np.int64)
    gained_in, last = np.full(num_classes, -1), np.empty(num_classes, np.int64)
    counts, new_labels = np.empty(len(offsets) - 1, np.int64), np.empty(room, np.int64)
    new_scores, new_boxes = np.empty(room), np.empty((room, 4))
    total = 0
    for image in range(len(offsets) - 1):
        old = 0  # the entries of an image are its boxes of step 1, then those of step 2
        for box in range(offsets[image], offsets[image + 1]):
            if is_written[labels[box]]:
                class_of[old], source[old], stays[old] = labels[box], box, True
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
        counts[image] = total - before
    return counts, new_labels[:total], new_scores[:total], new_boxes[:total]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _suppress(gained, class_of, source, scores, boxes, iou_threshold, last, previous, stays):
    """Sets `stays` of the entries `gained`, which are all boxes of some classes in one image.

    The entries that stay form a chain per class: `last[c]` is the newest of class c, `previous[k]` precedes k.
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
    """IoU of two rows. It is not shared, because numba's cache does not notice changes in other files."""
    width = min(boxes[a, 2], boxes[b, 2]) - max(boxes[a, 0], boxes[b, 0])
    height = min(boxes[a, 3], boxes[b, 3]) - max(boxes[a, 1], boxes[b, 1])
    if width <= 0.0 or height <= 0.0:
        return 0.0
    intersection = width * height
    area_a = (boxes[a, 2] - boxes[a, 0]) * (boxes[a, 3] - boxes[a, 1])
    area_b = (boxes[b, 2] - boxes[b, 0]) * (boxes[b, 3] - boxes[b, 1])
    union = area_a + area_b - intersection
    return intersection / union if union > 0.0 else 0.0
