"""Measures predictions with the metric of the Open Images Challenge: mAP@0.5 with verified labels and group-of boxes.

Reads   a prediction CSV (a04, a05, a06 or another tool's): `ImageId,PredictionString`, or rows
        `ImageID,LabelName,Score,XMin,XMax,YMin,YMax`, also .gz; the ground truth of DATASET/annotations: boxes,
        image-level labels, class hierarchy, class descriptions; with --coco a02's sizes
Writes  beside the predictions X.csv: X.metrics.json (mAP, AP and number of ground truth per class), X.classes.csv (what
        each class costs the mean); with --curve X.curve.<class>.csv and .png, with --errors X.confusions.csv
Takes   10 s of one core and 1.2 GB for 12 million boxes; the first run compiles the metric, 10 s more

The ground truth is expanded here (boxes are copied to the ancestors of their class), predictions are not: see a05.
`oid/metric.py` has the protocol step by step, `oid/ground_truth.py` the rules of the expansion, `oid/coco_metric.py`
and `oid/error_kinds.py` those of --coco and --errors.

    python a07_evaluate.py --predictions resnet50_level_1.expanded.csv
    python a07_evaluate.py --coco --errors --curve Apple
    python a07_evaluate.py --predictions tiny.csv --boxes boxes.csv --image_labels labels.csv --hierarchy none
"""

from __future__ import annotations  # what annotations name is imported where it is used: --help need not wait for it

import json
from pathlib import Path
from typing import TYPE_CHECKING

import a00_utils_and_constants as a00
from oid import paths
from oid.command_line import run_script
from oid.files import InputError, output_file, replacing, require_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from oid.metric.challenge import GroundTruth, Matcher, Metrics
    from oid.metric.coco import CocoMatcher
    from oid.metric.errors import ErrorKinds
    from oid.metric.evaluation import Selection
    from oid.metric.ground_truth import GroundTruthReport

RULES = {  # what each key of `Metrics.dropped` is called on the screen
    "unverified_class": "of a class that is not verified in the image",
    "degenerate_box": "without area (XMin >= XMax or YMin >= YMax)",
    "low_score": "with a score of -10 or less",
    "beyond_limit": "beyond 10,000 per image and class",
}


def main(
    *,
    dataset_path: str = a00.DATASET_PATH,
    output_path: str = a00.OUTPUT_PATH,
    split: str = a00.SPLIT,
    predictions: str | None = None,
    boxes: str | None = None,
    image_labels: str | None = None,
    hierarchy: str | None = None,
    class_descriptions: str | None = None,
    group_of_weight: float = a00.GROUP_OF_WEIGHT,
    iou: float = 0.5,
    coco: bool = False,
    image_params: str | None = None,
    errors: bool = False,
    curve: tuple[str, ...] | None = None,
    classes_shown: int = 10,
    metrics: str | None = None,
) -> None:
    """Measures one prediction file and prints the mAP in the last line.

    Args:
        dataset_path: folder of the data set.
        output_path: folder of all results.
        split: the split that is measured, where --predictions, --boxes or --image_labels do not name a file.
        predictions: prediction CSV to measure; by default a06's submission.
        boxes: CSV of ground-truth boxes; by default the data set's.
        image_labels: CSV of human-verified image-level labels, or "none"; by default the data set's where it has them,
            but none where --boxes names another file. Without them only the classes of an image's boxes count in it.
        hierarchy: nested JSON of the classes, by which boxes are copied to ancestors, or "none"; by default the data
            set's where it has one.
        class_descriptions: CSV of the classes to evaluate, or "none" = all that occur; by default the challenge's where
            the data set has it, else all boxable classes where it has these.
        group_of_weight: what a group-of box counts, 0 to 1: 1 in the challenges of 2018 and 2019, 0 = neither found
            nor missed.
        iou: smallest overlap (intersection over union) of a match, above 0, at most 1.
        coco: also COCO's twelve numbers, as pycocotools has them: every class counts in every image, a group-of box is
            a crowd, small and large are pixels of a02's sizes.
        image_params: a02's table for --coco; by default that of the split.
        errors: also what each kind of error costs, as TIDE defines them, and which classes are confused.
        curve: labels or names of classes whose curve of precision and recall is written.
        classes_shown: how many classes the printed tables have; 0 = none. The file has all.
        metrics: JSON file to write; by default X.metrics.json beside the predictions X.csv.
    """
    check_range("group_of_weight", group_of_weight, 0 <= group_of_weight <= 1, "0 to 1")
    check_range("iou", iou, 0 < iou <= 1, "above 0 to 1")
    check_range("classes_shown", classes_shown, classes_shown >= 0, "0 up")
    source = require_file(predictions or paths.submission(output_path, split), "run a04 to a06, or give --predictions")
    target = output_file(metrics or paths.metrics_file(source), "give another place by --metrics")

    from oid.metric.challenge import Matcher
    from oid.metric.coco import CocoMatcher
    from oid.metric.errors import ErrorKinds
    from oid.metric.evaluation import Selection, measure
    from oid.metric.ground_truth import read_ground_truth, read_sizes
    from oid.metric.ground_truth_files import find_ground_truth
    from oid.predictions.files import PredictionFile

    *files, names = find_ground_truth(dataset_path, split, boxes, image_labels, hierarchy, class_descriptions)
    truth, report = read_ground_truth(*files, list(names) if names else None)
    names = names or {label: label for label in report.labels}
    print_ground_truth(truth, report)

    size = len(names)
    matcher = Matcher(truth, num_classes=size, group_of_weight=group_of_weight, iou_threshold=iou)
    curves = find_curves(curve or (), names, matcher)
    kinds = ErrorKinds(matcher) if errors else None
    sizes_file = image_params or paths.image_params(output_path, split)
    coco_matcher = CocoMatcher(truth, read_sizes(sizes_file, truth.image_ids), num_classes=size) if coco else None
    selection = Selection(truth, names)
    file = PredictionFile(source, allow_swapped_corners=True)
    measure(file, selection, matcher, kinds=kinds, coco=coco_matcher)

    result = matcher.metrics()
    print_predictions(selection, len(file.image_ids), result)
    print_missing_classes(selection, result, report.labels)
    content = metrics_content(result, report.labels, matcher, iou)
    content |= report_details(target, result, names, selection, coco_matcher, kinds, classes_shown)
    write_curves(target, matcher, curves, names, result)
    write_metrics(target, content)
    print(f"mAP@{iou:g} = {result.mean_average_precision:.6f}")


