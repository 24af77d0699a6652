"""a01: makes the training files of each level of the class hierarchy.

Reads from DATASET/annotations/
    {train,validation}-annotations-bbox.csv       boxes, 13 columns (V4) or 21 (V6)
    bbox_labels_600_hierarchy.json                who is above whom; only `Subcategory` counts, the root is no class
    class-descriptions-boxable.csv                label,name, with or without a header
    challenge-2018-class-descriptions-500.csv     optional: then only these classes are kept
    {train,validation}-annotations-human-imagelabels-boxable.csv       optional: without it there are no negatives
Writes to OUTPUT/level_<n>_files/
    {train,validation}-annotations-bbox-level-<n>.csv       the 13 columns, the source's text; then the negatives
    {train,validation}-ignored-regions-level-<n>.csv        ImageID,LabelName,XMin,XMax,YMin,YMax,Reason
    {train,validation}-image-labels-level-<n>.csv           ImageID,LabelName,Confidence, expanded
    class-descriptions-boxable-level-<n>.csv                label,name without a header, in the order of the outputs
    left-out-classes-level-<n>.csv                          the same for classes with fewer boxes than --min_boxes
    image-ids-level-<n>.txt                                 train/<id> and validation/<id>, sorted: every image with a
                                                            box, an ignored region or a negative row
Takes half a second of one core for each million rows that it reads or writes, and 1.2 GB of memory for the 14.6 million
boxes of Open Images. However many levels there are, a box file is read twice, first for the rules and then for its
text, and an image-label file once. The files appear together at the end; the same input gives the same bytes.

    python a01_create_training_files.py --dataset_path data/open_images --levels 1 2 all
    python a01_create_training_files.py --dataset_path data/open_images --levels all --parent_label Boat
    python a01_create_training_files.py --dataset_path demo_data/data_set --output_path demo_data/try --levels 1
    python a01_create_training_files.py --source voc --source_path VOCdevkit/VOC2012 --dataset_path data/voc
    python a01_create_training_files.py --dataset_path data/voc --export coco --export_path data/voc_as_coco

A data set of one's own, --source_path, becomes one in this layout first, with its own validation split or with one of
folds: oid/sources/ says what its readers forgive, oid/sources/write.py what is written to DATASET.

The rules
Classes. Kept are the classes of class-descriptions-boxable.csv, of these only the challenge's where its file is
  present, in the order of the file that decides. All others, also those that only the hierarchy has, are "excluded".
  Who is above whom is asked of the full hierarchy. A kept class that it lacks counts as a leaf without ancestors.
  A part of these is kept by --labels_filter and --parent_label, and all others are excluded, too: of a model for
  `Helmet` alone, a `Football helmet` is neither a helmet nor background (keep both, and it is a box of both). Only the
  levels that the part has are written; give it an --output_path of its own. a05 and a07 take all classes for granted:
  give both --class_descriptions with the level's file, and they add and measure no others.
Levels. A level is a height in the hierarchy contracted to the kept classes (children of a dropped class move up): a
  leaf is 1, an inner class 1 + its highest child. `all` is every kept class, `rare` those with fewer than --rare_below
  training boxes, leaf or inner. A class with fewer than --min_boxes training boxes is left out and named. Training
  boxes are counted as they are written: ordinary, with those of the classes below, each once. Validation files have
  the classes that were chosen on train.
Boxes. A box counts as every class of the level that is its own or above it (in `all`: it is copied to all ancestors),
  once: of several with equal image, class and coordinates (as numbers) the first stays. Rows are in the source's order,
  copies of one box in the order of the classes.
Ignored regions say where a class gets no gradient, neither as box nor as background. What a row's label means, its
  reason says. Of the first two reasons the first that applies is written, once for each image, class and rectangle:
  group_of        IsGroupOf is 1 (-1, unknown, is an ordinary box): for its own class and every ancestor in the level.
  excluded_class  the box has an excluded class, group-of or not: for every ancestor in the level.
  ancestor_class  every class of the level below LabelName in the full hierarchy, not LabelName itself, which need be no
                  class of the level: the box is labelled with their ancestor, kept or not, group-of or not. A `Fruit`
                  may be an apple, so it must not teach that it is none. One row for each image, label and rectangle,
                  whatever the other reasons say of the classes below; none for a label with no class of the level
                  below it, and none where another box of the image with equal coordinates has a class below the
                  label, since that one says what it is.
  Rows are in the order of the boxes, those of one box in the order of the labels. The table counts rows.
Image labels. A positive one counts for all ancestors, a negative one for all descendants; restricted to the level, each
  image and class once; where both meet, positive wins (counted). The file has only what people verified on the whole
  image: a class with a box but no label is not added, readers take the union with the boxes, as the metric does. Images
  are in the source's order, labels in the order of the classes.
Negatives. An image with at least one image label of the level and neither box nor region in it is one row with the
  ImageID, all else empty, after the boxes. (A positive label without a box is no obstacle: the metric counts detections
  there as false, too. The table says how many there are.)
Labels that neither hierarchy nor descriptions know are dropped and counted.
"""

