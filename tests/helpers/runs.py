"""What trainings need and leave behind, for several test files."""

import csv
import json
import shutil
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def history(run: Path) -> list[dict[str, str]]:
    return rows_of(run / "history.csv")


def state_of(run: Path) -> dict:
    return json.loads((run / "checkpoint" / "state.json").read_text())


def copy_level(output: Path, folder: Path) -> Path:
    """Copies a01's files of level 1, so that runs can be written below `folder`; returns `folder`."""
    shutil.copytree(output / "level_1_files", folder / "level_1_files")
    return folder


def in_folder(trained, folder: Path, **flags: object) -> tuple[dict, Path]:
    """The flags of the fixture `trained` with changes, for a run below `folder`; and that run's folder."""
    copy_level(trained.output, folder)
    flags = {**trained.flags, "output_path": str(folder), **flags}
    return flags, folder / "weights" / flags["run"]


def small_flags(photographs: tuple[Path, Path], output: Path, **flags: object) -> dict:
    """Flags of a03 for the smallest training on the fixture `photographs`, with changes."""
    small = {"backbone": "tiny", "precision": "float32", "image_size": 64, "tums": 1, "scales": 1, "channels": 16}
    return {"dataset_path": str(photographs[0]), "output_path": str(output), **small, "batch_size": 2, **flags}


def words(flags: dict) -> list[str]:
    """Flags as a command line."""
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def tensors(path: Path | BinaryIO) -> dict[str, np.ndarray]:
    """All arrays of a NumPy or HDF5 file by their names."""
    if isinstance(path, Path) and path.suffix == ".npz":
        return dict(np.load(path, allow_pickle=False))
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return found


def assert_same_training(one: Path, two: Path, *, atol: float = 1e-5) -> None:
    """Two runs have equal checkpoints (weights, averages, the optimizer) and equal histories."""
    for name in ("training.npz", "network.weights.h5"):
        a, b = (tensors(run / "checkpoint" / name) for run in (one, two))
        assert a.keys() == b.keys()
        for key, value in a.items():
            np.testing.assert_allclose(b[key], value, atol=atol, err_msg=f"{name} {key}")
    columns = ("epoch", "loss", "class_loss", "box_loss", "mAP", "learning_rate")
    mine, other = ([[float(row[c]) for c in columns] for row in history(run)] for run in (one, two))
    np.testing.assert_allclose(mine, other, atol=atol)


def assert_same_batch(one: tuple[np.ndarray, dict], two: tuple[np.ndarray, dict]) -> None:
    """Two batches of pictures and targets are equal."""
    np.testing.assert_array_equal(one[0], two[0])
    assert one[1].keys() == two[1].keys()
    for name in one[1]:
        np.testing.assert_array_equal(one[1][name], two[1][name], err_msg=name)
