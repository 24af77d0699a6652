"""Proves training.sampling: weights against drawing a class, then an image; an epoch's order against its weights."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.data_sets import data_set_of
from tests.helpers.project import refused
from training.data_set import DataSet
from training.sampling import epoch_order, image_weights

LABELS = [[0], [0, 0, 0], [0, 1], [], [1, 1, 3], [0, 3], [0], [], [4, 0], [0, 1]]  # of 10 images; none has class 2


def data_of(labels: list[list[int]]) -> DataSet:
    """A data set whose image `i` has boxes of the classes `labels[i]`."""
    return data_set_of([[(label, 0, 0, 0, 0) for label in image] for image in labels])


# === Weights =========================================================================================================
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_classes_is_to_draw_a_class_and_then_an_image_that_has_it(exponent):
    images_of = {c: [i for i, labels in enumerate(LABELS) if c in labels] for c in (0, 1, 3, 4)}
    chance = np.array([len(images) ** exponent for images in images_of.values()])
    rng = np.random.default_rng(0)
    drawn = rng.choice(len(images_of), 50_000, p=chance / chance.sum())
    lists = list(images_of.values())
    images = np.array([lists[c][int(u * len(lists[c]))] for c, u in zip(drawn, rng.random(len(drawn)), strict=True)])
    found = np.bincount(images, minlength=len(LABELS)) / len(images)
    weights = image_weights(data_of(LABELS), sampling="classes", exponent=exponent, negatives=0.0)
    expected = weights / len(LABELS)
    assert np.all(np.abs(found - expected) <= 5 * np.sqrt(expected / len(images)))
    assert weights.sum() == pytest.approx(10)


def test_classes_by_hand():
    # images 0 and 1 share class 0, image 1 has class 1 alone: p = 1/2 each, so 1/4 and 1/4 + 1/2; image 2 is a third
    weights = image_weights(data_of([[0], [1, 0], []]), sampling="classes", exponent=0)
    np.testing.assert_allclose(weights, [2 / 4, 2 * 3 / 4, 1])
    # exponent 1: p = 2/3 and 1/3: 1/3 and 1/3 + 1/3, half of the draws negatives
    weights = image_weights(data_of([[0], [1, 0], []]), sampling="classes", exponent=1, negatives=0.5)
    np.testing.assert_allclose(weights, [0.5, 1, 1.5])


def test_images_are_all_alike():
    weights = image_weights(data_of(LABELS), sampling="images", exponent=0.5)
    np.testing.assert_array_equal(weights, np.ones(10))
    assert not weights.flags.writeable


@pytest.mark.parametrize("sampling", ["images", "classes"])
@pytest.mark.parametrize("negatives", [0.0, 0.1, 0.5, 0.9])
def test_negatives_are_that_share_of_every_epoch(sampling, negatives):
    data = data_of(LABELS * 13)
    empty = np.diff(data.objects.offsets) == 0
    weights = image_weights(data, sampling=sampling, exponent=0.5, negatives=negatives)
    assert weights[empty].sum() == pytest.approx(negatives * len(data))
    assert len(set(weights[empty])) == 1
    for epoch in range(20):
        drawn = int(empty[epoch_order(weights, 3, epoch)].sum())
        assert abs(drawn - negatives * len(data)) < 1
    # between themselves the images with objects keep their weights
    plain = image_weights(data, sampling=sampling, exponent=0.5)
    factor = weights[~empty] / plain[~empty]
    np.testing.assert_allclose(factor, factor[0])


def test_class_sampling_keeps_the_share_of_images_without_objects():
    weights = image_weights(data_of(LABELS), sampling="classes", exponent=0)
    assert weights[3] == weights[7] == pytest.approx(1)
    for labels in ([[], []], [[0], [1]]):
        assert image_weights(data_of(labels), sampling="classes").tolist() == [1, 1]


@pytest.mark.parametrize("sampling", ["images", "classes"])
@pytest.mark.parametrize(
    ("labels", "flags", "message"),
    [
        *((LABELS, {"negatives": value}, f"objects is {value}: it must be from 0") for value in (-0.1, 1.0, math.nan)),
        ([[0], [1]], {"negatives": 0.2}, "every training image has an object"),
        ([[], []], {"negatives": 0.2}, "no training image has an object"),
    ],
)
def test_shares_without_sense_are_refused(sampling, labels, flags, message):
    with refused(message):
        image_weights(data_of(labels), sampling=sampling, **flags)


# === The order of an epoch ===========================================================================================
@given(
    st.lists(st.floats(0, 1e3), min_size=1, max_size=60).filter(lambda values: sum(values) > 1e-3),
    st.integers(0, 2**32),
    st.integers(0, 1000),
)
def test_every_image_occurs_floor_or_ceil_of_its_weight_times(values, seed, epoch):
    weights = np.array(values) * len(values) / sum(values)
    order = epoch_order(weights, seed, epoch)
    assert order.shape == weights.shape
    assert order.dtype == np.int64
    times = np.bincount(order, minlength=len(weights))
    assert np.all(np.abs(times - weights) < 1)
    for weight in set(weights.tolist()):
        alike = weights == weight
        assert abs(times[alike].sum() - weights[alike].sum()) < 1 + 1e-6


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_equal_weights_give_every_image_once(count):
    orders = [epoch_order(np.ones(count), 0, epoch) for epoch in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(count))
    if count == 1000:
        assert not np.array_equal(orders[0], orders[1])
        assert not np.array_equal(orders[0], np.arange(count))


def test_over_many_epochs_images_occur_as_often_as_they_weigh():
    weights = image_weights(data_of(LABELS), sampling="classes", exponent=0.0, negatives=0.3)
    times = np.zeros(10)
    together = 0
    for epoch in range(500):
        order = epoch_order(weights, 1, epoch)
        times += np.bincount(order, minlength=10)
        together += {0, 6} <= set(order.tolist())
    # one draw differs from its mean by at most 1/2 as standard deviation
    np.testing.assert_allclose(times / 500, weights, atol=5 * 0.5 / math.sqrt(500))
    assert weights[0] == weights[6] < 0.5  # alike and rare: in turns, as a block of equal weight is as exact as one
    assert together == 0


def test_images_of_unlike_weight_meet():
    weights = np.array([0.45, 0.46, 0.44, 0.47, 1.5, 2.68])
    pairs = {(i, j) for epoch in range(200) for order in [epoch_order(weights, 0, epoch)] for i in order for j in order}
    assert {(i, j) for i in range(4) for j in range(4) if i != j} <= pairs


def test_order_depends_on_weights_seed_and_epoch_alone():
    weights = image_weights(data_of(LABELS * 20), sampling="classes", exponent=0.5)
    first = epoch_order(weights, 1, 2)
    others = [epoch_order(weights, seed, epoch) for seed, epoch in ((1, 3), (2, 2), (2, 1), (0, 0), (5, 5))]
    assert all(not np.array_equal(first, other) for other in others)
    np.testing.assert_array_equal(epoch_order(weights.copy(), 1, 2), first)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1


@pytest.mark.parametrize("weights", [[1.0, 2.0], [-1.0, 3.0], [math.nan, 2.0]])
def test_invalid_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights must not be negative"):
        epoch_order(np.array(weights), 0, 0)
