"""Finds objects in a folder of images.

Reads   runs of a03 (OUTPUT/weights/<run>, or any folder with its files) and the images of DATASET/<split> or --images
Writes  OUTPUT/predictions/<split>/<run>.csv, Kaggle form: a row for every image, empty where nothing was found
Takes   8 s to start, then 10 to 20 ms an image with the constants of a00 on two CPU cores; a converted RetinaNet, by
        the published recipe, some seconds an image there

A run that `python -m models.convert` made of a published RetinaNet looks at pictures in their own aspect ratio, and at
the mirrored ones, as its authors did; --recipe own makes it do what the other flags say, as for all other runs.
Stopped and started again with the same flags it goes on where it was. With --export it looks at no image, but writes
the network and what belongs to it as a file for other programs: OUTPUT/exports/<run>.onnx, or a SavedModel's folder.

    python a04_inference.py --split test
    python a04_inference.py --run OUTPUT/weights/tiny/checkpoint --images some/folder --predictions tiny.csv
    python a04_inference.py --run vgg16_level_1 --export onnx
"""

import csv
import hashlib
import inspect
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
from oid import paths
from oid.columns import KAGGLE_COLUMNS
from oid.command_line import run_script
from oid.files import InputError, output_file, remedy, replacing, require_folder
from oid.fusion.fuse import fuse
from oid.images.find import find_images, list_images
from oid.images.read import read_image
from oid.machine import usable_cores
from oid.predictions.files import open_for_writing, prediction_string

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's alarm where there is no GPU

BATCH, SMALL_BATCH = 16, 1  # images at a time; one where that takes seconds and gigabytes
PUBLISHED_SCORE, PUBLISHED_NMS_IOU, PUBLISHED_FUSION_IOU = 0.05, 0.5, 0.55
NOT_PUBLISHED = ("nms", "nms_iou", "nms_sigma", "vote_iou")  # flags that the published recipe has no use for


def main(
    *,
    dataset_path: str = a00.DATASET_PATH,
    output_path: str = a00.OUTPUT_PATH,
    run: tuple[str, ...] | None = None,
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
    recipe: Literal["auto", "own", "published"] = "auto",
    min_side: int | None = None,
    max_side: int | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    batch_size: int | None = None,
    threads: int = 0,
    export: Literal["onnx", "tf_saved_model"] | None = None,
    export_path: str | None = None,
) -> None:
    """An image that cannot be read gets an empty row, and is named.

    Args:
        dataset_path: folder of the data set
        output_path: folder with weights/, and of the predictions
        run: names of runs, their folders, or the checkpoint folder of a training that is still going on (default: every
            run in weights/ that has finished its training)
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
        recipe: own = what these flags say; published = the suppression of keras-retinanet, for the image and for its
            mirrored one, and weighted boxes fusion of the two; auto = published for converted RetinaNets, else own
        min_side: converted RetinaNets: the shorter side of the pictures that they see (default: the run's)
        max_side: converted RetinaNets: at most so many pixels for the longer side (default: the run's)
        precision: of the network; bfloat16 is faster on processors that have it, and changes scores in the third digit
        batch_size: images at a time (default: 16, or 1 of converted RetinaNets, which see each in a shape of its own)
        threads: files read at a time; 0 = one per core
        export: look at no image, but write the run as a file that needs neither Keras nor these scripts
        export_path: file .onnx, or folder of the SavedModel, to write; by default exports/<run> below output_path
    """
    flags = dict(locals())
    _check(flags)
    with remedy("run a03 first, or name a run by --run"):
        runs = run or paths.finished_runs(output_path)
    folders = [_folder_of(output_path, name) for name in runs]
    for name in ("predictions", "export_path"):
        if len(runs) > 1 and flags[name]:
            raise InputError(f"--{name} is for one run, not for {' '.join(runs)}: name one by --run")
    if not export:
        source = require_folder(images or Path(dataset_path) / split, "name the folder with the images by --images")
        by_default = [paths.run_predictions(output_path, split, name) for name in runs]
        targets = [output_file(predictions or file, "give another place by --predictions") for file in by_default]
        files = _images_of(source)
    for number, folder in enumerate(folders):
        if export:
            _export(folder, export_path or paths.run_export(output_path, runs[number], export), flags)
        else:
            _predict(folder, source, files, targets[number], flags)
        if len(runs) > 1:
            import keras

            keras.utils.clear_session(free_memory=True)


def _folder_of(output_path: str, run: str) -> Path:
    """The folder of a run that has settings."""
    folder = paths.run_folder(output_path, run)
    if not any((path / "settings.json").is_file() for path in (folder, folder.parent)):
        raise InputError(f"{folder} is no run: it has no settings.json; train one with a03, or name another by --run")
    return folder


