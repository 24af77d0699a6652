"""Measures every image: width, height, channels, size in bytes, MD5. Later steps see here which images are there.
Then says what images and boxes are like, and how well anchors cover the boxes.

Reads:  DATASET/<split>/, flat or in folders of the id's first three characters; for what it says of boxes
        OUTPUT/level_<n>_files/ (a01).
Writes: OUTPUT/<split>_image_params.csv (id,width,height,channel,size,md5, ordered by id), and beside it a .json that
        names the orientation, and whether there are MD5s; files that are empty, cut short or no image go to
        OUTPUT/<split>_image_problems.csv (path,reason).
        OUTPUT/coverage_level_<n>.csv, a row per class, those that anchors cover worst first;
        OUTPUT/anchors_level_<n>.json, anchors by k-means, which a03 takes by --anchors;
        OUTPUT/data_set.html, plots of all this.
Takes:  3,000 to 6,000 images a second on 2 cores if the disk keeps up: 5 to 10 minutes for the 1.7 million of Open
        Images; with --no_md5 more than 20,000. Stopped and started again it goes on where it was; run later it reads
        only what has changed.

    python a02_find_image_parameters.py
    python a02_find_image_parameters.py --dataset_path demo_data/data_set --splits validation
    python a02_find_image_parameters.py --image_size 320 --scales 6 --anchors official --resize warp
"""

import collections
import csv
import io
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

from tqdm import tqdm

from a00_utils_and_constants import ANCHORS, DATASET_PATH, IMAGE_SIZE, ORIENTATION, OUTPUT_PATH, SCALES
from oid import paths
from oid.anchors.data_set_page import LevelSection, title_of, write_page
from oid.anchors.grids import NAMED_SETS, anchor_settings, settings_of_sizes, smallest_image
from oid.anchors.report import (
    PERCENTILES,
    AnchorSet,
    Coverage,
    class_table,
    clustered,
    image_rows,
    measure,
    size_rows,
    write_class_table,
)
from oid.anchors.sampled_boxes import SampledBoxes, read_image_sizes, sample_boxes
from oid.annotations import read_class_descriptions
from oid.command_line import run_script
from oid.files import InputError, replacing
from oid.images.find import ImageList, image_id, list_images
from oid.images.read import image_parameters
from oid.images.table import Journal, Known, is_unchanged, known_rows, with_known
from oid.machine import usable_cores

SPLITS = ("train", "validation", "test")
PROBLEM_COLUMNS = ["path", "reason"]
BLOCK = 256  # images per task of a thread; what finished tasks found survives an interruption
AHEAD = 8  # tasks per thread that wait or are done: memory does not grow with the number of images
SMALLEST = 32  # pixels of a network's square
SMALL_IMAGE_SIZE, SMALL_SCALES = 192, 4  # of the network that a03 takes for small data, or few cores
PER_CELL = (1, 2, 3, 6)  # numbers of anchors for which k-means shows what they would cover
MOST_PER_CLASS = 5_000  # boxes: 19 of 20 shares are off by 1.4 percentage points at most


