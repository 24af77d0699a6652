"""Annotation files of Open Images: class descriptions, and box and image-label tables as polars text columns."""

import csv
import os

from oid.files import InputError, replacing, require_file

_HEADER = {"label", "labelname", "label_name", "mid", "id"}  # V6 has `LabelName,DisplayName`; V4 has no header


def read_class_descriptions(path: str | os.PathLike) -> dict[str, str]:
    """Reads a class description file: `label,name` with or without a header row, further columns ignored.

    Returns:
        {label: name} in the order of the file.

    Raises:
        InputError: no such file, no class in it, not UTF-8 or not CSV; a row without label or name, a label with
            white space (predictions are separated by spaces), or a label that occurs twice.
    """
    path = require_file(path, "expected a class description file with rows `label,name`")
    classes: dict[str, str] = {}
    lines: dict[str, int] = {}  # {label: line number}
    may_be_header = True
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            for row in rows:
                if not any(cell.strip() for cell in row):
                    continue
                where = f"{path}, line {rows.line_num}"
                label, name = (row[0], row[1].strip()) if len(row) > 1 else (row[0], "")
                is_header = may_be_header and label.strip().lower() in _HEADER
                may_be_header = False
                if is_header:
                    continue
                if not label or not name:
                    raise InputError(f"{where}: {','.join(row)!r} is not `label,name`: give every class both")
                if any(letter.isspace() for letter in label):
                    raise InputError(f"{where}: the label {label!r} contains white space: remove it")
                if label in classes:
                    raise InputError(f"{where}: label {label} is already in line {lines[label]}: remove one of the two")
                classes[label] = name
                lines[label] = rows.line_num
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8: save the file as UTF-8") from error
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: not CSV ({error}): check the quotes") from error
    if not classes:
        raise InputError(f"{path} holds no class: expected rows `label,name`")
    return classes


def write_class_descriptions(path: str | os.PathLike, classes: dict[str, str]) -> None:
    """Writes {label: name} as the official V4 file has it: no header, a name with a comma in quotes."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(classes.items())
