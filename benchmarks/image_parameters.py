"""Times a02 against what a user would write, and its memory and time on a folder as large as Open Images.

    python benchmarks/image_parameters.py
    python benchmarks/image_parameters.py --small

JPEGs of 1024 x 768 pixels, many names for few files, so all lie in memory. The ways take turns: a02 with MD5 and with
--no_md5, whole runs from the folder to the table; Pillow's headers and hashlib's MD5 of files that are read once, in as
many threads; imagesize where it is installed, in one thread, because it holds Python's lock.

Then 1.9 million names, measured by a02 in a process of its own: with --no_md5, with MD5, and a third time, when all are
known, with 11.4 million boxes of 443 long-tailed classes. That takes 3 GB on the disk; --many 0 leaves it out.
"""

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import polars as pl
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import a02_find_image_parameters as a02
from benchmarks.processes import measured
from oid import paths
from oid.columns import BOX_COLUMNS
from oid.command_line import run_script
from oid.machine import usable_cores

FILES, CLASSES = 200, 443


def main(*, images: int = 6000, rounds: int = 5, many: int = 1_900_000, boxes: int = 11_400_000, small: bool = False):
    """Prints images per second of each way, ratios, and the memory of whole runs.

    Args:
        images: names of large JPEGs.
        rounds: turns; the best counts.
        many: names for the whole runs; 0 = none.
        boxes: of the level that the last whole run looks at.
        small: a hundredth of everything, to see that it runs.
    """
    if small:
        images, many, boxes, rounds = 400, 19_000, 114_000, 1
    with tempfile.TemporaryDirectory() as made:
        speed(Path(made), images, rounds)
        if many:
            whole_runs(Path(made), many, boxes)


# === Speed ============================================================================================================
def speed(folder: Path, images: int, rounds: int) -> None:
    """Prints the table of the ways that take turns."""
    made = [folder / "large" / "train" / f"{name}.jpg" for name in names(images)]  # flat, as they are downloaded
    make_images(made, 1024, 768)
    files = [str(path) for path in made]
    ways = {
        "a02": lambda: run_a02(folder, no_md5=False),
        "Pillow and hashlib": lambda: in_threads(pillow_and_md5, files),
        "a02 --no_md5": lambda: run_a02(folder, no_md5=True),
    }
    if importlib.util.find_spec("imagesize"):
        import imagesize

        ways["imagesize"] = lambda: [imagesize.get(path) for path in files]
    best = dict.fromkeys(ways, (np.inf, np.inf))
    for _ in range(rounds):
        for name, way in ways.items():
            start, cpu = time.perf_counter(), time.process_time()
            way()
            costs = time.perf_counter() - start, time.process_time() - cpu
            best[name] = tuple(map(min, zip(best[name], costs, strict=True)))
    size = np.mean([os.path.getsize(path) for path in files]) / 1e3
    print(f"{images} JPEGs of 1024 x 768 pixels and {size:.0f} KB, {usable_cores()} cores and threads")
    for name, (seconds, cpu) in best.items():
        print(f"  {name:18} {images / seconds:8,.0f} images/s, {1e6 * cpu / images:6.1f} microseconds of CPU each")
    for way, peer in (("a02", "Pillow and hashlib"), ("a02 --no_md5", "imagesize")):
        if peer in best:
            clock, cpu = (theirs / ours for theirs, ours in zip(best[peer], best[way], strict=True))
            print(f"  {way} is {clock:.2f} times as fast as {peer}, by CPU time {cpu:.2f}")


def names(count: int) -> list[str]:
    """Ids that begin with many different characters."""
    return [f"{number * 2_654_435_761 % 2**32:08x}{number:08x}" for number in range(count)]


