"""Fusion equals the package ensemble-boxes 1.0.9, and is well defined where the package is not.

Random models have duplicate, degenerate, swapped and out-of-range boxes and unique scores: the package leaves equal
scores to an unstable sort. Here their order is tested separately.
"""

import ensemble_boxes
import numpy as np
import pytest

from oid.boxes.suppression import classwise_soft_nms
from oid.fusion import fuse as fusion
from oid.fusion.fuse import CONF_TYPES, METHODS, count_unusual, fuse

BOX = [0.1, 0.1, 0.5, 0.5]


def random_boxes(rng, n):
    return np.sort(rng.random((n, 2, 2)), axis=1).reshape(n, 4)


def random_models(rng, sizes=(0, 1, 5, 30), num_models=None):
    """Lists of boxes, scores and labels of models that see the same few objects, more or less."""
    counts = rng.choice(sizes, size=num_models or rng.integers(1, 5))
    n = counts.sum()
    objects, boxes = random_boxes(rng, 4), random_boxes(rng, n)
    near = rng.random(n) < 0.7
    boxes[near] = objects[rng.integers(0, 4, near.sum())] + rng.normal(0, 0.02, (near.sum(), 4))
    flat, outside, swapped, twice = (rng.random(n) < 0.05 for _ in range(4))
    boxes[flat, 2] = boxes[flat, 0]
    boxes[outside] += rng.choice([-0.6, 0.6])
    boxes[swapped] = boxes[swapped][:, [2, 3, 0, 1]]
    boxes[twice] = boxes[rng.permutation(np.flatnonzero(twice))] if n else boxes
    scores = rng.permutation(np.linspace(0.01, 0.99, n) + rng.random(n) * 1e-4)
    labels, cuts = rng.choice([0, 3, 500], n), np.cumsum(counts)[:-1]
    return np.split(boxes, cuts), np.split(scores, cuts), np.split(labels, cuts)


def as_lists(models):
    """Copies as the package takes them; it overwrites scores."""
    return [[list(part) for part in column] for column in models]


def cleaned(boxes):
    """Boxes with ordered corners inside [0, 1], and which of them have an area."""
    boxes = np.clip(boxes, 0, 1)
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
    return boxes, np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) > 0


def table(boxes, scores, labels, *_):
    """`(N, 6)` rows score, label, box, in an order of their own: fused scores can be equal."""
    rows = np.column_stack([scores, labels, np.reshape(boxes, (-1, 4))])
    return rows[np.lexsort((*rows.T[:0:-1], -rows[:, 0]))]


def some_weights(rng, num_models):
    return [None, rng.choice([0.5, 1.0, 2.0, 3.3], num_models)][rng.integers(2)]


