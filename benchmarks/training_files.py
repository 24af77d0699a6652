"""Times a01 on files of Open Images' full size, and its peak memory, against the pandas way of its ancestor.

    python benchmarks/training_files.py --metadata ../shared/data/oid_metadata
    python benchmarks/training_files.py --metadata ../shared/data/oid_metadata --v6
    python benchmarks/training_files.py --small

Makes the files first, and removes them at the end: 14,610,229 boxes on 1,743,042 training images (1.2 GB as V4 has them
with 13 columns, 2.3 GB with the 21 of V6), 9 million image labels, and a validation split. They are drawn by seed:
classes are long-tailed, 6 % of the boxes are groups, 2 % repeat the rectangle of the row before them with a class above
its own, half of the image labels are negative. Full size needs 25 GB of disk. `--metadata` names a folder with the
official hierarchy and class descriptions; without it a hierarchy of the same size is made. `--keep` with `--folder`
makes the files and no more.

a01 runs as a user calls it, in a process of its own: level 1 without image labels, which the ancestor does not read
either; level 1 with them; all levels. The ancestor's way is written anew here, its training half: pandas reads the
boxes, keeps those of the level's classes that are no groups, adds an empty row for every other image, and writes. It
takes turns with a01. All read files that were just written and so lie in memory. CPU seconds are of all threads
together; on a machine with other work they tell more.
"""

import csv
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.processes import measured
from oid import paths
from oid.annotations import BOX_COLUMNS, read_class_descriptions
from oid.command_line import run_script
from oid.files import InputError
from oid.hierarchy import Hierarchy, read_hierarchy

ROOT = Path(__file__).resolve().parent.parent
IMAGES = {"train": 1_743_042, "validation": 41_620}
BOXES = {"train": 14_610_229, "validation": 303_980}
IMAGE_LABELS = {"train": 9_000_000, "validation": 250_000}
CLASSES, INNER, DEPTH = 601, 76, 5  # as the official hierarchy has them
CLICK_COLUMNS = tuple(f"XClick{number}{axis}" for axis in "XY" for number in (1, 2, 3, 4))
BLOCK = 100_000  # images


def main(
    *,
    small: bool = False,
    size: float = 0.0,
    v6: bool = False,
    metadata: str | None = None,
    folder: str | None = None,
    keep: bool = False,
    repeats: int = 2,
    peer: bool = True,
    seed: int = 0,
) -> None:
    """Prints seconds, CPU seconds and peak memory, and how many times as much the ancestor's way takes.

    Args:
        small: a quick look: a hundredth of the size
        size: of the files as a part of Open Images; 0 = 1, or 0.01 with --small
        v6: boxes with the 21 columns of V6
        metadata: a folder with the official hierarchy and class descriptions; unset = both are made
        folder: an existing one for the files; unset = a temporary one
        keep: only makes the files, and leaves them in --folder
        repeats: the least of so many runs of level 1 counts
        peer: false leaves the ancestor's way out
        seed: of the random numbers
    """
    size = size or (0.01 if small else 1.0)
    if keep and folder is None:
        raise InputError("--keep leaves the files in --folder: name one")
    with tempfile.TemporaryDirectory(prefix="training_files_", dir=folder) as temporary:
        data_set = Path(folder if keep else temporary) / "data_set"
        make_data_set(data_set, size=size, v6=v6, metadata=metadata, seed=seed)
        boxes = paths.box_annotations(data_set, "train")
        print(f"{boxes.stat().st_size / 1e9:.2f} GB of boxes, {os.cpu_count()} processors", flush=True)
        if not keep:
            compare(data_set, Path(temporary), repeats, peer)


