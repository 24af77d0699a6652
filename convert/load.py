"""Loads a checkpoint of another project as a network and the settings of a run."""

import os

import keras

from models.run_settings import RunSettings
from oid.files import InputError, require_file

HDF5 = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: str | os.PathLike) -> bool:
    """Whether a file is HDF5, as those of keras-retinanet are."""
    with open(path, "rb") as file:
        return file.read(len(HDF5)) == HDF5


def load_checkpoint(
    path: str | os.PathLike,
    *,
    classes: str | os.PathLike | None = None,
    image_size: int | None = None,
    min_side: int | None = None,
    max_side: int | None = None,
) -> tuple[keras.Model, RunSettings]:
    """Reads a RetinaNet of keras-retinanet (.h5), or the M2Det of its authors (.pth); code in the file is not run.

    Args:
        path: the file.
        classes: CSV with rows `label,name` in the order of the outputs, without the background. None = COCO's names if
            there are 80 classes, else numbers.
        image_size: of M2Det only: side of its input in pixels, which the file does not tell; None = 512, as published.
        min_side, max_side: of a RetinaNet only: the shorter side of the images that it sees and the longer side at
            most, in pixels; None = as published.

    Returns:
        The network with raw outputs, and the settings to use it.

    Raises:
        InputError: the file is damaged or of another network, or does not fit the arguments.
    """
    path = require_file(path, "name a checkpoint")
    if is_hdf5(path):
        if image_size is not None:
            raise InputError(f"{path} is a RetinaNet for images of any shape: it takes no image_size")
        from convert.keras_retinanet import load_keras_retinanet

        return load_keras_retinanet(path, classes, min_side, max_side)
    if min_side is not None or max_side is not None:
        raise InputError(f"{path} is not a RetinaNet: it takes neither min_side nor max_side")
    from convert.m2det_pth import load_m2det

    return load_m2det(path, classes, 512 if image_size is None else image_size)
