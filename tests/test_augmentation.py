"""Proves that boxes stay on their objects: drawn rectangles are found again in the pictures by their brightness."""

import dataclasses

import numpy as np
import pytest

from training import crops
from training.augmentation import augment, mosaic
from training.colours import jitter_colours
from training.crops import affine_view, zoomed_view
from training.samples import Sample

SIDE = 128
NO_BOXES, NO_LABELS = np.zeros((0, 4), "float32"), np.zeros(0, "int32")
COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)], "uint8")  # of classes 0 to 3


@pytest.fixture(autouse=True)
def dark_outside(monkeypatch):
    """What lies outside the picture is as dark as its ground, so that only objects are bright."""
    monkeypatch.setattr(crops, "FILL", (0, 0, 0))


def picture(rng: np.random.Generator, label: int | None = None) -> Sample:
    """A dark picture of any size with one filled rectangle in the colour of its class."""
    height, width = (int(side) for side in rng.integers(60, 220, 2))
    image = np.zeros((height, width, 3), "uint8")
    x0, y0 = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
    x1, y1 = int(rng.integers(x0 + 12, width + 1)), int(rng.integers(y0 + 12, height + 1))
    label = int(rng.integers(4)) if label is None else label
    image[y0:y1, x0:x1] = COLOURS[label]
    box = np.array([[x0 / width, y0 / height, x1 / width, y1 / height]], "float32")
    return Sample(image, box, np.array([label], "int32"), NO_BOXES, NO_LABELS)


def bright_box(image: np.ndarray, channel: int | None = None) -> np.ndarray | None:
    """The box in pixels around what is bright, half of the full brightness being the edge."""
    values = image.max(axis=2) if channel is None else image[..., channel]
    columns, rows = np.flatnonzero((values > 100).any(axis=0)), np.flatnonzero((values > 100).any(axis=1))
    if not len(columns):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def check_boxes(sample: Sample, num_boxes: int):
    """What holds for every view."""
    for boxes, labels in ((sample.boxes, sample.labels), (sample.regions, sample.region_labels)):
        assert boxes.dtype == np.float32
        assert boxes.shape == (len(labels), 4)
        assert np.all((boxes >= 0) & (boxes <= 1))
        assert np.all(boxes[:, 2:] >= boxes[:, :2])
    assert len(sample.boxes) + len(sample.regions) <= num_boxes
    assert sample.image.shape == (SIDE, SIDE, 3)
    assert sample.image.dtype == np.uint8


# === One picture =====================================================================================================
def on_its_object(before: Sample, after: Sample) -> str:
    """Checks the one box of a view against the brightness; returns what became of it."""
    check_boxes(after, 1)
    bright = bright_box(after.image)
    boxes, labels = (after.boxes, after.labels) if len(after.boxes) else (after.regions, after.region_labels)
    if not len(boxes):
        assert bright is None
        return "gone"
    assert labels[0] == before.labels[0]
    if bright is None:  # a sliver, which interpolation has darkened
        assert np.min((boxes[0, 2:] - boxes[0, :2]) * SIDE) < 1.5
    else:
        assert np.abs(bright - boxes[0] * SIDE).max() <= 1.5
    return "whole" if len(after.boxes) else "cut"


def test_the_box_stays_on_its_object():
    seen = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        before = picture(rng)
        seen.append(on_its_object(before, zoomed_view(before, SIDE, SIDE, (0.6, 6.0), SIDE, rng)))
    assert min(seen.count(what) for what in ("whole", "cut", "gone")) >= 10  # the test has seen all three


def test_the_box_stays_on_its_object_with_the_real_zoom_and_colours():
    seen = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        before = picture(rng)
        seen.append(on_its_object(before, augment([before], SIDE, rng)))
    assert seen.count("whole") > 150


def test_a_mirrored_picture_has_a_mirrored_box():
    before = picture(np.random.default_rng(3))
    height, width = before.image.shape[:2]
    after = affine_view(before, width, height, (-1.0, 1.0, float(width), 0.0))
    np.testing.assert_array_equal(after.image, before.image[:, ::-1])
    x0, y0, x1, y1 = before.boxes[0]
    np.testing.assert_allclose(after.boxes[0], [1 - x1, y0, 1 - x0, y1], atol=1e-6)


