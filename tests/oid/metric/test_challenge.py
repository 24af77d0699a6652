"""Proves the challenge metric: the reference's own numbers, its answers to 15 micro cases and two data sets, a slow
second implementation written from the protocol, and properties that hold for any input."""

import csv
import json
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oid.annotations import read_class_descriptions
from oid.hierarchy import read_hierarchy
from oid.metric.challenge import (
    Detections,
    GroundTruth,
    area_below,
    average_precisions,
    evaluate,
    precision_recall,
    score,
)
from oid.metric.ground_truth import read_ground_truth
from oid.metric.matching import MAX_DETECTIONS
from oid.predictions.files import read_predictions
from tests.helpers.project import shared

A, B, C = range(3)  # class indices
UNIT = [0, 0, 1, 1]

# Boxes are [ymin, xmin, ymax, xmax], as in the reference's tests: one (gt, detections, verified classes) per image,
# with gt [class, box, is group-of] and detections [class, box, score]. Then for group-of weight 1 and 0 of class A:
# AP, number of ground truth, scores and labels of the scored list.
EDGE_CASES = {
    "iou exactly 0.5 is a match": (
        [([[A, UNIT, 0]], [[A, [0, 0, 1, 0.5], 0.9]], [])],
        (1, 1, [0.9], [1]),
        (1, 1, [0.9], [1]),
    ),
    "second detection of a taken box is a false positive": (
        [([[A, UNIT, 0]], [[A, UNIT, 0.9], [A, UNIT, 0.8]], [])],
        (1, 1, [0.9, 0.8], [1, 0]),
        (1, 1, [0.9, 0.8], [1, 0]),
    ),
    "no second choice: best box taken, another box also has IoU>=0.5": (
        [([[A, UNIT, 0], [A, [0, 0, 1, 0.8], 0]], [[A, UNIT, 0.9], [A, [0, 0, 1, 0.95], 0.8]], [])],
        (0.5, 2, [0.9, 0.8], [1, 0]),
        (0.5, 2, [0.9, 0.8], [1, 0]),
    ),
    "two detections inside one group-of box": (
        [([[A, [0, 0, 4, 4], 1]], [[A, [1, 1, 2, 2], 0.6], [A, [2, 2, 3, 3], 0.9], [A, [5, 5, 6, 6], 0.95]], [])],
        (0.5, 1, [0.95, 0.9], [0, 1]),
        (None, 0, [0.95], [0]),
    ),
    "duplicate of a taken box, inside a group-of box": (
        [([[A, UNIT, 0], [A, [0, 0, 4, 4], 1]], [[A, UNIT, 0.9], [A, UNIT, 0.8]], [])],
        (1, 2, [0.9, 0.8], [1, 1]),
        (1, 1, [0.9], [1]),
    ),
    "detection equal to the group-of box": (
        [([[A, [0, 0, 4, 4], 1]], [[A, [0, 0, 4, 4], 0.7]], [])],
        (1, 1, [0.7], [1]),
        (None, 0, [], []),
    ),
    "big detection around a small group-of box (IoA 0.25)": (
        [([[A, [0, 0, 2, 2], 1]], [[A, [0, 0, 4, 4], 0.7]], [])],
        (0, 1, [0.7], [0]),
        (None, 0, [0.7], [0]),
    ),
    "IoA exactly 0.5": (
        [([[A, [0, 0, 2, 1], 1]], [[A, [0, 0, 2, 2], 0.7]], [])],
        (1, 1, [0.7], [1]),
        (None, 0, [], []),
    ),
    "group-of hit with score 0": (
        [([[A, [0, 0, 4, 4], 1]], [[A, [1, 1, 2, 2], 0.0]], [])],
        (0, 1, [], []),
        (None, 0, [], []),
    ),
    "group-of box missed": (
        [([[A, [0, 0, 4, 4], 1], [A, [5, 5, 6, 6], 0]], [[A, [5, 5, 6, 6], 0.7]], [])],
        (0.5, 2, [0.7], [1]),
        (1, 1, [0.7], [1]),
    ),
    "zero-area and inverted detections vanish": (
        [([[A, UNIT, 0]], [[A, [0, 0, 0, 1], 0.99], [A, [1, 1, 0, 0], 0.98], [A, UNIT, 0.5]], [])],
        (1, 1, [0.5], [1]),
        (1, 1, [0.5], [1]),
    ),
    "unverified class is ignored, negative class is a false positive": (
        [([[A, UNIT, 0]], [[A, UNIT, 0.5]], []), ([], [[A, UNIT, 0.9]], []), ([], [[A, UNIT, 0.8]], [A])],
        (0.5, 1, [0.5, 0.8], [1, 0]),
        (0.5, 1, [0.5, 0.8], [1, 0]),
    ),
    "class with boxes but no image label is evaluated": (
        [([[A, UNIT, 0]], [[A, [5, 5, 6, 6], 0.9], [A, UNIT, 0.5]], [B])],
        (0.5, 1, [0.9, 0.5], [0, 1]),
        (0.5, 1, [0.9, 0.5], [0, 1]),
    ),
    "ground truth without detections": (
        [([[A, UNIT, 0]], [], [])],
        (0, 1, [], []),
        (0, 1, [], []),
    ),
    "two identical ground-truth rows, one detection each": (
        [([[A, UNIT, 0], [A, UNIT, 0]], [[A, UNIT, 0.9], [A, UNIT, 0.8]], [])],
        (0.5, 2, [0.9, 0.8], [1, 0]),
        (0.5, 2, [0.9, 0.8], [1, 0]),
    ),
}


