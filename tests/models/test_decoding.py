"""Proves that decoding is exact: the best pairs of all, ties included, the same in the graph and on the host."""

import keras
import numpy as np
import pytest

from models.box_deltas import DECODERS
from models.decoding import TopBoxes, TopPairs, best_candidates, best_entries, candidates_of_pairs
from oid.anchors.grids import m2det_anchors
from tests.helpers.project import shared
from tests.helpers.tiny_network import arrays


def sigmoid(logits):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def softmax(logits):
    e = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def random_outputs(scales=3, classes=5, batch=2, seed=0, *, distinct=True):
    """Anchors and raw outputs for them; `distinct=False` draws the logits from few values."""
    grids = m2det_anchors(64, scales)
    rng = np.random.default_rng(seed)
    shape = (batch, sum(grids.per_map))
    logits = rng.normal(-1, 2, (*shape, classes)) if distinct else rng.integers(-3, 3, (*shape, classes)) / 2
    return grids, logits.astype("float32"), rng.normal(0, 0.7, (*shape, 4)).astype("float32")


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


@pytest.mark.parametrize("box_deltas", ["distances", "ssd"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("scales", "classes", "count"), CASES)
def test_the_graph_and_the_host_find_the_best_of_all_pairs(scales, classes, count, activation, box_deltas):
    """Against sorting all pairs; many sigmoids are equal, but not softmaxes, which are equal only up to rounding."""
    background = int(activation == "softmax")
    grids, logits, offsets = random_outputs(scales, classes + background, distinct=bool(background))
    anchors, options = grids.boxes(), {"box_deltas": box_deltas, "scores": activation}
    graph = arrays(TopBoxes(grids, count, **options)({"classes": logits, "boxes": offsets}))
    assert graph["boxes"].shape == (2, min(count, len(anchors) * classes), 4)
    for image in range(2):
        scores = (softmax(logits[image]) if background else sigmoid(logits[image]))[:, background:]
        order = np.argsort(-scores, axis=None, kind="stable")[:count]
        anchor, label = np.unravel_index(order, scores.shape)
        boxes = DECODERS[box_deltas](offsets[image].astype("float64"), anchors, library=np)[anchor]
        in_graph = [graph[name][image] for name in ("boxes", "scores", "labels")]
        on_host, anchors_found = best_candidates(logits[image], offsets[image], anchors, count, **options)
        np.testing.assert_array_equal(anchors_found, anchor)
        for found, dtypes in ((in_graph, ("f4", "f4", "i4")), (on_host, ("f8", "f8", "i8"))):
            assert [values.dtype for values in found] == list(dtypes)
            np.testing.assert_allclose(found[0], boxes, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found[1], scores[anchor, label], rtol=1e-5)
            np.testing.assert_array_equal(found[2], label)


def test_half_precision_outputs():
    grids, logits, offsets = random_outputs()
    logits, offsets = logits.astype("float16"), offsets.astype("float16")
    half = arrays(TopBoxes(grids, 20)({"classes": logits, "boxes": offsets}))
    full = arrays(TopBoxes(grids, 20)({"classes": logits.astype("float32"), "boxes": offsets.astype("float32")}))
    for name, value in full.items():
        np.testing.assert_array_equal(half[name], value)
        assert half[name].dtype == value.dtype


@pytest.mark.parametrize(("count", "distinct"), [(1, True), (30, False), (10**4, True)])
def test_the_best_pairs_of_a_graph_for_any_shape(count, distinct):
    grids, logits, offsets = random_outputs(distinct=distinct)
    anchors = grids.boxes()
    top = arrays(TopPairs(count)({"classes": logits, "boxes": offsets}))
    for image in range(2):
        one = {name: values[image] for name, values in top.items()}
        found, anchor = candidates_of_pairs(one, anchors, 5, box_deltas="corners")
        many = min(count, len(anchors))
        expected, expected_anchor = best_candidates(logits[image], offsets[image], anchors, many, box_deltas="corners")
        np.testing.assert_array_equal(anchor, expected_anchor)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_outputs_that_do_not_fit_the_anchors_are_refused():
    with pytest.raises(ValueError, match="3 class outputs and 2 box outputs"):
        best_candidates(np.zeros((3, 1), "float32"), np.zeros((2, 4)), np.zeros((3, 4)))


def test_ssd_deltas_by_hand():
    """An anchor 0.2 wide and 0.4 high; its centre moves half its width to the right, it gets twice as high."""
    deltas, anchor = np.array([[5, 0, 0, np.log(2) / 0.2]]), np.array([[0.4, 0.3, 0.6, 0.7]])
    np.testing.assert_allclose(DECODERS["ssd"](deltas, anchor, library=np), [[0.5, 0.1, 0.7, 0.9]], atol=1e-12)


def test_ssd_deltas_are_decoded_as_the_reference_does():
    reference = np.load(shared("golden", "m2det", "multibox.npz"))
    boxes = DECODERS["ssd"](reference["loc"][0], m2det_anchors(320, 6, "official").boxes(), library=np)
    np.testing.assert_allclose(boxes, reference["decoded0"], rtol=0, atol=1e-5)
