"""Fuses the predictions of several models into one set of boxes per image: the submission.

Reads   two or more prediction CSVs, by default all that a05 wrote for the split
Writes  OUTPUT/predictions/<split>/submission.csv, Kaggle form; with --tune only submission.tuned.json
Takes   30 s and 0.5 GB for 3 files of 100,000 images with 100 boxes on two cores; 48 bytes of temporary disk per box

--tune searches model weights and settings on a split with ground truth, says what they gain on images that the search
has not seen, and saves them. --settings applies them to files of the same names of another split.

    python a06_ensemble.py --predictions A.expanded.csv B.expanded.csv --weights 2 1 --ensemble submission.csv
    python a06_ensemble.py --split validation --tune --settings best.tuned.json
    python a06_ensemble.py --split test --settings best.tuned.json
"""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

import a00_utils_and_constants as a00
from oid import paths
from oid.command_line import check_files, check_flag, check_range, run_script
from oid.files import InputError, output_file, remedy
from oid.fusion.fuse import Boxes, count_unusual, fuse
from oid.fusion.model_files import ModelFiles
from oid.fusion.tuned_settings import FusionSettings, SearchOptions, model_names, read_settings, write_settings
from oid.machine import map_in_threads, usable_cores
from oid.predictions.files import PredictionFile, Predictions, PredictionWriter

IMAGES_PER_BLOCK = 1024  # of each file, in memory at a time
RULES = (
    "images of other files are missing here: no boxes",
    "boxes reach out of the image: clipped to it",
    "boxes have no area in the image: left out",
    "boxes have a score below the skip threshold: left out",
)


def main(
    *,
    dataset_path: str = a00.DATASET_PATH,
    output_path: str = a00.OUTPUT_PATH,
    split: str = a00.SPLIT,
    predictions: tuple[str, ...] | None = None,
    ensemble: str | None = None,
    method: Literal["wbf", "nms", "soft_nms_linear", "soft_nms_gaussian", "nmw"] = "wbf",
    weights: tuple[float, ...] | None = None,
    fusion_iou: float = a00.FUSION_IOU,
    skip_box_threshold: float = 0.0,
    conf_type: Literal["avg", "max", "box_and_model_avg", "absent_model_aware_avg"] = "avg",
    allows_overflow: bool = False,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    limit: int = 0,
    settings: str | None = None,
    tune: bool = False,
    boxes: str | None = None,
    image_labels: str | None = None,
    group_of_weight: float = a00.GROUP_OF_WEIGHT,
    trials: int = 200,
    folds: int = 5,
    seed: int = 0,
    threads: int = 0,
) -> None:
    """The images are the first file's, in their order, then those that only later files have.

    Args:
        dataset_path: folder of the data set; only --tune reads it, for the ground truth.
        output_path: folder of all results.
        split: the split whose expanded predictions are fused, unless --predictions names files.
        predictions: prediction CSVs, one per model, also .gz; by default every *.expanded.csv of the split, by name.
        ensemble: CSV to write; by default the split's submission.csv.
        method: wbf = weighted boxes fusion; nms = non-maximum suppression over all files' boxes; soft_nms_linear,
            soft_nms_gaussian = the same, but scores fall with the overlap; nmw = non-maximum weighted.
        weights: one per file, 0 or more; by default all equal.
        fusion_iou: boxes of one class that overlap more are fused, or the lower score is dropped or reduced; 0 to 1.
        skip_box_threshold: boxes with a lower score in their file are left out; 0 = off.
        conf_type: score of a fused box, for wbf: avg = mean, less if few models found it; max = the highest;
            box_and_model_avg, absent_model_aware_avg = means that depend on which models found it.
        allows_overflow: for wbf with avg, two boxes of one model count twice, so that scores can exceed 1.
        sigma: for soft_nms_gaussian, its width; the larger, the less the scores fall.
        score_threshold: for soft_nms_*, boxes whose new score is not above it are left out.
        limit: maximum number of boxes per image, the best ones; 0 = all.
        settings: X.tuned.json with the result of --tune, which writes it, by default beside the ensemble.
        tune: search weights, fusion_iou, skip_box_threshold and conf_type on ground truth; no ensemble is written.
        boxes: with --tune, CSV of ground-truth boxes; by default the data set's.
        image_labels: with --tune, CSV of verified image-level labels, or "none"; by default as in a07.
        group_of_weight: with --tune, what a group-of box counts in the metric, 0 to 1, as in a07.
        trials: with --tune, number of settings to try.
        folds: with --tune, number of parts of the images, held out in turn.
        seed: with --tune, of folds and trials.
        threads: number of threads, the result is the same; 0 = one per core.
    """
    file_paths = [Path(name) for name in predictions or paths.all_expanded_predictions(output_path, split)]
    ensemble = output_file(ensemble or paths.submission(output_path, split), "give another place by --ensemble")
    if not file_paths:
        raise InputError(f"no *.expanded.csv in {ensemble.parent}: run a05_expand_hierarchy.py first")
    is_new = ensemble.resolve() not in [path.resolve() for path in file_paths]
    check_flag(is_new, "ensemble", ensemble, "a file that is not read")
    check_range(0, 1, fusion_iou=fusion_iou, group_of_weight=group_of_weight)
    check_range(0, math.inf, limit=limit, seed=seed, threads=threads)
    check_range(1e-9, math.inf, sigma=sigma)
    check_range(1, math.inf, trials=trials)
    check_range(2, math.inf, folds=folds)
    check_range(-1e9, 1e9, score_threshold=score_threshold)
    check_range(0 if method.startswith("soft_nms") else -1e9, 1e9, skip_box_threshold=skip_box_threshold)
    for weight in weights or ():
        check_range(0, 1e6, weights=weight)
    fits = weights is None or (len(weights) == len(file_paths) and any(weights))
    check_flag(fits, "weights", weights, f"{len(file_paths)} numbers, one per file, not all 0")
    check_use("with --method wbf", method == "wbf", conf_type=conf_type, allows_overflow=allows_overflow)
    check_use("with --conf_type avg", conf_type == "avg", allows_overflow=allows_overflow)
    check_use("with --method soft_nms_gaussian", method == "soft_nms_gaussian", sigma=sigma)
    check_use("with --method soft_nms_*", method.startswith("soft_nms"), score_threshold=score_threshold)
    threads = threads or usable_cores()

    if tune:
        check_files(boxes=boxes, image_labels=image_labels)
        check_use("without --tune", False, weights=weights, limit=limit, method=method, allows_overflow=allows_overflow)
        base = FusionSettings((1.0,) * len(file_paths), fusion_iou, skip_box_threshold, conf_type)
        options = SearchOptions(trials, folds, seed, group_of_weight, threads)
        default = ensemble.with_name(ensemble.name.removesuffix(".gz").removesuffix(".csv") + ".tuned.json")
        target = output_file(settings or default, "give another place by --settings")
        tune_settings(target, file_paths, (dataset_path, split, boxes, image_labels), base, options)
        return
    check_use("with --tune", False, boxes=boxes, image_labels=image_labels, group_of_weight=group_of_weight)
    check_use("with --tune", False, trials=trials, folds=folds, seed=seed)
    chosen = FusionSettings(weights, fusion_iou, skip_box_threshold, conf_type)
    if settings:
        check_use("without --settings", False, weights=weights, method=method, fusion_iou=fusion_iou)
        check_use("without --settings", False, skip_box_threshold=skip_box_threshold, conf_type=conf_type)
        names = model_names(file_paths)
        with remedy("give --predictions of these names in this order, or write the file again by --tune"):
            chosen = read_settings(settings, names)
        print(f"{settings}: {chosen}")
    fuse_block = functools.partial(fuse, method, sigma=sigma, score_threshold=score_threshold, limit=limit or None)
    fuse_block = functools.partial(fuse_block, **vars(chosen), allows_overflow=allows_overflow, threads=threads)
    write_ensemble(ensemble, file_paths, fuse_block, chosen.skip_box_threshold)


