"""Proves that fusion equals the package ensemble-boxes 1.0.9, and what it does where the package is undefined or wrong.

The comparison covers models without boxes, a weight of 0, duplicate, degenerate, swapped and out-of-range boxes, with
scores that are unique. Equal scores, which the package leaves to an unstable sort, are tested on their own.
"""

import ensemble_boxes
import numpy as np
import pytest

from oid.boxes import iou_matrix
from oid.fusion import METHODS, clean_boxes, fuse, nms_fusion, weighted_boxes_fusion


def random_models(rng, sizes=(0, 1, 5, 30)):
    """Up to four models that see the same few objects, more or less: lists of boxes, scores and labels."""
    counts = rng.choice(sizes, size=rng.integers(1, 5))
    n = counts.sum()
    objects = random_boxes(rng, 4)
    boxes = random_boxes(rng, n)
    near = rng.random(n) < 0.7
    boxes[near] = objects[rng.integers(0, 4, near.sum())] + rng.normal(0, 0.02, (near.sum(), 4))
    flat, outside, swapped, twice = (rng.random(n) < 0.05 for _ in range(4))
    boxes[flat, 2] = boxes[flat, 0]
    boxes[outside] += rng.choice([-0.6, 0.6])
    boxes[swapped] = boxes[swapped][:, [2, 3, 0, 1]]
    boxes[twice] = boxes[rng.permutation(np.flatnonzero(twice))] if n else boxes
    scores = rng.permutation(np.linspace(0.01, 0.99, n) + rng.random(n) * 1e-4)
    labels = rng.choice([0, 3, 500], n)
    cuts = np.cumsum(counts)[:-1]
    return np.split(boxes, cuts), np.split(scores, cuts), np.split(labels, cuts)


def random_boxes(rng, n):
    return np.sort(rng.random((n, 2, 2)), axis=1).reshape(n, 4)


def table(boxes, scores, labels):
    """(N, 6) rows score, label, box in an order of their own: fused scores can be equal."""
    rows = np.column_stack([scores, labels, np.reshape(boxes, (-1, 4))])
    return rows[np.lexsort((*rows.T[:0:-1], -rows[:, 0]))]


def quietly(function, *arguments, **options):
    """The package's answer; it takes lists, and warns and prints a lot."""
    with np.errstate(all="ignore"):
        return function(*[[list(part) for part in argument] for argument in arguments], **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(40))
def test_wbf_equals_the_package_bit_for_bit(seed):
    rng = np.random.default_rng(seed)
    for _ in range(10):
        models = random_models(rng)
        weights = [None, rng.choice([0.5, 1.0, 2.0, 3.3], len(models[0]))][rng.integers(2)]
        iou_threshold, skip = rng.choice([0.0, 0.3, 0.55, 0.8]), rng.choice([0.0, 0.2])
        expected = quietly(
            ensemble_boxes.weighted_boxes_fusion, *models, weights=weights, iou_thr=iou_threshold, skip_box_thr=skip
        )
        boxes, scores, labels = weighted_boxes_fusion(
            *models, weights=weights, iou_threshold=iou_threshold, skip_box_threshold=skip
        )
        assert np.array_equal(table(boxes, scores, labels), table(*expected))
        assert np.all(np.diff(scores) <= 0)
        assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float64, np.float64, np.int64)


