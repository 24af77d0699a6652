"""The outputs of a head come in the order of the anchors."""

import keras
import numpy as np
import pytest

from models.heads import build_head
from oid.anchors.grids import feature_map_sides, grids_of_sizes


@pytest.fixture(scope="module")
def head():
    """The head alone on maps of 8, 4 and 2 cells, two anchors each, all kernels 1: what goes in at a cell comes out."""
    sides = feature_map_sides(64, 3)
    maps = [keras.Input((side, side, 1)) for side in sides]
    model = keras.Model(maps, build_head("conv", maps, 3, 2, width=1))
    for layer in model.layers:
        layer.set_weights([np.full_like(weight, weight.ndim > 1) for weight in layer.get_weights()])
    return model


@pytest.mark.parametrize(("scale", "row", "column"), [(0, 2, 5), (0, 6, 1), (1, 1, 2)])
@pytest.mark.parametrize("output", ["classes", "boxes"])
def test_a_cell_of_a_map_moves_the_anchors_around_it(head, scale, row, column, output):
    sides = feature_map_sides(64, 3)
    grids = grids_of_sizes(tuple(2 * ((0.5, 0.5),) for _ in sides), sides)
    maps = [np.zeros((1, side, side, 1), "float32") for side in sides]
    maps[scale][0, row, column] = 1.0
    values = keras.ops.convert_to_numpy(head(maps)[output])[0]
    moved = (values != 0).any(-1)
    side = sides[scale]
    assert 2 <= moved.sum() <= 2 * 9  # a 3x3 kernel at most
    np.testing.assert_allclose(grids.cell_sides()[moved], 1 / side)
    middle = grids.boxes()[moved].reshape(-1, 2, 2).mean(axis=(0, 1))
    np.testing.assert_allclose(middle, [(column + 0.5) / side, (row + 0.5) / side], atol=1e-6)


def test_the_anchors_of_a_cell_are_consecutive_outputs():
    maps = [keras.Input((4, 4, 1))]
    model = keras.Model(maps, build_head("conv", maps, 3, 2, width=1))
    for layer in model.layers:
        if layer.get_weights():
            *kernels, bias = layer.get_weights()
            layer.set_weights([*(np.zeros_like(k) for k in kernels), np.arange(len(bias), dtype="float32")])
    outputs = model([np.zeros((1, 4, 4, 1), "float32")])
    boxes, classes = (keras.ops.convert_to_numpy(outputs[name])[0] for name in ("boxes", "classes"))
    np.testing.assert_array_equal(boxes, np.tile([[0, 1, 2, 3], [4, 5, 6, 7]], (16, 1)))
    np.testing.assert_array_equal(classes, np.tile([[0, 1, 2], [3, 4, 5]], (16, 1)))
