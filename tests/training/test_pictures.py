"""Proves that pictures are the same from memory and from the disk, and that memory stays within its limits."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from oid.files import InputError
from training import pictures as module
from training.batches import Batches
from training.data_set import read_data_set
from training.pictures import Pictures, reduce_to


@pytest.fixture
def files(tmp_path):
    """Six smooth pictures of 400 x 240 pixels in JPEG, told apart by their brightness."""
    paths = []
    for number in range(6):
        image = cv2.resize(np.random.default_rng(number).integers(0, 60, (6, 10, 3)).astype("uint8"), (400, 240))
        paths.append(tmp_path / f"{number}.jpg")
        assert cv2.imwrite(str(paths[-1]), image + 30 * number)
    return paths


def make(files, **options) -> Pictures:
    return Pictures(files, **{"image_size": 60, "orientation": "stored", "cache_bytes": 0, **options})


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The names of the files that are read."""
    names, original = [], module.read_image

    def note(path, **options):
        names.append(path.stem)
        return original(path, **options)

    monkeypatch.setattr(module, "read_image", note)
    return names


@pytest.mark.parametrize(
    ("image_size", "shape"), [(60, (58, 96)), (125, (120, 200)), (126, (121, 202)), (400, (240, 400))]
)
def test_pictures_are_reduced_to_what_the_network_needs(files, image_size, shape):
    """A side of 1.6 times the network's: of 400 pixels 96, 200, 202, or all."""
    picture = make(files, image_size=image_size)[0]
    assert picture.shape == (*shape, 3)
    whole = cv2.cvtColor(cv2.imread(str(files[0])), cv2.COLOR_BGR2RGB)
    expected = cv2.resize(whole, shape[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(picture.astype(int) - expected).max() <= 6


def test_the_cache_holds_no_more_than_it_may(files, read):
    size = make(files)[0].nbytes
    pictures = make(files, cache_bytes=3 * size + 100)
    for number in range(6):
        pictures[number]
    assert pictures.cached_bytes == 3 * size
    read.clear()
    for number in (0, 1, 2):
        pictures[number]
    assert read == []


def test_recent_pictures_are_not_read_again(files, read, monkeypatch):
    monkeypatch.setattr(module, "RECENT_PICTURES", 3)
    pictures = make(files)
    for number in (0, 1, 2, 0, 3, 0, 1, 2):  # 0 stays, being used; 1 goes for 3, and so on
        pictures[number]
    assert read == ["0", "1", "2", "3", "1", "2"]
    monkeypatch.setattr(module, "RECENT_BYTES", 2 * pictures[0].nbytes)
    pictures = make(files)
    read.clear()
    for number in (0, 1, 2, 1, 2, 0):
        pictures[number]
    assert read == ["0", "1", "2", "0"]


def test_threads_and_a_cache_give_the_same_pictures(files, monkeypatch):
    monkeypatch.setattr(module, "RECENT_PICTURES", 2)
    pictures, expected = make(files, cache_bytes=200_000), make(files)
    numbers = np.random.default_rng(0).integers(0, 6, 200).tolist()
    with ThreadPoolExecutor(4) as pool:
        for number, picture in zip(numbers, pool.map(pictures.__getitem__, numbers), strict=True):
            np.testing.assert_array_equal(picture, expected[number])
    assert pictures.cached_bytes == sum(picture.nbytes for picture in pictures._cache.values()) <= 200_000


def test_mosaics_read_no_picture_twice(photographs, read):
    data = read_data_set(*photographs, "1", "train")
    batches = Batches(data, image_size=64, batch_size=4, mosaic=1.0, mixup=0.5, close_at=100, cache_bytes=0)
    for step in range(6):
        batches.batch(step)
    assert len(read) == len(set(read)) == len(data)


def test_a_file_that_cannot_be_read_is_named_each_time(files):
    files[2].write_bytes(files[2].read_bytes()[:500])
    pictures = make(files, cache_bytes=10**6)
    for _ in range(2):
        with pytest.raises(InputError, match=r"2\.jpg is cut short"):
            pictures[2]


def test_shrinking():
    picture = np.zeros((30, 70, 3), "uint8")
    assert reduce_to(picture, 70) is picture
    assert reduce_to(picture, 35).shape == (15, 35, 3)
    assert reduce_to(np.zeros((1, 500, 3), "uint8"), 50).shape == (1, 50, 3)
