"""One image of the generated data set: a background, clutter, a few objects and their annotations."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from demo import backgrounds, shapes

EMPTY_SHARE = 0.08  # of the images: background and clutter only
GROUP_SHARE = 0.04  # of the images: with a group of more than five small objects of one class
OVERLAP_SHARE = 0.2  # of the objects: may cover a part of an earlier one
BORDER_SHARE = 0.12  # of the objects: may be cut off by the image's border
OBJECT_COUNT_SHARES = (0.15, 0.25, 0.35, 0.25)  # of the other images: with 1, 2, 3 and 4 objects
SMALLEST, LARGEST = 0.14, 0.60  # an object's size, as a share of the image's shorter side
VISIBLE = 0.6  # smallest share of an object's area that later objects leave visible
TRIES = 20  # per object, to find room for it


class SceneObject(NamedTuple):
    """An annotated object: the tight box of its visible pixels, xyxy normalised to [0, 1]."""

    name: str
    box: tuple[float, float, float, float]
    occluded: bool
    truncated: bool
    group_of: bool


@dataclass(eq=False)
class _Placed:
    """An object or a group as it was drawn; areas in pixels."""

    name: str
    group_of: bool
    inside: int = 0  # area inside the image
    whole: int = 0  # area including what the border cuts off


class _Canvas:
    """A picture being drawn.

    Attributes:
        rng: the only source of randomness.
        picture: `(H, W, 3)` float32 RGB.
        owner: `(H, W)`, the index in `placed` of the object that is visible at each pixel, or -1.
        placed: the objects, in the order of drawing.
    """

    def __init__(self, rng: np.random.Generator, picture: np.ndarray):
        self.rng = rng
        self.picture = picture
        self.height, self.width = picture.shape[:2]
        self.owner = np.full((self.height, self.width), -1, np.int16)
        self.placed: list[_Placed] = []

    def blend(self, mask: np.ndarray, colour: np.ndarray, area: tuple[slice, slice] = np.s_[:, :]) -> None:
        alpha = mask[..., None].astype(np.float32) / 255
        self.picture[area] += alpha * (colour - self.picture[area])


def scene(rng: np.random.Generator, photos: list[np.ndarray]) -> tuple[np.ndarray, list[SceneObject]]:
    """Draws one image.

    Args:
        rng: the only source of randomness.
        photos: see `backgrounds.photographs`.

    Returns:
        `(H, W, 3)` uint8 RGB with sides of 240 to 480 pixels, and its objects.
    """
    canvas = _Canvas(rng, backgrounds.background(rng, *_image_size(rng), photos))
    for _ in range(rng.integers(0, 4)):
        canvas.blend(*backgrounds.clutter(rng, canvas.height, canvas.width))
    if rng.random() >= EMPTY_SHARE:
        if rng.random() < GROUP_SHARE / (1 - EMPTY_SHARE):
            _add_group(canvas)
        for _ in range(1 + rng.choice(4, p=OBJECT_COUNT_SHARES)):
            _add_object(canvas)
    picture = canvas.picture + rng.standard_normal(canvas.picture.shape, np.float32) * np.float32(rng.uniform(1, 6))
    if rng.random() < 0.3:
        picture = cv2.GaussianBlur(picture, (3, 3), rng.uniform(0.4, 0.9))
    return np.clip(picture, 0, 255).astype(np.uint8), _annotate(canvas)


def _image_size(rng: np.random.Generator) -> tuple[int, int]:
    """Height and width: the longer side has 320 to 480 pixels, the shorter one at least 240."""
    longer = int(rng.integers(320, 481))
    shorter = max(240, round(longer * (2 / 3, 3 / 4, 4 / 5, 1)[rng.integers(4)]))
    return (shorter, longer) if rng.random() < 0.6 else (longer, shorter)


def _add_object(canvas: _Canvas) -> None:
    """Draws a random object, or nothing if there is no room for it."""
    rng, side = canvas.rng, min(canvas.height, canvas.width)
    name = str(rng.choice(list(shapes.SHAPES)))
    overlapping, border = rng.random() < OVERLAP_SHARE, rng.random() < BORDER_SHARE
    for _ in range(TRIES):
        size = side * np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST)))
        margin = -0.15 * size if border else 0.5 * size
        centre = rng.uniform(margin, (canvas.width - margin, canvas.height - margin))
        if _draw(canvas, _Placed(name, group_of=False), size, centre, overlapping, border):
            return


def _add_group(canvas: _Canvas) -> None:
    """Draws six to nine small objects of one class side by side, as one object with one box."""
    rng = canvas.rng
    group = _Placed(str(rng.choice(list(shapes.SHAPES))), group_of=True)
    size = min(canvas.height, canvas.width) * rng.uniform(0.12, 0.15)
    columns, count = 3, int(rng.integers(6, 10))
    rows = -(-count // columns)
    corner = rng.uniform(0.6, 1, 2) * size
    spare = np.maximum(np.array([canvas.width, canvas.height]) - np.array([columns, rows]) * size - corner, 1)
    corner += rng.uniform(0, 1, 2) * spare
    for cell in range(count):
        centre = corner + (np.array([cell % columns, cell // columns]) + rng.uniform(-0.12, 0.12, 2)) * size
        _draw(canvas, group, size, centre, overlapping=True, border=True)


def _draw(canvas: _Canvas, placed: _Placed, size: float, centre: np.ndarray, overlapping: bool, border: bool) -> bool:
    """Draws one object unless too much of it or of an earlier one would be hidden; returns whether it was drawn."""
    outline, pattern = shapes.SHAPES[placed.name](canvas.rng)
    matrix = shapes.random_matrix(canvas.rng, size)
    origin, (mask_width, mask_height) = shapes.extent(outline, matrix, centre)
    mask = shapes.fill(outline, matrix, centre, origin, (mask_height, mask_width))
    x0, y0 = np.maximum(origin, 0)
    x1, y1 = np.minimum(origin + np.array([mask_width, mask_height]), (canvas.width, canvas.height))
    if x0 >= x1 or y0 >= y1:
        return False
    area = np.s_[y0:y1, x0:x1]  # in the image
    inner = np.s_[y0 - origin[1] : y1 - origin[1], x0 - origin[0] : x1 - origin[0]]  # the same in the mask
    solid = mask >= 128
    whole, inside = int(solid.sum()), int(solid[inner].sum())
    if inside < (0.65 if border else 0.999) * whole:
        return False
    if not placed.group_of and not _leaves_room(canvas, solid[inner], area, overlapping):
        return False
    _paint(canvas, mask[inner], shapes.fill(pattern, matrix, centre, origin, mask.shape)[inner], area)
    if placed not in canvas.placed:
        canvas.placed.append(placed)
    canvas.owner[area][solid[inner]] = canvas.placed.index(placed)
    placed.whole += whole
    placed.inside += inside
    return True


def _leaves_room(canvas: _Canvas, solid: np.ndarray, area: tuple[slice, slice], overlapping: bool) -> bool:
    """Whether earlier objects stay visible enough below `solid`, or untouched if not `overlapping`."""
    below = canvas.owner[area]
    if not overlapping:
        return bool((below < 0).all())
    hidden = np.bincount(below[solid & (below >= 0)], minlength=len(canvas.placed))
    visible = np.bincount(canvas.owner[canvas.owner >= 0], minlength=len(canvas.placed)) - hidden
    return all(
        hidden[k] == 0 or (not placed.group_of and visible[k] >= VISIBLE * placed.whole)
        for k, placed in enumerate(canvas.placed)
    )


def _paint(canvas: _Canvas, mask: np.ndarray, pattern: np.ndarray, area: tuple[slice, slice]) -> None:
    """Fills `mask`, then the part of `pattern` inside it, in two colours that stand out from the background."""
    rng = canvas.rng
    weight = mask.astype(np.float64)[..., None]
    below = (canvas.picture[area] * weight).sum(axis=(0, 1)) / max(weight.sum(), 1)
    first = shapes.random_colour(rng, [below])
    second = shapes.random_colour(rng, [below, first])
    height, width = mask.shape
    slope = np.linspace(-1, 1, width) * rng.uniform(-1, 1) + np.linspace(-1, 1, height)[:, None] * rng.uniform(-1, 1)
    light = np.float32(1 + 0.12 * slope)[..., None]
    canvas.blend(mask, first * light, area)
    canvas.blend(cv2.min(mask, pattern), second * light, area)
    if rng.random() < 0.35:  # an edge in the second colour, for any class
        edge = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
        canvas.blend(cv2.min(mask, edge), second * light, area)


def _annotate(canvas: _Canvas) -> list[SceneObject]:
    """Measures the visible part of each object."""
    objects = []
    for number, placed in enumerate(canvas.placed):
        y, x = np.nonzero(canvas.owner == number)
        if len(y):
            corners = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
            box = tuple(corners / (canvas.width, canvas.height, canvas.width, canvas.height))
            occluded = placed.group_of or len(y) < 0.97 * placed.inside
            truncated = placed.inside < 0.99 * placed.whole
            objects.append(SceneObject(placed.name, box, occluded, truncated, placed.group_of))
    return objects
