"""The flags of a training: which values make no training, and whether a run may go on with them."""

import json
import math
from pathlib import Path

from oid.files import InputError

# a run can be continued with other values of these: they do not change what it learns
FREE_TO_CHANGE = {"dataset_path", "output_path", "run", "workers", "cache_gb", "patience", "tensorboard"}

LOWEST = {
    **{"image_size": 32, "tums": 1, "scales": 1, "channels": 1, "batch_size": 1, "epochs": 1, "steps_per_epoch": 0},
    **{"validation_images": 0, "validate_every": 1, "max_gt_boxes": 1, "workers": 1, "seed": 0, "accumulate": 1},
    **{
        "warm_up_steps": 0,
        "freeze_backbone_epochs": 0,
        "patience": 0,
        "cache_gb": 0,
        "weight_decay": 0,
        "clip_norm": 0,
    },
}
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
    if not 0 < given.get("learning_rate", 1.0) < math.inf:
        raise InputError(f"--learning_rate is {flags['learning_rate']}: it must be above 0 and finite")
    for name in ("weight_decay", "clip_norm"):
        if flags[name] == math.inf:
            raise InputError(f"--{name} is inf: it must be finite")
    least = LOWEST["image_size"]
    if small := [size for size in given.get("multi_scale", ()) if size < least]:
        raise InputError(f"--multi_scale has {min(small)}: it must be at least {least}")
    if flags["taps"] is not None and len(flags["taps"]) != 2:
        raise InputError(f"--taps names {len(flags['taps'])} layers: name two, at strides of 8 and 16 pixels")
    if flags["steps_per_epoch"] is not None and flags["epochs"] is None:
        raise InputError(f"--steps_per_epoch {flags['steps_per_epoch']} needs --epochs: give both, or a --time_budget")
    unknown = [rule for rule in flags["label_rules"] if rule not in (*LABEL_RULES, "none")]
    if unknown or ("none" in flags["label_rules"] and len(flags["label_rules"]) > 1):
        words = " ".join(flags["label_rules"])
        raise InputError(f"--label_rules {words}: give some of {', '.join(LABEL_RULES)}, or none")
    _check_frozen(flags)


def _check_frozen(flags: dict) -> None:
    random = flags["backbone_weights"] == "none" and not flags["init_from"]
    for name in ("freeze_backbone", "freeze_batch_norm", "freeze_backbone_epochs"):
        if flags[name] and random:
            raise InputError(f"--{name} would keep random weights: give --backbone_weights or --init_from as well")


def saved_settings(folder: Path, flags: dict, classes: dict[str, str], *, epochs: int) -> dict | None:
    """The settings that a run began with, which its next epoch needs; None where nothing has been learned yet.

    Args:
        folder: of the run.
        flags: now given.
        classes: a01's, `{label: name}`.
        epochs: that are done.

    Raises:
        InputError: other flags or classes than it began with, or parts of the run are missing.
    """
    path = folder / "settings.json"
    if not path.is_file() or not epochs:
        if (folder / "history.csv").is_file():
            raise InputError(
                f"{folder} holds a training that lacks its checkpoint or settings: choose another --run, or remove it"
            )
        return None
    from models.detector import read_settings

    before = read_settings(folder)
    for name, value in json.loads(json.dumps(flags)).items():  # as it was read: lists for tuples
        if name not in FREE_TO_CHANGE and before.get("flags", {}).get(name) != value:
            raise InputError(
                f"{path} was made with --{name} {before.get('flags', {}).get(name)}, now it is {value}: use the same "
                f"value, or choose another --run (with --init_from {folder.name} to start from its weights)"
            )
    if before["classes"] != [{"label": label, "name": name} for label, name in classes.items()]:
        raise InputError(f"{path} has other classes than a01's files now: choose another --run, or remove {folder}")
    return before
