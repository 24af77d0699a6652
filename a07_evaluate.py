"""Measures predictions with the metric of the Open Images Challenge: mAP@0.5 with verified labels and group-of boxes.

Reads   a prediction CSV (a04, a05, a06 or another tool's): `ImageId,PredictionString`, or rows
        `ImageID,LabelName,Score,XMin,XMax,YMin,YMax`, also .gz; and the ground truth of DATASET/annotations: boxes,
        image-level labels, class hierarchy, class descriptions
Writes  X.metrics.json beside the predictions X.csv: mAP, AP and number of ground truth per class
Takes   about 2 s for 2,000 images with 500,000 boxes; the first run compiles the metric, 3 s more

The ground truth is expanded here (boxes are copied to the ancestors of their class), predictions are not: see a05.
`oid/metric.py` has the protocol step by step, `oid/ground_truth.py` the rules of the expansion.

    python a07_evaluate.py --predictions resnet50_level_1.expanded.csv
    python a07_evaluate.py --predictions tiny.csv --boxes boxes.csv --image_labels labels.csv --hierarchy none
"""

import json
from pathlib import Path

import numpy as np

import a00_utils_and_constants as a00
from oid import layout
from oid.annotations import read_class_descriptions
from oid.files import InputError, output_file, replacing, require_file
from oid.ground_truth import GroundTruthReport, read_ground_truth
from oid.hierarchy import Hierarchy, read_hierarchy
from oid.metric import Detections, GroundTruth, Metrics, evaluate
from oid.predictions import Predictions, read_predictions

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
        metrics: JSON file to write; by default X.metrics.json beside the predictions X.csv.
    """
    check_range("group_of_weight", group_of_weight, 0 <= group_of_weight <= 1, "0 to 1")
    check_range("iou", iou, 0 < iou <= 1, "above 0 to 1")
    source = require_file(predictions or layout.submission(output_path, split), "run a04 to a06, or give --predictions")
    target = output_file(metrics or layout.metrics_file(source), "--metrics")
    found = read_predictions(source, allow_swapped_corners=True)

    truth, report = read_ground_truth(
        *find_ground_truth(dataset_path, split, boxes, image_labels, hierarchy, class_descriptions)
    )
    print_ground_truth(truth, report)

    detections, dropped = select_detections(found, truth, report.labels)
    result = evaluate(
        truth, detections, num_classes=len(report.labels), group_of_weight=group_of_weight, iou_threshold=iou
    )
    print_predictions(found, dropped | {RULES[rule]: count for rule, count in result.dropped.items()})
    print_missing_classes(detections, result, report.labels)

    write_metrics(target, result, report.labels, group_of_weight, iou, len(truth.image_ids))
    print(f"mAP@{iou:g} = {result.mean_average_precision:.6f}")


def check_range(name: str, value: float, is_fine: bool, allowed: str) -> None:
    """Raises an InputError where `is_fine` is false."""
    if not is_fine:
        raise InputError(f"--{name} is {value:g}: give a number from {allowed}")


def find_ground_truth(
    dataset_path: str,
    split: str,
    boxes: str | None,
    image_labels: str | None,
    hierarchy: str | None,
    class_descriptions: str | None,
) -> tuple[Path, Path | None, Hierarchy | None, list[str] | None]:
    """What `read_ground_truth` takes: box file, image-label file, hierarchy, class list; prints the choice of files.

    Image-level labels belong to a split: those of the data set are not mixed with boxes from elsewhere. Hierarchy and
    class descriptions belong to the whole data set.
    """
    default_boxes = layout.box_annotations(dataset_path, split)
    own_boxes = boxes is None or Path(boxes).resolve() == default_boxes.resolve()
    if own_boxes and split == "test" and not default_boxes.is_file():
        raise InputError(
            f"{default_boxes} does not exist, because the test split has no ground truth: "
            'set SPLIT = "validation" in a00_utils_and_constants.py, or give --split or --boxes'
        )
    boxes_path = require_file(boxes or default_boxes, "give --boxes, or the folder of Open Images with --dataset_path")
    print(f"boxes: {boxes_path}")
    default_labels = layout.image_label_annotations(dataset_path, split) if own_boxes else None
    default_hierarchy = layout.annotation_file(dataset_path, layout.HIERARCHY)
    default_classes = layout.evaluated_class_descriptions(dataset_path)
    labels_path = choose_file(
        "image_labels", image_labels, default_labels, "only the classes of an image's boxes count"
    )
    hierarchy_path = choose_file("hierarchy", hierarchy, default_hierarchy, "boxes are not copied to ancestor classes")
    classes_path = choose_file(
        "class_descriptions", class_descriptions, default_classes, "every class that occurs counts"
    )
    return (
        boxes_path,
        labels_path,
        read_hierarchy(hierarchy_path) if hierarchy_path else None,
        list(read_class_descriptions(classes_path)) if classes_path else None,
    )


def choose_file(flag: str, given: str | None, default: Path | None, without: str) -> Path | None:
    """The file that was given, else the default where it exists, else None; "none" is None. Prints the choice."""
    if given not in (None, "none"):
        path = require_file(given, f"give another file with --{flag}, or --{flag} none")
    else:
        path = default if given is None and default is not None and default.is_file() else None
    print(f"{flag}: {path if path else f'none, so {without}'}")
    return path


def select_detections(
    found: Predictions, truth: GroundTruth, labels: tuple[str, ...]
) -> tuple[Detections, dict[str, int]]:
    """The boxes on evaluated images and of evaluated classes, and how many each of the two rules dropped."""
    images = {image_id: index for index, image_id in enumerate(truth.image_ids)}
    classes = {label: index for index, label in enumerate(labels)}
    image = np.array([images.get(image_id, -1) for image_id in found.image_ids], dtype=np.int64)[found.image_index]
    class_index = np.array([classes.get(label, -1) for label in found.labels], dtype=np.int64)[found.label_index]
    kept = (image >= 0) & (class_index >= 0)
    dropped = {
        "on images without a row in the ground truth": int(np.count_nonzero(image < 0)),
        "of a class that is not in the class list": int(np.count_nonzero((image >= 0) & (class_index < 0))),
    }
    return Detections(image[kept], class_index[kept], found.scores[kept], found.boxes[kept]), dropped


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


def print_predictions(found: Predictions, dropped: dict[str, int]) -> None:
    """Prints how many boxes were predicted and what each rule dropped."""
    print(f"{len(found.boxes)} predicted boxes on {len(found.image_ids)} images")
    for rule, count in dropped.items():
        print(f"  dropped {count} {rule}")
    remaining = len(found.boxes) - sum(dropped.values())
    print(f"  {remaining} remain")
    if len(found.boxes) and not remaining:
        print("not one predicted box remains: do the predictions and the ground truth belong to the same images?")


def print_missing_classes(detections: Detections, result: Metrics, labels: tuple[str, ...]) -> None:
    """Prints how many classes have AP 0 because nothing was predicted: often a forgotten a05."""
    missing = np.flatnonzero(result.num_gt)
    missing = missing[~np.isin(missing, detections.class_index)]
    if len(missing):
        first = labels[missing[0]]
        print(f"{len(missing)} classes have ground truth but no predicted box, for example {first}: did a05 run?")


def write_metrics(
    path: Path, result: Metrics, labels: tuple[str, ...], group_of_weight: float, iou: float, images: int
) -> None:
    """Writes the result as JSON, null where AP is not defined, and says so."""
    content = {
        "mAP": number_or_none(result.mean_average_precision),
        "AP": {label: number_or_none(ap) for label, ap in zip(labels, result.average_precision, strict=True)},
        "num_gt": {label: float(count) for label, count in zip(labels, result.num_gt, strict=True)},
        "group_of_weight": group_of_weight,
        "iou": iou,
        "images": images,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    defined = np.count_nonzero(~np.isnan(result.average_precision))
    print(
        f"wrote {path}: AP of {defined} classes; the other {len(labels) - defined} have no ground-truth box that counts"
    )


def number_or_none(value: float) -> float | None:
    """None for nan, which JSON does not have."""
    return None if np.isnan(value) else float(value)


if __name__ == "__main__":
    a00.run_script(main)
