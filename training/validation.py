"""The Open Images metric on a level's own classes, while the network trains."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from models.detector import Detector
from models.run_settings import RunSettings
from models.suppression import DetectionOptions, ScoredBoxes
from oid.images.letterbox import letterbox_to_square, warp_to_square
from oid.images.loader import ImageLoader
from oid.machine import usable_cores
from oid.metric.challenge import Detections, GroundTruth, evaluate
from training.data_set import DataSet

BATCH = 16  # images
OPTIONS = DetectionOptions(mirror=False)  # the rest is as in a04, whose boxes a07 measures
LEFT_OUT = "without mirrored images"  # which would take twice as long


def ground_truth(data: DataSet) -> GroundTruth:
    """What the metric wants to know of a data set: its boxes, its group-of boxes, its verified classes.

    Regions that are ignored for another reason than group-of are left out: the metric has no such thing.
    """
    order = np.argsort(data.image_ids, kind="stable")
    rank = np.empty(len(order), "int64")
    rank[order] = np.arange(len(order))
    group = data.group_of
    return GroundTruth(
        image_ids=tuple(np.array(data.image_ids, dtype=object)[order]),
        box_image=rank[np.concatenate([data.objects.image, data.regions.image[group]])],
        box_class=np.concatenate([data.objects.labels, data.regions.labels[group]]).astype("int64"),
        boxes=np.concatenate([data.objects.boxes, data.regions.boxes[group]]).astype("float64"),
        box_group_of=np.repeat([False, True], [len(data.objects.labels), int(group.sum())]),
        label_image=rank[data.verified[:, 0]],
        label_class=data.verified[:, 1],
    )


def make_validation(
    data: DataSet,
    settings: RunSettings,
    *,
    group_of_weight: float = 1.0,
    cache_bytes: int = 2**30,
    max_bad_images: int = 0,
    report: Callable[[str], None] = print,
) -> "Validation":
    """Prepares the measurement of the mAP at IoU 0.5 on `data`.

    Args:
        data: the validation images.
        settings: of the run; its images are squares.
        group_of_weight: what a group-of box counts, see `oid.metric.challenge`.
        cache_bytes: images are kept in memory up to this number of bytes; the others are read each time.
        max_bad_images: number of unreadable images that is allowed; they are not measured.
        report: gets a sentence about each unreadable image.
    """
    side, inputs = settings.network.image_size, settings.inputs
    to_square = letterbox_to_square if inputs.resize == "letterbox" else warp_to_square
    loader = ImageLoader(
        data.paths,
        functools.partial(to_square, side=side, smooth=inputs.interpolation == "area"),
        orientation=inputs.orientation,
        minimum_side=side,
        cache_bytes=cache_bytes,
        max_bad_images=max_bad_images,
        report=report,
        consequence="it is not measured",
    )
    truth = ground_truth(data)
    place_of = {image_id: place for place, image_id in enumerate(truth.image_ids)}
    places = np.array([place_of[image_id] for image_id in data.image_ids], "int64")
    measured = tuple(range(len(places)))
    return Validation(loader, truth, places, side, len(settings.classes), group_of_weight, measured)


@dataclasses.dataclass(frozen=True)
class Validation:
    """Measures detectors on the same images; `make_validation` makes it.

    Attributes:
        loader: of the images.
        truth: their boxes and labels.
        places: int64 `(images,)`, the index of each of the loader's images in `truth`.
        side: of the network's input in pixels.
        num_classes: class indices are below it.
        group_of_weight: what a group-of box counts.
        measured: numbers of the images that are measured.
    """

    loader: ImageLoader
    truth: GroundTruth
    places: np.ndarray
    side: int
    num_classes: int
    group_of_weight: float
    measured: tuple[int, ...]

    @property
    def images(self) -> int:
        """The number of images that are measured."""
        return len(self.measured)

    def sample(self, images: int | None) -> "Validation":
        """The measurement on at most `images` of these images, evenly spaced; None = all. It shares the images read."""
        if images is None or images >= self.images:
            return self
        chosen = np.linspace(0, self.images - 1, max(1, images)).round().astype(int)
        return dataclasses.replace(self, measured=tuple(self.measured[index] for index in chosen))

    def measure(self, detector: Detector, after_batch: Callable[[int], None] = lambda images: None) -> float:
        """The mAP of a detector; 0 where no class has ground truth.

        Args:
            detector: without precision, so that it follows the weights of its network.
            after_batch: is called with the number of images done so far; what it raises ends the measurement.

        Raises:
            BadImages: too many images cannot be read.
        """
        side, found = self.side, []
        squares, sizes = np.zeros((BATCH, side, side, 3), "uint8"), [(side, side)] * BATCH
        images = self.loader.load_all(self.measured, threads=usable_cores(), ahead=2 * BATCH)
        for row, image in enumerate(images):
            if image is not None:
                squares[row % BATCH], sizes[row % BATCH] = image
            if (row + 1) % BATCH == 0 or row + 1 == self.images:  # batches of one shape: nothing is compiled twice
                found += detector.detect_prepared(squares, sizes=sizes, options=OPTIONS)
                after_batch(row + 1)
        readable = [row for row, number in enumerate(self.measured) if number not in self.loader.bad]
        if not readable:
            return 0.0
        places = self.places[[self.measured[row] for row in readable]]
        metrics = evaluate(
            _only(self.truth, places),
            _detections([found[row] for row in readable], places),
            num_classes=self.num_classes,
            group_of_weight=self.group_of_weight,
        )
        return float(np.nan_to_num(metrics.mean_average_precision))


def _detections(found: list[ScoredBoxes], places: np.ndarray) -> Detections:
    """What was found in the images at these places."""
    return Detections(
        image=np.repeat(places, [len(boxes.scores) for boxes in found]),
        class_index=np.concatenate([boxes.labels for boxes in found]).astype("int64"),
        scores=np.concatenate([boxes.scores for boxes in found]).astype("float64"),
        boxes=np.concatenate([boxes.boxes for boxes in found]).astype("float64").reshape(-1, 4),
    )


def _only(truth: GroundTruth, places: np.ndarray) -> GroundTruth:
    """The ground truth as if the other images had neither boxes nor labels: without detections they count nowhere."""
    boxes, labels = np.isin(truth.box_image, places), np.isin(truth.label_image, places)
    kept = {name: getattr(truth, name)[boxes] for name in ("box_image", "box_class", "boxes", "box_group_of")}
    kept |= {name: getattr(truth, name)[labels] for name in ("label_image", "label_class")}
    return dataclasses.replace(truth, **kept)
