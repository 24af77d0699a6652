"""Open Images' own layout as a source: its training images divided into folds, and its boxes read for export."""

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from oid import paths
from oid.annotations import csv_errors, read_boxes, read_header, read_image_labels, scan_rows
from oid.columns import BOX_COLUMNS, CORNERS, DIFFICULT_COLUMN
from oid.files import InputError, replacing, require_file
from oid.images.find import find_images
from oid.sources.base import SPLITS, Box, Problems, Progress, Reader, SourceImage, Splits
from oid.sources.clean import measure
from oid.sources.splits import divide, hold_out

LAYOUT = "expected Open Images' layout"
MARK_COLUMNS = {
    "occluded": "IsOccluded",
    "truncated": "IsTruncated",
    "group_of": "IsGroupOf",
    "difficult": DIFFICULT_COLUMN,
}


class OpenImagesReader(Reader):
    """A folder in Open Images' layout. Its rows are copied as they are, so its images are read without boxes."""

    def __init__(self, path: Path):
        """Finds the splits. Raises an InputError if there are no annotations or no classes."""
        super().__init__(split for split in SPLITS if paths.box_annotations(path, split).is_file())
        if not self.sets:
            raise InputError(f"{path} has no annotations/train-annotations-bbox.csv: {LAYOUT}")
        self._path = path
        for name in (paths.HIERARCHY, paths.CLASS_DESCRIPTIONS):
            require_file(paths.annotation_file(path, name), LAYOUT)

    def read(self, name: str) -> list[SourceImage]:
        """The images of a split that are on disk, without their boxes."""
        found = find_images(self._path / name) if (self._path / name).is_dir() else {}
        return [SourceImage(path, image_id, path, image_id=image_id) for image_id, path in found.items()]

    def tables(self, names: list[str]) -> Iterator[tuple[Callable[[Path, str], Path], list[Path]]]:
        """Yields the function for the path in a data set and the existing files: boxes, then image-level labels."""
        for place in (paths.box_annotations, paths.image_label_annotations):
            yield place, [file for name in names if (file := place(self._path, name)).is_file()]

    def copy_annotations(self, folder: Path, sets: dict[str, list[str]], held_out: set[str]) -> None:
        """Copies classes and rows to DATASET, those of the training images in `held_out` to the validation split."""
        for name in (paths.HIERARCHY, paths.CLASS_DESCRIPTIONS, paths.CHALLENGE_CLASS_DESCRIPTIONS):
            if (path := paths.annotation_file(self._path, name)).is_file():
                with replacing(paths.annotation_file(folder, name)) as temporary:
                    shutil.copyfile(path, temporary)
        is_held_out = pl.col("ImageID").is_in(list(held_out))
        for split, names in sets.items():
            for place, files in self.tables(names):
                if not files:
                    continue
                rows = pl.concat([pl.read_csv(file, infer_schema=False) for file in files], how="diagonal")
                tables = {split: rows}
                if held_out and split == "train":
                    tables = {"train": rows.filter(~is_held_out), "validation": rows.filter(is_held_out)}
                for name, table in tables.items():
                    with replacing(place(folder, name)) as temporary:
                        table.write_csv(temporary)


def prepare_rows(
    reader: OpenImagesReader, sets: dict[str, list[str]], folds: int | None, fold: int, progress: Progress
) -> tuple[Splits, Callable[[Path], None], list[str]]:
    """Checks the rows, measures and divides the images that are on disk. See `oid.sources.write.prepare_boxes`.

    Images that are not on disk keep their rows; for the folds each is a group of its own.
    """
    boxes, splits, held_out = {}, {}, set()
    for split, names in sets.items():
        (_, box_files), (_, label_files) = reader.tables(names)
        boxes[split] = pl.concat([read_boxes(file, ("ImageID", "LabelName")) for file in box_files])
        for file in label_files:
            read_image_labels(file)  # names the first wrong row before anything is written
    for split, names in sets.items():
        images = {image.image_id: image for name in names for image in reader.read(name)}
        splits[split] = measure(list(images.values()), reader.problems, progress, "not linked, its rows stay")
    if folds:
        classes = dict(boxes["train"].unique().group_by("ImageID").agg("LabelName").iter_rows())
        digests = {image.image_id: image.md5 for image in splits["train"]}
        ids = sorted(classes.keys() | digests.keys())
        held_out = hold_out([(i, digests.get(i, i), set(classes.get(i, ()))) for i in ids], folds, fold)
        splits = divide(splits, held_out)
    write_annotations = functools.partial(reader.copy_annotations, sets=sets, held_out=held_out)
    return splits, write_annotations, [f"  {split}: {len(images)} images on disk" for split, images in splits.items()]


def read_images(
    data_set: Path, split: str, names: dict[str, str], problems: Problems, progress: Progress = iter
) -> list[SourceImage]:
    """Reads the images of a split that have a box or an image-level label, with their boxes of some classes.

    Args:
        data_set: a folder in Open Images' layout.
        split: "train", "validation" or "test".
        names: {label: class name} of these classes.
        problems: gets the images that are missing or damaged.
        progress: shows how many images are measured.

    Returns:
        Measured images, corners in pixels, in the order of the image ids.
    """
    file = require_file(paths.box_annotations(data_set, split), LAYOUT)
    labelled = set(read_boxes(file)["ImageID"])
    if (label_file := paths.image_label_annotations(data_set, split)).is_file():
        labelled.update(read_image_labels(label_file)["ImageID"])
    found, missing = find_images(data_set / split), data_set / split
    images = [SourceImage(found.get(i, missing / i), i, file, i, image_id=i) for i in sorted(labelled)]
    measured = {image.image_id: image for image in measure(images, problems, progress)}
    header = read_header(file, BOX_COLUMNS)
    marks = {mark: column for mark, column in MARK_COLUMNS.items() if column in header}
    columns = dict.fromkeys(("ImageID", "LabelName", *CORNERS, *marks.values()))
    wanted = pl.col("LabelName").is_in(list(names)) & pl.col("ImageID").is_in(list(measured))
    with csv_errors(file):
        rows = scan_rows(file, list(columns)).filter(wanted).collect()
    for row in rows.iter_rows(named=True):
        image = measured[row["ImageID"]]
        corners = tuple(float(row[name]) * side for name, side in zip(CORNERS, image.size * 2, strict=True))
        known = {mark: int(row[column] or 0) for mark, column in marks.items()}
        image.boxes.append(Box(names[row["LabelName"]], corners, f"line {row['line']}", **known))
    return list(measured.values())
