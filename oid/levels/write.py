"""Writes a01's training files of all levels together, so that the source's text is read once."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl

from oid import paths
from oid.annotations import BOX_COLUMNS, IGNORED_REGION_COLUMNS
from oid.files import replacing
from oid.levels.rows import BATCH, BoxRows, BoxText, Rows
from oid.levels.rules import REASONS, Classes, Meaning, mean_boxes, mean_image_labels, mean_regions


@dataclass(frozen=True)
class Source:
    """The annotations of one split without their text.

    Attributes:
        split: "train" or "validation".
        path: the box file.
        boxes: its rows.
        image_labels: the rows of the image-label file, with those of an image together.
    """

    split: str
    path: Path
    boxes: BoxRows
    image_labels: Rows


class SmallWrites:
    """A file that is written in small pieces: at 128 KB and above, Linux takes up to ten times the processor time."""

    def __init__(self, file: IO[bytes]):
        self.file = file

    def write(self, text: bytes) -> int:
        """Writes all of `text` and returns its length."""
        view = memoryview(text)
        for start in range(0, len(view), 1 << 16):
            self.file.write(view[start : start + (1 << 16)])
        return len(view)

    def flush(self) -> None:
        """As of any file."""
        self.file.flush()


class Level:
    """What one split of one level has.

    Attributes:
        boxes, regions, image_labels: what kinds of rows mean.
        images: [images of the source's `Images`] bool, those with a box, a region or a negative row.
        counts: {what: how many}, to be printed.
    """

    def __init__(self, name: str, classes: Classes, labels: list[str], source: Source, images: "Images"):
        self.name = name
        self.boxes = mean_boxes(classes, labels, source.boxes.kinds)
        self.regions = mean_regions(classes, labels, source.boxes.kinds)
        self.image_labels = mean_image_labels(classes, labels, source.image_labels.kinds)
        self.images = np.zeros(len(images.ids), bool)
        shown = (self.boxes.counts() + self.regions.counts() > 0)[source.boxes.kind]
        self.images[source.boxes.image[shown]] = True
        rows = source.boxes.rows_of_kinds()
        reasons = np.bincount(self.regions.reasons, np.repeat(rows, self.regions.counts()), len(REASONS)).astype(int)
        self.counts = {"images": 0, "boxes": int(rows @ self.boxes.counts())}
        self.counts |= {"negative images": 0, "  of these with a positive label": 0}
        self.counts |= {f"ignored regions, {reason}": int(n) for reason, n in zip(REASONS, reasons, strict=True)}
        self.counts |= {"image labels": 0, "  positive against negative": 0}


class Images:
    """The images of a split.

    Attributes:
        ids: [images] (String): those of the box file, then others of the image-label file.
        of_labels: [images of the image-label file] index in `ids`.
        order: [images] indices in the order of the sorted ids.
    """

    def __init__(self, source: Source):
        boxed, labelled = source.boxes.images, source.image_labels.images
        others = labelled.filter(~labelled.is_in(boxed.implode()))
        self.ids = pl.concat([boxed, others])
        numbered = self.ids.to_frame().with_row_index()
        place = labelled.to_frame().join(numbered, on="ImageID", how="left", maintain_order="left")
        self.of_labels = place["index"].to_numpy()
        self.order = pl.int_range(len(self.ids), eager=True) if self.ids.is_sorted() else self.ids.arg_sort()


def write_levels(output_path: str, classes: Classes, levels: dict[str, list[str]], sources: list[Source]) -> dict:
    """Writes boxes, ignored regions, image labels and image ids of all levels; all files appear at the end, or none.

    Args:
        output_path: OUTPUT.
        classes: all of them.
        levels: {level: its classes}.
        sources: one for each split.

    Returns:
        {level: {split: {what: how many}}}.
    """
    counts = {level: {} for level in levels}
    with contextlib.ExitStack() as files:

        def opened(path: Path) -> SmallWrites:
            return SmallWrites(files.enter_context(open(files.enter_context(replacing(path)), "wb")))

        ids = {level: opened(paths.level_image_ids(output_path, level)) for level in levels}
        for source in sources:
            images = Images(source)
            parts = [Level(level, classes, labels, source, images) for level, labels in levels.items()]
            places = (paths.level_boxes, paths.level_ignored_regions, paths.level_image_labels)
            boxes, regions, labels = (
                [opened(place(output_path, level, source.split)) for level in levels] for place in places
            )
            write_rows(classes, source, parts, boxes, regions)
            for part, boxes_file, labels_file in zip(parts, boxes, labels, strict=True):
                write_image_labels(classes, source, images, part, boxes_file, labels_file)
                write_image_ids(source.split, images, part, ids[part.name])
                counts[part.name][source.split] = part.counts
    return counts


def write_rows(
    classes: Classes, source: Source, levels: list[Level], boxes: list[SmallWrites], regions: list[SmallWrites]
) -> None:
    """Writes boxes and ignored regions, whose text comes from the source."""
    text = BoxText(source.path, source.boxes)
    label, reason = pl.Series("LabelName", classes.labels.categories), pl.Series("Reason", REASONS)
    for file in boxes:
        file.write(f"{','.join(BOX_COLUMNS)}\n".encode())
    for file in regions:
        file.write(f"{','.join(IGNORED_REGION_COLUMNS)}\n".encode())

    def write(file: SmallWrites, frame: pl.DataFrame, columns: tuple[str, ...], meaning: Meaning) -> None:
        row, entry = meaning.of(kind)
        for first in range(0, len(row), 4 * BATCH):  # a box may count for several classes
            part = slice(first, first + 4 * BATCH)
            found = frame[row[part]].with_columns(label[meaning.classes[entry[part]]])
            if "Reason" in columns:
                found = found.with_columns(reason[meaning.reasons[entry[part]]])
            found.select(columns).write_csv(file, include_header=False, quote_style=text.quote_style)

    for rows, frame in text.frames():
        kind = source.boxes.kind[rows]
        box_text = frame.select(column for column in text.boxes if column in frame.columns)
        region_text = frame.select(column for column in text.regions if column in frame.columns)
        for level, boxes_file, regions_file in zip(levels, boxes, regions, strict=True):
            write(boxes_file, box_text, text.boxes, level.boxes)
            write(regions_file, region_text, text.regions, level.regions)


def write_image_labels(
    classes: Classes, source: Source, images: Images, level: Level, boxes: SmallWrites, labels: SmallWrites
) -> None:
    """Writes the image labels of a level, and the negatives that follow from them behind its boxes."""
    rows, count = source.image_labels, len(source.image_labels.images)
    label = pl.Series("LabelName", classes.labels.categories)
    labelled, positive = np.zeros(count, bool), np.zeros(count, bool)
    empty = pl.DataFrame(schema={"ImageID": pl.String, "LabelName": pl.String, "Confidence": pl.Int8})
    empty.write_csv(labels)
    for image, found, is_positive, is_conflict in expanded_image_labels(rows, level):
        table = pl.DataFrame({"ImageID": rows.images[image], "LabelName": label[found], "Confidence": is_positive})
        table.cast({"Confidence": pl.Int8}).write_csv(labels, include_header=False)
        labelled[image] = True
        positive[image[is_positive]] = True
        level.counts["image labels"] += len(image)
        level.counts["  positive against negative"] += int(is_conflict.sum())
    negative = np.flatnonzero(labelled & ~level.images[images.of_labels])
    level.images[images.of_labels[negative]] = True
    nothing = [pl.lit(None, pl.String).alias(column) for column in BOX_COLUMNS[1:]]
    rows.images[negative].to_frame().with_columns(nothing).write_csv(boxes, include_header=False)
    level.counts["negative images"] = len(negative)
    level.counts["  of these with a positive label"] = int(positive[negative].sum())


def expanded_image_labels(rows: Rows, level: Level) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields image, class, whether positive, and whether another label said the opposite, image by image in blocks.

    Each image and class is there once; where a positive and a negative label meet, positive wins.
    """
    first = 0
    while first < len(rows.kind):
        last = min(first + 4 * BATCH, len(rows.kind)) - 1
        end = int(np.searchsorted(rows.image, rows.image[last], side="right"))  # no image in two blocks
        row, entry = level.image_labels.of(rows.kind[first:end])
        negative = (rows.kind[first:end] & 1 == 0)[row]
        key = rows.image[first:end][row].astype(np.uint64) << np.uint64(25)  # then 24 bits of class, and the sign
        key |= level.image_labels.classes[entry].astype(np.uint64) << np.uint64(1) | negative
        key.sort()
        starts = np.flatnonzero(np.diff(key >> np.uint64(1), prepend=~np.uint64(0)))
        highest = key[np.append(starts[1:], len(key))[: len(starts)] - 1]
        key = key[starts]  # of equal image and class the positive one, which sorts first
        found = key >> np.uint64(1) & np.uint64(0xFFFFFF)
        yield (key >> np.uint64(25)).astype(np.uint32), found.astype(np.uint32), key & np.uint64(1) == 0, highest != key
        first = end


def write_image_ids(split: str, images: Images, level: Level, file: SmallWrites) -> None:
    """Writes `<split>/<id>` of every image of a level, sorted by id."""
    ids = images.ids[images.order.filter(pl.Series(level.images[images.order.to_numpy()]))]
    level.counts["images"] = len(ids)
    (f"{split}/" + ids).to_frame().write_csv(file, include_header=False, quote_style="never")
