"""Measures every image: width, height, channels, size in bytes, MD5. Later steps see here which images are there.

Reads:  DATASET/<split>/, flat or in folders of the id's first three characters.
Writes: OUTPUT/<split>_image_params.csv (id,width,height,channel,size,md5, ordered by id), and beside it a .json that
        names the orientation, and whether there are MD5s; files that are empty, cut short or no image go to
        OUTPUT/<split>_image_problems.csv (path,reason).
Takes:  3,000 to 6,000 images a second on 2 cores if the disk keeps up: 5 to 10 minutes for the 1.7 million of Open
        Images. Stopped and started again it goes on where it was; run later it reads only what has changed.

    python a02_find_image_parameters.py
    python a02_find_image_parameters.py --dataset_path demo_data/data_set --splits validation
"""

import collections
import csv
import heapq
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

from a00_utils_and_constants import DATASET_PATH, ORIENTATION, OUTPUT_PATH, run_script
from oid import layout
from oid.files import InputError, replacing
from oid.images import ImageList, image_id, image_parameters, list_images

COLUMNS = ["id", "width", "height", "channel", "size", "md5"]
PROBLEM_COLUMNS = ["path", "reason"]
BLOCK = 256  # images per task of a thread; what finished tasks found survives an interruption
AHEAD = 8  # tasks per thread that wait or are done: memory does not grow with the number of images


def main(
    *,
    dataset_path: str = DATASET_PATH,
    output_path: str = OUTPUT_PATH,
    splits: tuple[str, ...] = ("train", "validation", "test"),
    orientation: Literal["stored", "exif"] = ORIENTATION,
    no_md5: bool = False,
    threads: int = 0,
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
    """
    if threads < 0:
        raise InputError(f"--threads {threads} is negative: give 0 for one per core, or more")
    way = Way(orientation, not no_md5, threads or os.cpu_count() or 1)
    measured = [split for split in dict.fromkeys(splits) if measure_split(dataset_path, output_path, split, way)]
    if not measured:
        raise InputError(f"{dataset_path} has no images in {', '.join(splits)}: check --dataset_path and --splits")


# === Measuring ========================================================================================================
class Way(NamedTuple):
    """How to measure: sides as "stored" or turned as "exif" says, whether MD5s are wanted, in how many threads."""

    orientation: str
    md5: bool
    threads: int


class Known(NamedTuple):
    """A row of an earlier run, and the time from which on a change of the file makes it void."""

    row: list[str]
    time: float


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
    table, problem_table = layout.image_params(output_path, split), layout.image_problems(output_path, split)
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


def write_rows(
    images: ImageList, known: Iterator[Known], way: Way, journal: "Journal", problems
) -> tuple[int, int, int]:
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
                journal.write(found)
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
        if known and _is_unchanged(path, known, way.md5):
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


# === What earlier runs have found =====================================================================================
class Journal:
    """The rows of an unfinished run, in the order of the ids: what the next run goes on from, and at last the table.

    A run that follows an interrupted one writes a new journal, which takes the old one's place as soon as it has come
    as far.
    """

    def __init__(self, path: Path, started: float):
        self.path = path
        self._new = path.with_suffix(".new.csv")
        self._started = started
        self._behind = max((known.row[0] for known in known_rows([path])), default=None)  # id to be passed

    def __enter__(self) -> "Journal":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        place = self.path if self._behind is None else self._new
        self._file = place.open("w", encoding="utf-8", newline="")
        self._file.write(",".join(COLUMNS) + "\n")
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def write(self, found: Found) -> None:
        """Appends rows; they are on the disk afterwards."""
        self._file.write(found.text)
        self._file.flush()
        os.utime(self._file.fileno(), (self._started, self._started))  # what changes from then on voids its row
        if self._behind is not None and found.last >= self._behind:
            self._take_place()

    def finished(self) -> Path:
        """The file that has all rows."""
        if self._behind is not None:
            self._take_place()
        return self.path

    def _take_place(self) -> None:
        os.replace(self._new, self.path)
        self._behind = None


def known_rows(tables: Iterable[Path]) -> Iterator[Known]:
    """The rows of tables that are each ordered by id, merged; of one id the later tables' come last."""
    return heapq.merge(*map(_rows_of, tables), key=lambda known: known.row[0])


def with_known(names: Iterable[str], known: Iterator[Known]) -> Iterator[tuple[str, Known | None]]:
    """Joins each image with its last known row, None where it has none; both are ordered by id."""
    candidate = next(known, None)
    for name in names:
        this, match = image_id(name), None
        while candidate and candidate.row[0] <= this:
            if candidate.row[0] == this:
                match = candidate
            candidate = next(known, None)
        yield name, match


def _rows_of(table: Path) -> Iterator[Known]:
    if not table.is_file():
        return
    with table.open(encoding="utf-8", errors="replace", newline="") as file:
        made = os.fstat(file.fileno()).st_mtime
        rows = csv.reader(file)
        try:
            next(rows, None)
            # an interruption may cut the last row
            yield from (Known(row, made) for row in rows if len(row) == len(COLUMNS) and len(row[5]) in (0, 32))
        except csv.Error:  # damaged: what follows is measured again
            return


def _is_unchanged(path: str, known: Known, md5: bool) -> bool:
    """Whether the file has the size of its row, is older, and the row has the MD5 if that is wanted."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    has_md5 = bool(known.row[5])
    return str(status.st_size) == known.row[4] and status.st_mtime < known.time and (has_md5 or not md5)


def _orientation_of(settings: Path) -> str | None:
    """What the settings beside a table say; None where there are none."""
    try:
        return json.loads(settings.read_text())["orientation"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _printable(path: str) -> str:
    """A path as UTF-8 can have it."""
    return path.encode("utf-8", "backslashreplace").decode()


if __name__ == "__main__":
    run_script(main)
