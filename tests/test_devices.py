"""Proves that two devices train as one does, on TensorFlow and JAX, and take over each other's checkpoints.

The devices are two that the CPU is made; the trainings are `two_devices.py`, in processes of their own, because a
backend's devices are fixed when it starts. The batch is half empty: N_pos must be that of the whole batch. Gradients
are clipped, and weights decay.
"""

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

slow = pytest.mark.slow
CASES = [
    pytest.param(("tensorflow", "synchronised", "sgd"), id="tensorflow-synchronised-sgd"),
    pytest.param(("jax", "synchronised", "sgd"), id="jax-synchronised-sgd"),
    *(
        pytest.param((backend, batch_norm, optimizer), marks=slow, id=f"{backend}-{batch_norm}-{optimizer}")
        for backend in ("tensorflow", "jax")
        for batch_norm, optimizer in (("frozen", "sgd"), ("frozen", "adamw"), ("synchronised", "adamw"))
    ),
]


@pytest.fixture(scope="module", params=CASES)
def found(request, tmp_path_factory) -> dict:
    backend, batch_norm, optimizer = request.param
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    variables = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    variables |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    variables |= {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # to compile takes longer than to train
    program = [sys.executable, str(ROOT / "tests" / "two_devices.py"), batch_norm, optimizer]
    done = subprocess.run(
        [*program, str(tmp_path_factory.mktemp("checkpoints"))],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("devices: 2 (cpu)")]
    assert said, done.stdout
    return json.loads(done.stdout.splitlines()[-1])


def test_two_devices_give_the_losses_of_one(found):
    one, two = np.array(found["one"]), np.array(found["two"])
    assert found["copies"] == 2
    assert one.shape == (20, 3)
    assert one[-1, 0] < 0.99 * one[0, 0]  # it learns: the weights have moved
    np.testing.assert_allclose(two, one, rtol=1e-4)
    assert found["apart"] < 1e-3


def test_a_checkpoint_goes_on_with_another_number_of_devices(found):
    np.testing.assert_allclose(found["one, after two"], found["two, on"], rtol=1e-4)
    np.testing.assert_allclose(found["two, after one"], found["one, on"], rtol=1e-4)


# === a03 =============================================================================================================
def train(photographs, output, run: str, *arguments: object) -> str:
    """What a tiny training prints; `STOPPED` ends it in its second epoch."""
    flags = {"dataset_path": photographs[0], "output_path": output, "run": run, "backbone": "tiny", "image_size": 96}
    flags |= {"tums": 1, "scales": 1, "channels": 16, "batch_size": 4, "epochs": 2, "steps_per_epoch": 3}
    flags |= {"precision": "float32", "optimizer": "sgd", "learning_rate": 0.01}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "tiny_training.py"), *map(str, arguments), *words],
        env=os.environ | {"PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


STOPPED = ("--stop_after", 4)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)], ids=["from two to one", "from one to two"])
def test_a_run_goes_on_with_another_number_of_devices(photographs, tmp_path, before, after):
    shutil.copytree(photographs[1] / "level_1_files", tmp_path / "level_1_files")
    train(photographs, tmp_path, "whole", "--devices", 1)
    assert "stopped by SIGTERM after step 4 of 6" in train(
        photographs, tmp_path, "stopped", *STOPPED, "--devices", before
    )
    assert "going on after epoch 1 of 2 and 1 of 3 steps" in train(photographs, tmp_path, "stopped", "--devices", after)
    rows = []
    for run in ("stopped", "whole"):
        with open(tmp_path / "weights" / run / "history.csv", newline="") as file:
            rows.append(list(csv.DictReader(file)))
    for mine, other in zip(*rows, strict=True):
        for column in ("epoch", "loss", "class_loss", "box_loss", "learning_rate"):
            assert float(mine[column]) == pytest.approx(float(other[column]), rel=1e-4)
