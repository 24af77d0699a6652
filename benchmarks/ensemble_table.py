"""The table of an ensemble: each model, every method of fusion, and weighted boxes fusion tuned out of fold.

    python benchmarks/ensemble_table.py --split validation --predictions A.expanded.csv B.expanded.csv C.expanded.csv
    python benchmarks/ensemble_table.py --dataset_path tiny --predictions A.csv B.csv --trials 0 --draws 100

Each row has two mAPs at IoU 0.5: that of a07 on all images, and the mean of the folds, each ranked separately (see
`oid/fusion/resampling.py`). Settings that were searched out of fold have only the second, because each fold has its
own. Gains are differences of the second to the best single model. 95 % intervals come from a paired bootstrap of the
images within their fold.

The best model and the methods are compared on the same images; only the tuned rows pay for their choice.
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
from oid.fusion.fuse import fuse
from oid.fusion.model_files import ModelFiles
from oid.fusion.resampling import Curves, bootstrap, interval_95, mean_of_folds
from oid.fusion.search import as_detections, boxes_that_count, divide, fuse_all, tune
from oid.fusion.tuned_settings import FusionSettings, SearchOptions, model_names
from oid.machine import usable_cores
from oid.metric.challenge import Detections, match
from oid.metric.ground_truth import find_ground_truth
from oid.predictions.files import PredictionFile

Row = tuple[list[Curves], list[Curves]]  # of all images (empty: not defined), and of each fold
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
        fusion_iou: IoU of WBF and NMW, and of the tuning's base
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
    files = ModelFiles([PredictionFile(path) for path in file_paths], truth.image_ids)
    models = boxes_that_count(files, truth, report.labels)
    fold = divide(len(truth.image_ids), folds, seed)
    metric = {"num_classes": len(report.labels), "group_of_weight": a00.GROUP_OF_WEIGHT}

    def curves(found: Detections, images: np.ndarray | None = None) -> Curves:
        return Curves(match(truth, found, **metric), images)

    found = {name: as_detections(model) for name, model in zip(names, models, strict=True)}
    for name, (method, flag) in FUSIONS.items():
        iou = {"fusion_iou": fusion_iou, "nms_iou": nms_iou}[flag]
        lists = zip(*models, strict=True)
        found[name] = as_detections(fuse(method, *lists, iou_threshold=iou, sigma=sigma, threads=threads))
    rows = {name: ([curves(one)], [curves(one, fold == f) for f in range(folds)]) for name, one in found.items()}
    if trials:
        options = SearchOptions(trials, folds, seed, a00.GROUP_OF_WEIGHT, threads)
        tuning = tune(files, truth, report.labels, FusionSettings((1.0,) * len(names), fusion_iou), options)
        print(*tuning.lines(), sep="\n")
        for name, gain in (("WBF, equal weights", tuning.equal_weights), ("WBF", tuning.free_weights)):
            of_folds = [curves(fuse_all(models, one), fold == f) for f, one in enumerate(gain.fold_settings)]
            rows[f"{name} tuned, out of fold"] = [], of_folds
    print_table(rows, names, fold, draws, seed)


def print_table(rows: dict[str, Row], names: Sequence[str], fold: np.ndarray, draws: int, seed: int) -> None:
    """Every row with its intervals; the gain is over the best of the rows called `names`."""

    def measure(times: np.ndarray) -> np.ndarray:
        pairs = (
            (mean_of_folds(whole, times) if whole else np.nan, mean_of_folds(each, times))
            for whole, each in rows.values()
        )
        return np.array(list(pairs)).ravel()

    values = dict(zip(rows, measure(np.ones(len(fold))).reshape(-1, 2), strict=True))
    drawn = dict(zip(rows, bootstrap(measure, fold, draws, seed).reshape(draws, -1, 2).swapaxes(0, 1), strict=True))
    best = max(names, key=lambda name: values[name][0])
    print(f"\n{len(fold)} images, {fold.max() + 1} folds, {draws} draws; gains are over {best}\n")
    print("| | mAP@.5 | 95% interval | mean of the folds | gain | 95% interval |")
    print("|---|---|---|---|---|---|")
    for name, (whole, mean) in values.items():
        cells = ["", "", f"{mean:.4f}", "", ""]
        if not np.isnan(whole):
            low, high = interval_95(whole, drawn[name][:, 0])
            cells[:2] = f"{whole:.4f}", f"{low:.3f} to {high:.3f}"
        if name != best:
            gain = mean - values[best][1]
            low, high = interval_95(gain, drawn[name][:, 1] - drawn[best][:, 1])
            cells[3:] = f"{gain:+.4f}", f"{low:+.3f} to {high:+.3f}"
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    run_script(main)
