"""Anchors: the boxes that the network's outputs are relative to. NumPy only: they can be looked at without Keras.

An anchor set is described by a few numbers (`anchor_settings`), which are stored in a run's `settings.json` and inside
its model file; training and inference build the anchors from the same description (`make_anchors`).
"""

import numpy as np


def feature_map_sides(image_size: int, scales: int) -> list[int]:
    """Sides of the pyramid's maps, largest first: an eighth of the image, then halved, each rounded up."""
    side = image_size
    for _ in range(3):
        side = -(-side // 2)
    sides = [side]
    for _ in range(scales - 1):
        sides.append(-(-sides[-1] // 2))
    return sides


def anchor_settings(
    image_size: int, scales: int, *, size_in_cells: float = 4.0, ratios: tuple[float, ...] = (1.0,)
) -> dict[str, object]:
    """Describes one set of anchors, as JSON can hold it.

    Args:
        image_size: side of the network's input in pixels.
        scales: number of pyramid levels.
        size_in_cells: side of the square anchor, in cells of its map.
        ratios: width divided by height of each anchor of a cell; all have the area of the square one.
    """
    sides = feature_map_sides(image_size, scales)
    return {
        "feature_map_sides": sides,
        "sizes": [size_in_cells / side for side in sides],  # normalised to the image
        "ratios": list(ratios),
    }


def make_anchors(settings: dict[str, object]) -> np.ndarray:
    """Builds the anchors that `settings` describes.

    The centre of a cell is its middle ((j + 0.5) / side), so centres always lie inside the image.

    Returns:
        A float32 array of shape `(anchors, 4)`: xyxy, normalised, not clipped. Order: map (largest first), row, column,
        ratio.
    """
    maps = []
    for side, size in zip(settings["feature_map_sides"], settings["sizes"], strict=True):
        centres = (np.arange(side) + 0.5) / side
        y, x = np.meshgrid(centres, centres, indexing="ij")
        half = [(0.5 * size * ratio**0.5, 0.5 * size / ratio**0.5) for ratio in settings["ratios"]]
        boxes = [np.stack([x - w, y - h, x + w, y + h], axis=-1) for w, h in half]  # [side, side, 4] each
        maps.append(np.stack(boxes, axis=2).reshape(-1, 4))
    return np.concatenate(maps).astype("float32")


def cell_sides(settings: dict[str, object]) -> np.ndarray:
    """The side of each anchor's cell (its map's stride), normalised: a float32 array of shape `(anchors,)`."""
    per_cell = len(settings["ratios"])
    sides = settings["feature_map_sides"]
    return np.concatenate([np.full(side * side * per_cell, 1.0 / side) for side in sides]).astype("float32")
