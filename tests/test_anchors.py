"""Anchors lie where the network's outputs are, in its order, and offsets always decode to proper boxes near them."""

import json

import keras
import numpy as np
import pytest

from models.anchors import anchor_settings, cell_sides, feature_map_sides, make_anchors
from models.box_coding import decode_distances
from models.m2det import build_m2det, convolutional_head

SIZES = [32, 64, 96, 100, 101, 128, 165, 256, 320, 333, 512, 800]
RATIOS = (1.0, 2.0, 0.5)


def centres(anchors):
    return (anchors[:, :2] + anchors[:, 2:]) / 2


@pytest.mark.parametrize("image_size", SIZES)
def test_centres_lie_inside_the_image_and_are_the_middles_of_cells(image_size):
    settings = anchor_settings(image_size, 3, ratios=RATIOS)
    anchors, cells = make_anchors(settings), cell_sides(settings)
    assert anchors.dtype == cells.dtype == np.float32
    assert len(anchors) == len(cells) == 3 * sum(side**2 for side in feature_map_sides(image_size, 3))
    middle = centres(anchors) / cells[:, None]
    assert (centres(anchors) > 0).all()
    assert (centres(anchors) < 1).all()
    np.testing.assert_allclose(middle - np.floor(middle), 0.5, atol=1e-3)


def test_ratios_are_width_by_height_and_keep_the_area():
    settings = anchor_settings(64, 2, size_in_cells=3.0, ratios=RATIOS)
    anchors = make_anchors(settings).astype("float64")
    width, height = (anchors[:, 2:] - anchors[:, :2]).T
    np.testing.assert_allclose(width / height, np.resize(RATIOS, len(anchors)), rtol=1e-5)
    np.testing.assert_allclose(np.sqrt(width * height), 3.0 * cell_sides(settings), rtol=1e-5)


def test_the_smallest_set_by_hand():
    """16 pixels: a map of 2 x 2 and one of 1 x 1; the squares are two cells wide."""
    anchors = make_anchors(anchor_settings(16, 2, size_in_cells=2.0))
    centre = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]  # x, y: along the row first
    expected = [(x - 0.5, y - 0.5, x + 0.5, y + 0.5) for x, y in centre] + [(-0.5, -0.5, 1.5, 1.5)]
    np.testing.assert_allclose(anchors, expected, atol=1e-7)


def test_settings_survive_json_and_give_the_same_anchors():
    settings = anchor_settings(165, 4, ratios=RATIOS)
    again = json.loads(json.dumps(settings))
    assert again == settings
    np.testing.assert_array_equal(make_anchors(again), make_anchors(settings))
    np.testing.assert_array_equal(cell_sides(again), cell_sides(settings))


@pytest.mark.parametrize(
    ("backbone", "image_size", "scales", "per_cell"),
    [
        ("residual_small", 96, 3, 1),
        ("residual_small", 100, 4, 2),
        ("residual_small", 165, 1, 1),
        ("vgg16", 100, 3, 1),  # VGG rounds 12.5 down
        ("mobilenet_v2_0.35", 100, 2, 1),
    ],
)
def test_the_network_has_one_output_per_anchor(backbone, image_size, scales, per_cell):
    network = build_m2det(
        backbone=backbone,
        num_classes=2,
        image_size=image_size,
        tums=1,
        scales=scales,
        channels=4,
        anchors_per_cell=per_cell,
    )
    anchors = make_anchors(anchor_settings(image_size, scales, ratios=RATIOS[:per_cell]))
    assert network.output["boxes"].shape == (None, len(anchors), 4)
    assert network.output["classes"].shape == (None, len(anchors), 2)


