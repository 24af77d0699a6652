"""Small backbones of our own, to train from scratch on a CPU. Their maps are `shallow` and `deep`."""

import keras
from keras import layers

from models.blocks import conv_bn_relu


def residual_small(*, input_tensor, weights=None, width: int = 32) -> keras.Model:
    """A small residual network with batch norm: 3x3 stem, then four stages of basic blocks.

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
    """Few layers in the manner of VGG, with batch norm: 3x3 convolutions without shortcuts.

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
