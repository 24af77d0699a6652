"""Times a02 against the two ways of its ancestor, and its memory and time on a folder as large as Open Images.

    python benchmarks/image_parameters.py --vips_python PATH/TO/python
    python benchmarks/image_parameters.py --small

JPEGs of 1024 x 768 pixels, generated light and shade with grain, many names for few files, so all lie in memory. The
ways take turns: a02 with MD5 and with --no_md5, whole runs from the folder to the table; Pillow, which decodes all
pixels, and pyvips, each with a second read in small pieces for the MD5, one file at a time, as the ancestor has them,
written anew.
pyvips is not needed otherwise: `python -m venv X; X/bin/pip install "pyvips[binary]"`, then --vips_python X/bin/python.

Then 1.9 million names (hard links to small JPEGs) in folders of the id's first three characters, measured by a02 as a
user calls it, in a process of its own: with --no_md5 and with MD5, and a third time, when all are known, with what it
says of 11.4 million boxes of 443 long-tailed classes. That takes 3 GB on the disk and some minutes; --many 0 leaves it
out.
"""

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
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

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 1024, 768
FILES = 200
PILLOW, VIPS = 200, 1000  # images per round, which these ways need a second or so for
SMALL_FILES = 64  # for many names: a file has 65,000 at most
CLASSES = 443
BLOCK = 1_000_000  # boxes


def main(
    *,
    images: int = 6000,
    qualities: tuple[int, ...] = (70, 80, 90),
    rounds: int = 3,
    vips_python: str | None = None,
    many: int = 1_900_000,
    boxes: int = 11_400_000,
    folder: str | None = None,
    small: bool = False,
) -> None:
    """Prints images per second of each way, ratios, and the memory of whole runs.

    Args:
        images: names of large JPEGs.
        qualities: of these JPEGs, each in a table of its own: MD5 takes as long as a file has bytes, decoding as it has
            pixels.
        rounds: turns; the best counts.
        vips_python: a Python that has pyvips (default: without).
        many: names for the whole runs; 0 = none.
        boxes: of the level that the whole run looks at.
        folder: where the files are made and removed (default: the system's folder for such).
        small: a hundredth of everything, to see that it runs.
    """
    if small:
        images, many, boxes, rounds, qualities = 400, 19_000, 114_000, 1, qualities[:1]
    with tempfile.TemporaryDirectory(dir=folder) as made:
        for quality in qualities:
            speed(Path(made), images, quality, rounds, vips_python)
        if many:
            whole_runs(Path(made), many, boxes)


# === Speed ============================================================================================================
def speed(folder: Path, images: int, quality: int, rounds: int, vips_python: str | None) -> None:
    """Prints the table of the ways that take turns."""
    data = folder / "large"
    size = make_images(data / "train", images, quality)
    ways = {
        "a02": lambda: run_a02(data, folder / "out", images, no_md5=False),
        "a02 --no_md5": lambda: run_a02(data, folder / "out", images, no_md5=True),
        "Pillow, all pixels": lambda: pillow(data / "train", PILLOW),
    }
    if vips_python:
        ways["pyvips"] = lambda: vips(vips_python, data / "train", VIPS)
    best = dict.fromkeys(ways, (np.inf, np.inf))
    for _ in range(rounds):
        for name, way in ways.items():
            best[name] = tuple(min(pair) for pair in zip(best[name], way(), strict=True))
    what = f"{images} JPEGs of {WIDTH} x {HEIGHT} pixels and {size / 1e3:.0f} KB (quality {quality})"
    print(f"{what}, {os.cpu_count()} cores")
    print(f"{'':20} images/s  CPU ms/image  a02 with MD5 is so many times as fast, by the clock and by the CPU")
    for name, (seconds, cpu) in best.items():
        ratios = f"{seconds / best['a02'][0]:6.1f} {cpu / best['a02'][1]:6.1f}"
        print(f"  {name:18} {1 / seconds:8,.0f}  {1e3 * cpu:12.3f}  {ratios}")
    shutil.rmtree(data)


