"""Measures predictions with the metric of the Open Images Challenge: mAP@0.5 with verified labels and group-of boxes.

Reads   a prediction CSV (a04, a05, a06 or another tool's): `ImageId,PredictionString`, or rows
        `ImageID,LabelName,Score,XMin,XMax,YMin,YMax`, also .gz; the ground truth of DATASET/annotations: boxes,
        image-level labels, class hierarchy, class descriptions; with --coco a02's sizes
Writes  beside the predictions X.csv: X.metrics.json (mAP, AP and number of ground truth per class), X.classes.csv (what
        each class costs the mean); with --curve X.curve.<class>.csv and .png, with --errors X.confusions.csv
Takes   15 s of one core and 0.8 GB for 12 million boxes; the first run compiles the metric, 10 s more; the temporary
        folder gets 48 bytes per box

The ground truth is expanded here (boxes are copied to the ancestors of their class), predictions are not: see a05.
The modules of `oid/metric` have the rules: `challenge.py` the protocol step by step, `ground_truth.py` the expansion,
`coco.py` and `errors.py` what --coco and --errors add.

    python a07_evaluate.py --predictions resnet50_level_1.expanded.csv
    python a07_evaluate.py --coco --errors --curve Apple
    python a07_evaluate.py --predictions tiny.csv --boxes boxes.csv --image_labels labels.csv --hierarchy none
"""

import a00_utils_and_constants as a00
from oid import paths
from oid.command_line import check_files, check_flag, check_range, run_script
from oid.files import output_file, remedy, require_file

IMAGES_PER_BLOCK = 2048  # whose boxes are in memory at a time


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
        split: the split to measure, for files that no other flag names.
        predictions: prediction CSV to measure; by default a06's submission.
        boxes: CSV of ground-truth boxes; by default the data set's.
        image_labels: CSV of human-verified image-level labels, or "none"; by default the data set's if it has them and
            --boxes names no other file. Without them only the classes of an image's boxes count in it.
        hierarchy: nested JSON of the classes, by which boxes are copied to ancestors, or "none"; by default the data
            set's if it has one.
        class_descriptions: CSV of the classes to evaluate, or "none" = all that occur; by default the challenge's if
            the data set has it, else the boxable classes.
        group_of_weight: weight of a group-of box, 0 to 1: 1 in the challenges of 2018 and 2019, 0 = ignored.
        iou: smallest overlap (intersection over union) of a match, above 0, at most 1.
        coco: also COCO's twelve numbers, equal to those of pycocotools: every class counts in every image, a group-of
            box is a crowd, areas are in pixels of a02's sizes.
        image_params: a02's table for --coco; by default that of the split.
        errors: also the cost of each kind of error that TIDE defines, and the confused classes.
        curve: labels or names of the classes whose precision-recall curve is written.
        classes_shown: how many classes the printed tables have; 0 = none. The file has all.
        metrics: JSON file to write; by default X.metrics.json beside the predictions X.csv.
    """
    check_range(0, 1, group_of_weight=group_of_weight)
    check_flag(0 < iou <= 1, "iou", iou, "a number above 0, at most 1")
    check_flag(classes_shown >= 0, "classes_shown", classes_shown, "a number from 0 up")
    source = require_file(predictions or paths.submission(output_path, split), "run a04 to a06, or give --predictions")
    target = output_file(metrics or paths.metrics_file(source), "give another place by --metrics")

    from tqdm import tqdm  # imports are here, because --help need not wait for them

    from oid.annotations import find_class
    from oid.metric.challenge import Matcher, Selection
    from oid.metric.coco import CocoMatcher
    from oid.metric.errors import ErrorKinds
    from oid.metric.ground_truth import find_ground_truth, read_sizes
    from oid.metric.report import Results, prediction_lines, result_lines, write_results
    from oid.predictions.files import PredictionFile

    check_files(boxes=boxes, image_labels=image_labels, hierarchy=hierarchy, class_descriptions=class_descriptions)
    with remedy("choose by --dataset_path, --split or --boxes"):
        files = find_ground_truth(dataset_path, split, boxes, image_labels, hierarchy, class_descriptions)
    print(*files.lines(), sep="\n", flush=True)
    truth, report, names = files.read()
    print(*report.lines(truth), sep="\n")

    matcher = Matcher(truth, num_classes=len(names), group_of_weight=group_of_weight, iou_threshold=iou)
    with remedy("give --curve another class, by its label or name"):
        curves = [list(names).index(find_class(word, names)) for word in curve or ()]
    for index in curves:
        name = list(names.values())[index]
        check_flag(matcher.num_gt[index] > 0, "curve", name, "a class with ground truth: this one has no recall")
    kinds = ErrorKinds(matcher) if errors else None
    with remedy("run a02_find_image_parameters.py on these images, or name its table by --image_params"):
        sizes = read_sizes(image_params or paths.image_params(output_path, split), truth.image_ids) if coco else None
    coco_matcher = CocoMatcher(truth, sizes, num_classes=len(names)) if coco else None
    file, selection = PredictionFile(source, allow_swapped_corners=True), Selection(truth, names)
    with tqdm(total=len(file.image_ids), unit="image", leave=False, disable=None) as bar:
        for found in file.blocks(IMAGES_PER_BLOCK):
            detections = selection.take(found)
            matched = matcher.add(detections)
            if kinds:
                kinds.add(*matched)
            if coco_matcher:
                coco_matcher.add(detections)
            bar.update(len(found.image_ids))

    results = Results(
        names=names,
        matcher=matcher,
        metrics=matcher.metrics(),
        selection=selection,
        coco=coco_matcher.metrics() if coco_matcher else None,
        errors=kinds.report() if kinds else None,
    )
    print(*prediction_lines(results, len(file.image_ids)), *result_lines(results, classes_shown), sep="\n")
    for path in write_results(target, results, curves):
        print(f"wrote {path}")
    print(f"mAP@{iou:g} = {results.metrics.mean_average_precision:.6f}")


if __name__ == "__main__":
    run_script(main)
