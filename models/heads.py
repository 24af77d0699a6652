"""Heads: from the pyramid's maps to class logits and box deltas for every anchor."""

from typing import get_args

import keras
from keras import layers

from models.blocks import BATCH_NORM_MOMENTUM, prior_bias
from models.run_settings import Head
from oid.files import InputError

SUBNET_DEPTHS = {"shared": 4, "light": 1}  # convolutions before the output; four as in Lin et al. 2017, section 4
MANY_CLASSES = 100  # above this `default_head` shares


def default_head(num_classes: int) -> Head:
    """Returns "conv", as published, or "shared" for many classes.

    One 3x3 convolution from 1,024 channels to the classes of six anchors, on each of six scales, would have 335 million
    parameters for 500 classes.
    """
    return "shared" if num_classes > MANY_CLASSES else "conv"


def build_head(head: Head, features: list, num_classes: int, anchors_per_cell: int, width: int) -> dict:
    """Predicts the classes and the boxes of every anchor from the maps.

    - "conv": one 3x3 convolution for the classes and one for the boxes of each map, as M2Det is published.
    - "shared": two subnets of four 3x3 convolutions, for classes and boxes, shared by all maps (Lin et al. 2017). Their
      batch norm is not shared: each map has its own statistics (as in NAS-FPN).
    - "light": the same with one convolution before the output.

    Args:
        head: see above.
        features: the maps, largest first, `(batch, side, side, channels)`, all with the same number of channels.
        num_classes: class outputs of each anchor.
        anchors_per_cell: anchors of each cell of each map.
        width: channels of the subnets.

    Returns:
        `{"classes": (batch, anchors, num_classes), "boxes": (batch, anchors, 4)}`, float32 under mixed precision too.

    Raises:
        InputError: the head does not exist.
    """
    if head not in get_args(Head):
        raise InputError(f"head {head!r} does not exist: choose one of {', '.join(get_args(Head))}")
    outputs = {}
    for name, numbers, bias in (("classes", num_classes, prior_bias(num_classes)), ("boxes", 4, "zeros")):
        filters = anchors_per_cell * numbers
        if head == "conv":
            maps = [_output_convolution(filters, bias, name=f"{name}{k}")(x) for k, x in enumerate(features, 1)]
        else:
            maps = _shared_subnet(features, width, SUBNET_DEPTHS[head], name=f"{name}_subnet")
            output = _output_convolution(filters, bias, name=f"{name}_output")
            maps = [output(x) for x in maps]
        outputs[name] = anchors_in_a_row(maps, numbers, name=name)
    return outputs


def _shared_subnet(maps: list, width: int, depth: int, *, name: str) -> list:
    for number in range(1, depth + 1):
        convolution = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"{name}{number}_conv")
        maps = [_batch_norm_relu(convolution(x), name=f"{name}{number}_scale{k}") for k, x in enumerate(maps, 1)]
    return maps


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
