"""RetinaNet on every backbone: outputs belong to the anchors, levels read strides 8, 16 and 32."""

import keras
import numpy as np
import pytest

from models.backbones import BACKBONES, PYRAMID_STRIDES, STRIDES, build_backbone
from models.cost import cost_of
from models.retinanet import build_retinanet, feature_pyramid
from oid.anchors.grids import pyramid_sides, retinanet_anchors
from tests.helpers.project import refused
from tests.helpers.tiny_network import pictures

FAST = ("residual_small", "vgg_small", "mobilenet_0.25")


def build(**changes) -> keras.Model:
    sizes = {"backbone": "residual_small", "num_classes": 2, "image_size": 64, "scales": 3, "channels": 16}
    return build_retinanet(**sizes | {"head": "light"} | changes)


@pytest.mark.parametrize(
    "backbone", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in BACKBONES]
)
def test_every_backbone_gives_its_maps_and_outputs_for_the_anchors(backbone):
    grids = retinanet_anchors(100, 5, anchors="official")
    network = build(backbone=backbone, image_size=100, scales=5, anchors_per_cell=grids.per_cell)
    strides = PYRAMID_STRIDES if BACKBONES[backbone].pyramid else STRIDES
    body = build_backbone(backbone, 128, strides=strides)
    assert [x.shape[1] for x in body.outputs] == [128 // stride for stride in strides]
    outputs = network.predict_on_batch(pictures(1, 100, 100))
    anchors = grids.boxes()
    assert outputs["classes"].shape == (1, len(anchors), 2)
    assert outputs["boxes"].shape == (1, len(anchors), 4)
    assert all(np.isfinite(values).all() for values in outputs.values())


def test_vgg_and_the_small_backbones_have_no_stride_32_map():
    without = {name for name, entry in BACKBONES.items() if not entry.pyramid}
    assert without - {"tiny"} == {*("residual_small", "vgg_small", "vgg16", "vgg19")}  # tiny is of other tests


@pytest.mark.parametrize(("image_size", "scales"), [(64, 1), (64, 2), (64, 4), (97, 5), (200, 6)])
@pytest.mark.parametrize("head", ["light", "conv"])
def test_any_number_of_levels(image_size, scales, head):
    network = build(image_size=image_size, scales=scales, head=head)
    assert network.output["boxes"].shape[1] == len(retinanet_anchors(image_size, scales).boxes())


def test_the_pyramid_by_hand():
    """1x1 convolutions that sum the channels, and 3x3 ones that copy: each level is its map plus the ones above."""
    sides, maps = [4, 2, 1], [np.random.default_rng(k).normal(size=(1, s, s, 3)) for k, s in enumerate((4, 2, 1))]
    inputs = [keras.Input(x.shape[1:]) for x in maps]
    model = keras.Model(inputs, feature_pyramid(inputs, sides, 1))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel = np.zeros(layer.kernel.shape)
            kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] = 1
            layer.set_weights([kernel])
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.epsilon = 0.0
    p5, p4, p3 = (x.sum(-1) for x in reversed(maps))
    p4 = p4 + p5.repeat(2, 1).repeat(2, 2)
    p3 = p3 + p4.repeat(2, 1).repeat(2, 2)
    for ours, theirs in zip(model.predict_on_batch(maps), (p3, p4, p5), strict=True):
        np.testing.assert_allclose(ours[..., 0], theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scales": 0}, "scales is 0: it must be at least 1"),
        ({"head": "no"}, "head 'no' does not exist"),
        ({"image_size": 16}, "image_size is 16: it must be at least 32 pixels"),
        ({"scales": 6}, "6 scales do not fit 64 pixels: take at least 129, or fewer scales"),
    ],
)
def test_invalid_sizes_are_refused(changes, words):
    with refused(words):
        build(**changes)


def test_sides_are_rounded_up():
    assert pyramid_sides(203, 5) == [26, 13, 7, 4, 2]


def test_the_cost_has_the_parts_of_the_network():
    cost = cost_of(build())
    assert set(cost) == {"backbone", "pyramid", "heads"}
    assert all(parameters and operations for parameters, operations in cost.values())
