"""Starting from the weights of another run."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from models.keras_internals import all_layers
from models.run_settings import DetectionClass, RunSettings

OUTPUT_LAYER = re.compile(r"(classes|boxes)(\d+|_output)")  # names of `models.heads`
MOST_NAMES = 12  # of layers in a sentence


class TakenOver(NamedTuple):
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
        sentence = f"{len(self.whole)} layers taken over, {len(self.anew)} begin anew"
        if self.anew:
            sentence += f": {', '.join(self.anew[:MOST_NAMES])}"
        if len(self.anew) > MOST_NAMES:
            sentence += f" and {len(self.anew) - MOST_NAMES} more"
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
    known = {weight.path: np.array(ops.convert_to_numpy(weight)) for weight in source.weights}
    whole, anew, partly = [], [], []
    for layer in (layer for layer in all_layers(target) if layer.weights):
        before, values = [known.get(weight.path) for weight in layer.weights], layer.get_weights()
        output, done = OUTPUT_LAYER.fullmatch(layer.name), anew
        if any(array is None for array in before):
            pass
        elif not output or same[output[1]]:
            if [array.shape for array in before] == [array.shape for array in values]:
                values, done = before, whole
        elif output[1] == "classes" and pairs and _copy_classes(values, before, old, new, pairs):
            done = partly
        layer.set_weights(values)
        done.append(layer.name)
    return TakenOver(tuple(whole), tuple(anew), tuple(partly), pairs)


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
    old_names, new_names = ([entry.name.casefold() for entry in classes] for classes in (old, new))
    pairs = []
    for index, (entry, name) in enumerate(zip(new, new_names, strict=True)):
        if entry.label in labels:
            pairs.append((index, labels[entry.label]))
        elif old_names.count(name) == new_names.count(name) == 1:
            pairs.append((index, old_names.index(name)))
    return tuple(pairs)


def _copy_classes(values, before, old: RunSettings, new: RunSettings, pairs: Sequence[tuple[int, int]]) -> bool:
    """Copies outputs of some classes between arrays with the last axis anchors x outputs; False where it cannot be."""
    anchors = values[0].shape[-1] // new.num_outputs
    fits = [(*array.shape[:-1], anchors * old.num_outputs) for array in values]
    if [array.shape for array in before] != fits:
        return False
    if new.scores == "softmax":  # whose first output is the background, which both runs have
        pairs = [(0, 0), *((index + 1, place + 1) for index, place in pairs)]
    to, come_from = (list(indices) for indices in zip(*pairs, strict=True))
    for array, other in zip(values, before, strict=True):
        rows, rows_before = (a.reshape(*a.shape[:-1], anchors, -1) for a in (array, other))
        rows[..., to] = rows_before[..., come_from]
    return True
