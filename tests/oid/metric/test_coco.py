"""Proves COCO's twelve numbers: equal to faster-coco-eval on random cases, and by hand."""

import contextlib
import io

import numpy as np
import pytest

from oid.metric.challenge import Detections, GroundTruth
from oid.metric.coco import NAMES, CocoMatcher, CocoMetrics, in_pixels
from tests.helpers.metric_cases import rows_of

Case = tuple[GroundTruth, np.ndarray, Detections, int]  # ground truth, sizes, detections, number of classes


def random_case(seed: int, detections: int) -> Case:
    """Boxes on a grid, so that overlaps and areas are often exactly a threshold, and scores with many ties."""
    rng = np.random.default_rng(seed)
    images, classes = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    count = int(rng.integers(1, 6 * images))
    side = (8, 40, 400)[seed % 3]  # pixels per cell of the grid: small, medium and large boxes
    sizes = side * 10 * rng.integers(1, 3, (images, 2)).astype(float)

    def boxes(number):
        corner = rng.integers(0, 7, (number, 2)) / 10
        return np.concatenate([corner, corner + rng.integers(1, 5, (number, 2)) / 10], axis=1)

    gt_image, gt_class, gt_boxes = rng.integers(images, size=count), rng.integers(classes, size=count), boxes(count)
    none = np.zeros(0, np.int64)
    truth = GroundTruth(tuple("abcdef"[:images]), gt_image, gt_class, gt_boxes, rng.random(count) < 0.2, none, none)
    source, near = rng.integers(count, size=detections), rng.random(detections) < 0.7
    moved = gt_boxes[source] + rng.choice([0, 0, 0.02], (detections, 4))
    found = Detections(
        image=np.where(near, gt_image[source], rng.integers(images, size=detections)),
        class_index=np.where(near, gt_class[source], rng.integers(classes, size=detections)),
        scores=np.round(rng.random(detections), int(rng.integers(1, 4))),
        boxes=np.where(near[:, None], moved, boxes(detections)),
    )
    found.boxes[rng.random(detections) < 0.02, 2] = 0.0  # swapped corners, or no width
    return truth, sizes, found, classes


