"""A trained run as a detector: pictures in, boxes out.

The graph ends at a fixed number of decoded boxes (`TopBoxes`), and the suppression behind it runs on the host, in
`oid.boxes`; where the network runs on the CPU the host decodes, too. A run is a folder with `settings.json` (all that
is needed to rebuild the network) and `model.keras` (the best weights, with the decoding inside), or a `checkpoint/` of
a training that is still going on.
"""

import json
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import keras
import numpy as np

from models.anchors import anchors_per_cell, make_anchors
from models.decoding import TopBoxes, suppress, top_boxes
from models.letterbox import RESIZES, boxes_of_picture, letterbox_to_square, warp_to_square
from models.m2det import build_m2det
from models.optimise import folded
from oid.files import InputError

SETTINGS = "settings.json"
MODEL = "model.keras"
DECODING = "top_boxes"  # the last layer of a model file
CHECKPOINT_WEIGHTS = Path("checkpoint") / "network.weights.h5"
Precision = Literal["float32", "bfloat16"]
NEEDED = {  # of the settings, to rebuild the network and to use it
    *("classes", "preprocessing", "anchors", "box_coding", "score_activation", "backbone", "taps", "image_size"),
    *("variant", "tums", "scales", "channels", "sfam", "head"),
}


def network_from_settings(settings: dict, *, backbone_weights: str = "none") -> keras.Model:
    """Builds the network of a run; `backbone_weights` as in `models.backbones.build_backbone`."""
    background = settings["score_activation"] == "softmax"  # its first output
    names = ("backbone", "image_size", "variant", "tums", "scales", "channels", "sfam", "head")
    return build_m2det(
        **{name: settings[name] for name in names},
        num_classes=len(settings["classes"]) + background,
        anchors_per_cell=anchors_per_cell(settings["anchors"]),
        backbone_weights=backbone_weights,
        preprocessing=settings["preprocessing"]["normalisation"],
        taps=settings["taps"] and tuple(settings["taps"]),
    )


def inference_model(network: keras.Model, settings: dict) -> keras.Model:
    """Adds the decoding to the network of a run; the weights are shared."""
    top_boxes = TopBoxes(
        settings["anchors"],
        box_coding=settings["box_coding"],
        score_activation=settings["score_activation"],
        name=DECODING,
    )
    return keras.Model(network.input, top_boxes(network.output), name="detector")


def runs_on_cpu() -> bool:
    """Whether the network's outputs are in the host's memory."""
    if keras.backend.backend() == "torch":  # Keras does not list its devices
        return keras.ops.convert_to_tensor(0.0).device.type == "cpu"
    return all(device.startswith("cpu") for device in keras.distribution.list_devices())


def _without_decoding(model: keras.Model) -> keras.Model:
    """The network inside an inference model; the weights are shared."""
    boxes, classes = model.get_layer(DECODING).input  # Keras lists a dict in the order of its sorted keys
    return keras.Model(model.input, {"classes": classes, "boxes": boxes}, name="network")