def main(
    *,
    dataset_path: str = DATASET_PATH,
    output_path: str = OUTPUT_PATH,
    splits: tuple[str, ...] = SPLITS,
    orientation: Literal["stored", "exif"] = ORIENTATION,
    no_md5: bool = False,
    threads: int = 0,
    # what is said of boxes and anchors
    statistics: bool = True,
    levels: tuple[str, ...] | None = None,
    image_size: int | None = IMAGE_SIZE,
    scales: int | None = SCALES,
    resize: Literal["warp", "letterbox"] = "letterbox",
    anchors: str | None = ANCHORS,
    anchors_per_cell: int | None = None,
    seed: int = 0,
) -> None:
    """A split without a folder, or without images, is passed over.

    Args:
        dataset_path: the folder with train/, validation/ and test/.
        output_path: where the tables go.
        splits: which folders to measure.
        orientation: width and height as "stored" in the file, or turned as "exif" says; the same as in a03 and a04.
        no_md5: leave the column md5 empty, by which equal images are found: then only the beginning and the end of each
            file are read, in a fraction of the time.
        threads: how many files to read at a time; 0 = one per core.
        statistics: write what images and boxes are like, and anchors; false = measure the images only.
        levels: of a01, for which this is done (default: all that it has made).
        image_size: side of the network's square in pixels (default: 192, a03's small network).
        scales: maps of the network, as in a03 (default: 4, or fewer where the image is small).
        resize: how pictures become square, as in a03.
        anchors: those that are compared with k-means: square, official, or a file, as in a03 (default: square).
        anchors_per_cell: so many by k-means in each cell (default: as many as --anchors has).
        seed: of the boxes that are drawn where a class has more than 5,000, and of k-means.
    """
    if threads < 0:
        raise InputError(f"--threads {threads} is negative: give 0 for one per core, or more")
    if image_size is not None and image_size < SMALLEST:
        raise InputError(f"--image_size {image_size}: give {SMALLEST} or more")
    if anchors_per_cell is not None and anchors_per_cell < 1:
        raise InputError(f"--anchors_per_cell {anchors_per_cell}: give 1 or more")
    if seed < 0 or seed >= 2**32:
        raise InputError(f"--seed is {seed}: it must be from 0 to 4294967295")
    sets = compared_sets(image_size or SMALL_IMAGE_SIZE, scales, anchors or "square")
    way = Way(orientation, not no_md5, threads or usable_cores())
    measured = [split for split in dict.fromkeys(splits) if measure_split(dataset_path, output_path, split, way)]
    if not measured:
        raise InputError(f"{dataset_path} has no images in {', '.join(splits)}: check --dataset_path and --splits")
    if statistics:
        view = View(image_size or SMALL_IMAGE_SIZE, resize, sets, anchors_per_cell or sets[0].per_cell, seed)
        write_statistics(output_path, measured, levels, view)


# === Measuring ========================================================================================================
class Way(NamedTuple):
    """How to measure: sides as "stored" or turned as "exif" says, whether MD5s are wanted, in how many threads."""

    orientation: str
    md5: bool
    threads: int


class Found(NamedTuple):
    """What one task found.

    Attributes:
        text: rows of COLUMNS as the table has them.
        kept: how many of them are of an earlier run.
        measured: how many are new.
        problems: rows of PROBLEM_COLUMNS.
        last: id of its last image.
    """

    text: str
    kept: int
    measured: int
    problems: list[tuple[str, str]]
    last: str


def measure_split(dataset_path: str, output_path: str, split: str, way: Way) -> bool:
    """Writes the tables of one split, and prints how many rows were found, kept from an earlier run, and refused.

    Returns:
        Whether it has images.
    """
    started = time.time()
    folder = Path(dataset_path) / split
    images = list_images(folder) if folder.is_dir() else None
    if not images or not images.names:
        print(f"{split}: {folder} {'is not there' if images is None else 'holds no images'}, passed over")
        return False
    print(f"{split}: {len(images.names)} images in {folder}", flush=True)
    table, problem_table = paths.image_params(output_path, split), paths.image_problems(output_path, split)
    settings = table.with_suffix(".json")
    journal = Journal(table.with_name(f"{table.stem}.{way.orientation}.unfinished.csv"), started)
    sources = [table, journal.path] if _orientation_of(settings) == way.orientation else [journal.path]
    with replacing(problem_table) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        problems = csv.writer(file, lineterminator="\n")
        problems.writerows([PROBLEM_COLUMNS, *((_printable(path), reason) for path, reason in images.passed_over)])
        kept, measured, refused = write_rows(images, known_rows(sources), way, journal, problems)
    refused += len(images.passed_over)
    if not refused:
        problem_table.unlink()
    settings.unlink(missing_ok=True)  # absent, it says that the table must not be trusted
    os.replace(journal.finished(), table)
    os.utime(table, (started, started))  # whatever changed since then is measured again next time
    settings.write_text(json.dumps({"orientation": way.orientation, "md5": way.md5}) + "\n")
    print(f"  {measured} measured, {kept} unchanged since the last run and kept: {table}")
    if refused:
        print(f"  {refused} cannot be used: {problem_table}")
    return True


