"""Where mAP is lost: the kinds of error of TIDE, under the challenge's rules.

Bolya, Foley, Hays, Hoffman: "TIDE: A General Toolbox for Identifying Object Detection Errors" (ECCV 2020), section 2,
with t_f = the metric's IoU threshold and t_b = 0.1. Each false positive has the first kind that fits:

1. localisation: the box of its own class that it overlaps most does so by t_b or more, but by less than t_f;
2. classification: it overlaps a box of another class by t_f or more (`Confusion` counts which);
3. duplicate: it overlaps a box of its own class by t_f or more, which a better detection has found;
4. background: it overlaps no box of any class by t_b or more;
5. both: all others; wrong class, and localised badly.

Missed is a box that nothing found, and that no error of localisation or classification would find if it were fixed.
The order is that of the authors' program, where the paper leaves it open.

What the challenge's rules make of it: a detection that they drop, or that a group-of box absorbs, is no error. The
overlap with a group-of box is intersection / area of the detection, and ordinary boxes are asked first. A box that is
there in the detection's own class as well, as the copies at ancestors are, is not another class's. Of several copies
the first row, which is the annotated class, is what a detection is confused with.

The cost of a kind, dAP, is what mAP gains when all errors of the kind, and only these, are fixed. Localisation and
classification: the best of the detections that aim at a box that nothing found becomes its true positive, the others
go. Missed: the boxes leave the number of ground truth; a class with nothing left to find has AP 0, or leaves the mean
where it has no detection either, and where all classes do, mAP is 1. The other kinds: the detections go. The costs do
not add up to 1 - mAP: fixing two kinds may gain more, or less, than the sum.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np

from oid.metric.challenge import Block, Matcher, average_precisions, mean_of_defined
from oid.metric.matching import overlap_with

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(6)
NO_ERROR = 255
BACKGROUND_OVERLAP = 0.1  # t_b


class Confusion(NamedTuple):
    """How often one class was taken for another: class indices, number of detections, and the sum of their scores."""

    predicted: int
    actual: int
    count: int
    score: float


@dataclass(frozen=True)
class ErrorReport:
    """What `ErrorKinds.report` finds.

    Attributes:
        iou_threshold: t_f.
        counts: {kind: number of detections, or of missed boxes}.
        costs: {kind: dAP}.
        false_positives: what mAP gains without any false positive.
        false_negatives: what it gains when every box that nothing found leaves the ground truth.
        confusions: errors of classification, the highest sum of scores first.
    """

    iou_threshold: float
    counts: dict[str, int]
    costs: dict[str, float]
    false_positives: float
    false_negatives: float
    confusions: list[Confusion]

    @property
    def shares(self) -> dict[str, float]:
        """{kind: its part of all costs}; 0 where there is no cost."""
        total = sum(self.costs.values())
        return {kind: cost / total if total > 0 else 0.0 for kind, cost in self.costs.items()}


class ErrorKinds:
    """Sorts the false positives of a `Matcher` by kind, block by block: 5 bytes for an entry."""

    def __init__(self, matcher: Matcher):
        self._matcher = matcher
        self._kinds: list[np.ndarray] = []
        self._aims: list[np.ndarray] = []

    def add(self, block: Block) -> None:
        """Takes what `Matcher.add` returned, each block once, in their order."""
        matcher = self._matcher
        entries = block.entry_row, block.entry_label, block.entry_image
        thresholds = BACKGROUND_OVERLAP, matcher.iou_threshold
        kinds, aims = _kinds(*entries, block.class_index, block.boxes, matcher.targets, *thresholds)
        self._kinds.append(kinds)
        self._aims.append(aims)

    def report(self) -> ErrorReport:
        """Counts and costs of all kinds."""
        matcher = self._matcher
        scores, labels, class_index, _ = matcher.columns()
        kinds = np.concatenate([np.zeros(0, np.uint8), *self._kinds])
        aims = np.concatenate([np.zeros(0, np.int32), *self._aims])
        fixing = _best_aims(scores, aims, matcher.found)
        aimed_at = np.zeros(len(matcher.found), dtype=bool)
        aimed_at[aims[fixing]] = True
        weight = np.where(matcher.targets.group_of, matcher.group_of_weight, 1.0)
        unfound = matcher.found == 0
        missed = unfound & ~aimed_at & (weight > 0)
        counts = np.bincount(kinds, minlength=NO_ERROR + 1)[: len(KINDS)]
        counts[MISSED] = np.count_nonzero(missed)

        order = matcher.descending()
        labels, class_index, kinds, aims, fixing = (a[order] for a in (labels, class_index, kinds, aims, fixing))
        entries = np.bincount(class_index, minlength=matcher.num_classes)

        def gain(wrong: np.ndarray, gone: np.ndarray) -> float:
            """mAP with the entries `wrong` fixed and the boxes `gone` left out, less the mAP of now."""
            fixed = wrong & fixing
            fixed[fixed] = weight[aims[fixed]] > 0
            new_class, new_labels = np.where(wrong, -1, class_index), labels.copy()
            new_class[fixed], new_labels[fixed] = matcher.targets.class_index[aims[fixed]], weight[aims[fixed]]
            less = np.bincount(matcher.targets.class_index, weights=weight * gone, minlength=matcher.num_classes)
            found = average_precisions(new_class, new_labels, np.maximum(matcher.num_gt - less, 0))
            found[np.isnan(found) & (matcher.num_gt > 0) & (entries > 0)] = 0.0
            mean = mean_of_defined(found)
            return (1.0 if np.isnan(mean) else mean) - now

        now = mean_of_defined(average_precisions(class_index, labels, matcher.num_gt))
        nothing = np.zeros(len(matcher.found), dtype=bool)
        costs = [gain(kinds == kind, missed if kind == MISSED else nothing) for kind in range(len(KINDS))]
        fixing[:] = False  # from here on whatever is wrong goes
        return ErrorReport(
            iou_threshold=matcher.iou_threshold,
            counts=dict(zip(KINDS, counts.tolist(), strict=True)),
            costs=dict(zip(KINDS, costs, strict=True)),
            false_positives=gain(kinds != NO_ERROR, nothing),
            false_negatives=gain(kinds == MISSED, unfound),
            confusions=self._confusions(scores[order], kinds, class_index, aims),
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
        columns = (values // size, values % size, count, total)
        found = [Confusion(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
        return sorted(found, key=lambda confusion: -confusion.score)


@numba.njit(cache=True, nogil=True)
def _kinds(entry_row, entry_label, entry_image, class_index, boxes, targets, low, high):
    """The kind `(E,)` uint8 of each entry, `NO_ERROR` where it counts, and what it aims at `(E,)` int32, or -1."""
    kinds = np.full(len(entry_row), NO_ERROR, dtype=np.uint8)
    aims = np.full(len(entry_row), -1, dtype=np.int32)
    for entry in range(len(entry_row)):
        row = entry_row[entry]
        if row >= 0 and entry_label[entry] == 0:
            kinds[entry], aims[entry] = _kind(boxes[row], class_index[row], entry_image[entry], targets, low, high)
    return kinds, aims


@numba.njit(cache=True, nogil=True)
def _kind(box, own, image, targets, low, high):
    """The kind of one false positive of class `own`, and its target, or -1; `low` and `high` are t_b and t_f."""
    first, last = targets.first[image], targets.first[image + 1]
    start = first
    while start < last and targets.class_index[start] < own:
        start += 1
    end = start
    mine, most_mine = np.array([-1, -1]), np.zeros(2)  # ordinary boxes, group-of boxes
    while end < last and targets.class_index[end] == own:
        group = int(targets.group_of[end])
        overlap = overlap_with(box, targets.boxes[end], group)
        if overlap > most_mine[group]:
            mine[group], most_mine[group] = end, overlap
        end += 1
    for group in range(2):
        if low <= most_mine[group] < high:
            return LOCALISATION, mine[group]
        if most_mine[group] >= high:
            break
    other, most_other = np.array([-1, -1]), np.zeros(2)
    for j in range(first, last):
        if start <= j < end:
            continue
        group = int(targets.group_of[j])
        overlap = overlap_with(box, targets.boxes[j], group)
        is_better = overlap > most_other[group]
        if overlap == most_other[group] and other[group] >= 0:
            is_better = targets.row[j] < targets.row[other[group]]
        if is_better and not _is_copy(targets, j, start, end):
            other[group], most_other[group] = j, overlap
    for group in range(2):
        if most_other[group] >= high:
            return CLASSIFICATION, other[group]
    if most_mine[0] >= high:
        return DUPLICATE, -1
    return BOTH if max(most_other.max(), most_mine.max()) >= low else BACKGROUND, -1


@numba.njit(cache=True, nogil=True)
def _is_copy(targets, j, start, end):
    """Whether one of the targets from `start` to `end` is the box of target `j`."""
    for k in range(start, end):
        same = targets.group_of[k] == targets.group_of[j]
        for side in range(4):
            same = same and targets.boxes[k, side] == targets.boxes[j, side]
        if same:
            return True
    return False


@numba.njit(cache=True, nogil=True)
def _best_aims(scores, aims, found):
    """Which entries `(E,)` are the best of those that aim at a target that nothing found; the first of equals."""
    best = np.full(len(found), -1, dtype=np.int64)
    for entry in range(len(aims)):
        aim = aims[entry]
        if aim >= 0 and found[aim] == 0 and (best[aim] < 0 or scores[entry] > scores[best[aim]]):
            best[aim] = entry
    is_best = np.zeros(len(aims), dtype=np.bool_)
    for entry in best:
        if entry >= 0:
            is_best[entry] = True
    return is_best