class Detector:
    """A network with its decoding, its classes and its way of looking at pictures.

    Args:
        model: an `inference_model`.
        settings: the run's `settings.json`.
        precision: "float32" or "bfloat16" predicts by a faster copy (`models.optimise`) of the weights as they are now;
            None by the model itself, whose weights may change.

    Attributes:
        model: from raw RGB pixels `(batch, size, size, 3)` to `TopBoxes`' dict.
        settings: the run's `settings.json`.
        class_labels: Open Images labels ("/m/..."), in the order of the outputs.
    """

    def __init__(self, model: keras.Model, settings: dict, *, precision: Precision | None = None):
        self.model = model
        self.settings = settings
        # what the graph's end does takes longer on a CPU than reading the raw outputs
        self._host_decodes = isinstance(model, keras.Model) and runs_on_cpu()
        self._predicting = _without_decoding(model) if self._host_decodes else model
        if precision:
            self._predicting = folded(self._predicting, dtype=None if precision == "float32" else precision)
        if self._host_decodes and keras.backend.backend() == "tensorflow":
            self._predicting.jit_compile = False  # on a CPU XLA is no faster in float32, and half as fast in bfloat16
        self._anchors = make_anchors(settings["anchors"])
        self.image_size = settings["image_size"]
        self._letterboxes = settings["preprocessing"]["resize"] == "letterbox"
        self.class_labels = [entry["label"] for entry in settings["classes"]]
        self.class_names = [entry["name"] for entry in settings["classes"]]

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Puts one RGB picture `(height, width, 3)` into the network's square, `(size, size, 3)` uint8: warped or
        letterboxed, as the training saw pictures."""
        smooth = self.settings["preprocessing"]["interpolation"] == "area"
        to_square = letterbox_to_square if self._letterboxes else warp_to_square
        return to_square(np.asarray(image), self.image_size, smooth=smooth)

    def detect(
        self,
        squares: np.ndarray,
        *,
        sizes: Sequence[tuple[int, int]] | None = None,
        score_threshold: float = 0.01,
        mirror: bool = False,
        **options,
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Detects on pictures that `prepare` made.

        Args:
            squares: uint8 `(batch, size, size, 3)`, RGB.
            sizes: height and width of each picture before `prepare`; needed where it letterboxes, where a warp says the
                same without them.
            score_threshold: boxes with a lower score are left out.
            mirror: look at the mirrored pictures, too, which takes twice as long; the suppression, and the voting
                after it, sees what was found in both.
            **options: of `models.decoding.suppress`: nms, nms_iou, nms_sigma, vote_iou, max_boxes.

        Returns:
            For each picture `(boxes, scores, labels)`: float64 `(n, 4)` xyxy normalised to the picture and clipped to
            [0, 1], float64 `(n,)` descending, int64 `(n,)` class indices.

        Raises:
            ValueError: the network sees letterboxed pictures, and `sizes` does not have one for each.
        """
        squares = np.asarray(squares)
        decoded = self._decoded(squares, score_threshold)
        if mirror:
            mirrored = self._decoded(np.ascontiguousarray(squares[:, :, ::-1]), score_threshold)
            decoded = [_with_mirrored(*pair) for pair in zip(decoded, mirrored, strict=True)]
        if self._letterboxes:
            if sizes is None or len(sizes) != len(squares):
                raise ValueError(f"{len(squares)} letterboxed pictures need as many sizes, got {sizes}")
            decoded = [self._off_the_grey(*found, *size) for found, size in zip(decoded, sizes, strict=True)]
        return [suppress(*found, score_threshold=score_threshold, **options) for found in decoded]

    def _decoded(self, squares: np.ndarray, score_threshold: float) -> list[tuple]:
        """The best boxes, scores and labels of each picture, before the suppression."""
        outputs = self._predicting.predict_on_batch(squares)
        if not self._host_decodes:
            return list(zip(outputs["boxes"], outputs["scores"], outputs["labels"], strict=True))
        options = {"score_threshold": score_threshold, "box_coding": self.settings["box_coding"]}
        options["score_activation"] = self.settings["score_activation"]
        return [
            top_boxes(classes, offsets, self._anchors, **options)
            for classes, offsets in zip(outputs["classes"], outputs["boxes"], strict=True)
        ]

    def _off_the_grey(self, boxes, scores, labels, height: int, width: int) -> tuple:
        """What was found in a letterboxed picture, in the picture's own coordinates."""
        boxes = boxes_of_picture(np.asarray(boxes), height, width, self.image_size)
        seen = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return boxes[seen], np.asarray(scores)[seen], np.asarray(labels)[seen]

    def predict_on_batch(self, images, *, max_boxes: int = 300, **options) -> dict[str, np.ndarray]:
        """Detects on pictures of any size, in the form that keras-retinanet's users know.

        Args:
            images: uint8 or float `(batch, height, width, 3)`, RGB, 0 to 255; or a list of `(height, width, 3)`.
            max_boxes: at most so many per picture.
            **options: see `detect`.

        Returns:
            `boxes` float32 `(batch, max_boxes, 4)`, xyxy in pixels of the picture given; `scores` float32
            `(batch, max_boxes)`, descending; `labels` int32 `(batch, max_boxes)`. All padded with -1.

        Raises:
            ValueError: the pictures do not have that shape.
        """
        for image in images:
            if np.ndim(image) != 3 or np.shape(image)[-1] != 3:
                raise ValueError(f"a picture has shape {np.shape(image)}, expected (height, width, 3) in RGB")
        boxes = np.full((len(images), max_boxes, 4), -1.0, "float32")
        scores = np.full((len(images), max_boxes), -1.0, "float32")
        labels = np.full((len(images), max_boxes), -1, "int32")
        if len(images):
            squares = np.stack([self.prepare(image) for image in images])
            sizes = [np.shape(image)[:2] for image in images]
            found = self.detect(squares, sizes=sizes, max_boxes=max_boxes, **options)
            for index, (image, (b, s, c)) in enumerate(zip(images, found, strict=True)):
                height, width = np.shape(image)[:2]
                boxes[index, : len(b)] = b * (width, height, width, height)
                scores[index, : len(b)] = s
                labels[index, : len(b)] = c
        return {"boxes": boxes, "scores": scores, "labels": labels}


