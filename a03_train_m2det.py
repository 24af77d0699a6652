"""Trains M2Det, or RetinaNet, on one level of the hierarchy.

Reads    OUTPUT/level_<n>_files/ (a01), the images in DATASET/train and DATASET/validation, and the list of damaged
         images (OUTPUT/<split>_image_problems.csv, a02).
Writes   OUTPUT/weights/<run>/: model.keras (the best epoch by mAP), checkpoint/ and checkpoint.previous/ (to go on
         from), settings.json (the network: classes, sizes, anchors), training.json (how it is trained), history.csv (a
         row per epoch).
Takes    the time budget of a00, 20 minutes; days for the published sizes on all of Open Images.

The same command goes on after the last checkpoint. Ctrl-C, SIGTERM and --max_hours write a checkpoint first. A finished
run is prolonged by a larger --time_budget or more --epochs. The exit code is 75 while the training is not finished.

Options that are left open (None in a00) are chosen from the data and the machine, and printed with the reason.

    python a03_train_m2det.py --show_batches 3
    python a03_train_m2det.py --time_budget 2h
    python a03_train_m2det.py --recipe published --backbone vgg16 --backbone_weights imagenet --image_size 320 \\
        --tums 8 --scales 6 --channels 128 --epochs 100 --steps_per_epoch 10000
    python a03_train_m2det.py --detector retinanet --init_from resnet101_2018 --time_budget 8h
    python a03_train_m2det.py --image_size 96 --tums 1 --scales 3 --channels 16 --epochs 2 --steps_per_epoch 5
"""

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import a00_utils_and_constants as a00
from models.run_settings import (
    CHECKPOINT,
    SETTINGS,
    DetectionClass,
    RunSettings,
    Variant,
    read_run_settings,
)
from oid import machine, paths
from oid.command_line import check_flag, check_range, run_script
from oid.files import InputError, output_file, remedy
from oid.lock import locked
from training import choose
from training.data_set import DataSet, read_classes, read_data_set
from training.options import (
    ImageOptions,
    LabelOptions,
    LabelRule,
    LengthOptions,
    MachineOptions,
    NetworkOptions,
    Options,
    Recipe,
    RecordOptions,
    StepOptions,
    TrainingSettings,
    changes,
    continued,
    duration,
    recipe_of,
)
from training.state import TrainingState
from training.stopping import Stop

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # hides TensorFlow's warning where there is no GPU
HISTORY = "history.csv"  # in the folder of a run


