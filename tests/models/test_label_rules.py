"""Unverified classes, ancestors and ignored regions give no gradient exactly where the rules say, and others do."""

import numpy as np
import pytest

from models.assignment import max_iou_assignment
from models.label_rules import silent_classes, unverified_parts
from tests.helpers.detection_cases import (
    ANCHORS,
    CELLS,
    CENTRES,
    COARSE,
    GRIDS,
    M2DET,
    NUM_CLASSES,
    OWN,
    RECIPES,
    REGION_CLASSES,
    assign,
    check_coarse,
    logit_gradient,
    numpy,
    random_case,
    with_parts,
)
from tests.helpers.tiny_network import targets

WHOLE, LEFT, RIGHT = (0, 0, 1, 1), (0, 0, 0.5, 1), (0.5, 0, 1, 1)
FRUIT = 2  # lies above the classes 0 and 1
ANCESTORS = np.array([[0, 0, 1], [0, 0, 1], [0, 0, 0]], "float32")


def without_regions(truth: dict) -> dict:
    return {name: value for name, value in truth.items() if "region" not in name}


def assigned_by(options: dict, truth: dict) -> np.ndarray:
    """Which box each anchor learns if the predictions are those of `logit_gradient`; one image."""
    outputs = NUM_CLASSES + (options["class_loss"] == "softmax")
    logits, offsets = np.full((1, len(ANCHORS), outputs), -1, "f"), np.zeros((1, len(ANCHORS), 4), "f")
    return assign(logits, offsets, truth, **options)[0]


# === Unverified classes ===


@pytest.mark.parametrize("options", RECIPES, ids=str)
def test_an_unverified_class_gives_no_gradient_and_the_others_their_own(options):
    truth = without_regions(targets([[(0, 0.1, 0.1, 0.5, 0.6)]]))
    plain = logit_gradient(truth, **options)[0]
    ruled = logit_gradient(with_parts(truth, [WHOLE], [[1, 0, 1]]), **options)[0]
    np.testing.assert_array_equal(ruled[:, 1], 0)
    background = assigned_by(options, truth) == -1
    if options == M2DET:  # fewer logits share the gradient of the same hard negatives
        assert 0 < (plain[background, 1] > 0).sum() <= 3 * (assigned_by(options, truth) == 0).sum()
        assert ((ruled > 0) >= (plain > 0))[:, 2].all()
    else:
        np.testing.assert_array_equal(ruled[:, [0, 2]], plain[:, [0, 2]])
        assert (plain[background] > 0).all()


@pytest.mark.parametrize(
    ("rule", "silent"), [("verified", [0, 1, 2]), ("region", [1]), ("coarse region", [0, 1])], ids=str
)
def test_a_positive_learns_whatever_the_rules_say(rule, silent):
    """Its box is there, whoever verified what and whatever is ignored around it."""
    box = (1, 0.3, 0.3, 0.7, 0.7)
    regions = {"region": [(1, *WHOLE)], "coarse region": [(COARSE[0][0], *WHOLE)], "verified": []}[rule]
    truth, ruled_truth = targets([[box]]), targets([[box]], [regions])
    ruled_truth = with_parts(without_regions(truth), [WHOLE], [[0, 0, 0]]) if rule == "verified" else ruled_truth
    plain = logit_gradient(truth)[0]
    ruled = logit_gradient(ruled_truth, region_classes=REGION_CLASSES if "coarse" in rule else None)[0]
    positive = assigned_by(OWN, truth) == 0
    assert (plain[positive, 1] < 0).any()
    np.testing.assert_array_equal(ruled[positive, 1], plain[positive, 1])
    np.testing.assert_array_equal(ruled[~positive, 1], 0)
    for label in {0, 2}:
        np.testing.assert_array_equal(ruled[:, label], 0 if label in silent else plain[:, label])


def test_each_tile_of_a_mosaic_has_its_own_verified_classes():
    truth = with_parts(without_regions(targets([[]])), [LEFT, RIGHT], [[1, 0, 0], [0, 1, 0]])
    gradient = logit_gradient(truth)[0]
    left = CENTRES[:, 0] < 0.5
    np.testing.assert_array_equal(gradient > 0, np.stack([left, ~left, np.zeros_like(left)], axis=1))
    np.testing.assert_array_equal(gradient[gradient <= 0], 0)


