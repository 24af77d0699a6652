"""Adds to every predicted box the same box for each ancestor of its class, because the metric counts them all.

Reads   a prediction CSV (a04), the class hierarchy and the classes that count, of DATASET/annotations
Writes  OUTPUT/predictions/<split>/<run>.expanded.csv, Kaggle form
Takes   about 30 s for 40,000 images with 100 boxes each

    python a05_expand_hierarchy.py --run resnet50_level_1
    python a05_expand_hierarchy.py --predictions tiny.csv --expanded tiny.expanded.csv
"""

import collections
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

import a00_utils_and_constants as a00
from oid import layout
from oid.annotations import read_class_descriptions
from oid.boxes import classwise_nms
from oid.files import InputError, output_file, require_file
from oid.hierarchy import Hierarchy, read_hierarchy
from oid.predictions import Predictions, read_predictions, write_predictions


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
    if not 0.0 <= nms_iou <= 1.0:
        raise InputError(f"--nms_iou {nms_iou} is not in the range from 0 to 1")
    source = predictions or layout.run_predictions(output_path, split, run)
    predictions = require_file(source, "run a04 first, or name a prediction file by --predictions")
    expanded = output_file(expanded or layout.expanded_predictions(predictions), "--expanded")
    if expanded.resolve() == predictions.resolve():
        raise InputError(f"--expanded {expanded} is the file that is read: give it another name")
    tree = read_hierarchy(hierarchy or layout.annotation_file(dataset_path, layout.HIERARCHY))
    classes = read_class_descriptions(class_descriptions or layout.evaluated_class_descriptions(dataset_path))
    found = read_predictions(predictions)
    print(f"read {predictions}: {len(found.image_ids)} images, {len(found.boxes)} boxes, {len(found.labels)} labels")

    expansion = Expansion(found.labels, tree, set(classes))
    print_left_out(found, expansion, tree)
    result = Predictions.from_images(
        found.image_ids, expansion.labels, expand_images(found, expansion, only_new=only_new, nms_iou=nms_iou)
    )
    write_predictions(expanded, result)
    print_gains(result, expansion)
    print(f"wrote {expanded}: {len(result.image_ids)} images, {len(result.boxes)} boxes")


class Expansion:
    """What happens to a box of each label, as arrays.

    labels: (L,) those of the predictions, then the ancestors that are new.
    is_written: (L,) bool, the class is in the class descriptions.
    counts, starts, ancestors: label i's ancestors that are written are `ancestors[starts[i]:][:counts[i]]`, nearest
        first; a class that is reached by two routes is there once.
    """

    def __init__(self, labels: list[str], tree: Hierarchy, classes: set[str]):
        index = {label: position for position, label in enumerate(labels)}
        lists = [
            [index.setdefault(ancestor, len(index)) for ancestor in tree.ancestors(label) if ancestor in classes]
            if label in tree
            else []
            for label in labels
        ]
        self.labels = list(index)
        self.is_written = np.array([label in classes for label in self.labels], dtype=bool)
        self.counts = np.array([len(ancestors) for ancestors in lists], dtype=np.int64)
        self.starts = np.cumsum(self.counts) - self.counts
        self.ancestors = np.array([ancestor for ancestors in lists for ancestor in ancestors], dtype=np.int64)

    def added(self, label_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For the boxes of an image, (N,) labels: (M,) which box is copied, and (M,) to which class."""
        counts = self.counts[label_index]
        source = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
        return source, self.ancestors[self.starts[label_index][source] + within]


def expand_images(
    found: Predictions, expansion: Expansion, *, only_new: bool, nms_iou: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields each image's (n,) label indices, (n,) scores, (n, 4) boxes: the old ones in their order, then the added.

    Added boxes are in the order of the boxes that they come from.
    """
    offsets = found.offsets()
    for image in tqdm(range(len(found.image_ids)), desc="expanding", unit="image", disable=None):
        boxes_of_image = slice(offsets[image], offsets[image + 1])
        old = found.label_index[boxes_of_image]
        source, new = expansion.added(old)
        old_positions = np.flatnonzero(expansion.is_written[old])
        positions = np.concatenate([old_positions, source])
        labels = np.concatenate([old[old_positions], new])
        scores, boxes = found.scores[boxes_of_image][positions], found.boxes[boxes_of_image][positions]

        keep = np.ones(len(labels), dtype=bool)
        gained = np.flatnonzero(np.isin(labels, new))
        keep[gained] = False
        keep[gained[classwise_nms(boxes[gained], scores[gained], labels[gained], nms_iou)]] = True
        if only_new:
            keep[: len(old_positions)] = False
        yield labels[keep], scores[keep], boxes[keep]


def print_left_out(found: Predictions, expansion: Expansion, tree: Hierarchy) -> None:
    """Says which labels are not written, and which have no ancestors because the hierarchy lacks them."""
    count_of = np.bincount(found.label_index, minlength=len(found.labels))
    dropped, unknown = collections.Counter(), collections.Counter()
    is_written_of = expansion.is_written[: len(found.labels)]
    for label, count, is_written in zip(found.labels, count_of.tolist(), is_written_of, strict=True):
        if not is_written:
            dropped[label] = count
        elif label not in tree:
            unknown[label] = count
    for counter, reason in (
        (dropped, "dropped, their label is not in the class descriptions (their ancestors are added)"),
        (unknown, "without ancestors, their label is not in the hierarchy"),
    ):
        if counter:
            print(f"{counter.total()} boxes {reason}: {listed(counter)}")


def print_gains(result: Predictions, expansion: Expansion) -> None:
    """Says how many boxes each ancestor class has now."""
    counts = np.bincount(result.label_index, minlength=len(result.labels))
    inner = {result.labels[index]: int(counts[index]) for index in np.unique(expansion.ancestors)}
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
    a00.run_script(main)