@pytest.fixture(scope="module")
def head():
    """The head alone on maps of 8, 4 and 2 cells, two anchors each, all kernels 1: what goes in at a cell comes out."""
    sides = feature_map_sides(64, 3)
    maps = [keras.Input((side, side, 1)) for side in sides]
    model = keras.Model(maps, convolutional_head(maps, 3, 2))
    for layer in model.layers:
        layer.set_weights([np.full_like(weight, weight.ndim > 1) for weight in layer.get_weights()])
    return model


@pytest.mark.parametrize(("scale", "row", "column"), [(0, 2, 5), (0, 6, 1), (1, 1, 2)])
@pytest.mark.parametrize("output", ["classes", "boxes"])
def test_a_cell_of_a_map_moves_the_anchors_around_it(head, scale, row, column, output):
    settings = anchor_settings(64, 3, ratios=(1.0, 2.0))
    maps = [np.zeros((1, side, side, 1), "float32") for side in settings["feature_map_sides"]]
    maps[scale][0, row, column] = 1.0
    values = keras.ops.convert_to_numpy(head(maps)[output])[0]
    moved = (values != 0).any(-1)
    anchors, side = make_anchors(settings), settings["feature_map_sides"][scale]
    assert 2 <= moved.sum() <= 2 * 9  # a 3x3 kernel at most
    np.testing.assert_allclose(cell_sides(settings)[moved], 1 / side)
    np.testing.assert_allclose(
        centres(anchors)[moved].mean(axis=0), [(column + 0.5) / side, (row + 0.5) / side], atol=1e-6
    )


def test_the_anchors_of_a_cell_are_consecutive_outputs():
    maps = [keras.Input((4, 4, 1))]
    model = keras.Model(maps, convolutional_head(maps, 3, 2))
    for layer in model.layers:
        if layer.get_weights():
            *kernels, bias = layer.get_weights()
            layer.set_weights([*(np.zeros_like(k) for k in kernels), np.arange(len(bias), dtype="float32")])
    outputs = model([np.zeros((1, 4, 4, 1), "float32")])
    boxes, classes = (keras.ops.convert_to_numpy(outputs[name])[0] for name in ("boxes", "classes"))
    np.testing.assert_array_equal(boxes, np.tile([[0, 1, 2, 3], [4, 5, 6, 7]], (16, 1)))
    np.testing.assert_array_equal(classes, np.tile([[0, 1, 2], [3, 4, 5]], (16, 1)))


def decode(offsets, anchors):
    return keras.ops.convert_to_numpy(decode_distances(np.asarray(offsets, "float32"), anchors))


def test_zero_offsets_are_the_anchors():
    anchors = make_anchors(anchor_settings(100, 3, ratios=RATIOS))
    np.testing.assert_allclose(decode(np.zeros((2, len(anchors), 4)), anchors), np.stack([anchors] * 2), atol=1e-6)


def test_offsets_are_logarithms_of_distances_in_half_sides():
    anchor = np.array([[0.2, 0.4, 0.6, 0.6]], "float32")  # centre 0.4, 0.5; half sides 0.2, 0.1
    box = decode(np.log([[2.0, 0.5, 0.5, 3.0]]), anchor)
    np.testing.assert_allclose(box, [[0.4 - 0.4, 0.5 - 0.05, 0.4 + 0.1, 0.5 + 0.3]], atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 10.0, 1e4, 1e30, np.inf])
def test_sides_never_swap_and_nothing_overflows(scale):
    anchors = make_anchors(anchor_settings(64, 3, ratios=RATIOS))
    offsets = np.random.default_rng(0).choice([-1.0, -0.3, 0.0, 0.3, 1.0], (64, len(anchors), 4))
    with np.errstate(invalid="ignore"):
        offsets = np.nan_to_num((offsets * scale).astype("float32"), nan=0.0, posinf=np.inf, neginf=-np.inf)
    boxes = decode(offsets, anchors)
    assert np.isfinite(boxes).all()
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    middle = centres(anchors)
    assert (boxes[..., :2] < middle).all()
    assert (boxes[..., 2:] > middle).all()
