"""What was wrong with a source and what was done about it: every case in a file, their counts on the screen."""

import collections
import csv
import os
from pathlib import Path

from oid.files import replacing

COLUMNS = ("file", "place", "problem", "value", "done")


class Problems:
    """Collects cases in the order in which they are found.

    Attributes:
        rows: a tuple of COLUMNS for each case.
    """

    def __init__(self):
        self.rows: list[tuple[str, str, str, str, str]] = []

    def add(self, file: str | os.PathLike, place: str, problem: str, value: object, done: str) -> None:
        """Adds a case: `problem` and `done` are the same words for all of a kind, `value` is what stood there."""
        self.rows.append((str(file), place, problem, str(value), done))

    def sentence(self) -> str:
        """The first case in words, for a message; "" where there is none."""
        if not self.rows:
            return ""
        file, place, problem, value, done = self.rows[0]
        return f"{file}{', ' if place else ''}{place}: {problem}{f' ({value})' if value else ''}, {done}"

    def write(self, path: str | os.PathLike) -> None:
        """Writes all cases as a CSV file; without any removes the file."""
        if not self.rows:
            Path(path).unlink(missing_ok=True)
            return
        with replacing(path) as temporary, open(temporary, "w", **_TEXT) as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *self.rows])

    def show(self, path: str | os.PathLike) -> None:
        """Prints how many cases there are of each kind, and the file that has them."""
        for (problem, done), count in collections.Counter((row[2], row[4]) for row in self.rows).items():
            print(f"  {count:7} x {problem}: {done}")
        if self.rows:
            print(f"  each case: {path}")


_TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # any file name comes through
