"""A batch is a pure function of seed and step, and its targets say what the data set says of each image."""

import contextlib
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from oid.files import InputError
from oid.images import loader
from tests.helpers.data_sets import data_set_of, make_batches
from tests.helpers.project import refused
from tests.helpers.runs import assert_same_batch
from training import batches as module
from training.batches import Batches, BatchSequence
from training.data_set import read_data_set
from training.sampling import epoch_order, image_weights
from training.verified_labels import LabelRulesInForce

SIDE = 64
VERIFIED = LabelRulesInForce(verified=True)


@pytest.fixture(scope="module")
def data(photographs):
    return read_data_set(*photographs, "1", "train")


def make(data, **changes) -> Batches:
    return make_batches(data, **{"max_gt_boxes": 8, "resize": "warp"} | changes)


# === A pure function =================================================================================================
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("options", [{}, {"crop": "ssd"}, {"resize": "letterbox"}])
def test_a_batch_depends_on_seed_and_step_alone(data, options, closed):
    """Whichever object makes it, in which order, with or without a cache."""
    steps = [0, 1, 2, 7, 150]
    first = make(data, **options)
    expected = {step: first.batch(step, closed=closed) for step in steps}
    for other in (first, make(data, **options), make(data, cache_bytes=30_000, **options)):
        for step in reversed(steps):
            other.batch(step, closed=not closed)
            assert_same_batch(other.batch(step, closed=closed), expected[step])
    assert not np.array_equal(make(data, seed=1, **options).batch(0)[0], expected[0][0])
    assert not np.array_equal(expected[0][0], expected[1][0])


def test_processes_make_parts_of_the_same_batch(data):
    whole, targets = make(data).batch(4)
    parts = [make(data).batch(4, positions=positions) for positions in (range(2), range(2, 5))]
    assert_same_batch((whole, targets), keras.tree.map_structure(lambda *parts: np.concatenate(parts), *parts))


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
    one = dataclasses.replace(data, image_ids=data.image_ids[:1], paths=[data.paths[0]])
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


@pytest.mark.parametrize(("mosaic", "each"), [(0.0, 1), (0.5, None), (1.0, 4)])
def test_the_ids_of_a_batch_are_those_of_its_images(data, monkeypatch, mosaic, each):
    """A closed batch has no mosaics."""
    read = []

    def note(path, **options):
        read.append(path.stem)
        return np.zeros((50, 50, 3), "uint8")

    monkeypatch.setattr(loader, "read_image", note)
    monkeypatch.setattr(module, "RECENT_IMAGES", 0)
    empty = dataclasses.replace(data_set_of([[]] * len(data)), image_ids=data.image_ids, paths=data.paths)
    batches = make(empty, mosaic=mosaic, cache_bytes=0)
    for step, closed in ((0, False), (9, False), (9, True), (33, True)):
        read.clear()
        batches.batch(step, closed=closed)
        assert read == batches.ids(step, closed=closed)
        if each:
            assert len(read) == 5 * (1 if closed else each)


def test_mosaics_read_no_image_twice(data, monkeypatch):
    read, original = [], loader.read_image
    monkeypatch.setattr(loader, "read_image", lambda path, **options: read.append(path) or original(path, **options))
    batches = make(data, mosaic=1.0, cache_bytes=0)
    for step in range(6):
        batches.batch(step)
    assert len(read) == len(set(read)) == len(data)


def test_weights_say_how_often_an_image_is_drawn(data):
    """As often as `epoch_order` draws it, and in mosaics about as often; an image of weight 0 is never seen."""
    options = {"sampling": "classes", "sampling_exponent": 0.0, "negatives": 0.0}
    weights = image_weights(data, sampling="classes", exponent=0.0, negatives=0.0)
    weighted = make(data, mosaic=0.0, batch_size=1, **options)
    for epoch in range(3):
        seen = [weighted.ids(step)[0] for step in range(epoch * len(data), (epoch + 1) * len(data))]
        assert seen == [data.image_ids[image] for image in epoch_order(weights, 0, epoch)]
    tiles = make(data, mosaic=1.0, **options)
    seen = [image_id for step in range(40) for image_id in tiles.ids(step)]
    counts = np.array([seen.count(image_id) for image_id in data.image_ids]) / len(seen) * len(data)
    assert (counts[weights == 0] == 0).all()
    assert np.abs(counts - weights).max() < 0.5


# === Letterbox and rules =============================================================================================
def test_a_letterboxed_training_ends_with_pictures_as_inference_sees_them(data):
    """The squares that some pictures are full of stay squares once mosaics have ended; a warp stretches them."""
    seen = {}
    for resize in ("letterbox", "warp"):
        batches = make(data, resize=resize)
        ratios = []
        for step in range(20):
            _, targets = batches.batch(step, closed=True)
            sides = (targets["boxes"][..., 2:] - targets["boxes"][..., :2])[targets["labels"] >= 0]
            inner = np.all((targets["boxes"] > 0) & (targets["boxes"] < 1), axis=-1)[targets["labels"] >= 0]
            ratios += list((sides[:, 0] / sides[:, 1])[inner])
        seen[resize] = np.array(ratios)  # every object of these pictures is drawn into a square
    np.testing.assert_allclose(seen["letterbox"], 1, rtol=0.01)  # pictures are kept in whole pixels
    assert np.ptp(seen["warp"]) > 0.1