def parts_of(centres: list[tuple], parts: list[tuple]) -> list[int]:
    """The part that each of some tiny anchors belongs to."""
    anchors = np.array([(x - 0.01, y - 0.01, x + 0.01, y + 0.01) for x, y in centres], "float32")
    padded = np.zeros((1, 4, 4), "float32")
    padded[0, : len(parts)] = parts
    rows, classes = unverified_parts(padded, np.zeros((1, 4, NUM_CLASSES), "uint8"), anchors)
    assert classes.shape == (1, 4, NUM_CLASSES)
    assert (numpy(rows).sum(axis=1) == 1).all()
    return numpy(rows)[0].argmax(axis=0).tolist()


def test_an_anchor_belongs_to_the_part_that_holds_its_centre_or_to_the_nearest():
    parts = [(0.1, 0.1, 0.4, 0.4), (0.6, 0.1, 0.9, 0.9)]
    centres = [(0.2, 0.2), (0.7, 0.5), (0.45, 0.2), (0.55, 0.2), (0, 0), (1, 1), (-0.2, 0.5)]
    assert parts_of(centres, parts) == [0, 1, 0, 1, 0, 1, 0]
    assert parts_of(centres, parts[::-1]) == [1, 0, 1, 0, 1, 0, 1]
    assert parts_of([(0.3, 0.3), (0.5, 0.5)], [WHOLE, LEFT]) == [0, 0]  # they overlap: the first
    assert parts_of([(0, 0), (0.01, 0)], [(0.5, 0.5, 1, 1)]) == [0, 0]  # padding lies at (0, 0), and is nearer
    assert parts_of([(0, 0), (0.9, 0.9)], [(0, 0, 0, 0), (0.5, 0.5, 1, 1)]) == [1, 1]


# === Ancestors ===


def reference_reach(box, assigned) -> np.ndarray:
    """Anchors that learn the box, or of which it covers a half."""
    size = np.minimum(ANCHORS[:, 2:], box[2:]) - np.maximum(ANCHORS[:, :2], box[:2])
    covered = np.maximum(size, 0).prod(-1) / (ANCHORS[:, 2:] - ANCHORS[:, :2]).prod(-1)
    return (covered >= 0.5) | (assigned == 0)


@pytest.mark.parametrize("options", [OWN, OWN | {"assignment": "max_iou"}], ids=str)
def test_ancestors_of_a_box_are_negatives_outside_it_only(options):
    box = np.array([0.1, 0.1, 0.6, 0.6], "float32")
    truth = without_regions(targets([[(0, *box)]]))
    plain, ruled = (logit_gradient(truth, ancestors=a, **options)[0] for a in (None, ANCESTORS))
    assigned = assigned_by(options, truth)
    reached = reference_reach(box, assigned)
    far = (np.abs(CENTRES - 0.35) > 0.25 + CELLS[:, None]).any(axis=1)
    assert reached.sum() > 4
    assert far.sum() > 4
    np.testing.assert_array_equal(ruled[reached, FRUIT], 0)
    assert (plain[reached & (assigned != -2), FRUIT] > 0).all()
    np.testing.assert_array_equal(ruled[far], plain[far])
    np.testing.assert_array_equal(ruled[:, :FRUIT], plain[:, :FRUIT])  # neither the class nor its sibling


@pytest.mark.parametrize("labels", [(FRUIT,), (0, FRUIT)])
def test_a_class_that_is_listed_with_the_box_is_learned_and_the_ones_below_stay_negatives(labels):
    truth = without_regions(targets([[(label, 0.1, 0.1, 0.6, 0.6) for label in labels]]))
    plain, ruled = (logit_gradient(truth, ancestors=a)[0] for a in (None, ANCESTORS))
    np.testing.assert_array_equal(ruled, plain)
    assert (plain[:, FRUIT] < 0).any()


