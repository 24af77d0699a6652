"""Checkpoints of a training: complete or not there, flushed to the disk, the last two of them, with checksums.

    RUN/checkpoint/            the newest
    RUN/checkpoint.previous/   the one before it
    RUN/checkpoint.new/        the one that is being written

Each has all that a training goes on with: `training.npz` (weights, random seeds, the optimizer and its moving average),
`network.weights.h5` (the averaged network, for inference), `model.keras` (the best model so far, a hard link where the
file system has such), and `state.json`: where the training is, the sums of the epoch's losses, the history, the
settings, and the SHA-256 of the other files and of itself. It is written last: without it there is no checkpoint.

Keras would save a training's weights without the seeds of dropout, and by HDF5, which crashes where the disk is full.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import zipfile
from pathlib import Path

import keras
import numpy as np

from models import detector
from oid.files import InputError, replacing
from training import machines
from training.averages import averaged_weights
from training.history import write_history
from training.schedule import LINE

TRAINING = "training.npz"
NETWORK_WEIGHTS = detector.CHECKPOINT_WEIGHTS.name
STATE = "state.json"
NEWEST, PREVIOUS, UNFINISHED, DAMAGED = "checkpoint", "checkpoint.previous", "checkpoint.new", "checkpoint.damaged"
PAGES = 8192  # bytes
BLOCK = 2**20
NO_FOLDER_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EISDIR}


class Damaged(Exception):
    """Why a checkpoint cannot be used."""


def new_state() -> dict:
    """The state of a training that has not begun.

    Its entries: `step`, the steps done; `epochs` finished of `total`, `steps` per epoch, the `schedule` of the learning
    rate, `average_over` so many steps, `closed`, see `training.loop.planned_at_closing`, `seconds` used in all and
    `epoch_seconds` in the epoch begun, the `best` mAP and the SHA-256 of its `best_model`, `history`, and the `means`
    (sums and counts of the epoch's losses).
    """
    begun = {"step": 0, "epochs": 0, "total": 0, "steps": 0, "schedule": {}, "average_over": None, "closed": 0}
    times = {"seconds": 0.0, "epoch_seconds": 0.0}
    return begun | times | {"best": -1.0, "best_model": "", "history": [], "means": []}


def best_so_far(state: dict) -> str:
    """The best mAP so far, to end a sentence with; nothing without validation images."""
    return f", best mAP {state['best']:.4f}" if state["best"] >= 0 else ""


# === Writing =========================================================================================================
def write_checkpoint(
    run: Path, trainer: keras.Model, network: keras.Model, state: dict, *, best_model: keras.Model | None = None
) -> None:
    """Writes the newest checkpoint; the one before it stays as the previous one.

    A process that is killed at any moment leaves this one, or the two before it.

    Args:
        run: folder of the run.
        trainer: compiled; its weights, random seeds, optimizer and metrics are kept.
        network: the network inside.
        state: see `new_state`; its `means` and `best_model` are filled in.
        best_model: the model for inference, where the averaged weights are the best so far; it becomes RUN/model.keras.

    Raises:
        InputError: it cannot be written, for want of space for example; the checkpoints before are untouched.
    """
    if not machines.is_first():
        with averaged_weights(trainer):  # several processes change the weights together, and one of them writes
            return
    new = run / UNFINISHED
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        _write_files(run, new, trainer, network, state, best_model)
        flush(new)
        _rotate(run)
        if best_model is not None:
            _publish(run)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        before = "the checkpoints before are untouched" if (run / NEWEST).exists() else "there is none before it"
        raise InputError(
            f"{new} cannot be written ({_reason(error)}) and {before}: make room, then run the same command to go on"
        ) from error


def _write_files(run: Path, new: Path, trainer, network, state: dict, best_model) -> None:
    _save_arrays(new / TRAINING, _variables(trainer))
    with averaged_weights(trainer):
        if best_model is not None:
            best_model.save(new / detector.MODEL)
        _reserve(new / "room", _bytes_of(network))
        network.save_weights(new / NETWORK_WEIGHTS)
    if best_model is not None:
        state["best_model"] = _digest(new / detector.MODEL)
    elif state.get("best_model"):
        _link(run / NEWEST / detector.MODEL, new / detector.MODEL)
    state["means"] = [float(keras.ops.convert_to_numpy(variable)) for variable in trainer.metrics_variables]
    files = {name: _digest(new / name) for name in (TRAINING, NETWORK_WEIGHTS)}
    for path in new.iterdir():
        flush(path)
    whole = json.loads(json.dumps({**state, "files": files}))  # as it will be read; rows keep the order of columns
    checksum = _text_digest(json.dumps(whole, sort_keys=True))
    with replacing(new / STATE) as path:
        path.write_text(json.dumps({**whole, "checksum": checksum}), encoding="utf-8")
        flush(path)


def _rotate(run: Path) -> None:
    """The finished checkpoint becomes the newest one. Whenever this stops, `find_checkpoint` still finds it."""
    shutil.rmtree(run / PREVIOUS, ignore_errors=True)
    if (run / NEWEST).exists():
        (run / NEWEST).rename(run / PREVIOUS)
    (run / UNFINISHED).rename(run / NEWEST)
    flush(run)


def _publish(run: Path) -> None:
    """Makes the newest checkpoint's best model that of the run."""
    with replacing(run / detector.MODEL) as path:
        path.unlink(missing_ok=True)
        _link(run / NEWEST / detector.MODEL, path)


def _variables(trainer: keras.Model) -> list[keras.Variable]:
    """All that a step changes but the sums of the losses; in the same order for the same settings.

    The end of the schedule, which the optimizer has among its variables, is in the state.
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
    """Makes a file of so many bytes and removes it: HDF5 ends the process where there is no room for what it writes."""
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


# === Reading =========================================================================================================
def find_checkpoint(run: Path) -> tuple[Path | None, dict, list[str]]:
    """The newest checkpoint that is sound, its state, and what is wrong with newer ones. Changes nothing.

    Returns:
        (None, the state of a training that has not begun, []) where there is none.

    Raises:
        InputError: there are some, but none is sound.
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
        raise InputError(f"{wrong[0]}, and no sound checkpoint is before it: remove {run}, or choose another --run")
    return None, new_state(), []


def open_run(run: Path) -> dict:
    """The state to go on with, after bringing the run's files in line with it.

    A newest checkpoint that is damaged is kept as `checkpoint.damaged`, and what replaces it is printed.

    Raises:
        InputError: there are checkpoints, but none is sound.
    """
    folder, state, wrong = find_checkpoint(run)
    for sentence in wrong:
        print(f"{sentence}: going on from the checkpoint before, of step {state['step']}", flush=True)
    if folder is None:
        return state
    if folder.name == UNFINISHED:  # finished, but killed before it got its name
        _rotate(run)
    elif folder.name == PREVIOUS:
        shutil.rmtree(run / DAMAGED, ignore_errors=True)
        if (run / NEWEST).exists():
            (run / NEWEST).rename(run / DAMAGED)
        folder.rename(run / NEWEST)
    _bring_in_line(run, state)
    return state


def look_at_run(run: Path) -> dict:
    """The state of a run's newest checkpoint; no file is touched, so the run may be training at this moment.

    Raises:
        InputError: the newest checkpoint is not whole.
    """
    folder, state, wrong = find_checkpoint(run)
    if folder is not None and folder.name != NEWEST:
        reason = wrong[0] if wrong else f"{run / NEWEST} is being replaced"
        raise InputError(f"{reason}: try again, or let the training go on first, which mends it")
    return state


def restore(run: Path, trainer: keras.Model, state: dict) -> None:
    """Gives a trainer, compiled as it was, the weights, the optimizer and the random state of the newest checkpoint.

    Raises:
        InputError: they are those of another network.
    """
    file, variables = run / NEWEST / TRAINING, _variables(trainer)
    with machines.copy_of_first(file) as copy, np.load(copy, allow_pickle=False) as arrays:
        if len(arrays.files) != len(variables):
            raise InputError(
                f"{file} has {len(arrays.files)} arrays, and the network of its settings with its optimizer "
                f"{len(variables)}: it was written by another version, choose another --run"
            )
        for number, variable in enumerate(variables):
            array = arrays[str(number)]
            if array.shape != tuple(variable.shape):
                raise InputError(
                    f"{file}: array {number} has shape {array.shape}, expected {tuple(variable.shape)} for "
                    f"{variable.path}: it was written by another version, choose another --run"
                )
            variable.assign(array)


def note_images(state: dict, image_ids: list[str]) -> None:
    """Says so where a run goes on with other training images than before: their order is another one then."""
    digest = _text_digest("\n".join(image_ids))
    if state["step"] and state.get("images", digest) != digest:
        print(
            "the training images are not those of the checkpoint: from here on they come in another order", flush=True
        )
    state["images"] = digest


def _read_state(folder: Path) -> dict:
    """The state of a checkpoint whose files are what was written.

    Raises:
        Damaged: the message begins with the file's name.
    """
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        checksum = state.pop("checksum")
    except FileNotFoundError:
        raise Damaged(f"{STATE} is missing") from None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise Damaged(f"{STATE} is damaged ({type(error).__name__})") from None
    if _text_digest(json.dumps(state, sort_keys=True)) != checksum:
        raise Damaged(f"{STATE} is damaged (its checksum differs)")
    for name, digest in state.pop("files").items():
        try:
            same = _digest(folder / name) == digest
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({error.strerror})") from None
        if not same:
            raise Damaged(f"{name} is damaged (its checksum differs)")
    return state


def _bring_in_line(run: Path, state: dict) -> None:
    """Makes best model and history those of the newest checkpoint, and removes what a kill left half-written."""
    shutil.rmtree(run / UNFINISHED, ignore_errors=True)
    for path in run.glob(".*"):
        if re.match(r"\.\d+\.", path.name) and path.is_file():
            path.unlink()
    best, kept = run / detector.MODEL, run / NEWEST / detector.MODEL
    if not state["best_model"]:  # of an epoch that is not finished in this checkpoint
        best.unlink(missing_ok=True)
    elif _digest_or_nothing(best) != state["best_model"]:
        if _digest_or_nothing(kept) == state["best_model"]:
            _publish(run)
        else:
            print(f"{best} is damaged, and so is the copy in {kept.parent}: the best epoch from now on counts")
            state.update(best=-1.0, best_model="")
    elif not (kept.exists() and best.samefile(kept)) and _digest_or_nothing(kept) != state["best_model"]:
        kept.unlink(missing_ok=True)  # a copy that is damaged, where the next checkpoint would take it from
        _link(best, kept)
    history = run / "history.csv"
    if not state["history"]:
        history.unlink(missing_ok=True)
    else:
        write_history(history, state["history"], only_if_other=True)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_or_nothing(path: Path) -> str:
    with contextlib.suppress(OSError):
        return _digest(path)
    return ""


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
