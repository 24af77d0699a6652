"""A network as a detector: images in, boxes out.

`Detector` has a network on squares; `models.any_shape_detector` has the one for images of any shape. Where the network
runs on the CPU, the host decodes its raw outputs. Elsewhere the graph ends with a fixed number of decoded boxes
(`models.decoding`), so that only these leave the accelerator. The suppression runs on the host.
"""

import abc
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import keras
import numpy as np

from models.decoding import TopBoxes, best_candidates
from models.fold import folded
from models.keras_retinanet import build_keras_retinanet
from models.m2det import build_m2det
from models.retinanet import build_retinanet
from models.run_settings import RunSettings
from models.suppression import Candidates, DetectionOptions, GetCandidates, ScoredBoxes, suppress
from oid.images.letterbox import boxes_of_picture, letterbox_to_square, warp_to_square
from oid.images.read import image_parameters, read_image
from oid.json_files import json_text

Precision = Literal["float32", "bfloat16"]
MOST_BOXES = 1000  # of an image before the suppression
DEFAULTS = DetectionOptions()


def build_network(settings: RunSettings, *, backbone_weights: str = "none") -> keras.Model:
    """Builds the network of a run, with raw outputs.

    Args:
        settings: of the run.
        backbone_weights: see `models.backbones.build_backbone`.
    """
    network = settings.network
    if network.detector == "keras_retinanet":
        return build_keras_retinanet(
            backbone=network.backbone,
            image_size=network.image_size,
            padding=network.padding,
            num_classes=settings.num_outputs,
        )
    options = {
        "backbone": network.backbone,
        "num_classes": settings.num_outputs,
        "image_size": network.image_size,
        "scales": network.scales,
        "channels": network.channels,
        "head": network.head,
        "anchors_per_cell": settings.anchors.per_cell,
        "backbone_weights": backbone_weights,
        "normalisation": network.normalisation,
    }
    if network.detector == "retinanet":
        return build_retinanet(**options)
    return build_m2det(**options, variant=network.variant, tums=network.tums)


def runs_on_cpu() -> bool:
    """Whether the network's outputs are in the host's memory."""
    if keras.backend.backend() == "torch":  # Keras does not list its devices
        return keras.ops.convert_to_tensor(0.0).device.type == "cpu"
    return all(device.startswith("cpu") for device in keras.distribution.list_devices())


class Detection(NamedTuple):
    """An object in an image.

    Attributes:
        label: of its class, "/m/..." in Open Images.
        name: of its class.
        score: from 0 to 1.
        box: xmin, ymin, xmax, ymax in pixels.
    """

    label: str
    name: str
    score: float
    box: tuple[float, float, float, float]


