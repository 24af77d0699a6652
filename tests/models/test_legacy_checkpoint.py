"""Reads the structure of keras-retinanet's files; refuses damaged and hostile files in one sentence."""

import json

import h5py
import numpy as np
import pytest

from models.legacy_checkpoint import (
    CLASSIFICATION,
    LegacyStructure,
    expected_tensors,
    open_legacy_checkpoint,
)
from oid.files import InputError
from tests.helpers.legacy_checkpoint_files import write_checkpoint
from tests.helpers.project import refused, shared

STRUCTURE = LegacyStructure(50, 3, "explicit")
KERNEL = "conv1/conv1/kernel:0"


def read(path) -> LegacyStructure:
    with open_legacy_checkpoint(path) as checkpoint:
        return checkpoint.structure


@pytest.mark.parametrize("layers", [50, 101, 152])
@pytest.mark.parametrize("padding", ["explicit", "same"])
def test_the_structure_is_read_off_the_file(tmp_path, layers, padding):
    structure = LegacyStructure(layers, 7 * layers, padding)
    write_checkpoint(tmp_path / "x.h5", structure=structure, renumbered=padding == "same", optimizer=True)
    assert read(tmp_path / "x.h5") == structure


@pytest.mark.parametrize(("layers", "parameters"), [(50, 45_552_247), (101, 64_596_599), (152, 80_286_327)])
def test_parameters_of_443_classes(layers, parameters):
    groups = expected_tensors(LegacyStructure(layers, 443, "same"))
    assert sum(int(np.prod(shape)) for shapes in groups.values() for shape in shapes) == parameters


@pytest.mark.parametrize("name", ["resnet50_c5", "resnet50_c443", "resnet101_c443", "resnet152_c443"])
def test_the_published_structures(name):
    structure = json.loads(shared("golden", "retinanet", f"{name}.structure.json").read_text())
    published = {
        layer: [tuple(shape) for _, shape in entry["weights"]]
        for layer, entry in structure["layers"].items()
        if entry["weights"]
    }
    layers = int(name.split("_")[0].removeprefix("resnet"))
    assert expected_tensors(LegacyStructure(layers, structure["num_classes"], "explicit")) == published


def test_arrays_come_by_position_as_float32(tmp_path):
    def values(group, shape):
        return np.full(shape, len(group), "float16" if group == "P6" else "float64")

    write_checkpoint(tmp_path / "x.h5", structure=STRUCTURE, values=values, renumbered=True)
    with open_legacy_checkpoint(tmp_path / "x.h5") as checkpoint:
        for group, arrays in checkpoint.tensors():
            assert [a.shape for a in arrays] == expected_tensors(STRUCTURE)[group]
            assert all(a.dtype == np.float32 and (a == len(group)).all() for a in arrays)


def test_weights_without_a_model_around_them(tmp_path):
    write_checkpoint(tmp_path / "model.h5", structure=STRUCTURE)
    with h5py.File(tmp_path / "model.h5") as model, h5py.File(tmp_path / "x.h5", "w") as file:
        for name in model["model_weights"]:
            model.copy(f"model_weights/{name}", file)
        names = model["model_weights"].attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:50], names[50:]  # long lists are cut
    assert read(tmp_path / "x.h5") == STRUCTURE


@pytest.mark.parametrize(
    ("name", "shapes", "words"),
    [
        ("res4c_branch2b", None, "lacks the layer res4c_branch2b, which keras-retinanet's network on ResNet50 has"),
        ("P2", [(3, 3, 256, 256), (256,)], "has a layer P2, which is not in keras-retinanet's network on ResNet50"),
        ("P6", [(3, 3, 256, 256), (256,)], "P6, tensor 1: the shape is (3, 3, 256, 256), (3, 3, 2048, 256) in"),
        ("P6", [(3, 3, 2048, 256)], "P6, tensor 2: the shape is none, (256,) in"),
        ("bn_conv1", [(64,)] * 3, "bn_conv1, tensor 4: the shape is none, (64,) in"),
        (CLASSIFICATION, None, "lacks the layer classification_submodel: expected a keras-retinanet network"),
        (CLASSIFICATION, [(3, 3, 256, 26), (26,)], "the shape (26,): expected 9 anchors' classes"),
        ("regression_submodel", [(3, 3, 256, 24), (24,)], "the shape (24,): expected 9 anchors' boxes"),
    ],
)
def test_the_first_different_tensor_is_named(tmp_path, name, shapes, words):
    def edit(groups):
        if shapes is None:
            del groups[name]
        else:
            groups[name] = shapes

    write_checkpoint(tmp_path / "x.h5", structure=STRUCTURE, edit=edit)
    with refused(words, str(tmp_path / "x.h5")):
        read(tmp_path / "x.h5")


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


OUTSIDE = "is no tensor of the file itself"
PASSWORDS = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
DAMAGES = {  # case: the object of `model_weights` to delete, what takes its place in its group, the message
    "lost group": ("res3a_branch2a", None, "lacks the group res3a_branch2a"),
    "lost tensor": ("res3a_branch2a/res3a_branch2a/kernel:0", None, "res3a_branch2a lacks its tensor"),
    "objects": (KERNEL, stored(dtype=h5py.special_dtype(vlen=bytes)), "kernel:0 is object: expected floating-point"),
    "integers": (KERNEL, stored(dtype="int64"), "kernel:0 is int64: expected floating-point numbers"),
    "other file": (KERNEL, linked("kernel:0", h5py.ExternalLink("/etc/passwd", "/x")), OUTSIDE),
    "other bytes": (KERNEL, stored(dtype="float32", external=PASSWORDS), OUTSIDE),
    "virtual": (KERNEL, virtual, OUTSIDE),
    "no layer names": (None, lambda file: file["model_weights"].attrs.__delitem__("layer_names"), "holds no network"),
    "numbers as names": (None, layer_names(np.arange(3)), "lacks the group 0"),
    "names that are no text": (None, layer_names(np.asarray([b"\xff\xfe"])), "is damaged"),
    "no group": ("", lambda file: file.__setitem__("model_weights", np.zeros(3)), "model_weights is no group"),
    "group elsewhere": ("conv1", linked("conv1", h5py.SoftLink("/model_weights/P6")), "conv1 is no group of the file"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_and_hostile_tensors(tmp_path, case):
    place, replace, words = DAMAGES[case]
    write_checkpoint(tmp_path / "x.h5", structure=STRUCTURE)
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        parent = file
        if place is not None:
            removed = file["model_weights"][place] if place else file["model_weights"]
            parent = removed.parent
            del file[removed.name]
        if replace:
            replace(parent)
    with refused(words):
        read(tmp_path / "x.h5")


@pytest.mark.parametrize("length", [8, 100, 0.5, 0.9])
def test_cut_off_files(tmp_path, length):
    path = tmp_path / "x.h5"
    write_checkpoint(path, structure=STRUCTURE)
    content = path.read_bytes()
    path.write_bytes(content[: length if length > 1 else int(length * len(content))])
    with pytest.raises(InputError, match=r"x\.h5 (cannot be read as HDF5|is damaged).*download it again"):
        read(path)


def test_numbers_that_are_not_finite(tmp_path):
    def values(group, shape):
        return np.full(shape, np.nan if group == "P3" else 0.0, "float32")

    write_checkpoint(tmp_path / "x.h5", structure=STRUCTURE, values=values)
    with refused("P3 has numbers that are not finite"), open_legacy_checkpoint(tmp_path / "x.h5") as checkpoint:
        list(checkpoint.tensors())
