"""Starting from the weights of another run."""

import dataclasses
import re

import keras
import numpy as np
from keras import ops

from models.backbones import all_layers
from models.detector import load_model
from oid import paths
from oid.anchors.grids import anchors_per_cell
from oid.files import InputError
from training.detectors import same_boxes

OUTPUT_LAYER = re.compile(r"(classes|boxes)(\d+|_output)")  # those of `models.heads`


@dataclasses.dataclass(frozen=True)
class TakenOver:
    """What another run has given.

    Attributes:
        layers: how many are taken over whole.
        anew: names of those that have weights and begin anew, in their order.
        partly: names of the classifier's layers of which the rows of some classes are taken over.
        classes: `(new, old)` index pairs of the classes that both runs have.
    """

    layers: int
    anew: list[str]
    partly: list[str]
    classes: list[tuple[int, int]]


def initialise(network: keras.Model, settings: dict, flags: dict) -> None:
    """Takes over the weights of the run that `--init_from` names, and says what begins anew.

    Raises:
        InputError: it is no run, nothing of it fits, or random weights of the backbone would be kept.
    """
    run = flags["init_from"]
    source = load_model(paths.run_folder(flags["output_path"], run), precision=None)
    taken = take_over_weights(source, network, settings)
    if not taken.layers:
        raise InputError(f"--init_from {run}: not one layer fits; it needs the same detector, backbone and channels")
    _check_frozen(taken.anew, network, source.settings["backbone"], settings["backbone"], flags)
    names = ", ".join(taken.anew[:12]) + (f" and {len(taken.anew) - 12} more" if len(taken.anew) > 12 else "")
    print(f"--init_from {run}: {taken.layers} layers taken over, {len(taken.anew)} begin anew{names and ': '}{names}")
    if taken.partly:
        known, all_of_them = len(taken.classes), len(settings["classes"])
        rest = "; that of the others begins anew" if known < all_of_them else ""
        print(
            f"--init_from {run}: it knows {known} of the {all_of_them} classes, whose part of the classifier "
            f"({', '.join(taken.partly)}) is taken over{rest}"
        )


def _check_frozen(anew: list[str], network: keras.Model, old: str, new: str, flags: dict) -> None:
    """Refuses to freeze a backbone whose weights neither the other run nor a file has given."""
    frozen = [name for name in ("freeze_backbone", "freeze_backbone_epochs") if flags[name]]
    inside = {layer.name for layer in all_layers(network.get_layer(new))}
    if frozen and flags["backbone_weights"] == "none" and (random := [name for name in anew if name in inside]):
        raise InputError(
            f"--{frozen[0]} would keep random weights: {len(random)} layers of {new} ({random[0]}, ...) are not in "
            f"--init_from {flags['init_from']}, with its {old}: give --backbone_weights as well, or its backbone"
        )


def take_over_weights(source, target: keras.Model, settings: dict) -> TakenOver:
    """Copies the layers of another run that mean the same, for fine-tuning on other classes.

    A layer is taken over when the other run has one of that name and with these shapes. Where the classes differ, in
    number or in order, the classifier's outputs of a class are taken over when the other run has that class, see
    `same_classes`, and the same number of anchors per cell. The box outputs are not where anchors or box coding differ,
    the classifier is not where its scores mean something else.

    Args:
        source: the other run, a `models.detector.Detector`.
        target: the network to fill.
        settings: the new run's settings.
    """
    old = source.settings
    strangers, pairs = [], []
    if [entry["label"] for entry in old["classes"]] != [entry["label"] for entry in settings["classes"]]:
        strangers.append("classes")
        pairs = same_classes(old["classes"], settings["classes"])
    if old["score_activation"] != settings["score_activation"]:
        strangers, pairs = ["classes"], []
    if not same_boxes(old, settings):
        strangers.append("boxes")
    anchors = {anchors_per_cell(some["anchors"]) for some in (old, settings)}
    known = {weight.path: weight for weight in source.model.weights}
    whole, anew, partly = 0, [], []
    for layer in target._flatten_layers(include_self=False):
        if not layer.weights or hasattr(layer, "layers"):
            continue
        others = [known.get(weight.path) for weight in layer.weights]
        output = OUTPUT_LAYER.fullmatch(layer.name)
        there = all(other is not None for other in others)
        if output and output[1] == "classes" and "classes" in strangers:
            if pairs and there and len(anchors) == 1 and _take_over_classes(layer, others, pairs, *anchors):
                partly.append(layer.name)
            else:
                anew.append(layer.name)
        elif there and all(map(_same_shape, others, layer.weights)) and not (output and output[1] in strangers):
            for weight, other in zip(layer.weights, others, strict=True):
                weight.assign(_array(other))
            whole += 1
        else:
            anew.append(layer.name)
    return TakenOver(whole, anew, partly, pairs)


def same_classes(old: list[dict], new: list[dict]) -> list[tuple[int, int]]:
    """The classes that two runs have in common, as pairs of indices `(new, old)`.

    They are the same by their label, or else by their name, whatever its case, where neither run has two of that name:
    another data set's "apple" is Open Images' "Apple".

    Args:
        old: `settings["classes"]` of the one, `[{"label": ..., "name": ...}]`.
        new: those of the other.
    """
    labels = {entry["label"]: index for index, entry in enumerate(old)}
    names, new_names = _by_name(old), _by_name(new)
    pairs = []
    for index, entry in enumerate(new):
        name = entry["name"].casefold()
        found = labels.get(entry["label"], names.get(name) if new_names[name] is not None else None)
        if found is not None:
            pairs.append((index, found))
    return pairs


def _by_name(classes: list[dict]) -> dict[str, int | None]:
    """The index of each name; None where several classes have it."""
    found = {}
    for index, entry in enumerate(classes):
        name = entry["name"].casefold()
        found[name] = None if name in found else index
    return found


def _take_over_classes(layer, others, pairs: list[tuple[int, int]], anchors: int) -> bool:
    """Copies the outputs of some classes of a layer whose last axis is anchors x classes; False where it cannot be."""
    for weight, other in zip(layer.weights, others, strict=True):
        if weight.shape[:-1] != other.shape[:-1]:
            return False
    new, old = (list(indices) for indices in zip(*pairs, strict=True))
    for weight, other in zip(layer.weights, others, strict=True):
        values, source = _array(weight).copy(), _array(other)
        rows, before = (array.reshape(*array.shape[:-1], anchors, -1) for array in (values, source))
        rows[..., new] = before[..., old]
        weight.assign(values)
    return True


def _same_shape(a, b) -> bool:
    return a.shape == b.shape


def _array(weight) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(weight))
