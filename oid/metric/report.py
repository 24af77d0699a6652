"""What a07 prints and writes: the table of classes, COCO's numbers, kinds of error."""

import csv
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from oid.files import InputError, replacing
from oid.metric.challenge import Metrics
from oid.metric.errors import BACKGROUND_OVERLAP, ErrorReport

CLASS_COLUMNS = ("label", "name", "AP", "num_gt", "predicted", "cost")
CONFUSION_COLUMNS = ("predicted", "predicted_name", "actual", "actual_name", "count", "mean_score")


def beside(metrics_file: Path, ending: str) -> Path:
    """`X.metrics.json` -> `X<ending>`."""
    return metrics_file.with_name(metrics_file.name.removesuffix(".json").removesuffix(".metrics") + ending)


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Writes a CSV file, all or nothing; None is an empty value, a number is written exactly."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    print(f"wrote {path}")


def number_or_none(value: float) -> float | None:
    """None for nan, which JSON does not have."""
    return None if np.isnan(value) else float(value)


# === Classes ==========================================================================================================


def class_table(result: Metrics, names: Mapping[str, str], predicted: np.ndarray) -> list[tuple]:
    """A row of `CLASS_COLUMNS` for each class, what costs the mean most first, classes without ground truth last.

    The cost of a class is (1 - AP) / number of classes with ground truth: all costs and mAP add up to 1.

    Args:
        names: {label: name} in the order of the class indices.
        predicted: `(num_classes,)`, boxes of each class on evaluated images.
    """
    defined = max(np.count_nonzero(~np.isnan(result.average_precision)), 1)
    rows = [
        (label, name, ap, num_gt, count, None if ap is None else (1 - ap) / defined)
        for (label, name), ap, num_gt, count in zip(
            names.items(),
            map(number_or_none, result.average_precision),
            result.num_gt.tolist(),
            predicted.tolist(),
            strict=True,
        )
    ]
    return sorted(rows, key=lambda row: (row[2] is None, -(row[5] or 0), -row[3]))


def print_class_table(rows: Sequence[tuple], count: int) -> None:
    """Prints the first `count` classes that have ground truth."""
    shown = [row for row in rows if row[2] is not None][:count]
    if not shown:
        return
    print("what each class costs the mean, (1 - AP) / classes with ground truth:")
    print("      cost      AP    boxes  predicted  class")
    for label, name, ap, num_gt, predicted, cost in shown:
        print(f"  {cost:8.6f}  {ap:6.4f}  {num_gt:7g}  {predicted:9}  {name}{'' if name == label else f' ({label})'}")


def find_class(wanted: str, names: Mapping[str, str]) -> int:
    """The class index of a label or a name; upper and lower case of a name do not matter.

    Raises:
        InputError: no class has it, or several classes have this name.
    """
    labels = list(names)
    if wanted in names:
        return labels.index(wanted)
    found = [index for index, name in enumerate(names.values()) if name.lower() == wanted.lower()]
    if not found:
        near = difflib.get_close_matches(wanted, [*names.values(), *labels], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "give a label or a name of the class descriptions"
        raise InputError(f"--curve {wanted!r} is no class: {hint}")
    if len(found) > 1:
        several = " and ".join(labels[index] for index in found)
        raise InputError(f"--curve {wanted!r} is the name of {several}: give one of these labels")
    return found[0]


# === COCO's numbers and kinds of error ================================================================================


def print_coco(numbers: Mapping[str, float], unverified: int) -> None:
    """Prints the twelve numbers, and how many boxes count there although nobody verified their class."""
    print(f"COCO's metric, for which images are completely annotated ({unverified} boxes of unverified classes count):")
    for first, second in zip(list(numbers)[:6], list(numbers)[6:], strict=True):
        print("  " + "    ".join(f"{name:<10}{numbers[name]:8.6f}" for name in (first, second)))


def print_errors(report: ErrorReport, names: Mapping[str, str], count: int) -> None:
    """Prints what each kind of error costs, and the first `count` confusions."""
    thresholds = f"overlap {report.iou_threshold:g} and {BACKGROUND_OVERLAP:g}"
    print(f"kinds of error (TIDE, {thresholds}); dAP = what mAP gains without them:")
    print("  kind                 count       dAP    share")
    for kind, share in report.shares.items():
        print(f"  {kind:<15}{report.counts[kind]:11}  {report.costs[kind]:8.6f}  {share:7.1%}")
    print(f"  all false positives        {report.false_positives:9.6f}")
    print(f"  all that was not found     {report.false_negatives:9.6f}")
    if report.confusions[:count]:
        words = list(names.values())
        print("most confused, by the sum of scores: predicted -> annotated, boxes, mean score")
        for predicted, actual, number, score in report.confusions[:count]:
            print(f"  {words[predicted]} -> {words[actual]}  {number}  {score / number:.3f}")


def write_confusions(metrics_file: Path, report: ErrorReport, names: Mapping[str, str]) -> None:
    """Writes `X.confusions.csv`, the highest sum of scores first."""
    classes = list(names.items())
    rows = [
        (*classes[predicted], *classes[actual], count, score / count)
        for predicted, actual, count, score in report.confusions
    ]
    write_table(beside(metrics_file, ".confusions.csv"), CONFUSION_COLUMNS, rows)


def errors_as_json(report: ErrorReport) -> dict:
    """The kinds of error for `X.metrics.json`."""
    kinds = {
        kind: {"count": report.counts[kind], "dAP": number_or_none(report.costs[kind]), "share": share}
        for kind, share in report.shares.items()
    }
    special = {
        "false_positives": {"dAP": number_or_none(report.false_positives)},
        "false_negatives": {"dAP": number_or_none(report.false_negatives)},
    }
    return kinds | special
