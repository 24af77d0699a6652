"""Reads the HDF5 files of keras-retinanet's networks on ResNet, which Keras wrote from 2018 to 2023.

A file is as trained, with or without the optimizer's state, or converted for inference. Nothing in it becomes an
object: read are the names of layers, and arrays of floating-point numbers of known shapes. The names of layers are
stable, those of weights are not.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import h5py
import keras
import numpy as np

from convert.classes import COCO_NAMES, classes_of_outputs
from models.detector import build_network
from models.keras_internals import all_layers
from models.keras_retinanet import ANCHORS_PER_CELL, BLOCKS, CHANNELS, HEAD_LAYERS, SCALES, block_names
from models.run_settings import InputSettings, NetworkSettings, RunSettings
from oid.files import InputError

PADDING_LAYER = "padding_conv1"  # of keras-resnet 0.1.0; it has no weights
REGRESSION, CLASSIFICATION = "regression_submodel", "classification_submodel"  # groups of several layers
HEADS = {REGRESSION: "boxes", CLASSIFICATION: "classes"}
UNCHANGED = "give an unchanged file"
COCO_SIDES = 800, 1333  # shorter and longer side at most, the defaults of keras-retinanet
LEAST_SIDE = 32
OPEN_IMAGES_SIDES = {"resnet50": (768, 1024), "resnet101": (768, 1024), "resnet152": (600, 800)}


@dataclasses.dataclass(frozen=True)
class Structure:
    """What differs between networks; see `models.keras_retinanet.build_keras_retinanet`."""

    backbone: str
    num_classes: int
    padding: Literal["same", "valid"]


def load_keras_retinanet(
    path: Path, classes: str | Path | None = None, min_side: int | None = None, max_side: int | None = None
) -> tuple[keras.Model, RunSettings]:
    """Builds the network of a file with its weights.

    Args:
        path: of the file.
        classes: see `convert.classes.classes_of_outputs`.
        min_side, max_side: sides of the images that the network sees, in pixels; None = as published.

    Raises:
        InputError: the file is damaged, or is not of such a network; names the first layer or tensor that differs.
    """
    with open_checkpoint(path) as checkpoint:
        settings = settings_of(checkpoint.structure, path, classes, min_side, max_side)
        network = build_network(settings)
        checkpoint.load_into(network)
    return network, settings


def settings_of(
    structure: Structure,
    path: Path,
    classes: str | Path | None = None,
    min_side: int | None = None,
    max_side: int | None = None,
) -> RunSettings:
    """The settings of a run of a published network; arguments as of `load_keras_retinanet`."""
    published = COCO_SIDES if structure.num_classes == len(COCO_NAMES) else OPEN_IMAGES_SIDES[structure.backbone]
    sides = min_side or published[0], max_side or published[1]
    if not LEAST_SIDE <= sides[0] <= sides[1]:
        raise InputError(f"min_side {sides[0]} and max_side {sides[1]}: give at least {LEAST_SIDE}, the larger last")
    network = NetworkSettings(
        detector="keras_retinanet",
        backbone=structure.backbone,
        image_size=None,
        scales=SCALES,
        channels=CHANNELS,
        head="shared",
        normalisation="caffe",
        padding=structure.padding,
        clip="side" if structure.padding == "valid" else "last_pixel",  # both changed at about the same time
    )
    return RunSettings(
        network=network,
        inputs=InputSettings("sides", "linear", min_side=sides[0], max_side=sides[1]),
        classes=classes_of_outputs(structure.num_classes, path, classes),
        anchors=None,
        box_deltas="corners",
        converted_from=path.name,
    )


@contextlib.contextmanager
def open_checkpoint(path: Path) -> Iterator["Checkpoint"]:
    """Opens a file to read from it.

    Raises:
        InputError: it is damaged, or is not of a network of this kind.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path} cannot be read as HDF5, it is damaged or cut off: download it again") from error
    with file:
        try:
            checkpoint = Checkpoint(path, file)
        except (OSError, RuntimeError, KeyError, ValueError) as error:  # what h5py raises for damaged parts
            reason = " ".join(str(error).split())[:100]
            raise InputError(f"{path} is damaged ({reason}): download it again") from error
        yield checkpoint


