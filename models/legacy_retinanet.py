"""The RetinaNet of keras-retinanet (0.4 to 1.0) on keras-resnet's ResNet v1, layer by layer: what the published
checkpoints of Open Images were trained with, and what they go on training as.

| part     | here                                          | RetinaNet in `models.retinanet`                     |
|----------|-----------------------------------------------|-----------------------------------------------------|
| ResNet   | stride in the first 1x1 convolution of a block | of `keras.applications`, the same rule              |
| norm     | epsilon 1e-5, always the moving statistics    | learned, except where frozen                        |
| pyramid  | biases, no norm; P6 from C5; P7 from ReLU(P6) | with batch norm                                     |
| heads    | four 3x3 convolutions with biases             | with batch norm                                     |
| boxes    | corners, in units of 0.2 anchor               | distances to the sides, or SSD's coding             |

The first convolution has one of two paddings, see `models.legacy_checkpoint`. Max pooling, P6 and P7 pad as TensorFlow
does. Maps are doubled by repeating and then cut to the next one's size.
"""

from typing import Literal

import keras
from keras import layers, ops

from models.backbones import all_layers
from models.blocks import prior_bias
from models.heads import anchors_in_a_row
from models.legacy_checkpoint import (
    ANCHORS_PER_CELL,
    CHANNELS,
    CLASSIFICATION,
    HEAD_DEPTH,
    REGRESSION,
    LegacyCheckpoint,
    block_names,
)
from models.preprocessing import Preprocessing

EPSILON = 1e-5
LEVELS = range(3, 8)
BACKBONES = {f"legacy_resnet{layers}": layers for layers in (50, 101, 152)}
HEADS = {REGRESSION: "boxes", CLASSIFICATION: "classes"}  # group in files: output here


def build_legacy_retinanet(
    *,
    backbone: str,
    num_classes: int,
    image_size: int | None = None,
    padding: Literal["explicit", "same"] = "explicit",
) -> keras.Model:
    """Builds the network with raw outputs.

    Args:
        backbone: a key of `BACKBONES`.
        num_classes: class outputs per anchor.
        image_size: side of a square input in pixels; None = pictures of any size.
        padding: of the first convolution.

    Returns:
        A functional model from raw RGB pixels `(batch, height, width, 3)`, 0 to 255, to a dict of float32 tensors:
        `classes`, logits `(batch, anchors, num_classes)`, and `boxes`, offsets `(batch, anchors, 4)` in the coding
        "corners"; anchors in the order of `oid.anchors.grids.make_anchors`.
    """
    image = keras.Input((image_size, image_size, 3), name="image")
    features = _pyramid(*_resnet(backbone, image.shape[1:], padding)(image))
    outputs = {
        "classes": _head(features, "classes", num_classes, prior_bias(num_classes)),
        "boxes": _head(features, "boxes", 4, "zeros"),
    }
    return keras.Model(image, outputs, name="legacy_retinanet")


def _resnet(backbone: str, shape: tuple, padding: str) -> keras.Model:
    """From raw pixels to the ends of stages 3, 4 and 5, which have strides of 8, 16 and 32."""
    image = keras.Input(shape, name="image")
    x = Preprocessing("caffe", name="preprocessing")(image)
    if padding == "explicit":
        x = layers.ZeroPadding2D(3, name="padding_conv1")(x)
    x = _conv_norm(x, 64, 7, "conv1", "bn_conv1", strides=2, padding="valid" if padding == "explicit" else "same")
    x = layers.ReLU(name="conv1_relu")(x)
    x = layers.MaxPooling2D(3, 2, padding="same", name="pool1")(x)
    maps = []
    for stage, names in enumerate(block_names(BACKBONES[backbone])):
        for index, name in enumerate(names):
            x = _bottleneck(x, 64 * 2**stage, name, strides=2 if stage and not index else 1, shortcut=not index)
        maps.append(x)
    return keras.Model(image, maps[1:], name=backbone)


def _conv_norm(x, filters: int, side: int, name: str, norm: str, *, strides: int = 1, padding: str = "same"):
    x = layers.Conv2D(filters, side, strides, padding=padding, use_bias=False, name=name)(x)
    return layers.BatchNormalization(epsilon=EPSILON, trainable=False, name=norm)(x)