def by_faster_coco_eval(truth: GroundTruth, sizes: np.ndarray, detections: Detections, classes: int) -> np.ndarray:
    """The oracle's twelve numbers; its annotation ids must start from 1."""
    package = pytest.importorskip("faster_coco_eval", reason="needs pip install faster-coco-eval")
    boxes = in_pixels(truth.boxes, sizes[truth.box_image]).tolist()
    columns = truth.box_image.tolist(), truth.box_class.tolist(), boxes, truth.box_group_of.tolist()
    annotations = [
        {"id": k, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": int(g)}
        for k, (i, c, b, g) in enumerate(zip(*columns, strict=True), start=1)
    ]
    boxes = in_pixels(detections.boxes, sizes[detections.image]).tolist()
    columns = detections.image.tolist(), detections.class_index.tolist(), detections.scores.tolist(), boxes
    results = [{"image_id": i, "category_id": c, "score": s, "bbox": b} for i, c, s, b in zip(*columns, strict=True)]
    images, categories = ([{"id": k, "name": str(k)} for k in range(n)] for n in (len(truth.image_ids), classes))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = package.COCO({"images": images, "categories": categories, "annotations": annotations})
        evaluation = package.COCOeval_faster(coco, coco.loadRes(results), "bbox")
        evaluation.run()
    return np.array(evaluation.stats[:12])


def matched(
    truth: GroundTruth, sizes: np.ndarray, detections: Detections, classes: int, blocks: int = 1
) -> CocoMetrics:
    """Our result, with the images in so many blocks."""
    matcher = CocoMatcher(truth, sizes, num_classes=classes)
    for block in range(blocks - 1, -1, -1):
        matcher.add(rows_of(detections, detections.image % blocks == block))
    return matcher.metrics()


def twelve(case: Case, blocks: int = 1) -> np.ndarray:
    """The twelve numbers in the order of NAMES, with COCO's -1."""
    return np.nan_to_num(list(matched(*case, blocks).numbers.values()), nan=-1)


# === Against the oracle ===============================================================================================


def test_equals_faster_coco_eval_on_random_cases():
    used = np.zeros(len(NAMES), dtype=int)
    for seed in range(20):
        case = random_case(seed, detections=10 + 2 * seed)
        expected = by_faster_coco_eval(*case)
        np.testing.assert_allclose(twelve(case), expected, rtol=0, atol=1e-9, err_msg=f"seed {seed}")
        used += (expected > 0) & (expected < 1)
    assert used.min() >= 3  # each of the twelve was tried where it is neither 0 nor 1


def test_equals_faster_coco_eval_beyond_100_detections():
    case = random_case(1000, detections=2500)
    _, _, detections, classes = case
    assert np.bincount(detections.image * classes + detections.class_index).max() > 100
    np.testing.assert_allclose(twelve(case), by_faster_coco_eval(*case), rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_and_their_order_do_not_matter(seed: int):
    case = random_case(seed, detections=200)
    np.testing.assert_array_equal(twelve(case), twelve(case, blocks=3))


# === By hand =========================================================================================================


def one_image(gt: list, found: list, size: float = 100.0) -> tuple[GroundTruth, np.ndarray, Detections, int]:
    """One image of `size` x `size` pixels and one class: gt [box, group-of], found [box, score]; boxes in pixels."""
    none = np.zeros(0, np.int64)
    gt_boxes = np.array([box for box, _ in gt], float).reshape(-1, 4) / size
    truth = GroundTruth(
        ("a",), *(np.zeros(len(gt), np.int64),) * 2, gt_boxes, np.array([group for _, group in gt], bool), none, none
    )
    boxes = np.array([box for box, _ in found], float).reshape(-1, 4) / size
    zeros = np.zeros(len(found), np.int64)
    return truth, np.full((1, 2), size), Detections(zeros, zeros, np.array([s for _, s in found], float), boxes), 1


def numbers(gt: list, found: list, size: float = 100.0) -> dict[str, float]:
    return matched(*one_image(gt, found, size)).numbers


def test_a_box_of_iou_one_half_counts_at_one_of_ten_thresholds():
    """IoU is exactly .5, at .5 inclusive; the box of 64 x 64 pixels is a medium one."""
    found = numbers([([0, 0, 64, 64], False)], [([0, 0, 64, 32], 0.9)], 128.0)
    expected = {"AP": 0.1, "AP50": 1, "AP75": 0, "AP_medium": 0.1, "AR_1": 0.1, "AR_10": 0.1, "AR_100": 0.1}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert found["AR_medium"] == pytest.approx(0.1)
    assert np.isnan([found[name] for name in ("AP_small", "AP_large", "AR_small", "AR_large")]).all()


def test_a_group_of_box_makes_neither_right_nor_wrong():
    inside = [([10, 10, 20, 20], 0.9), ([12, 12, 30, 30], 0.8)]
    alone = numbers([([0, 0, 50, 50], True)], inside)
    assert np.isnan(list(alone.values())).all()
    beside = numbers([([0, 0, 50, 50], True), ([60, 60, 90, 90], False)], [*inside, ([60, 60, 90, 90], 0.7)])
    assert (beside["AP"], beside["AR_1"]) == pytest.approx((1, 0))  # the one best detection is spent on the group
    outside = numbers([([60, 60, 90, 90], False)], [*inside, ([60, 60, 90, 90], 0.7)])
    assert outside["AP"] == pytest.approx(1 / 3, abs=1e-12)


def test_areas_are_pixels_inclusive_and_boxes_outside_are_ignored():
    """32 x 32 pixels is small and medium alike."""
    gt, perfect = [([0, 0, 32, 32], False)], [([0, 0, 32, 32], 0.9)]
    at_32, at_64 = numbers(gt, perfect, 256.0), numbers([([0, 0, 64, 64], False)], [([0, 0, 64, 64], 0.9)], 256.0)
    assert (at_32["AP_small"], at_32["AP_medium"]) == pytest.approx((1, 1))
    assert np.isnan(at_64["AP_small"])
    large_and_small = numbers([*gt, ([100, 100, 228, 228], False)], [*perfect, ([100, 100, 228, 228], 0.95)], 256.0)
    assert (large_and_small["AP_small"], large_and_small["AP_large"]) == pytest.approx((1, 1))


def test_average_precision_per_class():
    truth, sizes, detections, classes = random_case(11, detections=120)
    result = matched(truth, sizes, detections, classes)
    assert np.nanmean(result.average_precision) == pytest.approx(result.numbers["AP"], abs=1e-12)
    counted = np.bincount(truth.box_class[~truth.box_group_of], minlength=classes) > 0
    np.testing.assert_array_equal(np.isnan(result.average_precision), ~counted)


@pytest.mark.parametrize("sizes", [np.zeros((1, 2)), np.ones((2, 2)), np.array([[10, np.nan]])])
def test_a_size_that_is_none_is_an_error(sizes: np.ndarray):
    truth, _, _, classes = one_image([([0, 0, 1, 1], False)], [])
    with pytest.raises(ValueError, match="1 positive sizes"):
        CocoMatcher(truth, sizes, num_classes=classes)
