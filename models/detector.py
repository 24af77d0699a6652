"""A trained run as a detector: pictures in, boxes out.

The graph ends at a fixed number of decoded boxes (`TopBoxes`), and the suppression behind it runs on the host, in
`oid.boxes.suppression`; where the network runs on the CPU the host decodes, too. A run is a folder with
`settings.json` (all that is needed to rebuild the network) and `model.keras` (the best weights, with the decoding
inside), or a `checkpoint/` of a training that is still going on.

A converted RetinaNet sees pictures of any shape: its model file ends at the raw outputs, and the anchors are made for
each shape.
"""

import functools
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import keras
import numpy as np

from models.decoding import TopBoxes, TopPairs, best_boxes, boxes_of_pairs, clip_ends, published_boxes, suppress
from models.legacy_retinanet import build_legacy_retinanet
from models.m2det import build_m2det
from models.optimise import folded
from models.retinanet import build_retinanet
from oid.anchors.grids import anchors_of_picture, anchors_per_cell, make_anchors
from oid.files import InputError
from oid.images.letterbox import RESIZES, boxes_of_picture, letterbox_to_square, resize_to_sides, warp_to_square

SETTINGS = "settings.json"
MODEL = "model.keras"
DECODING = "top_boxes"  # the last layer of a model file
CHECKPOINT_WEIGHTS = Path("checkpoint") / "network.weights.h5"
Precision = Literal["float32", "bfloat16"]
SIDES = "sides"  # the resize of networks that see pictures of any shape
MOST_BOXES = 1000  # of a picture before the suppression
MOST_OUTPUTS = 2**29  # bytes of raw outputs at a time, where pictures have shapes of their own

ALWAYS_NEEDED = {  # of the settings, to rebuild the network and to use it
    *("classes", "preprocessing", "anchors", "box_coding", "score_activation", "backbone", "image_size"),
}
NEEDED = {  # by the detector; runs that name none are M2Det
    "m2det": ALWAYS_NEEDED | {"taps", "variant", "tums", "scales", "channels", "sfam", "head"},
    "retinanet": ALWAYS_NEEDED | {"taps", "scales", "channels", "head"},
    "legacy_retinanet": ALWAYS_NEEDED | {"padding", "clip"},
}


def network_from_settings(settings: dict, *, backbone_weights: str = "none") -> keras.Model:
    """Builds the network of a run; `backbone_weights` as in `models.backbones.build_backbone`."""
    background = settings["score_activation"] == "softmax"  # its first output
    num_classes = len(settings["classes"]) + background
    if settings.get("detector") == "legacy_retinanet":
        names = ("backbone", "image_size", "padding")
        return build_legacy_retinanet(**{name: settings[name] for name in names}, num_classes=num_classes)
    build, names = build_m2det, ("backbone", "image_size", "variant", "tums", "scales", "channels", "sfam", "head")
    if settings.get("detector") == "retinanet":
        build, names = build_retinanet, ("backbone", "image_size", "scales", "channels", "head")
    return build(
        **{name: settings[name] for name in names},
        num_classes=num_classes,
        anchors_per_cell=anchors_per_cell(settings["anchors"]),
        backbone_weights=backbone_weights,
        preprocessing=settings["preprocessing"]["normalisation"],
        taps=settings["taps"] and tuple(settings["taps"]),
    )


