"""A checkpoint holds all of a training, is whole or absent, and damage is noticed."""

import contextlib
import dataclasses
import os
import shutil
import sys

import keras
import numpy as np
import pytest

from oid.files import InputError
from tests.helpers.killed_runs import OPERATIONS
from tests.helpers.project import refused
from training import checkpoints
from training.checkpoints import NEWEST, PREVIOUS, UNFINISHED, find_checkpoint, write_checkpoint, write_history
from training.schedule import Schedule, make_optimizer, new_schedule
from training.state import EpochRow, Plan, TrainingState

resource = pytest.importorskip("resource", reason="limits of file sizes are a matter of POSIX systems")


def small_trainer(*, seed: int = 0, units: int = 8) -> keras.Model:
    """Two layers with dropout between them, with the optimizer of a03."""
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(units), keras.layers.Dropout(0.5, seed=seed), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    optimizer = make_optimizer(Schedule(new_schedule(0.1, 100)), weight_decay=0.01, accumulate=2)
    model.compile(optimizer=optimizer, loss="mse", run_eagerly=True)
    optimizer.build(model.trainable_variables)
    return model


def network_of(trainer: keras.Model) -> keras.Model:
    """The same weights, not compiled."""
    return keras.Model(trainer.inputs, trainer.outputs)


def step(trainer: keras.Model, number: int) -> None:
    rng = np.random.default_rng(number)
    trainer.train_on_batch(rng.normal(size=(8, 4)), rng.normal(size=(8, 1)))


def everything(trainer: keras.Model) -> list[np.ndarray]:
    """All that a step depends on or changes: weights, random state, optimizer, sums of the losses."""
    variables = [*trainer.variables, *trainer.optimizer.variables, *trainer.metrics_variables]
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def assert_equal(one: list[np.ndarray], two: list[np.ndarray]) -> None:
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def trainer():
    made = small_trainer()
    for number in range(3):
        step(made, number)
    return made


def open_run(run, said=None) -> TrainingState:
    """The state to go on with; what is reported goes to `said`, or must be nothing."""
    reported = []
    state = checkpoints.open_run(run, reported.append)
    if said is None:
        assert reported == []
    else:
        said += reported
    return state


def write(run, trainer, number: int, *, best: bool = False) -> None:
    """The checkpoint after `number` steps, each an epoch, and what the end of an epoch writes besides."""
    state = find_checkpoint(run)[1]
    rows = tuple(EpochRow(epoch + 1, 1.0, 0.5, 0.5, None, 0.1, None, 2.5) for epoch in range(number))
    changes = {"step": number, "epochs": number, "history": rows, "best": 0.1 * number if best else state.best}
    state = dataclasses.replace(state, plan=Plan(9, 1, 7), schedule=new_schedule(0.1, 9), **changes)
    write_checkpoint(run, trainer, trainer, state, best=network_of(trainer) if best else None)
    write_history(run, rows)


@pytest.fixture(scope="module")
def written(tmp_path_factory, trainer):
    """Two checkpoints, of steps 1 and 2; the first had the best model so far."""
    folder = tmp_path_factory.mktemp("written") / "run"
    write(folder, trainer, 1, best=True)
    write(folder, trainer, 2)
    assert (folder / "model.keras").stat().st_nlink == 3  # with both checkpoints
    return folder


@pytest.fixture
def run(tmp_path, written):
    """A copy of `written`."""
    folder = tmp_path / "run"
    shutil.copytree(written, folder)
    for name in (NEWEST, PREVIOUS):
        (folder / name / "model.keras").unlink()
        os.link(folder / "model.keras", folder / name / "model.keras")
    return folder


HEADER = "epoch,loss,class_loss,box_loss,mAP,learning_rate,images_per_second,seconds"


def assert_in_line(run, state: TrainingState) -> None:
    """What lies in the run's folder is what its checkpoint says."""
    assert checkpoints._digest_or_nothing(run / "model.keras") == state.best_model
    rows = (run / "history.csv").read_text().splitlines() if (run / "history.csv").exists() else []
    assert rows == [HEADER] * bool(rows) + [f"{epoch + 1},1.0,0.5,0.5,,0.1,,2.5" for epoch in range(state.epochs)]
    assert not [path for path in run.rglob("*") if path.name.startswith(".")]


