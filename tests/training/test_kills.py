"""Real processes that are killed or stopped go on bit for bit, with --deterministic."""

import json
import os
import random
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.project import ROOT, run_on_backend
from tests.helpers.runs import assert_same_training, copy_level, history, small_flags, tensors, words
from training.checkpoints import find_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the trainings are forks of one process")

STEPS = 40
# gradients are half-collected at odd steps, and several threads make the batches
FLAGS = {"epochs": 4, "steps_per_epoch": 10, "accumulate": 2, "deterministic": True}
KILLS = int(os.environ.get("KILLS", "100"))  # of the slow test


class Trainings:
    """The program `killed_runs.py`, and the runs that it makes."""

    def __init__(self, photographs: tuple[Path, Path], output: Path):
        self.output = copy_level(photographs[1], output)
        self.arguments = words(small_flags(photographs, output, **FLAGS))
        self.program = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "helpers" / "killed_runs.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )

    def start(self, run: str, *arguments: str, **when) -> tuple[int, str]:
        """Trains until the end, or until what `killed_runs.py` is told; the exit code, and what was printed."""
        log = self.output / f"{run}.log"
        log.write_text("")
        task = {"run": run, "log": str(log), "when": when, "arguments": [*self.arguments, *arguments]}
        self.program.stdin.write(json.dumps(task) + "\n")
        self.program.stdin.flush()
        return json.loads(self.program.stdout.readline()), log.read_text()

    def folder(self, run: str) -> Path:
        return self.output / "weights" / run

    def step(self, run: str) -> int:
        """How far the checkpoint of a run is."""
        return find_checkpoint(self.folder(run))[1].step

    def finished(self, run: str) -> bool:
        """Whether the last epoch is measured, too."""
        return find_checkpoint(self.folder(run))[1].epochs == 4

    def close(self) -> None:
        self.program.stdin.close()
        self.program.wait(timeout=60)
        self.program.stdout.close()


@pytest.fixture(scope="module")
def trainings(photographs, tmp_path_factory):
    made = Trainings(photographs, tmp_path_factory.mktemp("kills"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(trainings):
    """The run that was never interrupted."""
    code, printed = trainings.start("whole")
    assert code == 0, printed
    return trainings.folder("whole")


def contents(run: Path) -> dict[str, np.ndarray]:
    """Weights, optimizer and random state; the network; the best model; history without times."""
    found = {f"training {k}": value for k, value in tensors(run / "checkpoint" / "training.npz").items()}
    with zipfile.ZipFile(run / "model.keras") as archive, archive.open("model.weights.h5") as weights:
        found |= {f"best {name}": value for name, value in tensors(weights).items()}
    found |= {f"network {k}": value for k, value in tensors(run / "checkpoint" / "network.weights.h5").items()}
    for row in history(run):
        found |= {f"history {row['epoch']} {k}": np.array(v) for k, v in row.items() if "second" not in k}
    return found


def assert_same(run: Path, other: Path) -> None:
    """Not one bit differs."""
    one, two = contents(run), contents(other)
    assert one.keys() == two.keys()
    assert len(one) > 100
    assert [name for name in one if one[name].tobytes() != two[name].tobytes()] == []


def test_killed_and_stopped_runs_end_with_the_same_bits(trainings, whole):
    rng = random.Random(os.environ.get("PYTEST_SEED", "5"))
    kill, stop = rng.choice([4, 5, 7, 8]), rng.choice([21, 22, 24, 28])
    code, printed = trainings.start("killed", step=kill)
    assert code == -signal.SIGKILL
    assert trainings.step("killed") == kill // 3 * 3  # every three steps, in the middle of the first epoch

    code, printed = trainings.start("killed", operation=rng.randrange(60, 100))  # while it writes
    assert code == -signal.SIGKILL
    assert f"going on after epoch 0 of 4 and {kill // 3 * 3} of 10 steps" in printed

    code, printed = trainings.start("killed", step=stop, signal=int(signal.SIGTERM))
    assert code == 75
    last = printed.splitlines()[-1]
    sentence = f"{trainings.folder('killed')}: stopped by SIGTERM after step {stop + 1} of {STEPS}, saved"
    assert last.startswith(sentence)
    assert last.endswith(": run the same command to go on")
    assert trainings.step("killed") == stop + 1  # nothing is lost

    code, printed = trainings.start("killed")
    assert code == 0
    assert f"going on after epoch 2 of 4 and {stop + 1 - 20} of 10 steps" in printed
    assert_same(trainings.folder("killed"), whole)


@pytest.mark.slow
def test_random_kills(trainings, whole):
    rng, kills, run = random.Random(7), 0, 0
    while kills < KILLS:
        name, code = f"random_{run}", 1
        while not (code == 0 and trainings.finished(name)):
            step = trainings.step(name)
            signals = [signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT]
            kinds = [
                {"step": step + rng.randrange(9), "signal": int(rng.choice(signals))},
                {"operation": rng.randrange(1, 120)},
                {"seconds": 2 * rng.random()},
            ]
            arguments = ["--max_hours", "1e-9"] if rng.random() < 0.05 else []
            when = rng.choice(kinds) if kills < KILLS else {}
            code, printed = trainings.start(name, *arguments, **when)
            kills += code != 0
            print(f"{name} from step {step}: {when} {' '.join(arguments)}, exit code {code}, {kills} kills", flush=True)
            assert code in (0, 75, -signal.SIGKILL, 130), printed
            if code != -signal.SIGKILL and "is finished" not in printed:
                assert "run the same command to go on" in printed or trainings.finished(name), printed
        assert_same(trainings.folder(name), whole)
        run += 1
    print(f"{kills} kills in {run} runs")


STOPPED = """
import contextlib, json, signal
import a03_train_m2det as a03
from oid.files import Unfinished
from tests.helpers import tiny_training
tiny_training.prepare(dropout=0.2, checkpoint_steps=3)
flags = json.loads({flags!r})
a03.main(run="whole", **flags)
tiny_training.stop_after(5)
with contextlib.suppress(Unfinished):
    a03.main(run="stopped", **flags)
a03.main(run="stopped", **flags)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_on_every_backend_a_stopped_run_goes_on_in_the_middle_of_an_epoch(photographs, tmp_path, backend):
    length = {"epochs": 2, "steps_per_epoch": 6, "accumulate": 2, "deterministic": True}
    flags = small_flags(photographs, copy_level(photographs[1], tmp_path), **length)
    run_on_backend(backend, STOPPED.format(flags=json.dumps(flags)))
    assert_same_training(tmp_path / "weights" / "whole", tmp_path / "weights" / "stopped", atol=2e-6)
