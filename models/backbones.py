"""Backbones: one table from a name to a feature extractor with maps of strides 8 and 16, or 8, 16 and 32.

`keras.applications` brings the architectures and the ImageNet weights; the small ones are ours, for training from
scratch on a CPU.

M2Det reads the end of the last stage at stride 16. The paper sets the stride of ResNet's stage 4 to 1, so that stage 5
ends at stride 16 instead of 32, and reads the ends of stages 3 and 5. The cost of that decides for the others; 10^9
multiply-additions of the backbone at 320 pixels:

|                               | as published | the paper's rule (8 to 16) | the last stride (16 to 32) |
|-------------------------------|--------------|----------------------------|----------------------------|
| ResNet50, DenseNet121         | 7.9,  5.8    | 20.8, 10.4                 | 12.4,  6.4                 |
| MobileNetV2, NASNetMobile     | 0.6,  1.2    |  1.7,  3.2                 |  1.1,  2.0                 |
| EfficientNetV2 B0, S          | 1.5,  5.8    |  3.7, 13.7                 |  2.5,  9.3                 |
| ConvNeXt Tiny, Base           | 9.1, 31.3    | 27.0, 108.9                | 13.7, 39.6                 |

ResNet and DenseNet, which has the same four stages, follow the paper. The mobile networks and EfficientNetV2 are made
to be cheap, and ConvNeXt has most of its layers in the stage that would cost four times as much: they lose the last
stride. VGG keeps all: its pool5 has a stride of 1 in the form that detectors use (`models.vgg`).
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable

import keras
from keras import layers

from models.blocks import BATCH_NORM_MOMENTUM
from models.keras_internals import all_layers
from models.preprocessing import PREPROCESSING, Preprocessing
from models.remove_strides import remove_strides
from models.small_backbones import residual_small, vgg_small
from models.vgg import build_vgg, load_vgg
from models.weight_files import load_weight_file
from oid.files import InputError

STRIDES = (8, 16)  # pixels, of M2Det's maps
PYRAMID_STRIDES = (8, 16, 32)


@dataclasses.dataclass(frozen=True)
class Backbone:
    """How one backbone is built and read.

    Attributes:
        build: makes the model without its top from `input_tensor` and `weights` ("imagenet" or None).
        shallow, deep: names of the layers whose outputs have strides of 8 and 16 pixels without the strides of
            `unstrided`.
        preprocessing: what the pretrained weights expect; a key of `PREPROCESSING`.
        pyramid: names of the layers whose outputs have strides of 8, 16 and 32 pixels in the published architecture;
            () if it ends at 16.
        unstrided: names of the layers whose stride becomes 1 for `STRIDES`, with the padding layers before them.
        load: loads a weights file into what `build` made, or raises InputError.
        pretrained: whether there are ImageNet weights.
        on_torch: whether `keras.applications` builds it on the PyTorch backend.
    """

    build: Callable[..., keras.Model]
    shallow: str
    deep: str
    preprocessing: str
    pyramid: tuple[str, ...] = ()
    unstrided: tuple[str, ...] = ()
    load: Callable[[keras.Model, str], None] = load_weight_file
    pretrained: bool = True
    on_torch: bool = True


# === The table =======================================================================================================
def _application(name: str, **options) -> Callable[..., keras.Model]:
    """A builder of `keras.applications.<name>` without its top."""

    def build(*, input_tensor, weights=None) -> keras.Model:
        constructor = getattr(keras.applications, name)
        with warnings.catch_warnings(action="ignore"):  # MobileNets: weights for 224 pixels serve other sizes, too
            return constructor(include_top=False, weights=weights, input_tensor=input_tensor, **options)

    return build


def _vgg(name: str, shallow: str) -> Backbone:
    build, load = functools.partial(build_vgg, name), functools.partial(load_vgg, name)
    return Backbone(build, shallow, "fc7", "caffe", load=load)


def _resnet(name: str, stage3_blocks: int, stage4_blocks: int) -> Backbone:
    unstrided = ("conv4_block1_0_conv", "conv4_block1_1_conv")
    pyramid = (f"conv3_block{stage3_blocks}_out", f"conv4_block{stage4_blocks}_out", "conv5_block3_out")
    return Backbone(_application(name), pyramid[0], pyramid[2], "caffe", pyramid, unstrided)


def _resnet_v2(name: str, stage3_blocks: int, stage4_blocks: int) -> Backbone:
    """Keras puts the stride at the end of a stage: stage 4's, by the paper, is in the last block of `conv3`.

    The maps are the sums after the batch norm and ReLU that follow them.
    """
    block = f"conv3_block{stage3_blocks}"
    unstrided = ("max_pooling2d_1", f"{block}_2_pad", f"{block}_2_conv")  # the shortcut, and the 3x3 convolution
    pyramid = (f"{block}_preact_relu", f"conv4_block{stage4_blocks}_preact_relu", "post_relu")
    return Backbone(_application(name), "conv4_block1_preact_relu", "post_relu", "tf", pyramid, unstrided)


def _mobilenet(alpha: float) -> Backbone:
    unstrided = ("conv_pad_12", "conv_dw_12")
    pyramid = ("conv_pw_5_relu", "conv_pw_11_relu", "conv_pw_13_relu")
    return Backbone(_application("MobileNet", alpha=alpha), pyramid[0], pyramid[2], "tf", pyramid, unstrided)


def _mobilenet_v2(alpha: float) -> Backbone:
    """The shallow map is the widest one of stride 8: the expanded sum of block 5, in block 6."""
    unstrided = ("block_13_pad", "block_13_depthwise")
    pyramid = ("block_6_expand_relu", "block_13_expand_relu", "out_relu")
    return Backbone(_application("MobileNetV2", alpha=alpha), pyramid[0], pyramid[2], "tf", pyramid, unstrided)


def _mobilenet_v3(name: str, middle: str, deep: str, last_stage: int) -> Backbone:
    """The shallow map as in MobileNetV2: the activation after the expansion of block 3 (small) or 6 (large)."""
    unstrided = (f"expanded_conv_{last_stage}_depthwise_pad", f"expanded_conv_{last_stage}_depthwise")
    pyramid = ("activation_1", middle, deep)
    return Backbone(_application(name, include_preprocessing=False), pyramid[0], deep, "tf", pyramid, unstrided)


def _densenet(blocks: int) -> Backbone:
    pyramid = ("pool3_relu", "pool4_relu", "relu")
    return Backbone(_application(f"DenseNet{blocks}"), pyramid[0], "relu", "torch", pyramid, ("pool3_pool",))


def _efficientnet_v2(size: str, stage3_last: str) -> Backbone:
    """B0 to B3 were trained with ImageNet's mean and deviation, S and M with -1 to 1."""
    build = _application(f"EfficientNetV2{size}", include_preprocessing=False)
    preprocessing = "torch" if size.startswith("B") else "tf128"
    pyramid = (f"block3{stage3_last}_add", "block6a_expand_activation", "top_activation")
    return Backbone(build, pyramid[0], pyramid[2], preprocessing, pyramid, ("block6a_dwconv2",))


