"""Finds objects in a folder of images.

Reads   a run of a03 (OUTPUT/weights/<run>, or any folder with its files) and the images of DATASET/<split> or --images
Writes  OUTPUT/predictions/<split>/<run>.csv, Kaggle form: a row for every image, empty where nothing was found
Takes   8 s to start, then 10 to 20 ms an image with the constants of a00 on two CPU cores

Stopped and started again with the same flags it goes on where it was. With --export it looks at no image, but writes
the network and what belongs to it as a file for other programs: OUTPUT/exports/<run>.onnx, or a SavedModel's folder.

    python a04_inference.py --run vgg16_level_1 --split test
    python a04_inference.py --run OUTPUT/weights/tiny/checkpoint --images some/folder --predictions tiny.csv
    python a04_inference.py --run vgg16_level_1 --export onnx
"""

import csv
import hashlib
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

import a00_utils_and_constants as a00
from a00_utils_and_constants import run_script
from oid import layout
from oid.files import InputError, output_file, replacing, require_folder
from oid.images import find_images, read_image
from oid.predictions import KAGGLE_COLUMNS, open_for_writing, prediction_string

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's alarm where there is no GPU


def main(
    *,
    dataset_path: str = a00.DATASET_PATH,
    output_path: str = a00.OUTPUT_PATH,
    run: str = a00.RUN,
    split: str = a00.SPLIT,
    images: str | None = None,
    predictions: str | None = None,
    score_threshold: float = a00.SCORE_THRESHOLD,
    nms: Literal["hard", "linear", "gaussian"] = "hard",
    nms_iou: float = a00.NMS_IOU,
    nms_sigma: float = 0.5,
    vote_iou: float = a00.VOTE_IOU,
    mirror: bool = a00.MIRROR,
    max_boxes: int = a00.MAX_BOXES,
    precision: Literal["float32", "bfloat16"] = "float32",
    batch_size: int = 16,
    threads: int = 0,
    export: Literal["onnx", "tf_saved_model"] | None = None,
    export_path: str | None = None,
) -> None:
    """An image that cannot be read gets an empty row, and is named.

    Args:
        dataset_path: folder of the data set
        output_path: folder with weights/, and of the predictions
        run: a run's name, its folder, or the checkpoint folder of a training that is still going on
        split: folder below dataset_path with the images, unless --images names another
        images: folder with the images, flat or in folders of the ids' first three characters
        predictions: CSV to write; by default predictions/<split>/<run>.csv below output_path
        score_threshold: boxes with a lower score are left out
        nms: of boxes of one class that overlap, the one with the lower score goes (hard), or its score falls with the
            overlap (linear, gaussian)
        nms_iou: the overlap from which on hard and linear do so; 1 = keep all
        nms_sigma: width of gaussian; the larger, the less the scores fall
        vote_iou: after hard, a box moves to the mean of all that overlap it so much, weighted by score; 1 = none moves
        mirror: look at the mirrored image, too: better boxes in twice the time
        max_boxes: at most so many boxes per image, the best ones
        precision: of the network; bfloat16 is faster on processors that have it, and changes scores in the third digit
        batch_size: images that the network sees at a time
        threads: files read at a time; 0 = one per core
        export: look at no image, but write the run as a file that needs neither Keras nor these scripts
        export_path: file .onnx, or folder of the SavedModel, to write; by default exports/<run> below output_path
    """
    _check(locals())
    folder = layout.run_folder(output_path, run)
    if not any((path / "settings.json").is_file() for path in (folder, folder.parent)):
        raise InputError(f"{folder} is no run: it has no settings.json; train one with a03, or name another by --run")
    if export:
        target = export_path or layout.run_export(output_path, run, export)
        _export(folder, target, export, nms_iou=nms_iou, score_threshold=score_threshold)
        return
    source = require_folder(images or Path(dataset_path) / split, "name the folder with the images by --images")
    target = output_file(predictions or layout.run_predictions(output_path, split, run), "--predictions")
    files = _images_of(source)
    from models import load_model  # here, because starting the framework takes seconds that --help should not

    detector = load_model(folder, precision=precision)
    limits = {"score_threshold": score_threshold, "nms": nms, "nms_iou": nms_iou, "nms_sigma": nms_sigma}
    limits |= {"vote_iou": vote_iou, "mirror": mirror, "max_boxes": max_boxes}
    journal = Journal(
        target,
        {"run": _fingerprint(folder), "images": str(source.resolve()), "precision": precision, **limits},
    )
    todo = {image_id: path for image_id, path in files.items() if image_id not in journal.done}
    if journal.done:
        print(f"going on after {len(journal.done)} of {len(files)} images")
    unreadable, num_boxes = [], 0
    orientation = detector.settings["preprocessing"]["orientation"]
    with tqdm(total=len(todo), unit="image", disable=None) as bar:
        for batch in _batches(todo, detector, orientation, batch_size, threads):
            unreadable += [mistake for *_, mistake in batch if mistake]
            squares = np.stack([square for _, square, _, _ in batch])
            padded = np.concatenate([squares, np.zeros((batch_size - len(batch), *squares.shape[1:]), "uint8")])
            sizes = [size for _, _, size, _ in batch] + [squares.shape[1:3]] * (batch_size - len(batch))
            found = detector.detect(padded, sizes=sizes, **limits)
            for (image_id, _, _, mistake), (boxes, scores, labels) in zip(batch, found, strict=False):
                names = [] if mistake else [detector.class_labels[label] for label in labels]
                kept = len(names)
                num_boxes += kept
                # an unreadable image is looked at, and named, again: by then it may have been replaced
                journal.add(image_id, prediction_string(names, scores[:kept], boxes[:kept]), keep=not mistake)
            journal.flush()
            bar.update(len(batch))
    _print_unreadable(unreadable)
    journal.finish(list(files))
    print(f"wrote {target}: {len(files)} images, {len(unreadable)} of them unreadable, {num_boxes} new boxes")


