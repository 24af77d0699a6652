"""Parses the text of prediction files in blocks of lines, and names the first mistake.

`oid.predictions.files` describes the two forms. Polars splits the rows, or the csv module if a block has quotation
marks or lines with more or fewer fields. Polars casts the numbers, with the same 64 bits as `float`.
"""

import contextlib
import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from oid.columns import CORNERS, KAGGLE_COLUMNS, PREDICTION_COLUMNS
from oid.files import InputError
from oid.machine import map_in_threads

TOKENS = ("LabelName", "Score", *CORNERS)  # of a box in the Kaggle form
_BYTES_PER_BLOCK = 1 << 22  # of text that is parsed at a time


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[BinaryIO]:
    """Opens a plain or gzip-compressed file; raises an InputError for other formats and damaged ones."""
    with open(path, "rb") as file:
        head = file.peek(4)
        if head.startswith(b"PK\x03\x04"):
            raise InputError(f"{path} is a zip archive: unpack it first")
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputError(f"{path} is encoded in UTF-16: save it as UTF-8")
        try:
            yield gzip.GzipFile(fileobj=file) if head.startswith(b"\x1f\x8b") else file
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path} is a damaged gzip file ({error}): copy it again") from error


class Block(NamedTuple):
    """The boxes of some lines. A run is a group of adjacent rows of one image, in the Kaggle form a single row.

    ids, num_boxes: of each run the image and the number of boxes.
    lines: the line of each row in the file.
    labels: the labels of the block.
    table: (N, 6) float64, of each box the index into `labels`, the score and the xyxy corners.
    """

    ids: list[str]
    num_boxes: np.ndarray
    lines: np.ndarray
    labels: list[str]
    table: np.ndarray


