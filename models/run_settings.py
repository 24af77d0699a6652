"""What rebuilds and uses the network of a run: its `settings.json`, as frozen dataclasses."""

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple

from oid.anchors.grids import AnchorGrids
from oid.files import InputError
from oid.images.read import Orientation
from oid.json_files import read_json, write_json

SETTINGS = "settings.json"  # files in the folder of a run
MODEL = "model.keras"  # the bare network with the best weights
CHECKPOINT = "checkpoint"
CHECKPOINT_WEIGHTS = Path(CHECKPOINT) / "network.weights.h5"

BoxDeltas = Literal["distances", "ssd", "corners"]
Head = Literal["conv", "shared", "light"]
Scores = Literal["sigmoid", "softmax"]
Variant = Literal["paper", "released", "released_sfam"]


class DetectionClass(NamedTuple):
    """A class that the network detects: its Open Images label ("/m/...") and its name."""

    label: str
    name: str


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """The architecture.

    Attributes:
        detector: "m2det", "retinanet", or "keras_retinanet" for a converted checkpoint of that project.
        backbone: a key of `models.backbones.BACKBONES`; of keras-retinanet "resnet50", "resnet101" or "resnet152".
        image_size: side of the square input in pixels; None = images of any shape (keras_retinanet only).
        scales: number of maps.
        channels: channels of each map of each module.
        head: see `models.heads`.
        normalisation: a key of `models.preprocessing.PREPROCESSING`; None = the backbone's own.
        variant, tums: of M2Det only: see `models.m2det`.
        padding, clip: of keras_retinanet only: padding of the first convolution, and to which pixel boxes are clipped.
    """

    detector: Literal["m2det", "retinanet", "keras_retinanet"]
    backbone: str
    image_size: int | None
    scales: int
    channels: int
    head: Head
    normalisation: str | None = None
    variant: Variant | None = None
    tums: int | None = None
    padding: Literal["same", "valid"] | None = None
    clip: Literal["side", "last_pixel"] | None = None


@dataclasses.dataclass(frozen=True)
class InputSettings:
    """How an image becomes the network's input.

    Attributes:
        resize: "warp" or "letterbox" to the square; "sides" keeps the shape: the shorter side becomes `min_side`, or
            the longer one `max_side` where it would be more.
        interpolation: "area" averages where an image shrinks; "linear" is bilinear always.
        orientation: see `oid.images.read`.
        min_side, max_side: pixels, of "sides" only.
    """

    resize: Literal["warp", "letterbox", "sides"]
    interpolation: Literal["area", "linear"] = "area"
    orientation: Orientation = "stored"
    min_side: int | None = None
    max_side: int | None = None


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """All that rebuilds the network of a run and uses it; `settings.json` holds this.

    Attributes:
        network: the architecture.
        inputs: how an image becomes the network's input.
        classes: in the order of the outputs, without the background.
        anchors: None where they are made for each image's shape (keras_retinanet on images of any shape).
        box_deltas: a key of `models.box_deltas.DECODERS`.
        scores: "softmax" has a background class as its first output.
        level: of the hierarchy, as a01 names it; None = unknown.
        converted_from: name of the checkpoint that `convert` read; None = trained by a03.
    """

    network: NetworkSettings
    inputs: InputSettings
    classes: tuple[DetectionClass, ...]
    anchors: AnchorGrids | None
    box_deltas: BoxDeltas = "distances"
    scores: Scores = "sigmoid"
    level: str | None = None
    converted_from: str | None = None

    @property
    def labels(self) -> list[str]:
        return [entry.label for entry in self.classes]

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.classes]

    @property
    def num_outputs(self) -> int:
        """Class outputs per anchor, the background of softmax included."""
        return len(self.classes) + (self.scores == "softmax")

    @property
    def any_shape(self) -> bool:
        """Whether the network takes images of any shape."""
        return self.network.image_size is None


def read_run_settings(run: str | Path) -> RunSettings:
    """Reads the `settings.json` of a run's folder.

    Raises:
        InputError: there is none, or it is damaged.
    """
    if not (Path(run) / SETTINGS).is_file():
        raise InputError(f"{run} is not a run: it has no {SETTINGS}")
    return read_json(Path(run) / SETTINGS, RunSettings)


def write_run_settings(run: str | Path, settings: RunSettings) -> None:
    """Writes the `settings.json` of a run's folder, which exists."""
    write_json(Path(run) / SETTINGS, settings)
