"""Proves that decoding is exact: the best pairs of all, ties included, the same in the graph and on the host."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as drawn_arrays

from models.box_deltas import DECODERS, decode_ssd
from models.decoding import TopBoxes, best_entries, suppress, top_boxes
from oid.anchors.grids import anchor_settings, make_anchors
from oid.boxes.best_pairs import best_pairs, row_maxima
from oid.boxes.suppression import classwise_nms, classwise_soft_nms
from tests.helpers.project import shared
from tests.helpers.tiny_network import arrays

# Few distinct values, so that equal scores are common; 0.0 and -0.0 are equal.
LOGIT = st.sampled_from([-1000.0, -60.0, -3.0, -1.0, -0.0, 0.0, 0.5, 2.0, 40.0, 50.0, 1000.0])
LOGITS = st.tuples(st.integers(1, 12), st.integers(1, 6)).flatmap(
    lambda shape: drawn_arrays(np.float32, shape, elements=LOGIT)
)
THRESHOLD = st.sampled_from([0.0, 1e-30, 0.01, 0.05, 0.5, 0.9, 1.0])


def sigmoid(logits):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def softmax(logits):
    e = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def random_outputs(scales=3, classes=5, batch=2, seed=0, *, distinct=True):
    """A description of anchors and raw outputs for them; `distinct=False` draws the logits from few values."""
    description = anchor_settings(64, scales)
    rng = np.random.default_rng(seed)
    shape = (batch, len(make_anchors(description)))
    logits = rng.normal(-1, 2, (*shape, classes)) if distinct else rng.integers(-3, 3, (*shape, classes)) / 2
    return description, logits.astype("float32"), rng.normal(0, 0.7, (*shape, 4)).astype("float32")


# === The best pairs ===


@settings(max_examples=20, deadline=None)
@given(LOGITS, st.integers(1, 80), THRESHOLD)
def test_best_pairs_of_logits_are_those_of_sorting_all(logits, count, score_threshold):
    pairs, scores = best_pairs(logits, count=count, score_threshold=score_threshold)
    order = sorted(range(logits.size), key=lambda i: (-logits.flat[i], i))[:count]
    order = [i for i in order if sigmoid(logits.flat[i]) >= score_threshold]
    assert pairs.tolist() == order
    np.testing.assert_allclose(scores, sigmoid(logits.flat[order]), rtol=1e-12)
    assert (pairs.dtype, scores.dtype) == (np.int64, np.float64)


@settings(max_examples=20, deadline=None)
@given(LOGITS, st.integers(1, 80), THRESHOLD)
def test_best_pairs_of_a_softmax_are_those_of_sorting_all(logits, count, score_threshold):
    """Probabilities that are equal but for rounding have no order, so here the scores are compared."""
    logits = np.concatenate([logits, logits[:, :1] / 2], axis=1)
    pairs, scores = best_pairs(logits, count=count, score_threshold=score_threshold, activation="softmax")
    probabilities = softmax(logits)[:, 1:].ravel()
    assert len(set(pairs.tolist())) == len(pairs)
    np.testing.assert_allclose(scores, probabilities[pairs], rtol=2e-6)
    assert (np.diff(scores) <= 0).all()
    expected = np.sort(probabilities)[::-1][:count]
    near = np.abs(expected - score_threshold) <= 1e-6 * score_threshold  # rounding decides about these
    expected = expected[(expected >= score_threshold) & ~near]
    assert len(expected) <= len(scores) <= len(expected) + near.sum()
    np.testing.assert_allclose(scores[: len(expected)], expected, rtol=2e-6)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("count", [1, 7, 300, 5000])
def test_equal_rows_come_in_their_order(activation, count):
    """More rows than are added up at once; each of the 3 distinct ones 200 times, shuffled."""
    rng = np.random.default_rng(1)
    kind = rng.permutation(np.repeat([0, 1, 2], 200))
    logits = np.array([[0.3, 1, 2, 3], [0.1, 1, 2.5, 1], [0, 1, 2.2, 2.9]], "float32")[kind]
    pairs, scores = best_pairs(logits, count=count, activation=activation)
    all_scores = sigmoid(logits) if activation == "sigmoid" else softmax(logits)[:, 1:]
    order = np.lexsort((np.arange(all_scores.size), -np.round(all_scores.ravel(), 5)))[:count]
    assert pairs.tolist() == order.tolist()
    np.testing.assert_allclose(scores, all_scores.ravel()[order], rtol=1e-6)


def test_many_classes_and_anchors_above_the_threshold():
    rng = np.random.default_rng(2)
    for mean, score_threshold in ((-6, 0.01), (-3, 0.01), (-3, 0.0)):
        logits = rng.normal(mean, 1, (3000, 500)).astype("float32")
        pairs, _ = best_pairs(logits, count=1000, score_threshold=score_threshold)
        order = np.argsort(-logits.ravel(), kind="stable")[:1000]
        assert pairs.tolist() == order[sigmoid(logits.ravel()[order]) >= score_threshold].tolist()


def test_nan_is_in_no_pair():
    nan = np.nan
    for sign in (1, -1):
        logits = np.array([[nan, 3], [nan, nan], [1, 2], [-np.inf, nan]], "float32") * sign
        logits[np.isnan(logits)] = np.copysign(nan, sign)
        pairs, scores = best_pairs(logits, count=9)
        with np.errstate(invalid="ignore"):
            expected = [i for i in np.argsort(-logits.ravel(), kind="stable") if not np.isnan(logits.flat[i])]
        assert pairs.tolist() == expected
        assert not np.isnan(scores).any()
    logits = np.array([[0, nan, 5], [nan, 2, 3], [0, 1, 2], [nan, nan, nan], [9, nan, nan], [0, np.inf, 2]], "float32")
    pairs, scores = best_pairs(logits, count=9, activation="softmax")
    assert pairs.tolist() == [1, 3, 5, 2, 4]  # the infinite one has no probability
    expected = [sigmoid(5), sigmoid(1), softmax(logits[2])[2], sigmoid(-1), softmax(logits[2])[1]]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@settings(deadline=None)  # the first call compiles
@given(drawn_arrays(np.float32, (5, 4), elements=st.floats(width=32)))
def test_row_maxima_of_any_numbers(values):
    np.testing.assert_array_equal(row_maxima(values), np.fmax.reduce(values, axis=1))


def test_best_pairs_of_nothing_and_programming_mistakes():
    for activation in ("sigmoid", "softmax"):
        pairs, scores = best_pairs(np.zeros((0, 3)), count=5, activation=activation)
        assert (pairs.shape, pairs.dtype, scores.shape, scores.dtype) == ((0,), np.int64, (0,), np.float64)
    for shape, options, message in (
        (3, {"count": 5}, "expected \\(anchors, classes\\)"),
        ((3, 1), {"count": 5, "activation": "softmax"}, "expected \\(anchors, classes\\)"),
        ((3, 1), {"count": 0}, "count is 0"),
        ((3, 1), {"count": 5, "activation": "tanh"}, "unknown activation 'tanh'"),
    ):
        with pytest.raises(ValueError, match=message):
            best_pairs(np.zeros(shape), **options)
    for options in ({"box_coding": "yolo"}, {"score_activation": "tanh"}):
        with pytest.raises(ValueError, match="does not exist"):
            TopBoxes(anchor_settings(64, 1), **options)
    with pytest.raises(ValueError, match="3 class outputs and 2 box outputs"):
        top_boxes(np.zeros((3, 1), "float32"), np.zeros((2, 4)), np.zeros((3, 4)))


# === The graph ===


@pytest.mark.parametrize("groups", [(), (4,), (7, 2), (20, 20), (1000,), (1,)])
@pytest.mark.parametrize(("size", "count"), [(1, 1), (50, 3), (333, 10), (333, 400), (2000, 20)])
def test_best_entries_are_those_of_sorting_all(size, count, groups):
    values = np.random.default_rng(size).integers(-20, 20, (3, size)).astype("float32")  # many are equal
    tensor = keras.ops.convert_to_tensor(values)
    top, index = (keras.ops.convert_to_numpy(part) for part in best_entries(tensor, count, groups))
    expected = np.argsort(-values, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(top, np.take_along_axis(values, expected, axis=1))
    assert index.dtype == np.int32


CASES = [(3, 5, 20), (2, 1, 7), (1, 5, 1000), (3, 2, 1), (2, 90, 12), (3, 33, 1000)]  # scales, classes, count


@pytest.mark.parametrize("box_coding", ["distances", "ssd"])
@pytest.mark.parametrize("score_activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("scales", "classes", "count"), CASES)
def test_the_graph_and_the_host_find_the_best_of_all_pairs(scales, classes, count, score_activation, box_coding):
    """Against sorting all pairs; many sigmoids are equal, but not softmaxes, which are equal only up to rounding."""
    background = int(score_activation == "softmax")
    description, logits, offsets = random_outputs(scales, classes + background, distinct=bool(background))
    anchors = make_anchors(description)
    options = {"box_coding": box_coding, "score_activation": score_activation}
    graph = arrays(TopBoxes(description, count, **options)({"classes": logits, "boxes": offsets}))
    assert graph["boxes"].shape == (2, min(count, len(anchors) * classes), 4)
    for image in range(2):
        scores = (softmax(logits[image]) if background else sigmoid(logits[image]))[:, background:]
        order = np.argsort(-scores, axis=None, kind="stable")[:count]
        anchor, label = np.unravel_index(order, scores.shape)
        boxes = DECODERS[box_coding](offsets[image].astype("float64"), anchors, library=np)[anchor]
        in_graph = [graph[name][image] for name in ("boxes", "scores", "labels")]
        on_host = top_boxes(logits[image], offsets[image], anchors, count=count, **options)
        for found, dtypes in ((in_graph, ("f4", "f4", "i4")), (on_host, ("f8", "f8", "i8"))):
            assert [values.dtype for values in found] == list(dtypes)
            np.testing.assert_allclose(found[0], boxes, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found[1], scores[anchor, label], rtol=1e-5)
            np.testing.assert_array_equal(found[2], label)


def test_half_precision_outputs():
    description, logits, offsets = random_outputs()
    logits, offsets = logits.astype("float16"), offsets.astype("float16")
    half = arrays(TopBoxes(description, 20)({"classes": logits, "boxes": offsets}))
    full = arrays(TopBoxes(description, 20)({"classes": logits.astype("float32"), "boxes": offsets.astype("float32")}))
    for name, value in full.items():
        np.testing.assert_array_equal(half[name], value)
        assert half[name].dtype == value.dtype


# === Non-maximum suppression ===


def test_suppress_clips_and_leaves_out_what_has_no_area():
    rows = np.array(
        [
            (0, 0.9, 0.1, 0.1, 0.5, 0.5),
            (0, 0.8, 0.1, 0.1, 0.5, 0.48),  # IoU 0.95 with the first
            (1, 0.7, 0.1, 0.1, 0.5, 0.5),  # another class
            (1, 0.3, 0.6, 0.6, 1.4, 0.9),  # beyond the edge
            (1, 0.2, 1.1, 0.0, 1.2, 0.5),  # outside
            (0, 0.1, 0.2, 0.2, 0.2, 0.7),  # without area
            (0, 0.05, 0.0, 0.8, 0.1, 0.9),
        ]
    )
    boxes, scores, labels = suppress(rows[:, 2:], rows[:, 1], rows[:, 0], score_threshold=0.05)
    assert scores.tolist() == [0.9, 0.7, 0.3, 0.05]
    assert labels.tolist() == [0, 1, 1, 0]
    assert boxes[2].tolist() == [0.6, 0.6, 1, 0.9]
    assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float64, np.float64, np.int64)
    assert suppress(rows[:, 2:], rows[:, 1], rows[:, 0], score_threshold=0.31, max_boxes=1)[1].tolist() == [0.9]
    assert len(suppress(rows[:, 2:], rows[:, 1], rows[:, 0], nms_iou=1.0)[0]) == 5


@pytest.mark.parametrize("nms", ["hard", "linear", "gaussian"])
def test_suppress_is_the_function_of_its_name(nms):
    rng = np.random.default_rng(3)
    corners = rng.uniform(0, 0.7, (200, 2))
    boxes, scores, labels = np.concatenate([corners, corners + 0.3], axis=1), rng.random(200), rng.integers(0, 2, 200)
    options = {"nms": nms, "nms_iou": 0.4, "nms_sigma": 0.3, "vote_iou": 1.0, "max_boxes": 60}
    found = suppress(boxes, scores, labels, score_threshold=0.2, **options)
    if nms == "hard":
        kept = classwise_nms(boxes, scores, labels, 0.4)
        new_scores = scores[kept]
    else:
        parameters = {"iou_threshold": 0.4, "sigma": 0.3, "score_threshold": 0.0}
        kept, new_scores = classwise_soft_nms(boxes, scores, labels, method=nms, **parameters)
    kept, new_scores = kept[new_scores >= 0.2][:60], new_scores[new_scores >= 0.2][:60]  # as if filtered afterwards
    for one, other in zip(found, (boxes[kept], new_scores, labels[kept]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_boxes_that_voting_moves_together_are_one():
    """Two of three overlap by an IoU of 0.6 and stay, until their voters pull them onto each other."""
    boxes = np.array([[0.0, 0.0, 0.4, 0.4], [0.1, 0.0, 0.5, 0.4], [0.05, 0.0, 0.45, 0.4]])
    scores, labels = np.array([0.9, 0.8, 0.7]), np.zeros(3, int)
    options = {"nms_iou": 0.65, "score_threshold": 0.0}
    apart = suppress(boxes, scores, labels, vote_iou=1.0, **options)
    assert apart[1].tolist() == [0.9, 0.8]
    together = suppress(boxes, scores, labels, vote_iou=0.5, **options)
    assert together[1].tolist() == [0.9]
    np.testing.assert_allclose(together[0][0], scores @ boxes / scores.sum())


# === Box coding ===


def test_ssd_coding_by_hand():
    """An anchor 0.2 wide and 0.4 high; its centre moves half its width to the right, it gets twice as high."""
    offsets, anchor = np.array([[5, 0, 0, np.log(2) / 0.2]]), np.array([[0.4, 0.3, 0.6, 0.7]])
    np.testing.assert_allclose(decode_ssd(offsets, anchor, library=np), [[0.5, 0.1, 0.7, 0.9]], atol=1e-12)


@pytest.mark.parametrize("box_coding", ["distances", "ssd"])
def test_arrays_and_tensors_are_decoded_alike(box_coding):
    description, _, offsets = random_outputs()
    anchors = make_anchors(description)
    offsets[0, :3] = np.array([1e4, -1e4, 500], "float32")[:, None]
    tensors = keras.ops.convert_to_numpy(DECODERS[box_coding](*map(keras.ops.convert_to_tensor, (offsets, anchors))))
    assert np.isfinite(tensors).all()
    np.testing.assert_allclose(DECODERS[box_coding](offsets, anchors, library=np), tensors, rtol=1e-5, atol=1e-6)


def test_ssd_coding_equals_the_reference():
    reference = np.load(shared("golden", "m2det", "multibox.npz"))
    anchors = make_anchors(anchor_settings(320, 6, anchors="official"))
    boxes = decode_ssd(reference["loc"][0], anchors, library=np)
    np.testing.assert_allclose(boxes, reference["decoded0"], rtol=0, atol=1e-5)