# === What it holds ===================================================================================================
@pytest.mark.parametrize("best", [False, True])
def test_another_process_goes_on_bit_for_bit(tmp_path, best):
    """Weights, moments, half-collected gradients, dropout's seeds, sums of the losses: all of them count."""
    trainer, other = small_trainer(), small_trainer(seed=1)
    for number in range(3):
        step(trainer, number)
    before = everything(trainer)
    state = write_checkpoint(
        tmp_path, trainer, trainer, TrainingState(step=3), best=network_of(trainer) if best else None
    )
    assert_equal(everything(trainer), before)  # writing changes nothing
    assert open_run(tmp_path) == state
    checkpoints.restore(tmp_path, other)
    checkpoints.restore_loss_sums(other, state)
    assert_equal(everything(other), before)
    for number in range(3, 6):
        step(other, number)
        step(trainer, number)
    expected = everything(trainer)
    assert_equal(everything(other), expected)
    assert sum(np.any(a != b) for a, b in zip(expected, before, strict=True)) > 0.7 * len(before)


def test_a_checkpoint_of_another_network_or_optimizer_is_refused(run):
    with pytest.raises(InputError, match=r"training\.npz: array 0 has shape \(4, 8\), expected \(4, 9\) for "):
        checkpoints.restore(run, small_trainer(units=9))
    other = small_trainer()
    other.compile(optimizer="sgd", loss="mse")
    other.optimizer.build(other.trainable_variables)
    with pytest.raises(InputError, match=r"training\.npz has \d+ arrays, and the network .* with its optimizer \d+"):
        checkpoints.restore(run, other)


def test_the_state_of_an_earlier_version_is_refused(run):
    (run / NEWEST / "state.json").write_text('{"step": 3, "total": 4, "settings": {"flags": {}}, "checksum": "0"}')
    with refused(f"{run / NEWEST} was written by an earlier version: choose another run"):
        open_run(run)


# === Whenever it is killed ===========================================================================================
_watch = {"do": None}


def _hook(event, arguments):
    if _watch["do"] and event in OPERATIONS:
        do, _watch["do"] = _watch["do"], None  # what it does itself is not watched
        try:
            do()
        finally:
            _watch["do"] = do


sys.addaudithook(_hook)


@contextlib.contextmanager
def photographed(run, snaps):
    """Copies the run's folder before each operation on files: what a kill at that moment would leave."""
    snaps.mkdir()
    _watch["do"] = lambda: shutil.copytree(run, snaps / f"{len(list(snaps.glob('*'))):03d}", copy_function=os.link)
    try:
        yield
    finally:
        _watch["do"] = None


@pytest.mark.parametrize(
    ("first", "best"), [(False, False), (False, True), (True, True)], ids=["old best", "new best", "first"]
)
def test_a_killed_write_leaves_a_complete_checkpoint(run, trainer, tmp_path, first, best):
    """Either the one before or the new one; before the first one there is none."""
    if first:
        run = tmp_path / "first"
        run.mkdir()
    before, after = (0, 1) if first else (2, 3)
    with photographed(run, tmp_path / "snaps"):
        write(run, trainer, after, best=best)
    shutil.copytree(run, tmp_path / "snaps" / "999")
    steps = []
    for snap in sorted((tmp_path / "snaps").iterdir()):
        state = open_run(snap)
        steps.append(state.step)
        if state.step:
            assert_in_line(snap, state)
            assert state.best == pytest.approx(0.1 * after if best and state.step == after else 0.1)
            assert find_checkpoint(snap) == (snap / NEWEST, state, [])
    assert len(steps) > (10 if first else 20)
    assert steps == sorted(steps)
    assert set(steps) == {before, after}
    assert steps.count(after) >= 5  # also between the checkpoint's last byte and its final name


def test_half_written_files_are_removed(run):
    (run / ".4711.history.csv").write_text("half")
    (run / "model.keras").unlink()
    assert_in_line(run, open_run(run))


def test_the_last_two_are_kept(run, trainer):
    for number in (3, 4, 5):
        write(run, trainer, number)
        assert checkpoints._read_state(run / NEWEST).step == number
        assert checkpoints._read_state(run / PREVIOUS).step == number - 1
        assert not (run / UNFINISHED).exists()


