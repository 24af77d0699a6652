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

from oid.boxes import kernels
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
        inner = {label: number for number, label in enumerate(self.inner)}
        self._inner_numbers = np.array([inner.get(label, len(inner)) for label in self.labels], np.int64)

    def expand(self, found: Predictions, *, nms_iou: float, only_new: bool = False) -> Predictions:
        """Expands the boxes of some images.

        Args:
            found: predictions from the file.
            nms_iou: the threshold of step 3; at 1.0 nothing is suppressed.
            only_new: leave out the boxes of step 1.

        Returns:
            the same images; their label indices refer to `labels`.
        """
        num_images = len(found.image_ids)
        old = np.flatnonzero(self._is_written[found.label_index])
        gains = np.diff(self._starts)[found.label_index]  # new boxes of each box
        new = np.repeat(np.arange(len(gains)), gains)
        nth = np.arange(len(new)) - np.repeat(np.cumsum(gains) - gains, gains)
        ancestors = self._ancestors[self._starts[found.label_index[new]] + nth]
        source, labels = np.concatenate([old, new]), np.concatenate([found.label_index[old], ancestors])
        by_image = _by_image(found.image_index[source], num_images)
        source, labels, is_new = source[by_image], labels[by_image], by_image >= len(old)
        image, scores, boxes = found.image_index[source], found.scores[source], found.boxes[source]
        group = image * (len(self.inner) + 1) + self._inner_numbers[labels]  # one inner class in one image, or the rest
        has_gained = np.zeros(num_images * (len(self.inner) + 1), dtype=bool)
        has_gained[group[is_new]] = True
        rivals = np.flatnonzero(has_gained[group])
        order = rivals[np.argsort(-scores[rivals], kind="stable")]
        order = order[_by_image(image[order], num_images)]  # memory is read in its order
        stays = ~has_gained[group]
        stays[kernels.classwise_nms(boxes, order, group, len(has_gained), float(nms_iou), len(order))] = True
        kept = np.flatnonzero(stays & is_new if only_new else stays)
        return Predictions(found.image_ids, self.labels, image[kept], labels[kept], scores[kept], boxes[kept])


def _by_image(image: np.ndarray, num_images: int) -> np.ndarray:
    """The stable order of `(N,)` image numbers. NumPy sorts 16-bit numbers in linear time."""
    return np.argsort(image.astype(np.min_scalar_type(num_images)), kind="stable")
