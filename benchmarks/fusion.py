"""Times fusion against the package ensemble-boxes, and a06 from CSV to CSV; checks that boxes and scores agree.

    python benchmarks/fusion.py
    python benchmarks/fusion.py --small

Inputs are made in a temporary folder, 1.7 GB at full size, which takes as long as what is measured; --small needs 30 MB
and a minute. Ways that are compared take turns, several times, and the fastest of each counts. Compilation happens
once, before that, and is printed apart. Times per image are processor time of one thread, so that other work on the
machine favours nobody.
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
from oid.fusion.fuse import METHODS, fuse, fuse_images
from oid.predictions.files import Predictions, PredictionWriter

ROOT = Path(__file__).resolve().parent.parent
CLASSES = 500
PACKAGE = {  # each with its scores as defaults here
    "wbf": ensemble_boxes.weighted_boxes_fusion,
    "nms": lambda *image: ensemble_boxes.nms(*image, iou_thr=0.55),
    "soft_nms_linear": lambda *image: ensemble_boxes.soft_nms(*image, method=1, iou_thr=0.55),
    "soft_nms_gaussian": lambda *image: ensemble_boxes.soft_nms(*image, method=2, iou_thr=0.55),
    "nmw": ensemble_boxes.non_maximum_weighted,
}


def main(*, small: bool = False, images: int = 0, repeats: int = 3) -> None:
    """Prints the three tables.

    Args:
        small: a quick look: fewer images
        images: of each of a06's files; 0 = 100000, or 2000 with --small
        repeats: the fastest of so many counts
    """
    print_first_run()
    print_methods(10 if small else 100, repeats)
    print_ensemble(images or (2_000 if small else 100_000), 10 if small else 100, repeats=1)
    print_start_up(repeats)


def print_first_run() -> None:
    """What the first call takes in a new process: with an empty cache, where it compiles, and after that."""
    code = (
        "import time; start = time.process_time(); from oid.fusion.fuse import fuse; "
        "fuse('wbf', [[[0, 0, 1, 1]]], [[0.5]], [[1]]); print(time.process_time() - start)"
    )
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"NUMBA_CACHE_DIR": folder, "PYTHONPATH": str(ROOT)}
        seconds = [
            float(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)
            for _ in range(2)
        ]
    print(f"first call in a process: {seconds[0]:.1f} s where it compiles, {seconds[1]:.2f} s from the cache\n")


def random_image(rng: np.random.Generator, num_models: int, num_boxes: int) -> tuple[list, list, list]:
    """Models that see the same objects of 10 classes, a few hundredths apart: boxes, scores and labels per model."""
    sizes = rng.uniform(0.1, 0.4, (num_boxes, 2))
    corners = rng.uniform(0.05, 0.95 - sizes)
    objects, labels = np.concatenate([corners, corners + sizes], axis=1), rng.integers(0, 10, num_boxes)
    boxes = [objects + rng.uniform(-0.03, 0.03, objects.shape) for _ in range(num_models)]
    return boxes, [rng.random(num_boxes) for _ in range(num_models)], [labels] * num_models


def in_one_call(images: list) -> tuple[list, list, list, list]:
    """What `fuse_images` takes."""
    columns, models = list(zip(*images, strict=True)), range(len(images[0][0]))
    lists = [[np.concatenate([image[model] for image in column]) for model in models] for column in columns]
    offsets = [np.cumsum([0, *(len(image[model]) for image in columns[0])]) for model in models]
    return *lists, offsets


def print_methods(num_images: int, repeats: int) -> None:
    """Milliseconds per image in one process and one thread: the package, one call per image, one call for all."""
    print(f"ms per image, {num_images} images, one thread         package   call per image      one call for all")
    rng = np.random.default_rng(0)
    for num_models, num_boxes in ((3, 100), (5, 300)):
        images = [random_image(rng, num_models, num_boxes) for _ in range(num_images)]
        block = in_one_call(images)
        for method in METHODS:
            package = PACKAGE[method]
            ways = {
                "package": lambda package=package, images=images: [package(*map(list, image)) for image in images],
                "calls": lambda method=method, images=images: [fuse(method, *image) for image in images],
                "block": lambda method=method, block=block: fuse_images(method, *block),
            }
            agree = agrees(method, package, images[:10])
            ways["calls"](), ways["block"]()
            best = fastest(ways, repeats)
            each = {name: seconds / num_images * 1e3 for name, seconds in best.items()}
            calls, block_ratio = best["package"] / best["calls"], best["package"] / best["block"]
            print(
                f"  {method:<18} {num_models} models x {num_boxes} boxes {each['package']:12.3f} "
                f"{each['calls']:9.3f} {calls:5.0f}x {each['block']:14.4f} {block_ratio:5.0f}x   {agree}"
            )
    print()


def agrees(method: str, package: Callable, images: list) -> str:
    """What the package's boxes and scores and ours have in common."""
    pairs = [(package(*map(list, image)), fuse(method, *image)) for image in images]
    if method == "wbf":
        same = all(
            np.array_equal(_rows(*theirs[:2]), _rows(*ours[:2])) and len(theirs[2]) == len(ours[2])
            for theirs, ours in pairs
        )
        return "equal bit for bit" if same else "NOT EQUAL"
    if method == "nmw":  # the package rounds to float32
        same = all(np.allclose(np.sort(theirs[1]), np.sort(np.float32(ours[1])), atol=0) for theirs, ours in pairs)
        return "equal scores" if same else "NOT EQUAL"
    same = all(np.array_equal(_rows(theirs[0]), _rows(ours[0])) for theirs, ours in pairs)
    return "equal boxes" if same else "NOT EQUAL"


