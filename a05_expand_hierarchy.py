"""Copies every predicted box to the ancestors of its class, because the metric counts them all.

Reads   prediction CSVs (a04), the class hierarchy and the evaluated classes of DATASET/annotations
Writes  OUTPUT/predictions/<split>/<run>.expanded.csv, in Kaggle's form
Takes   about 15 s for 100,000 images with 100 boxes each; the first run compiles, 3 s more; the temporary folder gets
        48 bytes per box

    python a05_expand_hierarchy.py --run resnet50_level_1 --split test
    python a05_expand_hierarchy.py --predictions tiny.csv --expanded tiny.expanded.csv
"""

import collections
from pathlib import Path

import numpy as np
from tqdm import tqdm

import a00_utils_and_constants as a00
from oid import paths
from oid.command_line import check_flag, check_range, run_script
from oid.files import output_file, remedy, require_file
from oid.hierarchy import Hierarchy, read_hierarchy
from oid.machine import map_in_threads
from oid.predictions.files import PredictionFile, Predictions, PredictionWriter

IMAGES_PER_BLOCK = 1024  # read, expanded and written together


def main(
    *,
    dataset_path: str = a00.DATASET_PATH,
    output_path: str = a00.OUTPUT_PATH,
    run: tuple[str, ...] | None = None,
    split: str = a00.SPLIT,
    predictions: str | None = None,
    expanded: str | None = None,
    hierarchy: str | None = None,
    class_descriptions: str | None = None,
    only_new: bool = False,
    nms_iou: float = a00.EXPANDED_NMS_IOU,
) -> None:
    """Every box, also one of an inner class, is copied with its score to all ancestors of its class but the root. If a
    class of an image gains boxes, non-maximum suppression runs on all its boxes, old and new; other classes keep theirs
    in their order. Only classes of the class descriptions are written. Labels outside of the hierarchy are not copied.

    Args:
        dataset_path: folder of the data set.
        output_path: folder of all results.
        run: runs whose predictions are expanded (default: every run in weights/ that has finished its training).
        split: the split whose predictions are expanded, unless --predictions names a file.
        predictions: prediction CSV to read instead of those of --run, in Kaggle's form or a row per box, also .gz.
        expanded: CSV to write; by default X.expanded.csv beside the predictions X.csv.
        hierarchy: nested JSON of the classes; by default the data set's.
        class_descriptions: CSV of the classes to write; by default the challenge's if there is one, else all boxable.
        only_new: write only the added boxes.
        nms_iou: of two boxes of one class that overlap more, the one with the lower score is dropped; 1 = keep all.
    """
    from oid.annotations import read_class_descriptions  # here, because importing polars would slow down --help

    check_range(0, 1, nms_iou=nms_iou)
    check_flag(not (run and predictions), "run", run, "it without --predictions")
    with remedy("run a03 and a04 first, or name a prediction file by --predictions"):
        runs = [] if predictions else run or paths.finished_runs(output_path)
    files = [predictions] if predictions else [paths.run_predictions(output_path, split, name) for name in runs]
    check_flag(not expanded or len(files) == 1, "expanded", expanded, "it together with one run by --run")
    pairs = []
    for file in files:
        source = require_file(file, "run a04 first, or name a prediction file by --predictions")
        target = output_file(expanded or paths.expanded_predictions(source), "give another place by --expanded")
        check_flag(target.resolve() != source.resolve(), "expanded", expanded, "a file that is not read")
        pairs.append((source, target))
    with remedy("choose by --hierarchy"):
        tree = read_hierarchy(hierarchy or paths.annotation_file(dataset_path, paths.HIERARCHY))
    with remedy("choose by --class_descriptions"):
        classes = set(read_class_descriptions(class_descriptions or paths.evaluated_class_descriptions(dataset_path)))
    for source, target in pairs:
        expand_file(source, target, tree, classes, only_new, nms_iou)


def expand_file(source: Path, target: Path, tree: Hierarchy, classes: set[str], only_new: bool, nms_iou: float) -> None:
    """Expands a prediction file block by block, and prints how many boxes were read, added and left out."""
    from oid.predictions.expand import Expansion  # here, because importing numba would slow down --help

    file = PredictionFile(source)
    expansion = Expansion(tree, classes, file.labels)
    read, written = collections.Counter(), collections.Counter()

    def expand(block: Predictions) -> tuple[Predictions, Predictions]:
        return block, expansion.expand(block, only_new=only_new, nms_iou=nms_iou)

    with PredictionWriter(target) as writer, tqdm(total=file.num_images, unit="image", disable=None) as bar:
        for block, result in map_in_threads(expand, file.blocks(IMAGES_PER_BLOCK)):
            writer.write(result)
            read.update(count_labels(block))
            written.update(count_labels(result))
            bar.update(len(block.image_ids))
    print(f"read {source}: {file.num_images} images, {read.total()} boxes, {len(file.labels)} labels")
    print_counts(read, set(read) - classes, "are dropped, not in the class descriptions (their ancestors are added)")
    print_counts(read, {label for label in classes if label not in tree}, "have no ancestors in the hierarchy")
    print_counts(written, set(expansion.inner), "are of ancestor classes")
    print(f"wrote {target}: {file.num_images} images, {written.total()} boxes")


def count_labels(predictions: Predictions) -> dict[str, int]:
    """Returns the number of boxes of each label."""
    counts = np.bincount(predictions.label_index, minlength=len(predictions.labels))
    return dict(zip(predictions.labels, counts.tolist(), strict=True))


def print_counts(counts: collections.Counter, labels: set[str], what: str) -> None:
    """Prints how many boxes have one of the labels, with the 20 most frequent ones."""
    chosen = collections.Counter({label: n for label, n in counts.items() if label in labels})
    if chosen:
        print(f"{chosen.total()} boxes {what}: " + ", ".join(f"{label} {n}" for label, n in chosen.most_common(20)))


if __name__ == "__main__":
    run_script(main)
