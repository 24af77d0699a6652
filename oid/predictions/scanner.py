"""The compiled reader of prediction text: bytes to numbers, exactly as Python reads them.

A number is `float(token)`, bit for bit. The functions here take what is common and plain ASCII. Whatever else they meet
(quotation marks, more than 19 digits, a mistake) they leave to their caller: they stop at the row and say so.

A file is an array of bytes (uint8). Numba takes a quarter of a second to import, so `oid/predictions.py` imports this
module when there is something to read.
"""

import math

import numba
import numpy as np

DONE, PLAIN, NEW_TEXT = 0, 1, 2  # why a function returns: all rows done, a row for the plain reader, an unknown text
START, STOP, COMMA, FLAGS = 0, 1, 2, 3  # the columns of the array that describes rows
SEPARATED, QUOTED = 1, 2  # a row's flags: it has a comma, a quotation mark

_NEWLINE, _RETURN, _QUOTE, _COMMA = 10, 13, 34, 44
_SPACE, _TAB, _POINT, _MINUS, _PLUS, _ZERO, _E = 32, 9, 46, 45, 43, 48, 101
_CHUNK = 64  # bytes that are looked at together where none of them is likely to matter

# 10**0 to 10**22 are doubles, so a product or a quotient with one of them is rounded only once (Clinger 1990).
_POWERS = np.array([10.0**power for power in range(23)])
_FIRST_POWER = -60
_LAST_POWER = 40


def _truncated_powers() -> np.ndarray:
    """(powers, 2) uint64: the upper 128 bits of 5**q, q from _FIRST_POWER to _LAST_POWER; rounded up where q < 0."""
    rows = []
    for q in range(_FIRST_POWER, _LAST_POWER + 1):
        if q >= 0:
            shift = 128 - (5**q).bit_length()
            bits = 5**q << shift if shift >= 0 else 5**q >> -shift
        else:
            bits = (1 << (127 + (5**-q).bit_length())) // 5**-q + 1
            bits >>= bits.bit_length() - 128
        rows.append((bits >> 64, bits & (2**64 - 1)))
    return np.array(rows, dtype=np.uint64)


_FIVES = _truncated_powers()


# === Rows and texts ===================================================================================================


@numba.njit(cache=True, nogil=True, error_model="numpy")
def find_rows(data, position, stop, rows):
    """Finds the rows that are not blank.

    Args:
        data: the file.
        position: where to begin, the first byte of a line.
        stop: where to look no further.
        rows: (R, 4) int64, filled: where each row starts and stops (its line end excluded), its first comma, its flags.

    Returns:
        how many rows were found, at most R, and where the next line begins.
    """
    count = 0
    while position < stop and count < len(rows):
        end, comma, flags = _row_at(data, position)
        if end > position:
            rows[count, START], rows[count, STOP], rows[count, COMMA], rows[count, FLAGS] = position, end, comma, flags
            count += 1
        position = end + 1
    return count, position


@numba.njit(cache=True, nogil=True, error_model="numpy")
def describe_rows(data, starts):
    """(R, 4) int64: the rows that begin at the bytes `starts`, as `find_rows` describes them."""
    rows = np.empty((len(starts), 4), np.int64)
    for row in range(len(starts)):
        find_rows(data, starts[row], starts[row] + 1, rows[row : row + 1])
    return rows


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _row_at(data, position):
    """Where the row that begins at `position` stops, its first comma that separates (or -1), its flags.

    A quotation mark at the start of a field hides commas and line ends up to the next single one.
    """
    i, size, field, checked, comma, flags, quoted = position, len(data), position, position, -1, 0, False
    while i < size:
        while i >= checked and not quoted and i + _CHUNK <= size:
            checked = i + _CHUNK
            if _has_special(data, i):
                break
            i = checked
        if i == size:
            break
        byte = data[i]
        if byte == _QUOTE:
            flags |= QUOTED
            if quoted or i == field:
                quoted = not quoted
            elif data[i - 1] == _QUOTE and data[field] == _QUOTE:
                quoted = True  # a doubled one: the field goes on
        elif not quoted and byte in (_NEWLINE, _RETURN):
            break
        elif not quoted and byte == _COMMA:
            field = i + 1
            if comma < 0:
                comma, flags = i, flags | SEPARATED
        i += 1
    return i, comma, flags


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _has_special(data, start):
    """Whether one of the next _CHUNK bytes is a comma or a quotation mark, or ends a line."""
    found = 0
    for i in range(start, start + _CHUNK):
        byte = data[i]
        found += (byte == _NEWLINE) | (byte == _RETURN) | (byte == _QUOTE) | (byte == _COMMA)
    return found > 0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def count_lines(data, stop):
    """How many line ends (LF, CR LF or CR) there are before the byte `stop`."""
    count = 0
    for i in range(stop):
        count += data[i] == _NEWLINE or (data[i] == _RETURN and (i + 1 == len(data) or data[i + 1] != _NEWLINE))
    return count


