"""Image files: their pixels, and their size without the pixels.

One policy for all scripts. Pixels come as `(H, W, 3)` uint8 RGB whatever the file holds. `orientation` is "stored", the
pixels as they lie in the file, or "exif", turned as the camera's EXIF tag says. A file that is empty, cut short or no
image is an error with its name, never a grey or a 0 x 0 image.
"""

import contextlib
import hashlib
import io
import os
import struct
from collections.abc import Iterator
from typing import Literal

import cv2
import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from oid.files import InputError

Orientation = Literal["stored", "exif"]
Header = tuple[int, int, int]  # width, height, stored channels

EXIF_ORIENTATION = 0x0112
MOST_PIXELS, LONGEST_SIDE = 2**30, 2**20  # OpenCV's limits
FIRST_READS = (2**12, 2**17)  # bytes that hold the header of most files, and of those with an EXIF thumbnail
TAIL = 12  # bytes that hold the end mark
JPEG, PNG, PNG_HEADER = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", 33
DECODABLE_FRAMES = b"\xc0\xc1\xc2\xc9\xca"  # JPEG markers of sequential and progressive frames
UNUSUAL_JPEG = "is a JPEG of a kind that cannot be decoded"  # lossless, hierarchical, 12 bits
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, KeyError, TypeError, IndexError, struct.error)

_READERS = {JPEG: JpegImageFile, PNG: PngImageFile, b"RIFF": WebPImageFile, b"BM": BmpImageFile}
# Reduced sizes are named for grey and for BGR, but work with RGB as well, which saves a pass over the pixels.
_REDUCED_FLAGS = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}
_REDUCED_FLAGS[8] = cv2.IMREAD_REDUCED_GRAYSCALE_8


def read_image(
    path: str | os.PathLike, *, orientation: Orientation, minimum_side: int = 0, minimum_longer_side: int = 0
) -> np.ndarray:
    """Reads an image. Grey, CMYK, palette and 16-bit files are converted, an alpha channel is dropped.

    Args:
        path: the file.
        orientation: "stored" or "exif".
        minimum_side: above 0, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where its shorter side keeps this number
            of pixels, which is much faster. Boxes normalised to [0, 1] stay the same.
        minimum_longer_side: the same for the longer side; where both are given, both hold.

    Returns:
        `(H, W, 3)` uint8 RGB, writable.

    Raises:
        InputError: the file is missing, empty, cut short, or no image.
    """
    with _errors_with_path(path):
        data = _read(path)
        width, height, _ = _header(data, data, len(data))
    reduction = _reduction(width, height, minimum_side, minimum_longer_side) if data[:2] == JPEG else 1
    flag = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | _REDUCED_FLAGS[reduction]
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
        md5: whether to compute the MD5; without it only the beginning and the end of most files are read.

    Returns:
        Width, height, stored channels (1 grey, 2 grey with alpha, 3 colour or palette, 4 with alpha or CMYK), size in
        bytes, and the MD5 in hexadecimal or "".

    Raises:
        InputError: the file is missing, empty, cut short, or no image.
    """
    with _errors_with_path(path):
        if md5:
            data = _read(path)
            (width, height, channel), size = _header(data, data, len(data)), len(data)
        else:
            (width, height, channel), data, size = _read_ends(path)
        if orientation == "exif" and data[:2] != JPEG and len(data) < size:
            data = _read(path)  # formats other than JPEG may have the tag at their end
    if orientation == "exif" and _exif_orientation(data) >= 5:
        width, height = height, width
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest() if md5 else ""
    return width, height, channel, size, digest


def turn(pixels: np.ndarray, exif_orientation: int) -> np.ndarray:
    """Applies an EXIF orientation, 1 to 8, to pixels `(H, W, C)`; 5 to 8 swap height and width."""
    if exif_orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if exif_orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if exif_orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


# === Headers and ends =================================================================================================
class _BadFile(Exception):
    """Why a file cannot be used, in words that follow its name."""


@contextlib.contextmanager
def _errors_with_path(path: str | os.PathLike) -> Iterator[None]:
    """Turns errors of the system and of files into InputErrors that name the file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except _BadFile as error:
        raise InputError(f"{path} {error}: replace it or remove it") from None


