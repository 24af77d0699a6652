"""Runs of a03 that are measured: what the benchmarks of the training share."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from oid import paths
from oid.annotations import read_class_descriptions
from oid.command_line import check_flag
from oid.files import InputError
from oid.fusion.resampling import Curves
from oid.hierarchy import read_hierarchy
from oid.metric.challenge import Selection, match
from oid.metric.ground_truth import read_ground_truth
from oid.predictions.files import read_predictions
from training.options import LengthOptions, Options, Recipe, RecordOptions, duration, recipe_of

ROOT = Path(__file__).resolve().parent.parent
IOUS = np.linspace(0.5, 0.95, 10)
VALIDATION_IMAGES = 1  # no epoch is chosen on the images that measure: the newest checkpoint counts
VOC_FLAGS = {"source": "voc", "source_splits": ("train=trainval", "validation=test")}  # a01's, with --source_path


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a command, in seconds.

    Attributes:
        wall: from beginning to end.
        cpu: of all its threads.
    """

    wall: float
    cpu: float


def run(*script: str, given: bytes = b"", **flags: object) -> Cost:
    """Runs one of the scripts with this Python; a tuple becomes several values.

    Args:
        script: the file or "-m" and the module, and values without a flag.
        given: the standard input.
        flags: of the script.

    Raises:
        InputError: it failed; with its last line.
    """
    command = [sys.executable, *map(str, script)]
    for name, value in flags.items():
        command += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    before, begin = os.times(), time.monotonic()
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, input=given)
    after = os.times()
    if done.returncode:
        lines = done.stderr.decode().strip().splitlines() or ["no message"]
        raise InputError(f"{script[0]} ended with exit code {done.returncode}: {lines[-1].removeprefix('error: ')}")
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    return Cost(time.monotonic() - begin, spent)


def length_options(time_budget: str, epochs: int | None, steps_per_epoch: int | None) -> LengthOptions:
    """How long each training takes: a time budget such as "8m", or epochs instead.

    Raises:
        InputError: the budget is not a time.
    """
    seconds = duration(time_budget)
    check_flag(seconds > 0, "time_budget", time_budget, "90s, 20m, 1h30m or 2d")
    return LengthOptions(seconds, epochs, steps_per_epoch)


def train_and_predict(
    data_set: Path, output: Path, run_name: str, options: Options, recipe: Recipe | None = None
) -> tuple[Path, Cost]:
    """Trains a run, predicts by its newest checkpoint on the images that measure, and expands the predictions.

    A finished run is not repeated.

    Args:
        data_set: DATASET.
        output: OUTPUT, with a01's files.
        run_name: of the run.
        options: of the training; the validation images are replaced.
        recipe: None = that of the options.

    Returns:
        the file of a05, and what the training cost.
    """
    options = dataclasses.replace(options, records=RecordOptions(validation_images=VALIDATION_IMAGES))
    given = msgspec.json.encode((options, recipe or recipe_of(options)))
    cost = run("-m", "benchmarks.train_variant", data_set, output.absolute(), run_name, given=given)
    found = paths.run_predictions(output, "validation", run_name)
    expanded = paths.expanded_predictions(found)
    if not expanded.is_file():
        file_paths = {"dataset_path": data_set, "output_path": output.absolute(), "predictions": found.absolute()}
        run("a04_inference.py", **file_paths, run=f"{run_name}/checkpoint", images=data_set / "validation")
        run("a05_expand_hierarchy.py", dataset_path=data_set, predictions=found, expanded=expanded)
    return expanded, cost


def measure(data_set: Path, expanded: Path) -> list[Curves]:
    """The detections matched with the ground truth of all classes, at each IoU."""
    tree = read_hierarchy(paths.annotation_file(data_set, paths.HIERARCHY))
    classes = list(read_class_descriptions(paths.evaluated_class_descriptions(data_set)))
    files = paths.box_annotations(data_set, "validation"), paths.image_label_annotations(data_set, "validation")
    truth, report = read_ground_truth(*files, tree, classes)
    detections = Selection(truth, report.labels).take(read_predictions(expanded))
    size = len(report.labels)
    return [Curves(match(truth, detections, num_classes=size, iou_threshold=iou)) for iou in IOUS]


def score(seeds: list[list[Curves]], times: np.ndarray | None = None) -> tuple[float, float]:
    """mAP at IoU 0.5, and the mean over all IoUs, averaged over the seeds; `times` as in `oid.fusion.resampling`."""
    maps = np.array([[curve.mean_average_precision(times) for curve in run] for run in seeds])  # [seeds,ious]
    return float(maps[:, 0].mean()), float(maps.mean())
