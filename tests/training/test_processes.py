"""What several processes tell each other, what is refused, and two processes over the loopback interface."""

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
from training import processes
from training.state import TrainingState

KERAS_VARIABLES = (processes.ADDRESSES, processes.NUMBER, processes.ID)


def set_environment(monkeypatch, values: dict[str, str], backend: str = "jax") -> None:
    for name in (*KERAS_VARIABLES, *processes.LAUNCHERS):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes.keras.backend, "backend", lambda: backend)


@pytest.mark.parametrize(
    ("values", "several"),
    [
        ({}, False),
        ({processes.NUMBER: "1"}, False),
        ({processes.NUMBER: "2"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"SLURM_NTASKS": "4"}, False),  # a batch script without srun is one process
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ],
)
def test_the_environment_asks_for_several_processes(monkeypatch, values, several):
    set_environment(monkeypatch, values)
    assert processes.asked_for() == several


@pytest.mark.parametrize(
    ("values", "backend", "message"),
    [
        (("10.0.0.1:1234", "2", "0"), "tensorflow", "several processes need JAX, the backend is tensorflow"),
        (("10.0.0.1:1234", "two", "0"), "jax", "KERAS_DISTRIBUTION_NUM_PROCESSES=two needs whole numbers"),
        (("10.0.0.1:1234", "2"), "jax", "'KERAS_DISTRIBUTION_PROCESS_ID' is missing"),
        (("host", "2", "0"), "jax", "KERAS_DISTRIBUTION_JOB_ADDRESSES=host must be address:port of process 0"),
        (("10.0.0.1:1234", "2", "2"), "jax", "KERAS_DISTRIBUTION_PROCESS_ID=2 from 0 to 1"),
    ],
)
def test_an_incomplete_environment_is_refused(monkeypatch, values, backend, message):
    set_environment(monkeypatch, dict(zip(KERAS_VARIABLES, values, strict=False)), backend)
    with refused(message), processes.together():
        pass


def test_the_coordinator_listens_on_the_address_given_only(monkeypatch):
    pytest.importorskip("jax")
    given = []
    monkeypatch.setattr("jax.distributed.initialize", lambda **options: given.append(options))
    monkeypatch.setattr("jax.distributed.shutdown", lambda: None)
    values = dict(zip(KERAS_VARIABLES, ("10.0.0.1:1234,10.0.0.2:1234", "2", "1"), strict=True))
    set_environment(monkeypatch, values)
    with processes.together():
        pass
    assert given[0]["coordinator_address"] == given[0]["coordinator_bind_address"] == "10.0.0.1:1234"
    assert (given[0]["num_processes"], given[0]["process_id"]) == (2, 1)
    assert given[0]["heartbeat_timeout_seconds"] == 30


def test_one_process_does_not_communicate(tmp_path):
    assert processes.is_first()
    assert processes.share_of(8) is None
    assert processes.from_first(lambda: tmp_path) is tmp_path  # not even turned to JSON
    assert processes.from_any("SIGTERM") == "SIGTERM"
    with processes.copy_of_first(tmp_path / "file") as path:
        assert path == tmp_path / "file"


def test_a_dataclass_of_the_first_process_arrives_whole(monkeypatch):
    monkeypatch.setattr(processes, "process_and_processes", lambda: (0, 2))
    monkeypatch.setattr(processes, "_broadcast", lambda values: values)
    state = TrainingState(step=7, best=0.5, loss_sums=(1.0, 2.0))
    assert processes.from_first(lambda: state, TrainingState) == state


def test_the_shares_of_the_processes_are_the_batch(monkeypatch):
    shares = []
    for process in range(4):
        monkeypatch.setattr(processes, "process_and_processes", lambda process=process: (process, 4))
        shares += processes.share_of(12)
    assert shares == list(range(12))


# === Two processes ===================================================================================================
class Training:
    """One process of a03 on JAX."""

    def __init__(self, photographs, output, log, environment):
        self.log = log
        changes = {"epochs": 3, "steps_per_epoch": 6, "batch_size": 4, "image_size": 96, "learning_rate": 0.001}
        flags = small_flags(photographs, output, run="run", **changes)
        environment = environment | {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.helpers.tiny_training", "--checkpoint_steps", "2", *words(flags)],
                env=os.environ | environment,
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
        found = re.findall(r"^loss (\d+) (\S+) (\S+) (\S+)$", self.printed(), flags=re.MULTILINE)
        return {int(step): tuple(map(float, values)) for step, *values in found}


@pytest.fixture
def start(photographs, tmp_path):
    """Starts one process, or two that are told of each other; process 1 has an output folder of its own."""
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed")
    started = []
    for name in ("first", "other", "alone"):
        copy_level(photographs[1], tmp_path / name)

    def one(name, **environment):
        log = tmp_path / f"{len(started)}.log"
        started.append(Training(photographs, tmp_path / name, log, environment))
        return started[-1]

    def two():
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        together = {processes.ADDRESSES: f"127.0.0.1:{port}", processes.NUMBER: "2"}
        return one("first", **together, **{processes.ID: "0"}), one("other", **together, **{processes.ID: "1"})

    yield lambda number: one("alone") if number == 1 else two()
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
    assert survivor.process.wait(60) in (2, -signal.SIGABRT)  # the latter is JAX's, which may be faster than Python
    assert pair[victim].process.wait(10) == -signal.SIGKILL
    if victim == 1:  # when process 0 is lost, JAX may end the others before Python can speak
        assert "another process of this training is lost" in survivor.printed()
    assert "Traceback" not in survivor.printed()

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
    assert [training.process.wait(300) for training in pair] == [75, 75], pair[0].printed() + pair[1].printed()
    for training in pair:
        assert "stopped by SIGTERM after step" in training.printed()
    assert (tmp_path / "first" / "weights" / "run" / "checkpoint" / "state.json").is_file()
