"""Times a01 on files of Open Images' full size, and its peak memory, against short versions in pandas and polars.

    python benchmarks/training_files.py --metadata ../shared/data/oid_metadata
    python benchmarks/training_files.py --size 0.01

Makes the files first, in a temporary folder: 14,610,229 boxes on 1,743,042 training images (1.2 GB with the 13 columns
of V4), 9 million image labels, and a validation split. They are drawn by seed: classes are
long-tailed, 6 % of the boxes are groups, 2 % repeat the rectangle of the row before them with a class above its own,
half of the image labels are negative. Full size needs 25 GB of disk.

Every program runs in a process of its own, in turns: a01 for level 1 without image labels, and the peers, which read
the training boxes, keep the ordinary boxes of the level's classes, add an empty row for every other image, and write.
They do less than a01: no ignored regions, no ancestors, no duplicates removed, no checks, no validation split. Then a01
runs with image labels, and for all levels. CPU seconds are those of all threads; on a busy machine they tell more.
"""

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
from oid.annotations import read_class_descriptions, write_class_descriptions
from oid.columns import BOX_COLUMNS
from oid.command_line import run_script
from oid.hierarchy import Hierarchy, read_hierarchy
from oid.machine import usable_cores

ROOT = Path(__file__).resolve().parent.parent
IMAGES = {"train": 1_743_042, "validation": 41_620}
BOXES = {"train": 14_610_229, "validation": 303_980}
IMAGE_LABELS = {"train": 9_000_000, "validation": 250_000}
CLASSES, INNER = 601, 76  # as in the official hierarchy
BLOCK = 100_000  # images


def main(*, size: float = 1.0, metadata: str | None = None, repeats: int = 2, seed: int = 0) -> None:
    """Prints seconds, CPU seconds and peak memory, and the peers' seconds divided by a01's.

    Args:
        size: of the files, as a part of Open Images
        metadata: a folder with the official hierarchy and class descriptions; unset = both are made
        repeats: the fastest of this number of runs counts
        seed: of the random numbers
    """
    with tempfile.TemporaryDirectory(prefix="training_files_") as folder:
        data_set, output = Path(folder) / "data_set", Path(folder) / "output"
        make_data_set(data_set, size=size, metadata=metadata, seed=seed)
        boxes = paths.box_annotations(data_set, "train")
        print(f"{boxes.stat().st_size / 1e9:.2f} GB of boxes, {usable_cores()} cores")
        print(f"{'':34}{'seconds':>10}{'CPU s':>10}{'MB':>10}{'ratio':>10}", flush=True)
        image_labels = [paths.image_label_annotations(data_set, split) for split in IMAGES]
        for path in image_labels:
            path.rename(path.with_suffix(".hidden"))
        peers = {"with_pandas": "pandas, pyarrow engine", "with_polars": "polars"}
        ours, theirs = [], {function: [] for function in peers}
        for _ in range(repeats):
            ours.append(run_a01(data_set, output, ["1"]))
            for function, costs in theirs.items():
                costs.append(run_peer(function, data_set, output))
        ours = np.min(ours, axis=0)
        show("a01, level 1 without image labels", ours)
        for function, costs in theirs.items():
            show(peers[function], np.min(costs, axis=0), np.min(costs, axis=0)[0] / ours[0])
        for path in image_labels:
            path.with_suffix(".hidden").rename(path)
        hierarchy = read_hierarchy(paths.annotation_file(data_set, paths.HIERARCHY))
        heights = sorted({str(hierarchy.height(label)) for label in hierarchy.labels})
        for levels in (["1"], [*heights, "all"]):
            show(f"a01, --levels {' '.join(levels)}", run_a01(data_set, output, levels))


def show(name: str, costs: tuple[float, float, float], ratio: float = float("nan")) -> None:
    seconds, cpu, memory = costs
    print(f"{name:34}{seconds:10.1f}{cpu:10.1f}{memory:10.0f}{ratio:10.2f}", flush=True)


# === The programs ====================================================================================================
def run_a01(data_set: Path, output: Path, levels: list[str]) -> tuple[float, float, float]:
    """Returns seconds, CPU seconds and peak memory in MB."""
    command = [sys.executable, str(ROOT / "a01_create_training_files.py"), "--levels", *levels]
    return measured([*command, "--dataset_path", str(data_set), "--output_path", str(output)])


def run_peer(function: str, data_set: Path, output: Path) -> tuple[float, float, float]:
    """Runs a function of this file with the classes that a01 has chosen for level 1."""
    program = f"import sys; from benchmarks.training_files import {function}; {function}(*sys.argv[1:])"
    files = (paths.box_annotations(data_set, "train"), paths.level_class_descriptions(output, "1"))
    command = [sys.executable, "-c", program, *map(str, files), str(output / "peer.csv")]
    return measured(command, os.environ | {"PYTHONPATH": str(ROOT)})


def with_pandas(boxes_path: str, classes_path: str, target: str) -> None:
    """Makes the training file of a level."""
    import pandas as pd

    classes = list(read_class_descriptions(classes_path))
    boxes = pd.read_csv(boxes_path, engine="pyarrow")
    kept = boxes[boxes["LabelName"].isin(classes) & (boxes["IsGroupOf"] != 1)]
    others = sorted(set(boxes["ImageID"]) - set(kept["ImageID"]))
    negatives = pd.DataFrame({"ImageID": others}).reindex(columns=boxes.columns)
    pd.concat([kept, negatives]).to_csv(target, index=False)


