"""From what a reader found to what can be used: image files measured, boxes put right or left out, each case told.

What happens to a box, in this order:
  swapped corners are put in order;
  no width or no height: rejected;
  Pascal VOC's corners name pixels, counted from 1, the last one included; they become the edges of the area, 1 less
    on the left and top. (The right and bottom edge lie behind the last pixel, so they keep their number.)
  an annotation file that gives another image size: where it is that of the image as a camera's EXIF tag turns it, the
    box is turned back to the stored pixels; where it has the same proportions, the box is scaled; else it stays;
  what lies outside the image is cut off; nothing inside: rejected;
  an unknown class, or the same box again: rejected.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from oid.files import InputError
from oid.images.read import EXIF_ORIENTATION, image_parameters
from oid.machine import usable_cores
from oid.sources.base import Box, Picture
from oid.sources.problems import Problems

ROUNDING = 0.01  # pixels: COCO gives corner and width with two decimals, their sum may leave the image by so much


def measure(
    pictures: Sequence[Picture], problems: Problems, done: str = "image and its boxes left out"
) -> list[Picture]:
    """Reads every image file once: fills in `size` and `md5`, and leaves out what is missing or no image.

    `done` is what the list of problems says of those.
    """

    def look(picture: Picture) -> tuple | InputError:
        if not os.path.isfile(picture.path):  # a name may also be too long, or none at all
            return InputError(f"{picture.path} does not exist")
        try:
            return image_parameters(picture.path, "stored")
        except InputError as error:
            return error

    kept = []
    with ThreadPoolExecutor(usable_cores()) as pool:
        looks = tqdm(pool.map(look, pictures), total=len(pictures), unit="image", leave=False, disable=not pictures)
        for picture, found in zip(pictures, looks, strict=True):
            if isinstance(found, InputError):
                problem = "missing image" if not os.path.isfile(picture.path) else "image that cannot be read"
                value = str(found).split(": ")[0]
                problems.add(picture.file, picture.place, problem, value, done)
                continue
            picture.size, picture.md5 = found[:2], found[-1]
            kept.append(picture)
    return kept


def clean_boxes(
    pictures: Iterable[Picture], classes: Iterable[str], problems: Problems, *, corners_are_pixels: bool
) -> None:
    """Applies the rules of this file to the boxes of measured pictures, in place.

    Args:
        pictures: with `size`; afterwards the corners of their boxes are edges inside the image.
        classes: the known names, with that of the areas to ignore.
        problems: gets a row for each box that is changed or rejected.
        corners_are_pixels: as `Source` has it.
    """
    known = frozenset(classes)
    for picture in pictures:
        turned = _orientation_to_undo(picture, problems)
        kept, seen = [], set()
        for box in picture.boxes:
            problem = _put_right(box, picture, problems, corners_are_pixels, turned)
            if problem is None and box.class_name not in known:
                problem = "unknown class"
            if problem is None and (box.class_name, box.corners) in seen:
                problems.add(picture.file, box.place, "the same box again", _shown(box), "left out")
            elif problem is not None:
                problems.add(picture.file, box.place, problem, _shown(box), "box left out")
                picture.uncertain.add(box.class_name)
            else:
                seen.add((box.class_name, box.corners))
                kept.append(box)
        picture.boxes = kept


def _put_right(box: Box, picture: Picture, problems: Problems, pixels: bool, turned: int) -> str | None:
    """Changes the corners by the rules; returns why the box cannot be used, or None."""
    x0, y0, x1, y1 = box.corners
    if x0 > x1 or y0 > y1:
        problems.add(picture.file, box.place, "swapped corners", _shown(box), "put in order")
        x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    if x0 == x1 or y0 == y1:
        return "box without area"
    corners = (x0 - 1, y0 - 1, x1, y1) if pixels else (x0, y0, x1, y1)
    if turned != 1:
        corners = turn_back(corners, turned, picture.declared_size)
    elif _same_shape(picture.declared_size, picture.size):
        factors = [now / then for now, then in zip(picture.size, picture.declared_size, strict=True)]
        corners = tuple(corner * factors[index % 2] for index, corner in enumerate(corners))
    width, height = picture.size
    cut = tuple(min(max(corner, 0.0), side) for corner, side in zip(corners, (width, height) * 2, strict=True))
    if cut[0] >= cut[2] or cut[1] >= cut[3]:
        return "box outside the image"
    if max(abs(a - b) for a, b in zip(cut, corners, strict=True)) > ROUNDING:
        value = f"{_shown(box)}, image {width} x {height}"
        problems.add(picture.file, box.place, "box reaches out of the image", value, "cut off at the border")
    box.corners = cut
    return None


def report_duplicates(splits: dict[str, list[Picture]], problems: Problems) -> None:
    """Tells of images with identical content; across splits they make the metric too good."""
    first: dict[str, tuple[str, Picture]] = {}
    for split, pictures in splits.items():
        for picture in pictures:
            other_split, other = first.setdefault(picture.md5, (split, picture))
            if other is picture:
                continue
            within = split == other_split
            where = f"within {split}" if within else f"in {other_split} and in {split}: the metric is too good"
            problems.add(picture.path, "", f"identical images {where}", other.path, "both kept")


def turn_back(
    corners: tuple[float, float, float, float], orientation: int, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Takes a box from the picture as EXIF `orientation` (1 to 8) turns it to the stored pixels; undoes `images.turn`.

    Args:
        corners: x0, y0, x1, y1, edges in pixels of the turned picture.
        orientation: the EXIF tag.
        size: width and height of the turned picture.
    """
    x0, y0, x1, y1 = corners
    if orientation in (2, 3, 6, 7):
        x0, x1 = size[0] - x1, size[0] - x0
    if orientation in (3, 4, 7, 8):
        y0, y1 = size[1] - y1, size[1] - y0
    return (y0, x0, y1, x1) if orientation in (5, 6, 7, 8) else (x0, y0, x1, y1)


def _orientation_to_undo(picture: Picture, problems: Problems) -> int:
    """The EXIF orientation where the annotations refer to the turned picture, else 1; tells of a wrong size."""
    declared = picture.declared_size
    if declared in (None, picture.size):
        return 1
    value = f"{declared[0]} x {declared[1]}, the image has {picture.size[0]} x {picture.size[1]}"
    if min(declared) <= 0:
        problems.add(picture.file, picture.place, "size missing or not positive", value, "taken from the image")
        picture.declared_size = None
        return 1
    orientation = _exif_orientation(picture.path) if declared == picture.size[::-1] else 1
    if orientation >= 5:
        problems.add(picture.file, picture.place, "size of the EXIF-turned image", value, "boxes turned back")
        return orientation
    done = "boxes scaled" if _same_shape(declared, picture.size) else "boxes taken as pixels of the image"
    problems.add(picture.file, picture.place, "size is not that of the image", value, done)
    return 1


def _exif_orientation(path: Path) -> int:
    """The EXIF orientation of an image, 1 where it has none."""
    with Image.open(path) as image:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _same_shape(declared: tuple[int, int] | None, size: tuple[int, int]) -> bool:
    """Whether two sizes differ and have the same proportions, as far as whole pixels can."""
    if declared in (None, size) or min(declared) <= 0:
        return False
    return abs(declared[0] * size[1] - declared[1] * size[0]) <= max(*declared, *size) / 2


def _shown(box: Box) -> str:
    return f"{box.class_name} {','.join(f'{corner:g}' for corner in box.corners)}"
