"""The memory forecast grows with the right quantities and is near the measured peak."""

import json

import keras
import numpy as np
import pytest
from keras import layers

from models.cost import result_bytes, weight_bytes
from models.detector import network_from_settings
from oid.files import InputError
from tests.helpers.project import refused, run_script
from tests.helpers.runs import copy_level, small_flags, words
from tests.helpers.tiny_network import tiny_settings
from training import memory

FLAGS = {"optimizer": "adamw", "ema": True, "accumulate": 1, "max_gt_boxes": 100, "multi_scale": None}
FACTOR = 1.5  # the estimate is at most so many times too large or too small


@pytest.fixture(scope="module")
def network():
    return network_from_settings(tiny_settings(image_size=64, scales=2, channels=16))


def expected(network, *, batch_size=4, images=0, cache_gb=0.0, copies=1, **changes) -> dict[str, int]:
    flags = FLAGS | changes
    return memory.expected_bytes(network, flags, batch_size=batch_size, images=images, cache_gb=cache_gb, copies=copies)


# === What is counted =================================================================================================
def test_bytes_by_hand():
    """Results: 4 x 4 x 5 of the convolution, the same of batch norm, 5 of the mean; nested models count once."""
    inside = keras.Input((8, 8, 3))
    body = keras.Model(inside, layers.Conv2D(5, 3, strides=2, padding="same")(inside))
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layers.GlobalAveragePooling2D()(layers.BatchNormalization()(body(image))))
    assert result_bytes(model) == 4 * (80 + 80 + 5)
    assert weight_bytes(model) == (4 * (3 * 3 * 3 * 5 + 5 + 4 * 5), 4 * (3 * 3 * 3 * 5 + 5 + 2 * 5))
    body.trainable = False
    assert weight_bytes(model)[1] == 4 * 2 * 5


def test_half_precision_takes_half():
    def results(policy: str) -> int:
        image = keras.Input((8, 8, 4), dtype=policy.removeprefix("mixed_"))
        return result_bytes(keras.Model(image, layers.Conv2D(5, 3, dtype=policy)(image)))

    assert results("float32") == 2 * results("mixed_bfloat16")


def test_activations_and_pictures_grow_with_the_batch(network):
    four, eight = expected(network), expected(network, batch_size=8)
    assert eight["activations"] == pytest.approx(2 * four["activations"], abs=2)
    assert four["assignment"] < eight["assignment"] <= 2 * four["assignment"]
    assert eight["pictures"] == 2 * four["pictures"]
    assert all(eight[name] == four[name] for name in ("weights", "optimizer", "graph"))


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        ({}, 4),
        ({"ema": False}, 3),
        ({"optimizer": "sgd", "ema": False}, 2),
        ({"accumulate": 4}, 5),
        ({"copies": 2}, 8),
    ],
)
def test_the_optimizer_has_as_many_numbers_per_weight_as_its_parts(network, changes, numbers):
    """Gradients, moments, the moving average, the sum of gradients."""
    assert expected(network, **changes)["optimizer"] == numbers * weight_bytes(network)[1]
    assert expected(network, **changes)["weights"] == changes.get("copies", 1) * expected(network)["weights"]


def test_a_larger_size_among_several_counts(network):
    larger = expected(network, multi_scale=(128,))
    assert larger["activations"] == pytest.approx(4 * expected(network)["activations"], abs=4)
    assert expected(network, multi_scale=(32,)) == expected(network)


def test_pictures_up_to_the_cache(network):
    """A picture of the data, four by three, is kept at 1.6 times the network's side."""
    waiting = expected(network)["pictures"]
    kept = expected(network, images=100, cache_gb=9.0)["pictures"] - waiting
    assert kept == pytest.approx(100 * 0.75 * 3 * (1.6 * 64) ** 2, abs=2)
    assert expected(network, images=10**9, cache_gb=1.0)["pictures"] - waiting == 2**30


# === What is said ====================================================================================================
PARTS = {"weights": 2**30, "optimizer": 2**30, "activations": 6 * 2**30, "assignment": 2**31, "graph": 0}
PARTS |= {"pictures": 2**28}


