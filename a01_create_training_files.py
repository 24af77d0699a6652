"""a01: makes the training files of each level of the class hierarchy.

Reads from DATASET/annotations/
    {train,validation}-annotations-bbox.csv       boxes, 13 columns (V4) or 21 (V6)
    bbox_labels_600_hierarchy.json                the class tree; only `Subcategory` counts, the root is not a class
    class-descriptions-boxable.csv                label,name, with or without a header
    challenge-2018-class-descriptions-500.csv     optional: then only these classes are kept
    {train,validation}-annotations-human-imagelabels-boxable.csv       optional: without it there are no negatives
Writes to OUTPUT/level_<n>_files/
    {train,validation}-annotations-bbox-level-<n>.csv       the 13 columns with the source's text; then the negatives
    {train,validation}-ignored-regions-level-<n>.csv        ImageID,LabelName,XMin,XMax,YMin,YMax,Reason
    {train,validation}-image-labels-level-<n>.csv           ImageID,LabelName,Confidence, expanded
    class-descriptions-boxable-level-<n>.csv                label,name without a header, in the order of the outputs
    left-out-classes-level-<n>.csv                          the same for classes with fewer boxes than --min_boxes
    image-ids-level-<n>.txt                                 train/<id> and validation/<id> of every image, sorted
All files appear together at the end, and the same input gives the same bytes.

    python a01_create_training_files.py --dataset_path data/open_images --levels 1 2 all
    python a01_create_training_files.py --dataset_path demo_data/data_set --output_path demo_data/try --levels 1
    python a01_create_training_files.py --source voc --source_path VOCdevkit/VOC2012 --dataset_path data/voc
    python a01_create_training_files.py --dataset_path data/voc --export coco --export_path data/voc_as_coco

The rules
Classes. The classes of the challenge file are kept if that is present, otherwise those of class-descriptions-boxable,
  in the order of the file. --labels_filter and --parent_label keep a part of them. All others are "excluded". Ancestors
  are those of the full hierarchy; a class outside the hierarchy is a leaf without ancestors.
Levels. A level is a height in the hierarchy contracted to the kept classes: the children of a dropped class move up, a
  leaf has height 1, an inner class is 1 above its highest child. `all` has every kept class, `rare` those with fewer
  than --rare_below training boxes. Classes with fewer than --min_boxes training boxes are left out. Training boxes are
  counted as they are written, and validation files have the classes that were chosen on train.
Boxes. A box becomes a box of each class of the level that is its own or an ancestor. If several have equal image, class
  and coordinates (as numbers), the first is written. Order: the source's rows, then the classes.
Ignored regions. A region gives a class no gradient, neither as object nor as background. Order: rows, then labels.
  group_of        A box with IsGroupOf 1 is a region of its own class and of every ancestor in the level.
  excluded_class  A box of an excluded class is a region of every ancestor in the level. Of these two reasons, the first
                  that applies is written, once for each image, class and rectangle.
  ancestor_class  A box labelled `Fruit` may be an apple: its region covers every class of the level below LabelName,
                  not LabelName itself, which need not be in the level. One row for each image, label and rectangle. No
                  row if the level has no class below, or if an equal box of the image has a class below the label.
Image labels. A positive label counts for all ancestors, a negative one for all descendants. Each image and class of the
  level is written once; if both signs meet, positive wins. Boxes add no image labels: readers take the union.
Negatives. An image with an image label of the level, but without box and region, becomes a row with only its ImageID.
Labels that neither hierarchy nor descriptions know are dropped and counted.
"""

import contextlib
import dataclasses
import functools
import math
import os
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import polars as pl
from tqdm import tqdm

