"""The history of a training, `history.csv`: a row per epoch."""

import csv
import io
from pathlib import Path

from oid.files import replacing
from training import machines


def write_history(path: Path, rows: list[dict], *, only_if_other: bool = False) -> None:
    """Writes the rows, one per epoch.

    Args:
        path: of the file.
        rows: at least one.
        only_if_other: leave a file that has these rows as it is.
    """
    if not machines.is_first():
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    data = text.getvalue().encode()
    if only_if_other and path.is_file() and path.read_bytes() == data:
        return
    with replacing(path) as temporary:
        temporary.write_bytes(data)
