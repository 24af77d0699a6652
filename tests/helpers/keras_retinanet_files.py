"""HDF5 files as Keras wrote keras-retinanet's networks, with the reference material and without it."""

import functools

import h5py
import numpy as np
import pytest

from convert.keras_retinanet import CLASSIFICATION, REGRESSION, Structure, groups_of
from models.keras_retinanet import BLOCKS, build_keras_retinanet
from tests.helpers.project import shared

WEIGHTLESS = ["input_1", "padding_conv1", "conv1_relu", "pool1", "res2a", "P5_upsampled", "regression"]
HEADS = {REGRESSION: "pyramid_regression", CLASSIFICATION: "pyramid_classification"}
TINY = Structure("resnet50", 2, "valid")  # one block per stage, inside `tiny_blocks`


def tiny_blocks(patch: pytest.MonkeyPatch) -> None:
    """ResNet50 has one block per stage until the patch is undone: networks build in a second."""
    patch.setitem(BLOCKS, "resnet50", (1, 1, 1, 1))


def golden_retinanet(folder, name, **options):
    """The file of a network of ../shared/golden/retinanet, written to `folder`, and keras-retinanet's answers."""
    directory = shared("golden", "retinanet")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(directory))
        import weights_from_names
    weights_from_names.write_h5(str(folder / f"{name}.h5"), str(directory / f"{name}.structure.json"), **options)
    return folder / f"{name}.h5", np.load(directory / f"{name}.npz")


def check_detections(found, answers, prefix=""):
    """The same detections as a set: each one of the reference's has its own partner."""
    boxes, scores, labels = found
    height, width = answers[f"{prefix}image"].shape[:2]
    boxes = boxes * (width, height, width, height)
    real = answers[f"{prefix}labels"] >= 0
    expected = [answers[f"{prefix}{name}"][real] for name in ("boxes", "scores", "labels")]
    assert len(scores) == len(expected[1])
    near = (labels[:, None] == expected[2]) & (abs(scores[:, None] - expected[1]) < 1e-4)
    near &= abs(boxes[:, None] - expected[0]).max(-1) < 1e-2
    assert near.any(0).all()
    assert near.any(1).all()


@functools.cache
def _shapes(structure: Structure, blocks: tuple[int, ...]) -> dict[str, list[tuple[int, ...]]]:
    del blocks  # of the backbone as it is now
    network = build_keras_retinanet(backbone=structure.backbone, num_classes=structure.num_classes)
    return {
        group: [tuple(weight.shape) for layer in layers for weight in layer.weights]
        for group, layers in groups_of(network).items()
    }


def expected_shapes(structure: Structure) -> dict[str, list[tuple[int, ...]]]:
    """The shapes of the tensors of each layer with weights, or group of layers."""
    return dict(_shapes(structure, BLOCKS[structure.backbone]))


def small_numbers(group: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Weights whose activations keep their size, with scores and boxes that say something."""
    array = random.normal(size=shape).astype("float32")
    if group.startswith("bn"):
        return abs(array) + 0.5
    is_output = shape[-1] in (18, 36)
    return array * (0.05 if len(shape) == 1 else (0.002 if is_output else 1) * (2 / np.prod(shape[:-1])) ** 0.5)


def weight_names(group: str, count: int) -> list[str]:
    """As Keras names the tensors of a layer, or of a head."""
    if group in HEADS:
        layers = [*(f"{HEADS[group]}_{k}" for k in range(count // 2 - 1)), HEADS[group]]
        return [f"{layer}/{kind}:0" for layer in layers for kind in ("kernel", "bias")]
    kinds = ("gamma", "beta", "moving_mean", "moving_variance") if group.startswith("bn") else ("kernel", "bias")
    return [f"{group}/{kind}:0" for kind in kinds[:count]]


def write_checkpoint(path, *, structure: Structure, values=None, renumbered=False, optimizer=False, edit=None):
    """Writes a file.

    Args:
        path: of the file.
        structure: of the network; its padding says whether `padding_conv1` is among the layers.
        values: function of a group and a shape, an array; None = nothing is stored, which reads as zeros.
        renumbered: names of weights as in a process that had built the network before.
        optimizer: with the state of one.
        edit: function of the dict {group: shapes} in the file's order, to change it before it is written.
    """
    groups = expected_shapes(structure)
    groups |= {name: [] for name in WEIGHTLESS if name != "padding_conv1" or structure.padding == "valid"}
    if edit:
        edit(groups)
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = b"2.3.1"
        file.attrs["model_config"] = b'{"class_name": "Model"}'
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = np.asarray([name.encode() for name in reversed(groups)])
        for group, shapes in groups.items():
            names = weight_names(group, len(shapes))
            if renumbered:
                names = [name.replace("/", "_1/") for name in names]
            folder = root.create_group(group)
            for name, shape in zip(names, shapes, strict=True):
                data = {"data": values(group, shape)} if values else {"shape": shape, "dtype": "float32"}
                folder.create_dataset(name, **data)
            folder.attrs["weight_names"] = np.asarray([name.encode() for name in names])  # float64 where empty
        if optimizer:
            file.attrs["training_config"] = b"{}"
            state = file.create_group("optimizer_weights")
            state.create_dataset("training/Adam/m_0:0", shape=(7, 7, 3, 64), dtype="float32")
            state.attrs["weight_names"] = np.asarray([b"training/Adam/m_0:0"])
