"""Times decoding and non-maximum suppression per image on one core, in the network's graph and on the host.

    python benchmarks/decoding.py
    python benchmarks/decoding.py --num_classes 500 --score_activation softmax --repeats 20
    KERAS_BACKEND=jax python benchmarks/decoding.py

Three ways from raw outputs to at most 300 boxes, by turns in one process:

- straight: scores of all outputs, the best anchors, their scores, the best pairs, as a graph;
- graph: `models.decoding.TopBoxes`;
- host: `models.decoding.best_candidates` on the raw outputs as arrays.

All end in `models.suppression.suppress`. "few" are outputs near their prior with some hundred pairs above the score
threshold of 0.01, as a trained network gives; "many" are outputs of which nearly all are above it. Nothing is faster
than reading the outputs once: this limit, timed by adding them up, is printed beside. The images take turns, so that
outputs come from the memory, not from the cache. Prints medians in milliseconds; about a minute.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from oid.anchors.grids import AnchorGrids, m2det_anchors
from oid.command_line import run_script
from oid.files import InputError

COUNT, SCORE_THRESHOLD, MAX_BOXES = 1000, 0.01, 300


def use_one_core() -> str:
    """Leaves one core to this process, before a framework looks how many there are; says how."""
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1")
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", JAX_PLATFORMS="cpu")
    if not hasattr(os, "sched_setaffinity"):
        return "one thread (OMP_NUM_THREADS, TF_NUM_INTRAOP_THREADS)"
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return f"core {core} alone (sched_setaffinity), one thread"


def raw_outputs(rng: np.random.Generator, shape: tuple[int, int], many: bool, softmax: bool) -> np.ndarray:
    """Class outputs (anchors, classes) float32; with a softmax, one more column for the background."""
    anchors, classes = shape
    logits = rng.normal(*((-2.0, 1.5) if many else (-6.5, 0.4)), shape)
    if not many:
        rows = rng.choice(anchors, 300, replace=False)  # some ten anchors for each of thirty objects
        logits[rows, rng.integers(0, classes, 300)] = rng.uniform(-4.0, 4.0, 300)
    if softmax:
        background = rng.normal(-2.0 if many else 2.0, 0.5, (anchors, 1))
        logits = np.concatenate([background, logits], axis=1)
    return logits.astype("float32")


def compiled(function: Callable[[dict], dict]) -> Callable[[dict], dict]:
    """Compiles a function of tensors for Keras' backend; it returns arrays."""
    import keras

    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow

        function = tensorflow.function(function)
    elif backend == "jax":
        import jax

        function = jax.jit(function)
    return lambda outputs: {name: keras.ops.convert_to_numpy(part) for name, part in function(outputs).items()}


