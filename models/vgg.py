"""VGG16 and VGG19 (Simonyan and Zisserman 2014) in the form of single-shot detectors: "reduced fc".

The fully connected layers are convolutions with a quarter of the outputs (Chen et al. 2014, DeepLab; Liu et al. 2016,
SSD, section 3): pool5 is 3x3 with a stride of 1, fc6 a 3x3 convolution dilated by 6, fc7 a 1x1 convolution. M2Det's
Figure 4 and the released code read relu4_3 (512 channels, stride 8) and fc7 (1,024, stride 16).
"""

import warnings
from pathlib import Path

import keras
import numpy as np
from keras import layers

from models.weight_files import load_weight_file
from oid.files import InputError

CONVOLUTIONS = {"VGG16": (2, 2, 3, 3, 3), "VGG19": (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)
FC_CHANNELS = 1024
FC6_DILATION = 6
FC1_SIDE, FC1_INPUTS, FC1_OUTPUTS = 7, 512, 4096  # of the network that was trained on ImageNet, at 224 pixels
FC1_BYTES = FC1_SIDE**2 * FC1_INPUTS * FC1_OUTPUTS * 4


def build_vgg(application: str, *, input_tensor, weights=None) -> keras.Model:
    """The convolutional layers with Keras' names and kernels, then `fc6` and `fc7`; biases and ReLUs, no batch norm.

    Args:
        application: a key of `CONVOLUTIONS`, which is the constructor's name in `keras.applications`.
        input_tensor: preprocessed pixels, `(batch, height, width, 3)`.
        weights: None (random), or "imagenet" (downloaded with its fully connected layers: half a gigabyte).
    """
    x = input_tensor
    for block, (depth, channels) in enumerate(zip(CONVOLUTIONS[application], CHANNELS, strict=True), start=1):
        for index in range(1, depth + 1):
            name = f"block{block}_conv{index}"
            x = layers.Conv2D(channels, 3, padding="same", activation="relu", name=name)(x)
        if block < 5:  # the third rounds odd sides up, as the released code does ("ceil mode")
            x = layers.MaxPooling2D(2, 2, padding="same" if block == 3 else "valid", name=f"block{block}_pool")(x)
    x = layers.MaxPooling2D(3, 1, padding="same", name="block5_pool")(x)
    x = layers.Conv2D(FC_CHANNELS, 3, padding="same", dilation_rate=FC6_DILATION, activation="relu", name="fc6")(x)
    x = layers.Conv2D(FC_CHANNELS, 1, activation="relu", name="fc7")(x)
    body = keras.Model(input_tensor, x, name=application.lower())
    if weights == "imagenet":
        copy_with_top(getattr(keras.applications, application)(include_top=True, weights="imagenet"), body)
    return body


def load_vgg(application: str, body: keras.Model, file: str) -> None:
    """Loads weights of the form of `build_vgg`, or of Keras' network with or without its top.

    With the top, fc6 and fc7 are made from it. Without, they keep their random values, and a warning says so.

    Raises:
        InputError: the file is missing or does not fit.
    """
    constructor = getattr(keras.applications, application)
    if Path(file).is_file() and Path(file).stat().st_size >= FC1_BYTES:
        source = constructor(include_top=True, weights=None, name=body.name)
        load_weight_file(source, file)
        copy_with_top(source, body)
        return
    try:
        load_weight_file(body, file)
    except InputError:
        source = constructor(include_top=False, weights=None, name=body.name)
        load_weight_file(source, file)
        copy_convolutions(source, body)
        sentence = f"{file} ends before the fully connected layers: fc6 and fc7 of {body.name} begin with random values"
        warnings.warn(sentence, stacklevel=2)


def copy_with_top(source: keras.Model, body: keras.Model) -> None:
    """Copies the weights of Keras' network with its top into the reduced form."""
    copy_convolutions(source, body)
    reduced = reduce_fully_connected(source.get_layer("fc1").get_weights(), source.get_layer("fc2").get_weights())
    for name, values in zip(("fc6", "fc7"), reduced, strict=True):
        body.get_layer(name).set_weights(values)


def copy_convolutions(source: keras.Model, body: keras.Model) -> None:
    """Copies the weights of the layers before the fully connected ones, by name."""
    for layer in body.layers:
        if layer.name.startswith("block") and layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights())


def reduce_fully_connected(fc1: list[np.ndarray], fc2: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Makes convolutions of fully connected layers: every third row and column, every fourth channel.

    Args:
        fc1: kernel `(7 * 7 * inputs, outputs)` with rows in the order row, column, channel; bias `(outputs,)`.
        fc2: kernel `(outputs, outputs)`; bias `(outputs,)`.

    Returns:
        [kernel, bias] of fc6, `(3, 3, inputs, outputs / 4)`, and of fc7, `(1, 1, outputs / 4, outputs / 4)`.
    """
    kernel, bias = fc1
    fc6 = kernel.reshape(FC1_SIDE, FC1_SIDE, -1, len(bias))[::3, ::3, :, ::4]
    return [fc6, bias[::4]], [fc2[0][None, None, ::4, ::4], fc2[1][::4]]
