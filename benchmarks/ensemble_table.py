"""The table of an ensemble: each model, every method of fusion, and weighted boxes fusion tuned out of fold.

    python benchmarks/ensemble_table.py --split validation --predictions A.expanded.csv B.expanded.csv C.expanded.csv
    python benchmarks/ensemble_table.py --dataset_path tiny --predictions A.csv B.csv --trials 0 --draws 100

Each row has two mAPs at IoU 0.5. The first is the metric of a07 on all images. The second is the mean of the folds,
each ranked by itself (see `oid/tuning.py` for why); it is the only one that settings have which were searched out of
fold, since each fold has its own. Gains are differences of the second to that of the best single model. Intervals of
95 % are plus and minus 1.96 standard deviations in a paired bootstrap, as those of a06 --tune: images are drawn with
replacement within their fold, the same ones for all rows.

Which model is the best, and which methods are worth a row, is seen on the same images; only the tuned rows pay for
their choice.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import a00_utils_and_constants as a00
from oid import paths
from oid.command_line import run_script
from oid.files import InputError
from oid.fusion.fuse import fuse_images
from oid.fusion.measured import MeasuredFusion, ValidationBoxes, gather
from oid.fusion.resampling import Curves, curves
from oid.fusion.search import describe, divide, spread, tune
from oid.fusion.tuned_settings import FusionSettings, model_names
from oid.machine import usable_cores
from oid.metric.challenge import Detections, GroundTruth, score
from oid.metric.ground_truth import find_ground_truth
from oid.predictions.files import PredictionFile

Row = tuple[str, Curves | None, Curves]  # name, all images (None: not defined), folds
FUSIONS = {  # row, method, flag with its IoU
    "NMS": ("nms", "nms_iou"),
    "soft-NMS, linear": ("soft_nms_linear", "nms_iou"),
    "soft-NMS, Gaussian": ("soft_nms_gaussian", "nms_iou"),
    "NMW": ("nmw", "fusion_iou"),
    "WBF": ("wbf", "fusion_iou"),
}


def main(
    *,
    dataset_path: str = a00.DATASET_PATH,
    output_path: str = a00.OUTPUT_PATH,
    split: str = a00.SPLIT,
    predictions: tuple[str, ...] | None = None,
    boxes: str | None = None,
    image_labels: str | None = None,
    fusion_iou: float = a00.FUSION_IOU,
    nms_iou: float = a00.NMS_IOU,
    sigma: float = 0.5,
    trials: int = 200,
    folds: int = 5,
    draws: int = 1000,
    seed: int = 0,
) -> None:
    """Prints the table, in Markdown.

    Args:
        dataset_path: folder of the data set, for the ground truth
        output_path: folder of all results
        split: that is measured
        predictions: two or more prediction CSVs, expanded; by default every *.expanded.csv of the split
        boxes: CSV of ground-truth boxes; by default the data set's
        image_labels: CSV of image-level labels, or "none"; by default the data set's
        fusion_iou: IoU of WBF and NMW, and where the tuning starts
        nms_iou: IoU of NMS and linear soft-NMS
        sigma: of Gaussian soft-NMS
        trials: of the tuning; 0 = leave the tuned rows out
        folds: of the tuning, and of the second mAP
        draws: of the bootstrap
        seed: of folds, tuning and bootstrap
    """
    file_paths = [Path(name) for name in predictions or paths.all_expanded_predictions(output_path, split)]
    if len(file_paths) < 2:
        raise InputError(f"{len(file_paths)} prediction files: name two or more by --predictions")
    names, threads = model_names(file_paths), usable_cores()
    truth, report, _ = find_ground_truth(dataset_path, split, boxes, image_labels).read()
    fold = divide(len(truth.image_ids), folds, seed)
    data = gather((PredictionFile(path) for path in file_paths), truth, report.labels)
    ious = {"fusion_iou": fusion_iou, "nms_iou": nms_iou}

    found = {name: of_model(data, model) for model, name in enumerate(names)}
    for name, (method, flag) in FUSIONS.items():
        found[name] = fused(data, method, iou_threshold=ious[flag], sigma=sigma, threads=threads)
    rows = [measured(name, truth, detections, len(report.labels), fold) for name, detections in found.items()]
    if trials:
        rows += tuned_rows(file_paths, data, truth, report.labels, fold, fusion_iou, trials, seed, threads)
    print_table(rows, names, fold, draws, seed)


def of_model(data: ValidationBoxes, model: int) -> Detections:
    """What one model has found."""
    image = np.repeat(np.arange(len(data.offsets[model]) - 1), np.diff(data.offsets[model]))
    return Detections(image, data.class_index[model], data.scores[model], data.boxes[model])


def fused(data: ValidationBoxes, method: str, **options) -> Detections:
    """All models fused by one method, with equal weights."""
    lists = data.boxes, data.scores, data.class_index, data.offsets
    boxes, scores, labels, offsets = fuse_images(method, *lists, **options)
    return Detections(np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), labels, scores, boxes)


def measured(name: str, truth: GroundTruth, detections: Detections, num_classes: int, fold: np.ndarray) -> Row:
    """One row, matched with the ground truth."""
    options = {"num_classes": num_classes, "group_of_weight": a00.GROUP_OF_WEIGHT}
    entries, _ = score(truth, detections, iou_threshold=0.5, **options)
    return name, curves(entries, truth, **options), curves(entries, truth, stratum=fold, **options)


def tuned_rows(
    file_paths: Sequence[Path],
    data: ValidationBoxes,
    truth: GroundTruth,
    labels: Sequence[str],
    fold: np.ndarray,
    fusion_iou: float,
    trials: int,
    seed: int,
    threads: int,
) -> list[Row]:
    """The rows of settings that were searched, each fold's on the others; prints what was found on all images."""
    base = FusionSettings((1.0,) * len(file_paths), fusion_iou)
    models = (PredictionFile(path) for path in file_paths)
    options = {"group_of_weight": a00.GROUP_OF_WEIGHT, "threads": threads}
    folds = int(fold.max()) + 1
    tuning = tune(models, truth, labels, base=base, trials=trials, folds=folds, seed=seed, **options)
    fusion = MeasuredFusion(data, truth, num_classes=len(labels), **options)
    rows = []
    for name, gain in (("WBF tuned, equal weights", tuning.equal), ("WBF tuned", tuning.free)):
        print(f"{name}: {describe(gain.settings)}; over WBF, out of fold: {spread(gain.out_of_fold, gain.interval)}")
        rows.append((f"{name}, out of fold", None, fusion.by_fold(gain.fold_settings, fold)))
    print(f"a06 --tune keeps: {describe(tuning.settings)} ({tuning.verdict})")
    return rows


