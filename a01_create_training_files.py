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
Takes about 5 s for a million boxes and level; running it again overwrites file by file.

    python a01_create_training_files.py --dataset_path data/open_images --levels 1 2 all
    python a01_create_training_files.py --dataset_path demo_data/data_set --output_path demo_data/try --levels 1

The rules
Classes. Kept are the classes of class-descriptions-boxable.csv, of these only the challenge's where its file is
  present, in the order of the file that decides. All others, also those that only the hierarchy has, are "excluded".
  Who is above whom is asked of the full hierarchy. A kept class that it lacks counts as a leaf without ancestors.
Levels. A level is a height in the hierarchy contracted to the kept classes (children of a dropped class move up): a
  leaf is 1, an inner class 1 + its highest child. `all` is every kept class, `rare` those with fewer than --rare_below
  training boxes, leaf or inner. A class with fewer than --min_boxes training boxes is left out and named. Training
  boxes are counted as they are written: ordinary, with those of the classes below, each once. Validation files have
  the classes that were chosen on train.
Boxes. A box counts as every class of the level that is its own or above it (in `all`: it is copied to all ancestors),
  once: of several with equal image, class and coordinates (as numbers) the first stays. Rows are in the source's order,
  copies of one box in the order of the classes.
Ignored regions say where a class gets no gradient, neither as box nor as background, one row for each image, class and
  rectangle. The reasons, of which the first that applies is written:
  group_of        IsGroupOf is 1 (-1, unknown, is an ordinary box): for its own class and every ancestor in the level.
  excluded_class  the box has an excluded class, group-of or not: for every ancestor in the level.
  ancestor_class  the box is labelled with an ancestor of the class, kept or not, group-of or not: a `Fruit` may be an
                  apple, so it must not teach that it is none. A box is left aside here where another box of the image
                  with equal coordinates has a class below its own, since that one says what it is.
Image labels. A positive one counts for all ancestors, a negative one for all descendants; restricted to the level, each
  image and class once; where both meet, positive wins (counted). The file has only what people verified on the whole
  image: a class with a box but no label is not added, readers take the union with the boxes, as the metric does. Images
  are in the source's order, labels in the order of the classes.
Negatives. An image with at least one image label of the level and neither box nor region in it is one row with the
  ImageID, all else empty, after the boxes. (A positive label without a box is no obstacle: the metric counts detections
  there as false, too. The table says how many there are.)
