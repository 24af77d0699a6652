"""Starting from the weights of another run."""

import dataclasses
import re
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from models.keras_internals import all_layers
from models.run_settings import DetectionClass, RunSettings
from oid.anchors.grids import retinanet_sizes

OUTPUT_LAYER = re.compile(r"(classes|boxes)(\d+|_output)")  # names of `models.heads`


@dataclasses.dataclass(frozen=True)
class TakenOver:
    """What another run has given.

    Attributes:
        whole, anew: names of the layers whose weights are taken over, and of those that begin anew.
        partly: names of the classifier's layers of which the outputs of some classes are taken over.
        classes: `(new, old)` index pairs of the classes that both runs have; () where both have the same.
    """

    whole: tuple[str, ...]
    anew: tuple[str, ...]
    partly: tuple[str, ...]
    classes: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        names = ", ".join(self.anew[:12]) + (f" and {len(self.anew) - 12} more" if len(self.anew) > 12 else "")
        sentence = f"{len(self.whole)} layers taken over, {len(self.anew)} begin anew{': ' if names else ''}{names}"
        if self.partly:
            sentence += f"; {', '.join(self.partly)} taken over for the {len(self.classes)} classes that both runs have"
        return sentence


def take_over_weights(source: keras.Model, old: RunSettings, target: keras.Model, new: RunSettings) -> TakenOver:
    """Copies the weights of another run's layers that mean the same, for fine-tuning on other classes.

    A layer is taken over when the other run has a layer of that name with weights of these shapes. Three cases differ:
    - other classes: the classifier's outputs of the classes that both runs have are taken over (see `same_classes`)
      where both have the same number of anchors per cell.
    - other scores (sigmoid or softmax): the classifier begins anew.
    - other anchors or box deltas: the box outputs begin anew.

    Args:
        source: the network of the other run.
        old: its settings.
        target: the network to fill.
        new: its settings.
    """
    pairs = same_classes(old.classes, new.classes) if old.labels != new.labels and old.scores == new.scores else ()
    same = {"classes": (old.labels, old.scores) == (new.labels, new.scores), "boxes": same_boxes(old, new)}
    known = {weight.path: weight for weight in source.weights}
    whole, anew, partly = [], [], []
    for layer in filter(lambda layer: layer.weights, all_layers(target)):
        others = [known.get(weight.path) for weight in layer.weights]
        output = OUTPUT_LAYER.fullmatch(layer.name)
        kind = output[1] if output else None
        if any(other is None for other in others):
            anew.append(layer.name)
        elif not same.get(kind, True):
            taken = kind == "classes" and pairs and _take_over_classes(layer, others, old, new, pairs)
            (partly if taken else anew).append(layer.name)
        elif [other.shape for other in others] == [weight.shape for weight in layer.weights]:
            for weight, other in zip(layer.weights, others, strict=True):
                weight.assign(_array(other))
            whole.append(layer.name)
        else:
            anew.append(layer.name)
    return TakenOver(tuple(whole), tuple(anew), tuple(partly), tuple(pairs))


def same_boxes(old: RunSettings, new: RunSettings) -> bool:
    """Whether the box outputs of two runs mean the same. A converted network's mean the same at every image size."""
    if old.network.detector == new.network.detector == "keras_retinanet":
        return True
    return (old.anchors, old.box_deltas) == (new.anchors, new.box_deltas)


def same_classes(old: Sequence[DetectionClass], new: Sequence[DetectionClass]) -> tuple[tuple[int, int], ...]:
    """The classes that two runs have in common, as `(new, old)` index pairs.

    Classes are the same by their label, or else by their name without regard to case, where neither run has two classes
    of that name: another data set's "apple" is Open Images' "Apple".
    """
    labels = {entry.label: index for index, entry in enumerate(old)}
    names, new_names = _by_name(old), _by_name(new)
    pairs = []
    for index, entry in enumerate(new):
        name = entry.name.casefold()
        found = labels.get(entry.label, names.get(name) if new_names[name] is not None else None)
        if found is not None:
            pairs.append((index, found))
    return tuple(pairs)


def _by_name(classes: Sequence[DetectionClass]) -> dict[str, int | None]:
    """The index of each name; None where several classes have it."""
    found = {}
    for index, entry in enumerate(classes):
        name = entry.name.casefold()
        found[name] = None if name in found else index
    return found


def _anchors_per_cell(settings: RunSettings) -> int:
    return settings.anchors.per_cell if settings.anchors else len(retinanet_sizes(1)[0])


def _take_over_classes(layer, others, old: RunSettings, new: RunSettings, pairs: Sequence[tuple[int, int]]) -> bool:
    """Copies the outputs of some classes of a layer whose last axis is anchors x outputs; False where it cannot be."""
    anchors = _anchors_per_cell(new)
    same_shapes = [other.shape[:-1] for other in others] == [weight.shape[:-1] for weight in layer.weights]
    if anchors != _anchors_per_cell(old) or not same_shapes:
        return False
    if new.scores == "softmax":  # whose first output is the background, which both runs have
        pairs = [(0, 0), *((index + 1, before + 1) for index, before in pairs)]
    to, come_from = (list(indices) for indices in zip(*pairs, strict=True))
    for weight, other in zip(layer.weights, others, strict=True):
        values, before = _array(weight).copy(), _array(other)
        rows, rows_before = (array.reshape(*array.shape[:-1], anchors, -1) for array in (values, before))
        rows[..., to] = rows_before[..., come_from]
        weight.assign(values)
    return True


def _array(weight) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(weight))
