"""mAP on any choice of images from a single matching: on folds, and on bootstrap samples of the images.

Detections are matched within an image. So images can be left out after the matching, and an image that was drawn twice
can count twice.
"""

from collections.abc import Callable, Sequence

import numba
import numpy as np

from oid.metric.challenge import Entries, GroundTruth


class Curves:
    """Matched detections, class by class in descending score: the points of the precision-recall curves.

    Args:
        entries: the matched detections, from `oid.metric.challenge.score`.
        truth: the ground truth that they were matched with.
        num_classes, group_of_weight: as given to `score`.
        images: `(images,)` bool, leaves out all other images; None = all images.
    """

    def __init__(
        self,
        entries: Entries,
        truth: GroundTruth,
        *,
        num_classes: int,
        group_of_weight: float = 1.0,
        images: np.ndarray | None = None,
    ):
        self.num_images, self.num_classes = len(truth.image_ids), num_classes
        if images is None:
            images = np.ones(self.num_images, dtype=bool)
        kept = np.flatnonzero(images[entries.image])[::-1]
        order = kept[np.argsort(-entries.scores[kept], kind="stable")]  # the later one of equal scores first
        small = entries.class_index[order].astype(np.min_scalar_type(num_classes))
        order = order[np.argsort(small, kind="stable")]  # NumPy sorts integers of 16 bits in linear time
        self._image, self._labels = entries.image[order], entries.labels[order]
        self._first = np.searchsorted(entries.class_index[order], np.arange(num_classes + 1))
        boxes = np.flatnonzero(images[truth.box_image])
        self._box_image, self._box_class = truth.box_image[boxes], truth.box_class[boxes]
        self._box_weight = np.where(truth.box_group_of[boxes], group_of_weight, 1.0)

    def average_precision(self, times: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Computes AP: the area below the envelope of precision over recall.

        Args:
            times: `(images,)` how often each image counts; None = once.

        Returns:
            `(num_classes,)` AP, 0 for a class without ground truth, and `(num_classes,)` amount of ground truth.
        """
        times = np.ones(self.num_images) if times is None else np.asarray(times, dtype=np.float64)
        weights = self._box_weight * times[self._box_image]
        num_gt = np.bincount(self._box_class, weights=weights, minlength=self.num_classes)
        areas = _areas(self._labels, self._image, self._first, times)
        return np.divide(areas, num_gt, out=np.zeros(self.num_classes), where=num_gt > 0.0), num_gt

    def mean_average_precision(self, times: np.ndarray | None = None) -> float:
        """mAP over the classes with ground truth, nan if there are none; `times` as for `average_precision`."""
        return mean_of_folds([self], times)


@numba.njit(cache=True, nogil=True)
def _areas(labels, image, first, times):
    """`(num_classes,)` area below the envelope of precision over true positives; class c begins at `first[c]`."""
    areas, precision = np.zeros(len(first) - 1), np.empty(len(labels))
    for c in range(len(areas)):
        hits = misses = envelope = 0.0
        for i in range(first[c], first[c + 1]):
            count = times[image[i]]
            hits += count * labels[i]
            misses += count * (labels[i] <= 0.0)
            precision[i] = hits / max(hits + misses, 1e-300)  # 0 as long as only images that count 0 came
        for i in range(first[c + 1] - 1, first[c] - 1, -1):
            envelope = max(envelope, precision[i])
            areas[c] += times[image[i]] * labels[i] * envelope
    return areas


def mean_of_folds(folds: Sequence[Curves], times: np.ndarray | None = None) -> float:
    """mAP of folds whose scores are not comparable, because each was fused with its own settings.

    The AP of a class is the mean of its APs in the folds, weighted by the ground truth there. nan if there is no ground
    truth; `times` as for `Curves.average_precision`.
    """
    found, num_gt = zip(*(fold.average_precision(times) for fold in folds), strict=True)
    total, weighted = np.sum(num_gt, axis=0), np.sum(np.multiply(found, num_gt), axis=0)
    return float(np.mean(weighted[total > 0] / total[total > 0])) if np.any(total > 0) else float("nan")


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