def compare(data_set: Path, folder: Path, repeats: int, peer: bool) -> None:
    """Runs a01 and the ancestor's way, and prints what they cost."""
    image_labels = [paths.image_label_annotations(data_set, split) for split in IMAGES]
    for path in image_labels:
        path.rename(path.with_suffix(".hidden"))
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(a01(data_set, folder, ["1"]))
        if peer:
            theirs.append(in_a_process_of_its_own(data_set, folder))
    print(f"{'':40}{'seconds':>10}{'CPU s':>10}{'MB':>10}")
    show("a01, level 1 without image labels", ours)
    if peer:
        show("the ancestor's way", theirs)
        ratio = np.min(theirs, axis=0) / np.min(ours, axis=0)
        print(f"{'times as much':40}" + "".join(f"{value:10.1f}" for value in ratio))
        print_rows(folder)
    for path in image_labels:
        path.with_suffix(".hidden").rename(path)
    shutil.rmtree(folder / "output")
    show("a01, level 1 with image labels", [a01(data_set, folder, ["1"])])
    shutil.rmtree(folder / "output")
    hierarchy = read_hierarchy(paths.annotation_file(data_set, paths.HIERARCHY))
    heights = sorted({str(hierarchy.height(label)) for label in hierarchy.labels})
    show(f"a01, levels {' '.join(heights)} all", [a01(data_set, folder, [*heights, "all"])])


def a01(data_set: Path, folder: Path, levels: list[str]) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak memory in MB of a run."""
    command = [sys.executable, str(ROOT / "a01_create_training_files.py"), "--levels", *levels]
    return measured([*command, "--dataset_path", str(data_set), "--output_path", str(folder / "output")])


def show(what: str, runs: list[tuple[float, float, float]]) -> None:
    """Prints the least of several runs."""
    seconds, cpu, memory = np.min(runs, axis=0)
    print(f"{what:40}{seconds:10.1f}{cpu:10.1f}{memory:10.0f}", flush=True)


# === The ancestor's way ===============================================================================================


def in_a_process_of_its_own(data_set: Path, folder: Path) -> tuple[float, float, float]:
    """The same for the ancestor's way, with the classes that a01 found."""
    classes = paths.level_class_descriptions(folder / "output", "1")
    program = (
        "import sys; from benchmarks.training_files import in_the_ancestors_way; in_the_ancestors_way(*sys.argv[1:])"
    )
    file_paths = (paths.box_annotations(data_set, "train"), classes, folder / "peer.csv")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return measured([sys.executable, "-c", program, *map(str, file_paths)], environment)


def in_the_ancestors_way(boxes_path: str, classes_path: str, target: str) -> None:
    """The training file of a level in pandas."""
    import pandas as pd

    with open(classes_path, newline="") as file:
        classes = [label for label, _ in csv.reader(file)]
    boxes = pd.read_csv(boxes_path)
    kept = boxes[boxes["LabelName"].isin(classes) & (boxes["IsGroupOf"] != 1)]
    others = sorted(set(boxes["ImageID"]) - set(kept["ImageID"]))
    negatives = pd.DataFrame({"ImageID": others}).reindex(columns=boxes.columns)
    pd.concat([kept, negatives]).to_csv(target, index=False)


def print_rows(folder: Path) -> None:
    """How many boxes both wrote: a01 writes a box that is there twice once."""
    file_paths = paths.level_boxes(folder / "output", "1", "train"), folder / "peer.csv"
    is_box = pl.col("LabelName").is_not_null()
    counts = [
        pl.scan_csv(path, infer_schema=False).filter(is_box).select(pl.len()).collect().item() for path in file_paths
    ]
    print(f"boxes written: {counts[0]:,} and {counts[1]:,}")


# === Inputs ===========================================================================================================