def _bottleneck(x, filters: int, block: str, *, strides: int, shortcut: bool):
    """Two 1x1 convolutions around a 3x3 one; the first one has the stride."""

    def conv(x, width, side, branch, strides=1):
        return _conv_norm(x, width, side, f"res{block}_branch{branch}", f"bn{block}_branch{branch}", strides=strides)

    y = layers.ReLU(name=f"res{block}_branch2a_relu")(conv(x, filters, 1, "2a", strides))
    y = layers.ReLU(name=f"res{block}_branch2b_relu")(conv(y, filters, 3, "2b"))
    y = conv(y, 4 * filters, 1, "2c")
    if shortcut:
        x = conv(x, 4 * filters, 1, "1", strides)
    return layers.ReLU(name=f"res{block}_relu")(layers.Add(name=f"res{block}")([y, x]))


def _pyramid(c3, c4, c5) -> list:
    """P3 to P7 of `CHANNELS` channels; what goes up is taken before the 3x3 convolution."""

    def conv(x, name, side=3, strides=1):
        return layers.Conv2D(CHANNELS, side, strides, padding="same", name=name)(x)

    m5 = conv(c5, "C5_reduced", 1)
    c4_reduced = conv(c4, "C4_reduced", 1)
    m4 = layers.Add(name="P4_merged")([UpsampleLike(name="P5_upsampled")([m5, c4_reduced]), c4_reduced])
    c3_reduced = conv(c3, "C3_reduced", 1)
    m3 = layers.Add(name="P3_merged")([UpsampleLike(name="P4_upsampled")([m4, c3_reduced]), c3_reduced])
    p6 = conv(c5, "P6", strides=2)
    p7 = conv(layers.ReLU(name="C6_relu")(p6), "P7", strides=2)
    return [conv(m3, "P3"), conv(m4, "P4"), conv(m5, "P5"), p6, p7]


def _head(features: list, output: str, width: int, bias):
    """Convolutions that all levels share; `(batch, anchors, width)`, float32 under mixed precision, too."""
    small = keras.initializers.RandomNormal(stddev=0.01)
    options = {"padding": "same", "kernel_initializer": small}
    maps = features
    for index in range(1, HEAD_DEPTH + 1):
        layer = layers.Conv2D(CHANNELS, 3, activation="relu", name=f"{output}_subnet{index}", **options)
        maps = [layer(x) for x in maps]
    last = layers.Conv2D(ANCHORS_PER_CELL * width, 3, bias_initializer=bias, name=f"{output}_output", **options)
    return anchors_in_a_row([last(x) for x in maps], width, name=output)


@keras.saving.register_keras_serializable(package="oid")
class UpsampleLike(layers.Layer):
    """`(x, like)`: the map `x` with every pixel doubled, cut to the size of `like`, which is twice its own or 1 less.

    Row i of the result is row i // 2 of `x`: the nearest one by the rule of TensorFlow 1.
    """

    def call(self, inputs):
        x, like = inputs
        _, height, width, _ = ops.shape(like)
        return ops.repeat(ops.repeat(x, 2, axis=1), 2, axis=2)[:, :height, :width]

    def compute_output_shape(self, input_shape):
        (batch, *_, channels), (_, height, width, _) = input_shape
        return (batch, height, width, channels)


def load_tensors(network: keras.Model, checkpoint: LegacyCheckpoint) -> None:
    """Fills the network with the tensors of a file of the same structure; at any time one group of them is in memory.

    Raises:
        InputError: tensors that cannot be read.
    """
    found = {layer.name: layer for layer in all_layers(network)}
    for group, arrays in checkpoint.tensors():
        names = [group]
        if group in HEADS:
            names = [f"{HEADS[group]}_{part}" for part in (*(f"subnet{k + 1}" for k in range(HEAD_DEPTH)), "output")]
        each = len(arrays) // len(names)
        for index, name in enumerate(names):
            found[name].set_weights(arrays[each * index : each * (index + 1)])