def straight(anchors: np.ndarray, softmax: bool) -> Callable[[dict], dict]:
    """The obvious way: the same boxes, with every output made a score and every number fetched by itself."""
    from keras import ops

    from models.box_deltas import decode_distances

    def decode(outputs: dict) -> dict:
        scores = ops.softmax(outputs["classes"])[..., 1:] if softmax else ops.sigmoid(outputs["classes"])
        _, anchor = ops.top_k(ops.max(scores, axis=-1), min(COUNT, len(anchors)))
        scores = ops.take_along_axis(scores, anchor[..., None], axis=1)
        offsets = ops.take_along_axis(outputs["boxes"], anchor[..., None], axis=1)
        boxes = decode_distances(offsets, ops.take(anchors, anchor, axis=0))
        classes = scores.shape[-1]
        top, pair = ops.top_k(ops.reshape(scores, (-1, scores.shape[1] * classes)), COUNT)
        boxes = ops.take_along_axis(boxes, (pair // classes)[..., None], axis=1)
        return {"boxes": boxes, "scores": top, "labels": pair % classes}

    return decode


def ways(grids: AnchorGrids, softmax: bool) -> dict[str, Callable[[np.ndarray, dict], tuple]]:
    """What is timed: functions of one image's outputs, as tensors with the batch in front and as arrays."""
    from models.decoding import TopBoxes, best_candidates
    from models.suppression import DetectionOptions, ScoredBoxes, suppress

    activation = "softmax" if softmax else "sigmoid"
    anchors = grids.boxes()
    options = DetectionOptions(score_threshold=SCORE_THRESHOLD, max_boxes=MAX_BOXES)
    plain = compiled(straight(anchors, softmax))
    layer = compiled(TopBoxes(grids, COUNT, scores=activation))

    def by(graph: Callable) -> Callable:
        def detect(tensors: dict, classes: np.ndarray, offsets: np.ndarray) -> tuple:
            top = graph(tensors)
            return suppress(ScoredBoxes(top["boxes"][0], top["scores"][0], top["labels"][0]), options)

        return detect

    def host(tensors: dict, classes: np.ndarray, offsets: np.ndarray) -> tuple:
        found = best_candidates(classes, offsets, anchors, COUNT, SCORE_THRESHOLD, scores=activation).found
        return suppress(found, options)

    def limit(tensors: dict, classes: np.ndarray, offsets: np.ndarray) -> None:
        classes.view("int32").sum(dtype="int32")

    return {"straight": by(plain), "graph": by(layer), "host": host, "limit": limit}


def measure(functions: dict[str, Callable], images: list[tuple], repeats: int) -> dict[str, float]:
    """Median milliseconds of each function, which take turns; compiles them first."""
    seconds = {name: [] for name in functions}
    for turn in range(-2, repeats):
        for name, function in functions.items():
            image = images[turn % len(images)]
            start = time.perf_counter()
            function(*image)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) * 1e3 for name, values in seconds.items()}


def same(one: tuple, other: tuple) -> bool:
    """Equal labels in equal order, boxes and scores but for float32 rounding."""
    return len(one[0]) == len(other[0]) and all(
        np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(one, other, strict=True)
    )


def main(
    *,
    num_classes: tuple[int, ...] = (80, 500),
    image_size: int = 320,
    images: int = 8,
    repeats: int = 40,
    score_activation: Literal["sigmoid", "softmax"] = "sigmoid",
    seed: int = 0,
) -> None:
    """Times the three ways.

    Args:
        num_classes: classes, one table row each
        image_size: side of the network's input in pixels; 320 has 12,810 anchors
        images: images that take turns
        repeats: times that each way is timed
        score_activation: what makes scores of the class outputs; softmax has one more, the background
        seed: of the outputs
    """
    if min(*num_classes, images, repeats) < 1:
        raise InputError("--num_classes, --images and --repeats are at least 1")
    how = use_one_core()
    import keras

    softmax = score_activation == "softmax"
    grids = m2det_anchors(image_size, 6, "official")
    num_anchors = sum(grids.per_map)
    print(f"{num_anchors:,} anchors, {score_activation}, Keras on {keras.config.backend()}, {how}")
    print("classes  outputs  boxes   straight     graph      host     limit   GB/s")
    rng = np.random.default_rng(seed)
    for classes in num_classes:
        for many in (False, True):
            functions = ways(grids, softmax)
            inputs = []
            for _ in range(images):
                logits = raw_outputs(rng, (num_anchors, classes), many, softmax)
                offsets = rng.normal(0, 0.5, (num_anchors, 4)).astype("float32")
                tensors = {"classes": logits[None], "boxes": offsets[None]}
                tensors = {name: keras.ops.convert_to_tensor(array) for name, array in tensors.items()}
                inputs.append((tensors, logits, offsets))
            times = measure(functions, inputs, repeats)
            found = {name: functions[name](*inputs[0]) for name in ("straight", "graph", "host")}
            differs = [name for name in ("straight", "graph") if not same(found[name], found["host"])]
            print(
                f"{classes:7}  {'many' if many else 'few':7}  {len(found['host'][0]):5}"
                + "".join(f"{times[name]:10.2f}" for name in functions)
                + f"{inputs[0][1].nbytes / times['limit'] / 1e6:7.1f}"
                + "".join(f"   {name} DIFFERS" for name in differs),
                flush=True,
            )


if __name__ == "__main__":
    run_script(main)
