"""How often each image is drawn, and the order of an epoch in which it is drawn that often."""

import math

import numpy as np

from oid.files import InputError
from training.data_set import DataSet, distinct_pairs
from training.options import Sampling


def image_weights(
    data: DataSet, *, sampling: Sampling = "images", exponent: float = 0.0, negatives: float | None = None
) -> np.ndarray:
    """How often each image is to be drawn in an epoch, on average.

    Args:
        data: the images and their boxes. A class counts once for an image, however many boxes it has there.
        sampling: "images": all alike. "classes": a class is drawn in proportion to the `exponent`-th power of the
            number of its images, then one of these images.
        exponent: of "classes": 0 = all classes alike, which is class-aware sampling as the winners of the Open Images
            challenges published it; 1 = as frequent as they are.
        negatives: share of the draws that are images without objects. None = the share that they have in the data.

    Returns:
        float64 `(images,)`, read-only, with the sum `len(data)`.

    Raises:
        InputError: `negatives` is not from 0 to less than 1, or asks for images that do not exist.
    """
    empty = np.diff(data.objects.offsets) == 0
    weights = np.ones(len(data))
    if sampling == "classes":
        image, classes = distinct_pairs(data.objects.image, data.objects.labels)
        images_of_class = np.bincount(classes)
        chance = np.maximum(images_of_class, 1) ** (exponent - 1.0)  # of an image by a class, not yet normalised
        weights = np.bincount(image, chance[classes], minlength=len(data)).astype("float64")
        if negatives is None and len(data):
            negatives = float(np.mean(empty))
    if negatives is not None:
        _set_share(weights, empty, negatives)
    weights.flags.writeable = False
    return weights


def _set_share(weights: np.ndarray, empty: np.ndarray, negatives: float) -> None:
    """Scales the weights so that the images without objects, all alike, have the share `negatives`."""
    number, share = int(empty.sum()), f"the share of images without objects is {negatives}"
    if not 0 <= negatives <= 1 or (negatives == 1 and number < len(empty)):
        raise InputError(f"{share}: it must be from 0 to less than 1")
    if negatives > 0 and number == 0:
        raise InputError(f"{share}, and every training image has an object: it must be 0")
    if negatives < 1 and number == len(empty):
        raise InputError(f"{share}, and no training image has an object: check what a01 says of this level")
    weights[empty] = negatives * len(empty) / max(number, 1)
    weights[~empty] *= (1 - negatives) * len(empty) / max(weights[~empty].sum(), 1e-300)


def epoch_order(weights: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The images of an epoch in the order in which they are drawn: the same for the same arguments.

    Systematic sampling: image i occurs `weights[i]` times on average and always floor or ceil of that, and so do all
    images of equal weight together. Equal weights give every image once.

    Args:
        weights: from `image_weights`, float64 `(images,)` with the sum `images`.
        seed: of the training.
        epoch: counts from 0.

    Returns:
        int64 `(images,)`, read-only.
    """
    if not (np.all(weights >= 0) and math.isclose(weights.sum(), len(weights), rel_tol=1e-9)):
        raise ValueError(f"weights must not be negative, and their sum {weights.sum()} must be {len(weights)}")
    rng = np.random.default_rng([seed, epoch])
    times = np.floor(weights + 1e-9).astype("int64")  # for certain; by rounding, a whole weight may be a little less
    rest = np.maximum(weights - times, 0.0)
    number = len(weights) - int(times.sum())
    if (
        number > 0
    ):  # an image is drawn once more where one of the ticks 1, 2, ... falls on its part of the line of rests
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
