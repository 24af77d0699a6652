"""The checkpoint that M2Det's authors released: what its tensors are called, and where each belongs in our network.

The published file is `m2det512_vgg.pth`, a PyTorch `state_dict`: a table from names to arrays. Here it is a dict of
NumPy arrays; `models.convert` reads the file. The authors' modules and our layers, where there are L scales, for the
i-th TUM:

| checkpoint                    | layers of `models.m2det`                                          |
|-------------------------------|-------------------------------------------------------------------|
| `base.0` ... `base.33`        | `block1_conv1` ... `block5_conv3`, `fc6`, `fc7`                   |
| `reduce`, `up_reduce`         | `ffm1_shallow`, `ffm1_deep`                                       |
| `leach.0`                     | `leach`; `leach.1` and so on are the same tensors                 |
| `unet{i}.layers.{k}`          | `tum{i}_down{k + 1}`                                              |
| `unet{i}.toplayer.0`          | `tum{i}_top`                                                      |
| `unet{i}.latlayer.{k}`        | `tum{i}_lateral{L - 1 - k}`: theirs begin with the small maps     |
| `unet{i}.smooth.{k}`          | `tum{i}_smooth{L - 1 - k}`                                        |
| `sfam_module.fc1.0`, `.fc2.0` | `sfam_reduce`, `sfam_excite`; `.1` and so on are the same tensors |
| `Norm`                        | `norm`                                                            |
| `loc.{k}`, `conf.{k}`         | `boxes{k + 1}`, `classes{k + 1}`                                  |
"""

import dataclasses
import itertools

import numpy as np

from oid.anchors.grids import PUBLISHED_SCALES
from oid.files import InputError

BACKBONE = "vgg16"
ANCHORS_PER_CELL = 6
VGG_CONVOLUTIONS = {  # index in the authors' list of layers, where pooling and ReLU count: name in ours
    **{0: "block1_conv1", 2: "block1_conv2", 5: "block2_conv1", 7: "block2_conv2"},
    **{10: "block3_conv1", 12: "block3_conv2", 14: "block3_conv3", 17: "block4_conv1", 19: "block4_conv2"},
    **{21: "block4_conv3", 24: "block5_conv1", 26: "block5_conv2", 28: "block5_conv3", 31: "fc6", 33: "fc7"},
}
BATCH_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
NOT_NEEDED = ".num_batches_tracked"  # of batch norm; files of 2018 lack it

# The outputs of the released network after the background: COCO's categories in the order of their ids.
COCO_NAMES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)


@dataclasses.dataclass(frozen=True)
class Structure:
    """What the tensors tell of the network.

    Attributes:
        channels: channels of each map of each TUM ("planes").
        tums: how many TUMs ("levels").
        scales: maps of each TUM.
        outputs: class outputs of each anchor, the background included.
        sfam: whether there is an SFAM.
    """

    channels: int
    tums: int
    scales: int
    outputs: int
    sfam: bool


def read_structure(state: dict[str, np.ndarray], file: object) -> Structure:
    """Reads off the tensors what network they belong to.

    Args:
        state: arrays by the authors' names, without `module.` in front.
        file: where they come from, for the error.

    Raises:
        InputError: they belong to no released M2Det on VGG16 with six scales.
    """
    backbone = [name for name in state if name.startswith("base.")]
    if backbone and not any(name.split(".")[1].isdigit() for name in backbone):
        raise InputError(
            f"{file} has a ResNet as its backbone ({backbone[0]}), of which no checkpoint was ever released: only the "
            "VGG16 network can be converted"
        )
    top = _array(state, "unet1.toplayer.0.conv.weight", 4, file)
    boxes, classes = _array(state, "loc.0.weight", 4, file), _array(state, "conf.0.weight", 4, file)
    anchors, surplus = divmod(len(boxes), 4)
    if surplus or anchors != ANCHORS_PER_CELL or len(classes) % anchors:
        raise InputError(
            f"{file}: loc.0.weight and conf.0.weight have {len(boxes)} and {len(classes)} outputs, expected 4 and the "
            f"number of classes for each of {ANCHORS_PER_CELL} anchors: it is no released M2Det"
        )
    structure = Structure(
        channels=len(top),
        tums=_count(state, "unet{}.toplayer.0.conv.weight", first=1),
        scales=_count(state, "loc.{}.weight", first=0),
        outputs=len(classes) // anchors,
        sfam=any(name.startswith("sfam_module.") for name in state),
    )
    if structure.scales != PUBLISHED_SCALES:
        raise InputError(
            f"{file} has {structure.scales} scales: the released network has {PUBLISHED_SCALES}, and only with these "
            "is its last convolution ours"
        )
    if structure.outputs < 2:
        raise InputError(f"{file}: conf.0.weight has no class beside the background: it is no released M2Det")
    return structure


def _array(state: dict[str, np.ndarray], name: str, dimensions: int, file: object) -> np.ndarray:
    """An array that every released network has."""
    if name not in state:
        found = f"the first is {next(iter(state))}" if state else "there is none"
        raise InputError(f"{file} is no checkpoint of the released M2Det: {name} is missing ({found})")
    if state[name].ndim != dimensions:
        raise InputError(f"{file}: {name} has shape {shape_text(state[name].shape)}, expected {dimensions} numbers")
    return state[name]


def _count(state: dict[str, np.ndarray], pattern: str, *, first: int) -> int:
    """How many names `pattern` has, counting up from `first`."""
    return next(index for index in itertools.count() if pattern.format(index + first) not in state)