def test_half_of_the_views_are_mirrored_and_no_two_are_equal():
    image = np.zeros((SIDE, SIDE, 3), "uint8")
    boxes = np.array([[0.45, 0.45, 0.5, 0.5], [0.55, 0.45, 0.6, 0.5]], "float32")  # 0 lies to the left of 1
    sample = Sample(image, boxes, np.array([0, 1], "int32"), NO_BOXES, NO_LABELS)
    rng = np.random.default_rng(2)
    views = [zoomed_view(sample, SIDE, SIDE, (0.9, 1.1), SIDE, rng) for _ in range(200)]
    assert all(view.labels.tolist() == [0, 1] for view in views)
    mirrored = sum(view.boxes[0, 0] > view.boxes[1, 0] for view in views)
    assert 70 < mirrored < 130
    assert len({view.boxes.tobytes() for view in views}) == 200


def test_the_identity_changes_nothing():
    before = picture(np.random.default_rng(4))
    height, width = before.image.shape[:2]
    after = affine_view(before, width, height, (1.0, 1.0, 0.0, 0.0))
    np.testing.assert_array_equal(after.image, before.image)
    np.testing.assert_allclose(after.boxes, before.boxes, atol=1e-7)
    np.testing.assert_array_equal(after.labels, before.labels)


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


def test_regions_stay_regions_and_labels_stay_attached():
    rng = np.random.default_rng(5)
    corner = rng.uniform(0, 0.8, (40, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.02, 0.2, (40, 2))], axis=1).astype("float32")
    image = np.zeros((90, 70, 3), "uint8")
    sample = Sample(image, boxes[:20], np.arange(20, dtype="int32"), boxes[20:], np.arange(20, 40, dtype="int32"))
    became_regions = 0
    for _ in range(50):
        after = zoomed_view(sample, SIDE, SIDE, (0.6, 3.0), SIDE, rng)
        check_boxes(after, 40)
        assert set(after.labels) <= set(range(20))
        cut = after.region_labels[after.region_labels < 20]
        became_regions += len(cut)
        assert not set(cut) & set(after.labels)
        both = np.concatenate([after.labels, after.region_labels])
        assert len(set(both)) == len(both)
        # a view keeps the order along each axis up to the mirror, so it can be told where each label must be
        kept = np.concatenate([after.boxes, after.regions])
        inner = np.all((kept > 0.001) & (kept < 0.999), axis=1)
        if inner.sum() >= 3:
            y_before, y_after = boxes[both[inner], 1], kept[inner, 1]
            slope, offset = np.polyfit(y_before, y_after, 1)
            np.testing.assert_allclose(slope * y_before + offset, y_after, atol=1e-4)
    assert became_regions > 20


def test_a_box_without_area_disappears():
    before = dataclasses.replace(
        picture(np.random.default_rng(6)),
        boxes=np.array([[0.2, 0.2, 0.2, 0.6], [0.5, 0.5, 0.5, 0.5], [0.2, 0.2, 0.6, 0.6]], "float32"),
        labels=np.array([0, 1, 2], "int32"),
    )
    for seed in range(20):
        after = augment([before], SIDE, np.random.default_rng(seed))
        check_boxes(after, 1)
        assert set(after.labels) | set(after.region_labels) <= {2}


def test_pictures_without_boxes():
    rng = np.random.default_rng(7)
    empty = Sample(np.full((40, 60, 3), 9, "uint8"), NO_BOXES, NO_LABELS, NO_BOXES, NO_LABELS)
    for samples in ([empty], [empty] * 4):
        after = augment(samples, SIDE, rng)
        check_boxes(after, 0)
        assert after.labels.dtype == after.region_labels.dtype == np.int32


