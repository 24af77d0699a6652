"""Text files that are read whole: UTF-8 or UTF-16, CSV rows with their line numbers."""

import codecs
import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from oid.files import InputError, replacing


def read_text(path: str | os.PathLike) -> str:
    """Reads text in UTF-8, or in UTF-16 if that byte-order mark comes first. Raises an InputError if it is neither."""
    try:
        content = Path(path).read_bytes()
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-{16 if is_utf16 else 8}: save it as UTF-8") from None


def read_rows(path: str | os.PathLike, delimiters: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, values) of the CSV rows that are not empty.

    The first row shows which of `delimiters` separates the values. Raises an InputError if the file is not CSV.
    """
    text = read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=max(delimiters, key=first.count), strict=True)
    try:
        for row in rows:
            if any(value.strip() for value in row):
                yield rows.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: not CSV ({error}): check the quotes") from None


def write_rows(path: Path, rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> None:
    """Writes a CSV file, whole or not at all. A value may be any file name, even one that is not UTF-8."""
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows([header, *rows] if header else rows)