def wbf_equals_package(rng, models, weights, conf_type) -> bool:
    """Asserts bit-for-bit equality; False if the package gives nan, where our numbers must be finite all the same."""
    iou, skip, overflow = rng.choice([0.0, 0.3, 0.55, 0.8]), rng.choice([0.0, 0.2]), bool(rng.integers(2))
    options = {"weights": weights, "conf_type": conf_type, "allows_overflow": overflow}
    with np.errstate(all="ignore"):
        expected = ensemble_boxes.weighted_boxes_fusion(*as_lists(models), iou_thr=iou, skip_box_thr=skip, **options)
    found = fuse("wbf", *models, iou_threshold=iou, skip_box_threshold=skip, **options)
    assert np.isfinite(table(*found)).all()
    assert np.all(np.diff(found.scores) <= 0)
    is_defined = np.isfinite(table(*expected)).all()
    assert not is_defined or np.array_equal(table(*found), table(*expected))
    return is_defined


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("conf_type", CONF_TYPES)
@pytest.mark.parametrize(("sizes", "num_models"), [((0, 1, 5, 30), None), ((0, 1, 3, 8), 12)])
def test_wbf_equals_the_package_bit_for_bit(conf_type, sizes, num_models):
    """The weights of twelve models do not add up exactly."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        models = random_models(rng, sizes, num_models)
        weights = rng.random(12) + 0.1 if num_models else some_weights(rng, len(models[0]))
        assert wbf_equals_package(rng, models, weights, conf_type)


@pytest.mark.filterwarnings("ignore")
def test_wbf_equals_the_package_with_a_weight_of_0_where_the_package_gives_numbers():
    """The model with weight 0 has at most one box per class: more would tie with score 0."""
    rng, compared = np.random.default_rng(0), 0
    for _ in range(40):
        models = random_models(rng, sizes=(0, 1, 5, 10), num_models=rng.integers(2, 5))
        weights = rng.choice([0.5, 1.0, 2.0], len(models[0]))
        model = rng.integers(len(weights))
        weights[model] = 0.0
        _, first = np.unique(models[2][model], return_index=True)
        for part in models:
            part[model] = part[model][first]
        compared += wbf_equals_package(rng, models, weights, rng.choice(CONF_TYPES))
    assert compared > 20


def test_nms_equals_the_package(capsys):
    rng = np.random.default_rng(0)
    for _ in range(20):
        models = random_models(rng, sizes=(1, 5, 30))
        weights = some_weights(rng, len(models[0]))
        if cleaned(np.concatenate(models[0]))[1].any():  # else the package raises
            expected = ensemble_boxes.nms(*as_lists(models), iou_thr=0.5, weights=weights)
            assert np.array_equal(table(*fuse("nms", *models, weights=weights, iou_threshold=0.5)), table(*expected))
    capsys.readouterr()


@pytest.mark.parametrize(("kind", "method"), [("linear", 1), ("gaussian", 2)])
def test_soft_nms_keeps_the_boxes_of_the_package_with_the_scores_of_classwise_soft_nms(kind, method, capsys):
    rng = np.random.default_rng(0)
    for _ in range(20):
        models = random_models(rng, sizes=(1, 5, 30))
        boxes, has_area = cleaned(np.concatenate(models[0]))
        iou, sigma, lowest = rng.choice([0.3, 0.5]), rng.choice([0.1, 0.5]), rng.choice([0.001, 0.1])
        options = {"iou_threshold": iou, "sigma": sigma, "score_threshold": lowest}
        found = fuse(f"soft_nms_{kind}", *models, **options)
        scores, labels = (np.concatenate(part)[has_area] for part in models[1:])
        kept, new_scores = classwise_soft_nms(boxes[has_area], scores, labels, method=kind, **options)
        np.testing.assert_array_equal(found.scores, new_scores[new_scores > lowest])
        np.testing.assert_array_equal(found.boxes, boxes[has_area][kept[new_scores > lowest]])
        if has_area.any():  # else the package raises
            names = {"method": method, "iou_thr": iou, "sigma": sigma, "thresh": lowest}
            package = ensemble_boxes.soft_nms(*as_lists(models), **names)
            assert sorted(map(tuple, package[0])) == sorted(map(tuple, found.boxes))
    capsys.readouterr()


@pytest.mark.filterwarnings("ignore")
def test_nmw_equals_the_package_before_it_rounds():
    rng = np.random.default_rng(0)
    for _ in range(20):
        models = random_models(rng)
        weights, skip = some_weights(rng, len(models[0])), rng.choice([0.0, 0.2])
        iou = rng.choice([0.0, 0.3, 0.55, 0.8])
        expected = ensemble_boxes.non_maximum_weighted(
            *as_lists(models), weights=weights, iou_thr=iou, skip_box_thr=skip
        )
        found = fuse("nmw", *models, weights=weights, iou_threshold=iou, skip_box_threshold=skip)
        assert np.array_equal(np.sort(np.float32(found.scores)), np.sort(np.float32(expected[1])))
        rows = table(found.boxes, np.float32(found.scores), found.labels)
        np.testing.assert_allclose(rows, table(*expected), rtol=0, atol=3e-6)


# === By hand ==========================================================================================================


def test_two_boxes_become_their_weighted_mean():
    lists = [[[0.0, 0.0, 0.5, 0.5]], [[0.25, 0.0, 0.75, 0.5]]], [[0.75], [0.25]], [[7], [7]]
    found = [part.tolist() for part in fuse("wbf", *lists, iou_threshold=0.3)]
    assert found == [[[0.0625, 0.0, 0.5625, 0.5]], [0.5], [7], [0, 1]]


def test_a_box_of_one_model_in_three_gets_a_third_of_its_score_and_is_not_rounded():
    boxes, scores, *_ = fuse("wbf", [[[0.1, 0.2, 0.3, 0.4]], [], []], [[0.9], [], []], [[1], [], []])
    assert (boxes.tolist(), scores.tolist()) == ([[0.1, 0.2, 0.3, 0.4]], [0.9 / 3])


@pytest.mark.parametrize("method", ["wbf", "nmw"])
def test_boxes_of_score_0_give_no_nan(method):
    same = [BOX, [0.1, 0.1, 0.5, 0.52]]
    boxes, scores, *_ = fuse(method, [same], [[0.0, 0.0]], [[1, 1]])
    assert (boxes.tolist(), scores.tolist()) == ([same[0]], [0.0])


def test_a_model_of_weight_0_moves_no_box():
    lists = [[BOX], [BOX, [0.1, 0.1, 0.5, 0.52]]], [[0.5], [0.9, 0.8]], [[1], [1, 1]]
    boxes, scores, *_ = fuse("wbf", *lists, weights=[1, 0])
    np.testing.assert_array_equal(boxes, np.float32([BOX]).astype(np.float64))
    np.testing.assert_allclose(scores, [0.5 / 3 * 2], rtol=1e-6)


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
def test_equal_scores_are_ordered_by_model_then_position(method, expected, expected_scores):
    """a and b have an IoU of 0.6; nmw weighs a by 1 and b by 0.6."""
    named = {"a": [0.0, 0.0, 0.4, 0.4], "b": [0.1, 0.0, 0.5, 0.4], "c": [0.6, 0.6, 0.9, 0.9]}
    a, b, c = named.values()
    named |= {"between": [0.05, 0.0, 0.45, 0.4], "nearer": [0.0375, 0.0, 0.4375, 0.4]}
    boxes, scores, *_ = fuse(method, [[c, a], [b, c]], [[0.5] * 2] * 2, [[4] * 2] * 2, iou_threshold=0.3)
    np.testing.assert_allclose(boxes, [named[name] for name in expected.split()], rtol=0, atol=1e-7)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-6)


# === Properties of all methods ========================================================================================


def block_of(images):
    """The four lists of `fuse` for some images of three models."""
    columns = list(zip(*images, strict=True))
    lists = [[np.concatenate([image[m] for image in column]) for m in range(3)] for column in columns]
    sizes = [[len(image[m]) for image in columns[0]] for m in range(3)]
    return *lists, [np.cumsum([0, *of_model]) for of_model in sizes]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("limit", [None, 0, 7])
def test_many_images_are_fused_like_each_alone_in_any_number_of_threads_and_parts(monkeypatch, method, limit):
    rng = np.random.default_rng(0)
    images = [random_models(rng, num_models=3) for _ in range(57)]
    options = {"weights": [1.0, 3.0, 2.0], "iou_threshold": 0.4, "conf_type": "box_and_model_avg", "limit": limit}
    alone = [fuse(method, *image, **options) for image in images]
    expected = [np.concatenate(part) for part in list(zip(*alone, strict=True))[:3]]
    for threads, boxes_per_part in ((1, 4096), (1, 100), (2, 4096), (100, 1)):
        monkeypatch.setattr(fusion, "BOXES_PER_PART", boxes_per_part)
        *parts, offsets = fuse(method, *block_of(images), threads=threads, **options)
        assert offsets.tolist() == np.cumsum([0, *(len(one.scores) for one in alone)]).tolist()
        assert all(map(np.array_equal, parts, expected))
    everything = fuse(method, *images[0], **(options | {"limit": None}))
    assert all(np.array_equal(x[:limit], y) for x, y in zip(everything[:3], alone[0][:3], strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_classes_are_fused_independently_also_with_ties(method):
    rng = np.random.default_rng(0)
    boxes, _, labels = random_models(rng, sizes=(30,))
    scores = [np.round(rng.random(len(part)), 1) for part in labels]
    everything = fuse(method, boxes, scores, labels)
    for label in (0, 3, 500):
        masks = [part == label for part in labels]
        alone = fuse(method, *([x[m] for x, m in zip(part, masks, strict=True)] for part in (boxes, scores, labels)))
        of_label = everything.labels == label
        assert all(np.array_equal(x[of_label], y) for x, y in zip(everything[:2], alone[:2], strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_only_the_ratio_of_weights_counts_and_the_input_is_not_changed(method):
    models = random_models(np.random.default_rng(5), sizes=(30,), num_models=3)
    before, weights = as_lists(models), np.array([1.0, 3.0, 0.5])
    once, eight_times = fuse(method, *models, weights=weights), fuse(method, *models, weights=weights * 8)
    assert all(np.array_equal(x, y) for x, y in zip(once, eight_times, strict=True))
    assert all(np.array_equal(x, y) for a, b in zip(before, models, strict=True) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_boxes_are_cleaned_and_the_skip_threshold_applies_to_the_score_without_weight(method):
    """Corners are ordered and clipped, boxes without area dropped."""
    boxes = [[0.2, 0.2, 0.2, 0.9], [1.1, 0, 2, 1], [0.5, 0, -1, 1]]
    assert fuse(method, [boxes], [[0.5] * 3], [[0] * 3]).boxes.tolist() == [[0, 0, 0.5, 1]]
    boxes, scores, labels = [[BOX, BOX], [BOX]], [[0.3, 0.29], [0.3]], [[1, 2], [3]]
    assert sorted(fuse(method, boxes, scores, labels, weights=[1, 9], skip_box_threshold=0.3).labels) == [1, 3]


def test_unusual_boxes_are_counted():
    rng = np.random.default_rng(0)
    boxes, scores = rng.choice([-0.5, 0.0, 0.25, 0.5, 1.0, 1.5], (500, 4)), rng.choice([0.0, 0.2, 0.4], 500)
    outside, without_area = np.any((boxes < 0) | (boxes > 1), axis=1), ~cleaned(boxes)[1]
    assert count_unusual(boxes, scores, 0.2) == (outside.sum(), without_area.sum(), (scores == 0.0).sum())


@pytest.mark.parametrize("method", METHODS)
def test_no_boxes_give_no_boxes(method):
    for lists in (([[], []],) * 3, ([np.zeros((0, 4))], [np.zeros(0)], [np.zeros(0, int)]), ([], [], [])):
        boxes, scores, labels, offsets = fuse(method, *lists)
        assert (boxes.shape, scores.shape, labels.shape, offsets.tolist()) == ((0, 4), (0,), (0,), [0, 0])
    assert fuse(method, *([[], []],) * 3, [[0, 0, 0]] * 2, threads=2).offsets.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"method": "soft"}, r"'soft'.*wbf, nms"),
        ({"weights": [0, 0]}, "all are 0"),
        ({"weights": [1, -1]}, "negative"),
        ({"weights": [1, np.nan]}, "not finite"),
        ({"weights": [1]}, "1 weights for 2 models"),
        ({"iou_threshold": 1.5}, "IoU threshold"),
        ({"method": "soft_nms_linear", "skip_box_threshold": -0.1}, "no negative scores"),
        ({"scores_list": [[0.5], []]}, "different lengths"),
        ({"scores_list": [[0.5], [np.nan]]}, "not finite"),
        ({"boxes_list": [[[0, 0, 1, 1]], [[0, 0, np.inf, 1]]]}, "not finite"),
        ({"offsets_list": [[0, 1], [0, 1, 1]]}, "offsets"),
        ({"offsets_list": [[0, 1], [1, 1]]}, "offsets"),
        ({"offsets_list": [[0, 1], [0, 2]]}, "offsets"),
        ({"offsets_list": [[0, 1]]}, "offsets"),
        ({"offsets_list": [[0, 2, 1], [0, 0, 1]]}, "offsets"),
    ],
)
def test_mistakes_raise(change, match):
    arguments = {"boxes_list": [[[0, 0, 1, 1]]] * 2, "scores_list": [[0.5], [0.5]], "labels_list": [[1], [1]]}
    with pytest.raises(ValueError, match=match):
        fuse(**({"method": "wbf"} | arguments | change))
