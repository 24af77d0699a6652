"""What a03 decides where the user left it open, always with reasons: the network, the batch, the training's length.

A setting that is None is open. Small data and few cores get the small network that was measured best there, an
accelerator with many images the paper's; the length follows from a time budget, or else from the number of images.
"""

import dataclasses
import math
import os
import re

from oid.anchors.grids import SMALL_IMAGE_SIZE, SMALL_SCALES, scales_that_fit
from oid.files import InputError
from training.augment import KEPT_SIDE

SMALL = {
    "backbone": "residual_small",
    "image_size": SMALL_IMAGE_SIZE,
    "tums": 2,
    "scales": SMALL_SCALES,
    "channels": 64,
}
PAPER = {"backbone": "vgg16", "image_size": 320, "tums": 8, "scales": 6, "channels": 128}
RETINANET = {"backbone": "resnet50", "image_size": 512, "scales": 5, "channels": 256}  # of its paper, at a smaller size
BACKBONE_FROM_RANDOM = "resnet50"  # instead of the paper's, which has no batch norm
BACKBONE_FROM_IMAGENET = "mobilenet_v2"  # instead of the small one, for which there are none; at its cost
RATES = {"adamw": (2e-3, 2e-4), "sgd": (2e-2, 2e-3)}  # from random weights, from others; the paper: sgd's second
WEIGHT_DECAYS = {"adamw": 0.03, "sgd": 5e-4}
MANY_IMAGES = 10_000  # from here on the paper's network has enough to learn from
CACHED_SHARE = 0.5  # of the free memory that reduced pictures may take
PICTURES_OF_SMALL_DATA = 32_000  # seen in the whole training, where no time budget says how many
PASSES = 12  # the same for many images
EPOCHS = 40
EPOCHS_IN_BUDGET = 30  # so many, unless measuring the mAP would take too large a share of the time
VALIDATION_SHARE = 0.1
SHORTEST = 20  # steps: a budget for fewer trains nothing
FEW_CORES = 4  # up to here `share_few_cores` helps
MOST_WORKERS = 16
MARGIN = 0.02  # of a time budget is kept for saving, and for steps slower than those that were measured


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the choices depend on.

    Attributes:
        images: number of training images.
        accelerator: whether there is a GPU or TPU.
        cores: of the processor.
        free_memory: bytes.
        bfloat16: whether the processor, or the accelerator, has instructions for it.
        devices: that share each batch.
    """

    images: int
    accelerator: bool
    cores: int
    free_memory: int
    bfloat16: bool = False
    devices: int = 1


def fill_in(settings: dict, facts: Facts) -> tuple[dict, list[str]]:
    """Chooses what is None of the network (`SMALL`), batch_size, learning_rate, weight_decay, precision and cache_gb.

    Args:
        settings: these names, and detector, backbone_weights, init_from, optimizer.
        facts: what is known of the data and the machine.

    Returns:
        the settings with nothing open, and one sentence for each decision.

    Raises:
        InputError: there is a file of weights, and no backbone that they are for.
    """
    machine = "an accelerator" if facts.accelerator else f"{facts.cores} CPU cores"
    chosen, reasons = _fill_in_network(settings, facts, machine)
    if settings["batch_size"] is None:
        each = math.ceil((32 if facts.accelerator else 8) / facts.devices)
        chosen["batch_size"] = each * facts.devices
        reasons.append(f"batches of {chosen['batch_size']} on {machine}")
    optimizer = settings["optimizer"]
    if settings["learning_rate"] is None:
        pretrained = settings["backbone_weights"] != "none" or bool(settings["init_from"])
        chosen["learning_rate"] = RATES[optimizer][pretrained]
        why = "the weights have learned already" if pretrained else "the weights begin at random"
        reasons.append(f"learning rate {chosen['learning_rate']:g} for {optimizer}, because {why}")
    if settings["weight_decay"] is None:
        chosen["weight_decay"] = WEIGHT_DECAYS[optimizer]
        reasons.append(f"weight decay {chosen['weight_decay']:g}, because the optimizer is {optimizer}")
    if settings["precision"] is None:
        chosen["precision"] = "bfloat16" if facts.bfloat16 else "float32"
        why = "this machine has instructions for it" if facts.bfloat16 else "this machine has none for bfloat16"
        reasons.append(f"precision {chosen['precision']}, because {why}")
    if settings["cache_gb"] is None:
        chosen["cache_gb"] = round(CACHED_SHARE * facts.free_memory / 2**30, 2)
    return chosen, reasons


def _fill_in_network(settings: dict, facts: Facts, machine: str) -> tuple[dict, list[str]]:
    """The part of `fill_in` that is about the network."""
    chosen, reasons = dict(settings), []
    large = facts.accelerator and facts.images >= MANY_IMAGES
    network = PAPER if large else SMALL
    if (detector := settings.get("detector", "m2det")) != "m2det":
        large = large or detector != "retinanet"  # what was published goes on as it is
        network = RETINANET if large else {name: value for name, value in SMALL.items() if name != "tums"}
    opened = [name for name in network if settings[name] is None]
    chosen |= {name: network[name] for name in opened}
    if "backbone" in opened:
        chosen["backbone"], why = _backbone_for(settings["backbone_weights"], network["backbone"])
        reasons += [f"backbone {chosen['backbone']}, because {why}"] if why else []
    if "scales" in opened:
        chosen["scales"] = scales_that_fit(chosen["image_size"], chosen["scales"])
    if opened:
        what = ", ".join(f"{name} {chosen[name]}" for name in opened)
        kind = "the paper" if large else "a small network"
        reasons.insert(0, f"{facts.images} images on {machine}: {kind} ({what})")
    return chosen, reasons


def _backbone_for(weights: str, usual: str) -> tuple[str, str | None]:
    """A backbone that can begin with these weights, and why it is not the usual one, if it is not.

    Raises:
        InputError: they are in a file, which does not say what they are for.
    """
    if weights not in ("none", "imagenet"):
        raise InputError(f"--backbone_weights {weights} needs --backbone: name the one whose weights they are")
    if weights == "none" and usual == PAPER["backbone"]:
        return BACKBONE_FROM_RANDOM, f"random weights need batch norm, which {usual} has not"
    if weights == "imagenet" and usual == SMALL["backbone"]:
        return BACKBONE_FROM_IMAGENET, f"there are no ImageNet weights of {usual}"
    return usual, None


def head_for(settings: dict, chosen: dict, num_classes: int) -> str:
    """The head of a network: light in the small one, where one more convolution costs little and teaches much.

    Args:
        settings: as the user left them.
        chosen: what `fill_in` made of them.
        num_classes: of the level.
    """
    from models.heads import default_head  # here, because it starts Keras

    thin = settings["channels"] is None and chosen["channels"] == SMALL["channels"]
    if settings.get("detector") == "retinanet":
        return "light" if thin else "shared"
    published = default_head(num_classes)
    return "light" if thin and published == "conv" and settings["variant"] == "paper" else published


def cache_reason(pictures: int, image_size: int, cache_gb: float) -> str:
    """Says whether the pictures stay in memory, taking them to be four by three."""
    need = pictures * 3 * 0.75 * (KEPT_SIDE * image_size) ** 2 / 2**30
    if cache_gb == 0:
        return "cache off: pictures are read from the disk each time"
    if need <= cache_gb:
        return f"{pictures} images: cache on, they need {need:.2f} of {cache_gb:g} GB"
    return f"{pictures} images: cache on for {100 * cache_gb / need:.0f} %, {cache_gb:g} of the {need:.1f} GB they need"


def fixed_length(images: int, batch_size: int) -> tuple[int, int, str]:
    """Epochs, steps per epoch and the reason, where neither these nor a time budget are given."""
    pictures = max(PICTURES_OF_SMALL_DATA, PASSES * images)
    steps = max(1, math.ceil(pictures / (EPOCHS * batch_size)))
    reason = (
        f"{images} images: {EPOCHS} epochs of {steps} steps, {pictures / max(images, 1):.0f} passes through the data"
    )
    return EPOCHS, steps, reason


def measurements(epochs: int, validate_every: int, *, done: int = 0) -> int:
    """How many of the epochs after the first `done` are measured: each of so many, and the last one in any case."""
    return math.ceil(epochs / validate_every) - done // validate_every


def budget_length(seconds: float, *, step: float, validation: float, validate_every: int = 1) -> tuple[int, int]:
    """Epochs and steps per epoch that fill a time: as many as measuring the mAP and whole steps allow.

    Args:
        seconds: that are left.
        step: seconds of one training step.
        validation: seconds of what comes after an epoch that is measured.
        validate_every: so many epochs; the last one is measured in any case.

    Raises:
        InputError: there is no time for a training.
    """
    usable = seconds * (1 - MARGIN)
    for epochs in range(EPOCHS_IN_BUDGET, 0, -1):
        measuring = measurements(epochs, validate_every) * validation
        steps = int((usable - measuring) / (epochs * step))  # whole numbers
        if steps >= SHORTEST and measuring <= VALIDATION_SHARE * (usable - measuring):
            break
    if steps * epochs < SHORTEST:
        need = SHORTEST * step + validation
        raise InputError(
            f"--time_budget leaves {max(seconds, 0):.0f} s after the start, and {SHORTEST} steps with their validation "
            f"need {need:.0f} s: give it at least {math.ceil((need - seconds) / 60) + 1} minutes more"
        )
    return epochs, steps


def epochs_that_fit(
    seconds: float, epoch: float, *, done: int, planned: int, validation: float = 0.0, validate_every: int = 1
) -> int:
    """The number of epochs when those to come take as long as the newest: the planned one unless it is off by 5 %.

    Args:
        seconds: that are left.
        epoch: seconds of the newest epoch, without measuring the mAP.
        done: epochs so far.
        planned: epochs in all.
        validation: seconds of a measurement.
        validate_every: as in `budget_length`.
    """
    usable = seconds * (1 - MARGIN / 2)

    def fits(total: int) -> bool:
        measured = measurements(total, validate_every, done=done)
        return (total - done) * epoch + measured * validation <= usable

    most = done + max(0, int(usable // (epoch + validation / validate_every)))  # the last one may be one too many
    fit = next((total for total in range(most, done, -1) if fits(total)), done)
    left = planned - done
    off = abs(fit - planned) > max(0.05 * left, 0.5)
    return fit if off else planned


def parse_duration(text: str) -> float | None:
    """Seconds of "90s", "20m", "1h30m" or "2d"; None for "none".

    Raises:
        InputError: it is none of these.
    """
    if text == "none":
        return None
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
    seconds = sum(float(number) * units[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or not seconds > 0:
        raise InputError(f"--time_budget {text} is no time: write 90s, 20m, 1h30m or 2d, or none")
    return seconds


def share_few_cores(channels: int | None, cores: int) -> None:
    """Lets TensorFlow run two layers at once on few cores, instead of one layer on two: a thin network gains a tenth.

    Its maps are too small to be cut in parts. To be called before TensorFlow starts; what the user has set stays.

    Args:
        channels: of the pyramid; None = the small network's.
        cores: of the processor; with many, what can run at once would leave most of them idle.
    """
    if cores <= FEW_CORES and (channels or SMALL["channels"]) <= SMALL["channels"]:
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
        os.environ.setdefault("TF_NUM_INTEROP_THREADS", str(cores))


def workers_for(cores: int) -> int:
    """Threads that prepare batches: one per core, because a fast accelerator waits for them.

    At least 2: with one, Keras leaves them to TensorFlow's threads that tune themselves, and TensorFlow waits for their
    end after an epoch, up to as long again as the epoch took.
    """
    return max(2, min(cores, MOST_WORKERS))


def processor_has_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16, which takes half the time there, and many times as long elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = {word for line in file if line.startswith(("flags", "Features")) for word in line.split()}
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
