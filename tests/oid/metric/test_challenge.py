"""Proves the challenge metric: the reference's own numbers, its answers to 15 micro cases and two data sets, a slow
second implementation written from the protocol, and properties that hold for any input."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oid.metric.challenge import RULES, GroundTruth, Matcher, Selection, evaluate, match
from oid.metric.ground_truth import GroundTruthFiles
from oid.metric.matching import MAX_DETECTIONS
from oid.predictions.files import read_predictions
from tests.helpers.metric_cases import (
    EDGE_CASES,
    UNIT,
    A,
    B,
    C,
    arrays,
    rows_of,
    scenes,
    thresholds,
    weights,
)
from tests.helpers.project import shared


def scored_list(images: list, weight: float, iou: float = 0.5) -> tuple[list, list]:
    """Scores and labels of class A."""
    entries = match(*arrays(images), num_classes=3, group_of_weight=weight, iou_threshold=iou).entries()
    own = entries.class_index == A
    return entries.scores[own].tolist(), entries.labels[own].tolist()


# === The reference's micro cases and its own tests ====================================================================


@pytest.mark.parametrize("weight", [1, 0])
@pytest.mark.parametrize("name", EDGE_CASES)
def test_edge_case(name: str, weight: int):
    images, *expected = EDGE_CASES[name]
    average_precision, num_gt, scores, labels = expected[0 if weight else -1]
    result = evaluate(*arrays(images), num_classes=2, group_of_weight=weight)
    wanted = np.nan if average_precision is None else average_precision
    np.testing.assert_array_equal(result.average_precision, [wanted, np.nan])
    assert result.num_gt.tolist() == [num_gt, 0]
    assert scored_list(images, weight) == (scores, labels)


def test_the_micro_cases_are_those_of_the_shared_file():
    cases = json.loads(shared("metric_cases", "edge_cases.json").read_text(encoding="utf-8"))
    assert set(cases) == set(EDGE_CASES)
    for name, case in cases.items():
        for image, listed in zip(case["images"], EDGE_CASES[name][0], strict=True):
            for key, rows in zip(("gt", "det"), listed, strict=False):
                assert [[label - 1, *rest] for label, *rest in image.get(key, [])] == rows
            assert [label - 1 for label in image.get("verified", [])] == listed[2]
        for weight in (1, 0):
            found = case[f"weight_{weight}"]
            expected = EDGE_CASES[name][1 if weight else -1]
            assert (found["AP_A"], found["num_gt"][0], found["scores_A"], found["labels_A"]) == expected


# The reference's own tests of its challenge (T1), V2 (T2) and base (T7) evaluators; A is a cat, B a dog, C an elephant.
SMALL, NEAR, FAR = [10, 10, 11, 11], [10, 10, 12, 12], [500, 500, 510, 510]
AWAY, WIDE = [100, 100, 120, 120], [100, 100, 220, 220]
FOUND = [[A, SMALL, 0.7], [A, AWAY, 0.8]]
T1 = [
    ([[A, UNIT, 0], [C, [0, 0, 2, 2], 0], [A, [0, 0, 3, 3], 1]], [[B, SMALL, 0.7], [B, AWAY, 0.8]], [A, B, C]),
    ([[A, SMALL, 0], [A, FAR, 0], [C, NEAR, 1]], [*FOUND, [B, WIDE, 0.5], [C, SMALL, 0.9]], []),
    ([[B, UNIT, 0]], [[B, UNIT, 0.5]], []),
]
UNFOUND = ([[A, UNIT, 0], [C, [0, 0, 2, 2], 0], [A, [0, 0, 3, 3], 0]], [], []), ([[B, UNIT, 0]], [], [])
T2 = [*UNFOUND, ([[A, SMALL, 0], [A, FAR, 1], [C, NEAR, 0]], [*FOUND, [C, WIDE, 0.9]], [])]
T7 = [*UNFOUND, ([[A, SMALL, 0], [A, FAR, 1]], FOUND, [])]  # the difficult elephant is left out


@pytest.mark.parametrize(
    ("images", "weight", "expected", "num_gt"),
    [
        (T1, 0.5, [1 / 7, 1 / 3, 1 / 3], [3.5, 1, 1.5]),
        (T2, 0, [1 / 6, 0, 0], [3, 1, 2]),
        (T7, 0, [1 / 6, 0, 0], [3, 1, 1]),
    ],
)
def test_evaluators_of_the_reference(images: list, weight: float, expected: list, num_gt: list):
    result = evaluate(*arrays(images), num_classes=3, group_of_weight=weight)
    np.testing.assert_allclose(result.average_precision, expected, rtol=1e-12)
    assert result.mean_average_precision == pytest.approx(np.mean(expected), abs=1e-12)
    assert result.num_gt.tolist() == num_gt
    assert result.dropped == {**dict.fromkeys(RULES, 0), "unverified_class": int(images is T1)}  # a dog in image 2


THREE = [0.6, UNIT], [0.8, [0, 0, 2, 2]], [0.5, [0, 0, 3, 3]]
INSIDE = [0.8, UNIT], [0.6, [0, 0, 2, 1]], [0.5, [0, 0, 3, 1]]
TRIPLE = UNIT, [0, 0, 5, 5], [10, 10, 20, 20]


@pytest.mark.parametrize(
    ("boxes", "group_of", "found", "weight", "iou", "expected"),
    [
        ([[100, 100, 105, 105]], [0], THREE, 1, 0.5, ([0.8, 0.6, 0.5], [0, 0, 0])),
        ([UNIT], [0], THREE, 1, 0.5, ([0.8, 0.6, 0.5], [0, 1, 0])),
        ([UNIT], [0], THREE, 1, 0.1, ([0.8, 0.6, 0.5], [1, 0, 0])),
        ([UNIT, [0, 0, 3.5, 3.5]], [0, 0], THREE, 1, 0.5, ([0.8, 0.6, 0.5], [0, 1, 1])),
        (TRIPLE, [0, 1, 1], INSIDE, 0, 0.5, ([0.8], [1])),
        (TRIPLE, [0, 1, 1], INSIDE, 0.5, 0.5, ([0.8, 0.6], [1, 0.5])),
        (TRIPLE, [1, 0, 1], INSIDE, 0, 0.5, ([0.5], [0])),
        (TRIPLE, [1, 0, 1], INSIDE, 0.5, 0.5, ([0.5, 0.8], [0, 0.5])),  # .6 covers the group-of box by exactly 0.5
    ],
)
def test_scored_lists_of_the_reference(boxes, group_of, found, weight, iou, expected):
    gt = [[A, box, flag] for box, flag in zip(boxes, group_of, strict=True)]
    detections = [[A, box, score] for score, box in found]
    assert scored_list([(gt, detections, [])], weight, iou) == expected


@pytest.mark.parametrize(
    ("weight", "precision", "recall"),
    [
        (1, [0, 1 / 2, 1 / 3, 2 / 4, 2 / 5, 3 / 6], [0, 0.1, 0.1, 0.2, 0.2, 0.3]),
        (0.5, [0, 0.5, 0.33333333, 0.5, 0.55555556, 0.63636364], [0, 0.1, 0.1, 0.2, 0.25, 0.35]),
    ],
)
def test_precision_and_recall(weight: float, precision: list, recall: list):
    """Labels 0 1 0 1 0 1 of ten boxes; with weight 1/2 two of these are group-of boxes, and the fifth label is 1/2."""
    gt = [[A, [0, 2 * k, 1, 2 * k + 1], 0] for k in range(10 if weight == 1 else 9)]
    gt += [[A, [5, 2 * k, 6, 2 * k + 1], 1] for k in range(0 if weight == 1 else 2)]
    miss = [9, 9, 10, 10]
    hits = [miss, gt[0][1], miss, gt[1][1], miss if weight == 1 else gt[-1][1], gt[2][1]]
    truth, detections = arrays([(gt, [[A, box, 0.9 - k / 10] for k, box in enumerate(hits)], [])])
    matcher = Matcher(truth, num_classes=1, group_of_weight=weight)
    matcher.add(detections)
    np.testing.assert_allclose(matcher.curve(A)[1:], [precision, recall], atol=1e-8)


def area_below(precision: np.ndarray, recall: np.ndarray) -> float:
    """The area below the envelope of precision over recall, as the reference computes it."""
    return float(np.sum(np.diff(recall, prepend=0.0) * np.maximum.accumulate(precision[::-1])[::-1]))


@settings(max_examples=20, deadline=None)
@given(scenes(), weights)
def test_the_curve_of_a_class_has_its_area(images: list, weight: float):
    truth, detections = arrays(images)
    matcher = Matcher(truth, num_classes=3, group_of_weight=weight)
    matcher.add(detections)
    for label in np.flatnonzero(matcher.num_gt):
        scores, precision, recall = matcher.curve(label)
        assert np.all(np.diff(scores) <= 0)
        expected = matcher.metrics().average_precision[label]
        assert area_below(precision, recall) == pytest.approx(expected, abs=1e-12)


# === Rules that the reference's tests leave out =======================================================================


def test_equal_scores_later_first():
    """As the reference's sorts do up to 16 elements, in the matching and in the list over all images."""
    ordinary = [[A, UNIT, 0]]
    twice = [[A, UNIT, 0.5], [A, [0, 0, 1, 0.9], 0.5]]
    assert scored_list([(ordinary, twice, [])], 1) == ([0.5, 0.5], [1, 0])  # the later row takes the box ...
    result = evaluate(*arrays([(ordinary, twice, [])]), num_classes=1)
    assert result.average_precision.tolist() == [0.5]  # ... and follows the other in the list of all images