class Parser:
    """Parses the text of a prediction file; every method raises an InputError for the first mistake."""

    def __init__(self, path: Path, file: BinaryIO):
        """Reads the header of the file, whose name is `path`."""
        self._path, self._file, self._line = path, file, 1
        first = file.readline().removeprefix(b"\xef\xbb\xbf")  # the byte-order mark
        while first and not first.strip():
            first, self._line = file.readline(), self._line + 1
        expected = f"expected {','.join(KAGGLE_COLUMNS)} or {','.join(PREDICTION_COLUMNS)}"
        if not first:
            raise InputError(f"{path} is empty: {expected}")
        self._header = self._fields(self._line, first)
        self._is_kaggle = "PredictionString" in self._header
        columns = KAGGLE_COLUMNS if self._is_kaggle else PREDICTION_COLUMNS
        if sorted(self._header) != sorted(columns):
            unknown = [name for name in self._header if name not in columns]
            problem = f"unknown column {_short(unknown[0])}" if unknown else f"columns {','.join(self._header)}"
            raise self._mistake(self._line, f"{problem}, {expected}")

    def blocks(self, allow_swapped_corners: bool) -> Iterator[Block]:
        """Yields the boxes of the file, block by block.

        Corners are checked here: whether the file has the order x1 x2 y1 y2 depends on all its boxes.
        """
        swapped, is_other_order, seen = None, self._is_kaggle, set()
        for block in map_in_threads(self._parse, self._texts()):
            if self._is_kaggle:
                self._check_repeated(block, seen)
            corners = block.table[:, 2:]
            is_other_order = is_other_order and bool(np.all(corners[:, ::2] <= corners[:, 1::2]))
            swapped = swapped or self._swapped(block)
            if swapped and not is_other_order and not allow_swapped_corners:
                raise InputError(f"{swapped}, swap them or leave the box out")
            yield block
        if swapped and is_other_order:
            remedy = "all boxes of the file look like the order x1 x2 y1 y2, but it must be XMin YMin XMax YMax"
            raise InputError(f"{swapped}, {remedy}")

    def _texts(self) -> Iterator[tuple[int, bytes]]:
        """Yields the number of the first line and the text of each block of whole lines."""
        line, pieces = self._line + 1, []
        while piece := self._file.read(_BYTES_PER_BLOCK):
            cut = piece.rfind(b"\n") + 1
            if cut:
                text = b"".join([*pieces, piece[:cut]])
                yield line, text
                line, pieces = line + text.count(b"\n"), []
            pieces.append(piece[cut:])
        if rest := b"".join(pieces):
            yield line, rest + b"\n"

    def _parse(self, block: tuple[int, bytes]) -> Block:
        """The boxes of a block of lines."""
        import polars as pl

        rows = self._rows(*block)
        lines, ids = rows["line"].to_numpy(), rows["ImageId" if self._is_kaggle else "ImageID"]
        is_empty = ~ids.str.contains(r"[^\s\x1c-\x1f]")  # the white space of `str.strip`, as in the writer
        has_break = ids.str.contains("\r", literal=True)
        for is_wrong, problem in ((is_empty, "is empty"), (has_break, "has a line break")):
            if is_wrong.any():
                raise self._mistake(lines[is_wrong.arg_max()], f"the image id {problem}")
        if self._is_kaggle:
            boxes, num_boxes = self._split(rows)
        else:
            boxes, runs = rows.select(TOKENS), ids.rle().struct.unnest()
            ids, num_boxes = runs["value"], runs["len"].to_numpy().astype(np.int64)
        labels = boxes["LabelName"].unique(maintain_order=True)
        index = pl.col("LabelName").cast(pl.Enum(labels)).to_physical().cast(pl.Float64)
        table = boxes.select(index, pl.col(TOKENS[1:]).cast(pl.Float64, strict=False)).to_numpy(order="c")
        parsed = Block(ids.to_list(), num_boxes, lines, labels.to_list(), table)
        self._check(parsed, boxes)
        return parsed

    def _rows(self, line: int, text: bytes):
        """The rows of a block as a data frame of texts, with the column `line`."""
        import polars as pl

        schema = dict.fromkeys(self._header, pl.String)
        is_simple = text.count(b",") == (len(schema) - 1) * text.count(b"\n") and b'"' not in text
        if is_simple and (b"\r" not in text or text.count(b"\r") == text.count(b"\r\n")):
            with contextlib.suppress(pl.exceptions.PolarsError):
                options = {"has_header": False, "quote_char": None, "row_index_name": "line", "row_index_offset": line}
                return pl.read_csv(text, schema=schema, **options).fill_null("")
        rows = []
        for number, content in enumerate(text.split(b"\n")[:-1], line):
            if content.strip(b"\r"):
                rows.append((number, *self._fields(number, content)))
                if len(rows[-1]) != len(schema) + 1:
                    problem = f"{len(rows[-1]) - 1} fields, but the header has {len(schema)} columns"
                    raise self._mistake(number, problem)
        return pl.DataFrame(rows, {"line": pl.Int64, **schema}, orient="row")

    def _fields(self, line: int, text: bytes) -> list[str]:
        """The fields of a line."""
        csv.field_size_limit(2**31 - 1)  # prediction strings are long
        try:
            return next(csv.reader([text.decode("utf-8")], strict=True))
        except UnicodeDecodeError as error:
            raise self._mistake(line, "not UTF-8 text, save the file as UTF-8") from error
        except csv.Error as error:
            problem = f"{error}, a quotation mark is misplaced or not closed in its line"
            raise self._mistake(line, problem) from error

    def _split(self, rows):
        """The tokens of the boxes of Kaggle rows as a data frame, and (rows,) the number of boxes."""
        import polars as pl

        strings = rows["PredictionString"]
        if any(strings.str.contains(space, literal=True).any() for space in ("  ", "\t")):
            strings = strings.str.replace_all("[ \t]+", " ")
        tokens = strings.str.strip_chars(" ").replace("", None).str.split(" ")
        counts = tokens.list.len().fill_null(0).to_numpy().astype(np.int64)
        wrong = np.flatnonzero(counts % len(TOKENS)).tolist()
        if wrong:
            row, box = wrong[0], "a box is 'label confidence XMin YMin XMax YMax'"
            which = f"{counts[row]} tokens for image {rows['ImageId'][row]!r} (the last is {_short(tokens[row][-1])})"
            raise self._mistake(rows["line"][row], f"{which} are not a multiple of 6, {box}")
        tokens = tokens.drop_nulls().explode().to_frame("token")
        every = {name: pl.col("token").gather_every(len(TOKENS), k) for k, name in enumerate(TOKENS)}
        return tokens.select(**every), counts // len(TOKENS)

    def _check(self, block: Block, boxes) -> None:
        """Raises the InputError for the first label that is no label, or token that is not a finite number."""
        for number, label in enumerate(block.labels):
            if not is_label(label):
                box = np.argmax(block.table[:, 0] == number)
                raise self._box_mistake(block, box, f"the label {label!r} is empty or has white space", column=0)
        if not np.isfinite(block.table).all():
            box, column = np.argwhere(~np.isfinite(block.table))[0].tolist()
            token = boxes[TOKENS[column]].slice(box, 1)
            problem = "is not a number" if token.cast(float, strict=False)[0] is None else "is not finite"
            name = "the score" if column == 1 else TOKENS[column]
            raise self._box_mistake(block, box, f"{name} {_short(token[0])} {problem}", column)

    def _check_repeated(self, block: Block, seen: set[str]) -> None:
        """Raises the InputError for an image that has a second Kaggle row; `seen` are those of the blocks before."""
        for image_id, line in zip(block.ids, block.lines.tolist(), strict=True):
            if image_id in seen:
                raise self._mistake(line, f"image {image_id!r} has a second row, put all its boxes into one")
            seen.add(image_id)

    def _swapped(self, block: Block) -> str | None:
        """The sentence about the first box with swapped corners, None if there is no such box."""
        _, _, x_min, y_min, x_max, y_max = block.table.T
        swapped = np.flatnonzero((x_min > x_max) | (y_min > y_max))
        if not len(swapped):
            return None
        box = swapped[0]
        low, high, axis = (x_min, x_max, "X") if x_min[box] > x_max[box] else (y_min, y_max, "Y")
        return str(self._box_mistake(block, box, f"{axis}Min {low[box]} is greater than {axis}Max {high[box]}"))

    def _box_mistake(self, block: Block, box: int, what: str, column: int | None = None) -> InputError:
        """The error about a box or one of its columns. In the Kaggle form it gives the tokens, counted from 1."""
        if not self._is_kaggle:
            return self._mistake(block.lines[box], what)
        ends = np.cumsum(block.num_boxes)
        row = np.searchsorted(ends, box, side="right")
        first = (box - ends[row] + block.num_boxes[row]) * len(TOKENS) + 1
        tokens = f"tokens {first} to {first + len(TOKENS) - 1}" if column is None else f"token {first + column}"
        return self._mistake(f"{block.lines[row]}, {tokens}", what)

    def _mistake(self, line: int | str, what: str) -> InputError:
        return InputError(f"{self._path}, line {line}: {what}")


def is_label(text: str) -> bool:
    """Whether a text can be a label: not empty, no white space."""
    return text.split() == [text]


def _short(text: str) -> str:
    """A text in quotation marks that fits into a sentence."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
