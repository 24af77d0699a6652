"""Times a07 and the metric, each beside its peer, on inputs that it makes in a temporary folder.

    python benchmarks/metric.py
    python benchmarks/metric.py --small

Prints, one after the other:

- the start-up of a07 (`--help`), the median of five;
- a07 as a program on 41,620 images, 200,000 ground-truth boxes, 500 classes in a hierarchy and 12 million predictions
  (0.7 GB): seconds, the CPU's own seconds (which other programs do not lengthen) and peak memory, reading and
  expansion included. What compiling costs is printed apart: the same program on few images, with an empty cache and
  again;
- matching and AP alone on 2,000 images and 200,000 predictions, beside the package map-boxes, which knows neither
  group-of boxes nor verified classes, so both run on a case without them. They agree but for ties, because it narrows
  scores to float32;
- COCO's numbers beside pycocotools, on a case so small that it is done in time.

Several minutes, most of them writing the 12 million predictions and in the peers; `--small` less than two.
"""

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from oid import paths
from oid.command_line import run_script
from oid.metric.challenge import Detections, GroundTruth, evaluate
from oid.metric.coco import CocoMatcher, in_pixels
from oid.predictions.files import Predictions, PredictionWriter

ROOT = Path(__file__).resolve().parent.parent
BLOCK = 4096  # images that are written at a time


