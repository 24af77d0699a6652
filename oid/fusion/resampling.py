"""mAP on any choice of images from a single matching: on folds, and on bootstrap samples of the images.

Detections are matched within an image. So images can be left out after the matching, and an image that was drawn twice
can count twice.
"""

from collections.abc import Callable, Sequence

import numpy as np

from oid.metric.challenge import Matcher, mean_of_defined, ratios
from oid.metric.matching import areas_below


class Curves:
    """The precision-recall curves of a `Matcher` that has all its detections.

    `images` `(images,)` bool leaves out all other images; None = all images.
    """

    def __init__(self, matcher: Matcher, images: np.ndarray | None = None):
        self.num_images, self.num_classes = matcher.num_images, matcher.num_classes
        if images is None:
            images = np.ones(self.num_images, dtype=bool)
        entries, targets = matcher.entries(), matcher.targets
        order, first = matcher.by_class()
        kept = images[entries.image[order]]
        self._first = np.concatenate([[0], np.cumsum(kept)])[first]
        self._labels, self._image = entries.labels[order[kept]], entries.image[order[kept]]
        box_image = np.repeat(np.arange(self.num_images), np.diff(targets.first))
        boxes = images[box_image]
        self._box_image, self._box_class = box_image[boxes], targets.class_index[boxes]
        self._box_weight = np.where(targets.group_of[boxes], matcher.group_of_weight, 1.0)

    def areas(self, times: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The area below each class's curve over the true positives `(C,)`, and its ground truth `(C,)`.

        `times` `(images,)` is how often each image counts; None = once.
        """
        times = np.ones(self.num_images) if times is None else times
        weights = self._box_weight * times[self._box_image]
        num_gt = np.bincount(self._box_class, weights=weights, minlength=self.num_classes)
        return areas_below(self._labels, times.astype(np.float32)[self._image], self._first), num_gt

    def mean_average_precision(self, times: np.ndarray | None = None) -> float:
        """mAP over the classes with ground truth, nan if there are none; `times` as for `areas`."""
        return mean_of_folds([self], times)


def mean_of_folds(folds: Sequence[Curves], times: np.ndarray | None = None) -> float:
    """mAP of folds whose scores are not comparable, because each was fused with its own settings.

    The AP of a class is the mean of its APs in the folds, weighted by the ground truth there. nan if there is no ground
    truth; `times` as for `Curves.areas`.
    """
    areas, num_gt = np.sum([fold.areas(times) for fold in folds], axis=0)
    return mean_of_defined(ratios(areas, num_gt))


def bootstrap(measure: Callable[[np.ndarray], object], fold: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Measures on images drawn with replacement within their fold.

    Args:
        measure: takes `(images,)`, how often each image was drawn, and returns a number or several.
        fold: `(images,)` int64.

    Returns:
        `(draws,)` or `(draws, K)` float64.
    """
    rng = np.random.default_rng([seed, 2])
    members = [np.flatnonzero(fold == f) for f in range(fold.max() + 1)]
    drawn = []
    for _ in range(draws):
        images = np.concatenate([member[rng.integers(len(member), size=len(member))] for member in members])
        drawn.append(measure(np.bincount(images, minlength=len(fold))))
    return np.array(drawn)


def interval_95(value: float, draws: np.ndarray) -> tuple[float, float]:
    """`value` plus and minus 1.96 standard deviations of `(draws,)`; their quantiles would be off-centre."""
    reach = 1.96 * float(np.nanstd(draws, ddof=1))
    return value - reach, value + reach
