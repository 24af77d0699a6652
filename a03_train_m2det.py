"""Trains M2Det, or RetinaNet, on one level of the hierarchy.

Reads    OUTPUT/level_<n>_files/ (a01), the images in DATASET/train and DATASET/validation, and which of them a02 found
         damaged (OUTPUT/<split>_image_problems.csv).
Writes   OUTPUT/weights/<run>/: model.keras (the best epoch by mAP), checkpoint/ and checkpoint.previous/ (to go on
         from), settings.json (classes in the order of the outputs, sizes, anchors, every flag) and history.csv (a row
         per epoch).
Takes    the time budget of a00, 20 minutes; days for the published sizes on all of Open Images.

--show_batches 3 writes OUTPUT/weights/<run>/batches.html, to look at what it would learn from, and trains nothing.

Run it again with the same flags and it goes on at the step of its last checkpoint; a finished run says so. Ctrl-C,
SIGTERM and --max_hours write one before they end it.

What is left open (None in a00) is chosen from the data, the machine and the time budget, and printed with its reason.

    python a03_train_m2det.py --show_batches 3
    python a03_train_m2det.py --time_budget 2h
    python a03_train_m2det.py --backbone vgg16 --backbone_weights imagenet --image_size 320 --tums 8 --scales 6 \\
        --channels 128 --epochs 100 --steps_per_epoch 10000 --learning_rate 2e-4
    python a03_train_m2det.py --detector retinanet --init_from resnet101_2018 --time_budget 8h
    python a03_train_m2det.py --image_size 96 --tums 1 --scales 3 --channels 16 --epochs 2 --steps_per_epoch 5
"""

import json
import os
import time
from pathlib import Path
from typing import Literal