def make_images(folder: Path, count: int, quality: int) -> float:
    """Makes FILES JPEGs with `count` names, and gives their mean size in bytes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [folder / f"{number:06}.jpg" for number in range(count)]
    for path in names[:FILES]:
        picture = np.zeros((HEIGHT, WIDTH, 3), "float32")
        for cell in (8, 32, 128):
            coarse = rng.uniform(0, 255 / 3, (HEIGHT // cell, WIDTH // cell, 3)).astype("float32")
            picture += cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        picture += rng.normal(0, 6, (HEIGHT, WIDTH, 1))
        cv2.imwrite(str(path), np.clip(picture, 0, 255).astype("uint8"), [cv2.IMWRITE_JPEG_QUALITY, quality])
    for number, path in enumerate(names[FILES:]):
        os.link(names[number % FILES], path)
    return float(np.mean([path.stat().st_size for path in names[:FILES]]))


Cost = tuple[float, float]  # seconds per image by the clock, and of the processor


def run_a02(data: Path, output: Path, count: int, *, no_md5: bool) -> Cost:
    """A whole run of a02 in this process, without an earlier table."""
    shutil.rmtree(output, ignore_errors=True)
    options = {"splits": ("train",), "no_md5": no_md5, "statistics": False}
    start, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        a02.main(dataset_path=str(data), output_path=str(output), **options)
    return (time.perf_counter() - start) / count, (time.process_time() - cpu) / count


def pillow(folder: Path, count: int) -> Cost:
    """The ancestor's way without pyvips."""
    file_paths = sorted(folder.iterdir())[:count]
    start, cpu = time.perf_counter(), time.process_time()
    for path in file_paths:
        with Image.open(path) as image:
            _ = np.array(image).shape
        digest = hashlib.md5()
        with path.open("rb") as file:
            while piece := file.read(4096):
                digest.update(piece)
        digest.hexdigest()
        path.stat()
    return (time.perf_counter() - start) / len(file_paths), (time.process_time() - cpu) / len(file_paths)


def vips(python: str, folder: Path, count: int) -> Cost:
    """The same with pyvips."""
    command = [python, str(ROOT / "benchmarks" / "vips_worker.py"), str(folder), str(count)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return tuple(map(float, printed.split()))


# === Whole runs =======================================================================================================
def whole_runs(folder: Path, many: int, boxes: int) -> None:
    """Prints time and memory of a02 on `many` names."""
    ids = make_names(folder / "many" / "train", folder, many)
    output = folder / "output"
    command = [sys.executable, str(ROOT / "a02_find_image_parameters.py"), "--dataset_path", str(folder / "many")]
    command += ["--output_path", str(output), "--splits", "train"]
    print(f"{many:,} images")
    print_run("--no_md5, all new", [*command, "--no_md5", "--statistics", "false"], many)
    print_run("with MD5 (small files), all new", [*command, "--statistics", "false"], many)
    make_level(output, ids, boxes)
    del ids
    print_run(f"all known, {boxes:,} boxes", command, many)


def print_run(title: str, command: list[str], many: int) -> None:
    seconds, cpu, megabytes = measured([*command])
    print(f"  {title:32} {seconds:6.1f} s, {cpu:6.1f} s of CPU, {many / seconds:8,.0f} images/s, {megabytes:6.0f} MB")


def make_names(train: Path, folder: Path, count: int) -> list[str]:
    """Makes small JPEGs with `count` names, and returns the ids."""
    rng = np.random.default_rng(0)
    sources = []
    for number in range(SMALL_FILES):
        sources.append(folder / f"source{number}.jpg")
        width, height = (1024, 768) if number % 3 else (683, 1024)
        cv2.imwrite(str(sources[-1]), np.full((height // 16, width // 16, 3), rng.integers(256), "uint8"))
    ids = [f"{number * 2_654_435_761 % 2**32:08x}{number:08x}" for number in range(count)]
    for prefix in {image_id[:3] for image_id in ids}:
        (train / prefix).mkdir(parents=True)
    for number, image_id in enumerate(ids):
        os.link(sources[number % SMALL_FILES], train / image_id[:3] / f"{image_id}.jpg")
    return ids


def make_level(output: Path, ids: list[str], count: int) -> None:
    """Writes the files of a level as a01 does, with `count` boxes."""
    labels = [f"/m/{number:05}" for number in range(CLASSES)]
    path = paths.level_boxes(output, "1", "train")
    path.parent.mkdir(parents=True)
    names = [f"{label},Class {number}" for number, label in enumerate(labels)]
    paths.level_class_descriptions(output, "1").write_text("\n".join([*names, ""]))
    rng = np.random.default_rng(1)
    shares = 1 / np.arange(1, CLASSES + 1) ** 1.3
    known, classes = pl.Series(ids), pl.Series(labels)
    with path.open("wb") as file:
        file.write((",".join(BOX_COLUMNS) + "\n").encode())
        for start in range(0, count, BLOCK):
            rows = min(BLOCK, count - start)
            size = np.clip(np.exp(rng.normal(-1.5, 0.8, (rows, 2))), 0.005, 1)
            corner = rng.uniform(0, 1, (rows, 2)) * (1 - size)
            values = {
                "ImageID": known[np.sort(rng.integers(0, len(ids), rows)).tolist()],
                "Source": ["xclick"] * rows,
                "LabelName": classes[rng.choice(CLASSES, rows, p=shares / shares.sum()).tolist()],
                "Confidence": ["1"] * rows,
                "XMin": corner[:, 0],
                "XMax": corner[:, 0] + size[:, 0],
                "YMin": corner[:, 1],
                "YMax": corner[:, 1] + size[:, 1],
            }
            flags = {name: ["0"] * rows for name in BOX_COLUMNS if name not in values}
            frame = pl.DataFrame(values | flags).select(BOX_COLUMNS)
            frame.write_csv(file, include_header=False, float_precision=6)


if __name__ == "__main__":
    run_script(main)
