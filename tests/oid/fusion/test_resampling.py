"""Proves that one matching gives the metric on any choice of images: as if only these images had been evaluated."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oid.fusion.resampling import curves
from oid.metric.challenge import Detections, Entries, GroundTruth, evaluate, score

CLASSES = 3


def case(rng: np.random.Generator, images: int = 12) -> tuple[GroundTruth, Detections]:
    """Boxes on a coarse grid, so that many overlap; scores on a coarse scale, so that many are equal."""

    def boxes(count):
        corner = rng.integers(0, 4, (count, 2)) / 8
        return np.concatenate([corner, corner + rng.integers(1, 5, (count, 2)) / 8], axis=1)

    count, found = 3 * images, 6 * images
    labels = rng.integers(0, images, 2 * images), rng.integers(0, CLASSES, 2 * images)
    ids = tuple(f"{k:03d}" for k in range(images))
    columns = rng.integers(0, images, count), rng.integers(0, CLASSES, count), boxes(count), rng.random(count) < 0.2
    detections = rng.integers(0, images, found), rng.integers(0, CLASSES, found), rng.integers(1, 8, found) / 8
    return GroundTruth(ids, *columns, *labels), Detections(*detections, boxes(found))


def only(truth: GroundTruth, detections: Detections, chosen: np.ndarray) -> tuple[GroundTruth, Detections]:
    """The data set that has only the chosen images, `(images,)` bool."""
    new = np.cumsum(chosen) - 1
    boxes, labels, found = chosen[truth.box_image], chosen[truth.label_image], chosen[detections.image]
    ids = tuple(name for name, kept in zip(truth.image_ids, chosen, strict=True) if kept)
    box_columns = new[truth.box_image[boxes]], truth.box_class[boxes], truth.boxes[boxes], truth.box_group_of[boxes]
    columns = detections.class_index[found], detections.scores[found], detections.boxes[found]
    return (
        GroundTruth(ids, *box_columns, new[truth.label_image[labels]], truth.label_class[labels]),
        Detections(new[detections.image[found]], *columns),
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.2, 0.5, 1.0]), weight=st.sampled_from([0.0, 0.5, 1.0]))
def test_some_images_are_measured_as_if_there_were_no_others(seed, share, weight):
    rng = np.random.default_rng(seed)
    truth, detections = case(rng)
    chosen = rng.random(len(truth.image_ids)) < share
    options = {"num_classes": CLASSES, "group_of_weight": weight}
    matched = curves(score(truth, detections, **options)[0], truth, **options)
    expected = evaluate(*only(truth, detections, chosen), **options)
    ap, num_gt = matched.average_precision(chosen)
    np.testing.assert_allclose(ap[:, 0], expected.average_precision, atol=1e-12)
    np.testing.assert_array_equal(num_gt[:, 0], expected.num_gt)
    np.testing.assert_allclose(
        matched.mean_average_precision(chosen), expected.mean_average_precision, atol=1e-12, equal_nan=True
    )
    everything = evaluate(truth, detections, **options).mean_average_precision
    np.testing.assert_allclose(matched.mean_average_precision(), everything, atol=1e-12, equal_nan=True)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_strata_are_ranked_each_by_itself(seed):
    """Each is measured as if it were alone; the mean weighs by what there is to find. So scores of different scale in
    different strata change nothing, and the images of one can be measured with the others in the list or not."""
    rng = np.random.default_rng(seed)
    truth, detections = case(rng)
    stratum = rng.integers(0, 3, len(truth.image_ids))
    stratum[:3] = range(3)
    entries, _ = score(truth, detections, num_classes=CLASSES)
    matched = curves(entries, truth, num_classes=CLASSES, stratum=stratum)
    alone = [evaluate(*only(truth, detections, stratum == s), num_classes=CLASSES) for s in range(3)]
    ap, num_gt = matched.average_precision()
    np.testing.assert_allclose(ap, np.stack([one.average_precision for one in alone], axis=1), atol=1e-12)
    means = [
        sum(a * n for a, n in zip(ap[c], num_gt[c], strict=True) if n) / num_gt[c].sum()
        for c in range(CLASSES)
        if num_gt[c].sum()
    ]
    assert matched.mean_average_precision() == pytest.approx(np.mean(means), abs=1e-12)
    assert matched.mean_average_precision(stratum == 1) == pytest.approx(alone[1].mean_average_precision, abs=1e-12)

    scaled = entries._replace(scores=entries.scores * np.array([1, 0.01, 7])[stratum[entries.image]])
    again = curves(scaled, truth, num_classes=CLASSES, stratum=stratum)
    assert again.mean_average_precision() == matched.mean_average_precision()


def test_an_image_that_is_drawn_twice_counts_twice():
    """By hand: two images with a box each; the first is found after a false positive of the second.

    Drawn 2 and 1 times: the false positive counts 1, then 2 of 3 boxes are found: AP = 2/3 * 2/3. The other way round:
    2 false positives, then 1 of 3 at precision 1/3.
    """
    truth = GroundTruth(("a", "b"), *(np.array(x) for x in ([0, 1], [0, 0], [[0, 0, 1, 1.0]] * 2, [False] * 2, [], [])))
    entries = Entries(np.array([0.8, 0.9]), np.array([1.0, 0.0]), np.array([0, 0]), np.array([0, 1]))
    matched = curves(entries, truth, num_classes=1)
    assert matched.mean_average_precision(np.array([2, 1])) == pytest.approx(4 / 9)
    assert matched.mean_average_precision(np.array([1, 2])) == pytest.approx(1 / 9)
    assert matched.mean_average_precision(np.array([3, 3])) == pytest.approx(matched.mean_average_precision())
    assert matched.mean_average_precision() == pytest.approx(1 / 4)


def test_nothing_found_is_zero_and_nothing_to_find_is_not_a_number():
    truth, detections = case(np.random.default_rng(4))
    none = Detections(*(column[:0] for column in vars(detections).values()))
    matched = curves(score(truth, none, num_classes=CLASSES)[0], truth, num_classes=CLASSES)
    assert matched.mean_average_precision() == 0.0
    assert np.isnan(matched.mean_average_precision(np.zeros(12)))
    with pytest.raises(ValueError, match="12 images"):
        matched.mean_average_precision(np.ones(3))
