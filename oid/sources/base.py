"""A data set in memory, whatever its format: images, boxes in pixels, classes, and the list of what was wrong."""

import collections
import contextlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from oid.columns import SOURCE_PROBLEM_COLUMNS
from oid.files import InputError, output_file
from oid.text_files import write_rows

SPLITS = ("train", "validation", "test")
SOURCE_PROBLEMS = "source_problems.csv"  # of a source or of an export; absent if there were none
Progress = Callable[[list], Iterable]  # for example tqdm; `iter` shows nothing


class FolderError(InputError):
    """The folder to be made is in use, or cannot be created."""


def require_free(folder: Path) -> None:
    """Raises a FolderError unless `folder` is empty or can be created."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise FolderError(f"{folder} is in use: give another folder")
    try:
        output_file(folder / SOURCE_PROBLEMS, "give another folder")
    except InputError as error:
        raise FolderError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Box:
    """One annotated object.

    Corners are x0, y0, x1, y1 in pixels. After `oid.sources.clean` they are edges: the first pixel of a row reaches
    from 0 to 1, x1 - x0 is the width, and the right edge of the image is its width.
    """

    class_name: str
    corners: tuple[float, float, float, float]
    place: str  # the line or the element of the annotation file
    occluded: int = 0  # 1 yes, 0 no, -1 not known, as the next two
    truncated: int = 0
    group_of: int = 0
    difficult: int = 0  # Pascal VOC's mark, 1 or 0


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One annotated image. Sizes are width and height."""

    path: Path
    name: str  # the source's name of it: folders and file, separated by `/`, without suffix
    file: Path  # the annotation file
    place: str = ""  # the image's place in the annotation file, "" for the whole file
    boxes: list[Box] = field(default_factory=list)
    declared_size: tuple[int, int] | None = None  # in the annotation file
    uncertain: set[str] = field(default_factory=set)  # classes of boxes left out: no negative example of them
    size: tuple[int, int] = (0, 0)  # of the stored pixels, after `oid.sources.clean.measure`
    md5: str = ""  # of the file in hexadecimal, likewise
    image_id: str = ""  # unique in the data set, fit for file names and CSV


Splits = dict[str, list[SourceImage]]


class Problem(NamedTuple):
    """One row of the list of problems. Problems of one kind have the same `problem` and `done`."""

    file: str
    place: str
    problem: str
    value: str
    done: str

    def __str__(self) -> str:
        return f"{self.file}{self.place and ', '}{self.place}: {self.problem} ({self.value}), {self.done}"


class Problems(list[Problem]):
    """Everything that was wrong with a source, in the order in which it was found."""

    def add(self, file: str | os.PathLike, place: str, problem: str, value: object, done: str) -> None:
        self.append(Problem(str(file), place, problem, str(value), done))

    def write(self, folder: Path) -> None:
        """Writes SOURCE_PROBLEMS. Removes an earlier one if there are no problems."""
        if self:
            write_rows(folder / SOURCE_PROBLEMS, self, SOURCE_PROBLEM_COLUMNS)
        else:
            (folder / SOURCE_PROBLEMS).unlink(missing_ok=True)

    def summary(self, folder: Path) -> list[str]:
        """Lines with the number of problems of each kind, and the file in `folder` that lists them."""
        counts = collections.Counter((row.problem, row.done) for row in self)
        lines = [f"  {count:7} x {problem}: {done}" for (problem, done), count in counts.items()]
        return [*lines, f"  each case: {folder / SOURCE_PROBLEMS}"] if lines else []


class Reader:
    """A data set on disk. The reader of a format finds the sets when it is created, and implements `read`.

    Attributes:
        corners_are_pixels: box corners name the first and the last pixel, counted from 1, instead of edges.
        ignored_class: boxes with this name are areas where any class may be; None if the format has no such areas.
        sets: the names of its sets of images, for example "train", "val", "trainval".
        problems: what was wrong so far.
        found: names of the classes of all boxes that were read.
        class_ids: {class name: number that gives its place}, if the source says so.
    """

    corners_are_pixels = False
    ignored_class: str | None = None

    def __init__(self, sets: Iterable[str]):
        self.sets = list(sets)
        self.problems = Problems()
        self.found: set[str] = set()
        self.class_ids: dict[str, int] = {}

    def read(self, name: str) -> list[SourceImage]:
        """The images of one set. What cannot be used is left out, and added to `problems`."""
        raise NotImplementedError

    def classes(self) -> list[str]:
        """The classes in the order of the network's outputs, after all sets are read.

        Those of `class_ids` by their numbers, with or without boxes; otherwise those found, by the alphabet.
        """
        return sorted(self.class_ids, key=self.class_ids.get) if self.class_ids else sorted(self.found)

    def add_box(self, image: SourceImage, class_name: str, corners: Sequence, place: str, **marks: int) -> None:
        """Adds a box, or a problem if its class or a corner is missing. Corners are x0, y0, x1, y1, numbers or text."""
        numbers = tuple(map(number, corners))
        if class_name and len(numbers) == 4 and not any(map(math.isnan, numbers)):
            self.found.add(class_name)
            image.boxes.append(Box(class_name, numbers, place, **marks))
        else:
            value = f"{class_name} {','.join(map(str, corners))}"
            self.leave_out_box(image, class_name, place, "box without a class or four numbers", value)

    def leave_out_box(self, image: SourceImage, class_name: str, place: str, problem: str, value: object) -> None:
        """Adds a problem about a box, whose class is uncertain in the image from now on."""
        self.problems.add(image.file, place, problem, value, "box left out")
        if class_name:
            image.uncertain.add(class_name)


def number(value: object) -> float:
    """A finite number, from a number or from text; otherwise NaN. JSON's true and false are no numbers."""
    if isinstance(value, bool):
        return math.nan
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if math.isfinite(result := float(value)):
            return result
    return math.nan


def read_size(width: object, height: object) -> tuple[int, int] | None:
    """Width and height from numbers or text, 0 for something else; None if both are missing."""
    if width in (None, "") and height in (None, ""):
        return None
    return tuple(0 if math.isnan(number(side)) else int(number(side)) for side in (width, height))
