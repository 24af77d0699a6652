"""Images: found with the right id, read as RGB whatever the file holds, turned by one policy, refused when damaged."""

import hashlib
import os

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from oid.files import InputError
from oid.images.find import find_images, list_images
from oid.images.read import image_parameters, read_image, turn


@pytest.fixture(scope="module")
def pixels():
    """A smooth picture (61, 81, 3), so that JPEG keeps it nearly exactly; its four corners differ."""
    coarse = np.random.default_rng(1).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, (81, 61), interpolation=cv2.INTER_CUBIC)


def difference(first, second):
    assert first.shape == second.shape
    return np.abs(first.astype(int) - second.astype(int)).max()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_orientation_equals_pillows(tmp_path, pixels, suffix, tag):
    exif = Image.Exif()
    exif[0x0112] = tag
    path = tmp_path / f"turned{suffix}"
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    turned = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    stored = np.asarray(Image.open(path).convert("RGB"))
    assert difference(read_image(path, orientation="exif"), turned) <= 8
    assert difference(read_image(path, orientation="stored"), stored) <= 8
    for policy, expected in (("exif", turned), ("stored", stored)):
        for md5 in (True, False):
            width, height, *_ = image_parameters(path, policy, md5=md5)
            assert (height, width) == expected.shape[:2]


def test_turning_back_and_forth(pixels):
    back = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
    for tag, inverse in back.items():
        assert difference(turn(turn(pixels, tag), inverse), pixels) == 0


@pytest.mark.parametrize(
    ("mode", "suffix", "channel"),
    [
        ("L", ".jpg", 1),
        ("CMYK", ".jpg", 4),
        ("RGB", ".bmp", 3),
        ("L", ".png", 1),
        ("LA", ".png", 2),
        ("RGBA", ".png", 4),
        ("P", ".png", 3),
        ("1", ".png", 1),
        ("RGB", ".webp", 3),
        ("RGBA", ".webp", 4),
    ],
)
def test_every_kind_comes_as_rgb(tmp_path, pixels, mode, suffix, channel):
    picture = Image.fromarray(pixels).convert("RGBA" if mode in ("RGBA", "LA") else "RGB")
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.fromarray(pixels[..., 0]).point(lambda value: max(value, 1)))
    path = tmp_path / f"image{suffix}"
    (picture.quantize(200) if mode == "P" else picture.convert(mode)).save(path)
    read = read_image(path, orientation="stored")
    assert read.dtype == np.uint8
    assert read.flags.writeable
    assert difference(read, np.asarray(Image.open(path).convert("RGB"))) <= 8
    assert image_parameters(path, "stored")[2] == channel


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\x00\x00MM\x00*\x00\x00\x00\x08"}])
@pytest.mark.parametrize(("mode", "channel"), [("RGB", 3), ("RGBA", 4)])
def test_each_kind_of_webp(tmp_path, pixels, options, mode, channel):
    """Lossy, lossless and with further chunks, each with and without alpha: three headers of different make."""
    picture = Image.fromarray(pixels)
    if mode == "RGBA":
        picture.putalpha(Image.fromarray(pixels[..., 0]))
    path = tmp_path / "a.webp"
    picture.save(path, **options)
    for md5 in (True, False):
        assert image_parameters(path, "stored", md5=md5)[:3] == (81, 61, channel)


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_an_animation_is_its_first_picture(tmp_path, pixels, suffix):
    path = tmp_path / f"a{suffix}"
    frames = [Image.fromarray(np.roll(pixels, shift, axis=1)) for shift in (0, 20, 40)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert image_parameters(path, "stored")[:3] == (81, 61, 3)
    read = read_image(path, orientation="stored")
    assert difference(read, np.asarray(Image.open(path).convert("RGB"))) <= 8


def test_sixteen_bits_become_eight(tmp_path, pixels):
    cv2.imwrite(str(tmp_path / "deep.png"), pixels[..., ::-1].astype(np.uint16) * 257)
    assert difference(read_image(tmp_path / "deep.png", orientation="stored"), pixels) <= 1


def test_parameters_of_a_known_file(tmp_path, pixels):
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    assert image_parameters(path, "stored") == (81, 61, 3, len(data), hashlib.md5(data).hexdigest())
    assert image_parameters(path, "stored", md5=False) == (81, 61, 3, len(data), "")


@pytest.mark.parametrize(("side", "shape"), [(0, (240, 400)), (30, (30, 50)), (31, (60, 100)), (121, (240, 400))])
def test_reduced_decoding_keeps_the_minimum_side(tmp_path, pixels, side, shape):
    picture = cv2.resize(pixels, (400, 240), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(picture).save(tmp_path / "big.jpg", quality=95)
    read = read_image(tmp_path / "big.jpg", orientation="stored", minimum_side=side)
    assert read.shape[:2] == shape
    small = cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(read.astype(int) - small.astype(int)).mean() < 2
    Image.fromarray(picture).save(tmp_path / "big.png")
    assert read_image(tmp_path / "big.png", orientation="stored", minimum_side=side).shape[:2] == (240, 400)


@pytest.mark.parametrize(
    ("shorter", "longer", "shape"),
    [(0, 50, (30, 50)), (0, 51, (60, 100)), (0, 201, (240, 400)), (31, 50, (60, 100)), (30, 101, (120, 200))],
)
def test_reduced_decoding_keeps_the_longer_side(tmp_path, pixels, shorter, longer, shape):
    Image.fromarray(cv2.resize(pixels, (400, 240))).save(tmp_path / "big.jpg")
    options = {"minimum_side": shorter, "minimum_longer_side": longer}
    assert read_image(tmp_path / "big.jpg", orientation="stored", **options).shape[:2] == shape


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path, pixels, suffix):
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    Image.fromarray(pixels).save(whole)
    data = whole.read_bytes()
    for end in np.linspace(0, len(data) - 5, 25).astype(int):
        cut.write_bytes(data[:end])
        with pytest.raises(InputError, match=cut.name):
            read_image(cut, orientation="stored")
        for md5 in (True, False):
            with pytest.raises(InputError, match=cut.name):
                image_parameters(cut, "stored", md5=md5)


def test_a_thumbnails_end_mark_does_not_hide_a_cut(tmp_path, pixels):
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    application_data = b"\xff\xe1\x00\x08\xff\xd8\x12\xff\xd9\x00"
    path.write_bytes(data[:2] + application_data + data[2:])
    assert read_image(path, orientation="stored").shape == (61, 81, 3)
    path.write_bytes(data[:2] + application_data + data[2:-20])
    with pytest.raises(InputError, match="cut short"):
        read_image(path, orientation="stored")


def test_bytes_after_the_end_do_no_harm(tmp_path, pixels):
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes() + bytes(500))
    assert read_image(path, orientation="stored").shape == (61, 81, 3)


