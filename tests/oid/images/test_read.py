"""Images are read as RGB whatever the file holds, turned by one policy, measured alike, and refused when damaged."""

import hashlib
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from oid.files import InputError
from oid.images.read import image_parameters, read_image

SUFFIXES = (".jpg", ".png", ".webp", ".bmp")


@pytest.fixture(scope="module")
def pixels():
    """A smooth image (61, 81, 3), so that JPEG keeps it nearly exactly; its four corners differ."""
    coarse = np.random.default_rng(1).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, (81, 61), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def jpeg(tmp_path, pixels):
    """The path of a JPEG file, and its bytes."""
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path)
    return path, path.read_bytes()


def difference(first, second):
    assert first.shape == second.shape
    return np.abs(first.astype(int) - second.astype(int)).max()


def as_pillow_reads(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def refused(path, reason):
    """Reading and both ways of measuring name the file and the reason."""
    calls = [lambda: read_image(path, orientation="stored")]
    calls += [lambda md5=md5: image_parameters(path, "stored", md5=md5) for md5 in (True, False)]
    for call in calls:
        with pytest.raises(InputError, match=reason) as error:
            call()
        assert str(path) in str(error.value)


# === What there is ====================================================================================================
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_orientation_equals_pillows(tmp_path, pixels, suffix, tag):
    exif = Image.Exif()
    exif[0x0112] = tag
    path = tmp_path / f"turned{suffix}"
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    with Image.open(path) as image:
        turned = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    for orientation, expected in (("exif", turned), ("stored", as_pillow_reads(path))):
        assert difference(read_image(path, orientation=orientation), expected) <= 8
        for md5 in (True, False):
            width, height, *_ = image_parameters(path, orientation, md5=md5)
            assert (height, width) == expected.shape[:2]


@pytest.mark.parametrize(
    ("mode", "suffix", "channel", "options"),
    [
        *((mode, ".jpg", channel, {}) for mode, channel in (("L", 1), ("CMYK", 4))),
        ("RGB", ".jpg", 3, {"progressive": True}),
        *((mode, ".bmp", 3, {}) for mode in ("RGB", "P")),
        *((mode, ".png", channel, {}) for mode, channel in (("1", 1), ("L", 1), ("LA", 2), ("RGBA", 4), ("P", 3))),
        *(
            (mode, ".webp", channel, options)  # three kinds of headers
            for mode, channel in (("RGB", 3), ("RGBA", 4))
            for options in ({}, {"lossless": True}, {"exif": b"Exif\x00\x00MM\x00*\x00\x00\x00\x08"})
        ),
    ],
)
def test_every_kind_comes_as_rgb_and_has_its_stored_channels(tmp_path, pixels, mode, suffix, channel, options):
    image = Image.fromarray(pixels).convert("RGBA" if mode in ("RGBA", "LA") else "RGB")
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(pixels[..., 0]).point(lambda value: max(value, 1)))
    path = tmp_path / f"image{suffix}"
    (image.quantize(200) if mode == "P" else image.convert(mode)).save(path, **options)
    read = read_image(path, orientation="stored")
    assert read.dtype == np.uint8
    assert read.flags.writeable
    assert difference(read, as_pillow_reads(path)) <= 8
    data = path.read_bytes()
    for md5, digest in ((True, hashlib.md5(data).hexdigest()), (False, "")):
        assert image_parameters(path, "stored", md5=md5) == (81, 61, channel, len(data), digest)


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_an_animation_is_its_first_image(tmp_path, pixels, suffix):
    path = tmp_path / f"a{suffix}"
    frames = [Image.fromarray(np.roll(pixels, shift, axis=1)) for shift in (0, 20, 40)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert image_parameters(path, "stored")[:3] == (81, 61, 3)
    assert difference(read_image(path, orientation="stored"), as_pillow_reads(path)) <= 8


def test_sixteen_bits_become_eight(tmp_path, pixels):
    path = tmp_path / "deep.png"
    cv2.imwrite(str(path), pixels[..., ::-1].astype(np.uint16) * 257)
    assert difference(read_image(path, orientation="stored"), pixels) <= 1
    header = b"IHDR" + struct.pack(">IIBBBBB", 81, 61, 16, 4, 0, 0, 0)  # grey with alpha, which no library writes
    data = b"IDAT" + zlib.compress(bytes(61 * (1 + 81 * 4)))
    parts = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, data))
    path.write_bytes(b"".join((b"\x89PNG\r\n\x1a\n", *parts, b"\0\0\0\0IEND\xae\x42\x60\x82")))
    assert image_parameters(path, "stored")[:3] == (81, 61, 2)
    assert read_image(path, orientation="stored").shape == (61, 81, 3)


