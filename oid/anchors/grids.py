"""Anchors: the boxes that the network's outputs are relative to.

A run's `settings.json` holds the `AnchorGrids`, from which training and inference build the anchors.
"""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np

from oid.files import InputError

NAMED_SETS = ("square", "official")
SMALL_IMAGE_SIZE, SMALL_SCALES = 192, 4  # of the network for small data or few cores
PUBLISHED_SCALES = 6
SIZE_IN_CELLS = 4.0  # side of the one square anchor of a cell
SQRT2, SQRT3 = 2**0.5, 3**0.5
LARGEST_ANCHOR = 10.0  # images; a larger side in a file is in pixels, or a slip

RETINANET_SCALES = tuple(float(np.float32(2.0 ** (k / 3))) for k in range(3))  # three sizes and three shapes
RETINANET_RATIOS = (0.5, 1.0, 2.0)  # height / width
RETINANET_SIZE = 4  # strides: 32 pixels on the finest level

# By image size: the released sizes as shares of the image, and the distances of the centres in pixels. They were typed
# by hand: at 320 and 800 pixels some centres are a little outside their cells.
RELEASED_PATTERNS = {
    320: ((0.08, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05), (8, 16, 32, 64, 107, 320)),
    512: ((0.06, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05), (8, 16, 32, 64, 128, 256)),
    704: ((0.04, 0.11, 0.23, 0.39, 0.58, 0.80, 1.05), (8, 16, 32, 64, 117, 176)),
    800: ((0.04, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05), (8, 16, 32, 62, 115, 160)),
}


# === Maps =============================================================================================================
def feature_map_sides(image_size: int, scales: int) -> list[int]:
    """Sides of M2Det's maps, largest first: an eighth of the image, then halved, each rounded up.

    The last of six maps, as published, comes from a 3x3 convolution without padding: it has 2 cells less than the one
    before.

    Raises:
        InputError: the image is too small for this number of maps.
    """
    sides = _halved_sides(image_size, scales)
    if scales == PUBLISHED_SCALES:
        sides[-1] = sides[-2] - 2
    return _checked_sides(sides, image_size, smallest_image(scales))


def pyramid_sides(image_size: int, scales: int) -> list[int]:
    """Sides of RetinaNet's P3, P4, ...: as `feature_map_sides`, but without an exception for six maps."""
    return _checked_sides(_halved_sides(image_size, scales), image_size, 2 ** (scales + 1) + 1)


