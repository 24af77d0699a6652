"""Reading the HDF5 files of keras-retinanet's networks on ResNet: the layers that they must have, and their tensors.

Keras of 2018 to 2023 wrote them, as trained (`*.h5`, with the optimizer's state) or converted for inference. Nothing in
them is turned into objects: what is read is the list of layers, and arrays of floating-point numbers whose shapes are
known before. Names of weights are not stable, names of layers are.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from oid.files import InputError

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # of ResNet's four stages
ANCHORS_PER_CELL = 9
CHANNELS = 256  # of the pyramid and of the heads
HEAD_DEPTH = 4  # convolutions of a head before its output
EXPLICIT_PADDING = "padding_conv1"  # a layer without weights of keras-resnet 0.1.0
REGRESSION, CLASSIFICATION = "regression_submodel", "classification_submodel"  # groups of several layers


@dataclasses.dataclass(frozen=True)
class LegacyStructure:
    """What tells one such network from another.

    Attributes:
        layers: of ResNet: 50, 101 or 152.
        num_classes: class outputs per anchor.
        padding: of the first convolution, "explicit" (three pixels on every side) or "same" (of an even side, two
            before and three after): keras-resnet 0.1.0 and 0.2.0.
    """

    layers: int
    num_classes: int
    padding: str


def block_names(layers: int) -> list[list[str]]:
    """Names of ResNet's blocks, "2a" to "5c", stage by stage, as keras-resnet counts them."""
    names = []
    for stage, count in enumerate(BLOCKS[layers], start=2):
        numbered = layers > 50 and stage in (3, 4)
        names.append([f"{stage}{f'b{k}' if numbered and k else chr(ord('a') + k)}" for k in range(count)])
    return names


