"""Small images for the tests of the metric: the reference's micro cases, and random ones."""

from itertools import count

import numpy as np
from hypothesis import strategies as st

from oid.metric.challenge import Detections, GroundTruth

A, B, C = range(3)  # class indices
UNIT = [0, 0, 1, 1]

# Boxes are [ymin, xmin, ymax, xmax], as in the reference's tests: one (gt, detections, verified classes) per image,
# with gt [class, box, is group-of] and detections [class, box, score]. Then for group-of weight 1, and 0 where that
# differs, of class A: AP, number of ground truth, scores and labels of the scored list.
EDGE_CASES = {
    "iou exactly 0.5 is a match": (
        [([[A, UNIT, 0]], [[A, [0, 0, 1, 0.5], 0.9]], [])],
        (1, 1, [0.9], [1]),
    ),
    "second detection of a taken box is a false positive": (
        [([[A, UNIT, 0]], [[A, UNIT, 0.9], [A, UNIT, 0.8]], [])],
        (1, 1, [0.9, 0.8], [1, 0]),
    ),
    "no second choice: best box taken, another box also has IoU>=0.5": (
        [([[A, UNIT, 0], [A, [0, 0, 1, 0.8], 0]], [[A, UNIT, 0.9], [A, [0, 0, 1, 0.95], 0.8]], [])],
        (0.5, 2, [0.9, 0.8], [1, 0]),
    ),
    "two detections inside one group-of box": (
        [([[A, [0, 0, 4, 4], 1]], [[A, [1, 1, 2, 2], 0.6], [A, [2, 2, 3, 3], 0.9], [A, [5, 5, 6, 6], 0.95]], [])],
        (0.5, 1, [0.95, 0.9], [0, 1]),
        (None, 0, [0.95], [0]),
    ),
    "duplicate of a taken box, inside a group-of box": (
        [([[A, UNIT, 0], [A, [0, 0, 4, 4], 1]], [[A, UNIT, 0.9], [A, UNIT, 0.8]], [])],
        (1, 2, [0.9, 0.8], [1, 1]),
        (1, 1, [0.9], [1]),
    ),
    "detection equal to the group-of box": (
        [([[A, [0, 0, 4, 4], 1]], [[A, [0, 0, 4, 4], 0.7]], [])],
        (1, 1, [0.7], [1]),
        (None, 0, [], []),
    ),
    "big detection around a small group-of box (IoA 0.25)": (
        [([[A, [0, 0, 2, 2], 1]], [[A, [0, 0, 4, 4], 0.7]], [])],
        (0, 1, [0.7], [0]),
        (None, 0, [0.7], [0]),
    ),
    "IoA exactly 0.5": (
        [([[A, [0, 0, 2, 1], 1]], [[A, [0, 0, 2, 2], 0.7]], [])],
        (1, 1, [0.7], [1]),
        (None, 0, [], []),
    ),
    "group-of hit with score 0": (
        [([[A, [0, 0, 4, 4], 1]], [[A, [1, 1, 2, 2], 0.0]], [])],
        (0, 1, [], []),
        (None, 0, [], []),
    ),
    "group-of box missed": (
        [([[A, [0, 0, 4, 4], 1], [A, [5, 5, 6, 6], 0]], [[A, [5, 5, 6, 6], 0.7]], [])],
        (0.5, 2, [0.7], [1]),
        (1, 1, [0.7], [1]),
    ),
    "zero-area and inverted detections vanish": (
        [([[A, UNIT, 0]], [[A, [0, 0, 0, 1], 0.99], [A, [1, 1, 0, 0], 0.98], [A, UNIT, 0.5]], [])],
        (1, 1, [0.5], [1]),
    ),
    "unverified class is ignored, negative class is a false positive": (
        [([[A, UNIT, 0]], [[A, UNIT, 0.5]], []), ([], [[A, UNIT, 0.9]], []), ([], [[A, UNIT, 0.8]], [A])],
        (0.5, 1, [0.5, 0.8], [1, 0]),
    ),
    "class with boxes but no image label is evaluated": (
        [([[A, UNIT, 0]], [[A, [5, 5, 6, 6], 0.9], [A, UNIT, 0.5]], [B])],
        (0.5, 1, [0.9, 0.5], [0, 1]),
    ),
    "ground truth without detections": (
        [([[A, UNIT, 0]], [], [])],
        (0, 1, [], []),
    ),
    "two identical ground-truth rows, one detection each": (
        [([[A, UNIT, 0], [A, UNIT, 0]], [[A, UNIT, 0.9], [A, UNIT, 0.8]], [])],
        (0.5, 2, [0.9, 0.8], [1, 0]),
    ),
}


def arrays(images: list[tuple[list, list, list]]) -> tuple[GroundTruth, Detections]:
    """The arrays of images written as in EDGE_CASES."""

    def column(values, dtype):
        return np.array(list(values), dtype=dtype)

    def xyxy(rows):
        return column(([box[1], box[0], box[3], box[2]] for _, (_, box, _) in rows), np.float64).reshape(-1, 4)

    gt = [(image, row) for image, (rows, _, _) in enumerate(images) for row in rows]
    det = [(image, row) for image, (_, rows, _) in enumerate(images) for row in rows]
    labels = [(image, label) for image, (_, _, verified) in enumerate(images) for label in verified]
    truth = GroundTruth(
        image_ids=tuple(f"{image:03}" for image in range(len(images))),
        box_image=column((image for image, _ in gt), np.int64),
        box_class=column((row[0] for _, row in gt), np.int64),
        boxes=xyxy(gt),
        box_group_of=column((row[2] for _, row in gt), bool),
        label_image=column((image for image, _ in labels), np.int64),
        label_class=column((label for _, label in labels), np.int64),
    )
    detections = Detections(
        image=column((image for image, _ in det), np.int64),
        class_index=column((row[0] for _, row in det), np.int64),
        scores=column((row[2] for _, row in det), np.float64),
        boxes=xyxy(det),
    )
    return truth, detections


def rows_of(detections: Detections, chosen: np.ndarray) -> Detections:
    """The chosen rows."""
    return Detections(*(column[chosen] for column in vars(detections).values()))


@st.composite
def scenes(draw) -> list:
    """One to three images as in EDGE_CASES, on a grid so coarse that exact overlaps are frequent; all scores differ."""
    place, classes = st.integers(0, 5), st.integers(A, C)
    upright = st.tuples(place, place, st.integers(1, 4), st.integers(1, 4)).map(
        lambda t: [t[0], t[1], t[0] + t[2], t[1] + t[3]]
    )
    any_box = st.one_of(upright, st.lists(place, min_size=4, max_size=4))
    numbers = count(1)
    images = []
    for _ in range(draw(st.integers(1, 3))):
        gt = draw(st.lists(st.tuples(classes, upright, st.booleans()), max_size=5))
        found = draw(st.lists(st.tuples(classes, any_box), max_size=8))
        verified = draw(st.lists(classes, max_size=2))
        images.append((gt, [(label, box, next(numbers)) for label, box in found], verified))
    total = next(numbers)
    scores = draw(st.permutations([(i - 2) / total for i in range(total)]))  # one is negative, one is 0
    return [
        (gt, [(label, box, scores[number]) for label, box, number in found], verified) for gt, found, verified in images
    ]


weights, thresholds = st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.1, 0.5, 0.75])