@numba.njit(cache=True, nogil=True, error_model="numpy")
def most_boxes(data, rows):
    """(rows,) int64: no Kaggle row has more boxes than this, and one without needless white space has just as many."""
    bounds = np.empty(len(rows), np.int64)
    for row in range(len(rows)):
        gaps = 0
        for i in range(rows[row, START], rows[row, STOP]):  # white space of Unicode has bytes above 127
            gaps += (data[i] <= _SPACE) | (data[i] > 127)
        bounds[row] = (gaps + 1) // 6
    return bounds


@numba.njit(cache=True, nogil=True, error_model="numpy")
def hash_of(text, start, stop):
    """A number that depends on all bytes of a text."""
    value = np.uint64(0)
    for i in range(start, stop):
        value = _hashed(value, text[i])
    return value


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _hashed(value, byte):
    return ((value << np.uint64(5)) | (value >> np.uint64(59))) ^ np.uint64(byte)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def find_text(data, start, stop, slots, text_starts, texts):
    """The number of a text in a `Vocabulary`, or -1, and the slot where it is, or would be put."""
    return _find_hashed(hash_of(data, start, stop), data, start, stop, slots, text_starts, texts)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _find_hashed(value, data, start, stop, slots, text_starts, texts):
    slot = _first_slot(value, len(slots))
    while slots[slot] >= 0:
        number = slots[slot]
        first = text_starts[number]
        if text_starts[number + 1] - first == stop - start:
            i = 0
            while i < stop - start and texts[first + i] == data[start + i]:
                i += 1
            if i == stop - start:
                return number, slot
        slot = (slot + 1) % len(slots)
    return -1, slot


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _first_slot(value, num_slots):
    mixed = value * np.uint64(0x9E3779B97F4A7C15)
    return np.int64((mixed >> np.uint64(32)) & np.uint64(num_slots - 1))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def fill_slots(slots, text_starts, texts, count):
    """Puts the first `count` texts of a vocabulary into empty slots."""
    slots[:] = -1
    for number in range(count):
        slot = _first_slot(hash_of(texts, text_starts[number], text_starts[number + 1]), len(slots))
        while slots[slot] >= 0:
            slot = (slot + 1) % len(slots)
        slots[slot] = number


# === Reading ==========================================================================================================