def expected_tensors(structure: LegacyStructure) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of the tensors of each group, in their order; kernels are height, width, in, out."""
    groups = {"conv1": [(7, 7, 3, 64)], "bn_conv1": [(64,)] * 4}
    inputs = 64
    for stage, blocks in enumerate(block_names(structure.layers)):
        narrow, wide = 64 * 2**stage, 256 * 2**stage
        for index, block in enumerate(blocks):
            branches = {"2a": (1, 1, inputs, narrow), "2b": (3, 3, narrow, narrow), "2c": (1, 1, narrow, wide)}
            if index == 0:
                branches["1"] = (1, 1, inputs, wide)
            for branch, shape in branches.items():
                groups[f"res{block}_branch{branch}"] = [shape]
                groups[f"bn{block}_branch{branch}"] = [shape[-1:]] * 4
            inputs = wide
    for level, channels in ((5, 2048), (4, 1024), (3, 512)):
        groups[f"C{level}_reduced"] = _convolution(1, channels, CHANNELS)
        groups[f"P{level}"] = _convolution(3, CHANNELS, CHANNELS)
    groups["P6"] = _convolution(3, 2048, CHANNELS)
    groups["P7"] = _convolution(3, CHANNELS, CHANNELS)
    inner = _convolution(3, CHANNELS, CHANNELS) * HEAD_DEPTH
    groups[REGRESSION] = inner + _convolution(3, CHANNELS, ANCHORS_PER_CELL * 4)
    groups[CLASSIFICATION] = inner + _convolution(3, CHANNELS, ANCHORS_PER_CELL * structure.num_classes)
    return groups


def _convolution(side: int, inputs: int, outputs: int) -> list[tuple[int, ...]]:
    return [(side, side, inputs, outputs), (outputs,)]


class LegacyCheckpoint:
    """An open file.

    Args:
        path: of the file, for errors.
        file: the `h5py.File`.

    Raises:
        InputError: it holds no network, or none of this kind; names the first layer or tensor that differs.
    """

    def __init__(self, path: Path, file):
        import h5py

        self.path = path
        self._h5py = h5py
        self._root = self._group(file, "model_weights") if "model_weights" in file else file  # weights alone have none
        names = _texts(self._root.attrs, "layer_names")
        if not names:
            raise InputError(f"{path} holds no network: it has no model_weights with layer_names, as Keras writes them")
        self._tensors = {name: self._names(name) for name in names}
        self.structure = self._structure()
        self._check()

    def tensors(self) -> Iterator[tuple[str, list[np.ndarray]]]:
        """Name and float32 arrays of each layer or group, one after the other.

        Raises:
            InputError: numbers that cannot be read, or are not finite.
        """
        for name, shapes in expected_tensors(self.structure).items():
            arrays = []
            for weight in self._tensors[name]:
                try:
                    array = self._dataset(name, weight)[()].astype("float32", copy=False)
                except (OSError, ValueError, RuntimeError) as error:
                    raise InputError(f"{self.path}: {name} cannot be read: download it again") from error
                if not np.isfinite(array).all():
                    raise InputError(f"{self.path}: {name} has numbers that are not finite: the file is damaged")
                arrays.append(array)
            assert [array.shape for array in arrays] == shapes
            yield name, arrays

    def _structure(self) -> LegacyStructure:
        """Of the three networks the one whose layers the file has most of."""
        found = {name for name, weights in self._tensors.items() if weights}
        layers = max(BLOCKS, key=lambda n: -len(found ^ set(expected_tensors(LegacyStructure(n, 1, "same")))))
        for group, outputs in ((CLASSIFICATION, None), (REGRESSION, ANCHORS_PER_CELL * 4)):
            if not self._tensors.get(group):
                raise InputError(f"{self.path} lacks the layer {group}: expected a keras-retinanet network on ResNet")
            (size, *rest) = self._dataset(group, self._tensors[group][-1]).shape or (0,)
            if rest or not size or size % ANCHORS_PER_CELL or outputs not in (None, size):
                raise InputError(
                    f"{self.path}: the last tensor of {group} has the shape {(size, *rest)}: expected "
                    f"{ANCHORS_PER_CELL} anchors' {'classes' if outputs is None else 'boxes'}"
                )
            if outputs is None:
                num_classes = size // ANCHORS_PER_CELL
        padding = "explicit" if EXPLICIT_PADDING in self._tensors else "same"
        return LegacyStructure(layers, num_classes, padding)

    def _check(self) -> None:
        """Compares names and shapes with what they must be."""
        expected = expected_tensors(self.structure)
        name = f"keras-retinanet's network on ResNet{self.structure.layers}"
        for group, shapes in expected.items():
            if group not in self._tensors:
                raise InputError(f"{self.path} lacks the layer {group}, which {name} has: give an unchanged file")
            got = [self._dataset(group, weight).shape for weight in self._tensors[group]]
            if got != shapes:
                pairs = zip(got, shapes, strict=False)
                first = next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(got), len(shapes)))
                has, must = (f"{x[first]}" if first < len(x) else "none" for x in (got, shapes))
                raise InputError(
                    f"{self.path}: {group}, tensor {first + 1}: the shape is {has}, {must} in {name}: give an "
                    "unchanged file"
                )
        for group, weights in self._tensors.items():
            if weights and group not in expected:
                raise InputError(f"{self.path} has a layer {group}, which is not in {name}: give an unchanged file")

    def _names(self, layer: str) -> list[str]:
        return _texts(self._group(self._root, layer).attrs, "weight_names")

    def _group(self, parent, name: str):
        link = parent.get(name, getlink=True)
        if link is None:
            raise InputError(f"{self.path} lacks the group {name}: it is incomplete, download it again")
        if not isinstance(link, self._h5py.HardLink) or not isinstance(parent[name], self._h5py.Group):
            raise InputError(f"{self.path}: {name} is no group of the file itself: only such are read")
        return parent[name]

    def _dataset(self, layer: str, name: str):
        """A dataset of floating-point numbers, stored in the file itself."""
        *folders, last = [part for part in name.split("/") if part]
        group = self._group(self._root, layer)
        for folder in folders:
            group = self._group(group, folder)
        link = group.get(last, getlink=True)
        if link is None:
            raise InputError(f"{self.path}: {layer} lacks its tensor {name}: it is incomplete, download it again")
        dataset = group[last] if isinstance(link, self._h5py.HardLink) else None
        if not isinstance(dataset, self._h5py.Dataset) or dataset.external or dataset.is_virtual:
            raise InputError(f"{self.path}: {layer}: {name} is no tensor of the file itself: only such are read")
        if dataset.dtype.kind != "f":
            raise InputError(f"{self.path}: {layer}: {name} is {dataset.dtype}: expected floating-point numbers")
        return dataset


@contextlib.contextmanager
def open_legacy_checkpoint(path: Path) -> Iterator[LegacyCheckpoint]:
    """Opens a file to read from it.

    Raises:
        InputError: it is damaged, or is not of a network of this kind.
    """
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path} cannot be read as HDF5, it is damaged or cut off: download it again") from error
    with file:
        try:
            checkpoint = LegacyCheckpoint(path, file)
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:100]
            raise InputError(f"{path} is damaged ({reason}): download it again") from error
        yield checkpoint


def _texts(attributes, name: str) -> list[str]:
    """A list of names, none where it is missing; Keras cuts long ones into pieces `name0`, `name1`, ..."""
    pieces = [name] if name in attributes else []
    while name not in attributes and f"{name}{len(pieces)}" in attributes:
        pieces.append(f"{name}{len(pieces)}")
    values = [value for piece in pieces for value in np.ravel(attributes[piece])]
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values]