def arrays(images: list[tuple[list, list, list]]) -> tuple[GroundTruth, Detections]:
    """The arrays of images written as in EDGE_CASES."""

    def column(values, dtype):
        return np.array(list(values), dtype=dtype)

    def xyxy(rows):
        return column(([box[1], box[0], box[3], box[2]] for _, (_, box, _) in rows), np.float64).reshape(-1, 4)

    gt = [(image, row) for image, (rows, _, _) in enumerate(images) for row in rows]
    det = [(image, row) for image, (_, rows, _) in enumerate(images) for row in rows]
    labels = [(image, label) for image, (_, _, verified) in enumerate(images) for label in verified]
    truth = GroundTruth(
        image_ids=tuple(f"{image:03}" for image in range(len(images))),
        box_image=column((image for image, _ in gt), np.int64),
        box_class=column((row[0] for _, row in gt), np.int64),
        boxes=xyxy(gt),
        box_group_of=column((row[2] for _, row in gt), bool),
        label_image=column((image for image, _ in labels), np.int64),
        label_class=column((label for _, label in labels), np.int64),
    )
    detections = Detections(
        image=column((image for image, _ in det), np.int64),
        class_index=column((row[0] for _, row in det), np.int64),
        scores=column((row[2] for _, row in det), np.float64),
        boxes=xyxy(det),
    )
    return truth, detections


def scored_list(images: list, weight: float, iou: float = 0.5) -> tuple[list, list]:
    """Scores and labels of class A."""
    entries, _ = score(*arrays(images), num_classes=3, group_of_weight=weight, iou_threshold=iou)
    own = entries.class_index == A
    return entries.scores[own].tolist(), entries.labels[own].tolist()


# === The reference's micro cases and its own tests ====================================================================


@pytest.mark.parametrize("weight", [1, 0])
@pytest.mark.parametrize("name", EDGE_CASES)
def test_edge_case(name: str, weight: int):
    images, *expected = EDGE_CASES[name]
    average_precision, num_gt, scores, labels = expected[1 - weight]
    result = evaluate(*arrays(images), num_classes=2, group_of_weight=weight)
    wanted = np.nan if average_precision is None else average_precision
    np.testing.assert_array_equal(result.average_precision, [wanted, np.nan])
    assert result.num_gt.tolist() == [num_gt, 0]
    assert scored_list(images, weight) == (scores, labels)