def with_polars(boxes_path: str, classes_path: str, target: str) -> None:
    """Makes the training file of a level."""
    classes = list(read_class_descriptions(classes_path))
    boxes = pl.read_csv(boxes_path)
    kept = boxes.filter(pl.col("LabelName").is_in(classes), pl.col("IsGroupOf") != 1)
    negatives = boxes.select(pl.col("ImageID").unique().sort()).join(kept, on="ImageID", how="anti")
    pl.concat([kept, negatives], how="diagonal").write_csv(target)


# === The files =======================================================================================================
def make_data_set(folder: Path, *, size: float, metadata: str | None = None, seed: int = 0) -> None:
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
        write_split(folder, split, tables, rng, counts)


def write_made_classes(annotations: Path, rng: np.random.Generator) -> None:
    """Makes a hierarchy with as many classes and inner classes as the official one, and three levels."""
    nodes = [{"LabelName": f"/m/{number:05x}", "Subcategory": []} for number in range(CLASSES)]
    root = {"LabelName": "/m/root", "Subcategory": []}
    for number, node in enumerate(nodes):
        is_top = number < INNER // 2 or rng.random() < 0.3
        parent = root if is_top else nodes[rng.integers(INNER // 2 if number < INNER else INNER)]
        parent["Subcategory"].append(node)
    (annotations / paths.HIERARCHY).write_text(json.dumps(root))
    names = {node["LabelName"]: f"class {number}" for number, node in enumerate(nodes)}
    write_class_descriptions(annotations / paths.CLASS_DESCRIPTIONS, names)


class Tables:
    """The classes with their long-tailed frequencies.

    Attributes:
        labels: (C,) String, every class.
        weights: (C,) how often a class occurs.
        above: (C,) the index of an ancestor, or of the class itself if it has none.
    """

    def __init__(self, labels: list[str], hierarchy: Hierarchy, rng: np.random.Generator):
        self.labels = pl.Series(labels)
        weights = 1 / (rng.permutation(len(labels)) + 3.0)
        self.weights = weights / weights.sum()
        position = {label: index for index, label in enumerate(labels)}
        ancestors = [[a for a in hierarchy.ancestors(label) if a in position] for label in labels]
        self.above = np.array([position[found[0]] if found else index for index, found in enumerate(ancestors)])

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws the indices of `count` classes."""
        return np.searchsorted(np.cumsum(self.weights), rng.random(count) * (1 - 1e-12)).astype(np.uint32)


def write_split(folder: Path, split: str, tables: Tables, rng: np.random.Generator, counts: list[np.ndarray]) -> None:
    """Writes boxes and image labels of a split block by block, the images in the order of their ids."""
    images = len(counts[0])
    numbers = np.sort(rng.integers(0, 2**63, images, dtype=np.uint64) * 2 + (split == "validation"))
    with (
        open(paths.box_annotations(folder, split), "wb") as boxes_file,
        open(paths.image_label_annotations(folder, split), "wb") as labels_file,
    ):
        for first in range(0, images, BLOCK):
            block = slice(first, first + BLOCK)
            ids = pl.Series([f"{number:016x}" for number in numbers[block].tolist()])
            boxed = np.repeat(np.arange(len(ids), dtype=np.uint32), counts[0][block])
            boxes, classes = draw_boxes(rng, tables, ids, boxed)
            boxes.write_csv(boxes_file, include_header=first == 0, float_precision=6)
            labelled = np.repeat(np.arange(len(ids), dtype=np.uint32), counts[1][block])
            classes, positive = draw_image_labels(rng, tables, labelled, boxed, classes)
            source = pl.repeat("verification", len(labelled), eager=True)
            columns = {"ImageID": ids.gather(labelled), "Source": source, "LabelName": tables.labels.gather(classes)}
            labels = pl.DataFrame(columns | {"Confidence": positive})
            labels.write_csv(labels_file, include_header=first == 0)


def draw_boxes(
    rng: np.random.Generator, tables: Tables, ids: pl.Series, image: np.ndarray
) -> tuple[pl.DataFrame, np.ndarray]:
    """Draws a block of box rows, and their classes; `image` has the index of each row's id in `ids`."""
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
    source = pl.Series(["activemil", "xclick"]).gather((kinds[1] < 0.9).astype(np.uint32))
    columns = [ids.gather(image), source, tables.labels.gather(classes), pl.repeat(1, count, dtype=pl.Int8, eager=True)]
    columns += [pl.Series(values) for values in (low[0], high[0], low[1], high[1])]
    for flag, share in zip(flags, (0.6, 0.25, 0.06, 0.05), strict=True):
        columns.append(pl.Series((flag < share).astype(np.int8)))
    columns.append(pl.Series((flags[0] < 0.003).astype(np.int8)))
    return pl.DataFrame(dict(zip(BOX_COLUMNS, columns, strict=True))), classes


def draw_image_labels(
    rng: np.random.Generator, tables: Tables, image: np.ndarray, boxed: np.ndarray, box_classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draws classes and Confidence of a block: in turns the class of a box, positive, and any class, negative.

    `image` has the image of each label, `boxed` that of each box, both ascending.
    """
    count = len(image)
    first = np.searchsorted(boxed, image)
    number = np.arange(count) - np.searchsorted(image, image)
    of_box = np.minimum(first + number // 2, np.searchsorted(boxed, image, side="right") - 1)
    positive = number % 2 == 0
    classes = np.where(positive, box_classes[of_box], tables.draw(rng, count))
    return classes, positive.astype(np.int8)


if __name__ == "__main__":
    run_script(main)
