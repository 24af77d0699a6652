"""mAP on any choice of images from a single matching: on folds, and on bootstrap samples of the images.

Detections are matched within an image. So images can be left out after the matching, and an image that was drawn twice
can count twice.
"""

from collections.abc import Callable, Sequence

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
        images = np.ones(self.num_images, dtype=bool) if images is None else images
        order = np.argsort(entries.scores, kind="stable")[::-1]  # the later one of equal scores first, as in the metric
        order = order[images[entries.image[order]]]
        small = np.min_scalar_type(num_classes)  # NumPy sorts integers of 16 bits in linear time
        order = order[np.argsort(entries.class_index[order].astype(small), kind="stable")]
        image, class_index, labels = (x[order] for x in (entries.image, entries.class_index, entries.labels))
        hits = np.flatnonzero(labels > 0.0)
        self._hit_image, self._hit_class, self._hit_label = image[hits], class_index[hits], labels[hits]
        self._miss_image = image[labels <= 0.0]
        self._misses_before = hits - np.arange(len(hits))
        classes = np.arange(num_classes)
        self._first_hit = np.searchsorted(self._hit_class, classes)[self._hit_class]
        self._first_miss = np.searchsorted(class_index[labels <= 0.0], classes)[self._hit_class]
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
        gained = times[self._hit_image] * self._hit_label
        hits, misses = np.zeros(len(gained) + 1), np.zeros(len(self._miss_image) + 1)
        np.cumsum(gained, out=hits[1:])
        np.cumsum(times[self._miss_image], out=misses[1:])
        hits = hits[1:] - hits[self._first_hit]
        misses = misses[self._misses_before] - misses[self._first_miss]
        precision = hits / np.maximum(hits + misses, 1e-300)
        step = 2.0 * self._hit_class  # lets the running maximum, from the last class to the first, start anew in each
        envelope = np.maximum.accumulate((precision - step)[::-1])[::-1] + step
        areas = np.bincount(self._hit_class, weights=gained * envelope, minlength=self.num_classes)
        weights = self._box_weight * times[self._box_image]
        num_gt = np.bincount(self._box_class, weights=weights, minlength=self.num_classes)
        return np.divide(areas, num_gt, out=np.zeros(self.num_classes), where=num_gt > 0.0), num_gt

    def mean_average_precision(self, times: np.ndarray | None = None) -> float:
        """mAP over the classes with ground truth, nan if there are none; `times` as for `average_precision`."""
        return mean_of_folds([self], times)


def mean_of_folds(folds: Sequence[Curves], times: np.ndarray | None = None) -> float:
    """mAP of folds whose scores are not comparable, because each was fused with its own settings.

    The AP of a class is the mean of its APs in the folds, weighted by the ground truth there. nan if there is no ground
    truth; `times` as for `Curves.average_precision`.
    """
    found, num_gt = zip(*(fold.average_precision(times) for fold in folds), strict=True)
    total, weighted = np.sum(num_gt, axis=0), np.sum(np.multiply(found, num_gt), axis=0)
    return float(np.mean(weighted[total > 0] / total[total > 0])) if np.any(total > 0) else float("nan")


def bootstrap(measure: Callable[[np.ndarray], Sequence[float]], fold: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Measures on images drawn with replacement within their fold.

    Args:
        measure: takes `(images,)`, how often each image was drawn, and returns K numbers.
        fold: `(images,)` int64.

    Returns:
        `(draws, K)` float64.
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
