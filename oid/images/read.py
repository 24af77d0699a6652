"""Image files: reading their pixels, and their size without the pixels.

One policy for all scripts. Pixels come as (H, W, 3) uint8 RGB whatever the file holds. `orientation` is "stored", the
pixels as they lie in the file, or "exif", turned as the camera's EXIF tag says. A file that is empty, cut short or no
image is an error with its name, never a grey or a 0 x 0 image.
"""

import hashlib
import io
import os
import struct
import threading
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from oid.files import InputError
from oid.images.headers import JPEG, BadFile, Header, ends_as_it_should, is_whole, read_header, scan_jpeg

Orientation = Literal["stored", "exif"]

EXIF_ORIENTATION = 0x0112
SHORT_READ = 4096  # bytes; holds the headers of most files that have no EXIF thumbnail
LONG_READ = 2**17  # holds one with a thumbnail
KEPT_BUFFER = 2**24  # bytes: the content of larger files is not kept in a thread's buffer
TAIL = 12  # bytes at a file's end that say whether it is whole

# the reduced sizes are named for gray and for BGR, but go together with RGB as well, which saves a pass over the pixels
_REDUCED_FLAGS = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}
_REDUCED_FLAGS[8] = cv2.IMREAD_REDUCED_GRAYSCALE_8
_OF_THREAD = threading.local()


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


def image_parameters(
    path: str | os.PathLike, orientation: Orientation, *, md5: bool = True
) -> tuple[int, int, int, int, str]:
    """Measures an image without decoding it.

    Args:
        path: the file.
        orientation: width and height as "stored", or turned as "exif" says.
        md5: whether its MD5 is wanted; without it only the file's beginning and end are read, of most files.

    Returns:
        Width, height, channels (see `oid.images.headers.Header`), size in bytes, and the MD5 in hexadecimal, "" unless
        wanted.

    Raises:
        InputError: the file is missing, empty, cut short, or no image.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = _content(descriptor) if md5 else None
            size = os.fstat(descriptor).st_size if content is None else len(content)
            header, data = _header_of(descriptor, size, content)
        finally:
            os.close(descriptor)
        if orientation == "exif" and data[:2] != JPEG and len(data) < size:
            data = _read(path)  # formats other than JPEG may have the tag at their end
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except BadFile as error:
        raise InputError(f"{path} {error}: replace it or remove it") from None
    width, height, channel = header
    if orientation == "exif" and _exif_orientation(data) >= 5:
        width, height = height, width
    digest = "" if content is None else hashlib.md5(content, usedforsecurity=False).hexdigest()
    return width, height, channel, size, digest


def turn(pixels: np.ndarray, exif_orientation: int) -> np.ndarray:
    """Applies an EXIF orientation, 1 to 8, to pixels (H, W, C); 5 to 8 swap height and width."""
    if exif_orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if exif_orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if exif_orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _read(path: str | os.PathLike) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def _checked_header(data: bytes) -> Header:
    """The header of a file of which all bytes are there; a BadFile unless it is whole."""
    header = read_header(data, len(data))
    if not is_whole(data, len(data)):
        raise BadFile("is cut short")
    return header


def _content(descriptor: int) -> memoryview:
    """All bytes of a file, in a buffer of the thread that the next call overwrites: a new one costs a tenth more."""
    size = os.fstat(descriptor).st_size
    buffer = getattr(_OF_THREAD, "buffer", b"")
    if len(buffer) < size:
        buffer = bytearray(size)
        if size <= KEPT_BUFFER:
            _OF_THREAD.buffer = buffer
    view, filled = memoryview(buffer), 0
    while filled < size and (count := os.readv(descriptor, [view[filled:size]])):
        filled += count
    return view[:filled]


def _header_of(descriptor: int, size: int, content: memoryview | None) -> tuple[Header, bytes]:
    """The header of a file that is whole, and the bytes that it was read from: all of them only where they are needed.

    Args:
        descriptor: of the open file.
        size: of the file in bytes.
        content: all of it; None = it is not read yet.
    """

    def part(start: int, end: int) -> bytes:
        return os.pread(descriptor, end - start, start) if content is None else bytes(content[start:end])

    for length in (SHORT_READ, LONG_READ):
        data = part(0, length)
        header = read_header(data, size)
        if header:
            if ends_as_it_should(data, size, part(max(0, size - TAIL), size)):
                return header, data
            break
    data = part(0, size)
    return _checked_header(data), data


def _read_complete(path: str | os.PathLike) -> bytes:
    """The file's bytes, checked to be a whole file of a known format as far as that shows without decoding."""
    try:
        data = _read(path)
        _checked_header(data)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except BadFile as error:
        raise InputError(f"{path} {error}: replace it or remove it") from None
    return data


def _reduction(data: bytes, shorter: int, longer: int) -> int:
    """By how much a JPEG may be reduced, 1 2 4 or 8, and keep sides of so many pixels; 1 for other formats."""
    if max(shorter, longer) <= 0 or data[:2] != JPEG:
        return 1
    sides = sorted(scan_jpeg(data)[:2])
    return next((factor for factor in (8, 4, 2) if sides[0] // factor >= shorter and sides[1] // factor >= longer), 1)


def _exif_orientation(data: bytes) -> int:
    """The EXIF orientation, 1 (as stored) to 8; 1 where the tag is absent or damaged."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "BMP")) as image:
            value = image.getexif().get(EXIF_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, IndexError, struct.error):
        return 1
    return value if value in range(1, 9) else 1
