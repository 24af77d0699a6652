"""keras-retinanet's files become our network with their numbers; damaged and hostile files are refused."""

import json

import h5py
import numpy as np
import pytest

from convert.keras_retinanet import CLASSIFICATION, Structure, load_keras_retinanet, open_checkpoint, settings_of
from models.keras_internals import all_layers
from oid.files import InputError
from tests.helpers.keras_retinanet_files import (
    TINY,
    expected_shapes,
    golden_retinanet,
    small_numbers,
    tiny_blocks,
    write_checkpoint,
)
from tests.helpers.project import refused, shared

KERNEL = "conv1/conv1/kernel:0"


@pytest.fixture
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        tiny_blocks(patch)
        yield TINY


def read(path) -> Structure:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.structure


@pytest.mark.parametrize("name", ["resnet50_c5", "resnet50_c443", "resnet101_c443", "resnet152_c443"])
def test_networks_have_the_tensors_of_the_published_files(name):
    description = json.loads(shared("golden", "retinanet", f"{name}.structure.json").read_text())
    published = {
        layer: [tuple(shape) for _, shape in entry["weights"]]
        for layer, entry in description["layers"].items()
        if entry["weights"]
    }
    assert expected_shapes(Structure(name.split("_")[0], description["num_classes"], "valid")) == published


@pytest.mark.parametrize(("backbone", "padding"), [("resnet50", "valid"), ("resnet101", "same"), ("resnet152", "same")])
def test_structure_and_settings_are_read_off_the_file(tmp_path, backbone, padding):
    structure = Structure(backbone, 7, padding)
    write_checkpoint(tmp_path / "x.h5", structure=structure, renumbered=padding == "same", optimizer=True)
    assert read(tmp_path / "x.h5") == structure
    settings = settings_of(structure, tmp_path / "x.h5")
    assert settings.any_shape
    assert (settings.network.backbone, settings.network.padding, settings.converted_from) == (backbone, padding, "x.h5")
    assert settings.network.clip == ("side" if padding == "valid" else "last_pixel")
    sides = (600, 800) if backbone == "resnet152" else (768, 1024)
    assert (settings.inputs.min_side, settings.inputs.max_side) == sides
    assert settings.names == list("0123456")


def test_published_files_of_coco_have_its_names_and_sides(tmp_path):
    settings = settings_of(Structure("resnet50", 80, "valid"), tmp_path / "x.h5")
    assert (settings.names[9], settings.labels[9]) == ("traffic light", "traffic_light")
    assert (settings.inputs.min_side, settings.inputs.max_side) == (800, 1333)


def test_network_has_the_numbers_of_the_file_as_float32(tiny, tmp_path):
    random, written = np.random.default_rng(0), {}

    def values(group, shape):
        array = small_numbers(group, shape, random).astype("float16" if group == "P6" else "float64")
        written.setdefault(group, []).append(array.astype("float32"))
        return array

    write_checkpoint(tmp_path / "x.h5", structure=tiny, values=values, renumbered=True)
    network, _ = load_keras_retinanet(tmp_path / "x.h5")
    layers = {layer.name: layer for layer in all_layers(network)}
    norm = layers["bn5a_branch2c"]
    for name, array in zip(("gamma", "beta", "moving_mean", "moving_variance"), written["bn5a_branch2c"], strict=True):
        np.testing.assert_array_equal(getattr(norm, name), array)
    np.testing.assert_array_equal(layers["P6"].kernel, written["P6"][0])
    np.testing.assert_array_equal(layers["classes_subnet2"].kernel, written[CLASSIFICATION][2])
    np.testing.assert_array_equal(layers["classes_output"].bias, written[CLASSIFICATION][-1])
    assert network.count_params() == sum(array.size for arrays in written.values() for array in arrays)


def test_files_with_weights_alone_are_read(tiny, tmp_path):
    write_checkpoint(tmp_path / "model.h5", structure=tiny)
    with h5py.File(tmp_path / "model.h5") as model, h5py.File(tmp_path / "x.h5", "w") as file:
        for name in model["model_weights"]:
            model.copy(f"model_weights/{name}", file)
        names = model["model_weights"].attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:20], names[20:]  # long lists are cut
    assert read(tmp_path / "x.h5") == tiny


@pytest.mark.slow
def test_published_number_of_parameters(tmp_path):
    path, _ = golden_retinanet(tmp_path, "resnet50_c443", kind="training", optimizer=True)
    assert load_keras_retinanet(path)[0].count_params() == 45_552_247


