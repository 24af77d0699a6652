"""The metric on any choice of images, from one matching: for folds, and for the bootstrap over images.

Matching looks at one image at a time, so that precision and recall of some of the images follow from the entries of
all of them: those of the other images are skipped, in the same order of scores. An image that was drawn twice counts
twice, in entries and in boxes to find (its copies would tie in score; they are taken at once).

Images may be divided into strata. Then entries are ranked in each stratum by itself, and the AP of a class is the mean
of its APs in the strata, weighted by the boxes to find there. This is how detections are measured whose scores have
another meaning in each stratum, for example because each was fused with other settings: ranking them together would
compare what cannot be compared. With one stratum it is the metric itself.
"""

import dataclasses

import numba
import numpy as np

from oid.metric.challenge import Entries, GroundTruth
from oid.metric.ordering import ascending, grouped


@dataclasses.dataclass(frozen=True)
class Curves:
    """Matched detections, ready to be measured on any choice of images. Made by `curves`.

    A group is one class in one stratum: group = class x number of strata + stratum.

    Attributes:
        num_classes: classes of the metric.
        num_strata: 1 unless the images are divided.
        starts: `(groups + 1,)` int64, the entries of group g are starts[g] to starts[g + 1].
        image: `(E,)` int64, of each entry; in a group in descending order of score.
        labels: `(E,)` float64, what each entry counts as true positives, 0 = a false positive.
        box_group: `(B,)` int64, group of each box to find.
        box_image: `(B,)` int64.
        box_weight: `(B,)` float64, 1, or less for a group-of box.
        num_images: of the ground truth.
    """

    num_classes: int
    num_strata: int
    starts: np.ndarray
    image: np.ndarray
    labels: np.ndarray
    box_group: np.ndarray
    box_image: np.ndarray
    box_weight: np.ndarray
    num_images: int

    def average_precision(self, times: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """AP of every class in every stratum.

        Args:
            times: `(images,)` how often each image counts; None = once.

        Returns:
            AP `(classes, strata)` float64, nan where there is nothing to find, and the number to find, `(classes,
            strata)` float64.
        """
        times = np.ones(self.num_images) if times is None else np.ascontiguousarray(times, dtype=np.float64)
        if times.shape != (self.num_images,):
            raise ValueError(f"times has the shape {times.shape}, but there are {self.num_images} images")
        weights = self.box_weight * times[self.box_image]
        num_gt = np.bincount(self.box_group, weights=weights, minlength=len(self.starts) - 1)
        found = _average_precision(self.starts, self.image, self.labels, times, num_gt)
        return found.reshape(self.num_classes, -1), num_gt.reshape(self.num_classes, -1)

    def mean_average_precision(self, times: np.ndarray | None = None) -> float:
        """mAP over the classes with something to find, nan without any; `times` as in `average_precision`."""
        found, num_gt = self.average_precision(times)
        total = num_gt.sum(axis=1)
        weighted = np.where(num_gt > 0, found * num_gt, 0.0).sum(axis=1)
        return float(np.mean(weighted[total > 0] / total[total > 0])) if np.any(total > 0) else float("nan")


def curves(
    entries: Entries,
    truth: GroundTruth,
    *,
    num_classes: int,
    group_of_weight: float = 1.0,
    stratum: np.ndarray | None = None,
) -> Curves:
    """Sorts what `oid.metric.challenge.score` has matched.

    Args:
        entries: the matched detections.
        truth: what they were matched with.
        num_classes, group_of_weight: as they were given to `oid.metric.challenge.score`.
        stratum: `(images,)` int64, 0 and up, the stratum of each image; None = one for all.
    """
    num_images = len(truth.image_ids)
    stratum = np.zeros(num_images, np.int64) if stratum is None else np.asarray(stratum, dtype=np.int64)
    num_strata = int(stratum.max(initial=0)) + 1
    groups = num_classes * num_strata
    group = entries.class_index * num_strata + stratum[entries.image]
    order = ascending(entries.scores)[::-1]  # of equal scores the later one first, as in the metric
    by_group, starts = grouped(group[order], groups)
    order = order[by_group]
    return Curves(
        num_classes=num_classes,
        num_strata=num_strata,
        starts=starts,
        image=entries.image[order],
        labels=entries.labels[order],
        box_group=truth.box_class * num_strata + stratum[truth.box_image],
        box_image=np.asarray(truth.box_image, dtype=np.int64),
        box_weight=np.where(truth.box_group_of, group_of_weight, 1.0),
        num_images=num_images,
    )


@numba.njit(cache=True, nogil=True)
def _average_precision(starts, image, labels, times, num_gt):
    """`(groups,)` AP: the area below the envelope of precision over recall.

    Recall grows and precision peaks at true positives only, so these alone are kept: (G,) at most, of E entries.
    """
    result = np.full(len(starts) - 1, np.nan)
    precision = np.empty(0)
    gained = np.empty(0)
    for group in range(len(starts) - 1):
        if num_gt[group] <= 0.0:
            continue
        size = starts[group + 1] - starts[group]
        if size > len(precision):
            precision, gained = np.empty(size), np.empty(size)
        hits = misses = 0.0
        count = 0
        for i in range(starts[group], starts[group + 1]):
            weight = times[image[i]]
            if weight == 0.0:
                continue
            if labels[i] > 0.0:
                hits += weight * labels[i]
                precision[count], gained[count] = hits / (hits + misses), weight * labels[i]
                count += 1
            else:
                misses += weight
        area = envelope = 0.0
        for k in range(count - 1, -1, -1):
            envelope = max(envelope, precision[k])
            area += gained[k] * envelope
        result[group] = area / num_gt[group]
    return result