def main(*, small: bool = False, a07: bool = True, peers: bool = True, seed: int = 0) -> None:
    """Makes the inputs, and prints the figures.

    Args:
        small: a quick look: a fiftieth of the images
        a07: time the program
        peers: time the metrics beside map-boxes and pycocotools
        seed: of the inputs
    """
    rng = np.random.default_rng(seed)
    part = 50 if small else 1
    with tempfile.TemporaryDirectory() as folder:
        if a07:
            time_start_up()
            time_a07(rng, Path(folder), 41_620 // part, 200_000 // part, 12_000_000 // part)
    if peers:
        beside_map_boxes(rng, *(count // (10 if small else 1) for count in (2_000, 29_719, 200_000)))
        beside_pycocotools(rng, *(count // (10 if small else 1) for count in (1_000, 8_000, 100_000)))


# === The program =====================================================================================================


def time_start_up() -> None:
    """Prints the median of five calls of `a07 --help`."""
    seconds = sorted(run(["--help"], os.environ)[0] for _ in range(5))
    print(f"a07 --help: {seconds[2]:.2f} s (median of 5, {seconds[0]:.2f} to {seconds[4]:.2f})", flush=True)


def time_a07(rng: np.random.Generator, folder: Path, images: int, boxes: int, predictions: int) -> None:
    """Prints what a07 needs, and what compiling it costs."""
    variables = os.environ | {"NUMBA_CACHE_DIR": str(folder / "cache")}
    few, many = folder / "few", folder / "many"
    write_inputs(rng, few, 100, 500, 5_000, 50)
    first, again = (run(flags(few), variables) for _ in range(2))
    print(f"a07 on 100 images: {first[0]:.1f} s (CPU {first[1]:.1f}) with an empty cache, ", end="")
    print(f"{again[0]:.1f} s (CPU {again[1]:.1f}) with a full one", flush=True)
    start = time.perf_counter()
    print(f"{images:,} images, {boxes:,} boxes, {predictions:,} predictions, 500 classes:")
    write_inputs(rng, many, images, boxes, predictions, 500)
    size = (many / "predictions.csv").stat().st_size / 1e6
    print(f"inputs written in {time.perf_counter() - start:.0f} s, {size:.0f} MB of predictions", flush=True)
    for more in ((), ("--errors",)):
        seconds, cpu, megabytes, last = run([*flags(many), *more], variables)
        print(f"a07 {' '.join(more)}: {seconds:.1f} s (CPU {cpu:.1f}), {megabytes:.0f} MB at most, {last}", flush=True)


def flags(folder: Path) -> list[str]:
    """Those of a07 for what `write_inputs` wrote."""
    return ["--predictions", str(folder / "predictions.csv"), "--dataset_path", str(folder)]


def run(arguments: list[str], variables: dict[str, str]) -> tuple[float, float, float, str]:
    """Seconds, CPU seconds, peak memory in MB and the last line of a07 as a process of its own."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed:
        command = [sys.executable, str(ROOT / "a07_evaluate.py"), *arguments]
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=printed, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        lines = printed.read().splitlines()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {lines[-1:]}")
    kilobyte = 1024 if sys.platform != "darwin" else 1  # Linux counts in kilobytes
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * kilobyte / 1e6, lines[-1]


def write_inputs(
    rng: np.random.Generator, folder: Path, images: int, boxes: int, predictions: int, classes: int
) -> None:
    """A data set in Open Images layout with a hierarchy of two levels, and predictions in Kaggle form."""
    labels = [f"/m/{index:06x}" for index in range(classes)]
    inner = max(classes // 9, 1)  # of the challenge's 500 classes 57 are inner ones
    leaves = [{"LabelName": label} for label in labels[inner:]]
    tree = [{"LabelName": labels[k], "Subcategory": leaves[k::inner]} for k in range(inner)]
    ids = np.array([f"{number:016x}" for number in rng.permutation(images) * 7919 + 10**15])
    truth, _ = synthetic(rng, images, classes, boxes, 0)
    annotations = paths.box_annotations(folder, "validation")
    annotations.parent.mkdir(parents=True)
    paths.annotation_file(folder, paths.HIERARCHY).write_text(json.dumps({"LabelName": "root", "Subcategory": tree}))
    paths.annotation_file(folder, paths.CLASS_DESCRIPTIONS).write_text(
        "".join(f"{label},Class {index}\n" for index, label in enumerate(labels))
    )
    with open(annotations, "w", encoding="utf-8") as file:
        file.write("ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n")
        columns = (truth.box_image, truth.box_class, truth.boxes.tolist(), truth.box_group_of)
        for image, label, (a, b, c, d), group in zip(*columns, strict=True):
            file.write(f"{ids[image]},{labels[label]},{a:.6f},{c:.6f},{b:.6f},{d:.6f},{int(group)}\n")
    with open(paths.image_label_annotations(folder, "validation"), "w", encoding="utf-8") as file:
        file.write("ImageID,LabelName,Confidence\n")
        pairs = np.unique(np.stack([truth.label_image, truth.label_class], axis=1), axis=0)
        for image, label in pairs:
            file.write(f"{ids[image]},{labels[label]},{rng.integers(2)}\n")
    write_predictions(rng, folder / "predictions.csv", truth, ids, labels, predictions)


def write_predictions(
    rng: np.random.Generator, path: Path, truth: GroundTruth, ids: np.ndarray, labels: list[str], count: int
) -> None:
    """Equally many boxes for each image: boxes of its ground truth moved a little, every third of another class."""
    images, each = len(ids), count // len(ids)
    order = np.argsort(truth.box_image, kind="stable")
    first = np.searchsorted(truth.box_image[order], np.arange(images + 1))
    with PredictionWriter(path) as writer:
        for begin in range(0, images, BLOCK):
            image = np.repeat(np.arange(begin, min(begin + BLOCK, images)), each)
            source = first[image] + (rng.random(len(image)) * (first[image + 1] - first[image])).astype(int)
            source = order[np.minimum(source, len(order) - 1)]  # an image without boxes takes those of the next
            wrong = rng.random(len(image)) < 1 / 3
            label = np.where(wrong, rng.integers(len(labels), size=len(image)), truth.box_class[source])
            boxes = np.clip(truth.boxes[source] + rng.normal(0, 0.02, (len(image), 4)), 0, 1)
            boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], 1)
            block_ids = ids[begin : begin + BLOCK].tolist()
            writer.write(Predictions(block_ids, labels, image - begin, label, rng.random(len(image)) ** 2, boxes))


# === The metrics beside their peers ==================================================================================


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


def show(name: str, repeats: int, measure: Callable[[], float]) -> float:
    """Runs `measure`, prints its fastest time and what it returns; returns the CPU's seconds: all run on one core."""
    seconds = []
    for _ in range(repeats):
        start, cpu = time.perf_counter(), time.process_time()
        value = measure()
        seconds.append((time.process_time() - cpu, time.perf_counter() - start))
    cpu, wall = min(seconds)
    print(f"  {name:<55} {wall:8.3f} s (CPU {cpu:.3f})   {value:.6f}", flush=True)
    return cpu


def beside_map_boxes(rng: np.random.Generator, images: int, boxes: int, predictions: int) -> None:
    """Matching and AP from arrays, and from the tables that the peer takes."""
    truth, detections = synthetic(rng, images, 500, boxes, predictions)
    evaluate(*synthetic(rng, 2, 2, 5, 5), num_classes=2)  # compiles, or loads what was compiled before
    print(f"matching and AP, {images:,} images, {predictions:,} predictions, 500 classes, and mAP:")

    def ours(truth: GroundTruth) -> float:
        return evaluate(truth, detections, num_classes=500).mean_average_precision

    show("oid.metric.challenge, with group-of boxes and unverified classes", 5, lambda: ours(truth))
    plain = dataclasses.replace(
        truth,
        box_group_of=np.zeros(len(truth.boxes), dtype=bool),
        label_image=detections.image,
        label_class=detections.class_index,
    )
    here = show("oid.metric.challenge, without", 5, lambda: ours(plain))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints when its Cython part is missing
            from map_boxes import mean_average_precision_for_boxes
    except ImportError:
        print("  map_boxes is not installed: pip install map-boxes")
        return
    tables = peer_tables(plain, detections)
    there = show("map_boxes, without", 1, lambda: mean_average_precision_for_boxes(*tables, verbose=False)[0])
    print(f"  ratio of the CPU's seconds {there / here:.0f}")


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
    scores = detections.scores[order].astype(object)
    return annotations, table(detections.image[order], detections.class_index[order], detections.boxes[order], scores)


def beside_pycocotools(rng: np.random.Generator, images: int, boxes: int, predictions: int) -> None:
    """COCO's AP from arrays, and from the lists that the peer takes; 20 classes."""
    truth, detections = synthetic(rng, images, 20, boxes, predictions)
    sizes = rng.integers(200, 1200, (images, 2)).astype(float)

    def ours(truth: GroundTruth, sizes: np.ndarray, detections: Detections, classes: int) -> float:
        matcher = CocoMatcher(truth, sizes, num_classes=classes)
        matcher.add(detections)
        return matcher.metrics().numbers["AP"]

    ours(*synthetic(rng, 2, 2, 5, 5)[:1], np.ones((2, 2)), synthetic(rng, 2, 2, 5, 5)[1], 2)
    print(f"COCO's metric, {images:,} images, {predictions:,} predictions, 20 classes, and AP:")
    here = show("oid.metric.coco", 3, lambda: ours(truth, sizes, detections, 20))
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        print("  pycocotools is not installed: pip install pycocotools")
        return
    with contextlib.redirect_stdout(io.StringIO()):
        peer, results = COCO(), coco_lists(truth, sizes, detections, 20)
        peer.dataset, rows = results
        peer.createIndex()
        found = peer.loadRes(rows)

    def theirs() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(peer, found, "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation.stats[0]

    print(f"  ratio of the CPU's seconds {show('pycocotools', 1, theirs) / here:.0f}")


def coco_lists(truth: GroundTruth, sizes: np.ndarray, detections: Detections, classes: int) -> tuple[dict, list[dict]]:
    """Ground truth and results as pycocotools takes them."""
    boxes = in_pixels(truth.boxes, sizes[truth.box_image]).tolist()
    columns = (truth.box_image.tolist(), truth.box_class.tolist(), boxes, truth.box_group_of.tolist())
    annotations = [
        {"id": k, "image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": int(group)}
        for k, (image, label, box, group) in enumerate(zip(*columns, strict=True), start=1)
    ]
    boxes = in_pixels(detections.boxes, sizes[detections.image]).tolist()
    columns = (detections.image.tolist(), detections.class_index.tolist(), detections.scores.tolist(), boxes)
    rows = [
        {"image_id": image, "category_id": label, "score": score, "bbox": box}
        for image, label, score, box in zip(*columns, strict=True)
    ]
    data_set = {
        "images": [{"id": image} for image in range(len(truth.image_ids))],
        "categories": [{"id": label} for label in range(classes)],
        "annotations": annotations,
    }
    return data_set, rows


if __name__ == "__main__":
    run_script(main)
