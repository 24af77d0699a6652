"""What a training chooses where the user left an option open, always with its reason.

Few images or a machine without an accelerator get the small network that was measured best there; an accelerator with
many images gets the paper's.
"""

import dataclasses
import json
import math
import os
from pathlib import Path

from models.run_settings import Head, InputSettings, NetworkSettings, RunSettings
from oid.anchors.grids import (
    NAMED_SETS,
    SMALL_IMAGE_SIZE,
    SMALL_SCALES,
    AnchorGrids,
    feature_map_sides,
    grids_of_sizes,
    m2det_anchors,
    pyramid_sides,
    retinanet_anchors,
    scales_that_fit,
)
from oid.files import InputError
from training.options import OPEN, NetworkOptions, Options, Precision, Recipe, TrainingSettings

SMALL = NetworkOptions(backbone="residual_small", image_size=SMALL_IMAGE_SIZE, tums=2, scales=SMALL_SCALES, channels=64)
LARGE = {  # RetinaNet's as in its paper, at a smaller size
    "m2det": NetworkOptions(backbone="vgg16", image_size=320, tums=8, scales=6, channels=128),
    "retinanet": NetworkOptions(backbone="resnet50", image_size=512, scales=5, channels=256),
}
SIZES = ("backbone", "image_size", "tums", "scales", "channels")  # what `SMALL` and `LARGE` say
BACKBONE_FROM_RANDOM = "resnet50"  # instead of VGG, which has no batch norm
BACKBONE_FROM_IMAGENET = "mobilenet_v2"  # instead of the small one, which has no ImageNet weights
RATES = {"adamw": (2e-3, 2e-4), "sgd": (2e-2, 2e-3)}  # from random weights, from others; the paper: the last
BOX_DELTAS = {"m2det": "ssd", "retinanet": "corners"}  # as published
MANY_IMAGES = 10_000  # from here on the paper's network has enough to learn from
MANY_CLASSES = 100  # from here on the head's subnets are shared by the maps
CACHED_SHARE = 0.5  # of the free memory that reduced images may take
FEW_CORES = 4  # up to here `share_few_cores` helps
MOST_WORKERS = 16


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the choices depend on."""

    images: int  # for training
    accelerator: bool  # a GPU or TPU
    cores: int
    bfloat16: bool = False  # whether the processor or the accelerator has instructions for it
    devices: int = 1  # that share each batch

    @property
    def machine(self) -> str:
        return "an accelerator" if self.accelerator else f"{self.cores} CPU cores"


def choose_run(
    options: Options, recipe: Recipe, classes: tuple, facts: Facts, source: RunSettings | None = None
) -> tuple[RunSettings, TrainingSettings, list[str]]:
    """Chooses what the options leave open.

    Args:
        options: as given.
        recipe: of `recipe_of`, or another one to be measured.
        classes: `DetectionClass` of the level, in the order of the outputs.
        facts: what is known of the data and the machine.
        source: settings of the run whose weights are taken over. Open options of the network are as there, so that the
            weights fit. A run of the other detector gives its backbone and its image size. A converted keras-retinanet
            checkpoint decides everything unless a backbone is asked for.

    Returns:
        what rebuilds the network, what trains it, and a sentence for each choice.

    Raises:
        InputError: options contradict each other or the source, or the anchors do not fit.
    """
    converted = bool(source) and source.network.detector == "keras_retinanet"
    if converted and options.network.detector == "retinanet" and options.network.backbone is None:
        network, anchors, reasons = _converted(options.network, source)
    else:
        network, reasons = _network(options.network, facts, source, len(classes))
        anchors, why = _anchors(options.network, network, recipe, source)
        reasons.append(why)
    deltas = "distances" if options.step.recipe == "own" else BOX_DELTAS[options.network.detector]
    run = RunSettings(
        network=network,
        inputs=InputSettings(recipe.resize, orientation=options.images.orientation),
        classes=classes,
        anchors=anchors,
        box_deltas="corners" if network.detector == "keras_retinanet" else deltas,
        scores="softmax" if recipe.class_loss == "softmax" else "sigmoid",
        level=options.level,
    )
    training, why = _training(options, recipe, facts)
    return run, training, reasons + why


# === The network ===
def _converted(asked: NetworkOptions, source: RunSettings) -> tuple[NetworkSettings, AnchorGrids, list[str]]:
    """The network of a converted checkpoint, which has learned on images of any shape, on squares."""
    anchors = None if asked.anchors == "official" else asked.anchors
    head = None if asked.head == "auto" else asked.head
    for name, value in (("scales", asked.scales), ("channels", asked.channels), ("head", head), ("anchors", anchors)):
        if value is not None:
            raise InputError(f"{name} {value} would change the network of {asked.init_from}: leave it out")
    image_size = asked.image_size or source.network.image_size or LARGE["retinanet"].image_size
    network = dataclasses.replace(source.network, image_size=image_size)
    reason = f"{network.detector} on {network.backbone}, because the weights of {asked.init_from} are for it"
    return network, retinanet_anchors(image_size, network.scales, "official"), [reason]


def _network(
    asked: NetworkOptions, facts: Facts, source: RunSettings | None, num_classes: int
) -> tuple[NetworkSettings, list[str]]:
    """The architecture, and the reasons."""
    known = _from_source(asked, source) if source else {}
    reasons = []
    if known:
        listed = ", ".join(f"{name} {value}" for name, value in known.items())
        reasons.append(f"{listed}, because the weights of {asked.init_from} are for these")
    network = dataclasses.replace(asked, **known)
    large = facts.accelerator and facts.images >= MANY_IMAGES
    usual = LARGE[asked.detector] if large else SMALL
    chosen = {name: getattr(usual, name) for name in SIZES if getattr(network, name) is None}
    if asked.detector != "m2det":
        chosen.pop("tums", None)
    if "backbone" in chosen:
        chosen["backbone"], why = _backbone_for(asked.backbone_weights, usual.backbone)
        reasons += [f"backbone {chosen['backbone']}, because {why}"] if why else []
    network = dataclasses.replace(network, **chosen)
    other_size = not source or network.image_size != source.network.image_size
    if asked.scales is None and other_size:
        network = dataclasses.replace(network, scales=scales_that_fit(network.image_size, network.scales))
    if chosen:
        listed = ", ".join(f"{name} {getattr(network, name)}" for name in chosen)
        kind = "the paper's network" if large else "a small network"
        reasons.insert(0, f"{kind} ({listed}) for {facts.images} images on {facts.machine}")
    same_backbone = source and source.network.backbone == network.backbone
    settings = NetworkSettings(
        detector=network.detector,
        **{name: getattr(network, name) for name in SIZES},
        head=_head(network, "channels" in chosen, num_classes) if network.head == "auto" else network.head,
        normalisation=source.network.normalisation if same_backbone else None,
        variant=(network.variant or "paper") if network.detector == "m2det" else None,
    )
    return settings, reasons


def _from_source(asked: NetworkOptions, source: RunSettings) -> dict[str, object]:
    """The open options of the network as another run has them."""
    names = ["image_size"] if source.network.detector == "keras_retinanet" else ["backbone", "image_size"]
    if source.network.detector == asked.detector:
        names += ["variant", "tums", "scales", "channels", "head"]
    known = vars(source.network)
    return {name: known[name] for name in names if getattr(asked, name) in OPEN and known[name] is not None}


def _backbone_for(weights: str, usual: str) -> tuple[str, str | None]:
    """A backbone that can begin with these weights, and why it is not the usual one.

    Raises:
        InputError: the weights are in a file, which does not say what they are for.
    """
    if weights not in ("none", "imagenet"):
        raise InputError(f"backbone_weights {weights} needs a backbone: name the one whose weights they are")
    if weights == "none" and usual == LARGE["m2det"].backbone:
        return BACKBONE_FROM_RANDOM, f"random weights need batch norm, which {usual} does not have"
    if weights == "imagenet" and usual == SMALL.backbone:
        return BACKBONE_FROM_IMAGENET, f"{usual} has no ImageNet weights"
    return usual, None


def _head(network: NetworkOptions, channels_chosen: bool, num_classes: int) -> Head:
    """The light head in the small network, where one more convolution costs little and teaches much."""
    usual = "shared" if network.detector == "retinanet" or num_classes > MANY_CLASSES else "conv"
    light = "shared" if network.detector == "retinanet" else "conv"  # what it replaces
    thin = channels_chosen and network.channels == SMALL.channels and network.variant in (None, "paper")
    return "light" if thin and usual == light else usual


# === Anchors ===
def _anchors(
    asked: NetworkOptions, network: NetworkSettings, recipe: Recipe, source: RunSettings | None
) -> tuple[AnchorGrids, str]:
    """The anchors of a new run, and the reason."""
    name, why = asked.anchors, "as asked for"
    same_detector = source and source.network.detector == network.detector
    if name is None and same_detector and (grids := _as_in_source(network, source)):
        return grids, f"anchors per cell: {grids.per_cell}, as {asked.init_from} has"
    if name is None:
        by_overlap = recipe.assignment == "max_iou"
        name = "official" if by_overlap else "square"
        why = "because a box needs an anchor of its size" if by_overlap else "because the assignment finds the size"
    grids = _grids(network, name)
    if name not in NAMED_SETS:
        why = f"from {name}"
        resize = json.loads(Path(name).read_text(encoding="utf-8")).get("resize")
        if resize not in (None, recipe.resize):
            raise InputError(
                f"{name} holds anchors for the resizing {resize!r}, but this training has {recipe.resize!r}: make the "
                f"file again by a02 with {recipe.resize}"
            )
    return grids, f"anchors per cell: {grids.per_cell}, {why}"


def _as_in_source(network: NetworkSettings, source: RunSettings) -> AnchorGrids | None:
    """The set of anchors of another run at this run's size; None where its sizes are for another number of maps."""
    for name in NAMED_SETS:
        if source.anchors == _grids(source.network, name):
            return _grids(network, name)
    if len(source.anchors.sizes) != network.scales:
        return None
    sides = (feature_map_sides if network.detector == "m2det" else pyramid_sides)(network.image_size, network.scales)
    return grids_of_sizes(source.anchors.sizes, sides)


