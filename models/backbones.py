"""Backbones: one table from a name to a feature extractor with two taps, at an eighth and a sixteenth of the image.

Each entry says how to build it, which two layers M2Det reads, and what its pretrained weights expect of the pixels.
`keras.applications` brings the architectures and the ImageNet weights; the small ones are ours, for training from
scratch on a CPU.
"""

import dataclasses
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras
from keras import layers

from models.blocks import BATCH_NORM_MOMENTUM, conv_bn_relu
from oid.files import InputError

CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
TORCH_MEAN_RGB = (0.485, 0.456, 0.406)
TORCH_STD_RGB = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Backbone:
    """How one backbone is built and read.

    Attributes:
        build: makes the model without its top from `input_tensor` and `weights` ("imagenet" or None).
        shallow: name of the layer whose output has a stride of 8 pixels.
        deep: name of the layer whose output has a stride of 16 pixels.
        preprocessing: what the pretrained weights expect; a key of `PREPROCESSING`.
        pretrained: whether ImageNet weights can be had.
    """

    build: Callable[..., keras.Model]
    shallow: str
    deep: str
    preprocessing: str
    pretrained: bool = True


def residual_small(*, input_tensor, weights=None, width: int = 32) -> keras.Model:
    """A small residual network with batch norm, to be trained from scratch: 3x3 stem, then four stages of basic blocks.

    Strides 2, 4, 8 (`shallow`), 16 (`deep`); `width` channels in the stem, and 1.5, 3 and 6 times that in the stages.
    """
    del weights
    x = conv_bn_relu(input_tensor, width, 3, strides=2, name="stem")
    x = residual_block(x, width * 3 // 2, strides=2, name="stage2_block1")
    x = residual_block(x, width * 3, strides=2, name="stage3_block1")
    x = residual_block(x, width * 3, name="shallow")
    x = residual_block(x, width * 6, strides=2, name="stage4_block1")
    x = residual_block(x, width * 6, name="deep")
    return keras.Model(input_tensor, x, name="residual_small")


def vgg_small(*, input_tensor, weights=None, width: int = 32) -> keras.Model:
    """VGG's idea with batch norm and few layers, to be trained from scratch: 3x3 convolutions without shortcuts.

    Strides and channels as `residual_small`; the first convolution of a stage has the stride, instead of a pooling.
    """
    del weights
    x = conv_bn_relu(input_tensor, width, 3, strides=2, name="stem")
    for stage, (channels, depth, last) in enumerate(
        [(width * 3 // 2, 2, "stage2"), (width * 3, 3, "shallow"), (width * 6, 3, "deep")], start=2
    ):
        for index in range(depth):
            name = f"stage{stage}_{index + 1}" if index < depth - 1 else last
            x = conv_bn_relu(x, channels, 3, strides=1 if index else 2, name=name)
    return keras.Model(input_tensor, x, name="vgg_small")


def residual_block(x, filters: int, *, strides: int = 1, name: str):
    """Two 3x3 convolutions beside a shortcut (He et al. 2015, basic block; a 1x1 shortcut where the shape changes)."""
    y = conv_bn_relu(x, filters, 3, strides=strides, name=f"{name}_1")
    y = conv_bn_relu(y, filters, 3, name=f"{name}_2", relu=False)
    if strides != 1 or x.shape[-1] != filters:
        if strides != 1:
            x = layers.AveragePooling2D(strides, padding="same", name=f"{name}_pool")(x)
        x = conv_bn_relu(x, filters, 1, name=f"{name}_shortcut", relu=False)
    return layers.ReLU(name=name)(layers.Add(name=f"{name}_add")([x, y]))


def _application(name: str, **options) -> Callable[..., keras.Model]:
    """A builder of `keras.applications.<name>` without its top."""

    def build(*, input_tensor, weights=None) -> keras.Model:
        constructor = getattr(keras.applications, name)
        return constructor(include_top=False, weights=weights, input_tensor=input_tensor, **options)

    return build


def _mobilenet_v2(alpha: float) -> Backbone:
    return Backbone(_application("MobileNetV2", alpha=alpha), "block_6_expand_relu", "block_13_expand_relu", "tf")


BACKBONES: dict[str, Backbone] = {
    "residual_small": Backbone(residual_small, "shallow", "deep", "tf", pretrained=False),
    "vgg_small": Backbone(vgg_small, "shallow_relu", "deep_relu", "tf", pretrained=False),
    "vgg16": Backbone(_application("VGG16"), "block4_conv3", "block5_conv3", "caffe"),
    "vgg19": Backbone(_application("VGG19"), "block4_conv4", "block5_conv4", "caffe"),
    "resnet50": Backbone(_application("ResNet50"), "conv3_block4_out", "conv4_block6_out", "caffe"),
    "resnet101": Backbone(_application("ResNet101"), "conv3_block4_out", "conv4_block23_out", "caffe"),
    "mobilenet_v2": _mobilenet_v2(1.0),
    "mobilenet_v2_0.5": _mobilenet_v2(0.5),
    "mobilenet_v2_0.35": _mobilenet_v2(0.35),
    "densenet121": Backbone(_application("DenseNet121"), "pool3_relu", "pool4_relu", "torch"),
}


def find_backbone(name: str) -> Backbone:
    """The table's entry.

    Raises:
        InputError: no such backbone; the message lists the valid names.
    """
    if name not in BACKBONES:
        raise InputError(f"backbone {name!r} does not exist: choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def build_backbone(name: str, image_size: int, weights: str = "none") -> keras.Model:
    """Builds a feature extractor with its preprocessing inside.

    Args:
        name: a key of `BACKBONES`.
        image_size: side of the square input in pixels.
        weights: "none" (random), "imagenet" (downloaded by Keras on first use), or a weights file of the same
            architecture without its top (`.weights.h5`, `.h5`, `.keras`).

    Returns:
        A model from raw RGB pixels `(batch, image_size, image_size, 3)`, 0 to 255, to the two maps at strides 8 and 16.

    Raises:
        InputError: unknown name, no ImageNet weights for it, or a weights file that is missing or does not fit.
    """
    backbone = find_backbone(name)
    if weights == "imagenet" and not backbone.pretrained:
        raise InputError(f"--backbone_weights imagenet: there are none for {name}; train it from scratch with none")
    image = keras.Input((image_size, image_size, 3), name="image")
    pixels = Preprocessing(backbone.preprocessing, name="preprocessing")(image)
    body_input = keras.Input(pixels.shape[1:], name="pixels")
    try:
        body = backbone.build(input_tensor=body_input, weights="imagenet" if weights == "imagenet" else None)
    except Exception as error:  # Keras raises a bare Exception when a download fails
        if weights != "imagenet":
            raise
        hint = f"--backbone_weights imagenet: the weights of {name} could not be downloaded"
        raise InputError(f"{hint} ({error}); download them elsewhere and give the file, or use none") from error
    if weights == "none":
        for layer in body.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.momentum = BATCH_NORM_MOMENTUM
    elif weights != "imagenet":
        _load_weights(body, weights)
    taps = keras.Model(body.inputs, [body.get_layer(backbone.shallow).output, body.get_layer(backbone.deep).output])
    taps.name = "backbone"
    return keras.Model(image, taps(pixels), name=name)


def _load_weights(body: keras.Model, file: str) -> None:
    """Loads a weights file into the whole body, naming the file and the first difference when it does not fit."""
    if not Path(file).is_file():
        raise InputError(f'--backbone_weights {file}: no such file; give "imagenet", "none" or a weights file')
    try:
        with warnings.catch_warnings(action="ignore"):  # of each layer that is not in the file, before the error
            body.load_weights(file)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"--backbone_weights {file} does not fit {body.name}: {reason}") from error


@keras.saving.register_keras_serializable(package="oid")
class Preprocessing(layers.Layer):
    """From raw RGB pixels, 0 to 255, to what the pretrained weights were trained on.

    Args:
        mode: "caffe" (BGR minus ImageNet's mean), "tf" (-1 to 1), "torch" (0 to 1, then ImageNet's mean and deviation),
            or "none" (the backbone has its own).
    """

    def __init__(self, mode: str, **kwargs):
        super().__init__(**kwargs)
        if mode not in ("caffe", "tf", "torch", "none"):
            raise ValueError(f"unknown preprocessing {mode!r}")
        self.mode = mode

    def call(self, image):
        ops = keras.ops
        x = ops.cast(image, self.compute_dtype)
        if self.mode == "caffe":
            return ops.flip(x, axis=-1) - ops.convert_to_tensor(CAFFE_MEAN_BGR, dtype=x.dtype)
        if self.mode == "tf":
            return x / 127.5 - 1.0
        if self.mode == "torch":
            mean = ops.convert_to_tensor(TORCH_MEAN_RGB, dtype=x.dtype)
            return (x / 255.0 - mean) / ops.convert_to_tensor(TORCH_STD_RGB, dtype=x.dtype)
        return x

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "mode": self.mode}
