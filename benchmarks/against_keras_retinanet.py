"""Trains keras-retinanet and this project's detector on the same images with the same backbone for the same minutes.

    python3.11 -m venv ../kr && ../kr/bin/pip install tensorflow-cpu==2.12.1 'numpy<1.24' 'setuptools<66' Cython \\
        keras-resnet keras-retinanet
    python benchmarks/against_keras_retinanet.py --python ../kr/bin/python --dataset_path fruit_oid

keras-retinanet 1.0.0 needs an environment of its own: Keras 3 does not build its models. Both start from random
weights. Both run at the same time, each on a core of its own, so that whatever else the machine does falls on both.
keras-retinanet trains as its command line does, but for what it cannot do without: sides are filled up to multiples of
32, and the learning rate is set on the optimizer (its Keras ignores the way that train.py passes it). The batch norm of
its backbone is always frozen: with random weights, whose statistics nobody has measured, it normalises nothing, and
neither can it learn to.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import a00_utils_and_constants as a00
from benchmarks.training_runs import ROOT, measure, run, score
from oid import paths
from oid.command_line import run_script
from oid.files import InputError
from oid.images.read import read_image
from oid.predictions.files import Predictions, write_predictions
from training.data_set import DataSet, read_classes, read_data_set

THEIRS = {"mobilenet": "mobilenet224_1.0", "resnet50": "resnet50"}  # our name of a backbone -> theirs


def main(
    *,
    python: str = "../kr/bin/python",
    dataset_path: str = a00.DATASET_PATH,
    folder: str = "against_keras_retinanet",
    backbone: str = "mobilenet",
    side: int = 192,
    minutes: float = 20.0,
    learning_rate: float = 1e-4,
    seed: int = 0,
) -> None:
    """Prints what each has learned.

    Args:
        python: of the environment with keras-retinanet
        dataset_path: in Open Images' layout, with a training and a validation split
        folder: for runs and predictions
        backbone: mobilenet or resnet50
        side: pixels: of our square, and of their shorter side
        minutes: of each training
        learning_rate: of theirs; 1e-5 is their default, 1e-4 learns more in a short time
        seed: of both
    """
    if backbone not in THEIRS:
        raise InputError(f"--backbone {backbone} is none that both have: choose {' or '.join(THEIRS)}")
    data_set, folder = Path(dataset_path).absolute(), Path(folder).absolute()
    output = folder / "output"
    run("a01_create_training_files.py", dataset_path=data_set, output_path=output, levels="1")
    classes = list(read_classes(output, "1"))
    train, validation = (read_data_set(data_set, output, "1", split) for split in ("train", "validation"))
    write_their_files(folder, classes, train, validation)

    cores = sorted(os.sched_getaffinity(0))[:2]
    task = {"folder": str(folder), "backbone": THEIRS[backbone], "side": side, "minutes": minutes}
    task |= {"learning_rate": learning_rate, "seed": seed}
    worker = [python, str(ROOT / "benchmarks" / "keras_retinanet_worker.py"), json.dumps(task)]
    file_paths = ["--dataset_path", str(data_set), "--output_path", str(output), "--run", "ours"]
    flags = ["--time_budget", f"{minutes:g}m", "--backbone", backbone, "--image_size", str(side), "--seed", str(seed)]
    flags += ["--validation_images", "1"]  # the last weights count, on both sides
    theirs = start(worker, cores[0], folder / "theirs.log")
    ours = start([sys.executable, "a03_train_m2det.py", *file_paths, *flags], cores[-1], folder / "ours.log")
    for process, log in ((theirs, folder / "theirs.log"), (ours, folder / "ours.log")):
        if process.wait():
            raise InputError(f"one of the trainings failed: {log} says why")

    ours_file, theirs_file = folder / "ours.csv", folder / "theirs.csv"
    images = data_set / "validation"
    run("a04_inference.py", output_path=output, run="ours/checkpoint", images=images, predictions=ours_file)
    result = json.loads((folder / "theirs.json").read_text())
    found = [np.array(result["found"][str(path)], "float64").reshape(-1, 6) for path in validation.paths]
    image_index, rows = np.repeat(np.arange(len(found)), list(map(len, found))), np.concatenate(found)
    columns = image_index, rows[:, 0].astype("int64"), rows[:, 1], rows[:, 2:]
    write_predictions(theirs_file, Predictions(list(validation.image_ids), classes, *columns))
    with open(output / "weights" / "ours" / "history.csv", newline="", encoding="utf-8") as file:
        seen = sum(float(row["images_per_second"]) * float(row["seconds"]) for row in csv.DictReader(file))
    print(f"{backbone}, {minutes:g} minutes on one core each, from random weights:")
    for name, file, pictures in (("keras-retinanet", theirs_file, result["images"]), ("here", ours_file, round(seen))):
        expanded = paths.expanded_predictions(file)
        run("a05_expand_hierarchy.py", dataset_path=data_set, predictions=file, expanded=expanded)
        at_50, at_all = score([measure(data_set, expanded)])
        print(f"  {name:16} {pictures:7} pictures seen  mAP@.5 {at_50:.4f}  mAP@.5:.95 {at_all:.4f}")


def write_their_files(folder: Path, classes: list[str], train: DataSet, validation: DataSet) -> None:
    """What keras-retinanet's CSV generator reads, boxes in whole pixels; and the list of images to look at."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "train.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for index, path in enumerate(train.paths):
            height, width = read_image(path, orientation="stored").shape[:2]
            rows = slice(*train.objects.offsets[index : index + 2])
            pixels = (train.objects.boxes[rows] * [width, height, width, height]).round().astype(int)
            for label, (x1, y1, x2, y2) in zip(train.objects.labels[rows], pixels, strict=True):
                writer.writerow([path, x1, y1, max(x2, x1 + 1), max(y2, y1 + 1), classes[label]])
    (folder / "classes.csv").write_text("".join(f"{name},{k}\n" for k, name in enumerate(classes)), encoding="utf-8")
    (folder / "validation.txt").write_text("\n".join(map(str, validation.paths)), encoding="utf-8")


def start(command: list[str], core: int, log: Path) -> subprocess.Popen:
    """Starts a process on one core."""
    with open(log, "w", encoding="utf-8") as file:
        return subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            cwd=ROOT,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


if __name__ == "__main__":
    run_script(main)