def check_use(when: str, is_used: bool, **values: object) -> None:
    """Raises InputError for the first flag that is not at its default although it is not used."""
    for name, value in values.items():
        check_flag(is_used or value == main.__kwdefaults__[name], name, value, f"it only {when}")


def write_ensemble(
    target: Path, file_paths: Sequence[Path], fuse_block: Callable[..., Boxes], skip_box_threshold: float
) -> None:
    """Fuses all images, block by block, and prints how many boxes of each file were read, changed and left out."""
    files = ModelFiles(list(map_in_threads(PredictionFile, file_paths)))
    counts, written = np.zeros((len(file_paths), 4), np.int64), 0  # all boxes, and those of the last three RULES
    with PredictionWriter(target) as writer, tqdm(total=len(files.image_ids), unit="image", disable=None) as bar:
        for images, models in files.blocks(IMAGES_PER_BLOCK):
            boxes, scores, labels, offsets = fuse_block(*zip(*models, strict=True))
            image_index = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            writer.write(Predictions(files.image_ids[images], files.labels, image_index, labels, scores, boxes))
            counts += [(len(m.scores), *count_unusual(m.boxes, m.scores, skip_box_threshold)) for m in models]
            written += len(scores)
            bar.update(len(offsets) - 1)
    for path, missing, (num_boxes, *unusual) in zip(file_paths, files.missing, counts, strict=True):
        print(f"read {path}: {num_boxes} boxes")
        for count, rule in zip((missing, *unusual), RULES, strict=True):
            if count:
                print(f"  {count} {rule}")
    print(f"wrote {target}: {len(files.image_ids)} images, {written} boxes fused from {counts[:, 0].sum()}")


def tune_settings(
    target: Path, file_paths: Sequence[Path], truth_files: Sequence, base: FusionSettings, options: SearchOptions
) -> None:
    """Searches settings, prints what they gain, and saves them; `truth_files` are `find_ground_truth`'s arguments."""
    from oid.fusion.search import tune
    from oid.metric.ground_truth import find_ground_truth

    names = model_names(file_paths)
    with remedy("choose by --dataset_path, --split or --boxes"):
        ground_truth = find_ground_truth(*truth_files)
    truth, report, _ = ground_truth.read()
    print(*ground_truth.lines(), sep="\n")
    print(f"ground truth: {len(truth.image_ids)} images, {len(truth.boxes)} boxes of {len(report.labels)} classes")
    files = ModelFiles([PredictionFile(path) for path in file_paths], truth.image_ids)
    progress = functools.partial(tqdm, desc="tuning", unit="trial", disable=None)
    with remedy("do --predictions and --boxes belong to the same split, with at least --folds images?"):
        tuning = tune(files, truth, report.labels, base, options, progress)
    missing = (f"{name}: {count} images are missing" for name, count in zip(names, files.missing, strict=True))
    print(*missing, *tuning.lines(), sep="\n")
    write_settings(target, names, tuning.kept.settings, tuning.verdict, tuning)
    print(f"wrote {target}: apply it to files of the same names by --settings {target}")


if __name__ == "__main__":
    run_script(main)
