"""A lock on a folder or a file, so that two processes never write the same results."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from oid.files import InputError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked
    fcntl = None


@contextlib.contextmanager
def locked(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Holds a lock inside the block. The system releases it when the process ends, however it ends.

    The lock is on a hidden file in the folder (`.lock`), or beside the file (`.NAME.lock`); it holds the process's id
    and host, and stays when the block ends. A file system without locks locks nothing.

    Args:
        path: a folder, which is made if it does not exist, or an existing file or a file name with a suffix.
        what: what is written there, to begin the message with.

    Raises:
        InputError: another process holds the lock; the message names it.
    """
    path = Path(path)
    is_file = path.is_file() or (path.suffix and not path.is_dir())
    lock = path.with_name(f".{path.name}.lock") if is_file else path / ".lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "a+", encoding="utf-8") as file:
        _take(file, what)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _take(file, what: str) -> None:
    """Takes the lock of an open file, or raises an InputError that names its holder."""
    if not fcntl:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read() or "another process"
        raise InputError(f"{what} is being written by {holder}: wait for its end, or stop it first") from None
    except OSError:  # no locks on this file system
        return
