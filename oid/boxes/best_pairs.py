"""From a network's class outputs to the best (anchor, class) pairs, on the CPU.

One pass over all outputs finds every anchor's best class, at the speed of the memory. The rest reads few rows. The
network's graph does the same on an accelerator (`models.decoding.TopBoxes`).
"""

import math
from typing import Literal

import numba
import numpy as np

LOG2_E = np.float32(math.log2(math.e))
SERIES = tuple(np.float32(math.log(2) ** k / math.factorial(k)) for k in range(8))  # of 2**f


def best_pairs(
    logits: np.ndarray,
    *,
    count: int,
    score_threshold: float = 0.0,
    activation: Literal["sigmoid", "softmax"] = "sigmoid",
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the `count` pairs of an anchor and a class with the highest scores.

    The result is exact. Equal scores are ordered: the lower anchor first, then the lower class. "sigmoid" compares
    logits, because all logits above 37 have the score 1.0.

    1. Find every anchor's best class, and the `count` best anchors by it (of equal ones the lower). No other anchor
       can be in the result, because the best pairs of these anchors all come before its own.
    2. Search the rows of these anchors, for pairs that are at least as good as the last anchor's best.

    Args:
        logits: `(anchors, classes)` float32; converting another type costs more than everything else here. NaN counts
            as -inf and is in no pair.
        count: maximum number of pairs.
        score_threshold: pairs with a lower score are left out.
        activation: "sigmoid" is applied to each logit. "softmax" is applied to each row, whose first column is the
            background: it is in no pair, and logits[:, 1] are class 0 of the result.

    Returns:
        `(K,)` int64, anchor * classes + class, and `(K,)` float64 scores, descending.

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
        no_shift = np.zeros(len(logits), np.float32)
        pairs, values = _best_entries(logits, row_maxima(logits), no_shift, _logit_below(score_threshold), count)
        with np.errstate(over="ignore"):  # exp(750) is infinite and 1 / infinity is the 0 that is wanted
            scores = 1.0 / (1.0 + np.exp(-values.astype(np.float64)))
    elif activation == "softmax":
        pairs, values = _best_of_softmax(logits, count, score_threshold)
        scores = np.exp(values)
    else:
        raise ValueError(f"unknown activation {activation!r}, there are sigmoid, softmax")
    good = scores >= score_threshold
    return pairs[good], scores[good]


def _best_of_softmax(logits: np.ndarray, count: int, score_threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The best entries of the logarithms of the probabilities without column 0: flat indices, and float64 values."""
    best, highest, sums = _softmax_rows(logits, logits.view(np.int32))
    with np.errstate(invalid="ignore"):  # infinity - infinity: such a row is left out
        shift = highest + np.log(sums.astype(np.float64))
        best = best - shift
    lowest = np.log(score_threshold) - 1e-3 if score_threshold > 0 else -np.inf
    return _best_entries(logits[:, 1:], best, shift, lowest, count)


def _best_entries(
    logits: np.ndarray, best: np.ndarray, shift: np.ndarray, lowest: float, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best entries of `logits - shift[:, None]` that are at least `lowest`; `best` are the maxima of its rows.

    Returns flat indices, and values in descending order. Only rows that may have one of the best entries are read.
    """
    rows = np.flatnonzero(best >= lowest)
    rows = rows[_best(best[rows], count)]
    if len(rows) == count:  # any entry below the best one of the last row has `count` entries before it
        lowest = best[rows].min()
    logits, shift = logits[rows], shift[rows]
    with np.errstate(invalid="ignore"):
        limits = np.nextafter((lowest + shift).astype(np.float32), np.float32(-np.inf))
    columns = logits.shape[1]
    flat = np.flatnonzero(logits >= limits[:, None])
    values = logits.ravel()[flat] - shift[flat // columns]
    chosen = _best(values, count)
    chosen = chosen[np.argsort(-values[chosen], kind="stable")]
    row, column = np.divmod(flat[chosen], columns)
    return rows[row] * columns + column, values[chosen]


def _best(values: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices of the `count` highest of (N,) `values`; of equal ones the first."""
    if len(values) <= count:
        return np.arange(len(values))
    last = np.partition(values, -count)[-count]
    above, equal = np.flatnonzero(values > last), np.flatnonzero(values == last)
    return np.sort(np.concatenate([above, equal[: count - len(above)]]))


def _logit_below(score: float) -> float:
    """A logit slightly below that of `score`, for a first filter that may let too much through."""
    if score <= 0.0:
        return -np.inf
    score = min(score, 0.999)  # near 1 rounding makes equal scores of logits far apart
    return np.log(score) - np.log1p(-score) - 1e-3


def row_maxima(values: np.ndarray) -> np.ndarray:
    """`(N,)` highest number of each row of contiguous `(N, M)` float32; NaN only if the whole row is NaN."""
    return _row_maxima(values.view(np.int32))


@numba.njit(cache=True)
def _row_maxima(bits):
    maxima = np.empty(len(bits), np.float32)
    for i in range(len(bits)):
        maxima[i] = _maximum(bits[i])
    return maxima


@numba.njit(cache=True)
def _maximum(bits):
    """The highest of the float32 numbers whose bits are given, NaN if all are NaN.

    If all bits but the sign of negative numbers are flipped, the bits are integers in the order of the numbers. Their
    maximum compiles to vector instructions and is limited by memory only: four times as fast as a maximum of floats,
    which depends on the order because of NaN.
    """
    highest = np.int32(-(2**31))  # one of the NaN, below -inf
    for j in range(len(bits)):
        key = bits[j] ^ ((bits[j] >> np.int32(31)) & np.int32(0x7FFFFFFF))
        highest = max(highest, key if key <= np.int32(0x7F800000) else np.int32(-(2**31)))  # above +inf is NaN
    return np.int32(highest ^ ((highest >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


@numba.njit(cache=True)
def _softmax_rows(logits, bits):
    """For each row, the highest logit outside column 0, the highest of all, and the sum of exp(logit - highest)."""
    best, highest, sums = np.empty((3, len(logits)), np.float32)
    for i in range(len(logits)):
        best[i] = _maximum(bits[i, 1:])
        background = logits[i, 0]
        highest[i] = background if background > best[i] or np.isnan(best[i]) else best[i]
        sums[i] = _sum_of_exp(logits[i], highest[i])
    return best, highest, sums


@numba.njit(cache=True, fastmath={"reassoc", "contract"})  # sums in any order, but NaN stays NaN
def _sum_of_exp(logits, highest):
    """The sum of exp(logit - highest), in float32; NaN counts as -inf.

    exp is computed by products only, which compile to vector instructions: 2**t is 2**n, made from its bits, times 2**f
    with |f| <= 1/2, by a Taylor series whose first omitted term is below 1e-8.
    """
    total = np.float32(0.0)
    for j in range(len(logits)):
        t = (logits[j] - highest) * LOG2_E
        t = t if t > -126.0 else np.float32(-126.0)  # smaller ones add nothing, and have no such bits
        n = np.floor(t + np.float32(0.5))
        f = t - n
        power = SERIES[7]
        for k in range(6, -1, -1):
            power = power * f + SERIES[k]
        total += power * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return total