def _convnext(size: str) -> Backbone:
    """The maps are those after layer norms: the one before the next stage, and the last of the network."""
    part = f"convnext_{size.lower()}_downsampling"
    build = _application(f"ConvNeXt{size}", include_preprocessing=False)
    pyramid = (f"{part}_layernorm_1", f"{part}_layernorm_2", "layer_normalization")
    return Backbone(build, pyramid[0], pyramid[2], "torch", pyramid, (f"{part}_conv_2",))


def _nasnet_mobile() -> Backbone:
    """Unstrided: the reduction cell before the last stage, and the layers that adjust the map before it."""
    branches = [f"reduction_{branch}_reduce_8" for branch in ("left1", "right1", "right2", "right3")]
    pools = [f"reduction_{branch}_reduce_8" for branch in ("pad_1", "left2", "left3", "right5")]
    unstrided = [f"separable_conv_1_{part}{branch}" for branch in branches for part in ("pad_", "")]
    unstrided += [*pools, "adjust_avg_pool_1_9", "adjust_avg_pool_2_9"]
    build = _application("NASNetMobile")
    pyramid = ("normal_concat_3", "normal_concat_8", "activation_187")
    return Backbone(build, pyramid[0], pyramid[2], "tf", pyramid, tuple(unstrided), on_torch=False)


def _widths(name: str, entry: Callable[[float], Backbone], *alphas: float) -> dict[str, Backbone]:
    """The entries of one architecture in several widths."""
    return {name if alpha == 1 else f"{name}_{alpha}": entry(alpha) for alpha in alphas}


BACKBONES: dict[str, Backbone] = {
    "residual_small": Backbone(residual_small, "shallow", "deep", "tf", pretrained=False),
    "vgg_small": Backbone(vgg_small, "shallow_relu", "deep_relu", "tf", pretrained=False),
    "vgg16": _vgg("VGG16", "block4_conv3"),
    "vgg19": _vgg("VGG19", "block4_conv4"),
    "resnet50": _resnet("ResNet50", 4, 6),
    "resnet101": _resnet("ResNet101", 4, 23),
    "resnet152": _resnet("ResNet152", 8, 36),
    "resnet50_v2": _resnet_v2("ResNet50V2", 4, 6),
    "resnet101_v2": _resnet_v2("ResNet101V2", 4, 23),
    "resnet152_v2": _resnet_v2("ResNet152V2", 8, 36),
    **_widths("mobilenet", _mobilenet, 1, 0.75, 0.5, 0.25),
    **_widths("mobilenet_v2", _mobilenet_v2, 1.4, 1.3, 1, 0.75, 0.5, 0.35),
    "mobilenet_v3_small": _mobilenet_v3("MobileNetV3Small", "activation_11", "activation_17", 8),
    "mobilenet_v3_large": _mobilenet_v3("MobileNetV3Large", "activation_13", "activation_19", 12),
    "densenet121": _densenet(121),
    "densenet169": _densenet(169),
    "densenet201": _densenet(201),
    "efficientnet_v2_b0": _efficientnet_v2("B0", "b"),
    "efficientnet_v2_b1": _efficientnet_v2("B1", "c"),
    "efficientnet_v2_b2": _efficientnet_v2("B2", "c"),
    "efficientnet_v2_b3": _efficientnet_v2("B3", "c"),
    "efficientnet_v2_s": _efficientnet_v2("S", "d"),
    "efficientnet_v2_m": _efficientnet_v2("M", "e"),
    "convnext_tiny": _convnext("Tiny"),
    "convnext_small": _convnext("Small"),
    "convnext_base": _convnext("Base"),
    "nasnet_mobile": _nasnet_mobile(),
}