def test_a_rule_that_is_off_leaves_its_targets_out(data):
    _, targets = make(data, rules=VERIFIED).batch(0)
    assert set(targets) == {"boxes", "labels", "regions", "region_labels", "parts", "verified"}
    for rules, names in (
        (LabelRulesInForce(verified=True, regions="none"), {"regions", "region_labels"}),
        (LabelRulesInForce(), {"parts", "verified"}),
    ):
        _, fewer = make(data, rules=rules).batch(0)
        assert set(targets) - set(fewer) == names
        for name in fewer:
            np.testing.assert_array_equal(fewer[name], targets[name])


def test_targets_take_at_most_16_kilobytes_an_image(data):
    """With all rules and 500 classes; they are copied to the device in every step."""
    _, targets = make(data, rules=VERIFIED, num_classes=500, max_gt_boxes=100).batch(0)
    assert sum(value.nbytes for value in targets.values()) <= 5 * 16 * 1024


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_parts_say_what_is_verified_in_their_pictures(data, mosaic):
    batches = make(data, mosaic=mosaic, rules=VERIFIED)
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
        assert narrow.left_out(range(step + 1)).boxes == total
    assert total > 0
    for step in (3, 0, 90):  # made again, or prefetched beyond the end: not counted twice, nor at all
        narrow.batch(step)
    assert narrow.left_out(range(4)).boxes == total
    assert wide.left_out(range(1000)).boxes == 0


def test_an_unreadable_image_is_replaced_by_the_same_one_everywhere(data, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    damaged = dataclasses.replace(data, paths=[bad, *list(data.paths)[1:]])
    said: list[str] = []
    one, other = make(damaged, report=said.append), make(damaged, report=said.append)
    batches = {step: one.batch(step) for step in range(12)}
    for step in reversed(batches):
        assert_same_batch(other.batch(step), batches[step])
        assert data.image_ids[0] not in other.ids(step)
    assert len(said) == 2
    assert said[0].endswith("another image stands in for it (1 of at most 100)")
    assert one.notes(range(0)) == [f"1 images could not be read and were replaced by others: {data.image_ids[0]}"]
    with pytest.raises(loader.BadImages, match=r"bad\.jpg"):
        [make(damaged, max_bad_images=0).batch(step) for step in range(3)]


def test_a_data_set_without_images_is_refused(data):
    with refused("no training image of this level"):
        make(data_set_of([]))


# === What fit sees ===================================================================================================
class Numbers(Batches):
    """Batches that hold nothing but the number of their step and whether they are closed."""

    bad_steps = ()

    def batch(self, step: int, *, closed: bool = False, positions=None):
        if step in self.bad_steps:
            raise InputError(f"step {step} has no image")
        return np.array([[step, closed]], "float32"), np.zeros((1, 1), "float32")


class Failing(Numbers):
    """Some of its steps have no image."""

    bad_steps = (6, 8)


def note_steps_of_fit(sequence: BatchSequence, seen: list[list[int]]) -> None:
    """Adds what `fit` sees in 11 steps."""

    class Noting(keras.Model):
        def call(self, x):
            return x

        def train_step(self, batch):
            seen.append(np.asarray(batch[0])[0].astype(int).tolist())
            return {"loss": 0.0}

    model = Noting()
    model.compile(run_eagerly=True)
    wait = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: sequence.wait_for(batch))
    model.fit(sequence, steps_per_epoch=11, shuffle=False, verbose=0, callbacks=[wait])


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("start", [0, 22])
def test_fit_sees_the_steps_in_order_and_the_last_ones_closed(data, workers, start):
    sequence = BatchSequence(make(data, kind=Numbers), start=start, close_at=start + 4, workers=workers)
    seen: list[list[int]] = []
    note_steps_of_fit(sequence, seen)
    assert seen == [[step, step >= start + 4] for step in range(start, start + 11)]


@pytest.mark.parametrize(("start", "steps"), [(6, []), (1, [1, 2, 3, 4, 5])])
def test_an_unreadable_image_ends_fit_with_its_sentence(data, start, steps):
    sequence = BatchSequence(make(data, kind=Failing), start=start, close_at=0, workers=2)
    seen: list[list[int]] = []
    with refused("step 6 has no image"):
        note_steps_of_fit(sequence, seen)
    assert [step for step, _ in seen] == steps


def test_waiting_for_a_batch_raises_the_error_of_that_batch(data):
    """Whichever was prepared first."""
    sequence = BatchSequence(make(data, kind=Failing), start=5, close_at=0, workers=2)
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
        with refused(f"step {step} has no image"):
            sequence.wait_for(index)
