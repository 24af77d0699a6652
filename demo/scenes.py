"""One image of the generated data set: a background, clutter, a few objects, and where each of them is visible."""

from dataclasses import dataclass

import cv2
import numpy as np

from demo import backgrounds, shapes

EMPTY_SHARE = 0.08  # of the images: background and clutter only
GROUP_SHARE = 0.04  # of the images: with a group of more than five small objects of one class
OVERLAP_SHARE = 0.2  # of the objects: may cover a part of an earlier one
BORDER_SHARE = 0.12  # of the objects: may be cut off by the image's border
OBJECT_COUNTS = (1, 2, 3, 4)
OBJECT_COUNT_SHARES = (0.15, 0.25, 0.35, 0.25)
SMALLEST, LARGEST = 0.14, 0.60  # an object's size, as a share of the image's shorter side
VISIBLE = 0.6  # of an object's area, at least, after all others are drawn


@dataclass(frozen=True)
class SceneObject:
    """An object as it is annotated: a tight box around its visible pixels, xyxy normalised to [0, 1]."""

    name: str
    box: tuple[float, float, float, float]
    occluded: bool
    truncated: bool
    group_of: bool


@dataclass(eq=False)
class _Placed:
    """What is known of an object (or of a group) when it is drawn; areas in pixels."""

    name: str
    group_of: bool
    inside: int = 0  # drawn inside of the image
    whole: int = 0  # the same had the image no border


class _Canvas:
    """The picture (H, W, 3) float32, and for each pixel the number of the object that shows there, -1 for none."""

    def __init__(self, picture: np.ndarray):
        self.picture = picture
        self.height, self.width = picture.shape[:2]
        self.owner = np.full((self.height, self.width), -1, np.int16)
        self.placed: list[_Placed] = []

    def blend(self, mask: np.ndarray, colour: np.ndarray, y: slice, x: slice) -> None:
        alpha = mask[..., None].astype(np.float32) / 255
        self.picture[y, x] += alpha * (colour - self.picture[y, x])


def scene(rng: np.random.Generator, photos: list[np.ndarray]) -> tuple[np.ndarray, list[SceneObject]]:
    """Makes one image.

    Args:
        rng: the only source of chance.
        photos: see `backgrounds.photographs`.

    Returns:
        (H, W, 3) uint8 RGB, sides of 240 to 480 pixels, and the objects in it.
    """
    height, width = _image_size(rng)
    canvas = _Canvas(backgrounds.background(rng, height, width, photos))
    _add_clutter(rng, canvas, int(rng.integers(0, 4)))
    if rng.random() >= EMPTY_SHARE:
        if rng.random() < GROUP_SHARE / (1 - EMPTY_SHARE):
            _add_group(rng, canvas)
        for _ in range(rng.choice(OBJECT_COUNTS, p=OBJECT_COUNT_SHARES)):
            _add_object(rng, canvas)
    picture = canvas.picture + rng.standard_normal(canvas.picture.shape, np.float32) * np.float32(rng.uniform(1, 6))
    if rng.random() < 0.3:
        picture = cv2.GaussianBlur(picture, (3, 3), rng.uniform(0.4, 0.9))
    return np.clip(picture, 0, 255).astype(np.uint8), _annotate(canvas)


def _image_size(rng: np.random.Generator) -> tuple[int, int]:
    """Height and width: landscape, portrait and square, the longer side 320 to 480 pixels, the shorter at least 240."""
    longer = int(rng.integers(320, 481))
    shorter = max(240, round(longer * (2 / 3, 3 / 4, 4 / 5, 1)[rng.integers(4)]))
    return (shorter, longer) if rng.random() < 0.6 else (longer, shorter)


def _add_clutter(rng: np.random.Generator, canvas: _Canvas, count: int) -> None:
    everywhere = slice(None)
    for _ in range(count):
        mask, colour = backgrounds.clutter(rng, canvas.height, canvas.width)
        canvas.blend(mask, colour, everywhere, everywhere)


def _add_object(rng: np.random.Generator, canvas: _Canvas) -> None:
    """Draws a random object where there is room; after 20 vain tries, none."""
    name = tuple(shapes.SHAPES)[rng.integers(len(shapes.SHAPES))]
    overlapping, border = rng.random() < OVERLAP_SHARE, rng.random() < BORDER_SHARE
    for _ in range(20):
        side = min(canvas.height, canvas.width)
        size = side * np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST)))
        margin = -0.15 * size if border else 0.5 * size
        centre = np.array([_between(rng, margin, canvas.width), _between(rng, margin, canvas.height)])
        if _draw(rng, canvas, _Placed(name, group_of=False), size, centre, overlapping, border):
            return


def _between(rng: np.random.Generator, margin: float, length: int) -> float:
    return rng.uniform(margin, length - margin) if margin < length - margin else length / 2


