"""Settings of weighted boxes fusion as a file: what `oid.fusion.search` found on validation images.

The file is JSON:

    {
     "format": "fusion settings", "version": 1,
     "method": "wbf", "models": ["a.expanded", "b.expanded"], "weights": [1.0, 0.62],
     "fusion_iou": 0.61, "skip_box_threshold": 0.012, "conf_type": "avg",
     "verdict": "gain", "measured": {...}
    }

`models` are the names of the prediction files, without folder, `.csv` and `.gz`, in the order of the weights. The
settings fit files of the same names in the same order only, because weights in another order would silently be wrong.
`measured` is for people; `read_tuned_settings` does not look at it.
"""

import collections
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from oid.files import InputError, replacing, require_file
from oid.fusion.fuse import CONF_TYPES

FORMAT = "fusion settings"
VERSION = 1
METHOD = "wbf"
LARGEST = 1e6  # of a weight or a threshold
REMEDY = "write it again by a06_ensemble.py --tune"


@dataclasses.dataclass(frozen=True)
class FusionSettings:
    """Arguments of weighted boxes fusion; see `oid.fusion.fuse.weighted_boxes_fusion`.

    Attributes:
        weights: one per model, 0 or more, the largest 1 where they were searched.
        fusion_iou: from 0 to 1.
        skip_box_threshold: boxes with a lower score take no part.
        conf_type: one of `oid.fusion.fuse.CONF_TYPES`.
    """

    weights: tuple[float, ...]
    fusion_iou: float
    skip_box_threshold: float = 0.0
    conf_type: str = "avg"


def model_names(paths: Sequence[str | os.PathLike]) -> list[str]:
    """The names by which a settings file knows its models: `folder/X.csv` or `folder/X.csv.gz` -> `X`.

    Raises:
        InputError: two files have the same name, so that nobody could tell their weights apart.
    """
    names = [Path(path).name.removesuffix(".gz").removesuffix(".csv") for path in paths]
    name, count = collections.Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        first, second = [path for path, other in zip(paths, names, strict=True) if other == name][:2]
        raise InputError(f"{first} and {second} have the same name, by which settings know a model: rename one of them")
    return names


def write_tuned_settings(
    path: str | os.PathLike,
    names: Sequence[str],
    settings: FusionSettings,
    verdict: str,
    measured: dict[str, object],
) -> None:
    """Writes a settings file, all or nothing.

    Args:
        path: the file, `X.tuned.json`.
        names: the models, see `model_names`.
        settings: what is applied.
        verdict: "gain", or "inside the noise" where equal weights were kept.
        measured: numbers, texts and lists of these; no nan.
    """
    if len(names) != len(settings.weights):
        raise ValueError(f"{len(names)} names for {len(settings.weights)} weights")
    content = {"format": FORMAT, "version": VERSION, "method": METHOD, "models": list(names)}
    content |= dataclasses.asdict(settings) | {"verdict": verdict, "measured": measured}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_tuned_settings(path: str | os.PathLike, names: Sequence[str]) -> FusionSettings:
    """Reads a settings file for the models that are to be fused.

    Args:
        path: the file.
        names: the models, see `model_names`, in the order in which they are fused.

    Raises:
        InputError: there is no such file, it is no settings file, a value is out of range, or its models are not these.
    """
    path = require_file(path, "a06_ensemble.py --tune writes it")
    content = _content(path)
    settings = FusionSettings(
        weights=tuple(_weights(path, content)),
        fusion_iou=_number(path, content, "fusion_iou", 0.0, 1.0),
        skip_box_threshold=_number(path, content, "skip_box_threshold", -LARGEST, LARGEST),
        conf_type=content["conf_type"],
    )
    models = content["models"]
    if len(models) != len(names):
        raise InputError(
            f"{path} has {len(models)} models ({' '.join(models)}), but {len(names)} files are to be fused"
        )
    if models != list(names):
        position = next(i for i, pair in enumerate(zip(models, names, strict=True)) if pair[0] != pair[1])
        raise InputError(
            f"{path}: model {position + 1} is {models[position]!r}, but file {position + 1} is {names[position]!r}: "
            f"give --predictions files of these names in this order: {' '.join(models)}"
        )
    return settings


def _content(path: Path) -> dict:
    """The object of the file, with every key that is needed, texts being what they must be."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is no JSON file ({error}): {REMEDY}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f'{path} is no settings file, "format" is not {FORMAT!r}: {REMEDY}')
    if content.get("version") != VERSION:
        raise InputError(f"{path} has version {content.get('version')!r}, this program reads {VERSION}: {REMEDY}")
    for key in ("models", "weights", "fusion_iou", "skip_box_threshold", "conf_type", "method"):
        if key not in content:
            raise InputError(f"{path}: {key!r} is missing: {REMEDY}")
    for key, allowed in (("method", (METHOD,)), ("conf_type", CONF_TYPES)):
        if content[key] not in allowed:
            raise InputError(f"{path}: {key} is {content[key]!r}, it must be one of {', '.join(allowed)}")
    models = content["models"]
    if not isinstance(models, list) or not all(isinstance(name, str) for name in models):
        raise InputError(f"{path}: models is {models!r}, it must be a list of names")
    return content


def _weights(path: Path, content: dict) -> list[float]:
    weights = content["weights"]
    if not isinstance(weights, list) or len(weights) != len(content["models"]):
        raise InputError(f"{path}: weights is {weights!r}, it must have a number for each of {content['models']!r}")
    if not all(_is_number(weight) and weight >= 0.0 for weight in weights) or not any(weights):
        raise InputError(f"{path}: weights is {weights!r}, they must be numbers from 0 to {LARGEST:g}, not all 0")
    return [float(weight) for weight in weights]


def _number(path: Path, content: dict, key: str, low: float, high: float) -> float:
    value = content[key]
    if not _is_number(value) or not low <= value <= high:
        raise InputError(f"{path}: {key} is {value!r}, it must be a number from {low:g} to {high:g}")
    return float(value)


def _is_number(value: object) -> bool:
    """A number of reasonable size; true, false, nan and infinity are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST
