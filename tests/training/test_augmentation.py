"""Augmented pictures keep their boxes, parts and verified classes in place: single, mosaic, mixup."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training.augmentation import augment, mixup, mosaic
from training.samples import Sample

from tests.helpers.drawn_objects import check_places, check_sample, empty, picture
from training import augmentation

pytestmark = pytest.mark.usefixtures("dark_outside")

SIDE = 128
SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.sampled_from([64, 97, 128, 201])


def flat(value: int, verified=None) -> Sample:
    """A picture of one grey."""
    return empty(np.full((300, 300, 3), value, "uint8"), verified=verified)


# === Boxes ===========================================================================================================
@pytest.mark.parametrize("crop", ["zoom", "ssd"])
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, side=SIDES, keep_aspect=st.booleans())
def test_the_boxes_of_a_changed_picture(crop, seed, side, keep_aspect):
    """With the colours changed as in training, each box is full of its class's colour."""
    rng = np.random.default_rng(seed)
    after = augment([picture(rng)], side, rng, crop=crop, keep_aspect=keep_aspect)
    check_sample(after, side)
    for label in after.labels:
        x0, y0, x1, y1 = (after.boxes[after.labels == label][0] * side).astype(int)
        if x1 - x0 >= 6 and y1 - y0 >= 6:
            inside = after.image[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].astype(int)
            others = [channel for channel in range(3) if channel != label]
            assert (inside[..., label] > inside[..., others].max(axis=2) + 40).all()


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, side=SIDES, keep_aspect=st.booleans())
def test_the_boxes_of_a_mosaic(seed, side, keep_aspect):
    """Four pictures of which three have one object each; the rectangles of a class lie in one tile."""
    rng = np.random.default_rng(seed)
    samples = [picture(rng, (label,)) for label in range(3)]
    samples.insert(int(rng.integers(4)), flat(0))
    after = mosaic(samples, side, rng, keep_aspect=keep_aspect)
    check_sample(after, side)
    check_places(after)


@pytest.mark.parametrize("crop", ["zoom", "ssd"])
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, side=SIDES, tiles=st.sampled_from([1, 4]))
def test_the_boxes_of_a_mixture(crop, seed, side, tiles):
    """Red, or red and green, in a picture or a mosaic; blue in the picture that is blended in: all half as bright."""
    rng = np.random.default_rng(seed)
    samples = [picture(rng, (0,)), picture(rng, (1,)), flat(0), flat(0)][:tiles]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmentation, "jitter_colours", lambda image, rng: image)
        after = augment(samples, side, rng, mixed=picture(rng, (2,)), crop=crop)
    check_sample(after, side)
    check_places(after, edge=66)
    assert after.image.max() <= 128


def test_the_tests_above_have_seen_whole_objects():
    whole = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        samples = [picture(rng, (0,)), picture(rng, (1,)), flat(0), flat(0)]
        whole += list(check_places(mosaic(samples, SIDE, rng), (0, 1)).values()).count("whole")
    assert whole > 40


@pytest.mark.parametrize("crop", ["zoom", "ssd"])
def test_a_box_without_area_disappears(crop):
    boxes = np.array([[0.2, 0.2, 0.2, 0.6], [0.5, 0.5, 0.5, 0.5], [0.2, 0.2, 0.6, 0.6]], "float32")
    before = dataclasses.replace(picture(np.random.default_rng(6)), boxes=boxes, labels=np.arange(3, dtype="int32"))
    for seed in range(20):
        after = augment([before], SIDE, np.random.default_rng(seed), crop=crop)
        check_sample(after, SIDE)
        assert set(after.labels) | set(after.region_labels) <= {2}


@pytest.mark.parametrize("crop", ["zoom", "ssd"])
@pytest.mark.parametrize("mixed", [None, flat(30)], ids=["alone", "mixed"])
@pytest.mark.parametrize("tiles", [1, 4])
def test_pictures_without_boxes_or_verified_classes(crop, mixed, tiles):
    after = augment([flat(9)] * tiles, SIDE, np.random.default_rng(7), mixed=mixed, crop=crop)
    check_sample(after, SIDE)
    assert len(after.labels) == len(after.region_labels) == 0
    assert after.verified is None


@pytest.mark.parametrize("crop", ["zoom", "ssd"])
@pytest.mark.parametrize("keep_aspect", [False, True])
def test_very_flat_and_very_small_pictures(crop, keep_aspect):
    rng = np.random.default_rng(8)
    for height, width in ((1, 1), (1, 200), (200, 1), (3, 5)):
        image = np.full((height, width, 3), 200, "uint8")
        box = np.array([[0, 0, 1, 1]], "float32")
        sample = dataclasses.replace(empty(image), boxes=box, labels=np.zeros(1, "int32"))
        for samples in ([sample], [sample] * 4):
            for _ in range(5):
                check_sample(augment(samples, SIDE, rng, mixed=sample, crop=crop, keep_aspect=keep_aspect), SIDE)


# === Parts and verified classes ======================================================================================
def rows(*values: tuple[int, ...]) -> list[np.ndarray]:
    return [np.array([value], "uint8") for value in values]


@pytest.mark.parametrize("side", [64, 97])
def test_the_parts_of_a_mosaic_are_its_tiles(side):
    """Each part shows its own picture alone, has that picture's verified classes, and together they are everything."""
    known = rows((1, 0, 0, 1), (0, 1, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1))
    for seed in range(30):
        tiles = [flat(40 * k, known[k - 1]) for k in (1, 2, 3, 4)]
        after = mosaic(tiles, side, np.random.default_rng(seed))
        np.testing.assert_array_equal(after.verified, np.concatenate(known))
        covered = np.zeros((side, side), int)
        for k, part in enumerate(after.parts, start=1):
            x0, y0, x1, y1 = np.rint(part * side).astype(int)
            np.testing.assert_allclose(part * side, (x0, y0, x1, y1), atol=1e-4)  # whole pixels
            covered[y0:y1, x0:x1] += 1
            inside = np.unique(after.image[y0:y1, x0:x1])
            assert inside.max() == 40 * k
            assert set(inside) <= {*range(40 * k + 1)}  # the picture, or darkness beside it
        assert (covered == 1).all()
        centre = after.parts[0, 2:]
        assert np.all((centre > 0.29) & (centre < 0.71))


@pytest.mark.parametrize("crop", ["zoom", "ssd"])
@pytest.mark.parametrize("keep_aspect", [False, True])
def test_a_single_picture_is_one_part(crop, keep_aspect):
    (known,) = rows((0, 1, 1))
    after = augment([flat(50, known)], SIDE, np.random.default_rng(1), crop=crop, keep_aspect=keep_aspect)
    np.testing.assert_array_equal(after.parts, [[0, 0, 1, 1]])
    np.testing.assert_array_equal(after.verified, known)


def test_a_mixture_is_verified_where_both_are():
    known = rows((1, 1, 0, 0), (0, 1, 0, 0), (1, 1, 1, 1), (0, 0, 0, 0))
    (other,) = rows((1, 0, 1, 0))
    single = mixup(flat(100, known[0]), flat(50, other))
    np.testing.assert_array_equal(single.verified, [[1, 0, 0, 0]])
    assert (single.image == 75).all()
    tiles = mosaic([flat(100, row) for row in known], 300, np.random.default_rng(0))
    both = mixup(tiles, flat(50, other))
    np.testing.assert_array_equal(both.parts, tiles.parts)
    np.testing.assert_array_equal(both.verified, [[1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    with pytest.raises(ValueError, match="has 4 parts"):
        mixup(flat(100, known[0]), tiles)


def test_a_mixture_has_the_boxes_and_regions_of_both():
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 0.5, (6, 2)).astype("float32")
    boxes = np.concatenate([boxes, boxes + 0.2], axis=1)
    labels = np.arange(6, dtype="int32")

    def sample(first: int):
        rows, rest = slice(first, first + 2), slice(first + 2, first + 3)
        return Sample(flat(1).image, boxes[rows], labels[rows], boxes[rest], labels[rest])

    both = mixup(sample(0), sample(3))
    np.testing.assert_array_equal(both.boxes, boxes[[0, 1, 3, 4]])
    np.testing.assert_array_equal(both.labels, [0, 1, 3, 4])
    np.testing.assert_array_equal(both.regions, boxes[[2, 5]])
    np.testing.assert_array_equal(both.region_labels, [2, 5])


# === Chance ==========================================================================================================
