"""The same training on one device and on two: a program for a process of its own, and what it trains.

    python two_devices.py <frozen|synchronised> <sgd|adamw> <folder for checkpoints>

prints, as JSON, the losses of each step on one device, the same on two, how far the weights are apart in the end
(relative to each array's largest, or 1), and the losses of three more steps after each took over the other's
checkpoint.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np

from models import backbones
from models.detector import build_network
from tests.helpers.tiny_network import pictures, targets, tiny_backbone, tiny_settings
from training import checkpoints, devices
from training.schedule import Schedule, make_optimizer
from training.state import ScheduleState, TrainingState
from training.trainer import DetectionTrainer

STEPS, BATCH = 20, 4
# half of the batch has one object, the other five: each half divided by its own would count them otherwise
TRUTH = [
    [(0, 0.1, 0.1, 0.5, 0.6)],
    [],
    [(1, 0.4, 0.4, 1, 1), (0, 0, 0, 0.3, 0.3), (1, 0.5, 0, 1, 0.4)],
    [(0, 0.2, 0.2, 0.9, 0.8), (1, 0, 0.5, 0.4, 1)],
]
REGIONS = [[(2, 0, 0, 1, 1)], [], [], [(1, 0.5, 0, 1, 0.5)]]  # 2 means both classes
REGION_CLASSES = np.array([[1, 0], [0, 1], [1, 1]], "float32")


def batch(step: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The batch of a step: four pictures in another order each time."""
    order = np.random.default_rng(step).permutation(BATCH)
    return pictures(BATCH, 32, 32)[order], {name: value[order] for name, value in targets(TRUTH, REGIONS).items()}


class Steps(keras.utils.PyDataset):
    """The batches from a step on."""

    num_batches = None

    def __init__(self, start: int = 0):
        super().__init__(workers=2)  # as in a training
        self.start = start

    def __getitem__(self, index: int):
        return batch(self.start + index)


class Losses(keras.callbacks.Callback):
    """The loss, class loss and box loss of each step; Keras tells their means over the epoch so far."""

    def __init__(self):
        super().__init__()
        self.means: list[list[float]] = []

    def on_train_batch_end(self, batch, logs=None):
        self.means.append([float(logs[name]) for name in ("loss", "class_loss", "box_loss")])

    @property
    def steps(self) -> np.ndarray:
        sums = np.array(self.means) * np.arange(1, len(self.means) + 1)[:, None]
        return np.diff(sums, axis=0, prepend=0)


def make_trainer(scope, *, frozen: bool, optimizer: str) -> DetectionTrainer:
    """A tiny network with its optimizer, the same each time, whose gradients are clipped."""
    backbones.BACKBONES["tiny"] = tiny_backbone()
    settings = tiny_settings(image_size=32, scales=1, channels=16, backbone="tiny")
    keras.utils.set_random_seed(0)
    with scope():
        network = build_network(settings)
        if frozen:
            backbones.freeze(network, batch_norm=True)
        trainer = DetectionTrainer(network, settings.anchors, batch_size=BATCH, region_classes=REGION_CLASSES)
    peak = 1e-2 if optimizer == "sgd" else 1e-3
    with trainer.scope():
        schedule = Schedule(ScheduleState(peak=peak, steps=STEPS, warm_up=5))
        made = make_optimizer(schedule, optimizer=optimizer, weight_decay=0.03, clip_norm=1.0)
        trainer.compile(optimizer=made, jit_compile=keras.backend.backend() == "jax")
        made.build(network.trainable_variables)
    return trainer


def train(trainer: DetectionTrainer, *, steps: int = STEPS, start: int = 0) -> np.ndarray:
    """The losses of the steps, `(steps, 3)`."""
    losses = Losses()
    trainer.fit(Steps(start), steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0, callbacks=[losses])
    return losses.steps


def weights_of(trainer: DetectionTrainer) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(weight)) for weight in trainer.network.weights]


def main(batch_norm: str, optimizer: str, folder: str) -> None:
    kind = {"frozen": batch_norm == "frozen", "optimizer": optimizer}
    from_two, from_one = Path(folder) / "from_two", Path(folder) / "from_one"
    found = {}
    devices.split_cpu(2)
    with devices.sharing(None) as sharing:
        one = make_trainer(sharing.scope, **kind)
        found["one"], weights_of_one = train(one), weights_of(one)
    with devices.sharing(2) as sharing:
        two = make_trainer(sharing.scope, **kind)
        found["two"], weights_of_two = train(two), weights_of(two)
        checkpoints.write_checkpoint(from_two, two, two.network, TrainingState())
        found["two, on"] = train(two, steps=3, start=STEPS)
    checkpoints.restore(from_two, one)
    found["one, after two"] = train(one, steps=3, start=STEPS)
    checkpoints.write_checkpoint(from_one, one, one.network, TrainingState())
    found["one, on"] = train(one, steps=3, start=STEPS + 3)
    with devices.sharing(2):
        checkpoints.restore(from_one, two)
        found["two, after one"] = train(two, steps=3, start=STEPS + 3)
    pairs = zip(weights_of_one, weights_of_two, strict=True)
    apart = max(np.abs(a - b).max() / max(1.0, np.abs(a).max()) for a, b in pairs)
    copies = len(two.network.weights[0].value.values) if keras.backend.backend() == "tensorflow" else sharing.count
    lists = {name: losses.tolist() for name, losses in found.items()}
    print(json.dumps(lists | {"apart": float(apart), "copies": copies}))


if __name__ == "__main__":
    main(*sys.argv[1:])