Labels that neither hierarchy nor descriptions know are dropped and counted.
"""

import math
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from a00_utils_and_constants import DATASET_PATH, LEVELS, OUTPUT_PATH, run_script
from oid import layout
from oid.annotations import (
    BOX_COLUMNS,
    IGNORED_REGION_COLUMNS,
    csv_errors,
    read_boxes,
    read_class_descriptions,
    read_image_labels,
    scan_rows,
    write_class_descriptions,
)
from oid.files import InputError, replacing, require_file, require_folder
from oid.hierarchy import Hierarchy, read_hierarchy

SPLITS = ("train", "validation")
REASONS = ("group_of", "excluded_class", "ancestor_class")  # the first that applies


def main(
    *,
    dataset_path: str = DATASET_PATH,
    output_path: str = OUTPUT_PATH,
    levels: tuple[str, ...] = LEVELS,
    min_boxes: int = 1,
    rare_below: int = 500,
) -> None:
    """Makes the training files of the levels.

    Args:
        dataset_path: the folder of Open Images, with `annotations/` below it.
        output_path: the folder for everything that a01 to a07 write.
        levels: heights in the class hierarchy (1 = leaves), "all" for every class, "rare" for those with few boxes.
        min_boxes: classes with fewer training boxes are left out; 0 keeps every class.
        rare_below: level "rare" has the classes with fewer training boxes than this.
    """
    if min_boxes < 0:
        raise InputError(f"--min_boxes {min_boxes} is negative: 0 keeps every class")
    if rare_below < 1:
        raise InputError(f"--rare_below {rare_below}: no class has fewer boxes than none, give at least 1")
    require_folder(dataset_path, "set --dataset_path, or OID_PATH, to the folder of Open Images")
    classes = read_classes(dataset_path)
    candidates = {level: classes_of_level(classes, level) for level in dict.fromkeys(levels)}
    sources = {split: read_source(dataset_path, split, classes) for split in SPLITS}
    chosen, left_out = {}, {}
    for level, labels in candidates.items():
        limit = rare_below if level == "rare" else math.inf
        chosen[level], left_out[level] = choose_classes(classes, level, labels, sources["train"], min_boxes, limit)

    for level, labels in chosen.items():
        plans = {split: make_plan(classes, labels, source) for split, source in sources.items()}
        for split, plan in plans.items():
            write_split(output_path, level, sources[split], plan)
        image_ids = [f"{split}/{image}" for split, plan in plans.items() for image in plan.images()]
        write_lines(layout.level_image_ids(output_path, level), image_ids)
        write_classes(layout.level_class_descriptions(output_path, level), classes, labels)
        write_classes(layout.level_left_out_classes(output_path, level), classes, left_out[level])
        print(f"\nlevel {level}: {len(labels)} classes, in {layout.level_folder(output_path, level)}")
        print_table(plans)
        print_names(f"left out, fewer than --min_boxes {min_boxes}", map(classes.names.get, left_out[level]))


# === Classes and levels ==============================================================================================
@dataclass(frozen=True)
class Classes:
    """The kept classes and their places.

    Attributes:
        names: {label: name} of the kept classes, in the order of the description file.
        hierarchy: the full one, excluded classes included.
        labels: every known label as a polars type whose order is that of `names`, then of the hierarchy.
    """

    names: dict[str, str]
    hierarchy: Hierarchy
    labels: pl.Enum

    def above(self, label: str) -> tuple[str, ...]:
        """The ancestors in the full hierarchy."""
        return self.hierarchy.ancestors(label) if label in self.hierarchy else ()

    def below(self, label: str) -> tuple[str, ...]:
        """The descendants in the full hierarchy."""
        return self.hierarchy.descendants(label) if label in self.hierarchy else ()


def read_classes(dataset_path: str) -> Classes:
    """Reads hierarchy and descriptions, and prints which classes are kept."""
    download = "download it from https://storage.googleapis.com/openimages/web/download.html"
    boxable_path = layout.annotation_file(dataset_path, layout.CLASS_DESCRIPTIONS)
    boxable = read_class_descriptions(require_file(boxable_path, download))
    deciding_path = layout.evaluated_class_descriptions(dataset_path)
    names = read_class_descriptions(deciding_path)
    hierarchy_path = layout.annotation_file(dataset_path, layout.HIERARCHY)
    hierarchy = read_hierarchy(require_file(hierarchy_path, download))
    print_names(f"not in {boxable_path.name}, dropped", [name for label, name in names.items() if label not in boxable])
    kept = {label: name for label, name in names.items() if label in boxable and label != hierarchy.root}
    if not kept:
        raise InputError(f"{deciding_path} and {boxable_path} have no class in common: they must use the same labels")
    if hierarchy.root in names:
        print_names("the root of the hierarchy is no class, dropped", [names[hierarchy.root]])
    unplaced = [name for label, name in kept.items() if label not in hierarchy]
    print_names(f"not in {hierarchy_path.name}, taken as leaves without ancestors", unplaced)
    known = [*kept, *(label for label in dict.fromkeys([*hierarchy.labels, *boxable]) if label not in kept)]
    known = [label for label in known if label != hierarchy.root]
    print(f"{len(kept)} classes of {deciding_path.name}, {len(known) - len(kept)} others are excluded")
    return Classes(kept, hierarchy, pl.Enum(known))


def classes_of_level(classes: Classes, level: str) -> list[str]:
    """The kept classes of a level in index order, before those without boxes are left out; for "rare" all of them."""
    if level in ("all", "rare"):
        return list(classes.names)
    contracted = classes.hierarchy.contract(classes.names)
    heights = {label: str(contracted.height(label)) if label in contracted else "1" for label in classes.names}
    labels = [label for label in classes.names if heights[label] == level]
    if not labels:
        valid = " ".join(sorted(set(heights.values()), key=int))
        raise InputError(f"--levels {level}: the hierarchy has no class of this height, choose from {valid} all rare")
    return labels


def choose_classes(
    classes: Classes, level: str, labels: list[str], train: "Source", min_boxes: int, fewer_than: float
) -> tuple[list[str], list[str]]:
    """Returns the classes with enough training boxes and fewer than `fewer_than`, and those without enough."""
    boxes = plan_boxes(classes, train.boxes, pairs(classes, labels, classes.above, itself=True))
    counts = dict.fromkeys(labels, 0) | dict(boxes.group_by("class").len().iter_rows())
    chosen = [label for label, count in counts.items() if min_boxes <= count < fewer_than]
    if not chosen:
        wanted = f"{min_boxes} or more" + ("" if fewer_than == math.inf else f" and fewer than {fewer_than}")
        raise InputError(f"level {level}: none of its {len(labels)} classes has {wanted} training boxes: leave it out")
    return chosen, [label for label, count in counts.items() if count < min_boxes]


def pairs(
    classes: Classes, level_labels: Iterable[str], related: Callable[[str], tuple[str, ...]], *, itself: bool
) -> pl.DataFrame:
    """Every known `label` with each `class` of the level among `related(label)` (and `label` itself where asked)."""
    level_labels = set(level_labels)
    rows = [
        (label, found)
        for label in classes.labels.categories
        for found in ((label,) if itself else ()) + related(label)
        if found in level_labels
    ]
    return pl.DataFrame(rows, schema={"label": classes.labels, "class": classes.labels}, orient="row")


# === Reading the source ==============================================================================================
@dataclass(frozen=True)
class Source:
    """The annotations of one split without their text.

    Attributes:
        split: "train" or "validation".
        boxes_path: the box file.
        boxes: `line` in the file, `ImageID`, `label`, `group_of` (bool), `rectangle` (the line of the first box of the
            image with equal coordinates); rows with unknown labels are left out.
        image_labels: `image_line` (that of the image's first row), `ImageID`, `label`, `positive` (bool).
    """

    split: str
    boxes_path: Path
    boxes: pl.DataFrame
    image_labels: pl.DataFrame


def read_source(dataset_path: str, split: str, classes: Classes) -> Source:
    """Reads and checks boxes and image labels of a split, and prints what is dropped."""
    boxes_path = layout.box_annotations(dataset_path, split)
    require_file(boxes_path, f"a01 needs the {split} boxes, see https://storage.googleapis.com/openimages/web/")
    labels_path = layout.image_label_annotations(dataset_path, split)
    boxes = known_rows(read_boxes(boxes_path), boxes_path, classes)
    if labels_path.exists():
        image_labels = known_rows(read_image_labels(labels_path), labels_path, classes)
    else:
        print(f"{labels_path} does not exist: {split} gets no image labels and no negative images")
        image_labels = pl.DataFrame(
            schema={"image_line": pl.UInt32, "ImageID": pl.String, "label": classes.labels, "positive": pl.Boolean}
        )
    return Source(split, boxes_path, boxes, image_labels)


def known_rows(table: pl.DataFrame, path: Path, classes: Classes) -> pl.DataFrame:
    """Replaces the text `LabelName` by `label`, and drops and counts the rows whose label is not known."""
    table = table.with_columns(pl.col("LabelName").cast(classes.labels, strict=False).alias("label"))
    unknown = table.filter(pl.col("label").is_null())
    excluded = table.filter(~pl.col("label").is_in(list(classes.names)))
    counts = f"{len(excluded)} of excluded classes, {len(unknown)} of unknown labels dropped"
    print(f"{path.name}: {len(table)} rows, {counts}")
    print_names("unknown labels", unknown["LabelName"].unique(maintain_order=True).to_list())
    return table.drop("LabelName").drop_nulls("label")


# === Deciding ========================================================================================================
@dataclass(frozen=True)
class Plan:
    """What is written for one split of one level, in order; `class` is the class of the level.

    Attributes:
        boxes: `line`, `ImageID`, `class`.
        regions: `line`, `ImageID`, `class`, `Reason`.
        image_labels: `ImageID`, `class`, `positive`, `conflict` (another label said the opposite).
        negatives: `ImageID`, `unboxed` (it has a positive label all the same).
    """

    boxes: pl.DataFrame
    regions: pl.DataFrame
    image_labels: pl.DataFrame
    negatives: pl.DataFrame

    def images(self) -> list[str]:
        """Every image with a box, a region or a negative row, sorted."""
        rows = [self.boxes["ImageID"], self.regions["ImageID"], self.negatives["ImageID"]]
        return pl.concat(rows).unique().sort().to_list()


def make_plan(classes: Classes, labels: list[str], source: Source) -> Plan:
    """Applies the rules to one split of the level with the classes `labels`."""
    upward = pairs(classes, labels, classes.above, itself=True)
    downward = pairs(classes, labels, classes.below, itself=False)
    boxes = plan_boxes(classes, source.boxes, upward)
    regions = plan_regions(classes, source.boxes, upward, downward)
    image_labels = plan_image_labels(classes, labels, source.image_labels)
    shown = pl.concat([boxes["ImageID"], regions["ImageID"]]).unique()
    negatives = (
        image_labels.filter(~pl.col("ImageID").is_in(shown.implode()))
        .group_by("ImageID", maintain_order=True)
        .agg(pl.col("positive").any().alias("unboxed"))
    )
    return Plan(boxes, regions, image_labels, negatives)


def plan_boxes(classes: Classes, boxes: pl.DataFrame, upward: pl.DataFrame) -> pl.DataFrame:
    """The ordinary boxes of kept classes, once for each class of the level that is their own or above."""
    ordinary = boxes.filter(~pl.col("group_of"), is_kept(classes))
    return first_of_each(ordinary.join(upward, on="label")).select("line", "ImageID", "class")


def plan_regions(classes: Classes, boxes: pl.DataFrame, upward: pl.DataFrame, downward: pl.DataFrame) -> pl.DataFrame:
    """What must give no gradient, one row for each rectangle and class, with the first reason that applies."""
    group_of = boxes.filter("group_of", is_kept(classes)).join(upward, on="label")
    excluded = boxes.filter(~is_kept(classes)).join(upward, on="label")
    ambiguous = without_repeated_ancestors(classes, boxes).join(downward, on="label")
    reasons = zip(REASONS, (group_of, excluded, ambiguous), strict=True)
    rows = pl.concat([rows.with_columns(Reason=pl.lit(reason, pl.Enum(REASONS))) for reason, rows in reasons])
    return first_of_each(rows).select("line", "ImageID", "class", "Reason")


def without_repeated_ancestors(classes: Classes, boxes: pl.DataFrame) -> pl.DataFrame:
    """Leaves out the boxes on whose rectangle another box has a class below theirs."""
    shared = boxes.filter(pl.len().over("rectangle") > 1)
    above = pairs(classes, classes.labels.categories, classes.above, itself=False)
    described = shared.join(above, on="label").select("rectangle", label="class").unique()
    return boxes.join(described, on=["rectangle", "label"], how="anti")


def plan_image_labels(classes: Classes, labels: list[str], image_labels: pl.DataFrame) -> pl.DataFrame:
    """Positive labels for all ancestors, negative ones for all descendants; where both meet, positive wins."""
    rows = [
        image_labels.filter("positive").join(pairs(classes, labels, classes.above, itself=True), on="label"),
        image_labels.filter(~pl.col("positive")).join(pairs(classes, labels, classes.below, itself=True), on="label"),
    ]
    return (
        pl.concat(rows)
        .group_by("image_line", "ImageID", "class")
        .agg(pl.col("positive").any(), (pl.col("positive").n_unique() > 1).alias("conflict"))
        .sort("image_line", "class")
        .drop("image_line")
    )


def first_of_each(rows: pl.DataFrame) -> pl.DataFrame:
    """Of rows with equal rectangle and class the one with the first reason, then line; sorted by line and class."""
    by_reason = ["Reason"] if "Reason" in rows.columns else []
    rows = rows.sort(*by_reason, "line").unique(["rectangle", "class"], keep="first", maintain_order=True)
    return rows.sort("line", "class")


def is_kept(classes: Classes) -> pl.Expr:
    """Whether a row's label is a kept class, by its place in the order of labels."""
    return pl.col("label").to_physical() < len(classes.names)


# === Writing =========================================================================================================
def write_split(output_path: str, level: str, source: Source, plan: Plan) -> None:
    """Writes the three tables of one split; the text of boxes and regions comes from the source, line by line."""
    text = scan_rows(source.boxes_path, BOX_COLUMNS)
    as_text = pl.col("class").cast(pl.String).alias("LabelName")

    def with_text(rows: pl.DataFrame) -> pl.LazyFrame:
        rows = rows.lazy().drop("ImageID")
        return rows.join(text, on="line", how="left", maintain_order="left").with_columns(as_text)

    empty = [pl.lit(None, pl.String).alias(column) for column in BOX_COLUMNS[1:]]
    negatives = plan.negatives.lazy().select("ImageID", *empty)
    confidence = pl.col("positive").cast(pl.Int8).alias("Confidence")
    tables = {
        layout.level_boxes: pl.concat([with_text(plan.boxes).select(BOX_COLUMNS), negatives]),
        layout.level_ignored_regions: with_text(plan.regions).select(IGNORED_REGION_COLUMNS),
        layout.level_image_labels: plan.image_labels.lazy().select("ImageID", as_text, confidence),
    }
    for place, table in tables.items():
        with replacing(place(output_path, level, source.split)) as temporary, csv_errors(source.boxes_path):
            table.sink_csv(temporary, engine="streaming")


def write_classes(path: Path, classes: Classes, labels: list[str]) -> None:
    """Writes a class description file of the classes `labels`."""
    write_class_descriptions(path, {label: classes.names[label] for label in labels})


def write_lines(path: Path, lines: list[str]) -> None:
    """Writes a text file with one line for each of `lines`."""
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def print_table(plans: dict[str, Plan]) -> None:
    """Prints the counts of a level, a column for each split."""
    columns = {}
    for split, plan in plans.items():
        reasons = dict(plan.regions.group_by("Reason").len().iter_rows())
        columns[split] = {
            "images": len(plan.images()),
            "boxes": len(plan.boxes),
            "negative images": len(plan.negatives),
            "  of these with a positive label": plan.negatives["unboxed"].sum(),
            **{f"ignored regions, {reason}": reasons.get(reason, 0) for reason in REASONS},
            "image labels": len(plan.image_labels),
            "  positive against negative": plan.image_labels["conflict"].sum(),
        }
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