def _check(flags: dict) -> None:
    """Refuses numbers out of range."""
    for name in ("score_threshold", "nms_iou", "vote_iou"):
        if not 0 <= flags[name] <= 1:
            raise InputError(f"--{name} is {flags[name]}: it must lie between 0 and 1")
    if not 0 < flags["nms_sigma"] < math.inf:
        raise InputError(f"--nms_sigma is {flags['nms_sigma']}: it must be above 0 and finite")
    for name, least in {"max_boxes": 1, "batch_size": 1, "threads": 0}.items():
        if flags[name] < least:
            raise InputError(f"--{name} is {flags[name]}: it must be at least {least}")
    if flags["export_path"] and not flags["export"]:
        raise InputError("--export_path goes with --export: say whether it is to be onnx or tf_saved_model")
    if flags["export"]:
        meaningless = {"images": None, "predictions": None, "nms": "hard", "precision": "float32"}
        for name, default in meaningless.items():
            if flags[name] != default:
                what = "looks at no image" if default is None else f"knows {default} only"
                raise InputError(f"--{name} {flags[name]} does not go with --export, which {what}: leave out --{name}")


def _export(folder: Path, target: str | Path, form: str, **options: float) -> None:
    """Writes a run as a file of another kind."""
    from models import load_model
    from models.export import check_target, require_packages, write_export

    check_target(target, form)
    require_packages(form)
    about = write_export(load_model(folder, precision=None), target, form, **options)
    print(f"wrote {target}: float32, without the mirrored image and the voting of a04; it is used so:\n")
    print(about["example"])


def _print_unreadable(mistakes: list[str], most: int = 20) -> None:
    """Names the images whose row is empty because they cannot be read."""
    for mistake in mistakes[:most]:
        print(f"empty row: {mistake}")
    if len(mistakes) > most:
        print(f"and {len(mistakes) - most} more that cannot be read")


def _batches(files: dict[str, Path], detector, orientation: str, batch_size: int, threads: int) -> Iterator[list]:
    """Lists of `(id, square picture, (height, width) before, "" or what is wrong with the file)`; the next list is read
    while one is used."""

    # a JPEG may be decoded at a reduced size, unless the network is used to the bilinear warp of all pixels
    reducible = detector.settings["preprocessing"]["interpolation"] == "area"
    minimum_side = detector.image_size if reducible else 0

    def read(item: tuple[str, Path]) -> tuple[str, np.ndarray, tuple[int, int], str]:
        image_id, path = item
        try:
            picture = read_image(path, orientation=orientation, minimum_side=minimum_side)
        except InputError as error:
            side = detector.image_size
            return image_id, np.zeros((side, side, 3), "uint8"), (side, side), str(error)
        return image_id, detector.prepare(picture), picture.shape[:2], ""

    items = list(files.items())
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        waiting = None
        for begin in range(0, len(items), batch_size):
            coming = [pool.submit(read, item) for item in items[begin : begin + batch_size]]
            if waiting:
                yield [future.result() for future in waiting]
            waiting = coming
        if waiting:
            yield [future.result() for future in waiting]


def _images_of(folder: Path) -> dict[str, Path]:
    """The images of a folder by id; at least one, and only names that a CSV file in UTF-8 can hold."""
    files = find_images(folder)
    if not files:
        raise InputError(f"{folder} has no image: name the folder with the images by --images")
    for image_id, path in files.items():
        if any("\ud800" <= letter <= "\udfff" for letter in image_id):  # so Python shows bytes that are not UTF-8
            raise InputError(f"the name of {str(path)!a} is not UTF-8: rename the image")
    return files


def _fingerprint(folder: Path) -> list:
    """What tells one state of a run's weights from another: the file that `load_model` reads, and its time."""
    names = ("model.keras", "network.weights.h5", "checkpoint/network.weights.h5")
    weights = [folder / name for name in names if (folder / name).is_file()]
    return [[str(path.resolve()), path.stat().st_mtime_ns] for path in weights[:1]]


class Journal:
    """The rows found so far, in a hidden file beside the target whose name tells with which settings.

    Args:
        target: the CSV that `finish` writes.
        settings: what the rows depend on; rows made with other settings are not taken.

    Attributes:
        done: rows by image id.
    """

    def __init__(self, target: Path, settings: dict):
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        self.target = target
        self.path = target.with_name(f".{target.name}.{digest}.unfinished")
        target.parent.mkdir(parents=True, exist_ok=True)
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        complete = text[: text.rfind("\n") + 1]  # a killed process can leave half a line
        self.done = dict(json.loads(line) for line in complete.split("\n")[:-1])
        self.path.write_text(complete, encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")

    def add(self, image_id: str, row: str, *, keep: bool = True) -> None:
        """Takes the row of one image; one that is not to `keep` is forgotten when the process is stopped."""
        self.done[image_id] = row
        if keep:
            self._file.write(json.dumps([image_id, row]) + "\n")

    def flush(self) -> None:
        """From here on the rows are safe from an end of the process."""
        self._file.flush()

    def finish(self, image_ids: list[str]) -> None:
        """Writes the target, rows in the order of `image_ids`, and removes the journal."""
        self._file.close()
        with replacing(self.target) as path, open_for_writing(path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(KAGGLE_COLUMNS)
            writer.writerows((image_id, self.done[image_id]) for image_id in image_ids)
        self.path.unlink()


if __name__ == "__main__":
    run_script(main)