def _predict(folder: Path, source: Path, files: dict[str, Path], target: Path, flags: dict) -> None:
    """Writes the predictions of one run for all images."""
    from models import load_model  # here, because starting the framework takes seconds that --help should not

    mirror, precision = flags["mirror"], flags["precision"]
    detector = load_model(folder, precision=precision)
    names = ("score_threshold", "nms", "nms_iou", "nms_sigma", "vote_iou", "mirror", "max_boxes")
    limits = {name: flags[name] for name in names}
    limits["recipe"] = _recipe(detector, flags["recipe"], limits)
    sides = _sides(detector, flags["min_side"], flags["max_side"])
    if limits["recipe"] == "published":
        what = "the image and its mirrored one, fused" if mirror else "the image alone"
        print(
            f"the published recipe: {what}; shorter side {sides['min_side']} pixels, longer {sides['max_side']} at most"
        )
    journal = Journal(
        target,
        {"run": _fingerprint(folder), "images": str(source.resolve()), "precision": precision, **limits, **sides},
    )
    if journal.done:
        print(f"going on after {len(journal.done)} of {len(files)} images")
    todo = {image_id: path for image_id, path in files.items() if image_id not in journal.done}
    batch_size = flags["batch_size"] or (SMALL_BATCH if sides else BATCH)
    unreadable, num_boxes = _fill(journal, todo, detector, batch_size, flags["threads"], **limits)
    _print_some("empty row", unreadable)
    journal.finish(list(files))
    print(f"wrote {target}: {len(files)} images, {len(unreadable)} of them unreadable, {num_boxes} new boxes")


def _check(flags: dict) -> None:
    """Refuses numbers out of range."""
    for name in ("score_threshold", "nms_iou", "vote_iou"):
        if not 0 <= flags[name] <= 1:
            raise InputError(f"--{name} is {flags[name]}: it must lie between 0 and 1")
    if not 0 < flags["nms_sigma"] < math.inf:
        raise InputError(f"--nms_sigma is {flags['nms_sigma']}: it must be above 0 and finite")
    for name, least in {"max_boxes": 1, "batch_size": 1, "threads": 0, "min_side": 32, "max_side": 32}.items():
        if flags[name] is not None and flags[name] < least:
            raise InputError(f"--{name} is {flags[name]}: it must be at least {least}")
    if flags["export_path"] and not flags["export"]:
        raise InputError("--export_path goes with --export: say whether it is to be onnx or tf_saved_model")
    if flags["export"]:
        meaningless = {"images": None, "predictions": None, "nms": "hard", "precision": "float32"}
        for name, default in meaningless.items():
            if flags[name] != default:
                what = "looks at no image" if default is None else f"knows {default} only"
                raise InputError(f"--{name} {flags[name]} does not go with --export, which {what}: leave out --{name}")


def _export(folder: Path, target: str | Path, flags: dict) -> None:
    """Writes a run as a file of another kind."""
    from models import load_model
    from models.export import check_target, require_packages, write_export

    check_target(target, flags["export"])
    require_packages(flags["export"])
    detector = load_model(folder, precision=None)
    _sides(detector, flags["min_side"], flags["max_side"])
    options = {name: flags[name] for name in ("nms_iou", "score_threshold")}
    if _recipe(detector, flags["recipe"], flags) == "published":
        options = {"nms_iou": PUBLISHED_NMS_IOU, "score_threshold": max(PUBLISHED_SCORE, flags["score_threshold"])}
    about = write_export(detector, target, flags["export"], **options)
    print(f"wrote {target}: float32, without the mirrored image and without voting; it is used so:\n")
    print(about["example"])


def _fill(
    journal: "Journal", files: dict[str, Path], detector, batch_size: int, threads: int, **limits
) -> tuple[list[str], int]:
    """Adds a row for each file; tells which cannot be read, and how many boxes were found."""
    unreadable, num_boxes = [], 0
    orientation = detector.settings["preprocessing"]["orientation"]
    with tqdm(total=len(files), unit="image", disable=None) as bar:
        for batch in _batches(files, detector, orientation, batch_size, threads):
            unreadable += [mistake for *_, mistake in batch if mistake]
            found = iter(_detect(detector, [entry for entry in batch if not entry[-1]], batch_size, **limits))
            for image_id, _, _, mistake in batch:
                boxes, scores, labels = ([], [], []) if mistake else next(found)
                names = [detector.class_labels[label] for label in labels]
                num_boxes += len(names)
                # an unreadable image is looked at, and named, again: by then it may have been replaced
                journal.add(image_id, prediction_string(names, scores, boxes), keep=not mistake)
            journal.flush()
            bar.update(len(batch))
    return unreadable, num_boxes


def _recipe(detector, recipe: str, limits: dict) -> str:
    """Which of the two ways from pictures to boxes is gone."""
    any_shape = detector.settings["preprocessing"]["resize"] == "sides"
    if recipe == "own" or (recipe == "auto" and not any_shape):
        return "own"
    if not any_shape:
        raise InputError("--recipe published is for converted RetinaNets, which this run is none of: leave it out")
    defaults = {name: inspect.signature(main).parameters[name].default for name in NOT_PUBLISHED}
    for name, default in defaults.items():
        if limits[name] != default:
            raise InputError(f"--{name} {limits[name]} has no part in the published recipe: add --recipe own")
    return "published"


