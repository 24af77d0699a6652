"""The flags of a training: which values make no training, and whether a run may go on with them."""

import importlib.util
import json
import math
from pathlib import Path

from oid import paths
from oid.files import InputError

# a run can be continued with other values of these: they do not change what it learns
FREE_TO_CHANGE = {
    *("dataset_path", "output_path", "run", "workers", "cache_gb", "patience", "tensorboard"),
    *("checkpoint_steps", "checkpoint_minutes", "max_hours", "max_bad_images", "show_batches"),
    *("strategy", "devices", "coordinator", "processes", "process"),
}

ADDED = {"detector": "m2det"}  # flags that older runs do not know, and what they were
OPENED = {"weight_decay": 0.03, "variant": "paper", "anchors": "square"}  # flags now open, and what they were before

LOWEST = {
    **{"image_size": 32, "tums": 1, "scales": 1, "channels": 1, "batch_size": 1, "epochs": 1, "steps_per_epoch": 0},
    **{"validation_images": 0, "validate_every": 1, "max_gt_boxes": 1, "workers": 2, "seed": 0, "accumulate": 1},
    **{
        "warm_up_steps": 0,
        "freeze_backbone_epochs": 0,
        "patience": 0,
        "cache_gb": 0,
        "weight_decay": 0,
        "clip_norm": 0,
    },
    **{"checkpoint_steps": 0, "checkpoint_minutes": 0, "max_bad_images": 0, "show_batches": 0},
    **{"devices": 1, "processes": 1, "process": 0},
}
LEGACY_CHANNELS = 256
SHARES = ("mosaic", "mixup", "negatives", "sampling_exponent")
LABEL_RULES = ("verified", "ancestors", "regions", "depictions")


def check_flags(flags: dict) -> None:
    """Refuses values that make no training; None is open and always allowed.

    Raises:
        InputError: naming the flag and its value.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    for name, least in LOWEST.items():
        if name in given and not given[name] >= least:
            raise InputError(f"--{name} is {given[name]}: it must be at least {least}")
    if flags["seed"] >= 2**32:
        raise InputError(f"--seed is {flags['seed']}: it must be below 4294967296")
    if given.get("cache_gb", 0) > 1e6:
        raise InputError(f"--cache_gb is {flags['cache_gb']}: it must be at most 1000000")
    for name in SHARES:
        if name in given and not 0 <= given[name] <= 1:
            raise InputError(f"--{name} is {given[name]}: it must be from 0 to 1")
    for name in ("learning_rate", "max_hours"):
        if not 0 < given.get(name, 1.0) < math.inf:
            raise InputError(f"--{name} is {flags[name]}: it must be above 0 and finite")
    for name in ("weight_decay", "clip_norm"):
        if flags[name] == math.inf:
            raise InputError(f"--{name} is inf: it must be finite")
    least = LOWEST["image_size"]
    if small := [size for size in given.get("multi_scale", ()) if size < least]:
        raise InputError(f"--multi_scale has {min(small)}: it must be at least {least}")
    if flags["steps_per_epoch"] is not None and flags["epochs"] is None:
        raise InputError(f"--steps_per_epoch {flags['steps_per_epoch']} needs --epochs: give both, or a --time_budget")
    unknown = [rule for rule in flags["label_rules"] if rule not in (*LABEL_RULES, "none")]
    if unknown or ("none" in flags["label_rules"] and len(flags["label_rules"]) > 1):
        words = " ".join(flags["label_rules"])
        raise InputError(f"--label_rules {words}: give some of {', '.join(LABEL_RULES)}, or none")
    if flags["show_batches"] and flags["processes"] > 1:
        raise InputError(f"--show_batches {flags['show_batches']} needs one process: leave out --processes")
    if flags["tensorboard"] and importlib.util.find_spec("tensorboard") is None:
        raise InputError("--tensorboard needs the package of that name: pip install tensorboard, or leave it out")
    _check_detector(flags)
    _check_frozen(flags)
    if flags["epochs"] is not None:
        check_length(flags, flags["epochs"], flags["steps_per_epoch"] or None)


def check_length(flags: dict, epochs: int, steps_per_epoch: int | None) -> None:
    """Refuses a backbone that never thaws, and a learning rate that never reaches its peak.

    Args:
        flags: a03's.
        epochs: of the training, given or planned.
        steps_per_epoch: None = not known yet.

    Raises:
        InputError: naming the flag and how long the training is.
    """
    frozen, warm_up = flags["freeze_backbone_epochs"], flags["warm_up_steps"] or 0
    if frozen >= epochs:
        raise InputError(
            f"--freeze_backbone_epochs {frozen} in a training of {epochs} epochs would never thaw: give fewer, or "
            "--freeze_backbone if that is what is meant"
        )
    if steps_per_epoch is not None and warm_up > epochs * steps_per_epoch:
        raise InputError(
            f"--warm_up_steps {warm_up} in a training of {epochs * steps_per_epoch} steps would never reach the "
            "learning rate: give fewer, or leave it out"
        )


def _check_detector(flags: dict) -> None:
    """Refuses flags of the other detector."""
    if flags["detector"] == "m2det":
        if flags["taps"] is not None and len(flags["taps"]) != 2:
            raise InputError(f"--taps names {len(flags['taps'])} layers: name two, at strides of 8 and 16 pixels")
        return
    given = [name for name in ("tums", "sfam") if flags[name] is not None]
    given += ["variant"] if flags["variant"] == "released" else []
    if given:
        raise InputError(f"--{given[0]} {flags[given[0]]} belongs to M2Det: leave it out, or use --detector m2det")


def _check_frozen(flags: dict) -> None:
    """Refuses to freeze what is random, and what is to thaw for good."""
    random = flags["backbone_weights"] == "none" and not flags["init_from"]
    for name in ("freeze_backbone", "freeze_batch_norm", "freeze_backbone_epochs"):
        if flags[name] and random:
            raise InputError(f"--{name} would keep random weights: give --backbone_weights or --init_from as well")
    if flags["freeze_backbone"] and flags["freeze_backbone_epochs"]:
        raise InputError(
            f"--freeze_backbone with --freeze_backbone_epochs {flags['freeze_backbone_epochs']}: the first is for the "
            "whole training, the second until it thaws: leave one out"
        )


def check_source(flags: dict) -> None:
    """Refuses to start from the weights of a run that is none; to be asked before the network is built.

    Raises:
        InputError: naming what `--init_from` says.
    """
    if flags["init_from"] and not (source_run(flags) / "settings.json").is_file():
        folder = paths.run_folder(flags["output_path"], flags["init_from"])
        raise InputError(f"--init_from {flags['init_from']}: {folder} is no run: it has no settings.json; name another")


def source_run(flags: dict) -> Path:
    """The folder with the settings of the run that `--init_from` names, also where it names the run's checkpoint."""
    folder = paths.run_folder(flags["output_path"], flags["init_from"])
    return folder if (folder / "settings.json").is_file() else folder.parent


