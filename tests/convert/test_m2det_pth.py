"""Checkpoints of M2Det's authors become networks with the golden tensors; others are refused.

Only the tests of .pth files need PyTorch.
"""

import importlib.util
import io
import math
import os
import sys
import types
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from convert.m2det_pth import (
    Structure,
    first_name,
    layer_names,
    load_m2det,
    load_state,
    read_state,
    read_structure,
    settings_of,
)
from models.detector import build_network
from oid.anchors.grids import PUBLISHED_SCALES as SCALES
from oid.files import InputError
from tests.helpers.m2det_checkpoint import (
    MEAN_BGR,
    alias_of,
    golden,
    golden_description,
    random_state,
    tensor_shapes,
)
from tests.helpers.project import refused

TOLERANCE = 1e-4  # of a tensor's largest value: above float32's noise, below what every known mistake costs
SMALL = {"channels": 8, "tums": 2, "outputs": 4, "sfam": True}


FILE = Path("some.pth")
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed: it is optional, pip install torch"
)


def build(structure: Structure, image_size: int) -> keras.Model:
    return build_network(settings_of(structure, FILE, None, image_size))


def everything(network: keras.Model, structure: Structure, image: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs and intermediate tensors, NCHW, in the golden files' names, of a preprocessed picture `(1, 3, s, s)`."""
    tensors = {"loc": network.output["boxes"], "conf": network.output["classes"]}
    tensors["base_feature"] = network.get_layer("base_feature").output
    for k in range(SCALES):
        for name, tum in (("tum1", 1), ("tum_last", structure.tums)):
            layer = f"tum{tum}_smooth{SCALES - k}_relu" if k else f"tum{tum}_top_relu"
            tensors[f"{name}_{k}"] = network.get_layer(layer).output
        layer = f"sfam{k + 1}" if structure.variant == "released_sfam" else f"scale{k + 1}"
        tensors[f"src{k}"] = network.get_layer(layer if k else "norm").output
    for name, block in (("base0", "ffm1_shallow"), ("base1", "ffm1_deep")):
        tensors[name] = network.get_layer(f"{block}_conv").input
    pixels = image.transpose(0, 2, 3, 1) + MEAN_BGR  # as they were before the preprocessing inside the network
    found = keras.Model(network.input, tensors).predict_on_batch(pixels[..., ::-1])
    return {name: a.transpose(0, 3, 1, 2) if a.ndim == 4 else a for name, a in found.items()}


def assert_close(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    assert found.shape == expected.shape, name
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= TOLERANCE, f"{name}: {error:.1e}"


# === The golden tensors ==============================================================================================
@pytest.mark.parametrize(
    "variant", ["vgg_small", "vgg_sfam_small", pytest.param("vgg_512_full", marks=pytest.mark.slow)]
)
def test_every_recorded_tensor(variant):
    reference = golden(variant)
    description = reference.description
    structure = read_structure(reference.state, FILE)
    network = build(structure, description["input_size"])
    load_state(network, reference.state, structure, FILE)
    assert sum(math.prod(weight.shape) for weight in network.trainable_weights) == description["parameters"]
    found = everything(network, structure, reference.image)
    if "conf_mean" in reference.expected:
        conf = found["conf"]
        found |= {"conf_tail": conf[:, -120:], "conf_mean": conf.mean(2), "conf_max": conf.max(2)}
    assert set(found) == set(reference.expected)
    for name, stored in description["outputs"].items():
        tensor = found[name]
        assert list(tensor.shape) == stored["shape"], name
        strides = stored.get("strides", [1] * tensor.ndim)
        assert_close(tensor[tuple(slice(None, None, step) for step in strides)], reference.expected[name], name)


@pytest.mark.parametrize("variant", ["vgg_small", "vgg_sfam_small", "vgg_512_full"])
def test_names_and_shapes_are_the_released_ones(variant):
    description = golden_description(variant)
    config, tensors = description["config"], description["tensors"]
    shapes = tensor_shapes(
        channels=config["planes"], tums=config["num_levels"], outputs=config["num_classes"], sfam=config["sfam"]
    )
    assert list(shapes.items()) == [(name, tuple(tensor["shape"])) for name, tensor in tensors.items()]
    assert {name: alias_of(name) for name in shapes} == {n: t["alias_of"] or n for n, t in tensors.items()}


# === Random tensors =================================================================================================
@pytest.fixture(scope="module")
def small():
    """A network with random weights, their checkpoint, and its structure."""
    state = random_state(**SMALL)
    structure = read_structure(state, FILE)
    network = build(structure, 272)
    load_state(network, state, structure, FILE)
    return network, state, structure


def test_tensors_are_in_their_layers(small):
    network, state, _ = small
    kernel, bias = network.get_layer("classes3").get_weights()
    np.testing.assert_array_equal(kernel, state["conf.2.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(bias, state["conf.2.bias"])
    names = ("weight", "bias", "running_mean", "running_var")
    for ours, name in zip(network.get_layer("tum2_lateral5_bn").get_weights(), names, strict=True):
        np.testing.assert_array_equal(ours, state[f"unet2.latlayer.0.bn.{name}"])
    np.testing.assert_array_equal(
        network.get_layer("sfam_reduce").get_weights()[0], state["sfam_module.fc1.0.weight"][:, :, 0, 0].T
    )


def test_structure_is_read_off_the_tensors():
    shapes = {"channels": 16, "tums": 3, "outputs": 21}
    for sfam in (False, True):
        state = {n: np.empty(s, "float32") for n, s in tensor_shapes(**shapes, sfam=sfam).items()}
        variant = "released_sfam" if sfam else "released"
        assert read_structure(state, FILE) == Structure(variant, tums=3, channels=16, num_classes=20)


def test_second_names_are_those_of_shared_modules(small):
    _, state, structure = small
    assert {name: first_name(name) for name in state} == {name: alias_of(name) for name in state}
    assert all(first_name(module) == module for module in layer_names(structure))


def test_published_numbers_of_parameters():
    """At 320 pixels with 81 outputs; SFAM's two layers make the difference."""
    structure = Structure("released_sfam", tums=8, channels=256, num_classes=80)
    network = build(structure, 320)
    sizes = {layer.name: sum(math.prod(w.shape) for w in layer.trainable_weights) for layer in network.layers}
    assert sum(sizes.values()) == 133_159_604
    assert sum(sizes.values()) - sizes["sfam_reduce"] - sizes["sfam_excite"] == 132_633_140


# === Checkpoints that are refused ====================================================================================
def changed(state: dict, changes: dict[str, np.ndarray | None]) -> dict:
    """A copy with other tensors; None removes one."""
    return {name: value for name, value in (state | changes).items() if value is not None}


WRONG = {  # what is wrong: (the tensor, its new value, what the sentence says)
    "missing": ("unet2.smooth.3.bn.bias", None, "unet2.smooth.3.bn.bias of shape (8,) is missing"),
    "missing in the backbone": ("base.31.weight", None, "base.31.weight of shape (1024, 512, 3, 3) is missing"),
    "one too many": ("extra.weight", np.zeros(3, "float32"), "extra.weight is unexpected"),
    "a layer too many": ("unet1.smooth.5.conv.weight", np.zeros(3), "unet1.smooth.5.conv.weight is unexpected"),
    "kernel": ("reduce.conv.weight", np.zeros((256, 512, 1, 1)), "(256, 512, 1, 1), expected (256, 512, 3, 3)"),
    "norm": ("Norm.weight", np.zeros(2048), "Norm.weight has the shape (2048,), expected (16,)"),
    "Keras' layout": ("base.0.weight", np.zeros((3, 3, 3, 64)), "base.0.weight has the shape (3, 3, 3, 64), expected"),
    "second name": ("leach.1.bn.weight", np.ones(4), "leach.1.bn.weight and leach.0.bn.weight differ"),
    "SFAM": ("sfam_module.fc2.5.bias", np.ones(16), "sfam_module.fc2.5.bias and sfam_module.fc2.0.bias differ"),
    "not finite": ("loc.3.bias", np.full(24, np.nan), "loc.3.bias holds other values than finite"),
    "whole numbers": ("conf.0.bias", np.zeros(24, int), "conf.0.bias holds other values than finite"),
}


@pytest.mark.parametrize("case", WRONG)
def test_first_difference_is_named(small, case):
    network, state, structure = small
    name, value, words = WRONG[case]
    before = network.get_layer("tum1_top_conv").get_weights()
    other = state | {"unet1.toplayer.0.conv.weight": np.zeros_like(state["unet1.toplayer.0.conv.weight"])}
    with refused("some.pth: ", words):
        load_state(network, changed(other, {name: value}), structure, FILE)
    for a, b in zip(before, network.get_layer("tum1_top_conv").get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_first_of_several_differences_is_named_and_old_checkpoints_count_no_batches(small):
    network, state, structure = small
    two = changed(state, {"conf.2.bias": None, "base.33.bias": None, "more": np.zeros(1)})
    with refused("base.33.bias"):
        load_state(network, two, structure, FILE)
    load_state(network, {n: a for n, a in state.items() if "num_batches" not in n}, structure, FILE)


NO_M2DET = {  # what it is: (the tensor, its new value, what the sentence says)
    "one anchor": ("loc.0.weight", np.zeros((4, 16, 3, 3)), "have 4 and 24 outputs, expected 4 and"),
    "uneven classes": ("conf.0.weight", np.zeros((25, 16, 3, 3)), "have 24 and 25 outputs"),
    "background only": ("conf.0.weight", np.zeros((6, 16, 3, 3)), "have 24 and 6 outputs"),
    "five scales": ("loc.5.weight", None, "has 5 scales"),
    "a vector": ("unet1.toplayer.0.conv.weight", np.zeros(8), "has the shape (8,)"),
    "nothing": (
        None,
        {},
        "no checkpoint of the released M2Det: it lacks unet1.toplayer.0.conv.weight, it has",
    ),
    "another network": (None, {"features.0.weight": np.zeros(1)}, "its first tensor is features.0.weight"),
    "ResNet": (None, {"base.conv1.weight": np.zeros(1)}, "has a ResNet as its backbone (base.conv1.weight)"),
}


@pytest.mark.parametrize("case", NO_M2DET)
def test_other_networks_are_refused(small, case):
    name, value, words = NO_M2DET[case]
    with refused("some.pth", words):
        read_structure(changed(small[1], {name: value}) if name else value, FILE)


# === Files of PyTorch ================================================================================================
def refuse(words: str, path: Path) -> None:
    with pytest.raises(InputError, match=words) as error:
        load_m2det(path, None, 512)
    assert "\n" not in str(error.value)


def save(content: object, path: Path, *, legacy: bool = False) -> Path:
    import torch

    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def tensors(state: dict[str, np.ndarray], prefix: str = "") -> dict:
    """A state_dict; names of one array are names of one tensor."""
    import torch

    made = {id(array): torch.from_numpy(array) for array in state.values()}
    return {prefix + name: made[id(array)] for name, array in state.items()}


@pytest.fixture
def little() -> dict[str, np.ndarray]:
    """Arrays of several kinds, two names of one among them."""
    weight = np.arange(6, dtype="float32").reshape(2, 3)
    return {"a.weight": weight, "b.weight": weight, "a.num_batches_tracked": np.zeros((), "int64")}


@needs_torch
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_every_form_of_the_file(little, tmp_path, legacy, prefix, wrap):
    content = tensors(little, prefix)
    path = save({wrap: content, "epoch": 3} if wrap else content, tmp_path / "x.pth", legacy=legacy)
    assert path.read_bytes().startswith(b"\x80\x02" if legacy else b"PK")
    found = read_state(path)
    assert list(found) == list(little)
    for name, array in found.items():
        assert array.dtype == little[name].dtype
        np.testing.assert_array_equal(array, little[name])


@needs_torch
def test_half_precision_becomes_float32(tmp_path):
    import torch

    half = {"a": torch.full((2,), 0.5, dtype=torch.bfloat16), "b": torch.ones(1, dtype=torch.float64)}
    path = save(half, tmp_path / "x")
    found = read_state(path)
    assert {name: array.dtype for name, array in found.items()} == {"a": np.float32, "b": np.float32}
    np.testing.assert_array_equal(found["a"], [0.5, 0.5])


@needs_torch
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_runs_none(tmp_path, legacy):
    import torch

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    path = save({"loc.0.weight": torch.zeros(1), "x": Harmful()}, tmp_path / "x.pth", legacy=legacy)
    refuse("holds more than tensors, or is damaged, and none of its code was run", path)
    assert not (tmp_path / "harm").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "harm").exists()  # the file would have run it


@needs_torch
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_that_was_cut_short(little, tmp_path, legacy, share):
    little["c.weight"] = np.zeros((50, 50), "float32")
    path = save(tensors(little), tmp_path / "x.pth", legacy=legacy)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    words = "x.pth (cannot be read as a PyTorch checkpoint|holds more than tensors, or is damaged)"
    refuse(words, path)


@needs_torch
def test_other_files_that_pytorch_reads(tmp_path):
    import torch

    for content, words in (
        (torch.zeros(3), "holds no table of tensors"),
        ({}, "holds no table of tensors"),
        ([torch.zeros(3)], "holds no table of tensors"),
        ({"epoch": 3, "loc": torch.zeros(3)}, "epoch is not a plain tensor"),
        ({"a": torch.zeros(3).to_sparse()}, "a is not a plain tensor"),
        (torch.nn.Linear(2, 2), "holds more than tensors"),
    ):
        refuse(words, save(content, tmp_path / "x.pth"))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("config.json", "{}")
    (tmp_path / "x.pth").write_bytes(archive.getvalue())
    refuse("cannot be read as a PyTorch checkpoint", tmp_path / "x.pth")


def test_without_pytorch_or_with_an_old_one(tmp_path, monkeypatch):
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04")
    monkeypatch.setitem(sys.modules, "torch", None)
    refuse("is read by PyTorch, which is not installed: pip install torch", tmp_path / "x.pth")
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__="2.5.1+cpu"))
    refuse(r"PyTorch 2\.5\.1\+cpu does not read files safely", tmp_path / "x.pth")
