"""What a07 reports beside mAP: tables, lines to print, the content of X.metrics.json, the curve of a class."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from oid.columns import CLASS_COLUMNS, CONFUSION_COLUMNS, CURVE_COLUMNS
from oid.files import replacing
from oid.metric.challenge import Matcher, Metrics, Selection
from oid.metric.coco import CocoMetrics
from oid.metric.errors import BACKGROUND_OVERLAP, ErrorReport

RULES = {  # {key of `Metrics.dropped`: words}
    "unverified_class": "of a class that is not verified in the image",
    "degenerate_box": "without area (XMin >= XMax or YMin >= YMax)",
    "low_score": "with a score of -10 or less",
    "beyond_limit": "beyond 10,000 per image and class",
}


class Results(NamedTuple):
    """What a07 has measured."""

    names: Mapping[str, str]  # {label: name} in the order of the class indices
    matcher: Matcher  # of the challenge's metric, after the last block
    metrics: Metrics
    selection: Selection  # after the last block
    coco: CocoMetrics | None
    errors: ErrorReport | None


# === Lines to print ===================================================================================================
def result_lines(results: Results, count: int) -> list[str]:
    """The tables of classes and errors, `count` rows each, and COCO's numbers."""
    lines = class_lines(class_table(results), count)
    if results.coco:
        lines += coco_lines(results.coco, results.metrics.dropped["unverified_class"])
    if results.errors:
        lines += error_lines(results.errors, confusion_table(results), count)
    return lines


def prediction_lines(results: Results, num_images: int) -> list[str]:
    """How many boxes were predicted on `num_images`, what each rule dropped, and which classes are missing."""
    selection, num_gt = results.selection, results.metrics.num_gt
    dropped = {
        "on images without a row in the ground truth": selection.other_images,
        "of a class that is not in the class list": selection.other_classes,
    } | {RULES[rule]: count for rule, count in results.metrics.dropped.items()}
    remaining = selection.boxes - sum(dropped.values())
    lines = [f"{selection.boxes} predicted boxes on {num_images} images"]
    lines += [*(f"  dropped {count} {rule}" for rule, count in dropped.items()), f"  {remaining} remain"]
    if selection.boxes and not remaining:
        lines.append(
            "not one predicted box remains: do the predictions and the ground truth belong to the same images?"
        )
    missing = np.array(list(results.names))[(num_gt > 0) & (selection.per_class == 0)]
    if len(missing):
        example = f"for example {missing[0]}: did a05 run?"
        lines.append(f"{len(missing)} classes have ground truth but no predicted box, {example}")
    defined = np.count_nonzero(num_gt)
    undefined = len(num_gt) - defined
    return [*lines, f"AP of {defined} classes; the other {undefined} have no ground-truth box that counts"]


def class_lines(table: pl.DataFrame, count: int) -> list[str]:
    """The first `count` classes that have ground truth, as text."""
    lines = [
        f"  {cost:8.6f}  {ap:6.4f}  {num_gt:7g}  {predicted:9}  {name}{'' if name == label else f' ({label})'}"
        for label, name, ap, num_gt, predicted, cost in table.drop_nulls("cost").head(count).rows()
    ]
    title = "what each class costs the mean, (1 - AP) / classes with ground truth:"
    return [title, "      cost      AP    boxes  predicted  class", *lines] if lines else []


def coco_lines(result: CocoMetrics, unverified: int) -> list[str]:
    """The twelve numbers; `unverified` boxes count in them but not in the challenge's metric."""
    numbers = [f"{name:<10}{number:8.6f}" for name, number in result.numbers.items()]
    return [
        f"COCO's metric, for which images are completely annotated ({unverified} boxes of unverified classes count):",
        *(f"  {first}    {second}" for first, second in zip(numbers[:6], numbers[6:], strict=True)),
    ]


def error_lines(report: ErrorReport, confusions: pl.DataFrame, count: int) -> list[str]:
    """What each kind of error costs, and the first `count` confusions."""
    thresholds = f"overlap {report.iou_threshold:g} and {BACKGROUND_OVERLAP:g}"
    lines = [
        f"kinds of error (TIDE, {thresholds}); dAP = what mAP gains without them:",
        "  kind                 count       dAP    share",
        *(
            f"  {kind:<15}{report.counts[kind]:11}  {report.costs[kind]:8.6f}  {share:7.1%}"
            for kind, share in report.shares.items()
        ),
        f"  all false positives        {report.false_positives:9.6f}",
        f"  all that was not found     {report.false_negatives:9.6f}",
    ]
    shown = [
        f"  {predicted} -> {actual}  {number}  {mean_score:.3f}"
        for _, predicted, _, actual, number, mean_score in confusions.head(count).rows()
    ]
    title = "most confused, by the sum of scores: predicted -> annotated, boxes, mean score"
    return [*lines, title, *shown] if shown else lines