def test_limit_per_image_and_class():
    spread = [[A, [0, 10, 1, 11], 1 - i * 1e-6] for i in range(MAX_DETECTIONS)]
    other_class = [[B, UNIT, 0.1]]
    images = [([[A, UNIT, 0], [B, UNIT, 0]], [*spread, [A, UNIT, 0.001], *other_class], [])]
    result = evaluate(*arrays(images), num_classes=2)
    assert result.average_precision.tolist() == [0, 1]
    assert result.dropped["beyond_limit"] == 1
    images[0][1].pop(0)
    assert evaluate(*arrays(images), num_classes=2).average_precision.tolist() == [1 / MAX_DETECTIONS, 1]


@pytest.mark.parametrize(("value", "kept"), [(-10, False), (np.nextafter(-10, 0), True), (np.nan, False)])
def test_scores_down_to_minus_ten(value: float, kept: bool):
    result = evaluate(*arrays([([[A, UNIT, 0]], [[A, UNIT, value]], [])]), num_classes=1)
    assert result.average_precision.tolist() == [float(kept)]
    assert result.dropped["low_score"] == int(not kept)


def test_each_dropped_detection_counts_for_one_rule():
    flat = [0, 0, 0, 1]
    images = [([[A, UNIT, 0]], [[B, flat, -11], [A, flat, -11], [A, UNIT, -11], [A, UNIT, 0.5]], [])]
    result = evaluate(*arrays(images), num_classes=2)
    assert result.dropped == {"unverified_class": 1, "degenerate_box": 1, "low_score": 1, "beyond_limit": 0}


