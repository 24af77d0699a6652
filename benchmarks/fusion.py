"""Times fusion against the package ensemble-boxes, and a06 from CSV to CSV; checks that boxes and scores agree.

    python benchmarks/fusion.py
    python benchmarks/fusion.py --small

The inputs take 1.7 GB in a temporary folder, 30 MB with --small. Compared functions take turns, several times, and the
fastest run of each counts. Compilation happens before that and is printed separately. Times per image are processor
time of one thread, which other work on the machine hardly changes.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ensemble_boxes
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.processes import measured
from oid.command_line import run_script
from oid.fusion.fuse import METHODS, fuse
from oid.predictions.files import Predictions, PredictionWriter

ROOT = Path(__file__).resolve().parent.parent
CLASSES = 500
PACKAGE = {
    "wbf": ensemble_boxes.weighted_boxes_fusion,
    "nms": lambda *image: ensemble_boxes.nms(*image, iou_thr=0.55),
    "soft_nms_linear": lambda *image: ensemble_boxes.soft_nms(*image, method=1, iou_thr=0.55),
    "soft_nms_gaussian": lambda *image: ensemble_boxes.soft_nms(*image, method=2, iou_thr=0.55),
    "nmw": ensemble_boxes.non_maximum_weighted,
}


def main(*, small: bool = False, images: int = 0, repeats: int = 3) -> None:
    """Prints the tables.

    Args:
        small: a quick look: fewer images
        images: of each of a06's files; 0 = 100000, or 2000 with --small
        repeats: of each comparison, of which the fastest counts
    """
    print_first_run()
    print_methods(10 if small else 100, repeats)
    print_ensemble(images or (2_000 if small else 100_000), peer_images=10 if small else 100)


def print_first_run() -> None:
    """Processor time of the first call in a new process, with an empty cache and with a filled one."""
    code = (
        "import time; start = time.process_time(); from oid.fusion.fuse import fuse; "
        "fuse('wbf', [[[0, 0, 1, 1]]], [[0.5]], [[1]]); print(time.process_time() - start)"
    )
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"NUMBA_CACHE_DIR": folder, "PYTHONPATH": str(ROOT)}
        runs = [
            subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
            for _ in range(2)
        ]
    compiling, cached = (float(run.stdout) for run in runs)
    print(f"first call in a process: {compiling:.1f} s where it compiles, {cached:.2f} s from the cache\n")


def random_image(rng: np.random.Generator, num_models: int, num_boxes: int) -> tuple[list, list, list]:
    """Models that see the same objects of 10 classes, a few hundredths apart: boxes, scores and labels per model."""
    sizes = rng.uniform(0.1, 0.4, (num_boxes, 2))
    corners = rng.uniform(0.05, 0.95 - sizes)
    objects, labels = np.concatenate([corners, corners + sizes], axis=1), rng.integers(0, 10, num_boxes)
    boxes = [objects + rng.uniform(-0.03, 0.03, objects.shape) for _ in range(num_models)]
    return boxes, [rng.random(num_boxes) for _ in range(num_models)], [labels] * num_models


def print_methods(num_images: int, repeats: int) -> None:
    """Milliseconds per image in one thread: the package, `fuse` image by image, `fuse` of all images."""
    print(f"ms per image, {num_images} images, one thread         package   call per image      one call for all")
    rng = np.random.default_rng(0)
    for num_models, num_boxes in ((3, 100), (5, 300)):
        images = [random_image(rng, num_models, num_boxes) for _ in range(num_images)]
        lists = [[np.concatenate(model) for model in zip(*column, strict=True)] for column in zip(*images, strict=True)]
        lists.append([np.arange(num_images + 1) * num_boxes] * num_models)
        for method in METHODS:
            functions = {
                "package": lambda method=method, images=images: [PACKAGE[method](*map(list, one)) for one in images],
                "calls": lambda method=method, images=images: [fuse(method, *one) for one in images],
                "block": lambda method=method, lists=lists: fuse(method, *lists),
            }
            agreement = "agree" if all(agrees(method, one) for one in images[:10]) else "DO NOT AGREE"
            package, calls, block = (seconds / num_images * 1e3 for seconds in fastest(functions, repeats).values())
            print(
                f"  {method:<18} {num_models} models x {num_boxes} boxes {package:12.3f} {calls:9.3f} "
                f"{package / calls:5.0f}x {block:14.4f} {package / block:5.0f}x   {agreement}"
            )
    print()


def agrees(method: str, image: tuple) -> bool:
    """Whether the package gives the same boxes and scores: wbf bit for bit; nmw before the package rounds to float32.

    The package's soft-NMS returns the scores from before, so that only boxes are compared.
    """
    (boxes, scores, _), ours = PACKAGE[method](*map(list, image)), fuse(method, *image)
    if method == "nmw":
        return np.array_equal(np.sort(scores), np.sort(np.float32(ours.scores)))
    if method == "wbf":
        boxes, found = np.column_stack([boxes, scores]), np.column_stack([ours.boxes, ours.scores])
    else:
        found = ours.boxes
    return sorted(map(tuple, np.asarray(boxes))) == sorted(map(tuple, found))


def fastest(functions: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Seconds of processor time of each function; they take turns."""
    best = dict.fromkeys(functions, np.inf)
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.process_time()
            function()
            best[name] = min(best[name], time.process_time() - start)
    return best