def known_channels(flags: dict) -> int | None:
    """Channels of the pyramid as far as they are known before a framework starts: asked for, or another run's.

    Args:
        flags: a03's.
    """
    if flags["channels"] is not None or not flags["init_from"]:
        return flags["channels"]
    source = _read_or_nothing(source_run(flags) / "settings.json")
    detector = source.get("detector", "m2det")
    if detector == "legacy_retinanet":
        return LEGACY_CHANNELS if flags["detector"] == "retinanet" and not flags["backbone"] else None
    return source.get("channels") if detector == flags["detector"] else None


def saved_settings(folder: Path, flags: dict, classes: dict[str, str], state: dict) -> dict | None:
    """The settings that a run began with, which its next step needs; None where nothing has been learned yet.

    Args:
        folder: of the run.
        flags: now given.
        classes: a01's, `{label: name}`.
        state: of its checkpoint, which has the settings.

    Raises:
        InputError: other flags, classes or settings than it began with, or the checkpoint is missing.
    """
    path = folder / "settings.json"
    if not state["step"]:
        if (folder / "history.csv").is_file():
            raise InputError(f"{folder} holds a training that lacks its checkpoint: choose another --run, or remove it")
        return None
    before = state["settings"]
    for name, value in json.loads(json.dumps(flags)).items():  # as it was read: lists for tuples
        was = before["flags"].get(name, ADDED.get(name))
        as_before = value is None and name in OPENED and was == OPENED[name]
        if name not in FREE_TO_CHANGE and was != value and not as_before:
            raise InputError(
                f"{folder} was begun with --{name} {was}, now it is {value}: use the same value, or choose another "
                f"--run (with --init_from {folder.name} to start from its weights)"
            )
    if before["classes"] != [{"label": label, "name": name} for label, name in classes.items()]:
        raise InputError(
            f"{folder} was begun with other classes than a01's files have now: choose another --run, or remove {folder}"
        )
    for name, value in _read_or_nothing(path).items():
        if name != "flags" and before.get(name) != value:
            raise InputError(
                f"{path}: {name} is not that of the checkpoint beside it, {json.dumps(before.get(name))[:60]}: restore "
                "the file, or remove it to have it made again"
            )
    return before


def weight_decay_of(settings: dict) -> float:
    """That of a run; those from before it was chosen have it in their flags."""
    return settings["training"].get("weight_decay", settings["flags"]["weight_decay"])


def _read_or_nothing(path: Path) -> dict:
    """The settings of a file; nothing where it is missing or damaged, as the checkpoint has them, too."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
