"""Writes a data set in Open Images' layout: what all sources become.

    annotations/                 boxes, image-level labels, class descriptions, hierarchy
    {train,validation,test}/     the images, as links to those of the source, named by their ids
    source_images.csv            Split,ImageID,Path,Width,Height,MD5: which image of the source has which id
    source_problems.csv          what was wrong; absent where nothing was
    source.json                  from what the data set was made; without it a folder is never written to

Every class is verified on every image, because the other formats say that what has no box is not there; except where
a box of the class could not be used. The hierarchy is flat. Areas where any class may be are boxes of a class above all
others, which a01 makes ignored regions of every class; that class is in no class list, so no script predicts or
measures it.
"""

import csv
import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from oid import paths
from oid.annotations import BOX_COLUMNS, write_class_descriptions
from oid.files import InputError, output_file, replacing
from oid.images.find import SUFFIXES
from oid.sources.base import Box, Picture

IMAGE_COLUMNS = ("Split", "ImageID", "Path", "Width", "Height", "MD5")
ROOT, ANYTHING = "/m/0bl9f", "/m/anything"  # of the hierarchy; the class of areas where any class may be
DIFFICULT = "IsDifficult"  # a column more than Open Images has
TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # any file name comes through
_LONGEST_ID = 150  # letters


def conversion(
    source: str, path: Path, source_splits: Sequence[str], folds: int | None, fold: int
) -> dict[str, object]:
    """What makes a conversion another one: the content of `source.json`. Without folds, `fold` means nothing."""
    made = {"source": source, "source_path": str(path.resolve()), "source_splits": list(source_splits)}
    return made | {"validation_folds": folds, "fold": None if folds is None else fold}


def refuse_other(folder: Path, made: dict[str, object]) -> None:
    """Checks that `folder` is new, or holds what the same conversion has made before.

    Raises:
        InputError: there is something else.
    """
    remedy = "give another folder by --dataset_path"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: {remedy}")
    output_file(paths.source_mark(folder), remedy)
    if paths.source_mark(folder).is_file():
        try:
            before = json.loads(paths.source_mark(folder).read_text(encoding="utf-8"))
        except ValueError:
            before = None
        if before != made:
            known = before if isinstance(before, dict) else {}
            different = [name for name in made if known.get(name) != made[name]]
            before_text = f"{different[0]} {known.get(different[0])!r}" if different else "other settings"
            raise InputError(f"{folder} is the data set made with {before_text}: {remedy}, or remove it")
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is there, and not made from another data set by a01: {remedy}")


def mark(folder: Path, made: dict[str, object]) -> None:
    """Writes down of what conversion `folder` is the place, before anything else is written there."""
    with replacing(paths.source_mark(folder)) as temporary:
        temporary.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


def write_data_set(
    folder: Path, classes: Sequence[str], splits: dict[str, list[Picture]], ignored_class: str | None
) -> None:
    """Writes images, tables and annotations, the annotations last: a folder without them is not finished.

    Args:
        folder: DATASET, after `mark`.
        classes: their names, in the order of the network's outputs.
        splits: clean pictures with ids.
        ignored_class: the name of areas where any class may be, or None.
    """
    link_images(folder, {split: [(p.image_id, p.path) for p in pictures] for split, pictures in splits.items()})
    write_images_table(
        folder, ((split, p.image_id, p.path, *p.size, p.md5) for split, pictures in splits.items() for p in pictures)
    )
    labels = class_labels(classes)
    anything = any(box.class_name == ignored_class for pictures in splits.values() for p in pictures for box in p.boxes)
    nodes = [{"LabelName": label} for label in labels.values()]
    if anything:
        nodes = [{"LabelName": ANYTHING, "Subcategory": nodes}]
    tree = {"LabelName": ROOT, "Subcategory": nodes}
    with replacing(paths.annotation_file(folder, paths.HIERARCHY)) as temporary:
        temporary.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    described = {label: name for name, label in labels.items()}
    write_class_descriptions(paths.annotation_file(folder, paths.CLASS_DESCRIPTIONS), described)
    of_class = labels | ({ignored_class: ANYTHING} if anything else {})
    difficult = any(box.difficult for pictures in splits.values() for p in pictures for box in p.boxes)
    for split, pictures in splits.items():
        _write_image_labels(paths.image_label_annotations(folder, split), pictures, labels)
        rows = (_box_row(p, box, of_class[box.class_name], difficult) for p in pictures for box in p.boxes)
        header = (*BOX_COLUMNS, DIFFICULT) if difficult else BOX_COLUMNS
        write_table(paths.box_annotations(folder, split), header, rows)


