"""Proves that fusion equals the package ensemble-boxes 1.0.9, and what it does where the package is undefined or wrong.

The comparison covers models without boxes, a weight of 0, duplicate, degenerate, swapped and out-of-range boxes, with
scores that are unique. Equal scores, which the package leaves to an unstable sort, are tested on their own.
"""

import ensemble_boxes
import numpy as np
import pytest
from ensemble_boxes.ensemble_boxes_nms import cpu_soft_nms_float

from oid.boxes.kernels import pairwise_sum
from oid.boxes.suppression import iou_matrix
from oid.fusion import fuse as fusion
from oid.fusion.fuse import (
    CONF_TYPES,
    METHODS,
    clean_boxes,
    fuse,
    fuse_images,
    nms_fusion,
    non_maximum_weighted,
    soft_nms_fusion,
    weighted_boxes_fusion,
)


def random_models(rng, sizes=(0, 1, 5, 30), num_models=None):
    """Models that see the same few objects, more or less: lists of boxes, scores and labels."""
    counts = rng.choice(sizes, size=num_models or rng.integers(1, 5))
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


def some_weights(rng, num_models):
    """None, or a weight for each model."""
    return [None, rng.choice([0.5, 1.0, 2.0, 3.3], num_models)][rng.integers(2)]


def compare_wbf(rng, models, weights=None):
    """Whether the package gives numbers at all, which then must be ours."""
    options = {"conf_type": rng.choice(CONF_TYPES), "allows_overflow": bool(rng.integers(2))}
    iou_threshold, skip = rng.choice([0.0, 0.3, 0.55, 0.8]), rng.choice([0.0, 0.2])
    names = {"weights": weights, "iou_thr": iou_threshold, "skip_box_thr": skip}
    expected = quietly(ensemble_boxes.weighted_boxes_fusion, *models, **names, **options)
    names = {"weights": weights, "iou_threshold": iou_threshold, "skip_box_threshold": skip}
    boxes, scores, labels = weighted_boxes_fusion(*models, **names, **options)
    assert all(np.isfinite(part).all() for part in (boxes, scores))
    assert np.all(np.diff(scores) <= 0)
    assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float64, np.float64, np.int64)
    if not (np.isfinite(expected[0]).all() and np.isfinite(expected[1]).all()):
        return False
    assert np.array_equal(table(boxes, scores, labels), table(*expected)), options | names
    return True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(k, marks=pytest.mark.slow) for k in range(20, 200))])
