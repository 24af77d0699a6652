"""Measures every image: width, height, channels, size in bytes, MD5. Later steps read here which images exist.
Then describes images and boxes, and how well anchors cover the boxes.

Reads:  DATASET/<split>/, flat or in folders of the id's first three characters; OUTPUT/level_<n>_files/ (a01).
Writes: OUTPUT/<split>_image_params.csv (id,width,height,channel,size,md5, ordered by id), and beside it a .json with
        the orientation and whether there are MD5s; files that are empty, cut short or no image go to
        OUTPUT/<split>_image_problems.csv (path,reason).
        OUTPUT/coverage_level_<n>.csv, a row per class, the worst covered by anchors first;
        OUTPUT/anchors_level_<n>.json, anchors by k-means for a03 --anchors;
        OUTPUT/data_set.html, plots of all this.
Takes:  5 to 10 minutes on 2 cores for the 1.7 million images of Open Images if the disk keeps up; with --no_md5 one or
        two. A second run continues an interrupted one, and reads only files that have changed.

    python a02_find_image_parameters.py
    python a02_find_image_parameters.py --dataset_path demo_data/data_set --splits validation
    python a02_find_image_parameters.py --image_size 320 --scales 6 --anchors official --resize warp
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import polars as pl
from tqdm import tqdm

from a00_utils_and_constants import ANCHORS, DATASET_PATH, IMAGE_SIZE, ORIENTATION, OUTPUT_PATH, SCALES
from oid import paths
from oid.anchors import grids, report
from oid.anchors.data_set_page import write_data_set_page
from oid.anchors.sampled_boxes import sample_boxes
from oid.annotations import read_class_descriptions
from oid.command_line import check_flag, run_script
from oid.files import InputError, output_file, remedy, replacing
from oid.images.find import list_images
from oid.images.table import Counts, measure_images, read_image_sizes
from oid.machine import usable_cores

SPLITS = ("train", "validation", "test")


def main(
    *,
    dataset_path: str = DATASET_PATH,
    output_path: str = OUTPUT_PATH,
    splits: tuple[str, ...] = SPLITS,
    orientation: Literal["stored", "exif"] = ORIENTATION,
    no_md5: bool = False,
    threads: int = 0,
    statistics: bool = True,
    levels: tuple[str, ...] | None = None,
    detector: Literal["m2det", "retinanet"] = "m2det",
    image_size: int | None = IMAGE_SIZE,
    scales: int | None = SCALES,
    resize: Literal["warp", "letterbox"] = "letterbox",
    anchors: str | None = ANCHORS,
    anchors_per_cell: int | None = None,
    seed: int = 0,
) -> None:
    """A split without a folder, or without images, is skipped.

    Args:
        dataset_path: the folder with train/, validation/ and test/.
        output_path: where the tables go.
        splits: which folders to measure.
        orientation: width and height as "stored" in the file, or turned as "exif" says; as in a03 and a04.
        no_md5: leave out the MD5s, which find equal images. Much faster: only the ends of each file are read.
        threads: how many files to read at a time; 0 = one per core.
        statistics: describe images, boxes and anchors; false = measure the images only.
        levels: levels of a01 to describe (default: all).
        detector: the detector of a03 whose anchors are described.
        image_size: side of the network's square in pixels (default: 192, a03's small network).
        scales: maps of the network, as in a03 (default: 4, or fewer where the image is small).
        resize: how images become square, as in a03.
        anchors: to compare with k-means: square, official, or a file, as in a03 (default: square).
        anchors_per_cell: number of anchors by k-means in each cell (default: as in --anchors).
        seed: of k-means, and of the sample of boxes from a class with more than 5,000.
    """
    check_flag(threads >= 0, "threads", threads, "0 for one per core, or more")
    least = {"image_size": (image_size, 32), "scales": (scales, 1), "anchors_per_cell": (anchors_per_cell, 1)}
    for name, (value, smallest) in least.items():
        check_flag(value is None or value >= smallest, name, value, f"{smallest} or more")
    check_flag(0 <= seed < 2**32, "seed", seed, "a number from 0 to 4294967295")
    image_size = image_size or grids.SMALL_IMAGE_SIZE
    scales = scales or grids.scales_that_fit(image_size, grids.SMALL_SCALES)
    check_flag(output_path != "", "output_path", "empty", "a folder")
    for split in splits:
        output_file(paths.image_params(output_path, split), "give another --output_path")
    described = chosen_levels(output_path, levels) if statistics else []
    sets = compared_sets(detector, image_size, scales, anchors or "square")
    how = {"orientation": orientation, "md5": not no_md5, "threads": threads or usable_cores()}
    measure = functools.partial(measure_images, **how)
    measured = [split for split in dict.fromkeys(splits) if measure_split(dataset_path, output_path, split, measure)]
    if not measured:
        raise InputError(f"{dataset_path} has no images in {', '.join(splits)}: check --dataset_path and --splits")
    if not statistics:
        return
    image_sizes = read_tables(output_path, measured)
    if not image_sizes:
        print("no image can be used, so the data set is not described")
        return
    sample = functools.partial(sample_boxes, image_size=image_size, resize=resize, seed=seed)
    reports, per_cell = [], anchors_per_cell or sets[0].grids.per_cell
    for level in described:
        names = read_class_descriptions(paths.level_class_descriptions(output_path, level))
        samples = read_boxes(output_path, level, list(names), image_sizes, sample)
        if samples:
            reports.append(report.report_level(level, samples, names, sets, per_cell=per_cell, seed=seed))
            write_report(output_path, reports[-1], per_cell, seed)
    page = Path(output_path) / "data_set.html"
    write_data_set_page(page, image_sizes, reports)
    print(f"plots: {page}")


def compared_sets(detector: str, image_size: int, scales: int, anchors: str) -> list[report.AnchorSet]:
    """The chosen anchor set of a detector, then those that have names."""
    make = {"m2det": grids.m2det_anchors, "retinanet": grids.retinanet_anchors}[detector]
    with remedy("change --scales or --image_size"):
        named = {name: make(image_size, scales, name) for name in grids.NAMED_SETS}
    with remedy("change --anchors"):
        chosen = {anchors: make(image_size, scales, anchors)} | named
    return [report.AnchorSet(Path(name).name, grid) for name, grid in chosen.items()]


def measure_split(dataset_path: str, output_path: str, split: str, measure: Callable[..., Counts]) -> bool:
    """Measures one split, and prints its counts. Returns whether it has images."""
    folder = Path(dataset_path) / split
    images = list_images(folder) if folder.is_dir() else None
    if not images or not images.names:
        print(f"{split}: {folder} {'is not there' if images is None else 'holds no images'}, skipped")
        return False
    print(f"{split}: {len(images.names)} images in {folder}", flush=True)
    table, problems = paths.image_params(output_path, split), paths.image_problems(output_path, split)
    with tqdm(total=len(images.names), unit="image", leave=False) as bar:
        counts = measure(images, table, problems, progress=bar.update)
    print(f"  {counts.measured} measured, {counts.kept} unchanged since the last run and kept: {table}")
    if counts.problems:
        print(f"  {counts.problems} cannot be used: {problems}")
    return True


def read_tables(output_path: str, measured: list[str]) -> dict[str, pl.DataFrame]:
    """Reads and describes the sizes of the images of all splits that were measured now or before."""
    tables = {split: paths.image_params(output_path, split) for split in dict.fromkeys((*SPLITS, *measured))}
    with remedy("run a02_find_image_parameters.py again"):
        sizes = {split: read_image_sizes(table) for split, table in tables.items() if table.is_file()}
    sizes = {split: table for split, table in sizes.items() if len(table)}
    for split, table in sizes.items():
        print(f"{split}: {len(table)} images")
        print_percentiles(report.percentiles("image", table.select("width", "height").to_numpy()))
    return sizes


def chosen_levels(output_path: str, levels: tuple[str, ...] | None) -> list[str]:
    """The levels of the flag, or all that a01 has made."""
    files = sorted(Path(output_path).glob("level_*_files/class-descriptions-*.csv"))
    made = [file.stem.rpartition("-")[2] for file in files]
    for level in levels or ():
        check_flag(level in made, "levels", level, f"a level of {output_path}, or run a01 with --levels {level}")
    if not made:
        print(f"{output_path} has no level of a01, so boxes and anchors are not described")
    return list(dict.fromkeys(levels or made))


def read_boxes(output_path: str, level: str, labels: list[str], image_sizes: dict, sample: Callable) -> dict:
    """Reads the boxes of a level and prints their statistics. Returns {split: boxes} of the splits that have some."""
    samples = {}
    for split, sizes in image_sizes.items():
        path = paths.level_boxes(output_path, level, split)
        if not path.is_file():
            continue
        boxes = sample(path, labels, sizes)
        drawn = f", {boxes.drawn} of them drawn by seed" if boxes.drawn < boxes.counts.sum() else ""
        print(f"level {level}, {split}: {boxes.counts.sum()} boxes{drawn}")
        left_out = {"their images were not measured": boxes.without_size, "they have no area": boxes.without_area}
        for reason, count in left_out.items():
            if count:
                print(f"  {count} boxes are left out, because {reason}")
        if len(boxes.boxes):
            samples[split] = boxes
            print_percentiles(report.percentiles("box", boxes.sizes, boxes.weights))
    return samples


def print_percentiles(percentiles: report.Percentiles) -> None:
    """Prints some percentiles of each quantity."""
    for name, values in percentiles:
        shown = [(share, v) for share, v in zip(report.PERCENTILES, values, strict=True) if share in (5, 50, 95)]
        print(f"  {name}: " + ", ".join(f"{share} % up to {value:.4g}" for share, value in shown))


def write_report(output_path: str, made: report.LevelReport, per_cell: int, seed: int) -> None:
    """Writes a level's table of classes and anchors, and prints the shares of covered boxes."""
    table, anchors = paths.level_coverage(output_path, made.level), paths.level_anchors(output_path, made.level)
    with replacing(table) as temporary:
        made.classes.write_csv(temporary)
    print(f"  worst-covered classes: {table}")
    for number in made.compared:
        shares = ", ".join(f"{coverage.share(number):.1%} of {coverage.split}" for coverage in made.coverages)
        print(f"  IoU of 0.5 or more with an anchor of {made.sets[number].title}: {shares}")
    report.write_anchor_file(anchors, made, seed)
    missing = f"no anchors by k-means: no map has boxes of {per_cell} different sizes"
    print(f"  {missing if made.clusters is None else f'anchors for a03 --anchors: {anchors}'}")


if __name__ == "__main__":
    run_script(main)