def _halved_sides(image_size: int, scales: int) -> list[int]:
    return [-(-image_size // 2**level) for level in range(3, 3 + scales)]


def _checked_sides(sides: list[int], image_size: int, least: int) -> list[int]:
    if sides[-1] < 1 or (len(sides) > 1 and sides[-2] == 1):
        raise InputError(f"{len(sides)} scales do not fit {image_size} pixels: take at least {least}, or fewer scales")
    return sides


def smallest_image(scales: int) -> int:
    """The smallest multiple of 16 pixels for `scales` maps."""
    cells = 2 ** (scales - 2) + 1 if scales > 1 else 1  # the last map but one has 2 cells
    if scales == PUBLISHED_SCALES:
        cells = 33  # the last map but one has 3
    return -(-(cells * 8 - 7) // 16) * 16


def scales_that_fit(image_size: int, most: int) -> int:
    """The largest number of M2Det's maps, from 1 to `most`, for an image."""
    return max((scales for scales in range(1, most + 1) if smallest_image(scales) <= image_size), default=1)


# === Grids ===========================================================================================================
Sizes = tuple[tuple[tuple[float, float], ...], ...]  # (width, height) pairs for each map


@dataclasses.dataclass(frozen=True)
class AnchorGrids:
    """The anchors of a network on squares: on each map a grid of cells, in each cell the same sizes.

    Attributes:
        sides: of each map in cells, largest first.
        steps: between the centres of each map, normalised.
        sizes: (width, height) of the anchors of a cell, for each map, normalised.
        clip: whether centres and sizes are cut to 1, as the released M2Det does.
    """

    sides: tuple[int, ...]
    steps: tuple[float, ...]
    sizes: Sizes
    clip: bool = False

    @property
    def per_cell(self) -> int:
        """Anchors of each cell; the same on every map."""
        return len(self.sizes[0])

    @property
    def per_map(self) -> list[int]:
        """Anchors of each map."""
        return [side * side * len(sizes) for side, sizes in zip(self.sides, self.sizes, strict=True)]

    def boxes(self) -> np.ndarray:
        """Builds the anchors; the centre of a cell in column j is (j + 0.5) * step.

        Returns:
            float32 `(anchors, 4)`: xyxy, normalised, not clipped as a box. Order: map (largest first), row, column,
            size.
        """
        maps = []
        for side, step, sizes in zip(self.sides, self.steps, self.sizes, strict=True):
            centres = (np.arange(side) + 0.5) * step
            y, x = np.meshgrid(centres, centres, indexing="ij")
            x, y = x[..., None], y[..., None]  # (side, side, 1)
            w, h = np.asarray(sizes, "float64").T  # (sizes,)
            if self.clip:  # the released rule: centre and size are cut, not the corners
                x, y, w, h = (np.clip(value, 0.0, 1.0) for value in (x, y, w, h))
            boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=-1)  # (side, side, sizes, 4)
            maps.append(boxes.reshape(-1, 4))
        return np.concatenate(maps).astype("float32")

    def cell_sides(self) -> np.ndarray:
        """The side of each anchor's cell, normalised: float32 `(anchors,)`."""
        return np.repeat(1.0 / np.asarray(self.sides), self.per_map).astype("float32")


def m2det_anchors(image_size: int, scales: int, anchors: str = "square") -> AnchorGrids:
    """The anchors of M2Det.

    "square" is one anchor per cell, four cells wide. "official" is the published set, six per cell. With s and t the
    sizes of this map and of the next: squares of s and of the geometric mean of s and t, and boxes of the area of the
    first square with aspect ratios of 2, 1/2, 3 and 1/3. At 320, 512, 704 and 800 pixels with six scales these are the
    released numbers. Elsewhere the sizes run from 0.08 and 0.15 of the image to 1.05 in equal steps.

    Args:
        image_size: side of the network's input in pixels.
        scales: number of maps.
        anchors: "square", "official", or a JSON file with `{"sizes": [[[width, height], ...], ...]}`: the anchors of a
            cell for each map, finest first, normalised to the network's square.

    Raises:
        InputError: the image is too small for this number of maps, or the file does not exist or does not fit.
    """
    sides = feature_map_sides(image_size, scales)
    if anchors != "official":
        return _square_or_from_file(anchors, sides)
    if image_size in RELEASED_PATTERNS and scales == PUBLISHED_SCALES:
        shares, pixels = RELEASED_PATTERNS[image_size]
        steps = [step / image_size for step in pixels]
    else:
        shares = [0.08, *(np.linspace(0.15, 1.05, scales) if scales > 1 else [1.05])]
        steps = [1.0 / side for side in sides]
    sizes = []
    for share, following in itertools.pairwise(shares):
        s, t = (round(float(value) * image_size, 2) / image_size for value in (share, following))
        between = (s * t) ** 0.5
        pairs = [(s, s), (between, between)]
        for root in (SQRT2, SQRT3):
            pairs += [(s * root, s / root), (s / root, s * root)]
        sizes.append(tuple(pairs))
    return AnchorGrids(tuple(sides), tuple(steps), tuple(sizes), clip=True)


def retinanet_anchors(image_size: int, scales: int, anchors: str = "square") -> AnchorGrids:
    """As `m2det_anchors` for RetinaNet's levels from P3 (stride 8) on; "official" is `retinanet_sizes`."""
    sides = pyramid_sides(image_size, scales)
    if anchors != "official":
        return _square_or_from_file(anchors, sides)
    steps = tuple(8 * 2**k / image_size for k in range(scales))
    sizes = tuple(tuple((w / image_size, h / image_size) for w, h in level) for level in retinanet_sizes(scales))
    return AnchorGrids(tuple(sides), steps, sizes)


def grids_of_sizes(sizes: Sizes, sides: list[int]) -> AnchorGrids:
    """Anchors of these sizes, map by map, around the middles of the cells."""
    return AnchorGrids(tuple(sides), tuple(1.0 / side for side in sides), sizes)


def _square_or_from_file(anchors: str, sides: list[int]) -> AnchorGrids:
    """Makes "square", or anchors of the sizes of a file; see `m2det_anchors`."""
    if anchors == "square":
        return grids_of_sizes(tuple(((SIZE_IN_CELLS / side, SIZE_IN_CELLS / side),) for side in sides), sides)
    if not Path(anchors).is_file():
        raise InputError(f"anchors {anchors} are neither square nor official, nor a file: a02 makes such files")
    try:
        sizes = np.array(json.loads(Path(anchors).read_text(encoding="utf-8"))["sizes"], "float64")
    except (ValueError, KeyError, TypeError):
        sizes = np.zeros(0)
    if sizes.ndim != 3 or sizes.shape[2] != 2 or not sizes.size:
        wanted = '{"sizes": [[[width, height], ...], ...]}, as many pairs for each map'
        raise InputError(f"{anchors} does not hold {wanted}: a02 makes such files")
    if len(sizes) != len(sides):
        raise InputError(f"{anchors} has sizes for {len(sizes)} maps, not for {len(sides)}: take {len(sizes)} scales")
    for side in sizes[~((sizes > 0) & (sizes <= LARGEST_ANCHOR))][:1]:
        raise InputError(f"{anchors} has a side of {side:g}: sides are shares of the image, above 0")
    return grids_of_sizes(tuple(tuple(map(tuple, level)) for level in sizes.tolist()), sides)


def retinanet_sizes(scales: int) -> list[list[tuple[float, float]]]:
    """(width, height) in pixels of the nine anchors of each level (Lin et al. 2017, section 4): three shapes of three
    areas each, shape by shape, as in keras-retinanet."""
    levels = []
    for k in range(scales):
        areas = [(RETINANET_SIZE * 8 * 2**k * scale) ** 2 for scale in RETINANET_SCALES]
        levels.append([((a / ratio) ** 0.5, (a / ratio) ** 0.5 * ratio) for ratio in RETINANET_RATIOS for a in areas])
    return levels


# === Anchors ==========================================================================================================
def anchors_of_picture(scales: int, height: int, width: int, library=np):
    """RetinaNet's nine anchors per cell on an image of any shape.

    Args:
        scales: levels of the pyramid.
        height, width: of the image in pixels; with `keras.ops` also scalar tensors.
        library: NumPy or `keras.ops`, whose array is returned.

    Returns:
        float32 `(anchors, 4)`: xyxy in pixels, not clipped, in the order of `AnchorGrids.boxes`. Centres in the last
        row or column may lie outside of the image.
    """
    levels = []
    for k, sizes in enumerate(retinanet_sizes(scales)):
        stride = 8 * 2**k
        # rounded up; not -(-side // stride), because ONNX divides towards zero
        cells = [library.arange((side + stride - 1) // stride, dtype="float32") for side in (height, width)]
        y, x = library.meshgrid(*((cell + np.float32(0.5)) * stride for cell in cells), indexing="ij")
        half = np.asarray(sizes) / 2
        base = np.concatenate([-half, half], axis=1).astype("float32")  # (9, 4), around 0
        centres = library.stack([x, y, x, y], axis=-1)[:, :, None]  # (rows, columns, 1, 4)
        levels.append(library.reshape(centres + base, (-1, 4)))
    return library.concatenate(levels)