import a00_utils_and_constants as a00
from oid import machine
from oid.command_line import run_script
from oid.files import output_file, replacing
from training import plan, stopping
from training.data_set import read_classes
from training.settings import check_flags, check_source, known_channels, saved_settings, weight_decay_of

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's alarm where there is no GPU


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
    variant: Literal["paper", "released"] | None = a00.VARIANT,
    sfam: bool | None = None,
    head: Literal["auto", "conv", "shared", "light"] = a00.HEAD,
    anchors: str | None = a00.ANCHORS,
    taps: tuple[str, ...] | None = None,
    init_from: str | None = None,
    freeze_backbone: bool = False,
    freeze_batch_norm: bool = False,
    freeze_backbone_epochs: int = 0,
    # how long
    time_budget: str = a00.TIME_BUDGET,
    epochs: int | None = a00.EPOCHS,
    steps_per_epoch: int | None = a00.STEPS_PER_EPOCH,
    batch_size: int | None = a00.BATCH_SIZE,
    accumulate: int = 1,
    precision: Literal["float32", "bfloat16"] | None = a00.PRECISION,
    # what is learned
    label_rules: tuple[str, ...] = a00.LABEL_RULES,
    assignment: Literal["task_aligned", "atss", "max_iou"] = "task_aligned",
    class_loss: Literal["bce", "focal", "varifocal", "quality_focal"] = "bce",
    box_loss: Literal["giou", "ciou", "smooth_l1"] = "giou",
    # from which pictures
    sampling: Literal["images", "classes", "repeat_factor"] = a00.SAMPLING,
    sampling_exponent: float = a00.SAMPLING_EXPONENT,
    negatives: float | None = None,
    resize: Literal["warp", "letterbox"] = "letterbox",
    crop: Literal["zoom", "ssd"] = "zoom",
    mosaic: float = 0.5,
    mixup: float = 0.0,
    multi_scale: tuple[int, ...] | None = None,
    max_gt_boxes: int = 100,
    # in which steps
    optimizer: Literal["adamw", "sgd"] = "adamw",
    learning_rate: float | None = a00.LEARNING_RATE,
    schedule: Literal["cosine", "steps"] = "cosine",
    warm_up_steps: int | None = None,
    weight_decay: float | None = None,
    clip_norm: float = 10.0,
    ema: bool = False,
    # measured how
    validation_images: int = a00.VALIDATION_IMAGES,
    validate_every: int = 1,
    patience: int = 0,
    tensorboard: bool = False,
    show_batches: int = 0,
    # what may go wrong
    checkpoint_minutes: float = 10.0,
    checkpoint_steps: int = 0,
    max_hours: float | None = None,
    max_bad_images: int = 100,
    # on which machine
    skip_missing: bool = False,
    orientation: Literal["stored", "exif"] = a00.ORIENTATION,
    workers: int | None = None,
    cache_gb: float | None = None,
    seed: int = 0,
    deterministic: bool = False,
    # on how many
    strategy: Literal["auto", "one", "mirrored"] = "auto",
    devices: int | None = None,
    coordinator: str | None = None,
    processes: int = 1,
    process: int = 0,
) -> None:
    """Trains until the last epoch, keeping the weights of the best one.

    Args:
        dataset_path: folder with train/ and validation/
        output_path: folder with a01's files; the run goes to weights/ below it
        level: which of a01's levels to learn: 1, 2, ..., all, or rare
        run: name of the run (default: <backbone>_level_<level> or m2det_level_<level>; retinanet_... of the other)
        detector: m2det, or retinanet; with --init_from a converted checkpoint and no --backbone the latter goes on as
            that network, its batch norm frozen
        backbone: name of the feature extractor; a wrong name lists the valid ones
        backbone_weights: imagenet (downloaded by Keras), none (random), or a weights file
        image_size: side of the network's square input in pixels
        tums: number of thinned U-shape modules (the paper: 8)
        scales: maps per module, from an eighth of the image downwards (the paper: 6; RetinaNet's: 5)
        channels: channels of each map of each module (the paper: 128; the released code and RetinaNet's paper: 256)
        variant: paper = the network of its figures, released = that of the authors' code (default: paper)
        sfam: whether the pyramid's channels are weighed (default: as published, paper yes, released no)
        head: conv = one convolution per scale as published, shared = two subnets for all scales, light = these with one
            convolution instead of four; auto = shared for more than 100 classes, light in the small network of a03
        anchors: square = one per cell, official = the published six, or RetinaNet's nine, or a file of sizes, like
            a02's OUTPUT/anchors_level_<n>.json, which is read once (default: square)
        taps: two layers of the backbone to read, at strides of 8 and 16 pixels, and for RetinaNet a third, at 32
            (default: those of the table)
        init_from: start from the weights of another run (name or folder), where they fit, also one of other classes or
            one that models.convert made; what is open of the network is as there; the layers that do not fit are named
        freeze_backbone: the backbone keeps its weights
        freeze_batch_norm: batch norm keeps its weights and statistics, for batches of very few images
        freeze_backbone_epochs: the backbone keeps its weights for so many epochs
        time_budget: wall-clock time for all of it, such as 20m or 8h, which the training is planned to fill; none = as
            long as the number of images suggests; not used when --epochs is given
        epochs: passes of steps_per_epoch steps; the learning rate falls to its end over all of them
        steps_per_epoch: batches per epoch; 0 = each image once
        batch_size: images per step
        accumulate: gradients of so many steps make one update, for batches that do not fit; each step counts alike, so
            an object counts more in a step of few objects
        precision: bfloat16 = mixed: weights, losses and updates stay in float32 (default: where the machine has it)
        label_rules: which of Open Images' rules hold: verified = no gradient for a class that is not verified in an
            image, ancestors = none against a class above a box's own, regions = none in a01's ignored regions,
            depictions = drawn or printed objects are ignored regions; none = what has no box counts as absent
        assignment: which anchors learn a box: task_aligned (by score and overlap), atss, max_iou (as published)
        class_loss: bce, varifocal and quality_focal learn the overlap as score; focal learns 1
        box_loss: giou, ciou, or smooth_l1 (as published)
        sampling: images = each once per pass, classes = a class, then an image with it, repeat_factor = images of rare
            classes more often
        sampling_exponent: classes: 0 = every class alike, 1 = as frequent as it is; repeat_factor: of the factor (0.5);
            images: not used
        negatives: share of pictures without any object of the level (default: as they come)
        resize: how pictures become square: letterbox = on grey, keeping their aspect ratio (training pictures are also
            stretched towards a square at random until 85 % of the steps), or warp (as published)
        crop: zoom = scaled, shifted and cropped at random, ssd = crops that keep an overlap, and expansion, of pictures
            that are in no mosaic
        mosaic: share of the training pictures that are made of four, until the last 15 % of the steps; 0 = off
        mixup: share of the training pictures that are blended with another, as long; 0 = off
        multi_scale: other sizes of the input, in pixels; each epoch has one of all at random, the last ones image_size
        max_gt_boxes: boxes per training picture, each class of an object being one; those beyond, drawn at random, are
            ignored regions (with the label rules regions or depictions, else background), counted and said
        optimizer: adamw, or sgd with momentum 0.9
        learning_rate: the highest, after the warm-up (default: by the optimizer, and whether weights are random)
        schedule: how it falls: cosine, or the paper's steps (a tenth at 60 %, again at 80 %)
        warm_up_steps: in which it rises (default: 100, at most a tenth of all)
        weight_decay: decoupled from the gradient, of everything but biases and batch norm (default: adamw 0.03, sgd
            0.0005)
        clip_norm: longest gradient of all weights together; 0 = any
        ema: validate and keep the moving average of the weights (at the end of a training, whose
            learning rate has fallen to nearly 0, it was measured to gain nothing)
        validation_images: at most so many images measure an epoch; 0 = all
        validate_every: epochs between two measurements
        patience: stop after so many measurements without a better mAP; 0 = never
        tensorboard: write what TensorBoard shows, to tensorboard/ in the run's folder
        show_batches: instead of training, write so many batches to batches.html in the run's folder: pictures as the
            network sees them, boxes green where an anchor learns them and red where none does, ignored regions,
            verified classes; 0 = train
        checkpoint_minutes: from one checkpoint to the next, besides the one after each epoch; 0 = not by time
        checkpoint_steps: the same in steps; 0 = not by steps
        max_hours: save and end after so many, such as 11.5 where the machine is taken away after 12; the same command
            goes on (default: never)
        max_bad_images: training images that cannot be read are replaced by others, and said; more than so many end the
            training
        skip_missing: leave out images that have no file, or are damaged as far as a02 saw, instead of refusing to start
        orientation: pixels as stored in the file, or turned by the EXIF tag
        workers: threads that prepare batches, at least 2 (default: one per core, at most 16)
        cache_gb: gigabytes of memory for reduced pictures (default: half of what is free); 0 = read them each time
        seed: of weights, order and augmentation
        deterministic: the same bits from the same seed on the same machine; slower
        strategy: mirrored = several devices share each batch, one = one device does it all, auto = all GPUs share it
        devices: so many of them (default: all); where there is no GPU the CPU is made so many, to try it
        coordinator: address:port of process 0, where several machines train together (JAX)
        processes: how many do, each started with the same flags but process
        process: the number of this one; process 0 writes the files
    """
    flags, started = dict(locals()), time.monotonic()
    check_flags(flags)
    own = "_".join(name for name in (detector if detector != "m2det" or not backbone else None, backbone) if name)
    folder = Path(output_path) / "weights" / (run or f"{own}_level_{level}")
    output_file(folder / "settings.json", "give another place by --output_path")
    stop = stopping.Stop(max_hours=max_hours, started=started)
    with stop.on_signals():
        try:
            _train(flags, folder, started, stop)
        except stopping.Stopped:
            print(f"{folder}: stopped by {stop.reason} before its next step: run the same command to go on")
    if stop.by_keyboard:
        raise KeyboardInterrupt


