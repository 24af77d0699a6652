"""Reads the CSV files that keras-retinanet takes.

    annotations:  path,x1,y1,x2,y2,class_name     a box; the corners are edges in pixels, whole or not
                  path,,,,,                       an image without objects
    classes:      class_name,id                   the ids give the order; without the file: the alphabet

Paths are relative to the file that has them. Forgiven: a header row (its names say which column is which), a byte-order
mark, UTF-16, semicolons or tabs between the values, white space around them, backslashes in paths, further columns.
The sets of a folder are its CSV files, each by its name without suffix.
"""

import csv
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

from oid.files import InputError
from oid.sources.base import Box, Picture
from oid.sources.problems import Problems

CLASS_FILES = ("classes.csv", "class_mapping.csv", "class_list.csv")
EMPTY = ("",) * 5

_NAMES = (  # of columns in a header row, in the order of the values
    {"path", "file", "filename", "file_name", "image", "image_path", "img_file", "image_file"},
    {"x1", "xmin", "x_min", "left"},
    {"y1", "ymin", "y_min", "top"},
    {"x2", "xmax", "x_max", "right"},
    {"y2", "ymax", "y_max", "bottom"},
    {"class_name", "class", "label", "name", "classname"},
)


class CsvSource:
    """A folder with annotation files and a class file, or one annotation file; see `description.Source`."""

    corners_are_pixels = False
    ignored_class = None

    def __init__(self, path: Path):
        """Opens the folder or the file.

        Raises:
            InputError: there is no CSV file, or the class file is wrong.
        """
        folder = path if path.is_dir() else path.parent
        files = sorted(folder.glob("*.csv")) if path.is_dir() else [path]
        self._files = {file.stem: file for file in files if file.name.lower() not in CLASS_FILES}
        if not self._files:
            raise InputError(f"{path} has no annotation file: expected annotations.csv, path,x1,y1,x2,y2,class_name")
        self.sets = list(self._files)
        self._classes: dict[str, int] | None = None
        self._found: set[str] = set()
        class_file = next((file for file in sorted(folder.glob("*.csv")) if file.name.lower() in CLASS_FILES), None)
        if class_file is None:
            print(f"{folder} has none of {', '.join(CLASS_FILES)}: the classes are those that occur")
        else:
            self._classes = read_classes(class_file)

    def classes(self) -> list[str]:
        """By their ids in the class file, or all that occur in the order of the alphabet."""
        return sorted(self._found) if self._classes is None else sorted(self._classes, key=self._classes.get)

    def read(self, name: str, problems: Problems) -> list[Picture]:
        """See `description.Source`."""
        file = self._files[name]
        pictures: dict[str, Picture] = {}
        order = tuple(range(6))
        first = True
        for line, row in read_rows(file):
            place = f"line {line}"
            if first:
                first = False
                if header := _header(row):
                    order = header
                    problems.add(file, place, "header row", ",".join(row), "not taken as a box")
                    continue
            values = [row[index].strip() if index < len(row) else "" for index in order]
            if not values[0] or len(row) < 6:
                expected = "a row needs path,x1,y1,x2,y2,class_name"
                problems.add(file, place, f"row without all values: {expected}", ",".join(row), "left out")
                continue
            picture = self._picture(pictures, values[0], file, place, problems)
            if tuple(values[1:]) != EMPTY:
                self._add_box(picture, values, place, problems)
        return list(pictures.values())

    def _picture(
        self, pictures: dict[str, Picture], spelled: str, file: Path, place: str, problems: Problems
    ) -> Picture:
        """The picture of that path, made where it is new."""
        backslashes = "\\" in spelled and not os.path.isfile(file.parent / spelled)
        path = os.path.normpath(spelled.replace("\\", "/") if backslashes else spelled)
        if path not in pictures:
            if backslashes:
                problems.add(file, place, "path with backslashes", spelled, "read as slashes")
            name = os.path.splitext(path)[0].replace(os.sep, "/")
            pictures[path] = Picture(file.parent / path, name, file, place)
        return pictures[path]

    def _add_box(self, picture: Picture, values: list[str], place: str, problems: Problems) -> None:
        """Adds the box of a row, or tells why not."""
        class_name = values[5]
        try:
            x0, y0, x1, y1 = (float(value) for value in values[1:5])
            if not all(map(math.isfinite, (x0, y0, x1, y1))) or not class_name:
                raise ValueError
        except ValueError:
            problem = "corner that is no number" if class_name else "box without a class"
            problems.add(picture.file, place, problem, ",".join(values[1:]), "box left out")
            if class_name:
                picture.uncertain.add(class_name)
            return
        if self._classes is None:
            self._found.add(class_name)
        picture.boxes.append(Box(class_name, (x0, y0, x1, y1), place))


def read_classes(path: Path) -> dict[str, int]:
    """Reads {name: id} from rows `class_name,id`; a first row whose id is no number is a header.

    Raises:
        InputError: a row is something else, a name or an id occurs twice, or there is no row.
    """
    classes: dict[str, int] = {}
    for number, (line, row) in enumerate(read_rows(path)):
        name, text = (row[0].strip(), row[1].strip()) if len(row) > 1 else ("", "")
        if number == 0 and name and text and not re.fullmatch(r"[-+]?\d+", text):
            continue
        if not name or not re.fullmatch(r"\d+", text):
            raise InputError(f"{path}, line {line}: {','.join(row)!r} is not class_name,id: give a name and a number")
        if name in classes and classes[name] == int(text):
            continue
        if name in classes or int(text) in classes.values():
            what = f"the class {name!r}" if name in classes else f"the id {text}"
            raise InputError(f"{path}, line {line}: {what} is there already: each class needs one id of its own")
        classes[name] = int(text)
    if not classes:
        raise InputError(f"{path} has no class: expected rows class_name,id")
    return classes


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, values) of the rows that are not empty.

    Raises:
        InputError: the file cannot be read, or is neither UTF-8 nor UTF-16 text, or no CSV.
    """
    try:
        with open(path, "rb") as file:
            encoding = "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        with open(path, encoding=encoding, newline="") as file:
            rows = csv.reader(file, delimiter=_delimiter(file), strict=True)
            for row in rows:
                if any(value.strip() for value in row):
                    yield rows.line_num, row
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeError:
        raise InputError(f"{path}{_first_bad_line(path, encoding)}: save it as UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: not CSV ({error}): check the quotes") from None


def _first_bad_line(path: Path, encoding: str) -> str:
    """Where the text is not in its encoding, as words that follow the file's name."""
    if encoding == "utf-16":
        return " is not the UTF-16 that its first bytes say"
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return f", line {number}: not UTF-8"
    return " is not UTF-8"


def _delimiter(file) -> str:
    """What stands between the values: a comma, or what the first row has more of; the file is at its start again."""
    first = next((line for line in file if line.strip()), "")
    file.seek(0)
    return max(",;\t", key=first.count)


def _header(row: list[str]) -> tuple[int, ...] | None:
    """Where the six values stand, if the row is a header: its corners are words; None for an ordinary row."""
    names = [value.strip().strip("#").lower() for value in row]
    places = [[index for index, name in enumerate(names) if name in known] for known in _NAMES]
    if all(len(found) == 1 for found in places):
        return tuple(found[0] for found in places)
    words = [re.fullmatch(r"[a-z][a-z_ ]*\d?", name) for name in names[1:5]]
    return tuple(range(6)) if len(words) == 4 and all(words) and "nan" not in names and "inf" not in names else None
