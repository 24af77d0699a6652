"""Opens prediction files and finds where their rows and images are, without reading a box."""

import contextlib
import mmap
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from gzip import GzipFile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from oid.files import InputError
from oid.predictions import scanner
from oid.predictions.rows import KAGGLE_COLUMNS, RowError, check_header, fields_of_row, image_of_row

_BYTES_AT_ONCE = 1 << 24  # that are looked at before the system may take their memory back
_ROWS_AT_ONCE = 1 << 16


class PredictionIndex:
    """Where the rows of a prediction file are, and which are whose.

    Attributes:
        data: (size,) uint8, the file.
        header: its columns.
        is_kaggle: the form; else it has a row per box.
        image_ids: every image in the order of its first row.
        offsets: (images + 1,) int64, image i has the rows offsets[i] to offsets[i + 1]; see `rows`.
    """

    def __init__(self, path: Path):
        """Opens the file.

        Raises:
            InputError: naming the line, for mistakes in the header and in image ids; and see `MappedText`.
        """
        self._path = path
        self._text = MappedText(path)
        self.data = self._text.data
        self._ids, self._vocabulary = {}, Vocabulary()  # of the one form, of the other
        kept, images = [], [np.zeros(0, dtype=np.int32)]
        for rows in self._find_rows():
            if not kept:
                self._read_header(rows[0])
                rows = rows[1:]
            if self.is_kaggle:
                self._add_ids(rows)
            else:
                images.append(self._find_images(rows))
            kept.append(rows.copy() if self.is_kaggle else rows[:, scanner.START].copy())
            self._text.forget()
        if not kept:
            raise _empty(path)
        self._rows = np.concatenate(kept)
        self.image_ids = list(self._ids) if self.is_kaggle else self._vocabulary.texts
        self.offsets = np.arange(len(self.image_ids) + 1)
        if not self.is_kaggle:
            self._sort_by_image(np.concatenate(images))

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """(R, 4) int64: some rows, as `find_rows` of the scanner describes them. The first image's rows are the first,
        then come the second's, and so on, each image's in the order of the file."""
        rows = self._rows[numbers]
        return rows if self.is_kaggle else scanner.describe_rows(self.data, rows)

    def fields(self, row: np.ndarray) -> list[str]:
        """The fields of a row of `rows`; raises RowError."""
        return fields_of_row(self.data[row[scanner.START] : row[scanner.STOP]].tobytes())

    def mistake(self, row: np.ndarray, error: RowError) -> InputError:
        """The error for a row of `rows`, with file and line."""
        line = scanner.count_lines(self.data, row[scanner.START]) + 1
        return InputError(f"{self._path}, line {line}{error}")

    def forget(self) -> None:
        """Lets the system take back the memory of what was read."""
        self._text.forget()

    def _find_rows(self) -> Iterator[np.ndarray]:
        """Yields (R, 4) int64, the rows that are not blank, part by part, the header's first; one array is reused."""
        position, rows = self._text.start, np.empty((_ROWS_AT_ONCE, 4), dtype=np.int64)
        while position < len(self.data):
            stop = min(position + _BYTES_AT_ONCE, len(self.data))
            count, position = scanner.find_rows(self.data, position, stop, rows)
            if count:
                yield rows[:count]

    def _read_header(self, row: np.ndarray) -> None:
        try:
            self.header = self.fields(row)
            if not "".join(self.header).strip() and not self.data[row[scanner.START] :].tobytes().strip():
                raise _empty(self._path)
            check_header(self.header)
        except RowError as error:
            raise self.mistake(row, error) from error
        self.is_kaggle = "PredictionString" in self.header

    def _add_ids(self, rows: np.ndarray) -> None:
        """Takes the image ids of Kaggle rows, each of which must be new."""
        id_first, memory = self.header[0] == "ImageId", memoryview(self.data)
        for row, (start, _, comma, flags) in zip(rows, rows.tolist(), strict=True):
            image_id = _decoded(memory[start:comma]) if id_first and flags == scanner.SEPARATED else None
            try:
                image_id = image_id or image_of_row(self.header, self.fields(row))
                if image_id in self._ids:
                    raise RowError(f": image {image_id!r} has a second row, put all its boxes into one")
            except RowError as error:
                raise self.mistake(row, error) from error
            self._ids[image_id] = None

    def _find_images(self, rows: np.ndarray) -> np.ndarray:
        """(R,) int32: the image of each row of the form with a row per box."""
        images, row = np.empty(len(rows), dtype=np.int32), 0
        column = self.header.index("ImageID")
        while True:
            row, reason, first, stop = scanner.find_images(
                self.data, rows, row, column, self._vocabulary.arrays, images
            )
            if reason == scanner.DONE:
                return images
            image_id = _decoded(self.data[first:stop]) if reason == scanner.NEW_TEXT else None
            try:
                image_id = image_id or image_of_row(self.header, self.fields(rows[row]))
            except RowError as error:
                raise self.mistake(rows[row], error) from error
            images[row] = self._vocabulary.number(image_id)
            row += 1

    def _sort_by_image(self, images: np.ndarray) -> None:
        """Brings the rows of each image together; `images` is (R,), the image of each row."""
        if np.any(images[1:] < images[:-1]):
            order = np.argsort(images, kind="stable")
            images, self._rows = images[order], self._rows[order]
        self.offsets = np.searchsorted(images, np.arange(len(self.image_ids) + 1))


