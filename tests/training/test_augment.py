"""Boxes stay on their objects in every view and in mosaics: drawn rectangles are found again by their colours."""

import colorsys
import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oid.boxes.suppression import iou_matrix
from tests.helpers.drawn_objects import NO_BOXES, NO_LABELS, check_places, check_sample, empty, picture
from training import augment as module
from training.augment import (
    BRIGHTNESS,
    HUE,
    LUMA,
    Sample,
    affine_view,
    augment,
    colour_matrix,
    jitter_colours,
    mosaic,
    rectangle_view,
    ssd_patch,
    ssd_view,
    zoomed_view,
)

SIDE = 128
SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.sampled_from([64, 97, 128, 201])
VIEWS = {
    "zoom": lambda sample, side, rng, **options: zoomed_view(sample, side, side, (0.6, 1.7), side, rng, **options),
    "far zoom": lambda sample, side, rng, **options: zoomed_view(sample, side, side, (0.1, 6), side, rng, **options),
    "ssd": ssd_view,
}


@pytest.fixture(scope="module", autouse=True)
def dark_outside():
    """Outside the image all is as dark as its ground, so that only objects have a colour."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FILL", (0, 0, 0))
        yield


def flat(value: int, verified=None) -> Sample:
    """An image of one grey."""
    return empty(np.full((300, 300, 3), value, "uint8"), verified=verified)


# === Every view ======================================================================================================
@pytest.mark.parametrize("view_name", VIEWS)
@pytest.mark.parametrize("keep_aspect", [False, True], ids=["warp", "letterbox"])
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, side=SIDES)
@example(seed=18681931, side=201)  # far zoom stretches 94 x 93 pixels twelvefold and cuts an object in its blur
def test_boxes_stay_on_their_objects(view_name, keep_aspect, seed, side):
    rng = np.random.default_rng(seed)
    after = VIEWS[view_name](picture(rng), side, rng, keep_aspect=keep_aspect)
    check_sample(after, side)
    check_places(after)


@pytest.mark.parametrize("view_name", ["far zoom", "ssd"])
def test_the_test_above_sees_whole_cut_and_lost_boxes(view_name):
    became = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        became += check_places(VIEWS[view_name](picture(rng), SIDE, rng)).values()
    assert min(became.count(what) for what in ("whole", "cut", "gone")) >= 10


@pytest.mark.parametrize("view_name", VIEWS)
def test_half_of_the_views_are_mirrored_and_no_two_are_equal(view_name):
    boxes = np.array([[0.45, 0.45, 0.5, 0.5], [0.55, 0.45, 0.6, 0.5]], "float32")  # 0 lies to the left of 1
    sample = Sample(np.zeros((SIDE, SIDE, 3), "uint8"), boxes, np.array([0, 1], "int32"), NO_BOXES, NO_LABELS)
    rng = np.random.default_rng(2)
    views = [VIEWS[view_name](sample, SIDE, rng) for _ in range(300)]
    views = [view for view in views if view.labels.tolist() == [0, 1]]
    mirrored = sum(view.boxes[0, 0] > view.boxes[1, 0] for view in views)
    assert len(views) > 110
    assert 0.4 < mirrored / len(views) < 0.6
    alike = 0.3 if view_name == "ssd" else 0.0  # SSD shows the whole picture in a fourteenth of the cases and more
    assert len({view.boxes.tobytes() for view in views}) >= (1 - alike) * len(views)


@pytest.mark.parametrize("view_name", VIEWS)
def test_letterbox_keeps_the_aspect_ratio(view_name):
    """A square object in a picture of 2:1 stays square; stretched it does not."""
    image = np.zeros((100, 200, 3), "uint8")
    sample = Sample(image, np.array([[0.48, 0.46, 0.52, 0.54]], "float32"), np.zeros(1, "int32"), NO_BOXES, NO_LABELS)
    kept, stretched = [], []
    for seed in range(60):
        for found, keep in ((kept, True), (stretched, False)):
            view = VIEWS[view_name](sample, SIDE, np.random.default_rng(seed), keep_aspect=keep)
            inner = np.all((view.boxes > 0) & (view.boxes < 1), axis=1)
            found += list(((view.boxes[:, 2] - view.boxes[:, 0]) / (view.boxes[:, 3] - view.boxes[:, 1]))[inner])
    assert len(kept) > 20
    assert np.mean(np.isclose(kept, 1, rtol=0.06)) > 0.9  # SSD's frame has whole pixels, and may cut the object
    assert np.mean(np.isclose(stretched, 1, rtol=0.06)) < 0.5


def test_regions_stay_regions_and_labels_stay_attached():
    rng = np.random.default_rng(5)
    corner = rng.uniform(0, 0.8, (40, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.02, 0.2, (40, 2))], axis=1).astype("float32")
    labels = np.arange(40, dtype="int32")
    sample = Sample(np.zeros((90, 70, 3), "uint8"), boxes[:20], labels[:20], boxes[20:], labels[20:])
    became_regions = 0
    for _ in range(50):
        after = zoomed_view(sample, SIDE, SIDE, (0.6, 3.0), SIDE, rng)
        check_sample(after, SIDE)
        found = np.concatenate([after.labels, after.region_labels])
        assert len(set(found)) == len(found)
        assert set(after.labels) <= set(range(20))
        became_regions += sum(after.region_labels < 20)
        # a view maps y linearly, so the old boxes say where each label must be
        kept = np.concatenate([after.boxes, after.regions])
        inner = np.all((kept > 0.001) & (kept < 0.999), axis=1)
        if inner.sum() >= 3:
            y_before, y_after = boxes[found[inner], 1], kept[inner, 1]
            np.testing.assert_allclose(np.polyval(np.polyfit(y_before, y_after, 1), y_before), y_after, atol=1e-4)
    assert became_regions > 20


def test_what_shrinks_is_averaged():
    """Fine stripes become their mean instead of flickering, at every scale below a half."""
    stripes = np.zeros((256, 256, 3), "uint8")
    stripes[:, ::2] = 200
    for scale in (0.5, 0.4, 0.25, 0.13):
        inside = int(256 * scale) - 1
        shown = affine_view(empty(stripes), inside, inside, (scale, scale, 0.0, 0.0)).image
        assert np.ptp(shown[1:-1, 1:-1].astype(int)) <= 1
        assert abs(int(shown[inside // 2, inside // 2, 0]) - 100) <= 1


# === One mapping =====================================================================================================
def test_a_mirrored_picture_has_a_mirrored_box():
    before = picture(np.random.default_rng(3), (1,))
    height, width = before.image.shape[:2]
    after = affine_view(before, width, height, (-1.0, 1.0, float(width), 0.0))
    np.testing.assert_array_equal(after.image, before.image[:, ::-1])
    x0, y0, x1, y1 = before.boxes[0]
    np.testing.assert_allclose(after.boxes[0], [1 - x1, y0, 1 - x0, y1], atol=1e-6)


def test_a_rectangle_of_whole_pixels_is_cut_out():
    image = np.random.default_rng(5).integers(0, 256, (40, 80, 3)).astype("uint8")
    shown = rectangle_view(empty(image), 20, 10, np.array([0.5, 0.25, 0.75, 0.5])).image
    np.testing.assert_array_equal(shown, image[10:20, 40:60])
    mirrored = rectangle_view(empty(image), 20, 10, np.array([0.5, 0.25, 0.75, 0.5]), mirrored=True).image
    np.testing.assert_array_equal(mirrored, image[10:20, 40:60][:, ::-1])


@pytest.mark.parametrize("shift", [0.0, -0.5, -0.79, -0.81, -1.2])
def test_a_box_cut_below_the_limit_becomes_a_region(shift):
    """The box reaches from 0.1 to 1.1 of the frame's width before it is shifted to the left: its area is its width."""
    box = np.array([[0.1, 0.2, 1.0, 0.8]], "float32")
    sample = Sample(np.zeros((50, 100, 3), "uint8"), box, np.array([2], "int32"), NO_BOXES, NO_LABELS)
    scale = 1 / 0.9
    after = affine_view(sample, 100, 50, (scale, 1.0, 100 * (0.1 - 0.1 * scale + shift), 0.0))
    left, right = max(0.0, 0.1 + shift), min(1.0, 1.1 + shift)
    visible = [[left, 0.2, right, 0.8]] if right > left else np.zeros((0, 4))
    enough = right - left >= 0.3
    found, other = (after.boxes, after.regions) if enough else (after.regions, after.boxes)
    np.testing.assert_allclose(found, visible, atol=1e-6)
    assert len(other) == 0
    assert (after.labels if enough else after.region_labels).tolist() == [2] * len(visible)