def inference_model(network: keras.Model, settings: dict) -> keras.Model:
    """Adds the decoding to the network of a run; the weights are shared. One that sees any shape stays as it is."""
    if settings["preprocessing"]["resize"] == SIDES:
        return network
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
        model: from raw RGB pixels `(batch, size, size, 3)` to `TopBoxes`' dict; where pictures have any shape, to the
            network's raw outputs.
        settings: the run's `settings.json`.
        image_size: side of the network's square in pixels; None where pictures have any shape.
        class_labels: Open Images labels ("/m/..."), in the order of the outputs.
    """

    def __init__(self, model: keras.Model, settings: dict, *, precision: Precision | None = None):
        self.model = model
        self.settings = settings
        self.image_size = settings["image_size"]
        self._resize = settings["preprocessing"]["resize"]
        self.class_labels = [entry["label"] for entry in settings["classes"]]
        self.class_names = [entry["name"] for entry in settings["classes"]]
        # what the graph's end does takes longer on a CPU than reading the raw outputs
        self._host_decodes = isinstance(model, keras.Model) and runs_on_cpu()
        self._predicting = self._with_its_end(model)
        if precision:
            self._predicting = folded(self._predicting, dtype=None if precision == "float32" else precision)
        if keras.backend.backend() == "tensorflow" and (self._host_decodes or self._resize == SIDES):
            # on a CPU XLA is no faster in float32, and half as fast in bfloat16; it would compile for every shape
            self._predicting.jit_compile = False
        self._anchors = None if self._resize == SIDES else make_anchors(settings["anchors"])

    def _with_its_end(self, model: keras.Model) -> keras.Model:
        """The model that ends where the host goes on."""
        if self._resize == SIDES:
            return model if self._host_decodes else keras.Model(model.input, TopPairs()(model.output), name=model.name)
        return _without_decoding(model) if self._host_decodes else model

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Makes of one RGB picture `(height, width, 3)` what the network sees.

        Returns:
            `(size, size, 3)` uint8, warped or letterboxed, as the training saw pictures; or, where `settings` say
            "sides", `(height, width, 3)` float32 of a size of its own in the picture's aspect ratio.
        """
        if self._resize == SIDES:
            sides = (self.settings["preprocessing"][name] for name in ("min_side", "max_side"))
            return resize_to_sides(np.asarray(image), *sides)
        smooth = self.settings["preprocessing"]["interpolation"] == "area"
        to_square = letterbox_to_square if self._resize == "letterbox" else warp_to_square
        return to_square(np.asarray(image), self.image_size, smooth=smooth)

    def detect(
        self,
        pictures: np.ndarray | Sequence[np.ndarray],
        *,
        sizes: Sequence[tuple[int, int]] | None = None,
        score_threshold: float = 0.01,
        mirror: bool = False,
        nms: Literal["hard", "linear", "gaussian", "published"] = "hard",
        **options,
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Detects on pictures that `prepare` made.

        Args:
            pictures: `(batch, size, size, 3)`, RGB; or a list of pictures, whose shapes may differ where `settings` say
                "sides": those of one shape are looked at together, as many as memory allows.
            sizes: height and width of each picture before `prepare`; needed where it letterboxes, elsewhere the same is
                said without them.
            score_threshold: boxes with a lower score are left out.
            mirror: look at the mirrored pictures, too, which takes twice as long; the suppression, and the voting
                after it, sees what was found in both.
            nms: see `models.decoding.suppress`; "published", which a converted RetinaNet has, is that of its authors,
                exactly: see `models.decoding.published_boxes`. It needs no voting, and sees one picture alone.
            **options: of `models.decoding.suppress`: nms_iou, nms_sigma, vote_iou, max_boxes.

        Returns:
            For each picture `(boxes, scores, labels)`: float64 `(n, 4)` xyxy normalised to the picture and clipped to
            [0, 1], float64 `(n,)` descending, int64 `(n,)` class indices.

        Raises:
            InputError: "published" of a run that has none, or together with `mirror`.
            ValueError: the network sees letterboxed pictures, and `sizes` does not have one for each.
        """
        if nms == "published":
            return self._published(pictures, mirror, score_threshold, **options)
        found = self._decoded(pictures, score_threshold)
        if mirror:
            mirrored = self._decoded([np.ascontiguousarray(picture[:, ::-1]) for picture in pictures], score_threshold)
            found = [_with_mirrored(*pair) for pair in zip(found, mirrored, strict=True)]
        if self._resize == "letterbox":
            if sizes is None or len(sizes) != len(pictures):
                raise ValueError(f"{len(pictures)} letterboxed pictures need as many sizes, got {sizes}")
            found = [self._off_the_grey(*boxes, *size) for boxes, size in zip(found, sizes, strict=True)]
        return [suppress(*boxes, score_threshold=score_threshold, nms=nms, **options) for boxes in found]

    def _decoded(self, pictures, score_threshold: float) -> list[tuple]:
        """The best boxes, scores and labels of each picture, before the suppression."""
        found = [None] * len(pictures)
        for index, pairs_of in self._candidates(pictures):
            found[index] = pairs_of(MOST_BOXES, score_threshold)[:3]
        return found

    def _published(self, pictures, mirror: bool, score_threshold: float, **options) -> list[tuple]:
        """Of each picture what keras-retinanet gives for it."""
        if self._resize != SIDES or mirror:
            raise InputError(
                "--nms published is keras-retinanet's, for its converted runs and without --mirror: use hard"
            )
        limits = {"nms_iou": 0.5, "max_boxes": 300} | {k: options[k] for k in ("nms_iou", "max_boxes") if k in options}
        found = [None] * len(pictures)
        for index, pairs_of in self._candidates(pictures):
            ends = clip_ends(self.settings["clip"], *pictures[index].shape[:2])
            found[index] = published_boxes(pairs_of, score_threshold=score_threshold, ends=ends, **limits)
        return found

    def _candidates(self, pictures) -> Iterator[tuple[int, Callable]]:
        """Each picture's index, and its function of a number and a score: so many of its best boxes that are not below
        it, with their scores, labels and anchors."""
        if self._resize == SIDES:
            yield from self._of_any_shape(pictures)
            return
        outputs = self._predicting.predict_on_batch(np.asarray(pictures))
        for index in range(len(pictures)):
            one = {name: values[index] for name, values in outputs.items()}
            if self._host_decodes:
                yield index, self._of_raw(one, self._anchors)
            else:
                yield index, lambda count, score, one=one: (one["boxes"], one["scores"], one["labels"])

    def _of_raw(self, outputs: dict, anchors: np.ndarray) -> Callable:
        kinds = {name: self.settings[name] for name in ("box_coding", "score_activation")}
        return functools.partial(best_boxes, outputs["classes"], outputs["boxes"], anchors, **kinds)

    def _of_any_shape(self, pictures: Sequence[np.ndarray]) -> Iterator[tuple[int, Callable]]:
        """As `_candidates`; pictures of one shape are looked at together, as many as fit into memory."""
        shapes = {}
        for index, picture in enumerate(pictures):
            shapes.setdefault(picture.shape[:2], []).append(index)
        for shape, indices in shapes.items():
            anchors = _anchors_of_shape(self.settings["anchors"]["scales"], *shape)
            most = max(1, MOST_OUTPUTS // (4 * len(anchors) * (len(self.class_labels) + 4)))
            for together in (indices[k : k + most] for k in range(0, len(indices), most)):
                outputs = self._predicting.predict_on_batch(np.stack([pictures[index] for index in together]))
                for row, index in enumerate(together):
                    one = {name: values[row] for name, values in outputs.items()}
                    raw = self._host_decodes
                    yield index, self._of_raw(one, anchors) if raw else self._of_pairs(one, pictures[index], anchors)

    def _of_pairs(self, top: dict, picture: np.ndarray, anchors: np.ndarray) -> Callable:
        """From what left the graph; where more is asked for, from all its outputs."""
        coding, num_classes = self.settings["box_coding"], len(self.class_labels)

        def pairs_of(count: int, score_threshold: float = 0.0) -> tuple:
            if count <= len(top["logits"]):
                pairs = {name: values[:count] for name, values in top.items()}
                found = boxes_of_pairs(pairs, anchors, num_classes, box_coding=coding)
                return tuple(values[found[1] >= score_threshold] for values in found)
            outputs = self.model.predict_on_batch(picture[None])
            one = {name: values[0] for name, values in outputs.items()}
            return self._of_raw(one, anchors)(count, score_threshold)

        return pairs_of

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
            pictures = [self.prepare(image) for image in images]
            sizes = [np.shape(image)[:2] for image in images]
            found = self.detect(pictures, sizes=sizes, max_boxes=max_boxes, **options)
            for index, (image, (b, s, c)) in enumerate(zip(images, found, strict=True)):
                height, width = np.shape(image)[:2]
                boxes[index, : len(b)] = b * (width, height, width, height)
                scores[index, : len(b)] = s
                labels[index, : len(b)] = c
        return {"boxes": boxes, "scores": scores, "labels": labels}


@functools.lru_cache(maxsize=16)
def _anchors_of_shape(scales: int, height: int, width: int) -> np.ndarray:
    """RetinaNet's anchors on a picture, normalised, float64."""
    return anchors_of_picture(scales, height, width).astype("float64") / (width, height, width, height)


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
        detector = settings.get("detector", "m2det")
        missing = NEEDED.get(detector, ALWAYS_NEEDED) - set(settings)
    except FileNotFoundError:
        raise InputError(f"{run} is no run: it has no {SETTINGS}; train one with a03, or name another") from None
    except (ValueError, OSError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({error}): train the run again, or restore the file") from error
    if missing:
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}: it was not written by this version of a03")
    if detector not in NEEDED:
        raise InputError(
            f"{path}: detector is {detector!r}: this version has {', '.join(NEEDED)}; use the one that wrote it"
        )
    resize = settings["preprocessing"].get("resize")
    if resize not in (*RESIZES, SIDES):
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