def _grids(network: NetworkSettings, anchors: str) -> AnchorGrids:
    describe = m2det_anchors if network.detector == "m2det" else retinanet_anchors
    return describe(network.image_size, network.scales, anchors)


# === The steps ===
def _training(options: Options, recipe: Recipe, facts: Facts) -> tuple[TrainingSettings, list[str]]:
    """Batch size, learning rate and precision, and the reasons."""
    step, network, reasons = options.step, options.network, []
    batch_size, learning_rate, precision = step.batch_size, step.learning_rate, step.precision
    if batch_size is None:
        batch_size = math.ceil((32 if facts.accelerator else 8) / facts.devices) * facts.devices
        reasons.append(f"batches of {batch_size} on {facts.machine}")
    if learning_rate is None:
        learned = network.backbone_weights != "none" or network.init_from is not None
        learning_rate = RATES[recipe.optimizer][learned]
        why = "the weights have learned already" if learned else "the weights begin at random"
        reasons.append(f"learning rate {learning_rate:g} for {recipe.optimizer}, because {why}")
    if precision is None:
        precision: Precision = "bfloat16" if facts.bfloat16 else "float32"
        why = "has instructions for it" if facts.bfloat16 else "has no instructions for bfloat16"
        reasons.append(f"precision {precision}, because this machine {why}")
    return TrainingSettings(options, recipe, batch_size, learning_rate, precision), reasons


# === The machine ===
def workers_for(cores: int) -> int:
    """Threads that prepare batches: one per core, because a fast accelerator waits for them.

    At least 2: with one thread Keras leaves the batches to TensorFlow's own threads, which end late after an epoch.
    """
    return max(2, min(cores, MOST_WORKERS))


def cache_bytes(cache_gb: float | None, free_memory: int) -> int:
    """Memory for reduced images: as asked for, else half of what is free."""
    return int(CACHED_SHARE * free_memory if cache_gb is None else cache_gb * 2**30)


def share_few_cores(channels: int | None, cores: int) -> None:
    """Lets TensorFlow run two layers at once on few cores instead of one layer on two: a thin network gains a tenth.

    Call it before TensorFlow starts. Variables that the user has set stay.

    Args:
        channels: of the pyramid; None = the small network's.
        cores: of the processor; with many, two layers at once would leave most of them idle.
    """
    if cores <= FEW_CORES and (channels or SMALL.channels) <= SMALL.channels:
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
        os.environ.setdefault("TF_NUM_INTEROP_THREADS", str(cores))


def processor_has_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16, which halves the time; without instructions for it, it is slow."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = {word for line in file if line.startswith(("flags", "Features")) for word in line.split()}
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
