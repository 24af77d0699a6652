"""The options of a training: a03's flags as frozen dataclasses, grouped by the part of the training that reads them.

`a03_train_m2det.main` says what each means.
"""

import dataclasses
import math
import re
from typing import Literal

from models.run_settings import RunSettings, Variant
from oid.images.read import Orientation

LabelRule = Literal["verified", "ancestors", "regions", "depictions"]
Precision = Literal["float32", "bfloat16"]
RecipeName = Literal["own", "published"]
Sampling = Literal["images", "classes"]

OPEN = (None, "auto")  # values that leave a choice to `training.choose`


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Which network trains, and from which weights."""

    detector: Literal["m2det", "retinanet"] = "m2det"
    backbone: str | None = None
    backbone_weights: str = "none"
    image_size: int | None = None
    tums: int | None = None
    scales: int | None = None
    channels: int | None = None
    variant: Variant | None = None
    head: Literal["auto", "conv", "shared", "light"] = "auto"
    anchors: str | None = None
    init_from: str | None = None
    freeze: Literal["none", "batch_norm", "backbone"] = "none"


@dataclasses.dataclass(frozen=True)
class LengthOptions:
    """How long the training takes: `time_budget` in seconds, or `epochs` instead; None = by the number of images."""

    time_budget: float | None = 1200.0
    epochs: int | None = None
    steps_per_epoch: int | None = None
    max_hours: float | None = None


@dataclasses.dataclass(frozen=True)
class LabelOptions:
    """What is learned from the annotations, by which rules of Open Images."""

    rules: tuple[LabelRule, ...] = ("verified", "ancestors", "regions")
    max_gt_boxes: int = 100


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """Which images are drawn, and how they are read.

    `max_bad_images` unreadable images are replaced by others before the training ends with an error.
    """

    sampling: Sampling = "images"
    sampling_exponent: float = 0.5
    negatives: float | None = None
    mosaic: float | None = None
    orientation: Orientation = "stored"
    skip_missing: bool = False
    max_bad_images: int = 100


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """What a training step does."""

    recipe: RecipeName = "own"
    batch_size: int | None = None
    accumulate: int = 1
    precision: Precision | None = None
    learning_rate: float | None = None


@dataclasses.dataclass(frozen=True)
class RecordOptions:
    """What is measured and saved on the way.

    Checkpoints are written after each epoch, and within it every `checkpoint_minutes` and `checkpoint_steps` (0 =
    never).
    """

    validation_images: int = 1000
    tensorboard: bool = False
    checkpoint_minutes: float = 10.0
    checkpoint_steps: int = 0


@dataclasses.dataclass(frozen=True)
class MachineOptions:
    """On what the training runs; `workers` threads prepare batches (None = one per core)."""

    workers: int | None = None
    cache_gb: float | None = None
    devices: int | None = None
    seed: int = 0
    deterministic: bool = False


@dataclasses.dataclass(frozen=True)
class Options:
    """All options of a training; None and "auto" leave a choice to `training.choose`."""

    level: str = "1"
    network: NetworkOptions = NetworkOptions()
    length: LengthOptions = LengthOptions()
    labels: LabelOptions = LabelOptions()
    images: ImageOptions = ImageOptions()
    step: StepOptions = StepOptions()
    records: RecordOptions = RecordOptions()
    machine: MachineOptions = MachineOptions()


GROUPS = tuple(field.name for field in dataclasses.fields(Options) if field.name != "level")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a detector is trained.

    Attributes:
        assignment, class_loss, box_loss: see `models.losses.DetectionLoss`.
        resize: how images become square.
        crop: see `training.augment`.
        mosaic: share of training images made of four.
        optimizer, schedule, weight_decay, clip_norm: see `training.schedule`.
    """

    assignment: Literal["task_aligned", "max_iou"] = "task_aligned"
    class_loss: Literal["bce", "focal", "softmax"] = "bce"
    box_loss: Literal["giou", "ciou", "smooth_l1"] = "giou"
    resize: Literal["warp", "letterbox"] = "letterbox"
    crop: Literal["zoom", "ssd"] = "zoom"
    mosaic: float = 0.5
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["cosine", "steps"] = "cosine"
    weight_decay: float = 0.03
    clip_norm: float = 10.0


OWN = Recipe()
PUBLISHED = Recipe(
    assignment="max_iou",
    class_loss="softmax",
    box_loss="smooth_l1",
    resize="warp",
    crop="ssd",
    mosaic=0.0,
    optimizer="sgd",
    schedule="steps",
    weight_decay=5e-4,
)


def recipe_of(options: Options) -> Recipe:
    """The recipe that the options name, with the user's share of mosaics.

    RetinaNet is published with focal loss instead of softmax.
    """
    recipe = OWN if options.step.recipe == "own" else PUBLISHED
    if recipe is PUBLISHED and options.network.detector == "retinanet":
        recipe = dataclasses.replace(recipe, class_loss="focal")
    mosaic = options.images.mosaic
    return recipe if mosaic is None else dataclasses.replace(recipe, mosaic=mosaic)


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """What a run is trained with, once everything is chosen; `training.json` holds this beside `settings.json`."""

    options: Options
    recipe: Recipe
    batch_size: int
    learning_rate: float
    precision: Precision


# === A run that goes on ===
def continued(begun: Options, now: Options) -> Options:
    """The options of a run that goes on: as it began, but for those that do not change what it learns."""
    images = dataclasses.replace(
        begun.images, skip_missing=now.images.skip_missing, max_bad_images=now.images.max_bad_images
    )
    machine = dataclasses.replace(now.machine, seed=begun.machine.seed, deterministic=begun.machine.deterministic)
    return dataclasses.replace(begun, length=now.length, images=images, records=now.records, machine=machine)


def changes(run: RunSettings, training: TrainingSettings, now: Options) -> list[tuple[str, object, object]]:
    """The options that would change what a run learns: their names, values as the run began, and values now.

    An option that is open now is as the run began; one that was open then has the value that was chosen.
    """
    chosen = {**vars(run.network), **vars(training), "mosaic": training.recipe.mosaic}
    begun, given = ({"level": each.level} for each in (training.options, now))
    for group in GROUPS:
        begun |= vars(getattr(continued(training.options, now), group))
        given |= vars(getattr(now, group))
    begun |= {name: chosen.get(name) for name, value in begun.items() if value in OPEN}
    return [(name, begun[name], new) for name, new in given.items() if new not in OPEN and new != begun[name]]


def duration(text: str) -> float:
    """Seconds of "90s", "20m", "1h30m" or "2d"; NaN for any other text."""
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
    if "".join(number + unit for number, unit in parts) != text:
        return math.nan
    return sum(float(number) * units[unit] for number, unit in parts)
