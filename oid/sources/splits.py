"""Which sets of a source become train, validation and test."""

import re
from collections.abc import Sequence

from oid.files import InputError
from oid.sources.base import SPLITS

_WORDS = {"train": r"train(?!_?val)", "validation": "val", "test": "test"}  # as the beginning of a word in a set's name


def choose_sets(names: Sequence[str], wanted: Sequence[str]) -> dict[str, list[str]]:
    """The sets of each split.

    Args:
        names: the sets that the source has.
        wanted: `split=set` or `split=set+set`; empty: train, val and test by their names; `trainval` where there is no
            train; or the only set.

    Returns:
        `{split: sets}` with `train` and, where there are any, `validation` and `test`.

    Raises:
        InputError: a split or set does not exist, a set is in two splits, or there is no train.
    """
    chosen = _parse(names, wanted) if wanted else _guess(names)
    if "train" not in chosen:
        raise InputError(f"no set for training: name one of {_listed(names)} by --source_splits train=...")
    return {split: chosen[split] for split in SPLITS if split in chosen}


def _parse(names: Sequence[str], wanted: Sequence[str]) -> dict[str, list[str]]:
    """What --source_splits says."""
    chosen: dict[str, list[str]] = {}
    used: dict[str, str] = {}
    for text in wanted:
        split, equals, sets = text.partition("=")
        if split not in SPLITS or not equals or not sets:
            raise InputError(f"--source_splits {text}: give {', '.join(f'{name}=...' for name in SPLITS)}")
        if split in chosen:
            raise InputError(f"--source_splits {text}: {split} is there twice, join its sets with +")
        chosen[split] = sets.split("+")
        for name in chosen[split]:
            if name not in names:
                raise InputError(f"--source_splits {text}: the source has no set {name!r}, but {_listed(names)}")
            if name in used:
                raise InputError(f"--source_splits {text}: the set {name!r} is in {used[name]} already")
            used[name] = split
    return chosen


def _guess(names: Sequence[str]) -> dict[str, list[str]]:
    """The splits by the names of the sets."""
    chosen: dict[str, list[str]] = {}
    for split, word in _WORDS.items():
        if found := _called(names, word):
            chosen[split] = [_only(found, split)]
    if "train" not in chosen:
        found = _called(names, r"train_?val")
        found = found or [name for name in names if not any(_called([name], word) for word in _WORDS.values())]
        found = [name for name in found if name == "annotations"] or found
        if found:
            chosen["train"] = [_only(found, "train")]
    return chosen


def _called(names: Sequence[str], word: str) -> list[str]:
    """The names with the word in them; if one is the word itself, that."""
    exact = [name for name in names if re.fullmatch(word, name.lower())]
    return exact or [name for name in names if re.search(rf"(?<![a-z]){word}", name.lower())]


def _only(found: list[str], split: str) -> str:
    if len(found) > 1:
        raise InputError(f"{_listed(found)} could be {split}: choose by --source_splits {split}=...")
    return found[0]


def _listed(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
