"""mAP from a single matching equals the metric of only the chosen images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oid.fusion.resampling import Curves, bootstrap, interval_95, mean_of_folds
from oid.metric.challenge import Detections, GroundTruth, evaluate, match

CLASSES = 3


def case(rng: np.random.Generator, images: int = 12) -> tuple[GroundTruth, Detections]:
    """Boxes on a coarse grid, so that many overlap; scores on a coarse scale, so that many are equal."""

    def boxes(count):
        corner = rng.integers(0, 4, (count, 2)) / 8
        return np.concatenate([corner, corner + rng.integers(1, 5, (count, 2)) / 8], axis=1)

    count, found = 3 * images, 6 * images
    labels = rng.integers(0, images, 2 * images), rng.integers(0, CLASSES, 2 * images)
    ids = tuple(f"{k:03d}" for k in range(images))
    columns = rng.integers(0, images, count), rng.integers(0, CLASSES, count), boxes(count), rng.random(count) < 0.2
    detections = rng.integers(0, images, found), rng.integers(0, CLASSES, found), rng.integers(1, 8, found) / 8
    return GroundTruth(ids, *columns, *labels), Detections(*detections, boxes(found))


def only(truth: GroundTruth, detections: Detections, chosen: np.ndarray) -> tuple[GroundTruth, Detections]:
    """The data set that has only the chosen images, `(images,)` bool."""
    new = np.cumsum(chosen) - 1
    boxes, labels, found = chosen[truth.box_image], chosen[truth.label_image], chosen[detections.image]
    ids = tuple(name for name, kept in zip(truth.image_ids, chosen, strict=True) if kept)
    box_columns = new[truth.box_image[boxes]], truth.box_class[boxes], truth.boxes[boxes], truth.box_group_of[boxes]
    columns = detections.class_index[found], detections.scores[found], detections.boxes[found]
    return (
        GroundTruth(ids, *box_columns, new[truth.label_image[labels]], truth.label_class[labels]),
        Detections(new[detections.image[found]], *columns),
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.2, 0.5, 1.0]), weight=st.sampled_from([0.0, 0.5, 1.0]))
def test_some_images_are_measured_as_if_there_were_no_others(seed, share, weight):
    rng = np.random.default_rng(seed)
    truth, detections = case(rng)
    chosen = rng.random(len(truth.image_ids)) < share
    options = {"num_classes": CLASSES, "group_of_weight": weight}
    matcher, expected = match(truth, detections, **options), evaluate(*only(truth, detections, chosen), **options)
    for curves, times in ((Curves(matcher), chosen), (Curves(matcher, chosen), None)):
        areas, num_gt = curves.areas(times)
        np.testing.assert_allclose(areas, np.nan_to_num(expected.average_precision) * num_gt, atol=1e-12)
        np.testing.assert_array_equal(num_gt, expected.num_gt)
        found = curves.mean_average_precision(times)
        np.testing.assert_allclose(found, expected.mean_average_precision, atol=1e-12, equal_nan=True)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_folds_are_ranked_separately_and_weighted_by_their_ground_truth(seed):
    rng = np.random.default_rng(seed)
    truth, detections = case(rng)
    fold = rng.permutation(np.arange(len(truth.image_ids)) % 3)
    matcher = match(truth, detections, num_classes=CLASSES)
    alone = [evaluate(*only(truth, detections, fold == f), num_classes=CLASSES) for f in range(3)]
    num_gt = np.array([one.num_gt for one in alone])
    ap = np.sum([np.nan_to_num(one.average_precision) for one in alone] * num_gt, axis=0) / num_gt.sum(axis=0)
    assert mean_of_folds([Curves(matcher, fold == f) for f in range(3)]) == pytest.approx(np.nanmean(ap), abs=1e-12)


def test_an_image_that_is_drawn_twice_counts_twice():
    """By hand: two images with a box each; the first is found after a false positive of the second.

    Drawn 2 and 1 times: the false positive counts 1, then 2 of 3 boxes are found: AP = 2/3 * 2/3. The other way round:
    2 false positives, then 1 of 3 at precision 1/3.
    """
    truth = GroundTruth(("a", "b"), *(np.array(x) for x in ([0, 1], [0, 0], [[0, 0, 1, 1.0]] * 2, [False] * 2, [], [])))
    boxes = np.array([[0, 0, 1, 1.0], [2, 2, 3, 3]])
    detections = Detections(np.array([0, 1]), np.array([0, 0]), np.array([0.8, 0.9]), boxes)
    curves = Curves(match(truth, detections, num_classes=1))
    assert curves.mean_average_precision(np.array([2, 1])) == pytest.approx(4 / 9)
    assert curves.mean_average_precision(np.array([1, 2])) == pytest.approx(1 / 9)
    assert curves.mean_average_precision(np.array([3, 3])) == pytest.approx(curves.mean_average_precision())
    assert curves.mean_average_precision() == pytest.approx(1 / 4)


def test_the_bootstrap_draws_within_folds_and_gives_the_deviation_of_a_mean():
    values, fold = np.random.default_rng(0).random(400), np.arange(400) % 2
    draws = bootstrap(lambda times: [times @ values / 400, times[fold == 0].sum()], fold, 1000, seed=0)
    assert draws.shape == (1000, 2)
    assert set(draws[:, 1]) == {200}
    low, high = interval_95(values.mean(), draws[:, 0])
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