def make_images(places: list[Path], width: int, height: int) -> None:
    """Makes FILES JPEGs of soft shapes with grain, and hard links to them."""
    rng = np.random.default_rng(0)
    for folder in {place.parent for place in places}:
        folder.mkdir(parents=True)
    for place in places[:FILES]:
        picture = cv2.resize(rng.uniform(0, 255, (6, 8, 3)).astype("float32"), (width, height))
        picture += rng.normal(0, 9, (height, width, 1))
        cv2.imwrite(str(place), np.clip(picture, 0, 255).astype("uint8"), [cv2.IMWRITE_JPEG_QUALITY, 70])
    for number, place in enumerate(places[FILES:]):
        os.link(places[number % FILES], place)


def run_a02(folder: Path, *, no_md5: bool) -> None:
    """A whole run of a02 in this process, without an earlier table."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    options = {"splits": ("train",), "no_md5": no_md5, "statistics": False}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        a02.main(dataset_path=str(folder / "large"), output_path=str(folder / "out"), **options)


def pillow_and_md5(path: str) -> tuple:
    """Width, height, channels, bytes and MD5 of a file, which is read once."""
    with open(path, "rb") as file:
        data = file.read()
    with Image.open(io.BytesIO(data)) as image:
        return *image.size, len(image.getbands()), len(data), hashlib.md5(data).hexdigest()


def in_threads(function, files: list[str]) -> None:
    """Calls a function for all files, 256 of them per task, in a thread per core."""
    tasks = [files[start : start + 256] for start in range(0, len(files), 256)]
    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(lambda task: [function(path) for path in task], tasks))


# === Whole runs =======================================================================================================
def whole_runs(folder: Path, many: int, boxes: int) -> None:
    """Prints time and memory of a02 on `many` names."""
    ids = names(many)
    make_images([folder / "many" / "train" / name[:3] / f"{name}.jpg" for name in ids], 64, 48)
    command = [sys.executable, a02.__file__, "--dataset_path", str(folder / "many"), "--splits", "train"]
    command += ["--output_path", str(folder / "output")]
    print(f"{many:,} images")
    without = ["--statistics", "false"]
    for title, flags in (("--no_md5, all new", ["--no_md5", *without]), ("with MD5, all new", without), ("known", [])):
        if title == "known":
            make_level(folder / "output", ids, boxes)
            title = f"all known, {boxes:,} boxes"
        seconds, cpu, megabytes = measured([*command, *flags])
        print(
            f"  {title:32} {seconds:6.1f} s, {cpu:6.1f} s of CPU, {many / seconds:8,.0f} images/s, {megabytes:6.0f} MB"
        )


def make_level(output: Path, ids: list[str], count: int) -> None:
    """Writes the files of a level as a01 does, with `count` boxes."""
    labels = [f"/m/{number:05}" for number in range(CLASSES)]
    path, classes = paths.level_boxes(output, "1", "train"), paths.level_class_descriptions(output, "1")
    path.parent.mkdir(parents=True)
    classes.write_text("".join(f"{label},Class {number}\n" for number, label in enumerate(labels)))
    rng = np.random.default_rng(1)
    shares = 1 / np.arange(1, CLASSES + 1) ** 1.3
    size = np.clip(np.exp(rng.normal(-1.5, 0.8, (count, 2))), 0.005, 1)
    corner = rng.uniform(0, 1, (count, 2)) * (1 - size)
    values = {
        "ImageID": pl.Series(ids).gather(np.sort(rng.integers(0, len(ids), count))),
        "LabelName": pl.Series(labels).gather(rng.choice(CLASSES, count, p=shares / shares.sum())),
        "XMin": corner[:, 0],
        "XMax": corner[:, 0] + size[:, 0],
        "YMin": corner[:, 1],
        "YMax": corner[:, 1] + size[:, 1],
    }
    rest = [pl.lit("1" if name == "Confidence" else "0").alias(name) for name in BOX_COLUMNS if name not in values]
    pl.DataFrame(values).with_columns(rest).select(BOX_COLUMNS).write_csv(path, float_precision=6)


if __name__ == "__main__":
    run_script(main)