def link_images(folder: Path, splits: dict[str, Iterable[tuple[str, Path]]]) -> None:
    """Makes a link for each (id, path) in the folder of its split, and removes links of an earlier conversion.

    Hard links where the file system allows them, else symbolic links, else copies.
    """
    wanted = set()
    for split, images in splits.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for image_id, path in images:
            suffix = path.suffix if path.suffix.lower() in SUFFIXES else ".jpg"  # the content tells what it is
            link = folder / split / (image_id + suffix)
            wanted.add(link)
            if not link.exists() or not link.samefile(path):
                with replacing(link) as temporary:
                    _link(path.resolve(), temporary)
    for split, image_id, *_ in read_images_table(folder):
        for suffix in SUFFIXES:
            for link in (folder / split / (image_id + suffix), folder / split / (image_id + suffix.upper())):
                if link not in wanted and os.path.lexists(link):
                    link.unlink()


def _link(path: Path, link: Path) -> None:
    try:
        os.link(path, link)
    except OSError:  # another device, another owner, or a file system without such links
        try:
            os.symlink(path, link)
        except OSError:
            shutil.copyfile(path, link)


def write_images_table(folder: Path, rows: Iterable[Sequence[object]]) -> None:
    """Writes `source_images.csv` from rows of IMAGE_COLUMNS."""
    write_table(paths.source_images(folder), IMAGE_COLUMNS, rows)


def read_images_table(folder: Path) -> list[list[str]]:
    """The rows of `source_images.csv`; none where it does not exist."""
    if not paths.source_images(folder).is_file():
        return []
    with open(paths.source_images(folder), **TEXT) as file:
        return [row for row in list(csv.reader(file))[1:] if len(row) == len(IMAGE_COLUMNS)]


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV file, all or nothing."""
    with replacing(path) as temporary, open(temporary, "w", **TEXT) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def class_labels(names: Sequence[str]) -> dict[str, str]:
    """{name: label}: `/m/` and the name in lower case, what is no letter, digit, `-` or `.` as `_`; each label once."""
    labels: dict[str, str] = {}
    used = {ROOT, ANYTHING}
    for name in names:
        plain = "/m/" + (re.sub(r"[^\w.-]+", "_", name.lower()) or "_")
        labels[name] = _unused(plain, used)
    return labels


def image_ids(names: Sequence[str]) -> list[str]:
    """An id for each name `folder/file`: the file's name, with the folders where others have the same.

    Letters of any script, digits, `-` and `_` stay, all else becomes `_`: an id is fit for file names, CSV and the
    submission. No two ids differ in upper and lower case only.
    """

    def plain(text: str) -> str:
        return re.sub(r"[^\w-]+", "_", text).strip("_") or "_"

    short = [plain(name.rpartition("/")[2])[:_LONGEST_ID] for name in names]
    count: dict[str, int] = {}
    for text in short:
        count[text.casefold()] = count.get(text.casefold(), 0) + 1
    used = {text for text in count if count[text] == 1}
    return [
        text if count[text.casefold()] == 1 else _unused(plain(name)[-_LONGEST_ID:], used)
        for text, name in zip(short, names, strict=True)
    ]


def _unused(text: str, used: set[str]) -> str:
    """`text`, with a number behind it where that is in `used` but for upper and lower case; adds it there."""
    number, found = 1, text
    while found.casefold() in used:
        number += 1
        found = f"{text}_{number}"
    used.add(found.casefold())
    return found


def _box_row(picture: Picture, box: Box, label: str, difficult: bool) -> tuple[object, ...]:
    width, height = picture.size
    x0, y0, x1, y1 = box.corners
    corners = [f"{value:.9f}" for value in (x0 / width, x1 / width, y0 / height, y1 / height)]
    flags = (box.occluded, box.truncated, box.group_of, 0, 0)
    return (picture.image_id, "xclick", label, 1, *corners, *flags, *((box.difficult,) if difficult else ()))


def _write_image_labels(path: Path, pictures: list[Picture], labels: dict[str, str]) -> None:
    """Every class on every image, 1 where it has a box; not the classes of which that is uncertain."""
    ids = pl.Series("ImageID", [p.image_id for p in pictures], pl.String).to_frame()
    present = {(p.image_id, labels[box.class_name]) for p in pictures for box in p.boxes if box.class_name in labels}
    uncertain = {(p.image_id, labels[name]) for p in pictures for name in p.uncertain if name in labels} - present
    schema = {"ImageID": pl.String, "LabelName": pl.String}
    keys = list(schema)
    shown = pl.DataFrame(sorted(present), schema=schema, orient="row").with_columns(Confidence=pl.lit(1, pl.Int8))
    table = (
        ids.join(pl.DataFrame({"LabelName": list(labels.values())}), how="cross")
        .join(pl.DataFrame(sorted(uncertain), schema=schema, orient="row"), on=keys, how="anti")
        .join(shown, on=keys, how="left", maintain_order="left")
        .select("ImageID", pl.lit("verification").alias("Source"), "LabelName", pl.col("Confidence").fill_null(0))
    )
    with replacing(path) as temporary:
        table.write_csv(temporary)