def main(
    *,
    dataset_path: str = a00.DATASET_PATH,
    output_path: str = a00.OUTPUT_PATH,
    level: str = a00.LEVEL,
    run: str | None = None,
    # the network
    detector: Literal["m2det", "retinanet"] = "m2det",
    backbone: str | None = a00.BACKBONE,
    backbone_weights: str = a00.BACKBONE_WEIGHTS,
    image_size: int | None = a00.IMAGE_SIZE,
    tums: int | None = a00.TUMS,
    scales: int | None = a00.SCALES,
    channels: int | None = a00.CHANNELS,
    variant: Variant | None = a00.VARIANT,
    head: Literal["auto", "conv", "shared", "light"] = a00.HEAD,
    anchors: str | None = a00.ANCHORS,
    init_from: str | None = None,
    freeze: Literal["none", "batch_norm", "backbone"] = "none",
    # what is learned, and how
    recipe: Literal["own", "published"] = a00.RECIPE,
    label_rules: tuple[str, ...] = a00.LABEL_RULES,
    sampling: Literal["images", "classes"] = a00.SAMPLING,
    sampling_exponent: float = a00.SAMPLING_EXPONENT,
    negatives: float | None = None,
    mosaic: float | None = None,
    max_gt_boxes: int = 100,
    skip_missing: bool = False,
    orientation: Literal["stored", "exif"] = a00.ORIENTATION,
    # how long, in which steps
    time_budget: str = a00.TIME_BUDGET,
    epochs: int | None = a00.EPOCHS,
    steps_per_epoch: int | None = a00.STEPS_PER_EPOCH,
    batch_size: int | None = a00.BATCH_SIZE,
    accumulate: int = 1,
    precision: Literal["float32", "bfloat16"] | None = a00.PRECISION,
    learning_rate: float | None = a00.LEARNING_RATE,
    # what is measured and shown
    validation_images: int = a00.VALIDATION_IMAGES,
    tensorboard: bool = False,
    show_batches: int = 0,
    # on which machine
    max_hours: float | None = None,
    cache_gb: float | None = None,
    devices: int | None = None,
    seed: int = 0,
    deterministic: bool = False,
) -> None:
    """Trains until the last epoch and keeps the weights of the best one.

    Args:
        dataset_path: folder with train/ and validation/
        output_path: folder with a01's files; the run goes to weights/ below it
        level: a01's level to learn: 1, 2, ..., all, or rare
        run: name of the run (default: detector, backbone and level, as far as they are given)
        detector: m2det, or retinanet; with --init_from a converted keras-retinanet checkpoint and no --backbone,
            retinanet goes on as the converted network
        backbone: name of the feature extractor; a wrong name lists the valid ones
        backbone_weights: none = random, imagenet = downloaded by Keras, or a file of weights
        image_size: side of the network's square input in pixels
        tums: number of M2Det's thinned U-shape modules (8 in the paper)
        scales: number of maps, from an eighth of the image downwards (6 in M2Det's paper, 5 in RetinaNet's)
        channels: channels of each map (128 in M2Det's paper, 256 in its released code and in RetinaNet's paper)
        variant: M2Det as in the figures of the paper, as in the released code, or as in the released code with its SFAM
            (default: paper)
        head: conv = as published; shared = two subnets for all maps; light = shared with one convolution instead of
            four; auto = shared for more than 100 classes, light in the small network
        anchors: square = one per cell, official = the published six (RetinaNet: nine), or a file of sizes such as a02's
            OUTPUT/anchors_level_<n>.json (default: square; official with --recipe published)
        init_from: start from the weights of another run (name or folder), also of one with other classes or of a
            converted checkpoint; open options of the network are as there
        freeze: batch_norm keeps the weights and statistics of batch norm, for batches of very few images; backbone
            keeps all weights of the backbone
        recipe: own, or published = the authors' training: maximum IoU, softmax with 3:1 hard negatives (RetinaNet:
            focal loss), smooth L1, SSD crops, warped images, SGD with steps
        label_rules: rules of Open Images that hold: verified = no gradient for a class that is not verified in an
            image, ancestors = no gradient against a class above a box's own, regions = no gradient in a01's ignored
            regions, depictions = drawn or printed objects are ignored regions; none = no rule
        sampling: images = each image once per pass, classes = first a class is drawn, then an image with it
        sampling_exponent: with --sampling classes: 0 = every class equally often, 1 = as often as it occurs
        negatives: share of images without any object of the level (default: as they come)
        mosaic: share of training images made of four, until the last 15 % of the steps; 0 = none (default: the
            recipe's: own 0.5, published 0)
        max_gt_boxes: box rows per training image, one for each class of a box; a random surplus is ignored and counted
        skip_missing: leave out images without a file, and those that a02 found damaged, instead of refusing to start
        orientation: pixels as stored in the file, or turned by its EXIF tag
        time_budget: wall-clock time of the whole training, such as 20m or 8h; none = as long as the number of images
            suggests; not used with --epochs
        epochs: passes of steps_per_epoch steps each
        steps_per_epoch: with --epochs; 0 = each image once
        batch_size: images per step, of all devices together
        accumulate: steps whose gradients make one update, for batches that do not fit into memory
        precision: float32, or bfloat16 with weights, losses and updates in float32 (default: bfloat16 where the machine
            has instructions for it)
        learning_rate: the highest rate, after the warm-up (default: by the optimizer, lower for weights that have
            learned)
        validation_images: at most this many images measure an epoch; 0 = all
        tensorboard: write tensorboard/ in the run's folder
        show_batches: write this many batches to batches.html in the run's folder instead of training: images as the
            network sees them, boxes green where an anchor learns them, else red; 0 = train
        max_hours: save and stop after this time, such as 11.5 where the machine is taken away after 12; the same
            command goes on (default: never)
        cache_gb: gigabytes of memory for reduced images; 0 = read them each time (default: half of what is free)
        devices: that share each batch (default: all GPUs); a CPU is split into this many
        seed: of weights, order and augmentation
        deterministic: the same bits from the same seed on the same machine; slower
    """
    started = time.monotonic()
    budget = None if time_budget == "none" else duration(time_budget)
    check_flag(budget is None or budget > 0, "time_budget", time_budget, "90s, 20m, 1h30m, 2d, or none")
    options = Options(
        level=level,
        network=NetworkOptions(
            detector=detector,
            backbone=backbone,
            backbone_weights=backbone_weights,
            image_size=image_size,
            tums=tums,
            scales=scales,
            channels=channels,
            variant=variant,
            head=head,
            anchors=anchors,
            init_from=init_from,
            freeze=freeze,
        ),
        length=LengthOptions(budget, epochs, steps_per_epoch, max_hours),
        labels=LabelOptions(() if label_rules == ("none",) else label_rules, max_gt_boxes),
        images=ImageOptions(sampling, sampling_exponent, negatives, mosaic, orientation, skip_missing),
        step=StepOptions(recipe, batch_size, accumulate, precision, learning_rate),
        records=RecordOptions(validation_images, tensorboard),
        machine=MachineOptions(cache_gb=cache_gb, devices=devices, seed=seed, deterministic=deterministic),
    )
    check_values(options)
    check_combinations(options)
    check_range(0, math.inf, show_batches=show_batches)
    folder = Path(output_path) / "weights" / (run or default_name(options))
    train(dataset_path, output_path, folder, options, recipe_of(options), started=started, show_batches=show_batches)


