"""Image files: their pixels, and their size without the pixels.

`orientation` is "stored", the pixels as they lie in the file, or "exif", turned as the camera's EXIF tag says. A file
that is empty, cut short or no image is an error that names the file.
"""

import contextlib
import hashlib
import io
import os
import struct
from collections.abc import Iterator
from typing import Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from oid.files import InputError

Orientation = Literal["stored", "exif"]

EXIF_ORIENTATION = 0x0112
MOST_PIXELS, LONGEST_SIDE = 2**30, 2**20  # OpenCV's limits
FIRST_READS = (2**12, 2**17)  # bytes that hold the header of most files, and of those with an EXIF thumbnail
TAIL = 12  # bytes that hold the end mark
JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of segments with the size
DECODABLE_FRAMES = b"\xc0\xc1\xc2\xc9\xca"  # the others are lossless or hierarchical
END_OF_JPEG_HEADER = b"\xff\xc0\0\x0b\x08\0\1\0\1\1\1\x11\0\xff\xda\0\2"  # of one grey pixel
JPEG_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xDA), 0xFF))
PNG_HEADER, PNG_CHANNELS = 33, {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # bytes; channels of each colour type
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, KeyError, TypeError, IndexError, struct.error)

_READERS = {JPEG: JpegImageFile, PNG: PngImageFile, b"RIFF": WebPImageFile, b"BM": BmpImageFile}


def read_image(
    path: str | os.PathLike, *, orientation: Orientation, minimum_side: int = 0, minimum_longer_side: int = 0
) -> np.ndarray:
    """Reads an image. Grey, CMYK, palette and 16-bit files are converted, an alpha channel is dropped.

    Args:
        path: the file.
        orientation: "stored" or "exif".
        minimum_side: above 0, decodes a JPEG at 1/2, 1/4 or 1/8 of its size if its shorter side keeps this number of
            pixels, which is much faster.
        minimum_longer_side: the same for the longer side; if both are given, both hold.

    Returns:
        `(H, W, 3)` uint8 RGB, writable.

    Raises:
        InputError: the file is missing, empty, cut short, or no image.
    """
    with _errors_with_path(path), open(path, "rb", buffering=0) as file:
        data = file.readall()
        header = _header(data, data, len(data))
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    reduction = _reduction(header, minimum_side, minimum_longer_side) if data.startswith(JPEG) else 1
    if reduction > 1:  # with IMREAD_COLOR_RGB the pixels come in RGB, in spite of the name
        flags |= getattr(cv2, f"IMREAD_REDUCED_GRAYSCALE_{reduction}")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # more pixels than OpenCV allows
        pixels = None
    if pixels is None:
        raise InputError(f"{path} cannot be decoded: replace it or remove it")
    return turn(pixels, _exif_orientation(data, header)) if orientation == "exif" else pixels


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
    with _errors_with_path(path), open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        header, data = (None, b"") if md5 else _header_of_ends(file.fileno(), size)
        if header is None or (orientation == "exif" and not header.end):  # the tag may be at the end
            data = file.readall()
            size = len(data)
            header = _header(data, data, size)
    width, height = header.width, header.height
    if orientation == "exif" and _exif_orientation(data, header) >= 5:
        width, height = height, width
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest() if md5 else ""
    return width, height, header.channels, size, digest


def turn(pixels: np.ndarray, exif_orientation: int) -> np.ndarray:
    """Turns pixels `(H, W, C)` as an EXIF orientation from 1 to 8 says; 5 to 8 swap height and width."""
    if exif_orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if exif_orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if exif_orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


# === Headers and ends =================================================================================================
class _Header(NamedTuple):
    width: int
    height: int
    channels: int
    end: int = 0  # of a JPEG: where its EXIF tag has ended


class _BadFile(Exception):
    """Why a file cannot be used, in words that follow its name."""