# === SSD's patches ===================================================================================================
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, boxes=st.booleans())
def test_a_patch_has_the_published_size_and_shape(seed, boxes):
    x0, y0, x1, y1 = ssd_patch(np.array([[0.2, 0.3, 0.6, 0.9]] * boxes).reshape(-1, 4), np.random.default_rng(seed))
    assert 0.5 - 1e-9 <= (x1 - x0) / (y1 - y0) <= 2 + 1e-9
    assert 0.3**2 - 1e-9 <= (x1 - x0) * (y1 - y0) <= 4.0**2 + 1e-9
    assert min(x0, y0) >= -3
    assert max(x1, y1) <= 4


@pytest.mark.parametrize("minimum", [0.1, 0.5, 0.7])
def test_a_patch_overlaps_a_box_as_much_as_is_drawn(minimum, monkeypatch):
    """Of the seven ways five ask for this much here, one for any patch, one for the whole: six sevenths obey."""
    boxes = np.array([[0.7, 0.8, 0.9, 0.9], [0.1, 0.1, 0.7, 0.8]], "float32")
    monkeypatch.setattr(module, "SSD_MINIMUM_IOU", (minimum,) * 5)
    monkeypatch.setattr(module, "SSD_LARGEST_EXPANSION", 1.0)
    monkeypatch.setattr(module, "SSD_TRIALS", 400)
    patches = np.array([ssd_patch(boxes, np.random.default_rng(seed)) for seed in range(400)])
    enough = iou_matrix(patches, boxes).max(axis=1) >= minimum
    whole = np.all(patches == (0, 0, 1, 1), axis=1)
    assert np.mean(enough | whole) >= 0.8
    assert 0.08 < np.mean(whole) < 0.25
    assert np.mean(enough & ~whole) > 0.6


