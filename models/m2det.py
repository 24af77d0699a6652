"""M2Det (Zhao et al. 2019, arXiv 1811.04533): a multi-level feature pyramid between a backbone and a single-shot head.

The network of the paper's Figure 4, sized by arguments, in the order of the data:

1. the backbone gives two maps, at an eighth and a sixteenth of the image;
2. FFMv1 fuses them into the base feature;
3. a chain of thinned U-shape modules (TUMs) makes one pyramid each; FFMv2 joins the base feature with the largest map
   of the module before;
4. SFAM stacks the pyramids scale by scale and weighs the channels by squeeze and excitation;
5. one convolution per scale predicts classes, another boxes.

The published sizes are 320, 512 or 800 pixels, 8 modules, 6 scales and 128 channels; the same code builds a network of
two million parameters that trains on a CPU.
"""

import math

import keras
from keras import layers, ops

from models.anchors import feature_map_sides
from models.backbones import build_backbone, conv_bn_relu
from oid.files import InputError

SMALLEST_IMAGE = 32  # pixels: five halvings inside the published backbones
SFAM_REDUCTION = 16  # section 3.3 of the paper
PRIOR_PROBABILITY = 0.1  # of an object at an anchor before training, shared by the classes (Lin et al. 2017, 4.1)


def build_m2det(
    *,
    backbone: str,
    num_classes: int,
    image_size: int,
    tums: int = 8,
    scales: int = 6,
    channels: int = 128,
    anchors_per_cell: int = 1,
    backbone_weights: str = "none",
) -> keras.Model:
    """Builds the network with raw outputs: what is trained.

    Args:
        backbone: a key of `models.backbones.BACKBONES`.
        num_classes: sigmoid outputs per anchor; there is no background class.
        image_size: side of the square input in pixels; at least 32, which is what the backbones need.
        tums: number of thinned U-shape modules (the paper's levels).
        scales: maps per pyramid.
        channels: channels of each map of each module; inside the modules there are twice as many.
        anchors_per_cell: anchors of each cell of each map.
        backbone_weights: see `models.backbones.build_backbone`.

    Returns:
        A functional model from raw RGB pixels `(batch, image_size, image_size, 3)`, 0 to 255, to a dict of float32
        tensors: `classes`, logits of shape `(batch, anchors, num_classes)`, and `boxes`, offsets of shape
        `(batch, anchors, 4)`; anchors in the order of `models.anchors.make_anchors`.

    Raises:
        InputError: a size that makes no network.
    """
    counts = {"tums": tums, "scales": scales, "channels": channels, "num_classes": num_classes}
    for name, value in (counts | {"anchors_per_cell": anchors_per_cell}).items():
        if value < 1:
            raise InputError(f"{name} is {value}: it must be at least 1")
    if image_size < SMALLEST_IMAGE:
        raise InputError(f"image_size is {image_size}: it must be at least {SMALLEST_IMAGE} pixels")
    sides = feature_map_sides(image_size, scales)
    if scales > 1 and sides[-2] == 1:
        largest = sum(side > 1 for side in feature_map_sides(image_size, 16)) + 1
        raise InputError(f"{scales} scales do not fit {image_size} pixels: choose at most {largest} or a larger image")
    image = keras.Input((image_size, image_size, 3), name="image")
    shallow, deep = build_backbone(backbone, image_size, backbone_weights)(image)
    base = fuse_backbone_maps(shallow, deep, channels, sides[0])
    pyramids = []
    for index in range(tums):
        previous = pyramids[-1][0] if pyramids else None
        x = fuse_with_previous(base, previous, channels, name=f"ffm2_{index + 1}")
        pyramids.append(thinned_u_shape_module(x, sides, channels, name=f"tum{index + 1}"))
    features = [
        scale_wise_aggregation([pyramid[scale] for pyramid in pyramids], name=f"sfam{scale + 1}")
        for scale in range(scales)
    ]
    outputs = convolutional_head(features, num_classes, anchors_per_cell)
    return keras.Model(image, outputs, name="m2det")


def fuse_backbone_maps(shallow, deep, channels: int, side: int):
    """FFMv1: the shallow map by a 3x3 convolution, the deep one by 1x1 and doubled, stacked.

    Twice and four times `channels` (256 and 512 in the paper), so 768 channels in all. Some backbones drop an odd last
    row and column where the anchors count them; their map is stretched to `side`, the anchors' largest map.
    """
    shallow = resize_to(conv_bn_relu(shallow, 2 * channels, 3, name="ffm1_shallow"), side, name="ffm1_fit")
    deep = resize_to(conv_bn_relu(deep, 4 * channels, 1, name="ffm1_deep"), side, name="ffm1_up")
    return layers.Concatenate(name="base_feature")([shallow, deep])


