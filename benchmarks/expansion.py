"""Times a05 from CSV to CSV, and its peak memory, against polars by hand with the suppression of OpenCV.

    python benchmarks/expansion.py
    python benchmarks/expansion.py --images 5000

Inputs are made in a temporary folder, 0.6 GB at full size, and a05 writes twice as much beside them: 500 classes of
which 57 are above others, and 100 boxes per image that are 25 objects found by several anchors each. a05 runs as a
user calls it, in a process of its own. The peer reads by polars, joins the ancestors, suppresses each image by
`cv2.dnn.NMSBoxesBatched`, and writes by polars; it does 2,000 images, and is shown per image.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.prediction_files import read_by_hand
from benchmarks.processes import measured
from oid.columns import CORNERS
from oid.command_line import run_script
from oid.hierarchy import Hierarchy, read_hierarchy
from oid.predictions.files import PredictionFile, Predictions, PredictionWriter, write_predictions

ROOT = Path(__file__).resolve().parent.parent
LEAVES, INNER = 443, 57  # as the challenge has them
BOXES, OBJECTS = 100, 25  # per image
NMS_IOU = 0.75


def main(*, images: int = 100_000, repeats: int = 2, peer_images: int = 2_000) -> None:
    """Prints seconds, peak memory, milliseconds per image and their ratio.

    Args:
        images: with 100 boxes each.
        repeats: runs of each way; the fastest counts.
        peer_images: images that the peer does.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = make(folder, images)
        tree, part = read_hierarchy(arguments["hierarchy"]), folder / "part.csv"
        write_predictions(part, next(PredictionFile(arguments["predictions"]).blocks(peer_images)))
        flags = [word for flag, value in arguments.items() for word in (f"--{flag}", value)]
        command = [sys.executable, str(ROOT / "a05_expand_hierarchy.py"), "--nms_iou", str(NMS_IOU), *flags]
        runs, peer_runs = [], []
        for _ in range(repeats):
            runs.append(measured(command))
            start = time.perf_counter()
            num_boxes = expand_by_hand(part, folder / "peer.csv", tree)
            peer_runs.append(time.perf_counter() - start)
        seconds, cpu, megabytes = np.min(runs, axis=0)
        ours, theirs = seconds / images * 1e3, min(peer_runs) / min(images, peer_images) * 1e3
        print(f"a05: {images * BOXES} boxes of {images} images in {seconds:.1f} s, CPU {cpu:.1f} s, {megabytes:.0f} MB")
        print(f"ms per image: a05 {ours:.3f}, by hand {theirs:.3f}, ratio {theirs / ours:.1f}")
        same = len(next(PredictionFile(arguments["expanded"]).blocks(peer_images)).boxes)
        print(f"boxes of the first {min(images, peer_images)} images: a05 {same}, by hand {num_boxes}")


def expand_by_hand(source: Path, target: Path, tree: Hierarchy) -> int:
    """Expands a prediction file, and returns the number of boxes written."""
    images, boxes = read_by_hand(source)
    boxes = boxes.with_columns(images, pl.col("LabelName").cast(pl.String))
    pairs = [(label, above) for label in boxes["LabelName"].unique() for above in tree.ancestors(label)]
    above = pl.DataFrame(pairs, ["LabelName", "above"], orient="row")
    new = boxes.join(above, on="LabelName").with_columns(LabelName="above").select(boxes.columns)
    boxes = pl.concat([boxes, new])
    gained = boxes.join(new.select("ImageId", "LabelName").unique(), on=["ImageId", "LabelName"], how="semi")
    kept = [boxes.join(new.select("ImageId", "LabelName").unique(), on=["ImageId", "LabelName"], how="anti")]
    for image in gained.partition_by("ImageId"):
        labels, corners = image["LabelName"].rank("dense").cast(pl.Int32).to_numpy(), image.select(CORNERS).to_numpy()
        corners = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])  # x, y, width, height
        kept.append(image[cv2.dnn.NMSBoxesBatched(corners, image["Score"].to_numpy(), labels, 0.0, NMS_IOU)])
    numbers = [pl.col("Score").round_sig_figs(9), *(pl.col(name).cast(pl.Decimal(12, 6)) for name in CORNERS)]
    boxes = pl.concat(kept).select("ImageId", pl.concat_str("LabelName", *numbers, separator=" ").alias("text"))
    boxes.group_by("ImageId", maintain_order=True).agg(pl.col("text").str.join(" ")).write_csv(target)
    return len(boxes)


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