def test_very_flat_and_very_small_pictures():
    rng = np.random.default_rng(8)
    for height, width in ((1, 1), (1, 200), (200, 1), (3, 5)):
        image = np.full((height, width, 3), 200, "uint8")
        sample = Sample(image, np.array([[0, 0, 1, 1]], "float32"), np.zeros(1, "int32"), NO_BOXES, NO_LABELS)
        for samples in ([sample], [sample] * 4):
            check_boxes(augment(samples, SIDE, rng), 4)


# === Mosaics =========================================================================================================
def test_a_mosaic_has_each_box_on_its_object():
    """Four pictures with classes 0, 1, 2 in pure red, green, blue; the fourth is empty: each colour tells its box."""
    found = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        samples = [picture(rng, label) for label in range(3)]
        samples.append(Sample(np.zeros((50, 50, 3), "uint8"), NO_BOXES, NO_LABELS, NO_BOXES, NO_LABELS))
        after = mosaic(samples, SIDE, rng)
        check_boxes(after, 3)
        boxes = np.concatenate([after.boxes, after.regions]) * SIDE
        labels = np.concatenate([after.labels, after.region_labels])
        assert len(set(labels)) == len(labels)
        for label in range(3):
            bright = bright_box(after.image, label)
            if label not in labels:
                assert bright is None
                continue
            (box,) = boxes[labels == label]
            if bright is None:
                assert np.min(box[2:] - box[:2]) < 1.5
            else:
                found += 1
                assert np.abs(bright - box).max() <= 1.5
    assert found > 150


def test_a_mosaic_shows_all_four_pictures():
    tiles = [
        Sample(np.full((300, 300, 3), 40 * k, "uint8"), NO_BOXES, NO_LABELS, NO_BOXES, NO_LABELS) for k in (1, 2, 3, 4)
    ]
    for seed in range(30):
        rng = np.random.default_rng(seed)
        image = mosaic(tiles, SIDE, rng).image
        quarters = [image[:20, :20], image[:20, -20:], image[-20:, :20], image[-20:, -20:]]
        for k, quarter in zip((1, 2, 3, 4), quarters, strict=True):
            assert set(np.unique(quarter)) <= {0, *range(40 * k + 1)}  # the tile itself, or what lies outside of it
        assert {40, 80, 120, 160} <= set(np.unique(image))


# === Chance and colour ===============================================================================================
def test_the_generator_alone_decides():
    samples = [picture(np.random.default_rng(seed)) for seed in range(4)]
    before = [sample.image.copy() for sample in samples]
    for parts in (samples[:1], samples):
        one, two = (augment(parts, SIDE, np.random.default_rng(11)) for _ in range(2))
        other = augment(parts, SIDE, np.random.default_rng(12))
        for field in dataclasses.fields(Sample):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name))
        assert not np.array_equal(one.image, other.image)
    for sample, image in zip(samples, before, strict=True):
        np.testing.assert_array_equal(sample.image, image)  # the source is not touched


def test_colours_change_a_little_and_shapes_do_not():
    rng = np.random.default_rng(13)
    image = rng.integers(0, 256, (64, 64, 3)).astype("uint8")
    changed = jitter_colours(image, rng)
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert not np.array_equal(changed, image)
    black = np.zeros((8, 8, 3), "uint8")
    np.testing.assert_array_equal(jitter_colours(black, rng), black)
    gray = jitter_colours(np.full((8, 8, 3), 100, "uint8"), rng)
    assert np.ptp(gray.reshape(-1, 3), axis=1).max() == 0  # stays gray
    brightness = [int(jitter_colours(np.full((1, 1, 3), 100, "uint8"), rng)[0, 0, 0]) for _ in range(300)]
    assert 65 <= min(brightness) < 80
    assert 120 < max(brightness) <= 135


def test_hue_turns_without_a_jump():
    """Reds lie at both ends of the hue scale: a small turn must keep them red."""
    red = np.full((1, 1, 3), (220, 30, 30), "uint8")
    for seed in range(50):
        r, g, b = jitter_colours(red, np.random.default_rng(seed))[0, 0].astype(int)
        assert r > g + 30
        assert r > b + 30
