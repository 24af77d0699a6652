"""The parts of a training, made from a03's flags: data, settings, networks, trainer, batches, validation."""

import json
from collections.abc import Callable
from pathlib import Path

import keras

from models.cost import print_cost
from models.detector import Detector, network_from_settings, runs_on_cpu
from models.resized import at_size
from oid import machine
from oid.anchors.grids import NAMED_SETS, anchors_per_cell
from oid.files import InputError
from training import checkpoints, detectors, fine_tuning, plan
from training.batches import Batches, check_images
from training.data_set import DataSet, read_data_set
from training.devices import accelerators_have_bfloat16
from training.label_rules import LabelRules
from training.loop import compile_for, new_schedule
from training.sampling import image_weights
from training.trainer import DetectionTrainer
from training.validation import make_validation

CHOSEN = ("batch_size", "learning_rate", "weight_decay", "precision", "cache_gb")  # saved as a run's `training`


def training_data(flags: dict) -> DataSet:
    """The training images, and what is known of them."""
    train = read_data_set(
        flags["dataset_path"],
        flags["output_path"],
        flags["level"],
        "train",
        skip_missing=flags["skip_missing"],
        leave_out_depictions="depictions" in flags["label_rules"],
    )
    print(f"train: {len(train)} images, {len(train.objects.labels)} boxes, {len(train.regions.labels)} ignored regions")
    if train.missing:
        print(f"train: {train.missing} images have no file, or a damaged one, and are left out")
    return train


def new_settings(flags: dict, classes: dict[str, str], train: DataSet, devices: int) -> dict:
    """All that is needed to rebuild the network, to use it and to train it, and every flag. Prints what it chose."""
    accelerator = not runs_on_cpu()
    facts = plan.Facts(
        images=len(train),
        accelerator=accelerator,
        cores=machine.usable_cores(),
        free_memory=machine.free_memory(),
        bfloat16=accelerators_have_bfloat16() if accelerator else plan.processor_has_bfloat16(),
        devices=devices,
    )
    network, from_source = detectors.with_source(flags)
    chosen, reasons = plan.fill_in(network, facts)
    anchors, why = _anchors(network, chosen)
    for reason in from_source + reasons + ([why] if why else []):
        print(f"chosen: {reason}")
    settings = {
        "classes": [{"label": label, "name": name} for label, name in classes.items()],
        "preprocessing": {
            "resize": flags["resize"],
            "interpolation": "area",
            "orientation": flags["orientation"],
            "pixels": "RGB, 0 to 255",
            "normalisation": network["normalisation"],
        },
        "anchors": anchors,
        **detectors.network_settings(network, chosen, len(classes)),
        "training": {name: chosen[name] for name in CHOSEN},
        "flags": flags,
    }
    return json.loads(json.dumps(settings))  # as it will be read again: lists for tuples


def _anchors(flags: dict, chosen: dict) -> tuple[dict, str | None]:
    """The anchors of a new run, and the reason for them that is to be printed, if there is one.

    Raises:
        InputError: they come from a file that does not fit.
    """
    name = flags["anchors"]
    anchors = detectors.anchors_of(chosen["detector"], chosen["image_size"], chosen["scales"], name)
    if name == "square":
        return anchors, "1 anchor per cell, because the assignment finds the size"
    if name in NAMED_SETS or isinstance(name, list):  # the second: those of --init_from
        return anchors, None
    resize = json.loads(Path(name).read_text(encoding="utf-8")).get("resize")
    if resize not in (None, flags["resize"]):
        raise InputError(
            f"--anchors {name} was made for pictures of another shape, --resize {resize}: make it by a02 with "
            f"--resize {flags['resize']}, or train with --resize {resize}"
        )
    return anchors, f"{anchors_per_cell(anchors)} anchors per cell, as {name} has them"