@numba.njit(cache=True, nogil=True, error_model="numpy")
def read_kaggle(data, rows, begin, end, columns, strict, vocabulary, offsets, counts, labels, scores, boxes):
    """Reads the boxes of Kaggle rows `begin` to `end`.

    Args:
        data: the file.
        rows: (R, 4) as of `describe_rows`.
        columns: (2,) int64, 5 for the prediction string, 6 for the image id.
        strict: stop at swapped corners, too.
        vocabulary: the arrays of a `Vocabulary`.
        offsets: (R,) where a row's boxes go in the outputs.
        counts: (R,), for how many boxes there is room, see `most_boxes`; becomes how many there are.
        labels: (N,), filled with the number of each box's label in the vocabulary.
        scores, boxes: (N,) and (N, 4) xyxy, filled.

    Returns:
        the row it stopped at and why: `DONE`, `PLAIN`, or `NEW_TEXT` with the start and the stop of the unknown label.
    """
    slots, text_starts, texts = vocabulary
    for row in range(begin, end):
        if rows[row, FLAGS] != SEPARATED:
            return row, PLAIN, 0, 0
        i = rows[row, COMMA] + 1 if columns[1] == 5 else rows[row, START]
        stop = rows[row, STOP] if columns[1] == 5 else rows[row, COMMA]
        box = offsets[row]
        while True:
            while i < stop and (data[i] == _SPACE or data[i] == _TAB):
                i += 1
            if i == stop:
                break
            if box == offsets[row] + counts[row]:
                return row, PLAIN, 0, 0
            first, value = i, np.uint64(0)
            while i < stop and data[i] > _SPACE and data[i] != _COMMA:
                value = _hashed(value, data[i])
                i += 1
            if i == stop or (data[i] != _SPACE and data[i] != _TAB):
                return row, PLAIN, 0, 0
            label, _ = _find_hashed(value, data, first, i, slots, text_starts, texts)
            if label < 0:
                return row, NEW_TEXT, first, i
            labels[box] = label
            for column in range(5):
                while i < stop and (data[i] == _SPACE or data[i] == _TAB):
                    i += 1
                number, i = _read_number(data, i, stop)
                if i < 0 or (i < stop and data[i] != _SPACE and data[i] != _TAB):
                    return row, PLAIN, 0, 0
                if column == 0:
                    scores[box] = number
                else:
                    boxes[box, column - 1] = number
            if strict and (boxes[box, 0] > boxes[box, 2] or boxes[box, 1] > boxes[box, 3]):
                return row, PLAIN, 0, 0
            box += 1
        counts[row] = box - offsets[row]
    return end, DONE, 0, 0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def read_rows(data, rows, begin, end, columns, strict, vocabulary, offsets, counts, labels, scores, boxes):
    """Reads the rows `begin` to `end` of the form with a row per box: as `read_kaggle`, but for `columns`.

    These are (7,) int64, what each column is: 0 to 3 a coordinate of `boxes`, 4 score, 5 label, 6 image id.
    """
    slots, text_starts, texts = vocabulary
    for row in range(begin, end):
        i, stop, box = rows[row, START], rows[row, STOP], offsets[row]
        if rows[row, FLAGS] != SEPARATED:
            return row, PLAIN, 0, 0
        for column in range(len(columns)):
            first = i
            while i < stop and data[i] != _COMMA:
                i += 1
            if (i == stop) != (column == len(columns) - 1):
                return row, PLAIN, 0, 0
            kind = columns[column]
            if kind == 5:
                labels[box], _ = find_text(data, first, i, slots, text_starts, texts)
                if labels[box] < 0:
                    return row, NEW_TEXT, first, i
            elif kind < 5:
                while first < i and data[first] == _SPACE:
                    first += 1
                last = i
                while last > first and data[last - 1] == _SPACE:
                    last -= 1
                number, after = _read_number(data, first, last)
                if after != last:
                    return row, PLAIN, 0, 0
                if kind == 4:
                    scores[box] = number
                else:
                    boxes[box, kind] = number
            i += 1
        if strict and (boxes[box, 0] > boxes[box, 2] or boxes[box, 1] > boxes[box, 3]):
            return row, PLAIN, 0, 0
        counts[row] = 1
    return end, DONE, 0, 0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def find_images(data, rows, begin, column, vocabulary, images):
    """Fills `images` from row `begin` on with the number of each row's image id, field number `column` of the row.

    Returns:
        as `read_kaggle`.
    """
    slots, text_starts, texts = vocabulary
    previous, length = 0, -1  # of the id before, which is the likely one
    for row in range(begin, len(rows)):
        if rows[row, FLAGS] != SEPARATED:
            return row, PLAIN, 0, 0
        first, stop = rows[row, START], rows[row, STOP]
        for _ in range(column):
            while first < stop and data[first] != _COMMA:
                first += 1
            first += 1
        if first > stop:
            return row, PLAIN, 0, 0
        i = first
        while i < stop and data[i] != _COMMA:
            i += 1
        same = i - first == length
        k = 0
        while same and k < length:
            same = data[first + k] == data[previous + k]
            k += 1
        if same:
            images[row] = images[row - 1]
            continue
        images[row], _ = find_text(data, first, i, slots, text_starts, texts)
        if images[row] < 0:
            return row, NEW_TEXT, first, i
        previous, length = first, i - first
    return len(rows), DONE, 0, 0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _read_number(data, i, stop):
    """The number that begins at byte `i`, and where it ends; that is -1 where there is none or it is in doubt."""
    negative = i < stop and data[i] == _MINUS
    if i < stop and (data[i] == _MINUS or data[i] == _PLUS):
        i += 1
    first, mantissa = i, np.uint64(0)
    while i < stop:  # these two loops in a function of their own take twice the time
        digit = np.uint8(data[i] - _ZERO)
        if digit > 9:
            break
        mantissa = mantissa * np.uint64(10) + np.uint64(digit)
        i += 1
    digits, exponent = i - first, 0
    if i < stop and data[i] == _POINT:
        i += 1
        point = i
        while i < stop:
            digit = np.uint8(data[i] - _ZERO)
            if digit > 9:
                break
            mantissa = mantissa * np.uint64(10) + np.uint64(digit)
            i += 1
        exponent = point - i
        digits -= exponent
    if digits == 0 or (digits > 19 and digits - _leading_zeros(data, first, i) > 19):
        return 0.0, -1
    if i < stop and (data[i] | 32) == _E:
        power, i = _read_exponent(data, i + 1, stop)
        if i < 0:
            return 0.0, -1
        exponent += power
    number, sure = _to_double(mantissa, exponent)
    return (-number if negative else number), (i if sure else -1)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _leading_zeros(data, i, stop):
    count = 0
    while i < stop and (data[i] == _ZERO or data[i] == _POINT):
        count += data[i] == _ZERO
        i += 1
    return count


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _read_exponent(data, i, stop):
    """The whole number of up to four digits that begins at byte `i`, and where it ends, or -1."""
    sign = -1 if i < stop and data[i] == _MINUS else 1
    if i < stop and (data[i] == _MINUS or data[i] == _PLUS):
        i += 1
    first, power = i, 0
    while i < stop and np.uint8(data[i] - _ZERO) <= 9:
        power = power * 10 + np.int64(data[i] - _ZERO)
        i += 1
    return (sign * power, i) if 0 < i - first <= 4 else (0, -1)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _to_double(mantissa, exponent):
    """The double next to mantissa * 10**exponent, and whether that is certain."""
    if mantissa == 0:
        return 0.0, True
    if mantissa <= np.uint64(1 << 53) and -22 <= exponent <= 22:
        if exponent < 0:
            return np.float64(mantissa) / _POWERS[-exponent], True
        return np.float64(mantissa) * _POWERS[exponent], True
    if exponent < _FIRST_POWER or exponent > _LAST_POWER:
        return 0.0, False
    return _to_double_by_128_bits(mantissa, exponent)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _to_double_by_128_bits(mantissa, exponent):
    """`_to_double` after Lemire, Number parsing at a gigabyte per second (2021), algorithm 1.

    1. Shift the mantissa to 64 bits, and multiply by the upper 64 bits of 5**exponent; where the product does not
       decide the 55 bits that count, by the next 64 bits, too.
    2. Give up where the truncated power of five could have changed these bits.
    3. Round to 53 bits, to even where the product is exact and half way.
    """
    one = np.uint64(1)
    shift = 0
    while mantissa < np.uint64(1 << 63):
        mantissa = mantissa << one
        shift += 1
    row = exponent - _FIRST_POWER
    high, low = _multiply(mantissa, _FIVES[row, 0])
    if high & np.uint64(0x1FF) == np.uint64(0x1FF):
        more, _ = _multiply(mantissa, _FIVES[row, 1])
        low = low + more
        if low < more:
            high = high + one
    if low == np.uint64(0xFFFFFFFFFFFFFFFF) and not -27 <= exponent <= 55:
        return 0.0, False
    top = np.int64(high >> np.uint64(63))
    bits = high >> np.uint64(top + 9)
    if low <= one and -4 <= exponent <= 23 and bits & np.uint64(3) == one and bits << np.uint64(top + 9) == high:
        bits = bits & ~one
    bits = (bits + (bits & one)) >> one
    # the value is bits * 2**power; 217706 / 2**16 is log2(10) as closely as these exponents need it
    power = ((217706 * exponent) >> 16) + 63 + top - shift - 52
    return math.ldexp(np.float64(bits), power), True


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _multiply(a, b):
    """The upper and the lower 64 bits of the product of two uint64."""
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    a1, a0, b1, b0 = a >> half, a & mask, b >> half, b & mask
    middle = a1 * b0 + ((a0 * b0) >> half)
    other = a0 * b1 + (middle & mask)
    return a1 * b1 + (middle >> half) + (other >> half), a * b