def _with_mirrored(found: tuple, mirrored: tuple) -> tuple:
    """Boxes, scores and labels of a picture, and those of its mirror image moved to where they belong."""
    boxes = np.asarray(mirrored[0])
    boxes = np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=1)
    return tuple(np.concatenate(pair) for pair in zip(found, (boxes, *mirrored[1:]), strict=True))


def read_settings(run: str | Path) -> dict:
    """Reads a run's `settings.json`.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = Path(run) / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        missing = NEEDED - set(settings)
    except FileNotFoundError:
        raise InputError(f"{run} is no run: it has no {SETTINGS}; train one with a03, or name another") from None
    except (ValueError, OSError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}): train the run again, or restore the file") from error
    if missing:
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}: it was not written by this version of a03")
    resize = settings["preprocessing"].get("resize")
    if resize not in RESIZES:
        ways = " or ".join(RESIZES)
        raise InputError(f"{path}: preprocessing.resize is {resize!r}: make it {ways}, as the run was trained")
    return settings


def load_model(run: str | Path, *, checkpoint: bool = False, precision: Precision | None = "float32") -> Detector:
    """Loads a run: the folder that a03 wrote, or the `checkpoint` folder inside it.

    Args:
        run: `OUTPUT/weights/<run>`, or `OUTPUT/weights/<run>/checkpoint`.
        checkpoint: take the newest checkpoint of the training instead of the best weights; so does a run that has no
            best weights yet.
        precision: of the predictions, see `Detector`.

    Raises:
        InputError: the folder is no run, or its files are missing or damaged.
    """
    run = Path(run)
    if run.name == "checkpoint" and not (run / SETTINGS).is_file():
        run, checkpoint = run.parent, True
    settings = read_settings(run)
    model_file, weights_file = run / MODEL, run / CHECKPOINT_WEIGHTS
    if not weights_file.is_file() and (checkpoint or not model_file.is_file()):
        what = "no checkpoint" if model_file.is_file() else f"neither {MODEL} nor a checkpoint"
        raise InputError(f"{run} has {what} yet: train it with a03 for at least one epoch")
    try:
        with warnings.catch_warnings(action="ignore"):  # of each layer that is not in the file, before the error
            if model_file.is_file() and not checkpoint:
                model = keras.saving.load_model(model_file, compile=False, safe_mode=True)
            else:
                network = network_from_settings(settings)
                network.load_weights(weights_file)
                model = inference_model(network, settings)
        return Detector(model, settings, precision=precision)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{run} cannot be loaded ({reason}): restore its files or train it again") from error
