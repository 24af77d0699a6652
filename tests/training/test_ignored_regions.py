"""Proves at the gradient which boxes of a training picture are no background: depictions, and those without room."""

import cv2
import numpy as np
import pytest

from tests.helpers.data_sets import data_set_of
from tests.helpers.detection_cases import ANCHORS, CENTRES, NUM_CLASSES, assign, logit_gradient
from training import batches as module
from training.augment import Sample
from training.batches import MAX_REGIONS, Batches, limit_boxes, limit_regions
from training.options import ImageOptions, LabelOptions, Recipe
from training.verified_labels import LabelRulesInForce, rules_in_force

SIDE = 64
ALL_REGIONS = LabelRulesInForce()
LEFT, RIGHT, MIDDLE = (0.0, 0.0, 0.4, 1.0), (0.6, 0.0, 1.0, 1.0), (0.45, 0.4, 0.55, 0.6)


def data_of(folder, objects: list[tuple], regions: list[tuple] = (), depiction: list[bool] = (), *, images: int = 1):
    """Grey pictures of these boxes and regions, `(label, xmin, ymin, xmax, ymax)`; each picture has all."""
    path = folder / "grey.png"
    assert cv2.imwrite(str(path), np.full((SIDE, SIDE, 3), 128, "uint8"))
    return data_set_of([objects] * images, [regions] * images, depiction=[*depiction] * images, path=path)


def batches_of(data, *, max_gt_boxes: int = 100, rules=ALL_REGIONS, batch_size: int = 1, mosaic: float = 0.0):
    return Batches(
        data,
        image_size=SIDE,
        batch_size=batch_size,
        recipe=Recipe(mosaic=mosaic),
        labels=LabelOptions(max_gt_boxes=max_gt_boxes),
        images=ImageOptions(),
        rules=rules,
        num_classes=NUM_CLASSES,
        seed=0,
        cache_bytes=0,
        report=print,
    )


@pytest.fixture
def as_they_are(monkeypatch):
    """Pictures are not changed."""
    monkeypatch.setattr(module, "augment", lambda samples, *others, **options: samples[0])


def inside(box: tuple) -> np.ndarray:
    return ((np.array(box[:2]) < CENTRES) & (np.array(box[2:]) > CENTRES)).all(axis=1)


# === Depictions ======================================================================================================
@pytest.mark.parametrize(
    ("asked", "silent"),
    [((), []), (("depictions",), [LEFT]), (("depictions", "regions"), [LEFT, RIGHT])],
)
def test_a_depiction_gives_no_gradient_with_or_without_the_rule_on_regions(tmp_path, as_they_are, asked, silent):
    data = data_of(tmp_path, [(0, *MIDDLE)], [(1, *RIGHT), (1, *LEFT)], [False, True])
    rules, _ = rules_in_force(asked, tmp_path, ["a", "b", "c"], data)
    batches = batches_of(data, rules=rules)
    gradient = logit_gradient(batches.batch(0)[1], region_classes=rules.region_classes)[0]
    for box in (LEFT, RIGHT):
        assert inside(box).sum() >= 16
        assert (gradient[inside(box), 1] == 0).all() == (box in silent)
        assert (gradient[inside(box), 1] > 0).all() == (box not in silent)
        assert (gradient[inside(box), 2] > 0).all()


# === Boxes without room ==============================================================================================
def grid(side: int) -> list[tuple]:
    """Boxes of class 1 that fill a picture, `side` in each direction."""
    corners = [(x / side, y / side) for y in range(side) for x in range(side)]
    return [(1, x + 0.01, y + 0.01, x + 1 / side - 0.01, y + 1 / side - 0.01) for x, y in corners]


def test_boxes_without_room_give_no_gradient_against_them(tmp_path, as_they_are):
    """Sixteen boxes that fill the picture: whatever the room, no anchor inside one is pushed down by the others."""
    data = data_of(tmp_path, grid(4))
    targets = batches_of(data, max_gt_boxes=10).batch(0)[1]
    gradient = logit_gradient(targets)[0]
    left_out = [box for label, *box in grid(4) if not (targets["boxes"] == np.float32(box)).all(axis=-1).any()]
    assert len(left_out) == 6
    for box in left_out:
        assert inside(box).any()
        np.testing.assert_array_equal(gradient[inside(box), 1], 0)
        assert (gradient[inside(box)][:, [0, 2]] > 0).all()
    none = batches_of(data, max_gt_boxes=10, rules=LabelRulesInForce(regions="none")).batch(0)[1]
    assert all((logit_gradient(none)[0, inside(box), 1] > 0).all() for box in left_out)


