"""Image files: finding them, reading their pixels, reading their size without the pixels.

One policy for all scripts. Pixels come as (H, W, 3) uint8 RGB whatever the file holds. `orientation` is "stored", the
pixels as they lie in the file, or "exif", turned as the camera's EXIF tag says. A file that is empty, cut short or no
image is an error with its name, never a grey or a 0 x 0 image.
"""

import hashlib
import io
import os
import struct
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from oid.files import InputError, require_folder

Orientation = Literal["stored", "exif"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
EXIF_ORIENTATION = 0x0112

# the reduced sizes are named for gray and for BGR, but go together with RGB as well, which saves a pass over the pixels
_REDUCED_FLAGS = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}
_REDUCED_FLAGS[8] = cv2.IMREAD_REDUCED_GRAYSCALE_8
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers that are followed by the size


def find_images(folder: str | os.PathLike) -> dict[str, Path]:
    """Finds the images of a folder: flat, or in sub-folders named by the id's first three characters.

    The id is the file's name without its last suffix (.jpg .jpeg .png .webp .bmp, upper or lower case). Hidden files,
    other suffixes, and files in a sub-folder that their id does not begin with are passed over.

    Returns:
        {id: path}, ordered by id. Empty if there are none.

    Raises:
        InputError: there is no such folder, or two files have one id.
    """
    folder = require_folder(folder, "give the folder that holds the images")
    found: dict[str, str] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _has_image_suffix(entry.name):
                _add_image(found, entry)
            elif len(entry.name) == 3 and entry.is_dir():
                _add_folder(found, entry)
    return {image_id: Path(found[image_id]) for image_id in sorted(found)}


def read_image(
    path: str | os.PathLike, *, orientation: Orientation, minimum_side: int = 0, minimum_longer_side: int = 0
) -> np.ndarray:
    """Reads an image: gray, CMYK, palette and 16-bit files are converted, an alpha channel is dropped.

    Args:
        path: the file.
        orientation: "stored" or "exif".
        minimum_side: when above 0, a JPEG may come at 1/2, 1/4 or 1/8 of its size, which decodes much faster, as long
            as its shorter side keeps at least so many pixels. Boxes normalised to [0, 1] stay as they are.
        minimum_longer_side: the same for the longer side; both count where both are given.

    Returns:
        (H, W, 3) uint8 RGB, writable.

    Raises:
        InputError: the file is missing, empty, cut short, or no image.
    """
    data = _read_complete(path)
    reduction = _REDUCED_FLAGS[_reduction(data, minimum_side, minimum_longer_side)]
    flag = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | reduction
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:  # more pixels than OpenCV allows
        pixels = None
    if pixels is None:
        raise InputError(f"{path} cannot be decoded: replace it or remove it")
    return turn(pixels, _exif_orientation(data)) if orientation == "exif" else pixels


def image_parameters(path: str | os.PathLike, orientation: Orientation) -> dict[str, int | str]:
    """Reads a file once and gives its `width`, `height`, `channel`, `size` in bytes, and `md5`, without decoding it.

    `channel` counts the stored channels: 1 gray, 2 gray with alpha, 3 colour (or a palette), 4 with alpha or CMYK.

    Raises:
        InputError: the file is missing, empty, cut short, or no image.
    """
    data = _read_complete(path)
    image = _open_header(data, path)
    width, height = image.size
    if orientation == "exif" and _exif_orientation(data) >= 5:
        width, height = height, width
    channel = 3 if image.mode == "P" else len(image.getbands())
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return {"width": width, "height": height, "channel": channel, "size": len(data), "md5": digest}


def turn(pixels: np.ndarray, exif_orientation: int) -> np.ndarray:
    """Applies an EXIF orientation, 1 to 8, to pixels (H, W, C); 5 to 8 swap height and width."""
    if exif_orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if exif_orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if exif_orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _has_image_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _add_folder(found: dict[str, str], folder: os.DirEntry) -> None:
    with os.scandir(folder.path) as entries:
        for entry in entries:
            if entry.name.startswith(folder.name) and not entry.name.startswith(".") and _has_image_suffix(entry.name):
                _add_image(found, entry)


def _add_image(found: dict[str, str], entry: os.DirEntry) -> None:
    image_id = os.path.splitext(entry.name)[0]
    if not entry.is_file():
        return
    if image_id in found:
        first, second = sorted((found[image_id], entry.path))
        raise InputError(f"{first} and {second} have the same image id {image_id}: keep one of them")
    found[image_id] = entry.path


def _read_complete(path: str | os.PathLike) -> bytes:
    """The file's bytes, checked to be a whole file of a known format as far as that shows without decoding."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not data:
        raise InputError(f"{path} is empty: replace it or remove it")
    if data[:2] == b"\xff\xd8":
        # Coded pixels never contain the end mark, but an EXIF thumbnail does: look only behind the start of the pixels.
        complete = data.rfind(b"\xff\xd9", _scan_jpeg(data)[2]) >= 0
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        complete = data.rfind(b"IEND") >= 0
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        complete = len(data) >= 8 + int.from_bytes(data[4:8], "little")
    elif data[:2] == b"BM":
        complete = len(data) >= int.from_bytes(data[2:6], "little")
    else:
        raise InputError(f"{path} is no JPEG, PNG, WebP or BMP file: replace it or remove it")
    if not complete:
        raise InputError(f"{path} is cut short: replace it or remove it")
    return data


def _scan_jpeg(data: bytes) -> tuple[int, int, int]:
    """Height, width, and where the coded pixels start, from a JPEG's segments; 0 for what is not there."""
    height = width = 0
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:  # fill byte, or a marker without a length
            position += 1 if marker == 0xFF else 2
            continue
        if marker == 0xDA:
            return height, width, position
        if marker in _START_OF_FRAME and position + 9 <= len(data):
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return height, width, 0


def _reduction(data: bytes, shorter: int, longer: int) -> int:
    """By how much a JPEG may be reduced, 1 2 4 or 8, and keep sides of so many pixels; 1 for other formats."""
    if max(shorter, longer) <= 0 or data[:2] != b"\xff\xd8":
        return 1
    sides = sorted(_scan_jpeg(data)[:2])
    return next((factor for factor in (8, 4, 2) if sides[0] // factor >= shorter and sides[1] // factor >= longer), 1)


def _open_header(data: bytes, path: str | os.PathLike) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "BMP"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        reason = "has too many pixels" if isinstance(error, Image.DecompressionBombError) else "has a damaged header"
        raise InputError(f"{path} {reason}: replace it or remove it") from None


def _exif_orientation(data: bytes) -> int:
    """The EXIF orientation, 1 (as stored) to 8; 1 where the tag is absent or damaged."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "BMP")) as image:
            value = image.getexif().get(EXIF_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, IndexError, struct.error):
        return 1
    return value if value in range(1, 9) else 1
