"""Parts of pictures: zoomed, shifted, stretched and mirrored at random, or cut out as SSD does.

A view is always one mapping x' = sx x + tx, y' = sy y + ty of the picture's pixels, so that pixels are interpolated
once, and those that are not shown cost nothing.
"""

import dataclasses
import math

import cv2
import numpy as np

from oid.boxes.suppression import iou_matrix
from oid.images.letterbox import GREY, letterbox_frame
from training.samples import Sample, assembled

FILL = GREY  # outside the picture
MINIMUM_VISIBLE = 0.3  # a cropped box stays an object while so much of its area is left
SSD_TRIALS = 50  # patches of which one must overlap enough
SSD_SIDES = (0.3, 1.0)  # of the released code; the paper says 0.1, which leaves little of a picture of 300 pixels
SSD_MINIMUM_IOU = (0.1, 0.3, 0.5, 0.7, 0.9)
WHOLE = -1.0  # among the minimum IoUs: no patch
SSD_LARGEST_EXPANSION = 4.0  # of each side
Transform = tuple[float, float, float, float]  # sx, sy, tx, ty


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
    """A random part of a picture, or the whole picture on grey, in a `width` x `height` frame.

    The picture is scaled to a longer side of `unit` pixels times a number from `scales` (drawn log-uniformly), shifted,
    and mirrored in half of the cases. Its aspect ratio becomes something between its own and a square's (which is what
    a warp shows at inference), unless it is to `keep_aspect`.
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


def ssd_view(sample: Sample, width: int, height: int, rng: np.random.Generator, *, keep_aspect: bool = False) -> Sample:
    """A patch of a picture, as SSD draws it, stretched to a `width` x `height` frame (Liu et al. 2016, 2.2 and 3.6).

    In half of the cases the picture is first put on a grey canvas of up to four times its side. The patch is mirrored
    in half of the cases. To `keep_aspect` it is fitted into the frame, with grey beside it, instead of stretched.
    """
    patch = ssd_patch(sample.boxes, rng)
    mirrored = rng.random() < 0.5
    if not keep_aspect:
        return rectangle_view(sample, width, height, patch, mirrored=mirrored)
    h, w = sample.image.shape[:2]
    frame = letterbox_frame((patch[3] - patch[1]) * h, (patch[2] - patch[0]) * w, height, width)
    fitted = rectangle_view(sample, frame[2] - frame[0], frame[3] - frame[1], patch, mirrored=mirrored)
    view = assembled(np.full((height, width, 3), FILL, "uint8"), [(fitted, frame)])
    return dataclasses.replace(view, parts=sample.parts)


def ssd_patch(boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The rectangle that SSD shows of a picture, xyxy in units of the picture; it can reach beyond [0, 1].

    One of seven ways, all alike likely: the whole canvas, a patch whose IoU with some box is at least .1, .3, .5, .7 or
    .9, or any patch; another way where 50 patches do not overlap enough. A patch has sides of .3 to 1 of the canvas
    (the root of its share of the area) and an aspect ratio of 1/2 to 2 in its units.
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


def rectangle_view(sample: Sample, width: int, height: int, rectangle: np.ndarray, *, mirrored: bool = False) -> Sample:
    """Shows a rectangle of a picture, xyxy in its units, in a `width` x `height` frame."""
    h, w = sample.image.shape[:2]
    x0, y0, x1, y1 = (float(value) for value in rectangle)
    sx, sy = width / ((x1 - x0) * w), height / ((y1 - y0) * h)
    tx, ty = -x0 * w * sx, -y0 * h * sy
    return affine_view(sample, width, height, (-sx, sy, width - tx, ty) if mirrored else (sx, sy, tx, ty))


def affine_view(sample: Sample, width: int, height: int, transform: Transform) -> Sample:
    """Maps a picture of one part and its boxes by x' = sx x + tx, y' = sy y + ty (pixels) into a `width` x `height`
    frame.

    Boxes are cut at the frame. Of those cut to less than `MINIMUM_VISIBLE` of their area, the rest becomes a region
    that gives no gradient: part of the object is still to be seen.
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
    """The pixels of `affine_view`; what shrinks to less than half is halved first, so that nothing flickers."""
    sx, sy, tx, ty = transform
    while max(abs(sx), abs(sy)) <= 0.5 and min(image.shape[:2]) > 1:
        h, w = image.shape[0] // 2, image.shape[1] // 2  # an odd row or column at the end is less than a pixel's half
        image = cv2.resize(image[: 2 * h, : 2 * w], (w, h), interpolation=cv2.INTER_AREA)
        sx, sy = 2 * sx, 2 * sy
    # pixel centres lie at +0.5, and warpAffine counts from the centre of the first pixel
    matrix = np.array([[sx, 0, tx + 0.5 * sx - 0.5], [0, sy, ty + 0.5 * sy - 0.5]])
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=FILL)


def _move(boxes: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moves normalised boxes and cuts them at [0, 1]: `(n, 4)` boxes and the `(n,)` share of area that is left."""
    corners = boxes.reshape(-1, 2, 2) * scale + shift
    moved = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    cut = np.clip(moved, 0.0, 1.0)
    area = (moved[:, 2] - moved[:, 0]) * (moved[:, 3] - moved[:, 1])
    left = (cut[:, 2] - cut[:, 0]) * (cut[:, 3] - cut[:, 1])
    return cut, np.divide(left, area, out=np.zeros_like(area), where=area > 0)
