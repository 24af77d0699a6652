"""What the networks are made of: convolution with batch norm, and changes of a map's size."""

import math

import keras
import numpy as np
from keras import layers, ops

from oid.files import InputError

SMALLEST_IMAGE = 32  # pixels: the published backbones halve five times
# From scratch on a small set there are few steps: 0.99 (Keras' ResNets) and 0.999 (its MobileNets) would still remember
# the first ones at the end, and a network that trains well would predict nonsense.
BATCH_NORM_MOMENTUM = 0.97


def check_sizes(image_size: int, **counts: int) -> None:
    """Raises InputError for an image below `SMALLEST_IMAGE` and for a count below 1, naming it."""
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} is {value}: it must be at least 1")
    if image_size < SMALLEST_IMAGE:
        raise InputError(f"image_size is {image_size}: it must be at least {SMALLEST_IMAGE} pixels")


def conv_bn_relu(
    x,
    filters: int,
    kernel_size: int,
    *,
    strides: int = 1,
    padding: str = "same",
    epsilon: float = 1e-3,
    relu: bool = True,
    name: str,
):
    """Convolution without bias, batch norm, ReLU: the block that M2Det is made of.

    Args:
        x: `(batch, height, width, channels)`.
        filters: channels of the result.
        kernel_size: side of the kernel.
        strides: of the convolution.
        padding: "same" (TensorFlow's: an even side is padded at its end only), "valid", or "symmetric" (PyTorch's
            `padding=kernel_size // 2`: the same on both sides).
        epsilon: of the batch norm; PyTorch's default is 1e-5.
        relu: False leaves the ReLU out.
        name: prefix of the layers' names.
    """
    if padding == "symmetric":
        padding = "valid" if kernel_size > 1 and strides > 1 else "same"
        if padding == "valid":
            x = layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
    x = layers.Conv2D(filters, kernel_size, strides, padding=padding, use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, epsilon=epsilon, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def resize_to(x, side: int, *, interpolation: str = "bilinear", name: str):
    """A map resized to `(side, side)`; itself where it has that size."""
    return x if tuple(x.shape[1:3]) == (side, side) else ResizeTo(side, interpolation, name=name)(x)


@keras.saving.register_keras_serializable(package="oid")
class ResizeTo(layers.Layer):
    """Resizing of a map to a square of fixed side.

    Args:
        side: of the result.
        interpolation: "bilinear" (half-pixel centres), or "nearest" as PyTorch does it: row i of the result is row
            floor(i * height / side).
    """

    def __init__(self, side: int, interpolation: str = "bilinear", **kwargs):
        super().__init__(**kwargs)
        if interpolation not in ("bilinear", "nearest"):
            raise ValueError(f"unknown interpolation {interpolation!r}")
        self.side = side
        self.interpolation = interpolation

    def call(self, x):
        if self.interpolation == "bilinear":
            return ops.image.resize(x, (self.side, self.side), interpolation="bilinear", data_format="channels_last")
        for axis in (1, 2):
            size = x.shape[axis]
            if self.side % size == 0:
                x = ops.repeat(x, self.side // size, axis=axis)
            else:
                x = ops.take(x, np.arange(self.side) * size // self.side, axis=axis)
        return x

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.side, self.side, input_shape[-1])

    def get_config(self):
        return {**super().get_config(), "side": self.side, "interpolation": self.interpolation}


def prior_bias(num_classes: int) -> keras.initializers.Initializer:
    """A bias that makes objects rare before the training (Lin et al. 2017, section 4.1).

    Their 0.01 per class for up to ten classes; beyond, a tenth shared by the classes: an anchor begins with the
    expectation of a tenth of an object however many classes there are.
    """
    prior = min(0.1 / num_classes, 0.01)
    return keras.initializers.Constant(-math.log((1 - prior) / prior))