@pytest.mark.parametrize(
    ("name", "shapes", "words"),
    [
        ("res4a_branch2b", None, "lacks the layer res4a_branch2b, which keras-retinanet's network on resnet50 has"),
        ("P2", [(3, 3, 256, 256), (256,)], "has a layer P2, which keras-retinanet's network on resnet50 does not have"),
        ("P6", [(3, 3, 256, 256), (256,)], "P6, tensor 1: the shape is (3, 3, 256, 256), in keras-retinanet's network"),
        ("P6", [(3, 3, 2048, 256)], "P6, tensor 2: the shape is missing"),
        ("bn_conv1", [(64,)] * 3, "bn_conv1, tensor 4: the shape is missing"),
        (CLASSIFICATION, None, "lacks the layer classification_submodel: expected a keras-retinanet network"),
        (CLASSIFICATION, [(3, 3, 256, 26), (26,)], "does not have outputs for 9 anchors"),
        ("regression_submodel", [(3, 3, 256, 24), (24,)], "has 2.66667 outputs per anchor, expected 4"),
    ],
)
def test_first_different_tensor_is_named(tiny, tmp_path, name, shapes, words):
    def edit(groups):
        if shapes is None:
            del groups[name]
        else:
            groups[name] = shapes

    write_checkpoint(tmp_path / "x.h5", structure=tiny, edit=edit)
    with refused(words, str(tmp_path / "x.h5")):
        load_keras_retinanet(tmp_path / "x.h5")


def virtual(group):
    layout = h5py.VirtualLayout((7, 7, 3, 64), "float32")
    layout[...] = h5py.VirtualSource("other.h5", "x", (7, 7, 3, 64))
    group.create_virtual_dataset("kernel:0", layout)


def stored(**options):
    return lambda group: group.create_dataset("kernel:0", (7, 7, 3, 64), **options)


def linked(name, link):
    return lambda group: group.__setitem__(name, link)


def layer_names(names):
    return lambda file: file["model_weights"].attrs.__setitem__("layer_names", names)


ELSEWHERE = "has its numbers in another file"
PASSWORDS = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
DAMAGES = {  # case: the object of `model_weights` to delete, what takes its place in its group, the message
    "lost group": ("res3a_branch2a", None, "lacks res3a_branch2a in /model_weights"),
    "lost tensor": (
        "res3a_branch2a/res3a_branch2a/kernel:0",
        None,
        "lacks kernel:0 in /model_weights/res3a_branch2a/res3a_branch2a",
    ),
    "objects": (KERNEL, stored(dtype=h5py.special_dtype(vlen=bytes)), "kernel:0 is object: expected floating-point"),
    "integers": (KERNEL, stored(dtype="int64"), "kernel:0 is int64: expected floating-point numbers"),
    "other file": (
        KERNEL,
        linked("kernel:0", h5py.ExternalLink("/etc/passwd", "/x")),
        "kernel:0 is not a dataset of the file itself",
    ),
    "other bytes": (KERNEL, stored(dtype="float32", external=PASSWORDS), ELSEWHERE),
    "virtual": (KERNEL, virtual, ELSEWHERE),
    "no layer names": (None, lambda file: file["model_weights"].attrs.__delitem__("layer_names"), "holds no network"),
    "numbers as names": (None, layer_names(np.arange(3)), "lacks 0 in /model_weights"),
    "names that are no text": (None, layer_names(np.asarray([b"\xff\xfe"])), "is damaged"),
    "no group": ("", lambda file: file.__setitem__("model_weights", np.zeros(3)), "model_weights is not a group"),
    "group elsewhere": ("conv1", linked("conv1", h5py.SoftLink("/model_weights/P6")), "conv1 is not a group of the"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_and_hostile_tensors_are_refused(tiny, tmp_path, case):
    place, replace, words = DAMAGES[case]
    write_checkpoint(tmp_path / "x.h5", structure=tiny)
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        parent = file
        if place is not None:
            removed = file["model_weights"][place] if place else file["model_weights"]
            parent = removed.parent
            del file[removed.name]
        if replace:
            replace(parent)
    with refused(words):
        load_keras_retinanet(tmp_path / "x.h5")


@pytest.mark.parametrize("length", [8, 100, 0.5, 0.9])
def test_cut_off_files_are_refused(tiny, tmp_path, length):
    path = tmp_path / "x.h5"
    write_checkpoint(path, structure=tiny)
    content = path.read_bytes()
    path.write_bytes(content[: length if length > 1 else int(length * len(content))])
    with pytest.raises(InputError, match=r"x\.h5 (cannot be read as HDF5|is damaged).*download it again"):
        load_keras_retinanet(path)


def test_numbers_that_are_not_finite_are_refused(tiny, tmp_path):
    def values(group, shape):
        return np.full(shape, np.nan if group == "P3" else 0.0, "float32")

    write_checkpoint(tmp_path / "x.h5", structure=tiny, values=values)
    with refused("P3 has numbers that are not finite"):
        load_keras_retinanet(tmp_path / "x.h5")