@pytest.mark.filterwarnings("ignore")
def test_wbf_equals_the_package_with_one_weight_0_wherever_that_gives_numbers():
    compared = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        models = random_models(rng, sizes=(1, 5))
        weights = rng.choice([0.5, 1.0, 2.0], len(models[0]))
        if len(weights) == 1:
            continue
        weights[rng.integers(len(weights))] = 0.0
        result = weighted_boxes_fusion(*models, weights=weights)
        assert all(np.isfinite(part).all() for part in result)
        expected = quietly(ensemble_boxes.weighted_boxes_fusion, *models, weights=weights)
        if np.isfinite(expected[0]).all():
            compared += 1
            assert np.array_equal(table(*result), table(*expected))
    assert compared > 50


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(20))
def test_nms_equals_the_package(seed, capsys):
    rng = np.random.default_rng(seed)
    for _ in range(10):
        models = random_models(rng)
        if not clean_boxes(np.concatenate(models[0]))[1].any():
            continue  # the package raises when no box is left
        weights = [None, rng.choice([0.5, 1.0, 2.0], len(models[0]))][rng.integers(2)]
        copies = [list(part) for part in models]  # the package overwrites the scores
        expected = ensemble_boxes.nms(*copies, iou_thr=0.5, weights=weights)
        assert np.array_equal(table(*nms_fusion(*models, weights=weights, iou_threshold=0.5)), table(*expected))
    capsys.readouterr()


def test_two_boxes_become_their_weighted_mean():
    boxes, scores, labels = weighted_boxes_fusion(
        [[[0.0, 0.0, 0.5, 0.5]], [[0.25, 0.0, 0.75, 0.5]]], [[0.75], [0.25]], [[7], [7]], iou_threshold=0.3
    )
    assert boxes.tolist() == [[0.0625, 0.0, 0.5625, 0.5]]
    assert scores.tolist() == [0.5]
    assert labels.tolist() == [7]


def test_a_box_of_one_model_in_three_gets_a_third_of_its_score():
    boxes, scores, _ = weighted_boxes_fusion([[[0.1, 0.2, 0.3, 0.4]], [], []], [[0.9], [], []], [[1], [], []])
    assert boxes.tolist() == [[0.1, 0.2, 0.3, 0.4]]  # not rounded to float32
    assert scores.tolist() == [0.9 / 3]


def test_boxes_of_different_classes_do_not_fuse():
    for method in METHODS:
        _, _, labels = fuse(method, [[[0, 0, 1, 1]]] * 2, [[0.9], [0.8]], [[1], [2]])
        assert labels.tolist() == [1, 2]


