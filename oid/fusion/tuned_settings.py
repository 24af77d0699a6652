"""Settings of weighted boxes fusion as a JSON file: what a search found on validation images.

    {
     "format": "fusion settings", "version": 1,
     "method": "wbf", "models": ["a.expanded", "b.expanded"], "weights": [1.0, 0.62],
     "fusion_iou": 0.61, "skip_box_threshold": 0.012, "conf_type": "avg",
     "verdict": "gain", "measured": {...}
    }

The settings fit prediction files of the same names in the same order only: weights in another order would be wrong and
nobody would notice. `measured` is for people and is never read.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from oid.files import InputError, replacing, require_file
from oid.fusion.fuse import CONF_TYPES

CONSTANTS = {"format": "fusion settings", "version": 1, "method": "wbf"}
LARGEST = 1e6  # weight or threshold


@dataclasses.dataclass(frozen=True)
class FusionSettings:
    """The keywords of `oid.fusion.fuse.fuse` that are searched."""

    weights: tuple[float, ...] | None  # None = all equal
    iou_threshold: float
    skip_box_threshold: float = 0.0
    conf_type: str = "avg"

    def __str__(self) -> str:
        weights = " ".join(f"{weight:g}" for weight in self.weights)
        numbers = f"IoU {self.iou_threshold:g}, skip below {self.skip_box_threshold:g}"
        return f"weights {weights}, {numbers}, {self.conf_type}"


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """How settings are searched."""

    trials: int = 200  # settings that are tried
    folds: int = 5  # parts of the images, held out in turn
    seed: int = 0  # of folds, trials and bootstrap
    group_of_weight: float = 1.0  # of the metric
    threads: int = 1  # of the fusion; the result does not depend on them


def model_names(paths: Sequence[str | os.PathLike]) -> list[str]:
    """The names of models: `folder/X.csv` or `folder/X.csv.gz` -> `X`.

    Raises:
        InputError: two files have the same name.
    """
    found = {}
    for path in paths:
        name = Path(path).name.removesuffix(".gz").removesuffix(".csv")
        if name in found:
            raise InputError(f"{found[name]} and {path} have the same name, by which settings know a model: rename one")
        found[name] = path
    return list(found)


def write_settings(
    path: str | os.PathLike, names: Sequence[str], settings: FusionSettings, verdict: str, measured: dict[str, object]
) -> None:
    """Writes a settings file, all or nothing; `measured` has numbers, texts, lists and dictionaries, no nan."""
    content = CONSTANTS | {"models": list(names), "weights": settings.weights, "fusion_iou": settings.iou_threshold}
    content |= {"skip_box_threshold": settings.skip_box_threshold, "conf_type": settings.conf_type}
    content |= {"verdict": verdict, "measured": measured}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_settings(path: str | os.PathLike, names: Sequence[str]) -> FusionSettings:
    """Reads a settings file for models in the order in which they are fused; `names` are from `model_names`.

    Raises:
        InputError: there is no such file, it is not a settings file, a value is out of range, or the models differ.
    """
    path = require_file(path, "settings are the result of a search")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON file ({error})") from error
    if not isinstance(content, dict) or content.get("format") != CONSTANTS["format"]:
        raise InputError(f'{path} is not a settings file: "format" is not {CONSTANTS["format"]!r}')
    weights, iou, skip, conf_type = map(content.get, ("weights", "fusion_iou", "skip_box_threshold", "conf_type"))
    checks = [(key, content.get(key) == value, value) for key, value in (CONSTANTS | {"models": list(names)}).items()]
    fits = isinstance(weights, list) and len(weights) == len(names) and any(weights)
    checks += [
        ("weights", fits and _in_range(weights, 0, LARGEST), f"{len(names)} numbers from 0 to {LARGEST:g}, not all 0"),
        ("fusion_iou", _in_range([iou], 0, 1), "a number from 0 to 1"),
        ("skip_box_threshold", _in_range([skip], -LARGEST, LARGEST), f"a number up to {LARGEST:g}"),
        ("conf_type", conf_type in CONF_TYPES, f"one of {', '.join(CONF_TYPES)}"),
    ]
    for key, is_fine, allowed in checks:
        if not is_fine:
            raise InputError(f"{path}: {key} is {content.get(key)!r}, it must be {allowed}")
    return FusionSettings(tuple(map(float, weights)), float(iou), float(skip), conf_type)


def _in_range(values: list, low: float, high: float) -> bool:
    return all(type(value) in (int, float) and low <= value <= high for value in values)  # true is no number
