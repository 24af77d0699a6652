"""Proves the kinds of error: each by a case worked by hand, what it costs, group-of boxes and copies at ancestors; and
that a slow second implementation, written from the docstring, counts the same on random images."""

import numpy as np
import pytest
from hypothesis import given, settings

from oid.metric.challenge import Matcher, evaluate
from oid.metric.errors import KINDS, Confusion, ErrorKinds, ErrorReport
from tests.helpers.metric_cases import UNIT, A, B, C, arrays, rows_of, scenes

ALL = [A, B, C]


def report(images: list, weight: float = 1.0, iou: float = 0.5, classes: int = 3) -> ErrorReport:
    """Of images written as those of EDGE_CASES."""
    truth, detections = arrays(images)
    matcher = Matcher(truth, num_classes=classes, group_of_weight=weight, iou_threshold=iou)
    kinds = ErrorKinds(matcher)
    kinds.add(*matcher.add(detections))
    return kinds.report()


def only(**counts: int) -> dict[str, int]:
    return {kind: counts.get(kind, 0) for kind in KINDS}


# === By hand =========================================================================================================


FAR = [5, 5, 6, 6]
CASES = {  # ground truth, detections; counts, costs; what mAP gains without false positives, and without unfound boxes
    "perfect": ([[A, UNIT, 0]], [[A, UNIT, 0.9]], only(), only(), 0, 0),
    "localisation": ([[A, UNIT, 0]], [[A, [0, 0, 1, 0.3], 0.9]], only(localisation=1), only(localisation=1), 0, 0),
    "missed": ([[A, UNIT, 0], [A, FAR, 0]], [[A, UNIT, 0.9]], only(missed=1), only(missed=0.5), 0, 0.5),
    # fixed, A is found; without ground truth of its own B is not in the mean
    "classification": ([[A, UNIT, 0]], [[B, UNIT, 0.9]], only(classification=1), only(classification=1), 0, 1),
    # B has AP 1/2 and would have 1; A leaves the mean when its missed box does, because nothing was said of it
    "both": (
        [[A, UNIT, 0], [B, FAR, 0]],
        [[B, [0, 0, 1, 0.3], 0.9], [B, FAR, 0.8]],
        only(both=1, missed=1),
        only(both=0.25, missed=0.25),
        0.25,
        0.25,
    ),
    # between the two is a box that is found, so that the duplicate costs something
    "duplicate": (
        [[A, UNIT, 0], [A, FAR, 0]],
        [[A, UNIT, 0.9], [A, UNIT, 0.8], [A, FAR, 0.7]],
        only(duplicate=1),
        only(duplicate=1 / 6),
        1 / 6,
        0,
    ),
}


@pytest.mark.parametrize(
    ("gt", "detections", "counts", "costs", "without_wrong", "without_unfound"), CASES.values(), ids=CASES
)
def test_each_kind_of_error(gt, detections, counts, costs, without_wrong, without_unfound):
    found = report([(gt, detections, ALL)])
    assert found.counts == counts
    assert found.costs == pytest.approx(costs)
    assert (found.false_positives, found.false_negatives) == pytest.approx((without_wrong, without_unfound))
    assert found.confusions == [Confusion(B, A, 1, 0.9)] * counts["classification"]


def test_background():
    """Overlap below 0.1 with whatever box; at exactly 0.1 it is another kind."""
    gt = [[A, UNIT, 0], [B, [5, 5, 6, 6], 0]]
    assert report([(gt, [[A, [0, 0, 1, 0.09], 0.9]], ALL)]).counts == only(background=1, missed=2)
    assert report([(gt, [[A, [0, 0, 1, 0.1], 0.9]], ALL)]).counts == only(localisation=1, missed=1)
    assert report([([], [[A, UNIT, 0.9]], ALL)]).counts == only(background=1)