def test_a_header_that_is_longer_than_the_first_read(tmp_path, pixels):
    """Thumbnails and colour profiles lie in front of the size; decoders skip stray bytes between segments."""
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    for segments in (1, 5):
        segment = b"\xff\xe2\xff\xff" + bytes(0xFFFD)
        path.write_bytes(data[:2] + segment * segments + b"stray" + data[2:])
        assert image_parameters(path, "exif", md5=False)[:2] == (81, 61)
        assert read_image(path, orientation="stored").shape == (61, 81, 3)
        path.write_bytes(path.read_bytes()[:-30])
        for md5 in (True, False):
            with pytest.raises(InputError, match="cut short"):
                image_parameters(path, "stored", md5=md5)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
def test_any_damage_of_the_header_is_a_reason_or_a_size(tmp_path, pixels, suffix):
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
                width, height, *_ = image_parameters(path, "stored", md5=md5)
                assert width > 0
                assert height > 0
                answers.append((width, height))
            except InputError as error:
                answers.append(str(error))
    assert answers[::2] == answers[1::2]


def test_damaged_exif_is_as_stored(tmp_path, pixels):
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path, exif=b"Exif\x00\x00garbage that is no TIFF header")
    assert read_image(path, orientation="exif").shape == (61, 81, 3)
    assert image_parameters(path, "exif")[0] == 81


@pytest.mark.parametrize(("content", "reason"), [(b"", "is empty"), (b"<html>404</html>", "no JPEG, PNG, WebP or BMP")])
def test_no_image_at_all(tmp_path, content, reason):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    for read in (lambda: read_image(path, orientation="stored"), lambda: image_parameters(path, "stored")):
        with pytest.raises(InputError, match=reason):
            read()


def test_missing_file_and_missing_folder(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path / "none.jpg", orientation="stored")
    with pytest.raises(InputError, match="does not exist"):
        find_images(tmp_path / "none")


def test_a_kind_of_jpeg_that_nothing_decodes(tmp_path, pixels):
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes().replace(b"\xff\xc0", b"\xff\xc3"))  # lossless
    with pytest.raises(InputError, match="of a kind that cannot be decoded"):
        image_parameters(path, "stored")


def test_what_is_no_image_by_its_name_or_place_is_listed(tmp_path):
    for name in ("a.jpg", "a.txt", "film.gif", "jpg", ".hidden.txt", "abc/xyz.jpg", "abc/abcd.jpg", "longer/text.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / os.fsdecode(b"b\xff.jpg")).write_bytes(b"")
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "c.jpg").symlink_to(tmp_path / "a.jpg")
    images = list_images(tmp_path)
    assert images.names == ["a.jpg", "abc/abcd.jpg", "c.jpg"]
    reasons = {os.path.relpath(path, tmp_path): reason for path, reason in images.passed_over}
    assert reasons.keys() == {"a.txt", "film.gif", "jpg", "abc/xyz.jpg", "lost.jpg", os.fsdecode(b"b\xff.jpg")}
    assert "not there" in reasons["lost.jpg"]
    assert "suffixes" in reasons["film.gif"]
    assert "abc" in reasons["abc/xyz.jpg"]
    assert "UTF-8" in reasons[os.fsdecode(b"b\xff.jpg")]


def test_find_images_flat_and_in_prefix_folders(tmp_path):
    files = ["b.jpg", "a.JPEG", "007.png", "1e5.bmp", "c.d.webp", "abc/abcdef.jpg", "x1y/x1yz.Jpg"]
    passed_over = [".hidden.jpg", "notes.txt", "abc/xyz.jpg", "abc/.abcd.jpg", "longer/longer1.jpg", "jpg"]
    for name in files + passed_over:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    found = find_images(tmp_path)
    assert list(found) == sorted(["b", "a", "007", "1e5", "c.d", "abcdef", "x1yz"])
    assert {p.relative_to(tmp_path).as_posix() for p in found.values()} == set(files)
    assert find_images(tmp_path / "longer" / "..").keys() == found.keys()


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("abcd.jpg", "abc/abcd.jpg")])
def test_two_files_with_one_id(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError) as error:
        find_images(tmp_path)
    assert all(name in str(error.value) for name in names)
