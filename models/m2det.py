"""M2Det (Zhao et al. 2019, arXiv 1811.04533): a multi-level feature pyramid between a backbone and a single-shot head.

There are two, and both are here; `channels` is 128 in the paper and 256 in the released code:

| part          | `variant="paper"`: Figure 4              | `variant="released"`: the authors' code and checkpoint |
|---------------|------------------------------------------|--------------------------------------------------------|
| backbone      | maps at 1/8 and 1/16 of the image        | the same                                               |
| FFMv1         | 1x1 to 256, 1x1 to 512, bilinear x2      | 3x3 to 256, 1x1 to 512, nearest x2                     |
| FFMv2         | 1x1 to 128 for each TUM, + 128 of the    | one 1x1 to 128 for all, + 256 of the TUM before;       |
|               | TUM before; 1x1 to 256 for the first     | those 128 alone for the first                          |
| TUM, down     | 3x3, stride 2                            | 3x3, stride 2, padded on both sides                    |
| TUM, up       | 3x3, bilinear, + the encoder's map       | 1x1 at the top; nearest, + 3x3 of the encoder's map    |
| TUM, smooth   | 1x1 from 256 to 128 on every scale       | 1x1 from 256 to 256 on all but the smallest            |
| aggregated    | 8 x 128 = 1,024 channels                 | 8 x 256 = 2,048, batch norm on the largest map         |
| SFAM          | squeeze and excitation for each scale    | none; "released_sfam" has one for all scales           |
| batch norm    | epsilon 1e-3                             | epsilon 1e-5                                           |

The paper's text gives FFMv1 a 1x1 convolution where its figure has 3x3; its table of parameters fits 1x1. Both build at
any size: the same code makes a network of two million parameters that trains on a CPU.
"""

from typing import get_args

import keras
from keras import layers

from models.backbones import build_backbone
from models.blocks import BATCH_NORM_MOMENTUM, check_sizes, conv_bn_relu, resize_to
from models.heads import build_head, default_head
from models.run_settings import Head, Variant
from oid.anchors.grids import PUBLISHED_SCALES, feature_map_sides
from oid.files import InputError

PUBLISHED_CHANNELS = {"paper": 128, "released": 256, "released_sfam": 256}
RELEASED_BASE_CHANNELS = (256, 512)  # whatever the TUMs' channels are
RELEASED_EPSILON = 1e-5
SFAM_REDUCTION = 16  # section 3.3 of the paper


def build_m2det(
    *,
    backbone: str,
    num_classes: int,
    image_size: int,
    variant: Variant = "paper",
    tums: int = 8,
    scales: int = PUBLISHED_SCALES,
    channels: int | None = None,
    head: Head | None = None,
    anchors_per_cell: int = 1,
    backbone_weights: str = "none",
    normalisation: str | None = None,
) -> keras.Model:
    """Builds the network with raw outputs: what is trained.

    Args:
        backbone: a key of `models.backbones.BACKBONES`.
        num_classes: class outputs per anchor; the background class of softmax counts.
        image_size: side of the square input in pixels.
        variant: see the table above.
        tums: number of thinned U-shape modules (the paper's levels).
        scales: maps per pyramid.
        channels: of each map of each module; None = `PUBLISHED_CHANNELS`.
        head: "conv" (published), "shared" or "light"; None = `models.heads.default_head`.
        anchors_per_cell: anchors of each cell of each map.
        backbone_weights: see `models.backbones.build_backbone`.
        normalisation: of the pixels, see `models.backbones.build_backbone`.

    Returns:
        A functional model from raw RGB pixels `(batch, image_size, image_size, 3)`, 0 to 255, to a dict of float32
        tensors: `classes`, logits of shape `(batch, anchors, num_classes)`, and `boxes`, box deltas of shape
        `(batch, anchors, 4)`; anchors in the order of `oid.anchors.grids.AnchorGrids.boxes`.

    Raises:
        InputError: no network has these sizes.
    """
    if variant not in get_args(Variant):
        raise InputError(f"variant {variant!r} does not exist: choose one of {', '.join(get_args(Variant))}")
    channels = PUBLISHED_CHANNELS[variant] if channels is None else channels
    counts = {"tums": tums, "scales": scales, "channels": channels, "num_classes": num_classes}
    check_sizes(image_size, anchors_per_cell=anchors_per_cell, **counts)
    if variant != "paper" and channels % 2:
        raise InputError(f"channels is {channels}: the released variant needs an even number (half of it enters a TUM)")
    if variant != "released" and tums * channels % SFAM_REDUCTION:
        raise InputError(
            f"{tums} tums of {channels} channels give {tums * channels}: SFAM divides them by {SFAM_REDUCTION}, so "
            "choose a multiple"
        )
    sides = feature_map_sides(image_size, scales)

    image = keras.Input((image_size, image_size, 3), name="image")
    shallow, deep = build_backbone(backbone, image_size, backbone_weights, preprocessing=normalisation)(image)
    modules = paper_modules if variant == "paper" else released_modules
    pyramids = modules(shallow, deep, sides, tums=tums, channels=channels)
    features = [_stacked([pyramid[k] for pyramid in pyramids], name=f"scale{k + 1}") for k in range(scales)]
    if variant != "released":
        features = scale_wise_aggregation(features, shared=variant == "released_sfam")
    if variant != "paper":
        norm = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, epsilon=RELEASED_EPSILON, name="norm")
        features[0] = norm(features[0])
    head = default_head(num_classes) if head is None else head
    return keras.Model(image, build_head(head, features, num_classes, anchors_per_cell, 2 * channels), name="m2det")