def test_a_class_with_nothing_left_to_find():
    """It leaves the mean where nothing was said of it either; with a false positive it stays, with AP 0."""
    gt = [[A, UNIT, 0], [B, UNIT, 0]]
    found = [[A, UNIT, 0.9]]
    assert report([(gt, found, ALL)]).costs["missed"] == 0.5
    assert report([(gt, [*found, [B, [5, 5, 6, 6], 0.8]], ALL)]).costs["missed"] == 0


def test_of_two_that_aim_at_one_box_the_better_is_fixed():
    """Both localise badly; the second goes. A box that was found has nothing to be fixed, so the third goes, too."""
    images = [
        (
            [[A, UNIT, 0], [A, [5, 5, 6, 6], 0]],
            [[A, [0, 0, 1, 0.4], 0.7], [A, [0, 0, 0.4, 1], 0.8], [A, [5, 5, 6, 6], 0.9], [A, [5, 5, 6, 5.4], 0.95]],
            ALL,
        )
    ]
    found = report(images)
    assert found.counts == only(localisation=3)
    assert found.costs["localisation"] == pytest.approx(1 - 1 / 2 * 1 / 2)


def test_a_detection_that_aims_well_is_not_confused():
    """Own class first when the overlap is poor, another class before duplicate: the order of the authors' program."""
    gt = [[A, UNIT, 0], [B, [0, 0, 1, 0.9], 0]]
    poor = [[A, [0, 0, 1, 0.4], 0.9]]
    assert report([(gt, poor, ALL)]).counts == only(localisation=1, missed=1)
    twice = [[A, UNIT, 0.9], [A, [0, 0, 1, 0.95], 0.8]]
    assert report([(gt, twice, ALL)]).counts == only(classification=1)


# === Under the challenge's rules =====================================================================================


def test_a_copy_at_an_ancestor_is_no_other_class():
    """B is an ancestor of A: its copies make no duplicate a confusion, and C is confused with the class of the row."""
    gt = [[B, UNIT, 0], [A, UNIT, 0]]
    twice = [[label, UNIT, score] for label in (A, B) for score in (0.9, 0.8)]
    assert report([(gt, twice, ALL)]).counts == only(duplicate=2)
    for annotated, copy in ((A, B), (B, A)):
        found = report([([[annotated, UNIT, 0], [copy, UNIT, 0]], [[C, UNIT, 0.9]], ALL)])
        assert found.confusions == [Confusion(C, annotated, 1, 0.9)]


def test_what_the_rules_drop_is_no_error():
    """Not verified, without area, inside a group-of box."""
    gt = [[A, UNIT, 0], [A, [5, 5, 9, 9], 1]]
    dropped = [[B, UNIT, 0.9], [A, [3, 3, 3, 4], 0.9], [A, [6, 6, 7, 7], 0.5], [A, [7, 7, 8, 8], 0.4]]
    assert report([(gt, [*dropped, [A, UNIT, 0.3]], [A])]).counts == only()


def test_group_of_boxes():
    """Overlap with one is intersection / area of the detection; a missed one counts its weight."""
    gt = [[A, [5, 5, 9, 9], 1]]
    inside_as_b = report([(gt, [[B, [6, 6, 7, 7], 0.9], [B, [7, 7, 8, 8], 0.8]], ALL)])
    assert inside_as_b.counts == only(classification=2)
    assert inside_as_b.costs == only(classification=1)  # one entry, of the best that aims at it
    half_out = report([(gt, [[A, [6, 3, 7, 5.8], 0.9]], ALL)])
    assert half_out.counts == only(localisation=1)
    missed = [(gt, [], ALL)]
    assert report(missed).counts == only(missed=1)
    assert report(missed, weight=0.0).counts == only()
    without_weight = report([(gt, [[B, [6, 6, 7, 7], 0.9]], ALL), ([[A, UNIT, 0]], [], [])], weight=0.0)
    assert without_weight.costs == only(missed=1)  # a fixed detection finds nothing that counts


def test_without_ground_truth_there_is_no_cost():
    found = report([([], [[A, UNIT, 0.9]], ALL)])
    assert np.isnan([*found.costs.values()]).all()
    assert set(found.shares.values()) == {0.0}


