"""Reading a file of weights into a network."""

import re
import warnings
import zipfile
from pathlib import Path

import keras

from oid.files import InputError

LONGEST_REASON = 300  # characters of what Keras says


def load_weight_file(model: keras.Model, file: str) -> None:
    """Loads a weights file into the whole model, by the order of the layers.

    Args:
        model: the architecture that the file was written from.
        file: `.weights.h5` or `.keras` of Keras 3, or `.h5` as older Keras wrote it and still distributes it.

    Raises:
        InputError: the file is missing or does not fit; names the file and the first difference.
    """
    if not Path(file).is_file():
        raise InputError(f'--backbone_weights {file}: no such file; give "imagenet", "none" or a weights file')
    try:
        with warnings.catch_warnings(action="ignore"):  # of each layer that is not in the file, before the error
            model.load_weights(file)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        message = " ".join(str(error).split())
        if isinstance(error, OSError | zipfile.BadZipFile) or message.startswith("File format not supported"):
            raise InputError(
                f"--backbone_weights {file} cannot be read: expected what Keras writes, .weights.h5, .h5 or .keras; "
                "download or save it again"
            ) from error
        raise InputError(
            f"--backbone_weights {file} does not fit {model.name}: {_first_difference(message)}"
        ) from error


def _first_difference(message: str) -> str:
    """The point of what Keras says; all of it, cut, where it says something else."""
    layer = re.search(r"<\w+ name=([^,>]+)|\(named ([^)]+)\)", message)
    shapes = re.findall(r"shape[= ](\([\d, ]*\))", message)
    tensors = re.search(r"expected (\d+) variables, but received (\d+) variables", message)
    counts = re.search(r"expected (\d+) layers, found (\d+)", message)
    if layer and len(shapes) >= 2:
        return f"{layer[1] or layer[2]} has the shape {shapes[0]}, in the file {shapes[1]}"
    if layer and tensors:
        return f"{layer[1] or layer[2]} has {tensors[1]} tensors, in the file {tensors[2]}"
    if counts:
        return f"it has {counts[1]} layers with weights, the file {counts[2]}"
    return message if len(message) <= LONGEST_REASON else f"{message[:LONGEST_REASON]}..."