def _rows(boxes: np.ndarray, scores: np.ndarray | None = None) -> np.ndarray:
    """Boxes, and their scores, in an order that does not depend on ties."""
    rows = boxes if scores is None else np.column_stack([scores, boxes])
    return rows[np.lexsort(rows.T)]


def fastest(ways: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Seconds of processor time of each way, which take turns."""
    best = dict.fromkeys(ways, np.inf)
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.process_time()
            way()
            best[name] = min(best[name], time.process_time() - start)
    return best


def print_ensemble(num_images: int, peer_images: int, repeats: int, num_models: int = 3, num_boxes: int = 100) -> None:
    """a06 as a user calls it, and the usual script of pandas and the package on the first images of the same files."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        paths = write_files(Path(folder), num_images, num_models, num_boxes)
        size = sum(path.stat().st_size for path in paths) / 1e9
        print(
            f"{num_models} files of {num_images} images with {num_boxes} boxes, {size:.2f} GB, "
            f"made in {time.perf_counter() - start:.1f} s"
        )
        command = [sys.executable, str(ROOT / "a06_ensemble.py"), "--predictions", *map(str, paths)]
        command += ["--ensemble", str(Path(folder) / "fused.csv")]
        for _ in range(repeats):
            peer = with_pandas(paths, peer_images, Path(folder) / "peer.csv") / peer_images * num_images
            seconds, processor, megabytes = measured(command)
            print(f"  a06: {seconds:.1f} s, {processor:.1f} s of processor time, {megabytes:.0f} MB at most")
            print(
                f"  pandas and ensemble-boxes in one thread: {peer:.0f} s of processor time (extrapolated from "
                f"{peer_images} images), {peer / processor:.0f} times as much"
            )
    print()


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
                labels = rng.integers(0, CLASSES, (count, 10))[
                    np.repeat(np.arange(count), num_boxes), rng.integers(0, 10, count * num_boxes)
                ]
                rng = np.random.default_rng([first, model])
                boxes = np.concatenate([corners, corners + sizes], axis=1) + rng.uniform(-0.03, 0.03, (len(labels), 4))
                ids = [f"{image:016x}" for image in range(first, first + count)]
                index = np.repeat(np.arange(count), num_boxes)
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


def print_start_up(repeats: int) -> None:
    """The command that does nothing but start."""
    command = [sys.executable, str(ROOT / "a06_ensemble.py"), "--help"]
    seconds, processor, _ = min(measured(command) for _ in range(repeats + 1))
    print(f"a06 --help: {seconds:.2f} s, {processor:.2f} s of processor time")


if __name__ == "__main__":
    run_script(main)
