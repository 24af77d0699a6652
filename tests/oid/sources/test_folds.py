"""Proves that folds cover every image once, keep equal images together, spread the classes evenly, and do not depend on
the order of the images."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oid.files import InputError
from oid.sources.folds import assign_folds, rarest_classes


def data(seed, images, copies=1):
    """Groups and classes of random images: `often` on most, `some` on a third, `rare` on a twentieth."""
    rng = np.random.default_rng(seed)
    shares = {"often": 0.8, "some": 0.33, "rare": 0.05}
    groups = [f"{seed}-{number // copies}" for number in range(images)]
    return groups, [{name for name, share in shares.items() if rng.random() < share} for _ in groups]


def test_the_rarest_class_stands_for_an_image():
    classes = [{"a", "b"}, {"a"}, {"a", "c"}, {"b", "c"}, set(), {"a", "b"}]  # a 4, b 3, c 2
    assert rarest_classes(classes) == ["b", "a", "c", "c", "", "b"]
    assert rarest_classes([{"b", "a"}, {"a", "b"}]) == ["a", "a"]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.integers(2, 5), st.integers(8, 40), st.integers(1, 3))
def test_each_image_is_in_one_fold_and_groups_stay_together(seed, count, images, copies):
    groups, classes = data(seed, images, copies)
    if len(set(groups)) < count:
        return
    folds = assign_folds(groups, classes, count)
    assert set(folds) == set(range(count))
    assert len(set(zip(groups, folds, strict=True))) == len(set(groups))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.randoms(use_true_random=False))
def test_the_order_of_the_images_changes_nothing(seed, random):
    groups, classes = data(seed, 40)
    folds = dict(zip(groups, assign_folds(groups, classes, 4), strict=True))
    order = list(range(len(groups)))
    random.shuffle(order)
    shuffled = [groups[index] for index in order]
    again = assign_folds(shuffled, [classes[index] for index in order], 4)
    assert dict(zip(shuffled, again, strict=True)) == folds


@pytest.mark.parametrize("seed", range(3))
def test_classes_are_spread_evenly(seed):
    """The rare class decides where its images go: it differs by one image at most, what is on chance's side by more."""
    groups, classes = data(seed, 400)
    folds = assign_folds(groups, classes, 5)
    counts = {
        name: collections.Counter(fold for fold, present in zip(folds, classes, strict=True) if name in present)
        for name in ("often", "some", "rare")
    }
    assert max(counts["rare"].values()) - min(counts["rare"][fold] for fold in range(5)) <= 1
    for name in ("often", "some"):
        mean = sum(counts[name].values()) / 5
        assert all(abs(counts[name][fold] - mean) < 0.12 * mean + 2 for fold in range(5))
    sizes = np.bincount(folds)
    assert sizes.max() - sizes.min() <= 6


def test_so_few_images_that_no_class_reaches_every_fold():
    folds = assign_folds(["x", "y", "z"], [{"a"}, {"b"}, set()], 3)
    assert sorted(folds) == [0, 1, 2]


def test_more_folds_than_different_images_are_one_sentence():
    with pytest.raises(InputError, match=r"--validation_folds 3: there are 2 different images, ask for fewer"):
        assign_folds(["x", "y", "y"], [set(), set(), set()], 3)
