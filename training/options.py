"""The options of a training: a03's flags as frozen dataclasses, grouped by the part of the training that reads them."""

import dataclasses
import math
import re
from typing import Literal, NamedTuple

from models.run_settings import RunSettings, Variant
from oid.images.read import Orientation

LabelRule = Literal["verified", "ancestors", "regions", "depictions"]
Precision = Literal["float32", "bfloat16"]
RecipeName = Literal["own", "published"]
Sampling = Literal["images", "classes"]

OPEN = (None, "auto")  # values that leave a choice to `training.choose`


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Which network trains, and from which weights; None is chosen by `training.choose`.

    Attributes:
        backbone_weights: "none" (random), "imagenet", or a file.
        anchors: "square", "official", or a file of sizes that a02 wrote; None = the recipe's.
        init_from: name or folder of the run, or a converted checkpoint, whose weights are taken over.
        freeze: "batch_norm" keeps its weights and statistics, "backbone" keeps all of the backbone.
    """

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
    """How long the training takes.

    Attributes:
        time_budget: seconds of wall-clock time; None = as long as the number of images suggests.
        epochs: replaces the time budget.
        steps_per_epoch: with `epochs`; None or 0 = each image once.
        max_hours: saves and stops after this time; the same command goes on.
    """

    time_budget: float | None = 1200.0
    epochs: int | None = None
    steps_per_epoch: int | None = None
    max_hours: float | None = None


@dataclasses.dataclass(frozen=True)
class LabelOptions:
    """What is learned from the annotations.

    Attributes:
        rules: the rules of Open Images that are followed, see `models.label_rules`.
        max_gt_boxes: box rows per image (one per class); a random surplus is ignored.
    """

    rules: tuple[LabelRule, ...] = ("verified", "ancestors", "regions")
    max_gt_boxes: int = 100


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """Which images are drawn, and how they are read.

    Attributes:
        sampling: "images" draws each once per pass, "classes" a class, then an image with it.
        sampling_exponent: of "classes": 0 draws every class equally often, 1 as often as it occurs.
        negatives: share of images without an object; None = as they come.
        mosaic: share of training pictures made of four; None = the recipe's.
        orientation: "stored" or "exif", see `oid.images.read`.
        skip_missing: leaves out images without a sound file instead of refusing to start.
        max_bad_images: unreadable images that are replaced by others before the training ends with an error.
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
    """What a training step does; None is chosen by `training.choose`.

    Attributes:
        recipe: "own", or "published": the authors' training.
        batch_size: images per step, of all devices together.
        accumulate: steps whose gradients make one update.
        precision: "bfloat16" keeps weights, losses and updates in float32.
        learning_rate: the highest, after the warm-up.
    """

    recipe: RecipeName = "own"
    batch_size: int | None = None
    accumulate: int = 1
    precision: Precision | None = None
    learning_rate: float | None = None


@dataclasses.dataclass(frozen=True)
class RecordOptions:
    """What is measured and saved on the way.

    Attributes:
        validation_images: at most this many measure an epoch; 0 = all.
        tensorboard: writes tensorboard/ in the run's folder.
        checkpoint_minutes: time between two checkpoints within an epoch; 0 = none by time.
        checkpoint_steps: the same in steps; 0 = none by steps.
    """

    validation_images: int = 1000
    tensorboard: bool = False
    checkpoint_minutes: float = 10.0
    checkpoint_steps: int = 0


@dataclasses.dataclass(frozen=True)
class MachineOptions:
    """On what the training runs.

    Attributes:
        workers: threads that prepare batches; None = one per core, at least 2, at most 16.
        cache_gb: memory for reduced images; None = half of what is free; 0 = images are read each time.
        devices: that share each batch; None = all GPUs; on a machine without a GPU the CPU is split into this many.
        seed: of weights, order and augmentation.
        deterministic: the same bits from the same seed on the same machine; slower.
    """

    workers: int | None = None
    cache_gb: float | None = None
    devices: int | None = None
    seed: int = 0
    deterministic: bool = False


@dataclasses.dataclass(frozen=True)
class Options:
    """All options of a training.

    Attributes:
        level: of the hierarchy, as a01 names it.
    """

    level: str = "1"
    network: NetworkOptions = NetworkOptions()
    length: LengthOptions = LengthOptions()
    labels: LabelOptions = LabelOptions()
    images: ImageOptions = ImageOptions()
    step: StepOptions = StepOptions()
    records: RecordOptions = RecordOptions()
    machine: MachineOptions = MachineOptions()


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a detector is trained; `recipe_of` has the two that there are.

    Attributes:
        assignment: of anchors to boxes: by score and overlap, or by the maximum IoU (as published).
        class_loss: "bce" learns the overlap, "focal" and "softmax" (with a background class and 3:1 hard negatives)
            learn 1.
        box_loss: see `models.losses`.
        resize: how images become square.
        crop: "zoom", or the published "ssd".
        mosaic: share of training pictures made of four.
        optimizer: "adamw", or "sgd" with momentum 0.9.
        schedule: "cosine", or the paper's "steps": a tenth at 60 %, again at 80 %.
        weight_decay: decoupled, of everything but biases and batch norm.
        clip_norm: longest gradient of all weights together; 0 = any.
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
    """What a run is trained with, once everything is chosen; `training.json` holds this beside `settings.json`.

    Attributes:
        options: as they were given.
        recipe: of `recipe_of`.
        batch_size, learning_rate, precision: chosen by `training.choose` where the user left them open.
    """

    options: Options
    recipe: Recipe
    batch_size: int
    learning_rate: float
    precision: Precision


# === A run that goes on ===
class Change(NamedTuple):
    """An option of which a run began with another value; None = the run began without it."""

    name: str
    before: object
    now: object


def continued(begun: Options, now: Options) -> Options:
    """The options of a run that goes on: as it began, but for those that do not change what it learns."""
    images = dataclasses.replace(
        begun.images, skip_missing=now.images.skip_missing, max_bad_images=now.images.max_bad_images
    )
    machine = dataclasses.replace(now.machine, seed=begun.machine.seed, deterministic=begun.machine.deterministic)
    return dataclasses.replace(begun, length=now.length, images=images, records=now.records, machine=machine)


def changes(run: RunSettings, training: TrainingSettings, now: Options) -> list[Change]:
    """The options that would change what a run learns.

    An option that is open now (None or "auto") is as the run began; one that was open then has the value that was
    chosen.
    """
    chosen = {**vars(run.network), **vars(training), "mosaic": training.recipe.mosaic}
    found = []
    for begun, given in zip(_groups(continued(training.options, now)), _groups(now), strict=True):
        for name, value in vars(given).items():
            before = getattr(begun, name)
            before = chosen.get(name) if before in OPEN else before
            if value not in OPEN and value != before and not dataclasses.is_dataclass(value):
                found.append(Change(name, before, value))
    return found


def _groups(options: Options) -> list:
    return [options, *filter(dataclasses.is_dataclass, vars(options).values())]


def duration(text: str) -> float:
    """Seconds of "90s", "20m", "1h30m" or "2d"; NaN for any other text."""
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
    if "".join(number + unit for number, unit in parts) != text:
        return math.nan
    return sum(float(number) * units[unit] for number, unit in parts)