def test_edge_cases_of_the_shared_file():
    cases = json.loads(shared("metric_cases", "edge_cases.json").read_text(encoding="utf-8"))
    assert set(cases) == set(EDGE_CASES)
    for case in cases.values():
        images = [
            (
                [[label - 1, *rest] for label, *rest in image.get("gt", [])],
                [[label - 1, *rest] for label, *rest in image.get("det", [])],
                [label - 1 for label in image.get("verified", [])],
            )
            for image in case["images"]
        ]
        for weight in (1, 0):
            expected = case[f"weight_{weight}"]
            result = evaluate(*arrays(images), num_classes=2, group_of_weight=weight)
            wanted = [np.nan if ap is None else ap for ap in (expected["AP_A"], expected["AP_B"])]
            np.testing.assert_allclose(result.average_precision, wanted, rtol=0, atol=1e-12)
            assert result.num_gt.tolist() == expected["num_gt"]
            assert scored_list(images, weight) == (expected["scores_A"], expected["labels_A"])


def test_challenge_evaluator():
    cat, dog, elephant = range(3)
    image_1 = (
        [[cat, UNIT, 0], [elephant, [0, 0, 2, 2], 0], [cat, [0, 0, 3, 3], 1]],
        [[dog, [10, 10, 11, 11], 0.7], [dog, [100, 100, 120, 120], 0.8]],
        [cat, dog, elephant],
    )
    image_2 = (
        [[cat, [10, 10, 11, 11], 0], [cat, [500, 500, 510, 510], 0], [elephant, [10, 10, 12, 12], 1]],
        [
            [cat, [10, 10, 11, 11], 0.7],
            [cat, [100, 100, 120, 120], 0.8],
            [dog, [100, 100, 220, 220], 0.5],
            [elephant, [10, 10, 11, 11], 0.9],
        ],
        [],
    )
    image_3 = ([[dog, UNIT, 0]], [[dog, UNIT, 0.5]], [])
    result = evaluate(*arrays([image_1, image_2, image_3]), num_classes=3, group_of_weight=0.5)
    np.testing.assert_allclose(result.average_precision, [1 / 7, 1 / 3, 1 / 3], rtol=1e-12)
    assert result.mean_average_precision == pytest.approx(0.269841269, abs=1e-9)
    assert result.dropped == {"unverified_class": 1, "degenerate_box": 0, "low_score": 0, "beyond_limit": 0}


def test_v2_evaluator():
    cat, dog, elephant = range(3)
    image_1 = ([[cat, UNIT, 0], [elephant, [0, 0, 2, 2], 0], [cat, [0, 0, 3, 3], 0]], [], [])
    image_2 = (
        [[cat, [10, 10, 11, 11], 0], [cat, [500, 500, 510, 510], 1], [elephant, [10, 10, 12, 12], 0]],
        [
            [cat, [10, 10, 11, 11], 0.7],
            [cat, [100, 100, 120, 120], 0.8],
            [elephant, [100, 100, 220, 220], 0.9],
        ],
        [],
    )
    image_3 = ([[dog, UNIT, 0]], [], [])
    result = evaluate(*arrays([image_1, image_2, image_3]), num_classes=3, group_of_weight=0)
    np.testing.assert_allclose(result.average_precision, [1 / 6, 0, 0], rtol=1e-12)
    assert result.mean_average_precision == pytest.approx(1 / 18, abs=1e-12)


@pytest.mark.parametrize(
    ("group_of", "weight", "expected"),
    [
        ((0, 1, 1), 0, ([0.8], [1])),
        ((0, 1, 1), 0.5, ([0.8, 0.6], [1, 0.5])),
        ((1, 0, 1), 0, ([0.5], [0])),
        ((1, 0, 1), 0.5, ([0.5, 0.8], [0, 0.5])),  # .6 covers the group-of box by exactly 0.5: absorbed
    ],
)
def test_group_of_list(group_of: tuple, weight: float, expected: tuple):
    gt = [[A, box, flag] for box, flag in zip((UNIT, [0, 0, 5, 5], [10, 10, 20, 20]), group_of, strict=True)]
    detections = [[A, UNIT, 0.8], [A, [0, 0, 2, 1], 0.6], [A, [0, 0, 3, 1], 0.5]]
    assert scored_list([(gt, detections, [])], weight) == expected


