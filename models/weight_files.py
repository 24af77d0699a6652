"""Reading a file of weights into a network."""

import warnings
import zipfile
from pathlib import Path

import keras

from oid.files import InputError


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
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"--backbone_weights {file} does not fit {model.name}: {reason}") from error