def test_a_training_that_fits_is_one_line():
    assert memory.report(PARTS, program=2**30, free=16 * 2**30, batch_size=8) == (
        "memory: 11.2 GiB expected at the peak (program 1.0, weights 1.0, optimizer and gradients 1.0, activations "
        "6.0, assignment and losses 2.0, graph 0.0, pictures 0.2); 16.0 GiB are free"
    )


@pytest.mark.parametrize(
    ("change", "free", "lower"),
    [
        # 8 GiB for 8 images, 3.25 for the rest: 8 GiB have room for four images
        ({}, 8, "lower --batch_size to 4 (with --accumulate 2), or --image_size, or --tums, or --channels"),
        ({}, 3, "lower --image_size, or --tums, or --channels"),  # not one image fits
        ({"pictures": 2**32}, 1, "lower --cache_gb, whose pictures take 4.0 GiB, or --image_size, or "),
    ],
)
def test_a_training_that_does_not_fit_says_what_to_lower(change, free, lower):
    fits, found = memory.report(PARTS | change, program=2**30, free=free * 2**30, batch_size=8).splitlines()
    assert fits.endswith(f"{free}.0 GiB are free")
    assert found.startswith(f"memory: it will not fit: {lower}")


# === What is measured ================================================================================================
def run(program: str, *arguments: object) -> str:
    """What a program prints."""
    variables = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    done = run_script(program, *arguments, timeout=3600, environment=variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


needs_proc = pytest.mark.skipif(not memory.resident_bytes(), reason="the system does not tell a process's memory")


@needs_proc
@pytest.mark.slow
def test_the_estimate_is_near_the_measured_peak():
    found = json.loads(run("benchmarks/memory.py", "--batch_size", 16, "--image_size", 256).splitlines()[-1])
    assert found["peak"] > 2 * found["program"]  # most of it is what was estimated
    assert 1 / FACTOR < found["expected"] / found["peak"] < FACTOR, found


@needs_proc
@pytest.mark.slow
def test_no_growth_over_2000_steps(photographs, tmp_path):
    """a03 itself: the mean of the memory over 100 steps, 2,000 steps apart."""
    copy_level(photographs[1], tmp_path)
    length = {"epochs": 1, "steps_per_epoch": 2200, "checkpoint_steps": 500, "workers": 2}
    flags = small_flags(photographs, tmp_path, run="growth", **length)
    lines = run("tests.helpers.tiny_training", *words(flags)).splitlines()
    sizes = np.array([int(line.split()[-1]) for line in lines if line.startswith("loss ")])
    assert len(sizes) == 2200
    before, after = sizes[100:200].mean(), sizes[2100:2200].mean()
    assert after < 1.01 * before, (before, after)


# === When there is none left =========================================================================================
XlaRuntimeError = type("XlaRuntimeError", (RuntimeError,), {})
SHORTAGES = [  # of TensorFlow, PyTorch, JAX and Python
    type("ResourceExhaustedError", (Exception,), {})("Graph execution error:\nOOM when allocating tensor"),
    type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB"),
    XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes."),
    MemoryError(),
]


def shortage(checkpoint: str = ""):
    return memory.shortage_in_one_sentence(batch_size=8, image_size=192, checkpoint=checkpoint)


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("checkpoint", ["", "the last good checkpoint, runs/one/checkpoint of step 7"])
def test_no_memory_is_one_sentence_with_the_remedy(error, checkpoint):
    sentence = "the memory does not suffice for a step of 8 images of 192 pixels: "
    go_on = [f"{checkpoint}, goes on by the same command", "another --run start from its weights by --init_from"]
    flags = ["--batch_size", "--accumulate", "--image_size"]
    with refused(sentence, *flags, *(go_on if checkpoint else [])), shortage(checkpoint):
        raise error


@pytest.mark.parametrize("error", [XlaRuntimeError("INTERNAL: no"), InputError("a file"), KeyboardInterrupt()])
def test_other_errors_pass_unchanged(error):
    with pytest.raises(type(error)) as found, shortage():
        raise error
    assert found.value is error
