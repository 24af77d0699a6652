"""The boxes of several models on validation images, ready to be fused and measured under any settings.

What does not depend on the settings is done once: reading, joining with the ground truth, and leaving out what cannot
count. One trial then costs a fusion and a matching.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from oid.files import InputError
from oid.fusion.fuse import fuse_images
from oid.fusion.resampling import Curves, curves
from oid.fusion.tuned_settings import METHOD, FusionSettings
from oid.metric.challenge import Detections, Entries, GroundTruth, score
from oid.predictions.files import PredictionFile, Predictions

RULES = (  # what is left out, as it is printed
    "on images without ground truth",
    "of classes that are not evaluated",
    "of classes that are not verified in their image",
)
SAME_SPLIT = "do --predictions and --boxes belong to the same split?"


@dataclasses.dataclass(frozen=True)
class ValidationBoxes:
    """The boxes that can count: of each model those of evaluated images and verified classes, image after image.

    The others change nothing: classes are fused each by itself, and the metric drops what is fused of a class that is
    not verified in its image.

    Attributes:
        boxes: per model `(N_i, 4)` float64, xyxy.
        scores: per model `(N_i,)` float64.
        class_index: per model `(N_i,)` int64.
        offsets: per model `(images + 1,)` int64, image k has its boxes from offsets[k] to offsets[k + 1].
        dropped: per model {rule: number of boxes that it left out}.
        missing: per model the number of evaluated images that it does not have: no boxes there.
    """

    boxes: list[np.ndarray]
    scores: list[np.ndarray]
    class_index: list[np.ndarray]
    offsets: list[np.ndarray]
    dropped: list[dict[str, int]]
    missing: list[int]


def gather(
    models: Iterable[PredictionFile | Predictions], truth: GroundTruth, labels: Sequence[str]
) -> ValidationBoxes:
    """Takes from each model, one after another, what can count.

    Args:
        models: the models' predictions.
        truth: the ground truth, expanded.
        labels: its class list.

    Raises:
        InputError: a model has no image of the ground truth, or none has a box of a verified class there.
    """
    images = {image_id: index for index, image_id in enumerate(truth.image_ids)}
    classes = {label: index for index, label in enumerate(labels)}
    verified = np.zeros((len(images), len(classes)), dtype=bool)
    verified[truth.box_image, truth.box_class] = True
    verified[truth.label_image, truth.label_class] = True
    data = ValidationBoxes(*([] for _ in dataclasses.fields(ValidationBoxes)))
    for number, model in enumerate(models, start=1):
        missing = len(images) - sum(name in images for name in model.image_ids)
        if missing == len(images):
            raise InputError(f"prediction file {number} has no image of the ground truth: {SAME_SPLIT}")
        dropped = dict.fromkeys(RULES, 0)
        blocks = [(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))]
        for block in [model] if isinstance(model, Predictions) else model.blocks():
            image = np.array([images.get(name, -1) for name in block.image_ids], dtype=np.int64)[block.image_index]
            label = np.array([classes.get(name, -1) for name in block.labels], dtype=np.int64)[block.label_index]
            listed = np.flatnonzero((image >= 0) & (label >= 0))
            kept = listed[verified[image[listed], label[listed]]]
            on_image = np.count_nonzero(image >= 0)
            rows = (len(image) - on_image, on_image - len(listed), len(listed) - len(kept))
            for rule, count in zip(RULES, rows, strict=True):
                dropped[rule] += int(count)
            blocks.append((image[kept], block.boxes[kept], block.scores[kept], label[kept]))
        image, *columns = (np.concatenate(column) for column in zip(*blocks, strict=True))
        order = np.argsort(image, kind="stable")
        for column, place in zip(columns, (data.boxes, data.scores, data.class_index), strict=True):
            place.append(column[order])
        data.offsets.append(np.searchsorted(image[order], np.arange(len(images) + 1)))
        data.dropped.append(dropped)
        data.missing.append(missing)
    if not sum(len(scores) for scores in data.scores):
        raise InputError(f"no prediction file has a box of a class that is verified in its image: {SAME_SPLIT}")
    return data


class MeasuredFusion:
    """Fuses all images with some settings and measures the result on some of the images.

    Args:
        data: the models' boxes.
        truth, num_classes, group_of_weight, iou_threshold: of the metric, see `oid.metric.challenge.evaluate`.
        threads: images are shared out to so many; the result is the same.
    """

    def __init__(
        self,
        data: ValidationBoxes,
        truth: GroundTruth,
        *,
        num_classes: int,
        group_of_weight: float = 1.0,
        iou_threshold: float = 0.5,
        threads: int = 1,
    ):
        self.data, self.truth, self.threads = data, truth, threads
        self._options = {"num_classes": num_classes, "group_of_weight": group_of_weight}
        self._iou_threshold = iou_threshold

    def fused(self, settings: FusionSettings) -> Detections:
        """Every image fused as a06 fuses it."""
        data = self.data
        boxes, scores, labels, offsets = fuse_images(
            METHOD,
            data.boxes,
            data.scores,
            data.class_index,
            data.offsets,
            weights=settings.weights,
            iou_threshold=settings.fusion_iou,
            skip_box_threshold=settings.skip_box_threshold,
            conf_type=settings.conf_type,
            threads=self.threads,
        )
        return Detections(np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), labels, scores, boxes)

    def maps(self, settings: FusionSettings, choices: Sequence[np.ndarray]) -> list[float]:
        """mAP on each choice of images, `(images,)` bool; nan where there is nothing to find."""
        matched = curves(self._entries(settings), self.truth, **self._options)
        return [matched.mean_average_precision(images) for images in choices]

    def by_fold(self, settings: Sequence[FusionSettings], fold: np.ndarray) -> Curves:
        """Curves with the folds as strata, each fold fused with its own settings; `fold` is `(images,)` int64."""
        matched = {one: self._entries(one) for one in dict.fromkeys(settings)}
        parts = []
        for number, one in enumerate(settings):
            entries = matched[one]
            kept = fold[entries.image] == number
            parts.append([column[kept] for column in entries])
        entries = Entries(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        return curves(entries, self.truth, stratum=fold, **self._options)

    def _entries(self, settings: FusionSettings) -> Entries:
        return score(self.truth, self.fused(settings), iou_threshold=self._iou_threshold, **self._options)[0]