def test_an_ancestor_with_a_box_of_its_own_is_learned_inside_the_other():
    truth = without_regions(targets([[(0, 0.0, 0.0, 1.0, 1.0), (FRUIT, 0.25, 0.25, 0.75, 0.75)]]))
    plain, ruled = (logit_gradient(truth, ancestors=a)[0] for a in (None, ANCESTORS))
    fruit = assigned_by(OWN, truth) == 1
    assert (plain[fruit, FRUIT] < 0).any()
    np.testing.assert_array_equal(ruled[fruit, FRUIT], plain[fruit, FRUIT])
    np.testing.assert_array_equal(ruled[~fruit, FRUIT], 0)


def test_a_forced_anchor_beside_its_box_spares_the_ancestor_too():
    """Its centre lies outside, so only that it learns the box counts."""
    anchors, cells = np.array([[0.0, 0.0, 0.4, 0.4]], "float32"), np.array([0.1], "float32")
    truth = without_regions(targets([[(0, 0.35, 0.35, 0.5, 0.5)]]))
    assigned, _ = max_iou_assignment(truth["boxes"], truth["labels"], anchors)
    assert numpy(assigned).tolist() == [[0]]
    silent = numpy(silent_classes(truth, assigned, anchors, cells, NUM_CLASSES, ANCESTORS))
    assert silent[0, 0].tolist() == [False, False, True]
    beside = numpy(silent_classes(truth, -np.ones_like(assigned), anchors, cells, NUM_CLASSES, ANCESTORS))
    assert not beside.any()


# === Ignored regions ===


def ignored_by(region: tuple) -> np.ndarray:
    """Which anchors and classes are silent because of a `(class, xmin, ymin, xmax, ymax)`."""
    truth = targets([[]], [[region]])
    truth = {name: truth[name] for name in ("regions", "region_labels")}
    return numpy(silent_classes(truth, None, ANCHORS, CELLS, NUM_CLASSES))[0]


@pytest.mark.parametrize("region", [(0, 0, 1, 1), (0.4, 0.4, 0.45, 0.43), (0, 0.9, 0.02, 1)])
def test_a_region_reaches_every_map_however_large_or_small(region):
    ignored = ignored_by((2, *region))
    for side in GRIDS.sides:
        on_map = np.isclose(CELLS, 1 / side)
        assert ignored[on_map, 2].any()
        assert ignored[on_map, 2].all() == (region == (0, 0, 1, 1))
    np.testing.assert_array_equal(ignored[:, :2], 0)


def test_a_region_hides_what_the_same_box_would_have_learned_and_padding_hides_nothing():
    box = (0.1, 0.3, 0.35, 0.8)
    assigned = assigned_by(OWN, targets([[(0, *box)]]))
    assert (ignored_by((0, *box))[assigned == 0, 0] == 1).all()
    assert not ignored_by((-1, *WHOLE)).any()


def test_a_region_of_a_coarse_box_silences_the_classes_below_and_no_other():
    truth = targets([[]], [COARSE])
    found = logit_gradient(truth, region_classes=REGION_CLASSES)[0]
    check_coarse(found, logit_gradient(targets([[]]))[0])
    both = targets([[]], [[(label, *COARSE[0][1:]) for label in (0, 1)]])
    np.testing.assert_array_equal(found, logit_gradient(both, region_classes=REGION_CLASSES)[0])
    np.testing.assert_array_equal(found, logit_gradient(both)[0])  # a row for each class


# === All rules ===


def test_the_rules_together_are_the_union_of_each():
    offsets, logits, truth = random_case(2)
    truth = with_parts(truth, [LEFT, RIGHT], [[1, 0, 1], [0, 1, 1]])
    assigned = assign(logits, offsets, truth)

    def silent(names, ancestors=None):
        chosen = {name: truth[name] for name in names}
        return numpy(silent_classes(chosen, assigned, ANCHORS, CELLS, NUM_CLASSES, ancestors))

    boxes, regions, parts = ("boxes", "labels"), ("regions", "region_labels"), ("parts", "verified")
    single = [silent(regions), silent(parts), silent(boxes, ANCESTORS)]
    assert all(0 < part.mean() < 1 for part in single)
    np.testing.assert_array_equal(silent((*boxes, *regions, *parts), ANCESTORS), np.logical_or.reduce(single))
