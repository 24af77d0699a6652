"""Measures every image: width, height, channels, size in bytes, MD5. Later steps see here which images are there.

Reads:  DATASET/<split>/, flat or in folders of the id's first three characters.
Writes: OUTPUT/<split>_image_params.csv (id,width,height,channel,size,md5, ordered by id), and beside it a .json that
        names the orientation; files that are empty, cut short or no image go to OUTPUT/<split>_image_problems.csv
        (path,reason).
Takes:  3,000 to 6,000 images a second on 2 cores if the disk keeps up: 5 to 10 minutes for the 1.7 million of Open
        Images. Stopped and started again it goes on where it was; run later it reads only what has changed.

    python a02_find_image_parameters.py
    python a02_find_image_parameters.py --dataset_path demo_data/data_set --splits validation
"""

import csv
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from a00_utils_and_constants import DATASET_PATH, ORIENTATION, OUTPUT_PATH, run_script
from oid import layout
from oid.files import InputError, replacing
from oid.images import find_images, image_parameters

COLUMNS = ["id", "width", "height", "channel", "size", "md5"]
PROBLEM_COLUMNS = ["path", "reason"]
BLOCK = 256  # images per task of a thread; what finished tasks found survives an interruption
TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # any file name comes through

Row = list[str]  # the values of COLUMNS or PROBLEM_COLUMNS


def main(
    *,
    dataset_path: str = DATASET_PATH,
    output_path: str = OUTPUT_PATH,
    splits: tuple[str, ...] = ("train", "validation", "test"),
    orientation: Literal["stored", "exif"] = ORIENTATION,
    threads: int = 0,
) -> None:
    """A split without a folder, or without images, is passed over.

    Args:
        dataset_path: the folder with train/, validation/ and test/.
        output_path: where the tables go.
        splits: which folders to measure.
        orientation: width and height as "stored" in the file, or turned as "exif" says; the same as in a03 and a04.
        threads: how many files to read at a time; 0 = one per core.
    """
    if threads < 0:
        raise InputError(f"--threads {threads} is negative: give 0 for one per core, or more")
    measured = 0
    for split in dict.fromkeys(splits):
        folder = Path(dataset_path) / split
        images = find_images(folder) if folder.is_dir() else {}
        if images:
            print(f"{split}: {len(images)} images in {folder}", flush=True)
            measure_split(images, output_path, split, orientation, threads or os.cpu_count() or 1)
        else:
            print(f"{split}: {folder} {'holds no images' if folder.is_dir() else 'is not there'}, passed over")
        measured += bool(images)
    if not measured:
        raise InputError(f"{dataset_path} has no images in {', '.join(splits)}: check --dataset_path and --splits")


def measure_split(images: dict[str, Path], output_path: str, split: str, orientation: str, threads: int) -> None:
    """Writes the tables of one split, and prints how many rows were found, kept from an earlier run, and refused."""
    started = time.time()
    table = layout.image_params(output_path, split)
    settings = table.with_suffix(".json")
    unfinished = table.with_name(f"{table.stem}.{orientation}.unfinished.csv")
    known = unchanged_rows(unfinished, images)
    if _orientation_of(settings) == orientation:
        known |= unchanged_rows(table, images)
    todo = {image_id: path for image_id, path in images.items() if image_id not in known}
    rows, problems = measure(todo, orientation, threads, unfinished)
    settings.unlink(missing_ok=True)  # absent, it says that the table must not be trusted
    write_table(table, COLUMNS, sorted([*known.values(), *rows]))
    os.utime(table, (started, started))  # whatever changed since then is measured again next time
    settings.write_text(json.dumps({"orientation": orientation}) + "\n")
    unfinished.unlink(missing_ok=True)
    print(f"  {len(rows)} measured, {len(known)} unchanged since the last run and kept: {table}")
    problem_table = layout.image_problems(table.parent, split)
    problem_table.unlink(missing_ok=True)
    if problems:
        write_table(problem_table, PROBLEM_COLUMNS, sorted(problems))
        print(f"  {len(problems)} cannot be used: {problem_table}")


def unchanged_rows(table: Path, images: dict[str, Path]) -> dict[str, Row]:
    """The rows of an earlier table whose image is still there, has the same size, and is older than the table."""
    if not table.is_file():
        return {}
    made = table.stat().st_mtime
    unchanged = {}
    with table.open(**TEXT) as file:
        for row in csv.reader(file):
            path = images.get(row[0]) if len(row) == len(COLUMNS) else None  # an interruption may cut the last row
            if path is None:
                continue
            status = path.stat()
            if str(status.st_size) == row[4] and status.st_mtime < made and len(row[5]) == 32:
                unchanged[row[0]] = row
    return unchanged


def measure(images: dict[str, Path], orientation: str, threads: int, journal: Path) -> tuple[list[Row], list[Row]]:
    """Measures images in threads; each finished block is appended to `journal`.

    Returns:
        Rows of COLUMNS, and rows of PROBLEM_COLUMNS for the files that cannot be used.
    """

    def measure_block(block: tuple[tuple[str, Path], ...]) -> tuple[list[Row], list[Row]]:
        rows, problems = [], []
        for image_id, path in block:
            try:
                rows.append([image_id, *map(str, image_parameters(path, orientation).values())])
            except InputError as error:
                problems.append([str(path), str(error).removeprefix(f"{path} ")])
        return rows, problems

    rows, problems = [], []
    journal.parent.mkdir(parents=True, exist_ok=True)
    pool = ThreadPoolExecutor(threads)
    try:
        with (
            journal.open("a", **TEXT) as file,
            tqdm(total=len(images), unit="image", leave=False, disable=not images) as bar,
        ):
            for found, refused in pool.map(measure_block, _blocks(images.items())):
                rows += found
                problems += refused
                csv.writer(file, lineterminator="\n").writerows(found)
                file.flush()
                bar.update(len(found) + len(refused))
    finally:
        pool.shutdown(cancel_futures=True)  # an interruption does not wait for the rest
    return rows, problems


def write_table(path: Path, columns: list[str], rows: Iterable[Row]) -> None:
    """Writes a CSV file, all or nothing."""
    with replacing(path) as temporary, temporary.open("w", **TEXT) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _orientation_of(settings: Path) -> str | None:
    """What the settings beside a table say; None where there are none."""
    try:
        return json.loads(settings.read_text())["orientation"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _blocks(items: Iterable[tuple[str, Path]]) -> Iterator[tuple[tuple[str, Path], ...]]:
    iterator = iter(items)
    while block := tuple(itertools.islice(iterator, BLOCK)):
        yield block


if __name__ == "__main__":
    run_script(main)