@pytest.mark.parametrize(
    ("gt_boxes", "iou", "labels"),
    [
        ([[100, 100, 105, 105]], 0.5, [0, 0, 0]),
        ([UNIT], 0.5, [0, 1, 0]),
        ([UNIT], 0.1, [1, 0, 0]),
        ([UNIT, [0, 0, 3.5, 3.5]], 0.5, [0, 1, 1]),
    ],
)
def test_true_and_false_positives(gt_boxes: list, iou: float, labels: list):
    detections = [[A, UNIT, 0.6], [A, [0, 0, 2, 2], 0.8], [A, [0, 0, 3, 3], 0.5]]
    images = [([[A, box, 0] for box in gt_boxes], detections, [])]
    assert scored_list(images, 1, iou) == ([0.8, 0.6, 0.5], labels)


@pytest.mark.parametrize(
    ("labels", "precision", "recall"),
    [
        ([0, 1, 1, 0, 0, 1], [0, 1 / 2, 1 / 3, 2 / 4, 2 / 5, 3 / 6], [0, 0.1, 0.1, 0.2, 0.2, 0.3]),
        ([0, 1, 1, 0.5, 0, 1], [0, 0.5, 0.33333333, 0.5, 0.55555556, 0.63636364], [0, 0.1, 0.1, 0.2, 0.25, 0.35]),
    ],
)
def test_precision_and_recall(labels: list, precision: list, recall: list):
    order = np.argsort([-0.4, -0.3, -0.6, -0.2, -0.7, -0.1])
    found = precision_recall(np.array(labels)[order], 10)
    np.testing.assert_allclose(found, [precision, recall], atol=1e-8)


def test_area_below_the_envelope():
    precision = [0.8, 0.76, 0.9, 0.65, 0.7, 0.5, 0.55, 0]
    recall = [0.3, 0.3, 0.4, 0.4, 0.45, 0.45, 0.5, 0.5]
    assert area_below(precision, recall) == pytest.approx(0.4225, abs=1e-12)
    assert area_below([], []) == 0
    assert np.isnan(average_precisions(np.zeros(3, int), np.zeros(3), np.zeros(1)))


def test_base_evaluator():
    """3, 1 and 1 ordinary boxes, a group-of box of weight 0, and two detections of class 0."""
    far = [100, 100, 120, 120]
    images = [
        ([[A, UNIT, 0], [B, UNIT, 0]], [], []),
        (
            [[A, [10, 10, 11, 11], 0], [A, [50, 50, 60, 60], 0], [A, [500, 500, 510, 510], 1]],
            [[A, [10, 10, 11, 11], 0.7], [A, far, 0.8]],
            [],
        ),
        ([[C, UNIT, 0]], [], []),
    ]
    result = evaluate(*arrays(images), num_classes=3, group_of_weight=0)
    assert result.num_gt.tolist() == [3, 1, 1]
    np.testing.assert_allclose(result.average_precision, [1 / 6, 0, 0], rtol=1e-12)
    assert result.mean_average_precision == pytest.approx(1 / 18, abs=1e-12)


# === Rules that the reference's tests leave out =======================================================================


def test_equal_scores_later_first():
    """As the reference's sorts do up to 16 elements, in the matching and in the list over all images."""
    ordinary = [[A, UNIT, 0]]
    twice = [[A, UNIT, 0.5], [A, [0, 0, 1, 0.9], 0.5]]
    assert scored_list([(ordinary, twice, [])], 1) == ([0.5, 0.5], [1, 0])  # the later row takes the box ...
    result = evaluate(*arrays([(ordinary, twice, [])]), num_classes=1)
    assert result.average_precision.tolist() == [0.5]  # ... and follows the other in the list of all images
    hit, miss = (ordinary, [[A, UNIT, 0.5]], []), ([], [[A, UNIT, 0.5]], [A])
    assert evaluate(*arrays([hit, miss]), num_classes=1).average_precision.tolist() == [0.5]
    assert evaluate(*arrays([miss, hit]), num_classes=1).average_precision.tolist() == [1.0]


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