import contextlib
import difflib
import functools
import math
import os
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from tqdm import tqdm

from a00_utils_and_constants import DATASET_PATH, LEVELS, OUTPUT_PATH
from oid import paths
from oid.annotations import read_class_descriptions, write_class_descriptions
from oid.command_line import run_script
from oid.files import InputError, require_file, require_folder
from oid.hierarchy import Hierarchy, read_hierarchy
from oid.levels.rows import Rows, no_image_labels, read_box_rows, read_image_label_rows
from oid.levels.rules import Classes, mean_boxes
from oid.levels.write import Source, write_levels
from oid.sources.base import FolderError
from oid.sources.export import export as write_export
from oid.sources.splits import SplitChoice, SplitError
from oid.sources.write import convert

SPLITS = ("train", "validation")


def main(
    *,
    dataset_path: str = DATASET_PATH,
    output_path: str = OUTPUT_PATH,
    levels: tuple[str, ...] = LEVELS,
    min_boxes: int = 1,
    rare_below: int = 500,
    labels_filter: tuple[str, ...] | None = None,
    parent_label: str | None = None,
    source: Literal["oid", "csv", "coco", "voc", "kitti"] = "oid",
    source_path: str | None = None,
    source_splits: tuple[str, ...] = (),
    validation_folds: int | None = None,
    fold: int = 0,
    export: Literal["coco", "voc", "csv"] | None = None,
    export_path: str | None = None,
) -> None:
    """Makes the training files of the levels. With --source_path it first makes DATASET from that data set, whose
    format is --source; with --export it writes DATASET in another format instead of training files.

    Args:
        dataset_path: the folder of Open Images, with `annotations/` below it.
        output_path: the folder for everything that a01 to a07 write.
        levels: heights in the class hierarchy (1 = leaves), "all" for every class, "rare" for those with few boxes.
        min_boxes: classes with fewer training boxes are left out; 0 keeps every class.
        rare_below: level "rare" has the classes with fewer training boxes than this.
        labels_filter: keeps only these classes, names or labels with commas or spaces between; see the rules above.
        parent_label: keeps only this class and all below it, by name or label.
        source: the format of --source_path; "csv" as keras-retinanet takes it.
        source_path: a data set from which DATASET is made, new, with links to the images; without it DATASET is there.
        source_splits: which of its sets become train=, validation= and test=, joined by +: train=train+val; without
            it their names tell.
        validation_folds: divide its training images into so many parts, where there are none for validation.
        fold: the part that is for validation, from 0.
        export: write train and validation of DATASET in this format.
        export_path: the folder for that, to be made.
    """
    if min_boxes < 0:
        raise InputError(f"--min_boxes {min_boxes} is negative: 0 keeps every class")
    if rare_below < 1:
        raise InputError(f"--rare_below {rare_below}: no class has fewer boxes than none, give at least 1")
    if (export is None) != (export_path is None):
        raise InputError("--export and --export_path belong together: the format, and the folder to be made")
    convert_source(source, source_path, dataset_path, SplitChoice(source_splits, validation_folds, fold))
    require_folder(dataset_path, "set --dataset_path, or OID_PATH, to the folder of Open Images")
    classes = read_classes(dataset_path, labels_filter, parent_label)
    if export:
        with name_flags("export_path"):
            print(*write_export(export, Path(dataset_path), Path(export_path), classes.names, image_bar), sep="\n")
        return
    is_part = labels_filter is not None or parent_label is not None
    candidates = classes_of_levels(classes, levels, is_part=is_part)
    sources = {split: read_source(dataset_path, split, classes) for split in SPLITS}
    chosen, left_out = {}, {}
    for level, labels in candidates.items():
        limit = rare_below if level == "rare" else math.inf
        chosen[level], left_out[level] = choose_classes(classes, level, labels, sources["train"], min_boxes, limit)

    counts = write_levels(output_path, classes, chosen, list(sources.values()))
    for level, labels in chosen.items():
        write_classes(paths.level_class_descriptions(output_path, level), classes, labels)
        write_classes(paths.level_left_out_classes(output_path, level), classes, left_out[level])
        print(f"\nlevel {level}: {len(labels)} classes, in {paths.level_folder(output_path, level)}")
        print_table(counts[level])
        print_names(f"left out, fewer than --min_boxes {min_boxes}", map(classes.names.get, left_out[level]))