def write_rows(images: ImageList, known: Iterator[Known], way: Way, journal: Journal, problems) -> tuple[int, int, int]:
    """Measures in threads what is not known, and writes all rows in the order of their ids.

    Args:
        images: what is there.
        known: rows of earlier runs, ordered by id.
        way: how to measure.
        journal: takes the rows.
        problems: a csv.writer that takes the paths and reasons.

    Returns:
        The number of kept rows, of new rows, and of problems.
    """
    totals = [0, 0, 0]
    pool = ThreadPoolExecutor(way.threads)
    try:
        with journal, tqdm(total=len(images.names), unit="image", leave=False) as bar:
            blocks = in_blocks(with_known(images.names, known))
            for found in in_order(pool, lambda block: measure_block(images.folder, block, way), blocks, way.threads):
                journal.write(found.text, found.last)
                problems.writerows(found.problems)
                counts = found.kept, found.measured, len(found.problems)
                totals = [sum(pair) for pair in zip(totals, counts, strict=True)]
                bar.update(sum(counts))
    finally:
        pool.shutdown(cancel_futures=True)  # an interruption does not wait for the rest
    return tuple(totals)


def measure_block(folder: str, block: Iterable[tuple[str, Known | None]], way: Way) -> Found:
    """Measures the images of a block that have changed, or are not known."""
    rows, problems, kept = [], [], 0
    for name, known in block:
        path = f"{folder}/{name}"
        if known and is_unchanged(path, known, way.md5):
            rows.append(known.row)
            kept += 1
            continue
        try:
            rows.append((image_id(name), *image_parameters(path, way.orientation, md5=way.md5)))
        except InputError as error:
            problems.append((path, str(error).removeprefix(f"{path} ")))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return Found(text.getvalue(), kept, len(rows) - kept, problems, image_id(name))


def in_order(pool: ThreadPoolExecutor, function: Callable, tasks: Iterable, threads: int) -> Iterator:
    """The results of a function in the order of its tasks, few of which are taken before they are needed."""
    waiting = collections.deque()
    for task in tasks:
        waiting.append(pool.submit(function, task))
        if len(waiting) >= AHEAD * threads:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def in_blocks(items: Iterable) -> Iterator[list]:
    """Lists of BLOCK items, the last one shorter."""
    iterator = iter(items)
    while block := list(itertools.islice(iterator, BLOCK)):
        yield block


