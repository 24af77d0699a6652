"""Training images and their boxes, changed at random: zoomed, cropped, mirrored, put together in mosaics, recoloured.

A view of an image is one mapping x' = sx x + tx, y' = sy y + ty of its pixels: pixels are interpolated once, and those
that are not shown cost nothing. All randomness comes from the generator that is passed in.
"""

import dataclasses
import math
from typing import Literal

import cv2
import numpy as np

from oid.boxes.suppression import iou_matrix
from oid.images.letterbox import GREY, letterbox_frame

Crop = Literal["zoom", "ssd"]
Transform = tuple[float, float, float, float]  # sx, sy, tx, ty

FILL = GREY  # outside the image
MINIMUM_VISIBLE = 0.3  # share of its area that a cropped box needs to stay an object

SINGLE_SCALES = (0.6, 1.7)  # the image's longer side in units of the network's
MOSAIC_SCALES = (0.8, 2.0)  # the same for a tile, in units of half the network's side
MOSAIC_TILES = 4
# The longer side to which images are reduced before all else, in units of the network's: for 320 pixels that is
# 1024 / 2, to which a JPEG is decoded quickly. The largest zoom hardly enlarges such an image, a small patch of SSD's
# crop doubles its pixels; to avoid that the cache would need several times the memory.
KEPT_SIDE = 1.6

SSD_TRIALS = 50  # patches, one of which must overlap enough
SSD_SIDES = (0.3, 1.0)  # of the released code; the paper says 0.1, which leaves little of an image of 300 pixels
SSD_MINIMUM_IOU = (0.1, 0.3, 0.5, 0.7, 0.9)
SSD_LARGEST_EXPANSION = 4.0  # of each side
WHOLE = -1.0  # among the minimum IoUs: no patch

HUE, SATURATION, BRIGHTNESS = 0.02, 0.4, 0.3  # largest change: hue in turns, the others relative
LUMA = (0.299, 0.587, 0.114)  # how bright red, green and blue look (ITU-R BT.601)
GREY_AXIS_CROSS = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)  # cross product with (1, 1, 1) / sqrt 3


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image of any size with what is in it; boxes are xyxy, normalised.

    Attributes:
        image: uint8 `(H, W, 3)`, RGB.
        boxes: float32 `(N, 4)`.
        labels: int32 `(N,)`.
        regions: float32 `(M, 4)`, where classes give no gradient.
        region_labels: int32 `(M,)`; `training.data_set.DataSet.region_classes` says what they mean.
        parts: float32 `(P, 4)`, the rectangles of the images that make up this one; together they cover it.
        verified: uint8 `(P, classes)`, 1 where the background of a part is known not to be that class; None where the
            rule is off.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    regions: np.ndarray
    region_labels: np.ndarray
    parts: np.ndarray = dataclasses.field(default_factory=lambda: np.array([[0, 0, 1, 1]], "float32"))
    verified: np.ndarray | None = None


def augment(
    samples: list[Sample], side: int, rng: np.random.Generator, *, crop: Crop = "zoom", keep_aspect: bool = False
) -> Sample:
    """Makes one training image.

    Args:
        samples: one, or four for a mosaic. Tiles of mosaics are always zoomed.
        side: of the square result in pixels.
        rng: decides everything.
        crop: "zoom" is `zoomed_view`, "ssd" is `ssd_view`.
        keep_aspect: images are not stretched.
    """
    if len(samples) > 1:
        sample = mosaic(samples, side, rng, keep_aspect=keep_aspect)
    elif crop == "ssd":
        sample = ssd_view(samples[0], side, rng, keep_aspect=keep_aspect)
    else:
        sample = zoomed_view(samples[0], side, side, SINGLE_SCALES, side, rng, keep_aspect=keep_aspect)
    return dataclasses.replace(sample, image=jitter_colours(sample.image, rng))


# === Mosaics =========================================================================================================
def mosaic(samples: list[Sample], side: int, rng: np.random.Generator, *, keep_aspect: bool = False) -> Sample:
    """Puts four images around a random centre (Bochkovskiy et al. 2020, section 3.3); each is a part."""
    cx, cy = (round(side * place) for place in rng.uniform(0.3, 0.7, 2))
    tiles = []
    for index, sample in enumerate(samples):
        x0, x1 = (0, cx) if index % 2 == 0 else (cx, side)
        y0, y1 = (0, cy) if index < 2 else (cy, side)
        tile = zoomed_view(sample, x1 - x0, y1 - y0, MOSAIC_SCALES, side / 2, rng, keep_aspect=keep_aspect)
        tiles.append((tile, (x0, y0, x1, y1)))
    return assembled(np.empty((side, side, 3), "uint8"), tiles)


