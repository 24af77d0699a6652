"""JSON files that hold one frozen dataclass: written whole, checked on reading."""

import json
import os
from pathlib import Path
from typing import TypeVar

import msgspec

from oid.files import InputError, replacing

Record = TypeVar("Record")


def read_json(path: str | os.PathLike, kind: type[Record]) -> Record:
    """Reads a file that `write_json` wrote as a `kind`, a dataclass whose fields say what is allowed.

    Raises:
        InputError: the file is missing, is not JSON, or lacks a field or has one of another type.
    """
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=kind)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is damaged, or was written by another version ({error})") from error


def json_text(record: object) -> str:
    """The text of a dataclass as `write_json` writes it: indented, fields in their order."""
    return json.dumps(msgspec.to_builtins(record, enc_hook=lambda number: number.item()), indent=1)  # of NumPy


def write_json(path: str | os.PathLike, record: object) -> None:
    """Writes a dataclass as JSON; the file is there whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json_text(record), encoding="utf-8")
