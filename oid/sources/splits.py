"""Which sets of a source become train, validation and test, and which training images are held out for validation."""

import collections
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from oid.files import InputError
from oid.sources.base import SPLITS, Splits

DEFAULT_FOLDS = 5  # if the source has no set for validation and no number is given
_WORDS = {"train": r"train(?!_?val)", "validation": "val", "test": "test"}  # as the beginning of a word in a set's name


class SplitError(InputError):
    """The chosen sets or folds do not fit the source."""


@dataclass(frozen=True)
class SplitChoice:
    """How to divide a source.

    Attributes:
        sets: `split=set` or `split=set+set` for each split; empty: the names of the sets decide.
        folds: into how many folds the training images are divided if there is no set for validation.
        fold: the fold that becomes the validation split, from 0.
    """

    sets: tuple[str, ...] = ()
    folds: int | None = None
    fold: int = 0


def choose_splits(names: Sequence[str], choice: SplitChoice) -> tuple[dict[str, list[str]], int | None]:
    """Chooses from the sets `names` of a source those of each split, and the number of folds.

    Returns:
        {split: sets} as in `choose_sets`, and the number of folds; None if there is a set for validation.

    Raises:
        SplitError: the choice does not fit the sets.
    """
    folds = DEFAULT_FOLDS if choice.folds is None else choice.folds
    if folds < 2:
        raise SplitError(f"{folds} is too few folds: give 2 or more")
    if not 0 <= choice.fold < folds:
        raise SplitError(f"there is no fold {choice.fold} of {folds}: give 0 to {folds - 1}")
    chosen = choose_sets(names, choice.sets)
    if "validation" not in chosen:
        return chosen, folds
    if choice.folds or choice.fold:
        train = "+".join(chosen["train"])
        raise SplitError(f"the source has a set for validation: choose train={train} alone, or no fold")
    return chosen, None


def choose_sets(names: Sequence[str], wanted: Sequence[str]) -> dict[str, list[str]]:
    """Chooses the sets of each split.

    Args:
        names: the sets of the source.
        wanted: `split=set` or `split=set+set`. If empty, the names decide: train, val and test; trainval if there is
            no train; or the only set.

    Returns:
        {split: sets} with `train` and, if there are any, `validation` and `test`.

    Raises:
        SplitError: a split or set does not exist, a set is in two splits, or there is no train.
    """
    chosen = _parse(names, wanted) if wanted else _guess(names)
    if "train" not in chosen:
        raise SplitError(f"no set for training: choose one of {shown(names)} by train=...")
    return {split: chosen[split] for split in SPLITS if split in chosen}


def _parse(names: Sequence[str], wanted: Sequence[str]) -> dict[str, list[str]]:
    chosen: dict[str, list[str]] = {}
    split_of: dict[str, str] = {}
    for text in wanted:
        split, _, sets = text.partition("=")
        if split not in SPLITS or not sets:
            raise SplitError(f"{text!r} names no sets: give {', '.join(f'{name}=...' for name in SPLITS)}")
        if split in chosen:
            raise SplitError(f"{text!r}: {split} is given twice, join its sets with +")
        chosen[split] = sets.split("+")
        for name in chosen[split]:
            if name not in names:
                raise SplitError(f"{text!r}: the source has no set {name!r}, but {shown(names)}")
            if name in split_of:
                raise SplitError(f"{text!r}: the set {name!r} is in {split_of[name]} already")
            split_of[name] = split
    return chosen


def _guess(names: Sequence[str]) -> dict[str, list[str]]:
    found = {split: _with_word(names, word) for split, word in _WORDS.items()}
    if not found["train"]:
        others = [name for name in names if not any(_with_word([name], word) for word in _WORDS.values())]
        found["train"] = _with_word(names, r"train_?val") or [n for n in others if n == "annotations"] or others
    for split, sets in found.items():
        if len(sets) > 1:
            raise SplitError(f"{shown(sets)} could be {split}: choose by {split}=...")
    return {split: sets for split, sets in found.items() if sets}


def _with_word(names: Sequence[str], word: str) -> list[str]:
    """The names that are the word; if there is none, those that contain it."""
    exact = [name for name in names if re.fullmatch(word, name.lower())]
    return exact or [name for name in names if re.search(rf"(?<![a-z]){word}", name.lower())]


def shown(names: Sequence[str]) -> str:
    return textwrap.shorten(", ".join(names), 200, placeholder=" ...")


def divide(splits: Splits, held_out: set[str]) -> Splits:
    """Moves the training images whose ids are in `held_out` to the validation split."""
    train = [image for image in splits["train"] if image.image_id not in held_out]
    validation = [image for image in splits["train"] if image.image_id in held_out]
    return splits | {"train": train, "validation": validation}


def hold_out(
    image_ids: Sequence[str], groups: Sequence[str], classes: Sequence[set[str]], folds: int, fold: int
) -> set[str]:
    """The ids of the images of one fold of `assign_folds`. Raises a SplitError if training or it has no boxes."""
    chosen = assign_folds(groups, classes, folds) == fold
    with_boxes = np.array([bool(present) for present in classes])
    if not (with_boxes & chosen).any() or not (with_boxes & ~chosen).any():
        raise SplitError(f"too few images with boxes for fold {fold} of {folds}: ask for fewer, or another fold")
    return {image_ids[index] for index in np.flatnonzero(chosen)}


def assign_folds(groups: Sequence[str], classes: Sequence[set[str]], count: int) -> np.ndarray:
    """Gives every image a fold, so that each class is spread evenly and groups stay together.

    An image counts for its rarest class: the class in the fewest images, among equals the first by the alphabet. Images
    without objects count as a class of their own. scikit-learn's StratifiedGroupKFold gets the images in the order of
    their groups, so the order of the arguments does not matter.

    Args:
        groups: `(N,)` images with equal group get the same fold; for example the digest of the file.
        classes: `(N,)` the classes in each image.
        count: number of folds, 2 or more.

    Returns:
        `(N,)` int64 in 0 .. count - 1; no fold is empty.

    Raises:
        SplitError: there are fewer groups than folds.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    different = len(set(groups))
    if different < count:
        raise SplitError(f"{count} folds of {different} different images: ask for fewer folds")
    rarest = rarest_classes(classes)
    order = sorted(range(len(groups)), key=lambda index: (groups[index], rarest[index]))
    sorted_classes, sorted_groups = [rarest[index] for index in order], [groups[index] for index in order]
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=0)
    if max(collections.Counter(rarest).values()) < count:
        splitter = GroupKFold(count)  # no class has an image for each fold: only the numbers of images can be even
    folds = np.empty(len(groups), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some class has fewer images than there are folds
        for fold, (_, chosen) in enumerate(splitter.split(sorted_classes, sorted_classes, sorted_groups)):
            folds[np.array(order)[chosen]] = fold
    if len(np.unique(folds)) < count:
        raise SplitError(f"{count} folds of {different} different images: one would be empty, ask for fewer folds")
    return folds


def rarest_classes(classes: Sequence[set[str]]) -> list[str]:
    """`(N,)` the class of each image that the fewest images have; "" for an image without objects."""
    images = collections.Counter(name for present in classes for name in present)
    return [min(present, key=lambda name: (images[name], name), default="") for present in classes]
