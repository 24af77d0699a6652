"""Times `a06 --tune` from files to settings, and compares the promised gain with the gain on new images.

    python benchmarks/tuning.py
    python benchmarks/tuning.py --small

Makes validation images and as many new ones with three detectors of different quality: 100 boxes of each on every
image, nine tenths of them of classes that are verified there (of real predictions fewer are). Prints what a06 prints,
its time and memory, the same for a small first run, which compiles, the gain of the settings on the new images, and the
time that the fusions alone would take with the package ensemble-boxes.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ensemble_boxes
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from oid.command_line import run_script
from oid.fusion.fuse import Boxes
from oid.fusion.search import fuse_all
from oid.fusion.tuned_settings import FusionSettings, read_settings
from oid.metric.challenge import GroundTruth, evaluate
from oid.predictions.files import Predictions, write_predictions

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = 5  # in every image
BOXES = 100  # of each detector in every image
# Of each detector: the share of objects it finds, the error of its corners in widths, and how its scores are
# distributed where it is right and where it is wrong (two parameters of a beta distribution each).
DETECTORS = {
    "large": (0.75, 0.08, (4, 2), (1, 8)),
    "medium": (0.65, 0.12, (3, 2), (1, 6)),
    "overconfident": (0.35, 0.25, (6, 2), (3, 6)),
}


def main(*, small: bool = False, images: int = 5_000, classes: int = 100, trials: int = 200) -> None:
    """Prints what the search costs, and what its settings gain on new images.

    Args:
        small: a quick look: 200 images, 10 classes, 60 trials
        images: of the split with ground truth, and of the new one
        classes: of both
        trials: of the search
    """
    if small:
        images, classes, trials = 200, 10, 60
    labels = [f"/m/{number:03d}" for number in range(classes)]
    with tempfile.TemporaryDirectory() as folder:
        tiny = prepare(Path(folder) / "tiny", 10, labels, seed=2)
        print(f"first run, 10 images, 6 trials: {tune(tiny, 6, quiet=True)[1]}", flush=True)
        case = prepare(Path(folder) / "validation", images, labels, seed=0)
        settings, took = tune(case, trials)
        print(f"a06 --tune, 3 x {images} images, {trials} trials: {took}")
        package = package_seconds(images=min(images, 100), labels=labels) * images * trials
        print(f"only the fusions, by ensemble-boxes, reckoned from 100 images: {package:.0f} s of processor time")
        tuned = read_settings(settings, list(DETECTORS))
        base = FusionSettings((1.0,) * len(DETECTORS), 0.55)
        truth, models = make(images, labels, seed=1)
        models = [Boxes(model.boxes, model.scores, model.label_index, model.offsets()) for model in models]
        before, after = (
            evaluate(truth, fuse_all(models, one), num_classes=classes).mean_average_precision for one in (base, tuned)
        )
        print(f"gain on {images} new images {after - before:+.4f}, mAP {before:.4f} to {after:.4f}")


def tune(folder: Path, trials: int, *, quiet: bool = False) -> tuple[Path, str]:
    """Runs a06 as a user does; the settings file, and what it took in words."""
    settings = folder / "submission.tuned.json"
    command = [sys.executable, str(ROOT / "a06_ensemble.py"), "--tune", "--trials", str(trials)]
    command += ["--predictions", *(str(folder / f"{name}.csv") for name in DETECTORS), "--dataset_path", str(folder)]
    command += ["--boxes", str(folder / "boxes.csv"), "--image_labels", str(folder / "labels.csv")]
    command += ["--ensemble", str(folder / "submission.csv"), "--settings", str(settings)]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=quiet)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return settings, f"{wall:.1f} s, {processor:.1f} s of processor time, {after.ru_maxrss / 2**20:.2f} GiB"


def prepare(folder: Path, images: int, labels: list[str], seed: int) -> Path:
    """Writes ground truth and predictions."""
    folder.mkdir()
    truth, models = make(images, labels, seed)
    for name, model in zip(DETECTORS, models, strict=True):
        write_predictions(folder / f"{name}.csv", model)
    with open(folder / "boxes.csv", "w", encoding="utf-8") as file:
        file.write("ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n")
        for image, label, (x1, y1, x2, y2) in zip(truth.box_image, truth.box_class, truth.boxes, strict=True):
            file.write(f"{truth.image_ids[image]},{labels[label]},{x1:.6f},{x2:.6f},{y1:.6f},{y2:.6f},0\n")
    with open(folder / "labels.csv", "w", encoding="utf-8") as file:
        file.write("ImageID,LabelName,Confidence\n")
        for image, label in zip(truth.label_image, truth.label_class, strict=True):
            file.write(f"{truth.image_ids[image]},{labels[label]},0\n")
    return folder


def make(images: int, labels: list[str], seed: int) -> tuple[GroundTruth, list[Predictions]]:
    """Ground truth, with two verified classes more in every image than it has boxes of, and what is predicted."""
    rng = np.random.default_rng(seed)
    verified = np.stack([rng.choice(len(labels), 5, replace=False) for _ in range(images)])
    image = np.repeat(np.arange(images), OBJECTS)
    kind = rng.integers(0, 3, len(image))
    sizes = rng.uniform(0.05, 0.4, (len(image), 2))
    corner = rng.uniform(0.0, 1.0 - sizes)
    boxes = np.concatenate([corner, corner + sizes], axis=1)
    ids = tuple(f"{number:016x}" for number in range(images))
    negative = np.repeat(np.arange(images), 2), verified[:, 3:].reshape(-1)
    truth = GroundTruth(ids, image, verified[image, kind], boxes, np.zeros(len(image), bool), *negative)
    return truth, [detect(rng, truth, verified, labels, *settings) for settings in DETECTORS.values()]


def detect(
    rng: np.random.Generator,
    truth: GroundTruth,
    verified: np.ndarray,
    labels: list[str],
    found: float,
    error: float,
    right: tuple[float, float],
    wrong: tuple[float, float],
) -> Predictions:
    """What a detector of `DETECTORS` finds; `verified` is (images, 5) class indices."""
    hits = rng.random(len(truth.boxes)) < found
    image = np.repeat(np.arange(len(verified)), BOXES)
    corner = rng.uniform(0.0, 0.7, (len(image), 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.05, 0.3, corner.shape)], axis=1)
    label = verified[image, rng.integers(0, verified.shape[1], len(image))]
    scores = rng.beta(*wrong, len(image))
    rows = np.flatnonzero(hits)
    places = truth.box_image[rows] * BOXES + rows % OBJECTS  # each object has a row of its own
    sides = np.tile(truth.boxes[rows, 2:] - truth.boxes[rows, :2], 2)
    near = np.clip(truth.boxes[rows] + rng.normal(0.0, error, (len(rows), 4)) * sides, 0.0, 1.0)
    boxes[places] = np.concatenate([np.minimum(near[:, :2], near[:, 2:]), np.maximum(near[:, :2], near[:, 2:])], axis=1)
    label[places], scores[places] = truth.box_class[rows], rng.beta(*right, len(rows))
    return Predictions(list(truth.image_ids), labels, image, label, scores, boxes)


def package_seconds(images: int, labels: list[str]) -> float:
    """Processor seconds per image of weighted boxes fusion by the package."""
    _, models = make(images, labels, seed=3)
    inputs = []
    for image in range(images):
        rows = slice(image * BOXES, (image + 1) * BOXES)
        inputs.append(
            [[getattr(m, name)[rows].tolist() for m in models] for name in ("boxes", "scores", "label_index")]
        )
    start = time.process_time()
    for one in inputs:
        ensemble_boxes.weighted_boxes_fusion(*one)
    return (time.process_time() - start) / images


if __name__ == "__main__":
    run_script(main)
