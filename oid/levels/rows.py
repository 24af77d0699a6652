"""Box and image-label files of any size as a few numbers per row, and the text of box rows once more to be copied.

Polars' streaming engine reads a file in batches, so memory holds no text but the image ids. What remains of a row is
its image and its *kind*: rows of one kind become the same in a training file. A box that has its rectangle for itself
is fully described by its label and by whether it is a group; each box that shares its rectangle with another is a kind
of its own. So the rules are applied to a few thousand kinds, and what comes of them is looked up for each row.
"""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from oid.annotations import (
    BOX_COLUMNS,
    COORDINATES,
    IMAGE_LABEL_COLUMNS,
    coordinates,
    csv_errors,
    is_bad_box,
    is_bad_image_label,
    read_header,
    refuse_bad_boxes,
    refuse_bad_image_labels,
    scan_rows,
)
from oid.files import InputError

BATCH = 100_000  # rows


@dataclass(frozen=True)
class Rows:
    """The rows of an annotation file whose labels are known, in file order.

    Attributes:
        images: [images] the ids (String) of all rows in the order of their first; no other text is kept.
        image: [rows] uint32, index in `images`.
        kind: [rows] uint32, index in `kinds`.
        kinds: `kind` (UInt32) and `label` (the known labels as a polars type); of boxes also `group_of` (Boolean) and
            `rectangle` (UInt32, equal where boxes of one image have equal coordinates), in file order where that is
            equal; of image labels also `positive` (Boolean).
        unknown: the labels (String) of the other rows, in file order.
    """

    images: pl.Series
    image: np.ndarray
    kind: np.ndarray
    kinds: pl.DataFrame
    unknown: pl.Series

    def rows_of_kinds(self) -> np.ndarray:
        """[kinds] how many rows there are of each."""
        return np.bincount(self.kind, minlength=len(self.kinds))


@dataclass(frozen=True)
class BoxRows(Rows):
    """The rows of a box file.

    Attributes:
        line: [rows] uint32, the line number as an editor shows it.
        ends: [rows] where the parts of the row's text end, in bytes (UInt8); None where rows cannot be copied, because
            their columns are not those of Open Images in its order, some value is quoted or very long, or a label needs
            quotes.
    """

    line: np.ndarray
    ends: pl.DataFrame | None


# === Reading =========================================================================================================
def read_box_rows(path: str | os.PathLike, labels: pl.Enum) -> BoxRows:
    """Reads a box file of V4 or V6 once; rows with labels that are not in `labels` are left out.

    Raises:
        InputError: the file has no rows, or a value is missing or not what its column holds; names the first such line.
    """
    in_order = read_header(path, BOX_COLUMNS)[: len(BOX_COLUMNS)] == list(BOX_COLUMNS)
    need_quotes = any(not set(',"\r\n').isdisjoint(label) for label in labels.categories)
    ends = _ends() if in_order and not need_quotes and not _has_quotes(path) else []
    group_of = (pl.col("IsGroupOf") == "1").alias("group_of")
    columns = ["line", "ImageID", *_labels(labels), group_of, *coordinates(), is_bad_box().alias("bad"), *ends]
    images, unknown, parts = _Images(), [], []
    for batch in batches(path, scan_rows(path, BOX_COLUMNS).select(columns)):
        if batch["bad"].any():
            refuse_bad_boxes(path)
        box = pl.Series("box", _hashed(*(batch[name].to_numpy() for name in COORDINATES)))
        batch = batch.with_columns(box, images.runs(batch["ImageID"]))
        unknown.append(batch["unknown"].drop_nulls())
        parts.append(_known(batch.drop("ImageID", "unknown", "bad", *COORDINATES)))
    if not parts:
        raise InputError(f"{path} holds no boxes: download the file again")
    rows = pl.concat(parts, rechunk=True)
    del parts
    ids, image = images.indices(rows["run"].to_numpy())
    kind = rows["label"].to_physical().to_numpy().astype(np.uint32) * 2 + rows["group_of"].to_numpy()
    kinds = _kinds(labels, "group_of").with_columns(pl.col("kind").alias("rectangle"))
    shared = _shared_rectangles(image, rows["box"].to_numpy())
    own = rows[shared["row"]].select(
        (pl.int_range(pl.len(), dtype=pl.UInt32) + len(kinds)).alias("kind"),
        *("label", "group_of"),
        shared["rectangle"] + len(kinds),
    )
    kind[shared["row"].to_numpy()] = own["kind"].to_numpy()
    text = rows.select(_PARTS) if ends and not rows.select(_PARTS).null_count().sum_horizontal().item() else None
    return BoxRows(ids, image, kind, pl.concat([kinds, own]), pl.concat(unknown), rows["line"].to_numpy(), text)