# === Flags ===
def check_values(options: Options) -> None:
    """Refuses values outside their range; None is open."""
    network, length, step, images = options.network, options.length, options.step, options.images
    check_range(32, math.inf, image_size=network.image_size)
    check_range(1, math.inf, tums=network.tums, scales=network.scales, channels=network.channels)
    check_range(1, math.inf, epochs=length.epochs, batch_size=step.batch_size, devices=options.machine.devices)
    check_range(
        0, math.inf, steps_per_epoch=length.steps_per_epoch, validation_images=options.records.validation_images
    )
    check_range(1, math.inf, accumulate=step.accumulate, max_gt_boxes=options.labels.max_gt_boxes)
    check_range(0, 1, mosaic=images.mosaic, negatives=images.negatives, sampling_exponent=images.sampling_exponent)
    check_range(0, 1e6, cache_gb=options.machine.cache_gb)
    check_flag(0 <= options.machine.seed < 2**32, "seed", options.machine.seed, "a number from 0 to 4294967295")
    for name, value in (("learning_rate", step.learning_rate), ("max_hours", length.max_hours)):
        check_flag(value is None or 0 < value < math.inf, name, value, "a number above 0")
    rules, known = options.labels.rules, get_args(LabelRule)
    check_flag(bool(set(rules) <= set(known)), "label_rules", rules, f"some of {', '.join(known)}, or none")


def check_combinations(options: Options) -> None:
    """Refuses flags that contradict each other."""
    network, length = options.network, options.length
    fine = length.steps_per_epoch is None or length.epochs is not None
    check_flag(fine, "steps_per_epoch", length.steps_per_epoch, "--epochs as well, or a --time_budget instead")
    for name in ("tums", "variant") if network.detector != "m2det" else ():
        value = getattr(network, name)
        check_flag(value is None, name, value, "--detector m2det as well, or leave it out")
    learned = network.backbone_weights != "none" or network.init_from is not None
    allowed = "--backbone_weights or --init_from as well: random weights would be kept"
    check_flag(network.freeze == "none" or learned, "freeze", network.freeze, allowed)
    if options.records.tensorboard and not importlib.util.find_spec("tensorboard"):
        raise InputError("--tensorboard needs a package: pip install tensorboard, or leave it out")


def default_name(options: Options) -> str:
    """The name of a run: m2det_level_1, vgg16_level_1, retinanet_level_1, retinanet_resnet50_level_1."""
    detector, backbone = options.network.detector, options.network.backbone
    named = [detector] if detector != "m2det" or not backbone else []
    return "_".join([*named, *([backbone] if backbone else []), "level", options.level])


