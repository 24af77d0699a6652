"""Times reading and writing prediction files against Python's own csv, split, float and format, and measures memory.

    python benchmarks/prediction_files.py
    python benchmarks/prediction_files.py --small

The file is made in a temporary folder, 0.6 GB at full size, and a second one is written beside it. Every measurement is
a process of its own, so that its peak memory is known; the two ways take turns, and the fastest of each counts. What is
compiled is compiled before that, and printed apart. Python reads and writes 3,000 of the images, and is shown per
million boxes. CPU seconds are of all threads together; on a machine with other work they tell more.
"""

import concurrent.futures
import csv
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from oid.command_line import run_script
from oid.predictions.files import PredictionFile, Predictions, PredictionWriter, read_predictions, write_predictions

ROOT = Path(__file__).resolve().parent.parent
CLASSES = 500
BOXES = 100  # per image
PYTHON_IMAGES = 3_000
FIRST_CALL = (
    "import sys, time, numpy; start = time.perf_counter(); from oid.predictions.files import *; "
    "found = Predictions.from_images(['a'], ['x'], [([0], [0.5], [[0, 0, 1, 1]])]); "
    "write_predictions(sys.argv[1], found); read_predictions(sys.argv[1]); print(time.perf_counter() - start)"
)


def main(*, small: bool = False, images: int = 0, repeats: int = 3) -> None:
    """Prints seconds, how many times as long Python takes, and peak memory.

    Args:
        small: a quick look: fewer images
        images: in the file, with 100 boxes each; 0 = 100000, or 5000 with --small
        repeats: the fastest of so many counts
    """
    images = images or (5_000 if small else 100_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print_first_call(folder)
        path, part = make(folder / "all.csv", images), make(folder / "part.csv", min(images, PYTHON_IMAGES))
        print(f"{images * BOXES} boxes, {images} images, {path.stat().st_size / 1e6:.0f} MB")
        print("                        here                             Python, per million     times as long")
        print("                   s    CPU s   MB at most             s    CPU s             s     CPU s")
        for what, here, python in (
            ("read, at once", read_at_once, read_in_python),
            ("read, in blocks", read_in_blocks, read_in_python),
            ("write", write, write_in_python),
        ):
            show(what, here, python, path, part, repeats)


def show(what: str, here: Callable, python: Callable, path: Path, part: Path, repeats: int) -> None:
    """Measures two ways, in turns, and prints a line."""
    runs, peer_runs = [], []
    for _ in range(repeats):
        runs.append(apart(here, path))
        peer_runs.append(apart(python, part))
    seconds, cpu, _ = np.min(runs, axis=0)
    each = np.min(peer_runs, axis=0)[:2] / min(PYTHON_IMAGES, num_images(path)) / BOXES * 1e6
    ratios = each * num_images(path) * BOXES / 1e6 / (seconds, cpu)
    memory = np.max(runs, axis=0)[2]
    print(
        f"{what:<15} {seconds:6.2f} {cpu:8.2f} {memory:12.0f} {each[0]:13.2f} {each[1]:8.2f} "
        f"{ratios[0]:13.1f} {ratios[1]:9.1f}",
        flush=True,
    )


def apart(function: Callable[[Path], tuple[float, float]], path: Path) -> tuple[float, float, float]:
    """What a function measures in a process of its own: seconds, CPU seconds, and that process' peak memory in MB."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_with_memory, function, path).result()


def _with_memory(function: Callable[[Path], tuple[float, float]], path: Path) -> tuple[float, float, float]:
    seconds, cpu = function(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return seconds, cpu, peak / (1e6 if sys.platform == "darwin" else 1e3)


def timed(function: Callable, *arguments: object) -> tuple[float, float]:
    """Seconds and CPU seconds of a call."""
    start, cpu = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - start, time.process_time() - cpu


# === Ours =============================================================================================================


def read_at_once(path: Path) -> tuple[float, float]:
    """All boxes of the file."""
    warm_up(path)
    return timed(read_predictions, path)


def read_in_blocks(path: Path) -> tuple[float, float]:
    """All boxes, block by block."""
    warm_up(path)
    return timed(lambda: sum(len(block.boxes) for block in PredictionFile(path).blocks()))


def write(path: Path) -> tuple[float, float]:
    """Writes what was read before."""
    found = read_predictions(path)
    write_predictions(path.with_name("warm.csv"), next(PredictionFile(path).blocks(1)))
    return timed(write_predictions, path.with_name("written.csv"), found)


def warm_up(path: Path) -> None:
    """Loads what is compiled."""
    next(PredictionFile(path).blocks(1))


# === Python's =========================================================================================================


def read_in_python(path: Path) -> tuple[float, float]:
    """All boxes of the file, as lists."""
    return timed(_read_in_python, path)


def _read_in_python(path: Path) -> tuple[list, list, list, list]:
    ids, labels, scores, boxes = [], [], [], []
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            tokens = row["PredictionString"].split()
            ids += [row["ImageId"]] * (len(tokens) // 6)
            for i in range(0, len(tokens), 6):
                labels.append(tokens[i])
                scores.append(float(tokens[i + 1]))
                boxes.append([float(token) for token in tokens[i + 2 : i + 6]])
    return ids, labels, scores, boxes


def write_in_python(path: Path) -> tuple[float, float]:
    """Writes what was read before."""
    return timed(_write_in_python, path.with_name("written.csv"), *_read_in_python(path))


def _write_in_python(path: Path, ids: list, labels: list, scores: list, boxes: list) -> None:
    rows = {}
    for image_id, label, score, (a, b, c, d) in zip(ids, labels, scores, boxes, strict=True):
        rows.setdefault(image_id, []).append(f"{label} {score:.9g} {a:.6f} {b:.6f} {c:.6f} {d:.6f}")
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("ImageId", "PredictionString"))
        writer.writerows((image_id, " ".join(texts)) for image_id, texts in rows.items())


# === Inputs ===========================================================================================================


def num_images(path: Path) -> int:
    """How many rows a file has."""
    with open(path, "rb") as file:
        return sum(1 for _ in file) - 1


def make(path: Path, images: int, block: int = 5_000) -> Path:
    """Writes random predictions with the ids and labels of Open Images' length."""
    names = [f"/m/{label:05x}" for label in range(CLASSES)]
    with PredictionWriter(path) as writer:
        for first in range(0, images, block):
            count = min(block, images - first)
            rng = np.random.default_rng(first)
            boxes = np.sort(rng.random((count * BOXES, 2, 2)), axis=1).reshape(-1, 4)
            ids = [f"{image:016x}" for image in range(first, first + count)]
            labels, scores = rng.integers(0, CLASSES, len(boxes)), rng.random(len(boxes))
            writer.write(Predictions(ids, names, np.repeat(np.arange(count), BOXES), labels, scores, boxes))
    return path


def print_first_call(folder: Path) -> None:
    """What the first reading and writing takes in a new process: where it compiles, and after that."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FIRST_CALL, str(folder / "first.csv")]
    compiling, cached = (
        float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout) for _ in range(2)
    )
    print(f"first call of a process: {compiling:.1f} s where it compiles, {cached:.2f} s from the cache\n")


if __name__ == "__main__":
    run_script(main)