def _sides(detector, min_side: int | None, max_side: int | None) -> dict[str, int]:
    """Gives a converted RetinaNet the sides that were asked for, and tells which they are; no others have any."""
    settings = detector.settings["preprocessing"]
    asked = {name: side for name, side in (("min_side", min_side), ("max_side", max_side)) if side is not None}
    if settings["resize"] != "sides":
        for name, side in asked.items():
            size = detector.image_size
            raise InputError(f"--{name} {side} is for converted RetinaNets, and this run sees squares of {size} pixels")
        return {}
    settings |= asked
    sides = {name: settings[name] for name in ("min_side", "max_side")}
    if sides["min_side"] > sides["max_side"]:
        raise InputError("--min_side {min_side} is more than --max_side {max_side}: give both".format(**sides))
    return sides


def _detect(detector, batch: list, batch_size: int, *, recipe: str, **limits) -> list[tuple]:
    """Boxes, scores and labels of each picture of a batch."""
    pictures, sizes = [entry[1] for entry in batch], [entry[2] for entry in batch]
    if not pictures:
        return []
    if recipe == "published":
        return _published(
            detector, pictures, **{name: limits[name] for name in ("score_threshold", "mirror", "max_boxes")}
        )
    if detector.image_size:  # batches of one shape, or the network would be compiled again
        missing, blank = batch_size - len(batch), np.zeros_like(pictures[0])
        pictures, sizes = np.stack(pictures + [blank] * missing), sizes + [blank.shape[:2]] * missing
    return detector.detect(pictures, sizes=sizes, **limits)[: len(batch)]


def _published(detector, pictures: list, *, score_threshold: float, mirror: bool, max_boxes: int) -> list[tuple]:
    """What the inference script of the published RetinaNets does.

    keras-retinanet's detections above 0.05, at most 300, of the image and of its mirrored one are fused: a box in one
    of the two keeps half its score. Boxes without area, which the network can give, are left out. The script weights
    coordinates by the number of boxes, `oid.fusion.fuse` by score.
    """
    views = pictures + [np.ascontiguousarray(picture[:, ::-1]) for picture in pictures] * mirror
    options = {"nms": "published", "nms_iou": PUBLISHED_NMS_IOU, "score_threshold": PUBLISHED_SCORE}
    found = map(_with_area, detector.detect(views, **options))
    if mirror:
        found = list(found)
        found = map(_fused, found[: len(pictures)], found[len(pictures) :])
    best = []
    for boxes, scores, labels in found:
        good = scores[:max_boxes] >= score_threshold
        best.append((boxes[:max_boxes][good], scores[:max_boxes][good], labels[:max_boxes][good]))
    return best


def _with_area(found: tuple) -> tuple:
    """Without the boxes that have no area in a CSV, or whose sides have swapped."""
    boxes = found[0]
    good = (boxes[:, 2:] - boxes[:, :2] >= 1e-5).all(axis=1)
    return tuple(values[good] for values in found)


def _fused(plain: tuple, mirrored: tuple) -> tuple:
    boxes = mirrored[0][:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (1, 0, 1, 0)
    lists = zip(plain, (boxes, *mirrored[1:]), strict=True)
    return fuse("wbf", *(list(pair) for pair in lists), iou_threshold=PUBLISHED_FUSION_IOU)[:3]


def _print_some(what: str, sentences: list[str], most: int = 20) -> None:
    """Names files that are not as they should be, if there are any."""
    for sentence in sentences[:most]:
        print(f"{what}: {sentence}")
    if len(sentences) > most:
        print(f"{what}: and {len(sentences) - most} more")


def _batches(files: dict[str, Path], detector, orientation: str, batch_size: int, threads: int) -> Iterator[list]:
    """Lists of `(id, picture that the network sees, (height, width) before, "" or what is wrong with the file)`; the
    next list is read while one is used."""

    # a JPEG may be decoded at a reduced size, unless the network is used to the bilinear warp of all pixels
    reducible = detector.settings["preprocessing"]["interpolation"] == "area"
    minimum_side = detector.image_size if reducible else 0

    def read(item: tuple[str, Path]) -> tuple[str, np.ndarray | None, tuple[int, int], str]:
        image_id, path = item
        try:
            picture = read_image(path, orientation=orientation, minimum_side=minimum_side)
        except InputError as error:
            return image_id, None, (0, 0), str(error)
        return image_id, detector.prepare(picture), picture.shape[:2], ""

    items = list(files.items())
    with ThreadPoolExecutor(threads or usable_cores()) as pool:
        waiting = None
        for begin in range(0, len(items), batch_size):
            coming = [pool.submit(read, item) for item in items[begin : begin + batch_size]]
            if waiting:
                yield [future.result() for future in waiting]
            waiting = coming
        if waiting:
            yield [future.result() for future in waiting]


def _images_of(folder: Path) -> dict[str, Path]:
    """The images of a folder by id, at least one; names what else lies there, because it gets no row."""
    files = find_images(folder)
    if not files:
        raise InputError(f"{folder} has no image: name the folder with the images by --images")
    _print_some("passed over", [f"{path!a} {reason}" for path, reason in list_images(folder).passed_over])
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
