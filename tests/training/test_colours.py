"""Proves that colours change a little, that greys stay grey, and what the matrix does to single colours."""

import colorsys

import numpy as np
import pytest
from training.colours import BRIGHTNESS, HUE, LUMA, SATURATION, colour_matrix, jitter_colours


def test_colours_change_a_little_and_shapes_do_not():
    rng = np.random.default_rng(13)
    image = rng.integers(0, 256, (64, 64, 3)).astype("uint8")
    before = image.copy()
    changed = jitter_colours(image, rng)
    np.testing.assert_array_equal(image, before)  # the source is not changed
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert not np.array_equal(changed, image)
    black = np.zeros((8, 8, 3), "uint8")
    np.testing.assert_array_equal(jitter_colours(black, rng), black)


def test_grey_becomes_darker_or_brighter_but_stays_grey():
    brightness = []
    for seed in range(100):
        greys = np.repeat(np.arange(256, dtype="uint8"), 3).reshape(1, 256, 3)
        changed = jitter_colours(greys, np.random.default_rng(seed))[0].astype(int)
        assert np.ptp(changed, axis=1).max() <= 1  # rounding
        brightness.append(changed[100].mean())
    assert 100 * (1 - BRIGHTNESS) - 1 <= min(brightness) < 80
    assert 120 < max(brightness) <= 100 * (1 + BRIGHTNESS) + 1


def test_the_matrix_by_hand():
    np.testing.assert_allclose(colour_matrix(0, 1, 1), np.eye(3), atol=1e-7)
    np.testing.assert_allclose(colour_matrix(0, 1, 0.5), 0.5 * np.eye(3), atol=1e-7)
    third = colour_matrix(2 * np.pi / 3, 1, 1)  # a third of the circle: red to green, green to blue, blue to red
    np.testing.assert_allclose(third, [[0, 0, 1], [1, 0, 0], [0, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(colour_matrix(0, 0, 1), [LUMA] * 3, atol=1e-7)  # no saturation: the luma
    red = colour_matrix(0, 1.4, 1) @ (1, 0, 0)
    np.testing.assert_allclose(red, [1.4 - 0.4 * 0.299, -0.4 * 0.299, -0.4 * 0.299], atol=1e-6)
    np.testing.assert_allclose(red @ LUMA, 0.299, atol=1e-6)  # as bright as before


@pytest.mark.parametrize("turn", [-HUE, HUE / 2, HUE])
def test_a_turn_of_the_hue_is_that_of_hsv(turn):
    """For the colours that training shows: neither black nor fully saturated, the two agree to a hundredth."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        h, s, v = rng.random(), rng.uniform(0.1, 0.7), rng.uniform(0.3, 0.8)
        turned = colour_matrix(2 * np.pi * turn, 1, 1) @ colorsys.hsv_to_rgb(h, s, v)
        difference = colorsys.rgb_to_hsv(*turned)[0] - (h + turn)
        assert abs((difference + 0.5) % 1 - 0.5) < 0.01


def test_changes_reach_their_limits_and_no_further():
    rng = np.random.default_rng(2)
    colour = np.array([0.6, 0.4, 0.3])
    saturations = []
    for _ in range(150):
        image = np.full((1, 1, 3), np.rint(colour * 255), "uint8")  # of which rounding changes a twentieth
        r, g, b = jitter_colours(image, rng)[0, 0] / 255.0
        luma = r * LUMA[0] + g * LUMA[1] + b * LUMA[2]
        saturations.append((r - luma) / luma / ((0.6 - colour @ LUMA) / (colour @ LUMA)))
    assert 1 - SATURATION - 0.15 < min(saturations) < 0.75
    assert 1.25 < max(saturations) < 1 + SATURATION + 0.15
