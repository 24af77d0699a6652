"""Proves that images are the same from memory and from files, that memory stays within its limits, and the policy for
files that cannot be read."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from oid.files import InputError
from oid.images import loader as module
from oid.images.loader import BadImages, ImageLoader, reduce_to


@pytest.fixture
def files(tmp_path):
    """Six smooth images of 400 x 240 pixels in JPEG, told apart by their brightness."""
    paths = []
    for number in range(6):
        image = cv2.resize(np.random.default_rng(number).integers(0, 60, (6, 10, 3)).astype("uint8"), (400, 240))
        paths.append(tmp_path / f"{number}.jpg")
        assert cv2.imwrite(str(paths[-1]), image + 30 * number)
    return paths


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The names of the files that are read."""
    names, original = [], module.read_image

    def note(path, **options):
        names.append(path.stem)
        return original(path, **options)

    monkeypatch.setattr(module, "read_image", note)
    return names


def make(files, *, side: int = 96, **options) -> ImageLoader:
    return ImageLoader(
        files, lambda image: reduce_to(image, side), orientation="stored", minimum_longer_side=side, **options
    )


def loaded(loader: ImageLoader, *numbers: int) -> list[np.ndarray]:
    return [loader.load(number).pixels for number in numbers]


@pytest.mark.parametrize(("side", "shape"), [(96, (58, 96)), (200, (120, 200)), (202, (121, 202)), (640, (240, 400))])
def test_images_are_prepared_and_keep_their_shape_before(files, side, shape):
    """A JPEG may be decoded at a reduced size: its sides are as 5 to 3 before."""
    image = make(files, side=side).load(0)
    assert image.pixels.shape == (*shape, 3)
    assert image.size[1] * 3 == image.size[0] * 5 >= 5 * shape[0]
    whole = cv2.cvtColor(cv2.imread(str(files[0])), cv2.COLOR_BGR2RGB)
    expected = cv2.resize(whole, shape[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(image.pixels.astype(int) - expected).max() <= 6


def test_the_cache_holds_no_more_than_it_may(files, read):
    size = make(files).load(0).pixels.nbytes
    read.clear()
    loader = make(files, cache_bytes=3 * size + 100)
    loaded(loader, *range(6), *range(6))
    assert read == ["0", "1", "2", "3", "4", "5", "3", "4", "5"]


def test_recent_images_are_not_read_again(files, read):
    loaded(make(files, recent=3), 0, 1, 2, 0, 3, 0, 1, 2)  # 0 stays, being used; 1 goes for 3, and so on
    assert read == ["0", "1", "2", "3", "1", "2"]


def test_threads_and_memory_give_the_same_images(files):
    """Room for two images, and two more that are recent."""
    loader, expected = make(files, cache_bytes=40_000, recent=2), make(files)
    numbers = np.random.default_rng(0).integers(0, 6, 200).tolist()
    for number, image in zip(numbers, loader.load_all(numbers, threads=4, ahead=8), strict=True):
        np.testing.assert_array_equal(image.pixels, expected.load(number).pixels)
        assert image.size == expected.load(number).size


def test_an_unreadable_file_is_reported_once_and_gives_none(files, read):
    files[2].write_bytes(files[2].read_bytes()[:500])
    said: list[str] = []
    loader = make(files, report=said.append, consequence="its row stays empty")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(loader.load, [2, 1, 2, 2]))
    assert [image is None for image in found] == [True, False, True, True]
    assert list(loader.bad) == [2]
    assert len(said) == 1
    assert said[0].endswith("2.jpg is cut short: replace it or remove it; its row stays empty (1)")
    read.clear()
    assert loader.load(2) is None
    assert read == []


@pytest.mark.parametrize(
    ("limit", "bad", "message"), [(0, 1, r"0\.jpg is cut short"), (2, 3, "3 of 6 images"), (6, 6, "6 of 6")]
)
def test_more_unreadable_files_than_allowed_are_an_error(files, limit, bad, message):
    for path in files[:bad]:
        path.write_bytes(path.read_bytes()[:500])
    loader = make(files, max_bad_images=limit)
    for number in range(bad - 1):
        assert loader.load(number) is None
    with pytest.raises(BadImages, match=message) as error:
        loader.load(bad - 1)
    assert isinstance(error.value, InputError)


def test_shrinking():
    image = np.zeros((30, 70, 3), "uint8")
    assert reduce_to(image, 70) is image
    assert reduce_to(image, 35).shape == (15, 35, 3)
    assert reduce_to(np.zeros((1, 500, 3), "uint8"), 50).shape == (1, 50, 3)
