"""Checkpoints of the released M2Det: recorded ones of ../shared, and random ones; independent of `convert/`."""

import importlib.util
import json
from types import SimpleNamespace

import numpy as np

from tests.helpers.project import shared

VGG = (0, 64, 64), (5, 128, 128), (10, 256, 256, 256), (17, 512, 512, 512), (24, 512, 512, 512)  # index, channels
MEAN_BGR = np.array([104, 117, 123], "float32")


def golden_description(variant: str) -> dict:
    """The list of tensors of a reference of ../shared/golden/m2det; skips the test where there is none."""
    return json.loads(shared("golden", "m2det", f"{variant}.shapes.json").read_text(encoding="utf-8"))


def golden(variant: str) -> SimpleNamespace:
    """A whole reference: `state`, `image` (preprocessed, NCHW), `expected` and `description`."""
    description, folder = golden_description(variant), shared("golden", "m2det")
    spec = importlib.util.spec_from_file_location("weights_from_names", folder / "weights_from_names.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    state = generator.state_dict(description)
    assert generator.digest(state) == description["weights_sha256"]
    with np.load(folder / f"{variant}.npz") as file:
        expected = dict(file)
    image = generator.input_image(description["input_size"])
    return SimpleNamespace(state=state, image=image, expected=expected, description=description)


def tensor_shapes(*, channels: int, tums: int, outputs: int, sfam: bool) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the order of the checkpoint, second names included."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name, inputs, filters, side):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (filters, inputs, side, side), (filters,)

    def norm(name, width):
        shapes.update({f"{name}.{key}": (width,) for key in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    def block(name, inputs, filters, side):
        shapes[f"{name}.conv.weight"] = (filters, inputs, side, side)
        norm(f"{name}.bn", filters)

    for tum in range(1, tums + 1):
        first = channels // 2 if tum == 1 else channels // 2 + channels
        for k in range(5):
            block(f"unet{tum}.layers.{k}", channels if k else first, channels, 3)
        block(f"unet{tum}.toplayer.0", channels, channels, 1)
        for k in range(5):
            block(f"unet{tum}.latlayer.{k}", channels if k < 4 else first, channels, 3)
        for k in range(5):
            block(f"unet{tum}.smooth.{k}", channels, channels, 1)
    inputs = 3
    for index, *stage in VGG:
        for k, filters in enumerate(stage):
            convolution(f"base.{index + 2 * k}", inputs, filters, 3)
            inputs = filters
    convolution("base.31", 512, 1024, 3)
    convolution("base.33", 1024, 1024, 1)
    block("reduce", 512, 256, 3)
    block("up_reduce", 1024, 512, 1)
    norm("Norm", channels * tums)
    for k in range(tums):
        block(f"leach.{k}", 768, channels // 2, 1)
    for k in range(6):
        convolution(f"loc.{k}", channels * tums, 24, 3)
    for k in range(6):
        convolution(f"conf.{k}", channels * tums, 6 * outputs, 3)
    hidden = channels * tums // 16
    for name, before, after in (("fc1", channels * tums, hidden), ("fc2", hidden, channels * tums)) if sfam else ():
        for k in range(6):
            convolution(f"sfam_module.{name}.{k}", before, after, 1)
    return shapes


def alias_of(name: str) -> str:
    """The first name of the tensor that has this name."""
    parts = name.split(".")
    if parts[0] == "leach":
        parts[1] = "0"
    elif parts[0] == "sfam_module":
        parts[2] = "0"
    return ".".join(parts)


def random_state(seed: int = 0, **structure: object) -> dict[str, np.ndarray]:
    """A checkpoint whose activations keep their size from layer to layer, and begin at 1 for pixels of 64."""
    rng = np.random.default_rng(seed)
    state: dict[str, np.ndarray] = {}
    for name, shape in tensor_shapes(**structure).items():
        first, kind = alias_of(name), name.rpartition(".")[2]
        if first in state:
            state[name] = state[first]
        elif kind == "num_batches_tracked":
            state[name] = np.zeros(shape, "int64")
        elif len(shape) == 1:
            low, high = (0.5, 1.5) if kind in ("weight", "running_var") else (-0.1, 0.1)
            state[name] = rng.uniform(low, high, shape).astype("float32")
        else:
            gain = {"base.0.weight": 2.0 / 64**2}.get(name, 0.2 if ".smooth." in name else 2.0)
            bound = np.float32((3 * gain / np.prod(shape[1:])) ** 0.5)
            state[name] = (rng.random(shape, "float32") * 2 - 1) * bound
    return state
