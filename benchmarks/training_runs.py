"""Runs of a03 that are measured: what the benchmarks of the training share."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from oid import paths
from oid.annotations import read_class_descriptions
from oid.files import InputError
from oid.fusion.resampling import Curves
from oid.hierarchy import read_hierarchy
from oid.metric.challenge import Selection, match
from oid.metric.ground_truth import read_ground_truth
from oid.predictions.files import read_predictions

ROOT = Path(__file__).resolve().parent.parent
IOUS = np.linspace(0.5, 0.95, 10)
NEVER = 1_000_000  # --validate_every, where no epoch is to be chosen on the images that measure
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


def run(*script: str, **flags: object) -> Cost:
    """Runs one of the scripts with this Python; a tuple becomes several values.

    Raises:
        InputError: it failed; with its last line.
    """
    command = [sys.executable, *script]
    for name, value in flags.items():
        command += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    before, begin = os.times(), time.monotonic()
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    after = os.times()
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise InputError(f"{script[0]} ended with exit code {done.returncode}: {lines[-1].removeprefix('error: ')}")
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    return Cost(time.monotonic() - begin, spent)


def train_and_predict(data_set: Path, output: Path, run_name: str, flags: dict[str, object]) -> tuple[Path, Cost]:
    """One run of a03, and a04's predictions on the images that measure, expanded by a05.

    A finished run is not repeated; the cost is that of a03.
    """
    file_paths = {"dataset_path": data_set, "output_path": output, "run": run_name}
    found = paths.run_predictions(output, "validation", run_name)
    expanded = paths.expanded_predictions(found)
    cost = run("a03_train_m2det.py", **file_paths, **flags)
    if not expanded.is_file():
        run("a04_inference.py", **file_paths, images=data_set / "validation", predictions=found)
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
