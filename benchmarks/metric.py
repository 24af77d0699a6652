"""Times a07 as a program, and COCO's metric beside its peer, on inputs that it makes in a temporary folder.

    python benchmarks/metric.py
    python benchmarks/metric.py --small

Prints seconds, seconds of processor time and highest memory of a07 on 41,620 images, 200,000 ground-truth boxes, 500
classes in a hierarchy and 12 million predictions (0.7 GB), by itself, with --errors and with --coco; before that of its
start-up (`--help`), and of 100 images with numba's cache empty and full, which shows what compiling costs. Then COCO's
metric from arrays beside faster-coco-eval, from the lists that it takes.

The challenge's metric has no peer here: its reference, the TensorFlow Object Detection API, is not a package that
installs beside these. Takes several minutes; `--small` less than one.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.processes import measured
from oid import paths
from oid.annotations import write_class_descriptions
from oid.columns import CORNERS
from oid.command_line import run_script
from oid.metric.challenge import Detections, GroundTruth
from oid.metric.coco import CocoMatcher, in_pixels
from oid.predictions.files import Predictions, write_predictions

A07 = Path(__file__).resolve().parent.parent / "a07_evaluate.py"


def main(*, small: bool = False) -> None:
    """Makes the inputs, and prints the figures.

    Args:
        small: a quick look: a fiftieth of the images
    """
    rng, part = np.random.default_rng(0), 50 if small else 1
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder) / "few", Path(folder) / "many"
        os.environ["NUMBA_CACHE_DIR"] = str(Path(folder) / "cache")
        with get_context("spawn").Pool(1) as pool:  # a child starts with the peak memory of its parent
            pool.apply(write_inputs, (rng, few, 100, 500, 5_000, 50))
            pool.apply(write_inputs, (rng, many, 41_620 // part, 200_000 // part, 12_000_000 // part, 500))
        time_a07("--help")
        for what in ("an empty cache", "a full cache"):
            time_a07("--dataset_path", few, "--predictions", few / "predictions.csv", note=f"100 images, {what}")
        size = (many / "predictions.csv").stat().st_size / 1e6
        for more in ((), ("--errors",), ("--coco", "--image_params", many / "sizes.csv")):
            files = ("--dataset_path", many, "--predictions", many / "predictions.csv")
            time_a07(*files, *more, note=f"{size:.0f} MB of predictions {''.join(map(str, more[:1]))}")
    time_coco(rng, *(count // (10 if small else 1) for count in (1_000, 8_000, 100_000)))


def time_a07(*arguments: object, note: str = "--help") -> None:
    """Prints what a07 costs."""
    seconds, processor, megabytes = measured([sys.executable, str(A07), *map(str, arguments)])
    print(f"a07, {note}: {seconds:.1f} s, {processor:.1f} s of processor time, {megabytes:.0f} MB", flush=True)


# === Inputs ===========================================================================================================


def write_inputs(
    rng: np.random.Generator, folder: Path, images: int, boxes: int, predictions: int, classes: int
) -> None:
    """A data set in Open Images layout with a hierarchy of two levels, predictions in Kaggle form, and sizes."""
    labels = np.array([f"/m/{index:06x}" for index in range(classes)])
    inner = max(classes // 9, 1)  # of the challenge's 500 classes 57 are inner ones
    leaves = [{"LabelName": label} for label in labels[inner:].tolist()]
    tree = [{"LabelName": labels[k].item(), "Subcategory": leaves[k::inner]} for k in range(inner)]
    ids = np.array([f"{number:016x}" for number in rng.permutation(images) * 7919 + 10**15])
    truth, found = synthetic(rng, images, classes, boxes, predictions)
    paths.annotation_file(folder, paths.HIERARCHY).parent.mkdir(parents=True)
    paths.annotation_file(folder, paths.HIERARCHY).write_text(json.dumps({"LabelName": "root", "Subcategory": tree}))
    write_class_descriptions(
        paths.annotation_file(folder, paths.CLASS_DESCRIPTIONS), {label: label for label in labels}
    )
    columns = {"ImageID": ids[truth.box_image], "LabelName": labels[truth.box_class]}
    columns |= dict(zip(CORNERS, truth.boxes.T, strict=True)) | {"IsGroupOf": truth.box_group_of.astype(int)}
    pl.DataFrame(columns).write_csv(paths.box_annotations(folder, "validation"))
    columns = {"ImageID": ids[truth.label_image], "LabelName": labels[truth.label_class]}
    columns["Confidence"] = rng.integers(2, size=len(truth.label_image))
    pl.DataFrame(columns).write_csv(paths.image_label_annotations(folder, "validation"))
    width, height = rng.integers(200, 1200, (2, images))
    pl.DataFrame({"id": ids, "width": width, "height": height}).write_csv(folder / "sizes.csv")
    order = np.argsort(found.image, kind="stable")
    columns = (found.image[order], found.class_index[order], found.scores[order], found.boxes[order])
    write_predictions(folder / "predictions.csv", Predictions(ids.tolist(), labels.tolist(), *columns))


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


# === COCO's metric beside its peer ====================================================================================


def time_coco(rng: np.random.Generator, images: int, boxes: int, predictions: int) -> None:
    """Prints seconds of processor time, without loading, and AP; 20 classes, one core."""
    from faster_coco_eval import COCO, COCOeval_faster

    truth, found = synthetic(rng, images, 20, boxes, predictions)
    sizes = rng.integers(200, 1200, (images, 2)).astype(float)

    def ours() -> float:
        matcher = CocoMatcher(truth, sizes, num_classes=20)
        matcher.add(found)
        return matcher.metrics().numbers["AP"]

    ours()  # compiles
    print(f"COCO's metric, {images:,} images, {predictions:,} predictions, 20 classes:")
    here = shown("oid.metric.coco", ours)
    data_set, rows = coco_lists(truth, found, sizes, 20)
    peer = COCO(data_set)
    results = peer.loadRes(rows)

    def theirs() -> float:
        evaluation = COCOeval_faster(peer, results, "bbox")
        evaluation.run()
        return evaluation.stats[0]

    print(f"  ratio {shown('faster-coco-eval', theirs) / here:.1f}")


def shown(name: str, measure: Callable[[], float]) -> float:
    """Prints and returns the fewest seconds of processor time of three."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            ap = measure()
        seconds.append(time.process_time() - start)
    print(f"  {name:<20} {min(seconds):8.3f} s   AP {ap:.6f}", flush=True)
    return min(seconds)


def coco_lists(truth: GroundTruth, detections: Detections, sizes: np.ndarray, classes: int) -> tuple[dict, list[dict]]:
    """Ground truth and results as the peer takes them; its annotation ids start from 1."""
    boxes = in_pixels(truth.boxes, sizes[truth.box_image]).tolist()
    found = in_pixels(detections.boxes, sizes[detections.image]).tolist()
    columns = truth.box_image.tolist(), truth.box_class.tolist(), boxes, truth.box_group_of.tolist()
    annotations = [
        {"id": k, "image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": int(group)}
        for k, (image, label, box, group) in enumerate(zip(*columns, strict=True), start=1)
    ]
    columns = detections.image.tolist(), detections.class_index.tolist(), detections.scores.tolist(), found
    names = ("image_id", "category_id", "score", "bbox")
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    images, categories = ([{"id": k, "name": str(k)} for k in range(n)] for n in (len(truth.image_ids), classes))
    return {"images": images, "categories": categories, "annotations": annotations}, rows


if __name__ == "__main__":
    run_script(main)
