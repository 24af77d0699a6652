"""Anchors: the boxes that the network's outputs are relative to. NumPy only: they can be looked at without Keras.

An anchor set is described by a few numbers (`anchor_settings`), which are stored in a run's `settings.json` and inside
its model file; training and inference build the anchors from the same description (`make_anchors`).
"""

import itertools
from typing import Literal

import numpy as np

from oid.files import InputError

PUBLISHED_SCALES = 6
SIZE_IN_CELLS = 4.0  # side of the one square anchor of a cell
SQRT2, SQRT3 = 2**0.5, 3**0.5

# What the released configurations say of four image sizes: the smallest anchor as a share of the image, the next one,
# and the distance of the centres in pixels, map by map (typed by hand: at 320 and 800 pixels the last centres of some
# maps are a little outside their cells).
RELEASED_PATTERNS = {
    320: ((0.08, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05), (8, 16, 32, 64, 107, 320)),
    512: ((0.06, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05), (8, 16, 32, 64, 128, 256)),
    704: ((0.04, 0.11, 0.23, 0.39, 0.58, 0.80, 1.05), (8, 16, 32, 64, 117, 176)),
    800: ((0.04, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05), (8, 16, 32, 62, 115, 160)),
}


def feature_map_sides(image_size: int, scales: int) -> list[int]:
    """Sides of the pyramid's maps, largest first: an eighth of the image, then halved, each rounded up.

    Of six maps, as published, the last comes from a 3x3 convolution without padding: 2 less than the one before (320
    pixels give 40, 20, 10, 5, 3, 1).

    Raises:
        InputError: the image is too small for so many maps.
    """
    side = image_size
    for _ in range(3):
        side = -(-side // 2)
    sides = [side]
    while len(sides) < scales:
        sides.append(
            -(-sides[-1] // 2) if len(sides) + 1 < PUBLISHED_SCALES or scales != PUBLISHED_SCALES else side - 2
        )
        side = sides[-1]
    if sides[-1] < 1 or (scales > 1 and sides[-2] == 1):
        least = smallest_image(scales)
        raise InputError(f"{scales} scales do not fit {image_size} pixels: take at least {least}, or fewer scales")
    return sides


def smallest_image(scales: int) -> int:
    """The smallest image, in pixels and a multiple of 16, whose pyramid has `scales` maps."""
    cells = 2 ** (scales - 2) + 1 if scales > 1 else 1  # the last but one has 2 cells
    if scales == PUBLISHED_SCALES:
        cells = 33  # the last but one has 3
    return -(-(cells * 8 - 7) // 16) * 16


def anchor_settings(
    image_size: int, scales: int, *, anchors: Literal["square", "official"] = "square"
) -> dict[str, object]:
    """Describes one set of anchors, as JSON can hold it.

    "square" is one anchor per cell, four cells wide: for assignments that look at the predictions. "official" is the
    published set, six per cell: with s and t the sizes of this map and of the next, squares of s and of the geometric
    mean of s and t, and boxes of the area of the first, 2, 1/2, 3 and 1/3 times as wide as high. At 320, 512, 704 and
    800 pixels with six scales these are the released numbers; elsewhere the sizes run from 0.08 and 0.15 of the image
    to 1.05 in equal steps, and centres are the middles of the cells.

    Args:
        image_size: side of the network's input in pixels.
        scales: number of pyramid levels.
        anchors: which set.

    Returns:
        `feature_map_sides`; `steps`, the distance of the centres, and `sizes`, a list of (width, height) pairs, for
        each map, normalised to the image; `clip`, whether centres and sizes are cut to 1.

    Raises:
        InputError: the image is too small for so many maps.
    """
    sides = feature_map_sides(image_size, scales)
    if anchors == "square":
        sizes = [[[SIZE_IN_CELLS / side, SIZE_IN_CELLS / side]] for side in sides]
        return {"feature_map_sides": sides, "steps": [1.0 / side for side in sides], "sizes": sizes, "clip": False}
    if anchors != "official":
        raise InputError(f"--anchors {anchors} does not exist: choose square or official")
    if image_size in RELEASED_PATTERNS and scales == PUBLISHED_SCALES:
        shares, pixels = RELEASED_PATTERNS[image_size]
        steps = [step / image_size for step in pixels]
    else:
        shares = [0.08, *(np.linspace(0.15, 1.05, scales) if scales > 1 else [1.05])]
        steps = [1.0 / side for side in sides]
    sizes = []
    for share, following in itertools.pairwise(shares):
        s, t = (round(float(value) * image_size, 2) / image_size for value in (share, following))
        between = (s * t) ** 0.5
        pairs = [(s, s), (between, between)]
        for root in (SQRT2, SQRT3):
            pairs += [(s * root, s / root), (s / root, s * root)]
        sizes.append([list(pair) for pair in pairs])
    return {"feature_map_sides": sides, "steps": steps, "sizes": sizes, "clip": True}


def make_anchors(settings: dict[str, object]) -> np.ndarray:
    """Builds the anchors that `settings` describes.

    The centre of a cell in column j is (j + 0.5) * step; with steps of 1 / side always inside the image.

    Returns:
        A float32 array of shape `(anchors, 4)`: xyxy, normalised, not clipped as a box. Order: map (largest first),
        row, column, size.
    """
    maps = []
    for side, step, sizes in zip(settings["feature_map_sides"], settings["steps"], settings["sizes"], strict=True):
        centres = (np.arange(side) + 0.5) * step
        y, x = np.meshgrid(centres, centres, indexing="ij")
        x, y = x[..., None], y[..., None]  # [side, side, 1]
        w, h = np.asarray(sizes, "float64").T  # [sizes]
        if settings["clip"]:  # the released rule: centre and size are cut, not the corners
            x, y, w, h = (np.clip(value, 0.0, 1.0) for value in (x, y, w, h))
        boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=-1)  # [side, side, sizes, 4]
        maps.append(boxes.reshape(-1, 4))
    return np.concatenate(maps).astype("float32")


def anchors_per_cell(settings: dict[str, object]) -> int:
    """How many anchors each cell has; the same on every map."""
    return len(settings["sizes"][0])


def anchors_per_level(settings: dict[str, object]) -> list[int]:
    """How many anchors each map has, in their order."""
    maps = zip(settings["feature_map_sides"], settings["sizes"], strict=True)
    return [side * side * len(sizes) for side, sizes in maps]


def cell_sides(settings: dict[str, object]) -> np.ndarray:
    """The side of each anchor's cell (its map's stride), normalised: a float32 array of shape `(anchors,)`."""
    return np.concatenate(
        [
            np.full(side * side * len(sizes), 1.0 / side)
            for side, sizes in zip(settings["feature_map_sides"], settings["sizes"], strict=True)
        ]
    ).astype("float32")
