"""Makes a run out of a published checkpoint, so that a04 uses it.

Reads    FILE: a RetinaNet that keras-retinanet wrote (.h5), as trained or converted for inference, on ResNet50, 101 or
         152; or the checkpoint of M2Det's authors (m2det512_vgg.pth), which needs PyTorch (pip install torch). Code
         that a file may carry is not run. The classes of the published RetinaNets, in the order of their outputs, come
         from python -m models.published_classes.
Writes   RUN/settings.json and RUN/model.keras: what a03 leaves of a finished training
Takes    20 s on two CPU cores for files of the published sizes; 1.3 GB of memory for a RetinaNet, 2.3 GB for M2Det

    python -m models.convert retinanet_resnet101_level_1_v1.2_converted.h5 --output OUTPUT/weights/resnet101_2018 \\
        --classes classes_443.csv
    python -m models.convert m2det512_vgg.pth --output OUTPUT/weights/m2det512_vgg
    python -m models.convert small.pth --output small --classes class-descriptions.csv --image_size 320
"""

import contextlib
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from models.legacy_checkpoint import LegacyStructure, open_legacy_checkpoint
from models.published_classes import in_another_order
from models.released import BACKBONE, COCO_NAMES, Structure, load_state, read_structure
from oid.anchors.grids import anchor_settings, retinanet_sizes
from oid.annotations import read_class_descriptions
from oid.files import InputError, output_file, replacing_folder, require_file

SETTINGS, MODEL = "settings.json", "model.keras"  # as in models.detector, which starts the framework
SOURCE = "converted_from"  # the key of settings.json that tells a conversion from a training
ZIP, PICKLE, HDF5 = b"PK\x03\x04", b"\x80\x02", b"\x89HDF\r\n\x1a\n"  # PyTorch wrote zip files from 1.6 on
OLDEST_TORCH = (2, 6)  # before, `weights_only` could be got round (CVE-2025-32434)
PUBLISHED_SIDES = {50: (768, 1024), 101: (768, 1024), 152: (600, 800)}  # by ResNet's layers; shorter, longer at most
LEAST_SIDE = 32  # pixels
LEAST_IMAGE, IMAGE_STEP = 272, 16  # pixels: below, six scales do not fit; between, the maps of the backbone do not fit


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
        classes: CSV with rows `label,name`, one per output in their order and without the background (default, for 80
            outputs: COCO's)
        image_size: M2Det: side of the network's square input in pixels, which the file does not tell: 320, 512 (the
            default), 704 or 800 where published
        min_side: RetinaNet: the shorter side of the pictures that it sees, in pixels (default: as published, 768, or
            600 on ResNet152)
        max_side: RetinaNet: at most so many pixels for the longer side (default: as published, 1024, or 800)
    """
    flags = dict(locals())
    folder = _output_folder(output)
    path = require_file(file, "name the checkpoint to convert")
    is_hdf5 = _begins_with(path, HDF5)
    for name in ("image_size",) if is_hdf5 else ("min_side", "max_side"):
        if flags[name] is not None:
            raise InputError(f"--{name} {flags[name]} does not belong to {path}: leave it out")
    settings, network, description = (_retinanet if is_hdf5 else _m2det)(path, flags)
    settings[SOURCE] = path.name
    settings["flags"] = flags
    print(f"{path}: {description}")
    write_run(folder, settings, network)
    print(f"wrote {folder}: python a04_inference.py --run {folder} --images FOLDER --predictions FILE.csv")


def _begins_with(path: Path, magic: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic


def _m2det(path: Path, flags: dict) -> tuple:
    """Settings, network and description of the released M2Det."""
    image_size = 512 if flags["image_size"] is None else flags["image_size"]
    if image_size < LEAST_IMAGE or image_size % IMAGE_STEP:
        raise InputError(f"--image_size is {image_size}: it must be a multiple of {IMAGE_STEP}, at least {LEAST_IMAGE}")
    state = read_checkpoint(path)
    structure = read_structure(state, path)
    classes = read_classes(structure.outputs - 1, path, flags["classes"], background=True)
    settings = released_settings(structure, classes, image_size)
    network = released_network(state, structure, settings, path)
    parameters = sum(int(np.prod(weight.shape)) for weight in network.trainable_weights)
    return (
        settings,
        network,
        f"released M2Det on {BACKBONE}, {structure.tums} TUMs of {structure.scales} scales with {structure.channels} "
        f"channels, {'with' if structure.sfam else 'without'} SFAM, {len(classes)} classes and the background, "
        f"{parameters:,} parameters",
    )


def _retinanet(path: Path, flags: dict) -> tuple:
    """Settings, network and description of a RetinaNet of keras-retinanet."""
    with open_legacy_checkpoint(path) as checkpoint:
        structure = checkpoint.structure
        classes = read_classes(structure.num_classes, path, flags["classes"])
        if in_another_order(classes):
            print(
                f"attention: {flags['classes']} is not in the order of the published checkpoints' outputs: if {path} "
                "is one of these, its labels would be wrong; python -m models.published_classes writes the right file"
            )
        settings = legacy_settings(structure, classes, flags["min_side"], flags["max_side"])

        from models.detector import network_from_settings
        from models.legacy_retinanet import load_tensors

        network = network_from_settings(settings)
        load_tensors(network, checkpoint)
    sides = "{min_side} to {max_side}".format(**settings["preprocessing"])
    return (
        settings,
        network,
        f"RetinaNet on ResNet{structure.layers} of keras-retinanet, {structure.padding} padding of conv1, "
        f"{structure.num_classes} classes, {network.count_params():,} parameters; pictures of {sides} pixels",
    )


def _output_folder(output: str | None) -> Path:
    """The folder to write, which must not hold anything but an earlier conversion."""
    if not output:
        raise InputError("--output is missing: name the folder of the run to write")
    folder = Path(output)
    output_file(folder / SETTINGS, "give another place by --output")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not names:
        return folder
    converted = False
    with contextlib.suppress(OSError, ValueError, TypeError):
        converted = SOURCE in json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    if not converted or names - {SETTINGS, MODEL}:
        raise InputError(f"{folder} holds other files than an earlier conversion: give --output a new folder's name")
    return folder


# === Reading =========================================================================================================
def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a PyTorch checkpoint, of the format since 1.6 or the one before.

    Args:
        path: a `state_dict`, or a dict that has one under "state_dict" or "model".

    Returns:
        Arrays by name, floating-point ones as float32. `module.`, which DataParallel puts in front of every name, is
        left out.

    Raises:
        InputError: PyTorch is not installed or too old, or the file is no checkpoint or holds more than arrays.
    """
    with open(path, "rb") as file:
        begin = file.read(len(HDF5))
    if not begin:
        raise InputError(f"{path} is empty: download it again")
    if not begin.startswith((ZIP, PICKLE)):
        raise InputError(
            f"{path} is neither a PyTorch checkpoint (.pth), of the present format or the old one, nor an HDF5 file of "
            "Keras (.h5): download it again, or name another"
        )
    content = _torch_load(path)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path} holds no table of tensors: expected a state_dict")
    state = {str(name): _numpy(value, name, path) for name, value in content.items()}
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): array for name, array in state.items()}
    return state


