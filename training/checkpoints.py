"""Checkpoints of a training: complete or not there, flushed to the disk, the last two of them, with checksums.

    RUN/checkpoint/            the newest
    RUN/checkpoint.previous/   the one before it
    RUN/checkpoint.new/        the one that is being written

Each has all that a training goes on with: `training.npz` (weights, random seeds, the optimizer), `network.weights.h5`
(the network alone, for inference), `model.keras` (the best network so far, a hard link where the file system has
such), and `state.json`: a `TrainingState`, and the SHA-256 of the other files and of itself. It is written last:
without it there is no checkpoint.

A reader of a checkpoint looks at `network.weights.h5`: `model.keras` stays the same file while newer weights are no
better.

Keras would save a training's weights without the seeds of dropout, and by HDF5, which crashes where the disk is full.
"""

import contextlib
import csv
import dataclasses
import errno
import hashlib
import io
import math
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras
import msgspec
import numpy as np

from models.run_settings import CHECKPOINT, CHECKPOINT_WEIGHTS, MODEL
from oid.files import InputError, replacing
from training import processes
from training.schedule import LINE
from training.state import EpochRow, TrainingState

TRAINING = "training.npz"
NETWORK_WEIGHTS = CHECKPOINT_WEIGHTS.name
STATE, HISTORY = "state.json", "history.csv"
NEWEST, PREVIOUS, UNFINISHED, DAMAGED = CHECKPOINT, "checkpoint.previous", "checkpoint.new", "checkpoint.damaged"
PAGES = 8192  # bytes
BLOCK = 2**20
NO_FOLDER_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EISDIR}


class Damaged(Exception):
    """Why a checkpoint cannot be used."""


@dataclasses.dataclass(frozen=True)
class StateFile:
    """What `state.json` holds.

    Attributes:
        state: where the training is.
        files: SHA-256 of the other files by their names.
        checksum: SHA-256 of the two above.
    """

    state: TrainingState
    files: dict[str, str]
    checksum: str = ""

    def text(self) -> bytes:
        return msgspec.json.encode(self)

    def signed(self) -> "StateFile":
        """The same with its checksum."""
        unsigned = dataclasses.replace(self, checksum="")
        return dataclasses.replace(self, checksum=hashlib.sha256(unsigned.text()).hexdigest())


# === Writing =========================================================================================================
def write_checkpoint(
    run: Path, trainer: keras.Model, network: keras.Model, state: TrainingState, *, best: keras.Model | None = None
) -> TrainingState:
    """Writes the newest checkpoint; the one before it stays as the previous one.

    A process that is killed at any moment leaves this one, or the two before it.

    Args:
        run: folder of the run.
        trainer: compiled; its weights, random seeds, optimizer and metrics are kept.
        network: the network inside.
        state: where the training is.
        best: the network with the best weights, where these are new; it becomes RUN/model.keras.

    Returns:
        the state as it was written, with the sums of the losses and the SHA-256 of the best model.

    Raises:
        InputError: it cannot be written, for example because the disk is full; the checkpoints before are untouched.
    """
    sums = tuple(float(keras.ops.convert_to_numpy(variable)) for variable in trainer.metrics_variables)
    state = dataclasses.replace(state, loss_sums=sums)
    if not processes.is_first():
        return state
    new = run / UNFINISHED
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        state = _write_files(run, new, trainer, network, state, best)
        flush(new)
        _rotate(run)
        if best is not None:
            _publish(run)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        before = "the checkpoints before are untouched" if (run / NEWEST).exists() else "there is none before it"
        raise InputError(
            f"{new} cannot be written ({_reason(error)}) and {before}: make room, then run the same command to go on"
        ) from error
    return state


def _write_files(run: Path, new: Path, trainer, network, state: TrainingState, best) -> TrainingState:
    _save_arrays(new / TRAINING, _variables(trainer))
    _reserve(new / "room", _bytes_of(network))
    network.save_weights(new / NETWORK_WEIGHTS)
    if best is not None:
        best.save(new / MODEL)
        state = dataclasses.replace(state, best_model=_digest(new / MODEL))
    elif state.best_model:
        _link(run / NEWEST / MODEL, new / MODEL)
    file = StateFile(state, {name: _digest(new / name) for name in (TRAINING, NETWORK_WEIGHTS)})
    for path in new.iterdir():
        flush(path)
    with replacing(new / STATE) as path:
        path.write_bytes(file.signed().text())
        flush(path)
    return state


