"""Open Images' own layout as a source: its training images divided into folds, and its boxes read for export."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl

from oid import paths
from oid.annotations import csv_errors, read_boxes, read_class_descriptions, read_header, read_image_labels, scan_rows
from oid.columns import BOX_COLUMNS, CORNERS, DIFFICULT_COLUMN
from oid.files import InputError, replacing, require_file
from oid.images.find import find_images
from oid.sources.base import SPLITS, Box, Problems, Progress, Reader, SourceImage, Splits, no_progress
from oid.sources.clean import measure
from oid.sources.splits import divide, hold_out

MARK_COLUMNS = {
    "occluded": "IsOccluded",
    "truncated": "IsTruncated",
    "group_of": "IsGroupOf",
    "difficult": DIFFICULT_COLUMN,
}


class OpenImagesReader(Reader):
    """A folder in Open Images' layout. Its rows are copied as they are, so its images are read without boxes."""

    def __init__(self, path: Path):
        """Finds the splits.

        Raises:
            InputError: the folder has no annotations, or no classes.
        """
        super().__init__(split for split in SPLITS if paths.box_annotations(path, split).is_file())
        if not self.sets:
            raise InputError(f"{path} has no annotations/train-annotations-bbox.csv: expected Open Images' layout")
        self._path = path
        for name in (paths.HIERARCHY, paths.CLASS_DESCRIPTIONS):
            require_file(paths.annotation_file(path, name), "expected Open Images' layout")

    def read(self, name: str) -> list[SourceImage]:
        """The images of a split that are on disk, without their boxes."""
        found = find_images(self._path / name) if (self._path / name).is_dir() else {}
        return [SourceImage(path, image_id, path, image_id=image_id) for image_id, path in found.items()]

    def box_files(self, names: list[str]) -> list[Path]:
        """The box files of some splits."""
        return [paths.box_annotations(self._path, name) for name in names]

    def image_label_files(self, names: list[str]) -> list[Path]:
        """The image-label files of some splits; a split may have none."""
        files = [paths.image_label_annotations(self._path, name) for name in names]
        return [file for file in files if file.is_file()]

    def hold_out(self, names: list[str], images: list[SourceImage], folds: int, fold: int) -> set[str]:
        """The ids of one fold of all images that have a box or are on disk. Those not on disk are groups of their own.

        Raises:
            SplitError: there are not enough images with boxes.
        """
        rows = pl.concat([read_boxes(file).select("ImageID", "LabelName") for file in self.box_files(names)]).unique()
        classes = dict(rows.group_by("ImageID").agg("LabelName").iter_rows())
        digests = {image.image_id: image.md5 for image in images}
        ids = sorted(classes.keys() | digests.keys())
        groups = [digests.get(image_id, image_id) for image_id in ids]
        return hold_out(ids, groups, [set(classes.get(image_id, ())) for image_id in ids], folds, fold)

    def copy_annotations(self, folder: Path, sets: dict[str, list[str]], held_out: set[str]) -> None:
        """Copies classes and rows to DATASET, those of the training images in `held_out` to the validation split."""
        for name in (paths.HIERARCHY, paths.CLASS_DESCRIPTIONS, paths.CHALLENGE_CLASS_DESCRIPTIONS):
            if (path := paths.annotation_file(self._path, name)).is_file():
                with replacing(paths.annotation_file(folder, name)) as temporary:
                    shutil.copyfile(path, temporary)
        for split, names in sets.items():
            for target, files in (
                (paths.box_annotations, self.box_files(names)),
                (paths.image_label_annotations, self.image_label_files(names)),
            ):
                if not files:
                    continue
                rows = pl.concat([pl.read_csv(file, infer_schema=False) for file in files], how="diagonal")
                tables = {split: rows}
                if held_out and split == "train":
                    is_held_out = pl.col("ImageID").is_in(list(held_out))
                    tables = {"train": rows.filter(~is_held_out), "validation": rows.filter(is_held_out)}
                for name, table in tables.items():
                    with replacing(target(folder, name)) as temporary:
                        table.write_csv(temporary)


def prepare_rows(
    reader: OpenImagesReader, sets: dict[str, list[str]], folds: int | None, fold: int, progress: Progress
) -> tuple[Splits, Callable[[Path], None], list[str]]:
    """Checks the rows, measures and divides the images that are on disk. See `oid.sources.write.prepare_boxes`."""
    for names in sets.values():
        for file in reader.box_files(names):
            read_boxes(file)  # names the first wrong row before anything is written
        for file in reader.image_label_files(names):
            read_image_labels(file)
    splits = {split: {i.image_id: i for name in names for i in reader.read(name)} for split, names in sets.items()}
    done = "not linked, its rows stay"
    splits = {s: measure(list(images.values()), reader.problems, progress, done) for s, images in splits.items()}
    held_out = reader.hold_out(sets["train"], splits["train"], folds, fold) if folds else set()
    splits = divide(splits, held_out)
    write_annotations = functools.partial(reader.copy_annotations, sets=sets, held_out=held_out)
    return splits, write_annotations, [f"  {split}: {len(images)} images on disk" for split, images in splits.items()]


def read_images(
    data_set: Path, split: str, names: dict[str, str], problems: Problems, progress: Progress = no_progress
) -> list[SourceImage]:
    """The images of a split that have a box or an image-level label, with their boxes of the classes in `names`.

    Args:
        data_set: a folder in Open Images' layout.
        split: "train", "validation" or "test".
        names: {label: class name}.
        problems: gets the images that are missing or damaged.
        progress: shows how many images are measured.

    Returns:
        Measured images, corners in pixels, in the order of the image ids.

    Raises:
        InputError: there are no boxes, or a row is wrong.
    """
    file = require_file(paths.box_annotations(data_set, split), "expected a folder in Open Images' layout")
    read_boxes(file)  # checks the values
    header = read_header(file, BOX_COLUMNS)
    marks = {mark: column for mark, column in MARK_COLUMNS.items() if column in header}
    with csv_errors(file):
        rows = scan_rows(file, list(dict.fromkeys([*BOX_COLUMNS, *marks.values()]))).collect()
    label_file = paths.image_label_annotations(data_set, split)
    labelled = read_image_labels(label_file)["ImageID"] if label_file.is_file() else ()
    found, missing = find_images(data_set / split), data_set / split
    ids = sorted({*rows["ImageID"], *labelled})
    images = [SourceImage(found.get(i, missing / i), i, file, i, image_id=i) for i in ids]
    measured = {image.image_id: image for image in measure(images, problems, progress)}
    for row in rows.filter(pl.col("LabelName").is_in(list(names))).iter_rows(named=True):
        if image := measured.get(row["ImageID"]):
            corners = tuple(float(row[name]) * side for name, side in zip(CORNERS, image.size * 2, strict=True))
            known = {mark: int(row[column] or 0) for mark, column in marks.items()}
            image.boxes.append(Box(names[row["LabelName"]], corners, f"line {row['line']}", **known))
    return list(measured.values())


def read_class_names(data_set: Path) -> dict[str, str]:
    """{label: name} of the classes that count, in the order of the network's outputs."""
    boxable = read_class_descriptions(paths.annotation_file(data_set, paths.CLASS_DESCRIPTIONS))
    kept = read_class_descriptions(paths.evaluated_class_descriptions(data_set))
    return {label: name for label, name in kept.items() if label in boxable}


def unique_names(names: dict[str, str]) -> dict[str, str]:
    """The same {label: name}, with the label added to equal names: other formats have only names."""
    texts = list(names.values())
    return {label: f"{name} ({label})" if texts.count(name) > 1 else name for label, name in names.items()}
