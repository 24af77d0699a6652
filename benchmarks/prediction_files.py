"""Times reading and writing prediction files against a few lines of polars, the best that a user would write by hand.

    python benchmarks/prediction_files.py
    python benchmarks/prediction_files.py --images 5000

The file is made in a temporary folder, 0.6 GB with 100,000 images of 100 boxes. Every measurement is a process of its
own, so that its peak memory is known; the ways take turns, and the fastest run of each counts. The peer holds the whole
file in memory and checks nothing; it writes coordinates through decimals, which rounds some of them differently.
"""

import concurrent.futures
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from oid.columns import CORNERS
from oid.command_line import run_script
from oid.predictions.files import PredictionFile, Predictions, PredictionWriter, read_predictions, write_predictions

CLASSES = 500
BOXES = 100  # per image
COLUMNS = ("LabelName", "Score", *CORNERS)


def main(*, images: int = 100_000, repeats: int = 3) -> None:
    """Prints seconds, CPU seconds, peak memory, and how many times as long the peer takes.

    Args:
        images: in the file, with 100 boxes each.
        repeats: runs of each way; the fastest counts.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = make(Path(folder) / "all.csv", images)
        print(f"{images * BOXES} boxes, {images} images, {path.stat().st_size / 1e6:.0f} MB")
        print("                   here: s    CPU s       MB     polars by hand: s    CPU s       MB    ratio")
        for what, here, peer in (
            ("read, at once", read_predictions, read_by_hand),
            ("read, in blocks", read_in_blocks, read_by_hand),
            ("read, shuffled", read_shuffled, read_by_hand),
            ("write", write, write_by_hand),
        ):
            runs = [[apart(function, path) for function in (here, peer)] for _ in range(repeats)]
            (s, cpu, mb), (peer_s, peer_cpu, peer_mb) = np.min(runs, axis=0)
            numbers = f"{s:9.2f} {cpu:8.2f} {mb:8.0f} {peer_s:21.2f} {peer_cpu:8.2f} {peer_mb:8.0f}"
            print(f"{what:<17}{numbers} {peer_s / s:8.2f}", flush=True)


def apart(function: Callable[[Path], object], path: Path) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak memory in MB of a function in a process of its own."""
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, function, path).result()


def measure(function: Callable[[Path], object], path: Path) -> tuple[float, float, float]:
    """Times a function, or what it returns if that is a function."""
    start, cpu = time.perf_counter(), time.process_time()
    result = function(path)
    if callable(result):
        start, cpu = time.perf_counter(), time.process_time()
        result()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return seconds, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


# === Ours =============================================================================================================


def read_in_blocks(path: Path) -> int:
    """All boxes, block by block."""
    return sum(len(block.boxes) for block in PredictionFile(path).blocks())


def read_shuffled(path: Path) -> int:
    """All boxes, 1,024 images in random order at a time."""
    file = PredictionFile(path)
    order = np.random.default_rng(0).permutation(file.num_images)
    return sum(len(file.read(order[first : first + 1024]).boxes) for first in range(0, len(order), 1024))


def write(path: Path) -> Callable[[], None]:
    """Writes what was read before."""
    found = read_predictions(path)
    return lambda: write_predictions(path.with_name("written.csv"), found)


# === Polars by hand ===================================================================================================


def read_by_hand(path: Path) -> tuple[pl.Series, pl.DataFrame]:
    """The image of each box, and its label, score and corners."""
    rows = pl.read_csv(path, schema={"ImageId": pl.String, "PredictionString": pl.String})
    tokens = rows.select("ImageId", pl.col("PredictionString").str.split(" "))
    images = tokens.select(pl.col("ImageId").repeat_by(pl.col("PredictionString").list.len() // 6).explode())
    column = pl.col("PredictionString").explode()
    return images.to_series(), tokens.select(
        column.gather_every(6, k).cast(pl.Categorical if k == 0 else pl.Float64).alias(name)
        for k, name in enumerate(COLUMNS)
    )


def write_by_hand(path: Path) -> Callable[[], None]:
    """Writes what was read before."""
    images, boxes = read_by_hand(path)
    numbers = [pl.col("Score").round_sig_figs(9), *(pl.col(name).cast(pl.Decimal(12, 6)) for name in CORNERS)]

    def write() -> None:
        texts = boxes.select(pl.concat_str("LabelName", *numbers, separator=" ").alias("PredictionString"))
        rows = texts.with_columns(images).group_by("ImageId", maintain_order=True)
        rows.agg(pl.col("PredictionString").str.join(" ")).write_csv(path.with_name("written.csv"))

    return write


# === Input ============================================================================================================


def make(path: Path, images: int, block: int = 5_000) -> Path:
    """Writes random predictions whose ids and labels are as long as those of Open Images."""
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


if __name__ == "__main__":
    run_script(main)
