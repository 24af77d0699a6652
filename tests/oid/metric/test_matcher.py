"""Proves the metric in blocks of images: the same numbers in any order of the blocks, and the curve of a class."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oid.metric.challenge import Detections, Matcher, area_below, evaluate, score
from tests.oid.metric.test_challenge import UNIT, A, arrays, scenes, weights


@settings(max_examples=100, deadline=None)
@given(scenes(), st.integers(1, 3), st.randoms(use_true_random=False))
def test_blocks_of_images_do_not_matter(images: list, size: int, random):
    """In any order of the blocks: entries, what was dropped, AP."""
    truth, detections = arrays(images)
    matcher, order = Matcher(truth, num_classes=3), random.sample(range(len(images)), len(images))
    for begin in range(0, len(order), size):
        own = np.isin(detections.image, order[begin : begin + size])
        matcher.add(Detections(*(column[own] for column in vars(detections).values())))
    entries, dropped = score(truth, detections, num_classes=3)
    for name, column in vars(entries).items():
        np.testing.assert_array_equal(getattr(matcher.entries(), name), column)
    assert matcher.dropped == dropped
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
                own = detections.image == image
                matcher.add(Detections(*(column[own] for column in vars(detections).values())))
            assert matcher.metrics().average_precision.tolist() == [expected]


def test_an_image_comes_in_one_block():
    truth, detections = arrays([([[A, UNIT, 0]], [[A, UNIT, 0.5]], [])])
    matcher = Matcher(truth, num_classes=1)
    matcher.add(detections)
    with pytest.raises(ValueError, match="one image came in two blocks"):
        matcher.add(detections)


@settings(max_examples=60, deadline=None)
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
