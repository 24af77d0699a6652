"""Measures a prediction file block by block: what a07 does between reading its flags and printing."""

from collections.abc import Iterable

import numpy as np
from tqdm import tqdm

from oid.metric.challenge import Detections, GroundTruth, Matcher
from oid.metric.coco import CocoMatcher
from oid.metric.errors import ErrorKinds
from oid.predictions.files import PredictionFile, Predictions

IMAGES_PER_BLOCK = 2048


class Selection:
    """Takes the boxes on evaluated images and of evaluated classes from blocks of predictions, and counts the others.

    Args:
        truth: gives the images.
        labels: the class list.

    Attributes:
        other_images, other_classes: boxes so far on images that are not evaluated, and of classes that are not listed.
        per_class: `(len(labels),)` int64, the boxes so far that were taken.
        boxes: all boxes so far.
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
        self.other_images += int(np.count_nonzero(image < 0))
        self.other_classes += int(np.count_nonzero((image >= 0) & (class_index < 0)))
        detections = Detections(image, class_index, found.scores, found.boxes)
        if not kept.all():
            detections = Detections(image[kept], class_index[kept], found.scores[kept], found.boxes[kept])
        self.per_class += np.bincount(detections.class_index, minlength=len(self.per_class))
        return detections

    @property
    def dropped(self) -> dict[str, int]:
        """{rule, as the screen has it: boxes that it dropped}."""
        return {
            "on images without a row in the ground truth": self.other_images,
            "of a class that is not in the class list": self.other_classes,
        }


def select_detections(
    found: Predictions, truth: GroundTruth, labels: Iterable[str]
) -> tuple[Detections, dict[str, int]]:
    """The boxes on evaluated images and of evaluated classes, and how many each of the two rules dropped."""
    selection = Selection(truth, labels)
    return selection.take(found), selection.dropped


def measure(
    file: PredictionFile,
    selection: Selection,
    matcher: Matcher,
    *,
    kinds: ErrorKinds | None = None,
    coco: CocoMatcher | None = None,
    images_per_block: int | None = None,
) -> None:
    """Reads all predictions and matches them; what was found is in the arguments then.

    Boxes are in memory for a block of images at a time (by default `IMAGES_PER_BLOCK`), scores and labels of all.
    """
    with tqdm(total=len(file.image_ids), unit="image", leave=False, disable=None) as bar:
        for found in file.blocks(images_per_block or IMAGES_PER_BLOCK):
            detections = selection.take(found)
            block = matcher.add(detections)
            if kinds is not None:
                kinds.add(block)
            if coco is not None:
                coco.add(detections)
            bar.update(len(found.image_ids))
