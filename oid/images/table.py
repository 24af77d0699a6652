"""The table of a folder's images: measured in threads, resumed after an interruption, unchanged rows kept."""

import contextlib
import csv
import functools
import glob
import io
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import polars as pl

from oid.annotations import csv_errors, scan_rows
from oid.columns import IMAGE_PARAMETER_COLUMNS, IMAGE_PROBLEM_COLUMNS
from oid.files import InputError, replacing, require_file
from oid.images.find import ImageList, image_id
from oid.images.read import Orientation, image_parameters
from oid.machine import map_in_threads

BLOCK = 256  # images per task of a thread; finished tasks survive an interruption


class Counts(NamedTuple):
    """How many images were measured, how many rows of earlier runs were kept, and how many files cannot be used."""

    measured: int
    kept: int
    problems: int


def measure_images(
    images: ImageList,
    table: Path,
    problem_table: Path,
    *,
    orientation: Orientation,
    md5: bool,
    threads: int,
    progress: Callable[[int], object],
) -> Counts:
    """Writes the table of a folder's images, and beside it a .json with the orientation and whether there are MD5s.

    Keeps the rows of an earlier table, and of interrupted runs, if the file has not changed since.

    Args:
        images: of the folder.
        table: CSV with IMAGE_PARAMETER_COLUMNS, a row for each usable image.
        problem_table: CSV with IMAGE_PROBLEM_COLUMNS, a row for each other file; removed if there is none.
        orientation: width and height as "stored", or turned as "exif" says.
        md5: whether MD5s are wanted.
        threads: how many files are read at a time.
        progress: called with the number of images done since the last call.
    """
    started = time.time()
    settings, name = table.with_suffix(".json"), f"{table.stem}.{orientation}.unfinished"
    interrupted = sorted(table.parent.glob(f"{glob.escape(name)}-*.csv"))  # in the order of the runs
    sources = [table, *interrupted] if _orientation_of(settings) == orientation else interrupted
    names = pl.DataFrame(
        {"name": images.names, "id": map(image_id, images.names)}, schema=dict.fromkeys(("name", "id"), pl.String)
    )
    blocks = names.join(_read_rows(sources), on="id", how="left", maintain_order="left").iter_slices(BLOCK)
    measure = functools.partial(_measure_block, images.folder, orientation, md5)
    totals = Counts(0, 0, len(images.passed_over))
    unfinished = table.with_name(f"{name}-{time.time_ns()}.csv")
    with (
        replacing(problem_table) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as problem_file,
        unfinished.open("w", encoding="utf-8", newline="") as file,
        contextlib.closing(map_in_threads(measure, blocks, threads)) as done,
    ):
        problems = csv.writer(problem_file, lineterminator="\n")
        problems.writerows([IMAGE_PROBLEM_COLUMNS, *images.passed_over])
        file.write(",".join(IMAGE_PARAMETER_COLUMNS) + "\n")
        for rows, bad, counts in done:
            file.write(rows)
            file.flush()
            os.utime(file.fileno(), (started, started))  # files that change from now on are measured again
            problems.writerows(bad)
            totals = Counts(*map(sum, zip(totals, counts, strict=True)))
            progress(sum(counts))
    if not totals.problems:
        problem_table.unlink()
    settings.unlink(missing_ok=True)  # without it the table is not trusted
    os.replace(unfinished, table)
    os.utime(table, (started, started))
    settings.write_text(json.dumps({"orientation": orientation, "md5": md5}) + "\n")
    for path in interrupted:
        path.unlink()
    return totals


def _measure_block(
    folder: str, orientation: Orientation, md5: bool, block: pl.DataFrame
) -> tuple[str, list[tuple[str, str]], Counts]:
    """Measures the images of a block that have no known row, or have changed since.

    Returns:
        The rows as CSV text, (path, reason) of the files that cannot be used, and the counts.
    """
    rows, problems, kept = [], [], 0
    for name, *known, measured in block.iter_rows():
        path = f"{folder}/{name}"
        if measured and _is_unchanged(path, *known[-2:], measured, md5):
            rows.append(known)
            kept += 1
            continue
        try:
            rows.append((image_id(name), *image_parameters(path, orientation, md5=md5)))
        except InputError as error:
            problems.append((path, str(error).removeprefix(f"{path} ")))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue(), problems, Counts(len(rows) - kept, kept, len(problems))


def _is_unchanged(path: str, size: str | None, digest: str | None, measured: float, md5: bool) -> bool:
    """Whether the file has the size of its row, is older, and the row has the MD5 if that is wanted."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return str(status.st_size) == size and status.st_mtime < measured and (bool(digest) or not md5)


def read_image_sizes(path: str | os.PathLike) -> pl.DataFrame:
    """Reads `id` (String), `width` and `height` (UInt32) from a table of images.

    Raises:
        InputError: no such file or column, or a size is not a positive whole number.
    """
    path = require_file(path, "expected a table of image sizes")
    numbers = [pl.col(name).cast(pl.UInt32, strict=False) for name in ("width", "height")]
    with csv_errors(path):
        table = scan_rows(path, ("id", "width", "height")).select("line", "id", *numbers).collect(engine="streaming")
    bad = table.filter(~((pl.col("width") > 0) & (pl.col("height") > 0)).fill_null(False))
    for line, name, *_ in bad.head(1).iter_rows():
        raise InputError(f"{path}, line {line}: width or height of {name!r} is not a positive number")
    return table.drop("line")


# === Rows of earlier runs =============================================================================================
def _read_rows(tables: Iterable[Path]) -> pl.DataFrame:
    """Reads IMAGE_PARAMETER_COLUMNS and when they were `measured`: for each id the last row, without damaged ones."""
    schema = dict.fromkeys(IMAGE_PARAMETER_COLUMNS, pl.String)
    found = [pl.DataFrame(schema=schema | {"measured": pl.Float64})]
    for table in filter(Path.is_file, tables):
        with contextlib.suppress(pl.exceptions.PolarsError):
            rows = pl.read_csv(table, schema=schema, encoding="utf8-lossy", truncate_ragged_lines=True)
            whole = rows.filter(pl.col("md5").is_null() | (pl.col("md5").str.len_bytes() == 32))
            found.append(whole.with_columns(measured=pl.lit(table.stat().st_mtime)))
    return pl.concat(found).unique("id", keep="last")


def _orientation_of(settings: Path) -> str | None:
    """The orientation that the settings beside a table name; None without them."""
    try:
        return json.loads(settings.read_text())["orientation"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
