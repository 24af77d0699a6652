"""Which devices train together, what is refused, and two processes over the loopback interface."""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers.project import ROOT, refused
from tests.helpers.runs import copy_level, history, small_flags, words
from tests.helpers.two_devices import FLAGS
from training import machines
from training.machines import Sharing

TWO = {"processes": 2, "coordinator": "10.0.0.1:1234"}
GPUS = [f"gpu:{number}" for number in range(4)]


# === Which devices ===================================================================================================
@pytest.mark.parametrize(
    ("change", "found", "used", "said"),
    [
        ({}, ["cpu:0"], 0, ""),
        ({}, ["cpu:0", "cpu:1"], 0, ""),  # nobody asked for what JAX was told to pretend
        ({}, [], 0, ""),  # PyTorch
        ({}, GPUS, 4, "devices: 4 (gpu) share each batch"),
        ({"devices": 2}, GPUS, 2, "devices: 2 (gpu) share each batch"),
        ({"strategy": "one"}, GPUS, 0, "devices: one (gpu); --strategy mirrored would use all 4"),
        ({"accumulate": 2}, GPUS, 0, "devices: one (gpu) of 4, because TensorFlow cannot --accumulate on several"),
        ({"strategy": "mirrored"}, ["gpu:0"], 0, "changes nothing with one"),
        ({"strategy": "mirrored"}, ["cpu:0", "cpu:1"], 2, "devices: 2 (cpu) share each batch"),
        ({"devices": 2}, ["cpu:0", "cpu:1"], 2, "devices: 2 (cpu)"),
        (TWO, ["cpu:0", "cpu:2048"], 2, "devices: 2 devices (cpu) of 2 processes share each batch"),
        (TWO | {"devices": 2}, GPUS, 4, "4 devices (gpu) of 2 processes"),
    ],
)
def test_the_devices_that_share_a_batch(monkeypatch, change, found, used, said):
    monkeypatch.setattr(machines.keras.backend, "backend", lambda: "tensorflow")
    devices, why = machines.choose(FLAGS | change, found)
    assert devices == found[:used]
    assert said in why
    assert bool(said) == bool(why)


@pytest.mark.parametrize(
    ("backend", "change", "message"),
    [
        ("tensorflow", TWO, "--processes 2 needs JAX, and the backend is tensorflow: set KERAS_BACKEND=jax"),
        ("jax", {"processes": 2}, "--processes 2 with --coordinator None: give both or neither"),
        ("jax", {"coordinator": "10.0.0.1:1234"}, "--processes 1 with --coordinator 10.0.0.1:1234: give both"),
        ("jax", TWO | {"coordinator": "host"}, "--coordinator host is no address:port"),
        ("jax", TWO | {"process": 2}, "--process is 2: it must be from 0 to 1"),
        ("jax", TWO | {"strategy": "one"}, "--strategy one is one device"),
        ("torch", {"strategy": "mirrored"}, "--strategy mirrored needs TensorFlow or JAX"),
        ("torch", {"devices": 2}, "--strategy mirrored needs TensorFlow or JAX"),
        ("tensorflow", {"strategy": "mirrored", "accumulate": 2}, "--accumulate 2 does not work with --strategy"),
    ],
)
def test_invalid_device_options_are_refused(monkeypatch, backend, change, message):
    monkeypatch.setattr(machines.keras.backend, "backend", lambda: backend)
    with refused(message):
        machines.check_flags(FLAGS | change)


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
@pytest.mark.parametrize("change", [{}, {"strategy": "one", "accumulate": 4}])
def test_one_device_is_never_refused(monkeypatch, backend, change):
    monkeypatch.setattr(machines.keras.backend, "backend", lambda: backend)
    machines.check_flags(FLAGS | change)


def test_devices_that_do_not_exist_or_share_a_batch_unevenly_are_refused():
    with refused("--devices is 5, and 4 were found (gpu:0 gpu:1 gpu:2 gpu:3): take at most 4"):
        machines.choose(FLAGS | {"devices": 5}, GPUS)
    Sharing(tuple(GPUS)).check_batch_size(8)
    Sharing().check_batch_size(7)
    with refused("--batch_size 6 cannot be shared by 4 devices evenly: take 4, for example"):
        Sharing(tuple(GPUS)).check_batch_size(6)


def test_one_process_does_not_communicate(tmp_path):
    assert machines.is_first()
    assert machines.share_of(8) is None
    assert machines.from_first(lambda: tmp_path) is tmp_path  # not even turned to JSON
    assert machines.from_any("SIGTERM") == "SIGTERM"
    with machines.copy_of_first(tmp_path / "file") as path:
        assert path == tmp_path / "file"


