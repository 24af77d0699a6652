"""A batch is a pure function of seed and step, and its targets say what the data set says of each image."""

import contextlib
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import keras
import numpy as np
import pytest

from oid.files import InputError
from tests.helpers.data_sets import data_set_of
from tests.helpers.project import refused
from tests.helpers.runs import assert_same_batch
from training import batches as module
from training import pictures
from training.batches import Batches, BatchSequence
from training.data_set import read_data_set
from training.sampling import epoch_order

SIDE = 64


@pytest.fixture(scope="module")
def data(photographs):
    return read_data_set(*photographs, "1", "train")


def make(data, **options) -> Batches:
    return Batches(data, **{"image_size": SIDE, "batch_size": 5, "close_at": 100, "max_gt_boxes": 8, **options})


# === A pure function =================================================================================================
@pytest.mark.parametrize(
    "options", [{}, {"mixup": 0.5}, {"crop": "ssd", "mixup": 0.5}, {"resize": "letterbox", "close_at": 0}]
)
def test_a_batch_depends_on_seed_and_step_alone(data, options):
    """Whichever object makes it, in which order, with or without a cache."""
    steps = [0, 1, 2, 7, 150]
    first = make(data, **options)
    expected = {step: first.batch(step) for step in steps}
    for other in (first, make(data, **options), make(data, cache_bytes=30_000, **options)):
        for step in reversed(steps):
            assert_same_batch(other.batch(step), expected[step])
    assert not np.array_equal(make(data, seed=1, **options).batch(0)[0], expected[0][0])
    assert not np.array_equal(expected[0][0], expected[1][0])


def test_threads_do_not_change_batches(data):
    steps = list(range(12)) * 2
    one, many = make(data), make(data)
    with ThreadPoolExecutor(4) as pool:
        for step, found in zip(steps, pool.map(many.batch, steps), strict=True):
            assert_same_batch(found, one.batch(step))


def test_shapes_types_and_padding(data):
    images, targets = make(data).batch(3)
    assert (images.shape, images.dtype) == ((5, SIDE, SIDE, 3), np.uint8)
    widths = {"boxes": ("labels", 8, 3), "regions": ("region_labels", module.MAX_REGIONS, len(data.region_classes))}
    for boxes, (labels, width, meanings) in widths.items():
        assert (targets[boxes].shape, targets[boxes].dtype) == ((5, width, 4), np.float32)
        assert (targets[labels].shape, targets[labels].dtype) == ((5, width), np.int32)
        assert set(np.unique(targets[labels])) <= set(range(-1, meanings))
        assert np.all(targets[boxes][targets[labels] < 0] == 0)
        assert np.all(np.diff((targets[labels] < 0).astype(int), axis=1) >= 0)  # padding comes last


def test_pictures_of_a_batch_are_augmented_differently(data):
    one = dataclasses.replace(data, image_ids=data.image_ids[:1], paths=data.paths[:1])
    for mosaic in (0.0, 1.0):
        images, _ = make(one, mosaic=mosaic).batch(0)
        assert len({image.tobytes() for image in images}) == 5


# === Which images ====================================================================================================
def test_each_pass_shows_each_image_once(data):
    plain = make(data, mosaic=0.0, batch_size=1)
    passes = [[plain.ids(step)[0] for step in range(n * len(data), (n + 1) * len(data))] for n in range(3)]
    for order in passes:
        assert sorted(order) == sorted(data.image_ids)
    assert passes[0] != passes[1] != passes[2]
    # batches that do not divide the number of images go on in the next pass
    five = make(data, mosaic=0.0)
    together = [image_id for step in range(7) for image_id in five.ids(step)]
    assert together == [image_id for order in passes for image_id in order][:35]


@pytest.mark.parametrize(("mosaic", "mixup", "each"), [(0.0, 0.0, 1), (0.5, 0.0, None), (1.0, 0.0, 4), (1.0, 1.0, 5)])
def test_the_ids_of_a_batch_are_those_of_its_images(data, monkeypatch, mosaic, mixup, each):
    """Mosaics of four images, and pictures that are blended in, end at `close_at`."""
    read = []

    def note(path, **options):
        read.append(path.stem)
        return np.zeros((50, 50, 3), "uint8")

    monkeypatch.setattr(pictures, "read_image", note)
    monkeypatch.setattr(pictures, "RECENT_PICTURES", 0)
    empty = dataclasses.replace(data_set_of([[]] * len(data)), image_ids=data.image_ids, paths=data.paths)
    batches = make(empty, mosaic=mosaic, mixup=mixup, close_at=10, cache_bytes=0)
    for step in (0, 4, 9, 10, 33):
        read.clear()
        batches.batch(step)
        assert read == batches.ids(step)
        if each:
            assert len(read) == 5 * (each if step < 10 else 1)