def _train(flags: dict, folder: Path, started: float, stop: stopping.Stop) -> None:
    """Trains the run in `folder` from its beginning, or from its last checkpoint, until it is finished or stopped."""
    classes = read_classes(flags["output_path"], flags["level"])
    plan.parse_duration(flags["time_budget"])  # a mistake is said before anything starts
    plan.share_few_cores(known_channels(flags), machine.usable_cores())
    flags["workers"] = flags["workers"] or plan.workers_for(machine.usable_cores())
    import keras  # here and below, because starting the framework takes seconds that --help and a mistake should not

    from training import devices, machines

    machines.check_flags(flags)
    keras.utils.set_random_seed(flags["seed"])
    if flags["deterministic"]:
        devices.make_deterministic()
    stop.agree = machines.from_any
    with machines.together(flags), machines.sharing(flags) as sharing:
        _train_on(sharing, flags, classes, folder, started, stop)


def _train_on(sharing, flags: dict, classes: dict, folder: Path, started: float, stop: stopping.Stop) -> None:
    """The same on devices that are chosen."""
    from training import checkpoints, label_rules, loop, machines, memory, parts

    program = memory.resident_bytes()
    open_run = checkpoints.look_at_run if flags["show_batches"] else checkpoints.open_run
    state = machines.from_first(lambda: open_run(folder))
    settings = machines.from_first(lambda: saved_settings(folder, flags, classes, state))
    if 0 < state["total"] <= state["epochs"] and not flags["show_batches"]:
        print(f"{folder} is finished: {state['epochs']} of {state['total']} epochs{checkpoints.best_so_far(state)}")
        return
    if not state["step"]:
        check_source(flags)

    train = parts.training_data(flags)
    rules = label_rules.in_force(flags, list(classes), train)
    settings = settings or machines.from_first(lambda: parts.new_settings(flags, classes, train, sharing.count))
    flags["weight_decay"] = weight_decay_of(settings)
    sharing.check_batch_size(settings["training"]["batch_size"])
    with sharing.scope():
        network, exported = parts.networks(flags, settings, begins=not state["step"])
        trainer = parts.trainer(flags, settings, network, state, folder, rules)
    batches = parts.batches(flags, settings, train, rules)
    if flags["show_batches"]:
        from training import batch_page

        print(batch_page.show(folder / "batches.html", trainer, batches, flags, settings, state))
        return
    memory.print_expected(network, flags, settings, images=len(train), devices=sharing.devices, program=program)
    began = started - state["seconds"]
    budget = plan.parse_duration(flags["time_budget"]) if flags["epochs"] is None else None
    deadline = began + budget if budget else None
    validate = parts.validation(flags, settings)
    watch = {"batches": batches, "stop": stop, "began": began, "validate": validate, "exported": exported}
    end = loop.epoch_end(folder, trainer, state, flags, settings, **watch)
    if not state["step"]:
        loop.plan_length(flags, settings, trainer, batches, end, deadline)
        state.update(machines.from_first(lambda: state))
        loop.compile_for(trainer, state, flags, backbone=settings["backbone"])
    state["settings"] = settings
    if machines.is_first():
        with replacing(folder / "settings.json") as path:
            path.write_text(json.dumps(settings, indent=1), encoding="utf-8")
            checkpoints.flush(path)
    begin = state["step"]
    why = loop.run(trainer, batches, end, flags, backbone=settings["backbone"], deadline=deadline)
    batches.print_left_out(range(begin, state["step"]))
    print(loop.how_it_ended(folder, state, why, stop), flush=True)


if __name__ == "__main__":
    run_script(main)