@contextlib.contextmanager
def _errors_with_path(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except _BadFile as error:
        raise InputError(f"{path} {error}: replace it or remove it") from None


def _header_of_ends(file: int, size: int) -> tuple[_Header | None, bytes]:
    """The header of an open file and the bytes that it was read from; None if the whole file must be read."""
    tail = os.pread(file, TAIL, max(0, size - TAIL))
    for length in FIRST_READS:
        data = os.pread(file, length, 0)
        with contextlib.suppress(_BadFile):
            return _header(data, tail, size), data
    return None, data


def _header(data: bytes, tail: bytes, size: int) -> _Header:
    """Reads the header from the file or its beginning, and checks by the file or its end that nothing is cut off.

    Raises:
        _BadFile: the file is empty, no image, damaged or cut short, or `data` is too short to tell.
    """
    if not size:
        raise _BadFile("is empty")
    try:
        header = _jpeg_header(data) if data.startswith(JPEG) else _other_header(data)
        if header.width * header.height > MOST_PIXELS or max(header.width, header.height) > LONGEST_SIDE:
            raise Image.DecompressionBombError
    except Image.DecompressionBombError:
        raise _BadFile("has too many pixels") from None
    except PILLOW_ERRORS:
        raise _BadFile("has a damaged header" if _has_end(data, tail, size) else "is cut short") from None
    # Coded pixels never contain JPEG's end mark, but an EXIF thumbnail does: it counts only behind the header.
    if not _has_end(data, tail, size, start=header.end if len(tail) == size else 0):
        raise _BadFile("is cut short")
    return header


def _jpeg_header(data: bytes) -> _Header:
    """Pillow takes several times as long, and does not tell lossless JPEGs from others."""
    place = 2
    while True:
        place = data.index(b"\xff", place)  # decoders skip stray bytes between segments
        marker = data[place + 1]
        if marker in JPEG_FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, place + 4)
            if marker not in DECODABLE_FRAMES or bits != 8 or channels not in (1, 3, 4):
                raise _BadFile("is a JPEG of a kind that cannot be decoded")
            if not width or not height:
                raise ValueError
            return _Header(width, height, channels, place)
        if marker in JPEG_WITHOUT_LENGTH:
            place += 1
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")


def _other_header(data: bytes) -> _Header:
    """The header of a PNG, WebP or BMP file; one of Pillow's errors if it is damaged."""
    if data.startswith(PNG):  # without the texts, which do no harm here: Pillow refuses long ones
        image = PngImageFile(io.BytesIO(data[:PNG_HEADER] + b"\0\0\0\0IDAT"))
        return _Header(*image.size, PNG_CHANNELS[data[25]])
    image = _pillow_reader(data)(io.BytesIO(data))
    return _Header(*image.size, 3 if image.mode == "P" else len(image.getbands()))


def _pillow_reader(data: bytes) -> type:
    """Pillow's class for a format. `Image.open` would refuse large images, and look for more pictures in a JPEG."""
    for beginning, reader in _READERS.items():
        if data.startswith(beginning) and (reader is not WebPImageFile or data[8:12] == b"WEBP"):
            return reader
    raise _BadFile("is no JPEG, PNG, WebP or BMP file")


def _has_end(data: bytes, tail: bytes, size: int, start: int = 0) -> bool:
    """Whether a file is whole: JPEG and PNG mark their end, WebP and BMP name their length."""
    if data.startswith(JPEG):
        return tail.rfind(b"\xff\xd9", start) >= 0
    if data.startswith(PNG):
        return tail.rfind(b"IEND") >= 0
    if data.startswith(b"RIFF"):
        return size >= 8 + int.from_bytes(data[4:8], "little")
    return size >= int.from_bytes(data[2:6], "little")


def _reduction(header: _Header, minimum_side: int, minimum_longer_side: int) -> int:
    """By how much a JPEG may be reduced: 1, 2, 4 or 8."""
    if not minimum_side and not minimum_longer_side:
        return 1
    shorter, longer = sorted((header.width, header.height))
    limit = min(shorter // max(minimum_side, 1), longer // max(minimum_longer_side, 1))
    return next((factor for factor in (8, 4, 2) if factor <= limit), 1)


def _exif_orientation(data: bytes, header: _Header) -> int:
    """The EXIF orientation, 1 (as stored) to 8; 1 if the tag is absent or damaged."""
    if header.end:  # the rest may lie behind the bytes that were read
        data = data[: header.end] + END_OF_JPEG_HEADER
    try:
        value = _pillow_reader(data)(io.BytesIO(data)).getexif().get(EXIF_ORIENTATION, 1)
    except PILLOW_ERRORS:
        return 1
    return value if value in range(1, 9) else 1