def layer_names(structure: Structure) -> dict[str, str]:
    """From the authors' modules that have tensors of their own to our layers.

    A module of convolution and batch norm (whose tensors are `<module>.conv.*` and `<module>.bn.*`) is here two: so are
    our layers.
    """
    last = structure.scales - 1
    blocks = {"reduce": "ffm1_shallow", "up_reduce": "ffm1_deep", "leach.0": "leach"}
    for tum in range(1, structure.tums + 1):
        theirs, ours = f"unet{tum}", f"tum{tum}"
        blocks |= {f"{theirs}.layers.{k}": f"{ours}_down{k + 1}" for k in range(last)}
        blocks |= {f"{theirs}.toplayer.0": f"{ours}_top"}
        blocks |= {f"{theirs}.latlayer.{k}": f"{ours}_lateral{last - k}" for k in range(last)}
        blocks |= {f"{theirs}.smooth.{k}": f"{ours}_smooth{last - k}" for k in range(last)}
    names = {f"base.{index}": name for index, name in VGG_CONVOLUTIONS.items()}
    for theirs, ours in blocks.items():
        names |= {f"{theirs}.conv": f"{ours}_conv", f"{theirs}.bn": f"{ours}_bn"}
    if structure.sfam:
        names |= {"sfam_module.fc1.0": "sfam_reduce", "sfam_module.fc2.0": "sfam_excite"}
    names["Norm"] = "norm"
    for k in range(structure.scales):
        names |= {f"loc.{k}": f"boxes{k + 1}", f"conf.{k}": f"classes{k + 1}"}
    return names


def aliases(structure: Structure) -> dict[str, str]:
    """From modules that are others under a second name to these: PyTorch saves a module once for each of its names."""
    pairs = {f"leach.{k}.{part}": f"leach.0.{part}" for k in range(1, structure.tums) for part in ("conv", "bn")}
    if structure.sfam:
        for module in ("sfam_module.fc1", "sfam_module.fc2"):
            pairs |= {f"{module}.{k}": f"{module}.0" for k in range(1, structure.scales)}
    return pairs


def load_state(network, state: dict[str, np.ndarray], structure: Structure, file: object) -> None:
    """Puts every array of a checkpoint into the network, after a check of every name and shape.

    Args:
        network: of `models.m2det.build_m2det`, with this structure.
        state: arrays by the authors' names, without `module.` in front.
        structure: what `read_structure` gave.
        file: where the arrays come from, for the error.

    Raises:
        InputError: an array is missing, has another shape, is not the one that it should be the second name of, is not
            finite, or is one too many; the sentence names the first. The network is then as it was.
    """
    variables = _variables(network, structure)
    for name, variable in variables.items():
        _check(state, name, _their_shape(variable), file)
    known = set(variables)
    for second, first in aliases(structure).items():
        for name in [name for name in variables if name.rpartition(".")[0] == first]:
            alias = f"{second}.{name.rpartition('.')[2]}"
            _check(state, alias, state[name].shape, file)
            if not np.array_equal(state[alias], state[name]):
                raise InputError(f"{file}: {alias} and {name} differ, and should be two names of one tensor")
            known.add(alias)
    batch_norms = {name.rpartition(".")[0] for name in known if name.endswith(".running_mean")}
    known |= {name + NOT_NEEDED for name in batch_norms}
    for name in state:
        if name not in known:
            raise InputError(f"{file}: tensor {name} is unexpected: the released M2Det on VGG16 has none of that name")
    for name, variable in variables.items():
        variable.assign(_our_array(state[name], variable))


def _variables(network, structure: Structure) -> dict[str, object]:
    """Every variable of the network by the name that the checkpoint has for it, in the order of `layer_names`."""
    layers = {layer.name: layer for layer in _all_layers(network)}
    variables = {}
    for module, name in layer_names(structure).items():
        inside = {variable.name: variable for variable in layers[name].weights}
        theirs = BATCH_NORM if "gamma" in inside else {"weight": "kernel", "bias": "bias"}
        variables |= {f"{module}.{key}": inside.pop(ours) for key, ours in theirs.items() if ours in inside}
        if inside:
            raise RuntimeError(f"layer {name} has weights of no known kind: {', '.join(inside)}")
    forgotten = {v.path for v in network.weights} - {v.path for v in variables.values()}
    if forgotten or len(variables) != len(network.weights):
        raise RuntimeError(f"the checkpoint's names do not cover the network: {', '.join(sorted(forgotten))}")
    return variables


def _all_layers(model):
    """The layers of a model and of the models inside it."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _all_layers(layer)
        else:
            yield layer


def _check(state: dict[str, np.ndarray], name: str, shape: tuple[int, ...], file: object) -> None:
    if name not in state:
        raise InputError(f"{file}: tensor {name} of shape {shape_text(shape)} is missing")
    if state[name].shape != shape:
        found = shape_text(state[name].shape)
        raise InputError(f"{file}: tensor {name} has shape {found}, expected {shape_text(shape)}")
    if not np.issubdtype(state[name].dtype, np.floating) or not np.isfinite(state[name]).all():
        raise InputError(f"{file}: tensor {name} holds other values than finite floating-point numbers")


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as people write it."""
    return f"({', '.join(map(str, shape))})"


def _their_shape(variable) -> tuple[int, ...]:
    """The shape of a variable in PyTorch: kernels are (out, in, height, width), a dense one is a 1x1 convolution."""
    if len(variable.shape) == 4:
        height, width, inputs, outputs = variable.shape
        return (outputs, inputs, height, width)
    if len(variable.shape) == 2:
        inputs, outputs = variable.shape
        return (outputs, inputs, 1, 1)
    return tuple(variable.shape)


def _our_array(array: np.ndarray, variable) -> np.ndarray:
    """The array as the variable wants it."""
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    return np.ascontiguousarray(array, "float32").reshape(variable.shape)
