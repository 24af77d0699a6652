"""Heads: from the pyramid's maps to class logits and box offsets for every anchor."""

import keras
from keras import layers

from models.blocks import BATCH_NORM_MOMENTUM, prior_bias

SUBNET_DEPTHS = {"shared": 4, "light": 1}  # convolutions before the output; four as in Lin et al. 2017, section 4
HEADS = ("conv", *SUBNET_DEPTHS)
MANY_CLASSES = 100  # from here on `default_head` shares


def default_head(num_classes: int) -> str:
    """The published head, or, for hundreds of classes, the shared one.

    One 3x3 convolution from 1,024 channels to the classes of six anchors, on each of six scales, would have 335 million
    parameters for 500 classes.
    """
    return "shared" if num_classes > MANY_CLASSES else "conv"


def convolutional_head(features: list, num_classes: int, anchors_per_cell: int) -> dict:
    """One 3x3 convolution for the classes and one for the boxes of each scale, as published.

    Args:
        features: the maps, largest first, `(batch, side, side, channels)`.
        num_classes: class outputs of each anchor.
        anchors_per_cell: anchors of each cell of each map.

    Returns:
        `{"classes": (batch, anchors, num_classes), "boxes": (batch, anchors, 4)}`, float32 under mixed precision too.
    """
    parts = {}
    for output, width, bias in (("classes", num_classes, prior_bias(num_classes)), ("boxes", 4, "zeros")):
        maps = [
            _output_convolution(anchors_per_cell * width, bias, name=f"{output}{index + 1}")(feature)
            for index, feature in enumerate(features)
        ]
        parts[output] = anchors_in_a_row(maps, width, name=output)
    return parts


def shared_head(features: list, num_classes: int, anchors_per_cell: int, width: int, depth: int) -> dict:
    """Two subnets of 3x3 convolutions, for the classes and the boxes, shared by all scales (Lin et al. 2017).

    The convolutions are shared, their batch norm is not: each scale has its own statistics (as in NAS-FPN).

    Args:
        features: the maps, largest first, `(batch, side, side, channels)`, all with the same number of channels.
        num_classes: class outputs of each anchor.
        anchors_per_cell: anchors of each cell of each map.
        width: channels of the subnets.
        depth: convolutions of each subnet before the output.

    Returns:
        As `convolutional_head`.
    """
    parts = {}
    for output, outputs, bias in (("classes", num_classes, prior_bias(num_classes)), ("boxes", 4, "zeros")):
        maps = features
        for number in range(1, depth + 1):
            name = f"{output}_subnet{number}"
            convolution = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"{name}_conv")
            maps = [_batch_norm_relu(convolution(x), name=f"{name}_scale{k}") for k, x in enumerate(maps, start=1)]
        last = _output_convolution(anchors_per_cell * outputs, bias, name=f"{output}_output")
        parts[output] = anchors_in_a_row([last(x) for x in maps], outputs, name=output)
    return parts


def _batch_norm_relu(x, *, name: str):
    x = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def _output_convolution(filters: int, bias, *, name: str) -> layers.Layer:
    """A 3x3 convolution whose small weights let the training begin at the bias."""
    return layers.Conv2D(
        filters,
        3,
        padding="same",
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
        bias_initializer=bias,
        name=name,
    )


def anchors_in_a_row(maps: list, width: int, *, name: str):
    """Maps `(batch, side, side, anchors_per_cell * width)` as one `(batch, anchors, width)`, in float32."""
    rows = [layers.Reshape((-1, width), name=f"{name}{k}_flat", dtype="float32")(x) for k, x in enumerate(maps, 1)]
    return layers.Concatenate(axis=1, name=name, dtype="float32")(rows) if len(rows) > 1 else rows[0]
