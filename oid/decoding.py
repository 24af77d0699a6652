"""From a network's class outputs to the best (anchor, class) pairs, on the CPU.

One pass over all outputs finds every anchor's best class, at the speed of the memory; what follows looks at few rows.
On outputs of an accelerator the network's own graph does the same (`models.decoding.TopBoxes`).
"""

from typing import Literal

import numba
import numpy as np

ROWS_AT_ONCE = 256  # rows of the softmax at a time, so that its temporary arrays stay in the cache


def best_pairs(
    logits: np.ndarray,
    *,
    count: int,
    score_threshold: float = 0.0,
    activation: Literal["sigmoid", "softmax"] = "sigmoid",
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the `count` pairs of an anchor and a class with the highest scores.

    The result is exact, and equal scores have an order: the lower anchor first, then the lower class. "sigmoid"
    compares logits, not scores: logits above 37 are all score 1.0, but the highest still comes first.

    1. Every anchor's best class. An anchor that is none of the `count` best by it (equal ones: lower anchor first) is
       in no pair of the result: the best pairs of those `count` anchors all come before its own.
    2. The score of the last of these anchors bounds the pairs that are looked at in their rows.

    Args:
        logits: (anchors, classes) float32, as the network gives them; another type is converted first, which costs
            more than everything else here. NaN is in no pair.
        count: pairs, at most.
        score_threshold: pairs with a lower score are left out.
        activation: "sigmoid" makes each logit a score; "softmax" makes each row scores that sum to 1, and class 0 is
            the background, which is in no pair and is not counted: logits[:, 1] belongs to class 0 of the result.

    Returns:
        (K,) int64, anchor * classes + class, and (K,) float64 scores, descending.

    Raises:
        ValueError: `logits` has another shape, `count` is below 1, or the activation is unknown.
    """
    logits = np.ascontiguousarray(logits, dtype=np.float32)
    background = int(activation == "softmax")
    if logits.ndim != 2 or logits.shape[1] <= background:
        raise ValueError(f"logits have the shape {logits.shape}, expected (anchors, classes)")
    if count < 1:
        raise ValueError(f"count is {count}, expected at least 1")
    if activation == "sigmoid":
        pairs, values = _best_of_logits(logits, count, _logit_below(score_threshold))
        with np.errstate(over="ignore"):  # exp(750) is infinite and 1 / infinity is the 0 that is wanted
            scores = 1.0 / (1.0 + np.exp(-values.astype(np.float64)))
    elif activation == "softmax":
        pairs, values = _best_of_softmax(logits, count, score_threshold)
        scores = np.exp(values)
    else:
        raise ValueError(f"unknown activation {activation!r}, there are sigmoid, softmax")
    good = scores >= score_threshold
    return pairs[good], scores[good]


def _best_of_logits(logits: np.ndarray, count: int, lowest: float) -> tuple[np.ndarray, np.ndarray]:
    """The best entries that are at least `lowest`: indices in the flat array and values, descending."""
    best = row_maxima(logits)
    rows = np.flatnonzero(best >= lowest)
    rows = rows[_best(best[rows], count)]
    if len(rows) == count:  # any entry below the best one of the last row has `count` entries before it
        lowest = best[rows].min()
    return _best_entries(logits[rows], rows, count, lowest)


def _best_of_softmax(logits: np.ndarray, count: int, score_threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The same of the logarithms of the probabilities, in float64, without column 0.

    A class's probability is below that among itself and the background alone: where this does not reach the threshold,
    the sum over all classes is not needed.
    """
    best = row_maxima(logits, 1)
    with np.errstate(invalid="ignore"):
        rows = np.flatnonzero(best - logits[:, 0] >= _logit_below(score_threshold))
    shift = _log_sum_exp(logits, rows, np.maximum(best, logits[:, 0])[rows])
    rows, shift = rows[np.isfinite(shift)], shift[np.isfinite(shift)]
    values = best[rows] - shift
    chosen = _best(values, count)
    lowest = np.log(score_threshold) - 1e-3 if score_threshold > 0 else -np.inf
    if len(chosen) == count:
        lowest = values[chosen].min()
    rows, shift = rows[chosen], shift[chosen]
    return _best_entries(logits[rows, 1:] - shift[:, None], rows, count, lowest)


def _best_entries(values: np.ndarray, rows: np.ndarray, count: int, lowest: float) -> tuple[np.ndarray, np.ndarray]:
    """The best `count` entries of some rows that are at least `lowest`, descending; flat indices as if all rows were
    there."""
    columns = values.shape[1]
    flat = np.flatnonzero(values >= lowest)
    values = values.ravel()[flat]
    chosen = _best(values, count)
    flat, values = flat[chosen], values[chosen]
    order = np.argsort(-values, kind="stable")
    row, column = np.divmod(flat[order], columns)
    return rows[row] * columns + column, values[order]


def row_maxima(values: np.ndarray, first: int = 0) -> np.ndarray:
    """The highest number of each row of (N, M) float32, from column `first` on; NaN only where all are NaN."""
    keys = _row_maxima(values.view(np.int32), first)
    maxima = _ordered(keys).view(np.float32)
    nan = np.flatnonzero(np.isnan(maxima))
    maxima[nan] = np.fmax.reduce(values[nan, first:], axis=1)
    return maxima


@numba.njit(cache=True)
def _ordered(bits):
    """Integers that are ordered as the float32 numbers whose bits are given; applied again it gives the bits back.

    All bits but the sign of the negative numbers are flipped. NaN comes before or after all numbers.
    """
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@numba.njit(cache=True)
def _row_maxima(bits, first):
    """Row maxima of `_ordered(bits)` (N, M). Unlike a maximum of floats, which NaN makes depend on the order, one of
    integers becomes vector instructions: four times as fast, as fast as the memory gives the numbers."""
    maxima = np.empty(len(bits), np.int32)
    for i in range(len(bits)):
        highest = np.int32(-(2**31))
        row = bits[i, first:]
        for j in range(len(row)):
            highest = max(highest, _ordered(row[j]))
        maxima[i] = highest
    return maxima


def _best(values: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices of the `count` highest of (N,) `values`; of equal ones the first."""
    if len(values) <= count:
        return np.arange(len(values))
    last = np.partition(values, -count)[-count]
    above, equal = np.flatnonzero(values > last), np.flatnonzero(values == last)
    return np.sort(np.concatenate([above, equal[: count - len(above)]]))


def _logit_below(score: float) -> float:
    """A logit a little below that of `score`: a quick first filter, which may let too much through."""
    if score <= 0.0:
        return -np.inf
    score = min(score, 0.999)  # near 1 rounding makes equal scores of logits far apart
    return np.log(score) - np.log1p(-score) - 1e-3


def _log_sum_exp(logits: np.ndarray, rows: np.ndarray, highest: np.ndarray) -> np.ndarray:
    """log(sum(exp)) of these rows in float64; equal rows give equal numbers, wherever they are. `highest` is each row's
    maximum, which keeps exp from overflowing."""
    result = np.empty(len(rows))
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        with np.errstate(invalid="ignore"):  # infinity - infinity; the row is left out
            differences = logits[rows[part]] - highest[part, None]
        sums = np.exp(differences, out=differences).sum(axis=1)
        result[part] = highest[part] + np.log(sums.astype(np.float64))
    return result