def fuse_with_previous(base, previous, channels: int, *, name: str):
    """FFMv2: the base feature by 1x1, stacked with the largest map of the module before; the first module has none."""
    if previous is None:
        return conv_bn_relu(base, 2 * channels, 1, name=name)
    base = conv_bn_relu(base, channels, 1, name=name)
    return layers.Concatenate(name=f"{name}_concat")([base, previous])


def thinned_u_shape_module(x, sides: list[int], channels: int, *, name: str) -> list:
    """TUM: 3x3 convolutions of stride 2 downwards, 3x3 convolution and bilinear upsampling with addition upwards, and a
    1x1 convolution to smooth each scale.

    Args:
        x: `(batch, sides[0], sides[0], 2 * channels)`.
        sides: sides of the maps, largest first.
        channels: channels of each map given back.
        name: prefix of the layers' names.

    Returns:
        A list of maps `(batch, side, side, channels)`, largest first.
    """
    encoded = [x]
    for index in range(1, len(sides)):
        encoded.append(conv_bn_relu(encoded[-1], 2 * channels, 3, strides=2, name=f"{name}_down{index}"))
    decoded = [encoded[-1]]
    for index in range(len(sides) - 2, -1, -1):
        y = conv_bn_relu(decoded[-1], 2 * channels, 3, name=f"{name}_up{index + 1}")
        y = resize_to(y, sides[index], name=f"{name}_resize{index + 1}")
        decoded.append(layers.Add(name=f"{name}_add{index + 1}")([y, encoded[index]]))
    return [conv_bn_relu(y, channels, 1, name=f"{name}_smooth{index + 1}") for index, y in enumerate(reversed(decoded))]


def scale_wise_aggregation(maps: list, *, name: str):
    """SFAM: the maps of one scale from all modules, stacked, each channel weighed by squeeze and excitation."""
    x = layers.Concatenate(name=f"{name}_concat")(maps) if len(maps) > 1 else maps[0]
    channels = x.shape[-1]
    weights = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    weights = layers.Dense(max(channels // SFAM_REDUCTION, 4), activation="relu", name=f"{name}_reduce")(weights)
    weights = layers.Dense(channels, activation="sigmoid", name=f"{name}_excite")(weights)
    return layers.Multiply(name=name)([x, weights])


def convolutional_head(features: list, num_classes: int, anchors_per_cell: int) -> dict:
    """One 3x3 convolution for the classes and one for the boxes of each scale, as published.

    Returns:
        `{"classes": (batch, anchors, num_classes), "boxes": (batch, anchors, 4)}`, float32 under mixed precision too.
    """
    prior = min(PRIOR_PROBABILITY / num_classes, 0.01)
    bias = keras.initializers.Constant(-math.log((1 - prior) / prior))
    parts = {"classes": [], "boxes": []}
    for index, feature in enumerate(features):
        for output, width, bias_initializer in (("classes", num_classes, bias), ("boxes", 4, "zeros")):
            x = layers.Conv2D(
                anchors_per_cell * width,
                3,
                padding="same",
                kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
                bias_initializer=bias_initializer,
                dtype="float32",
                name=f"{output}{index + 1}",
            )(feature)
            parts[output].append(layers.Reshape((-1, width), name=f"{output}{index + 1}_flat", dtype="float32")(x))
    return {
        name: layers.Concatenate(axis=1, name=name, dtype="float32")(maps) if len(maps) > 1 else maps[0]
        for name, maps in parts.items()
    }


def resize_to(x, side: int, *, name: str):
    """Bilinear resizing to `(side, side)`, half-pixel centres."""
    return x if x.shape[1] == side else ResizeTo(side, name=name)(x)


@keras.saving.register_keras_serializable(package="oid")
class ResizeTo(layers.Layer):
    """Bilinear resizing of a map to a square of fixed side."""

    def __init__(self, side: int, **kwargs):
        super().__init__(**kwargs)
        self.side = side

    def call(self, x):
        return ops.image.resize(x, (self.side, self.side), interpolation="bilinear", data_format="channels_last")

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.side, self.side, input_shape[-1])

    def get_config(self):
        return {**super().get_config(), "side": self.side}