# === Damage ==========================================================================================================
def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "flipped": flip,
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["training.npz", "network.weights.h5", "state.json"])
def test_a_damaged_newest_one_falls_back_and_says_so(run, trainer, name, damage):
    write(run, trainer, 3, best=True)
    DAMAGES[damage](run / NEWEST / name)
    said = []
    state = open_run(run, said)
    (line,) = said
    assert line.startswith(f"{run / NEWEST / name} " + "is " * (damage != "removed"))
    assert line.endswith(": going on from the checkpoint before, of step 2")
    assert state.step == 2
    assert_in_line(run, state)  # the best model of step 3 and the third row are gone with it
    assert state.best == pytest.approx(0.1)
    assert (run / "checkpoint.damaged").is_dir()
    assert open_run(run) == state  # which is the newest one now
    write(run, trainer, 3)
    assert find_checkpoint(run)[1].step == 3


def test_a_changed_state_that_is_still_json_is_noticed(run):
    path = run / NEWEST / "state.json"
    path.write_text(path.read_text().replace('"best":0.1', '"best":0.9'))
    assert find_checkpoint(run)[1].step == 1


def test_looking_at_a_run_touches_no_file_of_it(run):
    """A training may be writing at this moment; what looking cannot mend without it is said."""
    (run / UNFINISHED).mkdir()
    (run / UNFINISHED / "training.npz").write_bytes(b"half")
    before = snapshot(run)
    assert checkpoints.look_at_run(run).step == 2
    assert checkpoints.look_at_run(run / "nothing") == TrainingState()
    assert snapshot(run) == before
    flip(run / NEWEST / "training.npz")
    before = snapshot(run)
    with pytest.raises(InputError, match=r"training\.npz .*: try again, or let the training go on first"):
        checkpoints.look_at_run(run)
    assert snapshot(run) == before


def snapshot(run) -> dict:
    """What is on the disk."""
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_two_damaged_checkpoints_are_refused_and_left_as_they_are(run):
    for name in (NEWEST, PREVIOUS):
        flip(run / name / "training.npz")
    before = snapshot(run)
    with pytest.raises(InputError, match=r"checkpoint/training\.npz is damaged .*, and no sound checkpoint is "):
        open_run(run)
    assert snapshot(run) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_best_model_comes_back_from_the_checkpoint(run, damage, monkeypatch, trainer):
    """On a file system without links the copies are files of their own."""

    def no_link(*arguments):
        raise OSError(1, "not here")

    monkeypatch.setattr(os, "link", no_link)
    write(run, trainer, 3, best=True)
    assert not (run / "model.keras").samefile(run / NEWEST / "model.keras")
    DAMAGES[damage](run / "model.keras")
    state = open_run(run)
    assert_in_line(run, state)
    DAMAGES[damage](run / NEWEST / "model.keras")
    assert open_run(run) == state
    assert checkpoints._digest(run / NEWEST / "model.keras") == state.best_model


def test_after_the_best_model_is_lost_the_next_one_is_the_best(run):
    flip(run / "model.keras")  # all its links are one file
    said = []
    state = open_run(run, said)
    assert (state.best, state.best_model, state.step) == (None, "", 2)
    assert "the best epoch from now on counts" in said[0]


# === A disk that is full =============================================================================================
@contextlib.contextmanager
def largest_file(size: int):
    """The system refuses to write more than so many bytes into one file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("share", "best"),
    [(0, True), (0.5, True), (1.01, True), (1.01, False)],
    ids=["no byte", "half of the training", "not the best model", "not the network, by HDF5"],
)
def test_a_write_that_fails_is_one_sentence_and_the_old_checkpoint_stays(run, trainer, share, best):
    before = snapshot(run)
    message = f"{run / UNFINISHED} cannot be written (File too large) and the checkpoints before are untouched"
    with refused(message), largest_file(int(share * (run / NEWEST / "training.npz").stat().st_size)):
        write(run, trainer, 3, best=best)
    assert snapshot(run) == before
    write(run, trainer, 3)
    assert find_checkpoint(run)[1].step == 3
