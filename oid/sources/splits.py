"""Which sets of a source become train, validation and test, and which training images are held out for validation."""

import collections
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from oid.files import InputError
from oid.sources.base import SPLITS, Splits

DEFAULT_FOLDS = 5  # if the source has no set for validation and no number is given
_WORDS = {"train": r"train(?!_?val)", "validation": "val", "test": "test"}  # as the beginning of a word in a set's name


class SetError(InputError):
    """The chosen sets do not fit the source."""


class FoldError(InputError):
    """The chosen folds do not fit the source."""


@dataclass(frozen=True)
class SplitChoice:
    """How to divide a source.

    Without `sets`, the names of the sets decide: train, val and test; trainval if there is no train; or the only set.
    """

    sets: tuple[str, ...] = ()  # `split=set` or `split=set+set`
    folds: int | None = None  # 2 or more: parts of the training images if there is no set for validation
    fold: int = 0  # the part that becomes the validation split, from 0


def choose_splits(names: Sequence[str], choice: SplitChoice) -> tuple[dict[str, list[str]], int | None]:
    """Chooses from the sets `names` of a source those of each split, and the number of folds.

    Returns:
        {split: sets} with `train` and, if there are any, `validation` and `test`; and the number of folds, None if
        there is a set for validation.

    Raises:
        SetError: the chosen sets do not fit, or there is no set for training.
        FoldError: there is a set for validation, and folds are wanted.
    """
    chosen = _parse(names, choice.sets) if choice.sets else _guess(names)
    if "train" not in chosen:
        raise SetError(f"no set for training: choose one of {_shown(names)} by train=...")
    if "validation" not in chosen:
        return chosen, choice.folds or DEFAULT_FOLDS
    if choice.folds or choice.fold:
        train = "+".join(chosen["train"])
        raise FoldError(f"the source has a set for validation: choose train={train} alone, or no fold")
    return chosen, None


def _parse(names: Sequence[str], wanted: Sequence[str]) -> dict[str, list[str]]:
    """The sets of each split as they were asked for."""
    chosen: dict[str, list[str]] = {}
    free = list(names)
    for text in wanted:
        split, _, sets = text.partition("=")
        for name in sets.split("+"):
            if split not in SPLITS or name not in free:
                each = ", ".join(f"{name}=..." for name in SPLITS)
                raise SetError(f"{text!r} cannot be chosen: give {each}, and each set once, of {_shown(names)}")
            free.remove(name)
            chosen.setdefault(split, []).append(name)
    return {split: chosen[split] for split in SPLITS if split in chosen}


def _guess(names: Sequence[str]) -> dict[str, list[str]]:
    """The set of each split by its name."""
    found = {split: _with_word(names, word) for split, word in _WORDS.items()}
    if not found["train"]:
        others = [name for name in names if not any(_with_word([name], word) for word in _WORDS.values())]
        found["train"] = _with_word(names, r"train_?val") or [n for n in others if n == "annotations"] or others
    for split, sets in found.items():
        if len(sets) > 1:
            raise SetError(f"{_shown(sets)} could be {split}: choose by {split}=...")
    return {split: sets for split, sets in found.items() if sets}


def _with_word(names: Sequence[str], word: str) -> list[str]:
    """The names that are the word; if there is none, those that contain it."""
    exact = [name for name in names if re.fullmatch(word, name.lower())]
    return exact or [name for name in names if re.search(rf"(?<![a-z]){word}", name.lower())]


def _shown(names: Sequence[str]) -> str:
    return textwrap.shorten(", ".join(names), 200, placeholder=" ...")


def divide(splits: Splits, held_out: set[str]) -> Splits:
    """Moves the training images whose ids are in `held_out` to the validation split."""
    train = [image for image in splits["train"] if image.image_id not in held_out]
    validation = [image for image in splits["train"] if image.image_id in held_out]
    return splits | {"train": train, "validation": validation}


def hold_out(images: Iterable[tuple[str, str, set[str]]], folds: int, fold: int) -> set[str]:
    """The ids of the images of one fold of `assign_folds`, from the id, the group and the classes of every image.

    Raises a FoldError if there are too few images, or that fold or the others have no boxes.
    """
    ids, groups, classes = zip(*images, strict=True)
    is_chosen = assign_folds(groups, classes, folds) == fold
    with_boxes = np.array(list(map(bool, classes)))
    if not (with_boxes & is_chosen).any() or not (with_boxes & ~is_chosen).any():
        raise FoldError(f"too few images with boxes for fold {fold} of {folds}: ask for fewer, or another fold")
    return {ids[index] for index in np.flatnonzero(is_chosen)}


def assign_folds(groups: Sequence[str], classes: Sequence[set[str]], count: int) -> np.ndarray:
    """Gives every image a fold, so that each class is spread evenly and groups stay together.

    A group counts for the rarest class of its images: the class in the fewest images, among equals the first by the
    alphabet. Images without objects count as a class of their own. Ordered by this class, the groups get the folds in
    turn. The order of the images does not matter.

    Args:
        groups: `(N,)` images with equal group get the same fold; for example the digest of the file.
        classes: `(N,)` the classes in each image.
        count: number of folds, 2 or more.

    Returns:
        `(N,)` int64 in 0 .. count - 1; no fold is empty.

    Raises:
        FoldError: there are fewer groups than folds.
    """
    images = collections.Counter(name for present in classes for name in present)
    present: dict[str, set[str]] = {}
    for group, names in zip(groups, classes, strict=True):
        present.setdefault(group, set()).update(names)
    if len(present) < count:
        raise FoldError(f"{count} folds of {len(present)} different images: one would be empty, ask for fewer")
    rarest = {group: min((images[name], name) for name in names) if names else () for group, names in present.items()}
    order = sorted(present, key=lambda group: (rarest[group], group))
    fold_of = {group: place % count for place, group in enumerate(order)}
    return np.array([fold_of[group] for group in groups])