from a00_utils_and_constants import DATASET_PATH, LEVELS, OUTPUT_PATH
from oid import paths
from oid.annotations import write_class_descriptions
from oid.command_line import check_flag, run_script
from oid.files import InputError, remedy, require_file, require_folder
from oid.levels.classes import Classes, choose_by_boxes, read_classes
from oid.levels.rows import Rows, no_image_labels, read_box_rows, read_image_label_rows
from oid.levels.rules import count_boxes
from oid.levels.write import Split, write_levels
from oid.sources.base import FolderError
from oid.sources.export import export as write_export
from oid.sources.splits import SplitChoice, SplitError
from oid.sources.write import convert


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
        labels_filter: keeps only these classes, names or labels with commas or spaces between. Use a new --output_path,
            and give a05 and a07 the level's file by --class_descriptions.
        parent_label: keeps only this class and all below it, by name or label; see --labels_filter.
        source: the format of --source_path; "csv" is keras-retinanet's.
        source_path: a data set from which DATASET is made, with links to its images.
        source_splits: which of its sets become train=, validation= and test=, joined by +: train=train+val; by
            default the names of the sets decide.
        validation_folds: number of parts of its training images, if it has no validation set.
        fold: the part that becomes the validation set, from 0.
        export: writes train and validation of DATASET in this format.
        export_path: the folder for the export, to be made.
    """
    check_flag(min_boxes >= 0, "min_boxes", min_boxes, "0, which keeps every class, or more")
    check_flag(rare_below >= 1, "rare_below", rare_below, "1 or more")
    if (export is None) != (export_path is None):
        raise InputError("--export and --export_path belong together: the format, and the folder to be made")
    convert_source(source, source_path, dataset_path, SplitChoice(source_splits, validation_folds, fold))
    require_folder(dataset_path, "set --dataset_path, or OID_PATH, to the folder of Open Images")
    classes = read_kept_classes(dataset_path, labels_filter, parent_label)
    if export:
        with name_flags("export_path"):
            print(*write_export(export, Path(dataset_path), Path(export_path), classes.names, image_bar), sep="\n")
        return
    is_part = labels_filter is not None or parent_label is not None
    candidates = classes_of_levels(classes, levels, is_part=is_part)
    splits = [read_split(dataset_path, name, classes) for name in ("train", "validation")]
    chosen, left_out = {}, {}
    train = splits[0].boxes
    for level, labels in candidates.items():
        counts = count_boxes(classes, labels, train.patterns, train.counts)
        limit = rare_below if level == "rare" else math.inf
        chosen[level], left_out[level] = choose_by_boxes(level, counts, min_boxes, limit)
    with tqdm(total=sum(len(split.boxes.pattern) for split in splits), unit=" boxes", disable=None) as bar:
        counts = write_levels(output_path, classes, chosen, splits, bar.update)
    for level, labels in chosen.items():
        write_class_descriptions(paths.level_class_descriptions(output_path, level), classes.names_of(labels))
        left_out_file = paths.level_folder(output_path, level) / f"left-out-classes-level-{level}.csv"
        write_class_descriptions(left_out_file, classes.names_of(left_out[level]))
        print(f"\nlevel {level}: {len(labels)} classes, in {paths.level_folder(output_path, level)}")
        print_table(counts[level])
        print_names(f"left out, fewer than --min_boxes {min_boxes}", classes.names_of(left_out[level]).values())


# === Other formats ===================================================================================================
def convert_source(source: str, source_path: str | None, dataset_path: str, choice: SplitChoice) -> None:
    """Makes DATASET from the data set in `source_path`, if that is given, and prints what was made."""
    if source_path is None:
        check_flag(source == "oid", "source", source, "--source_path too, the folder of that data set")
        if choice != SplitChoice():
            raise InputError("--source_splits, --validation_folds and --fold need --source_path, the data set")
        return
    check_flag(os.path.exists(source_path), "source_path", source_path, "the folder of the data set, which must exist")
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
def read_kept_classes(dataset_path: str, labels_filter: tuple[str, ...] | None, parent_label: str | None) -> Classes:
    """Reads hierarchy and descriptions, and prints which classes are kept."""
    both = labels_filter is not None and parent_label is not None
    check_flag(not both, "parent_label", parent_label, "this flag or --labels_filter, not both")
    classes, deciding = read_classes(dataset_path)
    root = classes.hierarchy.root
    undescribed = [name for label, name in deciding.items() if label not in classes.described]
    print_names(f"not in {paths.CLASS_DESCRIPTIONS}, dropped", undescribed)
    print_names("the root of the hierarchy is no class, dropped", [deciding[root]] if root in deciding else [])
    if labels_filter is not None:
        with remedy("change --labels_filter"):
            part = classes.find_all(labels_filter)
        check_flag(bool(part), "labels_filter", labels_filter, "names or labels, for example Helmet,Tree")
    elif parent_label is not None:
        with remedy("change --parent_label"):
            part = [classes.find(parent_label)]
        part += classes.below(part[0])
    if labels_filter is not None or parent_label is not None:
        classes = dataclasses.replace(classes, names=classes.names_of(part))
        print_names("of these only", classes.names.values())
    outside = [name for label, name in classes.names.items() if label not in classes.hierarchy]
    print_names(f"not in {paths.HIERARCHY}, taken as leaves without ancestors", outside)
    kept, known = len(classes.names), len(classes.labels.categories)
    file = paths.evaluated_class_descriptions(dataset_path).name
    print(f"{kept} classes of {file}, {known - kept} others are excluded")
    return classes


def classes_of_levels(classes: Classes, levels: tuple[str, ...], *, is_part: bool) -> dict[str, list[str]]:
    """Returns {level: its kept classes}, before classes with too few boxes are left out.

    A level without classes is left out if it is one of the default levels, or if a part of the classes lacks a height
    that the hierarchy has. At least one level must be left.
    """
    found = {level: classes.of_level(level) for level in levels}
    absent = [level for level, labels in found.items() if not labels]
    heights = {str(classes.hierarchy.height(label)) for label in classes.hierarchy.labels}
    for level in absent:
        may_be_absent = levels == LEVELS or (is_part and level in heights)
        choice = " ".join([*sorted(set(classes.heights.values()), key=int), "all", "rare"])
        check_flag(may_be_absent and len(absent) < len(found), "levels", level, f"a height that a class has: {choice}")
    if absent:
        print(f"left out, because the chosen classes have no such height: level {', '.join(absent)}")
    return {level: labels for level, labels in found.items() if labels}


# === Annotations =====================================================================================================
def read_split(dataset_path: str, name: str, classes: Classes) -> Split:
    """Reads and checks boxes and image labels of a split, and prints which rows are dropped."""
    boxes_path = paths.box_annotations(dataset_path, name)
    require_file(boxes_path, f"a01 needs the {name} boxes, see https://storage.googleapis.com/openimages/web/")
    boxes = read_box_rows(boxes_path, classes.labels)
    print_rows(boxes_path.name, boxes, classes)
    labels_path = paths.image_label_annotations(dataset_path, name)
    if labels_path.exists():
        image_labels = read_image_label_rows(labels_path, classes.labels)
        print_rows(labels_path.name, image_labels, classes)
    else:
        image_labels = no_image_labels(classes.labels)
        print(f"{labels_path} does not exist: {name} gets no image labels and no negative images")
    return Split(name, boxes_path, boxes, image_labels)


def print_rows(name: str, rows: Rows, classes: Classes) -> None:
    """Prints the number of rows of a file, and the number that is dropped."""
    counts = rows.patterns.join(rows.counts, on="pattern")
    excluded = counts.filter(pl.col("label").to_physical() >= len(classes.names))["count"].sum()
    unknown = rows.unknown_labels
    dropped = f"{excluded} of excluded classes, {len(unknown)} of unknown labels dropped"
    print(f"{name}: {len(rows.pattern)} rows, {dropped}", flush=True)
    print_names("unknown labels", unknown.unique(maintain_order=True))


def print_table(columns: dict[str, dict[str, int]]) -> None:
    """Prints the counts of a level, one column for each split."""
    print(" " * 36 + "".join(f"{split:>12}" for split in columns))
    for name in columns["train"]:
        print(f"  {name:34}" + "".join(f"{column[name]:>12}" for column in columns.values()))


def print_names(title: str, names: Iterable[str], most: int = 50) -> None:
    """Prints the number of names and the first of them, or nothing if there are none."""
    names = list(names)
    if names:
        more = f" and {len(names) - most} more" if len(names) > most else ""
        text = f"{title}: {len(names)} ({', '.join(names[:most])}{more})"
        print(textwrap.fill(text, width=118, subsequent_indent="    "))


if __name__ == "__main__":
    run_script(main)
