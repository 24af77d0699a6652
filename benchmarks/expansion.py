"""Times a05 from CSV to CSV, and its peak memory, against the way of its ancestor: image by image, label by label.

    python benchmarks/expansion.py
    python benchmarks/expansion.py --small

Inputs are made in a temporary folder, 0.6 GB at full size, and a05 writes twice as much beside them: 500 classes of
which 57 are above others, and 100 boxes per image that are 25 objects found by several anchors each. a05 runs as a
user calls it, in a process of its own. The ancestor's way is written anew here: it splits each prediction string,
copies every box to the ancestors of its label in Python, suppresses label by label in NumPy, and formats each number.
It does 300 images, in turns with a05, and is shown per image. (The ancestor itself was once measured at 3.05 ms.)
CPU seconds are of all threads together; on a machine with other work they tell more.
"""

import collections
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.processes import measured
from oid.command_line import run_script
from oid.hierarchy import Hierarchy, read_hierarchy
from oid.predictions.files import PredictionFile, Predictions, PredictionWriter

ROOT = Path(__file__).resolve().parent.parent
LEAVES, INNER = 443, 57  # as the challenge has them
BOXES, OBJECTS = 100, 25  # per image
NMS_IOU = 0.75


def main(*, small: bool = False, images: int = 0, repeats: int = 2, peer_images: int = 300) -> None:
    """Prints seconds, peak memory, milliseconds per image and their ratio.

    Args:
        small: a quick look: fewer images
        images: with 100 boxes each; 0 = 100000, or 5000 with --small
        repeats: the fastest of so many counts
        peer_images: that the ancestor's way does
    """
    images = images or (5_000 if small else 100_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = make(folder, images)
        tree, source = read_hierarchy(arguments["hierarchy"]), Path(arguments["predictions"])
        print(f"{images * BOXES} boxes, {images} images, {source.stat().st_size / 1e6:.0f} MB; NMS at IoU {NMS_IOU}")
        print_first_run(folder, arguments)
        runs, peer_runs = [], []
        for _ in range(repeats):
            runs.append(a05(arguments, os.environ))
            peer_runs.append(in_the_ancestors_way(source, folder / "peer.csv", tree, peer_images))
        seconds, cpu, _ = np.min(runs, axis=0)
        peer_seconds, peer_cpu = np.min(peer_runs, axis=0) / peer_images
        print(f"a05: {seconds:.1f} s, {cpu:.1f} CPU s, at most {np.max(runs, axis=0)[2]:.0f} MB")
        print(f"ms per image        a05   ancestor's way   times as long   same boxes of {peer_images} images")
        same = compare(Path(arguments["expanded"]), folder / "peer.csv", peer_images)
        for what, ours, theirs in (("seconds", seconds / images, peer_seconds), ("CPU", cpu / images, peer_cpu)):
            print(f"  {what:<12} {ours * 1e3:8.3f} {theirs * 1e3:16.2f} {theirs / ours:15.0f}   {same}")


def a05(arguments: dict[str, str], environment: dict[str, str]) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak memory in MB of a run that must end well."""
    command = [sys.executable, str(ROOT / "a05_expand_hierarchy.py"), "--nms_iou", str(NMS_IOU)]
    command += [word for flag, value in arguments.items() for word in (f"--{flag}", value)]
    return measured(command, environment)


def print_first_run(folder: Path, arguments: dict[str, str]) -> None:
    """What a05 takes for one image: where it compiles, after that, and when it only prints its help."""
    tiny = folder / "tiny.csv"
    with PredictionWriter(tiny) as writer:
        writer.write(next(PredictionFile(arguments["predictions"]).blocks(1)))
    of_one = arguments | {"predictions": str(tiny), "expanded": str(folder / "tiny.expanded.csv")}
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder / "cache")}
    (compiling, cpu, _), (cached, _, _) = (a05(of_one, environment) for _ in range(2))
    start = time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / "a05_expand_hierarchy.py"), "--help"], stdout=subprocess.DEVNULL)
    start_up = time.perf_counter() - start
    print(f"first run: {compiling:.1f} s where it compiles ({cpu:.1f} CPU s), {cached:.2f} s from the cache; ", end="")
    print(f"--help {start_up:.2f} s")


# === The ancestor's way ===============================================================================================


def in_the_ancestors_way(source: Path, target: Path, tree: Hierarchy, images: int) -> tuple[float, float]:
    """Seconds and CPU seconds for the first images."""
    start, cpu = time.perf_counter(), time.process_time()
    with open(source, newline="") as file, open(target, "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(("ImageId", "PredictionString"))
        for row, _ in zip(csv.DictReader(file), range(images), strict=False):
            writer.writerow((row["ImageId"], expand_string(row["PredictionString"], tree)))
    return time.perf_counter() - start, time.process_time() - cpu


def expand_string(text: str, tree: Hierarchy) -> str:
    """The prediction string with the boxes of ancestors."""
    tokens = text.split()
    boxes_of = collections.defaultdict(list)
    for i in range(0, len(tokens), 6):
        boxes_of[tokens[i]].append([float(token) for token in tokens[i + 1 : i + 6]])
    new = collections.defaultdict(list)
    for label, boxes in boxes_of.items():
        for ancestor in tree.ancestors(label):
            new[ancestor] += boxes
    for label, boxes in new.items():
        boxes_of[label] = suppress(np.array(boxes_of[label] + boxes)).tolist()
    return " ".join(
        f"{label} {score:.9g} {a:.6f} {b:.6f} {c:.6f} {d:.6f}"
        for label, boxes in boxes_of.items()
        for score, a, b, c, d in boxes
    )


def suppress(rows: np.ndarray) -> np.ndarray:
    """Non-maximum suppression of one label, rows of score and box: the usual loop in NumPy."""
    scores, x1, y1, x2, y2 = rows.T
    areas, order, kept = (x2 - x1) * (y2 - y1), np.argsort(-scores, kind="stable"), []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        width = np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest])
        height = np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest])
        overlap = np.maximum(width, 0) * np.maximum(height, 0)
        order = rest[overlap / (areas[best] + areas[rest] - overlap) <= NMS_IOU]
    return rows[kept]


def compare(ours: Path, theirs: Path, images: int) -> str:
    """Whether the first images have the same boxes, in any order."""
    found = []
    for path in (ours, theirs):
        block = next(PredictionFile(path).blocks(images))
        names = np.array(block.labels)[block.label_index]
        found.append(sorted(zip(block.image_index, names, block.scores, *block.boxes.T, strict=True)))
    return "equal" if found[0] == found[1] else "NOT EQUAL"


# === Inputs ===========================================================================================================


def make(folder: Path, images: int, block: int = 5_000) -> dict[str, str]:
    """Writes predictions, hierarchy and class descriptions, and returns a05's flags that name them."""
    names = [f"/m/{label:05x}" for label in range(LEAVES + INNER)]
    nodes = {name: {"LabelName": name, "Subcategory": []} for name in names}
    root = {"LabelName": "/m/root", "Subcategory": []}
    rng = np.random.default_rng(0)
    for position, name in enumerate(names):  # the first are inner classes; half of these are below another
        inner = position < INNER
        below_root = position == 0 or (inner and rng.random() < 0.5) or (not inner and rng.random() < 0.3)
        parent = root if below_root else nodes[names[rng.integers(min(position, INNER))]]
        parent["Subcategory"].append(nodes[name])
    (folder / "hierarchy.json").write_text(json.dumps(root))
    (folder / "classes.csv").write_text("".join(f"{name},class {name}\n" for name in names))
    with PredictionWriter(folder / "found.csv") as writer:
        for first in range(0, images, block):
            writer.write(random_block(np.random.default_rng(first), names, first, min(block, images - first)))
    files = {"predictions": "found.csv", "expanded": "out.csv", "hierarchy": "hierarchy.json"}
    return {flag: str(folder / name) for flag, name in (files | {"class_descriptions": "classes.csv"}).items()}


def random_block(rng: np.random.Generator, names: list[str], first: int, images: int) -> Predictions:
    """Leaf classes; the boxes of an object are a few hundredths apart and mostly of one class."""
    sizes = rng.uniform(0.1, 0.4, (images, OBJECTS, 2))
    corners = rng.uniform(0.05, 0.95 - sizes)
    objects = np.concatenate([corners, corners + sizes], axis=2)
    labels = rng.integers(INNER, INNER + LEAVES, (images, OBJECTS))
    image, which = np.repeat(np.arange(images), BOXES), rng.integers(0, OBJECTS, images * BOXES)
    label_index = labels[image, which]
    wrong = rng.random(len(label_index)) < 0.3
    label_index[wrong] = rng.integers(INNER, INNER + LEAVES, wrong.sum())
    boxes = objects[image, which] + rng.uniform(-0.03, 0.03, (len(image), 4))
    ids = [f"{number:016x}" for number in range(first, first + images)]
    return Predictions(ids, names, image, label_index, rng.random(len(image)), boxes)


if __name__ == "__main__":
    run_script(main)