def _add_group(rng: np.random.Generator, canvas: _Canvas) -> None:
    """Draws six to nine small objects of one class side by side; they share one number, hence one box."""
    group = _Placed(tuple(shapes.SHAPES)[rng.integers(len(shapes.SHAPES))], group_of=True)
    size = min(canvas.height, canvas.width) * rng.uniform(0.12, 0.15)
    columns, count = 3, int(rng.integers(6, 10))
    rows = -(-count // columns)
    corner = rng.uniform(0.6, 1, 2) * size
    spare = np.maximum(np.array([canvas.width, canvas.height]) - np.array([columns, rows]) * size - corner, 1)
    corner += rng.uniform(0, 1, 2) * spare
    for cell in range(count):
        centre = corner + (np.array([cell % columns, cell // columns]) + rng.uniform(-0.12, 0.12, 2)) * size
        _draw(rng, canvas, group, size, centre, overlapping=True, border=True)


def _draw(
    rng: np.random.Generator,
    canvas: _Canvas,
    placed: _Placed,
    size: float,
    centre: np.ndarray,
    overlapping: bool,
    border: bool,
) -> bool:
    """Draws one object unless it hides too much of another or of itself; says whether it did."""
    outline, pattern = shapes.SHAPES[placed.name](rng)
    matrix = shapes.random_matrix(rng, size)
    origin, (mask_width, mask_height) = shapes.extent(outline, matrix, centre)
    mask = shapes.fill(outline, matrix, centre, origin, (mask_height, mask_width))
    x0, y0 = np.maximum(origin, 0)
    x1, y1 = np.minimum(origin + np.array([mask_width, mask_height]), (canvas.width, canvas.height))
    if x0 >= x1 or y0 >= y1:
        return False
    y, x = slice(y0, y1), slice(x0, x1)
    inner = slice(y0 - origin[1], y1 - origin[1]), slice(x0 - origin[0], x1 - origin[0])
    solid = mask >= 128
    whole, inside = int(solid.sum()), int(solid[inner].sum())
    if inside < (0.65 if border else 0.999) * whole:
        return False
    number = canvas.placed.index(placed) if placed in canvas.placed else len(canvas.placed)
    if not placed.group_of and not _leaves_room(canvas, solid[inner], y, x, overlapping):
        return False
    _paint(rng, canvas, mask[inner], shapes.fill(pattern, matrix, centre, origin, mask.shape)[inner], y, x)
    canvas.owner[y, x][solid[inner]] = number
    if number == len(canvas.placed):
        canvas.placed.append(placed)
    placed.whole += whole
    placed.inside += inside
    return True


def _leaves_room(canvas: _Canvas, solid: np.ndarray, y: slice, x: slice, overlapping: bool) -> bool:
    """Whether every earlier object stays visible enough once `solid` is drawn, untouched unless `overlapping`."""
    below = canvas.owner[y, x]
    if not overlapping:
        return bool((below < 0).all())
    hidden = np.bincount(below[solid & (below >= 0)], minlength=len(canvas.placed))
    visible = np.bincount(canvas.owner[canvas.owner >= 0], minlength=len(canvas.placed)) - hidden
    return all(
        hidden[k] == 0 or (not placed.group_of and visible[k] >= VISIBLE * placed.whole)
        for k, placed in enumerate(canvas.placed)
    )


def _paint(
    rng: np.random.Generator, canvas: _Canvas, mask: np.ndarray, pattern: np.ndarray, y: slice, x: slice
) -> None:
    """Fills `mask`, then the part of `pattern` inside of it, in two colours unlike each other and what lies below."""
    weight = mask.astype(np.float64)[..., None]
    below = (canvas.picture[y, x] * weight).sum(axis=(0, 1)) / max(weight.sum(), 1)
    first = shapes.random_colour(rng, [below])
    second = shapes.random_colour(rng, [below, first])
    height, width = mask.shape
    slope = np.linspace(-1, 1, width) * rng.uniform(-1, 1) + np.linspace(-1, 1, height)[:, None] * rng.uniform(-1, 1)
    light = np.float32(1 + 0.12 * slope)[..., None]
    canvas.blend(mask, first * light, y, x)
    canvas.blend(cv2.min(mask, pattern), second * light, y, x)
    if rng.random() < 0.35:  # an edge in the second colour, for any class
        edge = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
        canvas.blend(cv2.min(mask, edge), second * light, y, x)


def _annotate(canvas: _Canvas) -> list[SceneObject]:
    """Measures what is visible of each object."""
    objects = []
    for number, placed in enumerate(canvas.placed):
        rows, columns = np.nonzero(canvas.owner == number)
        if len(rows) == 0:
            continue
        box = (
            columns.min() / canvas.width,
            rows.min() / canvas.height,
            (columns.max() + 1) / canvas.width,
            (rows.max() + 1) / canvas.height,
        )
        occluded = placed.group_of or len(rows) < 0.97 * placed.inside
        truncated = placed.inside < 0.99 * placed.whole
        objects.append(SceneObject(placed.name, box, occluded, truncated, placed.group_of))
    return objects
