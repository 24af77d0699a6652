"""Open Images' own layout as a source: its training images divided into folds, and its boxes read for export."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from oid import paths
from oid.annotations import BOX_COLUMNS, csv_errors, read_boxes, read_class_descriptions, read_image_labels, scan_rows
from oid.files import InputError, replacing, require_file
from oid.images.find import find_images
from oid.sources.base import SPLITS, Box, Picture
from oid.sources.clean import measure, report_duplicates
from oid.sources.folds import assign_folds
from oid.sources.problems import Problems
from oid.sources.splits import choose_sets
from oid.sources.write import DIFFICULT, conversion, link_images, mark, refuse_other, write_images_table

COORDINATES = ("XMin", "XMax", "YMin", "YMax")
FLAGS = {"occluded": "IsOccluded", "truncated": "IsTruncated", "group_of": "IsGroupOf", "difficult": DIFFICULT}


def divide_open_images(
    source: Path, folder: Path, source_splits: Sequence[str], folds: int | None, fold: int, default_folds: int
) -> None:
    """Makes a data set in Open Images' layout from another: the same rows, some of the training images in validation.

    Images that are not on disk stay in the annotations, each a group of its own.

    Args:
        source: a folder in Open Images' paths.
        folder: DATASET, to be made.
        source_splits: which splits of the source become train, validation, test; without: train, if it is the only one.
        folds: the number of folds, None = `default_folds`.
        fold: which of them becomes the validation split, from 0.
        default_folds: see `folds`.

    Raises:
        InputError: the source has a validation split, or something of it is missing.
    """
    sets = [split for split in SPLITS if paths.box_annotations(source, split).is_file()]
    if not sets:
        raise InputError(f"{source} has no annotations/train-annotations-bbox.csv: is it in Open Images' layout?")
    chosen = choose_sets(sets, source_splits)
    if "validation" in chosen and (folds or fold or not source_splits):
        use = "leave it out by --source_splits train=train" if folds or fold else f"give --dataset_path {source} alone"
        raise InputError(f"{source} has a validation split: {use}")
    count = None if "validation" in chosen else folds or default_folds
    made = conversion("oid", source, source_splits, count, fold)
    refuse_other(folder, made)
    files = _tables(source, chosen)
    problems = Problems()
    pictures = {split: _pictures(source, names, problems) for split, names in chosen.items()}
    taken = None
    if count is not None:
        taken = _fold_of_images(files["train"][0], pictures["train"], count, fold)
        print(f"  no validation set: fold {fold} of {count} of the training images is taken, classes spread evenly")
        pictures["validation"] = [p for p in pictures["train"] if p.image_id in taken]
        pictures["train"] = [p for p in pictures["train"] if p.image_id not in taken]
    report_duplicates(pictures, problems)
    mark(folder, made)
    link_images(folder, {split: [(p.image_id, p.path) for p in found] for split, found in pictures.items()})
    rows = ((split, p.image_id, p.path, *p.size, p.md5) for split, found in pictures.items() for p in found)
    write_images_table(folder, rows)
    _copy_classes(source, folder)
    _write_tables(folder, files, taken)
    for split, found in pictures.items():
        print(f"  {split}: {len(found)} images on disk")
    problems.write(paths.source_problems(folder))
    problems.show(paths.source_problems(folder))
    print(f"  made {folder}\n", flush=True)


def _tables(source: Path, chosen: dict[str, list[str]]) -> dict[str, tuple[list[Path], list[Path]]]:
    """{split: (box files, image-label files that exist)}, checked."""
    for name in (paths.HIERARCHY, paths.CLASS_DESCRIPTIONS):
        require_file(paths.annotation_file(source, name), "is --source_path in Open Images' layout?")
    files = {}
    for split, names in chosen.items():
        boxes = [paths.box_annotations(source, name) for name in names]
        labels = [paths.image_label_annotations(source, name) for name in names]
        files[split] = boxes, [path for path in labels if path.is_file()]
        for path in boxes:
            read_boxes(path)  # says which line is wrong, before anything is written
        for path in files[split][1]:
            read_image_labels(path)
    return files


def _pictures(source: Path, names: list[str], problems: Problems) -> list[Picture]:
    """The images on disk of several splits as pictures without boxes, with size and digest."""
    images: dict[str, Path] = {}
    for name in names:
        if (source / name).is_dir():
            images |= find_images(source / name)
    found = [Picture(path, image, path, image_id=image) for image, path in images.items()]
    return measure(found, problems, "not linked, its rows stay")


def _fold_of_images(boxes: list[Path], pictures: list[Picture], folds: int, fold: int) -> set[str]:
    """The images of one fold, of all that have a box, or are on disk."""
    rows = pl.concat([read_boxes(path).select("ImageID", "LabelName") for path in boxes]).unique()
    classes = dict(rows.group_by("ImageID").agg("LabelName").iter_rows())
    digest = {picture.image_id: picture.md5 for picture in pictures}
    names = sorted(classes.keys() | digest.keys())
    groups = [digest.get(name, name) for name in names]
    numbers = assign_folds(groups, [set(classes.get(name, ())) for name in names], folds)
    taken = {name for name, number in zip(names, numbers, strict=True) if number == fold}
    if taken.isdisjoint(classes) or taken.issuperset(classes):
        raise InputError(f"--fold {fold} of {folds}: training or validation would have no box, ask for fewer folds")
    return taken


def _copy_classes(source: Path, folder: Path) -> None:
    for name in (paths.HIERARCHY, paths.CLASS_DESCRIPTIONS, paths.CHALLENGE_CLASS_DESCRIPTIONS):
        if (path := paths.annotation_file(source, name)).is_file():
            with replacing(paths.annotation_file(folder, name)) as temporary:
                shutil.copyfile(path, temporary)


def _write_tables(folder: Path, files: dict[str, tuple[list[Path], list[Path]]], taken: set[str] | None) -> None:
    """Writes boxes and image labels of each split, the text of the source's rows."""
    places = (paths.box_annotations, paths.image_label_annotations)
    for split, tables in files.items():
        for place, file_paths in zip(places, tables, strict=True):
            if not file_paths:
                continue
            rows = pl.concat([pl.read_csv(path, infer_schema=False) for path in file_paths], how="diagonal")
            parts = {split: rows}
            if taken is not None and split == "train":
                chosen = pl.col("ImageID").is_in(list(taken))
                parts = {"train": rows.filter(~chosen), "validation": rows.filter(chosen)}
            for name, table in parts.items():
                with replacing(place(folder, name)) as temporary:
                    table.write_csv(temporary)


