"""Proves that the best (anchor, class) pairs are found exactly, ties included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as drawn_arrays

from oid.boxes.best_pairs import best_pairs, row_maxima

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