def _read(path: str | os.PathLike) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def _read_ends(path: str | os.PathLike) -> tuple[Header, bytes, int]:
    """The header, the bytes it was read from, and the file's size; reads the whole file only where that is needed."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        tail = os.pread(file.fileno(), TAIL, max(0, size - TAIL))
        for length in FIRST_READS:
            data = os.pread(file.fileno(), length, 0)
            with contextlib.suppress(_BadFile):
                return _header(data, tail, size), data, size
        data = file.readall()
    return _header(data, data, len(data)), data, len(data)


def _header(data: bytes, tail: bytes, size: int) -> Header:
    """Reads the header, and checks that the file is whole as far as that shows without decoding.

    Args:
        data: the file or its beginning.
        tail: the file or its end.
        size: bytes of the whole file.

    Raises:
        _BadFile: the file is empty, no image, damaged or cut short, or `data` and `tail` are too short to say.
    """
    if not size:
        raise _BadFile("is empty")
    reader, file = _pillow_reader(data), io.BytesIO(data)
    if reader is PngImageFile:  # the header alone: Pillow refuses long texts, which do no harm here
        file = io.BytesIO(data[:PNG_HEADER] + b"\0\0\0\0IDAT")
    try:
        image = reader(file)
    except Image.DecompressionBombError:
        raise _BadFile("has too many pixels") from None
    except PILLOW_ERRORS as error:
        if str(error).startswith("cannot handle"):
            raise _BadFile(UNUSUAL_JPEG) from None
        raise _BadFile("has a damaged header" if _has_end(data, tail, size) else "is cut short") from None
    width, height = image.size
    if width * height > MOST_PIXELS or max(width, height) > LONGEST_SIDE:
        raise _BadFile("has too many pixels")
    if reader is JpegImageFile:
        frame = data.rfind(struct.pack(">BHHB", image.bits, height, width, image.layers), 0, file.tell())
        if data[frame - 3] not in DECODABLE_FRAMES:
            raise _BadFile(UNUSUAL_JPEG)
    # Coded pixels never contain JPEG's end mark, but an EXIF thumbnail does: it counts only behind the header.
    if not _has_end(data, tail, size, start=file.tell() if len(tail) == size else 0):
        raise _BadFile("is cut short")
    return width, height, 3 if image.mode == "P" else len(image.getbands())


def _pillow_reader(data: bytes) -> type:
    """Pillow's class for a format. `Image.open` would refuse large images, and look for more pictures in a JPEG."""
    for beginning, reader in _READERS.items():
        if data.startswith(beginning) and (reader is not WebPImageFile or data[8:12] == b"WEBP"):
            return reader
    raise _BadFile("is no JPEG, PNG, WebP or BMP file")


def _has_end(data: bytes, tail: bytes, size: int, start: int = 0) -> bool:
    """Whether the end of a file is there, which JPEG and PNG mark; WebP and BMP say how long they are."""
    if data[:2] == JPEG:
        return tail.rfind(b"\xff\xd9", start) >= 0
    if data[:8] == PNG:
        return tail.rfind(b"IEND") >= 0
    if data[:4] == b"RIFF":
        return size >= 8 + int.from_bytes(data[4:8], "little")
    return size >= int.from_bytes(data[2:6], "little")


def _reduction(width: int, height: int, shorter: int, longer: int) -> int:
    """By how much a JPEG may be reduced, 1 2 4 or 8, so that its sides keep these numbers of pixels."""
    if max(shorter, longer) <= 0:
        return 1
    factors = min(width, height) // max(shorter, 1), max(width, height) // max(longer, 1)
    return next((factor for factor in (8, 4, 2) if factor <= min(factors)), 1)


def _exif_orientation(data: bytes) -> int:
    """The EXIF orientation, 1 (as stored) to 8; 1 where the tag is absent or damaged."""
    try:
        value = _pillow_reader(data)(io.BytesIO(data)).getexif().get(EXIF_ORIENTATION, 1)
    except PILLOW_ERRORS:
        return 1
    return value if value in range(1, 9) else 1