def make_data_set(folder: Path, *, size: float, v6: bool = False, metadata: str | None = None, seed: int = 0) -> None:
    """Writes `folder/annotations` with `size` times as many rows and images as Open Images has."""
    annotations = folder / "annotations"
    annotations.mkdir(parents=True)
    if metadata is None:
        write_made_classes(annotations, np.random.default_rng(seed))
    else:
        for name in (paths.HIERARCHY, paths.CLASS_DESCRIPTIONS):
            shutil.copyfile(Path(metadata) / name, annotations / name)
    hierarchy = read_hierarchy(annotations / paths.HIERARCHY)
    labels = list(read_class_descriptions(annotations / paths.CLASS_DESCRIPTIONS))
    tables = Tables(labels, hierarchy, np.random.default_rng(seed))
    for number, split in enumerate(IMAGES):
        rng = np.random.default_rng((seed, number))
        images = max(1, round(IMAGES[split] * size))
        counts = []
        for total, evenness in ((BOXES, 0.8), (IMAGE_LABELS, 4.0)):
            weights = rng.gamma(evenness, size=images)
            counts.append(1 + rng.multinomial(round(total[split] * size) - images, weights / weights.sum()))
        write_split(folder, split, tables, rng, counts, v6)


def write_made_classes(annotations: Path, rng: np.random.Generator) -> None:
    """A hierarchy of the size of the official one: half of the inner classes are below another."""
    names = [f"/m/{label:05x}" for label in range(CLASSES)]
    nodes = [{"LabelName": name, "Subcategory": []} for name in names]
    root, depths = {"LabelName": "/m/root", "Subcategory": []}, []
    for place, node in enumerate(nodes):
        parents = [number for number, depth in enumerate(depths[:INNER]) if depth < DEPTH - 1]
        below_root = not parents or rng.random() < (0.5 if place < INNER else 0.3)
        parent = None if below_root else rng.choice(parents)
        (root if below_root else nodes[parent])["Subcategory"].append(node)
        depths.append(1 if below_root else depths[parent] + 1)
    (annotations / paths.HIERARCHY).write_text(json.dumps(root))
    with open(annotations / paths.CLASS_DESCRIPTIONS, "w", newline="") as file:
        csv.writer(file).writerows((name, f"class {number}") for number, name in enumerate(names))


class Tables:
    """What is drawn from: the classes with their long tail, and for each one class above it.

    Attributes:
        labels: every class as a polars type.
        weights: [classes], how often a class occurs.
        above: [classes], the index of a class above it, or of itself where there is none.
    """

    def __init__(self, labels: list[str], hierarchy: Hierarchy, rng: np.random.Generator):
        self.labels = pl.Enum(labels)
        weights = 1 / (rng.permutation(len(labels)) + 3.0)
        self.weights = weights / weights.sum()
        position = {label: index for index, label in enumerate(labels)}
        parents = [[position[name] for name in above(hierarchy, label) if name in position] for label in labels]
        self.above = np.array([found[0] if found else index for index, found in enumerate(parents)])

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Indices of `count` classes."""
        return np.searchsorted(np.cumsum(self.weights), rng.random(count) * (1 - 1e-12)).astype(np.uint32)


def above(hierarchy: Hierarchy, label: str) -> tuple[str, ...]:
    """The classes above `label`; none where the hierarchy lacks it."""
    return hierarchy.ancestors(label) if label in hierarchy else ()


def write_split(
    folder: Path, split: str, tables: Tables, rng: np.random.Generator, counts: list[np.ndarray], v6: bool
) -> None:
    """Writes boxes and image labels of a split block by block, the images in the order of their ids."""
    images = len(counts[0])
    numbers = np.sort(rng.integers(0, 2**63, images, dtype=np.uint64) * 2 + (split == "validation"))
    with (
        open(paths.box_annotations(folder, split), "wb") as boxes_file,
        open(paths.image_label_annotations(folder, split), "wb") as labels_file,
    ):
        for first in range(0, images, BLOCK):
            block = slice(first, first + BLOCK)
            ids = image_ids(numbers[block])
            boxed = np.repeat(np.arange(len(ids), dtype=np.uint32), counts[0][block])
            boxes, classes = draw_boxes(rng, tables, ids, boxed, v6)
            boxes.write_csv(boxes_file, include_header=first == 0, float_precision=6)
            labelled = np.repeat(np.arange(len(ids), dtype=np.uint32), counts[1][block])
            labels = draw_image_labels(rng, tables, ids, labelled, boxed, classes)
            labels.write_csv(labels_file, include_header=first == 0)


def image_ids(numbers: np.ndarray) -> pl.Series:
    """16 hexadecimal digits for each number."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    nibbles = (numbers[:, None] >> np.arange(60, -4, -4, dtype=np.uint64)) & np.uint64(15)
    return pl.Series(digits[nibbles.astype(np.intp)].astype(np.uint8).view("S16")[:, 0].astype("U16"))