# === Other formats ===================================================================================================
def convert_source(source: str, source_path: str | None, dataset_path: str, choice: SplitChoice) -> None:
    """Makes DATASET from the data set in `source_path`, if that is given, and prints what was made."""
    if source_path is None:
        if source != "oid":
            raise InputError(f"--source {source} needs --source_path: the folder of that data set")
        if choice != SplitChoice():
            raise InputError("--source_splits, --validation_folds and --fold need --source_path, the data set")
        return
    if not os.path.exists(source_path):
        raise InputError(f"--source_path {source_path} does not exist: give the folder of the data set")
    with name_flags("dataset_path"):
        print(*convert(source, Path(source_path), Path(dataset_path), choice, image_bar), sep="\n")
    print("  (--source_splits chooses other sets, --validation_folds and --fold other folds)\n", flush=True)


@contextlib.contextmanager
def name_flags(folder: str) -> Iterator[None]:
    """Adds the flags to change to errors about splits and about the folder to be made, which is given by --`folder`."""
    try:
        yield
    except SplitError as error:
        raise InputError(f"{error} (see --source_splits, --validation_folds and --fold)") from error
    except FolderError as error:
        raise InputError(f"{error} by --{folder}") from error


image_bar = functools.partial(tqdm, unit="image", leave=False, disable=None)


# === Classes and levels ==============================================================================================
def read_classes(dataset_path: str, labels_filter: tuple[str, ...] | None, parent_label: str | None) -> Classes:
    """Reads hierarchy and descriptions, and prints which classes are kept."""
    download = "download it from https://storage.googleapis.com/openimages/web/download.html"
    boxable_path = paths.annotation_file(dataset_path, paths.CLASS_DESCRIPTIONS)
    boxable = read_class_descriptions(require_file(boxable_path, download))
    deciding_path = paths.evaluated_class_descriptions(dataset_path)
    names = read_class_descriptions(deciding_path)
    hierarchy_path = paths.annotation_file(dataset_path, paths.HIERARCHY)
    hierarchy = read_hierarchy(require_file(hierarchy_path, download))
    print_names(f"not in {boxable_path.name}, dropped", [name for label, name in names.items() if label not in boxable])
    kept = {label: name for label, name in names.items() if label in boxable and label != hierarchy.root}
    if not kept:
        raise InputError(f"{deciding_path} and {boxable_path} have no class in common: they must use the same labels")
    if hierarchy.root in names:
        print_names("the root of the hierarchy is no class, dropped", [names[hierarchy.root]])
    if labels_filter is not None or parent_label is not None:
        kept = select_part(kept, hierarchy, labels_filter, parent_label)
        print_names("of these only", kept.values())
    unplaced = [name for label, name in kept.items() if label not in hierarchy]
    print_names(f"not in {hierarchy_path.name}, taken as leaves without ancestors", unplaced)
    known = [*kept, *(label for label in dict.fromkeys([*hierarchy.labels, *boxable]) if label not in kept)]
    known = [label for label in known if label != hierarchy.root]
    print(f"{len(kept)} classes of {deciding_path.name}, {len(known) - len(kept)} others are excluded")
    return Classes(kept, hierarchy, pl.Enum(known))


def select_part(
    kept: dict[str, str], hierarchy: Hierarchy, labels_filter: tuple[str, ...] | None, parent_label: str | None
) -> dict[str, str]:
    """The classes that --labels_filter or --parent_label leave of the kept ones, in their order."""
    if labels_filter is None:
        parent = find_class(parent_label, kept, "--parent_label")
        wanted = {parent, *(hierarchy.descendants(parent) if parent in hierarchy else ())}
    elif parent_label is None:
        known = {*kept, *kept.values()}
        names = [name.strip() for text in labels_filter for name in ([text] if text in known else text.split(","))]
        wanted = {find_class(name, kept, "--labels_filter") for name in names if name}
    else:
        raise InputError("--labels_filter and --parent_label are two ways to choose a part of the classes: give one")
    if not wanted:
        raise InputError("--labels_filter names no class: give names or labels, for example Helmet,Tree")
    return {label: name for label, name in kept.items() if label in wanted}


def find_class(text: str, kept: dict[str, str], flag: str) -> str:
    """The label of a class that is given by label or name.

    Raises:
        InputError: no kept class has it, or several have the name.
    """
    if text in kept:
        return text
    found = [label for label, name in kept.items() if name.casefold() == text.casefold()]
    if len(found) > 1:
        raise InputError(f"{flag} {text}: {len(found)} classes have this name, give the label, {' or '.join(found)}")
    if not found:
        near = difflib.get_close_matches(text.casefold(), [name.casefold() for name in kept.values()], n=1, cutoff=0.0)
        name = next(name for name in kept.values() if name.casefold() == near[0])
        raise InputError(f"{flag} {text}: no class has this name or label, did you mean {name}?")
    return found[0]


