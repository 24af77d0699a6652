"""Where mAP is lost: the kinds of error of TIDE, under the challenge's rules.

Bolya, Foley, Hays, Hoffman: "TIDE: A General Toolbox for Identifying Object Detection Errors" (ECCV 2020), section 2,
with t_f = the metric's IoU threshold and t_b = 0.1. Each false positive has the first kind that fits:

1. localisation: the box of its own class that it overlaps most does so by t_b or more, but by less than t_f;
2. classification: it overlaps a box of another class by t_f or more (`Confusion` counts which);
3. duplicate: it overlaps a box of its own class by t_f or more, which a better detection has found;
4. background: it overlaps no box of any class by t_b or more;
5. both: all others; wrong class, and localised badly.

A box is missed if nothing found it, and no error of localisation or classification would find it if it were fixed.
Where the paper leaves the order open, the order is that of the authors' program.

The challenge's rules add to this:

- A detection that they drop, or that a group-of box absorbs, is not an error.
- The overlap with a group-of box is intersection / area of the detection; ordinary boxes come first.
- A box that the detection's own class has, too, does not count as a box of another class: ancestors have such copies.
- If several classes have the box, the confused class is that of the first row, the annotated one.

The cost of a kind, dAP, is what mAP gains if all errors of this kind, and no others, are fixed:

- localisation and classification: the best detection that aims at an unfound box becomes its true positive; the other
  detections are removed;
- missed: the boxes leave the ground truth. A class with no box left has AP 0, or leaves the mean if it has no detection
  either; if all classes leave it, mAP is 1;
- the other kinds: the detections are removed.

The costs need not add up to 1 - mAP.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from oid.metric.challenge import Matcher, average_precisions, mean_of_defined, rows_by_class
from oid.metric.matching import CLASSIFICATION, MISSED, NO_ERROR, Block, Entries, classify_errors

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
BACKGROUND_OVERLAP = 0.1  # t_b


class Confusion(NamedTuple):
    """How often one class was taken for another."""

    predicted: int  # class index
    actual: int  # class index
    count: int  # detections
    score: float  # the sum of their scores


@dataclass(frozen=True)
class ErrorReport:
    """What `ErrorKinds.report` finds."""

    iou_threshold: float  # t_f
    counts: dict[str, int]  # {kind: number of detections, or of missed boxes}
    costs: dict[str, float]  # {kind: dAP}
    false_positives: float  # what mAP gains without any false positive
    false_negatives: float  # what mAP gains when every unfound box leaves the ground truth
    confusions: list[Confusion]  # errors of classification, the highest sum of scores first

    @property
    def shares(self) -> dict[str, float]:
        """{kind: its part of all costs}; 0 where there is no cost."""
        total = sum(self.costs.values())
        return {kind: cost / total if total > 0 else 0.0 for kind, cost in self.costs.items()}


class ErrorKinds:
    """Sorts the false positives of a `Matcher` by kind, block by block. Keeps 5 bytes for each entry."""

    def __init__(self, matcher: Matcher):
        self._matcher = matcher
        self._kinds = [np.zeros(0, np.uint8)]
        self._aims = [np.zeros(0, np.int32)]

    def add(self, entries: Entries, rows: np.ndarray, block: Block) -> None:
        """Takes what `Matcher.add` returned, each block once, in their order."""
        thresholds = BACKGROUND_OVERLAP, self._matcher.iou_threshold
        kinds, aims = classify_errors(entries, rows, block, self._matcher.targets, *thresholds)
        self._kinds.append(kinds)
        self._aims.append(aims)

    def report(self) -> ErrorReport:
        """Counts and costs of all kinds."""
        matcher, order = self._matcher, self._matcher.descending()
        scores, labels, class_index, _ = matcher.entries()
        kinds, aims = np.concatenate(self._kinds), np.concatenate(self._aims)
        columns = scores, labels, class_index, kinds, aims, _best_aims(scores, aims, matcher.found)
        scores, labels, class_index, kinds, aims, fixing = (column[order] for column in columns)
        weight = np.where(matcher.targets.group_of, matcher.group_of_weight, 1.0)
        unfound = matcher.found == 0
        missed = unfound & (weight > 0)
        missed[aims[fixing]] = False
        counts = np.bincount(kinds, minlength=NO_ERROR + 1)[: len(KINDS)]
        counts[MISSED] = np.count_nonzero(missed)
        entries = np.bincount(class_index, minlength=matcher.num_classes)

        def precisions(class_index: np.ndarray, labels: np.ndarray, num_gt: np.ndarray) -> np.ndarray:
            rows, first = rows_by_class(class_index, matcher.num_classes)
            return average_precisions(labels[rows], first, num_gt)

        now = mean_of_defined(precisions(class_index, labels, matcher.num_gt))

        def gain(wrong: np.ndarray, *, fix: bool = True, without: np.ndarray | None = None) -> float:
            """What mAP gains when the entries `wrong` are fixed, or go, and the boxes `without` are left out."""
            new_class, new_labels, num_gt = np.where(wrong, -1, class_index), labels.copy(), matcher.num_gt
            if fix:
                fixed = np.flatnonzero(wrong & fixing)
                fixed = fixed[weight[aims[fixed]] > 0]
                new_class[fixed] = matcher.targets.class_index[aims[fixed]]
                new_labels[fixed] = weight[aims[fixed]]
            if without is not None:
                less = np.bincount(matcher.targets.class_index, weight * without, minlength=matcher.num_classes)
                num_gt = np.maximum(num_gt - less, 0)
            found = precisions(new_class, new_labels, num_gt)
            found[np.isnan(found) & (matcher.num_gt > 0) & (entries > 0)] = 0.0
            mean = mean_of_defined(found)
            return (1.0 if np.isnan(mean) else mean) - now

        none = np.zeros(len(kinds), dtype=bool)
        costs = {kind: gain(kinds == number) for number, kind in enumerate(KINDS)}
        costs["missed"] = gain(none, without=missed)
        return ErrorReport(
            iou_threshold=matcher.iou_threshold,
            counts=dict(zip(KINDS, counts.tolist(), strict=True)),
            costs=costs,
            false_positives=gain(kinds != NO_ERROR, fix=False),
            false_negatives=gain(none, without=unfound),
            confusions=self._confusions(scores, kinds, class_index, aims),
        )

    def _confusions(
        self, scores: np.ndarray, kinds: np.ndarray, class_index: np.ndarray, aims: np.ndarray
    ) -> list[Confusion]:
        """Every pair of classes that occurs."""
        wrong = kinds == CLASSIFICATION
        size = self._matcher.num_classes
        pairs = class_index[wrong].astype(np.int64) * size + self._matcher.targets.class_index[aims[wrong]]
        values, where, count = np.unique(pairs, return_inverse=True, return_counts=True)
        total = np.bincount(where, weights=scores[wrong], minlength=len(values))
        order = np.argsort(-total, kind="stable")
        columns = (column[order].tolist() for column in (values // size, values % size, count, total))
        return [Confusion(*row) for row in zip(*columns, strict=True)]


def _best_aims(scores: np.ndarray, aims: np.ndarray, found: np.ndarray) -> np.ndarray:
    """`(E,)` bool, the entry of the highest score that aims at each unfound target; the first of equal scores.

    `aims` `(E,)` is the target of each entry or -1; `found` `(G,)` is 0 for an unfound target.
    """
    candidates = np.flatnonzero(aims >= 0)
    candidates = candidates[found[aims[candidates]] == 0]
    candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
    _, first = np.unique(aims[candidates], return_index=True)
    is_best = np.zeros(len(aims), dtype=bool)
    is_best[candidates[first]] = True
    return is_best
