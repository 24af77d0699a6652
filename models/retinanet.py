"""RetinaNet (Lin et al. 2017, arXiv 1708.02002): a feature pyramid and two subnets that all of its levels share.

1. The backbone's maps at strides 8, 16 and 32, of the architecture as published (`models.backbones`). The small
   backbones and VGG end at 16: a 3x3 convolution with a stride of 2 makes the third.
2. From the top down: a 1x1 convolution of each map, plus the doubled map from above, then 3x3: P5, P4, P3.
3. P6 is a 3x3 convolution with a stride of 2 on the backbone's last map, P7 one on P6 behind a ReLU.
4. On each level the same subnets for classes and boxes.

Convolutions have batch norm instead of the paper's biases, so that it learns from scratch, too; batch norms of the
subnets belong to their level. The network of the published checkpoints, which has none, is `models.legacy_retinanet`.
"""

import keras
from keras import layers

from models.backbones import PYRAMID_STRIDES, STRIDES, build_backbone, find_backbone
from models.blocks import conv_bn_relu, resize_to
from models.heads import HEADS, SUBNET_DEPTHS, convolutional_head, shared_head
from oid.anchors.grids import pyramid_sides
from oid.files import InputError

SMALLEST_IMAGE = 32  # pixels: five halvings inside the published backbones
PUBLISHED_SCALES = 5  # P3 to P7
PUBLISHED_CHANNELS = 256
PUBLISHED_HEAD = "shared"


def build_retinanet(
    *,
    backbone: str,
    num_classes: int,
    image_size: int,
    scales: int = PUBLISHED_SCALES,
    channels: int = PUBLISHED_CHANNELS,
    head: str = PUBLISHED_HEAD,
    anchors_per_cell: int = 1,
    backbone_weights: str = "none",
    preprocessing: str | None = None,
    taps: tuple[str, ...] | None = None,
) -> keras.Model:
    """Builds the network with raw outputs: what is trained.

    Args:
        backbone: a key of `models.backbones.BACKBONES`.
        num_classes: class outputs per anchor.
        image_size: side of the square input in pixels; at least 32, which is what the backbones need.
        scales: levels of the pyramid, from P3 on.
        channels: of each level, and of the subnets.
        head: "shared" (published), "light" or "conv", see `models.heads`.
        anchors_per_cell: anchors of each cell of each level.
        backbone_weights: see `models.backbones.build_backbone`.
        preprocessing: see `models.backbones.build_backbone`.
        taps: see `models.backbones.build_backbone`; two for backbones that end at stride 16, else three.

    Returns:
        A functional model from raw RGB pixels `(batch, image_size, image_size, 3)`, 0 to 255, to a dict of float32
        tensors: `classes`, logits of shape `(batch, anchors, num_classes)`, and `boxes`, offsets of shape
        `(batch, anchors, 4)`; anchors in the order of `oid.anchors.grids.make_anchors`.

    Raises:
        InputError: a size that makes no network.
    """
    counts = {"scales": scales, "channels": channels, "num_classes": num_classes, "anchors_per_cell": anchors_per_cell}
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} is {value}: it must be at least 1")
    if head not in HEADS:
        raise InputError(f"head {head!r} does not exist: choose one of {', '.join(HEADS)}")
    if image_size < SMALLEST_IMAGE:
        raise InputError(f"image_size is {image_size}: it must be at least {SMALLEST_IMAGE} pixels")
    sides = pyramid_sides(image_size, scales)

    image = keras.Input((image_size, image_size, 3), name="image")
    strides = PYRAMID_STRIDES if find_backbone(backbone).pyramid else STRIDES
    options = {"preprocessing": preprocessing, "taps": taps, "strides": strides}
    maps = list(build_backbone(backbone, image_size, backbone_weights, **options)(image))
    if len(maps) < len(PYRAMID_STRIDES):
        maps.append(conv_bn_relu(maps[-1], 2 * channels, 3, strides=2, name="c5"))
    features = feature_pyramid(maps[:scales], sides, channels)
    if head == "conv":
        outputs = convolutional_head(features, num_classes, anchors_per_cell)
    else:
        outputs = shared_head(features, num_classes, anchors_per_cell, channels, SUBNET_DEPTHS[head])
    return keras.Model(image, outputs, name="retinanet")


def feature_pyramid(maps: list, sides: list[int], channels: int) -> list:
    """P3, P4, ... of the backbone's maps.

    Args:
        maps: the backbone's, `(batch, side, side, any)`, largest first.
        sides: of the levels, which may be more than maps; where a backbone rounds down what they round up, its map is
            resized.
        channels: of each level.
    """
    merged = []
    for level in reversed(range(len(maps))):
        x = conv_bn_relu(maps[level], channels, 1, relu=False, name=f"p{level + 3}_lateral")
        x = resize_to(x, sides[level], name=f"p{level + 3}_fit")
        if merged:
            above = resize_to(merged[0], sides[level], interpolation="nearest", name=f"p{level + 4}_up")
            x = layers.Add(name=f"p{level + 3}_merged")([x, above])
        merged.insert(0, x)
    features = [conv_bn_relu(x, channels, 3, relu=False, name=f"p{k}") for k, x in enumerate(merged, start=3)]
    x = maps[-1]
    for level in range(len(maps), len(sides)):
        if level > len(maps):
            x = layers.ReLU(name=f"p{level + 2}_relu")(x)
        x = conv_bn_relu(x, channels, 3, strides=2, relu=False, name=f"p{level + 3}")
        x = resize_to(x, sides[level], name=f"p{level + 3}_fit")
        features.append(x)
    return features