def classes_of_levels(classes: Classes, levels: tuple[str, ...], *, is_part: bool) -> dict[str, list[str]]:
    """{level: its kept classes in index order}, before those without boxes are left out; for "rare" all of them.

    A part of the classes may lack a height that the hierarchy has, and any hierarchy one of a00's LEVELS; it is left
    out, unless there is no other level.
    """
    valid = sorted(set(classes.heights.values()), key=int)
    highest = max((classes.hierarchy.height(label) for label in classes.hierarchy.labels), default=0)
    heights = [str(height) for height in range(1, highest + 1)]
    result, absent = {}, [level for level in levels if level not in (*valid, "all", "rare")]
    for level in levels:
        if level not in absent:
            result[level] = [label for label, height in classes.heights.items() if level in (height, "all", "rare")]
        elif (levels != LEVELS and not (is_part and level in heights)) or len(set(absent)) == len(set(levels)):
            choice = " ".join([*valid, "all", "rare"])
            raise InputError(f"--levels {level}: the hierarchy has no class of this height, choose from {choice}")
    if absent:
        print(f"left out, because the chosen classes have no such height: level {', '.join(absent)}")
    return result


def choose_classes(
    classes: Classes, level: str, labels: list[str], train: Source, min_boxes: int, fewer_than: float
) -> tuple[list[str], list[str]]:
    """Returns the classes with enough training boxes and fewer than `fewer_than`, and those without enough."""
    boxes = mean_boxes(classes, labels, train.boxes.kinds)
    rows = np.repeat(train.boxes.rows_of_kinds(), boxes.counts())
    found = np.bincount(boxes.classes, rows, len(classes.labels.categories))  # by the place of the label
    counts = {label: found[place] for place, label in enumerate(classes.names) if label in set(labels)}
    chosen = [label for label, count in counts.items() if min_boxes <= count < fewer_than]
    if not chosen:
        wanted = f"{min_boxes} or more" + ("" if fewer_than == math.inf else f" and fewer than {fewer_than}")
        raise InputError(f"level {level}: none of its {len(labels)} classes has {wanted} training boxes: leave it out")
    return chosen, [label for label, count in counts.items() if count < min_boxes]


# === Reading the source ==============================================================================================
def read_source(dataset_path: str, split: str, classes: Classes) -> Source:
    """Reads and checks boxes and image labels of a split, and prints what is dropped."""
    boxes_path = paths.box_annotations(dataset_path, split)
    require_file(boxes_path, f"a01 needs the {split} boxes, see https://storage.googleapis.com/openimages/web/")
    labels_path = paths.image_label_annotations(dataset_path, split)
    boxes = read_box_rows(boxes_path, classes.labels)
    print_rows(boxes_path, boxes, classes)
    if labels_path.exists():
        image_labels = read_image_label_rows(labels_path, classes.labels)
        print_rows(labels_path, image_labels, classes)
    else:
        print(f"{labels_path} does not exist: {split} gets no image labels and no negative images")
        image_labels = no_image_labels(classes.labels)
    return Source(split, boxes_path, boxes, image_labels)


def print_rows(path: Path, rows: Rows, classes: Classes) -> None:
    """Prints how many rows a file has, and what is dropped of them."""
    excluded = rows.rows_of_kinds()[(rows.kinds["label"].to_physical() >= len(classes.names)).to_numpy()].sum()
    unknown = len(rows.unknown)
    counts = f"{excluded} of excluded classes, {unknown} of unknown labels dropped"
    print(f"{path.name}: {len(rows.kind) + unknown} rows, {counts}")
    print_names("unknown labels", rows.unknown.unique(maintain_order=True).to_list())


# === Writing =========================================================================================================
def write_classes(path: Path, classes: Classes, labels: list[str]) -> None:
    """Writes a class description file of the classes `labels`."""
    write_class_descriptions(path, {label: classes.names[label] for label in labels})


def print_table(columns: dict[str, dict[str, int]]) -> None:
    """Prints the counts of a level, a column for each split."""
    print(" " * 36 + "".join(f"{split:>12}" for split in columns))
    for name in columns[SPLITS[0]]:
        print(f"  {name:34}" + "".join(f"{column[name]:>12}" for column in columns.values()))


def print_names(title: str, names: Iterable[str], most: int = 50) -> None:
    """Prints how many names there are and the first of them, or nothing where there are none."""
    names = list(names)
    if names:
        more = f" and {len(names) - most} more" if len(names) > most else ""
        text = f"{title}: {len(names)} ({', '.join(names[:most])}{more})"
        print(textwrap.fill(text, width=118, subsequent_indent="    "))


if __name__ == "__main__":
    run_script(main)
