"""Times the challenge metric on 2,000 synthetic images with 500 classes and 476,000 predicted boxes.

Beside it runs the peer `map_boxes` (pip install map-boxes), if it is installed. It knows neither group-of boxes nor
verified classes, so both are measured on a case without them as well. There they agree but for ties: it narrows scores
to float32.

    python benchmarks/bench_metric.py
    python benchmarks/bench_metric.py --images 200 --detections 40000
"""

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from oid.metric import Detections, GroundTruth, evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--classes", type=int, default=500)
    parser.add_argument("--boxes", type=int, default=30_000, help="ground-truth boxes")
    parser.add_argument("--detections", type=int, default=476_000)
    parser.add_argument("--repeats", type=int, default=3, help="the fastest of so many runs is printed")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    truth, detections = synthetic(rng, options.images, options.classes, options.boxes, options.detections)
    evaluate(*synthetic(rng, 2, 2, 5, 5), num_classes=2)  # compiles, or loads what was compiled before

    def ours(truth: GroundTruth) -> float:
        return evaluate(truth, detections, num_classes=options.classes).mean_average_precision

    show("oid.metric, with group-of boxes and unverified classes", options.repeats, lambda: ours(truth))
    plain = without_challenge_rules(truth, detections)
    show("oid.metric, without", options.repeats, lambda: ours(plain))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints when its Cython part is missing
            from map_boxes import mean_average_precision_for_boxes
    except ImportError:
        print("map_boxes is not installed: pip install map-boxes")
        return
    annotations, predictions = peer_tables(plain, detections)
    show(
        "map_boxes, without",
        1,
        lambda: mean_average_precision_for_boxes(annotations, predictions, verbose=False)[0],
    )


def show(name: str, repeats: int, measure: Callable[[], float]) -> None:
    """Runs `measure` and prints its fastest time and what it returns, the mAP."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = measure()
        seconds.append(time.perf_counter() - start)
    print(f"{name:<55} {min(seconds):8.3f} s   mAP {value:.6f}")


def synthetic(
    rng: np.random.Generator, images: int, classes: int, boxes: int, detections: int
) -> tuple[GroundTruth, Detections]:
    """Ground truth, and detections that are a shifted ground-truth box each, every third with a wrong class."""
    corners = rng.random((boxes, 2)) * 0.7
    gt_boxes = np.hstack([corners, corners + 0.05 + 0.25 * rng.random((boxes, 2))])
    truth = GroundTruth(
        image_ids=tuple(f"{image:016x}" for image in range(images)),
        box_image=rng.integers(images, size=boxes),
        box_class=np.minimum(rng.geometric(min(1, 10 / classes), size=boxes) - 1, classes - 1),
        boxes=gt_boxes,
        box_group_of=rng.random(boxes) < 0.05,
        label_image=rng.integers(images, size=boxes),
        label_class=rng.integers(classes, size=boxes),
    )
    source = rng.integers(boxes, size=detections)
    wrong = rng.random(detections) < 1 / 3
    found = Detections(
        image=truth.box_image[source],
        class_index=np.where(wrong, rng.integers(classes, size=detections), truth.box_class[source]),
        scores=rng.permutation(np.linspace(0.01, 0.99, detections)),
        boxes=gt_boxes[source] + rng.normal(0, 0.02, (detections, 4)),
    )
    return truth, found


def without_challenge_rules(truth: GroundTruth, detections: Detections) -> GroundTruth:
    """The same with ordinary boxes only, and every class verified that is detected in an image."""
    return GroundTruth(
        truth.image_ids,
        truth.box_image,
        truth.box_class,
        truth.boxes,
        np.zeros(len(truth.boxes), dtype=bool),
        detections.image,
        detections.class_index,
    )


def peer_tables(truth: GroundTruth, detections: Detections) -> tuple[np.ndarray, np.ndarray]:
    """Ground truth and detections as `map_boxes` takes them: rows of ids and numbers, by descending score.

    Its matching does not sort; degenerate boxes it does not drop.
    """
    ids = np.array(truth.image_ids, dtype=object)
    order = np.argsort(-detections.scores, kind="stable")
    boxes = detections.boxes[order]
    order = order[(boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])]

    def table(image, class_index, boxes, *columns):
        names = np.char.add("c", class_index.astype(str)).astype(object)
        return np.column_stack([ids[image], names, *columns, *(boxes[:, [0, 2, 1, 3]].T.astype(object))])

    annotations = table(truth.box_image, truth.box_class, truth.boxes)
    predictions = table(
        detections.image[order],
        detections.class_index[order],
        detections.boxes[order],
        detections.scores[order].astype(object),
    )
    return annotations, predictions


if __name__ == "__main__":
    main()
