"""Anchors lie at the middles of the cells, in the order of the network's outputs."""

import json

import numpy as np
import pytest

from oid.anchors.grids import (
    AnchorGrids,
    feature_map_sides,
    m2det_anchors,
    pyramid_sides,
    scales_that_fit,
    smallest_image,
)
from oid.files import InputError
from tests.helpers.project import shared

SIZES = [32, 64, 96, 100, 101, 128, 165, 256, 320, 333, 512, 600, 800]
SETS = ("square", "official")


def centres(anchors):
    return (anchors[:, :2] + anchors[:, 2:]) / 2


def sizes(anchors):
    return anchors[:, 2:] - anchors[:, :2]


@pytest.mark.parametrize(
    ("image_size", "m2det", "retinanet"),
    [
        (320, [40, 20, 10, 5, 3, 1], [40, 20, 10, 5, 3, 2]),  # M2Det's sixth map is two cells smaller than its fifth
        (512, [64, 32, 16, 8, 4, 2], [64, 32, 16, 8, 4, 2]),
        (704, [88, 44, 22, 11, 6, 4], [88, 44, 22, 11, 6, 3]),
        (800, [100, 50, 25, 13, 7, 5], [100, 50, 25, 13, 7, 4]),
        (192, [24, 12, 6, 3], [24, 12, 6, 3]),
    ],
)
def test_maps_halve(image_size, m2det, retinanet):
    assert feature_map_sides(image_size, len(m2det)) == m2det
    assert pyramid_sides(image_size, len(m2det)) == retinanet


@pytest.mark.parametrize("scales", range(1, 9))
def test_the_smallest_image_fits_and_a_smaller_one_does_not(scales):
    least = smallest_image(scales)
    assert feature_map_sides(least, scales)[-1] >= 1
    assert scales_that_fit(least, scales) == scales
    with pytest.raises(InputError, match=f"take at least {least}"):
        feature_map_sides(least - 16, scales)
    assert scales_that_fit(least - 16, scales) < max(scales, 2)


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("image_size", SIZES)
def test_centres_lie_inside_the_image_and_are_the_middles_of_cells(image_size, kind):
    grids = m2det_anchors(image_size, 3, kind)
    anchors, cells = grids.boxes(), grids.cell_sides()
    assert anchors.dtype == cells.dtype == np.float32
    expected = {"square": 1, "official": 6}[kind] * sum(side**2 for side in feature_map_sides(image_size, 3))
    assert len(anchors) == len(cells) == expected
    middle = centres(anchors) / cells[:, None]
    assert 0 < centres(anchors).min() <= centres(anchors).max() < 1
    np.testing.assert_allclose(middle - np.floor(middle), 0.5, atol=1e-3)
    if kind == "official" and image_size > 256:  # six maps, as published, also where nothing was released
        grids = m2det_anchors(image_size, 6, "official")
        first = [pairs[0][0] for pairs in grids.sizes]
        assert sorted(first) == first
        assert 0 < centres(grids.boxes()).min() < centres(grids.boxes()).max() < 1


def test_the_official_six_of_a_cell_by_hand():
    """320 pixels, the largest map: s = 25.6 and t = 48 pixels; the middle of the first cell is at 4 pixels."""
    anchors = m2det_anchors(320, 6, "official").boxes() * 320
    between = (25.6 * 48) ** 0.5
    r2, r3 = 2**0.5, 3**0.5
    pairs = [(25.6, 25.6), (between, between), (25.6 * r2, 25.6 / r2), (25.6 / r2, 25.6 * r2)]
    pairs += [(25.6 * r3, 25.6 / r3), (25.6 / r3, 25.6 * r3)]
    np.testing.assert_allclose(sizes(anchors)[:6], pairs, rtol=1e-5)
    np.testing.assert_allclose(centres(anchors)[:6], 4.0, rtol=1e-4)
    np.testing.assert_allclose(centres(anchors)[6:12], [[12.0, 4.0]] * 6, rtol=1e-4)  # along the row


@pytest.mark.parametrize("image_size", [320, 512, 704, 800])
def test_official_anchors_equal_the_released_ones(image_size):
    with np.load(shared("golden/m2det/priors.npz")) as file:
        expected = file[f"m2det{image_size}_vgg"]
    anchors = m2det_anchors(image_size, 6, "official").boxes()
    np.testing.assert_allclose(np.concatenate([centres(anchors), sizes(anchors)], axis=1), expected, atol=1e-6)


def test_sizes_of_a_file_lie_around_the_middles_of_the_cells(tmp_path):
    path = tmp_path / "own.json"
    sizes = (((0.1, 0.2), (0.3, 0.1)), ((0.5, 0.5), (0.6, 1.2)))
    path.write_text(json.dumps({"made_by": "hand", "sizes": sizes}))
    for image_size, sides in ((16, (2, 1)), (64, (8, 4))):  # shares of the image, whatever its size
        grids = m2det_anchors(image_size, 2, str(path))
        assert grids == AnchorGrids(sides, tuple(1 / side for side in sides), sizes)
    anchors = m2det_anchors(16, 2, str(path)).boxes()
    assert grids.per_cell == 2
    np.testing.assert_allclose(anchors[0], (0.25 - 0.05, 0.25 - 0.1, 0.25 + 0.05, 0.25 + 0.1), atol=1e-7)
    np.testing.assert_allclose(anchors[-1], (0.5 - 0.3, 0.5 - 0.6, 0.5 + 0.3, 0.5 + 0.6), atol=1e-7)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "neither square nor official, nor a file"),
        *(
            (content, "does not hold")
            for content in ("{", "[]", '{"sizes": 3}', '{"sizes": []}', '{"sizes": [[], []]}')
        ),
        ('{"sizes": [[[0.1, 0.2, 0.3]], [[1, 1]]]}', "does not hold"),
        ('{"sizes": [[["a", 0.2]], [[1, 1]]]}', "does not hold"),
        ('{"sizes": [[[0.1, 0.2]], [[0.1, 0.2], [0.3, 0.4]]]}', "does not hold"),
        ('{"sizes": [[[0.1, 0.2]]]}', "has sizes for 1 maps, not for 2"),
        *((f'{{"sizes": [[[0.1, {side}]], [[1, 1]]]}}', f"side of {side}") for side in ("0", "-1", "32")),
        ('{"sizes": [[[0.1, NaN]], [[1, 1]]]}', "side of nan: sides are shares of the image"),
    ],
)
def test_a_file_of_sizes_that_cannot_be_used_is_refused(tmp_path, content, words):
    path = tmp_path / "own.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=words) as error:
        m2det_anchors(64, 2, str(path))
    assert str(path) in str(error.value)
