"""a02's table of images while it grows: what earlier runs have found, and the rows of the one that is unfinished.

All rows are ordered by id, so tables are joined as they are read, and none is ever in memory.
"""

import csv
import heapq
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from oid.images.find import image_id

COLUMNS = ("id", "width", "height", "channel", "size", "md5")


class Known(NamedTuple):
    """A row of an earlier run, and the time from which on a change of the file makes it void."""

    row: list[str]
    time: float


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

    def write(self, text: str, last: str) -> None:
        """Appends rows, as text, of which `last` is the last image's id; an interruption leaves them there."""
        self._file.write(text)
        self._file.flush()
        os.utime(self._file.fileno(), (self._started, self._started))  # what changes from then on voids its row
        if self._behind is not None and last >= self._behind:
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


def is_unchanged(path: str, known: Known, md5: bool) -> bool:
    """Whether the file has the size of its row, is older, and the row has the MD5 if that is wanted."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    has_md5 = bool(known.row[5])
    return str(status.st_size) == known.row[4] and status.st_mtime < known.time and (has_md5 or not md5)