def print_ensemble(num_images: int, peer_images: int, num_models: int = 3, num_boxes: int = 100) -> None:
    """a06 as a user calls it, and the usual script of pandas and the package on the first images of the same files."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder), num_images, num_models, num_boxes)
        size = sum(path.stat().st_size for path in paths) / 1e9
        print(f"{num_models} files of {num_images} images with {num_boxes} boxes, {size:.2f} GB")
        peer = with_pandas(paths, peer_images, Path(folder) / "peer.csv") / peer_images * num_images
        command = [sys.executable, str(ROOT / "a06_ensemble.py"), "--predictions", *map(str, paths)]
        seconds, processor, megabytes = measured([*command, "--ensemble", str(Path(folder) / "fused.csv")])
    print(f"  a06: {seconds:.1f} s, {processor:.1f} s of processor time, {megabytes:.0f} MB at most")
    print(
        f"  pandas and ensemble-boxes in one thread: {peer:.0f} s of processor time (extrapolated from "
        f"{peer_images} images), {peer / processor:.0f} times as much"
    )


def write_files(folder: Path, num_images: int, num_models: int, num_boxes: int, block: int = 5_000) -> list[Path]:
    """A file per model; all see the same objects of 10 classes in an image, 500 in all, a few hundredths apart."""
    paths = [folder / f"model{model}.csv" for model in range(num_models)]
    names = [f"/m/{label:05x}" for label in range(CLASSES)]
    for model, path in enumerate(paths):
        with PredictionWriter(path) as writer:
            for first in range(0, num_images, block):
                count = min(block, num_images - first)
                rng = np.random.default_rng(first)  # the same objects for every model
                sizes = rng.uniform(0.1, 0.4, (count * num_boxes, 2))
                corners = rng.uniform(0.05, 0.95 - sizes)
                index = np.repeat(np.arange(count), num_boxes)
                labels = rng.integers(0, CLASSES, (count, 10))[index, rng.integers(0, 10, len(index))]
                rng = np.random.default_rng([first, model])
                boxes = np.concatenate([corners, corners + sizes], axis=1) + rng.uniform(-0.03, 0.03, (len(labels), 4))
                ids = [f"{image:016x}" for image in range(first, first + count)]
                writer.write(Predictions(ids, names, index, labels, rng.random(len(labels)), boxes))
    return paths


def with_pandas(paths: list[Path], num_images: int, target: Path) -> float:
    """Seconds of processor time that the usual script takes for the first images, in one thread."""
    start = time.process_time()
    tables = [pd.read_csv(path, nrows=num_images) for path in paths]
    vocabulary, rows = {}, []
    for image in range(num_images):
        boxes, scores, labels = [], [], []
        for table in tables:
            tokens = table["PredictionString"][image].split()
            labels.append([vocabulary.setdefault(label, len(vocabulary)) for label in tokens[::6]])
            scores.append([float(score) for score in tokens[1::6]])
            boxes.append(np.array([tokens[k::6] for k in range(2, 6)], dtype=float).T.tolist())
        fused = ensemble_boxes.weighted_boxes_fusion(boxes, scores, labels, iou_thr=0.55)
        names = list(vocabulary)
        texts = [
            f"{names[int(label)]} {score:.9g} {box[0]:.6f} {box[1]:.6f} {box[2]:.6f} {box[3]:.6f}"
            for box, score, label in zip(*fused, strict=True)
        ]
        rows.append((tables[0]["ImageId"][image], " ".join(texts)))
    pd.DataFrame(rows, columns=["ImageId", "PredictionString"]).to_csv(target, index=False)
    return time.process_time() - start


if __name__ == "__main__":
    run_script(main)
