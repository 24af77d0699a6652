"""What every script needs to read and write files safely: the error for a mistake, and all-or-nothing writing."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class InputError(Exception):
    """A user's mistake. The message is one sentence that names the file, row and value, and the remedy.

    The numbered scripts print it and exit with code 2; nobody sees a traceback.
    """


def require_file(path: str | os.PathLike, remedy: str) -> Path:
    """Returns `path` as a `Path`.

    Raises:
        InputError: there is no such file; the message ends with `remedy`.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}: {remedy}")
    return path


def require_folder(path: str | os.PathLike, remedy: str) -> Path:
    """Returns `path` as a `Path`.

    Raises:
        InputError: there is no such folder; the message ends with `remedy`.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file, not a folder" if path.is_file() else "does not exist"
        raise InputError(f"{path} {what}: {remedy}")
    return path


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside `path`, renamed to `path` when the block ends well and removed when it does not.

    The suffix stays at the end of the temporary name, because writers choose their format by it. Makes the folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
