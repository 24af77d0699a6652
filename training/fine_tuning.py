"""Starting from the weights of another run."""

import keras
import numpy as np
from keras import ops

from models.detector import load_model
from oid import layout
from oid.files import InputError


def initialise(network: keras.Model, settings: dict, flags: dict) -> None:
    """Takes over the weights of the run that `--init_from` names, and says what begins anew.

    Raises:
        InputError: it is no run, or nothing of it fits.
    """
    run = flags["init_from"]
    source = load_model(layout.run_folder(flags["output_path"], run), precision=None)
    taken, skipped = take_over_weights(source, network, settings)
    if not taken:
        raise InputError(f"--init_from {run}: not one layer fits; it needs the same backbone, variant and channels")
    names = ", ".join(skipped[:12]) + (f" and {len(skipped) - 12} more" if len(skipped) > 12 else "")
    print(f"--init_from {run}: {taken} layers taken over, {len(skipped)} begin anew{': ' * bool(names)}{names}")


def take_over_weights(source, target: keras.Model, settings: dict) -> tuple[int, list[str]]:
    """Copies the layers of another run that mean the same, for fine-tuning on other classes.

    A layer is taken over when the other run has one of that name and with these shapes. The classifier is not when the
    classes differ, in number or in order; the box outputs are not when anchors or box coding differ.

    Args:
        source: the other run, a `models.detector.Detector`.
        target: the network to fill.
        settings: the new run's settings.

    Returns:
        The number of layers taken over, and the names of those that have weights and were skipped, in their order.
    """
    old = source.settings
    strangers = []
    if [entry["label"] for entry in old["classes"]] != [entry["label"] for entry in settings["classes"]]:
        strangers.append("classes")
    if (old["anchors"], old["box_coding"]) != (settings["anchors"], settings["box_coding"]):
        strangers.append("boxes")
    known = {weight.path: weight for weight in source.model.weights}
    taken, skipped = 0, []
    for layer in target._flatten_layers(include_self=False):
        if not layer.weights or hasattr(layer, "layers"):
            continue
        others = [known.get(weight.path) for weight in layer.weights]
        fits = all(o is not None and o.shape == w.shape for o, w in zip(others, layer.weights, strict=True))
        is_output = isinstance(layer, keras.layers.Conv2D) and layer.use_bias  # a subnet's layers are not
        if fits and not (is_output and layer.name.startswith(tuple(strangers))):
            for weight, other in zip(layer.weights, others, strict=True):
                weight.assign(np.asarray(ops.convert_to_numpy(other)))
            taken += 1
        else:
            skipped.append(layer.name)
    return taken, skipped
