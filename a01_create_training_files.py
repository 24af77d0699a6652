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
The same input gives the same bytes. The files of all levels appear together at the end.

    python a01_create_training_files.py --dataset_path data/open_images --levels 1 2 all
    python a01_create_training_files.py --dataset_path demo_data/data_set --output_path demo_data/try --levels 1
    python a01_create_training_files.py --source voc --source_path VOCdevkit/VOC2012 --dataset_path data/voc
    python a01_create_training_files.py --dataset_path data/voc --export coco --export_path data/voc_as_coco

The rules are those of oid/levels/rules.py.
"""

import contextlib
import functools
import os
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import polars as pl
from tqdm import tqdm

from a00_utils_and_constants import DATASET_PATH, LEVELS, OUTPUT_PATH
from oid import paths
from oid.annotations import find_class
from oid.command_line import check_flag, run_script
from oid.files import InputError, output_file, remedy, require_folder
from oid.levels.classes import Classes, read_classes
from oid.levels.rows import Split, read_split
from oid.levels.rules import choose_by_boxes
from oid.levels.write import write_levels
from oid.sources.base import FolderError
from oid.sources.export import export as write_export
from oid.sources.splits import DEFAULT_FOLDS, FoldError, SetError, SplitChoice
from oid.sources.write import convert

image_bar = functools.partial(tqdm, unit="image", leave=False, disable=None)


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
    is_one_part = labels_filter is None or parent_label is None
    check_flag(is_one_part, "parent_label", parent_label, "this flag or --labels_filter, not both")
    check_flag(parent_label != "", "parent_label", "empty", "the name or the label of a class")
    if (export is None) != (export_path is None):
        raise InputError("--export and --export_path belong together: the format, and the folder to be made")
    if not export:
        check_flag(output_path != "", "output_path", "empty", "a folder")
        output_file(paths.level_boxes(output_path, levels[0], "train"), "give another --output_path")
    folds = DEFAULT_FOLDS if validation_folds is None else validation_folds
    check_flag(folds >= 2, "validation_folds", folds, "2 or more")
    check_flag(0 <= fold < folds, "fold", fold, f"a number from 0 to {folds - 1}, for {folds} folds")
    convert_source(source, source_path, dataset_path, SplitChoice(source_splits, validation_folds, fold))
    require_folder(dataset_path, "set --dataset_path, or OID_PATH, to the folder of Open Images")
    classes = choose_classes(dataset_path, labels_filter, parent_label)
    if export:
        with name_flags("--export_path"):
            print(*write_export(export, Path(dataset_path), Path(export_path), classes.names, image_bar), sep="\n")
        return
    with remedy("change --levels"):
        candidates = classes.of_levels(levels, optional=LEVELS if levels == LEVELS else ())
    print_names("levels left out, because no class has them", [level for level in levels if level not in candidates])
    splits = [read_split(dataset_path, name, classes.labels) for name in ("train", "validation")]
    for split in splits:
        print_dropped_rows(split, classes)
    chosen, left_out = choose_by_boxes(classes, candidates, splits[0].boxes, min_boxes, rare_below)
    with tqdm(total=sum(len(split.boxes.pattern) for split in splits), unit=" boxes", disable=None) as bar:
        counts = write_levels(output_path, classes, chosen, left_out, splits, bar.update)
    for level, labels in chosen.items():
        print(f"\nlevel {level}: {len(labels)} classes, in {paths.level_folder(output_path, level)}")
        print(" " * 36 + "".join(f"{split.name:>12}" for split in splits))
        for name in counts[level]["train"]:
            print(f"  {name:34}" + "".join(f"{counts[level][split.name][name]:>12}" for split in splits))
        print_names(f"left out, fewer than --min_boxes {min_boxes}", classes.names_of(left_out[level]).values())


def convert_source(source: str, source_path: str | None, dataset_path: str, choice: SplitChoice) -> None:
    """Makes DATASET from the data set in `source_path`, if that is given, and prints what was made."""
    if source_path is None:
        check_flag(source == "oid", "source", source, "--source_path too, the folder of that data set")
        if choice != SplitChoice():
            raise InputError("--source_splits, --validation_folds and --fold need --source_path, the data set")
        return
    check_flag(os.path.exists(source_path), "source_path", source_path, "the folder of the data set, which must exist")
    with name_flags("--dataset_path"):
        print(*convert(source, Path(source_path), Path(dataset_path), choice, image_bar), sep="\n")
    print("  (--source_splits chooses other sets, --validation_folds and --fold other folds)\n", flush=True)


@contextlib.contextmanager
def name_flags(folder: str) -> Iterator[None]:
    """Adds the flag to change to errors about sets, folds and the folder to be made, which `folder` names."""
    flags = {SetError: "--source_splits", FoldError: "--validation_folds or --fold", FolderError: folder}
    try:
        yield
    except tuple(flags) as error:
        raise InputError(f"{error}: change {flags[type(error)]}") from error


def choose_classes(dataset_path: str, labels_filter: tuple[str, ...] | None, parent_label: str | None) -> Classes:
    """Reads hierarchy and descriptions, and prints which classes are kept."""
    classes, dropped = read_classes(dataset_path)
    print_names(f"dropped, because they are the hierarchy's root or not in {paths.CLASS_DESCRIPTIONS}", dropped)
    if labels_filter is not None:
        with remedy("change --labels_filter"):
            classes = classes.part(classes.find_all(labels_filter))
    elif parent_label is not None:
        with remedy("change --parent_label"):
            parent = find_class(parent_label, classes.names)
        classes = classes.part([parent, *classes.hierarchy.descendants(parent)])
    print_names("of these only", classes.names.values() if classes.is_part else [])
    outside = [name for label, name in classes.names.items() if label not in classes.hierarchy]
    print_names(f"not in {paths.HIERARCHY}, taken as leaves without ancestors", outside)
    excluded, file = classes.labels.categories[len(classes.names) :], paths.evaluated_class_descriptions(dataset_path)
    print(f"{len(classes.names)} classes of {file.name}, {len(excluded)} others are excluded")
    return classes


def print_dropped_rows(split: Split, classes: Classes) -> None:
    """Prints the number of rows of each file, and the number that is dropped."""
    for path, rows in ((split.boxes_path, split.boxes), (split.labels_path, split.image_labels)):
        if not path.exists():
            print(f"{path} does not exist: {split.name} gets no image labels and no negative images")
            continue
        counts, unknown = rows.patterns.join(rows.counts, on="pattern"), rows.unknown_labels
        excluded = counts.filter(pl.col("label").to_physical() >= len(classes.names))["count"].sum()
        dropped = f"{excluded} of excluded classes, {len(unknown)} of unknown labels dropped"
        print(f"{path.name}: {len(rows.pattern)} rows, {dropped}", flush=True)
        print_names("unknown labels", unknown.unique(maintain_order=True))


def print_names(title: str, names: Iterable[str], most: int = 50) -> None:
    """Prints the number of names and the first of them, or nothing if there are none."""
    if names := list(names):
        more = f" and {len(names) - most} more" if len(names) > most else ""
        text = f"{title}: {len(names)} ({', '.join(names[:most])}{more})"
        print(textwrap.fill(text, width=118, subsequent_indent="    "))


if __name__ == "__main__":
    run_script(main)
