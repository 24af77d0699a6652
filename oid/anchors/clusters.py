"""Anchor sizes made for a data set: k-means over the widths and heights of its boxes, map by map."""

import numpy as np

from oid.anchors.coverage import COVERED, best_ious
from oid.anchors.grids import Sizes, grids_of_sizes

MOST = 30_000  # boxes for k-means, drawn by seed
LEAST_CELLS = (2.0, 3.0, 4.0, 6.0)  # candidates for c


def cluster_sizes(
    boxes: np.ndarray, weights: np.ndarray, *, sides: list[int], anchors_per_cell: int, seed: int
) -> Sizes | None:
    """Chooses the sizes of an anchor grid by k-means.

    1. Each box goes to the coarsest map on which it is at least c cells wide (square root of the area), else to the
       finest: no anchor would be near it on a map with larger cells.
    2. k-means in each map over the logarithms of width and height. For two boxes with one centre, one inside the other,
       the IoU is exp(-|difference of log w| - |difference of log h|). So this has the aim of k-means with 1 - IoU
       (Redmon and Farhadi 2017, YOLO9000, section 2).
    3. A map with too few boxes takes its neighbour's sizes, in cells.
    4. The c of LEAST_CELLS is kept with which the anchors cover most boxes.

    Args:
        boxes: `(N, 4)` xyxy, normalised.
        weights: `(N,)`, how many boxes each stands for.
        sides: of the maps in cells, finest first.
        anchors_per_cell: sizes per map.
        seed: of the draw, and of k-means.

    Returns:
        For each map, finest first, `anchors_per_cell` pairs of width and height by area; None if no map has boxes of
        that many different sizes.
    """
    if len(boxes) > MOST:
        drawn = np.random.default_rng(seed).choice(len(boxes), MOST, p=weights / weights.sum())
        boxes, weights = boxes[drawn], np.ones(MOST)
    best, best_share = None, -1.0
    for least in LEAST_CELLS:
        sizes = _sizes_of_maps(boxes[:, 2:] - boxes[:, :2], weights, sides, anchors_per_cell, least, seed)
        if sizes is None:
            continue
        share = np.average(best_ious(boxes, grids_of_sizes(sizes, sides)) >= COVERED, weights=weights)
        if share > best_share:
            best, best_share = sizes, share
    return best


def _sizes_of_maps(
    sizes: np.ndarray, weights: np.ndarray, sides: list[int], count: int, least: float, seed: int
) -> Sizes | None:
    """Steps 1 to 3 for boxes of `sizes` `(N, 2)`, for maps whose boxes are `least` cells wide."""
    limits = least / np.asarray(sides, "float64")
    limits[0] = 0.0
    map_of_box = np.searchsorted(limits, np.sqrt(sizes.prod(axis=1)), side="right") - 1
    found = {}
    for number in range(len(sides)):
        chosen = map_of_box == number
        points = np.log(sizes[chosen])
        if len(np.unique(points.round(6), axis=0)) >= count:
            found[number] = _k_means(points, weights[chosen], count, seed)
    if not found:
        return None
    maps = []
    for number, side in enumerate(sides):
        nearest = min(found, key=lambda other: (abs(other - number), other))
        pairs = (found[nearest] * (sides[nearest] / side)).round(5)
        maps.append(tuple(map(tuple, pairs.tolist())))
    return tuple(maps)


def _k_means(points: np.ndarray, weights: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Centres of `count` clusters of logarithms, as sizes `(count, 2)`, by area, then by width."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # sums in a fixed order; and on busy cores threads wait for each other
        means = KMeans(count, n_init=4, random_state=seed).fit(points, sample_weight=weights).cluster_centers_
    return np.exp(means[np.lexsort((means[:, 0], means.sum(axis=1)))])