def find_backbone(name: str) -> Backbone:
    """Returns the table's entry.

    Raises:
        InputError: there is no such backbone; the message lists the valid names.
    """
    if name not in BACKBONES:
        raise InputError(f"backbone {name!r} does not exist: choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


# === Building ========================================================================================================
def build_backbone(
    name: str,
    image_size: int,
    weights: str = "none",
    *,
    preprocessing: str | None = None,
    strides: tuple[int, ...] = STRIDES,
) -> keras.Model:
    """Builds a feature extractor with its preprocessing inside.

    Args:
        name: a key of `BACKBONES`.
        image_size: side of the square input in pixels.
        weights: "none" (random), "imagenet" (downloaded by Keras on first use), or a weights file of the same
            architecture without its top (`.weights.h5`, `.h5`, `.keras`); of VGG also with its top.
        preprocessing: a key of `PREPROCESSING`; None = the table's.
        strides: `STRIDES`, or `PYRAMID_STRIDES` if the table has three layers.

    Returns:
        A model from raw RGB pixels `(batch, image_size, image_size, 3)`, 0 to 255, to the maps of these strides.

    Raises:
        InputError: an unknown name or preprocessing, no ImageNet weights for this backbone, a download that fails, or a
            weights file that is missing or does not fit.
    """
    backbone = find_backbone(name)
    if weights == "imagenet" and not backbone.pretrained:
        raise InputError(f"there are no ImageNet weights for {name}: train it from scratch, with backbone weights none")
    if not backbone.on_torch and keras.backend.backend() == "torch":
        raise InputError(f"backbone {name!r}: Keras does not build it on the PyTorch backend; choose another")
    preprocessing = backbone.preprocessing if preprocessing is None else preprocessing
    if preprocessing not in PREPROCESSING:
        raise InputError(f"preprocessing {preprocessing!r} does not exist: choose one of {', '.join(PREPROCESSING)}")

    image = keras.Input((image_size, image_size, 3), name="image")
    pixels = Preprocessing(preprocessing, name="preprocessing")(image)
    body = _body_with_weights(backbone, name, keras.Input(pixels.shape[1:], name="pixels"), weights)
    if strides == PYRAMID_STRIDES:
        body, names = remove_strides(body, ()), backbone.pyramid
    else:
        body = remove_strides(body, backbone.unstrided) if backbone.unstrided else body
        names = backbone.shallow, backbone.deep
    if weights == "none":
        for layer in body.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.momentum = BATCH_NORM_MOMENTUM
    maps = [body.get_layer(layer).output for layer in names]
    return keras.Model(image, keras.Model(body.inputs, maps, name="backbone")(pixels), name=name)


def _body_with_weights(backbone: Backbone, name: str, pixels, weights: str) -> keras.Model:
    """The published network with weights."""
    try:
        body = backbone.build(input_tensor=pixels, weights="imagenet" if weights == "imagenet" else None)
    except Exception as error:  # Keras raises a bare Exception when a download fails
        if not isinstance(error, OSError) and "URL fetch failure" not in str(error):
            raise
        raise InputError(
            f"the ImageNet weights of {name} could not be downloaded ({error}): download them elsewhere and give the "
            "file as backbone weights, or give none"
        ) from error
    body.name = name
    if weights not in ("none", "imagenet"):
        backbone.load(body, weights)
    return body


def freeze(model: keras.Model, *, weights: bool = False, batch_norm: bool = False) -> None:
    """Keeps weights as they are in a training. Call it before the optimizer is built.

    Args:
        model: a network or its backbone, with the models inside it.
        weights: nothing in it is trained; its batch norms use and keep their moving statistics. (Dropout, as in
            EfficientNetV2, still drops.)
        batch_norm: the same for its batch norms only, with their scale and shift.
    """
    if weights:
        model.trainable = False
    if batch_norm:
        for layer in all_layers(model):
            if isinstance(layer, layers.BatchNormalization):
                layer.trainable = False
