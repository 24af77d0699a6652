"""Safe reading and writing for every script: the error for a mistake, and files that are written whole or not."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


class InputError(Exception):
    """A user's mistake. The message is one sentence that names the file, row and value, and the remedy.

    The scripts print it and exit with code 2, without a traceback.
    """


class Unfinished(Exception):
    """Work that stopped before its end. The message is one line that says how to go on.

    The scripts print it and exit with code 75, by which schedulers know that the same command must run again.
    """


@contextlib.contextmanager
def remedy(text: str) -> Iterator[None]:
    """Adds `text` to the message of an InputError that the block raises: only a script knows which flag to change."""
    try:
        yield
    except InputError as error:
        message = str(error)
        if message.endswith("?"):  # "did you mean apple?"
            raise InputError(f"{message} {text[0].upper()}{text[1:]}") from error
        raise InputError(f"{message}: {text}") from error


def require_file(path: str | os.PathLike, remedy: str) -> Path:
    """Returns `path` as a `Path`.

    Raises:
        InputError: there is no such file; the message ends with `remedy`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} {'is a folder, not a file' if path.is_dir() else 'does not exist'}: {remedy}")
    return path


def require_folder(path: str | os.PathLike, remedy: str) -> Path:
    """Like `require_file`, for a folder."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path} {'is a file, not a folder' if path.is_file() else 'does not exist'}: {remedy}")
    return path


def output_file(path: str | os.PathLike, remedy: str) -> Path:
    """Returns `path` as a `Path`. Call it before the work whose result goes there.

    Raises:
        InputError: `path` is a folder or a device, or cannot be created; the message ends with `remedy`.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is {'a folder' if path.is_dir() else 'not an ordinary file'}: {remedy}")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{path} cannot be made, because {folder} is not a writable folder: {remedy}")
    return path


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path in the same folder. It becomes `path` if the block succeeds, else it is removed.

    The temporary name is hidden and keeps the suffix, because writers choose their format by it. Creates the folder.

    Raises:
        InputError: the system refuses to write there, for example because the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with _write_errors(path, temporary):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Like `replacing`, for a folder: yields a new one, which takes the place of `path` if the block succeeds."""
    final = Path(path).resolve()
    new, old = (final.with_name(f".{os.getpid()}.{final.name}.{which}") for which in ("new", "old"))
    try:
        with _write_errors(path, new):
            new.mkdir(parents=True)
            yield new
            if final.exists():
                final.rename(old)
            new.rename(final)
    finally:
        if old.exists() and not final.exists():
            old.rename(final)
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _write_errors(path: str | os.PathLike, temporary: Path) -> Iterator[None]:
    """Turns the system's refusal to write below `temporary` into an InputError about `path`."""
    try:
        yield
    except OSError as error:  # libraries that are not Python give no file name
        if isinstance(error, BrokenPipeError) or not str(error.filename or temporary).startswith(str(temporary)):
            raise
        message = f"{path} cannot be written ({error.strerror or error}): make room, or choose another place"
        raise InputError(message) from error