@st.composite
def scenes(draw, *, inverted: bool = True) -> list:
    """One to three images as in EDGE_CASES, on a grid so coarse that exact overlaps are frequent; all scores differ."""
    place, classes = st.integers(0, 5), st.integers(A, C)
    upright = st.tuples(place, place, st.integers(1, 4), st.integers(1, 4)).map(
        lambda t: [t[0], t[1], t[0] + t[2], t[1] + t[3]]
    )
    any_box = st.one_of(upright, st.lists(place, min_size=4, max_size=4)) if inverted else upright
    numbers = count(1)
    images = []
    for _ in range(draw(st.integers(1, 3))):
        gt = draw(st.lists(st.tuples(classes, upright, st.booleans()), max_size=5))
        found = draw(st.lists(st.tuples(classes, any_box), max_size=8))
        verified = draw(st.lists(classes, max_size=2))
        images.append((gt, [(label, box, next(numbers)) for label, box in found], verified))
    total = next(numbers)
    scores = draw(st.permutations([(i - 2) / total for i in range(total)]))  # one is negative, one is 0
    return [
        (gt, [(label, box, scores[number]) for label, box, number in found], verified) for gt, found, verified in images
    ]


weights, thresholds = st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.1, 0.5, 0.75])


@settings(max_examples=300, deadline=None)
@given(scenes(), weights, thresholds)
def test_equals_the_slow_implementation(images: list, weight: float, threshold: float):
    result = evaluate(*arrays(images), num_classes=3, group_of_weight=weight, iou_threshold=threshold)
    slow = [slow_average_precision(images, label, weight, threshold) for label in range(3)]
    np.testing.assert_allclose(result.average_precision, slow, rtol=0, atol=1e-12)
    if not np.isnan(slow).all():
        assert result.mean_average_precision == pytest.approx(np.nanmean(slow), abs=1e-12)
    else:
        assert np.isnan(result.mean_average_precision)


@settings(max_examples=60, deadline=None)
@given(scenes(), st.randoms(use_true_random=False))
def test_order_of_images_and_rows_does_not_matter(images: list, random):
    shuffled = random.sample(images, len(images))
    shuffled = [(gt, random.sample(found, len(found)), verified) for gt, found, verified in shuffled]
    before, after = (evaluate(*arrays(case), num_classes=3) for case in (images, shuffled))
    np.testing.assert_array_equal(before.average_precision, after.average_precision)


@settings(max_examples=60, deadline=None)
@given(scenes(), st.floats(-5, 5, allow_nan=False))
def test_unverified_classes_do_not_matter(images: list, value: float):
    more = []
    for gt, found, verified in images:
        unverified = {A, B, C} - set(verified) - {label for label, _, _ in gt}
        more.append((gt, [*found, *((label, [0, 0, 2, 2], value) for label in unverified)], verified))
    before, after = (evaluate(*arrays(case), num_classes=3) for case in (images, more))
    np.testing.assert_array_equal(before.average_precision, after.average_precision)


@settings(max_examples=60, deadline=None)
@given(scenes(), weights)
def test_a_last_false_positive_never_helps(images: list, weight: float):
    far = [50, 50, 51, 51]
    more = [(gt, [*found, *((label, far, -5.0) for label in range(3))], verified) for gt, found, verified in images]
    before, after = (
        evaluate(*arrays(case), num_classes=3, group_of_weight=weight).average_precision for case in (images, more)
    )
    np.testing.assert_array_equal(np.isnan(before), np.isnan(after))
    assert np.all(np.nan_to_num(after) <= np.nan_to_num(before))


@settings(max_examples=60, deadline=None)
@given(scenes(), weights)
def test_perfect_predictions_give_one(images: list, weight: float):
    """Each box is predicted as it is, and boxes of a class do not touch."""
    numbers = count(1)
    apart = [
        ([(label, [20 * i, 0, 20 * i + box[2], box[3]], flag) for i, (label, box, flag) in enumerate(gt)], verified)
        for gt, _, verified in images
    ]
    perfect = [(gt, [(label, box, 1 / next(numbers)) for label, box, _ in gt], verified) for gt, verified in apart]
    result = evaluate(*arrays(perfect), num_classes=3, group_of_weight=weight)
    defined = result.average_precision[result.num_gt > 0]
    np.testing.assert_allclose(defined, 1.0, rtol=1e-12)


