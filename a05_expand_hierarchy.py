"""Adds to every predicted box the same box for each ancestor of its class, because the metric counts them all.

Reads   a prediction CSV (a04), the class hierarchy and the classes that count, of DATASET/annotations
Writes  OUTPUT/predictions/<split>/<run>.expanded.csv, Kaggle form
Takes   about 10 s for 100,000 images with 100 boxes each; the first run compiles, 15 s more

    python a05_expand_hierarchy.py --run resnet50_level_1
    python a05_expand_hierarchy.py --predictions tiny.csv --expanded tiny.expanded.csv
"""

import collections
from pathlib import Path

import numpy as np
from tqdm import tqdm

import a00_utils_and_constants as a00
from oid import paths
from oid.command_line import run_script
from oid.files import InputError, output_file, require_file
from oid.hierarchy import Hierarchy, read_hierarchy
from oid.predictions.files import PredictionFile, Predictions, PredictionWriter

IMAGES_PER_BLOCK = 4096  # read, expanded and written together


def main(
    *,
    dataset_path: str = a00.DATASET_PATH,
    output_path: str = a00.OUTPUT_PATH,
    run: str = a00.RUN,
    split: str = a00.SPLIT,
    predictions: str | None = None,
    expanded: str | None = None,
    hierarchy: str | None = None,
    class_descriptions: str | None = None,
    only_new: bool = False,
    nms_iou: float = a00.EXPANDED_NMS_IOU,
) -> None:
    """Every label gets its ancestors, whether leaf or inner class: a box of an apple is one of a fruit, too, with the
    same score and coordinates. The root is no class. Where a class of an image gains boxes, non-maximum suppression
    runs on all its boxes, those already there included; other classes are left untouched, in their order. Only classes
    of the class descriptions are written; a label that the hierarchy does not have stays without ancestors.

    Args:
        dataset_path: folder of the data set.
        output_path: folder of all results.
        run: the run whose predictions are expanded, unless --predictions names a file.
        split: the split whose predictions are expanded, unless --predictions names a file.
        predictions: prediction CSV to read, Kaggle form or a row per box, also .gz; by default that of --run.
        expanded: CSV to write; by default X.expanded.csv beside the predictions X.csv.
        hierarchy: nested JSON of the classes; by default the data set's.
        class_descriptions: CSV of the classes to write; by default the challenge's where the data set has it, else all
            boxable classes.
        only_new: write just the added boxes.
        nms_iou: of two boxes of one class that overlap more, the one with the lower score goes; 1 = keep all.
    """
    from oid.annotations import read_class_descriptions  # not above: Polars would make --help wait

    if not 0.0 <= nms_iou <= 1.0:
        raise InputError(f"--nms_iou {nms_iou} is not in the range from 0 to 1")
    source = predictions or paths.run_predictions(output_path, split, run)
    predictions = require_file(source, "run a04 first, or name a prediction file by --predictions")
    expanded = output_file(expanded or paths.expanded_predictions(predictions), "give another place by --expanded")
    if expanded.resolve() == predictions.resolve():
        raise InputError(f"--expanded {expanded} is the file that is read: give it another name")
    tree = read_hierarchy(hierarchy or paths.annotation_file(dataset_path, paths.HIERARCHY))
    classes = read_class_descriptions(class_descriptions or paths.evaluated_class_descriptions(dataset_path))
    expand_file(predictions, expanded, tree, set(classes), only_new=only_new, nms_iou=nms_iou)


def expand_file(
    source: Path, target: Path, tree: Hierarchy, classes: set[str], *, only_new: bool, nms_iou: float
) -> None:
    """Expands a prediction file block by block, and prints what came of it."""
    from oid.predictions.expand import Expansion  # nor this: Numba

    file, expansion = PredictionFile(source), Expansion(tree, classes)
    read, written = collections.Counter(), collections.Counter()
    bar = tqdm(total=file.num_images, desc="expanding", unit="image", disable=None)
    with PredictionWriter(target) as writer, bar:
        for block in file.blocks(IMAGES_PER_BLOCK):
            result = expansion.expand(block, only_new=only_new, nms_iou=nms_iou)
            writer.write(result)
            read.update(count_labels(block))
            written.update(count_labels(result))
            bar.update(len(block.image_ids))
    print(f"read {source}: {file.num_images} images, {read.total()} boxes, {len(file.labels)} labels")
    print_left_out(read, tree, classes)
    print_gains({label: written[label] for label in expansion.inner})
    print(f"wrote {target}: {file.num_images} images, {written.total()} boxes")


def count_labels(predictions: Predictions) -> dict[str, int]:
    """How many boxes each label has, in the order of the vocabulary."""
    counts = np.bincount(predictions.label_index, minlength=len(predictions.labels))
    return dict(zip(predictions.labels, counts.tolist(), strict=True))


def print_left_out(read: collections.Counter, tree: Hierarchy, classes: set[str]) -> None:
    """Says which labels are not written, and which have no ancestors because the hierarchy lacks them."""
    dropped = collections.Counter({label: count for label, count in read.items() if label not in classes})
    unknown = collections.Counter(
        {label: count for label, count in read.items() if label in classes and label not in tree}
    )
    for counter, reason in (
        (dropped, "dropped, their label is not in the class descriptions (their ancestors are added)"),
        (unknown, "without ancestors, their label is not in the hierarchy"),
    ):
        if counter:
            print(f"{counter.total()} boxes {reason}: {listed(counter)}")


def print_gains(inner: dict[str, int]) -> None:
    """Says how many boxes each ancestor class has now."""
    if inner:
        print(f"boxes of ancestor classes: {listed(collections.Counter(inner))}")
    else:
        print("no class gained a box: no label has an ancestor among the class descriptions")


def listed(counter: collections.Counter) -> str:
    """Counts by label, the most frequent first, at most 20 of them."""
    text = ", ".join(f"{label} {count}" for label, count in counter.most_common(20))
    rest = len(counter) - 20
    return f"{text} and {rest} more labels" if rest > 0 else text


if __name__ == "__main__":
    run_script(main)