def test_blocks_do_not_matter_and_confusions_are_sorted():
    """The sum of scores decides: one confident confusion before two weak ones."""
    images = [
        ([[A, UNIT, 0]], [[B, UNIT, 0.2], [B, [0, 0, 1, 0.9], 0.1]], ALL),
        ([[C, UNIT, 0], [A, [5, 5, 6, 6], 0]], [[B, UNIT, 0.9], [C, [7, 7, 8, 8], 0.5], [A, [5, 5, 6, 6], 0.5]], ALL),
    ]
    truth, detections = arrays(images)
    matcher = Matcher(truth, num_classes=3)
    kinds = ErrorKinds(matcher)
    for image in (1, 0):
        kinds.add(*matcher.add(rows_of(detections, detections.image == image)))
    assert kinds.report() == report(images)
    assert [(c.predicted, c.actual, c.count) for c in kinds.report().confusions] == [(B, C, 1), (B, A, 2)]


# === A slow second implementation ====================================================================================


def slow_counts(images: list, threshold: float) -> dict[str, int]:
    """The counts, from the docstring; only ordinary boxes, scores differ."""

    def iou(a, b):
        height, width = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
        area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
        return height * width / (area - height * width)

    counts = dict.fromkeys(KINDS, 0)
    for gt, detections, verified in images:
        counted = set(verified) | {label for label, _, _ in gt}
        wrong, taken, aimed = [], set(), set()
        for label, box, _ in sorted(detections, key=lambda row: -row[2]):
            if label not in counted or not (box[0] < box[2] and box[1] < box[3]):
                continue
            own = [(iou(box, other), -k) for k, (name, other, _) in enumerate(gt) if name == label]
            if own and max(own)[0] >= threshold and -max(own)[1] not in taken:
                taken.add(-max(own)[1])
            else:
                wrong.append((label, box))
        for label, box in wrong:
            mine = [other for name, other, _ in gt if name == label]
            own = max([(iou(box, g[1]), -k) for k, g in enumerate(gt) if g[0] == label], default=(0, 0))
            other = [(iou(box, g[1]), -k) for k, g in enumerate(gt) if g[0] != label and g[1] not in mine]
            if 0.1 <= own[0] < threshold:
                kind = "localisation"
                aimed.add(-own[1])
            elif max(other, default=(0, 0))[0] >= threshold:
                kind = "classification"
                aimed.add(-max(other)[1])
            elif own[0] >= threshold:
                kind = "duplicate"
            else:
                kind = "both" if max((iou(box, g[1]) for g in gt), default=0) >= 0.1 else "background"
            counts[kind] += 1
        counts["missed"] += len(set(range(len(gt))) - taken - aimed)
    return counts


def ordinary(images: list) -> list:
    return [([(label, box, False) for label, box, _ in gt], found, verified) for gt, found, verified in images]


@settings(max_examples=50, deadline=None)
@given(scenes())
def test_equals_the_slow_implementation(images: list):
    assert report(ordinary(images)).counts == slow_counts(ordinary(images), 0.5)


@settings(max_examples=20, deadline=None)
@given(scenes())
def test_costs_are_gains_and_counts_are_complete(images: list):
    """No fix lowers mAP, no kind gains more than 1 - mAP; every false positive has one kind."""
    truth, detections = arrays(images)
    found, result = report(images), evaluate(truth, detections, num_classes=3)
    if np.isnan(result.mean_average_precision):
        return
    for cost in (*found.costs.values(), found.false_positives, found.false_negatives):
        assert -1e-12 <= cost <= 1 - result.mean_average_precision + 1e-12
    matcher = Matcher(truth, num_classes=3)
    matcher.add(detections)
    wrong = np.count_nonzero(matcher.entries().labels == 0)
    assert sum(found.counts.values()) - found.counts["missed"] == wrong
    assert sum(confusion.count for confusion in found.confusions) == found.counts["classification"]
