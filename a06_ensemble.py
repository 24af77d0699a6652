"""Fuses the predictions of several models to one set of boxes per image: the submission.

Reads   two or more prediction CSVs, by default all that a05 wrote for the split
Writes  OUTPUT/predictions/<split>/submission.csv, Kaggle form; with --tune only submission.tuned.json
Takes   about 15 s and 0.4 GB for 3 files of 100,000 images with 100 boxes each on two CPU cores

With --tune it searches model weights and settings on a split with ground truth, says what they gain on images that
the search has not seen, and saves them; --settings applies them to files of the same names of another split.

    python a06_ensemble.py --predictions A.expanded.csv B.expanded.csv --weights 2 1 --ensemble submission.csv
    python a06_ensemble.py --split validation --tune --settings best.tuned.json
    python a06_ensemble.py --split test --settings best.tuned.json
    python a06_ensemble.py --predictions tiny.csv --ensemble tiny.fused.csv
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

import a00_utils_and_constants as a00
from oid import paths
from oid.command_line import run_script
from oid.files import InputError, output_file, remedy, require_file
from oid.fusion.fuse import count_unusual, fuse_images
from oid.machine import usable_cores
from oid.predictions.files import PredictionFile, Predictions, PredictionWriter

IMAGES_PER_BLOCK = 1024  # of each file, in memory at a time
USED_BY = {  # the methods, or conf_type, that look at a flag
    "conf_type": ("wbf",),
    "allows_overflow": ("wbf",),
    "sigma": ("soft_nms_gaussian",),
    "score_threshold": ("soft_nms_linear", "soft_nms_gaussian"),
}


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
    trials: int = 200,
    folds: int = 5,
    seed: int = 0,
    threads: int = 0,
) -> None:
    """Labels are any text without white space; no hierarchy is needed. The images are the first file's in their order,
    then those that only later files have; an image that is missing in a file has no boxes there.

    Args:
        dataset_path: folder of the data set; only --tune reads it, for the ground truth.
        output_path: folder of all results.
        split: the split whose expanded predictions are fused, unless --predictions names files.
        predictions: prediction CSVs, one per model, Kaggle form or a row per box, also .gz; by default every
            *.expanded.csv of the split, in the order of their names.
        ensemble: CSV to write; by default the split's submission.csv.
        method: wbf = weighted boxes fusion; nms = non-maximum suppression over all files' boxes; soft_nms_linear,
            soft_nms_gaussian = the same, but scores fall with the overlap; nmw = non-maximum weighted. All but wbf and
            nmw multiply scores by weight / sum of weights when --weights is given.
        weights: one per file, 0 or more; by default all equal.
        fusion_iou: boxes of one class that overlap more are fused to one (wbf, nmw), or the one with the lower score
            goes (nms) or loses score (soft_nms_linear); from 0 to 1.
        skip_box_threshold: boxes whose score in their file is lower take no part; 0 = off.
        conf_type: of wbf, the score of a fused box, as in ensemble-boxes: avg = mean, less where few models found it;
            max = the highest; box_and_model_avg, absent_model_aware_avg = means that know which models found it.
        allows_overflow: of wbf with avg, a box that a model found twice counts twice, so that scores can exceed 1.
        sigma: of soft_nms_gaussian, its width; the larger, the less the scores fall.
        score_threshold: of soft_nms_*, boxes whose new score is not above it are left out.
        limit: write at most so many boxes per image, those with the highest scores; 0 = all.
        settings: X.tuned.json whose weights, IoU, skip threshold and conf_type are used; with --tune it is written, by
            default beside the ensemble.
        tune: search these settings on the split's ground truth instead of writing an ensemble.
        boxes: with --tune, CSV of ground-truth boxes; by default the data set's.
        image_labels: with --tune, CSV of human-verified image-level labels, or "none"; by default the data set's where
            it has them, but none where --boxes names another file.
        trials: with --tune, how many settings are tried.
        folds: with --tune, parts of the images that are held out in turn.
        seed: with --tune, of folds and trials.
        threads: images are shared out to so many, the result is the same; 0 = one per core.
    """
    flags = dict(locals())
    file_paths = [Path(name) for name in predictions or paths.all_expanded_predictions(output_path, split)]
    ensemble = output_file(ensemble or paths.submission(output_path, split), "give another place by --ensemble")
    check_flags(file_paths, ensemble, flags)
    threads = threads or usable_cores()
    if tune:
        tune_settings(file_paths, ensemble, flags, threads)
        return
    options = {name: flags[name] for name in (*USED_BY, "weights", "skip_box_threshold")}
    options |= {"iou_threshold": fusion_iou, "limit": limit or None, "threads": threads}
    if settings:
        options |= tuned_options(settings, file_paths)
    models = Models([PredictionFile(path) for path in file_paths])
    written = 0
    with PredictionWriter(ensemble) as writer:
        for block in fused_blocks(models, method, options):
            writer.write(block)
            written += len(block.boxes)
    print_inputs(file_paths, models, options["weights"], options["skip_box_threshold"])
    print(f"wrote {ensemble}: {len(models.image_ids)} images, {written} boxes fused from {models.counts[:, 0].sum()}")


def check_flags(file_paths: Sequence[Path], ensemble: Path, flags: dict) -> None:
    """Raises InputError for flags that make no sense."""
    if not file_paths:
        raise InputError(
            f"no *.expanded.csv in {ensemble.parent}: run a05_expand_hierarchy.py first, or name files by --predictions"
        )
    if ensemble.resolve() in [path.resolve() for path in file_paths]:
        raise InputError(f"--ensemble {ensemble} is one of the files that are read: give it another name")
    check_weights(flags["weights"], len(file_paths))
    if not 0.0 <= flags["fusion_iou"] <= 1.0:
        raise InputError(f"--fusion_iou {flags['fusion_iou']} is not in the range from 0 to 1")
    for name in ("skip_box_threshold", "score_threshold"):
        if not math.isfinite(flags[name]):
            raise InputError(f"--{name} {flags[name]} is not a finite number")
    if not 0.0 < flags["sigma"] < math.inf:
        raise InputError(f"--sigma {flags['sigma']}: it must be above 0 and finite")
    if flags["limit"] < 0:
        raise InputError(f"--limit {flags['limit']} is negative: 0 writes all boxes")
    for name, least in {"threads": 0, "trials": 1, "folds": 2, "seed": 0}.items():
        if flags[name] < least:
            raise InputError(f"--{name} is {flags[name]}: it must be at least {least}")
    check_combinations(flags)


def check_weights(weights: Sequence[float] | None, num_files: int) -> None:
    """Raises InputError for weights that make no sense."""
    if weights is None:
        return
    shown = " ".join(f"{weight:g}" for weight in weights)
    if len(weights) != num_files:
        raise InputError(f"--weights {shown}: {len(weights)} weights for {num_files} prediction files")
    if not all(0.0 <= weight <= 1e6 for weight in weights):
        raise InputError(f"--weights {shown}: a weight must be a number from 0 to 1000000")
    if not any(weights):
        raise InputError(f"--weights {shown}: at least one must be more than 0")


def check_combinations(flags: dict) -> None:
    """Raises InputError for flags that would change nothing, or contradict each other."""
    defaults = main.__kwdefaults__
    changed = {name for name, value in flags.items() if value != defaults[name]}
    method = flags["method"]
    for name, methods in USED_BY.items():
        if name in changed and method not in methods:
            raise InputError(f"--{name} has no effect with --method {method}, only with {' and '.join(methods)}")
    if flags["allows_overflow"] and flags["conf_type"] != "avg":
        raise InputError(f"--allows_overflow has no effect with --conf_type {flags['conf_type']}, only with avg")
    if method.startswith("soft_nms") and flags["skip_box_threshold"] < 0.0:
        raise InputError(f"--skip_box_threshold {flags['skip_box_threshold']}: {method} takes no negative scores")
    mode = "--tune" if flags["tune"] else "--settings" if flags["settings"] else None
    given = {"--tune": ("weights", "limit"), "--settings": ("weights", "fusion_iou", "skip_box_threshold", "conf_type")}
    for name in (*given.get(mode, ()), "method", "allows_overflow"):
        if mode and name in changed:
            raise InputError(f"--{name} cannot be given with {mode}: leave out one of the two")
    for name in ("boxes", "image_labels", "trials", "folds", "seed"):
        if name in changed and not flags["tune"]:
            raise InputError(f"--{name} has no effect without --tune")


class Models:
    """The prediction files of several models as one: common images, common labels, read in blocks of images.

    Attributes:
        image_ids: the first file's, then those that only later files have.
        labels: the common vocabulary; it grows as images are read.
        counts: (models, 4) int64, of what was read so far: boxes, boxes that reach out of the image, boxes without
            area, boxes below the skip threshold.
        num_images: of each file.
    """

    def __init__(self, files: Sequence[PredictionFile]):
        positions = {}
        for file in files:
            for image_id in file.image_ids:
                positions.setdefault(image_id, len(positions))
        self.image_ids = list(positions)
        self.num_images = [len(file.image_ids) for file in files]
        self.labels: list[str] = []
        self.counts = np.zeros((len(files), 4), np.int64)
        self._files = files
        self._rows = np.full((len(files), len(positions)), -1)  # where a file has an image
        for rows, file in zip(self._rows, files, strict=True):
            rows[[positions[image_id] for image_id in file.image_ids]] = np.arange(len(file.image_ids))
        self._label_of: dict[str, int] = {}
        self._common_label: list[list[int]] = [[] for _ in files]

    def read(self, images: slice, skip_box_threshold: float) -> list[tuple[np.ndarray, ...]]:
        """Of each model (N, 4) boxes, (N,) scores, (N,) indices into `labels`, (images + 1,) offsets."""
        return [self._read(model, images, skip_box_threshold) for model in range(len(self._files))]

    def _read(self, model: int, images: slice, skip_box_threshold: float) -> tuple[np.ndarray, ...]:
        rows = self._rows[model, images]
        found = self._files[model].read(rows[rows >= 0])
        common = self._common_label[model]
        for label in found.labels[len(common) :]:
            if label not in self._label_of:
                self._label_of[label] = len(self.labels)
                self.labels.append(label)
            common.append(self._label_of[label])
        sizes = np.zeros(len(rows), np.int64)
        sizes[rows >= 0] = np.diff(found.offsets())
        unusual = count_unusual(found.boxes, found.scores, skip_box_threshold)
        self.counts[model] += (len(found.boxes), *unusual)
        labels = np.array(common, np.int64)[found.label_index]
        return found.boxes, found.scores, labels, np.concatenate([[0], np.cumsum(sizes)])


def fused_blocks(models: Models, method: str, options: dict[str, object]) -> Iterator[Predictions]:
    """Yields the fused images in order, with a progress bar; the next block is read while one is fused and written."""
    num_images = len(models.image_ids)
    blocks = [slice(first, first + IMAGES_PER_BLOCK) for first in range(0, num_images, IMAGES_PER_BLOCK)]
    skip_box_threshold = options["skip_box_threshold"]
    with (
        tqdm(total=num_images, desc="fusing", unit="image", disable=None) as bar,
        ThreadPoolExecutor(1) as pool,
    ):
        coming = pool.submit(models.read, blocks[0], skip_box_threshold) if blocks else None
        for images, following in itertools.zip_longest(blocks, blocks[1:]):
            parts = coming.result()
            coming = pool.submit(models.read, following, skip_box_threshold) if following else None
            boxes, scores, label_index, offsets = fuse_images(method, *zip(*parts, strict=True), **options)
            image_index = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            yield Predictions(models.image_ids[images], models.labels, image_index, label_index, scores, boxes)
            bar.update(len(offsets) - 1)


def print_inputs(
    file_paths: Sequence[Path], models: Models, weights: Sequence[float] | None, skip_box_threshold: float
) -> None:
    """Says per file what it had, what it lacked, and which of its boxes fusion has changed or left out."""
    for model, path in enumerate(file_paths):
        boxes, outside, without_area, below = models.counts[model].tolist()
        weight = 1.0 if weights is None else weights[model]
        print(f"read {path}: {models.num_images[model]} images, {boxes} boxes, weight {weight:g}")
        for count, what in (
            (len(models.image_ids) - models.num_images[model], "images of other files are missing here: no boxes"),
            (outside, "boxes reach out of the image: clipped to it"),
            (without_area, "boxes have no area in the image: left out"),
            (below, f"boxes have a score below {skip_box_threshold:g}: left out"),
        ):
            if count:
                print(f"  {count} {what}")


def tuned_options(settings: str, file_paths: Sequence[Path]) -> dict[str, object]:
    """The keywords of `fuse_images` that a settings file gives."""
    from oid.fusion.tuned_settings import model_names, read_tuned_settings

    tuned = read_tuned_settings(settings, model_names(file_paths))
    return {
        "weights": tuned.weights,
        "iou_threshold": tuned.fusion_iou,
        "skip_box_threshold": tuned.skip_box_threshold,
        "conf_type": tuned.conf_type,
    }


def tune_settings(file_paths: Sequence[Path], ensemble: Path, flags: dict, threads: int) -> None:
    """Searches settings, prints what they gain, and saves them."""
    from oid.fusion.search import print_tuning, tune
    from oid.fusion.tuned_settings import FusionSettings, model_names, write_tuned_settings
    from oid.metric.ground_truth import find_ground_truth

    default = ensemble.with_name(ensemble.name.removesuffix(".gz").removesuffix(".csv") + ".tuned.json")
    target = output_file(flags["settings"] or default, "give another place by --settings")
    names = model_names(file_paths)
    for path in file_paths:
        require_file(path, "name prediction files by --predictions")
    names_of_flags = ("dataset_path", "split", "boxes", "image_labels")
    with remedy("give --boxes, or the folder of Open Images with --dataset_path"):
        files = find_ground_truth(*(flags[name] for name in names_of_flags))
    print(*files.lines(), sep="\n")
    truth, report, _ = files.read()
    print(f"ground truth: {len(truth.image_ids)} images, {len(truth.boxes)} boxes of {len(report.labels)} classes")
    tuning = tune(
        (PredictionFile(path) for path in file_paths),
        truth,
        report.labels,
        base=FusionSettings(
            (1.0,) * len(file_paths), flags["fusion_iou"], flags["skip_box_threshold"], flags["conf_type"]
        ),
        trials=flags["trials"],
        folds=flags["folds"],
        seed=flags["seed"],
        group_of_weight=a00.GROUP_OF_WEIGHT,
        threads=threads,
    )
    print_tuning(tuning, names)
    write_tuned_settings(target, names, tuning.settings, tuning.verdict, tuning.measured())
    print(f"wrote {target}: apply it to files of the same names by --settings {target}")


if __name__ == "__main__":
    run_script(main)
