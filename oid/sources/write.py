"""Turns a data set of another format into DATASET, a folder in Open Images' layout.

    annotations/                 boxes, image-level labels, class descriptions, hierarchy
    {train,validation,test}/     the images, as links to those of the source, named by their ids
    source_images.csv            which image of the source has which id, with size and digest
    source_problems.csv          what was wrong; absent if nothing was
    source.json                  how the data set was made; a folder without it is never written to

Every class is verified on every image, because in the other formats an object without a box is not there; except a
class whose box could not be used. The hierarchy is flat. Areas where any class may be are boxes of a class above all
others, which a01 turns into ignored regions of every class; that class is in no class list, so no script predicts or
measures it. A source in Open Images' own layout keeps its rows as they are.
"""

import collections
import contextlib
import csv
import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from oid import paths
from oid.annotations import write_class_descriptions
from oid.columns import BOX_COLUMNS, DIFFICULT_COLUMN, IMAGE_LABEL_FILE_COLUMNS, SOURCE_IMAGE_COLUMNS
from oid.files import InputError, replacing
from oid.images.find import SUFFIXES
from oid.sources.base import Box, FolderError, Progress, Reader, SourceImage, Splits, require_free
from oid.sources.clean import clean_boxes, measure, report_duplicates
from oid.sources.coco import CocoReader
from oid.sources.csv_table import CsvReader
from oid.sources.kitti import KittiReader
from oid.sources.open_images import OpenImagesReader, prepare_rows
from oid.sources.splits import SetError, SplitChoice, choose_splits, divide, hold_out
from oid.sources.voc import VocReader
from oid.text_files import write_rows

READERS: dict[str, Callable[[Path], Reader]] = {
    "oid": OpenImagesReader,
    "csv": CsvReader,
    "coco": CocoReader,
    "voc": VocReader,
    "kitti": KittiReader,
}
SOURCE_MARK, SOURCE_IMAGES = "source.json", "source_images.csv"
ROOT, ANYTHING = "/m/0bl9f", "/m/anything"  # of the hierarchy; the class of areas where any class may be
LONGEST_ID = 150  # letters


# === From the source to DATASET ======================================================================================
def convert(
    source: str, path: Path, folder: Path, choice: SplitChoice | None = None, progress: Progress = iter
) -> list[str]:
    """Makes DATASET, and returns lines that tell what was made.

    Args:
        source: the format, a name of READERS.
        path: the source's folder, or one of its files if the format allows that.
        folder: DATASET, to be made.
        choice: how the source is divided; None: as the names of its sets say.
        progress: shows how many images are measured.

    Raises:
        SetError, FoldError: the choice does not fit the source.
        FolderError: DATASET holds something else, or cannot be written.
        InputError: the source cannot be used. In all these cases nothing is written.
    """
    reader = READERS[source](path)
    choice = choice or SplitChoice()
    sets, folds = choose_splits(reader.sets, choice)
    settings = {"source": source, "source_path": str(path.resolve()), "source_splits": list(choice.sets)}
    settings |= {"validation_folds": folds, "fold": None if folds is None else choice.fold}
    mark, mark_text = folder / SOURCE_MARK, json.dumps(settings, indent=2) + "\n"
    if not mark.is_file():
        require_free(folder)
    elif mark.read_text(encoding="utf-8", errors="replace") != mark_text:
        raise FolderError(f"{folder} was made with other settings, see {mark}: remove it, or give another folder")
    if source == "oid" and "validation" in sets and not choice.sets:
        raise FolderError(f"{path} has a validation split, so there is nothing to make: give it")
    prepare = prepare_rows if source == "oid" else prepare_boxes
    splits, write_annotations, counts = prepare(reader, sets, folds, choice.fold, progress)
    report_duplicates(splits, reader.problems)
    with replacing(mark) as temporary:  # before anything else is written there
        temporary.write_text(mark_text, encoding="utf-8")
    link_images(folder, splits)
    rows = [(split, i.image_id, i.path, *i.size, i.md5) for split, images in splits.items() for i in images]
    write_rows(folder / SOURCE_IMAGES, rows, SOURCE_IMAGE_COLUMNS)
    write_annotations(folder)
    reader.problems.write(folder)
    held_out = f"  no validation set: fold {choice.fold} of {folds} of the training images is held out"
    return [
        f"{source}: {path}",
        "  sets: " + ", ".join(f"{split} = {' + '.join(names)}" for split, names in sets.items()),
        *([held_out] if folds else []),
        *counts,
        *reader.problems.summary(folder),
        f"  made {folder}; which image has which id: {folder / SOURCE_IMAGES}",
    ]


