"""Makes a run out of another project's checkpoint, so that a04 uses it like one of a03's.

Reads    FILE: a RetinaNet of keras-retinanet (.h5) on ResNet50, 101 or 152, as trained or converted for inference; or
         the checkpoint of M2Det's authors (m2det512_vgg.pth), which needs PyTorch (pip install torch). Code in the file
         is not run. python -m convert.classes writes the classes of the published RetinaNets of Open Images.
Writes   RUN/settings.json and RUN/model.keras
Takes    20 s on two CPU cores for files of the published sizes; 1.8 GB of memory for a RetinaNet, 3 GB for M2Det

    python -m convert.cli retinanet_resnet101_level_1_v1.2_converted.h5 --output OUTPUT/weights/resnet101_2018 \\
        --classes classes_443.csv
    python -m convert.cli m2det512_vgg.pth --output OUTPUT/weights/m2det512_vgg
    python -m convert.cli small.pth --output small --classes class-descriptions.csv --image_size 320
"""

import os
from pathlib import Path

from convert.classes import in_another_order
from models.run_settings import MODEL, SETTINGS, read_run_settings, write_run_settings
from oid.command_line import run_script
from oid.files import InputError, output_file, replacing_folder, require_file


def main(
    file: str,
    *,
    output: str | None = None,
    classes: str | None = None,
    image_size: int | None = None,
    min_side: int | None = None,
    max_side: int | None = None,
) -> None:
    """A file whose names or shapes are not those of the published network is refused.

    Args:
        file: the checkpoint
        output: folder to write, new or left by an earlier conversion
        classes: CSV with rows `label,name`, one per output in their order and without the background (default: COCO's
            for 80 outputs, else numbers)
        image_size: M2Det: side of the network's square input in pixels, which the file does not tell: 320, 512 (the
            default), 704 or 800 where published
        min_side: RetinaNet: shorter side of the images that it sees, in pixels (default: as published)
        max_side: RetinaNet: their longer side at most, in pixels (default: as published)
    """
    folder = _output_folder(output)
    path = require_file(file, "name the checkpoint to convert")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's alarm where there is no GPU
    from convert.load import load_checkpoint

    network, settings = load_checkpoint(
        path, classes=classes, image_size=image_size, min_side=min_side, max_side=max_side
    )
    parts = settings.network
    variant = f", {parts.variant}, {parts.tums} TUMs" if parts.tums else f", {parts.padding} padding of conv1"
    print(
        f"{path}: {parts.detector} on {parts.backbone}{variant}, {parts.channels} channels, {len(settings.classes)} "
        f"classes, {network.count_params():,} weights"
    )
    if classes is None and settings.names[0] == "0":
        print("attention: --classes is missing, so the labels are the numbers of the outputs, from 0 on")
    if classes is not None and parts.detector == "keras_retinanet" and in_another_order(settings.names):
        print(
            f"attention: {classes} does not have the order of the published checkpoints' outputs: if {path} is one of "
            "them, its labels are wrong; python -m convert.classes writes the right file"
        )
    with replacing_folder(folder) as new:
        write_run_settings(new, settings)
        network.save(new / MODEL)
    print(f"wrote {folder}: python a04_inference.py --run {folder} --images FOLDER --predictions FILE.csv")


def _output_folder(output: str | None) -> Path:
    """The folder to write, which holds nothing but an earlier conversion."""
    if not output:
        raise InputError("--output is missing: name the folder of the run to write")
    folder = Path(output)
    output_file(folder / SETTINGS, "give another place by --output")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names and (names != {SETTINGS, MODEL} or read_run_settings(folder).converted_from is None):
        raise InputError(f"{folder} holds other files than an earlier conversion: give --output a new folder's name")
    return folder


if __name__ == "__main__":
    run_script(main)