class Checkpoint:
    """An open file.

    Args:
        path: of the file, for errors.
        file: the same, open.

    Attributes:
        structure: of its network.

    Raises:
        InputError: it holds no network, or one of another kind.
    """

    def __init__(self, path: Path, file: h5py.File):
        self.path = path
        self._root = (
            self._member(file, "model_weights", h5py.Group) if "model_weights" in file else file
        )  # weights alone have none
        names = _texts(self._root.attrs, "layer_names")
        if not names:
            raise InputError(f"{path} holds no network: it has no model_weights with layer_names, as Keras writes them")
        self._tensors = {name: self._tensors_of(name) for name in names}
        self.structure = self._read_structure()

    def _tensors_of(self, layer: str) -> list[h5py.Dataset]:
        names = _texts(self._member(self._root, layer, h5py.Group).attrs, "weight_names")
        return [self._tensor(layer, name) for name in names]

    def _read_structure(self) -> Structure:
        blocks = {name for name in self._tensors if name.startswith("res") and name.endswith("_branch2a")}
        expected = {b: {f"res{name}_branch2a" for stage in block_names(b) for name in stage} for b in BLOCKS}
        backbone = min(BLOCKS, key=lambda name: len(blocks ^ expected[name]))
        outputs = {group: self._outputs_per_anchor(group) for group in HEADS}
        if outputs[REGRESSION] != 4:
            raise InputError(f"{self.path}: {REGRESSION} has {outputs[REGRESSION]:g} outputs per anchor, expected 4")
        if outputs[CLASSIFICATION] < 1 or outputs[CLASSIFICATION] % 1:
            raise InputError(f"{self.path}: {CLASSIFICATION} does not have outputs for {ANCHORS_PER_CELL} anchors")
        padding = "valid" if PADDING_LAYER in self._tensors else "same"
        return Structure(backbone, int(outputs[CLASSIFICATION]), padding)

    def _outputs_per_anchor(self, group: str) -> float:
        if not self._tensors.get(group):
            raise InputError(f"{self.path} lacks the layer {group}: expected a keras-retinanet network on ResNet")
        return self._tensors[group][-1].size / ANCHORS_PER_CELL

    def load_into(self, network: keras.Model) -> None:
        """Copies the weights, one tensor in memory at a time, after a check of all names and shapes.

        Raises:
            InputError: a layer or a shape differs from the network's; numbers cannot be read, or are not finite. The
                network may have some of the weights then.
        """
        groups = groups_of(network)
        for group, layers in groups.items():
            self._check_shapes(group, [tuple(weight.shape) for layer in layers for weight in layer.weights])
        for group, tensors in self._tensors.items():
            if tensors and group not in groups:
                raise InputError(f"{self.path} has a layer {group}, which {self._network} does not have: {UNCHANGED}")
        for group, layers in groups.items():
            arrays = self._arrays(group)
            for layer in layers:
                layer.set_weights([next(arrays) for _ in layer.weights])

    @property
    def _network(self) -> str:
        return f"keras-retinanet's network on {self.structure.backbone}"

    def _check_shapes(self, group: str, expected: list[tuple[int, ...]]) -> None:
        if group not in self._tensors:
            raise InputError(f"{self.path} lacks the layer {group}, which {self._network} has: {UNCHANGED}")
        found = [tensor.shape for tensor in self._tensors[group]]
        for k in range(max(len(found), len(expected))):
            has, must = (str(shapes[k]) if k < len(shapes) else "missing" for shapes in (found, expected))
            if has != must:
                raise InputError(
                    f"{self.path}: {group}, tensor {k + 1}: the shape is {has}, in {self._network} {must}: {UNCHANGED}"
                )

    def _arrays(self, group: str) -> Iterator[np.ndarray]:
        for tensor in self._tensors[group]:
            try:
                array = tensor[()].astype("float32", copy=False)
            except (OSError, ValueError, RuntimeError) as error:
                raise InputError(f"{self.path}: {group} cannot be read: download it again") from error
            if not np.isfinite(array).all():
                raise InputError(f"{self.path}: {group} has numbers that are not finite: the file is damaged")
            yield array

    def _tensor(self, layer: str, name: str) -> h5py.Dataset:
        """A dataset of floating-point numbers, stored in the file itself."""
        *folders, last = [part for part in name.split("/") if part]
        group = self._member(self._root, layer, h5py.Group)
        for folder in folders:
            group = self._member(group, folder, h5py.Group)
        dataset = self._member(group, last, h5py.Dataset)
        if dataset.external or dataset.is_virtual:
            raise InputError(f"{self.path}: {dataset.name} has its numbers in another file: only this file is read")
        if dataset.dtype.kind != "f":
            raise InputError(f"{self.path}: {dataset.name} is {dataset.dtype}: expected floating-point numbers")
        return dataset

    def _member(self, parent: h5py.Group, name: str, kind: type):
        """A group or dataset that is not a link to another place."""
        link = parent.get(name, getlink=True)
        if link is None:
            raise InputError(f"{self.path} lacks {name} in {parent.name}: it is incomplete, download it again")
        if not isinstance(link, h5py.HardLink) or not isinstance(parent[name], kind):
            raise InputError(f"{self.path}: {name} is not a {kind.__name__.lower()} of the file itself")
        return parent[name]


def groups_of(network: keras.Model) -> dict[str, list[keras.layers.Layer]]:
    """The layers with weights of `build_keras_retinanet`, by the group of the file that has their tensors."""
    layers = {layer.name: layer for layer in all_layers(network) if layer.weights}
    heads = {group: [layers.pop(f"{output}_{name}") for name in HEAD_LAYERS] for group, output in HEADS.items()}
    return {name: [layer] for name, layer in layers.items()} | heads


def _texts(attributes: h5py.AttributeManager, name: str) -> list[str]:
    """A list of names; [] if it is missing. Keras cuts long ones into parts `name0`, `name1`, ..."""
    parts = [name] if name in attributes else []
    while name not in attributes and f"{name}{len(parts)}" in attributes:
        parts.append(f"{name}{len(parts)}")
    values = [value for part in parts for value in np.ravel(attributes[part])]
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values]
