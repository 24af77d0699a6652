"""The folded copy for inference gives the network's outputs; the network itself does not change."""

import keras
import numpy as np
import pytest
from keras import layers

from models.backbones import BACKBONES
from models.blocks import conv_bn_relu
from models.fold import SplitChannels, folded
from models.keras_internals import all_layers
from models.m2det import build_m2det
from models.preprocessing import Preprocessing
from tests.helpers.project import run_on_backend
from tests.helpers.tiny_network import pictures, randomised

VARIANTS = ("paper", "released", "released_sfam")
SIDE = 64
CLOSE = 1e-5  # of the largest output


def m2det(**changes: object) -> keras.Model:
    sizes = {"backbone": "residual_small", "num_classes": 3, "image_size": SIDE, "tums": 2, "scales": 3, "channels": 16}
    return randomised(build_m2det(**sizes | {"anchors_per_cell": 2, "head": "conv"} | changes))


def outputs(model: keras.Model, x: np.ndarray) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(x, training=False))]


def largest_difference(model: keras.Model, copy: keras.Model, x: np.ndarray | None = None) -> float:
    """Of all outputs, relative to the largest value of each."""
    x = pictures(2, SIDE, SIDE).astype("float32") if x is None else x
    pairs = zip(outputs(model, x), outputs(copy, x), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def count(model: keras.Model, kind: type) -> int:
    """Layers of a kind, those of models inside included."""
    return sum(isinstance(layer, kind) for layer in all_layers(model))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype("float32")


@pytest.mark.parametrize("head", ["conv", "shared"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_copy_gives_the_outputs_of_the_network(variant, head):
    network = m2det(variant=variant, head=head)
    copy = folded(network)
    assert largest_difference(network, copy) < CLOSE
    assert count(network, layers.BatchNormalization) > 20
    # the one of the largest scale follows a concatenation
    assert count(copy, layers.BatchNormalization) == (variant != "paper")
    assert copy.output.keys() == network.output.keys()
    assert {value.dtype for value in copy.output.values()} == {"float32"}


QUICK = ("mobilenet_v2_0.35", "vgg_small")


@pytest.mark.parametrize(
    "backbone", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(BACKBONES)]
)
def test_every_backbone_is_folded(backbone):
    network = m2det(backbone=backbone, image_size=96, tums=1)
    copy = folded(network)
    x = pictures(2, 96, 96).astype("float32")
    assert largest_difference(network, copy, x) < 5 * CLOSE  # a hundred layers add their rounding
    assert count(copy, layers.BatchNormalization) == 0 or backbone not in QUICK


def test_a_batch_norm_by_hand():
    """gamma / sqrt(variance + epsilon) = 3 / sqrt(3 + 1) = 1.5; kernel 2 * 1.5, bias 10 + (5 - 1) * 1.5."""
    x = keras.Input((2, 2, 1))
    y = layers.Conv2D(1, 1, name="conv")(x)
    model = keras.Model(x, layers.BatchNormalization(epsilon=1.0, name="norm")(y))
    model.get_layer("conv").set_weights([np.full((1, 1, 1, 1), 2.0), np.array([5.0])])
    model.get_layer("norm").set_weights([np.array([value]) for value in (3.0, 10.0, 1.0, 3.0)])
    copy = folded(model)
    kernel, bias = copy.get_layer("conv").get_weights()
    assert (kernel.item(), bias.item()) == (3.0, 16.0)
    assert largest_difference(model, copy, noise(1, 2, 2, 1)) < 1e-6


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"scale": False, "center": False}])
@pytest.mark.parametrize(
    "convolution", [layers.Conv2D(4, 3, use_bias=False), layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False)]
)
def test_batch_norm_without_scale_or_centre(convolution, options):
    x = keras.Input((8, 8, 3))
    y = layers.BatchNormalization(**options)(convolution.__class__.from_config(convolution.get_config())(x))
    model = randomised(keras.Model(x, y))
    copy = folded(model)
    assert count(copy, layers.BatchNormalization) == 0
    assert largest_difference(model, copy, noise(2, 8, 8, 3)) < CLOSE


@pytest.mark.parametrize("case", ["read twice", "is an output", "has an activation", "other axis", "norm first"])
def test_a_batch_norm_that_cannot_be_folded_stays(case):
    x = keras.Input((8, 8, 3))
    convolution = layers.Conv2D(3, 3, padding="same", activation="relu" if case == "has an activation" else None)
    norm = layers.BatchNormalization(axis=1 if case == "other axis" else -1)
    y = convolution(norm(x) if case == "norm first" else x)
    z = y if case == "norm first" else norm(y)
    outputs = {"read twice": lambda: layers.Add()([z, y]), "is an output": lambda: [z, y]}.get(case, lambda: z)()
    model = randomised(keras.Model(x, outputs))
    copy = folded(model)
    assert count(copy, layers.BatchNormalization) == 1
    assert largest_difference(model, copy, noise(2, 8, 8, 3)) < CLOSE


