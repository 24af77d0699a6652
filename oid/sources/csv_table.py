"""Reads the CSV files of keras-retinanet.

    annotations:  path,x1,y1,x2,y2,class_name     a box; the corners are edges in pixels, whole or not
                  path,,,,,                       an image without objects
    classes:      class_name,id                   the ids give the order; without this file: the alphabet

Paths are relative to the CSV file. Accepted as well: a header row (its names say which column is which), a byte-order
mark, UTF-16, semicolons or tabs between the values, white space around them, backslashes in paths, further columns.
The sets of a folder are its CSV files, each named by its file name without suffix.
"""

import math
import os
import re
from pathlib import Path

from oid.files import InputError
from oid.sources.base import Reader, SourceImage, number
from oid.text_files import read_rows

CLASS_FILES = ("classes.csv", "class_mapping.csv", "class_list.csv")
DELIMITERS = ",;\t"
ROW = "path,x1,y1,x2,y2,class_name"

_HEADER_NAMES = (  # of each value of a row
    {"path", "file", "filename", "file_name", "image", "image_path", "img_file", "image_file"},
    {"x1", "xmin", "x_min", "left"},
    {"y1", "ymin", "y_min", "top"},
    {"x2", "xmax", "x_max", "right"},
    {"y2", "ymax", "y_max", "bottom"},
    {"class_name", "class", "label", "name", "classname"},
)


class CsvReader(Reader):
    """A folder with annotation files and a class file, or one annotation file."""

    def __init__(self, path: Path):
        """Finds the files. Raises an InputError if there is no annotation file, or the class file is wrong."""
        folder = path if path.is_dir() else path.parent
        tables = sorted(folder.glob("*.csv"))
        class_files = [file for file in tables if file.name.lower() in CLASS_FILES]
        files = [file for file in (tables if path.is_dir() else [path]) if file not in class_files]
        if not files:
            raise InputError(f"{path} has no annotation file: expected annotations.csv with rows {ROW}")
        self._files = {file.stem: file for file in files}
        super().__init__(self._files)
        if class_files:
            self.class_ids = read_classes(class_files[0])

    def read(self, name: str) -> list[SourceImage]:
        """The images of a file, in the order of their first rows."""
        file = self._files[name]
        images: dict[str, SourceImage] = {}
        columns, rows = tuple(range(6)), list(read_rows(file, DELIMITERS))
        if not rows:
            raise InputError(f"{file} is empty: expected rows {ROW}")
        for index, (line, row) in enumerate(rows):
            place = f"line {line}"
            if index == 0 and (header := _header(row)):
                columns = header
                self.problems.add(file, place, "header row", ",".join(row), "not taken as a box")
                continue
            path, *corners, class_name = (row[column].strip() if column < len(row) else "" for column in columns)
            if not path or len(row) < 6:
                self.problems.add(file, place, f"row that is not {ROW}", ",".join(row), "left out")
                continue
            if "\\" in path and not os.path.isfile(file.parent / path):
                path = path.replace("\\", "/")
            key = os.path.normpath(path)
            if key not in images:
                images[key] = SourceImage(file.parent / key, os.path.splitext(key)[0], file, place)
            if class_name or any(corners):
                self.add_box(images[key], class_name, corners, place)
        return list(images.values())


def read_classes(path: Path) -> dict[str, int]:
    """Reads {name: id} from rows `class_name,id`. A first row whose id is not a number is a header.

    Raises an InputError if a row is something else, a name or an id occurs twice, or there is no row.
    """
    ids: dict[str, int] = {}
    names: dict[int, str] = {}
    for index, (line, row) in enumerate(read_rows(path, DELIMITERS)):
        name, text = (value.strip() for value in [*row, ""][:2])
        if index == 0 and name and text and not re.fullmatch(r"[-+]?\d+", text):
            continue
        class_id = int(text) if re.fullmatch(r"\d{1,18}", text) else None
        if not name or class_id is None or ids.get(name, class_id) != class_id or names.get(class_id, name) != name:
            need = "give each class its name and a number of its own"
            raise InputError(f"{path}, line {line}: {','.join(row)!r} is not class_name,id: {need}")
        ids[name], names[class_id] = class_id, name
    if not ids:
        raise InputError(f"{path} has no class: expected rows class_name,id")
    return ids


def _header(row: list[str]) -> tuple[int, ...] | None:
    """The columns of the six values if the row is a header; in the usual order if it is in another language."""
    names = [value.strip().strip("#").lower() for value in row]
    columns = [[index for index, name in enumerate(names) if name in known] for known in _HEADER_NAMES]
    if all(len(found) == 1 for found in columns):
        return tuple(found[0] for found in columns)
    return tuple(range(6)) if all(name[:1].isalpha() and math.isnan(number(name)) for name in names[1:5]) else None