def _decoded(text: memoryview | np.ndarray) -> str | None:
    """The text of an id, or None where the plain reader has to explain what is wrong with it."""
    try:
        decoded = bytes(text).decode()
    except UnicodeDecodeError:
        return None
    return decoded if decoded.strip() else None


class MappedText:
    """The bytes of a file in memory that the system fills when they are looked at; a packed one is unpacked beside it.

    Attributes:
        data: (size,) uint8, all of the file.
        start: where its text begins, after a byte-order mark.
    """

    def __init__(self, path: Path):
        """Opens the file.

        Raises:
            InputError: it is empty, a damaged gzip file, a zip archive, or UTF-16.
        """
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if packed:
                with _unpacked(path, file) as text:
                    self._map(path, text)
            else:
                self._map(path, file)

    def _map(self, path: Path, file: BinaryIO) -> None:
        file.seek(0)
        head = file.read(4)
        if head.startswith(b"PK\x03\x04"):
            raise InputError(f"{path} is a zip archive: unpack it first")
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputError(f"{path} is encoded in UTF-16: save it as UTF-8")
        self.start = 3 if head.startswith(b"\xef\xbb\xbf") else 0
        if not head:
            raise _empty(path)
        self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.data = np.frombuffer(self._memory, dtype=np.uint8)

    def forget(self) -> None:
        """Lets the system take back what was looked at, where it counts as this process' memory."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)


@contextlib.contextmanager
def _unpacked(path: Path, file: BinaryIO) -> Iterator[BinaryIO]:
    """A temporary file with the text of a gzip file."""
    with tempfile.TemporaryFile() as text:
        try:
            with GzipFile(fileobj=file) as packed:
                shutil.copyfileobj(packed, text, 1 << 20)
        except (EOFError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # no space left, for example
            raise InputError(f"{path} is a damaged gzip file ({error}): copy it again") from error
        text.flush()
        yield text


def _empty(path: Path) -> InputError:
    return InputError(f"{path} is empty: expected a header {','.join(KAGGLE_COLUMNS)} and a row per image")


class Vocabulary:
    """Texts, numbered in the order in which they came, for compiled functions to look up.

    Attributes:
        texts: the list, which grows.
        arrays: the numbers by hash, -1 where a slot is free; (T + 1,) where each text begins; all texts as bytes.
    """

    def __init__(self):
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}
        self.arrays = np.full(1 << 10, -1), np.zeros(1 << 9, np.int64), np.zeros(1 << 13, np.uint8)

    def number(self, text: str) -> int:
        """The number of a text, a new one if need be; then `arrays` are others."""
        if text in self._numbers:
            return self._numbers[text]
        slots, starts, texts = self.arrays
        number, encoded = len(self.texts), np.frombuffer(text.encode(), np.uint8)
        stop = starts[number] + len(encoded)
        if stop > len(texts):
            texts = np.concatenate([texts, np.zeros(len(texts) + len(encoded), np.uint8)])
        texts[starts[number] : stop] = encoded
        starts[number + 1] = stop
        if number + 2 == len(starts):
            slots, starts = np.full(2 * len(slots), -1), np.concatenate([starts, np.zeros(len(starts), np.int64)])
            scanner.fill_slots(slots, starts, texts, number)
        slots[scanner.find_text(encoded, 0, len(encoded), slots, starts, texts)[1]] = number
        self.arrays = slots, starts, texts
        self._numbers[text] = number
        self.texts.append(text)
        return number
