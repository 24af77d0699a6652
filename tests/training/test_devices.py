"""Which devices share a batch; two simulated ones train as one does and read each other's checkpoints; bfloat16."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from models.detector import runs_on_cpu
from tests.helpers.project import refused, run_script
from tests.helpers.runs import copy_level, history, small_flags, words
from training import devices

GPUS = [f"gpu:{number}" for number in range(4)]


# === Which devices ===================================================================================================
@pytest.mark.parametrize(
    ("options", "found", "used"),
    [
        ({}, ["cpu:0"], 0),
        ({}, ["cpu:0", "cpu:1"], 0),  # nobody asked for what JAX was told to pretend
        ({}, [], 0),  # PyTorch
        ({}, GPUS, 4),
        ({"wanted": 1}, GPUS, 0),
        ({"wanted": 2}, GPUS, 2),
        ({"accumulate": 2}, GPUS, 0),
        ({"wanted": 2}, ["cpu:0", "cpu:1"], 2),
        ({"processes": 2}, ["cpu:0", "cpu:2048"], 2),
        ({"processes": 2, "wanted": 2}, GPUS, 4),
    ],
)
def test_the_devices_that_share_a_batch(monkeypatch, options, found, used):
    monkeypatch.setattr(devices.keras.backend, "backend", lambda: "tensorflow")
    assert devices.choose(options.pop("wanted", None), found, **options) == found[:used]


@pytest.mark.parametrize(
    ("backend", "wanted", "options", "message"),
    [
        ("torch", 2, {}, "2 devices need TensorFlow or JAX"),
        ("tensorflow", 2, {"accumulate": 2}, "TensorFlow cannot accumulate gradients on several devices"),
        ("jax", 5, {}, "4 devices were found (gpu:0 gpu:1 gpu:2 gpu:3), not 5: take 4"),
        ("jax", 1, {"processes": 2}, "several processes use all of their devices, not 1 each"),
    ],
)
def test_devices_that_cannot_share_a_batch_are_refused(monkeypatch, backend, wanted, options, message):
    monkeypatch.setattr(devices.keras.backend, "backend", lambda: backend)
    with refused(message):
        devices.choose(wanted, GPUS, **options)


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    devices.Sharing(tuple(GPUS)).check_batch_size(8)
    devices.Sharing().check_batch_size(7)
    with refused("4 devices cannot share batches of 6 images evenly: take batches of 4"):
        devices.Sharing(tuple(GPUS)).check_batch_size(6)


# === Two devices =====================================================================================================
slow = pytest.mark.slow
CASES = [
    pytest.param(("tensorflow", "synchronised", "sgd"), id="tensorflow-synchronised-sgd"),
    pytest.param(("jax", "synchronised", "sgd"), marks=slow, id="jax-synchronised-sgd"),
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
    variables |= {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # compiling takes longer than training
    arguments = (batch_norm, optimizer, tmp_path_factory.mktemp("checkpoints"))
    done = run_script("tests.helpers.two_devices", *arguments, timeout=1800, environment=variables)
    assert done.returncode == 0, done.stderr
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
    changes = {"epochs": 2, "steps_per_epoch": 3, "batch_size": 4, "image_size": 96}
    arguments = [*arguments, *words(small_flags(photographs, output, run=run, **changes))]
    variables = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    done = run_script("tests.helpers.tiny_training", *arguments, timeout=1800, environment=variables)
    assert done.returncode == (75 if STOPPED[0] in arguments else 0), done.stderr
    return done.stdout + done.stderr


STOPPED = ("--stop_after", 4)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)], ids=["from two to one", "from one to two"])
def test_a_run_goes_on_with_another_number_of_devices(photographs, tmp_path, before, after):
    copy_level(photographs[1], tmp_path)
    train(photographs, tmp_path, "whole", "--devices", 1)
    printed = train(photographs, tmp_path, "stopped", *STOPPED, "--devices", before)
    assert "stopped by SIGTERM after step 4 of 6" in printed
    assert "going on after epoch 1 of 2 and 1 of 3 steps" in train(photographs, tmp_path, "stopped", "--devices", after)
    rows = [history(tmp_path / "weights" / run) for run in ("stopped", "whole")]
    for mine, other in zip(*rows, strict=True):
        for column in ("epoch", "loss", "class_loss", "box_loss", "learning_rate"):
            assert float(mine[column]) == pytest.approx(float(other[column]), rel=1e-4)


# === What accelerators can ===========================================================================================
def gpu(capability) -> SimpleNamespace:
    """A device with JAX's attributes; the fakes of the other backends read these, too."""
    return SimpleNamespace(platform="gpu", compute_capability=capability)


def stand_in(monkeypatch, backend: str, found: list) -> None:
    """Replaces the backend by one with these devices."""

    def pair(device) -> tuple[int, ...]:
        return tuple(int(part) for part in device.compute_capability.split("."))

    def details(device) -> dict[str, object]:
        known = device.compute_capability.replace(".", "").isdecimal()
        return {"device_name": "x"} | ({"compute_capability": pair(device)} if known else {})

    gpus, tpus = ([device for device in found if device.platform == kind] for kind in ("gpu", "tpu"))
    config = SimpleNamespace(
        list_physical_devices=lambda kind: {"GPU": gpus, "TPU": []}[kind],
        list_logical_devices=lambda kind: {"GPU": gpus, "TPU": tpus}[kind],
        experimental=SimpleNamespace(get_device_details=details),
    )
    cuda = SimpleNamespace(
        is_available=lambda: bool(gpus), device_count=lambda: len(gpus), get_device_capability=lambda i: pair(gpus[i])
    )
    modules = {
        "tensorflow": SimpleNamespace(config=config),
        "jax": SimpleNamespace(local_devices=lambda: found),
        "torch": SimpleNamespace(cuda=cuda, version=SimpleNamespace(hip=None)),
    }
    monkeypatch.setattr(devices.keras.backend, "backend", lambda: backend)
    monkeypatch.setitem(sys.modules, backend, modules[backend])


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
@pytest.mark.parametrize(
    ("capabilities", "has_it"),
    [
        (["7.5"], False),  # T4
        (["8.0"], True),  # A100
        (["9.0", "9.0"], True),
        (["10.0"], True),
        (["9.0", "7.5"], False),  # the slowest of those that share a batch
        ([], False),
    ],
)
def test_gpus_have_bfloat16_from_compute_capability_8_on(monkeypatch, backend, capabilities, has_it):
    stand_in(monkeypatch, backend, [gpu(capability) for capability in capabilities])
    assert devices.accelerators_have_bfloat16() == has_it


@pytest.mark.parametrize(
    ("backend", "device", "has_it"),
    [
        ("tensorflow", SimpleNamespace(platform="tpu"), True),
        ("jax", SimpleNamespace(platform="tpu"), True),
        ("tensorflow", gpu("gfx90a"), False),
        ("jax", gpu("gfx90a"), False),
        ("jax", SimpleNamespace(platform="METAL"), False),
    ],
)
def test_tpus_have_bfloat16_and_unknown_accelerators_count_as_without(monkeypatch, backend, device, has_it):
    stand_in(monkeypatch, backend, [device])
    assert devices.accelerators_have_bfloat16() == has_it


def test_compute_capability_of_amd_is_not_nvidias(monkeypatch):
    stand_in(monkeypatch, "torch", [gpu("9.0")])
    sys.modules["torch"].version.hip = "6.2"
    assert not devices.accelerators_have_bfloat16()


def test_the_processor_of_the_tests_is_no_accelerator():
    if runs_on_cpu():
        assert not devices.accelerators_have_bfloat16()
