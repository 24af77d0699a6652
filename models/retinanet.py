"""RetinaNet (Lin et al. 2017, arXiv 1708.02002): a feature pyramid and two subnets that all of its levels share.

1. The backbone's maps at strides 8, 16 and 32, of the architecture as published (`models.backbones`). The small
   backbones and VGG end at 16: a 3x3 convolution with a stride of 2 makes the third.
2. From the top down: a 1x1 convolution of each map, plus the doubled map from above, then 3x3: P5, P4, P3.
3. P6 is a 3x3 convolution with a stride of 2 on the backbone's last map, P7 one on P6 behind a ReLU.
4. On each level the same subnets for classes and boxes.

Convolutions have batch norm instead of the paper's biases, so that it learns from scratch, too; batch norms of the
subnets belong to their level. The network of the published checkpoints, which has none, is `models.keras_retinanet`.
"""

import keras
from keras import layers

from models.backbones import PYRAMID_STRIDES, STRIDES, build_backbone, find_backbone
from models.blocks import check_sizes, conv_bn_relu, resize_to
from models.heads import build_head
from models.run_settings import Head
from oid.anchors.grids import pyramid_sides

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
    head: Head = PUBLISHED_HEAD,
    anchors_per_cell: int = 1,
    backbone_weights: str = "none",
    normalisation: str | None = None,
) -> keras.Model:
    """Builds the network with raw outputs: what is trained.

    Args:
        backbone: a key of `models.backbones.BACKBONES`.
        num_classes: class outputs per anchor; the background class of softmax counts.
        image_size: side of the square input in pixels.
        scales: levels of the pyramid, from P3 on.
        channels: of each level, and of the subnets.
        head: "shared" (published), "light" or "conv", see `models.heads`.
        anchors_per_cell: anchors of each cell of each level.
        backbone_weights: see `models.backbones.build_backbone`.
        normalisation: of the pixels, see `models.backbones.build_backbone`.

    Returns:
        As `models.m2det.build_m2det`.

    Raises:
        InputError: no network has these sizes.
    """
    counts = {"scales": scales, "channels": channels, "num_classes": num_classes}
    check_sizes(image_size, anchors_per_cell=anchors_per_cell, **counts)
    sides = pyramid_sides(image_size, scales)
    image = keras.Input((image_size, image_size, 3), name="image")
    strides = PYRAMID_STRIDES if find_backbone(backbone).pyramid else STRIDES
    body = build_backbone(backbone, image_size, backbone_weights, preprocessing=normalisation, strides=strides)
    maps = list(body(image))
    if len(maps) < len(PYRAMID_STRIDES):
        maps.append(conv_bn_relu(maps[-1], 2 * channels, 3, strides=2, name="c5"))
    features = feature_pyramid(maps[:scales], sides, channels)
    return keras.Model(image, build_head(head, features, num_classes, anchors_per_cell, channels), name="retinanet")


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
