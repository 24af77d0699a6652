"""Parameters and operations are counted as others count them, and the published networks have the published numbers."""

import re

import keras
import pytest
from keras import layers

from models.cost import cost_of
from models.m2det import build_m2det
from tests.helpers.project import run_script

PAPER_TABLE = {  # (modules, channels inside them): millions of parameters, VGG16, 81 outputs (Table 3 of the paper)
    (2, 256): 40.1,
    (4, 128): 34.2,
    (4, 256): 60.2,
    (8, 128): 47.5,
    (8, 256): 98.9,
    (16, 128): 73.9,
    (16, 256): 176.8,
}


def total(network) -> tuple[int, int]:
    return tuple(map(sum, zip(*cost_of(network).values(), strict=True)))


def test_by_hand():
    """A backbone of one strided convolution; a separable one; a head on two maps with one kernel."""
    inside = keras.Input((8, 8, 3))
    backbone = keras.Model(inside, layers.Conv2D(5, 3, strides=2, padding="same")(inside))  # 4 x 4
    image = keras.Input((8, 8, 3))
    x = 2.0 * layers.BatchNormalization()(backbone(image))  # the product is no layer
    y = layers.SeparableConv2D(7, 3, padding="same", use_bias=False, name="separable")(x)
    y = layers.DepthwiseConv2D(3, padding="valid", use_bias=False)(y)  # 2 x 2
    y = layers.Conv2D(14, 1, groups=7, use_bias=False)(y)
    head = layers.Conv2D(2, 1, name="classes")
    z = layers.Dense(4, name="boxes1")(layers.GlobalAveragePooling2D()(x))
    network = keras.Model(image, [head(x), head(layers.AveragePooling2D(2)(x)), y, z])
    assert cost_of(network) == {
        "backbone": (3 * 3 * 3 * 5 + 5, 16 * 3 * 3 * 3 * 5),
        "pyramid": (2 * 5 + 9 * 5 + 5 * 7 + 9 * 7 + 14, 16 * (9 * 5 + 5 * 7) + 4 * 9 * 7 + 4 * 14),
        "heads": (5 * 2 + 2 + 5 * 4 + 4, 16 * 10 + 4 * 10 + 5 * 4),
    }


@pytest.mark.slow
def test_hundreds_of_classes_stay_affordable():
    """The default for 500 classes: VGG16, 320 pixels, 8 modules of 6 scales."""
    for anchors_per_cell in (1, 6):
        keras.backend.clear_session()
        network = build_m2det(backbone="vgg16", num_classes=500, image_size=320, anchors_per_cell=anchors_per_cell)
        parameters, operations = total(network)
        assert parameters <= 90e6
        assert operations <= 90e9


@pytest.mark.parametrize(
    ("modules", "width"),
    [pytest.param(*key, marks=[] if key == (4, 128) else pytest.mark.slow) for key in PAPER_TABLE],
)
def test_the_paper_variant_has_the_parameters_of_its_table(modules, width):
    keras.backend.clear_session()
    network = build_m2det(
        backbone="vgg16", num_classes=81, image_size=320, tums=modules, channels=width // 2, anchors_per_cell=6
    )
    assert total(network)[0] / 1e6 == pytest.approx(PAPER_TABLE[modules, width], rel=0.03)


@pytest.mark.slow
def test_the_command_prints_the_three_parts():
    arguments = "--backbone residual_small --num_classes 20 --image_size 96 --tums 1 --scales 3 --channels 16"
    done = run_script("models.cost", *arguments.split())
    assert done.returncode == 0, done.stderr
    network = build_m2det(backbone="residual_small", num_classes=20, image_size=96, tums=1, scales=3, channels=16)
    for part, (parameters, operations) in (cost_of(network) | {"all": total(network)}).items():
        row = re.search(rf"^{part} +([\d,]+) +([\d.]+)$", done.stdout, flags=re.MULTILINE)
        assert int(row[1].replace(",", "")) == parameters
        assert float(row[2]) == pytest.approx(operations / 1e9, abs=1e-3)
