"""What every script needs to read and write files safely: the error for a mistake, and all-or-nothing writing."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


class InputError(Exception):
    """A user's mistake. The message is one sentence that names the file, row and value, and the remedy.

    The numbered scripts print it and exit with code 2; nobody sees a traceback.
    """


@contextlib.contextmanager
def remedy(text: str) -> Iterator[None]:
    """Adds `text` to the sentence of an InputError that the block raises: only scripts know which flag to change."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}: {text}") from error


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


def output_file(path: str | os.PathLike, flag: str) -> Path:
    """Returns `path` as a `Path`; to be asked before the work whose result goes there.

    Raises:
        InputError: it is a folder or a device, or no file can be made there; the message names the `flag` that gives
            another place.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        what = "is a folder" if path.is_dir() else "is no ordinary file, which would be replaced"
        raise InputError(f"{path} {what}: give {flag} the name of a file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        what = "cannot be written to" if folder.is_dir() else "is a file, not a folder"
        raise InputError(f"{path} cannot be made, because {folder} {what}: give another place by {flag}")
    return path


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside `path`, renamed to `path` when the block ends well and removed when it does not.

    The suffix stays at the end of the temporary name, because writers choose their format by it. Makes the folder.

    Raises:
        InputError: the system refuses to write there, for example because no space is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BrokenPipeError:
        raise
    except OSError as error:  # writers outside of Python give no file name
        if error.filename not in (None, str(temporary)):
            raise
        reason = error.strerror or error
        raise InputError(f"{path} cannot be written ({reason}): make room, or choose another place") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """As `replacing`, for a folder: gives one that is new, which takes the place of `path` when the block ends well.

    Raises:
        InputError: the system refuses to write there.
    """
    final = Path(path).resolve()
    new, old = (final.with_name(f".{os.getpid()}.{final.name}.{which}") for which in ("new", "old"))
    try:
        new.mkdir(parents=True)
        yield new
        if final.exists():
            final.rename(old)
        new.rename(final)
    except BrokenPipeError:
        raise
    except OSError as error:
        if old.exists() and not final.exists():
            old.rename(final)
        reason = error.strerror or error
        raise InputError(f"{path} cannot be written ({reason}): make room, or choose another place") from error
    finally:
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)
