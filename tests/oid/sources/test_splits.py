"""Proves which sets become which split, and that folds cover every image once, keep equal images together, spread the
classes evenly, and do not depend on the order of the images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oid.sources.splits import FoldError, SetError, SplitChoice, assign_folds, choose_splits, hold_out


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["test", "train", "trainval", "val"], {"train": ["train"], "validation": ["val"], "test": ["test"]}),
        (["trainval", "test"], {"train": ["trainval"], "test": ["test"]}),
        (["train2017", "val2017"], {"train": ["train2017"], "validation": ["val2017"]}),
        (["training"], {"train": ["training"]}),
        (["train", "valid"], {"train": ["train"], "validation": ["valid"]}),
        (["annotations", "val_annotations"], {"train": ["annotations"], "validation": ["val_annotations"]}),
        (["annotations", "notes"], {"train": ["annotations"]}),
        (["default"], {"train": ["default"]}),
        (["cat_train", "train", "cat_val", "val"], {"train": ["train"], "validation": ["val"]}),
    ],
)
def test_sets_are_known_by_their_names(names, chosen):
    for order in (names, names[::-1]):
        assert choose_splits(order, SplitChoice()) == (chosen, None if "validation" in chosen else 5)


def test_sets_can_be_named_and_joined():
    chosen, folds = choose_splits(["a", "b", "c"], SplitChoice(("validation=c", "train=b+a")))
    assert (chosen, folds) == ({"train": ["b", "a"], "validation": ["c"]}, None)


@pytest.mark.parametrize(
    ("names", "choice", "sentence"),
    [
        (["train2014", "train2017"], (), "train2014, train2017 could be train: choose by train=..."),
        (["val"], (), "no set for training: choose one of val"),
        (["a"], ("validation=a",), "no set for training"),
        (["a"], ("train=x",), "'train=x' cannot be chosen: give train=..., validation=..., test=..., and each set"),
        (["a"], ("train=a", "validation=a"), "'validation=a' cannot be chosen: .*once, of a"),
        (["a"], ("val=a",), "'val=a' cannot be chosen"),
        (["train", "val"], {"folds": 3}, "the source has a set for validation: choose train=train alone, or no fold"),
        (["train", "val"], {"fold": 1}, "the source has a set for validation: choose train=train alone, or no fold"),
    ],
)
def test_a_wrong_choice_is_one_sentence(names, choice, sentence):
    with pytest.raises(SetError if isinstance(choice, tuple) else FoldError, match=sentence):
        choose_splits(names, SplitChoice(**choice) if isinstance(choice, dict) else SplitChoice(choice))


# === Folds ===
def random_images(seed, images, copies=1):
    """Groups and classes of random images: `often` on most, `some` on a third, `rare` on a twentieth."""
    rng = np.random.default_rng(seed)
    shares = {"often": 0.8, "some": 0.33, "rare": 0.05}
    groups = [f"{seed}-{number // copies}" for number in range(images)]
    return groups, [{name for name, share in shares.items() if rng.random() < share} for _ in groups]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(2, 5), st.integers(15, 40), st.integers(1, 3), st.randoms(use_true_random=False))
def test_groups_stay_together_whatever_the_order(seed, count, images, copies, random):
    groups, classes = random_images(seed, images, copies)
    folds = assign_folds(groups, classes, count)
    assert set(folds) == set(range(count))
    fold_of = dict(zip(groups, folds, strict=True))
    assert len(set(zip(groups, folds, strict=True))) == len(fold_of)
    order = random.sample(range(images), images)
    again = assign_folds([groups[index] for index in order], [classes[index] for index in order], count)
    assert again.tolist() == [fold_of[groups[index]] for index in order]


@pytest.mark.parametrize("seed", range(3))
def test_classes_are_spread_evenly(seed):
    """Images count for their rarest class: its numbers differ by 1 at most, those of the others by more."""
    groups, classes = random_images(seed, 400)
    folds = assign_folds(groups, classes, 5)
    for name, slack in (("rare", 0), ("some", 8), ("often", 12)):
        counts = np.bincount(folds[[name in present for present in classes]], minlength=5)
        assert np.ptp(counts) <= 1 + slack
    assert np.ptp(np.bincount(folds)) == 0


def test_a_fold_needs_an_image_but_not_one_of_each_class():
    assert sorted(assign_folds(["x", "y", "z"], [{"a"}, {"b"}, set()], 3)) == [0, 1, 2]
    with pytest.raises(FoldError, match="too few images with boxes for fold 1 of 2: ask for fewer"):
        hold_out([("x", "x", {"a"}), ("y", "y", set()), ("z", "z", set())], 2, 1)
    with pytest.raises(FoldError, match=r"3 folds of 2 different images: .* ask for fewer"):
        assign_folds(["x", "y", "y"], [set(), set(), set()], 3)
