"""Pictures and their boxes, changed at random: scale, crop, aspect ratio, mirror, colour, and mosaics of four.

A sample is a picture of any size with normalised boxes; every function gives back a picture of the network's size with
boxes normalised to it. All randomness comes from the generator passed in.
"""

import dataclasses

import cv2
import numpy as np

FILL = (114, 114, 114)  # outside the picture: a grey that no augmentation can tell from a wall
MINIMUM_VISIBLE = 0.3  # a cropped box stays an object while so much of its area is left
SINGLE_SCALES = (0.6, 1.7)  # the picture's side in units of the network's, drawn log-uniformly
MOSAIC_SCALES = (0.8, 2.0)  # the same for a tile, in units of half the network's side
HUE, SATURATION, BRIGHTNESS = 0.02, 0.4, 0.3  # largest relative change of each


@dataclasses.dataclass(frozen=True)
class Sample:
    """A picture with what is in it.

    Attributes:
        image: uint8 `(height, width, 3)`, RGB.
        boxes: float32 `(n, 4)`, xyxy, normalised.
        labels: int32 `(n,)`.
        regions: float32 `(m, 4)`: where a class gives no gradient.
        region_labels: int32 `(m,)`.
        parts: float32 `(p, 4)`: the rectangles of the pictures that this one is made of; together they are all of it.
        verified: uint8 `(p, classes)`, 1 where the background of a part is known not to be that class; None where
            nobody wants to know.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    regions: np.ndarray
    region_labels: np.ndarray
    parts: np.ndarray = dataclasses.field(default_factory=lambda: np.array([[0, 0, 1, 1]], "float32"))
    verified: np.ndarray | None = None


def augment(samples: list[Sample], side: int, rng: np.random.Generator) -> Sample:
    """One training picture from one sample, or a mosaic from four."""
    if len(samples) == 1:
        sample = random_view(samples[0], side, side, SINGLE_SCALES, side, rng)
    else:
        sample = mosaic(samples, side, rng)
    return dataclasses.replace(sample, image=jitter_colours(sample.image, rng))


def mosaic(samples: list[Sample], side: int, rng: np.random.Generator) -> Sample:
    """Four pictures around a random centre (Bochkovskiy et al. 2020, section 3.3)."""
    image = np.empty((side, side, 3), "uint8")
    cx, cy = rng.integers(int(0.3 * side), int(0.7 * side) + 1, 2)
    parts = []
    for index, sample in enumerate(samples):
        x0, x1 = (0, cx) if index % 2 == 0 else (cx, side)
        y0, y1 = (0, cy) if index < 2 else (cy, side)
        tile = random_view(sample, x1 - x0, y1 - y0, MOSAIC_SCALES, side / 2, rng)
        image[y0:y1, x0:x1] = tile.image
        scale = np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0], "float32") / side
        shift = np.array([x0, y0, x0, y0], "float32") / side
        parts.append((tile.boxes * scale + shift, tile.labels, tile.regions * scale + shift, tile.region_labels))
    return Sample(image, *(np.concatenate(column) for column in zip(*parts, strict=True)))


def random_view(
    sample: Sample, width: int, height: int, scales: tuple[float, float], unit: float, rng: np.random.Generator
) -> Sample:
    """A random part of a picture, or the whole picture on grey, in a `width` x `height` frame.

    The picture is scaled to a side of `unit` pixels times a number from `scales`, its aspect ratio somewhere between
    its own and a square's (which is what inference shows), shifted, and mirrored in half of the cases.
    """
    h, w = sample.image.shape[:2]
    fit = unit / max(h, w)
    towards_square = rng.random()
    scale = np.exp(rng.uniform(np.log(scales[0]), np.log(scales[1])))
    sx = scale * fit * (max(h, w) / w) ** towards_square
    sy = scale * fit * (max(h, w) / h) ** towards_square
    tx = (width - w * sx) * rng.random()
    ty = (height - h * sy) * rng.random()
    if rng.random() < 0.5:
        sx, tx = -sx, tx + w * sx
    return affine_view(sample, width, height, (sx, sy, tx, ty))


def affine_view(sample: Sample, width: int, height: int, transform: tuple[float, float, float, float]) -> Sample:
    """Maps a picture and its boxes by x' = sx x + tx, y' = sy y + ty (pixels) into a `width` x `height` frame.

    Boxes are cut at the frame. Of those cut to less than `MINIMUM_VISIBLE` of their area, the rest becomes a region
    that gives no gradient: part of the object is still to be seen.
    """
    sx, sy, tx, ty = transform
    # pixel centres lie at +0.5, and warpAffine counts from the centre of the first pixel
    matrix = np.array([[sx, 0, tx + 0.5 * sx - 0.5], [0, sy, ty + 0.5 * sy - 0.5]])
    image = cv2.warpAffine(sample.image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=FILL)
    h, w = sample.image.shape[:2]
    scale = np.array([w * sx / width, h * sy / height], "float32")
    shift = np.array([tx / width, ty / height], "float32")
    boxes, visible = _move(sample.boxes, scale, shift)
    regions, region_visible = _move(sample.regions, scale, shift)
    whole = visible >= MINIMUM_VISIBLE
    rest = (visible > 0) & ~whole
    kept_regions = region_visible > 0
    return Sample(
        image,
        boxes[whole],
        sample.labels[whole],
        np.concatenate([regions[kept_regions], boxes[rest]]),
        np.concatenate([sample.region_labels[kept_regions], sample.labels[rest]]),
    )


def _move(boxes: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moves normalised boxes and cuts them at [0, 1]: `(n, 4)` boxes and the `(n,)` share of area that is left."""
    corners = boxes.reshape(-1, 2, 2) * scale + shift
    moved = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    cut = np.clip(moved, 0.0, 1.0)
    area = (moved[:, 2] - moved[:, 0]) * (moved[:, 3] - moved[:, 1])
    left = (cut[:, 2] - cut[:, 0]) * (cut[:, 3] - cut[:, 1])
    return cut, np.divide(left, area, out=np.zeros_like(area), where=area > 0)


def jitter_colours(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes hue, saturation and brightness a little."""
    gains = 1 + rng.uniform(-1, 1, 3) * (HUE, SATURATION, BRIGHTNESS)
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    steps = np.arange(256)
    hue = cv2.LUT(hue, ((steps + 180 * (gains[0] - 1)) % 180).astype("uint8"))
    saturation = cv2.LUT(saturation, np.clip(steps * gains[1], 0, 255).astype("uint8"))
    value = cv2.LUT(value, np.clip(steps * gains[2], 0, 255).astype("uint8"))
    return cv2.cvtColor(cv2.merge((hue, saturation, value)), cv2.COLOR_HSV2RGB)