def _rotate(run: Path) -> None:
    """The finished checkpoint becomes the newest one. Whenever this stops, `find_checkpoint` still finds it."""
    shutil.rmtree(run / PREVIOUS, ignore_errors=True)
    if (run / NEWEST).exists():
        (run / NEWEST).rename(run / PREVIOUS)
    (run / UNFINISHED).rename(run / NEWEST)
    flush(run)


def _publish(run: Path) -> None:
    """Makes the newest checkpoint's best model that of the run."""
    with replacing(run / MODEL) as path:
        path.unlink(missing_ok=True)
        _link(run / NEWEST / MODEL, path)


def _variables(trainer: keras.Model) -> list[keras.Variable]:
    """All that a step changes but the sums of the losses; in the same order for the same settings.

    The numbers of the schedule, which the optimizer has among its variables, are in the state.
    """
    of_optimizer = [variable for variable in trainer.optimizer.variables if variable.name != LINE]
    return [*trainer.variables, *of_optimizer]


def _save_arrays(path: Path, variables: list[keras.Variable]) -> None:
    """What `numpy.savez` writes, with one array at a time in memory."""
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for number, variable in enumerate(variables):
            with archive.open(f"{number}.npy", "w", force_zip64=True) as file:
                array = np.asanyarray(keras.ops.convert_to_numpy(variable))
                np.lib.format.write_array(file, array, allow_pickle=False)


def _bytes_of(network: keras.Model) -> int:
    """More than HDF5 needs for the weights of a network: every array and every group has its own page or two."""
    weights = network.weights
    return sum(4 * math.prod(weight.shape) for weight in weights) + PAGES * (len(weights) + 1)


def _reserve(path: Path, size: int) -> None:
    """Makes a file of `size` bytes and removes it: HDF5 ends the process where there is no room for what it writes."""
    try:
        with open(path, "wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                for begin in range(0, size, BLOCK):
                    file.write(bytes(min(BLOCK, size - begin)))
    finally:
        path.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not folder or error.errno not in NO_FOLDER_FLUSH:
            raise
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    """The system's words for what went wrong."""
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split())[:200]


def write_history(run: Path, rows: tuple[EpochRow, ...]) -> None:
    """Writes `history.csv`, a row per epoch, unless it has these rows; without rows there is none."""
    path = run / HISTORY
    if not rows:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(field.name for field in dataclasses.fields(EpochRow))
    writer.writerows(map(dataclasses.astuple, rows))
    data = text.getvalue().encode()
    if not (path.is_file() and path.read_bytes() == data):
        with replacing(path) as temporary:
            temporary.write_bytes(data)


# === Reading =========================================================================================================
def find_checkpoint(run: Path) -> tuple[Path | None, TrainingState, list[str]]:
    """The newest checkpoint that is sound, its state, and what is wrong with newer ones. Changes nothing.

    Returns:
        (None, the state of a training that has not begun, []) where there is none.

    Raises:
        InputError: there are some, but none is sound; or an earlier version wrote one.
    """
    wrong = []
    for name in (UNFINISHED, NEWEST, PREVIOUS):
        folder = run / name
        if not folder.is_dir():
            continue
        try:
            return folder, _read_state(folder), wrong
        except Damaged as damage:
            if name != UNFINISHED:  # what was never finished is no damage
                wrong.append(f"{folder / str(damage)}")
    if wrong:
        raise InputError(f"{wrong[0]}, and no sound checkpoint is before it: remove {run}, or choose another run")
    return None, TrainingState(), []


def open_run(run: Path, report: Callable[[str], None]) -> TrainingState:
    """The state to go on with, after bringing the run's files in line with it; the same in every process.

    A newest checkpoint that is damaged is kept as `checkpoint.damaged`.

    Args:
        run: folder of the run, locked by the caller.
        report: gets a sentence for each damaged file that is replaced.

    Raises:
        InputError: see `find_checkpoint`.
    """
    return processes.from_first(lambda: _open_run(run, report), TrainingState)


def look_at_run(run: Path) -> TrainingState:
    """The state of a run's newest checkpoint; no file is touched, so the run may be training at this moment.

    Raises:
        InputError: the newest checkpoint is not whole.
    """
    folder, state, wrong = find_checkpoint(run)
    if folder is not None and folder.name != NEWEST:
        reason = wrong[0] if wrong else f"{run / NEWEST} is being replaced"
        raise InputError(f"{reason}: try again, or let the training go on first, which mends it")
    return state


