"""Writes the training files of all levels together, so that the text of a box file is read once."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import polars as pl

from oid import paths
from oid.annotations import write_class_descriptions
from oid.columns import BOX_COLUMNS, IGNORED_REGION_COLUMNS, IMAGE_LABEL_COLUMNS
from oid.files import replacing
from oid.levels.classes import Classes
from oid.levels.rows import Rows, Split, as_csv, read_text
from oid.levels.rules import REASONS, find_boxes, find_image_labels, find_regions

IMAGES = 100_000  # images whose labels are expanded at a time
FILES = (  # of each level and split
    (paths.level_boxes, BOX_COLUMNS),
    (paths.level_ignored_regions, IGNORED_REGION_COLUMNS),
    (paths.level_image_labels, IMAGE_LABEL_COLUMNS),
)


@dataclass(frozen=True)
class Level:
    """What the rows of one split become in one level.

    Attributes:
        name: a height, "all" or "rare".
        boxes: (P + 1,) lists of `LabelName` for each of P patterns, null if a pattern becomes nothing, and a last null.
        regions: the same with lists of `LabelName` and `Reason`.
        image_labels: see `find_image_labels`.
        images: (M,) Categorical, the images with a box or a region, in any order.
    """

    name: str
    boxes: pl.DataFrame
    regions: pl.DataFrame
    image_labels: pl.DataFrame
    images: pl.Series


def write_levels(
    output_path: str,
    classes: Classes,
    levels: dict[str, list[str]],
    left_out: dict[str, list[str]],
    splits: list[Split],
    progress: Callable[[int], object] = lambda rows: None,
) -> dict[str, dict[str, dict[str, int]]]:
    """Writes all training files, which appear together at the end, or not at all.

    Args:
        output_path: OUTPUT.
        classes: the kept classes.
        levels: {level: its classes}.
        left_out: {level: classes with too few boxes}.
        splits: train and validation.
        progress: called with the number of box rows written since the last call.

    Returns:
        {level: {split: {what: how many}}}.
    """
    counts = {level: {} for level in levels}
    empty = [pl.lit(None, pl.String).alias(column) for column in BOX_COLUMNS[1:]]
    with contextlib.ExitStack() as stack:

        def new_file(path: Path, columns: Sequence[str] = ()) -> IO[bytes]:
            file = stack.enter_context(open(stack.enter_context(replacing(path)), "wb"))
            if columns:
                file.write(f"{','.join(columns)}\n".encode())
            return file

        folders = {level: paths.level_folder(output_path, level) for level in levels}
        for level, labels in levels.items():
            described = paths.level_class_descriptions(output_path, level)
            others = folders[level] / f"left-out-classes-level-{level}.csv"
            for path, part in ((described, labels), (others, left_out[level])):
                write_class_descriptions(stack.enter_context(replacing(path)), classes.names_of(part))
        id_files = [new_file(folder / f"image-ids-level-{level}.txt") for level, folder in folders.items()]
        for split in splits:
            parts = [_apply_rules(name, classes, labels, split) for name, labels in levels.items()]
            files = [
                [new_file(place(output_path, name, split.name), columns) for name in levels] for place, columns in FILES
            ]
            _write_box_rows(split, parts, *files[:2], progress)
            labelled, label_rows = _group_by_image(split.image_labels)
            for part, boxes_file, labels_file, ids_file in zip(parts, files[0], files[2], id_files, strict=True):
                numbers, negatives = _write_image_labels(labelled, label_rows, part, labels_file)
                negatives.to_frame().with_columns(empty).write_csv(boxes_file, include_header=False)
                ids = pl.concat([part.images, negatives]).cast(pl.String).sort()
                (f"{split.name}/" + ids).to_frame().write_csv(ids_file, include_header=False, quote_style="never")
                counts[part.name][split.name] = {"images": len(ids)} | _count_rows(split, part) | numbers
    return counts


def _apply_rules(name: str, classes: Classes, labels: list[str], split: Split) -> Level:
    patterns = split.boxes.patterns
    boxes = _list_by_pattern(find_boxes(classes, labels, patterns), patterns)
    regions = _list_by_pattern(find_regions(classes, labels, patterns), patterns)
    is_used = boxes["LabelName"].is_not_null() | regions["LabelName"].is_not_null()
    images = split.boxes.image.filter(is_used.gather(split.boxes.pattern)).unique()
    return Level(name, boxes, regions, find_image_labels(classes, labels, split.image_labels.patterns), images)


def _list_by_pattern(rows: pl.DataFrame, patterns: pl.DataFrame) -> pl.DataFrame:
    """Makes a list of the rows of each pattern, to be looked up by its number; labels become text of a CSV file."""
    labels = rows["LabelName"].dtype.categories.to_frame("label").select(as_csv("label")).to_series()
    rows = rows.with_columns(LabelName=labels.cast(pl.Enum(labels))[rows["LabelName"].to_physical()])
    lists = rows.group_by("pattern").agg(pl.all())
    every = pl.int_range(len(patterns) + 1, dtype=pl.UInt32, eager=True).alias("pattern").to_frame()
    return every.join(lists, on="pattern", how="left", maintain_order="left").drop("pattern")


def _count_rows(split: Split, level: Level) -> dict[str, int]:
    counts = split.boxes.counts
    boxes, regions = (rows[counts["pattern"]].with_columns(counts["count"]) for rows in (level.boxes, level.regions))
    by_reason = {reason: regions["count"] * regions["Reason"].list.count_matches(reason) for reason in REASONS}
    number = (boxes["count"] * boxes["LabelName"].list.len()).sum()
    return {"boxes": number} | {f"ignored regions, {reason}": n.sum() for reason, n in by_reason.items()}


def _write_box_rows(
    split: Split,
    levels: list[Level],
    box_files: list[IO[bytes]],
    region_files: list[IO[bytes]],
    progress: Callable[[int], object],
) -> None:
    """Writes boxes and ignored regions, whose text is that of the source."""
    for text in read_text(split.boxes_path, split.boxes):
        for level, box_file, region_file in zip(levels, box_files, region_files, strict=True):
            boxes, regions = _explode(level.boxes[text["pattern"]]), _explode(level.regions[text["pattern"]])
            copied = text.drop("pattern")[boxes["row"]].insert_column(2, boxes["LabelName"])
            copied.write_csv(box_file, include_header=False, quote_style="never")
            copied = text.select("ImageID", "rest")[regions["row"]].insert_column(1, regions["LabelName"])
            corners = pl.col("rest").str.splitn(",", 5).struct.rename_fields([*BOX_COLUMNS[4:8], "flags"])
            copied = copied.with_columns(corners).unnest("rest").with_columns(flags=regions["Reason"])
            copied.write_csv(region_file, include_header=False, quote_style="never")
        progress(len(text))


def _explode(lists: pl.DataFrame) -> pl.DataFrame:
    """Returns a row for each entry of the lists, with the `row` of its list."""
    return lists.with_row_index("row").drop_nulls().explode(lists.columns)


def _group_by_image(rows: Rows) -> tuple[pl.Series, pl.DataFrame]:
    """Returns the images with a known label in file order, (M,); and rows of `image` (index in them) and `pattern`."""
    known = pl.DataFrame({"ImageID": rows.image, "pattern": rows.pattern}).drop_nulls()
    images = known.select(pl.col("ImageID").unique(maintain_order=True)).with_row_index("image")
    known = known.join(images, on="ImageID", maintain_order="left").select("image", "pattern").sort("image")
    return images["ImageID"], known


def _write_image_labels(
    images: pl.Series, rows: pl.DataFrame, level: Level, file: IO[bytes]
) -> tuple[dict[str, int], pl.Series]:
    """Writes the image labels of a level; returns counts and the images without box and region, the negatives."""
    labels = conflicts = 0
    signs = [pl.DataFrame(schema={"ImageID": pl.Categorical, "positive": pl.Boolean})]
    for found in _expand_image_labels(images, rows, level.image_labels):
        confidence = pl.col("positive").cast(pl.Int8).alias("Confidence")
        found.select("ImageID", "LabelName", confidence).write_csv(file, include_header=False)
        labels += len(found)
        conflicts += found["conflict"].sum()
        signs.append(found.group_by("ImageID", maintain_order=True).agg(pl.col("positive").any()))
    negatives = pl.concat(signs).filter(~pl.col("ImageID").is_in(level.images.implode()))
    counts = {"negative images": len(negatives), "  of these with a positive label": negatives["positive"].sum()}
    return counts | {"image labels": labels, "  positive against negative": conflicts}, negatives["ImageID"]


def _expand_image_labels(images: pl.Series, rows: pl.DataFrame, meaning: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yields each image and class once, in order: `ImageID`, `LabelName`, `positive`, `conflict` (both signs met)."""
    labels = meaning["LabelName"].dtype.categories.cast(meaning["LabelName"].dtype)
    place = pl.col("image").cast(pl.UInt64) * len(labels) + pl.col("LabelName").to_physical()
    key = place * 2 + ~pl.col("positive")  # one number sorts fast; of two signs the positive one comes first
    for first in range(0, len(images), IMAGES):
        start, end = rows["image"].search_sorted(pl.Series([first, first + IMAGES], dtype=pl.UInt32))
        keys = rows[start:end].join(meaning, on="pattern").select(key=key).to_series().sort()
        keys = keys.filter(keys.ne_missing(keys.shift()))
        places = keys // 2
        signs = pl.DataFrame({"positive": keys % 2 == 0, "conflict": places.eq_missing(places.shift(-1))})
        is_first = places.ne_missing(places.shift())
        places = places.filter(is_first)
        image, label = images[places // len(labels)], labels[places % len(labels)]
        yield signs.filter(is_first).with_columns(image.alias("ImageID"), label.alias("LabelName"))