class DetectionBatch(NamedTuple):
    """The objects in each image of a batch, padded with -1.

    Attributes:
        boxes: float32 `(batch, max_boxes, 4)`, xyxy in pixels of the image given.
        scores: float32 `(batch, max_boxes)`, descending.
        labels: int32 `(batch, max_boxes)`, class indices.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class BaseDetector(abc.ABC):
    """What `Detector` and `AnyShapeDetector` have in common.

    Args:
        network: with raw outputs, see `build_network`.
        settings: of the run.
        precision: "float32" or "bfloat16" predicts by a faster copy (`models.fold`) with the weights as they are now.
            None predicts by the network itself, whose weights may change.

    Attributes:
        network, settings: as given.
        class_labels, class_names: in the order of the outputs.
        batch_size: number of images that are best detected together.
        smallest_side: pixels that the shorter side of an image must keep when it is read; 0 = all.
    """

    batch_size = 1
    smallest_side = 0

    def __init__(self, network: keras.Model, settings: RunSettings, *, precision: Precision | None = None):
        self.network = network
        self.settings = settings
        self.class_labels, self.class_names = settings.labels, settings.names
        self._host_decodes = runs_on_cpu()
        self._predicting = network
        if precision:
            dtype = None if precision == "float32" else precision
            self._predicting = folded(network, dtype=dtype, keep_output_dtypes=self._host_decodes)
        if not self._host_decodes:
            outputs = self._end()(self._predicting.output)
            self._predicting = keras.Model(self._predicting.input, outputs, name="detector")
        if keras.backend.backend() == "tensorflow" and (self._host_decodes or settings.any_shape):
            # on a CPU XLA is no faster in float32, and half as fast in bfloat16; it would compile for every shape
            self._predicting.jit_compile = False

    @abc.abstractmethod
    def _end(self) -> keras.layers.Layer:
        """The last layer of the graph on an accelerator."""

    @abc.abstractmethod
    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Makes the network's input of one RGB image `(height, width, 3)`, 0 to 255."""

    @abc.abstractmethod
    def _candidates(self, inputs: Sequence[np.ndarray]) -> Iterator[tuple[int, GetCandidates]]:
        """Yields the index of each input and a function that gives its best boxes, in any order of the inputs."""

    def detect_prepared(
        self,
        inputs: np.ndarray | Sequence[np.ndarray],
        *,
        sizes: Sequence[tuple[int, int]] | None = None,
        options: DetectionOptions = DEFAULTS,
    ) -> list[ScoredBoxes]:
        """Detects on images that `prepare` made.

        Args:
            inputs: all of one shape, or of any shapes for `AnyShapeDetector`.
            sizes: height and width of each image before `prepare`; needed only if it letterboxes.
            options: `mirror` finds boxes in the mirrored images, too; the suppression sees both.

        Returns:
            The boxes of each image, clipped to it.

        Raises:
            InputError: `options.suppression` does not belong to this network.
            ValueError: the network takes letterboxed images, and there is not one size for each.
        """
        options = options.resolved(any_shape=self.settings.any_shape)
        found = self._best_boxes(inputs, options.score_threshold)
        if options.mirror:
            mirrored = self._best_boxes([mirror_image(image) for image in inputs], options.score_threshold)
            found = [_joined(one, other.mirrored()) for one, other in zip(found, mirrored, strict=True)]
        return [suppress(boxes, options) for boxes in self._in_image(found, sizes)]

    def _best_boxes(self, inputs: Sequence[np.ndarray], score_threshold: float) -> list[ScoredBoxes]:
        """The best boxes of each input before the suppression."""
        found = [None] * len(inputs)
        for index, get_candidates in self._candidates(inputs):
            found[index] = get_candidates(MOST_BOXES, score_threshold).found
        return found

    def _in_image(self, found: list[ScoredBoxes], sizes: Sequence[tuple[int, int]] | None) -> list[ScoredBoxes]:
        """Boxes that are normalised to the images instead of to the network's inputs."""
        return found

    def predict_on_batch(
        self, images: np.ndarray | Sequence[np.ndarray], options: DetectionOptions = DEFAULTS
    ) -> DetectionBatch:
        """Detects on images of any size, in the form that users of keras-retinanet know.

        >>> boxes, scores, labels = detector.predict_on_batch(images)

        Args:
            images: uint8 or float `(batch, height, width, 3)`, RGB, 0 to 255; or a list of `(height, width, 3)`.
            options: of the detection.

        Raises:
            ValueError: the images do not have that shape or that range.
        """
        sizes = [_checked_size(image) for image in images]
        boxes = np.full((len(sizes), options.max_boxes, 4), -1.0, "float32")
        scores = np.full((len(sizes), options.max_boxes), -1.0, "float32")
        labels = np.full((len(sizes), options.max_boxes), -1, "int32")
        if sizes:
            inputs = [self.prepare(np.asarray(image)) for image in images]
            for index, found in enumerate(self.detect_prepared(inputs, sizes=sizes, options=options)):
                count = len(found.scores)
                boxes[index, :count] = found.boxes * (sizes[index] * 2)[::-1]
                scores[index, :count], labels[index, :count] = found.scores, found.labels
        return DetectionBatch(boxes, scores, labels)

    def detect(self, image: np.ndarray | str | os.PathLike, options: DetectionOptions = DEFAULTS) -> list[Detection]:
        """Finds the objects in one image.

        Args:
            image: `(height, width, 3)`, RGB, 0 to 255; or the path of a file.
            options: of the detection.

        Returns:
            The objects, the highest score first.

        Raises:
            InputError: the file cannot be read.
            ValueError: the array is not an image.
        """
        if isinstance(image, str | os.PathLike):
            orientation = self.settings.inputs.orientation
            width, height, *_ = image_parameters(image, orientation, md5=False)
            image = read_image(image, orientation=orientation, minimum_side=self.smallest_side)
        else:
            height, width = _checked_size(image)
        image = np.asarray(image)
        (found,) = self.detect_prepared([self.prepare(image)], sizes=[image.shape[:2]], options=options)
        boxes = found.boxes * (width, height, width, height)
        return [
            Detection(self.class_labels[label], self.class_names[label], float(score), tuple(box.tolist()))
            for box, score, label in zip(boxes, found.scores, found.labels, strict=True)
        ]

    def fingerprint(self) -> str:
        """A digest of the settings and of the weights: it differs where the detections can."""
        digest = hashlib.sha256(json_text(self.settings).encode())
        for weight in self.network.weights:
            digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)))
        return digest.hexdigest()


