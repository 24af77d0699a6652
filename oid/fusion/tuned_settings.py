"""Settings of weighted boxes fusion as a JSON file: what a search found on validation images.

    {
     "format": "fusion settings", "version": 1, "method": "wbf", "models": ["a.expanded", "b.expanded"],
     "settings": {"weights": [1.0, 0.62], "iou_threshold": 0.61, "skip_box_threshold": 0.012, "conf_type": "avg"},
     "verdict": "gain", "measured": {...}
    }

The settings fit prediction files of the same names in the same order only: weights in another order would be wrong and
nobody would notice. `measured` is for people and is never read.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from oid.files import InputError
from oid.json_files import read_json, write_json


@dataclasses.dataclass(frozen=True)
class FusionSettings:
    """The keywords of `oid.fusion.fuse.fuse` that are searched."""

    weights: tuple[Annotated[float, Meta(ge=0, le=1e6)], ...] | None  # None = all equal
    iou_threshold: Annotated[float, Meta(ge=0, le=1)]
    skip_box_threshold: Annotated[float, Meta(ge=-1e6, le=1e6)] = 0.0
    conf_type: Literal["avg", "max", "box_and_model_avg", "absent_model_aware_avg"] = "avg"

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


@dataclasses.dataclass(frozen=True)
class _File:
    format: Literal["fusion settings"]
    version: Literal[1]
    method: Literal["wbf"]
    models: tuple[str, ...]
    settings: FusionSettings
    verdict: str
    measured: object


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
    path: str | os.PathLike, names: Sequence[str], settings: FusionSettings, verdict: str, measured: object
) -> None:
    """Writes a settings file, all or nothing; `measured` is a dataclass, or another value that JSON can hold."""
    write_json(path, _File("fusion settings", 1, "wbf", tuple(names), settings, verdict, measured))


def read_settings(path: str | os.PathLike, names: Sequence[str]) -> FusionSettings:
    """Reads a settings file for models in the order in which they are fused; `names` are from `model_names`.

    Raises:
        InputError: there is no such file, it is not a settings file, a value is out of range, or the models differ.
    """
    content = read_json(path, _File)
    if content.models != tuple(names):
        raise InputError(f"{path}: models are {list(content.models)}, they must be {list(names)}")
    settings = content.settings
    if len(settings.weights) != len(names) or not any(settings.weights):
        raise InputError(f"{path}: weights are {settings.weights}, they must be {len(names)} numbers, not all 0")
    return settings
