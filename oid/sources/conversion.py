"""Turns a data set of another format into one in Open Images' layout; a01 calls this before its own work."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from oid import paths
from oid.files import InputError
from oid.sources.base import Picture, Source
from oid.sources.clean import clean_boxes, measure, report_duplicates
from oid.sources.coco import CocoSource
from oid.sources.csv_table import CsvSource
from oid.sources.folds import assign_folds
from oid.sources.kitti import KittiSource
from oid.sources.open_images import divide_open_images
from oid.sources.problems import Problems
from oid.sources.splits import choose_sets
from oid.sources.voc import VocSource
from oid.sources.write import conversion, image_ids, mark, refuse_other, write_data_set

READERS: dict[str, Callable[[Path], Source]] = {
    "csv": CsvSource,
    "coco": CocoSource,
    "voc": VocSource,
    "kitti": KittiSource,
}
DEFAULT_FOLDS = 5  # the first of so many is the validation split where there is none, and nobody says how to make one


def convert(
    source: str,
    source_path: str | None,
    dataset_path: str,
    *,
    source_splits: Sequence[str] = (),
    validation_folds: int | None = None,
    fold: int = 0,
) -> None:
    """Makes DATASET from a data set of a format, or does nothing where `source` is "oid" without a path.

    Args:
        source: a name of READERS, or "oid": then DATASET gets the same annotations, its training images divided.
        source_path: the source's folder, or a file of it where the format allows one.
        dataset_path: DATASET, to be made.
        source_splits: `split=set+set`, see `splits.choose_sets`.
        validation_folds: into how many folds the training images are divided where there are none for validation.
        fold: which of them is the validation split, from 0.

    Raises:
        InputError: something is wrong with a value, the source, or the folder; nothing is written then.
    """
    if source_path is None:
        _refuse_without_source(source, source_splits, validation_folds, fold)
        return
    if validation_folds is not None and validation_folds < 2:
        raise InputError(f"--validation_folds {validation_folds}: there must be 2 or more")
    if not 0 <= fold < (validation_folds or DEFAULT_FOLDS):
        raise InputError(f"--fold {fold}: of {validation_folds or DEFAULT_FOLDS} folds the first is 0, the last 1 less")
    path = Path(source_path)
    if not os.path.exists(path):
        raise InputError(f"--source_path {path} does not exist: give the folder of the data set")
    print(f"{source}: {path}", flush=True)
    if source == "oid":
        divide_open_images(path, Path(dataset_path), source_splits, validation_folds, fold, DEFAULT_FOLDS)
        return
    _convert_pictures(READERS[source](path), source, path, Path(dataset_path), source_splits, validation_folds, fold)


def _refuse_without_source(source: str, source_splits: Sequence[str], folds: int | None, fold: int) -> None:
    """The flags of a conversion mean nothing without a source."""
    if source != "oid":
        raise InputError(f"--source {source} needs --source_path: the folder of that data set")
    for flag, given in (("source_splits", source_splits), ("validation_folds", folds), ("fold", fold)):
        if given:
            raise InputError(f"--{flag} needs --source_path, the data set to divide; the result is --dataset_path")


def _convert_pictures(
    reader: Source,
    source: str,
    path: Path,
    folder: Path,
    source_splits: Sequence[str],
    validation_folds: int | None,
    fold: int,
) -> None:
    """Reads, cleans, divides and writes the pictures of one source."""
    chosen = choose_sets(reader.sets, source_splits)
    if "validation" in chosen and (validation_folds or fold):
        flag = f"--validation_folds {validation_folds}" if validation_folds else f"--fold {fold}"
        without = f"--source_splits train={'+'.join(chosen['train'])}"
        raise InputError(f"{flag}: the source has a set for validation: leave it out by {without}, or the flag")
    folds = None if "validation" in chosen else validation_folds or DEFAULT_FOLDS
    made = conversion(source, path, source_splits, folds, fold)
    refuse_other(folder, made)
    problems = Problems()
    splits = {split: _read_sets(reader, names, problems) for split, names in chosen.items()}
    _refuse_overlap(splits)
    splits = {split: measure(pictures, problems) for split, pictures in splits.items()}
    classes = reader.classes()
    known = [*classes, reader.ignored_class] if reader.ignored_class else classes
    for pictures in splits.values():
        clean_boxes(pictures, known, problems, corners_are_pixels=reader.corners_are_pixels)
    everything = [picture for pictures in splits.values() for picture in pictures]
    for picture, image_id in zip(everything, image_ids([p.name for p in everything]), strict=True):
        picture.image_id = image_id
    _refuse_empty(splits, path, problems)
    if folds:
        splits = _with_validation(splits, classes, folds, fold, asked=validation_folds is not None)
        if not all(any(picture.boxes for picture in splits[split]) for split in ("train", "validation")):
            raise InputError(f"{path} has too few images with boxes for {folds} folds: ask for fewer, or another fold")
    print("  sets:", ", ".join(f"{split} = {' + '.join(names)}" for split, names in chosen.items()))
    report_duplicates(splits, problems)
    mark(folder, made)
    write_data_set(folder, classes, splits, reader.ignored_class)
    _print_counts(splits, len(classes), reader.ignored_class)
    problems.write(paths.source_problems(folder))
    problems.show(paths.source_problems(folder))
    print(f"  made {folder}; which image has which id: {paths.source_images(folder)}\n", flush=True)


def _read_sets(reader: Source, names: Sequence[str], problems: Problems) -> list[Picture]:
    """The pictures of several sets, each image file once."""
    found: dict[Path, Picture] = {}
    for name in names:
        for picture in reader.read(name, problems):
            if found.setdefault(picture.path, picture) is not picture:
                problems.add(picture.file, picture.place, "image in several sets", picture.path, "taken once")
    return list(found.values())


def _refuse_overlap(splits: dict[str, list[Picture]]) -> None:
    """The same file in two splits is the user's choice of sets, and a mistake."""
    split_of: dict[Path, str] = {}
    for split, pictures in splits.items():
        for picture in pictures:
            other = split_of.setdefault(picture.path, split)
            if other != split:
                sets = "name others by --source_splits, or let --validation_folds divide one set"
                raise InputError(f"{picture.path} is in the sets of {other} and of {split}: {sets}")