def test_the_shares_of_the_processes_are_the_batch(monkeypatch):
    shares = []
    for process in range(4):
        monkeypatch.setattr(machines.devices, "process_and_processes", lambda process=process: (process, 4))
        shares += machines.share_of(12)
    assert shares == list(range(12))


# === Two processes ===================================================================================================


class Training:
    """One process of a03 on JAX."""

    def __init__(self, photographs, output, log, *arguments):
        self.log = log
        changes = {"epochs": 3, "steps_per_epoch": 6, "checkpoint_steps": 2, "batch_size": 4, "image_size": 96}
        flags = small_flags(photographs, output, run="run", **changes, optimizer="sgd", learning_rate=0.01)
        variables = {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.helpers.tiny_training", *map(str, arguments), *words(flags)],
                env=os.environ | variables,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )

    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str, seconds: float = 900) -> None:
        end = time.monotonic() + seconds
        while text not in self.printed():
            assert self.process.poll() is None, self.printed()
            assert time.monotonic() < end, self.printed()
            time.sleep(0.1)

    def losses(self) -> dict[int, tuple[float, ...]]:
        found = re.findall(r"^loss (\d+) (\S+) (\S+) (\S+) \d+$", self.printed(), flags=re.MULTILINE)
        return {int(step): tuple(map(float, values)) for step, *values in found}


@pytest.fixture
def start(photographs, tmp_path):
    """Starts one process, or two that are told of each other; process 1 has an output folder of its own."""
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed")
    started = []
    for name in ("first", "other", "alone"):
        copy_level(photographs[1], tmp_path / name)

    def one(name, *arguments):
        log = tmp_path / f"{len(started)}.log"
        started.append(Training(photographs, tmp_path / name, log, *arguments))
        return started[-1]

    def two():
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        together = ["--coordinator", f"127.0.0.1:{port}", "--processes", 2, "--process"]
        return one("first", *together, 0), one("other", *together, 1)

    yield lambda processes: one("alone") if processes == 1 else two()
    for training in started:
        training.process.kill()
        training.process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_two_processes_train_as_one_and_end_together(start, tmp_path, victim):
    pair = start(2)
    for training in pair:
        training.wait_for("\nloss 9 ")
    pair[victim].process.send_signal(signal.SIGKILL)
    survivor = pair[1 - victim]
    assert survivor.process.wait(120) in (2, -signal.SIGABRT)  # the latter is JAX's, who may be faster
    assert pair[victim].process.wait(10) == -signal.SIGKILL
    time.sleep(1)
    for training in pair:
        sentences = [line for line in training.printed().splitlines() if line.startswith("error:")]
        assert len(sentences) == 1, training.printed()
        assert "of this training is gone" in sentences[0]
        assert "start the same command on all machines again" in sentences[0]
        assert "Traceback" not in training.printed()

    again = start(2)
    assert [training.process.wait(900) for training in again] == [0, 0], again[0].printed() + again[1].printed()
    assert "going on after epoch 1 of 3" in again[0].printed()
    assert not (tmp_path / "other" / "weights").exists()  # only process 0 writes

    alone = start(1)
    assert alone.process.wait(900) == 0, alone.printed()
    expected = alone.losses()
    assert sorted(expected) == list(range(1, 19))
    for training in (*pair, *again):
        assert training.losses()
        for step, losses in training.losses().items():
            np.testing.assert_allclose(losses, expected[step], rtol=1e-3, err_msg=str(step))
    assert set(pair[0].losses()) | set(again[0].losses()) == set(expected)
    for mine, other in zip(*(history(tmp_path / name / "weights/run") for name in ("first", "alone")), strict=True):
        for column in ("loss", "class_loss", "box_loss"):
            assert float(mine[column]) == pytest.approx(float(other[column]), rel=1e-3)


@pytest.mark.slow
def test_a_signal_to_one_process_saves_and_ends_both(start, tmp_path):
    pair = start(2)
    pair[0].wait_for("\nloss 3 ")
    pair[1].process.send_signal(signal.SIGTERM)
    assert [training.process.wait(300) for training in pair] == [0, 0], pair[0].printed() + pair[1].printed()
    for training in pair:
        assert "stopped by SIGTERM after step" in training.printed()
    assert (tmp_path / "first" / "weights" / "run" / "checkpoint" / "state.json").is_file()
