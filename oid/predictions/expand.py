"""Expands predictions to ancestor classes: every box is copied to the classes above its own, then NMS thins those.

For each image:

1. Boxes whose class is evaluated stay, in their order.
2. Each box is appended once for every evaluated ancestor of its class, nearest ancestor first.
3. In each class that gained boxes, non-maximum suppression runs on all boxes, old and new: in descending score, the
   earlier of equal scores first, a box stays unless its IoU with a box that stays is above the threshold. Boxes of
   other classes are untouched, and the order does not change.

Images are independent of each other, so the result depends neither on the size of the blocks nor on the two threads.
"""

import itertools
from collections.abc import Collection, Sequence

import numpy as np

from oid.boxes.kernels import classwise_nms
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
        above = [[other for other in tree.ancestors(label) if other in classes] for label in labels]
        self.inner = list(dict.fromkeys(itertools.chain.from_iterable(above)))
        self.labels = list(dict.fromkeys([*labels, *self.inner]))
        numbers = {label: number for number, label in enumerate(self.labels)}
        written = [[label, *up] if label in classes else up for label, up in zip(labels, above, strict=True)]
        self._written = np.array([numbers[label] for label in itertools.chain.from_iterable(written)], np.int64)
        self._starts = np.cumsum([0, *map(len, written)])  # label i becomes written[starts[i] : starts[i + 1]]

    def expand(self, found: Predictions, *, nms_iou: float, only_new: bool = False) -> Predictions:
        """Expands the boxes of some images.

        Args:
            found: predictions from the file.
            nms_iou: the threshold of step 3; at 1.0 nothing is suppressed.
            only_new: leave out the boxes of step 1.

        Returns:
            the same images; their label indices refer to `labels`.
        """
        copies = np.diff(self._starts)[found.label_index]
        box = np.repeat(np.arange(len(copies)), copies)
        nth = np.arange(len(box)) - np.repeat(np.cumsum(copies) - copies, copies)  # of the copies of its box
        label = self._written[self._starts[found.label_index[box]] + nth]
        is_new = label != found.label_index[box]
        order = np.argsort(found.image_index[box] * 2 + is_new, kind="stable")
        box, label, is_new = box[order], label[order], is_new[order]
        image, scores = found.image_index[box], found.scores[box]

        class_of = image * len(self.labels) + label  # a class of one image is a class of its own
        num_classes = len(found.image_ids) * len(self.labels)
        has_gained = np.zeros(num_classes, dtype=bool)
        has_gained[class_of[is_new]] = True
        stays = ~has_gained[class_of]
        rows = np.flatnonzero(~stays)
        rows = rows[np.lexsort((-scores[rows], image[rows]))]
        boxes = found.boxes[box[rows]]
        kept = classwise_nms(boxes, np.arange(len(rows)), class_of[rows], num_classes, float(nms_iou), len(rows))
        stays[rows[kept]] = True
        if only_new:
            stays &= is_new
        return Predictions(
            found.image_ids, self.labels, image[stays], label[stays], scores[stays], found.boxes[box[stays]]
        )
