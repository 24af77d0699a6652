"""The RetinaNet of keras-retinanet 0.4 to 1.0 on keras-resnet's ResNet, layer by layer.

The published checkpoints of Open Images and COCO are of this network. It differs from `models.retinanet`:

| part       | here                                              | `models.retinanet`                |
|------------|---------------------------------------------------|-----------------------------------|
| batch norm | epsilon 1e-5; always uses its moving statistics   | learned, unless it is frozen      |
| pyramid    | biases, no batch norm; P6 from C5; P7 from ReLU(P6) | batch norm                      |
| heads      | four 3x3 convolutions with biases                 | batch norm                        |
| boxes      | corners, in units of a fifth of the anchor's sides | distances to the sides, or SSD's |

Max pooling and P6 pad as TensorFlow does. A map is upsampled by repeating its pixels, then cut to the size of the next.
"""

from typing import Literal

import keras
from keras import layers, ops

from models.blocks import prior_bias
from models.heads import anchors_in_a_row
from models.preprocessing import Preprocessing

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}  # of ResNet's four stages
SCALES = 5  # P3 to P7
CHANNELS = 256  # of the pyramid and of the heads
ANCHORS_PER_CELL = 9
HEAD_LAYERS = ("subnet1", "subnet2", "subnet3", "subnet4", "output")  # behind "boxes_" or "classes_"
EPSILON = 1e-5


def build_keras_retinanet(
    *, backbone: str, num_classes: int, image_size: int | None = None, padding: Literal["same", "valid"] = "valid"
) -> keras.Model:
    """Builds the network with raw outputs.

    Args:
        backbone: a key of `BLOCKS`.
        num_classes: class outputs per anchor.
        image_size: side of a square input in pixels; None = images of any shape.
        padding: of the first convolution: "valid" after three pixels on every side (keras-resnet 0.1.0), or "same" (two
            pixels before and three behind an even side; keras-resnet 0.2.0).

    Returns:
        A functional model from raw RGB pixels `(batch, height, width, 3)`, 0 to 255, to a dict of float32 tensors:
        `classes`, logits `(batch, anchors, num_classes)`, and `boxes`, box deltas "corners" `(batch, anchors, 4)`.
        Anchors have the order of `oid.anchors.grids.anchors_of_picture`.
    """
    image = keras.Input((image_size, image_size, 3), name="image")
    features = _pyramid(*_resnet(backbone, image.shape[1:], padding)(image))
    outputs = {
        "classes": _head(features, "classes", num_classes, prior_bias(num_classes)),
        "boxes": _head(features, "boxes", 4, "zeros"),
    }
    return keras.Model(image, outputs, name="keras_retinanet")


def block_names(backbone: str) -> list[list[str]]:
    """Names of ResNet's blocks, "2a" to "5c", for each stage, as keras-resnet counts them."""
    names = []
    for stage, count in enumerate(BLOCKS[backbone], start=2):
        numbered = backbone != "resnet50" and stage in (3, 4)
        names.append([f"{stage}{f'b{k}' if numbered and k else chr(ord('a') + k)}" for k in range(count)])
    return names


def _resnet(backbone: str, shape: tuple, padding: str) -> keras.Model:
    """From raw pixels to the ends of stages 3, 4 and 5, whose strides are 8, 16 and 32."""
    image = keras.Input(shape, name="image")
    x = Preprocessing("caffe", name="preprocessing")(image)
    if padding == "valid":
        x = layers.ZeroPadding2D(3, name="padding_conv1")(x)
    x = _conv_norm(x, 64, 7, "conv1", "bn_conv1", strides=2, padding=padding)
    x = layers.ReLU(name="conv1_relu")(x)
    x = layers.MaxPooling2D(3, 2, padding="same", name="pool1")(x)
    maps = []
    for stage, names in enumerate(block_names(backbone)):
        for index, name in enumerate(names):
            x = _bottleneck(x, 64 * 2**stage, name, strides=2 if stage and not index else 1, shortcut=not index)
        maps.append(x)
    return keras.Model(image, maps[1:], name=backbone)


def _conv_norm(x, filters: int, side: int, name: str, norm: str, *, strides: int = 1, padding: str = "same"):
    x = layers.Conv2D(filters, side, strides, padding=padding, use_bias=False, name=name)(x)
    return layers.BatchNormalization(epsilon=EPSILON, trainable=False, name=norm)(x)


def _bottleneck(x, filters: int, block: str, *, strides: int, shortcut: bool):
    """Two 1x1 convolutions around a 3x3 one; the first one has the stride."""

    def conv(x, width, side, branch, strides=1):
        return _conv_norm(x, width, side, f"res{block}_branch{branch}", f"bn{block}_branch{branch}", strides=strides)

    y = layers.ReLU(name=f"res{block}_branch2a_relu")(conv(x, filters, 1, "2a", strides))
    y = layers.ReLU(name=f"res{block}_branch2b_relu")(conv(y, filters, 3, "2b"))
    y = conv(y, 4 * filters, 1, "2c")
    if shortcut:
        x = conv(x, 4 * filters, 1, "1", strides)
    return layers.ReLU(name=f"res{block}_relu")(layers.Add(name=f"res{block}")([y, x]))


def _pyramid(c3, c4, c5) -> list:
    """P3 to P7. A map is upsampled before its 3x3 convolution."""

    def conv(x, name, side=3, strides=1):
        return layers.Conv2D(CHANNELS, side, strides, padding="same", name=name)(x)

    m5 = conv(c5, "C5_reduced", 1)
    c4_reduced = conv(c4, "C4_reduced", 1)
    m4 = layers.Add(name="P4_merged")([UpsampleLike(name="P5_upsampled")([m5, c4_reduced]), c4_reduced])
    c3_reduced = conv(c3, "C3_reduced", 1)
    m3 = layers.Add(name="P3_merged")([UpsampleLike(name="P4_upsampled")([m4, c3_reduced]), c3_reduced])
    p6 = conv(c5, "P6", strides=2)
    p7 = conv(layers.ReLU(name="C6_relu")(p6), "P7", strides=2)
    return [conv(m3, "P3"), conv(m4, "P4"), conv(m5, "P5"), p6, p7]


def _head(features: list, output: str, width: int, bias):
    """Convolutions that all scales share; float32 `(batch, anchors, width)`."""
    options = {"padding": "same", "kernel_initializer": keras.initializers.RandomNormal(stddev=0.01)}
    *subnet, last = (f"{output}_{name}" for name in HEAD_LAYERS)
    maps = features
    for name in subnet:
        layer = layers.Conv2D(CHANNELS, 3, activation="relu", name=name, **options)
        maps = [layer(x) for x in maps]
    layer = layers.Conv2D(ANCHORS_PER_CELL * width, 3, bias_initializer=bias, name=last, **options)
    return anchors_in_a_row([layer(x) for x in maps], width, name=output)


@keras.saving.register_keras_serializable(package="oid")
class UpsampleLike(layers.Layer):
    """Doubles the pixels of a map `x` in `[x, like]`, and cuts it to the size of `like`: twice its own, or 1 less.

    Row i of the result is row i // 2 of `x`: the nearest one by the rule of TensorFlow 1.
    """

    def call(self, inputs):
        x, like = inputs
        _, height, width, _ = ops.shape(like)
        return ops.repeat(ops.repeat(x, 2, axis=1), 2, axis=2)[:, :height, :width]

    def compute_output_shape(self, input_shape):
        (batch, *_, channels), (_, height, width, _) = input_shape
        return (batch, height, width, channels)
