"""Which devices and machines train together, and what their processes must agree on.

Several processes (JAX) make every step together: each gives its share of the batch, and each has all the weights. What
one of them decides by its own clock, files or signals, all must decide alike, or they would wait for each other for
ever: such things are asked here. With one process nothing is asked and nothing costs anything.
"""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np

from oid.files import InputError
from training import devices
from training.pulse import Pulse

PATIENCE = 300  # seconds that a process waits for the others to begin
LONGEST_REASON = 200  # bytes
GRACE = 5.0  # seconds in which a process that is lost may still say so by a sum that fails
LOST = re.compile(r"gloo|nccl|connection (reset|closed|refused)|socket closed|coordination service|unavailable", re.I)
PIECE = 2**24  # bytes of a file that are sent together
MISTAKE = 2  # the exit code
GO_ON = "start the same command on all machines again, and they go on from the last checkpoint"
SPEAK = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if not sys.stdin.buffer.read():
    print(sys.argv[1], file=sys.stderr)
"""


# === Before the training =============================================================================================
def check_flags(flags: dict) -> None:
    """Refuses ways to share batches that are none; to be asked before a backend starts.

    Raises:
        InputError: naming the flag.
    """
    backend, several = keras.backend.backend(), flags["processes"] > 1
    if several and backend != "jax":
        raise InputError(
            f"--processes {flags['processes']} needs JAX, and the backend is {backend}: set KERAS_BACKEND=jax on each "
            "machine"
        )
    if several != (flags["coordinator"] is not None):
        raise InputError(
            f"--processes {flags['processes']} with --coordinator {flags['coordinator']}: give both or neither, "
            "address:port of process 0 and how many processes there are"
        )
    if several and not flags["coordinator"].rpartition(":")[2].isdecimal():
        raise InputError(f"--coordinator {flags['coordinator']} is no address:port, such as 10.0.0.1:1234")
    if not 0 <= flags["process"] < flags["processes"]:
        raise InputError(f"--process is {flags['process']}: it must be from 0 to {flags['processes'] - 1}")
    if flags["strategy"] == "one" and (several or (flags["devices"] or 1) > 1):
        raise InputError("--strategy one is one device: leave out --processes and --devices, or take mirrored")
    if backend == "torch" and (flags["strategy"] == "mirrored" or (flags["devices"] or 1) > 1):
        raise InputError("--strategy mirrored needs TensorFlow or JAX: set KERAS_BACKEND=tensorflow or jax")
    mirrored = flags["strategy"] == "mirrored" or (flags["devices"] or 1) > 1
    if backend == "tensorflow" and flags["accumulate"] > 1 and mirrored:
        raise InputError(
            f"--accumulate {flags['accumulate']} does not work with --strategy mirrored on TensorFlow: leave it out, "
            "or set KERAS_BACKEND=jax"
        )


@contextlib.contextmanager
def together(flags: dict) -> Iterator[None]:
    """Joins the other processes, and makes the virtual devices of a CPU; to be entered before a backend starts.

    When another process is gone, this one says so and ends at once with the exit code of a mistake.

    Raises:
        InputError: the others did not come.
    """
    if (flags["devices"] or 1) > 1:
        with contextlib.suppress(RuntimeError):  # it has started; `sharing` then counts what there is
            devices.make_virtual(flags["devices"])
    if flags["processes"] == 1:
        yield
        return
    with _last_words() as words:
        pulse = _join(flags, words)
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            if LOST.search(str(error)):
                _end_alone(words)
            raise
        _leave(pulse)


def _leave(pulse: Pulse) -> None:
    """The end of a process that has done all its work."""
    if is_first():  # the service runs in this process: the others leave it before it ends
        pulse.leave()
        pulse.wait_for_others(PATIENCE)
        devices.leave()
    else:
        devices.leave()
        pulse.leave()


@contextlib.contextmanager
def _last_words() -> Iterator[subprocess.Popen]:
    """Lets a small program speak for this process where it cannot: when it is killed, or when JAX ends it.

    JAX aborts a process whose connection to process 0 is closed, before Python can say anything.
    """
    words = f"error: this process ended, killed or because another one of this training is gone: {GO_ON}"
    program = [sys.executable, "-E", "-S", "-c", SPEAK, words]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as speaker:
        try:
            yield speaker
        finally:
            speaker.stdin.write(b"said")


def _join(flags: dict, words: subprocess.Popen) -> Pulse:
    """Waits until all processes are there, and watches them from then on."""
    coordinator, processes, process = flags["coordinator"], flags["processes"], flags["process"]
    print(f"process {process} of {processes} waits for the others at {coordinator}", flush=True)
    pulse = Pulse(lambda: (time.sleep(GRACE), _end_alone(words)))
    try:
        devices.join(coordinator, processes=processes, process=process, patience=PATIENCE)
        port = from_first(pulse.listen)
        if process == 0:
            pulse.accept(processes - 1)
        else:
            pulse.connect(coordinator.rpartition(":")[0].strip("[]"), port)
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:150]
        raise InputError(
            f"--coordinator {coordinator}: not all of {processes} processes came within {PATIENCE} s ({reason}): start "
            f"each, with --process 0 to {processes - 1}, and let the machines reach each other's ports"
        ) from error
    return pulse


def _end_alone(words: subprocess.Popen) -> None:
    """Ends this process: JAX's own end would wait for the others."""
    os.write(words.stdin.fileno(), b"said")
    sys.stdout.flush()
    said = f"error: another process of this training is gone (its terminal says why), so this one stops: {GO_ON}"
    print(said, file=sys.stderr, flush=True)
    os._exit(MISTAKE)