def _with_validation(
    splits: dict[str, list[Picture]], classes: Sequence[str], folds: int, fold: int, *, asked: bool
) -> dict[str, list[Picture]]:
    """Divides train into train and validation."""
    known, pictures = set(classes), splits["train"]
    present = [{box.class_name for box in picture.boxes} & known for picture in pictures]
    number = assign_folds([picture.md5 for picture in pictures], present, folds)
    print(f"  no validation set: fold {fold} of {folds} of the training images is taken, classes spread evenly")
    if not asked:
        print("    (--validation_folds and --fold choose others, --source_splits names sets of the source)")
    train = [picture for picture, own in zip(pictures, number, strict=True) if own != fold]
    validation = [picture for picture, own in zip(pictures, number, strict=True) if own == fold]
    return splits | {"train": train, "validation": validation}


def _refuse_empty(splits: dict[str, list[Picture]], path: Path, problems: Problems) -> None:
    """Training and validation need boxes."""
    for split, pictures in splits.items():
        if split != "test" and not any(picture.boxes for picture in pictures):
            what = "box" if pictures else "image"
            first = problems.sentence()
            reason = f"the first of {len(problems.rows)} problems is {first}" if first else "the annotations have none"
            raise InputError(f"{path} has no usable {what} for {split}: {reason}")


def _print_counts(splits: dict[str, list[Picture]], class_count: int, ignored_class: str | None) -> None:
    """Prints images and boxes of each split."""
    print(f"  {class_count} classes")
    for split, pictures in splits.items():
        boxes = [box for picture in pictures for box in picture.boxes]
        ignored = sum(box.class_name == ignored_class for box in boxes)
        empty = sum(not picture.boxes for picture in pictures)
        more = [f"{sum(box.group_of == 1 for box in boxes)} of groups"] if any(b.group_of == 1 for b in boxes) else []
        more += [f"{ignored} areas of {ignored_class}, which nothing is learned from"] if ignored else []
        difficult = sum(box.difficult for box in boxes)
        more += [f"{difficult} marked difficult, and ordinary boxes here"] if difficult else []
        details = f" ({'; '.join(more)})" if more else ""
        print(f"  {split}: {len(pictures)} images, {empty} of them without boxes, {len(boxes)} boxes{details}")
