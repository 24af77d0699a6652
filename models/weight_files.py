"""Reading a file of weights into a network."""

import re
import warnings
import zipfile
from pathlib import Path

import keras

from oid.files import InputError

LONGEST_REASON = 300  # characters of what Keras says


def load_weight_file(model: keras.Model, file: str) -> None:
    """Loads a weights file into the whole model, in the order of the layers.

    Args:
        model: of the file's architecture.
        file: `.weights.h5` or `.keras` of Keras 3, or `.h5` of older Keras, as it still distributes them.

    Raises:
        InputError: the file is missing or does not fit; names the file and the first difference.
    """
    if not Path(file).is_file():
        raise InputError(f'there is no weights file {file}: give "imagenet", "none" or a file')
    try:
        with warnings.catch_warnings(action="ignore"):  # about each layer that the file lacks, before the error
            model.load_weights(file)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        message = " ".join(str(error).split())
        if isinstance(error, OSError | zipfile.BadZipFile) or message.startswith("File format not supported"):
            raise InputError(
                f"weights file {file} cannot be read: expected .weights.h5, .h5 or .keras as Keras writes them; "
                "download or save it again"
            ) from error
        raise InputError(f"weights file {file} does not fit {model.name}: {_first_difference(message)}") from error


def _first_difference(message: str) -> str:
    """The first difference in the message of Keras; an unknown message as it is, but not all of a long one."""
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
