"""The compiled writer of prediction text, character for character as Python formats the numbers.

A score is `f"{score:.9g}"`, a coordinate `f"{coordinate:.6f}"`. What is rare (labels that need quotation marks, very
large numbers) is left to the caller: the function stops at the row and says so. Numba takes a quarter of a second to
import, so `oid/predictions.py` imports this module when there is something to write.
"""

import numba
import numpy as np

DONE, PLAIN = 0, 1  # why `write_rows` returns: all rows done, a row for the plain way
NUMBERS_SIZE = 16 + 4 * 19 + 6  # no score, four coordinates and the spaces of a box have more characters

_NEWLINE, _SPACE, _POINT, _MINUS, _ZERO, _E = 10, 32, 46, 45, 48, 101
_POWERS = np.array([10.0**power for power in range(23)])  # exact
_INTEGER_POWERS = np.array([10**power for power in range(10)], dtype=np.uint64)
_TEN, _MILLION = np.uint64(10), np.uint64(10**6)  # unsigned numbers are divided faster


@numba.njit(cache=True, nogil=True, error_model="numpy")
def write_rows(begin, end, ids, id_starts, names, name_starts, offsets, labels, scores, boxes, out):
    """Writes the images `begin` to `end` as rows of the Kaggle form.

    Args:
        ids: uint8, what comes before the prediction strings, joined; image i's is `ids[id_starts[i]:id_starts[i + 1]]`.
        names: uint8, the labels, joined, as `ids`; one of length 0 is for the plain way.
        offsets: (I + 1,) the boxes of image i are offsets[i] to offsets[i + 1].
        labels, scores, boxes: (N,) into the names, (N,) and (N, 4), finite.
        out: uint8, filled; per row it needs the id, a line end, and per box the label and `NUMBERS_SIZE`.

    Returns:
        the image it stopped at, `DONE` or `PLAIN`, and how many bytes were written, those of this image excluded.
    """
    length = 0
    for image in range(begin, end):
        i = _copy(ids, id_starts[image], id_starts[image + 1], out, length)
        for box in range(offsets[image], offsets[image + 1]):
            name = labels[box]
            if name_starts[name] == name_starts[name + 1]:
                return image, PLAIN, length
            if box > offsets[image]:
                out[i] = _SPACE
                i += 1
            i = _copy(names, name_starts[name], name_starts[name + 1], out, i)
            out[i] = _SPACE
            i = _write_score(scores[box], out, i + 1)
            for column in range(4):
                if i < 0:
                    return image, PLAIN, length
                out[i] = _SPACE
                i = _write_coordinate(boxes[box, column], out, i + 1)
            if i < 0:
                return image, PLAIN, length
        out[i] = _NEWLINE
        length = i + 1
    return end, DONE, length


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _copy(source, start, stop, out, i):
    for k in range(start, stop):
        out[i] = source[k]
        i += 1
    return i


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _write_coordinate(value, out, i):
    """Writes `f"{value:.6f}"` and returns where it ends, or -1 from four thousand millions on."""
    magnitude = abs(value)
    if not magnitude < 4e9:
        return -1
    if np.signbit(value):
        out[i] = _MINUS
        i += 1
    scaled = _times_power(magnitude, 6)
    whole = scaled // _MILLION
    if whole < _TEN:
        out[i] = _ZERO + whole
        i += 1
    else:
        i = _write_digits(whole, _num_digits(whole), out, i)
    out[i] = _POINT
    return _write_digits(scaled - whole * _MILLION, 6, out, i + 1)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _write_score(value, out, i):
    """Writes `f"{value:.9g}"` and returns where it ends, or -1 where that is unusually small or large."""
    if np.signbit(value):
        out[i] = _MINUS
        i += 1
    magnitude = abs(value)
    if magnitude == 0.0:
        out[i] = _ZERO
        return i + 1
    if not 1e-14 <= magnitude < 1e8:
        return -1
    power = 0  # the decimal exponent of the first digit
    while magnitude >= _POWERS[power + 1]:
        power += 1
    if magnitude < 1.0:
        power = -1
        while magnitude * _POWERS[-power] < 1.0:
            power -= 1
    digits, count = _times_power(magnitude, 8 - power), 9
    if digits == _INTEGER_POWERS[9]:
        digits, power = _INTEGER_POWERS[8], power + 1
    while digits % _TEN == 0:
        digits //= _TEN
        count -= 1
    if power < -4:
        i = _write_decimal(digits, count, 1, out, i)
        out[i], out[i + 1] = _E, _MINUS
        return _write_digits(np.uint64(-power), 2, out, i + 2)
    if power >= 0:
        return _write_decimal(digits, count, power + 1, out, i)
    out[i], out[i + 1] = _ZERO, _POINT
    i = _write_digits(np.uint64(0), -power - 1, out, i + 2)
    return _write_digits(digits, count, out, i)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _write_decimal(digits, count, before, out, i):
    """Writes a number of `count` digits with the point after the first `before` of them."""
    if count <= before:
        return _write_digits(digits * _INTEGER_POWERS[before - count], before, out, i)
    below = _INTEGER_POWERS[count - before]
    i = _write_digits(digits // below, before, out, i)
    out[i] = _POINT
    return _write_digits(digits % below, count - before, out, i + 1)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _write_digits(number, count, out, i):
    """Writes `count` digits, with leading zeros, and returns where they end."""
    for k in range(i + count - 1, i - 1, -1):
        rest = number // _TEN
        out[k] = _ZERO + (number - rest * _TEN)
        number = rest
    return i + count


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _num_digits(number):
    count = 1
    while number >= _TEN:
        number //= _TEN
        count += 1
    return count


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _times_power(value, power):
    """The integer next to value * 10**power, of two the even one, as uint64; 0 <= value, the result is below 2**52.

    The product is rounded, so its error is computed (Dekker 1971): it decides what is half way and what is not.
    """
    factor = _POWERS[power]
    product = value * factor
    whole = np.int64(product)
    rest = product - whole
    if rest == 0.5:
        big, other = 134217729.0 * value, 134217729.0 * factor  # 2**27 + 1 splits a double in two halves
        value_high, factor_high = big - (big - value), other - (other - factor)
        value_low, factor_low = value - value_high, factor - factor_high
        error = value_low * factor_low - (
            ((product - value_high * factor_high) - value_low * factor_high) - value_high * factor_low
        )
        whole += error > 0.0 or (error == 0.0 and whole % 2 == 1)
    elif rest > 0.5:
        whole += 1
    return np.uint64(whole)
