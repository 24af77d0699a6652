"""Two processes never write the same results; a lock ends with its process."""

import multiprocessing
import os
import signal
import socket

import pytest

from oid.files import InputError
from oid.lock import locked

pytest.importorskip("fcntl", reason="other systems lock nothing")


@pytest.fixture(params=["run", "journal.csv"], ids=["folder", "file"])
def path(request, tmp_path):
    return tmp_path / request.param


@pytest.fixture
def holder(path):
    """Another process that holds the lock."""
    connection, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(path, its))
    process.start()
    connection.recv()
    yield process
    process.kill()
    process.join()


def hold(path, connection) -> None:
    with locked(path, "it"):
        connection.send("locked")
        connection.recv()


def test_a_second_process_is_told_who_holds_the_lock(path, holder):
    with (
        pytest.raises(InputError, match=f"^run a is being written by process {holder.pid} on {socket.gethostname()}: "),
        locked(path, "run a"),
    ):
        pass


def test_the_lock_of_a_dead_process_is_taken_over(path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with locked(path, "it"):
        pass


def test_a_lock_ends_with_its_block(path):
    for _ in range(2):
        with locked(path, "it"), pytest.raises(InputError, match=f"by process {os.getpid()} on"), locked(path, "it"):
            pass
    assert [file.name for file in path.parent.rglob("*.lock")] in ([".lock"], [".journal.csv.lock"])