@dataclasses.dataclass(frozen=True)
class Sharing:
    """The devices that share each batch.

    Attributes:
        devices: their names, of all machines; none where one device does it all.
        scope: gives a context; what is made in it has its variables on all of the devices.
    """

    devices: tuple[str, ...] = ()
    scope: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext

    @property
    def count(self) -> int:
        """How many devices there are."""
        return max(1, len(self.devices))

    def check_batch_size(self, batch_size: int) -> None:
        """Refuses a batch that cannot be shared evenly.

        Raises:
            InputError: naming the flag.
        """
        if batch_size % self.count:
            fits = max(1, batch_size // self.count) * self.count
            raise InputError(
                f"--batch_size {batch_size} cannot be shared by {self.count} devices evenly: take {fits}, for example, "
                "or fewer --devices"
            )


@contextlib.contextmanager
def sharing(flags: dict) -> Iterator[Sharing]:
    """Inside the block trainings use the devices that the flags mean; prints which, unless it is one.

    Raises:
        InputError: there are fewer than `--devices`.
    """
    used, why = choose(flags, _all_devices())
    if why:
        print(why, flush=True)
    if not used:
        yield Sharing()
        return
    with devices.shared_by(used) as scope:
        yield Sharing(tuple(used), scope)


def _all_devices() -> list[str]:
    """Those of all machines; PyTorch's are not known to Keras."""
    return [] if keras.backend.backend() == "torch" else keras.distribution.list_devices()


def choose(flags: dict, found: list[str]) -> tuple[list[str], str]:
    """The devices that share each batch, and what there is to say about them; none where one device does it all.

    Args:
        flags: strategy, devices and processes.
        found: all devices of the best kind, as `keras.distribution.list_devices` names them.

    Raises:
        InputError: there are fewer than `--devices`.
    """
    kind = found[0].partition(":")[0] if found else ""
    processes, wanted = flags["processes"], flags["devices"]
    if wanted is not None and wanted * processes > max(1, len(found)):
        raise InputError(
            f"--devices is {wanted}, and {len(found)} were found ({' '.join(found) or 'none'}): take at most "
            f"{max(1, len(found) // processes)}"
        )
    if processes > 1:
        if wanted is not None and wanted * processes != len(found):
            raise InputError(f"--devices {wanted}: with several processes each uses all of its devices: leave it out")
        where = f"{len(found)} devices ({kind}) of {processes} processes"
        return found, f"devices: {where} share each batch"
    if flags["strategy"] == "auto" and (kind == "cpu" and wanted is None):
        return [], ""
    used = found[:wanted]
    if keras.backend.backend() == "tensorflow" and flags["accumulate"] > 1 and len(used) > 1:
        return [], f"devices: one ({kind}) of {len(found)}, because TensorFlow cannot --accumulate on several"
    if flags["strategy"] == "one" or len(used) < 2:
        idle = f"; --strategy mirrored would use all {len(found)}" if len(found) > 1 and kind != "cpu" else ""
        mirrored = "; --strategy mirrored changes nothing with one" if flags["strategy"] == "mirrored" else ""
        return [], f"devices: one ({kind}){idle or mirrored}" if idle or mirrored else ""
    return used, f"devices: {len(used)} ({kind}) share each batch; --strategy one uses one"


# === While they train ================================================================================================
def is_first() -> bool:
    """Whether this process writes the files."""
    return devices.process_and_processes()[0] == 0


def several() -> bool:
    """Whether there are several processes."""
    return devices.process_and_processes()[1] > 1


def share_of(batch_size: int) -> range | None:
    """The positions in each batch that this process makes; None = all."""
    process, processes = devices.process_and_processes()
    if processes == 1:
        return None
    size = batch_size // processes
    return range(process * size, (process + 1) * size)


def from_first(value: Callable[[], object]):
    """What a function gives in process 0, in every process. It is called there only; its value can be told in JSON."""
    process, processes = devices.process_and_processes()
    if processes == 1:
        return value()
    told = json.dumps(value()).encode() if process == 0 else b""
    length = int(devices.broadcast(np.array([len(told)], "int32"))[0])
    room = np.zeros(max(64, 1 << (length - 1).bit_length()), "uint8")  # a few sizes: each is compiled once
    room[: len(told)] = np.frombuffer(told, "uint8")
    return json.loads(devices.broadcast(room)[:length].tobytes())


def from_any(reason: str) -> str:
    """A text that one of the processes has, the first that has one, in all of them."""
    if devices.process_and_processes()[1] == 1:
        return reason
    room = np.zeros(LONGEST_REASON, "uint8")
    told = reason.encode()[:LONGEST_REASON]
    room[: len(told)] = np.frombuffer(told, "uint8")
    for row in devices.gather(room):
        if row.any():
            return bytes(row).rstrip(b"\0").decode(errors="replace")
    return ""


@contextlib.contextmanager
def copy_of_first(path: Path) -> Iterator[Path]:
    """A file of process 0, or a copy of it in the other processes, whose machines need not have it."""
    if devices.process_and_processes()[1] == 1:
        yield path
        return
    size = from_first(lambda: path.stat().st_size)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as files:
        source = files.enter_context(open(path, "rb")) if is_first() else None
        target = path if is_first() else Path(folder) / path.name
        copy = None if is_first() else files.enter_context(open(target, "wb"))
        for begin in range(0, size, PIECE):
            piece = np.zeros(PIECE, "uint8")
            if source:
                data = source.read(PIECE)
                piece[: len(data)] = np.frombuffer(data, "uint8")
            piece = devices.broadcast(piece)
            if copy:
                copy.write(piece[: min(PIECE, size - begin)].tobytes())
        if copy:
            copy.flush()
        yield target