def test_weights_say_how_often_an_image_is_drawn(data):
    """An image of weight 0 is never seen, not in mosaics either; the others as often as `epoch_order` draws them."""
    weights = np.ones(len(data))
    weights[0], weights[1] = 0.0, 2.0
    weighted = make(data, weights=weights, mosaic=0.0, batch_size=1)
    for epoch in range(3):
        seen = [weighted.ids(step)[0] for step in range(epoch * len(data), (epoch + 1) * len(data))]
        assert seen == [data.image_ids[image] for image in epoch_order(weights, 0, epoch)]
    tiles = make(data, weights=weights, mosaic=1.0, mixup=1.0)
    seen = [image_id for step in range(40) for image_id in tiles.ids(step)]
    counts = np.array([seen.count(image_id) for image_id in data.image_ids])
    assert counts[0] == 0
    assert 1.6 < counts[1] / counts[2:].mean() < 2.4


# === Sizes and rules =================================================================================================
@pytest.mark.parametrize("crop", ["zoom", "ssd"])
def test_another_size_shows_the_same(data, crop):
    batches = make(data, crop=crop, mosaic=0.0, mixup=0.3)
    for step in (0, 5):
        images, targets = batches.batch(step)
        for size in (96, 33):
            others, other_targets = batches.batch(step, image_size=size)
            assert others.shape == (5, size, size, 3)
            for name, value in targets.items():
                np.testing.assert_allclose(other_targets[name], value, atol=1e-4)
            for image, other in zip(images, others, strict=True):
                small = cv2.resize(other, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
                assert np.abs(small.astype(int) - image).mean() < 25  # noise, but the same shapes


def test_a_letterboxed_training_ends_with_pictures_as_inference_sees_them(data):
    """The squares that some pictures are full of stay squares once mosaics have ended; a warp stretches them."""
    seen = {}
    for resize in ("letterbox", "warp"):
        batches = make(data, resize=resize, close_at=0, mosaic=0.0)
        ratios = []
        for step in range(20):
            _, targets = batches.batch(step)
            sides = (targets["boxes"][..., 2:] - targets["boxes"][..., :2])[targets["labels"] >= 0]
            inner = np.all((targets["boxes"] > 0) & (targets["boxes"] < 1), axis=-1)[targets["labels"] >= 0]
            ratios += list((sides[:, 0] / sides[:, 1])[inner])
        seen[resize] = np.array(ratios)  # every object of these pictures is drawn into a square
    np.testing.assert_allclose(seen["letterbox"], 1, rtol=0.01)  # pictures are kept in whole pixels
    assert np.ptp(seen["warp"]) > 0.1


def test_a_rule_that_is_off_leaves_its_targets_out(data):
    both = {"regions": "all", "verified": True, "num_classes": 3}
    _, targets = make(data, **both).batch(0)
    assert set(targets) == {"boxes", "labels", "regions", "region_labels", "parts", "verified"}
    for off, names in (
        ({"regions": "none"}, {"regions", "region_labels"}),
        ({"verified": False}, {"parts", "verified"}),
    ):
        _, fewer = make(data, **both | off).batch(0)
        assert set(targets) - set(fewer) == names
        for name in fewer:
            np.testing.assert_array_equal(fewer[name], targets[name])
    with pytest.raises(ValueError, match="num_classes"):
        make(data, verified=True)


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_parts_say_what_is_verified_in_their_pictures(data, mosaic):
    batches = make(data, mosaic=mosaic, verified=True, num_classes=3)
    seen = set()
    for step in range(8):
        _, targets = batches.batch(step)
        parts, verified = targets["parts"], targets["verified"]
        assert (parts.shape, parts.dtype) == ((5, 4, 4), np.float32)
        assert (verified.shape, verified.dtype) == ((5, 4, 3), np.uint8)
        ids = np.array(batches.ids(step)).reshape(5, -1)
        for (row, part), image_id in np.ndenumerate(ids):
            classes = data.verified_of(data.image_ids.index(image_id))
            assert np.flatnonzero(verified[row, part]).tolist() == classes.tolist()
            seen.add(tuple(classes))
        sides = parts[..., 2:] - parts[..., :2]
        np.testing.assert_allclose(np.prod(sides, axis=-1).sum(axis=1), 1, rtol=1e-5)
        assert not parts[:, ids.shape[1] :].any()
        assert not verified[:, ids.shape[1] :].any()
    assert len(seen) > 1


# === Limits and mistakes =============================================================================================
def rows_of(targets, row: int, boxes: str, labels: str) -> list[list[float]]:
    """What is in a picture of a batch, a label and its box, in their order."""
    rows = np.column_stack([targets[labels][row], targets[boxes][row]])
    return rows[rows[:, 0] >= 0].tolist()


def test_boxes_beyond_the_limit_are_ignored_regions_and_counted_once(data):
    wide, narrow = make(data, mosaic=1.0, max_gt_boxes=50), make(data, mosaic=1.0, max_gt_boxes=2)
    total = 0
    for step in range(4):
        images, targets = narrow.batch(step)
        all_images, all_targets = wide.batch(step)
        np.testing.assert_array_equal(images, all_images)
        for row in range(5):
            kept, every = (rows_of(t, row, "boxes", "labels") for t in (targets, all_targets))
            regions, before = (rows_of(t, row, "regions", "region_labels") for t in (targets, all_targets))
            assert kept == [box for box in every if box in kept]
            assert len(kept) == min(2, len(every))
            assert regions == before + [box for box in every if box not in kept]
        total += int((all_targets["labels"][:, 2:] >= 0).sum())
        assert narrow.boxes_left_out(range(step + 1)) == total
    assert total > 0
    for step in (3, 0, 90):  # made again, or prefetched beyond the end: not counted twice, nor at all
        narrow.batch(step)
    assert narrow.boxes_left_out(range(4)) == total
    assert wide.boxes_left_out(range(1000)) == 0


# === What fit sees ===================================================================================================
class Numbers(Batches):
    """Batches that hold nothing but the number of their step."""

    def batch(self, step: int, image_size=None):
        return np.full((1, 1), step, "float32"), np.zeros((1, 1), "float32")


def steps_seen_by_fit(data, *, workers: int, start: int, epochs: int, kind=Numbers) -> list[int]:
    seen = []

    class Noting(keras.Model):
        def call(self, x):
            return x

        def train_step(self, batch):
            seen.append(int(np.asarray(batch[0])[0, 0]))
            return {"loss": 0.0}

    model = Noting()
    model.compile(run_eagerly=True)
    sequence = BatchSequence(kind(data, image_size=8, batch_size=1), start=start, workers=workers)
    with sequence.mistakes_as_they_are():
        model.fit(sequence, steps_per_epoch=11, epochs=epochs, shuffle=False, verbose=0)
    return seen


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(("start", "epochs"), [(0, 3), (22, 2)])
def test_fit_sees_the_steps_in_order(data, workers, start, epochs):
    steps = steps_seen_by_fit(data, workers=workers, start=start, epochs=epochs)
    assert steps == list(range(start, start + 11 * epochs))


@pytest.mark.parametrize(("workers", "bad_step"), [(1, 5), (2, 0), (2, 5)])
def test_an_image_that_cannot_be_read_stops_fit_with_its_sentence(data, monkeypatch, workers, bad_step):
    monkeypatch.setattr(Failing, "bad_steps", (bad_step,))
    with refused(f"step {bad_step} has no picture"):
        steps_seen_by_fit(data, workers=workers, start=0, epochs=2, kind=Failing)


class Failing(Numbers):
    """Some of its steps have no picture."""

    bad_steps = (6, 8)

    def batch(self, step: int, image_size=None):
        if step in self.bad_steps:
            raise InputError(f"step {step} has no picture")
        return super().batch(step)


def test_waiting_for_a_batch_raises_the_error_of_that_batch(data):
    """Whichever was prepared first."""
    sequence = BatchSequence(Failing(data, image_size=8, batch_size=1), start=5)
    waiting = threading.Thread(target=sequence.wait_for, args=(0,), daemon=True)
    waiting.start()
    for index in (3, 2, 1):
        with pytest.raises(InputError) if index != 2 else contextlib.nullcontext():
            sequence[index]
    waiting.join(0.2)
    assert waiting.is_alive()
    sequence[0]
    waiting.join(60)
    assert not waiting.is_alive()
    sequence.wait_for(2)
    for index, step in ((1, 6), (3, 8)):
        with refused(f"step {step} has no picture"):
            sequence.wait_for(index)


def test_an_error_around_the_steps_is_not_taken_for_one_of_a_batch(data):
    sequence = BatchSequence(Failing(data, image_size=8, batch_size=1), start=5)
    with pytest.raises(KeyError, match="bug"), sequence.mistakes_as_they_are():
        raise KeyError("bug")
    with refused("no picture"):
        sequence[1]
    with refused("the disk is full"), sequence.mistakes_as_they_are():
        raise InputError("the disk is full")