@pytest.mark.parametrize("method", METHODS)
def test_equal_scores_have_an_order(method):
    """First the model, then the position; so the founder of a fused box, and the box that nms keeps, is the first."""
    a, b, c = [0.0, 0.0, 0.4, 0.4], [0.1, 0.0, 0.5, 0.4], [0.6, 0.6, 0.9, 0.9]
    boxes, scores, labels = fuse(
        method, [[c, a], [b, c]], [[0.5, 0.5], [0.5, 0.5]], [[4, 4], [4, 4]], iou_threshold=0.3
    )
    assert labels.tolist() == [4, 4]
    assert scores.tolist() == [0.5, 0.5]
    between = np.float32([0.05, 0.0, 0.45, 0.4]) if method == "wbf" else a
    np.testing.assert_allclose(boxes, [c, between], rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_ties_everywhere_give_the_same_twice_and_do_not_depend_on_other_classes(method):
    rng = np.random.default_rng(0)
    boxes, _, labels = random_models(rng, sizes=(30,))
    scores = [np.round(rng.random(len(part)), 1) for part in labels]
    everything = fuse(method, boxes, scores, labels)
    for label in (0, 3, 500):
        masks = [part == label for part in labels]
        alone = fuse(method, *([x[m] for x, m in zip(part, masks, strict=True)] for part in (boxes, scores, labels)))
        of_label = everything[2] == label
        assert np.array_equal(everything[0][of_label], alone[0])
        assert np.array_equal(everything[1][of_label], alone[1])


def test_only_the_ratio_of_weights_counts():
    models = random_models(np.random.default_rng(5), sizes=(30,))
    weights = np.array([1.0, 3.0, 0.5, 2.0][: len(models[0])])
    for method in METHODS:
        once, eight_times = fuse(method, *models, weights=weights), fuse(method, *models, weights=weights * 8)
        assert all(np.array_equal(x, y) for x, y in zip(once, eight_times, strict=True))


def test_boxes_of_score_0_give_no_nan():
    same = [[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.52]]
    boxes, scores, _ = weighted_boxes_fusion([same], [[0.0, 0.0]], [[1, 1]])
    assert boxes.tolist() == [same[0]]
    assert scores.tolist() == [0.0]
    boxes, scores, _ = weighted_boxes_fusion([[same[0]], same], [[0.5], [0.9, 0.8]], [[1], [1, 1]], weights=[1, 0])
    np.testing.assert_array_equal(boxes, np.float32([same[0]]).astype(np.float64))
    np.testing.assert_allclose(scores, [0.5 / 3 * 2], rtol=1e-6)


def test_nms_fusion_leaves_the_callers_scores_alone():
    scores = [np.array([0.9]), np.array([0.8])]
    _, fused, _ = nms_fusion([[[0, 0, 1, 1]], [[0, 0, 1, 0.2]]], scores, [[1], [1]], weights=[3, 1])
    assert [part.tolist() for part in scores] == [[0.9], [0.8]]
    np.testing.assert_allclose(fused, [0.9 * 3 / 4, 0.8 / 4])


def test_nms_fusion_leaves_no_two_boxes_of_a_class_that_overlap_too_much():
    models = random_models(np.random.default_rng(2), sizes=(30,))
    boxes, _, labels = nms_fusion(*models, iou_threshold=0.4)
    same_class = (labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)
    assert iou_matrix(boxes, boxes)[same_class].max() <= 0.4


@pytest.mark.parametrize("method", METHODS)
def test_the_skip_threshold_is_on_the_models_own_score(method):
    boxes = [[[0, 0, 0.2, 0.2], [0.5, 0.5, 0.7, 0.7]], [[0.5, 0, 0.7, 0.2]]]
    _, _, labels = fuse(method, boxes, [[0.3, 0.29], [0.3]], [[1, 2], [3]], weights=[1, 9], skip_box_threshold=0.3)
    assert sorted(labels) == [1, 3]


def test_boxes_are_put_in_order_clipped_and_dropped_without_area():
    boxes, has_area = clean_boxes(
        np.array([[0.5, 0.1, 0.2, 0.3], [-1, -1, 2, 0.5], [0.2, 0.2, 0.2, 0.9], [1.1, 0, 2, 1]])
    )
    assert boxes[:2].tolist() == [[0.2, 0.1, 0.5, 0.3], [0, 0, 1, 0.5]]
    assert has_area.tolist() == [True, True, False, False]
    for method in METHODS:
        fused, _, _ = fuse(method, [[[0.2, 0.2, 0.2, 0.9], [1.1, 0, 2, 1], [-1, 0, 0.5, 1]]], [[0.5] * 3], [[0] * 3])
        assert fused.tolist() == [[0, 0, 0.5, 1]]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_in_nothing_out(method):
    for lists in (([[], []],) * 3, ([np.zeros((0, 4))], [np.zeros(0)], [np.zeros(0, int)]), ([], [], [])):
        boxes, scores, labels = fuse(method, *lists)
        assert (boxes.shape, scores.shape, labels.shape) == ((0, 4), (0,), (0,))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"weights": [0, 0]}, "all weights are 0"),
        ({"weights": [1, -1]}, "negative"),
        ({"weights": [1, np.nan]}, "not finite"),
        ({"weights": [1]}, "1 weights for 2 models"),
        ({"iou_threshold": 1.5}, "IoU threshold"),
        ({"scores_list": [[0.5], []]}, "different lengths"),
        ({"scores_list": [[0.5], [np.nan]]}, "not finite"),
        ({"boxes_list": [[[0, 0, 1, 1]], [[0, 0, np.inf, 1]]]}, "not finite"),
    ],
)
def test_mistakes_raise(method, change, match):
    arguments = {"boxes_list": [[[0, 0, 1, 1]]] * 2, "scores_list": [[0.5], [0.5]], "labels_list": [[1], [1]]}
    with pytest.raises(ValueError, match=match):
        fuse(method, **(arguments | change))


def test_an_unknown_method_raises():
    with pytest.raises(ValueError, match=r"'soft'.*wbf, nms"):
        fuse("soft", [], [], [])
