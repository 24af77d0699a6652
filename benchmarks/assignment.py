"""Times assignment, losses and their gradient as TensorFlow's graph, and says how large its tensors of pairs are.

    python benchmarks/assignment.py
    python benchmarks/assignment.py --regions 128
    python benchmarks/assignment.py --batch_size 16 --image_size 512 --scales 6 --anchors official --regions 128

8 images of 384 pixels, 3,060 anchors, 100 rows of boxes of which 10 are boxes, 3 and 500 classes, by turns. Predictions
lie near the anchors and score low, as in a training that has begun. Prints medians in milliseconds, and the largest
tensor that has an element for each box and anchor, or region and anchor; half a minute.
"""

import math
import os
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from oid.command_line import run_script

os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
CLASSES = (3, 500)
RECIPES = {
    "own": {},
    "m2det": {"assignment": "max_iou", "class_loss": "softmax", "box_loss": "smooth_l1", "box_deltas": "ssd"},
    "retinanet": {"assignment": "max_iou", "class_loss": "focal", "box_loss": "smooth_l1", "box_deltas": "corners"},
}
FILLED = 10  # rows of boxes, and of regions, of each image


def batch(
    rng: np.random.Generator, *, images: int, rows: dict[str, int], anchors: int, classes: int, background: bool
) -> tuple[dict, dict]:
    """Outputs and targets as `models.losses.DetectionLoss` takes them; `rows` of boxes and regions."""
    outputs = {
        "classes": rng.normal(-5, 1, (images, anchors, classes + background)).astype("float32"),
        "boxes": rng.normal(0, 0.3, (images, anchors, 4)).astype("float32"),
    }
    targets = {}
    for (name, count), labels in zip(rows.items(), ("labels", "region_labels"), strict=True):
        if count:
            filled = min(FILLED, count)
            corner, size = rng.uniform(0, 0.7, (images, filled, 2)), rng.uniform(0.05, 0.3, (images, filled, 2))
            targets[name] = np.zeros((images, count, 4), "float32")
            targets[name][:, :filled] = np.concatenate([corner, corner + size], axis=-1)
            targets[labels] = np.full((images, count), -1, "int32")
            targets[labels][:, :filled] = rng.integers(0, classes, (images, filled))
    return outputs, targets


def largest_of_pairs(function, rows: set[int], anchors: int) -> tuple[int, str, list[int]]:
    """Bytes, type and shape of the largest tensor of a graph, its loops included, that ends in rows and anchors."""
    import tensorflow as tf

    graph = function.graph.as_graph_def(add_shapes=True)
    found = [(0, "", [])]
    for node in [*graph.node, *(node for part in graph.library.function for node in part.node_def)]:
        types = [node.attr[name].type for name in ("T", "dtype", "DstT") if node.attr[name].type]
        kind = tf.as_dtype(types[-1]) if types else tf.bool  # a comparison counts as what it compares: no more
        for shape in node.attr["_output_shapes"].list.shape:
            sides = [axis.size for axis in shape.dim]
            if anchors in sides[-2:] and rows & set(sides[-2:]):
                found.append((math.prod(sides) * kind.size, kind.name, sides))
    return max(found)


def main(
    *,
    batch_size: int = 8,
    image_size: int = 384,
    scales: int = 4,
    anchors: Literal["square", "official"] = "square",
    boxes: int = 100,
    regions: int = 0,
    recipe: Literal["own", "m2det", "retinanet"] = "own",
    repeats: int = 30,
) -> None:
    """Prints milliseconds, and megabytes of the largest tensor of pairs.

    Args:
        batch_size: images
        image_size: side in pixels
        scales: maps
        anchors: as in a03
        boxes: rows per image
        regions: rows of ignored regions per image; 0 = without the rule
        recipe: losses of our own, or as M2Det or RetinaNet is published
        repeats: of each; the median counts
    """
    import tensorflow as tf

    from models.losses import DetectionLoss
    from oid.anchors.grids import m2det_anchors

    grids = m2det_anchors(image_size, scales, anchors)
    count, losses = sum(grids.per_map), DetectionLoss(grids, **RECIPES[recipe])

    @tf.function
    def gradient(outputs, targets):
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            class_sum, box_sum, normaliser = losses(outputs, targets)
            loss = (class_sum + box_sum) / tf.maximum(normaliser, 1.0)
        return tape.gradient(loss, outputs)

    rng, rows = np.random.default_rng(0), {"boxes": boxes, "regions": regions}
    cases = {}
    for classes in CLASSES:
        made = batch(rng, images=batch_size, rows=rows, anchors=count, classes=classes, background=recipe == "m2det")
        outputs, targets = ({name: tf.constant(value) for name, value in part.items()} for part in made)
        cases[classes] = gradient.get_concrete_function(outputs, targets), outputs, targets
    seconds = {classes: [] for classes in CLASSES}
    for _ in range(repeats + 2):  # the first two warm up
        for classes, (function, outputs, targets) in cases.items():
            begin = time.perf_counter()
            function(outputs, targets)["classes"].numpy()
            seconds[classes].append(time.perf_counter() - begin)
    print(f"{batch_size} images, {count} anchors, {boxes} rows of boxes, {regions} of regions, {recipe}")
    for classes, (function, *_) in cases.items():
        size, kind, shape = largest_of_pairs(function, {boxes, regions, boxes + regions}, count)
        tensor = f"largest tensor of pairs {size / 1e6:.1f} MB, {kind} {tuple(shape)}"
        print(f"{classes} classes: {1000 * np.median(seconds[classes][2:]):.0f} ms, {tensor}")


if __name__ == "__main__":
    run_script(main)