def test_a_shared_convolution_becomes_one_for_each_batch_norm():
    large, small = keras.Input((8, 8, 3)), keras.Input((4, 4, 3))
    convolution = layers.Conv2D(4, 3, use_bias=False)
    ends = [layers.BatchNormalization()(convolution(x)) for x in (large, small)]
    model = randomised(keras.Model([large, small], ends))
    copy = folded(model)
    assert (count(model, layers.Conv2D), count(copy, layers.Conv2D)) == (1, 2)
    assert largest_difference(model, copy, [noise(2, 8, 8, 3), noise(2, 4, 4, 3)]) < CLOSE


def test_a_model_that_is_called_twice_is_dissolved_twice():
    inside = keras.Input((8, 8, 3), name="inside")
    body = keras.Model(inside, conv_bn_relu(inside, 4, 3, name="block"), name="body")
    one, two = keras.Input((8, 8, 3), name="one"), keras.Input((8, 8, 3), name="two")
    model = randomised(keras.Model({"one": one, "two": two}, layers.Add()([body(one), body(two)])))
    copy = folded(model)
    assert not [layer for layer in copy.layers if isinstance(layer, keras.Model)]
    x = {"one": noise(2, 8, 8, 3), "two": noise(2, 8, 8, 3)[::-1]}
    assert largest_difference(model, copy, x) < CLOSE


@pytest.mark.parametrize("variant", VARIANTS)
def test_convolutions_of_one_map_are_joined(variant):
    network = m2det(variant=variant)
    apart, joined = folded(network, join=False), folded(network)
    together = 3 + (variant == "paper")
    assert count(joined, SplitChannels) == together
    assert count(apart, layers.Conv2D) - count(joined, layers.Conv2D) == together
    assert largest_difference(apart, joined) < CLOSE


@pytest.mark.parametrize(("multiple", "filters"), [(1, 14), (16, 16), (5, 15)])
def test_joined_convolutions_get_channels_of_zeros(multiple, filters):
    """(3 classes + 4 sides) * 2 anchors = 14 channels."""
    network = m2det()
    copy = folded(network, multiple=multiple)
    kernel, bias = copy.get_layer("classes1").get_weights()
    assert kernel.shape[-1] == len(bias) == filters
    assert not kernel[..., 14:].any()
    assert kernel[..., :14].any(axis=(0, 1, 2)).all()
    assert largest_difference(network, copy) < CLOSE


def test_convolutions_that_differ_are_not_joined():
    x = keras.Input((8, 8, 3))
    ends = [
        layers.Conv2D(2, 3, padding="same")(x),
        layers.Conv2D(2, 1, padding="same")(x),
        layers.Conv2D(2, 3, padding="same", activation="relu")(x),
        layers.Conv2D(2, 3, padding="same", dilation_rate=2)(x),
        layers.Conv2D(2, 3, padding="valid")(x),
        layers.Conv2D(3, 3, padding="same", groups=3)(x),
    ]
    model = randomised(keras.Model(x, ends))
    copy = folded(model)
    assert count(copy, SplitChannels) == 0
    assert largest_difference(model, copy, noise(2, 8, 8, 3)) < CLOSE


def test_bfloat16():
    network = m2det(variant="released")
    plain = folded(network, dtype="bfloat16", keep_output_dtypes=False)
    assert {value.dtype for value in plain.output.values()} == {"bfloat16"}
    copy = folded(network, dtype="bfloat16")
    assert {value.dtype for value in copy.output.values()} == {"float32"}
    assert not [layer for layer in copy.layers if layer.compute_dtype == "float32" and layer.weights]
    assert {layer.compute_dtype for layer in copy.layers if isinstance(layer, Preprocessing)} == {"float32"}
    assert 0 < largest_difference(network, copy) < 0.1  # 8 bits, 30 layers


def test_the_network_stays_as_it_is():
    network = m2det()
    before, x = network.get_weights(), pictures(1, SIDE, SIDE).astype("float32")
    expected = outputs(network, x)
    copy = folded(network)
    for weight in copy.weights:
        weight.assign(keras.ops.zeros_like(weight))
    assert all(np.array_equal(a, b) for a, b in zip(before, network.get_weights(), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(expected, outputs(network, x), strict=True))


SCRIPT = """
import keras
from tests.models.test_fold import folded, largest_difference, m2det
network = m2det(head="shared")
print(keras.backend.backend(), largest_difference(network, folded(network)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_other_backends(backend):
    name, difference = run_on_backend(backend, SCRIPT).split()
    assert name == backend
    assert float(difference) < CLOSE
