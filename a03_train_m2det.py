"""Trains M2Det on one level of the hierarchy.

Reads    OUTPUT/level_<n>_files/ (a01), the images in DATASET/train and DATASET/validation, and which of them a02 found
         damaged (OUTPUT/<split>_image_problems.csv).
Writes   OUTPUT/weights/<run>/: model.keras (the best epoch by mAP), checkpoint/ (to go on from), settings.json (classes
         in the order of the outputs, sizes, anchors, every flag) and history.csv (a row per epoch).
Takes    about 20 minutes with the constants of a00 on two CPU cores; days for the published sizes on all of
         Open Images.

Run it again with the same flags and it goes on after the last finished epoch; a finished run says so.

    python a03_train_m2det.py --backbone vgg16 --backbone_weights imagenet --image_size 320 --tums 8 --scales 6 \\
        --channels 128 --epochs 100 --steps_per_epoch 10000 --learning_rate 2e-4
    python a03_train_m2det.py --image_size 96 --tums 1 --scales 3 --channels 16 --epochs 2 --steps_per_epoch 5
"""

import json
import math
import os
from pathlib import Path
from typing import Literal

import a00_utils_and_constants as a00
from a00_utils_and_constants import run_script
from oid import layout
from oid.files import InputError, output_file, replacing
from training.data_set import read_classes, read_data_set

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's alarm where there is no GPU

# a run can be continued with other values of these: they do not change what it learns
FREE_TO_CHANGE = {"dataset_path", "output_path", "run", "workers", "cache_gb"}


def main(
    *,
    dataset_path: str = a00.DATASET_PATH,
    output_path: str = a00.OUTPUT_PATH,
    level: str = a00.LEVEL,
    run: str | None = None,
    backbone: str = a00.BACKBONE,
    backbone_weights: str = a00.BACKBONE_WEIGHTS,
    image_size: int = a00.IMAGE_SIZE,
    tums: int = a00.TUMS,
    scales: int = a00.SCALES,
    channels: int = a00.CHANNELS,
    variant: Literal["paper", "released"] = a00.VARIANT,
    sfam: bool | None = None,
    head: Literal["auto", "conv", "shared"] = a00.HEAD,
    anchors: Literal["square", "official"] = a00.ANCHORS,
    taps: tuple[str, ...] | None = None,
    freeze_backbone: bool = False,
    freeze_batch_norm: bool = False,
    epochs: int = a00.EPOCHS,
    steps_per_epoch: int = a00.STEPS_PER_EPOCH,
    batch_size: int = a00.BATCH_SIZE,
    learning_rate: float = a00.LEARNING_RATE,
    weight_decay: float = 0.03,
    validation_images: int = a00.VALIDATION_IMAGES,
    max_gt_boxes: int = 100,
    mosaic: float = 0.5,
    skip_missing: bool = False,
    init_from: str | None = None,
    orientation: Literal["stored", "exif"] = a00.ORIENTATION,
    workers: int = 1,
    cache_gb: float = 2.0,
    seed: int = 0,
) -> None:
    """Trains until the last epoch, keeping the weights of the best one.

    Args:
        dataset_path: folder with train/ and validation/
        output_path: folder with a01's files; the run goes to weights/ below it
        level: which of a01's levels to learn: 1, 2, ..., all, or rare
        run: name of the run (default: <backbone>_level_<level>)
        backbone: name of the feature extractor; a wrong name lists the valid ones
        backbone_weights: imagenet (downloaded by Keras), none (random), or a weights file
        image_size: side of the network's square input in pixels
        tums: number of thinned U-shape modules (the paper: 8)
        scales: maps per module, from an eighth of the image downwards (the paper: 6)
        channels: channels of each map of each module (the paper: 128; the released code: 256)
        variant: paper = the network of its figures, released = that of the authors' code
        sfam: whether the pyramid's channels are weighed (default: as published, paper yes, released no)
        head: conv = one convolution per scale as published, shared = two subnets for all scales, auto = shared for more
            than 100 classes
        anchors: square = one per cell, official = the published six
        taps: two layers of the backbone to read, at strides of 8 and 16 pixels (default: those of the table)
        freeze_backbone: the backbone keeps its weights
        freeze_batch_norm: batch norm keeps its weights and statistics, for batches of very few images
        epochs: passes of steps_per_epoch steps; the learning rate falls to its end over all of them
        steps_per_epoch: batches per epoch; 0 = each image once
        batch_size: images per step
        learning_rate: of AdamW, the highest after the warm-up
        weight_decay: of AdamW
        validation_images: at most so many images measure an epoch; 0 = all
        max_gt_boxes: boxes per training picture; those beyond are left out, counted and said
        mosaic: share of the training pictures that are made of four, until the last 15 % of the steps; 0 = off
        skip_missing: leave out images that have no file, or are damaged as far as a02 saw, instead of refusing to start
        init_from: start from the weights of another run (name or folder), where they fit; the layers that do not are
            named
        orientation: pixels as stored in the file, or turned by the EXIF tag
        workers: threads that prepare batches
        cache_gb: gigabytes of memory for reduced pictures; 0 = read them from the disk each time
        seed: of weights, order and augmentation
    """
    flags = dict(locals())
    _check(flags)
    folder = Path(output_path) / "weights" / (run or f"{backbone}_level_{level}")
    output_file(folder / "settings.json", "--output_path")
    classes = read_classes(output_path, level)
    import keras  # here and below, because starting the framework takes seconds that --help and a mistake should not

    from training import callbacks
    from training.batches import BatchSequence

    keras.utils.set_random_seed(seed)
    settings = _settings(flags, classes)
    state = callbacks.read_state(folder)
    _refuse_other_settings(folder, settings, state["epochs"])
    if state["epochs"] >= epochs:
        print(f"{folder} is finished: {epochs} of {epochs} epochs{_best(state)}")
        return

    batches, steps = _batches(flags)
    validate = _validation(flags, settings)
    trainer = _trainer(flags, settings, folder, state, steps)
    with replacing(folder / "settings.json") as path:
        path.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    begin = state["epochs"]  # the callback counts on in `state`
    end = callbacks.EpochEnd(
        folder,
        trainer.network,
        settings,
        validate=validate,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        state=state,
    )
    sequence = BatchSequence(batches, start=begin * steps, workers=workers)
    with sequence.mistakes_as_they_are():
        trainer.fit(
            sequence,
            steps_per_epoch=steps,
            initial_epoch=begin,
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=[callbacks.FiniteLossGuard(batches, steps), callbacks.Progress(steps, epochs), end],
        )
    _print_left_out(batches, range(begin * steps, epochs * steps))
    print(f"{folder}: {epochs} epochs on level {level}{_best(state)}")


