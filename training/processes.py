"""Several processes that train together, on one machine or several, by JAX's own engine.

Each process gives its share of every batch and holds all the weights. What one of them decides by its own clock, files
or signals, all must decide alike, or they would wait for each other for ever: such things are asked here. With one
process nothing is asked and nothing costs anything.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import msgspec
import numpy as np

from oid.files import InputError

ADDRESSES, NUMBER, ID = (f"KERAS_DISTRIBUTION_{name}" for name in ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID"))
LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # numbers of tasks, by launchers that JAX detects
PATIENCE = 300  # seconds to wait for the others at the start
HEARTBEAT = 30  # seconds without a sign of life until a process counts as lost
LOST = re.compile(r"gloo|nccl|connection (reset|closed|refused)|socket closed|coordination service|unavailable", re.I)
LONGEST_REASON = 200  # bytes
PIECE = 2**24  # bytes of a file that are sent together


def asked_for() -> bool:
    """Returns whether the environment asks for several processes: Keras' variables, or a launcher that JAX detects."""
    return any(os.environ.get(name, "1").strip() not in ("", "0", "1") for name in (NUMBER, *LAUNCHERS))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Inside the block this process trains with the others that the environment names. Enter it before JAX starts.

    Raises:
        InputError: the backend is not JAX, the environment is incomplete, the others did not come, or one is lost.
    """
    if not asked_for():
        yield
        return
    if keras.backend.backend() != "jax":
        raise InputError(f"several processes need JAX, the backend is {keras.backend.backend()}: set KERAS_BACKEND=jax")
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    try:
        jax.distributed.initialize(
            **_given(),
            initialization_timeout=PATIENCE,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=10,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise InputError(
            f"not all processes came within {PATIENCE} s ({reason}): start each of them, and let the machines reach "
            "each other's ports"
        ) from error
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not LOST.search(str(error)):
            raise
        raise InputError(
            "another process of this training is lost (its terminal says why): start the same command on all machines "
            "again, and they go on from the last checkpoint"
        ) from error
    jax.distributed.shutdown()


def _given() -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize` by Keras' variables; none where JAX detects them.

    Raises:
        InputError: a variable is missing or wrong.
    """
    if NUMBER not in os.environ:
        return {}
    try:
        address = os.environ[ADDRESSES].split(",")[0].strip()
        number, process = int(os.environ[NUMBER]), int(os.environ[ID])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{NUMBER}={os.environ[NUMBER]} needs whole numbers there and in {ID}, and the address of process 0 in "
            f"{ADDRESSES}: {error} is missing or wrong"
        ) from error
    if not address.rpartition(":")[2].isdecimal() or not 0 <= process < number:
        raise InputError(
            f"{ADDRESSES}={address} must be address:port of process 0, and {ID}={process} from 0 to {number - 1}"
        )
    # JAX's coordinator would listen on all addresses
    listen = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", address)
    names = ("coordinator_address", "num_processes", "process_id", "coordinator_bind_address")
    return dict(zip(names, (address, number, process, listen), strict=True))


def process_and_processes() -> tuple[int, int]:
    """Returns the number of this process and how many there are: (0, 1) outside of `together`."""
    if keras.backend.backend() != "jax":
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def is_first() -> bool:
    """Returns whether this process writes the files."""
    return process_and_processes()[0] == 0


def several() -> bool:
    """Returns whether there are several processes."""
    return process_and_processes()[1] > 1


def share_of(batch_size: int) -> range | None:
    """Returns the positions in each batch that this process makes; None = all."""
    process, processes = process_and_processes()
    if processes == 1:
        return None
    size = batch_size // processes
    return range(process * size, (process + 1) * size)


def from_first(value: Callable[[], Any], kind: Any = Any) -> Any:
    """Calls a function in process 0 only, and returns its value in every process.

    Args:
        value: returns what JSON can hold, or a dataclass of such values.
        kind: the type of the value; needed for dataclasses and tuples.
    """
    process, processes = process_and_processes()
    if processes == 1:
        return value()
    told = msgspec.json.encode(value()) if process == 0 else b""
    length = int(_broadcast(np.array([len(told)], "int32"))[0])
    room = np.zeros(max(64, 1 << (length - 1).bit_length()), "uint8")  # a few sizes: each is compiled once
    room[: len(told)] = np.frombuffer(told, "uint8")
    return msgspec.json.decode(_broadcast(room)[:length].tobytes(), type=kind)


def from_any(reason: str) -> str:
    """Returns the text of the first process that has one, in all of them."""
    if not several():
        return reason
    from jax.experimental import multihost_utils

    room = np.zeros(LONGEST_REASON, "uint8")
    told = reason.encode()[:LONGEST_REASON]
    room[: len(told)] = np.frombuffer(told, "uint8")
    for row in np.asarray(multihost_utils.process_allgather(room)):
        if row.any():
            return bytes(row).rstrip(b"\0").decode(errors="replace")
    return ""


@contextlib.contextmanager
def copy_of_first(path: Path) -> Iterator[Path]:
    """Yields a file of process 0, or a copy of it in the other processes, whose machines need not have it."""
    if not several():
        yield path
        return
    size = from_first(lambda: path.stat().st_size)
    with tempfile.TemporaryDirectory() as folder:
        target = path if is_first() else Path(folder) / path.name
        with open(target, "rb" if is_first() else "wb") as file:
            for begin in range(0, size, PIECE):
                data = file.read(PIECE) if is_first() else b""
                piece = np.zeros(PIECE, "uint8")
                piece[: len(data)] = np.frombuffer(data, "uint8")
                piece = _broadcast(piece)[: min(PIECE, size - begin)]
                if not is_first():
                    file.write(piece.tobytes())
        yield target


def _broadcast(values: np.ndarray) -> np.ndarray:
    """Returns process 0's values in all processes; the shapes must be the same."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(values))