def networks(flags: dict, settings: dict, *, begins: bool) -> tuple[keras.Model, keras.Model | None]:
    """The network that trains, and the same in float32 where it trains in less (else None)."""
    backend = keras.backend.backend()
    devices = [] if backend == "torch" else keras.distribution.list_devices()  # PyTorch's are not known to Keras
    print(f"backend: {' '.join([backend, *devices])}")
    exported = None
    if settings["training"]["precision"] == "bfloat16":
        exported = network_from_settings(settings)
        keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = network_from_settings(settings, backbone_weights=flags["backbone_weights"] if begins else "none")
    finally:
        keras.config.set_dtype_policy("float32")
    what = f"{settings.get('detector', 'm2det')} on {settings['backbone']}"
    print(f"network: {what}, {len(settings['classes'])} classes, head {settings['head']}")
    print_cost(network)
    return network, exported


def trainer(
    flags: dict, settings: dict, network: keras.Model, state: dict, folder: Path, rules: LabelRules
) -> DetectionTrainer:
    """The network with its losses and optimizer, as new or as the checkpoint left them."""
    views, detector, anchors = {}, settings.get("detector", "m2det"), detectors.set_of(settings)
    for size in flags["multi_scale"] or ():
        description = detectors.anchors_of(detector, size, settings["scales"], anchors)
        views[size] = at_size(network, settings, size), description
    made = DetectionTrainer(
        network,
        settings["anchors"],
        batch_size=settings["training"]["batch_size"],
        views=views,
        ancestors=rules.ancestors,
        region_classes=rules.region_classes,
        box_coding=settings["box_coding"],
        **{name: flags[name] for name in ("assignment", "class_loss", "box_loss")},
    )
    if not state["step"]:
        state["schedule"] = new_schedule(flags, settings["training"]["learning_rate"], 1000)  # until it is planned
    epoch = max(0, state["step"] - 1) // max(1, state["steps"])  # the newest step's, whose optimizer was saved
    compile_for(made, state, flags, backbone=settings["backbone"], epoch=epoch)
    if state["step"]:
        checkpoints.restore(folder, made, state)
        inside = state["step"] - state["epochs"] * state["steps"]
        where = f" and {inside} of {state['steps']} steps" if inside else ""
        best = checkpoints.best_so_far(state)
        print(f"{folder}: going on after epoch {state['epochs']} of {state['total']}{where}{best}")
    elif flags["init_from"]:
        fine_tuning.initialise(network, settings, flags)
    return made


def batches(flags: dict, settings: dict, train: DataSet, rules: LabelRules) -> Batches:
    """The batches of the whole training; prints which cache they have."""
    check_images(train, flags["orientation"], max_bad_images=flags["max_bad_images"])
    cache_gb = settings["training"]["cache_gb"] if flags["cache_gb"] is None else flags["cache_gb"]  # free to change
    print(f"chosen: {plan.cache_reason(len(train), settings['image_size'], cache_gb)}")
    print(f"batches: {flags['workers']} threads prepare them")
    return Batches(
        train,
        image_size=settings["image_size"],
        batch_size=settings["training"]["batch_size"],
        num_classes=len(settings["classes"]),
        verified=rules.verified,
        regions=rules.regions,
        weights=image_weights(
            train,
            sampling=flags["sampling"],
            exponent=flags["sampling_exponent"],
            negatives=flags["negatives"],
        ),
        cache_bytes=int(cache_gb * 2**30),
        **{name: flags[name] for name in ("seed", "max_gt_boxes", "mosaic", "mixup", "crop", "resize", "orientation")},
        max_bad_images=flags["max_bad_images"],
    )


def validation(flags: dict, settings: dict) -> Callable[[Detector], float] | None:
    """The function from a model to its mAP, or None when there are no validation images."""
    images = Path(flags["dataset_path"]) / "validation"
    if not images.is_dir():
        print(f"{images} does not exist: nothing is measured, the last epoch counts")
        return None
    data = read_data_set(
        flags["dataset_path"],
        flags["output_path"],
        flags["level"],
        "validation",
        skip_missing=flags["skip_missing"],
        at_most=flags["validation_images"],
    )
    left_out = f", {data.missing} without a sound file are left out" if data.missing else ""
    if not len(data):
        print("validation: a01 lists no image of this level: nothing is measured, the last epoch counts")
        return None
    print(f"validation: {len(data)} images, {len(data.objects.labels)} boxes{left_out}")
    return make_validation(data, settings, orientation=flags["orientation"], max_bad_images=flags["max_bad_images"])