# === Training ===
def train(
    dataset_path: str,
    output_path: str,
    folder: Path,
    options: Options,
    recipe: Recipe,
    *,
    started: float,
    show_batches: int = 0,
) -> None:
    """Trains the run in `folder` from its beginning, or from its last checkpoint.

    Args:
        dataset_path: folder with train/ and validation/.
        output_path: folder with a01's files.
        folder: of the run.
        options: as given.
        recipe: of `recipe_of`, or another one to be measured.
        started: when the training was started, on the clock of `time.monotonic`.
        show_batches: write a page with this many batches instead.
    """
    classes = tuple(itertools.starmap(DetectionClass, read_classes(output_path, options.level).items()))
    output_file(folder / SETTINGS, "give another place by --output_path")
    source = read_source(output_path, options.network.init_from)
    stop = Stop(str(folder), max_hours=options.length.max_hours, started=started)
    with stop.on_signals(), backend(options, source) as sharing, contextlib.ExitStack() as lock:
        from training import build, checkpoints, lengths, loop
        from training.batch_page import show
        from training.processes import is_first
        from training.verified_labels import rules_in_force

        is_new = not folder.is_dir()  # then it is made, and locked, when nothing can be wrong any more
        if not is_new and not show_batches and is_first():
            lock.enter_context(locked(folder, str(folder)))
        state = checkpoints.look_at_run(folder) if show_batches else checkpoints.open_run(folder, print)
        refuse_changes(folder, state, options, recipe, classes)
        if lengths.is_finished(state, options.length) and not show_batches:
            print(f"{folder} is finished{loop.best_so_far(state)}: a larger --time_budget or more --epochs prolong it")
            return
        data = read_split(dataset_path, output_path, options, "train")
        labels = [entry.label for entry in classes]
        rules, sentences = rules_in_force(options.labels.rules, dataset_path, labels, data)
        print(*sentences, sep="\n")
        facts = build.facts_about(len(data), sharing.count)
        state = with_settings(state, options, recipe, classes, facts, source)
        trainer, twin = make_trainer(output_path, state, rules, sharing)
        cache_bytes = choose.cache_bytes(options.machine.cache_gb, machine.free_memory())
        batches = build.build_batches(data, state.run, state.training, rules, cache_bytes, print)
        if show_batches:
            loop.prepare_trainer(trainer, state, folder)
            print(show(folder / "batches.html", trainer, batches, state, count=show_batches))
            return
        validation = validation_of(dataset_path, output_path, options, state.run)
        if is_new and is_first():
            lock.enter_context(locked(folder, str(folder)))
        training = loop.Training(
            folder,
            trainer,
            batches,
            state,
            workers=options.machine.workers or choose.workers_for(machine.usable_cores()),
            validation=validation,
            exported=twin,
            stop=stop,
            started=started,
            cache_bytes=cache_bytes,
            report=functools.partial(print, flush=True),
        )
        training.begin(options.length)
        ended = training.run()
        print(*batches.notes(range(state.step, training.state.step)), ended, sep="\n")


@contextlib.contextmanager
def backend(options: Options, source: RunSettings | None) -> Iterator:
    """Starts the framework and joins the other machines; inside the block the devices share each batch."""
    channels = options.network.channels or (source.network.channels if source else None)
    choose.share_few_cores(channels, machine.usable_cores())
    import cv2

    cv2.setNumThreads(1)  # the threads that prepare batches share the cores
    import keras  # here and in `train`: the framework takes seconds, which --help and a mistake should not wait for

    from training import devices, processes

    keras.utils.set_random_seed(options.machine.seed)
    if options.machine.deterministic:
        devices.make_deterministic()
    if options.machine.devices:
        devices.split_cpu(options.machine.devices)
    with processes.together():
        count = processes.process_and_processes()[1]
        with devices.sharing(options.machine.devices, processes=count, accumulate=options.step.accumulate) as sharing:
            if sharing.count > 1:
                print(f"{sharing.count} devices share each batch: {' '.join(sharing.devices)}")
            yield sharing


# === The data ===
def read_split(dataset_path: str, output_path: str, options: Options, split: str) -> DataSet:
    """Reads a split and prints what it holds.

    Raises:
        InputError: images are missing, without --skip_missing; or a file of a01 is missing or damaged.
    """
    learns = split == "train"
    data = read_data_set(
        dataset_path,
        output_path,
        options.level,
        split,
        at_most=0 if learns else options.records.validation_images,
        leave_out_depictions=learns and "depictions" in options.labels.rules,
    )
    if data.missing and not options.images.skip_missing:
        raise InputError(
            f"{len(data.missing)} images of {split} are missing below {Path(dataset_path) / split}, or a02 found them "
            f"damaged, the first is {data.missing[0]}: download them, or leave them out by --skip_missing"
        )
    counts = [f"{len(data)} images", f"{len(data.objects.labels)} boxes"]
    counts += [f"{len(data.regions.labels)} ignored regions"] if learns else []
    counts += [f"{len(data.missing)} images without a sound file left out"] if data.missing else []
    print(f"{split}: {', '.join(counts)}")
    return data