def prepare_boxes(
    reader: Reader, sets: dict[str, list[str]], folds: int | None, fold: int, progress: Progress
) -> tuple[Splits, Callable[[Path], None], list[str]]:
    """Reads, cleans and divides the images and boxes of the sets of each split. See `choose_splits`.

    Returns:
        The images of each split; a function that writes their annotations to DATASET; lines with their numbers.
    """
    splits = read_splits(reader, sets)
    splits = {split: measure(images, reader.problems, progress) for split, images in splits.items()}
    classes, pixels = reader.classes(), reader.corners_are_pixels
    known = {*classes, reader.ignored_class}
    ids = iter(image_ids([image.name for images in splits.values() for image in images]))
    for split, images in splits.items():
        images = [clean_boxes(image, known, reader.problems, corners_are_pixels=pixels) for image in images]
        splits[split] = [replace(image, image_id=next(ids)) for image in images]
        if split != "test" and not any(image.boxes for image in images):
            count = len(reader.problems)
            reason = f"the first of {count} problems is {reader.problems[0]}" if count else "the annotations have none"
            raise InputError(f"no usable {'box' if images else 'image'} for {split}: {reason}")
    if folds:
        train = [(i.image_id, i.md5, {box.class_name for box in i.boxes} & set(classes)) for i in splits["train"]]
        splits = divide(splits, hold_out(train, folds, fold))
    write = functools.partial(write_annotations, classes=classes, splits=splits, ignored_class=reader.ignored_class)
    counts = [f"  {len(classes)} classes"]
    for split, images in splits.items():
        empty = sum(not image.boxes for image in images)
        boxes = [box for image in images for box in image.boxes]
        marks = {
            "of groups": sum(box.group_of == 1 for box in boxes),
            "difficult": sum(box.difficult for box in boxes),
            f"of {reader.ignored_class}": sum(box.class_name == reader.ignored_class for box in boxes),
        }
        marked = ", ".join(f"{count} {mark}" for mark, count in marks.items() if count)
        of_these = f" ({marked})" if marked else ""
        counts.append(f"  {split}: {len(images)} images, {empty} without boxes, {len(boxes)} boxes{of_these}")
    return splits, write, counts


def read_splits(reader: Reader, sets: dict[str, list[str]]) -> Splits:
    """The images of the sets of each split, each file once. Raises a SetError if one is in two splits."""
    splits: dict[str, dict[Path, SourceImage]] = {}
    for split, names in sets.items():
        images: dict[Path, SourceImage] = {}
        for image in (image for name in names for image in reader.read(name)):
            if images.setdefault(image.path, image) is not image:
                reader.problems.add(image.file, image.place, "image in several sets", image.path, "taken once")
        for other, others in splits.items():
            if both := images.keys() & others.keys():
                raise SetError(f"{min(both)} is in the sets of {other} and of {split}: choose sets without it")
        splits[split] = images
    return {split: list(images.values()) for split, images in splits.items()}


# === Images ==========================================================================================================
def link_images(folder: Path, splits: Splits) -> None:
    """Links each image in the folder of its split, and removes the links of an earlier conversion.

    Hard links if the file system allows them, else symbolic links, else copies.
    """
    wanted = {folder / split / link_name(i.image_id, i.path): i for split, images in splits.items() for i in images}
    for split in splits:
        (folder / split).mkdir(parents=True, exist_ok=True)
    for link, image in wanted.items():
        if not link.exists() or not link.samefile(image.path):
            with replacing(link) as temporary:
                _link(image.path.resolve(), temporary)
    if (folder / SOURCE_IMAGES).is_file():
        with open(folder / SOURCE_IMAGES, encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == len(SOURCE_IMAGE_COLUMNS)]
        for split, image_id, path, *_ in rows[1:]:
            link = folder / split / link_name(image_id, Path(path))
            if link not in wanted:
                link.unlink(missing_ok=True)


def link_name(image_id: str, path: Path) -> str:
    """The file name of the link to an image. An unusual suffix becomes .jpg; readers look at the content."""
    return image_id + (path.suffix if path.suffix.lower() in SUFFIXES else ".jpg")


