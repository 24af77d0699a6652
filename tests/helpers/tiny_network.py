"""The smallest network and its settings, for several test files."""

import dataclasses
import math
from pathlib import Path

import keras
import numpy as np

from models.run_settings import DetectionClass, InputSettings, NetworkSettings, RunSettings, write_run_settings
from oid.anchors.grids import m2det_anchors, retinanet_anchors

CLASSES = (DetectionClass("/m/apple", "Apple"), DetectionClass("/m/pear", "Pear, green"))


def tiny_settings(**changes: object) -> RunSettings:
    """Settings of a network that builds in half a second.

    `changes` are fields of `NetworkSettings`, `InputSettings` or `RunSettings`. `anchors` can also be a name.
    """
    network = {"detector": "m2det", "backbone": "residual_small", "image_size": 64, "scales": 3, "channels": 16}
    network |= {"head": "conv"} | _fields_of(NetworkSettings, changes)
    if network["detector"] == "m2det":
        network = {"variant": "paper", "tums": 1} | network
    inputs = {"resize": "warp"} | _fields_of(InputSettings, changes)
    rest = {"classes": CLASSES, "anchors": "square", "level": "1"} | changes
    if isinstance(rest["anchors"], str):
        make = m2det_anchors if network["detector"] == "m2det" else retinanet_anchors
        rest["anchors"] = make(network["image_size"], network["scales"], rest["anchors"])
    return RunSettings(NetworkSettings(**network), InputSettings(**inputs), **rest)


def _fields_of(kind: type, changes: dict[str, object]) -> dict[str, object]:
    """Takes the fields of a dataclass out of `changes`."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: changes.pop(name) for name in names & set(changes)}


def write_settings(run: Path, settings: RunSettings) -> None:
    """Writes `run/settings.json`."""
    run.mkdir(parents=True, exist_ok=True)
    write_run_settings(run, settings)


def tiny_backbone(dropout: float = 0.0):
    """An entry of BACKBONES: three convolutions, because building the graph is most of a tiny training."""
    from models.backbones import BACKBONES
    from models.blocks import conv_bn_relu

    def build(*, input_tensor, weights=None):
        x = conv_bn_relu(input_tensor, 8, 3, strides=4, name="first")
        x = keras.layers.Dropout(dropout)(x) if dropout else x
        x = conv_bn_relu(x, 16, 3, strides=2, name="shallow")
        return keras.Model(input_tensor, conv_bn_relu(x, 16, 3, strides=2, name="deep"), name="tiny")

    names = {"shallow": "shallow_relu", "deep": "deep_relu", "preprocessing": "tf"}
    return dataclasses.replace(BACKBONES["residual_small"], build=build, **names)


def randomised(model: keras.Model, seed: int = 0) -> keras.Model:
    """Gives a network weights as after a training: kernels keep the variance, batch norm has statistics that matter."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        name, shape = weight.path.split("/")[-1], weight.shape
        if name in ("gamma", "moving_variance"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("kernel"):
            value = rng.normal(0, math.sqrt(2 / math.prod(shape[:-1])), shape)
        else:
            value = rng.uniform(-0.1, 0.1, shape)
        weight.assign(value.astype("float32"))
    return model


def saved(model: keras.Model, file: Path) -> Path:
    """Writes the weights to a `.weights.h5`, and the whole model to any other file."""
    (model.save_weights if file.name.endswith(".weights.h5") else model.save)(file)
    return file


def arrays(outputs: dict) -> dict[str, np.ndarray]:
    """A dictionary of tensors as NumPy arrays."""
    return {name: keras.ops.convert_to_numpy(value) for name, value in outputs.items()}


def pictures(count: int, height: int = 64, width: int = 64, *, seed: int = 0) -> np.ndarray:
    """Noise: uint8 `(count, height, width, 3)`."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype="uint8")


def targets(lists: list[list[tuple]], regions: list[list[tuple]] | None = None, *, width: int = 4) -> dict:
    """Padded ground truth as `training.batches` makes it.

    Args:
        lists: for each image its `(class, xmin, ymin, xmax, ymax)` tuples.
        regions: the same for ignored regions; none by default.
        width: rows per image.
    """
    result = {}
    regions = regions or [[]] * len(lists)
    for boxes, labels, rows in (("boxes", "labels", lists), ("regions", "region_labels", regions)):
        result[boxes] = np.zeros((len(lists), width, 4), "float32")
        result[labels] = np.full((len(lists), width), -1, "int32")
        for image, objects in enumerate(rows):
            for row, (label, *box) in enumerate(objects):
                result[boxes][image, row], result[labels][image, row] = box, label
    return result


def two_pictures() -> dict:
    """Ground truth of two pictures: a box with two classes; another box, and an ignored region."""
    box = (0.1, 0.1, 0.5, 0.6)
    return targets([[(0, *box), (1, *box)], [(1, 0.4, 0.4, 1, 1)]], [[], [(0, 0, 0, 0.3, 0.3)]])


def outputs_of_random_network(variant: str, head: str) -> dict[str, np.ndarray]:
    """The raw outputs of a small M2Det with six scales, always the same, on the backend that Keras runs on."""
    from models.m2det import build_m2det

    sizes = {"backbone": "residual_small", "num_classes": 3, "image_size": 272, "tums": 2, "channels": 16}
    network = build_m2det(**sizes, variant=variant, head=head, scales=6, anchors_per_cell=1)
    return arrays(randomised(network).predict_on_batch(pictures(1, 272, 272)))


def losses_of_fixed_outputs() -> list[float]:
    """The losses of outputs and ground truth that are always the same, on the backend that Keras runs on."""
    from models.losses import DetectionLoss

    grids, rng = tiny_settings().anchors, np.random.default_rng(0)
    outputs = {
        "classes": rng.normal(-2, 1, (2, sum(grids.per_map), 2)).astype("float32"),
        "boxes": rng.normal(0, 0.3, (2, sum(grids.per_map), 4)).astype("float32"),
    }
    case = keras.tree.map_structure(keras.ops.convert_to_tensor, (outputs, two_pictures()))
    return [float(keras.ops.convert_to_numpy(loss)) for loss in DetectionLoss(grids)(*case)]


def train_a_step(network: keras.Model, settings: RunSettings) -> np.ndarray:
    """Trains a network for one step; returns its losses."""
    from training.trainer import DetectionTrainer

    trainer = DetectionTrainer(network, settings.anchors, batch_size=2)
    trainer.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)  # no graph to trace for one step
    return trainer.train_on_batch(pictures(2), two_pictures())