def sample_of(rows: list[tuple], regions: list[tuple] = ()) -> Sample:
    rows, regions = (np.array(part, "float32").reshape(-1, 5) for part in (rows, regions))
    labels, region_labels = (part[:, 0].astype("int32") for part in (rows, regions))
    return Sample(np.zeros((4, 4, 3), "uint8"), rows[:, 1:], labels, regions[:, 1:], region_labels)


def test_an_object_stays_or_goes_with_all_its_classes():
    rows = [(label, *box) for _, *box in grid(3) for label in range(3)]
    whole = sample_of(rows)
    for seed in range(20):
        found, cut = limit_boxes(whole, 10, np.random.default_rng(seed))
        assert len(found.labels) == 9
        assert cut == len(found.region_labels) == 18
        for boxes, labels, count in ((found.boxes, found.labels, 3), (found.regions, found.region_labels, 6)):
            _, times = np.unique(boxes, axis=0, return_counts=True)
            assert times.tolist() == [3] * count
            assert sorted(labels.tolist()) == sorted(list(range(3)) * count)


def test_an_object_of_more_classes_than_there_is_room_for():
    box = (0.1, 0.1, 0.6, 0.6)
    found, cut = limit_boxes(sample_of([(label, *box) for label in range(3)]), 1, np.random.default_rng(0))
    assert (found.labels.tolist(), found.region_labels.tolist(), cut) == ([0], [1, 2], 2)
    truth = {"boxes": found.boxes, "labels": found.labels, "regions": found.regions}
    truth = {name: value[None] for name, value in (truth | {"region_labels": found.region_labels}).items()}
    gradient = logit_gradient(truth)[0]
    logits, offsets = (np.full((1, len(ANCHORS), width), fill, "f") for width, fill in ((NUM_CLASSES, -1), (4, 0)))
    learns = assign(logits, offsets, truth)[0] == 0
    assert learns.any()
    assert (gradient[learns, 0] < 0).any()
    np.testing.assert_array_equal(gradient[learns, 1:], 0)


# === Regions without room ============================================================================================
def test_the_largest_regions_stay_in_order():
    sides = np.random.default_rng(0).permutation(20) / 40 + 0.01
    found, beyond = limit_regions(sample_of([], [(k, 0, 0, side, side) for k, side in enumerate(sides)]), 5)
    assert beyond == 15
    assert found.region_labels.tolist() == np.flatnonzero(sides > 0.375).tolist()
    np.testing.assert_array_equal(found.regions[:, 2], np.float32(sides[sides > 0.375]))


def test_cut_boxes_share_the_room_with_other_regions_and_all_is_counted(tmp_path, as_they_are):
    regions = [(0, 0, 0, 0.02, 0.01 + k / 1000) for k in range(100)]
    data = data_of(tmp_path, grid(12), regions, [False] * 100)
    batches = batches_of(data, batch_size=2, max_gt_boxes=80)
    batches.batch(0)
    targets = batches.batch(0)[1]  # made again: counted once
    assert (targets["labels"] >= 0).sum(axis=1).tolist() == [80, 80]
    assert (targets["region_labels"] >= 0).sum(axis=1).tolist() == [MAX_REGIONS] * 2
    assert (targets["region_labels"] == 1).sum(axis=1).tolist() == [64, 64]  # all boxes: they are larger
    assert batches.left_out(range(1)) == (2 * 64, 2 * 36)
    boxes, regions = batches.notes(range(1))
    assert boxes == "128 boxes beyond 80 of an image were left out and are ignored regions"
    assert regions.startswith(f"72 ignored regions beyond {MAX_REGIONS} of an image, its smallest, were left out")
    other = batches_of(data, batch_size=2, max_gt_boxes=80, rules=LabelRulesInForce(regions="none"))
    other.batch(0)
    assert other.notes(range(1)) == ["128 boxes beyond 80 of an image were left out and are background"]
