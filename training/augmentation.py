"""Pictures and their boxes, changed at random: parts of them, mosaics of four, mixtures of two, colour.

A sample is a picture of any size with normalised boxes; every function gives back a picture of the network's size with
boxes normalised to it. All randomness comes from the generator passed in.
"""

import dataclasses
from typing import Literal

import cv2
import numpy as np

from training.colours import jitter_colours
from training.crops import ssd_view, zoomed_view
from training.samples import Sample, assembled

Crop = Literal["zoom", "ssd"]
SINGLE_SCALES = (0.6, 1.7)  # the picture's longer side in units of the network's
MOSAIC_SCALES = (0.8, 2.0)  # the same for a tile, in units of half the network's side
MOSAIC_TILES = 4
MAX_PARTS = MOSAIC_TILES


def augment(
    samples: list[Sample],
    side: int,
    rng: np.random.Generator,
    *,
    mixed: Sample | None = None,
    crop: Crop = "zoom",
    keep_aspect: bool = False,
) -> Sample:
    """One training picture.

    Args:
        samples: one, or four for a mosaic, whose tiles are zoomed whatever `crop` says.
        side: of the picture in pixels.
        rng: decides everything.
        mixed: another one, blended in.
        crop: which part of a picture is shown, see `training.crops`.
        keep_aspect: pictures are not stretched.
    """
    if len(samples) == 1:
        sample = view(samples[0], side, rng, crop=crop, keep_aspect=keep_aspect)
    else:
        sample = mosaic(samples, side, rng, keep_aspect=keep_aspect)
    if mixed is not None:
        sample = mixup(sample, view(mixed, side, rng, crop=crop, keep_aspect=keep_aspect))
    return dataclasses.replace(sample, image=jitter_colours(sample.image, rng))


def view(
    sample: Sample, side: int, rng: np.random.Generator, *, crop: Crop = "zoom", keep_aspect: bool = False
) -> Sample:
    """A random view of one picture in a square of `side` pixels."""
    if crop == "ssd":
        return ssd_view(sample, side, side, rng, keep_aspect=keep_aspect)
    return zoomed_view(sample, side, side, SINGLE_SCALES, side, rng, keep_aspect=keep_aspect)


def mosaic(samples: list[Sample], side: int, rng: np.random.Generator, *, keep_aspect: bool = False) -> Sample:
    """Four pictures around a random centre (Bochkovskiy et al. 2020, section 3.3); each is a part."""
    cx, cy = (round(side * place) for place in rng.uniform(0.3, 0.7, 2))
    tiles = []
    for index, sample in enumerate(samples):
        x0, x1 = (0, cx) if index % 2 == 0 else (cx, side)
        y0, y1 = (0, cy) if index < 2 else (cy, side)
        tile = zoomed_view(sample, x1 - x0, y1 - y0, MOSAIC_SCALES, side / 2, rng, keep_aspect=keep_aspect)
        tiles.append((tile, (x0, y0, x1, y1)))
    return assembled(np.empty((side, side, 3), "uint8"), tiles)


def mixup(sample: Sample, other: Sample) -> Sample:
    """Two pictures of one size, blended half and half, with the boxes and regions of both in full.

    Zhang et al. (2018) blend by a random share and weigh the labels by it; for detection every box keeps its weight
    (Zhang et al. 2019, "Bag of Freebies", section 3.1), and the even blend is that of YOLOX (Ge et al. 2021). A class
    is verified where it is in both pictures. `other` is one picture, not a mosaic.
    """
    if len(other.parts) != 1:
        raise ValueError(f"the picture to blend in has {len(other.parts)} parts, expected one that fills the frame")
    return Sample(
        cv2.addWeighted(sample.image, 0.5, other.image, 0.5, 0),
        np.concatenate([sample.boxes, other.boxes]),
        np.concatenate([sample.labels, other.labels]),
        np.concatenate([sample.regions, other.regions]),
        np.concatenate([sample.region_labels, other.region_labels]),
        sample.parts,
        None if sample.verified is None else sample.verified & other.verified,
    )