def _torch_load(path: Path) -> object:
    """What `torch.save` wrote, as far as it is tensors, numbers, texts, lists and dicts."""
    try:
        import torch
    except ImportError:
        raise InputError(f"{path} is read by PyTorch, which is not installed: pip install torch") from None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        least = ".".join(map(str, OLDEST_TORCH))
        raise InputError(f"PyTorch {torch.__version__} does not read files safely: pip install 'torch>={least}'")
    import pickle  # for the name of an error: nothing is unpickled by it

    try:
        with warnings.catch_warnings(action="ignore"):  # of TorchScript, before the error
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors, or is damaged, and none of its code was run: save the model's "
            "state_dict() alone, or download the file again"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes almost any: EOFError, IndexError, KeyError, RuntimeError, ...
        reason = " ".join(str(error).split())[:100]
        raise InputError(
            f"{path} cannot be read as a PyTorch checkpoint ({type(error).__name__} {reason}): download it again"
        ) from error


def _numpy(value: object, name: object, path: Path) -> np.ndarray:
    """A tensor as an array."""
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
        raise InputError(f"{path}: {name} is no plain tensor: expected a state_dict, which has nothing else")
    value = value.detach()
    return (value.float() if value.is_floating_point() else value).numpy()


def read_classes(expected: int, file: object, classes: str | None, *, background: bool = False) -> dict[str, str]:
    """The classes of the outputs, `{label: name}` without the background.

    COCO has no labels beside its names: the label is the name with underscores, because predictions are separated by
    spaces.

    Args:
        expected: how many there are.
        file: the checkpoint, for the error.
        classes: a class description file, or None for COCO's.
        background: whether the outputs have one besides.

    Raises:
        InputError: there are more or fewer classes than outputs, or the file has a mistake.
    """
    if classes is None:
        if expected != len(COCO_NAMES):
            raise InputError(
                f"{file} has {expected} classes, not the {len(COCO_NAMES)} of COCO: name them by --classes with a CSV"
            )
        return {name.replace(" ", "_"): name for name in COCO_NAMES}
    names = read_class_descriptions(classes)
    if len(names) != expected:
        besides = ", the background not counted" * background
        raise InputError(
            f"--classes {classes} has {len(names)} classes and {file} has {expected}{besides}: give the list that it "
            "was trained on"
        )
    return names