class Detector(BaseDetector):
    """A network on squares.

    Attributes:
        image_size: side of the network's input in pixels.
    """

    batch_size = 16

    def __init__(self, network: keras.Model, settings: RunSettings, *, precision: Precision | None = None):
        super().__init__(network, settings, precision=precision)
        self.image_size = settings.network.image_size
        if settings.inputs.interpolation == "area":  # then the decoder may average, too
            self.smallest_side = self.image_size
        self._anchors = settings.anchors.boxes()

    def _end(self) -> keras.layers.Layer:
        return TopBoxes(self.settings.anchors, MOST_BOXES, self.settings.box_deltas, self.settings.scores)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Warps or letterboxes an RGB image `(height, width, 3)` to `(image_size, image_size, 3)` uint8."""
        inputs = self.settings.inputs
        to_square = letterbox_to_square if inputs.resize == "letterbox" else warp_to_square
        return to_square(image, self.image_size, smooth=inputs.interpolation == "area")

    def _candidates(self, inputs: Sequence[np.ndarray]) -> Iterator[tuple[int, GetCandidates]]:
        outputs = self._predicting.predict_on_batch(np.asarray(inputs))
        kinds = {"box_deltas": self.settings.box_deltas, "scores": self.settings.scores}
        for index in range(len(inputs)):
            one = {name: values[index] for name, values in outputs.items()}
            if self._host_decodes:
                yield index, functools.partial(best_candidates, one["classes"], one["boxes"], self._anchors, **kinds)
            else:
                yield index, lambda count, score, one=one: Candidates(ScoredBoxes(**one), np.zeros(0))

    def _in_image(self, found: list[ScoredBoxes], sizes: Sequence[tuple[int, int]] | None) -> list[ScoredBoxes]:
        if self.settings.inputs.resize != "letterbox":
            return found
        if sizes is None or len(sizes) != len(found):
            raise ValueError(f"{len(found)} letterboxed images need the size of each, got {sizes}")
        return [
            boxes._replace(boxes=boxes_of_picture(np.asarray(boxes.boxes), *size, self.image_size))
            for boxes, size in zip(found, sizes, strict=True)
        ]


def mirror_image(image: np.ndarray) -> np.ndarray:
    """An image `(height, width, 3)` with left and right exchanged."""
    return np.ascontiguousarray(image[:, ::-1])


def _joined(one: ScoredBoxes, other: ScoredBoxes) -> ScoredBoxes:
    return ScoredBoxes(*(np.concatenate(pair) for pair in zip(one, other, strict=True)))


def _checked_size(image: np.ndarray) -> tuple[int, int]:
    """Height and width of an RGB image; refuses arrays that are not raw images."""
    if np.ndim(image) != 3 or np.shape(image)[-1] != 3:
        raise ValueError(
            f"an image has the shape {np.shape(image)}, expected (height, width, 3) in RGB: predict_on_batch takes a "
            "batch or a list of images, detect takes one"
        )
    if np.size(image) and np.min(image) < 0:
        raise ValueError(
            f"an image has values down to {np.min(image):g}: pass raw RGB from 0 to 255, not BGR minus a mean "
            "(without keras-retinanet's preprocess_image)"
        )
    return np.shape(image)[:2]