def assembled(image: np.ndarray, tiles: list[tuple[Sample, tuple[int, int, int, int]]]) -> Sample:
    """Draws each sample into its rectangle x0, y0, x1, y1 of `image`, in pixels, and joins their boxes."""
    height, width = image.shape[:2]
    boxes, regions, parts = [], [], []
    for tile, (x0, y0, x1, y1) in tiles:
        image[y0:y1, x0:x1] = tile.image
        scale = np.array([x1 - x0, y1 - y0] * 2, "float32") / (width, height, width, height)
        shift = np.array([x0, y0] * 2, "float32") / (width, height, width, height)
        for rectangles, moved in ((tile.boxes, boxes), (tile.regions, regions), (tile.parts, parts)):
            moved.append((rectangles * scale + shift).astype("float32"))
    verified = [tile.verified for tile, _ in tiles if tile.verified is not None]
    return Sample(
        image,
        np.concatenate(boxes),
        np.concatenate([tile.labels for tile, _ in tiles]),
        np.concatenate(regions),
        np.concatenate([tile.region_labels for tile, _ in tiles]),
        np.concatenate(parts),
        np.concatenate(verified) if verified else None,
    )


# === Zoom ============================================================================================================
def zoomed_view(
    sample: Sample,
    width: int,
    height: int,
    scales: tuple[float, float],
    unit: float,
    rng: np.random.Generator,
    *,
    keep_aspect: bool = False,
) -> Sample:
    """Shows a random part of an image, or the whole image on grey, in a `width` x `height` frame.

    The image's longer side becomes `unit` pixels times a number from `scales` (drawn log-uniformly); it is shifted,
    and mirrored in half of the cases. Its aspect ratio becomes something between its own and a square's (which is what
    a warp shows at inference), unless `keep_aspect`.
    """
    h, w = sample.image.shape[:2]
    fit = unit / max(h, w)
    towards_square = rng.random() * (not keep_aspect)
    scale = math.exp(rng.uniform(math.log(scales[0]), math.log(scales[1])))
    sx = scale * fit * (max(h, w) / w) ** towards_square
    sy = scale * fit * (max(h, w) / h) ** towards_square
    tx = (width - w * sx) * rng.random()
    ty = (height - h * sy) * rng.random()
    if rng.random() < 0.5:
        sx, tx = -sx, tx + w * sx
    return affine_view(sample, width, height, (sx, sy, tx, ty))


# === SSD's expansion and crop ========================================================================================
def ssd_view(sample: Sample, side: int, rng: np.random.Generator, *, keep_aspect: bool = False) -> Sample:
    """Stretches a patch that SSD would draw to a square (Liu et al. 2016, sections 2.2 and 3.6); see `ssd_patch`.

    The patch is mirrored in half of the cases. With `keep_aspect` it is letterboxed instead of stretched.
    """
    patch = ssd_patch(sample.boxes, rng)
    mirrored = rng.random() < 0.5
    if not keep_aspect:
        return rectangle_view(sample, side, side, patch, mirrored=mirrored)
    h, w = sample.image.shape[:2]
    frame = letterbox_frame((patch[3] - patch[1]) * h, (patch[2] - patch[0]) * w, side, side)
    fitted = rectangle_view(sample, frame[2] - frame[0], frame[3] - frame[1], patch, mirrored=mirrored)
    view = assembled(np.full((side, side, 3), FILL, "uint8"), [(fitted, frame)])
    return dataclasses.replace(view, parts=sample.parts)