def test_ground_truth_without_area_is_never_found_but_counts():
    images = [([[A, [0, 0, 0, 1], 0], [A, UNIT, 0]], [[A, UNIT, 0.5]], [])]
    result = evaluate(*arrays(images), num_classes=1)
    assert result.num_gt.tolist() == [2]
    assert result.average_precision.tolist() == [0.5]


def test_nothing_is_clipped():
    images = [([[A, [-1, 0, 1, 1], 0]], [[A, UNIT, 0.5]], [])]  # clipped to [0, 1] they would be equal
    assert evaluate(*arrays(images), num_classes=1, iou_threshold=0.51).average_precision.tolist() == [0]


def test_no_ground_truth_box_at_all():
    result = evaluate(*arrays([([], [[A, UNIT, 0.5]], [A])]), num_classes=2)
    assert np.isnan(result.mean_average_precision)
    assert np.isnan(result.average_precision).all()
    assert np.isnan(evaluate(*arrays([]), num_classes=1).mean_average_precision)


@pytest.mark.parametrize(
    "parameters",
    [
        {"num_classes": 0},
        {"num_classes": 1},  # class B is out of range
        {"num_classes": 2, "group_of_weight": -0.1},
        {"num_classes": 2, "group_of_weight": float("nan")},
        {"num_classes": 2, "iou_threshold": 0},
        {"num_classes": 2, "iou_threshold": 1.01},
    ],
)
def test_out_of_range_is_an_error(parameters: dict):
    truth, detections = arrays([([[B, UNIT, 0]], [[A, UNIT, 0.5]], [])])
    with pytest.raises(ValueError, match=r"class|group_of_weight|iou_threshold"):
        evaluate(truth, detections, **parameters)


