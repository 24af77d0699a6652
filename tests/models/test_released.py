"""The released variant equals the golden tensors and a second network in NumPy."""

import dataclasses
import math

import keras
import numpy as np
import pytest

from models import convert
from models.m2det import build_m2det
from models.released import Structure, aliases, layer_names, load_state, read_structure
from tests.helpers.project import refused
from tests.helpers.released_checkpoint import (
    MEAN_BGR,
    alias_of,
    golden,
    golden_description,
    random_state,
    reference_outputs,
    tensor_shapes,
)

TOLERANCE = 1e-4  # of a tensor's largest value: above float32's noise, below what every known mistake costs
SMALL = {"channels": 8, "tums": 2, "outputs": 4, "sfam": True}


def build(structure: Structure, image_size: int) -> keras.Model:
    sizes = dataclasses.asdict(structure)
    options = {"variant": "released", "head": "conv", "anchors_per_cell": 6, "preprocessing": "ssd"}
    return build_m2det(backbone="vgg16", num_classes=sizes.pop("outputs"), image_size=image_size, **sizes, **options)


def everything(network: keras.Model, structure: Structure, image: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs and intermediate tensors, NCHW, in the golden files' names, of a preprocessed picture `(1, 3, s, s)`."""
    tensors = {"loc": network.output["boxes"], "conf": network.output["classes"]}
    tensors["base_feature"] = network.get_layer("base_feature").output
    for k in range(structure.scales):
        for name, tum in (("tum1", 1), ("tum_last", structure.tums)):
            layer = f"tum{tum}_smooth{structure.scales - k}_relu" if k else f"tum{tum}_top_relu"
            tensors[f"{name}_{k}"] = network.get_layer(layer).output
        layer = f"sfam{k + 1}" if structure.sfam else f"scale{k + 1}"
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
    structure = read_structure(reference.state, variant)
    classes = {f"/m/{index}": str(index) for index in range(structure.outputs - 1)}
    settings = convert.released_settings(structure, classes, description["input_size"])
    network = convert.released_network(reference.state, structure, settings, variant)
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


@pytest.mark.parametrize("variant", ["vgg_small", "vgg_sfam_small"])
def test_the_numpy_network_equals_the_golden_tensors(variant):
    reference = golden(variant)
    config = reference.description["config"]
    found = reference_outputs(reference.state, reference.image[0], tums=config["num_levels"], sfam=config["sfam"])
    for name, stored in reference.description["outputs"].items():
        part = found[name][None][tuple(slice(None, None, step) for step in stored["strides"])]
        assert_close(part, reference.expected[name], name)


@pytest.mark.parametrize("variant", ["vgg_small", "vgg_sfam_small", "vgg_512_full"])
def test_names_and_shapes_are_the_released_ones(variant):
    description = golden_description(variant)
    config, tensors = description["config"], description["tensors"]
    shapes = tensor_shapes(
        channels=config["planes"], tums=config["num_levels"], outputs=config["num_classes"], sfam=config["sfam"]
    )
    assert list(shapes.items()) == [(name, tuple(tensor["shape"])) for name, tensor in tensors.items()]
    assert {name: alias_of(name) for name in shapes} == {n: t["alias_of"] or n for n, t in tensors.items()}


# === The same without them ===========================================================================================
@pytest.fixture(scope="module")
def small():
    """A network with random weights, their checkpoint, and its structure."""
    state = random_state(**SMALL)
    structure = read_structure(state, "small")
    network = build(structure, 272)
    load_state(network, state, structure, "small")
    return network, state, structure


def test_every_tensor_equals_the_numpy_network(small):
    """On a picture of bytes: red, green, blue become blue - 104, green - 117, red - 123."""
    network, state, structure = small
    picture = np.random.default_rng(1).integers(0, 256, (272, 272, 3)).astype("float32")
    red, green, blue = np.moveaxis(picture, -1, 0)
    image = np.stack([blue - 104, green - 117, red - 123])
    found = everything(network, structure, image[None])
    expected = reference_outputs(state, image, tums=2, sfam=True)
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert expected[name].std() > 0.01, name  # it is not all zero
        assert_close(tensor[0], expected[name], name)


def test_the_structure_is_read_off_the_tensors():
    shapes = {"channels": 16, "tums": 3, "outputs": 21}
    for sfam in (False, True):
        state = {n: np.empty(s, "float32") for n, s in tensor_shapes(**shapes, sfam=sfam).items()}
        assert read_structure(state, "file") == Structure(**shapes, scales=6, sfam=sfam)


def test_second_names_are_those_of_shared_modules(small):
    _, state, structure = small
    expected = {name: alias_of(name) for name in state if alias_of(name) != name}
    modules = {name.rpartition(".")[0]: first.rpartition(".")[0] for name, first in expected.items()}
    assert aliases(structure) == modules
    assert not set(layer_names(structure)) & set(modules)


def test_published_numbers_of_parameters():
    """At 320 pixels with 81 outputs; SFAM's two layers make the difference."""
    structure = Structure(channels=256, tums=8, scales=6, outputs=81, sfam=True)
    network = build(structure, 320)
    sizes = {layer.name: sum(math.prod(w.shape) for w in layer.trainable_weights) for layer in network.layers}
    assert sum(sizes.values()) == 133_159_604
    assert sum(sizes.values()) - sizes["sfam_reduce"] - sizes["sfam_excite"] == 132_633_140


# === Checkpoints that are refused ====================================================================================
def changed(state: dict, changes: dict[str, np.ndarray | None]) -> dict:
    """A copy with other tensors; None removes one."""
    return {name: value for name, value in (state | changes).items() if value is not None}


WRONG = {  # what is wrong: (the tensor, its new value, what the sentence says)
    "missing": ("unet2.smooth.3.bn.bias", None, "unet2.smooth.3.bn.bias of shape (8) is missing"),
    "missing in the backbone": ("base.31.weight", None, "base.31.weight of shape (1024, 512, 3, 3) is missing"),
    "missing second name": ("leach.1.conv.weight", None, "leach.1.conv.weight of shape (4, 768, 1, 1) is missing"),
    "one too many": ("extra.weight", np.zeros(3, "float32"), "extra.weight is unexpected"),
    "a layer too many": ("unet1.smooth.5.conv.weight", np.zeros(3), "unet1.smooth.5.conv.weight is unexpected"),
    "kernel": ("reduce.conv.weight", np.zeros((256, 512, 1, 1)), "(256, 512, 1, 1), expected (256, 512, 3, 3)"),
    "norm": ("Norm.weight", np.zeros(2048), "Norm.weight has shape (2048), expected (16)"),
    "Keras' layout": ("base.0.weight", np.zeros((3, 3, 3, 64)), "base.0.weight has shape (3, 3, 3, 64), expected"),
    "second name": ("leach.1.bn.weight", np.ones(4), "leach.1.bn.weight and leach.0.bn.weight differ"),
    "SFAM": ("sfam_module.fc2.5.bias", np.ones(16), "sfam_module.fc2.5.bias and sfam_module.fc2.0.bias differ"),
    "not finite": ("loc.3.bias", np.full(24, np.nan), "loc.3.bias holds other values than finite"),
    "whole numbers": ("conf.0.bias", np.zeros(24, int), "conf.0.bias holds other values than finite"),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_first_difference_is_named(small, case):
    network, state, structure = small
    name, value, words = WRONG[case]
    before = network.get_layer("tum1_top_conv").get_weights()
    other = state | {"unet1.toplayer.0.conv.weight": np.zeros_like(state["unet1.toplayer.0.conv.weight"])}
    with refused("some.pth: ", words):
        load_state(network, changed(other, {name: value}), structure, "some.pth")
    for a, b in zip(before, network.get_layer("tum1_top_conv").get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_first_of_several_differences_is_named_and_old_checkpoints_count_no_batches(small):
    network, state, structure = small
    two = changed(state, {"conf.2.bias": None, "base.33.bias": None, "more": np.zeros(1)})
    with refused("base.33.bias"):
        load_state(network, two, structure, "some.pth")
    load_state(network, {n: a for n, a in state.items() if "num_batches" not in n}, structure, "old.pth")


NO_M2DET = {  # what it is: (the tensor, its new value, what the sentence says)
    "one anchor": ("loc.0.weight", np.zeros((4, 16, 3, 3)), "have 4 and 24 outputs, expected 4 and"),
    "uneven classes": ("conf.0.weight", np.zeros((25, 16, 3, 3)), "have 24 and 25 outputs"),
    "background only": ("conf.0.weight", np.zeros((6, 16, 3, 3)), "no class beside the background"),
    "five scales": ("loc.5.weight", None, "has 5 scales"),
    "a vector": ("unet1.toplayer.0.conv.weight", np.zeros(8), "has shape (8)"),
    "nothing": (None, {}, "no checkpoint of the released M2Det: unet1.toplayer.0.conv.weight is missing (there is"),
    "another network": (None, {"features.0.weight": np.zeros(1)}, "is missing (the first is features.0.weight)"),
    "ResNet": (None, {"base.conv1.weight": np.zeros(1)}, "has a ResNet as its backbone (base.conv1.weight)"),
}


@pytest.mark.parametrize("case", NO_M2DET)
def test_other_networks_are_refused(small, case):
    name, value, words = NO_M2DET[case]
    with refused("some.pth", words):
        read_structure(changed(small[1], {name: value}) if name else value, "some.pth")
