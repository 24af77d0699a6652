"""Reads the checkpoint that M2Det's authors released, `m2det512_vgg.pth`: a PyTorch `state_dict`, arrays by name.

The authors' modules and the layers of `models.m2det`, for L scales and the i-th TUM:

| checkpoint                    | layers                                                            |
|-------------------------------|-------------------------------------------------------------------|
| `base.0` ... `base.33`        | `block1_conv1` ... `block5_conv3`, `fc6`, `fc7`                   |
| `reduce`, `up_reduce`         | `ffm1_shallow`, `ffm1_deep`                                       |
| `leach.0`                     | `leach`; `leach.1` and so on are the same tensors                 |
| `unet{i}.layers.{k}`          | `tum{i}_down{k + 1}`                                              |
| `unet{i}.toplayer.0`          | `tum{i}_top`                                                      |
| `unet{i}.latlayer.{k}`        | `tum{i}_lateral{L - 1 - k}`: the smallest map comes first         |
| `unet{i}.smooth.{k}`          | `tum{i}_smooth{L - 1 - k}`                                        |
| `sfam_module.fc1.0`, `.fc2.0` | `sfam_reduce`, `sfam_excite`; `.1` and so on are the same tensors |
| `Norm`                        | `norm`                                                            |
| `loc.{k}`, `conf.{k}`         | `boxes{k + 1}`, `classes{k + 1}`                                  |
"""

import dataclasses
import itertools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import keras
import numpy as np

from convert.classes import classes_of_outputs
from models.detector import build_network
from models.keras_internals import all_layers
from models.run_settings import InputSettings, NetworkSettings, RunSettings
from oid.anchors.grids import PUBLISHED_SCALES, m2det_anchors
from oid.files import InputError

ZIP, PICKLE = b"PK\x03\x04", b"\x80\x02"  # PyTorch has written zip files since 1.6
OLDEST_TORCH = (2, 6)  # before it, `weights_only` could be circumvented (CVE-2025-32434)
LEAST_IMAGE, IMAGE_STEP = 272, 16  # pixels: six scales do not fit below, the backbone's maps do not fit between
ANCHORS_PER_CELL = 6
VGG_CONVOLUTIONS = {  # index in the authors' list of layers, where pooling and ReLU count: name in ours
    **{0: "block1_conv1", 2: "block1_conv2", 5: "block2_conv1", 7: "block2_conv2"},
    **{10: "block3_conv1", 12: "block3_conv2", 14: "block3_conv3", 17: "block4_conv1", 19: "block4_conv2"},
    **{21: "block4_conv3", 24: "block5_conv1", 26: "block5_conv2", 28: "block5_conv3", 31: "fc6", 33: "fc7"},
}
BATCH_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
NOT_NEEDED = ".num_batches_tracked"  # of batch norm; files of 2018 lack it

State = Mapping[str, np.ndarray]  # arrays by the authors' names


def load_m2det(path: Path, classes: str | Path | None, image_size: int) -> tuple[keras.Model, RunSettings]:
    """Builds the network of a file with its weights.

    Args:
        path: of the file.
        classes: see `convert.classes.classes_of_outputs`.
        image_size: side of the square input in pixels.

    Raises:
        InputError: PyTorch is missing, the size does not fit, or the file is damaged or not of such a network; names
            the first tensor that differs.
    """
    if image_size < LEAST_IMAGE or image_size % IMAGE_STEP:
        raise InputError(f"image_size is {image_size}: it must be a multiple of {IMAGE_STEP}, at least {LEAST_IMAGE}")
    state = read_state(path)
    structure = read_structure(state, path)
    settings = settings_of(structure, path, classes, image_size)
    network = build_network(settings)
    load_state(network, state, structure, path)
    return network, settings