def _orientation_of(settings: Path) -> str | None:
    """What the settings beside a table say; None where there are none."""
    try:
        return json.loads(settings.read_text())["orientation"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _printable(path: str) -> str:
    """A path as UTF-8 can have it."""
    return path.encode("utf-8", "backslashreplace").decode()


# === What the data set is like ========================================================================================
class View(NamedTuple):
    """How a network looks at the data.

    Attributes:
        image_size: side of its square in pixels.
        resize: "letterbox" or "warp".
        sets: anchor sets; the first is compared with k-means.
        per_cell: anchors in each cell by k-means.
        seed: of samples, and of k-means.
    """

    image_size: int
    resize: str
    sets: list[AnchorSet]
    per_cell: int
    seed: int


def compared_sets(image_size: int, scales: int | None, anchors: str) -> list[AnchorSet]:
    """The chosen anchor set, then those that have names.

    Args:
        image_size: side of the network's square in pixels.
        scales: number of maps; None = those of a03's small network, as far as they fit.
        anchors: square, official, or a file.
    """
    if scales is None:
        scales = SMALL_SCALES
        while scales > 1 and smallest_image(scales) > image_size:
            scales -= 1
    elif scales < 1:
        raise InputError(f"--scales {scales}: give 1 or more")
    names = dict.fromkeys((anchors, *NAMED_SETS))
    return [AnchorSet(Path(name).name, anchor_settings(image_size, scales, anchors=name)) for name in names]


def write_statistics(output_path: str, measured: list[str], levels: tuple[str, ...] | None, view: View) -> None:
    """Writes tables and anchors of the levels, and the page, of all splits that were measured now or before."""
    tables = {split: paths.image_params(output_path, split) for split in dict.fromkeys((*SPLITS, *measured))}
    image_sizes = {split: read_image_sizes(path) for split, path in tables.items() if path.is_file()}
    image_sizes = {split: sizes for split, sizes in image_sizes.items() if len(sizes)}
    if not image_sizes:
        print("not one image can be used, so nothing is said of the data set")
        return
    for split, sizes in image_sizes.items():
        print(f"{split}: {len(sizes)} images")
        print_percentiles(image_rows(sizes))
    made = paths.levels_made(output_path)
    for level in levels or ():
        if level not in made:
            raise InputError(f"--levels {level}: {output_path} has no such level: run a01 with --levels {level}")
    if not made:
        print(f"{output_path} has no level of a01, so nothing is said of boxes and anchors")
    sections = [level_section(output_path, level, image_sizes, view) for level in dict.fromkeys(levels or made)]
    page = paths.data_set_page(output_path)
    sections = [section for section in sections if section]
    write_page(page, image_sizes=image_sizes, sections=sections, image_size=view.image_size, resize=view.resize)
    print(f"plots: {page}")


def level_section(output_path: str, level: str, image_sizes: dict, view: View) -> LevelSection | None:
    """Measures the boxes of a level, finds anchors for it, writes both, and prints the most important of it.

    Returns:
        What the page says of it; None where no split that was measured has boxes of the level.
    """
    names = read_class_descriptions(paths.level_class_descriptions(output_path, level))
    samples = {}
    for split, sizes in image_sizes.items():
        path = paths.level_boxes(output_path, level, split)
        if path.is_file():
            how = {"image_size": view.image_size, "letterbox": view.resize == "letterbox", "seed": view.seed}
            boxes = sample_boxes(path, list(names), sizes, most_per_class=MOST_PER_CLASS, **how)
            print_sample(level, split, boxes)
            if len(boxes.boxes):
                samples[split] = boxes
                print_percentiles(size_rows(boxes, view.image_size))
    if not samples:
        return None
    first = next(iter(samples.values()))  # train's, where it was measured
    sides = view.sets[0].settings["feature_map_sides"]
    found = clustered(first, sides, sorted({view.per_cell, *PER_CELL}), view.seed)
    sets = view.sets + [AnchorSet("k-means", settings_of_sizes(sizes, sides)) for sizes in found.values()]
    after = len(view.sets) + list(found).index(view.per_cell) if view.per_cell in found else None
    coverages = [measure(split, boxes, sets) for split, boxes in samples.items()]
    table = class_table(coverages, names, 0, after, view.image_size)
    path = paths.level_coverage(output_path, level)
    write_class_table(path, table)
    print(f"  worst-covered classes: {path}")
    for number in (0, after):
        shares = [f"{coverage.share(number):.1%} of {coverage.split}" for coverage in coverages if number is not None]
        if shares:
            print(f"  IoU of 0.5 or more with an anchor of {title_of(sets[number])}: {', '.join(shares)}")
    write_anchors(paths.level_anchors(output_path, level), level, sets, after, coverages[0], view)
    classes = table.filter(table["split"] == coverages[0].split)
    return LevelSection(level, coverages, sets, 0, after, classes, path.name)


def print_sample(level: str, split: str, boxes: SampledBoxes) -> None:
    """Says how many boxes are looked at, and which are left out."""
    drawn = f", {boxes.drawn} of them drawn by seed" if boxes.drawn < boxes.counts.sum() else ""
    print(f"level {level}, {split}: {boxes.counts.sum()} boxes{drawn}")
    if boxes.without_size:
        print(f"  {boxes.without_size} boxes are left out, because their images were not measured")
    if boxes.without_area:
        print(f"  {boxes.without_area} boxes are left out, because they have no area")


def print_percentiles(rows: list[tuple[str, list[float]]]) -> None:
    """A line for each quantity, with some of its `PERCENTILES`."""
    for name, values in rows:
        of = dict(zip(PERCENTILES, values, strict=True))
        print(f"  {name}: " + ", ".join(f"{share} % up to {of[share]:.4g}" for share in (5, 50, 95)))


def write_anchors(
    path: Path, level: str, sets: list[AnchorSet], chosen: int | None, coverage: Coverage, view: View
) -> None:
    """Writes the file for a03; where there are too few boxes for k-means it removes that of an earlier run."""
    if chosen is None:
        path.unlink(missing_ok=True)
        print(f"  no anchors by k-means: no map has boxes of {view.per_cell} different sizes")
        return
    content = {
        "made_by": f"a02_find_image_parameters.py, k-means over {coverage.split} of level {level}, seed {view.seed}",
        "image_size": view.image_size,
        "resize": view.resize,
        "scales": len(sets[chosen].settings["sizes"]),
        "anchors_per_cell": view.per_cell,
        "covered": {sets[number].name: round(coverage.share(number), 4) for number in (0, chosen)},
        "sizes": sets[chosen].settings["sizes"],
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"  anchors for a03 --anchors: {path}")


if __name__ == "__main__":
    run_script(main)
