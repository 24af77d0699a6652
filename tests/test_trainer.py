"""Proves that every loss trains a step, and that objects count alike on however many devices a batch is shared."""

import itertools
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT
from tiny_network import pictures, targets, tiny_settings, two_pictures

from models.detector import network_from_settings
from models.losses import ASSIGNMENTS, BOX_WEIGHTS, CLASS_LOSSES
from training.trainer import DetectionTrainer

COMBINATIONS = list(itertools.product(ASSIGNMENTS, CLASS_LOSSES, BOX_WEIGHTS))


@pytest.fixture(scope="module")
def stepping():
    """A trainer that runs operation by operation, so that it can change its losses from step to step."""
    settings = tiny_settings(image_size=32, scales=2, channels=16)
    keras.utils.set_random_seed(0)
    network = network_from_settings(settings)
    trainer = DetectionTrainer(network, settings["anchors"])
    trainer.compile(optimizer=keras.optimizers.SGD(0.001), run_eagerly=True)
    return trainer


def all_rules() -> dict:
    """Two pictures with what every label rule needs."""
    truth = two_pictures()
    parts = np.zeros((2, 4, 4), "float32")
    parts[:, 0] = [0, 0, 1, 1]
    verified = np.zeros((2, 4, 2), "uint8")
    verified[0, 0], verified[1, 0, 0] = 1, 1
    return truth | {"parts": parts, "verified": verified}


# each assignment and each box loss with each class loss; the rest of the combinations is slow
ROTATED = list(BOX_WEIGHTS) * 3
FEW = [(a, c, b) for shift, a in enumerate(ASSIGNMENTS) for c, b in zip(CLASS_LOSSES, ROTATED[shift:], strict=False)]


@pytest.mark.parametrize("chosen", [FEW, pytest.param(COMBINATIONS, marks=pytest.mark.slow)], ids=["few", "all"])
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_every_combination_of_losses_trains_a_step(stepping, assignment, chosen):
    ancestors = np.array([[0, 1], [0, 0]], "float32")
    seen, chosen = set(), [row for row in chosen if row[0] == assignment]
    for _, class_loss, box_loss in chosen:
        stepping.loss_options = {"assignment": assignment, "class_loss": class_loss, "box_loss": box_loss}
        stepping.loss_options["ancestors"] = ancestors
        before = [np.array(weight) for weight in stepping.trainable_variables]
        found = stepping.train_on_batch(pictures(2, 32, 32), all_rules(), return_dict=True)
        stepping.reset_metrics()
        found = {name: float(value) for name, value in found.items()}
        assert np.isfinite(list(found.values())).all(), (class_loss, box_loss)
        assert found["class_loss"] > 0
        assert found["box_loss"] > 0
        assert found["loss"] == pytest.approx(found["class_loss"] + found["box_loss"], rel=1e-4)
        after = [np.array(weight) for weight in stepping.trainable_variables]
        assert np.isfinite([np.abs(value).max() for value in after]).all()
        assert np.mean([np.any(a != b) for a, b in zip(after, before, strict=True)]) > 0.7
        seen.add((round(found["class_loss"], 4), round(found["box_loss"], 4)))
    assert len(seen) == len(chosen) >= len(CLASS_LOSSES)  # each of them is another loss


def test_a_batch_without_objects_counts_its_background_once(stepping):
    """Nothing to divide by: the normaliser is 1, not 0."""
    stepping.loss_options = {}
    found = stepping.train_on_batch(pictures(2, 32, 32), targets([[], []]), return_dict=True)
    stepping.reset_metrics()
    assert found["box_loss"] == 0
    assert 0 < float(found["class_loss"]) < np.inf


TWO_DEVICES = """
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tiny_network import pictures, targets, tiny_settings
from models import backbones
from models.detector import network_from_settings
from training.schedule import Schedule, make_optimizer
from training.trainer import DetectionTrainer

settings = tiny_settings(image_size=32, scales=2, channels=16)
# the first half of the batch has one object, the other five: each half divided by its own would count them otherwise
truth = targets([[(0, .1, .1, .5, .6)], [], [(1, .4, .4, 1, 1), (0, 0, 0, .3, .3), (1, .5, 0, 1, .4)],
                 [(0, .2, .2, .9, .8), (1, 0, .5, .4, 1)]])
images = pictures(4, 32, 32)

def moved(scope):
    keras.utils.set_random_seed(0)
    with scope:
        network = network_from_settings(settings)
        backbones.freeze(network, batch_norm=True)
        trainer = DetectionTrainer(network, settings["anchors"])
        optimizer = make_optimizer(Schedule(peak=1.0, steps=10**6), optimizer="sgd", weight_decay=0, clip_norm=0,
                                   ema=False)
        trainer.compile(optimizer=optimizer, jit_compile=False)
    before = [np.array(weight) for weight in trainer.trainable_variables]
    data = tf.data.Dataset.from_tensors((images, truth)).unbatch().batch(4)
    seen = trainer.fit(data, verbose=0).history
    after = [np.array(weight) for weight in trainer.trainable_variables]
    return [a - b for a, b in zip(after, before)], {name: value[0] for name, value in seen.items()}

import contextlib
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
one, losses_of_one = moved(contextlib.nullcontext())
two, losses_of_two = moved(strategy.scope())
scale = max(np.abs(value).max() for value in one)
assert scale > 0
print(max(np.abs(a - b).max() for a, b in zip(one, two)) / scale)
print(*(losses_of_two[name] / losses_of_one[name] for name in ("loss", "class_loss", "box_loss")))
"""


@pytest.fixture(scope="module")
def two_devices() -> list[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", TWO_DEVICES], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-2:]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="MirroredStrategy is TensorFlow's")
def test_two_devices_make_the_step_of_one(two_devices):
    assert float(two_devices[0]) < 1e-4


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="MirroredStrategy is TensorFlow's")
def test_two_devices_report_the_losses_of_one(two_devices):
    np.testing.assert_allclose([float(ratio) for ratio in two_devices[1].split()], 1, rtol=1e-4)
