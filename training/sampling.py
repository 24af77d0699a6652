"""How often each image is drawn, and the order of an epoch in which it is drawn so often."""

import dataclasses
import functools
import math

import numpy as np

from oid.files import InputError
from training.data_set import DataSet, distinct_pairs


def image_weights(
    data: DataSet,
    *,
    sampling: str = "images",
    exponent: float = 0.0,
    negatives: float | None = None,
    threshold: float = 1e-3,
) -> np.ndarray:
    """How often each image is to be drawn in an epoch, on average.

    Args:
        data: the images and their boxes. A class counts once for an image, however many boxes it has there.
        sampling: "images": all alike.
            "classes": a class is drawn, then one of the images that have it. A class is drawn in proportion to the
            `exponent`-th power of the number of its images: 0 = all classes alike, which is class-aware sampling as
            the winners of the Open Images challenges published it; 1 = as frequent as it is.
            "repeat_factor": an image counts max(1, (threshold / f) ^ exponent) times, f being the share of images that
            have its rarest class (Gupta, Dollár and Girshick, LVIS, 2019, section 5.2; there exponent is 0.5).
        exponent: see `sampling`, 0 to 1.
        negatives: the share of the draws that are images without objects. None = for "classes" the share that they
            have in the data, else as the weights give.
        threshold: of "repeat_factor": classes in more than this share of the images are not repeated.

    Returns:
        float64 `(images,)`, read-only, with the sum `len(data)`.

    Raises:
        InputError: exponent or negatives make no sense, or the images that negatives asks for do not exist.
    """
    if not 0 <= exponent <= 1:
        raise InputError(f"--sampling_exponent {exponent}: choose from 0 to 1")
    image, classes = distinct_pairs(data.objects.image, data.objects.labels)
    empty = np.diff(data.objects.offsets) == 0
    class_images = np.bincount(classes)  # distinct: so many images have the class
    if sampling == "images":
        weights = np.ones(len(data))
    elif sampling == "classes":
        known = class_images > 0
        chance = np.zeros(len(class_images))  # of an image by this class, not yet normalised
        chance[known] = class_images[known] ** (exponent - 1.0)
        weights = np.bincount(image, chance[classes], minlength=len(data)).astype("float64")
        if negatives is None:
            negatives = float(np.mean(empty)) if len(data) else None
    elif sampling == "repeat_factor":
        share = np.maximum(class_images, 1) / max(1, len(data))
        repeat = np.maximum(1.0, (threshold / share) ** exponent)
        weights = np.ones(len(data))
        np.maximum.at(weights, image, repeat[classes])
    else:
        raise ValueError(f"sampling is {sampling!r}: images, classes or repeat_factor")
    if negatives is None:
        weights *= len(data) / max(weights.sum(), 1.0)
    else:
        _set_share(weights, empty, negatives)
    weights.flags.writeable = False
    return weights


def _set_share(weights: np.ndarray, empty: np.ndarray, negatives: float) -> None:
    """Scales the weights of the images with objects, and makes the others alike, so that these are `negatives`."""
    number = int(empty.sum())
    if not 0 <= negatives <= 1 or (negatives == 1 and number < len(empty)):
        raise InputError(f"--negatives {negatives}: give the share of images without objects, from 0 to less than 1")
    if negatives > 0 and number == 0:
        raise InputError(f"--negatives {negatives}: every training image has an object: leave it out, or give 0")
    if negatives < 1 and number == len(empty):
        raise InputError(f"--negatives {negatives}: no training image has an object: check what a01 says of this level")
    weights[empty] = negatives * len(empty) / max(number, 1)
    weights[~empty] *= (1 - negatives) * len(empty) / max(weights[~empty].sum(), 1e-300)


def epoch_order(weights: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The images of an epoch in the order in which they are drawn: the same for the same arguments.

    Systematic sampling: image i occurs `weights[i]` times on average and never differs from it by a whole time, and so
    do all images of equal weight together. Equal weights give every image once.

    Args:
        weights: from `image_weights`, float64 `(images,)` with the sum `images`; not to be changed afterwards.
        seed: of the training.
        epoch: counts from 0.

    Returns:
        int64 `(images,)`, read-only; the last epochs are kept.
    """
    return _epoch_order(_Same(weights), seed, epoch)


@dataclasses.dataclass(frozen=True, eq=False)
class _Same:
    """An array as a key: equal to itself alone. The cache holds it, so that its id is not given to another array."""

    array: np.ndarray

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.array is other.array

    def __hash__(self) -> int:
        return id(self.array)


@functools.lru_cache(maxsize=4)
def _epoch_order(same: _Same, seed: int, epoch: int) -> np.ndarray:
    weights = same.array
    if not (np.all(weights >= 0) and math.isclose(weights.sum(), len(weights), rel_tol=1e-9)):
        raise ValueError(f"weights must not be negative, and their sum {weights.sum()} must be {len(weights)}")
    rng = np.random.default_rng([seed, epoch])
    times = np.floor(weights + 1e-9).astype("int64")  # for certain; by rounding, a whole weight may be a little less
    rest = np.maximum(weights - times, 0.0)
    number = len(weights) - int(times.sum())
    if number > 0:  # so many of the rests become one: those in which a tick 1, 2, ... of the line of rests falls
        order = _blocks_in_random_order(weights, rng)
        line = np.cumsum(rest[order])
        line *= number / line[-1]
        line[-1] = number
        ticks = np.floor(line + rng.random(dtype="float32"))  # 24 bits: the sum is exact where the line is whole
        times[order] += np.diff(ticks, prepend=0.0).astype("int64")
    images = np.repeat(np.arange(len(weights)), times)
    rng.shuffle(images)
    images.flags.writeable = False
    return images


def _blocks_in_random_order(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A permutation that keeps equal weights together: their number of draws is then as exact as that of one image."""
    values, block = np.unique(weights, return_inverse=True)
    shuffled = rng.permutation(len(weights))
    place = rng.permutation(len(values))[block]
    return shuffled[np.argsort(place[shuffled], kind="stable")]