# === Converting and writing ==========================================================================================
def released_settings(structure: Structure, classes: dict[str, str], image_size: int) -> dict:
    """The settings of a run of the released network: what `models.detector` needs to build and to use it.

    Args:
        structure: of the checkpoint.
        classes: `{label: name}` in the order of the outputs, without the background.
        image_size: side of the square input in pixels.
    """
    return {
        "classes": [{"label": label, "name": name} for label, name in classes.items()],
        "preprocessing": {
            "resize": "warp",
            "interpolation": "linear",
            "orientation": "stored",
            "pixels": "RGB, 0 to 255",
            "normalisation": "ssd",
        },
        "anchors": anchor_settings(image_size, structure.scales, anchors="official"),
        "box_coding": "ssd",
        "score_activation": "softmax",
        "head": "conv",
        "sfam": structure.sfam,
        "backbone": BACKBONE,
        "taps": None,
        "level": None,
        "image_size": image_size,
        "variant": "released",
        "tums": structure.tums,
        "scales": structure.scales,
        "channels": structure.channels,
    }


def released_network(state: dict[str, np.ndarray], structure: Structure, settings: dict, file: object):
    """Builds the network of `released_settings` with the weights of a checkpoint.

    Raises:
        InputError: names or shapes differ; the sentence names the first.
    """
    from models.detector import network_from_settings

    network = network_from_settings(settings)
    load_state(network, state, structure, file)
    return network


def legacy_settings(
    structure: LegacyStructure, classes: dict[str, str], min_side: int | None = None, max_side: int | None = None
) -> dict:
    """The settings of a run of a published RetinaNet.

    Args:
        structure: of the checkpoint.
        classes: `{label: name}` in the order of the outputs.
        min_side, max_side: of the pictures that the network sees, in pixels; None = as published.

    Raises:
        InputError: sides that make no picture.
    """
    published = PUBLISHED_SIDES[structure.layers]
    min_side, max_side = (given or default for given, default in zip((min_side, max_side), published, strict=True))
    if not LEAST_SIDE <= min_side <= max_side:
        raise InputError(
            f"--min_side {min_side} --max_side {max_side}: give at least {LEAST_SIDE}, and the larger last"
        )
    return {
        "detector": "legacy_retinanet",
        "classes": [{"label": label, "name": name} for label, name in classes.items()],
        "preprocessing": {
            "resize": "sides",
            "min_side": min_side,
            "max_side": max_side,
            "interpolation": "linear",
            "orientation": "stored",
            "pixels": "RGB, 0 to 255",
            "normalisation": "caffe",
        },
        "anchors": {"unit": "pixels", "scales": 5, "sizes": retinanet_sizes(5)},
        "box_coding": "corners",
        "score_activation": "sigmoid",
        "backbone": f"legacy_resnet{structure.layers}",
        "taps": None,
        "level": None,
        "image_size": None,
        "padding": structure.padding,
        "clip": "side" if structure.padding == "explicit" else "last_pixel",  # both changed at about the same time
    }


def _save(model, path: Path) -> None:
    """Writes a model file as Keras does, weights by way of the disk: Keras' own would have them in memory twice."""
    parts = path.with_name(f"{path.stem}_parts")
    model.save(parts, zipped=False)
    with zipfile.ZipFile(path, "w") as file:
        for part in sorted(parts.rglob("*")):
            if part.is_file():
                file.write(part, part.relative_to(parts).as_posix())
    shutil.rmtree(parts)


def write_run(folder: Path, settings: dict, network) -> None:
    """Writes a run that `models.load_model` takes; the folder is complete, or it is as it was before."""
    from models.detector import inference_model

    with replacing_folder(folder) as new:
        _save(inference_model(network, settings), new / MODEL)
        (new / SETTINGS).write_text(json.dumps(settings, indent=1), encoding="utf-8")


if __name__ == "__main__":
    from a00_utils_and_constants import run_script  # the command line only: no other file of models/ knows a00

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's alarm where there is no GPU
    run_script(main)