def draw_boxes(
    rng: np.random.Generator, tables: Tables, ids: pl.Series, image: np.ndarray, v6: bool
) -> tuple[pl.DataFrame, np.ndarray]:
    """A block of box rows, and their classes; `image` has the place of each row's id in `ids`."""
    count = len(image)
    classes, kinds, flags = tables.draw(rng, count), rng.random((2, count)), rng.random((4, count), np.float32)
    sizes = np.floor(rng.beta(1, 3, (2, count)) * 950_000) + 10_000
    corners = np.floor(rng.random((2, count)) * (1_000_000 - sizes))
    repeats = np.flatnonzero(kinds[0] < 0.02)
    repeats = repeats[(repeats > 0) & (image[repeats] == image[repeats - 1])]
    classes[repeats] = tables.above[classes[repeats - 1]]
    for table in (sizes, corners):
        table[:, repeats] = table[:, repeats - 1]
    low, high = corners / 1e6, (corners + sizes) / 1e6
    drawn = kinds[1] < 0.9
    source = enum(drawn, pl.Enum(["activemil", "xclick"]))
    columns = [ids.gather(image), source, enum(classes, tables.labels), pl.repeat(1, count, dtype=pl.Int8, eager=True)]
    columns += [pl.Series(values) for values in (low[0], high[0], low[1], high[1])]
    for flag, share in zip(flags, (0.6, 0.25, 0.06, 0.05), strict=True):
        columns.append(pl.Series((flag < share).astype(np.int8)))
    columns.append(pl.Series((flags[0] < 0.003).astype(np.int8)))
    names = list(BOX_COLUMNS)
    if v6:
        clicks = low[:, None] + (high - low)[:, None] * rng.random((2, 4, count), np.float32)
        columns += [pl.Series(np.where(drawn, values, -1.0)) for values in clicks.reshape(8, count)]
        names += CLICK_COLUMNS
    return pl.DataFrame(dict(zip(names, columns, strict=True))), classes


def enum(indices: np.ndarray, labels: pl.Enum) -> pl.Series:
    """Indices of classes as their labels."""
    return pl.Series(labels.categories, dtype=labels).gather(indices.astype(np.uint32))


def draw_image_labels(
    rng: np.random.Generator,
    tables: Tables,
    ids: pl.Series,
    image: np.ndarray,
    boxed: np.ndarray,
    box_classes: np.ndarray,
) -> pl.DataFrame:
    """A block of image labels: in turns a class that an image has boxes of, positive, and any class, negative."""
    count = len(image)
    first = np.searchsorted(boxed, image)
    number = np.arange(count) - np.searchsorted(image, image)
    of_box = np.minimum(first + number // 2, np.searchsorted(boxed, image, side="right") - 1)
    positive = number % 2 == 0
    classes = np.where(positive, box_classes[of_box], tables.draw(rng, count))
    columns = {
        "ImageID": ids.gather(image),
        "Source": pl.repeat("verification", count, eager=True),
        "LabelName": enum(classes, tables.labels),
        "Confidence": pl.Series(positive.astype(np.int8)),
    }
    return pl.DataFrame(columns)


if __name__ == "__main__":
    run_script(main)
