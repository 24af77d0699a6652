"""The metric on images drawn with replacement, for the uncertainty of a difference between two detectors."""

import dataclasses

import numpy as np

from oid.metric import Detections, GroundTruth, area_below, score


@dataclasses.dataclass(frozen=True)
class Curves:
    """Detections matched with a ground truth, ready to be drawn from.

    Attributes:
        num_images: of the ground truth.
        image: for each class `(E,)` int64, the images of its entries, in descending order of score.
        labels: for each class `(E,)` float64, 1 where the entry is a true positive.
        boxes: `(classes, images)` float64, the number of boxes to find.
    """

    num_images: int
    image: list[np.ndarray]
    labels: list[np.ndarray]
    boxes: np.ndarray


def curves(truth: GroundTruth, detections: Detections, num_classes: int, iou_threshold: float) -> Curves:
    """Matches detections as `oid.metric.evaluate` does; group-of boxes count as one object each."""
    entries, _ = score(truth, detections, num_classes=num_classes, iou_threshold=iou_threshold)
    order = np.lexsort((-np.arange(len(entries.scores)), -entries.scores, entries.class_index))
    starts = np.searchsorted(entries.class_index, np.arange(1, num_classes))
    boxes = np.zeros((num_classes, len(truth.image_ids)))
    np.add.at(boxes, (truth.box_class, truth.box_image), 1.0)
    image, labels = (np.split(column[order], starts) for column in (entries.image, entries.labels))
    return Curves(len(truth.image_ids), image, labels, boxes)


def resampled(curve: Curves, images: np.ndarray | None = None) -> float:
    """mAP over the classes that have boxes.

    Args:
        curve: of one detector, at one IoU.
        images: `(n,)` int64, the images that were drawn, each as often as it occurs; None = all, each once.
    """
    times = np.ones(curve.num_images) if images is None else np.bincount(images, minlength=curve.num_images)
    found = []
    for image, labels, boxes in zip(curve.image, curve.labels, curve.boxes, strict=True):
        count = float(boxes @ times)
        if count == 0:
            continue
        weight = times[image]
        seen = weight > 0
        hits = np.cumsum((weight * labels)[seen])
        precision = hits / np.cumsum(weight[seen])
        found.append(area_below(precision, hits / count) if len(hits) else 0.0)
    return float(np.mean(found)) if found else float("nan")