def test_wbf_equals_the_package_bit_for_bit(seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        models = random_models(rng)
        assert compare_wbf(rng, models, some_weights(rng, len(models[0])))


@pytest.mark.filterwarnings("ignore")
def test_wbf_equals_the_package_for_twelve_models_whose_weights_no_order_of_adding_leaves_alone():
    rng = np.random.default_rng(0)
    for _ in range(60):
        models = random_models(rng, sizes=(0, 1, 3, 8), num_models=12)
        assert compare_wbf(rng, models, rng.random(12) + 0.1)


@pytest.mark.filterwarnings("ignore")
def test_wbf_equals_the_package_with_one_weight_0_wherever_that_gives_numbers():
    """The model with weight 0 has a box per class at most: more would all have the score 0, which is a tie."""
    compared = 0
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        models = random_models(rng, sizes=(0, 1, 5, 10), num_models=rng.integers(2, 5))
        weights = rng.choice([0.5, 1.0, 2.0], len(models[0]))
        model = rng.integers(len(weights))
        weights[model] = 0.0
        _, first = np.unique(models[2][model], return_index=True)
        for part in models:
            part[model] = part[model][first]
        compared += compare_wbf(rng, models, weights)
    assert compared > 500


@pytest.mark.parametrize("count", range(1, 41))
def test_the_sum_of_weights_is_numpys(count):
    rng = np.random.default_rng(count)
    for _ in range(20):
        numbers = rng.random(count)
        assert pairwise_sum(numbers) == numbers.sum()


@pytest.mark.parametrize("seed", range(10))
def test_nms_equals_the_package(seed, capsys):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        models = random_models(rng)
        if not clean_boxes(np.concatenate(models[0]))[1].any():
            continue  # the package raises when no box is left
        weights = some_weights(rng, len(models[0]))
        copies = [list(part) for part in models]  # the package overwrites the scores
        expected = ensemble_boxes.nms(*copies, iou_thr=0.5, weights=weights)
        assert np.array_equal(table(*nms_fusion(*models, weights=weights, iou_threshold=0.5)), table(*expected))
    capsys.readouterr()


def package_soft_nms(boxes, scores, labels, method, *options):
    """The package's own loop, class by class, with the scores that it lowers in place and then forgets."""
    parts = [[np.zeros((0, 4)), np.zeros(0), np.zeros(0)]]
    for label in np.unique(labels):
        lowered = scores[labels == label].copy()
        kept = cpu_soft_nms_float(boxes[labels == label], lowered, *options, method)
        parts.append([boxes[labels == label][kept], lowered[lowered > options[2]], np.full(len(kept), label)])
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


@pytest.mark.parametrize("seed", range(10))
def test_soft_nms_keeps_the_packages_boxes_with_the_scores_that_it_forgets(seed, capsys):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        models = random_models(rng)
        boxes, has_area = clean_boxes(np.concatenate(models[0]))
        if not has_area.any():
            continue
        weights = some_weights(rng, len(models[0]))
        method, kind = [(1, "linear"), (2, "gaussian")][rng.integers(2)]
        iou, sigma, lowest = rng.choice([0.3, 0.5]), rng.choice([0.1, 0.5]), rng.choice([0.001, 0.1])
        options = {"iou_threshold": iou, "sigma": sigma, "score_threshold": lowest, "weights": weights}
        result = soft_nms_fusion(*models, kind=kind, **options)
        factors = np.ones(len(models[0])) if weights is None else weights
        scores = np.concatenate([s * w for s, w in zip(models[1], factors, strict=True)])
        scores = scores / (1 if weights is None else weights.sum())
        labels = np.concatenate(models[2])
        expected = package_soft_nms(boxes[has_area], scores[has_area], labels[has_area], method, iou, sigma, lowest)
        np.testing.assert_allclose(table(*result), table(*expected), rtol=1e-12)
        assert np.all(np.diff(result[1]) <= 0)
        copies = [list(part) for part in models]
        names = {"method": method, "iou_thr": iou, "sigma": sigma, "thresh": lowest, "weights": weights}
        published = ensemble_boxes.soft_nms(*copies, **names)
        assert sorted(map(tuple, published[0])) == sorted(map(tuple, result[0]))
    capsys.readouterr()


def test_soft_nms_gives_the_lowered_scores_and_drops_what_fell_to_the_threshold():
    """Two boxes with IoU 1/2, and one apart whose score is the threshold."""
    lists = [[[0, 0, 1, 1], [0, 0, 0.1, 0.1]], [[0, 0, 1, 0.5]]], [[0.8, 0.25], [0.9]], [[1, 2], [1]]
    boxes, scores, labels = soft_nms_fusion(*lists, kind="linear", iou_threshold=0.4, score_threshold=0.25)
    assert boxes.tolist() == [[0, 0, 1, 0.5], [0, 0, 1, 1]]
    assert scores.tolist() == [0.9, 0.8 * 0.5]
    assert labels.tolist() == [1, 1]
    _, scores, labels = soft_nms_fusion(*lists, sigma=0.2)
    np.testing.assert_allclose(scores, [0.9, 0.25, 0.8 * np.exp(-0.25 / 0.2)], rtol=1e-12)
    assert labels.tolist() == [1, 2, 1]
    with pytest.raises(ValueError, match="no negative scores"):
        soft_nms_fusion(*lists, skip_box_threshold=-0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(10))
def test_nmw_equals_the_package_before_it_rounds(seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        models = random_models(rng)
        weights, skip = some_weights(rng, len(models[0])), rng.choice([0.0, 0.2])
        iou_threshold = rng.choice([0.0, 0.3, 0.55, 0.8])
        names = {"weights": weights, "iou_thr": iou_threshold, "skip_box_thr": skip}
        expected = quietly(ensemble_boxes.non_maximum_weighted, *models, **names)
        names = {"weights": weights, "iou_threshold": iou_threshold, "skip_box_threshold": skip}
        boxes, scores, labels = non_maximum_weighted(*models, **names)
        assert np.all(np.diff(scores) <= 0)
        assert np.array_equal(table(boxes * 0, np.float32(scores), labels), table(expected[0] * 0, *expected[1:]))
        rows, expected = table(boxes, np.float32(scores), labels), table(*expected)
        np.testing.assert_allclose(rows, expected, rtol=0, atol=3e-6)


def test_nmw_by_hand():
    """The second box overlaps the first by 1/2 and has half its score: the mean is 4/5 of one and 1/5 of the other."""
    lists = [[[0, 0, 1, 1]], [[0, 0, 1, 0.5]]], [[0.8], [0.4]], [[1], [1]]
    boxes, scores, _ = non_maximum_weighted(*lists, iou_threshold=0.4)
    np.testing.assert_allclose(boxes, [[0, 0, 1, 0.9]], rtol=1e-12)
    assert scores.tolist() == [0.8]
    boxes, scores, _ = non_maximum_weighted(*lists, weights=[0.5, 2], iou_threshold=0.4)
    np.testing.assert_allclose(boxes, [[0, 0, 1, (0.4 * 0.5 + 0.2 * 0.5) / 0.5]], rtol=1e-12)
    assert scores.tolist() == [0.4]
    boxes, scores, _ = non_maximum_weighted([[[0.1, 0.1, 0.7, 0.7]]], [[1 / 3]], [[1]])
    assert (boxes.tolist(), scores.tolist()) == ([[0.1, 0.1, 0.7, 0.7]], [1 / 3])  # not rounded
    same = [[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.52]]
    boxes, scores, _ = non_maximum_weighted([same], [[0.0, 0.0]], [[1, 1]])
    assert (boxes.tolist(), scores.tolist()) == ([same[0]], [0.0])


@pytest.mark.parametrize(
    ("conf_type", "expected"),
    [
        ("avg", 0.6 * 3 / 6),
        ("max", 0.9 / 3),
        ("box_and_model_avg", 0.6 * 3 / 4 * 3 / 6),
        ("absent_model_aware_avg", 0.6 * 3 / (4 + 3)),
    ],
)
def test_the_four_confidences_by_hand(conf_type, expected):
    """Weights 1 2 3; the first finds the box twice, at 0.9 and 0.3, the second at 0.3, the third does not."""
    box = [0.1, 0.1, 0.5, 0.5]
    lists = [[box, box], [box], []], [[0.9, 0.3], [0.3], []], [[1, 1], [1], []]
    _, scores, _ = weighted_boxes_fusion(*lists, weights=[1, 2, 3], conf_type=conf_type)
    np.testing.assert_allclose(scores, [expected], rtol=1e-7)


def test_allows_overflow():
    box = [0.1, 0.1, 0.5, 0.5]
    lists = [[box, box, box], [box]], [[0.9, 0.8, 0.7], [0.6]], [[1, 1, 1], [1]]
    assert weighted_boxes_fusion(*lists)[1] == pytest.approx([0.75], rel=1e-6)
    assert weighted_boxes_fusion(*lists, allows_overflow=True)[1] == pytest.approx([0.75 * 4 / 2], rel=1e-6)


def block_of(images):
    """`fuse_images`' four lists for some images of as many models."""
    columns = list(zip(*images, strict=True))
    lists = [[np.concatenate([image[m] for image in column]) for m in range(3)] for column in columns]
    sizes = [[len(image[m]) for image in columns[0]] for m in range(3)]
    return *lists, [np.cumsum([0, *of_model]) for of_model in sizes]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("limit", [None, 0, 7])
def test_many_images_are_fused_as_each_alone_in_any_number_of_threads_and_parts(monkeypatch, method, limit):
    rng = np.random.default_rng(0)
    images = [random_models(rng, num_models=3) for _ in range(57)]
    options = {"weights": [1.0, 3.0, 2.0], "iou_threshold": 0.4, "conf_type": "box_and_model_avg", "limit": limit}
    alone = [fuse(method, *image, **options) for image in images]
    for threads, boxes_per_part in ((1, 4096), (1, 100), (2, 4096), (5, 300), (100, 1)):
        monkeypatch.setattr(fusion, "BOXES_PER_PART", boxes_per_part)
        *parts, offsets = fuse_images(method, *block_of(images), threads=threads, **options)
        assert offsets.tolist() == np.cumsum([0, *(len(scores) for _, scores, _ in alone)]).tolist()
        for part, expected in zip(parts, zip(*alone, strict=True), strict=True):
            assert np.array_equal(part, np.concatenate(expected))
    if limit:
        everything = fuse(method, *images[0], **(options | {"limit": None}))
        assert all(np.array_equal(x[:limit], y) for x, y in zip(everything, alone[0], strict=True))


def test_blocks_of_images_do_not_matter():
    rng = np.random.default_rng(1)
    images = [random_models(rng, num_models=3) for _ in range(20)]
    *whole, offsets = fuse_images("wbf", *block_of(images))
    first, second = (fuse_images("wbf", *block_of(part)) for part in (images[:13], images[13:]))
    assert all(np.array_equal(a, np.concatenate([b, c])) for a, b, c in zip(whole, first, second, strict=False))
    assert offsets.tolist() == [*first[3], *(second[3][1:] + first[3][-1])]
    for nothing in (fuse_images("wbf", *block_of(images[:1])), fuse_images("nms", [], [], [], [])):
        assert nothing[3][0] == 0
    *parts, offsets = fuse_images("wbf", *[[part] * 2 for part in (np.zeros((0, 4)), [], [], [0, 0, 0, 0])], threads=2)
    assert ([len(part) for part in parts], offsets.tolist()) == ([0, 0, 0], [0, 0, 0, 0])


@pytest.mark.parametrize(
    "offsets", [[[0, 1], [0, 2, 2]], [[0, 1], [0, 1]], [[0, 1], [1, 2]], [[0, 1]], [[0, 2, 1], [0, 0, 2]]]
)
def test_wrong_offsets_raise(offsets):
    boxes, ones = [[[0, 0, 1, 1]], [[0, 0, 1, 1]] * 2], [[1], [1, 1]]
    with pytest.raises(ValueError, match="offsets"):
        fuse_images("wbf", boxes, ones, ones, offsets)


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


@pytest.mark.parametrize(
    ("method", "expected", "expected_scores"),
    [
        ("wbf", "c between", [0.5, 0.5]),
        ("nms", "c a", [0.5, 0.5]),
        ("nmw", "c nearer", [0.5, 0.5]),
        ("soft_nms_linear", "c a b", [0.5, 0.5, 0.5 * (1 - 0.6)]),
        ("soft_nms_gaussian", "c a b c", [0.5, 0.5, 0.5 * np.exp(-(0.6**2) / 0.5), 0.5 * np.exp(-2)]),
    ],
)
def test_equal_scores_have_an_order(method, expected, expected_scores):
    """First the model, then the position; so the founder of a fused box, and the box that nms keeps, is the first.

    a and b have an IoU of 0.6; nmw weighs a by 1 and b by 0.6.
    """
    named = {"a": [0.0, 0.0, 0.4, 0.4], "b": [0.1, 0.0, 0.5, 0.4], "c": [0.6, 0.6, 0.9, 0.9]}
    a, b, c = named.values()
    named |= {"between": [0.05, 0.0, 0.45, 0.4], "nearer": [0.0375, 0.0, 0.4375, 0.4]}
    boxes, scores, labels = fuse(method, [[c, a], [b, c]], [[0.5] * 2] * 2, [[4] * 2] * 2, iou_threshold=0.3)
    np.testing.assert_allclose(boxes, [named[name] for name in expected.split()], rtol=0, atol=1e-7)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-6)
    assert set(labels) == {4}


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