# === The reference's answers to two data sets =========================================================================


def expected_of(case: str, name: str) -> dict:
    return json.loads(shared("metric_cases", case, "expected.json").read_text(encoding="utf-8"))[name]


def measured(case: str, predictions: str, weight: float, without_group_of: bool = False):
    folder = shared("metric_cases", case)
    labels = list(read_class_descriptions(folder / "classes.csv"))
    hierarchy = read_hierarchy(folder / "hierarchy.json")
    truth, _ = read_ground_truth(folder / "gt_boxes.csv", folder / "gt_labels.csv", hierarchy, labels)
    if without_group_of:
        kept = ~truth.box_group_of
        boxes = {name: getattr(truth, name)[kept] for name in ("box_image", "box_class", "boxes", "box_group_of")}
        truth = GroundTruth(truth.image_ids, **boxes, label_image=truth.label_image, label_class=truth.label_class)
    found = read_predictions(folder / predictions, allow_swapped_corners=True)
    images = {image_id: index for index, image_id in enumerate(truth.image_ids)}
    image = np.array([images.get(image_id, -1) for image_id in found.image_ids])[found.image_index]
    class_index = np.array([labels.index(label) for label in found.labels])[found.label_index]
    kept = image >= 0
    detections = Detections(image[kept], class_index[kept], found.scores[kept], found.boxes[kept])
    return labels, evaluate(truth, detections, num_classes=len(labels), group_of_weight=weight)


def assert_equals_reference(labels: list[str], result, expected: dict, tolerance: float):
    wanted = [np.nan if expected["AP"][label] is None else expected["AP"][label] for label in labels]
    np.testing.assert_allclose(result.average_precision, wanted, rtol=0, atol=tolerance)
    assert result.num_gt.tolist() == [expected["num_gt"][label] for label in labels]
    assert result.mean_average_precision == pytest.approx(expected["mAP"], abs=tolerance)


@pytest.mark.parametrize("case", ["c1", "c3"])
@pytest.mark.parametrize(
    ("name", "weight", "without_group_of"),
    [("pred_noties_w1", 1, False), ("pred_noties_w0", 0, False), ("pred_noties_no_groupof", 1, True)],
)
def test_equals_the_reference_per_class(case: str, name: str, weight: int, without_group_of: bool):
    labels, result = measured(case, "pred_noties.csv", weight, without_group_of)
    assert_equals_reference(labels, result, expected_of(case, name), 1e-9)


@pytest.mark.parametrize("case", ["c1", "c3"])
@pytest.mark.parametrize(
    ("file", "name", "weight"),
    [
        ("pred.csv", "pred_w1", 1),
        ("pred.csv", "pred_w0", 0),
        ("pred_kaggle.csv", "pred_w1", 1),
        ("pred_unexpanded.csv", "pred_unexpanded_w1", 1),
    ],
)
def test_equals_the_reference_but_for_ties(case: str, file: str, name: str, weight: int):
    expected = expected_of(case, name)
    labels, result = measured(case, file, weight)
    assert result.mean_average_precision == pytest.approx(expected["mAP"], abs=2e-3)
    assert result.num_gt.tolist() == [expected["num_gt"][label] for label in labels]


@pytest.mark.parametrize("case", ["c1", "c3"])
def test_order_of_ties(case: str):
    """`stable_last` is what the reference gives when both of its sorts put later ones first."""
    labels, result = measured(case, "pred.csv", 1)
    assert_equals_reference(labels, result, expected_of(case, "pred_w1_stable_last"), 1e-9)


def test_the_shared_cases_have_ties_and_distinct_scores():
    """The two tolerances above make sense only if `pred` has ties and `pred_noties` has none in a class."""
    for name, has_ties in (("pred.csv", True), ("pred_noties.csv", False)):
        with open(shared("metric_cases", "c3", name), encoding="utf-8", newline="") as file:
            rows = [(row["LabelName"], row["Score"]) for row in csv.DictReader(file)]
        assert (len(set(rows)) < len(rows)) == has_ties
