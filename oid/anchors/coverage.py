"""How well a grid of anchors covers boxes: the IoU of each box with the anchor that overlaps it most."""

import numpy as np

from oid.anchors.grids import AnchorGrids

COVERED = 0.5  # IoU with the best anchor from which on a box is covered
CHUNK = 5_000  # boxes at a time, so that the arrays stay in the processor's cache


def best_ious(boxes: np.ndarray, anchors: AnchorGrids) -> np.ndarray:
    """The highest IoU of each box with any anchor of a grid.

    On each axis the intersection grows, and the union shrinks, as centres come nearer. So the best anchor of each size
    is the one with the nearest centre.

    Args:
        boxes: `(N, 4)` xyxy, normalised.
        anchors: of all maps.

    Returns:
        float64 `(N,)`.
    """
    boxes = np.asarray(boxes, "float64")
    chunks = [boxes[start : start + CHUNK] for start in range(0, len(boxes), CHUNK)]
    return np.concatenate([np.zeros(0), *(_best_ious(chunk.T, anchors) for chunk in chunks)])


def _best_ious(boxes: np.ndarray, anchors: AnchorGrids) -> np.ndarray:
    """As `best_ious`, for boxes `(4, N)`."""
    sides, middles = boxes[2:] - boxes[:2], (boxes[:2] + boxes[2:]) / 2  # (2, N)
    area, best = sides[0] * sides[1], np.zeros(boxes.shape[1])
    for cells, step, sizes in zip(anchors.sides, anchors.steps, anchors.sizes, strict=True):
        centres, sizes = (np.arange(cells) + 0.5) * step, np.asarray(sizes, "float64")
        if anchors.clip:
            centres, sizes = np.clip(centres, 0.0, 1.0), np.clip(sizes, 0.0, 1.0)
        following = np.searchsorted(centres, middles)
        nearest = [np.abs(middles - centres[np.clip(place, 0, cells - 1)]) for place in (following - 1, following)]
        distance = np.minimum(*nearest)
        for size in sizes:
            size = size[:, None]
            common = np.minimum(np.minimum(sides, size), (sides + size) / 2 - distance).clip(min=0.0)
            common = common[0] * common[1]
            best = np.maximum(best, common / (area + size[0] * size[1] - common))
    return best
