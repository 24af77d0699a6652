"""Proves that two devices train as one does, on TensorFlow and JAX, and take over each other's checkpoints.

The devices are two that the CPU is made; the trainings are `two_devices.py`, in processes of their own, because a
backend's devices are fixed when it starts. The batch is half empty: N_pos must be that of the whole batch. Gradients
are clipped, and weights decay.
"""

import importlib.util
import json
import os
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
    assert one[-1, 0] < 0.95 * one[0, 0]  # it learns: the weights have moved
    np.testing.assert_allclose(two, one, rtol=1e-4)
    assert found["apart"] < 1e-3


def test_a_checkpoint_goes_on_with_another_number_of_devices(found):
    np.testing.assert_allclose(found["one, after two"], found["two, on"], rtol=1e-4)
    np.testing.assert_allclose(found["two, after one"], found["one, on"], rtol=1e-4)