def print_table(rows: Sequence[Row], names: Sequence[str], fold: np.ndarray, draws: int, seed: int) -> None:
    """Every row with its intervals; the gain is over the best of the rows called `names`."""
    once = np.ones(len(fold))
    values = maps(rows, once)  # [rows,2]
    models = [number for number, (name, *_) in enumerate(rows) if name in names]
    best = max(models, key=lambda number: values[number, 0])
    rng = np.random.default_rng([seed, 2])  # as a06 --tune draws
    members = [np.flatnonzero(fold == number) for number in range(fold.max() + 1)]
    drawn = np.empty((draws, len(rows), 2))
    for draw in drawn:
        images = np.concatenate([member[rng.integers(len(member), size=len(member))] for member in members])
        draw[:] = maps(rows, np.bincount(images, minlength=len(fold)))
    print(f"\n{len(fold)} images, {len(members)} folds, {draws} draws; gains are over {rows[best][0]}\n")
    print("| | mAP@.5 | 95% interval | mean of the folds | gain | 95% interval |")
    print("|---|---|---|---|---|---|")
    for number, (name, *_) in enumerate(rows):
        whole, by_fold = values[number]
        cells = ["", ""] if np.isnan(whole) else [f"{whole:.4f}", _interval(whole, drawn[:, number, 0], "{:.3f}")]
        cells += [f"{by_fold:.4f}"]
        if number == best:
            cells += ["", ""]
        else:
            gain = by_fold - values[best, 1]
            cells += [f"{gain:+.4f}", _interval(gain, drawn[:, number, 1] - drawn[:, best, 1], "{:+.3f}")]
        print(f"| {name} | {' | '.join(cells)} |")


def maps(rows: Sequence[Row], times: np.ndarray) -> np.ndarray:
    """(rows, 2) mAP on all images and mean of the folds, nan where there is none; `times` is how often images count."""
    pairs = [(whole, by_fold) for _, whole, by_fold in rows]
    return np.array([[np.nan if one is None else one.mean_average_precision(times) for one in pair] for pair in pairs])


def _interval(value: float, draws: np.ndarray, form: str) -> str:
    """The 95 % around a value."""
    reach = 1.96 * float(np.nanstd(draws, ddof=1))
    return f"{form.format(value - reach)} to {form.format(value + reach)}"


if __name__ == "__main__":
    run_script(main)
