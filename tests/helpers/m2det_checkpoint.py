"""The released M2Det a second time, in NumPy, and checkpoints for it; independent of `models/`."""

import importlib.util
import json
from types import SimpleNamespace

import numpy as np

from tests.helpers.project import shared

VGG = (0, 64, 64), (5, 128, 128), (10, 256, 256, 256), (17, 512, 512, 512), (24, 512, 512, 512)  # index, channels
SIDES = (34, 17, 9, 5, 3, 1)  # of the maps at 272 pixels, the smallest image for six scales
MEAN_BGR = np.array([104, 117, 123], "float32")
EPSILON = 1e-5


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


# === The network =====================================================================================================
def convolve(x: np.ndarray, weight: np.ndarray, *, stride: int = 1, padding: int = 0, dilation: int = 1) -> np.ndarray:
    """A convolution of `(channels, height, width)` by `(filters, channels, side, side)`."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    reach = dilation * (weight.shape[2] - 1) + 1
    windows = np.lib.stride_tricks.sliding_window_view(x, (reach, reach), axis=(1, 2))
    windows = windows[:, ::stride, ::stride, ::dilation, ::dilation]
    return np.einsum("chwij,fcij->fhw", windows, weight, optimize=True)


def normalise(x: np.ndarray, state: dict, name: str) -> np.ndarray:
    """Batch norm as in inference."""
    scale = state[f"{name}.weight"] / np.sqrt(state[f"{name}.running_var"] + np.float32(EPSILON))
    shift = state[f"{name}.bias"] - state[f"{name}.running_mean"] * scale
    return x * scale[:, None, None] + shift[:, None, None]


def reference_outputs(state: dict, image: np.ndarray, *, tums: int, sfam: bool) -> dict[str, np.ndarray]:
    """The network's outputs and what is inside it, in the names of the golden files.

    Args:
        state: a checkpoint.
        image: `(3, 272, 272)`, preprocessed.
        tums: number of TUMs.
        sfam: whether there is an SFAM.

    Returns:
        `loc` `(anchors, 4)`, `conf` `(anchors, outputs)`, and maps `(channels, side, side)`.
    """

    def plain(x, name, **options):
        return convolve(x, state[f"{name}.weight"], **options) + state[f"{name}.bias"][:, None, None]

    def block(x, name, **options):
        return np.maximum(normalise(convolve(x, state[f"{name}.conv.weight"], **options), state, f"{name}.bn"), 0)

    found = {}
    found["base0"], found["base1"] = _vgg(image, plain)
    deep = block(found["base1"], "up_reduce").repeat(2, axis=1).repeat(2, axis=2)
    base = np.concatenate([block(found["base0"], "reduce", padding=1), deep])
    pyramids = []
    for tum in range(1, tums + 1):
        x = block(base, "leach.0")
        x = np.concatenate([x, pyramids[-1][-1]]) if pyramids else x
        pyramids.append(_tum(x, f"unet{tum}", block))
    sources = [np.concatenate(maps) for maps in zip(*pyramids, strict=True)][::-1]
    if sfam:
        for k, x in enumerate(sources):
            squeezed = np.maximum(plain(x.mean((1, 2), keepdims=True), "sfam_module.fc1.0"), 0)
            sources[k] = x / (1 + np.exp(-plain(squeezed, "sfam_module.fc2.0")))
    sources[0] = normalise(sources[0], state, "Norm")
    for output, width in (("loc", 4), ("conf", len(state["conf.0.bias"]) // 6)):
        maps = [plain(x, f"{output}.{k}", padding=1) for k, x in enumerate(sources)]
        found[output] = np.concatenate([x.transpose(1, 2, 0).reshape(-1, width) for x in maps])
    found |= {f"src{k}": x for k, x in enumerate(sources)} | {"base_feature": base}
    for name, pyramid in (("tum1", pyramids[0]), ("tum_last", pyramids[-1])):
        found |= {f"{name}_{k}": x for k, x in enumerate(pyramid)}
    return found


def _vgg(x: np.ndarray, plain) -> tuple[np.ndarray, np.ndarray]:
    """VGG16 without its classifier, two of whose layers are convolutions here; every side is even before a pooling."""
    for index, *stage in VGG:
        if index:
            x = x.reshape(len(x), x.shape[1] // 2, 2, -1, 2).max((2, 4))
        for k in range(len(stage)):
            x = np.maximum(plain(x, f"base.{index + 2 * k}", padding=1), 0)
        if index == 17:
            shallow = x
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    x = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2)).max((3, 4))
    x = np.maximum(plain(x, "base.31", padding=6, dilation=6), 0)
    return shallow, np.maximum(plain(x, "base.33"), 0)


def _tum(x: np.ndarray, name: str, block) -> list[np.ndarray]:
    """The maps of a TUM, smallest first."""
    encoded = [x]
    for k in range(5):
        options = {"stride": 2, "padding": 1} if k < 4 else {}
        encoded.append(block(encoded[-1], f"{name}.layers.{k}", **options))
    decoded = [block(encoded[-1], f"{name}.toplayer.0")]
    for k in range(5):
        lateral = block(encoded[4 - k], f"{name}.latlayer.{k}", padding=1)
        side, before = lateral.shape[1], decoded[-1].shape[1]
        rows = [i * before // side for i in range(side)]
        decoded.append(decoded[-1][:, rows][:, :, rows] + lateral)
    return [decoded[0]] + [block(y, f"{name}.smooth.{k}") for k, y in enumerate(decoded[1:])]
