"""Stable orders of long arrays, in linear time: what sorting costs most of in a metric over millions of scores.

On 12 million numbers NumPy's stable sort takes about five times as long.
"""

import numba
import numpy as np

_SHORT = 4096  # below it NumPy is faster than filling histograms
_DIGIT_BITS = 11
_DIGIT = 2**_DIGIT_BITS - 1


def ascending(values: np.ndarray) -> np.ndarray:
    """`np.argsort(values, kind="stable")` for `(N,)` float64 without nan: `(N,)` integers."""
    values = np.ascontiguousarray(values, dtype=np.float64)
    if len(values) < _SHORT:
        return np.argsort(values, kind="stable")
    return _radix_order((values + 0.0).view(np.uint64))  # + 0.0 makes -0.0 equal to 0.0


def grouped(keys: np.ndarray, num_keys: int) -> tuple[np.ndarray, np.ndarray]:
    """`np.argsort(keys, kind="stable")` for `(N,)` integers in [0, `num_keys`), and where each key begins.

    Returns:
        `(N,)` integers, and `(num_keys + 1,)` int64: key k is at the positions first[k] to first[k + 1] of the order.
    """
    return _counting_order(np.ascontiguousarray(keys), num_keys)


@numba.njit(cache=True, nogil=True)
def _radix_order(keys):
    """Sorts by one digit after the other, the lowest first; `keys` is `(N,)` uint64, the bits of floats."""
    n = len(keys)
    low, high = np.empty(n, dtype=np.uint64), np.empty(n, dtype=np.uint64)
    order, other = np.empty(n, dtype=np.int32), np.empty(n, dtype=np.int32)
    passes = (64 + _DIGIT_BITS - 1) // _DIGIT_BITS
    counts = np.zeros((passes, _DIGIT + 1), dtype=np.int64)
    sign = np.uint64(1) << np.uint64(63)
    for i in range(n):  # the order of the floats' bits, as whole numbers, becomes that of the floats
        key = keys[i]
        key = ~key if key & sign else key | sign
        low[i], order[i] = key, i
        for digit in range(passes):
            counts[digit, (key >> np.uint64(digit * _DIGIT_BITS)) & np.uint64(_DIGIT)] += 1
    for digit in range(passes):
        count = counts[digit]
        if count.max() == n:
            continue
        total = 0
        for value in range(_DIGIT + 1):
            count[value], total = total, total + count[value]
        shift = np.uint64(digit * _DIGIT_BITS)
        for i in range(n):
            value = (low[i] >> shift) & np.uint64(_DIGIT)
            place = count[value]
            count[value] = place + 1
            high[place], other[place] = low[i], order[i]
        low, high = high, low
        order, other = other, order
    return order


@numba.njit(cache=True, nogil=True)
def _counting_order(keys, num_keys):
    first = np.zeros(num_keys + 1, dtype=np.int64)
    for key in keys:
        first[key + 1] += 1
    for key in range(num_keys):
        first[key + 1] += first[key]
    place = first[:-1].copy()
    order = np.empty(len(keys), dtype=np.int64)
    for i in range(len(keys)):
        order[place[keys[i]]] = i
        place[keys[i]] += 1
    return order, first