# === Tables and files =================================================================================================
def class_table(results: Results) -> pl.DataFrame:
    """`CLASS_COLUMNS` of every class by descending cost; AP and cost are null without ground truth.

    The cost of a class is (1 - AP) / number of classes with ground truth: all costs and mAP add up to 1.
    """
    ap, num_gt = results.metrics.average_precision, results.metrics.num_gt
    cost = (1 - ap) / max(np.count_nonzero(num_gt), 1)
    columns = list(results.names), list(results.names.values()), ap, num_gt, results.selection.per_class, cost
    table = pl.DataFrame(dict(zip(CLASS_COLUMNS, columns, strict=True))).fill_nan(None)
    return table.sort("cost", "num_gt", descending=True, nulls_last=True, maintain_order=True)


def confusion_table(results: Results) -> pl.DataFrame:
    """`CONFUSION_COLUMNS` of every pair of classes, the highest sum of scores first."""
    classes = list(results.names.items())
    rows = [
        (*classes[predicted], *classes[actual], count, score / count)
        for predicted, actual, count, score in results.errors.confusions
    ]
    return pl.DataFrame(rows, schema=CONFUSION_COLUMNS, orient="row")


def write_results(target: Path, results: Results, curves: Sequence[int]) -> list[Path]:
    """Writes X.metrics.json (`target`), tables, and the curves of the classes `curves`; returns all paths."""
    tables = {".classes.csv": class_table(results)}
    if results.errors:
        tables[".confusions.csv"] = confusion_table(results)
    written = [write_table(beside(target, ending), table) for ending, table in tables.items()]
    for index in curves:
        label, name = list(results.names.items())[index]
        ap = results.metrics.average_precision[index]
        written += write_curve(target, label, name, results.matcher.curve(index), ap)
    with replacing(target) as temporary:
        content = json.loads(json.dumps(results_as_json(results)), parse_constant=lambda nan: None)
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return [*written, target]


def results_as_json(results: Results) -> dict:
    """The content of X.metrics.json; an undefined number is nan here and null in the file."""
    metrics, matcher, coco, errors = results.metrics, results.matcher, results.coco, results.errors
    content = {
        "mAP": metrics.mean_average_precision,
        "AP": dict(zip(results.names, metrics.average_precision.tolist(), strict=True)),
        "num_gt": dict(zip(results.names, metrics.num_gt.tolist(), strict=True)),
        "group_of_weight": matcher.group_of_weight,
        "iou": matcher.iou_threshold,
        "images": matcher.num_images,
    }
    if coco:
        content["coco"] = coco.numbers
        content["coco_AP"] = dict(zip(results.names, coco.average_precision.tolist(), strict=True))
    if errors:
        content["errors"] = {
            kind: {"count": errors.counts[kind], "dAP": errors.costs[kind], "share": share}
            for kind, share in errors.shares.items()
        }
        content["errors"]["false_positives"] = {"dAP": errors.false_positives}
        content["errors"]["false_negatives"] = {"dAP": errors.false_negatives}
    return content


def beside(metrics_file: Path, ending: str) -> Path:
    """`X.metrics.json` -> `X<ending>`."""
    return metrics_file.with_name(metrics_file.name.removesuffix(".json").removesuffix(".metrics") + ending)


def write_table(path: Path, table: pl.DataFrame) -> Path:
    """Writes a CSV file atomically, with null as an empty value and exact numbers."""
    with replacing(path) as temporary:
        table.write_csv(temporary)
    return path


def write_curve(metrics_file: Path, label: str, name: str, curve: tuple[np.ndarray, ...], ap: float) -> list[Path]:
    """Writes the curve of a class as X.curve.<name>.csv and .png; returns both paths.

    `curve` is scores, precision and recall `(N,)` in descending score, and gives a row each; `ap` is for the title.
    """
    words = [re.sub(r"[^\w-]+", "_", text).strip("_") or "class" for text in dict.fromkeys((name, label))]
    table, picture = (beside(metrics_file, f".curve.{'.'.join(words)}{suffix}") for suffix in (".csv", ".png"))
    write_table(table, pl.DataFrame(dict(zip(CURVE_COLUMNS, curve, strict=True))))
    draw_curve(picture, f"{name}: AP {ap:.4f}", *curve[1:])
    return [table, picture]


def draw_curve(path: Path, title: str, precision: np.ndarray, recall: np.ndarray) -> None:
    """Draws precision over recall, and its envelope as a thicker line, as a PNG of 640 x 560 pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.6), dpi=100, layout="constrained")
    axes = figure.add_subplot(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.4)
    if len(precision):
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        axes.plot(recall, precision, color="tab:blue", alpha=0.5, linewidth=1)
        axes.step(np.r_[0, recall, recall[-1]], np.r_[envelope[0], envelope, 0], color="tab:blue", linewidth=2)
    with replacing(path) as temporary:
        figure.savefig(temporary)
