"""A run like a converted RetinaNet, that sees pictures of any shape, but of three layers: for several test files."""

from pathlib import Path

import keras
import numpy as np
from keras import layers

from models.heads import anchors_in_a_row
from models.preprocessing import Preprocessing
from tests.helpers.tiny_network import CLASSES, tiny_settings, write_settings

SETTINGS = {
    "detector": "legacy_retinanet",
    "classes": CLASSES,
    "preprocessing": tiny_settings()["preprocessing"]
    | {"resize": "sides", "min_side": 48, "max_side": 80, "interpolation": "linear", "normalisation": "caffe"},
    "anchors": {"kind": "retinanet", "scales": 5},
    "box_coding": "corners",
    "score_activation": "sigmoid",
    "backbone": "legacy_resnet50",
    "taps": None,
    "level": None,
    "image_size": None,
    "padding": "explicit",
    "clip": "side",
}


def write_run(folder: Path, **changes: object) -> Path:
    """The run's folder; its weights are random, and always the same."""
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
    write_settings(folder, SETTINGS | changes)
    network.save(folder / "model.keras")
    return folder