def _link(path: Path, link: Path) -> None:
    for make_link in (os.link, os.symlink):
        with contextlib.suppress(OSError):  # another device, another owner, or a file system without such links
            make_link(path, link)
            return
    shutil.copyfile(path, link)


def image_ids(names: Sequence[str]) -> list[str]:
    """An id for each name `folder/file`: the name of the file, with its folders if another file has the same name.

    Letters of any script, digits, `-` and `_` stay, everything else becomes `_`: an id is fit for file names, CSV and
    the submission. No two ids differ only in upper and lower case.
    """

    def plain(text: str) -> str:
        return re.sub(r"[^\w-]+", "_", text).strip("_") or "_"

    short = [plain(name.rpartition("/")[2])[:LONGEST_ID] for name in names]
    count = collections.Counter(text.casefold() for text in short)
    used = {text for text in count if count[text] == 1}
    return [
        text if count[text.casefold()] == 1 else _unused(plain(name)[-LONGEST_ID:], used)
        for text, name in zip(short, names, strict=True)
    ]


def _unused(text: str, used: set[str]) -> str:
    """`text`, with a number if it is in `used` apart from upper and lower case; adds the result there."""
    number, found = 1, text
    while found.casefold() in used:
        number += 1
        found = f"{text}_{number}"
    used.add(found.casefold())
    return found


# === Annotations =====================================================================================================
def write_annotations(folder: Path, *, classes: Sequence[str], splits: Splits, ignored_class: str | None) -> None:
    """Writes boxes, image-level labels, class descriptions and hierarchy of clean images with ids.

    The classes are in the order of the network's outputs. `ignored_class` names the areas where any class may be.
    """
    labels = class_labels(classes)
    boxes = [box for images in splits.values() for image in images for box in image.boxes]
    nodes = [{"LabelName": label} for label in labels.values()]
    label_of = dict(labels)
    if any(box.class_name == ignored_class for box in boxes):
        nodes = [{"LabelName": ANYTHING, "Subcategory": nodes}]
        label_of[ignored_class] = ANYTHING
    with replacing(paths.annotation_file(folder, paths.HIERARCHY)) as temporary:
        text = json.dumps({"LabelName": ROOT, "Subcategory": nodes}, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")
    names = {label: name for name, label in labels.items()}
    write_class_descriptions(paths.annotation_file(folder, paths.CLASS_DESCRIPTIONS), names)
    header = (*BOX_COLUMNS, DIFFICULT_COLUMN) if any(box.difficult for box in boxes) else BOX_COLUMNS
    for split, images in splits.items():
        label_rows = _image_label_rows(images, labels)
        write_rows(paths.image_label_annotations(folder, split), label_rows, IMAGE_LABEL_FILE_COLUMNS)
        box_rows = (_box_row(image, box, label_of)[: len(header)] for image in images for box in image.boxes)
        write_rows(paths.box_annotations(folder, split), box_rows, header)


def class_labels(names: Sequence[str]) -> dict[str, str]:
    """{name: label}: `/m/` and the name in lower case; only letters, digits, `-`, `.` and `_`; no two are equal."""
    used = {ROOT, ANYTHING}
    return {name: _unused("/m/" + (re.sub(r"[^\w.-]+", "_", name.lower()) or "_"), used) for name in names}


def _box_row(image: SourceImage, box: Box, label_of: dict[str, str]) -> tuple[object, ...]:
    """The values of BOX_COLUMNS and DIFFICULT_COLUMN."""
    x0, y0, x1, y1 = (f"{corner / side:.9f}" for corner, side in zip(box.corners, image.size * 2, strict=True))
    marks = (box.occluded, box.truncated, box.group_of, 0, 0, box.difficult)
    return (image.image_id, "xclick", label_of[box.class_name], 1, x0, x1, y0, y1, *marks)


def _image_label_rows(images: Sequence[SourceImage], labels: dict[str, str]) -> Iterator[tuple[object, ...]]:
    """A row for every class on every image: 1 if it has a box; no row if that is uncertain."""
    for image in images:
        present = {box.class_name for box in image.boxes}
        for name, label in labels.items():
            if name in present or name not in image.uncertain:
                yield image.image_id, "verification", label, int(name in present)