def _settings(flags: dict, classes: dict[str, str]) -> dict:
    """All that is needed to rebuild the network and to use it, and every flag."""
    from models.anchors import anchor_settings
    from models.heads import default_head

    settings = {
        "classes": [{"label": label, "name": name} for label, name in classes.items()],
        "preprocessing": {
            "resize": "warp",
            "interpolation": "area",
            "orientation": flags["orientation"],
            "pixels": "RGB, 0 to 255",
            "normalisation": None,  # the backbone's own
        },
        "anchors": anchor_settings(flags["image_size"], flags["scales"], anchors=flags["anchors"]),
        "box_coding": "distances",
        "score_activation": "sigmoid",
        "head": default_head(len(classes)) if flags["head"] == "auto" else flags["head"],
        "sfam": flags["variant"] == "paper" if flags["sfam"] is None else flags["sfam"],
        **{name: flags[name] for name in ("backbone", "taps", "level", "image_size")},
        **{name: flags[name] for name in ("variant", "tums", "scales", "channels")},
        "flags": flags,
    }
    return json.loads(json.dumps(settings))  # as it will be read again: lists for tuples


def _batches(flags: dict):
    """The batches of the whole training, and the number of steps per epoch."""
    from training.batches import Batches, check_images

    train = read_data_set(
        flags["dataset_path"], flags["output_path"], flags["level"], "train", skip_missing=flags["skip_missing"]
    )
    print(f"train: {len(train)} images, {len(train.objects.labels)} boxes, {len(train.regions.labels)} ignored regions")
    if train.missing:
        print(f"train: {train.missing} images have no file, or a damaged one, and are left out")
    check_images(train, flags["orientation"])
    steps = flags["steps_per_epoch"] or max(1, len(train) // flags["batch_size"])
    batches = Batches(
        train,
        image_size=flags["image_size"],
        batch_size=flags["batch_size"],
        seed=flags["seed"],
        max_gt_boxes=flags["max_gt_boxes"],
        mosaic=flags["mosaic"],
        close_at=int(0.85 * flags["epochs"] * steps),
        orientation=flags["orientation"],
        cache_bytes=int(flags["cache_gb"] * 2**30),
    )
    return batches, steps


def _trainer(flags: dict, settings: dict, folder: Path, state: dict, steps: int):
    """The network with its loss and optimizer, as new or as the checkpoint left them."""
    import keras

    from models.backbones import freeze
    from models.cost import print_cost
    from models.detector import network_from_settings
    from training.callbacks import TRAINING_WEIGHTS
    from training.trainer import DetectionTrainer, make_optimizer

    backend = keras.backend.backend()
    devices = [] if backend == "torch" else keras.distribution.list_devices()  # PyTorch's are not known to Keras
    print(f"backend: {' '.join([backend, *devices])}")
    begins = not state["epochs"]
    network = network_from_settings(settings, backbone_weights=flags["backbone_weights"] if begins else "none")
    print(f"network: {flags['backbone']}, {len(settings['classes'])} classes, head {settings['head']}")
    print_cost(network)
    if flags["freeze_backbone"]:
        freeze(network.get_layer(flags["backbone"]), weights=True)
    if flags["freeze_batch_norm"]:
        freeze(network, batch_norm=True)
    trainer = DetectionTrainer(network, settings["anchors"])
    optimizer = make_optimizer(
        learning_rate=flags["learning_rate"], weight_decay=flags["weight_decay"], steps=flags["epochs"] * steps
    )
    # XLA on the CPU is slower than TensorFlow's own kernels; JAX compiles whatever is said here
    trainer.compile(optimizer=optimizer, jit_compile=False if backend == "tensorflow" else "auto")
    optimizer.build(network.trainable_variables)
    if not begins:
        trainer.load_weights(folder / "checkpoint" / TRAINING_WEIGHTS)
        print(f"{folder}: going on after epoch {state['epochs']} of {flags['epochs']}{_best(state)}")
    elif flags["init_from"]:
        _initialise(network, settings, flags)
    return trainer


def _print_left_out(batches, steps: range) -> None:
    """Says what did not fit into the batches."""
    from training.batches import MAX_REGIONS

    if count := batches.boxes_left_out(steps):
        print(f"{count} boxes beyond --max_gt_boxes {batches.max_gt_boxes} of a picture were left out")
    if count := batches.regions_left_out(steps):
        print(f"{count} ignored regions beyond {MAX_REGIONS} of a picture were left out: background counts there")


def _best(state: dict) -> str:
    """The best mAP so far; nothing without validation images."""
    return f", best mAP {state['best']:.4f}" if state["best"] >= 0 else ""


def _check(flags: dict) -> None:
    """Refuses numbers that make no training."""
    lowest = {"epochs": 1, "steps_per_epoch": 0, "batch_size": 1, "validation_images": 0, "max_gt_boxes": 1}
    lowest |= {"image_size": 32, "tums": 1, "scales": 1, "channels": 1, "workers": 1, "cache_gb": 0, "seed": 0}
    for name, least in lowest.items():
        if not flags[name] >= least:
            raise InputError(f"--{name} is {flags[name]}: it must be at least {least}")
    if flags["seed"] >= 2**32 or flags["cache_gb"] > 1e6:
        raise InputError("--seed must be below 4294967296 and --cache_gb at most 1000000")
    if flags["taps"] is not None and len(flags["taps"]) != 2:
        raise InputError(f"--taps names {len(flags['taps'])} layers: name two, at strides of 8 and 16 pixels")
    random = flags["backbone_weights"] == "none" and not flags["init_from"]
    for name in ("freeze_backbone", "freeze_batch_norm"):
        if flags[name] and random:
            raise InputError(f"--{name} would keep random weights: give --backbone_weights or --init_from as well")
    if not 0 <= flags["mosaic"] <= 1:
        raise InputError(f"--mosaic is {flags['mosaic']}: it is a share, from 0 to 1")
    if not 0 < flags["learning_rate"] < math.inf or not 0 <= flags["weight_decay"] < math.inf:
        raise InputError("--learning_rate must be above 0 and --weight_decay at least 0, both finite")


def _refuse_other_settings(folder: Path, settings: dict, epochs: int) -> None:
    """A run goes on with the settings that it began with, or not at all; what has learned nothing yet is no run."""
    path = folder / "settings.json"
    if not path.is_file() or not epochs:
        if (folder / "history.csv").is_file():
            raise InputError(
                f"{folder} holds a training that lacks its checkpoint or settings: choose another --run, or remove it"
            )
        return
    from models.detector import read_settings

    before = read_settings(folder)
    for name, value in settings["flags"].items():
        if name not in FREE_TO_CHANGE and before.get("flags", {}).get(name) != value:
            raise InputError(
                f"{path} was made with --{name} {before.get('flags', {}).get(name)}, now it is {value}: use the same "
                f"value, or choose another --run (with --init_from {folder.name} to start from its weights)"
            )
    if before["classes"] != settings["classes"]:
        raise InputError(f"{path} has other classes than a01's files now: choose another --run, or remove {folder}")


def _validation(flags: dict, settings: dict):
    """The function from a model to its mAP, or None when there are no validation images."""
    from training.validation import make_validation

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
    return make_validation(data, settings, orientation=flags["orientation"])


def _initialise(network, settings: dict, flags: dict) -> None:
    """Takes over the weights of another run, and says what begins anew."""
    from models.detector import load_model
    from training.trainer import take_over_weights

    run = flags["init_from"]
    source = load_model(layout.run_folder(flags["output_path"], run), precision=None)
    taken, skipped = take_over_weights(source, network, settings)
    if not taken:
        raise InputError(f"--init_from {run}: not one layer fits; it needs the same backbone, variant and channels")
    names = ", ".join(skipped[:12]) + (f" and {len(skipped) - 12} more" if len(skipped) > 12 else "")
    print(f"--init_from {run}: {taken} layers taken over, {len(skipped)} begin anew{': ' * bool(names)}{names}")


if __name__ == "__main__":
    run_script(main)