def ssd_patch(boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws the rectangle that SSD shows of an image, xyxy in units of the image; it can reach beyond [0, 1].

    In half of the cases the canvas is larger than the image, by up to four times its side. Then one of seven choices
    is equally likely: the whole canvas, a patch whose IoU with some box is at least .1, .3, .5, .7 or .9, or any patch;
    the next choice where 50 patches do not overlap enough. A patch has sides of .3 to 1 of the canvas (the root of its
    share of the area) and an aspect ratio of 1/2 to 2 in units of the canvas.

    Args:
        boxes: `(N, 4)` of the image.
        rng: decides everything.
    """
    canvas = np.array([0.0, 0.0, 1.0, 1.0])
    if rng.random() < 0.5:
        side = rng.uniform(1, SSD_LARGEST_EXPANSION)
        corner = -rng.uniform(0, side - 1, 2)
        canvas = np.concatenate([corner, corner + side])
    scale = rng.uniform(*SSD_SIDES, SSD_TRIALS)
    ratio = rng.uniform(np.maximum(0.5, scale**2), np.minimum(2.0, scale**-2))
    sides = np.stack([scale * np.sqrt(ratio), scale / np.sqrt(ratio)], axis=1)
    corners = rng.uniform(0, 1, (SSD_TRIALS, 2)) * (1 - sides)
    patches = np.concatenate([corners, corners + sides], axis=1) * (canvas[2] - canvas[0]) + canvas[[0, 1, 0, 1]]
    overlaps = iou_matrix(patches, boxes).max(axis=1, initial=0.0)
    for minimum in rng.permutation([*SSD_MINIMUM_IOU, 0.0, WHOLE]):  # an IoU of 0: any patch
        if minimum == WHOLE:
            break
        fits = np.flatnonzero(overlaps >= minimum)
        if len(fits):
            return patches[fits[0]]
    return canvas


# === One mapping =====================================================================================================
def rectangle_view(sample: Sample, width: int, height: int, rectangle: np.ndarray, *, mirrored: bool = False) -> Sample:
    """Shows a rectangle of an image, xyxy in its units, in a `width` x `height` frame."""
    h, w = sample.image.shape[:2]
    x0, y0, x1, y1 = (float(value) for value in rectangle)
    sx, sy = width / ((x1 - x0) * w), height / ((y1 - y0) * h)
    tx, ty = -x0 * w * sx, -y0 * h * sy
    return affine_view(sample, width, height, (-sx, sy, width - tx, ty) if mirrored else (sx, sy, tx, ty))


def affine_view(sample: Sample, width: int, height: int, transform: Transform) -> Sample:
    """Maps an image of one part, and its boxes, into a `width` x `height` frame by `transform` (in pixels).

    Boxes are cut at the frame. A box with less than `MINIMUM_VISIBLE` of its area left becomes an ignored region,
    because part of the object can still be seen.
    """
    sx, sy, tx, ty = transform
    h, w = sample.image.shape[:2]
    scale = np.array([w * sx / width, h * sy / height], "float32")
    shift = np.array([tx / width, ty / height], "float32")
    boxes, visible = _move(sample.boxes, scale, shift)
    regions, region_visible = _move(sample.regions, scale, shift)
    whole = visible >= MINIMUM_VISIBLE
    rest = (visible > 0) & ~whole
    kept_regions = region_visible > 0
    return dataclasses.replace(
        sample,
        image=_warped(sample.image, width, height, transform),
        boxes=boxes[whole],
        labels=sample.labels[whole],
        regions=np.concatenate([regions[kept_regions], boxes[rest]]),
        region_labels=np.concatenate([sample.region_labels[kept_regions], sample.labels[rest]]),
    )


def _warped(image: np.ndarray, width: int, height: int, transform: Transform) -> np.ndarray:
    """The pixels of `affine_view`. An image that shrinks below half is halved first, against aliasing."""
    sx, sy, tx, ty = transform
    while max(abs(sx), abs(sy)) <= 0.5 and min(image.shape[:2]) > 1:
        h, w = image.shape[0] // 2, image.shape[1] // 2  # an odd row or column at the end is less than half a pixel
        image = cv2.resize(image[: 2 * h, : 2 * w], (w, h), interpolation=cv2.INTER_AREA)
        sx, sy = 2 * sx, 2 * sy
    # pixel centres lie at +0.5, and warpAffine counts from the centre of the first pixel
    matrix = np.array([[sx, 0, tx + 0.5 * sx - 0.5], [0, sy, ty + 0.5 * sy - 0.5]])
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=FILL)


def _move(boxes: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moves normalised boxes and cuts them at [0, 1]: the `(N, 4)` boxes, and the `(N,)` share of area that is left."""
    corners = boxes.reshape(-1, 2, 2) * scale + shift
    moved = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    cut = np.clip(moved, 0.0, 1.0)
    area = (moved[:, 2] - moved[:, 0]) * (moved[:, 3] - moved[:, 1])
    left = (cut[:, 2] - cut[:, 0]) * (cut[:, 3] - cut[:, 1])
    return cut, np.divide(left, area, out=np.zeros_like(area), where=area > 0)


# === Colours =========================================================================================================
def jitter_colours(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes hue, saturation and brightness a little by one 3 x 3 matrix, in a tenth of the time of HSV.

    Saturation moves away from the pixel's luma, not from its largest channel as in HSV, so that a more saturated image
    is as bright as before. Greys stay grey in both.
    """
    hue, saturation, brightness = rng.uniform(-1, 1, 3) * (2 * np.pi * HUE, SATURATION, BRIGHTNESS)
    return cv2.transform(image, colour_matrix(hue, 1 + saturation, 1 + brightness))


def colour_matrix(hue: float, saturation: float, brightness: float) -> np.ndarray:
    """Makes the float32 `(3, 3)` matrix that turns the hue (radians, about the grey axis), then scales the distance to
    the grey of the same luma, then everything."""
    turn = np.cos(hue) * np.eye(3) + (1 - np.cos(hue)) / 3 + np.sin(hue) * GREY_AXIS_CROSS
    away_from_grey = saturation * np.eye(3) + (1 - saturation) * np.ones((3, 1)) * LUMA
    return (brightness * away_from_grey @ turn).astype("float32")
