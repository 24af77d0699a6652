"""Finds objects in a folder of images.

Reads   runs of a03 (names in OUTPUT/weights, or their folders) or checkpoint files of other projects, and the images of
        DATASET/<split> or --images
Writes  OUTPUT/predictions/<split>/<run>.csv, Kaggle form: a row for every image, empty where nothing was found
Takes   8 s to start, then 10 to 20 ms an image with the constants of a00 on two CPU cores; a converted RetinaNet some
        seconds an image

A published RetinaNet, converted or as it was downloaded, looks at images in their own aspect ratio and at the mirrored
ones, as its authors did; with --suppression own it does what the other flags say, like all other runs. A stopped a04
goes on when it is started again with the same flags. With --export it looks at no image: it writes the network with its
decoding as a file for other programs, OUTPUT/exports/<run>.onnx or a SavedModel's folder.

    python a04_inference.py --split test
    python a04_inference.py --run OUTPUT/weights/tiny/checkpoint --images some/folder --predictions tiny.csv
    python a04_inference.py --run resnet50_coco_best_v2.1.0.h5 --images some/folder
    python a04_inference.py --run vgg16_level_1 --export onnx
"""

import csv
import hashlib
import inspect
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tqdm import tqdm

import a00_utils_and_constants as a00
from oid import paths
from oid.columns import KAGGLE_COLUMNS
from oid.command_line import check_flag, check_range, run_script
from oid.files import InputError, output_file, remedy, replacing, require_folder
from oid.images.find import find_images, list_images
from oid.images.loader import ImageLoader, LoadedImage
from oid.lock import locked
from oid.machine import usable_cores
from oid.predictions.files import open_for_writing, prediction_string

if TYPE_CHECKING:  # starting the framework takes seconds that --help should not
    from models.any_shape_detector import AnyShapeDetector
    from models.detector import Detector
    from models.run_settings import RunSettings
    from models.suppression import DetectionOptions, ScoredBoxes

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow warns where there is no GPU