def read_pictures(data_set: Path, split: str, names: dict[str, str], problems: Problems) -> list[Picture]:
    """The images of a split that have a box or an image-level label, with their boxes of the classes in `names`.

    Args:
        data_set: DATASET.
        split: "train", "validation" or "test".
        names: {label: class name}.
        problems: gets the images that are not on disk or cannot be read.

    Returns:
        Measured pictures, corners in pixels, in the order of the image ids.
    """
    path = require_file(
        paths.box_annotations(data_set, split), "name a folder in Open Images' layout by --dataset_path"
    )
    read_boxes(path)  # checks the values
    with open(path, encoding="utf-8-sig") as file:
        columns = file.readline()
    flags = {flag: column for flag, column in FLAGS.items() if column in columns}
    with csv_errors(path):
        table = scan_rows(path, list(dict.fromkeys([*BOX_COLUMNS, *flags.values()]))).collect()
    labels = paths.image_label_annotations(data_set, split)
    verified = read_image_labels(labels)["ImageID"].unique().to_list() if labels.is_file() else []
    wanted = sorted({*table["ImageID"].unique(), *verified})
    images = find_images(data_set / split)
    missing = data_set / split
    pictures = [Picture(images.get(i, missing / i), i, path, i, image_id=i) for i in wanted]
    of_id = {picture.image_id: picture for picture in measure(pictures, problems)}
    for row in table.filter(pl.col("LabelName").is_in(list(names))).iter_rows(named=True):
        if picture := of_id.get(row["ImageID"]):
            (x0, x1, y0, y1), (width, height) = (float(row[name]) for name in COORDINATES), picture.size
            corners = (x0 * width, y0 * height, x1 * width, y1 * height)
            known = {flag: int(row[column] or 0) for flag, column in flags.items()}
            picture.boxes.append(Box(names[row["LabelName"]], corners, f"line {row['line']}", **known))
    return list(of_id.values())


def read_class_names(data_set: Path) -> dict[str, str]:
    """{label: name} of the classes that count, in the order of the network's outputs."""
    boxable = read_class_descriptions(paths.annotation_file(data_set, paths.CLASS_DESCRIPTIONS))
    kept = read_class_descriptions(paths.evaluated_class_descriptions(data_set))
    return {label: name for label, name in kept.items() if label in boxable}


def unique_names(names: dict[str, str]) -> dict[str, str]:
    """The same {label: name} where equal names have their label behind, because other formats know names only."""
    texts = list(names.values())
    return {label: f"{name} ({label})" if texts.count(name) > 1 else name for label, name in names.items()}