def validation_of(dataset_path: str, output_path: str, options: Options, run: RunSettings):
    """What measures an epoch, or None where there are no validation images."""
    from training.validation import make_validation

    images = Path(dataset_path) / "validation"
    data = read_split(dataset_path, output_path, options, "validation") if images.is_dir() else ()
    if not len(data):
        print(f"{images} has no image of this level: no epoch is measured, and the last one counts")
        return None
    bad = options.images.max_bad_images
    return make_validation(data, run, group_of_weight=a00.GROUP_OF_WEIGHT, max_bad_images=bad)


# === The run and its source ===
def read_source(output_path: str, init_from: str | None) -> RunSettings | None:
    """The settings of the run whose weights are taken over."""
    if init_from is None:
        return None
    folder = paths.run_folder(output_path, init_from)
    with remedy("name another run by --init_from"):
        return read_run_settings(folder.parent if folder.name == CHECKPOINT else folder)


def refuse_changes(
    folder: Path, state: TrainingState, options: Options, recipe: Recipe, classes: tuple[DetectionClass, ...]
) -> None:
    """Refuses to go on with a run that began otherwise.

    Raises:
        InputError: naming the first flag, class or file that differs.
    """
    if state.run is None:
        if (folder / HISTORY).is_file():
            raise InputError(f"{folder} holds a training without its checkpoint: remove it, or choose another --run")
        return
    other = f"or another --run (--init_from {folder.name} starts from its weights)"
    for name, before, now in changes(state.run, state.training, options):
        before = " ".join(before) if isinstance(before, tuple) else "nothing" if before is None else before
        allowed = f"{before}, as when {folder} was begun, {other}"
        check_flag(False, "label_rules" if name == "rules" else name, now, allowed)
    if state.training.recipe != dataclasses.replace(recipe, mosaic=state.training.recipe.mosaic):
        raise InputError(f"{folder} was begun with another recipe: take the same, {other}")
    if state.run.classes != classes:
        raise InputError(f"{folder} was begun with other classes than a01's files have now: choose another --run")


def with_settings(
    state: TrainingState,
    options: Options,
    recipe: Recipe,
    classes: tuple[DetectionClass, ...],
    facts: choose.Facts,
    source: RunSettings | None,
) -> TrainingState:
    """The state with the settings that the run began with, or with those that are chosen for a new one."""
    from training.processes import from_first

    if state.run is not None:
        training = dataclasses.replace(state.training, options=continued(state.training.options, options))
        return dataclasses.replace(state, training=training)
    run, training, reasons = from_first(
        lambda: choose.choose_run(options, recipe, classes, facts, source),
        tuple[RunSettings, TrainingSettings, list[str]],
    )
    print(*(f"chosen: {reason}" for reason in reasons), sep="\n")
    return dataclasses.replace(state, run=run, training=training)


def make_trainer(output_path: str, state: TrainingState, rules, sharing) -> tuple:
    """The trainer, with the weights of another run where --init_from names one, and the network's twin in float32."""
    from models.cost import cost_table
    from training import build

    with remedy("change --batch_size or --devices"):
        sharing.check_batch_size(state.training.batch_size)
    with sharing.scope():
        network, twin = build.build_networks(state.run, state.training, begins=not state.step)
        print(cost_table(network))
        if state.training.options.network.init_from and not state.step:
            take_over(output_path, state.training.options.network, network, state.run)
        return build.build_trainer(network, state.run, state.training, rules), twin


def take_over(output_path: str, options: NetworkOptions, network, run: RunSettings) -> None:
    """Takes over the weights of the run that --init_from names, and prints what begins anew.

    Raises:
        InputError: nothing fits, or --freeze would keep random weights.
    """
    from models.keras_internals import all_layers
    from models.load import load_run
    from training.fine_tuning import take_over_weights

    source, old = load_run(paths.run_folder(output_path, options.init_from))
    taken = take_over_weights(source, old, network, run)
    print(f"weights of {options.init_from}: {taken}")
    fits = f"that fits this one: it has {old.network.detector} on {old.network.backbone}"
    check_flag(bool(taken.whole), "init_from", options.init_from, f"a run {fits}")
    if options.freeze == "backbone" and options.backbone_weights == "none":
        random = {layer.name for layer in all_layers(network.get_layer(run.network.backbone))} & {*taken.anew}
        lacking = f"{len(random)} layers of the backbone ({min(random, default='')}, ...) are not in --init_from"
        check_flag(not random, "freeze", options.freeze, f"--backbone_weights as well, because {lacking}")


if __name__ == "__main__":
    run_script(main)