MOST_SENTENCES = 20  # about files that are not as they should be


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
    suppression: Literal["auto", "own", "keras_retinanet"] = "auto",
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
        run: names of runs, their folders, the checkpoint folder of a training that is still going on, or files of
            published RetinaNets (default: every run in weights/ that has finished its training)
        split: folder below dataset_path with the images, unless --images names another
        images: folder with the images, flat or in folders of the ids' first three characters
        predictions: CSV to write; by default predictions/<split>/<run>.csv below output_path
        score_threshold: boxes with a lower score are left out
        nms: of boxes of one class that overlap, the one with the lower score is dropped (hard), or its score falls with
            the overlap (linear, gaussian)
        nms_iou: the overlap above which hard and linear do so; 1 = keep all
        nms_sigma: width of gaussian; the larger, the less the scores fall
        vote_iou: after hard, a box moves to the mean of the boxes that overlap it by at least this, weighted by score;
            1 = none moves
        mirror: look at the mirrored image, too: better boxes in twice the time
        max_boxes: maximum number of boxes per image, the best ones
        suppression: own = what these flags say; keras_retinanet = that of keras-retinanet, for the image and for its
            mirrored one, both fused; auto = keras_retinanet for converted RetinaNets, else own
        min_side: converted RetinaNets: the shorter side of the images that they see, in pixels (default: the run's)
        max_side: converted RetinaNets: at most this many pixels for the longer side (default: the run's)
        precision: of the network; bfloat16 is faster on processors that have it, and changes scores in the third digit
        batch_size: images at a time (default: 16; 1 for converted RetinaNets, which see each in a shape of its own)
        threads: files read at a time; 0 = one per core
        export: look at no image, but write the run as a file that needs neither Keras nor these scripts
        export_path: file .onnx, or folder of the SavedModel, to write; by default exports/<run> below output_path
    """
    from models.suppression import DetectionOptions

    check_range(0, 1, score_threshold=score_threshold, nms_iou=nms_iou, vote_iou=vote_iou)
    check_flag(0 < nms_sigma < math.inf, "nms_sigma", nms_sigma, "a finite number above 0")
    for name, value, least in (("batch_size", batch_size, 1), ("min_side", min_side, 32), ("max_side", max_side, 32)):
        check_flag(value is None or value >= least, name, value, f"a number of at least {least}")
    check_range(1, math.inf, max_boxes=max_boxes)
    check_range(0, math.inf, threads=threads)
    options = DetectionOptions(
        score_threshold=score_threshold,
        nms=nms,
        nms_iou=nms_iou,
        nms_sigma=nms_sigma,
        vote_iou=vote_iou,
        mirror=mirror,
        max_boxes=max_boxes,
        suppression=suppression,
    )
    runs = chosen_runs(output_path, run)
    target = export_path if export else predictions
    check_flag(len(runs) == 1 or not target, "export_path" if export else "predictions", target, "one run by --run")
    if export:
        check_no_images(images=images, predictions=predictions, nms=nms, precision=precision)
    else:
        check_flag(not export_path, "export_path", export_path, "--export onnx or --export tf_saved_model, too")
        folder = require_folder(images or Path(dataset_path) / split, "name the folder with the images by --images")
        files = images_of(folder)
        targets = [target or paths.run_predictions(output_path, split, name) for name in runs]
        targets = [output_file(path, "give another place by --predictions") for path in targets]
    for number, name in enumerate(runs):
        detector = load_detector(
            output_path, name, precision=None if export else precision, min_side=min_side, max_side=max_side
        )
        chosen = resolved(options, any_shape=detector.settings.any_shape)
        if export:
            write_network(detector, target or paths.run_export(output_path, name, export), export, chosen)
        else:
            print_view(detector.settings, chosen)
            made_with = f"{detector.fingerprint()} {folder.resolve()} {precision} {chosen}"
            with locked(targets[number], str(targets[number])):
                journal = Journal(targets[number], made_with)
                predict(detector, files, journal, chosen, batch_size or detector.batch_size, threads or usable_cores())
        if len(runs) > 1:
            import keras

            keras.utils.clear_session(free_memory=True)


# === What the flags name =============================================================================================
def chosen_runs(output_path: str, run: tuple[str, ...] | None) -> tuple[str, ...]:
    """The runs of the flag, which must exist, or all finished ones."""
    with remedy("run a03 first, or name a run by --run"):
        runs = run or tuple(paths.finished_runs(output_path))
    for name in runs:
        folder = paths.run_folder(output_path, name)
        if not (Path(name).is_file() or any((path / "settings.json").is_file() for path in (folder, folder.parent))):
            raise InputError(f"{folder} is not a run: it has no settings.json; train one with a03, or change --run")
    return runs


def check_no_images(**flags: str | None) -> None:
    """Refuses flags that an export does not use."""
    for name, value in flags.items():
        if value not in (None, inspect.signature(main).parameters[name].default):
            raise InputError(f"--{name} {value} does not go with --export, which looks at no image: leave out --{name}")


def images_of(folder: Path) -> dict[str, Path]:
    """The images of a folder by id, at least one. Names the other files, because they get no row."""
    files = find_images(folder)
    if not files:
        raise InputError(f"{folder} has no image: name the folder with the images by --images")
    print_some("passed over", [f"{path!a} {reason}" for path, reason in list_images(folder).passed_over])
    return files


def load_detector(
    output_path: str,
    run: str,
    *,
    precision: Literal["float32", "bfloat16"] | None,
    min_side: int | None,
    max_side: int | None,
) -> "Detector | AnyShapeDetector":
    """Loads a run or a checkpoint file; gives a converted RetinaNet the sides that the flags name."""
    from models.load import load_model

    detector = load_model(run, output_path=output_path, precision=precision)
    if min_side or max_side:
        what, size = f"--min_side {min_side} --max_side {max_side}", detector.settings.network.image_size
        if size:
            raise InputError(f"{what}: these are for converted RetinaNets, and {run} sees squares of {size} pixels")
        shorter, longer = min_side or detector.settings.inputs.min_side, max_side or detector.settings.inputs.max_side
        if shorter > longer:
            raise InputError(f"{what}: the shorter side {shorter} is more than the longer one {longer}: give both")
        detector = detector.with_sides(shorter, longer)
    return detector


def resolved(options: "DetectionOptions", *, any_shape: bool) -> "DetectionOptions":
    """The options with the suppression that "auto" means; refuses flags that this suppression does not use."""
    with remedy("leave out --suppression"):
        options = options.resolved(any_shape=any_shape)
    if options.suppression == "keras_retinanet":
        for name in ("nms", "nms_iou", "nms_sigma", "vote_iou"):
            value = getattr(options, name)
            if value != inspect.signature(main).parameters[name].default:
                raise InputError(f"--{name} {value} has no part in the published suppression: add --suppression own")
    return options


def print_some(what: str, sentences: Sequence[str]) -> None:
    """Prints sentences about files, if there are any, but not thousands."""
    for sentence in sentences[:MOST_SENTENCES]:
        print(f"{what}: {sentence}")
    if len(sentences) > MOST_SENTENCES:
        print(f"{what}: and {len(sentences) - MOST_SENTENCES} more")


def print_view(settings: "RunSettings", options: "DetectionOptions") -> None:
    """Says what the network sees, and which suppression follows."""
    views, inputs = "the image and its mirrored one" if options.mirror else "the image alone", settings.inputs
    size = f"{inputs.resize} to {settings.network.image_size} pixels"
    if settings.any_shape:
        size = f"shorter side {inputs.min_side} pixels, longer {inputs.max_side} at most"
    print(f"{views}, {size}; suppression {options.suppression}")


# === The work ========================================================================================================
def write_network(
    detector: "Detector | AnyShapeDetector", target: str | Path, form: str, options: "DetectionOptions"
) -> None:
    """Writes the network as a file of another kind."""
    from models.export import write_export
    from models.suppression import KERAS_RETINANET_IOU, KERAS_RETINANET_SCORE

    limits = {"nms_iou": options.nms_iou, "score_threshold": options.score_threshold}
    if options.suppression == "keras_retinanet":
        limits = {
            "nms_iou": KERAS_RETINANET_IOU,
            "score_threshold": max(KERAS_RETINANET_SCORE, options.score_threshold),
        }
    with remedy("change --export or --export_path"):
        write_export(detector, target, form, **limits)
    print(f"wrote {target}: float32, without the mirrored image and without voting; docs/export.md shows its use")


def predict(
    detector: "Detector | AnyShapeDetector",
    files: dict[str, Path],
    journal: "Journal",
    options: "DetectionOptions",
    batch_size: int,
    threads: int,
) -> None:
    """Writes the predictions of one run for all images that the journal does not have yet."""
    if journal.done:
        print(f"going on after {len(journal.done)} of {len(files)} images")
    ids = [image_id for image_id in files if image_id not in journal.done]
    loader = ImageLoader(
        [files[image_id] for image_id in ids],
        detector.prepare,
        orientation=detector.settings.inputs.orientation,
        minimum_side=detector.smallest_side,
    )
    images = loader.load_all(range(len(ids)), threads=threads, ahead=2 * batch_size)
    num_boxes = 0
    with tqdm(total=len(ids), unit="image", disable=None) as bar:
        for start in range(0, len(ids), batch_size):
            batch = list(itertools.islice(images, batch_size))
            for image_id, found in zip(ids[start:], detect(detector, batch, options, batch_size), strict=False):
                num_boxes += journal.add(image_id, found, detector.class_labels)
            journal.flush()
            bar.update(len(batch))
    print_some("empty row", [str(error) for error in loader.bad.values()])
    journal.finish(files)
    print(f"wrote {journal.target}: {len(files)} images, {len(loader.bad)} of them unreadable, {num_boxes} new boxes")


def detect(
    detector: "Detector | AnyShapeDetector",
    batch: list[LoadedImage | None],
    options: "DetectionOptions",
    batch_size: int,
) -> "Iterator[ScoredBoxes | None]":
    """Yields the boxes of each image, None for an unreadable one."""
    good = [image for image in batch if image]
    found = iter(())
    if good:
        full = good + good[-1:] * (batch_size - len(good))  # for another batch size the network would be compiled again
        pixels, sizes = [image.pixels for image in full], [image.size for image in full]
        found = iter(detector.detect_prepared(pixels, sizes=sizes, options=options))
    return (next(found) if image else None for image in batch)


class Journal:
    """The rows found so far, in a hidden file beside the target.

    Args:
        target: the CSV that `finish` writes.
        made_with: what the rows depend on. Rows that were made with something else are not used.

    Attributes:
        done: rows by image id.
    """

    def __init__(self, target: Path, made_with: str):
        digest = hashlib.sha256(made_with.encode()).hexdigest()[:12]
        self.target = target
        self.path = target.with_name(f".{target.name}.{digest}.unfinished")
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        complete = text[: text.rfind("\n") + 1]  # a killed process can leave half a line
        self.done: dict[str, str] = dict(json.loads(line) for line in complete.splitlines())
        self.path.write_text(complete, encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")

    def add(self, image_id: str, found: "ScoredBoxes | None", labels: Sequence[str]) -> int:
        """Adds the row of an image, and returns its number of boxes.

        The empty row of an unreadable image (None) is not kept when the process is stopped: by the next start the file
        may have been replaced.
        """
        if found is None:
            self.done[image_id] = ""
            return 0
        row = prediction_string([labels[label] for label in found.labels], found.scores, found.boxes)
        self.done[image_id] = row
        self._file.write(json.dumps([image_id, row]) + "\n")
        return len(found.labels)

    def flush(self) -> None:
        """Makes the rows safe from an end of the process."""
        self._file.flush()

    def finish(self, image_ids: Iterable[str]) -> None:
        """Writes the target, rows in the order of `image_ids`, and removes the journal."""
        self._file.close()
        with replacing(self.target) as path, open_for_writing(path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(KAGGLE_COLUMNS)
            writer.writerows((image_id, self.done[image_id]) for image_id in image_ids)
        self.path.unlink()


if __name__ == "__main__":
    run_script(main)