def paper_modules(shallow, deep, sides: list[int], *, tums: int, channels: int) -> list[list]:
    """The base feature and the chain of TUMs of Figure 4.

    Args:
        shallow: the backbone's map at an eighth of the image.
        deep: its map at a sixteenth.
        sides: sides of the pyramid's maps, largest first.
        tums: how many modules.
        channels: channels of each map given back; inside there are twice as many, in the base feature six times.

    Returns:
        For each module its maps `(batch, side, side, channels)`, largest first.
    """
    shallow = resize_to(conv_bn_relu(shallow, 2 * channels, 1, name="ffm1_shallow"), sides[0], name="ffm1_fit")
    deep = resize_to(conv_bn_relu(deep, 4 * channels, 1, name="ffm1_deep"), sides[0], name="ffm1_up")
    base = layers.Concatenate(name="base_feature")([shallow, deep])
    pyramids = []
    for index in range(1, tums + 1):
        x = conv_bn_relu(base, channels if pyramids else 2 * channels, 1, name=f"ffm2_{index}")
        if pyramids:
            x = layers.Concatenate(name=f"ffm2_{index}_concat")([x, pyramids[-1][0]])
        pyramids.append(_paper_tum(x, sides, channels, name=f"tum{index}"))
    return pyramids


def _paper_tum(x, sides: list[int], channels: int, *, name: str) -> list:
    """Figure 4 (c), from `(batch, sides[0], sides[0], 2 * channels)`."""
    encoded = [x]
    for index in range(1, len(sides)):
        last = len(sides) == PUBLISHED_SCALES and index == len(sides) - 1  # see `feature_map_sides`
        stride, padding = (1, "valid") if last else (2, "same")
        y = conv_bn_relu(encoded[-1], 2 * channels, 3, strides=stride, padding=padding, name=f"{name}_down{index}")
        encoded.append(y)
    decoded = [encoded[-1]]
    for index in range(len(sides) - 2, -1, -1):
        y = conv_bn_relu(decoded[-1], 2 * channels, 3, name=f"{name}_up{index + 1}")
        y = resize_to(y, sides[index], name=f"{name}_resize{index + 1}")
        decoded.append(layers.Add(name=f"{name}_add{index + 1}")([y, encoded[index]]))
    return [conv_bn_relu(y, channels, 1, name=f"{name}_smooth{index}") for index, y in enumerate(reversed(decoded), 1)]


def released_modules(shallow, deep, sides: list[int], *, tums: int, channels: int) -> list[list]:
    """The base feature and the chain of TUMs of the released code; arguments and result as `paper_modules`.

    One convolution ("leach") brings the base feature to every module. It sees the same input each time, so it runs
    once.
    """
    narrow, wide = RELEASED_BASE_CHANNELS
    shallow = conv_bn_relu(shallow, narrow, 3, epsilon=RELEASED_EPSILON, name="ffm1_shallow")
    deep = conv_bn_relu(deep, wide, 1, epsilon=RELEASED_EPSILON, name="ffm1_deep")
    shallow = resize_to(shallow, sides[0], interpolation="nearest", name="ffm1_fit")
    deep = resize_to(deep, sides[0], interpolation="nearest", name="ffm1_up")
    base = layers.Concatenate(name="base_feature")([shallow, deep])
    base = conv_bn_relu(base, channels // 2, 1, epsilon=RELEASED_EPSILON, name="leach")
    pyramids = []
    for index in range(1, tums + 1):
        x = layers.Concatenate(name=f"ffm2_{index}_concat")([base, pyramids[-1][0]]) if pyramids else base
        pyramids.append(_released_tum(x, sides, channels, name=f"tum{index}"))
    return pyramids


def _released_tum(x, sides: list[int], channels: int, *, name: str) -> list:
    """The TUM of the released code: a convolution beside every map of the encoder, none on the way up."""
    options = {"epsilon": RELEASED_EPSILON}
    encoded = [x]
    for index in range(1, len(sides)):
        last = len(sides) == PUBLISHED_SCALES and index == len(sides) - 1
        stride, padding = (1, "valid") if last else (2, "symmetric")
        y = conv_bn_relu(
            encoded[-1], channels, 3, strides=stride, padding=padding, name=f"{name}_down{index}", **options
        )
        encoded.append(y)
    y = conv_bn_relu(encoded[-1], channels, 1, name=f"{name}_top", **options)
    maps = [y]
    for index in range(len(sides) - 2, -1, -1):
        y = resize_to(y, sides[index], interpolation="nearest", name=f"{name}_resize{index + 1}")
        lateral = conv_bn_relu(encoded[index], channels, 3, name=f"{name}_lateral{index + 1}", **options)
        y = layers.Add(name=f"{name}_add{index + 1}")([y, lateral])
        maps.append(conv_bn_relu(y, channels, 1, name=f"{name}_smooth{index + 1}", **options))
    return maps[::-1]


def scale_wise_aggregation(features: list, *, shared: bool) -> list:
    """SFAM: the channels of each scale weighed by squeeze and excitation; `shared` takes one pair of layers for all."""
    weighed = []
    for index, x in enumerate(features, start=1):
        channels = x.shape[-1]
        if index == 1 or not shared:
            prefix = "sfam" if shared else f"sfam{index}"
            reduce = layers.Dense(channels // SFAM_REDUCTION, activation="relu", name=f"{prefix}_reduce")
            excite = layers.Dense(channels, activation="sigmoid", name=f"{prefix}_excite")
        weights = layers.GlobalAveragePooling2D(keepdims=True, name=f"sfam{index}_squeeze")(x)
        weighed.append(layers.Multiply(name=f"sfam{index}")([x, excite(reduce(weights))]))
    return weighed


def _stacked(maps: list, *, name: str):
    """The maps of one scale from all modules, on top of each other."""
    return layers.Concatenate(name=name)(maps) if len(maps) > 1 else maps[0]