def test_a_patch_is_drawn_in_another_way_where_none_overlaps_enough():
    """A box that no patch comes near leaves the whole canvas and any patch, as no box does."""
    far = [ssd_patch(np.array([[0.0, 0.0, 1e-3, 1e-3]]), np.random.default_rng(seed)) for seed in range(100)]
    none = [ssd_patch(NO_BOXES, np.random.default_rng(seed)) for seed in range(100)]
    np.testing.assert_array_equal(far, none)
    assert 30 < len({patch.tobytes() for patch in far}) < 100


# === Training images =================================================================================================
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
def test_a_box_without_area_disappears(crop):
    boxes = np.array([[0.2, 0.2, 0.2, 0.6], [0.5, 0.5, 0.5, 0.5], [0.2, 0.2, 0.6, 0.6]], "float32")
    before = dataclasses.replace(picture(np.random.default_rng(6)), boxes=boxes, labels=np.arange(3, dtype="int32"))
    for seed in range(20):
        after = augment([before], SIDE, np.random.default_rng(seed), crop=crop)
        check_sample(after, SIDE)
        assert set(after.labels) | set(after.region_labels) <= {2}


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
                check_sample(augment(samples, SIDE, rng, crop=crop, keep_aspect=keep_aspect), SIDE)


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


# === Colours =========================================================================================================
def test_colours_change_a_little_and_shapes_do_not():
    rng = np.random.default_rng(13)
    image = rng.integers(0, 256, (64, 64, 3)).astype("uint8")
    before = image.copy()
    changed = jitter_colours(image, rng)
    np.testing.assert_array_equal(image, before)  # the source is not changed
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert not np.array_equal(changed, image)
    black = np.zeros((8, 8, 3), "uint8")
    np.testing.assert_array_equal(jitter_colours(black, rng), black)


def test_grey_becomes_darker_or_brighter_but_stays_grey():
    brightness = []
    for seed in range(100):
        greys = np.repeat(np.arange(256, dtype="uint8"), 3).reshape(1, 256, 3)
        changed = jitter_colours(greys, np.random.default_rng(seed))[0].astype(int)
        assert np.ptp(changed, axis=1).max() <= 1  # rounding
        brightness.append(changed[100].mean())
    assert 100 * (1 - BRIGHTNESS) - 1 <= min(brightness) < 80
    assert 120 < max(brightness) <= 100 * (1 + BRIGHTNESS) + 1


def test_the_matrix_by_hand():
    np.testing.assert_allclose(colour_matrix(0, 1, 1), np.eye(3), atol=1e-7)
    np.testing.assert_allclose(colour_matrix(0, 1, 0.5), 0.5 * np.eye(3), atol=1e-7)
    third = colour_matrix(2 * np.pi / 3, 1, 1)  # a third of the circle: red to green, green to blue, blue to red
    np.testing.assert_allclose(third, [[0, 0, 1], [1, 0, 0], [0, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(colour_matrix(0, 0, 1), [LUMA] * 3, atol=1e-7)  # no saturation: the luma
    red = colour_matrix(0, 1.4, 1) @ (1, 0, 0)
    np.testing.assert_allclose(red, [1.4 - 0.4 * 0.299, -0.4 * 0.299, -0.4 * 0.299], atol=1e-6)
    np.testing.assert_allclose(red @ LUMA, 0.299, atol=1e-6)  # as bright as before


@pytest.mark.parametrize("turn", [-HUE, HUE / 2, HUE])
def test_a_turn_of_the_hue_is_that_of_hsv(turn):
    """For the colours that training shows: neither black nor fully saturated, the two agree to a hundredth."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        h, s, v = rng.random(), rng.uniform(0.1, 0.7), rng.uniform(0.3, 0.8)
        turned = colour_matrix(2 * np.pi * turn, 1, 1) @ colorsys.hsv_to_rgb(h, s, v)
        difference = colorsys.rgb_to_hsv(*turned)[0] - (h + turn)
        assert abs((difference + 0.5) % 1 - 0.5) < 0.01
