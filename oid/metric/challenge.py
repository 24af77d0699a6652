"""The detection metric of the Open Images Challenge: AP at IoU 0.5 with verified labels and group-of boxes.

Follows the TensorFlow Object Detection API (`object_detection_evaluation.py`, `per_image_evaluation.py`, `metrics.py`):

1. A detection counts only where its class was verified in its image: by an image-level label, positive or negative, or
   by a box. Elsewhere it is dropped without penalty.
2. Degenerate boxes, scores of -10 and less, and what is beyond 10,000 per image and class are dropped; nothing is
   clipped.
3. In descending order of score each detection looks at the ordinary box that it overlaps most (the first row on equal
   IoU). IoU >= threshold and the box is free: a true positive. There is no second choice.
4. The others look at the group-of box that covers most of them (intersection / area of the detection). Covered by the
   threshold or more: absorbed, removed from the list. Each group-of box that absorbed a score above 0 adds one entry
   with the highest absorbed score, which counts as `group_of_weight` true positives (0: no entry).
5. Number of ground truth = ordinary boxes + `group_of_weight` x group-of boxes. AP = area below the envelope of
   precision over recall, at every point. mAP = plain mean over the classes with ground truth.

The reference leaves the order of equal scores to NumPy's unstable sort, hence to NumPy's version and the processor.
Here it is fixed to what that sort does up to 16 elements: later ones come first. So within an image the later row is
matched first; over all images the list of entries (images in order; in each the detections in the order of matching,
then the group-of entries) is sorted with the later entry first.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from oid.metric.matching import Targets, areas_below, match_images
from oid.metric.ordering import ascending, grouped

RULES = ("unverified_class", "degenerate_box", "low_score", "beyond_limit")  # what drops detections, in this order


@dataclass(frozen=True)
class GroundTruth:
    """What is known about the evaluated images, with the class hierarchy already expanded.

    Images are indices into `image_ids`, classes are indices in [0, num_classes).

    Attributes:
        image_ids: the evaluated images, sorted; also those without a box.
        box_image: `(G,)` int64.
        box_class: `(G,)` int64.
        boxes: `(G, 4)` float64, xyxy.
        box_group_of: `(G,)` bool, one box around several objects.
        label_image: `(V,)` int64, verified image-level labels, positive and negative alike.
        label_class: `(V,)` int64.
    """

    image_ids: tuple[str, ...]
    box_image: np.ndarray
    box_class: np.ndarray
    boxes: np.ndarray
    box_group_of: np.ndarray
    label_image: np.ndarray
    label_class: np.ndarray


@dataclass(frozen=True)
class Detections:
    """Scored boxes on the images of a `GroundTruth`, in any order; the order of the rows decides between equal scores.

    Attributes:
        image: `(N,)` int64, index into `GroundTruth.image_ids`.
        class_index: `(N,)` int64.
        scores: `(N,)` float64; narrower types make ties.
        boxes: `(N, 4)` float64, xyxy.
    """

    image: np.ndarray
    class_index: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class Entries:
    """What precision and recall are computed from: `(E,)` entries, ordered by class, then image.

    In an image the detections come first, in descending order of score, then the group-of boxes that absorbed some.

    Attributes:
        scores: `(E,)` float64.
        labels: `(E,)` float64, what the entry counts as true positives: 0 = false positive, 1, or `group_of_weight`.
        class_index: `(E,)` int64.
        image: `(E,)` int64, index into `GroundTruth.image_ids`.
    """

    scores: np.ndarray
    labels: np.ndarray
    class_index: np.ndarray
    image: np.ndarray


@dataclass(frozen=True)
class Metrics:
    """The result of `evaluate`.

    Attributes:
        mean_average_precision: the mean over the classes with ground truth; nan when there is none.
        average_precision: `(num_classes,)` float64; nan for a class without ground truth.
        num_gt: `(num_classes,)` float64, ordinary boxes + weight x group-of boxes.
        dropped: {rule: number of detections that it dropped}, in the order of the rules.
    """

    mean_average_precision: float
    average_precision: np.ndarray
    num_gt: np.ndarray
    dropped: dict[str, int]


def evaluate(
    truth: GroundTruth,
    detections: Detections,
    *,
    num_classes: int,
    group_of_weight: float = 1.0,
    iou_threshold: float = 0.5,
) -> Metrics:
    """Computes average precision per class and its mean, as the module's docstring says.

    Args:
        truth: the ground truth; boxes are xyxy in any unit, the same as the detections'.
        detections: the scored boxes, also of classes that are not verified in their image.
        num_classes: number of classes; class indices are below it.
        group_of_weight: what a found group-of box counts, from 0 (found or missed, it does not count) to 1.
        iou_threshold: the smallest overlap that is a match, for IoU and for intersection over the detection's area.

    Returns:
        `Metrics`.

    Raises:
        ValueError: arrays that do not fit each other, indices out of range, or a parameter out of range.
    """
    matcher = Matcher(truth, num_classes=num_classes, group_of_weight=group_of_weight, iou_threshold=iou_threshold)
    matcher.add(detections)
    return matcher.metrics()


def score(
    truth: GroundTruth,
    detections: Detections,
    *,
    num_classes: int,
    group_of_weight: float = 1.0,
    iou_threshold: float = 0.5,
) -> tuple[Entries, dict[str, int]]:
    """Matches detections with the ground truth, steps 1 to 4 of the module's docstring.

    Args:
        truth, detections, num_classes, group_of_weight, iou_threshold: as in `evaluate`.

    Returns:
        The list from which precision and recall are computed, and {rule: number of detections that it dropped}.

    Raises:
        ValueError: as `evaluate`.
    """
    matcher = Matcher(truth, num_classes=num_classes, group_of_weight=group_of_weight, iou_threshold=iou_threshold)
    matcher.add(detections)
    return matcher.entries(), matcher.dropped


class Matcher:
    """Matches detections block by block, all detections of an image in one block, and keeps the entries.

    An entry takes 24 bytes; the boxes of a block are not kept.

    Args:
        truth, num_classes, group_of_weight, iou_threshold: as in `evaluate`.

    Attributes:
        targets: the ground truth ordered by image, then class.
        num_gt: `(num_classes,)` float64, ordinary boxes + weight x group-of boxes.
        found: `(G,)` float64 for each of the targets: 1 for an ordinary box that was found, the highest score inside a
            group-of box; 0 where nothing was.
        dropped: {rule: number of detections that it dropped}, in the order of `RULES`.

    Raises:
        ValueError: as `evaluate`.
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
        self.num_gt = np.bincount(
            self.targets.class_index,
            weights=np.where(self.targets.group_of, self.group_of_weight, 1.0),
            minlength=num_classes,
        )
        self.found = np.zeros(len(self.targets.boxes))
        self.dropped = dict.fromkeys(RULES, 0)
        self._seen = np.zeros(self.num_images, dtype=bool)
        self._blocks: list[tuple[np.ndarray, ...]] = []

    def add(self, detections: Detections) -> "Block":
        """Matches the detections of some images; see `Block`.

        Raises:
            ValueError: arrays that do not fit each other, indices out of range, or an image that an earlier block had.
        """
        block = by_image(detections, self.num_images, self.num_classes)
        if self._seen[block.images].any():
            raise ValueError("detections of one image came in two blocks")
        self._seen[block.images] = True
        columns, rows, dropped = match_images(
            *(block.images, block.first, block.order, block.class_index, block.scores, block.boxes, self.targets),
            *(self.num_classes, self.group_of_weight, self.iou_threshold, self.found),
        )
        self._blocks.append(tuple(column.copy() for column in columns))  # what is not filled is given back
        for rule, count in zip(RULES, dropped.tolist(), strict=True):
            self.dropped[rule] += count
        _, labels, _, image = self._blocks[-1]
        return block._replace(entry_row=rows, entry_label=labels, entry_image=image)

    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Scores, labels, classes and images `(E,)` of all entries, in the order in which the blocks came."""
        types = (np.float64, np.float64, np.int32, np.int32)
        blocks = self._blocks or [tuple(np.empty(0, kind) for kind in types)]
        return tuple(parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*blocks, strict=True))

    def entries(self) -> Entries:
        """All entries, ordered by class, then image."""
        scores, labels, class_index, image = self.columns()
        order, _ = grouped(image, self.num_images)
        order = order[grouped(class_index[order], self.num_classes)[0]]
        classes, images = class_index[order].astype(np.int64), image[order].astype(np.int64)
        return Entries(scores[order], labels[order], classes, images)

    def descending(self) -> np.ndarray:
        """`(E,)` int64, the order of `columns` by descending score; equal scores as the module's docstring says."""
        scores, _, _, image = self.columns()
        order, _ = grouped(image, self.num_images)
        return order[ascending(scores[order])[::-1]]

    def metrics(self) -> Metrics:
        """AP of every class, and the mean."""
        _, labels, class_index, _ = self.columns()
        order = self.descending()
        average_precision = average_precisions(class_index[order], labels[order], self.num_gt)
        return Metrics(mean_of_defined(average_precision), average_precision, self.num_gt, dict(self.dropped))

    def curve(self, class_index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores, precision and recall `(N,)` after each entry of one class that has ground truth, by score."""
        columns = self.columns()
        scores, labels, _, image = (column[columns[2] == class_index] for column in columns)
        order, _ = grouped(image, self.num_images)
        order = order[ascending(scores[order])[::-1]]
        return scores[order], *precision_recall(labels[order], self.num_gt[class_index])


class Block(NamedTuple):
    """Detections by image, and, from `Matcher.add`, what became of them.

    images: `(B,)` int64, distinct.
    first, order: `(B + 1,)` and `(N,)` int64; the rows of images[b] are order[first[b]:first[b + 1]], ascending.
    class_index, scores, boxes: `(N,)` int64, `(N,)` and `(N, 4)` float64.
    entry_row: `(E,)` int64, the row of each new entry, -1 for a group-of box; None before the matching.
    entry_label, entry_image: `(E,)` float64 and int32, what each new entry counts, and its image.
    """

    images: np.ndarray
    first: np.ndarray
    order: np.ndarray
    class_index: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    entry_row: np.ndarray | None = None
    entry_label: np.ndarray | None = None
    entry_image: np.ndarray | None = None


def average_precisions(class_index: np.ndarray, labels: np.ndarray, num_gt: np.ndarray) -> np.ndarray:
    """AP of every class.

    Args:
        class_index: `(E,)` integers in descending order of score; -1 leaves an entry out.
        labels: `(E,)` float64, what each entry counts as true positives; 0 is a false positive.
        num_gt: `(C,)`, the number of ground truth.

    Returns:
        `(C,)` float64, nan where `num_gt` is 0.
    """
    order, first = grouped(np.asarray(class_index) + 1, len(num_gt) + 1)
    return areas_below(np.asarray(labels, dtype=np.float64)[order], first[1:], np.asarray(num_gt, dtype=np.float64))


def mean_of_defined(values: np.ndarray) -> float:
    """The mean of what is not nan; nan where everything is."""
    defined = ~np.isnan(values)
    return float(values[defined].mean()) if defined.any() else float("nan")


def precision_recall(labels: np.ndarray, num_gt: float) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall after each entry of a list in descending order of score.

    Args:
        labels: `(N,)` float64, what each entry counts as true positives; 0 is a false positive.
        num_gt: the number of ground truth, above 0.

    Returns:
        precision `(N,)` and recall `(N,)`, float64.
    """
    labels = np.asarray(labels, dtype=np.float64)
    true_positives = np.cumsum(labels)
    false_positives = np.cumsum(labels <= 0)
    return true_positives / (true_positives + false_positives), true_positives / num_gt


def area_below(precision: np.ndarray, recall: np.ndarray) -> float:
    """The area below the envelope of `(N,)` precision over `(N,)` non-decreasing recall: all points, as in VOC 2010."""
    envelope = np.maximum.accumulate(np.asarray(precision)[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def ordered_targets(truth: GroundTruth, num_classes: int) -> Targets:
    """The ground truth as the loops take it."""
    num_images, boxes = len(truth.image_ids), _boxes(truth.boxes)
    group_of = np.ascontiguousarray(truth.box_group_of, dtype=bool)
    if len(group_of) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes, but {len(group_of)} values of box_group_of")
    image, class_index = _indices(truth.box_image, truth.box_class, num_images, num_classes, len(boxes))
    label_image, label_class = _indices(
        truth.label_image, truth.label_class, num_images, num_classes, len(truth.label_class)
    )
    row = np.argsort(image * num_classes + class_index, kind="stable")
    label, label_first = grouped(label_image, num_images)
    return Targets(
        first=np.searchsorted(image[row], np.arange(num_images + 1)),
        class_index=class_index[row],
        boxes=boxes[row],
        group_of=group_of[row],
        row=row,
        label_first=label_first,
        label_class=label_class[label],
    )


def by_image(detections: Detections, num_images: int, num_classes: int) -> Block:
    """The detections by image."""
    boxes, scores = _boxes(detections.boxes), np.ascontiguousarray(detections.scores, dtype=np.float64)
    if len(scores) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes, but {len(scores)} scores")
    image, class_index = _indices(detections.image, detections.class_index, num_images, num_classes, len(boxes))
    first = np.flatnonzero(np.diff(image, prepend=-1))
    order = np.arange(len(image))
    if len(image) and np.bincount(image[first]).max() > 1:
        order, starts = grouped(image, num_images)
        first = starts[np.flatnonzero(np.diff(starts))]
    return Block(image[order[first]], np.append(first, len(image)), order, class_index, scores, boxes)


def _boxes(boxes: np.ndarray) -> np.ndarray:
    """`boxes` as contiguous `(N, 4)` float64."""
    boxes = np.ascontiguousarray(boxes, dtype=np.float64)
    return boxes.reshape(-1, 4) if boxes.size == 0 else boxes


def _indices(
    image: np.ndarray, class_index: np.ndarray, num_images: int, num_classes: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both as contiguous `(length,)` int64."""
    image = np.ascontiguousarray(image, dtype=np.int64)
    class_index = np.ascontiguousarray(class_index, dtype=np.int64)
    if not len(image) == len(class_index) == length:
        raise ValueError(f"{length} boxes, but {len(image)} images and {len(class_index)} classes")
    for name, values, end in (("image", image, num_images), ("class", class_index, num_classes)):
        if length and not 0 <= values.min() <= values.max() < end:
            raise ValueError(f"{name} indices go from {values.min()} to {values.max()}, but there are only {end}")
    return image, class_index
