"""The detection metric of the Open Images Challenge: AP at IoU 0.5 with verified labels and group-of boxes.

Follows the TensorFlow Object Detection API (`object_detection_evaluation.py`, `per_image_evaluation.py`, `metrics.py`):

1. A detection counts only where its class was verified in its image: by an image-level label, positive or negative, or
   by a box. Elsewhere it is dropped without penalty.
2. Degenerate boxes, scores of -10 and less, and detections beyond 10,000 per image and class are dropped. Nothing is
   clipped.
3. In descending order of score each detection looks at the ordinary box that it overlaps most (the first row on equal
   IoU). If IoU >= threshold and the box is free, the detection is a true positive. There is no second choice.
4. Each other detection looks at the group-of box that covers most of it (intersection / area of the detection). If that
   is >= threshold, the box absorbs it. Each group-of box that absorbed a score above 0 adds one entry with the highest
   absorbed score, which counts as `group_of_weight` true positives (0: no entry).
5. Number of ground truth = ordinary boxes + `group_of_weight` x group-of boxes. AP = area below the envelope of
   precision over recall, at every point. mAP = plain mean over the classes with ground truth.

The reference leaves the order of equal scores to NumPy's unstable sort, whose result depends on version and processor.
Up to 16 elements that sort puts later ones first, and so does this module at any length: in an image the later row is
matched first, and the list of all entries (image by image, detections as they were matched, then group-of boxes) is
sorted with the later entry first.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from oid.metric.matching import Block, Entries, Targets, areas_below, match_images
from oid.predictions.files import Predictions

RULES = ("unverified_class", "degenerate_box", "low_score", "beyond_limit")  # what drops detections, in this order


@dataclass(frozen=True)
class GroundTruth:
    """Boxes and verified image-level labels of the evaluated images, already expanded by the class hierarchy."""

    image_ids: tuple[str, ...]  # sorted, with the images without a box
    box_image: np.ndarray  # (G,) int64, index into image_ids
    box_class: np.ndarray  # (G,) int64
    boxes: np.ndarray  # (G, 4) float64, xyxy
    box_group_of: np.ndarray  # (G,) bool, one box around several objects
    label_image: np.ndarray  # (V,) int64, positive and negative labels alike
    label_class: np.ndarray  # (V,) int64


@dataclass(frozen=True)
class Detections:
    """Scored boxes on the images of a `GroundTruth`. The order of the rows decides between equal scores."""

    image: np.ndarray  # (N,) int64, index into GroundTruth.image_ids
    class_index: np.ndarray  # (N,) int64
    scores: np.ndarray  # (N,) float64; narrower types make ties
    boxes: np.ndarray  # (N, 4) float64, xyxy


@dataclass(frozen=True)
class Metrics:
    """The result of `evaluate`; nan where there is no ground truth."""

    mean_average_precision: float
    average_precision: np.ndarray  # (num_classes,) float64
    num_gt: np.ndarray  # (num_classes,) float64, ordinary boxes + weight x group-of boxes
    dropped: dict[str, int]  # detections that each of RULES dropped


def evaluate(truth: GroundTruth, detections: Detections, **options) -> Metrics:
    """Computes average precision per class and its mean; options and errors are those of `Matcher`."""
    return match(truth, detections, **options).metrics()


def match(truth: GroundTruth, detections: Detections, **options) -> "Matcher":
    """A `Matcher` that has all its detections."""
    matcher = Matcher(truth, **options)
    matcher.add(detections)
    return matcher


class Matcher:
    """Matches detections block by block, all detections of an image in one block. Keeps 24 bytes for each entry.

    Args:
        truth: boxes in the unit of the detections.
        num_classes: class indices are below it.
        group_of_weight: what a group-of box counts, from 0 to 1.
        iou_threshold: the smallest overlap that is a match, for IoU and for intersection over the detection's area.

    Raises:
        ValueError: arrays that do not fit each other, indices out of range, or a parameter out of range.
    """

    def __init__(
        self, truth: GroundTruth, *, num_classes: int, group_of_weight: float = 1.0, iou_threshold: float = 0.5
    ):
        if num_classes < 1:
            raise ValueError("there is no class")
        if not 0 <= group_of_weight <= 1:
            raise ValueError(f"group_of_weight is {group_of_weight}, it must be from 0 to 1")
        if not 0 < iou_threshold <= 1:
            raise ValueError(f"iou_threshold is {iou_threshold}, it must be above 0 and at most 1")
        self.num_images, self.num_classes = len(truth.image_ids), num_classes
        self.group_of_weight, self.iou_threshold = float(group_of_weight), float(iou_threshold)
        self.targets = ordered_targets(truth, num_classes)
        weights = np.where(self.targets.group_of, self.group_of_weight, 1.0)
        self.num_gt = np.bincount(self.targets.class_index, weights, minlength=num_classes)
        self.found = np.zeros(len(self.targets.boxes))  # 1 = taken; a group-of box has the highest absorbed score
        self.dropped = dict.fromkeys(RULES, 0)
        self._seen = np.zeros(self.num_images, dtype=bool)
        self._entries = [Entries(np.empty(0), np.empty(0), np.empty(0, np.int32), np.empty(0, np.int32))]

    def add(self, detections: Detections) -> tuple[Entries, np.ndarray, Block]:
        """Matches the detections of some images.

        Returns:
            The new entries, the row of each in the block, -1 for a group-of box, and the block.

        Raises:
            ValueError: arrays that do not fit each other, indices out of range, or an image that an earlier block had.
        """
        block = by_image(detections, self.num_images, self.num_classes)
        if self._seen[block.images].any():
            raise ValueError("detections of one image came in two blocks")
        self._seen[block.images] = True
        parameters = self.num_classes, self.group_of_weight, self.iou_threshold
        entries, rows, size, dropped = match_images(block, self.targets, *parameters, self.found)
        entries = Entries(*(column[:size].copy() for column in entries))  # gives the spare room back
        self._entries.append(entries)
        for rule, count in zip(RULES, dropped.tolist(), strict=True):
            self.dropped[rule] += count
        return entries, rows[:size], block

    def entries(self) -> Entries:
        """All entries, block after block; in a block by image, the detections in descending score first."""
        self._entries = [Entries(*map(np.concatenate, zip(*self._entries, strict=True)))]
        return self._entries[0]

    def descending(self) -> np.ndarray:
        """`(E,)` int64, the order of `entries` by descending score; equal scores as the module's docstring says."""
        entries = self.entries()
        return np.lexsort((entries.image, entries.scores))[::-1]

    def by_class(self) -> tuple[np.ndarray, np.ndarray]:
        """The order of `entries` by class, then as in `descending`, `(E,)`, and where each class begins `(C + 1,)`."""
        scores, _, class_index, image = self.entries()
        order, first = rows_by_class(class_index, self.num_classes)
        for begin, end in itertools.pairwise(first.tolist()):  # many short sorts cost less than a long one
            own = order[begin:end]
            order[begin:end] = own[np.lexsort((image[own], scores[own]))[::-1]]
        return order, first

    def metrics(self) -> Metrics:
        """AP of every class, and the mean."""
        order, first = self.by_class()
        average_precision = average_precisions(self.entries().labels[order], first, self.num_gt)
        return Metrics(mean_of_defined(average_precision), average_precision, self.num_gt, dict(self.dropped))

    def curve(self, class_index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores, precision and recall `(N,)` after each entry of one class that has ground truth, by score."""
        is_own = self.entries().class_index == class_index
        scores, labels, _, image = (column[is_own] for column in self.entries())
        order = np.lexsort((image, scores))[::-1]
        true_positives, false_positives = np.cumsum(labels[order]), np.cumsum(labels[order] <= 0)
        precision = true_positives / (true_positives + false_positives)
        return scores[order], precision, true_positives / self.num_gt[class_index]


class Selection:
    """Selects the boxes on the images of `truth` and of the classes `labels` from blocks of predictions.

    Counts all `boxes`, those on `other_images`, those of `other_classes`, and the selected ones `per_class`.
    """

    def __init__(self, truth: GroundTruth, labels: Iterable[str]):
        self._images = {image_id: index for index, image_id in enumerate(truth.image_ids)}
        self._classes = {label: index for index, label in enumerate(labels)}
        self.boxes = self.other_images = self.other_classes = 0
        self.per_class = np.zeros(len(self._classes), dtype=np.int64)

    def take(self, found: Predictions) -> Detections:
        """The detections of one block, with indices into the images of the truth and the class list."""
        images = np.array([self._images.get(image_id, -1) for image_id in found.image_ids], dtype=np.int64)
        classes = np.array([self._classes.get(label, -1) for label in found.labels], dtype=np.int64)
        image, class_index = images[found.image_index], classes[found.label_index]
        kept = (image >= 0) & (class_index >= 0)
        self.boxes += len(kept)
        self.other_images += np.count_nonzero(image < 0)
        self.other_classes += np.count_nonzero((image >= 0) & (class_index < 0))
        self.per_class += np.bincount(class_index[kept], minlength=len(self.per_class))
        return Detections(image[kept], class_index[kept], found.scores[kept], found.boxes[kept])


# === Average precision ================================================================================================
def average_precisions(labels: np.ndarray, first: np.ndarray, num_gt: np.ndarray) -> np.ndarray:
    """AP of each class `(C,)`, nan where `num_gt` `(C,)` is 0; labels and `first` as in `areas_below`."""
    return ratios(areas_below(labels, np.ones(len(labels), np.float32), first), num_gt)


def ratios(areas: np.ndarray, num_gt: np.ndarray) -> np.ndarray:
    """`areas / num_gt`, both `(C,)`; nan where there is no ground truth."""
    return np.divide(areas, num_gt, out=np.full(len(num_gt), np.nan), where=num_gt > 0)


def rows_by_class(class_index: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `class_index` `(N,)` class by class, each in its order, and where each class begins `(C + 1,)`."""
    small = class_index.astype(np.min_scalar_type(-num_classes))  # NumPy sorts 16-bit numbers in linear time
    order = np.argsort(small, kind="stable")
    return order, np.searchsorted(small[order], np.arange(num_classes + 1))


def mean_of_defined(values: np.ndarray) -> float:
    """The mean of the values that are not nan; nan without any."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


# === Arrays for the compiled loops ====================================================================================
def ordered_targets(truth: GroundTruth, num_classes: int) -> Targets:
    """Orders the ground truth by image and class. Raises a ValueError for invalid arrays."""
    size, boxes = (len(truth.image_ids), num_classes), np.asarray(truth.boxes, np.float64).reshape(-1, 4)
    group_of = np.asarray(truth.box_group_of, bool)
    image, class_index, boxes, group_of = _columns(size, truth.box_image, truth.box_class, boxes, group_of)
    label_image, label_class = _columns(size, truth.label_image, truth.label_class)
    row, label, every_image = np.lexsort((class_index, image)), np.argsort(label_image), np.arange(size[0] + 1)
    return Targets(
        first=np.searchsorted(image[row], every_image),
        class_index=class_index[row],
        boxes=boxes[row],
        group_of=group_of[row],
        row=row,
        label_first=np.searchsorted(label_image[label], every_image),
        label_class=label_class[label],
    )


def by_image(detections: Detections, num_images: int, num_classes: int) -> Block:
    """Orders the detections by image, the rows of each in their order. Raises a ValueError for invalid arrays."""
    size, boxes = (num_images, num_classes), np.asarray(detections.boxes, np.float64).reshape(-1, 4)
    scores = np.asarray(detections.scores, np.float64)
    columns = _columns(size, detections.image, detections.class_index, boxes, scores)
    if np.any(np.diff(columns[0]) < 0):
        order = np.argsort(columns[0], kind="stable")
        columns = [column[order] for column in columns]
    image, class_index, boxes, scores = columns
    first = np.flatnonzero(np.diff(image, prepend=-1))
    return Block(image[first], np.append(first, len(image)), class_index, scores, boxes)


def _columns(size: tuple[int, int], *columns: np.ndarray) -> list[np.ndarray]:
    """Contiguous columns of one length, first the indices of images and classes, which must be below `size`."""
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise ValueError(f"columns of {', '.join(map(str, lengths))} rows do not fit each other")
    for name, values, end in zip(("image", "class"), columns, size, strict=False):
        if len(values) and not 0 <= values.min() <= values.max() < end:
            raise ValueError(f"{name} indices go from {values.min()} to {values.max()}, but there are only {end}")
    indices = [np.ascontiguousarray(column, dtype=np.int64) for column in columns[:2]]
    return [*indices, *map(np.ascontiguousarray, columns[2:])]