def restore(run: Path, trainer: keras.Model) -> None:
    """Gives a trainer, compiled as it was, the weights, the optimizer and the random state of the newest checkpoint.

    Raises:
        InputError: they are those of another network.
    """
    file, variables = run / NEWEST / TRAINING, _variables(trainer)
    with processes.copy_of_first(file) as copy, np.load(copy, allow_pickle=False) as arrays:
        if len(arrays.files) != len(variables):
            raise InputError(
                f"{file} has {len(arrays.files)} arrays, and the network of its settings with its optimizer "
                f"{len(variables)}: another version wrote it, choose another run"
            )
        for number, variable in enumerate(variables):
            array = arrays[str(number)]
            if array.shape != tuple(variable.shape):
                raise InputError(
                    f"{file}: array {number} has shape {array.shape}, expected {tuple(variable.shape)} for "
                    f"{variable.path}: another version wrote it, choose another run"
                )
            variable.assign(array)


def restore_loss_sums(trainer: keras.Model, state: TrainingState) -> None:
    """Makes the sums of the epoch's losses those of the checkpoint, so that its means are of the whole epoch."""
    for variable, value in zip(trainer.metrics_variables, state.loss_sums, strict=True):
        variable.assign(value)


def _open_run(run: Path, report: Callable[[str], None]) -> TrainingState:
    folder, state, wrong = find_checkpoint(run)
    for sentence in wrong:
        report(f"{sentence}: going on from the checkpoint before, of step {state.step}")
    if folder is None:
        return state
    if folder.name == UNFINISHED:  # finished, but killed before it got its name
        _rotate(run)
    elif folder.name == PREVIOUS:
        shutil.rmtree(run / DAMAGED, ignore_errors=True)
        if (run / NEWEST).exists():
            (run / NEWEST).rename(run / DAMAGED)
        folder.rename(run / NEWEST)
    return _bring_in_line(run, state, report)


def _read_state(folder: Path) -> TrainingState:
    """The state of a checkpoint whose files are what was written.

    Raises:
        Damaged: the message begins with the file's name.
        InputError: an earlier version wrote it.
    """
    text = b""
    try:
        text = (folder / STATE).read_bytes()
        file = msgspec.json.decode(text, type=StateFile)
    except FileNotFoundError:
        raise Damaged(f"{STATE} is missing") from None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        if b'"total"' in text and b'"flags"' in text:  # what earlier versions kept there
            raise InputError(f"{folder} was written by an earlier version: choose another run") from None
        raise Damaged(f"{STATE} is damaged ({type(error).__name__})") from None
    if file.signed() != file:
        raise Damaged(f"{STATE} is damaged (its checksum differs)")
    for name, digest in file.files.items():
        try:
            same = _digest(folder / name) == digest
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({error.strerror})") from None
        if not same:
            raise Damaged(f"{name} is damaged (its checksum differs)")
    return file.state


def _bring_in_line(run: Path, state: TrainingState, report: Callable[[str], None]) -> TrainingState:
    """Makes best model and history those of the newest checkpoint, and removes what a kill left half-written."""
    shutil.rmtree(run / UNFINISHED, ignore_errors=True)
    for path in run.glob(".*"):
        if re.match(r"\.\d+\.", path.name) and path.is_file():
            path.unlink()
    best, kept = run / MODEL, run / NEWEST / MODEL
    if not state.best_model:  # of an epoch that is not finished in this checkpoint
        best.unlink(missing_ok=True)
    elif _digest_or_nothing(best) != state.best_model:
        if _digest_or_nothing(kept) == state.best_model:
            _publish(run)
        else:
            report(f"{best} is damaged, and so is the copy in {kept.parent}: the best epoch from now on counts")
            state = dataclasses.replace(state, best=None, best_model="")
    elif not (kept.exists() and best.samefile(kept)) and _digest_or_nothing(kept) != state.best_model:
        kept.unlink(missing_ok=True)  # a copy that is damaged, where the next checkpoint would take it from
        _link(best, kept)
    write_history(run, state.history)
    return state


def digest_of(image_ids: list[str]) -> str:
    """A short text that differs where the images, or their order, do."""
    return hashlib.sha256("\n".join(image_ids).encode()).hexdigest()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_or_nothing(path: Path) -> str:
    with contextlib.suppress(OSError):
        return _digest(path)
    return ""
