"""Fuses the predictions of several models to one set of boxes per image: the submission.

Reads   two or more prediction CSVs, by default all that a05 wrote for the split
Writes  OUTPUT/predictions/<split>/submission.csv, Kaggle form
Takes   about 2 minutes for 3 files of 40,000 images with 100 boxes each

    python a06_ensemble.py --predictions A.expanded.csv B.expanded.csv --weights 2 1 --ensemble submission.csv
    python a06_ensemble.py --predictions tiny.csv --ensemble tiny.fused.csv
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

import a00_utils_and_constants as a00
from oid import layout
from oid.files import InputError, output_file
from oid.fusion import clean_boxes, fuse
from oid.predictions import Predictions, read_predictions, write_predictions


def main(
    *,
    output_path: str = a00.OUTPUT_PATH,
    split: str = a00.SPLIT,
    predictions: tuple[str, ...] | None = None,
    ensemble: str | None = None,
    weights: tuple[float, ...] | None = None,
    fusion_iou: float = a00.FUSION_IOU,
    skip_box_threshold: float = 0.0,
    method: Literal["wbf", "nms"] = "wbf",
    limit: int = 0,
) -> None:
    """Labels are any text without white space; no hierarchy is needed. The images are the first file's in their order,
    then those that only later files have; an image that is missing in a file has no boxes there.

    Args:
        output_path: folder of all results.
        split: the split whose expanded predictions are fused, unless --predictions names files.
        predictions: prediction CSVs, one per model, Kaggle form or a row per box, also .gz; by default every
            *.expanded.csv of the split, in the order of their names.
        ensemble: CSV to write; by default the split's submission.csv.
        weights: one per file, 0 or more; by default all equal.
        fusion_iou: boxes of one class that overlap more (wbf) are fused to one, or (nms) the one with the lower score
            goes; from 0 to 1.
        skip_box_threshold: boxes whose score in their file is lower take no part; 0 = off.
        method: wbf = weighted boxes fusion, nms = non-maximum suppression over all files' boxes, whose scores are
            multiplied by weight / sum of weights when --weights is given.
        limit: write at most so many boxes per image, those with the highest scores; 0 = all.
    """
    paths = [Path(name) for name in predictions or layout.all_expanded_predictions(output_path, split)]
    ensemble = output_file(ensemble or layout.submission(output_path, split), "--ensemble")
    check_settings(paths, ensemble, weights, fusion_iou, skip_box_threshold, limit)
    models = [read_predictions(path) for path in paths]
    image_ids = list(dict.fromkeys(image_id for model in models for image_id in model.image_ids))
    labels = list(dict.fromkeys(label for model in models for label in model.labels))
    print_inputs(paths, models, weights, image_ids, skip_box_threshold)

    options = {"weights": weights, "iou_threshold": fusion_iou, "skip_box_threshold": skip_box_threshold}
    fused = Predictions.from_images(image_ids, labels, fused_images(models, image_ids, labels, method, options, limit))
    write_predictions(ensemble, fused)
    total = sum(len(model.boxes) for model in models)
    print(f"wrote {ensemble}: {len(image_ids)} images, {len(fused.boxes)} boxes fused from {total}")


def check_settings(
    paths: Sequence[Path],
    ensemble: Path,
    weights: Sequence[float] | None,
    fusion_iou: float,
    skip_box_threshold: float,
    limit: int,
) -> None:
    """Raises InputError for flags that make no sense."""
    if not paths:
        where = ensemble.parent
        raise InputError(
            f"no *.expanded.csv in {where}: run a05_expand_hierarchy.py first, or name files by --predictions"
        )
    if ensemble.resolve() in [path.resolve() for path in paths]:
        raise InputError(f"--ensemble {ensemble} is one of the files that are read: give it another name")
    if weights is not None:
        shown = " ".join(f"{weight:g}" for weight in weights)
        if len(weights) != len(paths):
            raise InputError(f"--weights {shown}: {len(weights)} weights for {len(paths)} prediction files")
        if not all(0.0 <= weight <= 1e6 for weight in weights):
            raise InputError(f"--weights {shown}: a weight must be a number from 0 to 1000000")
        if not any(weights):
            raise InputError(f"--weights {shown}: at least one must be more than 0")
    if not 0.0 <= fusion_iou <= 1.0:
        raise InputError(f"--fusion_iou {fusion_iou} is not in the range from 0 to 1")
    if not math.isfinite(skip_box_threshold):
        raise InputError(f"--skip_box_threshold {skip_box_threshold} is not a finite number")
    if limit < 0:
        raise InputError(f"--limit {limit} is negative: 0 writes all boxes")


def fused_images(
    models: Sequence[Predictions],
    image_ids: Sequence[str],
    labels: Sequence[str],
    method: str,
    options: dict[str, object],
    limit: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields each image's (n,) indices into `labels`, (n,) scores and (n, 4) boxes, in descending score."""
    label_of = {label: index for index, label in enumerate(labels)}
    label_maps = [np.array([label_of[label] for label in model.labels], dtype=np.int64) for model in models]
    rows = [{image_id: row for row, image_id in enumerate(model.image_ids)} for model in models]
    offsets = [model.offsets() for model in models]
    nothing = slice(0, 0)
    for image_id in tqdm(image_ids, desc="fusing", unit="image", disable=None):
        places = [
            slice(offset[row[image_id]], offset[row[image_id] + 1]) if image_id in row else nothing
            for row, offset in zip(rows, offsets, strict=True)
        ]
        parts = list(zip(models, places, strict=True))
        boxes, scores, label_index = fuse(
            method,
            [model.boxes[place] for model, place in parts],
            [model.scores[place] for model, place in parts],
            [to_common[model.label_index[place]] for to_common, (model, place) in zip(label_maps, parts, strict=True)],
            **options,
        )
        kept = slice(0, limit or None)
        yield label_index[kept], scores[kept], boxes[kept]


def print_inputs(
    paths: Sequence[Path],
    models: Sequence[Predictions],
    weights: Sequence[float] | None,
    image_ids: Sequence[str],
    skip_box_threshold: float,
) -> None:
    """Says per file what it has, what it lacks, and which of its boxes fusion changes or leaves out."""
    for path, model, weight in zip(paths, models, weights or [1.0] * len(models), strict=True):
        print(f"read {path}: {len(model.image_ids)} images, {len(model.boxes)} boxes, weight {weight:g}")
        outside = np.any((model.boxes < 0.0) | (model.boxes > 1.0), axis=1).sum()
        _, has_area = clean_boxes(model.boxes)
        for count, what in (
            (len(image_ids) - len(model.image_ids), "images of other files are missing here: no boxes"),
            (outside, "boxes reach out of the image: clipped to it"),
            ((~has_area).sum(), "boxes have no area in the image: left out"),
            ((model.scores < skip_box_threshold).sum(), f"boxes have a score below {skip_box_threshold:g}: left out"),
        ):
            if count:
                print(f"  {count} {what}")


if __name__ == "__main__":
    a00.run_script(main)