def find_curves(wanted: Sequence[str], names: Mapping[str, str], matcher: Matcher) -> list[int]:
    """The class indices of labels or names, none of them without ground truth."""
    from oid.metric.report import find_class

    found = [find_class(word, names) for word in wanted]
    for word, index in zip(wanted, found, strict=True):
        if matcher.num_gt[index] == 0:
            raise InputError(f"--curve {word!r} has no ground-truth box that counts, so no recall: take another class")
    return found


def check_range(name: str, value: float, is_fine: bool, allowed: str) -> None:
    """Raises an InputError where `is_fine` is false."""
    if not is_fine:
        raise InputError(f"--{name} is {value:g}: give a number from {allowed}")


def print_ground_truth(truth: GroundTruth, report: GroundTruthReport) -> None:
    """Prints what is measured against."""
    print(f"{len(truth.image_ids)} images, {len(report.labels)} classes")
    print(f"{report.boxes} boxes, {len(truth.boxes)} with the copies to ancestor classes")
    expanded = len(truth.label_image)
    print(f"{report.image_labels} image-level labels, {expanded} with the copies to ancestors and descendants")
    for what, dropped in (("boxes", report.dropped_boxes), ("image-level labels", report.dropped_image_labels)):
        if dropped:
            print(
                f"  dropped {sum(dropped.values())} {what} of {len(dropped)} classes that are in the hierarchy only, "
                f"for example {next(iter(dropped))}"
            )


def print_predictions(selection: Selection, images: int, result: Metrics) -> None:
    """Prints how many boxes were predicted and what each rule dropped."""
    dropped = selection.dropped | {RULES[rule]: count for rule, count in result.dropped.items()}
    print(f"{selection.boxes} predicted boxes on {images} images")
    for rule, count in dropped.items():
        print(f"  dropped {count} {rule}")
    remaining = selection.boxes - sum(dropped.values())
    print(f"  {remaining} remain")
    if selection.boxes and not remaining:
        print("not one predicted box remains: do the predictions and the ground truth belong to the same images?")


def print_missing_classes(selection: Selection, result: Metrics, labels: tuple[str, ...]) -> None:
    """Prints how many classes have AP 0 because nothing was predicted: often a forgotten a05."""
    missing = [index for index, count in enumerate(result.num_gt) if count and not selection.per_class[index]]
    if missing:
        first = labels[missing[0]]
        print(f"{len(missing)} classes have ground truth but no predicted box, for example {first}: did a05 run?")


def metrics_content(result: Metrics, labels: Sequence[str], matcher: Matcher, iou: float) -> dict:
    """What X.metrics.json has in any case, null where AP is not defined; prints for how many classes."""
    from oid.metric.report import number_or_none

    average_precision = [number_or_none(ap) for ap in result.average_precision]
    undefined = average_precision.count(None)
    print(f"AP of {len(labels) - undefined} classes; the other {undefined} have no ground-truth box that counts")
    return {
        "mAP": number_or_none(result.mean_average_precision),
        "AP": dict(zip(labels, average_precision, strict=True)),
        "num_gt": dict(zip(labels, result.num_gt.tolist(), strict=True)),
        "group_of_weight": matcher.group_of_weight,
        "iou": iou,
        "images": matcher.num_images,
    }


def report_details(
    target: Path,
    result: Metrics,
    names: Mapping[str, str],
    selection: Selection,
    coco: CocoMatcher | None,
    kinds: ErrorKinds | None,
    shown: int,
) -> dict:
    """Prints and writes the table of classes and, where asked for, COCO's numbers and the kinds of error.

    Returns:
        What X.metrics.json has of the last two.
    """
    from oid.metric import report as tables

    rows = tables.class_table(result, names, selection.per_class)
    tables.print_class_table(rows, shown)
    tables.write_table(tables.beside(target, ".classes.csv"), tables.CLASS_COLUMNS, rows)
    content = {}
    if coco:
        numbers, per_class = coco.metrics()
        tables.print_coco(numbers, result.dropped["unverified_class"])
        content["coco"] = {name: tables.number_or_none(number) for name, number in numbers.items()}
        content["coco_AP"] = dict(zip(names, map(tables.number_or_none, per_class), strict=True))
    if kinds:
        report = kinds.report()
        tables.print_errors(report, names, shown)
        tables.write_confusions(target, report, names)
        content["errors"] = tables.errors_as_json(report)
    return content


def write_curves(
    target: Path, matcher: Matcher, curves: Sequence[int], names: Mapping[str, str], result: Metrics
) -> None:
    """Writes a table and a picture for each class of `curves`."""
    from oid.metric.curve_picture import write_curve

    labels = list(names)
    for index in curves:
        label, ap = labels[index], result.average_precision[index]
        write_curve(target, label, names[label], matcher.curve(index), ap)


def write_metrics(path: Path, content: dict) -> None:
    """Writes X.metrics.json."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    run_script(main)
