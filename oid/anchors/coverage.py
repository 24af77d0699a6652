"""How well a grid of anchors covers boxes: the IoU of each box with the anchor that overlaps it most."""

import numba
import numpy as np


def best_ious(boxes: np.ndarray, anchors: dict[str, object]) -> np.ndarray:
    """The highest IoU of each box with any anchor of a grid, at the places where the anchors lie.

    Intersection grows as centres come nearer, on each axis by itself, and the union shrinks: so of all anchors of one
    size the best is the one whose centre is nearest, and no other place has to be looked at.

    Args:
        boxes: `(n, 4)` xyxy, normalised.
        anchors: the description that `oid.anchors.grids.make_anchors` takes.

    Returns:
        float64 `(n,)`.
    """
    centres, starts, shapes, maps = [], [0], [], []
    described = zip(anchors["feature_map_sides"], anchors["steps"], anchors["sizes"], strict=True)
    for number, (side, step, sizes) in enumerate(described):
        places, pairs = (np.arange(side) + 0.5) * step, np.asarray(sizes, "float64")
        if anchors["clip"]:
            places, pairs = np.clip(places, 0.0, 1.0), np.clip(pairs, 0.0, 1.0)
        centres.append(places)
        starts.append(starts[-1] + side)
        shapes.append(pairs)
        maps += [number] * len(pairs)
    return _best_ious(
        np.ascontiguousarray(boxes, "float64"),
        np.concatenate(centres),
        np.asarray(starts),
        np.asarray(anchors["steps"], "float64"),
        np.concatenate(shapes),
        np.asarray(maps),
    )


@numba.njit(cache=True, nogil=True)
def _best_ious(boxes, centres, starts, steps, shapes, maps):
    """For maps with centres `centres[starts[m]:starts[m + 1]]` on both axes, about `steps[m]` apart."""
    best = np.zeros(len(boxes))
    for i in range(len(boxes)):
        width, height = boxes[i, 2] - boxes[i, 0], boxes[i, 3] - boxes[i, 1]
        x, y = (boxes[i, 0] + boxes[i, 2]) / 2, (boxes[i, 1] + boxes[i, 3]) / 2
        here, off_x, off_y = -1, 0.0, 0.0
        for k in range(len(shapes)):
            if maps[k] != here:
                here = maps[k]
                places = centres[starts[here] : starts[here + 1]]
                off_x, off_y = _distance(x, places, steps[here]), _distance(y, places, steps[here])
            w, h = shapes[k, 0], shapes[k, 1]
            common_w = min(width, w, (width + w) / 2 - off_x)
            common_h = min(height, h, (height + h) / 2 - off_y)
            if common_w > 0.0 and common_h > 0.0:
                common = common_w * common_h
                best[i] = max(best[i], common / (width * height + w * h - common))
    return best


@numba.njit(cache=True, nogil=True)
def _distance(x, places, step):
    """From `x` to the nearest of the ascending `places`."""
    guess = int(min(max(x / step, 0.0), len(places) - 1.0))
    nearest = abs(x - places[guess])
    for other in (guess - 1, guess + 1):
        if 0 <= other < len(places):
            nearest = min(nearest, abs(x - places[other]))
    return nearest


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """The mean of `(n,)` values; NaN where there are none."""
    return float(np.average(values, weights=weights)) if len(values) else float("nan")


def weighted_quantiles(values: np.ndarray, weights: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The least of the values up to which at least these shares of the weight lie; NaN where there are none."""
    if not len(values):
        return np.full(len(shares), np.nan)
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    places = np.searchsorted(reached, np.asarray(shares) * reached[-1] * (1 - 1e-12))
    return values[order][np.minimum(places, len(values) - 1)]