def test_the_tag_counts_where_the_first_read_ends_within_the_header(tmp_path, pixels):
    path, exif, file = tmp_path / "a.jpg", Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    data = file.getvalue()
    frame = data.index(b"\xff\xc0")
    length = 2**12 - 20 - frame
    path.write_bytes(data[:frame] + b"\xff\xe2" + struct.pack(">H", length) + bytes(length - 2) + data[frame:])
    assert image_parameters(path, "exif", md5=False)[:2] == (61, 81)


@pytest.mark.parametrize(
    ("shorter", "longer", "shape"),
    [
        (0, 0, (240, 400)),
        (30, 0, (30, 50)),
        (31, 0, (60, 100)),
        (121, 0, (240, 400)),
        (0, 50, (30, 50)),
        (0, 201, (240, 400)),
        (30, 101, (120, 200)),
    ],
)
def test_reduced_decoding_keeps_both_minimum_sides(tmp_path, pixels, shorter, longer, shape):
    image, sides = cv2.resize(pixels, (400, 240)), {"minimum_side": shorter, "minimum_longer_side": longer}
    for suffix, expected in ((".jpg", shape), (".png", (240, 400))):
        Image.fromarray(image).save(tmp_path / f"big{suffix}", quality=95)
        read = read_image(tmp_path / f"big{suffix}", orientation="stored", **sides)
        assert read.shape[:2] == expected
        small = cv2.resize(image, expected[::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(read.astype(int) - small.astype(int)).mean() < 2


# === Files that are odd, cut or damaged ===============================================================================
def test_harmless_oddities(jpeg, tmp_path, pixels):
    """Bytes behind the end, an EXIF tag that is garbage, a PNG text that Pillow refuses to unpack."""
    path, data = jpeg
    path.write_bytes(data + bytes(500))
    text, garbage = tmp_path / "text.png", tmp_path / "garbage.jpg"
    Image.fromarray(pixels).save(garbage, exif=b"Exif\x00\x00garbage that is no TIFF header")
    info = PngImagePlugin.PngInfo()
    info.add(b"zTXt", b"long\0\0" + zlib.compress(bytes(2**21)))
    Image.fromarray(pixels).save(text, pnginfo=info)
    for odd in (path, garbage, text):
        assert read_image(odd, orientation="exif").shape == (61, 81, 3)
        assert [image_parameters(odd, "exif", md5=md5)[:2] for md5 in (True, False)] == [(81, 61)] * 2


def test_a_header_that_is_longer_than_the_first_read(jpeg):
    """Thumbnails and colour profiles lie in front of the size; decoders skip stray bytes between segments."""
    path, data = jpeg
    for segments in (1, 5):
        segment = b"\xff\xe2\xff\xff" + bytes(0xFFFD)
        longer = data[:2] + segment * segments + b"stray" + data[2:]
        path.write_bytes(longer)
        assert image_parameters(path, "exif", md5=False)[:2] == (81, 61)
        assert read_image(path, orientation="stored").shape == (61, 81, 3)
        path.write_bytes(longer[:-30])
        refused(path, "cut short")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path, pixels, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    for end in np.linspace(0, len(data) - 5, 25).astype(int):
        path.write_bytes(data[:end])
        refused(path, "is empty" if end == 0 else "is")


def test_the_end_mark_of_a_thumbnail_does_not_hide_a_cut(jpeg):
    path, data = jpeg
    thumbnail = b"\xff\xe1\x00\x08\xff\xd8\x12\xff\xd9\x00"
    path.write_bytes(data[:2] + thumbnail + data[2:])
    assert read_image(path, orientation="stored").shape == (61, 81, 3)
    path.write_bytes(data[:2] + thumbnail + data[2:-20])
    refused(path, "cut short")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_of_a_header_is_a_reason_or_a_size(tmp_path, pixels, suffix):
    """With and without the MD5 the answer is the same, and nothing but an InputError is raised."""
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    answers = []
    for _ in range(150):
        damaged = bytearray(data)
        for place in rng.integers(2, min(700, len(data)), 3):
            damaged[place] = rng.choice([0, 0xFF, rng.integers(256)])
        path.write_bytes(damaged)
        for md5 in (True, False):
            try:
                answers.append(image_parameters(path, "stored", md5=md5)[:2])
                assert min(answers[-1]) > 0
            except InputError as error:
                answers.append(str(error))
    assert answers[::2] == answers[1::2]


def test_files_that_are_no_image(tmp_path, jpeg):
    path, data = jpeg
    refused(tmp_path / "none.jpg", "cannot be read")
    for content in (b"<html>404</html>", b"RIFF\4\0\0\0WAVE"):
        path.write_bytes(content)
        refused(path, "no JPEG, PNG, WebP or BMP")
    for frame in (b"\xff\xc3\0\x11\x08", b"\xff\xc0\0\x11\x0c"):  # lossless, 12 bits
        path.write_bytes(data.replace(b"\xff\xc0\0\x11\x08", frame))
        refused(path, "of a kind that cannot be decoded")