# === A slow second implementation, and properties =====================================================================


def slow_average_precision(images: list, label: int, weight: float, threshold: float) -> float:
    """AP of one class, in plain Python from the protocol; scores must differ."""

    def area(box):
        return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])

    def intersection(a, b):
        return area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])

    entries, num_gt = [], 0.0
    for gt, detections, verified in images:
        ordinary = [box for own, box, group in gt if own == label and not group]
        groups = [box for own, box, group in gt if own == label and group]
        num_gt += len(ordinary) + weight * len(groups)
        if label not in verified and not ordinary and not groups:
            continue
        found = [(value, box) for own, box, value in detections if own == label]
        found = [(value, box) for value, box in found if box[0] < box[2] and box[1] < box[3] and value > -10]
        taken, hits = set(), {}
        for value, box in sorted(found, key=lambda pair: -pair[0])[:10_000]:
            overlaps = [intersection(box, own) / (area(box) + area(own) - intersection(box, own)) for own in ordinary]
            best = overlaps.index(max(overlaps)) if overlaps else None
            if best is not None and overlaps[best] >= threshold and best not in taken:
                taken.add(best)
                entries.append((value, 1.0))
                continue
            covered = [intersection(box, own) / area(box) for own in groups]
            group = covered.index(max(covered)) if covered else None
            if group is not None and covered[group] >= threshold:
                hits[group] = max(hits.get(group, 0.0), value)
            else:
                entries.append((value, 0.0))
        entries += [(value, weight) for value in hits.values() if value > 0 and weight > 0]
    if num_gt == 0:
        return float("nan")
    points, true_positives, false_positives = [], 0.0, 0
    for _, hit in sorted(entries, key=lambda entry: -entry[0]):
        true_positives, false_positives = true_positives + hit, false_positives + (hit <= 0)
        points.append((true_positives / num_gt, true_positives / (true_positives + false_positives)))
    result, recall = 0.0, 0.0
    for position, (reached, _) in enumerate(points):
        result += (reached - recall) * max(precision for _, precision in points[position:])
        recall = reached
    return result


@settings(max_examples=100, deadline=None)
@given(scenes(), weights, thresholds)
def test_equals_the_slow_implementation(images: list, weight: float, threshold: float):
    result = evaluate(*arrays(images), num_classes=3, group_of_weight=weight, iou_threshold=threshold)
    slow = [slow_average_precision(images, label, weight, threshold) for label in range(3)]
    np.testing.assert_allclose(result.average_precision, slow, rtol=0, atol=1e-12)
    if not np.isnan(slow).all():
        assert result.mean_average_precision == pytest.approx(np.nanmean(slow), abs=1e-12)
    else:
        assert np.isnan(result.mean_average_precision)


# === The reference's answers to two data sets =========================================================================


