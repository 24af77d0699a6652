"""Divides images into folds, each of which can be the validation split of the rest."""

import collections
import warnings
from collections.abc import Sequence

import numpy as np

from oid.files import InputError


def assign_folds(groups: Sequence[str], classes: Sequence[set[str]], count: int) -> np.ndarray:
    """Gives every image a fold, so that each class is spread evenly and no group is divided.

    An image has several classes, and its rarest one decides: the class with the fewest images, of equal ones the first
    of the alphabet; images without objects are a kind of their own. scikit-learn's StratifiedGroupKFold does the rest.
    It works on the images in the order of their groups, so that the order in which they are given changes nothing.

    Args:
        groups: `(N,)` what must stay together, for example the digest of the file: equal images get equal folds.
        classes: `(N,)` the classes of each image.
        count: number of folds, 2 or more.

    Returns:
        `(N,)` int64 in 0 .. count - 1; no fold is empty.

    Raises:
        InputError: there are fewer groups than folds.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    if len(set(groups)) < count:
        raise InputError(f"--validation_folds {count}: there are {len(set(groups))} different images, ask for fewer")
    kind = rarest_classes(classes)
    order = sorted(range(len(groups)), key=lambda index: (groups[index], kind[index]))
    kinds, sorted_groups = [kind[index] for index in order], [groups[index] for index in order]
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=0)
    if max(collections.Counter(kinds).values()) < count:
        splitter = GroupKFold(count)  # no class has an image for each fold: only the numbers of images can be even
    folds = np.empty(len(groups), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some class has fewer images than there are folds
        for number, (_, chosen) in enumerate(splitter.split(kinds, kinds, sorted_groups)):
            folds[[order[index] for index in chosen]] = number
    if len(np.unique(folds)) < count:
        raise InputError(f"--validation_folds {count}: a fold would have no image, ask for fewer")
    return folds


def rarest_classes(classes: Sequence[set[str]]) -> list[str]:
    """`(N,)` for each image the one of its classes that the fewest images have; "" for an image without objects."""
    images = collections.Counter(name for present in classes for name in present)
    return [min(present, key=lambda name: (images[name], name), default="") for present in classes]