def read_image_label_rows(path: str | os.PathLike, labels: pl.Enum) -> Rows:
    """Reads human-verified image-level labels once; rows with labels that are not in `labels` are left out.

    Returns:
        The rows of an image one after the other, images in the order of their first rows; no rows where the file has
        only a header.

    Raises:
        InputError: a value is missing or Confidence is neither 0 nor 1; names the first such line.
    """
    positive = (pl.col("Confidence") == "1").alias("positive")
    columns = ["ImageID", *_labels(labels), positive, is_bad_image_label().alias("bad")]
    images, unknown, parts = _Images(), [pl.Series(dtype=pl.String)], []
    for batch in batches(path, scan_rows(path, IMAGE_LABEL_COLUMNS).select(columns)):
        if batch["bad"].any():
            refuse_bad_image_labels(path)
        batch = batch.with_columns(images.runs(batch["ImageID"]))
        unknown.append(batch["unknown"].drop_nulls())
        batch = _known(batch)
        kind = pl.col("label").to_physical().cast(pl.UInt32) * 2 + pl.col("positive")
        parts.append(batch.select(kind.alias("kind"), "run"))
    rows = pl.concat([pl.DataFrame(schema={"kind": pl.UInt32, "run": pl.UInt32}), *parts], rechunk=True)
    ids, image = images.indices(rows["run"].to_numpy())
    kind = rows["kind"].to_numpy()
    if (image[1:] < image[:-1]).any():
        order = np.argsort(image, kind="stable")
        image, kind = image[order], kind[order]
    return Rows(ids, image, kind, _kinds(labels, "positive"), pl.concat(unknown))


def no_image_labels(labels: pl.Enum) -> Rows:
    """What `read_image_label_rows` returns of a file without rows."""
    none, nothing = pl.Series("ImageID", dtype=pl.String), np.zeros(0, np.uint32)
    return Rows(none, nothing, nothing, _kinds(labels, "positive"), none)


