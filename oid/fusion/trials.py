"""Which settings of weighted boxes fusion a search tries; `oid.fusion.search` runs it.

Nothing here knows how good a setting is. A skip threshold is drawn as a share of all boxes, because what is a low score
differs from detector to detector.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from oid.fusion.fuse import CONF_TYPES
from oid.fusion.tuned_settings import FusionSettings

IOU_RANGE = (0.3, 0.9)
SMALLEST_WEIGHT = 0.1  # a weight below becomes 0: the model is left out
LARGEST_SKIP = 0.9  # the share of all boxes that the skip threshold may remove


def skip_thresholds(scores: Sequence[np.ndarray]) -> np.ndarray:
    """The thresholds that are tried: 0, then the scores that a growing share of the boxes does not reach.

    Args:
        scores: per model (N_i,).

    Returns:
        (Q,) float64, ascending.
    """
    quantiles = np.quantile(np.concatenate(scores), np.linspace(0.0, LARGEST_SKIP, 901))
    return np.concatenate([[0.0], np.clip(quantiles[1:], 0.0, None)])


def draw_trials(base: FusionSettings, count: int, skips: np.ndarray, rng: np.random.Generator) -> list[FusionSettings]:
    """Up to `count` different settings that depend on nothing measured, the base first, many with equal weights.

    Args:
        base: equal weights and the defaults.
        count: 1 or more.
        skips: (Q,) from `skip_thresholds`.
        rng: for two Latin hypercubes, one of them with equal weights, in which each setting takes evenly spread values.
    """
    num_models = len(base.weights)
    fixed = [base, *(dataclasses.replace(base, conf_type=name) for name in CONF_TYPES)]
    if num_models > 1:
        for left_out in range(num_models):
            weights = tuple(0.0 if model == left_out else 1.0 for model in range(num_models))
            fixed.append(dataclasses.replace(base, weights=weights))
    drawn = []
    for size, free in ((count // 3, False), (count, True)):
        for row in _latin_hypercube(size, num_models + 3, rng):
            weights = row[:num_models] if free else np.ones(num_models)
            iou = IOU_RANGE[0] + row[-3] * (IOU_RANGE[1] - IOU_RANGE[0])
            skip = skips[int(max(row[-2] * 4.0 - 1.0, 0.0) / 3.0 * len(skips))]  # for a quarter nothing is skipped
            drawn.append(settings_from(weights, iou, skip, CONF_TYPES[int(row[-1] * len(CONF_TYPES))]))
    return list(dict.fromkeys(fixed + drawn))[:count]


def neighbour(
    settings: FusionSettings, skips: np.ndarray, scale: float, rng: np.random.Generator, *, free_weights: bool
) -> FusionSettings:
    """A random step from `settings`.

    Args:
        settings: the best so far.
        skips: as in `draw_trials`.
        scale: from 1 to 0, the smaller, the shorter.
        rng: the source of the step.
        free_weights: the weights move, and every other time the rest as well; else the weights stay.
    """
    weights, iou, skip = np.array(settings.weights), settings.fusion_iou, settings.skip_box_threshold
    conf_type = settings.conf_type
    if free_weights:
        weights = weights + rng.normal(0.0, 0.3 * scale, len(weights))
    if not free_weights or rng.random() < 0.5:
        iou = np.clip(iou + rng.normal(0.0, 0.1 * scale), *IOU_RANGE)
        place = np.searchsorted(skips, skip) / len(skips) + rng.normal(0.0, 0.2 * scale)
        skip = skips[int(np.clip(place, 0.0, 1.0) * (len(skips) - 1))]
        conf_type = conf_type if rng.random() < 0.8 else CONF_TYPES[rng.integers(len(CONF_TYPES))]
    return settings_from(weights, iou, skip, conf_type)


def has_equal_weights(settings: FusionSettings) -> bool:
    return len(set(settings.weights)) == 1


def settings_from(weights: np.ndarray, iou: float, skip: float, conf_type: str) -> FusionSettings:
    """Settings as people can read them: the largest weight 1, small ones 0, few digits; `weights` are (models,)."""
    weights = np.clip(weights, 0.0, None)
    weights = weights / weights.max() if weights.max() > 0.0 else np.ones(len(weights))
    weights = np.where(weights < SMALLEST_WEIGHT, 0.0, weights)
    return FusionSettings(tuple(np.round(weights, 3).tolist()), round(float(iou), 3), float(f"{skip:.3g}"), conf_type)


def _latin_hypercube(count: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """(count, columns) in [0, 1), in each column one value in each of `count` equal parts."""
    parts = rng.permuted(np.tile(np.arange(count), (columns, 1)), axis=1).T
    return (parts + rng.random(parts.shape)) / max(count, 1)
