"""The objects of the generated data set: ten classes that differ in outline or pattern, never in colour.

A shape is two lists of closed contours, each `(P, 2)` with x and y in [-1, 1]: `outline`, filled by the even-odd rule
(an inner contour cuts a hole), and `pattern`, the part filled with the second colour.
"""

from collections.abc import Callable

import cv2
import numpy as np

Contours = list[np.ndarray]


def _circle(radius: float, points: int = 64) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


SQUARE = _rectangle(-0.9, -0.9, 0.9, 0.9)


def frame(rng: np.random.Generator) -> tuple[Contours, Contours]:
    inner = rng.uniform(0.45, 0.6)
    return [SQUARE, _rectangle(-inner, -inner, inner, inner)], []


def star(rng: np.random.Generator) -> tuple[Contours, Contours]:
    radius = np.where(np.arange(10) % 2, rng.uniform(0.38, 0.5), 1.1)
    angle = np.arange(10) * np.pi / 5 - np.pi / 2
    return [np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)], []


def cross(rng: np.random.Generator) -> tuple[Contours, Contours]:
    a = rng.uniform(0.25, 0.36)
    arm = np.array([(-a, -1), (a, -1), (a, -a)])
    quarter_turn = np.array([[0, 1], [-1, 0]])
    return [np.concatenate([arm @ np.linalg.matrix_power(quarter_turn, turns) for turns in range(4)])], []


def heart(rng: np.random.Generator) -> tuple[Contours, Contours]:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [np.stack([np.sin(t) ** 3, -(y + 2.5) / 14.5], axis=1)], []


def striped_disc(rng: np.random.Generator) -> tuple[Contours, Contours]:
    width = 2 / rng.integers(5, 8)  # 5 to 7 stripes of both colours together
    starts = np.arange(-1, 1, 2 * width)
    return [_circle(1)], [_rectangle(x, -1, x + width, 1) for x in starts]


def chequered_square(rng: np.random.Generator) -> tuple[Contours, Contours]:
    cells = int(rng.integers(3, 6))
    step = 1.8 / cells
    cell = [(x, y) for x in range(cells) for y in range(cells) if (x + y) % 2 == 0]
    corners = [(-0.9 + x * step, -0.9 + y * step) for x, y in cell]
    return [SQUARE], [_rectangle(x, y, x + step, y + step) for x, y in corners]


SHAPES: dict[str, Callable[[np.random.Generator], tuple[Contours, Contours]]] = {
    "Disc": lambda rng: ([_circle(1)], []),
    "Ring": lambda rng: ([_circle(1), _circle(rng.uniform(0.5, 0.65))], []),
    "Square": lambda rng: ([SQUARE], []),
    "Frame": frame,
    "Triangle": lambda rng: ([np.array([[rng.uniform(-0.25, 0.25), -1.0], [1, 0.9], [-1, 0.9]])], []),
    "Star": star,
    "Cross": cross,
    "Heart": heart,
    "Striped disc": striped_disc,
    "Chequered square": chequered_square,
}


def random_matrix(rng: np.random.Generator, size: float) -> np.ndarray:
    """The `(2, 2)` matrix from shape to pixels: `size` wide, aspect ratio 0.6 to 1.6, turned by up to 25 degrees."""
    stretch = np.exp(rng.uniform(np.log(0.6), np.log(1.6))) ** 0.5
    turn = np.deg2rad(rng.uniform(-25, 25))
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return rotation @ np.diag([stretch, 1 / stretch]) * size / 2


def fill(contours: Contours, matrix: np.ndarray, centre: np.ndarray, origin: np.ndarray, size: tuple) -> np.ndarray:
    """Draws contours into an anti-aliased mask.

    Args:
        contours: in the shape's coordinates.
        matrix: `(2, 2)`, from shape to pixels.
        centre: `(2,)`, x and y of the shape's origin in the image, in pixels.
        origin: `(2,)`, x and y of the mask's upper left corner in the image, in pixels.
        size: `(height, width)` of the mask.

    Returns:
        `(height, width)` uint8, 255 inside.
    """
    mask = np.zeros(size, np.uint8)
    points = [np.round((c @ matrix.T + centre - origin - 0.5) * 16).astype(np.int32) for c in contours]
    if points:
        cv2.fillPoly(mask, points, 255, lineType=cv2.LINE_AA, shift=4)
    return mask


def extent(contours: Contours, matrix: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The upper left pixel `(2,)` and the size `(2,)`, as x and y, of an area that holds the contours."""
    points = np.concatenate(contours) @ matrix.T + centre
    low = np.floor(points.min(axis=0)).astype(int) - 2
    return low, np.ceil(points.max(axis=0)).astype(int) + 2 - low


def random_colour(rng: np.random.Generator, avoid: list[np.ndarray], distance: float = 40.0) -> np.ndarray:
    """A random RGB colour `(3,)` float32 in [0, 255] that differs clearly from the colours in `avoid`.

    Its distance in CIE Lab is at least `distance`, and at least 15 in lightness, so that colours never differ in hue
    only. If none of 40 random colours is far enough, the most distant is returned.
    """
    hue, saturation, value = rng.uniform(0, 360, 40), rng.uniform(0.2, 1, 40), rng.uniform(0.25, 1, 40)
    hsv = np.stack([hue, saturation, value], axis=1).astype(np.float32)
    candidates = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)
    if not avoid:
        return candidates[0, 0] * 255
    lab = cv2.cvtColor(candidates, cv2.COLOR_RGB2LAB)[0]
    others = cv2.cvtColor(np.float32(avoid)[None] / 255, cv2.COLOR_RGB2LAB)[0]
    difference = lab[:, None] - others[None]  # (40, A, 3)
    far = np.minimum(np.linalg.norm(difference, axis=2), np.abs(difference[..., 0]) * distance / 15).min(axis=1)
    clear = np.flatnonzero(far >= distance)
    return candidates[0, clear[0] if len(clear) else int(far.argmax())] * 255
