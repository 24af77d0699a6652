"""Loads a trained run, or another project's checkpoint, as a detector."""

import warnings
import zipfile
from pathlib import Path

import keras

from models.any_shape_detector import AnyShapeDetector
from models.detector import Detector, Precision, build_network
from models.run_settings import CHECKPOINT, CHECKPOINT_WEIGHTS, MODEL, RunSettings, read_run_settings
from oid import paths
from oid.files import InputError


def load_model(
    run: str | Path,
    *,
    output_path: str | Path | None = None,
    checkpoint: bool = False,
    precision: Precision | None = "float32",
    backbone_name: str | None = None,
    classes: str | Path | None = None,
) -> Detector | AnyShapeDetector:
    """Loads a network with its weights.

    >>> detector = load_model("m2det_level_1", output_path="data/open_images_output")
    >>> detector = load_model("resnet50_coco_best_v2.1.0.h5", backbone_name="resnet50")

    Args:
        run: a run's name, its folder, the `checkpoint` folder in that, or a file that `convert` reads.
        output_path: the folder with `weights/<name>`.
        checkpoint: takes the newest checkpoint instead of the best weights; a run without best weights does so anyway.
        precision: of the predictions, see `models.detector.BaseDetector`.
        backbone_name: refuses a network on another backbone; None = any.
        classes: of a file: CSV with rows `label,name` in the order of its outputs.

    Raises:
        InputError: there is no such run or file, it is damaged, or it does not fit the arguments.
    """
    if Path(run).is_file():
        from convert.load import load_checkpoint  # other people's files are rare, and reading them takes packages

        network, settings = load_checkpoint(run, classes=classes)
    elif classes is not None:
        raise InputError(f"classes belong to a checkpoint file, and {run} is not a file: a run has its own")
    else:
        folder = run if output_path is None else paths.run_folder(output_path, run)
        network, settings = load_run(folder, checkpoint=checkpoint)
    if backbone_name not in (None, settings.network.backbone):
        raise InputError(f"{run} has the backbone {settings.network.backbone}, not {backbone_name}")
    return make_detector(network, settings, precision=precision)


def make_detector(
    network: keras.Model, settings: RunSettings, *, precision: Precision | None = None
) -> Detector | AnyShapeDetector:
    """The detector that belongs to a network; see `models.detector.BaseDetector`."""
    return (AnyShapeDetector if settings.any_shape else Detector)(network, settings, precision=precision)


def load_run(run: str | Path, *, checkpoint: bool = False) -> tuple[keras.Model, RunSettings]:
    """Builds the network of a run's folder, or of the `checkpoint` folder in it, with its weights.

    Raises:
        InputError: the folder is not a run, or its files are missing or damaged.
    """
    run = Path(run)
    if run.name == CHECKPOINT:
        run, checkpoint = run.parent, True
    settings = read_run_settings(run)
    weights = run / CHECKPOINT_WEIGHTS
    if (run / MODEL).is_file() and not checkpoint:
        weights = run / MODEL
    if not weights.is_file():
        missing = "no checkpoint" if (run / MODEL).is_file() else f"neither {MODEL} nor a checkpoint"
        raise InputError(f"{run} has {missing} yet: train it for at least one epoch")
    network = build_network(settings)
    try:
        with warnings.catch_warnings(action="error", category=UserWarning):  # Keras only warns of some missing weights
            network.load_weights(weights)
    except (OSError, ValueError, KeyError, UserWarning, zipfile.BadZipFile) as error:  # raised for damaged files
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{weights} cannot be loaded ({reason}): restore the file or train the run again") from error
    return network, settings
