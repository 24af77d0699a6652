"""What an image file says of itself: width, height, channels, and whether it is whole. No pixels are decoded.

JPEG is read as ITU-T T.81 annex B has it, PNG as its third edition, 11.2.1, WebP as RFC 9649, 2.5 to 2.7 and 3.4; BMP,
which is rare, by Pillow.
"""

import io
import struct
import zlib
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

MOST_PIXELS, LONGEST_SIDE = 2**30, 2**20  # what OpenCV decodes
JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
END_OF_JPEG, END_OF_PNG = b"\xff\xd9", b"IEND"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers that are followed by the size
_DECODABLE = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # of these the sequential and progressive ones
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # of each colour type; 3 is a palette


class BadFile(Exception):
    """Why a file cannot be used, as words that follow its name."""


class Header(NamedTuple):
    """Pixels as they lie in the file, and stored channels: 1 gray, 2 gray with alpha, 3 colour, 4 with alpha or CMYK.

    A palette counts as colour, an animation has the size of its canvas.
    """

    width: int
    height: int
    channel: int


def read_header(data: bytes, size: int) -> Header | None:
    """Reads the header of a file.

    Args:
        data: the file, or its beginning.
        size: bytes of the whole file.

    Returns:
        The header; None when it is longer than `data`, and the file is, too.

    Raises:
        BadFile: the file is empty, no image, cut within its header, or damaged there.
    """
    if not size:
        raise BadFile("is empty")
    reader = _reader_of(data)
    if reader is None:
        raise BadFile("is no JPEG, PNG, WebP or BMP file")
    try:
        width, height, channel = reader(data)
    except _Short:
        if len(data) < size:
            return None
        raise BadFile("is cut short") from None
    if not (width > 0 and height > 0):
        raise BadFile("has a damaged header")
    if width * height > MOST_PIXELS or max(width, height) > LONGEST_SIDE:
        raise BadFile("has too many pixels")
    return Header(width, height, channel)


def ends_as_it_should(data: bytes, size: int, tail: bytes) -> bool:
    """Whether the last bytes of a file are those of a whole one; if not, `is_whole` has to see all of it.

    Args:
        data: its beginning.
        size: bytes of the whole file.
        tail: its last 12 bytes.
    """
    if data[:2] == JPEG:
        return tail[-2:] == END_OF_JPEG
    if data[:8] == PNG:
        return tail[4:8] == END_OF_PNG
    return is_whole(data, size)


def is_whole(data: bytes, size: int) -> bool:
    """Whether the end of a file is there, as far as that shows without decoding.

    Args:
        data: all of a JPEG or PNG file; of others the beginning, too.
        size: bytes of the whole file.
    """
    if data[:2] == JPEG:
        # Coded pixels never contain the end mark, but an EXIF thumbnail does: look only behind the start of the pixels.
        return data.rfind(END_OF_JPEG, scan_jpeg(data)[3]) >= 0
    if data[:8] == PNG:
        return data.rfind(END_OF_PNG) >= 0
    if data[:4] == b"RIFF":
        return size >= 8 + int.from_bytes(data[4:8], "little")
    return size >= int.from_bytes(data[2:6], "little")


def scan_jpeg(data: bytes) -> tuple[int, int, int, int]:
    """Width, height, components, and where the coded pixels start, from a JPEG's segments; 0 for what is not there."""
    width = height = components = 0
    position, end = 2, len(data)
    while position + 4 <= end:
        if data[position] != 0xFF:  # stray bytes between segments, which decoders pass over
            position = data.find(b"\xff", position)
            if position < 0:
                break
            continue
        marker = data[position + 1]
        if marker == 0xDA:
            return width, height, components, position
        if marker == 0xFF or marker <= 0x01 or 0xD0 <= marker <= 0xD8:  # fill byte, or a marker without a length
            position += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAMES:
            if position + 10 > end:
                break
            if marker not in _DECODABLE or data[position + 4] != 8:  # lossless, hierarchical, or 12 bits
                raise BadFile("is a JPEG of a kind that cannot be decoded")
            height, width, components = struct.unpack_from(">HHB", data, position + 5)
        position += 2 + (data[position + 2] << 8 | data[position + 3])
    return width, height, components, 0


class _Short(Exception):
    """The header goes on behind the bytes that are there."""


def _reader_of(data: bytes):
    if data[:2] == JPEG:
        return _read_jpeg
    if data[:8] == PNG:
        return _read_png
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _read_webp
    return _read_bmp if data[:2] == b"BM" else None


def _read_jpeg(data: bytes) -> tuple[int, int, int]:
    width, height, components, pixels = scan_jpeg(data)
    if not pixels:
        raise _Short
    if components not in (1, 3, 4):
        raise BadFile("has a damaged header")
    return width, height, components


def _read_png(data: bytes) -> tuple[int, int, int]:
    if len(data) < 33:
        raise _Short
    width, height, _, colours = struct.unpack_from(">IIBB", data, 16)
    checksum = int.from_bytes(data[29:33], "big")
    if data[12:16] != b"IHDR" or zlib.crc32(data[12:29]) != checksum or colours not in _PNG_CHANNELS:
        raise BadFile("has a damaged header")
    return width, height, _PNG_CHANNELS[colours]


def _read_webp(data: bytes) -> tuple[int, int, int]:
    if len(data) < 30:
        raise _Short
    kind = data[12:16]
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF, 3
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, 4 if bits >> 28 & 1 else 3
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return width, height, 4 if data[20] & 0x10 else 3
    raise BadFile("has a damaged header")


def _read_bmp(data: bytes) -> tuple[int, int, int]:
    try:
        with Image.open(io.BytesIO(data), formats=("BMP",)) as image:
            return *image.size, 3 if image.mode == "P" else len(image.getbands())
    except Image.DecompressionBombError:
        raise BadFile("has too many pixels") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, struct.error):
        raise _Short if len(data) < 1200 else BadFile("has a damaged header") from None
