"""A run like a converted RetinaNet, which takes images of any shape, but of three layers: for several test files."""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from models.heads import anchors_in_a_row
from models.preprocessing import Preprocessing
from models.run_settings import InputSettings, NetworkSettings, RunSettings
from tests.helpers.tiny_network import CLASSES, write_settings

SETTINGS = RunSettings(
    network=NetworkSettings(
        detector="keras_retinanet",
        backbone="resnet50",
        image_size=None,
        scales=5,
        channels=256,
        head="shared",
        normalisation="caffe",
        padding="valid",
        clip="side",
    ),
    inputs=InputSettings(resize="sides", interpolation="linear", min_side=48, max_side=80),
    classes=CLASSES,
    anchors=None,
    box_deltas="corners",
)


def build() -> keras.Model:
    """The network; its weights are random, and always the same."""
    rng = np.random.default_rng(0)
    image = keras.Input((None, None, 3), name="image")
    x = layers.Conv2D(8, 8, 8, padding="same", activation="tanh")(Preprocessing("caffe")(image))
    maps = [x]
    for _ in range(4):
        maps.append(layers.MaxPooling2D(2, padding="same")(maps[-1]))
    heads = {"classes": layers.Conv2D(9 * len(CLASSES), 1), "boxes": layers.Conv2D(9 * 4, 1)}
    outputs = {
        name: anchors_in_a_row([head(x) for x in maps], head.filters // 9, name=name) for name, head in heads.items()
    }
    network = keras.Model(image, outputs)
    for layer in network.layers:
        layer.set_weights([rng.normal(0, 1 / np.prod(w.shape[:-1]) ** 0.5, w.shape) for w in layer.get_weights()])
    heads["classes"].set_weights([w - 2 * (w.ndim == 1) for w in heads["classes"].get_weights()])
    return network


def write_run(folder: Path, patch: pytest.MonkeyPatch, settings: RunSettings = SETTINGS) -> Path:
    """The run's folder; while `patch` holds, every run that is loaded has this architecture."""
    patch.setattr("models.load.build_network", lambda settings: build())
    write_settings(folder, settings)
    build().save(folder / "model.keras")
    return folder