# === Reading =========================================================================================================
def read_state(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a PyTorch file, in the format since 1.6 or the one before; code in it is not run.

    Args:
        path: a `state_dict`, or a dict with one under "state_dict" or "model".

    Returns:
        Arrays by name, floating-point ones as float32. `module.`, which DataParallel puts before every name, is left
        out.

    Raises:
        InputError: PyTorch is not installed or too old, or the file is not a checkpoint or holds more than arrays.
    """
    with open(path, "rb") as file:
        begin = file.read(len(ZIP))
    if not begin:
        raise InputError(f"{path} is empty: download it again")
    if not begin.startswith((ZIP, PICKLE)):
        raise InputError(
            f"{path} is neither a PyTorch checkpoint (.pth) nor an HDF5 file of Keras (.h5): download it again, or "
            "name another"
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
    """Reads what `torch.save` wrote, if it is tensors, numbers, texts, lists and dicts."""
    try:
        import torch
    except ImportError:
        raise InputError(f"{path} is read by PyTorch, which is not installed: pip install torch") from None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        least = ".".join(map(str, OLDEST_TORCH))
        raise InputError(f"PyTorch {torch.__version__} does not read files safely: pip install 'torch>={least}'")
    try:
        with warnings.catch_warnings(action="ignore"):  # of TorchScript, before the error
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes almost any: EOFError, IndexError, KeyError, RuntimeError, ...
        if type(error).__name__ == "UnpicklingError":
            raise InputError(
                f"{path} holds more than tensors, or is damaged, and none of its code was run: save the model's "
                "state_dict() alone, or download the file again"
            ) from error
        reason = " ".join(str(error).split())[:100]
        raise InputError(
            f"{path} cannot be read as a PyTorch checkpoint ({type(error).__name__} {reason}): download it again"
        ) from error


def _numpy(value: object, name: object, path: Path) -> np.ndarray:
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
        raise InputError(f"{path}: {name} is not a plain tensor: expected a state_dict, which has nothing else")
    value = value.detach()
    return (value.float() if value.is_floating_point() else value).numpy()


# === The network of a file ===========================================================================================
@dataclasses.dataclass(frozen=True)
class Structure:
    """What the tensors tell of the network.

    Attributes:
        variant: see `models.m2det`.
        tums: number of TUMs ("levels").
        channels: of each map of each TUM ("planes").
        num_classes: without the background.
    """

    variant: Literal["released", "released_sfam"]
    tums: int
    channels: int
    num_classes: int


def read_structure(state: State, path: Path) -> Structure:
    """Reads off the tensors what network they belong to.

    Raises:
        InputError: they are not of a released M2Det on VGG16 with six scales.
    """
    resnet = [name for name in state if name.startswith("base.") and not name.split(".")[1].isdigit()]
    if resnet:
        raise InputError(f"{path} has a ResNet as its backbone ({resnet[0]}): only M2Det on VGG16 was released")
    top = _kernel(state, "unet1.toplayer.0.conv.weight", path)
    boxes, classes = (_kernel(state, name, path) for name in ("loc.0.weight", "conf.0.weight"))
    if len(boxes) != 4 * ANCHORS_PER_CELL or len(classes) % ANCHORS_PER_CELL or len(classes) < 2 * ANCHORS_PER_CELL:
        raise InputError(
            f"{path}: loc.0.weight and conf.0.weight have {len(boxes)} and {len(classes)} outputs, expected 4 and the "
            f"number of classes with the background for each of {ANCHORS_PER_CELL} anchors: it is no released M2Det"
        )
    scales = _count(f"loc.{k}.weight" in state for k in itertools.count())
    if scales != PUBLISHED_SCALES:
        raise InputError(f"{path} has {scales} scales: only the released network, with {PUBLISHED_SCALES}, is read")
    return Structure(
        variant="released_sfam" if any(name.startswith("sfam_module.") for name in state) else "released",
        tums=_count(f"unet{k}.toplayer.0.conv.weight" in state for k in itertools.count(1)),
        channels=len(top),
        num_classes=len(classes) // ANCHORS_PER_CELL - 1,
    )


def _kernel(state: State, name: str, path: Path) -> np.ndarray:
    """A kernel that every released network has."""
    if name not in state:
        found = f"its first tensor is {next(iter(state))}" if state else "it has no tensors"
        raise InputError(f"{path} is no checkpoint of the released M2Det: it lacks {name}, {found}")
    if state[name].ndim != 4:
        raise InputError(f"{path}: {name} has the shape {state[name].shape}, expected 4 dimensions")
    return state[name]


def _count(found) -> int:
    return sum(itertools.takewhile(bool, found))


def settings_of(structure: Structure, path: Path, classes: str | Path | None, image_size: int) -> RunSettings:
    """The settings of a run of the released network."""
    network = NetworkSettings(
        detector="m2det",
        backbone="vgg16",
        image_size=image_size,
        scales=PUBLISHED_SCALES,
        channels=structure.channels,
        head="conv",
        normalisation="ssd",
        variant=structure.variant,
        tums=structure.tums,
    )
    return RunSettings(
        network=network,
        inputs=InputSettings("warp", "linear"),
        classes=classes_of_outputs(structure.num_classes, path, classes),
        anchors=m2det_anchors(image_size, PUBLISHED_SCALES, "official"),
        box_deltas="ssd",
        scores="softmax",
        converted_from=path.name,
    )


def layer_names(structure: Structure) -> dict[str, str]:
    """From the authors' modules with tensors of their own to our layers.

    A module of convolution and batch norm has tensors `<module>.conv.*` and `<module>.bn.*`: two of our layers.
    """
    last = PUBLISHED_SCALES - 1
    blocks = {"reduce": "ffm1_shallow", "up_reduce": "ffm1_deep", "leach.0": "leach"}
    for tum in range(1, structure.tums + 1):
        theirs, ours = f"unet{tum}", f"tum{tum}"
        blocks[f"{theirs}.toplayer.0"] = f"{ours}_top"
        for k in range(last):
            blocks[f"{theirs}.layers.{k}"] = f"{ours}_down{k + 1}"
            blocks[f"{theirs}.latlayer.{k}"] = f"{ours}_lateral{last - k}"
            blocks[f"{theirs}.smooth.{k}"] = f"{ours}_smooth{last - k}"
    names = {f"base.{index}": name for index, name in VGG_CONVOLUTIONS.items()}
    for theirs, ours in blocks.items():
        names |= {f"{theirs}.conv": f"{ours}_conv", f"{theirs}.bn": f"{ours}_bn"}
    if structure.variant == "released_sfam":
        names |= {"sfam_module.fc1.0": "sfam_reduce", "sfam_module.fc2.0": "sfam_excite"}
    names["Norm"] = "norm"
    for k in range(PUBLISHED_SCALES):
        names |= {f"loc.{k}": f"boxes{k + 1}", f"conf.{k}": f"classes{k + 1}"}
    return names


def first_name(name: str) -> str:
    """The first name of a tensor: PyTorch saves one of a shared module once for each of the module's names."""
    return re.sub(r"^(leach|sfam_module\.fc[12])\.\d+\.", r"\1.0.", name)


# === Copying the weights =============================================================================================
def load_state(network: keras.Model, state: State, structure: Structure, path: Path) -> None:
    """Copies every array into the network, after a check of every name and shape.

    Raises:
        InputError: an array is missing or unexpected, has another shape, differs from the one that it should be the
            second name of, or is not finite. The sentence names the first; the network is as it was.
    """
    variables = _variables(network, structure)
    for name, variable in variables.items():
        _check(state, name, _their_shape(variable), path)
    for name, array in state.items():
        first = first_name(name)
        if first not in variables and not first.endswith(NOT_NEEDED):
            raise InputError(f"{path}: tensor {name} is unexpected: the released M2Det on VGG16 has none")
        if name != first and not np.array_equal(array, state.get(first)):
            raise InputError(f"{path}: {name} and {first} differ, and should be two names of one tensor")
    for name, variable in variables.items():
        array = state[name].transpose(2, 3, 1, 0) if state[name].ndim == 4 else state[name]
        variable.assign(np.ascontiguousarray(array, "float32").reshape(variable.shape))


def _variables(network: keras.Model, structure: Structure) -> dict[str, keras.Variable]:
    """Every variable of the network by its name in the checkpoint, in the order of `layer_names`."""
    layers = {layer.name: layer for layer in all_layers(network)}
    variables = {}
    for module, name in layer_names(structure).items():
        inside = {variable.name: variable for variable in layers[name].weights}
        theirs = BATCH_NORM if "gamma" in inside else {"weight": "kernel", "bias": "bias"}
        variables |= {f"{module}.{key}": inside[ours] for key, ours in theirs.items() if ours in inside}
    if {v.path for v in variables.values()} != {v.path for v in network.weights}:
        raise ValueError(f"the checkpoint's names do not cover {network.name}")
    return variables


def _check(state: State, name: str, shape: tuple[int, ...], path: Path) -> None:
    if name not in state:
        raise InputError(f"{path}: tensor {name} of shape {shape} is missing")
    if state[name].shape != shape:
        raise InputError(f"{path}: tensor {name} has the shape {state[name].shape}, expected {shape}")
    if not np.issubdtype(state[name].dtype, np.floating) or not np.isfinite(state[name]).all():
        raise InputError(f"{path}: tensor {name} holds other values than finite floating-point numbers")


def _their_shape(variable: keras.Variable) -> tuple[int, ...]:
    """The shape of a variable in PyTorch: kernels are (out, in, height, width), a dense one is a 1x1 convolution."""
    *window, inputs, outputs = (1, 1, 1, *variable.shape)[-4:]
    return (outputs, inputs, *window) if len(variable.shape) > 1 else tuple(variable.shape)
