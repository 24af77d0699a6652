"""From what a reader found to what can be used: images are measured, boxes corrected or left out, every case reported.

What happens to a box, in this order:
  swapped corners are put in order;
  Pascal VOC's corners are pixels, counted from 1, the last one included; they become edges, 1 less on the left and top.
    (The right and bottom edge lie behind the last pixel, so they keep their number.) A box of a single pixel may be
    a stray click; the format allows it, so it is kept and reported;
  no width or no height: left out;
  if the annotation file gives another size of the image: a size turned as the camera's EXIF tag says means that the
    corners are turned back to the stored pixels; a size of the same proportions, that they are scaled; any other, that
    they stay;
  parts outside the image are cut off; nothing inside: left out;
  an unknown class, or the same box again: left out.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from PIL import Image

from oid.files import InputError
from oid.images.read import EXIF_ORIENTATION, image_parameters
from oid.machine import usable_cores
from oid.sources.base import Problems, Progress, SourceImage

ROUNDING = 0.01  # pixels: COCO's corner and width have two decimals, so that their sum may leave the image by this much
Corners = tuple[float, float, float, float]


def measure(
    images: Sequence[SourceImage],
    problems: Problems,
    progress: Progress = iter,
    done: str = "image and its boxes left out",
) -> list[SourceImage]:
    """Reads every image file once, and returns the readable images with `size` and `md5`.

    `problems` gets the others, with what is `done` about them. `progress` shows how many are measured.
    """
    measured = []
    with ThreadPoolExecutor(usable_cores()) as pool:
        results = [pool.submit(image_parameters, image.path, "stored") for image in images]
        for image, result in zip(images, progress(results), strict=True):
            try:
                width, height, *_, md5 = result.result()
            except (InputError, ValueError) as error:  # the second: a zero byte in the name
                problem = "image that cannot be read" if os.path.isfile(image.path) else "missing image"
                problems.add(image.file, image.place, problem, str(error).split(": ")[0], done)
            else:
                measured.append(replace(image, size=(width, height), md5=md5))
    return measured


def clean_boxes(
    image: SourceImage, classes: Iterable[str], problems: Problems, *, corners_are_pixels: bool
) -> SourceImage:
    """Returns a measured image with its usable boxes, whose corners are edges inside the image.

    Args:
        image: with `size`.
        classes: the known names, with that of the areas to ignore.
        problems: gets a row for each fault.
        corners_are_pixels: see `Reader`.
    """
    orientation, scale = _compare_sizes(image, problems)
    known, boxes, uncertain = frozenset(classes), {}, set(image.uncertain)
    for box in image.boxes:
        corners, faults = _fit(box.corners, image, corners_are_pixels, orientation, scale)
        key = (box.class_name, corners)
        if corners and box.class_name not in known:
            corners, faults = None, [*faults, ("unknown class", "box left out")]
        if corners is None:
            uncertain.add(box.class_name)
        elif key in boxes:
            faults.append(("the same box again", "left out"))
        else:
            boxes[key] = replace(box, corners=corners)
        for problem, done in faults:
            shown = ",".join(f"{corner:g}" for corner in box.corners)
            value = f"{box.class_name} {shown}, image {image.size[0]} x {image.size[1]}"
            problems.add(image.file, box.place, problem, value, done)
    return replace(image, boxes=list(boxes.values()), uncertain=uncertain)


def _fit(
    corners: Corners, image: SourceImage, are_pixels: bool, orientation: int, scale: tuple[float, float]
) -> tuple[Corners | None, list[tuple[str, str]]]:
    """The edges of a box inside the stored image, None if it cannot be used, and the (problem, done) of its faults."""
    x0, y0, x1, y1 = corners
    faults = []
    if x0 > x1 or y0 > y1:
        faults.append(("swapped corners", "put in order"))
        x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    if are_pixels:
        if x0 == x1 and y0 == y1:
            faults.append(("box of a single pixel", "kept"))
        x0, y0 = x0 - 1, y0 - 1
    if x0 == x1 or y0 == y1:
        return None, [*faults, ("box without area", "box left out")]
    turned = turn_back((x0, y0, x1, y1), orientation, image.declared_size)
    edges = [corner * factor for corner, factor in zip(turned, scale * 2, strict=True)]
    cut = tuple(min(max(edge, 0.0), side) for edge, side in zip(edges, image.size * 2, strict=True))
    if cut[0] >= cut[2] or cut[1] >= cut[3]:
        return None, [*faults, ("box outside the image", "box left out")]
    if max(abs(a - b) for a, b in zip(cut, edges, strict=True)) > ROUNDING:
        faults.append(("box reaches out of the image", "cut off at the border"))
    return cut, faults


def _compare_sizes(image: SourceImage, problems: Problems) -> tuple[int, tuple[float, float]]:
    """Compares the declared with the stored size, and reports a difference.

    Returns the EXIF orientation to undo (1: none), and the factors from declared to stored pixels in x and y.
    """
    declared, size = image.declared_size, image.size
    orientation, scale = 1, (1.0, 1.0)
    if declared is None or declared == size:
        return orientation, scale
    problem, done = "size is not that of the image", "boxes taken as pixels of the image"
    if min(declared) <= 0:
        problem, done = "size missing or not positive", "taken from the image"
    elif declared == size[::-1] and (tag := _exif_orientation(image.path)) in range(5, 9):
        orientation = tag
        problem, done = "size of the EXIF-turned image", "boxes turned back"
    elif abs(declared[0] * size[1] - declared[1] * size[0]) <= max(*declared, *size) / 2:  # sides are rounded
        scale = (size[0] / declared[0], size[1] / declared[1])
        done = "boxes scaled"
    value = f"{declared[0]} x {declared[1]}, the image has {size[0]} x {size[1]}"
    problems.add(image.file, image.place, problem, value, done)
    return orientation, scale


def _exif_orientation(path: Path) -> int | None:
    with Image.open(path) as image:
        return image.getexif().get(EXIF_ORIENTATION)


def turn_back(corners: Corners, orientation: int, size: tuple[int, int]) -> Corners:
    """Takes edges in pixels from the image that its EXIF tag `orientation` turned to the stored one.

    `size` is that of the turned image.
    """
    x0, y0, x1, y1 = corners
    if orientation in (2, 3, 6, 7):
        x0, x1 = size[0] - x1, size[0] - x0
    if orientation in (3, 4, 7, 8):
        y0, y1 = size[1] - y1, size[1] - y0
    return (y0, x0, y1, x1) if orientation in (5, 6, 7, 8) else (x0, y0, x1, y1)


def report_duplicates(splits: Mapping[str, Sequence[SourceImage]], problems: Problems) -> None:
    """Reports images with identical content. In two splits they make the metric too good."""
    first: dict[str, tuple[str, SourceImage]] = {}
    for split, images in splits.items():
        for image in images:
            other_split, other = first.setdefault(image.md5, (split, image))
            if other is not image:
                same = split == other_split
                where = f"within {split}" if same else f"in {other_split} and in {split}: the metric is too good"
                problems.add(image.path, "", f"identical images {where}", other.path, "both kept")