def batches(path: str | os.PathLike, rows: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """Yields the rows of a file in its order, without empty batches, and says of an error which line is the first."""
    with csv_errors(path), tqdm(desc=Path(path).name, unit=" rows", unit_scale=True, disable=None) as bar:
        for batch in rows.collect_batches(chunk_size=BATCH, maintain_order=True, engine="streaming"):
            if len(batch):
                yield batch
                bar.update(len(batch))


def _labels(labels: pl.Enum) -> tuple[pl.Expr, pl.Expr]:
    """`label`, null where it is not known, and `unknown`, its text there."""
    label = pl.col("LabelName").cast(labels, strict=False).alias("label")
    return label, pl.when(label.is_null()).then("LabelName").alias("unknown")


def _known(batch: pl.DataFrame) -> pl.DataFrame:
    """The rows whose label is known; mostly these are all, and need no copy."""
    return batch.drop_nulls("label") if batch["label"].null_count() else batch


def _kinds(labels: pl.Enum, flag: str) -> pl.DataFrame:
    """Two kinds for each label, without and with the flag."""
    count = len(labels.categories)
    flags = pl.Series(flag, [False, True] * count, dtype=pl.Boolean)
    label = pl.Series("label", [name for name in labels.categories for _ in range(2)], dtype=labels)
    return pl.DataFrame([pl.int_range(2 * count, dtype=pl.UInt32, eager=True).alias("kind"), label, flags])


class _Images:
    """Numbers the ids of a file; its rows of an image mostly are together, so it keeps one id for each run of them."""

    def __init__(self):
        self._ids: list[pl.Series] = []  # of each run
        self._count = 0
        self._last: str | None = None

    def runs(self, ids: pl.Series) -> pl.Series:
        """For each id of the next batch the number of its run."""
        is_new = ids.ne_missing(ids.shift(1)).to_numpy().copy()
        is_new[0] = ids[0] != self._last
        self._ids.append(pl.Series(ids.filter(pl.Series(is_new)).to_list(), dtype=pl.String))  # lets go of the rest
        runs = (np.cumsum(is_new) + (self._count - 1)).astype(np.uint32)
        self._count, self._last = int(runs[-1]) + 1, ids[-1]
        return pl.Series("run", runs)

    def indices(self, runs: np.ndarray) -> tuple[pl.Series, np.ndarray]:
        """The ids in the order of their first rows, and for each run the index of its id."""
        ids = pl.concat([pl.Series("ImageID", dtype=pl.String), *self._ids], rechunk=True).rename("ImageID")
        unique = ids.unique(maintain_order=True)
        if len(unique) == len(ids):
            return ids, runs
        place = ids.to_frame().join(unique.to_frame().with_row_index(), on="ImageID", how="left", maintain_order="left")
        return unique, place["index"].to_numpy()[runs]


def _hashed(*columns: np.ndarray) -> np.ndarray:
    """64 bits for each row of equally long float64 columns; equal numbers give equal bits, -0 and 0 as well.

    The mixing of each column is the finaliser of MurmurHash3. Two different boxes of one image are taken for one in
    some 10^-12 of all files of Open Images' size.
    """
    result = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        result ^= (column + 0.0).view(np.uint64)
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            result ^= result >> np.uint64(33)
            result *= np.uint64(factor)
        result ^= result >> np.uint64(33)
    return result


def _shared_rectangles(image: np.ndarray, box: np.ndarray) -> pl.DataFrame:
    """`row` and `rectangle` of the rows whose image and box another row has, too; `rectangle` is the first such row."""
    place = box + image * np.uint64(0x9E3779B97F4A7C15)
    ordered = np.sort(place)
    repeated = pl.Series(ordered[1:][ordered[1:] == ordered[:-1]]).unique()
    row = np.flatnonzero(pl.Series(place).is_in(repeated.implode()).to_numpy()).astype(np.uint32)
    table = pl.DataFrame({"row": row, "image": image[row], "box": box[row]})
    same = table.select(
        "row", pl.col("row").min().over("image", "box").alias("rectangle"), pl.len().over("image", "box")
    )
    return same.filter(pl.col("len") > 1).drop("len")


# === Text ============================================================================================================
_PARTS = ("image", "source", "label_end", "confidence", "rectangle", "flags")


def _ends() -> list[pl.Expr]:
    """Where the parts of a row end, in bytes from its start; null beyond 255."""
    groups = (BOX_COLUMNS[:1], BOX_COLUMNS[1:2], BOX_COLUMNS[2:3], BOX_COLUMNS[3:4], BOX_COLUMNS[4:8], BOX_COLUMNS[8:])
    result, columns = [], []
    for part, group in zip(_PARTS, groups, strict=True):
        columns += group
        length = pl.sum_horizontal(pl.col(columns).str.len_bytes()) + (len(columns) - 1)
        result.append(length.cast(pl.UInt8, strict=False).alias(part))
    return result


def _has_quotes(path: str | os.PathLike) -> bool:
    """Whether there is a quotation mark in the file, so that a comma or the end of a line may belong to a value."""
    with open(path, "rb", buffering=0) as file:
        block = bytearray(1 << 20)
        while size := file.readinto(block):
            if block.find(b'"', 0, size) >= 0:
                return True
    return False


@dataclass(frozen=True)
class BoxText:
    """The text of box rows, to be written as it was read: cut from whole lines, or, where that cannot be, by columns.

    Attributes:
        path: the file.
        rows: what was read of it.
    """

    path: str | os.PathLike
    rows: BoxRows

    @property
    def boxes(self) -> tuple[str, ...]:
        """The columns of `frames` that make a box row, and "LabelName" at the place of the class."""
        return BOX_COLUMNS if self.rows.ends is None else ("before", "LabelName", "after")

    @property
    def regions(self) -> tuple[str, ...]:
        """Those that make an ignored region, likewise, and "Reason" at its place."""
        corners = COORDINATES if self.rows.ends is None else ("corners",)
        return ("ImageID", "LabelName", *corners, "Reason")

    @property
    def quote_style(self) -> str:
        """What `write_csv` is to quote: lines without a quotation mark have nothing that needs one."""
        return "necessary" if self.rows.ends is None else "never"

    def frames(self) -> Iterator[tuple[slice, pl.DataFrame]]:
        """Yields the rows batch by batch: which they are, and their text."""
        lines, ends = self.rows.line, self.rows.ends
        if ends is None:
            source = scan_rows(self.path, BOX_COLUMNS)
        else:
            source = pl.scan_lines(self.path, name="text", row_index_name="line", row_index_offset=1, glob=False)
        for batch in batches(self.path, source):
            line = batch["line"].to_numpy()
            rows = slice(*np.searchsorted(lines, [line[0], line[-1] + 1]).tolist())
            wanted = lines[rows]
            place = wanted - line[0] if line[-1] - line[0] + 1 == len(line) else np.searchsorted(line, wanted)
            text = batch if len(place) == len(batch) else batch[place]
            yield rows, text.drop("line", "LabelName") if ends is None else _pieces(text["text"], ends[rows])


def _pieces(text: pl.Series, ends: pl.DataFrame) -> pl.DataFrame:
    """Cuts whole rows where `ends` says: `ImageID`, what is `before` and `after` the label, the four `corners`."""
    start = {after: pl.col(part).cast(pl.Int64) + 1 for part, after in itertools.pairwise(_PARTS)}
    row = pl.col("text").cast(pl.Binary)
    cut = {
        "ImageID": row.bin.head(pl.col("image")),
        "before": row.bin.head(pl.col("source")),
        "after": row.bin.slice(start["confidence"], pl.col("flags").cast(pl.Int64) - start["confidence"]),
        "corners": row.bin.slice(start["rectangle"], pl.col("rectangle").cast(pl.Int64) - start["rectangle"]),
    }
    return ends.with_columns(text).select(**{name: piece.cast(pl.String) for name, piece in cut.items()})
