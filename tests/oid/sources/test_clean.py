"""Proves that boxes follow the stored pixels when the annotation file gives another size of the image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from oid.images.read import turn
from oid.sources.clean import turn_back
from tests.helpers.own_data import HEIGHT, WIDTH, found, read_clean, told, voc_object, with_item


@pytest.mark.parametrize(
    ("size", "problem", "expected"),
    [
        ((0, 0), "size missing or not positive", (0, 0, 10, 20)),
        (("", "x"), "size missing or not positive", (0, 0, 10, 20)),
        ((41, 30), "size is not that of the image", (0, 0, 10, 20)),
        ((80, 60), "size is not that of the image", (0, 0, 5, 10)),  # the image was made smaller afterwards
        ((HEIGHT, WIDTH), "size is not that of the image", (0, 0, 10, 20)),
    ],
)
def test_a_wrong_size_is_reported_and_the_images_counts(size, problem, expected, tmp_path):
    reader = with_item("voc", tmp_path, voc_object("cat", (1, 1, 10, 20)), size)
    assert found(read_clean(reader, "train"))["a"] == [("cat", expected)]
    assert [row.problem for row in reader.problems] == [problem]


def test_boxes_of_an_image_that_its_exif_tag_turns_are_turned_back(tmp_path):
    """Labelling tools show the turned image; the pixels in the file are not turned."""
    reader = with_item("voc", tmp_path, voc_object("cat", (3, 5, 8, 10)), (HEIGHT, WIDTH))
    path = tmp_path / "JPEGImages" / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    (image,) = (image for image in read_clean(reader, "train") if image.name == "a")
    assert told(reader.problems) == [("", "size of the EXIF-turned image", "boxes turned back")]
    assert image.boxes[0].corners == turn_back((2, 4, 8, 10), 6, (HEIGHT, WIDTH))
    assert image.size == (WIDTH, HEIGHT)


@given(st.integers(1, 8), st.integers(0, 5), st.integers(0, 3))
def test_turning_back_undoes_turning(orientation, left, top):
    stored = np.zeros((6, 9, 1))
    stored[top : top + 2, left : left + 3] = 1
    turned = turn(stored, orientation)
    rows, columns = np.nonzero(turned[..., 0])
    corners = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert turn_back(corners, orientation, (turned.shape[1], turned.shape[0])) == (left, top, left + 3, top + 2)