def measured(case: str, predictions: str, weight: float, without_group_of: bool = False):
    """The class list, and the metric of a prediction file."""
    folder = shared("metric_cases", case)
    names = ("gt_boxes.csv", "gt_labels.csv", "hierarchy.json", "classes.csv")
    truth, report, _ = GroundTruthFiles(*(folder / name for name in names)).read()
    if without_group_of:
        kept = ~truth.box_group_of
        boxes = (column[kept] for column in (truth.box_image, truth.box_class, truth.boxes, truth.box_group_of))
        truth = GroundTruth(truth.image_ids, *boxes, truth.label_image, truth.label_class)
    detections = Selection(truth, report.labels).take(
        read_predictions(folder / predictions, allow_swapped_corners=True)
    )
    return report.labels, evaluate(truth, detections, num_classes=len(report.labels), group_of_weight=weight)


@pytest.mark.parametrize("case", ["c1", "c3"])
@pytest.mark.parametrize(
    ("file", "name", "weight", "without_group_of"),
    [
        ("pred_noties.csv", "pred_noties_w1", 1, False),
        ("pred_noties.csv", "pred_noties_w0", 0, False),
        ("pred_noties.csv", "pred_noties_no_groupof", 1, True),
        ("pred.csv", "pred_w1_stable_last", 1, False),  # what the reference gives when its sorts put later ones first
    ],
)
def test_equals_the_reference_per_class(case: str, file: str, name: str, weight: int, without_group_of: bool):
    labels, result = measured(case, file, weight, without_group_of)
    expected = json.loads(shared("metric_cases", case, "expected.json").read_text(encoding="utf-8"))[name]
    wanted = [np.nan if expected["AP"][label] is None else expected["AP"][label] for label in labels]
    np.testing.assert_allclose(result.average_precision, wanted, rtol=0, atol=1e-9)
    assert result.num_gt.tolist() == [expected["num_gt"][label] for label in labels]
    assert result.mean_average_precision == pytest.approx(expected["mAP"], abs=1e-9)


# === Blocks of images =================================================================================================


@settings(max_examples=20, deadline=None)
@given(scenes(), st.integers(1, 3), st.randoms(use_true_random=False))
def test_blocks_of_images_and_their_order_do_not_matter(images: list, size: int, random):
    """Entries, what was dropped, AP."""
    truth, detections = arrays(images)
    matcher, order = Matcher(truth, num_classes=3), random.sample(range(len(images)), len(images))
    for begin in range(0, len(order), size):
        matcher.add(rows_of(detections, np.isin(detections.image, order[begin : begin + size])))
    whole = match(truth, detections, num_classes=3)
    order = np.argsort(matcher.entries().image, kind="stable")
    for column, expected in zip(matcher.entries(), whole.entries(), strict=True):
        np.testing.assert_array_equal(column[order], expected)
    assert matcher.dropped == whole.dropped
    result = evaluate(truth, detections, num_classes=3)
    np.testing.assert_array_equal(matcher.metrics().average_precision, result.average_precision)


def test_ties_over_blocks_are_broken_as_over_images():
    """The block that comes first is not the image that comes first."""
    hit, miss = ([[A, UNIT, 0]], [[A, UNIT, 0.5]], []), ([], [[A, UNIT, 0.5]], [A])
    for images, expected in (([hit, miss], 0.5), ([miss, hit], 1.0)):
        truth, detections = arrays(images)
        for order in ((0, 1), (1, 0)):
            matcher = Matcher(truth, num_classes=1)
            for image in order:
                matcher.add(rows_of(detections, detections.image == image))
            assert matcher.metrics().average_precision.tolist() == [expected]


def test_an_image_comes_in_one_block():
    truth, detections = arrays([([[A, UNIT, 0]], [[A, UNIT, 0.5]], [])])
    matcher = Matcher(truth, num_classes=1)
    matcher.add(detections)
    with pytest.raises(ValueError, match="one image came in two blocks"):
        matcher.add(detections)
